# SPDX-License-Identifier: Apache-2.0
"""The codecs that this machine has, by the names that SDP gives them, and the choice among those that are offered.

Nobody transcodes protected media on its way: the members of a group must agree on one.

>>> [codec.rtpmap for codec in (OPUS, G722, PCMA)]
['opus/48000/2', 'G722/8000', 'PCMA/8000']
>>> from media.sdp import MediaDescription
>>> offer = MediaDescription("audio", 4000, "RTP/SAVP", ("0", "8", "96"), [("a", "rtpmap:96 OPUS/48000/2")])
>>> payload_type, codec = choose(offer)
>>> payload_type, codec.name
(96, 'opus')
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from media import codec_amrwb, codec_opus
from media.codec import FRAME_OCTETS, FRAME_SECONDS, RATE, Fading, OpusDecoder, OpusEncoder
from media.errors import CodecError
from media.sdp import MediaDescription

__all__ = [
    "AMR_WB", "CODECS", "G722", "OPUS", "PCMA", "PCMU", "Codec", "Decoder", "Encoder", "SampleDecoder", "available",
    "choose",
]  # fmt: skip


class Encoder(Protocol):
    """Makes a payload of a frame (640 octets of 16 kHz mono)."""

    def encode(self, pcm: bytes) -> bytes: ...


class Decoder(Protocol):
    """Makes frames of payloads. ``following`` is the payload after a lost one, when it is there already."""

    def decode(self, payload: bytes) -> bytes: ...

    def conceal(self, following: bytes | None = None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Codec:
    """One codec. ``clock_rate`` is RTP's, whatever the sampling; ``delay`` what its look-ahead costs in seconds;
    ``impairment`` and ``robustness`` are Ie and Bpl of the E-model (:func:`media.quality.e_model`)."""

    name: str
    clock_rate: int
    encoder: Callable[[int], Encoder]
    decoder: Callable[[], Decoder]
    present: Callable[[], bool] = lambda: True
    channels: int = 1
    payload_type: int | None = None
    fmtp: str = ""
    bit_rate: int = 0
    delay: float = 0.0
    impairment: float = 0.0
    robustness: float = 10.0

    @property
    def rtpmap(self) -> str:
        """The value of ``a=rtpmap`` after the payload type."""
        return f"{self.name}/{self.clock_rate}" + (f"/{self.channels}" if self.channels > 1 else "")

    def lines(self, payload_type: int) -> list[tuple[str, str]]:
        """What SDP says of it, as (type, value)."""
        found = [("a", f"rtpmap:{payload_type} {self.rtpmap}")]
        return [*found, ("a", f"fmtp:{payload_type} {self.fmtp}")] if self.fmtp else found

    @property
    def step(self) -> int:
        """Units of the RTP clock in a frame."""
        return round(FRAME_SECONDS * self.clock_rate)


class _AvEncoder:
    """A codec of samples without memory of packets, through PyAV."""

    def __init__(self, name: str, rate: int) -> None:
        import av

        self._av, self._rate, self._count = av, rate, 0
        context: Any = av.CodecContext.create(name, "w")
        context.sample_rate, context.layout, context.format = rate, "mono", "s16"
        context.time_base = Fraction(1, rate)
        self._context = context
        self._resampler = None if rate == RATE else av.AudioResampler(format="s16", layout="mono", rate=rate)
        self._held = bytearray()

    def encode(self, pcm: bytes) -> bytes:
        """One frame to one payload. Raises :class:`CodecError`."""
        if len(pcm) != FRAME_OCTETS:
            raise CodecError(f"a frame has {FRAME_OCTETS} octets, not {len(pcm)}")
        wanted = 2 * round(self._rate * FRAME_SECONDS)
        frame = self._frame(pcm, RATE)
        if self._resampler is None:
            self._held += pcm
        else:
            for out in self._resampler.resample(frame):
                self._held += out.to_ndarray().astype("<i2").tobytes()
        # the resampler keeps a few samples back at first: the first frame is filled up in front
        octets = bytes(self._held[:wanted]).rjust(wanted, b"\0")
        del self._held[:wanted]
        packets = self._context.encode(self._frame(octets, self._rate))
        return b"".join(bytes(packet) for packet in packets)

    def _frame(self, pcm: bytes, rate: int) -> Any:
        frame = self._av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2").reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = rate
        frame.pts, frame.time_base = self._count, Fraction(1, rate)
        self._count += len(pcm) // 2
        return frame


class SampleDecoder:
    """The other way, for payloads of any length: all of their samples at 16 kHz. ``name`` is FFmpeg's, ``rate`` the
    codec's sampling."""

    def __init__(self, name: str, rate: int) -> None:
        import av

        self._av, self._name, self._rate = av, name, rate
        self._resampler = None if rate == RATE else av.AudioResampler(format="s16", layout="mono", rate=RATE)
        self._open()

    def _open(self) -> None:
        context: Any = self._av.CodecContext.create(self._name, "r")
        context.sample_rate, context.layout = self._rate, "mono"
        self._context = context

    def decode(self, payload: bytes) -> bytes:
        """What one payload holds. Raises :class:`CodecError`."""
        if not payload:
            raise CodecError("an empty payload")
        try:
            frames = self._context.decode(self._av.Packet(payload))
            if self._resampler is not None:
                frames = [out for frame in frames for out in self._resampler.resample(frame)]
        except (self._av.FFmpegError, ValueError) as error:
            self._open()
            raise CodecError(f"not a payload of {self._name}: {error}") from None
        return b"".join(frame.to_ndarray().astype("<i2").tobytes() for frame in frames)


