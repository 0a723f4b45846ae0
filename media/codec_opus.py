# SPDX-License-Identifier: Apache-2.0
"""libopus through ctypes: unlike FFmpeg it conceals lost packets itself and rebuilds them from the next one (FEC).

The library is found when first asked for; without it :mod:`media.codecs` falls back on PyAV.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools

from media.codec import FRAME_OCTETS, FRAME_SAMPLES, RATE
from media.errors import CodecError

__all__ = ["LibOpusDecoder", "LibOpusEncoder", "library"]

_VOIP = 2048
_SET_BITRATE, _SET_INBAND_FEC, _SET_PACKET_LOSS, _SET_COMPLEXITY = 4002, 4012, 4014, 4010
#: RFC 6716 3.4: no packet is longer
_MAX_PACKET = 1275


@functools.cache
def library() -> ctypes.CDLL | None:
    """libopus, or ``None`` where there is none."""
    name = ctypes.util.find_library("opus")
    if name is None:
        return None
    try:
        found = ctypes.CDLL(name)
    except OSError:
        return None
    for function in ("opus_encoder_create", "opus_decoder_create"):
        getattr(found, function).restype = ctypes.c_void_p
    for function in ("opus_encoder_destroy", "opus_decoder_destroy"):
        getattr(found, function).argtypes = (ctypes.c_void_p,)
        getattr(found, function).restype = None
    found.opus_encode.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
    found.opus_decode.argtypes = (
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int,
    )  # fmt: skip
    found.opus_strerror.restype = ctypes.c_char_p
    return found


def _loaded() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise CodecError("libopus is not installed")
    return found


def _checked(library: ctypes.CDLL, result: int) -> int:
    if result < 0:
        raise CodecError(f"libopus: {library.opus_strerror(result).decode()}")
    return result


class LibOpusEncoder:
    """16 kHz mono speech at ``bit_rate`` bit/s, one packet a frame, with what FEC needs for ``expected_loss`` percent.

    Raises :class:`CodecError` without libopus.
    """

    def __init__(self, bit_rate: int = 24000, *, expected_loss: int = 10, complexity: int = 8) -> None:
        self._library, error = _loaded(), ctypes.c_int()
        self._state: int | None = self._library.opus_encoder_create(RATE, 1, _VOIP, ctypes.byref(error))
        _checked(self._library, error.value)
        for request, value in (
            (_SET_BITRATE, bit_rate), (_SET_INBAND_FEC, int(expected_loss > 0)), (_SET_PACKET_LOSS, expected_loss),
            (_SET_COMPLEXITY, complexity),
        ):  # fmt: skip
            _checked(self._library, self._library.opus_encoder_ctl(ctypes.c_void_p(self._state), request, value))
        self._out = ctypes.create_string_buffer(_MAX_PACKET)

    def encode(self, pcm: bytes) -> bytes:
        """One frame to one packet. Raises :class:`CodecError`."""
        if len(pcm) != FRAME_OCTETS:
            raise CodecError(f"a frame has {FRAME_OCTETS} octets, not {len(pcm)}")
        length = self._library.opus_encode(self._state, pcm, FRAME_SAMPLES, self._out, _MAX_PACKET)
        return self._out.raw[: _checked(self._library, length)]

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.opus_encoder_destroy(self._state)
            self._state = None


class LibOpusDecoder:
    """Packets to frames; a lost one is rebuilt from the packet after it, or concealed by libopus."""

    def __init__(self) -> None:
        self._library, error = _loaded(), ctypes.c_int()
        self._state: int | None = self._library.opus_decoder_create(RATE, 1, ctypes.byref(error))
        _checked(self._library, error.value)
        self._out = ctypes.create_string_buffer(FRAME_OCTETS)

    def _decode(self, payload: bytes | None, fec: bool) -> bytes:
        length = 0 if payload is None else len(payload)
        samples = self._library.opus_decode(self._state, payload, length, self._out, FRAME_SAMPLES, int(fec))
        return self._out.raw[: 2 * _checked(self._library, samples)].ljust(FRAME_OCTETS, b"\0")

    def decode(self, payload: bytes) -> bytes:
        """One packet to one frame. Raises :class:`CodecError` for a payload that is no Opus packet of 20 ms."""
        if not payload:
            raise CodecError("an empty payload is no Opus packet")
        return self._decode(payload, False)

    def conceal(self, following: bytes | None = None) -> bytes:
        """The frame of a lost packet: from what the packet after it says of it, else libopus' guess."""
        if following:
            try:
                return self._decode(following, True)
            except CodecError:
                pass  # it says nothing: then it is guessed
        return self._decode(None, False)

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.opus_decoder_destroy(self._state)
            self._state = None
