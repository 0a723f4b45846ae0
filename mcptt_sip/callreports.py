# SPDX-License-Identifier: Apache-2.0
"""What one end of an ordinary call says and hears in RTCP (RFC 3550 6); sans-IO.

:RFC 7022: yes; a name of its own for each call
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from media.rtcp import (
    Report,
    ReportBlock,
    StreamStatistics,
    decode_report,
    goodbye,
    is_report,
    ntp_middle,
    packets_of,
    round_trip,
    source_description,
)
from media.rtp import RtpPacket

__all__ = ["CallReports", "PeerReport"]


@dataclass(frozen=True, slots=True)
class PeerReport:
    """How the peer hears us, by its last report: the share of packets ``lost`` since the one before (0 to 1), and
    ``lost_in_all``; ``jitter`` and ``round_trip`` in seconds, the latter ``None`` before it is known."""

    lost: float
    lost_in_all: int
    jitter: float
    round_trip: float | None


class CallReports:
    """The reports of one stream each way. Times: ``now`` of any steady clock, ``unix`` of the day; in seconds.

    :param cname: what ties our streams together; says nothing of who we are (RFC 7022)
    :param random: gives numbers from 0 to 1
    """

    def __init__(self, ssrc: int, cname: str, interval: float, random: Callable[[], float]) -> None:
        self._ssrc = ssrc
        self._cname = cname
        self._interval = interval
        self._random = random
        self._packets = self._octets = 0
        self._reported: list[int] = [0, 0]  # packets that had been sent at the last report, and the one before
        self._stream: StreamStatistics | None = None
        self._clock = 0
        self._sender_report: tuple[int, int, float] | None = None  # (SSRC, middle of its NTP time, when it came)
        self.heard: PeerReport | None = None

    def wait(self, *, first: bool = False) -> float:
        """Seconds to the next report (6.3.1), half of that to the first. Two ends need less than 5 % of any call's
        bandwidth, so the least interval is the interval."""
        return self._interval * (0.5 + self._random()) / (math.e - 1.5) / (2 if first else 1)

    def sent(self, octets: int) -> None:
        """An RTP packet with so much payload has been sent."""
        self._packets += 1
        self._octets += octets

    def received(self, packet: RtpPacket, clock: int, now: float) -> None:
        """An RTP packet of the peer has come."""
        if self._stream is None or self._stream.ssrc != packet.ssrc or self._clock != clock:
            self._stream, self._clock = StreamStatistics(packet.ssrc, clock), clock
        self._stream.received(packet.sequence, packet.timestamp, now)

    def report(self, timestamp: int, now: float, unix: float) -> bytes:
        """A compound packet (6.1) of now, when our stream stands at ``timestamp``: of a sender while he has sent since
        the last report but one (6.4)."""
        sending = self._packets > self._reported[1]
        self._reported = [self._packets, self._reported[0]]
        blocks: tuple[ReportBlock, ...] = ()
        if self._stream is not None:
            last = since = 0
            if self._sender_report is not None and self._sender_report[0] == self._stream.ssrc:
                last, since = self._sender_report[1], round((now - self._sender_report[2]) * 65536)
            blocks = (self._stream.block(last, since & 0xFFFFFFFF),)
        made = Report(
            self._ssrc, blocks, unix if sending else None, timestamp & 0xFFFFFFFF, self._packets, self._octets
        )
        return made.encode() + source_description(self._ssrc, self._cname)

    def farewell(self, timestamp: int, now: float, unix: float) -> bytes:
        """The last compound packet."""
        return self.report(timestamp, now, unix) + goodbye(self._ssrc)

    def hear(self, compound: bytes, clock: int, now: float, unix: float) -> None:
        """A compound packet of the peer; ``clock`` is that of our stream. Raises :class:`~media.errors.RtpError`."""
        for packet in packets_of(compound):
            if not is_report(packet):
                continue
            report = decode_report(packet)
            if report.ntp is not None:
                self._sender_report = report.ssrc, ntp_middle(report.ntp), now
            for block in report.blocks:
                if block.ssrc == self._ssrc:
                    self.heard = PeerReport(
                        block.fraction_lost / 256, block.lost, block.jitter / clock, round_trip(block, unix)
                    )
