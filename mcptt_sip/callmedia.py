# SPDX-License-Identifier: Apache-2.0
"""The audio of an ordinary call: RTP over UDP with PCMU, PCMA or Opus, SRTP with SDES keys, telephone events (RFC 3550,
3551, 4733, 7587; RFC 3711 through libsrtp), and its RTCP. Never used in a regroup call.

Frames are those of `media.codec`: 20 ms of 16 kHz mono.

:RFC 3550: yes; for two parties
:RFC 3551: partly; PCMU and PCMA
:RFC 3711: yes; AES_CM_128_HMAC_SHA1, through libsrtp
:RFC 4733: yes; telephone events 0 to 15
:RFC 5761: yes; RTCP on the port of RTP where both ends want it
:RFC 7587: yes; Opus
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import secrets
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcptt_sip.callcodec import Decoder, decoder, encoder
from mcptt_sip.callreports import CallReports, PeerReport
from mcptt_sip.offeranswer import CODECS, Codec, Crypto, OfferAnswer
from mcptt_sip.uri import is_address
from media.capture import FileFrames
from media.codec import FRAME_SECONDS, RATE, WavTimeline
from media.errors import CodecError, RtpError
from media.rtp import RtpPacket
from media.udp import Address, Datagrams, open_adjacent

__all__ = ["CallMedia", "CallMediaSettings", "check_digits"]

log = logging.getLogger(__name__)

_DIGITS = "0123456789*#ABCD"
#: seconds that a recorded packet's timestamp may be ahead of the clock
_AHEAD = 5.0


def check_digits(digits: str) -> None:
    """ValueError for what no telephone has."""
    if any(digit not in _DIGITS for digit in digits.upper()):
        raise ValueError(f"{digits!r} holds something else than 0-9, *, #, A-D")


@dataclass(frozen=True, slots=True)
class CallMediaSettings:
    """Times in seconds, sizes in octets."""

    codecs: tuple[Codec, ...] = CODECS
    #: RTP/SAVP with SDES keys, and nothing else
    sdes: bool = False
    dscp: int = 46
    max_datagram: int = 1500
    #: a telephone event and the silence after it
    digit: float = 0.1
    digit_pause: float = 0.06
    #: packets that a recording waits for one that was overtaken
    reordering: int = 3
    #: between two RTCP reports, on the average (RFC 3550 6.2: 5 s); 0: none are sent
    report_interval: float = 5.0


class CallMedia:
    """One call's audio. `negotiation` is its side of offer and answer; `apply` puts into force what was agreed.

    `on_digit(digit)` is told each telephone event of the peer once. `counters`: ``sent``, ``received``, ``held`` (not
    sent because of a hold), ``foreign``, ``unprotected`` (refused by SRTP), ``broken``; ``reports`` that were sent, and
    ``reports heard``.
    """

    def __init__(
        self, audio: Datagrams, control: Datagrams, settings: CallMediaSettings, token: Callable[[], bytes]
    ) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self.on_digit: Callable[[str], None] = lambda _digit: None
        self.closed = asyncio.Event()
        self._socket, self._control = audio, control
        self._loop = asyncio.get_running_loop()
        self.negotiation = OfferAnswer(
            *audio.address, codecs=settings.codecs, sdes=settings.sdes, token=token, rtcp_port=control.address[1]
        )
        self._ssrc = secrets.randbits(32)
        self._sequence = secrets.randbelow(1 << 15)
        self._timestamp = secrets.randbits(32)
        self._began = self._loop.time()
        self._protect = _Protection()
        self._unprotect = _Protection()
        self._looping = 0
        self._looped: tuple[int, int] | None = None  # the peer's SSRC, and ours minus its timestamp
        self._last_event: tuple[int, int] | None = None
        self._recording: _Recording | None = None
        self._talking, self._dialling = asyncio.Lock(), asyncio.Lock()
        self._reports = CallReports(self._ssrc, secrets.token_urlsafe(12), settings.report_interval, random.random)
        self._reporting: asyncio.TimerHandle | None = None
        #: where the peer receives RTP and RTCP, as far as it is known: a description may have a name (RFC 4566 5.7)
        self._remote: Address | None = None
        self._remote_rtcp: Address | None = None
        self._found: dict[str, str] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        audio.on_datagram, control.on_datagram = self._received, self._heard

    @classmethod
    async def open(
        cls, host: str, *, settings: CallMediaSettings | None = None, token: Callable[[], bytes] | None = None
    ) -> CallMedia:
        """UDP sockets on `host` (numeric), their ports chosen by the system. Raises OSError."""
        settings = settings or CallMediaSettings()
        sockets = open_adjacent(host, dscp=settings.dscp, max_datagram=settings.max_datagram)
        return cls(*sockets, settings, token or (lambda: secrets.token_bytes(16)))

    @property
    def address(self) -> Address:
        """Where RTP is received."""
        return self._socket.address

    @property
    def peer_report(self) -> PeerReport | None:
        """How the peer hears us, by its last RTCP report."""
        return self._reports.heard

    def apply(self) -> None:
        """What `negotiation` has agreed holds from now on. The keys' sessions go on unless a key has changed."""
        agreed = self.negotiation.agreed
        self._locate()
        if agreed is not None:
            self._protect.use(agreed.local_key, outbound=True)
            self._unprotect.use(agreed.remote_key, outbound=False)
            if self._reporting is None and self.settings.report_interval and not self.closed.is_set():
                self._reporting = self._loop.call_later(self._reports.wait(first=True), self._report)

    def _locate(self) -> None:
        agreed = self.negotiation.agreed
        self._remote = None if agreed is None else self._numeric(agreed.remote)
        self._remote_rtcp = None if agreed is None else self._numeric(agreed.remote_rtcp)

    def _numeric(self, where: Address | None) -> Address | None:
        """An address for packets; of a name, what the system has found, for which nothing else waits."""
        if where is None or is_address(where[0]):
            return where
        host, port = where
        if host not in self._found and host not in self._looking and not self.closed.is_set():
            self._looking[host] = asyncio.ensure_future(self._look_up(host))
        return (self._found[host], port) if host in self._found else None

    async def _look_up(self, name: str) -> None:
        family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        try:
            found = await self._loop.getaddrinfo(name, None, family=family, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:  # it stays looked up: no second time for the same call
            log.info("the peer's media is at %r, which is nowhere: %s", name, error)
            return
        self._found[name] = str(found[0][4][0])
        self._locate()

    # --- talking

    async def play(self, path: Path | str) -> None:
        """Plays an audio file to the peer at the pace of speech. Raises `media.errors.CodecError`."""
        frames = FileFrames(path)
        await frames.fill()
        await self.talk(frames)

    async def talk(self, frames: AsyncIterator[bytes]) -> None:
        """Sends frames at the pace of speech until they or the call end; one at a time does."""
        async with self._talking:
            agreed = self.negotiation.agreed
            if agreed is None or self.closed.is_set():
                return
            coder = encoder(agreed.codec)
            step = round(agreed.codec.clock * FRAME_SECONDS)
            begin = self._loop.time()
            timestamp = self._now_as_timestamp(agreed.codec.clock)
            number = 0
            async for pcm in frames:
                await asyncio.sleep(begin + number * FRAME_SECONDS - self._loop.time())
                if self.closed.is_set():
                    break
                payload = coder.encode(pcm)
                if not self._dialling.locked():  # RFC 4733 2.5.1.1: events take the place of the audio
                    self._send(payload, timestamp + number * step, marker=number == 0)
                number += 1

    async def loop_back(self, *, until: asyncio.Event | None = None) -> None:
        """Sends back to the peer what it sends, until the event, or the end of the call."""
        self._looping += 1
        waits = [asyncio.ensure_future(event.wait()) for event in (until, self.closed) if event is not None]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._looping -= 1
            for wait in waits:
                wait.cancel()

    async def send_digits(self, digits: str) -> None:
        """Telephone events (RFC 4733 2.5): ``0-9 * # A-D``. ValueError for others, or when the peer takes none."""
        check_digits(digits)
        agreed = self.negotiation.agreed
        if agreed is None or agreed.event_send is None:
            raise ValueError("the peer takes no telephone events")
        clock = agreed.codec.clock
        async with self._dialling:
            for digit in digits.upper():
                timestamp = self._now_as_timestamp(clock)
                begin, steps = self._loop.time(), max(1, round(self.settings.digit / FRAME_SECONDS))
                for step in range(1, steps + 3):  # the last one three times, with its end mark
                    end = 0x80 if step >= steps else 0
                    duration = min(step, steps) * round(clock * FRAME_SECONDS)
                    payload = bytes((_DIGITS.index(digit), end | 10)) + duration.to_bytes(2, "big")
                    self._send(payload, timestamp, marker=step == 1, payload_type=agreed.event_send)
                    await asyncio.sleep(max(0.0, begin + min(step, steps) * FRAME_SECONDS - self._loop.time()))
                await asyncio.sleep(self.settings.digit_pause)

    # --- hearing

    def record(self, path: Path | str) -> None:
        """Everything that is heard from now on, as a WAV of 16 kHz mono, gaps kept. Raises OSError."""
        self.stop_recording()
        self._recording = _Recording(path, self._loop.time(), self.settings.reordering)

    def stop_recording(self) -> None:
        """Ends the recording, if there is one."""
        if self._recording is not None:
            self._recording.close()
            self._recording = None

    def close(self) -> None:
        """Lets go of the sockets and the recording. Harmless twice."""
        self.stop_recording()
        if self._reporting is not None:
            self._reporting.cancel()
            if self.counters["reports"] and not self.closed.is_set():  # 6.3.7: who never reported says no goodbye
                self._send_control(self._reports.farewell)
        for task in self._looking.values():
            task.cancel()
        self._socket.close()
        self._control.close()
        self.closed.set()

    # --- inside

    def _now_as_timestamp(self, clock: int) -> int:
        return self._timestamp + round((self._loop.time() - self._began) * clock)

    def _send(self, payload: bytes, timestamp: int, *, marker: bool, payload_type: int | None = None) -> None:
        agreed = self.negotiation.agreed
        if agreed is None or self._remote is None or not agreed.sends:
            self.counters["held"] += 1
            return
        number = agreed.send if payload_type is None else payload_type
        packet = RtpPacket(number, self._sequence, timestamp & 0xFFFFFFFF, self._ssrc, marker, payload).encode()
        self._sequence = self._sequence + 1 & 0xFFFF
        self.counters["sent"] += 1
        self._reports.sent(len(payload))
        self._socket.send(self._protect.apply(packet), self._remote)

    def _report(self) -> None:
        """One RTCP report, and the time of the next."""
        self._send_control(self._reports.report)
        self._reporting = self._loop.call_later(self._reports.wait(), self._report)

    def _send_control(self, make: Callable[[int, float, float], bytes]) -> None:
        agreed = self.negotiation.agreed
        if agreed is None or self._remote_rtcp is None:
            return
        packet = make(self._now_as_timestamp(agreed.codec.clock), self._loop.time(), time.time())
        self.counters["reports"] += 1
        end = self._socket if agreed.rtcp_mux else self._control
        end.send(self._protect.apply(packet, control=True), self._remote_rtcp)

    def _heard(self, octets: bytes, source: Address) -> None:
        """RTCP has come."""
        agreed = self.negotiation.agreed
        if agreed is None or self._remote_rtcp is None or source[0] != self._remote_rtcp[0]:
            self.counters["foreign"] += 1
            return
        plain = self._unprotect.try_apply(octets, control=True)
        if plain is None:
            self.counters["unprotected"] += 1
            return
        try:
            self._reports.hear(plain, agreed.codec.clock, self._loop.time(), time.time())
        except RtpError:
            self.counters["broken"] += 1
        else:
            self.counters["reports heard"] += 1

    def _received(self, octets: bytes, source: Address) -> None:
        agreed = self.negotiation.agreed
        # who holds in the old way has no address, and may send all the same
        if agreed is None or (agreed.remote is not None and (self._remote is None or source[0] != self._remote[0])):
            self.counters["foreign"] += 1
            return
        if len(octets) > 1 and 192 <= octets[1] <= 223:  # RTCP on the same port (RFC 5761 4)
            self._heard(octets, source)
            return
        plain = self._unprotect.try_apply(octets)
        if plain is None:
            self.counters["unprotected"] += 1
            return
        try:
            packet = RtpPacket.decode(plain)
        except RtpError:
            self.counters["broken"] += 1
            return
        if packet.payload_type not in (agreed.receive, agreed.event_receive):
            self.counters["foreign"] += 1
            return
        self.counters["received"] += 1
        self._reports.received(packet, agreed.codec.clock, self._loop.time())
        is_event = packet.payload_type == agreed.event_receive
        if is_event:
            self._event(packet)
        elif self._recording is not None and agreed.receives:
            self._recording.put(packet, agreed.codec, self._loop.time())
        if self._looping:
            self._send_back(packet, agreed.event_send if is_event else None, agreed.codec.clock, is_event)

    def _send_back(self, packet: RtpPacket, payload_type: int | None, clock: int, is_event: bool) -> None:
        if is_event and payload_type is None:
            return
        if self._looped is None or self._looped[0] != packet.ssrc:
            self._looped = packet.ssrc, self._now_as_timestamp(clock) - packet.timestamp
        self._send(
            packet.payload, packet.timestamp + self._looped[1], marker=packet.marker, payload_type=payload_type
        )

    def _event(self, packet: RtpPacket) -> None:
        if len(packet.payload) < 4 or packet.payload[0] >= len(_DIGITS):
            return
        if self._last_event != (packet.ssrc, packet.timestamp):  # its other packets repeat it
            self._last_event = packet.ssrc, packet.timestamp
            self.on_digit(_DIGITS[packet.payload[0]])


class _Protection:
    """SRTP in one direction, or none."""

    def __init__(self) -> None:
        self._key: Crypto | None = None
        self._session: Any = None

    def use(self, key: Crypto | None, *, outbound: bool) -> None:
        if key is not None and self._key is not None and (key.key, key.suite) == (self._key.key, self._key.suite):
            return
        self._key, self._session = key, None
        if key is None:
            return
        from pylibsrtp import Policy, Session

        short = key.suite.endswith("_32")
        self._session = Session(
            Policy(
                key=key.key,
                ssrc_type=Policy.SSRC_ANY_OUTBOUND if outbound else Policy.SSRC_ANY_INBOUND,
                srtp_profile=Policy.SRTP_PROFILE_AES128_CM_SHA1_32 if short else Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
            )
        )

    def apply(self, packet: bytes, *, control: bool = False) -> bytes:
        """A packet of RTP, or of RTCP, as it is sent."""
        if self._session is None:
            return packet
        return bytes((self._session.protect_rtcp if control else self._session.protect)(packet))

    def try_apply(self, packet: bytes, *, control: bool = False) -> bytes | None:
        """The opened packet; ``None`` for a forged or repeated one."""
        if self._session is None:
            return packet
        from pylibsrtp import Error

        try:
            return bytes((self._session.unprotect_rtcp if control else self._session.unprotect)(packet))
        except (Error, TypeError):
            return None


class _Recording:
    """Decoded audio on a time line; packets are put in order first."""

    def __init__(self, path: Path | str, began: float, depth: int) -> None:
        self._file = WavTimeline(path)
        self._began = began
        self._depth = depth
        self._waiting: list[tuple[int, bytes, Codec]] = []  # (timestamp since the first, payload, codec)
        self._coder: tuple[Codec, Decoder] | None = None
        self._source: int | None = None
        self._first = 0
        self._offset = 0

    def put(self, packet: RtpPacket, codec: Codec, now: float) -> None:
        if packet.ssrc != self._source:
            self._drain(0)
            self._source, self._first = packet.ssrc, packet.timestamp
            self._offset = round((now - self._began) * RATE)
        since = (packet.timestamp - self._first + (1 << 31)) % (1 << 32) - (1 << 31)
        if since < 0 or since / codec.clock > now - self._began + _AHEAD:
            return  # a time line is not stretched by what a peer claims
        heapq.heappush(self._waiting, (since, packet.payload, codec))
        self._drain(self._depth)

    def _drain(self, depth: int) -> None:
        while len(self._waiting) > depth:
            since, payload, codec = heapq.heappop(self._waiting)
            if self._coder is None or self._coder[0] != codec:
                self._coder = codec, decoder(codec)
            try:
                pcm = self._coder[1].decode(payload)
            except CodecError as error:
                log.debug("%s", error)
                continue
            self._file.write_at(self._offset + since * RATE // codec.clock, pcm)

    def close(self) -> None:
        self._drain(0)
        self._file.flush()
        self._file.close()
