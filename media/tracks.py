# SPDX-License-Identifier: Apache-2.0
"""Sources and sinks of audio as aiortc's ``MediaStreamTrack``s, so that any track of any library plugs in.

Sources: a file, a tone, silence, the microphone, what a member hears. Sinks: a WAV that keeps its gaps, the
loudspeaker. Whatever rate and channels a foreign track has, frames inside are 20 ms of 16 kHz mono.
"""

from __future__ import annotations

import asyncio
import glob
import math
from collections import deque
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame, AudioResampler

from media.capture import FileFrames, microphone_track
from media.codec import FRAME_SAMPLES, FRAME_SECONDS, RATE, SILENCE, WavTimeline
from media.errors import CodecError, NoLoudspeaker

__all__ = [
    "FileTrack",
    "HeardTrack",
    "SilenceTrack",
    "ToneTrack",
    "loudspeaker",
    "microphone",
    "record",
]


class _PacedTrack(MediaStreamTrack):
    """A track whose frames come at the pace of speech, on an absolute schedule."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._begun: float | None = None

    async def next_frame(self) -> bytes:
        """640 octets; raises ``StopAsyncIteration`` at the end."""
        raise NotImplementedError

    async def recv(self) -> AudioFrame:
        """The next 20 ms, when their time has come. Raises ``MediaStreamError`` when the track has ended."""
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        if self._begun is None:
            self._begun = loop.time()
        await asyncio.sleep(self._begun + self._count * FRAME_SECONDS - loop.time())
        try:
            pcm = await self.next_frame()
        except StopAsyncIteration:
            self.stop()
            raise MediaStreamError from None
        frame = AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2").reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts, frame.time_base = self._count * FRAME_SAMPLES, Fraction(1, RATE)
        self._count += 1
        return frame


class ToneTrack(_PacedTrack):
    """A sine of ``hertz`` at ``level`` (0..1), without end or for so many seconds."""

    def __init__(self, hertz: float = 440.0, level: float = 0.25, seconds: float = math.inf) -> None:
        super().__init__()
        self._hertz, self._level, self._seconds = hertz, level, seconds

    async def next_frame(self) -> bytes:
        if self._count * FRAME_SECONDS >= self._seconds:
            raise StopAsyncIteration
        at = np.arange(self._count * FRAME_SAMPLES, (self._count + 1) * FRAME_SAMPLES) / RATE
        return (np.sin(2 * np.pi * self._hertz * at) * self._level * 32767).astype("<i2").tobytes()


class SilenceTrack(_PacedTrack):
    """Nothing to hear, without end."""

    async def next_frame(self) -> bytes:
        return SILENCE


class FileTrack(_PacedTrack):
    """Any audio file that FFmpeg reads, once. The track raises :class:`CodecError` for one that cannot be read."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self._frames = FileFrames(path)

    async def next_frame(self) -> bytes:
        return await anext(self._frames)


#: of 32768: nobody hears what stays below
QUIET = 64


class HeardTrack(_PacedTrack):
    """What a member hears, with silence between; give its :meth:`put` to ``MemberMedia.listeners``.

    A burst begins when two of its frames are there, so that the pace of playing and of this track may differ by one.

    :param most: frames that wait; more push out the oldest
    :param slack: when more wait than these, frames of silence are left out: bursts that follow one another at once are
        each a frame longer than what was said, and would be heard later and later
    """

    def __init__(self, most: int = 50, slack: int = 4) -> None:
        super().__init__()
        self._ready: deque[bytes] = deque(maxlen=most)
        self._slack = slack
        self._playing = False

    def put(self, _user: str, pcm: bytes, _due: float) -> None:
        """A frame that is played now."""
        if len(self._ready) > self._slack and np.abs(np.frombuffer(pcm, "<i2").astype(np.int32)).max() < QUIET:
            return
        self._ready.append(pcm)

    async def next_frame(self) -> bytes:
        if not self._playing and len(self._ready) < 2:
            return SILENCE
        self._playing = bool(self._ready)
        return self._ready.popleft() if self._playing else SILENCE


def microphone() -> MediaStreamTrack:
    """The machine's microphone. Raises :class:`media.errors.NoMicrophone`."""
    track: MediaStreamTrack = microphone_track()
    return track


async def loudspeaker(track: MediaStreamTrack) -> None:
    """Plays a track to its end on the machine's loudspeaker. Raises :class:`NoLoudspeaker`."""
    if not glob.glob("/dev/snd/pcmC*p"):
        raise NoLoudspeaker("there is no playing device")
    from aiortc.contrib.media import MediaRecorder

    ended = asyncio.Event()
    track.on("ended", ended.set)
    try:
        recorder = MediaRecorder("default", format="alsa")
        recorder.addTrack(track)
        await recorder.start()
    except (OSError, ValueError) as error:
        raise NoLoudspeaker(f"the loudspeaker cannot be opened: {error}") from None
    try:
        await ended.wait()
    finally:
        await recorder.stop()


async def timed_frames(track: MediaStreamTrack) -> AsyncIterator[tuple[int, bytes]]:
    """(offset in samples of 16 kHz, samples) of a track, its gaps kept; ends with the track."""
    if getattr(track, "kind", None) != "audio":
        raise CodecError("not a track of audio")
    resampler = AudioResampler(format="s16", layout="mono", rate=RATE)
    first: Fraction | None = None
    expected = Fraction(0)
    offset = 0
    while True:
        try:
            frame = await track.recv()
        except MediaStreamError:
            return
        if not isinstance(frame, AudioFrame) or frame.pts is None or frame.time_base is None:
            raise CodecError("a track of audio gives frames of audio, with their times")
        at = Fraction(frame.pts * frame.time_base)
        if first is None:
            first = expected = at
        if abs(at - expected) > Fraction(1, 100):  # a gap, or a step back: its time counts, not what came before
            offset = max(0, round((at - first) * RATE))
        expected = at + Fraction(frame.samples, frame.sample_rate)
        frame.pts = None
        for out in resampler.resample(frame):
            pcm = out.to_ndarray().astype("<i2").tobytes()
            yield offset, pcm
            offset += len(pcm) // 2


async def record(track: MediaStreamTrack, path: Path | str) -> int:
    """Writes a track to a WAV of 16 kHz mono until it ends or the task is cancelled; gives its length in samples."""
    line = WavTimeline(path)
    try:
        async for offset, pcm in timed_frames(track):
            line.write_at(offset, pcm)
    finally:
        line.close()
    return line.length


