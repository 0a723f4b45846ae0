# SPDX-License-Identifier: Apache-2.0
"""Random users on a bad network: the invariants of floor control, and how much of the tables they walk."""

from __future__ import annotations

import os

import pytest

from media.floor_fields import FloorIndicator
from media.floor_participant import ParticipantSettings
from tests.media.floor_town import NAMES, Recorder, Town

NORMAL = FloorIndicator.NORMAL | FloorIndicator.QUEUEING
#: short times, so that many things happen in few steps
SHORT = {"t1": 1.5, "t2": 3.0, "t3": 0.5, "t4": 4.0, "t7": 0.4, "t8": 0.4, "t20": 0.5}
QUICK = ParticipantSettings(t100=0.5, t101=0.5, t103=1.5, t104=1.0, t132=0.6, overrun=2.0)
ASKED = ParticipantSettings(
    t100=0.5, t101=0.5, t103=1.5, t104=0.7, t132=0.6, overrun=0.0, auto_accept_when_queued=False
)
#: how long two may believe that they hold the floor: one whom every word of the server misses stops at the end of
#: the duration that he was granted (T2, then his own margin)
GRACE = SHORT["t2"] + QUICK.overrun + 0.5
#: how long the floor may stay as it is while someone wants it: T2, the revoke, T1, and lost requests
PATIENCE = SHORT["t2"] + SHORT["t3"] + SHORT["t1"] + 3.0
TOWNS = [
    {"participant": QUICK, "indicator": NORMAL, "loss": 0.1},
    {"participant": QUICK, "indicator": NORMAL, "loss": 0.25, "preemptive_priority": 3, "t9": 1.0, "max_wait": 1.0,
     "queue_depth": 2},
    {"participant": QUICK, "indicator": NORMAL | FloorIndicator.EMERGENCY, "loss": 0.1, "acknowledged": True},
    {"participant": QUICK, "indicator": NORMAL, "loss": 0.1, "audio_cut_in": True},
    {"participant": ASKED, "indicator": NORMAL, "loss": 0.1, "max_wait": 5.0},
]  # fmt: skip
STEPS = int(os.environ.get("FLOOR_STEPS", "100000"))


def test_a_hundred_thousand_random_steps_keep_the_invariants_and_walk_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(monkeypatch)
    grants, together, calls = 0, 0.0, 0
    per_call = 2000
    for number in range(STEPS // per_call):
        town = Town(number, **{**SHORT, **TOWNS[number % len(TOWNS)]})  # type: ignore[arg-type]
        for _ in range(per_call):
            town.act()
            town.run(town.random.random() * 0.08)
            town.talk()
            town.check(GRACE, PATIENCE)
        if number % 3:
            quiet(town)
        end(town, number)
        grants, together, calls = grants + town.grants, max(together, town.longest_together), calls + 1
    missed = sorted(Recorder.all_rows() - set(recorder.rows))
    walked = 1 - len(missed) / len(Recorder.all_rows())
    with capsys.disabled():
        print(
            f"\nfloor control: {calls} calls, {STEPS} steps, {grants} grants, {walked:.1%} of the rows walked, "
            f"two believed for {together:.2f} s at most; rows not walked: {missed}"
        )
    assert grants >= 1000 * STEPS / 100000
    assert walked >= 0.95 or STEPS < 100000


def quiet(town: Town) -> None:
    """When nobody wants the floor it is free, and whoever asks then gets it."""
    town.loss = 0.0
    for person in town.people.values():
        person.release(town.now)
    town.collect()
    town.run(30.0)
    assert town.server.holder is None and town.talkers() == []
    town.people["bob"].press(town.now)
    town.collect()
    town.run(0.5)
    assert town.talkers() == ["bob"]


def end(town: Town, number: int) -> None:
    """The call ends, in one of several ways; nothing is said or expected any more."""
    if number % 2:
        town.server.releasing(town.now)
        town.collect()
        for name in NAMES:
            town.people[name].call_releasing(town.now)
    town.server.end(town.now)
    for name in NAMES:
        town.people[name].call_released(town.now)
    assert town.server.to_send() == [] and town.server.next_timer() is None and town.server.participants == {}
    assert all(p.to_send() == [] and p.next_timer() is None for p in town.people.values())
