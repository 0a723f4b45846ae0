# SPDX-License-Identifier: Apache-2.0
"""The clock of a stack beside the plainest one: a list that is sorted each time."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mcptt_sip.deadlines import Deadlines


class Alarm:
    """Rings at `at`, then goes on to the next of its times."""

    def __init__(self, name: int, rung: list[tuple[float, int]]) -> None:
        self.name = name
        self.times: list[float] = []
        self.scheduled: list[Any] | None = None
        self._rung = rung

    def next_timer(self) -> float | None:
        return self.times[0] if self.times else None

    def handle_timer(self, now: float) -> None:
        self._rung.append((self.times.pop(0), self.name))


actions = st.tuples(st.sampled_from(["watch", "last", "drop", "fire"]), st.integers(0, 5), st.integers(0, 9))


@settings(deadline=None)
@given(st.lists(actions, max_size=80))
def test_everything_fires_once_in_the_order_of_its_time_however_it_is_watched(made: list[tuple[str, int, int]]) -> None:
    clock, now = Deadlines(), 0.0
    rung: list[tuple[float, int]] = []
    alarms = [Alarm(number, rung) for number in range(6)]
    for what, number, more in made:
        alarm = alarms[number]
        if what == "fire":
            now += more
            due = sorted(a.times[0] for a in alarms if a.times and a.times[0] <= now)
            rung.clear()
            clock.fire(now)
            assert [at for at, _ in rung] == due
            assert all(not a.times or a.times[0] > now for a in alarms)
        elif what == "drop":
            alarm.times = []
            clock.drop(alarm)
        else:
            alarm.times = [now + more + 1]
            (clock.watch if what == "watch" else clock.watch_last)(alarm)
        waiting = [a.times[0] for a in alarms if a.times]
        assert len(clock) == len(waiting)
        found = clock.next()
        assert (found is None) == (not waiting) and (found is None or found <= min(waiting))


def test_an_alarm_that_has_another_time_rings_again() -> None:
    rung: list[tuple[float, int]] = []
    clock, alarm = Deadlines(), Alarm(1, rung)
    alarm.times = [3.0, 5.0, 20.0]
    clock.watch_last(alarm)
    clock.fire(2.9)
    assert rung == []
    clock.fire(10.0)
    assert rung == [(3.0, 1), (5.0, 1)] and clock.next() == 20.0


def test_what_was_dropped_is_let_go_of_and_its_place_given_back() -> None:
    clock = Deadlines()
    for watch in (clock.watch, clock.watch_last):
        alarms = [Alarm(number, []) for number in range(5_000)]
        for alarm in alarms:
            alarm.times = [100.0]
            watch(alarm)
        for alarm in alarms:
            clock.drop(alarm)
            assert alarm.scheduled is None
        assert len(clock) == 0 and clock.next() is None
    last = Alarm(0, [])
    last.times = [1.0]
    clock.watch(last)
    assert len(clock._heap) + len(clock._queue) == 1
