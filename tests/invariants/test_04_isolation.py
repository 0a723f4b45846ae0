# SPDX-License-Identifier: Apache-2.0
"""Invariant 4. Making, rekeying or revoking one group changes nothing in any other; two keys with one id never
overwrite each other.

The whole system is played in virtual time with one fault put in; the machine that watches the invariants must find
it. Without faults it finds nothing (`tests/simulation`).
"""

from __future__ import annotations

import pytest

from tests.invariants.proving import faults, must_be_found


@pytest.mark.parametrize("fault", faults(4))
def test_a_fault_is_found(fault: str) -> None:
    must_be_found(fault, 4)
