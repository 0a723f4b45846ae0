# SPDX-License-Identifier: Apache-2.0
"""Speech through Opus and back, files in and out."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from media.codec import FRAME_OCTETS, RATE, SILENCE, OpusDecoder, OpusEncoder, WavTimeline, read_frames
from media.errors import CodecError
from media.quality import score

DATA = Path(__file__).parents[2] / "scenarios" / "data"


@pytest.mark.parametrize("name", ["alice", "bob", "carol", "dave", "erin"])
def test_speech_survives_opus(name: str) -> None:
    frames = list(read_frames(DATA / f"{name}.wav"))
    encoder, decoder = OpusEncoder(), OpusDecoder()
    packets = [encoder.encode(frame) for frame in frames]
    heard = b"".join(decoder.decode(packet) for packet in packets)
    said = b"".join(frames)
    assert len(heard) == len(said)
    assert max(map(len, packets)) < 200
    assert score(np.frombuffer(said, "<i2"), np.frombuffer(heard, "<i2"), RATE) >= 0.85


def test_a_lost_packet_is_concealed_and_fades() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    for frame in list(read_frames(DATA / "alice.wav"))[:60]:
        last = decoder.decode(encoder.encode(frame))
    power = [float(np.square(np.frombuffer(f, "<i2").astype(float)).mean()) for f in (last, *(
        decoder.conceal() for _ in range(5)
    ))]
    assert power[0] > power[1] > power[2] > power[3] > power[4] == power[5] == 0.0


def test_octets_that_are_no_opus_are_refused_and_the_decoder_goes_on() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    for wrong in (b"", b"\xff" * 3):
        with pytest.raises(CodecError):
            decoder.decode(wrong)
    assert len(decoder.decode(encoder.encode(SILENCE))) == FRAME_OCTETS
    with pytest.raises(CodecError):
        encoder.encode(bytes(10))


def test_any_rate_and_any_number_of_channels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(bytes(4 * 44100))
    frames = list(read_frames(path))
    assert 49 <= len(frames) <= 51 and all(len(frame) == FRAME_OCTETS for frame in frames)
    for wrong in (tmp_path / "missing.wav", Path(__file__)):
        with pytest.raises(CodecError):
            list(read_frames(wrong))


def test_a_time_line_keeps_its_gaps_and_is_valid_at_every_flush(tmp_path: Path) -> None:
    path = tmp_path / "line.wav"
    line = WavTimeline(path)
    line.write_at(100, b"\1\0" * 50)
    line.flush()
    with wave.open(str(path)) as file:
        assert file.getnframes() == 150 and file.readframes(150) == bytes(200) + b"\1\0" * 50
    line.write_at(140, b"\2\0" * 20)  # ten of them would lie over what is there
    line.close()
    line.close()
    with wave.open(str(path)) as file:
        assert file.readframes(999) == bytes(200) + b"\1\0" * 50 + b"\2\0" * 10


def test_a_time_line_adds_what_may_share_its_end(tmp_path: Path) -> None:
    path = tmp_path / "line.wav"
    line = WavTimeline(path)
    line.write_at(0, b"\1\0" * 40 + b"\xff\x7f" * 10)
    line.flush()
    line.write_at(30, b"\2\0" * 40, shared=20)  # the last ten at the limit: no sample turns over
    line.write_at(40, b"\3\0" * 40, shared=20)  # begins before what may be shared: cut off
    line.close()
    with wave.open(str(path)) as file:
        assert file.readframes(999) == (
            b"\1\0" * 30 + b"\3\0" * 10 + b"\xff\x7f" * 10 + b"\2\0" * 20 + b"\3\0" * 10
        )  # fmt: skip
