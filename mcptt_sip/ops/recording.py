# SPDX-License-Identifier: Apache-2.0
"""Reading the WAVs that phones record and scenarios play."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def samples_of(path: Path) -> tuple[np.ndarray, int]:
    """Mono samples of a WAV as floats of ±1, and their rate."""
    with wave.open(str(path)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(float) / 32768
        if file.getnchannels() > 1:
            data = data.reshape(-1, file.getnchannels()).mean(axis=1)
        return data, file.getframerate()
