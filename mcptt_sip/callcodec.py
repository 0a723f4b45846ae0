# SPDX-License-Identifier: Apache-2.0
"""The codecs of ordinary calls behind one face: frames of 20 ms of 16 kHz mono (640 octets, signed 16 bit little
endian, as in `media.codec`) to RTP payloads and back. PyAV does the work and is loaded when first used."""

from __future__ import annotations

from typing import Any, Protocol

from mcptt_sip.offeranswer import OPUS, Codec
from media.codec import RATE, OpusDecoder, OpusEncoder
from media.codecs import PCMA, PCMU, Encoder
from media.errors import CodecError

__all__ = ["Decoder", "Encoder", "decoder", "encoder"]

_NAMES = {"PCMU": "pcm_mulaw", "PCMA": "pcm_alaw"}
_G711 = {codec.name: codec for codec in (PCMU, PCMA)}


class Decoder(Protocol):
    """Payloads to frames."""

    def decode(self, payload: bytes) -> bytes:
        """What one payload holds. Raises `media.errors.CodecError`."""
        ...


def encoder(codec: Codec) -> Encoder:
    """An encoder for what was agreed."""
    if codec.name == OPUS.name:
        return OpusEncoder()
    g711 = _G711[codec.name]
    return g711.encoder(g711.bit_rate)


def decoder(codec: Codec) -> Decoder:
    """A decoder for what was agreed."""
    return OpusDecoder() if codec.name == OPUS.name else _G711Decoder(codec.name)


class _G711Decoder:
    """Unlike the decoder of `media.codecs` it takes payloads of any length: telephones choose their ptime."""

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
