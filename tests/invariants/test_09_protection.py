# SPDX-License-Identifier: Apache-2.0
"""Invariant 9. No unprotected or differently protected media leaves or is played in a regroup call, whatever SDP says.

The whole system is played in virtual time with one fault put in; the machine that watches the invariants must find
it. Without faults it finds nothing (`tests/simulation`).
"""

from __future__ import annotations

import pytest

from tests.invariants.proving import faults, must_be_found


@pytest.mark.parametrize("fault", faults(9))
def test_a_fault_is_found(fault: str) -> None:
    must_be_found(fault, 9)
