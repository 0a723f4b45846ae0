# SPDX-License-Identifier: Apache-2.0
"""The short form of ``make fuzz``: every parser that reads what a stranger can send, under mutated octets."""

from __future__ import annotations

import pytest

from tests.fuzz import LEAST_SHARE, run, targets

CASES = 1500


@pytest.mark.parametrize("name", sorted(targets()))
def test_no_octets_raise_anything_but_the_parsers_own_error(name: str) -> None:
    counts, findings = run(2026, CASES, [name])
    assert not findings, [f"{found.what}: {found.octets[:200].hex()}" for found in findings[:3]]
    assert counts[name].cases == CASES
    share = counts[name].share
    assert share is None or share >= LEAST_SHARE, "most cases fail at the start line or the Via, and try nothing else"
