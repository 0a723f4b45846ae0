# SPDX-License-Identifier: Apache-2.0
"""The jitter buffer, with the clock in the hand."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from media.jitter import DelayEstimator, Frame, JitterBuffer

STEP = 960


def run(
    arrivals: list[tuple[float, int]], *, until: float = 10.0, **settings: float
) -> tuple[list[Frame], JitterBuffer]:
    """Feeds (time, frame number) pairs, pulling whenever the buffer asks for it."""
    buffer = JitterBuffer(**settings)  # type: ignore[arg-type]
    out: list[Frame] = []
    for at, number in sorted(arrivals):
        while (due := buffer.next_timer()) is not None and due < at:
            out += buffer.pull(due)
            if buffer.ended(due) or buffer.next_timer() == due:
                break
        buffer.put(number * STEP + 7 & 0xFFFFFFFF, bytes([number % 256]), at)
    now = 0.0
    while now < until:
        now += 0.005
        out += buffer.pull(now)
    return out, buffer


def test_a_steady_burst_comes_out_whole_at_its_pace_with_its_last_frame() -> None:
    out, buffer = run([(1 + n * 0.02, n) for n in range(100)], delay=0.06)
    assert [f.payload for f in out] == [bytes([n]) for n in range(100)]
    assert abs(out[0].due - 1.06) < 1e-9 and abs(out[99].due - (1.06 + 99 * 0.02)) < 1e-9
    assert buffer.ended(1 + 99 * 0.02 + 0.5) and not buffer.ended(1 + 99 * 0.02 + 0.4)
    assert buffer.lost == buffer.late == 0


def test_jitter_below_the_delay_changes_nothing() -> None:
    source = random.Random(5)
    out, buffer = run([(1 + n * 0.02 + (source.random() * 0.055 if n else 0), n) for n in range(200)], delay=0.06)
    assert [f.payload for f in out] == [bytes([n]) for n in range(200)]
    assert buffer.lost == 0


def test_a_lost_frame_is_a_gap_of_one_and_the_delay_does_not_grow() -> None:
    out, buffer = run([(1 + n * 0.02, n) for n in range(100) if n not in (30, 31, 60)])
    assert [f.offset for f in out] == list(range(100))
    assert [f.offset for f in out if f.payload is None] == [30, 31, 60]
    assert abs(out[99].due - (1.06 + 99 * 0.02)) < 1e-9 and buffer.lost == 3


def test_late_and_doubled_frames_are_dropped_and_counted() -> None:
    arrivals = [(1 + n * 0.02, n) for n in range(50) if n != 10]
    out, buffer = run([*arrivals, (1 + 40 * 0.02, 10), (1 + 20 * 0.02, 20)])
    assert (buffer.late, buffer.duplicates, buffer.lost) == (1, 1, 1)
    assert len(out) == 50


def test_swapped_first_frames_are_both_played() -> None:
    out, _ = run([(1.0, 1), (1.001, 0), *((1 + n * 0.02, n) for n in range(2, 20))])
    assert [f.payload for f in out] == [bytes([n]) for n in range(20)]


def test_a_pause_of_the_network_is_a_hole_in_time_not_a_growing_delay() -> None:
    arrivals = [(1 + n * 0.02 + (0.3 if 20 <= n < 35 else 0), n) for n in range(60)]
    out, _ = run(arrivals)
    last = [f for f in out if f.payload is not None][-1]
    assert last.offset == 59 and abs(last.due - (1.06 + 59 * 0.02)) < 1e-9


def test_the_timestamp_may_wrap() -> None:
    buffer = JitterBuffer()
    start = 2**32 - 3 * STEP
    for n in range(10):
        assert buffer.put(start + n * STEP & 0xFFFFFFFF, b"x", 1 + n * 0.02)
    assert len(buffer.pull(5.0)) == 10


def test_a_frame_far_ahead_is_refused() -> None:
    buffer = JitterBuffer(max_frames=10)
    buffer.put(0, b"x", 0.0)
    assert not buffer.put(STEP * 11, b"y", 0.0) and buffer.refused == 1


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 300)), max_size=80))
def test_frames_come_out_once_in_order_and_memory_is_bounded(arrivals: list[tuple[float, int]]) -> None:
    buffer = JitterBuffer(max_frames=50)
    out: list[Frame] = []
    for at, number in sorted(arrivals):
        out += buffer.pull(at)
        buffer.put(number * STEP, b"x", at)
        assert len(buffer._frames) <= 51
    buffer.end()
    out += buffer.pull(1000.0)
    offsets = [f.offset for f in out]
    assert offsets == sorted(set(offsets))
    assert buffer.ended(1000.0) and buffer.next_timer() is None


def test_the_delay_is_that_of_the_quickest_frame_when_the_first_one_was_held_up() -> None:
    out, _ = run([(1.05, 0), *((1 + n * 0.02, n) for n in range(1, 20))], delay=0.06)
    assert [f.payload for f in out] == [bytes([n]) for n in range(20)]
    assert abs(out[0].due - 1.06) < 1e-9


def test_late_frames_make_the_delay_grow_once_and_never_beyond_its_limit() -> None:
    source = random.Random(2)
    arrivals = [(1 + n * 0.02 + (source.random() * 0.12 if n else 0), n) for n in range(600)]
    out, buffer = run(arrivals, until=30.0, delay=0.04, most=0.16)
    assert 0.06 < buffer.grown <= 0.12
    assert buffer.late < 12
    early, late = [f.due - f.offset * 0.02 for f in (out[300], out[-1])]
    assert abs(early - late) < 0.03, "it settles"


def test_the_estimator_follows_what_was_heard_within_its_bounds() -> None:
    estimator = DelayEstimator(0.06, least=0.04, most=0.2)
    estimator.learn([0.0] * 5)
    assert estimator.delay == 0.06, "too little to learn from"
    estimator.learn([0.001 * (n % 5) for n in range(200)])
    assert estimator.delay == 0.04
    estimator.learn([0.001 * (n % 90) for n in range(900)])
    assert abs(estimator.delay - 0.099) < 0.002
    estimator.learn([0.5] * 100)
    assert estimator.delay == 0.2


def test_a_lost_frame_comes_with_the_one_after_it_when_that_is_there() -> None:
    out, _ = run([(1 + n * 0.02, n) for n in range(20) if n not in (5, 9, 10)])
    following = {f.offset: f.following for f in out if f.payload is None}
    assert following == {5: bytes([6]), 9: None, 10: bytes([11])}
