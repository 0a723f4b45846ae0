# SPDX-License-Identifier: Apache-2.0
"""The sending side of a member's audio: one SSRC for the call, frames to protected packets, at the pace of speech."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable

from media.codec import FRAME_SECONDS, SILENCE
from media.codecs import OPUS, Codec
from media.rtp import RtpPacket
from media.srtp import GROUP, SrtpKey, SrtpPolicy, SrtpSender

__all__ = ["Talker"]


class Talker:
    """Talks bursts under one SSRC.

    :param send: what sends a protected packet; nothing else ever gets out of here (security rule 16)
    :param timed_packets: so many packets at a burst's beginning state its time (RFC 6051)
    :param timed_interval: and then one in so many seconds
    """

    def __init__(
        self,
        ssrc: int,
        send: Callable[[bytes], None],
        *,
        payload_type: int = 96,
        extension_id: int = 1,
        codec: Codec = OPUS,
        bit_rate: int = 24000,
        timed_packets: int = 3,
        timed_interval: float = 0.5,
        protection: SrtpPolicy = GROUP,
    ) -> None:
        self.ssrc = ssrc
        self.sent = 0
        self.unsent = 0
        #: frames of the burst under way, or of the last one
        self.frames = 0
        #: set to end the burst under way
        self.stop = asyncio.Event()
        #: set while no burst is under way
        self.silent = asyncio.Event()
        self.silent.set()
        self._send = send
        self._payload_type = payload_type
        self._extension_id = extension_id
        self._codec = codec
        self._step = codec.step
        self._bit_rate = bit_rate
        self._timed_packets = timed_packets
        self._timed_interval = timed_interval
        self._protection = protection
        self._sender: SrtpSender | None = None
        self._may_send = False
        # in the lower half, so that loss at the beginning cannot make a receiver guess wrong (RFC 3711 3.3.1)
        self._sequence = secrets.randbelow(1 << 15)
        self._timestamp = secrets.randbits(32)
        self._timestamp_at: float | None = None

    def set_key(self, key: SrtpKey | None) -> None:
        """Under ``key`` from the next packet on; with ``None`` nothing is sent."""
        self._may_send = key is not None
        if key is None:
            return
        if self._sender is None:
            self._sender = SrtpSender(key, self.ssrc, self._protection)
        else:
            self._sender.set_key(key)

    async def talk(self, frames: AsyncIterator[bytes], start: float) -> None:
        """Sends one burst, its first sample being of Unix time ``start`` and of now; counts in :attr:`frames`.

        A frame goes out when its last sample is over, on an absolute schedule. Ends with ``frames`` or with
        :attr:`stop`; one frame more, of silence, brings out what the codec's look-ahead holds back.
        """
        loop = asyncio.get_running_loop()
        encoder = self._codec.encoder(self._bit_rate)
        begin = loop.time()
        first = self._first_timestamp(begin)
        timed = 0.0
        self.frames = 0
        self.stop.clear()
        self.silent.clear()
        try:
            async for pcm in frames:
                at = self.frames * FRAME_SECONDS
                # sleeping less than nothing still lets others run when this side is late
                await asyncio.sleep(begin + at + FRAME_SECONDS - loop.time())
                if self.stop.is_set():
                    break
                stated = self.frames < self._timed_packets or at - timed >= self._timed_interval - 1e-9
                if stated:
                    timed = at
                self._timestamp = first + self.frames * self._step & 0xFFFFFFFF
                self._timestamp_at = begin + at
                self._packet(encoder.encode(pcm), marker=self.frames == 0, ntp=start + at if stated else None)
                self.frames += 1
            if self.frames and self._codec.delay:
                # what the codec still holds back of the last syllable
                self._timestamp = self._timestamp + self._step & 0xFFFFFFFF
                self._packet(encoder.encode(SILENCE), marker=False, ntp=None)
        finally:
            self.silent.set()

    def _first_timestamp(self, now: float) -> int:
        """Goes on from the last burst's by the time between, and by two frames at least, so that no receiver takes
        the two bursts for one."""
        if self._timestamp_at is None:
            return self._timestamp
        passed = max(2 * self._step, round((now - self._timestamp_at) * self._codec.clock_rate))
        return self._timestamp + passed & 0xFFFFFFFF

    def _packet(self, payload: bytes, *, marker: bool, ntp: float | None) -> None:
        if self._sender is None or not self._may_send:
            self.unsent += 1
            return
        packet = RtpPacket(self._payload_type, self._sequence, self._timestamp, self.ssrc, marker, payload, ntp)
        protected = self._sender.protect(packet.encode(self._extension_id))
        self._sequence = self._sequence + 1 & 0xFFFF
        self.sent += 1
        self._send(protected)
