# SPDX-License-Identifier: Apache-2.0
"""Invariant 8. "Keyed" means an acknowledgement that the initiator's client verified; the talker shown is the owner of
the packet's key and the one named by the floor.

The whole system is played in virtual time with one fault put in; the machine that watches the invariants must find
it. Without faults it finds nothing (`tests/simulation`).
"""

from __future__ import annotations

import pytest

from tests.invariants.proving import faults, must_be_found


@pytest.mark.parametrize("fault", faults(8))
def test_a_fault_is_found(fault: str) -> None:
    must_be_found(fault, 8)
