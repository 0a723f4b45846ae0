# SPDX-License-Identifier: Apache-2.0
"""The score tells what was heard from what was not."""

import wave
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from media.quality import score

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
