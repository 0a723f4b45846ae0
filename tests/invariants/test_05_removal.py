# SPDX-License-Identifier: Apache-2.0
"""Invariant 5. After a removal nobody who acknowledged the new key sends under the old one, nobody sends under it
after its expiry, the initiator is told who has not acknowledged, and everyone a message was made for counts as
holding the key.

The whole system is played in virtual time with one fault put in; the machine that watches the invariants must find
it. Without faults it finds nothing (`tests/simulation`).
"""

from __future__ import annotations

import pytest

from tests.invariants.proving import faults, must_be_found


@pytest.mark.parametrize("fault", faults(5))
def test_a_fault_is_found(fault: str) -> None:
    must_be_found(fault, 5)