class _FrameDecoder:
    """One frame of each payload, which holds 20 ms: what the resampler keeps back of the first is filled up."""

    def __init__(self, name: str, rate: int) -> None:
        self._samples = SampleDecoder(name, rate)
        self._fading = Fading()
        self.conceal = self._fading.conceal

    def decode(self, payload: bytes) -> bytes:
        """Raises :class:`CodecError`."""
        pcm = self._samples.decode(payload)
        return self._fading.keep(pcm[-FRAME_OCTETS:].rjust(FRAME_OCTETS, b"\0"))


def _opus_encoder(bit_rate: int) -> Encoder:
    return codec_opus.LibOpusEncoder(bit_rate) if codec_opus.library() is not None else OpusEncoder(bit_rate)


def _opus_decoder() -> Decoder:
    return codec_opus.LibOpusDecoder() if codec_opus.library() is not None else OpusDecoder()


#: RFC 7587: its RTP clock is 48 kHz and its rtpmap says stereo, whatever is sent
OPUS = Codec(
    "opus", 48000, _opus_encoder, _opus_decoder, channels=2, bit_rate=24000, delay=0.0065, robustness=20.0,
    fmtp="sprop-maxcapturerate=16000;maxplaybackrate=16000;stereo=0;useinbandfec=1",
)  # fmt: skip
#: RFC 4867; present where its libraries are
AMR_WB = Codec(
    "AMR-WB", 16000, lambda _rate: codec_amrwb.AmrWbEncoder(2), codec_amrwb.AmrWbDecoder, codec_amrwb.available,
    bit_rate=12650, fmtp="octet-align=1;mode-change-capability=2;max-red=0", delay=0.0059, impairment=7.0,
)  # fmt: skip
#: RFC 3551 4.5.2: its RTP clock is 8 kHz by an old mistake, its sampling 16 kHz
G722 = Codec(
    "G722", 8000, lambda _rate: _AvEncoder("g722", 16000), lambda: _FrameDecoder("g722", 16000), payload_type=9,
    bit_rate=64000, delay=0.0014, impairment=5.0,
)  # fmt: skip
PCMA = Codec(
    "PCMA", 8000, lambda _rate: _AvEncoder("pcm_alaw", 8000), lambda: _FrameDecoder("pcm_alaw", 8000), payload_type=8,
    bit_rate=64000,
)  # fmt: skip
PCMU = Codec(
    "PCMU", 8000, lambda _rate: _AvEncoder("pcm_mulaw", 8000), lambda: _FrameDecoder("pcm_mulaw", 8000), payload_type=0,
    bit_rate=64000,
)  # fmt: skip
#: in the order in which they are offered; EVS has no free implementation: a relay passes it on, nothing here speaks it
CODECS = (AMR_WB, OPUS, G722, PCMA, PCMU)


def available() -> tuple[Codec, ...]:
    """Those that this machine can speak."""
    return tuple(codec for codec in CODECS if codec.present())


def choose(offer: MediaDescription, preferred: Sequence[Codec] = (OPUS, AMR_WB, G722, PCMA, PCMU)) -> tuple[int, Codec]:
    """The first of ``preferred`` that is offered and can be spoken, with its payload type there.

    Raises :class:`CodecError` when there is none.
    """
    for codec in preferred:
        if not codec.present():
            continue
        for number in offer.formats:
            if not number.isdecimal() or int(number) > 127:
                continue
            rtpmap = offer.rtpmap(number)
            named = rtpmap is not None and rtpmap.lower() == codec.rtpmap.lower()
            if named and codec is AMR_WB and "octet-align=1" not in (offer.fmtp(number) or "").replace(" ", ""):
                continue  # the other packing would be understood as noise
            if named or (rtpmap is None and codec.payload_type == int(number)):
                return int(number), codec
    raise CodecError("no codec of the offer is spoken here")
