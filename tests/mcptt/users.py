# SPDX-License-Identifier: Apache-2.0
"""A KMS and four users, with the clock in the hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mcptt_sip.mcptt.distribution import DistributionSettings, KeyDistribution
from mcptt_sip.mcptt.keying import GroupTerms
from mikey import Keyring, KeyType, OpenedKey, seal, unseal

NOW = 1_790_000_000.0
GROUP = "sip:tmp-0f1e2d3c4b5a69788796a5b4c3d2e1f0@mcx.example"
ALICE, BOB, CAROL, DAVE = (f"sip:{n}@mcx.example" for n in ("alice", "bob", "carol", "dave"))


@dataclass
class Users:
    """Everyone's keys in one ring; each acts under his own URI."""

    ring: Keyring

    def distribution(self, terms: GroupTerms | None = None, seed: int = 1, **settings: float) -> KeyDistribution:
        """Alice's key distribution."""
        octets = random.Random(seed).randbytes
        return KeyDistribution(
            GROUP,
            ALICE,
            terms or GroupTerms(),
            seal=lambda key, recipient, now: seal(
                key, sender=ALICE, recipient=recipient, keyring=self.ring, now=now, random=octets
            ),
            verify=lambda user, data, signature, at: self.ring.verify_signature(data, signature, user, at),
            random=octets,
            settings=DistributionSettings(**settings),  # type: ignore[arg-type]
        )

    def open(self, octets: bytes, user: str, now: float = NOW, *, update: bool = True) -> OpenedKey:
        """What ``user``'s phone finds in an I_MESSAGE of Alice."""
        return unseal(
            octets, sender_uri=ALICE, me=user, keyring=self.ring, now=now, replay=None, expect_type=KeyType.GMK,
            expect_group=GROUP,
            allow_pending=update, allow_revoked=update,
        )

    def signer(self, user: str) -> Callable[[bytes], bytes]:
        return self.ring.key_set_for(user, NOW).sign
