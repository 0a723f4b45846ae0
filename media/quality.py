# SPDX-License-Identifier: Apache-2.0
"""How much of a talk burst was heard: a spectral score between what was said and what was played, and the E-model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["align", "e_model", "opinion_score", "score"]

#: parameters of the score; changing one makes old figures incomparable
WINDOW_S, HOP_S = 0.025, 0.010
BANDS, LOWEST_HZ, HIGHEST_HZ = 20, 100.0, 7000.0
FLOOR_DB = 40.0
MAX_LAG_S = 0.5

Samples = NDArray[np.float64]


def score(reference: NDArray[np.generic], heard: NDArray[np.generic], rate: int) -> float:
    """The likeness of ``heard`` to ``reference``, 1.0 for the same, about 0 for unrelated sound, -1.0 at worst.

    Both are mono samples of any real type at ``rate`` samples per second. They are aligned by their
    cross-correlation (up to half a second either way), cut into 25 ms Hann windows every 10 ms, reduced to the
    power in 20 log-spaced bands from 100 to 7000 Hz in dB, floored 40 dB under the loudest cell of each, and
    compared by Pearson's correlation over all cells. Silence, or less than one window, scores 0.0.

    >>> rng = np.random.default_rng(1)
    >>> noise = rng.standard_normal(16000) * np.sin(np.linspace(0, 40, 16000))
    >>> score(noise, noise, 16000) > 0.999
    True
    >>> score(noise, np.zeros(16000), 16000)
    0.0
    """
    said = np.asarray(reference, dtype=np.float64)
    played = np.asarray(heard, dtype=np.float64)
    said, played = align(said, played, rate)
    cells_said, cells_played = _cells(said, rate), _cells(played, rate)
    frames = min(len(cells_said), len(cells_played))
    if frames == 0:
        return 0.0
    x, y = cells_said[:frames].ravel(), cells_played[:frames].ravel()
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 1e-9 else 0.0


def align(reference: Samples, heard: Samples, rate: int) -> tuple[Samples, Samples]:
    """Both, cut so that they start together: the lag is where their cross-correlation is largest."""
    if not len(reference) or not len(heard):
        return reference, heard
    size = 1 << (len(reference) + len(heard)).bit_length()
    product = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(reference, size))
    correlation = np.abs(np.fft.irfft(product, size))
    reach = min(int(MAX_LAG_S * rate), size // 2 - 1)
    around = np.concatenate([correlation[-reach:], correlation[: reach + 1]])
    lag = int(np.argmax(around)) - reach if around.any() else 0
    return (reference, heard[lag:]) if lag >= 0 else (reference[-lag:], heard)


def _cells(samples: Samples, rate: int) -> Samples:
    """Band powers in dB, shape (frames, BANDS)."""
    window, hop = int(WINDOW_S * rate), int(HOP_S * rate)
    count = (len(samples) - window) // hop + 1
    if count <= 0:
        return np.empty((0, BANDS))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop][:count]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    edges = np.geomspace(LOWEST_HZ, HIGHEST_HZ, BANDS + 1) * window / rate
    bins = np.arange(power.shape[1])
    bands = np.empty((count, BANDS))
    for band in range(BANDS):
        inside = (bins >= edges[band]) & (bins < edges[band + 1])
        if not inside.any():  # narrower than a bin: the nearest one
            inside = bins == round(float(edges[band] + edges[band + 1]) / 2)
        bands[:, band] = power[:, inside].sum(axis=1)
    loudest = float(bands.max())
    if loudest <= 0.0:
        return np.zeros((count, BANDS))
    decibel = 10.0 * np.log10(np.maximum(bands, loudest * 1e-12))
    return np.asarray(np.maximum(decibel, 10.0 * np.log10(loudest) - FLOOR_DB))


def e_model(
    delay: float, loss: float, *, impairment: float = 0.0, robustness: float = 10.0, burst: float = 1.0
) -> float:
    """The transmission rating R of ITU-T G.107 with its default values, 0 (useless) to 93.2 (the best).

    :param delay: from mouth to ear, seconds
    :param loss: share of the frames that were concealed or silent, 0..1
    :param impairment: Ie of the codec; of the codecs here an estimate, since G.113 lists none of them at 16 kHz
    :param robustness: Bpl of the codec and its concealment
    :param burst: BurstR: how much longer than by chance losses last (1: by chance)

    >>> round(e_model(0.1, 0.0), 1), round(e_model(0.1, 0.05), 1), round(e_model(0.4, 0.0), 1)
    (90.8, 59.1, 59.1)
    """
    milliseconds = 1000.0 * max(0.0, delay)
    by_delay = 0.024 * milliseconds + 0.11 * max(0.0, milliseconds - 177.3)
    percent = 100.0 * min(1.0, max(0.0, loss))
    by_loss = impairment + (95.0 - impairment) * percent / (percent / burst + robustness)
    return max(0.0, min(93.2, 93.2 - by_delay - by_loss))


def opinion_score(rating: float) -> float:
    """The mean opinion score that a rating stands for, 1 to 4.5 (G.107 Annex B).

    >>> [round(opinion_score(rating), 2) for rating in (93.2, 80, 60, 0)]
    [4.41, 4.02, 3.1, 1.0]
    """
    if rating <= 0:
        return 1.0
    rating = min(100.0, rating)
    return max(1.0, 1 + 0.035 * rating + rating * (rating - 60) * (100 - rating) * 7e-6)
