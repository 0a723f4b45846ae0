# SPDX-License-Identifier: Apache-2.0
"""Two stacks over a link that loses, doubles, reorders and breaks, doing random things: they agree in the end."""

from __future__ import annotations

import pytest

from tests.sip.random_machine import TABLES, RandomMachine, Rows


def _run(monkeypatch: pytest.MonkeyPatch, seed: int, steps: int) -> RandomMachine:
    machine = RandomMachine(seed)
    for kind in TABLES:
        monkeypatch.setattr(kind, "TABLE", Rows(kind.__name__, kind.TABLE, machine.used))
    for _ in range(steps):
        machine.step_randomly()
    machine.chaos = False
    for waiting in machine.waiting:
        if not waiting.answered and waiting.method not in ("INVITE", "UPDATE"):
            waiting.respond(200, now=machine.now)
        elif not waiting.answered and waiting.session is not None and not waiting.session.ended:
            waiting.respond(200, body=b"v=0\r\n", content_type="application/sdp", now=machine.now)
    machine.run(2_000.0)  # a BYE that nothing let through for 64*T1 leaves the end to the session timer
    assert machine.agreed() == []
    for end in (machine.alice, machine.bob):
        for dialog in list(end.stack._dialogs.values()):
            if dialog.session is not None:
                dialog.session.bye(machine.now)
        for dialog in list(end.stack._dialogs.values()):
            for usage in dialog.subscriptions:
                if hasattr(usage, "unsubscribe"):
                    usage.unsubscribe(machine.now)
    machine.run(4_000.0)  # a subscription of which the subscriber has died ends by itself
    assert machine.left() == {}
    assert machine.next_event() is None, "no timer is left"
    return machine


@pytest.mark.parametrize("seed", [1, 2])
def test_random_events_end_in_agreement_and_nothing_leaks(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    machine = _run(monkeypatch, seed, 5_000)
    assert machine.completed >= 40
    share, missing = machine.rows_used()
    assert share >= 0.75, missing


@pytest.mark.soak
def test_a_hundred_thousand_random_events(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _run(monkeypatch, 2026, 100_000)
    assert machine.completed >= 1_000
    share, missing = machine.rows_used()
    assert share >= 0.95, missing
