# SPDX-License-Identifier: Apache-2.0
"""Opus for speech, and audio files as 20 ms frames of 16 kHz mono; through PyAV, which is loaded when first used.

A *frame* is 640 octets: 320 samples, signed 16 bit little-endian. The codec delays by 6.5 ms (Opus' own
look-ahead), which is part of every mouth-to-ear time.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from media.errors import CodecError

__all__ = [
    "FRAME_OCTETS",
    "FRAME_SAMPLES",
    "FRAME_SECONDS",
    "RATE",
    "RTP_CLOCK",
    "SILENCE",
    "OpusDecoder",
    "OpusEncoder",
    "WavTimeline",
    "read_frames",
]

RATE = 16000
FRAME_SECONDS = 0.02
FRAME_SAMPLES = 320
FRAME_OCTETS = 640
#: Opus' RTP clock, whatever the sampling rate (RFC 7587 4.1)
RTP_CLOCK = 48000
SILENCE = bytes(FRAME_OCTETS)


class OpusEncoder:
    """16 kHz mono speech at ``bit_rate`` bit/s, one packet a frame."""

    def __init__(self, bit_rate: int = 24000) -> None:
        import av

        self._av = av
        context: Any = av.CodecContext.create("libopus", "w")
        context.sample_rate = RATE
        context.layout = "mono"
        context.format = "s16"
        context.bit_rate = bit_rate
        context.time_base = Fraction(1, RATE)
        context.options = {"application": "voip", "frame_duration": "20", "fec": "1", "packet_loss": "10"}
        self._context = context
        self._samples = 0

    def encode(self, pcm: bytes) -> bytes:
        """One frame to one packet. Raises :class:`CodecError`."""
        if len(pcm) != FRAME_OCTETS:
            raise CodecError(f"a frame has {FRAME_OCTETS} octets, not {len(pcm)}")
        samples = np.frombuffer(pcm, "<i2").reshape(1, -1)
        frame = self._av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._samples
        frame.time_base = Fraction(1, RATE)
        self._samples += FRAME_SAMPLES
        packets = self._context.encode(frame)
        if len(packets) != 1:
            raise CodecError(f"the encoder gave {len(packets)} packets for a frame")
        return bytes(packets[0])


class Fading:
    """What is played in place of lost frames where a codec has nothing better: the last one, fading over 60 ms."""

    def __init__(self) -> None:
        self._last = SILENCE
        self._level = 0.0

    def keep(self, pcm: bytes) -> bytes:
        """A frame that came; it is given back."""
        self._last, self._level = pcm, 1.0
        return pcm

    def conceal(self, following: bytes | None = None) -> bytes:
        """A frame in place of a lost one; ``following`` is of no use here."""
        before, self._level = self._level, max(0.0, self._level - 1 / 3)
        if before <= 0.0:
            return SILENCE
        ramp = np.linspace(before, self._level, FRAME_SAMPLES)
        return (np.frombuffer(self._last, "<i2") * ramp).astype("<i2").tobytes()


class OpusDecoder:
    """Packets to frames. After an error it goes on with a fresh decoder."""

    def __init__(self) -> None:
        self._fading = Fading()
        self.conceal = self._fading.conceal
        self._open()

    def _open(self) -> None:
        import av

        self._av = av
        context: Any = av.CodecContext.create("libopus", "r")
        context.sample_rate = 48000
        context.layout = "mono"
        self._context = context
        # libopus in FFmpeg always decodes to 48 kHz
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)

    def decode(self, payload: bytes) -> bytes:
        """One packet to one frame. Raises :class:`CodecError` for a payload that is no Opus packet of 20 ms."""
        if not payload:
            raise CodecError("an empty payload is no Opus packet")  # FFmpeg would take it as the stream's end
        try:
            decoded = self._context.decode(self._av.Packet(payload))
            resampled = [out for frame in decoded for out in self._resampler.resample(frame)]
        except (self._av.FFmpegError, ValueError) as error:
            self._open()
            raise CodecError(f"not an Opus packet: {error}") from None
        pcm = b"".join(frame.to_ndarray().astype("<i2").tobytes() for frame in resampled)
        # the resampler keeps a few samples back at first: the frame is filled up in front
        return self._fading.keep(pcm[-FRAME_OCTETS:].rjust(FRAME_OCTETS, b"\0"))


def read_frames(path: Path | str) -> Iterator[bytes]:
    """The frames of any audio file that FFmpeg reads; the last one is filled up with silence.

    Raises :class:`CodecError` for a file that cannot be read.
    """
    import av

    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            held = bytearray()
            for frame in container.decode(audio=0):
                held += b"".join(out.to_ndarray().tobytes() for out in resampler.resample(frame))
                while len(held) >= FRAME_OCTETS:
                    yield bytes(held[:FRAME_OCTETS])
                    del held[:FRAME_OCTETS]
            held += b"".join(out.to_ndarray().tobytes() for out in resampler.resample(None))
            while held:
                yield bytes(held[:FRAME_OCTETS]).ljust(FRAME_OCTETS, b"\0")
                del held[:FRAME_OCTETS]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise CodecError(f"{path}: {error}") from None


class WavTimeline:
    """A WAV file on a time line: what is heard at an offset stands there, with silence between.

    After every :meth:`flush` the file is a valid WAV of what there is so far.
    """

    def __init__(self, path: Path | str, rate: int = RATE) -> None:
        self._raw: BinaryIO = open(path, "w+b")  # noqa: SIM115 - lives as long as the recording
        self._file = wave.open(self._raw, "wb")  # noqa: SIM115
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(rate)
        self._file.writeframes(b"")
        self.length = 0

    def write_at(self, offset: int, pcm: bytes, *, shared: int = 0) -> None:
        """Puts samples at ``offset`` (in samples). What would lie before the end so far is cut off, but for the last
        ``shared`` samples: those are added to what stands there."""
        if offset > self.length:
            gap = offset - self.length
            self._file.writeframesraw(bytes(2 * gap))
            self.length += gap
        elif self.length - shared <= offset < self.length:
            self._add(offset, pcm[: 2 * (self.length - offset)])
        pcm = pcm[2 * (self.length - offset) :] if offset < self.length else pcm
        self._file.writeframesraw(pcm)
        self.length += len(pcm) // 2

    def _add(self, offset: int, pcm: bytes) -> None:
        end = self._raw.tell()
        at = end - 2 * (self.length - offset)
        self._raw.seek(at)
        there = np.frombuffer(self._raw.read(len(pcm)), "<i2").astype(np.int32)
        both = np.clip(there + np.frombuffer(pcm, "<i2"), -32768, 32767)
        self._raw.seek(at)
        self._raw.write(both.astype("<i2").tobytes())
        self._raw.seek(end)

    def flush(self) -> None:
        """Brings the header up to date."""
        self._file.writeframes(b"")
        self._raw.flush()

    def close(self) -> None:
        """Ends the file; harmless when it is closed already."""
        if not self._raw.closed:
            self._file.close()
            self._raw.close()
