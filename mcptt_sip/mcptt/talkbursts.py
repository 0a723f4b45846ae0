# SPDX-License-Identifier: Apache-2.0
"""What is heard in a call, burst by burst, for an application that listens."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import AsyncIterator
from pathlib import Path

#: of the samples that are heard: mono, 16 bit
RATE = 16000
#: frames of 20 ms that wait for a reader, a minute; older ones are let go
MAX_FRAMES = 3000


class TalkBurst:
    """One talker, from his first word until the floor is given back. ``user`` is the owner of the packets' key."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.lost = 0  # frames that nobody read in time
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_FRAMES)

    def put(self, pcm: bytes | None) -> None:
        """A frame that is played, ``None`` at the end."""
        if self._frames.full():
            self._frames.get_nowait()
            self.lost += 1
        self._frames.put_nowait(pcm)

    async def frames(self) -> AsyncIterator[bytes]:
        """20 ms each: 640 octets, 16 kHz mono, 16 bit little-endian, until the burst ends."""
        while (pcm := await self._frames.get()) is not None:
            yield pcm

    async def record(self, path: Path | str) -> float:
        """Writes the burst as a WAV until it ends; its length in seconds. Raises ``OSError``."""
        samples = 0
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            async for pcm in self.frames():
                file.writeframes(pcm)
                samples += len(pcm) // 2
        return samples / RATE


class Listening:
    """The bursts of one call for one reader."""

    def __init__(self) -> None:
        self._bursts: asyncio.Queue[TalkBurst | None] = asyncio.Queue()
        self._open: dict[str, TalkBurst] = {}

    def heard(self, user: str, pcm: bytes, _due: float) -> None:
        """A frame of ``user`` is played."""
        burst = self._open.get(user)
        if burst is None:
            burst = self._open[user] = TalkBurst(user)
            self._bursts.put_nowait(burst)
        burst.put(pcm)

    def ended(self, user: str) -> None:
        """His burst is over."""
        burst = self._open.pop(user, None)
        if burst is not None:
            burst.put(None)

    def close(self) -> None:
        """The call is over."""
        for user in list(self._open):
            self.ended(user)
        self._bursts.put_nowait(None)

    async def bursts(self) -> AsyncIterator[TalkBurst]:
        while (burst := await self._bursts.get()) is not None:
            yield burst
