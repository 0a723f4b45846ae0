# SPDX-License-Identifier: Apache-2.0
"""The codecs of ordinary calls behind one face: frames of 20 ms of 16 kHz mono (640 octets, signed 16 bit little
endian, as in `media.codec`) to RTP payloads and back. PyAV does the work and is loaded when first used."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from mcptt_sip.offeranswer import OPUS, Codec
from media.codec import FRAME_OCTETS, RATE, OpusDecoder, OpusEncoder
from media.errors import CodecError

__all__ = ["Decoder", "Encoder", "decoder", "encoder"]

_NAMES = {"PCMU": "pcm_mulaw", "PCMA": "pcm_alaw"}


class Encoder(Protocol):
    """Frames to payloads."""

    def encode(self, pcm: bytes) -> bytes:
        """One frame. Raises `media.errors.CodecError`."""
        ...


class Decoder(Protocol):
    """Payloads to frames."""

    def decode(self, payload: bytes) -> bytes:
        """What one payload holds. Raises `media.errors.CodecError`."""
        ...


def encoder(codec: Codec) -> Encoder:
    """An encoder for what was agreed."""
    return OpusEncoder() if codec.name == OPUS.name else _G711Encoder(codec.name)


def decoder(codec: Codec) -> Decoder:
    """A decoder for what was agreed."""
    return OpusDecoder() if codec.name == OPUS.name else _G711Decoder(codec.name)


class _G711Encoder:
    """ITU-T G.711 at 8 kHz: 160 octets a frame."""

    def __init__(self, name: str) -> None:
        import av

        self._av = av
        context: Any = av.CodecContext.create(_NAMES[name], "w")
        context.sample_rate = 8000
        context.layout = "mono"
        context.format = "s16"
        context.time_base = Fraction(1, 8000)
        self._context = context
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=8000)
        self._held = bytearray()

    def encode(self, pcm: bytes) -> bytes:
        if len(pcm) != FRAME_OCTETS:
            raise CodecError(f"a frame has {FRAME_OCTETS} octets, not {len(pcm)}")
        frame = self._av.AudioFrame.from_ndarray(
            np.frombuffer(pcm, "<i2").reshape(1, -1), format="s16", layout="mono"
        )
        frame.sample_rate = RATE
        for out in self._resampler.resample(frame):
            self._held += b"".join(bytes(packet) for packet in self._context.encode(out))
        # the resampler keeps a few samples back at first: the first payload is filled up in front
        payload = bytes(self._held[:160]).rjust(160, b"\xff" if self._context.name == "pcm_mulaw" else b"\xd5")
        del self._held[:160]
        return payload


class _G711Decoder:
    def __init__(self, name: str) -> None:
        import av

        self._av = av
        context: Any = av.CodecContext.create(_NAMES[name], "r")
        context.sample_rate = 8000
        context.layout = "mono"
        self._context = context
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)

    def decode(self, payload: bytes) -> bytes:
        if not payload:
            raise CodecError("an empty payload")
        try:
            decoded = self._context.decode(self._av.Packet(payload))
            frames = [out for frame in decoded for out in self._resampler.resample(frame)]
        except (self._av.FFmpegError, ValueError) as error:
            raise CodecError(f"not a G.711 payload: {error}") from None
        return b"".join(frame.to_ndarray().astype("<i2").tobytes() for frame in frames)
