# SPDX-License-Identifier: Apache-2.0
"""The codecs of ordinary calls behind one face: frames of 20 ms of 16 kHz mono (640 octets, signed 16 bit little
endian, as in `media.codec`) to RTP payloads and back. PyAV does the work and is loaded when first used."""

from __future__ import annotations

from typing import Protocol

from mcptt_sip.offeranswer import OPUS, Codec
from media.codec import OpusDecoder, OpusEncoder
from media.codecs import PCMA, PCMU, Encoder, SampleDecoder

__all__ = ["Decoder", "Encoder", "decoder", "encoder"]

_FFMPEG_NAMES = {"PCMU": "pcm_mulaw", "PCMA": "pcm_alaw"}
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
    """A decoder for what was agreed; of G.711 for payloads of any length, as telephones choose their ptime."""
    return OpusDecoder() if codec.name == OPUS.name else SampleDecoder(_FFMPEG_NAMES[codec.name], 8000)
