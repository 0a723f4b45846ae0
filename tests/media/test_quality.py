# SPDX-License-Identifier: Apache-2.0
"""The score tells what was heard from what was not."""

import wave
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from media.codec import FRAME_OCTETS, FRAME_SAMPLES
from media.codecs import OPUS
from media.playout import Playout
from media.quality import e_model, score
from media.reception import Reception
from media.rtp import RtpPacket

DATA = Path(__file__).parents[2] / "scenarios" / "data"
RATE = 16000


def speech(name: str) -> NDArray[np.int16]:
    with wave.open(str(DATA / f"{name}.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


NAMES = ["alice", "bob", "carol", "dave", "erin"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_speech_scores_one_even_when_late_and_quieter(name: str) -> None:
    said = speech(name)
    heard = np.concatenate([np.zeros(3000), said * 0.5])
    assert score(said, heard, RATE) > 0.99


@pytest.mark.parametrize("said, heard", list(permutations(NAMES, 2)))
def test_unrelated_speech_scores_low(said: str, heard: str) -> None:
    assert score(speech(said), speech(heard), RATE) < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_silence_and_noise_score_low(name: str) -> None:
    said = speech(name)
    assert score(said, np.zeros(len(said)), RATE) == 0.0
    assert score(said, np.random.default_rng(7).standard_normal(len(said)) * 3000, RATE) < 0.3
    assert score(said, said[:100], RATE) == 0.0


def test_a_missing_half_shows_in_the_score() -> None:
    said = speech("alice")
    half = said.copy()
    half[len(half) // 2 :] = 0
    assert score(said, half, RATE) < 0.85


class Silence:
    """Decodes everything to it."""

    def decode(self, payload: bytes) -> bytes:
        return bytes(FRAME_OCTETS)

    def conceal(self, following: bytes | None = None) -> bytes:
        return bytes(FRAME_OCTETS)


def listen(arrivals: dict[int, float]) -> dict[str, Any]:
    """The figures of a burst whose frames (by number, from 0) come at these seconds."""
    now, wall = 0.0, 1_700_000_000.0
    reception = Reception("sip:me@x", lambda user, _mki: user == "sip:alice@x")
    playout = Playout(reception, lambda: wall + now, replace(OPUS, decoder=Silence, delay=0.0))
    reception.floor("sip:alice@x", now)
    found: dict[str, Any] = {}

    def hear() -> None:
        for event in reception.events():
            details = playout.take(event, now)
            if details is not None:
                assert not found, "one burst"
                found.update(details)

    for at, number in [*sorted((at, number) for number, at in arrivals.items()), (1e3, -1)]:
        while (due := reception.next_timer()) is not None and due <= at:
            now = max(now, due)
            reception.handle_timer(now)
            hear()
        now = at
        if number >= 0:
            packet = RtpPacket(96, number, number * 960, 1, number == 0, b"x", wall + number * 0.02)
            reception.receive(packet, b"\0\0\0\1alic", now, wall + now)
        hear()
    return {**found, "total_silent": playout.silent}


def test_a_bursts_figures_are_of_what_was_heard_and_its_rating_counts_every_frame_that_was_not() -> None:
    way = 0.03
    clean = listen({n: n * 0.02 + way for n in range(100)})
    assert clean["lost"] == clean["concealed"] == clean["silent"] == 0 and clean["samples"] == 32000
    assert clean["mouth_to_ear"] == pytest.approx(way + 0.06) and clean["rating"] == round(e_model(0.09, 0.0), 1)
    gap = listen({n: n * 0.02 + way for n in range(100) if n not in (40, 60)})
    assert gap["lost"] == gap["concealed"] == 2 and gap["silent"] == 0
    assert gap["rating"] == round(e_model(0.09, 0.02, robustness=OPUS.robustness), 1)
    # the way stands still for 0.3 s, and then everything comes at once
    stall = listen({n: (1.1 if 40 <= n < 55 else n * 0.02) + way for n in range(100)})
    assert stall["concealed"] == 0 and stall["silent"] == stall["lost"] == stall["late"] == stall["total_silent"] > 5
    loss = stall["silent"] / (stall["samples"] // FRAME_SAMPLES)
    assert stall["rating"] == round(e_model(stall["mouth_to_ear"], loss, robustness=OPUS.robustness), 1)
    assert stall["rating"] < gap["rating"] < clean["rating"]


def test_bursts_that_follow_one_another_at_once_are_not_heard_later_and_later(tmp_path: Path) -> None:
    """Each has a frame more than was said, for the codec's look-ahead: the next one begins in it."""
    wall, frames, pause = 1_700_000_000.0, 10, 0.004
    reception = Reception("sip:me@x", lambda user, _mki: user == "sip:alice@x")
    now = 0.0
    playout = Playout(reception, lambda: wall + now, replace(OPUS, decoder=Silence, delay=0.0))
    playout.record(tmp_path / "heard.wav", 0.0, 1.0)
    heard: list[dict[str, Any]] = []

    def hear() -> None:
        heard.extend(details for event in reception.events() if (details := playout.take(event, now)) is not None)

    def until(at: float) -> None:
        nonlocal now
        while (due := reception.next_timer()) is not None and due <= at:
            now = max(now, due)
            reception.handle_timer(now)
            hear()
        now = at

    sequence, timestamp, at = 0, 0, 0.0
    for _ in range(100):
        reception.floor("sip:alice@x", now)
        for number in range(frames + 1):
            until(at + number * 0.02)
            packet = RtpPacket(96, sequence, timestamp, 1, number == 0, b"x", wall + now if number == 0 else None)
            reception.receive(packet, b"\0\0\0\1alic", now, wall + now)
            hear()
            sequence, timestamp = sequence + 1, timestamp + 960
        timestamp += 960
        at += frames * 0.02 + pause
        until(at)
        reception.floor(None, now)
        hear()
    until(at + 5.0)
    delays = [burst["mouth_to_ear"] for burst in heard]
    assert len(delays) == 100 and max(delays) - min(delays) < 0.021, delays
    assert playout.concealed == playout.silent == 0
    playout.close()
