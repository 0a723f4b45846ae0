# SPDX-License-Identifier: Apache-2.0
"""RTCP sender and receiver reports (RFC 3550 6.4), source descriptions, goodbyes, and the figures that go into reports;
sans-IO.

>>> stream = StreamStatistics(0x1234, 48000)
>>> for number in (0, 1, 3):
...     stream.received(number, number * 960, number * 0.02)
>>> block = stream.block()
>>> block.fraction_lost, block.lost, block.highest_sequence
(64, 1, 3)
>>> decode_report(Report(7, (block,)).encode()) == Report(7, (block,))
True
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from media.errors import RtpError

__all__ = [
    "ReceiverReports",
    "Report",
    "ReportBlock",
    "StreamStatistics",
    "decode_report",
    "goodbye",
    "is_report",
    "ntp_middle",
    "packets_of",
    "round_trip",
    "source_description",
]

_NTP_UNIX = 2208988800
_SR, _RR, _SDES, _BYE = 200, 201, 202, 203
_CNAME = 1


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """How one source is received: ``fraction_lost`` in 1/256 since the last report, ``lost`` since the beginning,
    ``jitter`` in units of the source's clock, ``last_sr`` and ``since_last_sr`` in 1/65536 s (0: none)."""

    ssrc: int
    fraction_lost: int = 0
    lost: int = 0
    highest_sequence: int = 0
    jitter: int = 0
    last_sr: int = 0
    since_last_sr: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A sender report when ``ntp`` (Unix seconds) is stated, else a receiver report. ``packets`` and ``octets`` are
    what the sender has sent."""

    ssrc: int
    blocks: tuple[ReportBlock, ...] = ()
    ntp: float | None = None
    timestamp: int = 0
    packets: int = 0
    octets: int = 0

    def encode(self) -> bytes:
        """The RTCP packet. Raises ``ValueError`` for more than 31 blocks."""
        if len(self.blocks) > 31:
            raise ValueError("a report has at most 31 blocks")
        body = struct.pack(">I", self.ssrc)
        if self.ntp is not None:
            stamp = round((self.ntp + _NTP_UNIX) * (1 << 32)) & 0xFFFFFFFFFFFFFFFF
            body += struct.pack(
                ">QIII", stamp, self.timestamp, self.packets & 0xFFFFFFFF, self.octets & 0xFFFFFFFF
            )
        for block in self.blocks:
            lost = max(-0x800000, min(0x7FFFFF, block.lost)) & 0xFFFFFF
            body += struct.pack(
                ">IIIIII", block.ssrc, block.fraction_lost << 24 | lost, block.highest_sequence, block.jitter,
                block.last_sr, block.since_last_sr,
            )  # fmt: skip
        kind = _RR if self.ntp is None else _SR
        return struct.pack(">BBH", 0x80 | len(self.blocks), kind, len(body) // 4) + body


def decode_report(data: bytes) -> Report:
    """The first report of a compound packet. Raises :class:`RtpError`."""
    if len(data) < 8 or data[0] >> 6 != 2 or data[1] not in (_SR, _RR):
        raise RtpError("not an RTCP report")
    count, end = data[0] & 0x1F, 4 + 4 * int.from_bytes(data[2:4], "big")
    start = 8 if data[1] == _RR else 28
    if start + 24 * count > end or end > len(data):
        raise RtpError("the report is cut short")
    ntp, timestamp, packets, octets = None, 0, 0, 0
    if data[1] == _SR:
        stamp, timestamp, packets, octets = struct.unpack_from(">QIII", data, 8)
        ntp = stamp / (1 << 32) - _NTP_UNIX + ((1 << 32) if stamp < 1 << 63 else 0)
    blocks = []
    for at in range(start, start + 24 * count, 24):
        ssrc, word, highest, jitter, last, since = struct.unpack_from(">IIIIII", data, at)
        lost = word & 0xFFFFFF
        blocks.append(
            ReportBlock(ssrc, word >> 24, lost - (lost >> 23 << 24), highest, jitter, last, since)
        )
    return Report(int.from_bytes(data[4:8], "big"), tuple(blocks), ntp, timestamp, packets, octets)


def packets_of(compound: bytes) -> Iterator[bytes]:
    """Each packet of a compound packet (6.1). Raises :class:`RtpError` for what is none."""
    at = 0
    while at < len(compound):
        end = at + 4 + 4 * int.from_bytes(compound[at + 2 : at + 4], "big")
        if end > len(compound) or compound[at] >> 6 != 2:
            raise RtpError("not an RTCP packet")
        yield compound[at:end]
        at = end


def is_report(packet: bytes) -> bool:
    """Whether :func:`decode_report` is for this one."""
    return packet[1] in (_SR, _RR)


def source_description(ssrc: int, cname: str) -> bytes:
    """The packet that says who a source is (6.5.1). Raises ``ValueError`` for a name above 255 octets."""
    name = cname.encode()
    if len(name) > 255:
        raise ValueError("a CNAME has at most 255 octets")
    chunk = struct.pack(">IBB", ssrc, _CNAME, len(name)) + name
    chunk += bytes(4 - len(chunk) % 4)  # the end of the items, and up to the next word
    return struct.pack(">BBH", 0x81, _SDES, len(chunk) // 4) + chunk


def goodbye(ssrc: int) -> bytes:
    """The packet that says that a source is no more (6.6)."""
    return struct.pack(">BBHI", 0x81, _BYE, 1, ssrc)


def ntp_middle(unix: float) -> int:
    """The middle 32 bits of an NTP time, in 1/65536 s (RFC 3550 4)."""
    return round((unix + _NTP_UNIX) * 65536) & 0xFFFFFFFF


def round_trip(block: ReportBlock, unix: float) -> float | None:
    """Seconds from this end's sender report to ``block``'s arrival at ``unix``, less what the peer waited."""
    if not block.last_sr:
        return None
    units = (ntp_middle(unix) - block.last_sr - block.since_last_sr) & 0xFFFFFFFF
    return None if units & 0x80000000 else units / 65536


class StreamStatistics:
    """What a receiver reports of one source (RFC 3550 A.3, A.8)."""

    __slots__ = (
        "_base", "_clock_rate", "_expected", "_highest", "_jitter", "_received", "_reported", "_transit", "ssrc",
    )  # fmt: skip

    def __init__(self, ssrc: int, clock_rate: int) -> None:
        self.ssrc = ssrc
        self._clock_rate = clock_rate
        self._base: int | None = None
        self._highest = 0
        self._received = 0
        self._jitter = 0.0
        self._transit: float | None = None
        self._expected = self._reported = 0

    def received(self, sequence: int, timestamp: int, now: float) -> None:
        """A packet of the source has come at ``now`` (seconds)."""
        if self._base is None:
            self._base = self._highest = sequence
        ahead = (sequence - self._highest + 0x8000 & 0xFFFF) - 0x8000
        self._highest = max(self._highest, self._highest + ahead)
        self._received += 1
        transit = now * self._clock_rate - timestamp
        if self._transit is not None:
            # the timestamp may have wrapped: 32 bits of difference
            moved = (round(transit - self._transit) + 0x80000000 & 0xFFFFFFFF) - 0x80000000
            self._jitter += (abs(moved) - self._jitter) / 16
        self._transit = transit

    def block(self, last_sr: int = 0, since_last_sr: int = 0) -> ReportBlock:
        """The report since the last one."""
        expected = 0 if self._base is None else self._highest - self._base + 1
        expected_now, received_now = expected - self._expected, self._received - self._reported
        self._expected, self._reported = expected, self._received
        lost_now = max(0, expected_now - received_now)
        fraction = min(255, (lost_now << 8) // expected_now) if expected_now > 0 else 0
        return ReportBlock(
            self.ssrc, fraction, expected - self._received, self._highest & 0xFFFFFFFF, round(self._jitter), last_sr,
            since_last_sr,
        )  # fmt: skip


class ReceiverReports:
    """What one end reports to its server: the source heard last, and when the server's own report came.

    :param ssrc: of the reports
    :param sources: so many sources' figures are kept
    """

    def __init__(self, ssrc: int, clock_rate: int, sources: int = 4) -> None:
        self.ssrc = ssrc
        self._clock_rate = clock_rate
        self._sources = sources
        self._streams: dict[int, StreamStatistics] = {}
        self._server: tuple[int, int, float] | None = None

    def packet(self, ssrc: int, sequence: int, timestamp: int, now: float) -> None:
        """An authentic RTP packet has come."""
        stream = self._streams.pop(ssrc, None) or StreamStatistics(ssrc, self._clock_rate)
        self._streams[ssrc] = stream  # the one heard last stands last
        while len(self._streams) > self._sources:
            del self._streams[next(iter(self._streams))]
        stream.received(sequence, timestamp, now)

    def server_report(self, report: Report, now: float) -> None:
        """A report of the server has come."""
        if report.ntp is not None:
            self._server = report.ssrc, ntp_middle(report.ntp), now

    def report(self, now: float) -> Report:
        """A receiver report: of the source heard last, and for the round trip to the server."""
        blocks = [stream.block() for stream in list(self._streams.values())[-1:]]
        if self._server is not None:
            ssrc, middle, at = self._server
            blocks.append(ReportBlock(ssrc, last_sr=middle, since_last_sr=round((now - at) * 65536) & 0xFFFFFFFF))
        return Report(self.ssrc, tuple(blocks))
