# SPDX-License-Identifier: Apache-2.0
"""Where a talk burst's frames come from: a file, an aiortc track, the microphone. Frames are as in media.codec."""

from __future__ import annotations

import asyncio
import glob
from collections import deque
from collections.abc import AsyncGenerator
from itertools import islice
from pathlib import Path
from typing import Any

from media.codec import FRAME_OCTETS, RATE, SILENCE, read_frames
from media.errors import CodecError, NoMicrophone

__all__ = ["FileFrames", "microphone_track", "open_microphone", "track_frames", "until"]

#: frames read ahead at once (2 s), so that a file is never read on the loop's time
_AHEAD = 100


class FileFrames:
    """The frames of an audio file, read in a thread, a few seconds ahead."""

    def __init__(self, path: Path | str) -> None:
        self._source = read_frames(path)
        self._ready: deque[bytes] = deque()
        self._filling: asyncio.Future[list[bytes]] | None = None
        self._over = False

    async def fill(self) -> None:
        """Reads the first frames. Raises :class:`CodecError`."""
        self._read_on()
        await self._taken()

    def _read_on(self) -> None:
        if self._filling is None and not self._over:
            loop = asyncio.get_running_loop()
            self._filling = loop.run_in_executor(None, lambda: list(islice(self._source, _AHEAD)))

    async def _taken(self) -> None:
        if self._filling is None:
            return
        filling, self._filling = self._filling, None
        frames = await filling
        self._over = len(frames) < _AHEAD
        self._ready.extend(frames)

    def __aiter__(self) -> FileFrames:
        return self

    async def __anext__(self) -> bytes:
        if len(self._ready) <= _AHEAD // 2:
            self._read_on()
        if not self._ready or (self._filling is not None and self._filling.done()):
            await self._taken()
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Lets go of the file."""
        if self._filling is not None:
            await asyncio.wait([self._filling])
        self._over = True
        self._source.close()  # type: ignore[attr-defined]


async def track_frames(track: Any) -> AsyncGenerator[bytes]:
    """The frames of an ``aiortc.MediaStreamTrack`` of audio, whatever its rate and channels; ends with the track."""
    import av
    from aiortc.mediastreams import MediaStreamError

    if getattr(track, "kind", None) != "audio":
        raise CodecError("not a track of audio")
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    held = bytearray()
    while True:
        try:
            frame = await track.recv()
        except MediaStreamError:
            break
        for out in resampler.resample(frame):
            held += out.to_ndarray().tobytes()
        while len(held) >= FRAME_OCTETS:
            yield bytes(held[:FRAME_OCTETS])
            del held[:FRAME_OCTETS]
    if held:
        yield bytes(held).ljust(FRAME_OCTETS, b"\0")


async def until(stop: asyncio.Event, frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """``frames`` until ``stop`` is set, even while the next one does not come."""
    stopped = asyncio.ensure_future(stop.wait())
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(frames))
            await asyncio.wait((coming, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return
            try:
                yield coming.result()
            except StopAsyncIteration:
                return
    finally:
        stopped.cancel()
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait((coming,))
        await frames.aclose()


async def _silence() -> AsyncGenerator[bytes]:
    while True:
        yield SILENCE


def open_microphone(*, silent: bool = False) -> AsyncGenerator[bytes]:
    """The machine's microphone through ALSA, or silence without end. Raises :class:`NoMicrophone`."""
    if silent:
        return _silence()
    return track_frames(microphone_track())


def microphone_track() -> Any:
    """The machine's microphone as an aiortc track. Raises :class:`NoMicrophone`."""
    if not glob.glob("/dev/snd/pcmC*c"):
        raise NoMicrophone("there is no recording device")
    from aiortc.contrib.media import MediaPlayer

    try:
        player = MediaPlayer("default", format="alsa", options={"channels": "1", "sample_rate": str(RATE)})
    except (OSError, ValueError) as error:
        raise NoMicrophone(f"the microphone cannot be opened: {error}") from None
    return player.audio
