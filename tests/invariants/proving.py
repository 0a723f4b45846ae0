# SPDX-License-Identifier: Apache-2.0
"""The faults of :mod:`tests.simulation.weakenings` by the number of the invariant that they break."""

from __future__ import annotations

from tests.simulation.machine import Machine
from tests.simulation.weakenings import WEAKENINGS

#: a fault is met sooner or later; how soon changes with every change of the program
SEEDS = (1, 2, 3, 4)


def _number(rule: str) -> int:
    return int(rule.split()[0])


def faults(number: int) -> list[str]:
    """Names of the faults that break an invariant; there is one at least."""
    found = [name for name, weakening in WEAKENINGS.items() if _number(weakening.rule) == number]
    assert found, f"nothing breaks invariant {number}"
    return found


def must_be_found(name: str, number: int) -> None:
    """Plays the system with the fault; its invariant must be seen broken."""
    weakening = WEAKENINGS[name]
    assert _number(weakening.rule) == number
    found: list[str] = []
    for seed in SEEDS:
        with weakening.patch():
            report = Machine(
                seed, steps=weakening.steps, weights=weakening.weights, moves=weakening.moves,
                calm_every=weakening.calm_every,
            ).run()
        found += [str(violation) for violation in report.violations]
        if any(violation.startswith(weakening.rule) for violation in found):
            return
    raise AssertionError(f"the rule {weakening.rule} was not seen to be broken: {found}")
