# SPDX-License-Identifier: Apache-2.0
"""A KMS with Alice, Bob and a server, a clock in the hand, and the published vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mikey import Keyring, KeyType, Kms, SealedMessage, TransportKey, seal

VECTORS = Path(__file__).parent.parent / "vectors" / "mikey"
NOW = 1_790_000_000.0
GROUP = "sip:0f1e2d3c4b5a69788796a5b4c3d2e1f0@example.org"
ALICE, BOB, CAROL, SERVER = (f"sip:{n}@example.org" for n in ("alice", "bob", "carol", "mcptt"))


def counting_random(seed: int = 1) -> Callable[[int], bytes]:
    """Random octets that are the same in every run."""
    import random

    source = random.Random(seed)
    return source.randbytes


@dataclass
class World:
    """One KMS, everyone's keys in one ring (each user sees only his own sets by URI)."""

    kms: Kms
    ring: Keyring
    now: float = NOW

    def tgmk(self, **changes: Any) -> TransportKey:
        """A temporary group's key, alive for an hour."""
        settings: dict[str, Any] = {"expiry": int(self.now) + 3600, "group_ids": (GROUP,)}
        return TransportKey.generate(KeyType.GMK, **{**settings, **changes})

    def sealed(self, key: TransportKey | None = None, **changes: Any) -> SealedMessage:
        """A message of Alice to Bob."""
        settings: dict[str, Any] = {"sender": ALICE, "recipient": BOB, "keyring": self.ring, "now": self.now}
        return seal(key or self.tgmk(), **{**settings, **changes})


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return dict(json.loads((VECTORS / "mikey_vectors.json").read_text()))


@pytest.fixture(scope="session")
def vendors() -> dict[str, Any]:
    return dict(json.loads((VECTORS / "vendor_messages.json").read_text()))


@pytest.fixture(scope="session")
def kms() -> Kms:
    return Kms.generate("kms.example.org", ["example.org"], random=counting_random())


@pytest.fixture(scope="session")
def _ring(kms: Kms) -> Keyring:
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    for uri in (ALICE, BOB, CAROL, SERVER):
        ring.add_key_set(kms.issue(uri, NOW))
    return ring


@pytest.fixture
def world(kms: Kms, _ring: Keyring) -> World:
    return World(kms, _ring)
