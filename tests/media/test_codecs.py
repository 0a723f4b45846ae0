# SPDX-License-Identifier: Apache-2.0
"""Every codec that this machine has, its concealment, and the choice among those offered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from media import codec_amrwb, codec_opus
from media.codec import FRAME_OCTETS, FRAME_SAMPLES, RATE, OpusDecoder, OpusEncoder, read_frames
from media.codec_amrwb import AmrWbEncoder, AmrWbFrame, AmrWbPayload
from media.codecs import AMR_WB, CODECS, G722, OPUS, PCMA, PCMU, Codec, SampleDecoder, available, choose
from media.errors import CodecError
from media.quality import score
from media.sdp import MediaDescription

DATA = Path(__file__).parents[2] / "scenarios" / "data"
FRAMES = list(read_frames(DATA / "alice.wav"))
needs_opus = pytest.mark.skipif(codec_opus.library() is None, reason="libopus is not installed")
needs_amr = pytest.mark.skipif(
    not codec_amrwb.available(), reason="libvo-amrwbenc or libopencore-amrwb is not installed"
)


def samples(frames: list[bytes]) -> Any:
    return np.frombuffer(b"".join(frames), "<i2")


def usable(codec: Codec) -> Any:
    return pytest.param(codec, id=codec.name, marks=needs_amr if codec is AMR_WB else ())


@pytest.mark.parametrize("codec", [usable(codec) for codec in CODECS])
def test_speech_survives_every_codec_at_its_rate_and_a_lost_packet_is_concealed(codec: Codec) -> None:
    encoder, decoder = codec.encoder(codec.bit_rate), codec.decoder()
    packets = [encoder.encode(frame) for frame in FRAMES]
    assert all(packets), "a packet for each frame"
    rate = 8 * sum(map(len, packets)) / (0.02 * len(packets))
    assert rate == pytest.approx(codec.bit_rate, rel=0.35)
    heard = [decoder.decode(packet) for packet in packets]
    assert all(len(frame) == FRAME_OCTETS for frame in heard)
    narrow = codec in (PCMA, PCMU)  # half of the bands that are compared are not there
    assert score(samples(FRAMES), samples(heard), RATE) >= (0.75 if narrow else 0.85)
    lossy = codec.decoder()
    heard = [
        lossy.conceal(packets[n + 1] if n + 1 < len(packets) else None) if n % 20 == 10 else lossy.decode(packet)
        for n, packet in enumerate(packets)
    ]
    assert all(len(frame) == FRAME_OCTETS for frame in heard)
    assert score(samples(FRAMES), samples(heard), RATE) >= 0.7
    with pytest.raises(CodecError):
        encoder.encode(bytes(10))
    with pytest.raises(CodecError):
        decoder.decode(b"")
    assert len(decoder.decode(packets[0])) == FRAME_OCTETS, "and it goes on"


@needs_opus
@pytest.mark.parametrize(("codec", "name"), [(PCMU, "pcm_mulaw"), (PCMA, "pcm_alaw")], ids=["PCMU", "PCMA"])
@pytest.mark.parametrize("milliseconds", [5, 10, 20, 30, 60])
def test_payloads_of_any_length_are_decoded_to_all_of_their_samples(codec: Codec, name: str, milliseconds: int) -> None:
    encoder, decoder = codec.encoder(codec.bit_rate), SampleDecoder(name, 8000)
    frames = list(read_frames(DATA / "alice.wav"))[:240]
    octets = b"".join(encoder.encode(frame) for frame in frames)
    size = milliseconds * 8
    payloads = [octets[at : at + size] for at in range(0, len(octets), size)]
    heard = np.frombuffer(b"".join(map(decoder.decode, payloads)), "<i2")
    said = np.frombuffer(b"".join(frames), "<i2")
    # the resampler keeps a few samples back
    assert 0 <= len(said) - len(heard) <= 64
    assert score(said, heard, RATE) > 0.9
    with pytest.raises(CodecError):
        decoder.decode(b"")


def test_a_lost_packet_is_rebuilt_from_the_next_one_better_than_guessed_and_better_than_faded() -> None:
    encoder = codec_opus.LibOpusEncoder(24000, expected_loss=20)
    packets = [encoder.encode(frame) for frame in FRAMES]
    lost = set(range(5, len(packets) - 1, 7))

    def error(decoder: Any, *, following: bool) -> float:
        whole = OpusDecoder() if isinstance(decoder, OpusDecoder) else codec_opus.LibOpusDecoder()
        wrong = []
        for n, packet in enumerate(packets):
            right = whole.decode(packet)
            heard = decoder.conceal(packets[n + 1] if following else None) if n in lost else decoder.decode(packet)
            if n in lost:
                wrong.append(np.mean(np.square(samples([right]).astype(float) - samples([heard]).astype(float))))
        return float(np.mean(wrong))

    rebuilt = error(codec_opus.LibOpusDecoder(), following=True)
    guessed = error(codec_opus.LibOpusDecoder(), following=False)
    faded = error(OpusDecoder(), following=False)
    assert rebuilt < 0.5 * guessed and guessed < faded


@needs_opus
def test_both_ways_to_libopus_read_each_others_packets() -> None:
    for encoder, decoder in (
        (OpusEncoder(), codec_opus.LibOpusDecoder()), (codec_opus.LibOpusEncoder(), OpusDecoder()),
    ):  # fmt: skip
        heard = [decoder.decode(encoder.encode(frame)) for frame in FRAMES]
        assert score(samples(FRAMES), samples(heard), RATE) >= 0.85
    for wrong in (b"", b"\xff" * 3, b"\x4b" + bytes(2000)):
        with pytest.raises(CodecError):
            codec_opus.LibOpusDecoder().decode(wrong)


def test_without_its_libraries_opus_is_pyavs_and_amr_wb_is_neither_offered_nor_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec_opus, "library", lambda: None)
    monkeypatch.setattr(codec_amrwb, "_encoder_library", lambda: None)
    monkeypatch.setattr(codec_amrwb, "_decoder_library", lambda: None)
    assert isinstance(OPUS.encoder(24000), OpusEncoder) and isinstance(OPUS.decoder(), OpusDecoder)
    for missing in (codec_opus.LibOpusEncoder, codec_opus.LibOpusDecoder, AmrWbEncoder, codec_amrwb.AmrWbDecoder):
        with pytest.raises(CodecError, match="not installed"):
            missing()
    assert AMR_WB not in available()
    offered = MediaDescription("audio", 4000, "RTP/SAVP", ("97", "8"), AMR_WB.lines(97))
    assert choose(offered, (AMR_WB, PCMA)) == (8, PCMA)


# --- AMR-WB -----------------------------------------------------------------------------------------------

BITS = {0: 132, 1: 177, 2: 253, 3: 285, 4: 317, 5: 365, 6: 397, 7: 461, 8: 477, 9: 40, 14: 0, 15: 0}


@st.composite
def amr_frames(draw: st.DrawFn) -> AmrWbFrame:
    kind = draw(st.sampled_from(list(BITS)))
    octets = (BITS[kind] + 7) // 8
    value = draw(st.integers(0, (1 << BITS[kind]) - 1)) << 8 * octets - BITS[kind]
    return AmrWbFrame(kind, value.to_bytes(octets, "big"), draw(st.booleans()))


@given(st.lists(amr_frames(), min_size=1, max_size=12), st.integers(0, 15), st.booleans())
def test_frames_survive_both_packings_and_their_stored_form(
    frames: list[AmrWbFrame], request_: int, octet_align: bool
) -> None:
    payload = AmrWbPayload(tuple(frames), request_)
    octets = payload.encode(octet_align)
    bits = sum(BITS[frame.kind] for frame in frames)
    if octet_align:
        assert len(octets) == 1 + len(frames) + sum((BITS[frame.kind] + 7) // 8 for frame in frames)
    else:
        assert len(octets) == (4 + 6 * len(frames) + bits + 7) // 8
    assert AmrWbPayload.decode(octets, octet_align) == payload
    assert [AmrWbFrame.of_stored(frame.stored()) for frame in frames] == frames


def test_the_two_packings_of_a_frame_at_12_65_kbit_s_are_these_octets() -> None:
    """RFC 4867 4.3.5, 4.4.5: CMR 15, one frame of type 2, good; then 253 bits."""
    frame = AmrWbFrame(2, bytes([0xAA] * 31 + [0xA8]))
    assert AmrWbPayload((frame,)).encode(True).hex() == "f0" "14" + "aa" * 31 + "a8"
    # 1111 0 0010 1 | 10101010… : ten bits of header, then the bits
    assert AmrWbPayload((frame,)).encode(False).hex() == "f16a" + "aa" * 31
    assert len(AmrWbPayload((frame,)).encode(False)) == 33


@given(st.binary(max_size=80), st.booleans())
def test_no_octets_raise_anything_else(octets: bytes, octet_align: bool) -> None:
    try:
        AmrWbPayload.decode(octets, octet_align)
    except CodecError:
        pass


@needs_amr
def test_ffmpegs_decoder_reads_what_is_packed_here() -> None:
    import av

    context = av.CodecContext.create("amrwb", "r")
    encoder, heard = AmrWbEncoder(8, octet_align=False), []
    for frame in FRAMES:
        (packed,) = AmrWbPayload.decode(encoder.encode(frame), False).frames
        for out in context.decode(av.Packet(packed.stored())):  # type: ignore[attr-defined]
            heard.append((out.to_ndarray().ravel() * 32767).astype("<i2").tobytes())
    assert len(heard) == len(FRAMES) and len(heard[0]) == 2 * FRAME_SAMPLES
    assert score(samples(FRAMES), samples(heard), RATE) >= 0.85
    with pytest.raises(CodecError):
        AmrWbEncoder(9)


# --- negotiation ------------------------------------------------------------------------------------------


def offer(formats: str, *lines: str) -> MediaDescription:
    return MediaDescription("audio", 4000, "RTP/SAVP", tuple(formats.split()), [("a", line) for line in lines])


def test_the_codec_preferred_here_is_chosen_among_those_offered_and_spoken() -> None:
    everything = offer(
        "0 8 9 96 97", "rtpmap:96 OPUS/48000/2", "rtpmap:97 AMR-WB/16000", "fmtp:97 octet-align=1; mode-set=2"
    )
    assert choose(everything) == (96, OPUS)
    assert choose(everything, (PCMU,)) == (0, PCMU) and choose(everything, (G722, OPUS)) == (9, G722)
    assert choose(offer("8 0"), (OPUS, G722, PCMA)) == (8, PCMA)
    with pytest.raises(CodecError):
        choose(offer("98", "rtpmap:98 EVS/16000"))
    with pytest.raises(CodecError):
        choose(offer("0", "rtpmap:0 mystery/8000"))
    assert set(available()) >= {OPUS, G722, PCMA, PCMU}


@pytest.mark.parametrize("codec", [usable(codec) for codec in CODECS])
def test_what_is_offered_of_a_codec_is_understood_as_that_codec(codec: Codec) -> None:
    number = 97 if codec.payload_type is None else codec.payload_type
    offered = MediaDescription("audio", 4000, "RTP/SAVP", (str(number),), codec.lines(number))
    assert choose(offered) == (number, codec)


@needs_amr
def test_amr_wb_is_chosen_only_in_the_packing_that_was_agreed() -> None:
    aligned = offer("97", "rtpmap:97 AMR-WB/16000", "fmtp:97 mode-set=2; octet-align=1")
    assert choose(aligned) == (97, AMR_WB)
    with pytest.raises(CodecError):
        choose(offer("97", "rtpmap:97 AMR-WB/16000"))


@given(st.text(max_size=60), st.text(max_size=20))
def test_an_offer_of_nonsense_raises_nothing_else(line: str, formats: str) -> None:
    try:
        choose(offer(formats, f"rtpmap:{line}", line))
    except CodecError:
        pass
