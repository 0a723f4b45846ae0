# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the MCPTT tests."""

import random

import pytest

from mikey import Keyring, Kms
from tests.mcptt.users import ALICE, BOB, CAROL, DAVE, NOW, Users


@pytest.fixture(scope="session")
def users() -> Users:
    kms = Kms.generate("kms.mcx.example", ["mcx.example"], random=random.Random(1).randbytes)
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    for uri in (ALICE, BOB, CAROL, DAVE):
        ring.add_key_set(kms.issue(uri, NOW))
    return Users(ring)
