# SPDX-License-Identifier: Apache-2.0
"""Every rule of the threat model has a test that plays its attack, and each of these tests is able to fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.weakenings import PROOFS

pytestmark = pytest.mark.network
ROOT = Path(__file__).resolve().parents[2]
RULES = 29
PIECES = 4
#: what a test says when what it looks for is not so; anything else means that the weakening itself is broken
NOTICED = re.compile(
    r"AssertionError|Failed: DID NOT RAISE|Failed: DID NOT WARN|TimeoutError|assert |Regex pattern did not match"
    r"|NotRekeyed|RegroupFailed|AddFailed"
)


def test_every_rule_has_a_proof() -> None:
    assert {proof.rule for proof in PROOFS} == set(range(1, RULES + 1))


@pytest.mark.parametrize("piece", range(PIECES))
def test_with_its_rule_switched_off_each_test_fails(piece: int) -> None:
    tests = [proof.test for proof in PROOFS[piece::PIECES]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.security.weakenings", "-q", "--tb=line", "-rA", "-p", "no:xdist",
         "-p", "no:cacheprovider", "--timeout", "60", *tests],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=220,
        env=os.environ | {"MCPTT_TEST_PATIENCE": "3", "COLUMNS": "400"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-2000:]
    for test in tests:
        outcomes = re.findall(rf"^(PASSED|FAILED|ERROR) {re.escape(test)}(?:\[.*?\])?(?: - (.*))?$", done.stdout, re.M)
        failures = [why for outcome, why in outcomes if outcome == "FAILED"]
        assert outcomes and not any(outcome == "ERROR" for outcome, _ in outcomes), f"{test}: {outcomes}"
        assert failures, f"{test} passes although its rule is switched off"
        assert all(NOTICED.search(why) for why in failures), f"{test} broke instead of noticing: {failures}"
