# SPDX-License-Identifier: Apache-2.0
"""Invariant 1. The server never holds a TGMK or anything that decrypts media, and a client seals a TGMK only to
identities that its own user named.

The whole system is played in virtual time with one fault put in; the machine that watches the invariants must find
it. Without faults it finds nothing (`tests/simulation`).
"""

from __future__ import annotations

import pytest

from tests.invariants.proving import faults, must_be_found


@pytest.mark.parametrize("fault", faults(1))
def test_a_fault_is_found(fault: str) -> None:
    must_be_found(fault, 1)
