# SPDX-License-Identifier: Apache-2.0
"""The audio of an ordinary call: RTP over UDP with PCMU, PCMA or Opus, SRTP with SDES keys, telephone events (RFC 3550,
3551, 4733, 7587; RFC 3711 through libsrtp). Never used in a regroup call, and sends no RTCP.

Frames are those of `media.codec`: 20 ms of 16 kHz mono.

:RFC 3550: partly; no RTCP
:RFC 3551: partly; PCMU and PCMA
:RFC 3711: yes; AES_CM_128_HMAC_SHA1, through libsrtp
:RFC 4733: yes; telephone events 0 to 15
:RFC 7587: yes; Opus
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcptt_sip.callcodec import Decoder, decoder, encoder
from mcptt_sip.offeranswer import CODECS, Codec, Crypto, OfferAnswer
from media.capture import FileFrames
from media.codec import FRAME_SECONDS, RATE, WavTimeline
from media.errors import CodecError, RtpError
from media.rtp import RtpPacket
from media.udp import Address, Datagrams

__all__ = ["CallMedia", "CallMediaSettings"]

log = logging.getLogger(__name__)

_DIGITS = "0123456789*#ABCD"
#: seconds that a recorded packet's timestamp may be ahead of the clock
_AHEAD = 5.0


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


class CallMedia:
    """One call's audio. `negotiation` is its side of offer and answer; `apply` puts into force what was agreed.

    `on_digit(digit)` is told each telephone event of the peer once. `counters`: ``sent``, ``received``, ``held`` (not
    sent because of a hold), ``foreign``, ``unprotected`` (refused by SRTP), ``broken``.
    """

    def __init__(self, socket: Datagrams, settings: CallMediaSettings, token: Callable[[], bytes]) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self.on_digit: Callable[[str], None] = lambda _digit: None
        self.closed = asyncio.Event()
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self.negotiation = OfferAnswer(
            *socket.address, codecs=settings.codecs, sdes=settings.sdes, token=token
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
        socket.on_datagram = self._received

    @classmethod
    async def open(
        cls, host: str, *, settings: CallMediaSettings | None = None, token: Callable[[], bytes] | None = None
    ) -> CallMedia:
        """A UDP socket on `host` (numeric), its port chosen by the system. Raises OSError."""
        settings = settings or CallMediaSettings()
        socket = Datagrams(host, dscp=settings.dscp, max_datagram=settings.max_datagram)
        return cls(socket, settings, token or (lambda: secrets.token_bytes(16)))

    @property
    def address(self) -> Address:
        """Where RTP is received."""
        return self._socket.address

    def apply(self) -> None:
        """What `negotiation` has agreed holds from now on. The keys' sessions go on unless a key has changed."""
        agreed = self.negotiation.agreed
        if agreed is not None:
            self._protect.use(agreed.local_key, outbound=True)
            self._unprotect.use(agreed.remote_key, outbound=False)

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
        if any(digit not in _DIGITS for digit in digits.upper()):
            raise ValueError(f"{digits!r} holds something else than 0-9, *, #, A-D")
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
        """Lets go of the socket and the recording. Harmless twice."""
        self.stop_recording()
        self._socket.on_datagram = lambda _octets, _source: None  # who points back here
        self._socket.close()
        self.closed.set()

    # --- inside

    def _now_as_timestamp(self, clock: int) -> int:
        return self._timestamp + round((self._loop.time() - self._began) * clock)

    def _send(self, payload: bytes, timestamp: int, *, marker: bool, payload_type: int | None = None) -> None:
        agreed = self.negotiation.agreed
        if agreed is None or agreed.remote is None or not agreed.sends:
            self.counters["held"] += 1
            return
        number = agreed.send if payload_type is None else payload_type
        packet = RtpPacket(number, self._sequence, timestamp & 0xFFFFFFFF, self._ssrc, marker, payload).encode()
        self._sequence = self._sequence + 1 & 0xFFFF
        self.counters["sent"] += 1
        self._socket.send(self._protect.apply(packet), agreed.remote)

    def _received(self, octets: bytes, source: Address) -> None:
        agreed = self.negotiation.agreed
        if agreed is None or (agreed.remote is not None and source[0] != agreed.remote[0]):
            self.counters["foreign"] += 1
            return
        if len(octets) > 1 and 192 <= octets[1] <= 223:  # RTCP on the same port (RFC 5761 4)
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

    def apply(self, packet: bytes) -> bytes:
        return packet if self._session is None else bytes(self._session.protect(packet))

    def try_apply(self, packet: bytes) -> bytes | None:
        """The opened packet; ``None`` for a forged or repeated one."""
        if self._session is None:
            return packet
        from pylibsrtp import Error

        try:
            return bytes(self._session.unprotect(packet))
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
