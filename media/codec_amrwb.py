# SPDX-License-Identifier: Apache-2.0
"""AMR-WB (RFC 4867): both packings of its RTP payload, and the codec through the system's libraries where they are.

Encoder: libvo-amrwbenc; decoder: libopencore-amrwb. Neither is shipped with this package: AMR-WB is a codec under
licences, for those who have them. The payload format needs no library.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from dataclasses import dataclass

from media.codec import FRAME_OCTETS
from media.errors import CodecError

__all__ = ["AmrWbDecoder", "AmrWbEncoder", "AmrWbFrame", "AmrWbPayload", "available"]

#: bits of a frame by its type (RFC 4867 3.1, 3GPP TS 26.201): nine rates of speech, comfort noise
_BITS = {0: 132, 1: 177, 2: 253, 3: 285, 4: 317, 5: 365, 6: 397, 7: 461, 8: 477, 9: 40, 14: 0, 15: 0}
SPEECH_LOST, NO_DATA = 14, 15
#: a codec mode request of "none"
NO_REQUEST = 15
#: kbit/s of each mode
RATES = (6.60, 8.85, 12.65, 14.25, 15.85, 18.25, 19.85, 23.05, 23.85)


@dataclass(frozen=True, slots=True)
class AmrWbFrame:
    """One frame of 20 ms: its type, whether it is undamaged, and its bits, filled up to octets with zeros."""

    kind: int
    bits: bytes = b""
    good: bool = True

    def stored(self) -> bytes:
        """As a file holds it (RFC 4867 5.3): what the libraries take and give."""
        return bytes((self.kind << 3 | self.good << 2,)) + self.bits

    @classmethod
    def of_stored(cls, octets: bytes) -> AmrWbFrame:
        """Reads :meth:`stored`. Raises :class:`CodecError`."""
        if not octets:
            raise CodecError("an empty AMR-WB frame")
        kind = octets[0] >> 3 & 0x0F
        if kind not in _BITS or len(octets) - 1 != (_BITS[kind] + 7) // 8:
            raise CodecError(f"an AMR-WB frame of type {kind} with {len(octets) - 1} octets")
        return cls(kind, octets[1:], bool(octets[0] & 4))


@dataclass(frozen=True, slots=True)
class AmrWbPayload:
    """An RTP payload: frames, and the mode that the sender wishes to receive (15: any).

    ``octet_align`` is a matter of SDP (``octet-align=1``); without it the payload is bandwidth-efficient.
    """

    frames: tuple[AmrWbFrame, ...]
    mode_request: int = NO_REQUEST

    def encode(self, octet_align: bool) -> bytes:
        """RFC 4867 4.3 or 4.4."""
        last = len(self.frames) - 1
        contents = [
            (place != last) << 5 | frame.kind << 1 | frame.good for place, frame in enumerate(self.frames)
        ]
        if octet_align:
            return (
                bytes((self.mode_request << 4, *(entry << 2 for entry in contents)))
                + b"".join(frame.bits for frame in self.frames)
            )  # fmt: skip
        value, length = self.mode_request, 4
        for entry in contents:
            value, length = value << 6 | entry, length + 6
        for frame in self.frames:
            bits = _BITS[frame.kind]
            value = value << bits | int.from_bytes(frame.bits, "big") >> -bits % 8
            length += bits
        return (value << -length % 8).to_bytes((length + 7) // 8, "big")

    @classmethod
    def decode(cls, payload: bytes, octet_align: bool) -> AmrWbPayload:
        """Reads a payload of at most 12 frames. Raises :class:`CodecError`."""
        value, total = int.from_bytes(payload, "big"), 8 * len(payload)
        at, unit = (8, 8) if octet_align else (4, 6)

        def take(count: int) -> int:
            nonlocal at
            if at + count > total:
                raise CodecError("the AMR-WB payload is cut short")
            at += count
            return value >> total - at & (1 << count) - 1

        if total < at:
            raise CodecError("an empty AMR-WB payload")
        request = value >> total - 4
        contents = []
        while True:
            entry = take(unit) >> unit - 6
            kind = entry >> 1 & 0x0F
            if kind not in _BITS:
                raise CodecError(f"AMR-WB frame type {kind} is reserved")
            contents.append((kind, bool(entry & 1)))
            if not entry & 0x20:
                break
            if len(contents) == 12:
                raise CodecError("more than 12 AMR-WB frames in a packet")
        frames = []
        for kind, good in contents:
            bits = _BITS[kind]
            padded = (bits + 7) // 8 * 8
            octets = take(padded) >> padded - bits if octet_align else take(bits)
            frames.append(AmrWbFrame(kind, (octets << padded - bits).to_bytes(padded // 8, "big"), good))
        return cls(tuple(frames), request)


@functools.cache
def _encoder_library() -> ctypes.CDLL | None:
    return _load("vo-amrwbenc", "E_IF_init")


@functools.cache
def _decoder_library() -> ctypes.CDLL | None:
    return _load("opencore-amrwb", "D_IF_init")


def _load(name: str, maker: str) -> ctypes.CDLL | None:
    path = ctypes.util.find_library(name)
    if path is None:
        return None
    try:
        found = ctypes.CDLL(path)
    except OSError:
        return None
    getattr(found, maker).restype = ctypes.c_void_p
    return found


def available() -> bool:
    """Whether this machine can encode and decode."""
    return _encoder_library() is not None and _decoder_library() is not None


class AmrWbEncoder:
    """16 kHz mono speech at a mode (0..8; 2 is 12.65 kbit/s). Raises :class:`CodecError` without its library."""

    def __init__(self, mode: int = 2, *, octet_align: bool = True) -> None:
        library = _encoder_library()
        if library is None:
            raise CodecError("libvo-amrwbenc is not installed")
        if not 0 <= mode <= 8:
            raise CodecError(f"AMR-WB has modes 0 to 8, not {mode}")
        self._library, self._mode, self._octet_align = library, mode, octet_align
        self._state: int | None = library.E_IF_init()
        self._out = ctypes.create_string_buffer(64)

    def encode(self, pcm: bytes) -> bytes:
        """One frame to one payload."""
        if len(pcm) != FRAME_OCTETS:
            raise CodecError(f"a frame has {FRAME_OCTETS} octets, not {len(pcm)}")
        length = self._library.E_IF_encode(ctypes.c_void_p(self._state), self._mode, pcm, self._out, 0)
        frame = AmrWbFrame.of_stored(self._out.raw[:length])
        return AmrWbPayload((frame,)).encode(self._octet_align)

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.E_IF_exit(ctypes.c_void_p(self._state))
            self._state = None


class AmrWbDecoder:
    """Payloads of one frame to 16 kHz mono. Raises :class:`CodecError` without its library."""

    def __init__(self, *, octet_align: bool = True) -> None:
        library = _decoder_library()
        if library is None:
            raise CodecError("libopencore-amrwb is not installed")
        self._library, self._octet_align = library, octet_align
        self._state: int | None = library.D_IF_init()
        self._out = ctypes.create_string_buffer(FRAME_OCTETS)

    def _decode(self, stored: bytes, bad: bool) -> bytes:
        self._library.D_IF_decode(ctypes.c_void_p(self._state), stored, self._out, int(bad))
        return self._out.raw

    def decode(self, payload: bytes) -> bytes:
        """One payload to one frame of 20 ms."""
        frames = AmrWbPayload.decode(payload, self._octet_align).frames
        if len(frames) != 1:
            raise CodecError(f"{len(frames)} AMR-WB frames in a packet, not one")
        return self._decode(frames[0].stored(), not frames[0].good)

    def conceal(self, following: bytes | None = None) -> bytes:
        """The frame of a lost packet, as the decoder guesses it."""
        return self._decode(AmrWbFrame(NO_DATA).stored().ljust(64, b"\0"), True)

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.D_IF_exit(ctypes.c_void_p(self._state))
            self._state = None
