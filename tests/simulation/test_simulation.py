# SPDX-License-Identifier: Apache-2.0
"""The random-event machine, in short; that a seed says everything. That it finds what is put in: ``tests/invariants``.

The long run is ``make soak`` or ``python -m tests.simulation --seed N --steps 100000``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.machine import Machine
from tests.simulation.weakenings import WEAKENINGS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_the_rules_hold(seed: int) -> None:
    report = Machine(seed, steps=250, calm_every=250).run()
    assert report.violation is None, "\n".join([*report.tail, f"seed {seed}: {report.violation}"])
    assert report.steps == 250 and report.events["calm"] == 1 and report.facts["keys installed"] > 50


def test_a_seed_says_everything() -> None:
    """Two processes, whose memory is laid out differently, come to the same octets."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "3", "--steps", "60", "--trace"]
    environment = {**os.environ, "PYTHONHASHSEED": "random"}
    traces = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert traces[0] == traces[1] and len(traces[0][0]) == 64
    assert Machine(4, steps=5).run().trace != Machine(5, steps=5).run().trace


def test_a_failure_comes_again_to_the_octet_from_the_seed_that_is_printed() -> None:
    weakening = WEAKENINGS["key_in_the_log"]
    with weakening.patch():
        first, second = (Machine(1, steps=20, weights=weakening.weights).run() for _ in range(2))
    assert first.violation is not None and str(first.violation) == str(second.violation)
    assert (first.seed, first.steps, first.trace, first.tail) == (second.seed, second.steps, second.trace, second.tail)
