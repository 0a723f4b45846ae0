# SPDX-License-Identifier: Apache-2.0
"""The initiator's side of a group key: made, sealed to users one by one, acknowledged, replaced, revoked.

Sans-IO. A key is sealed only to identities that this user named (security rule 5). Everyone an I_MESSAGE was
made for counts as a holder of that key, whatever SIP said about its delivery (rule 6); *keyed* is only who
proved it with an acknowledgement that was verified here (rule 12).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.keying import (
    INSTALLED,
    REVOKED,
    Acknowledgement,
    AcknowledgementError,
    GroupTerms,
    verify_acknowledgement,
)
from mikey import KeyType, SealedMessage, TransportKey, guk_id


class NotNamed(SipError):
    """A key was asked for an identity that the user of this client never named."""


class GukIdCollision(SipError):
    """Two members would send media under one GUK-ID (28 bits): a new key resolves it."""


class Seal(Protocol):
    """Makes the I_MESSAGE for one recipient at time ``now`` (Unix seconds, strictly increasing)."""

    def __call__(self, key: TransportKey, recipient: str, now: float) -> SealedMessage: ...


@dataclass(frozen=True, slots=True)
class DistributionSettings:
    """Times in seconds."""

    #: how long a TGMK is valid; 0 is not allowed (security rule 2)
    lifetime: float = 3600.0
    #: the share of its life after which it is replaced
    refresh_at: float = 0.75
    #: from making an update to sending under it: time for every member to get it first
    activation_delay: float = 2.0
    #: what was sent under the key before is under way for at most so long after the activation
    transit: float = 0.2
    #: a failed add may have delivered the key all the same: replace it at once, not only with the next removal
    rekey_on_failed_add: bool = False
    #: what asks for a new key within this time shares one
    coalesce: float = 2.0

    def __post_init__(self) -> None:
        if not self.lifetime > 0:
            raise ValueError("a TGMK must have a finite, positive lifetime")


@dataclass(slots=True)
class Sealing:
    """One I_MESSAGE that was made: for whom, which key, and whether he proved that he has it."""

    user: str
    key: TransportKey
    message: SealedMessage
    result: int
    acknowledged: bool = False


@dataclass(slots=True)
class KeyDistribution:
    """All keys of one group that this client initiated.

    :param seal: makes an I_MESSAGE, see :class:`Seal`
    :param verify: ``(user, octets, signature, at)`` raises unless it is this user's ECCSI signature
    :param random: ``random(n)`` gives n octets of system randomness
    """

    group: str
    initiator: str
    terms: GroupTerms
    seal: Seal
    verify: Callable[[str, bytes, bytes, float], None]
    random: Callable[[int], bytes]
    settings: DistributionSettings = field(default_factory=DistributionSettings)
    current: TransportKey | None = None
    made_at: float = 0.0
    _named: set[str] = field(default_factory=set)
    _sealings: dict[tuple[str, int, int], Sealing] = field(default_factory=dict)
    _used_ids: set[int] = field(default_factory=set)
    _last_time: float = 0.0

    # --- who ------------------------------------------------------------------------------------------

    def name(self, user: str) -> None:
        """The user of this client, or his configuration, wants ``user`` in the group."""
        self._named.add(user)

    def remove(self, user: str) -> None:
        """``user`` gets no key from now on; those he has are what the next key is for."""
        self._named.discard(user)

    @property
    def named(self) -> frozenset[str]:
        return frozenset(self._named)

    def holders(self, key: TransportKey) -> frozenset[str]:
        """Everyone an I_MESSAGE with this key was made for."""
        return frozenset(s.user for s in self._sealings.values() if s.key.key_id == key.key_id)

    def keyed(self) -> frozenset[str]:
        """Who proved that he holds the current key, and is still named."""
        return frozenset(
            s.user for s in self._of_current(INSTALLED) if s.acknowledged and s.user in self._named
        )

    def awaiting(self, result: int = INSTALLED) -> frozenset[str]:
        """Who was sent the current key (or its revocation) and has not acknowledged it."""
        return frozenset(
            s.user for s in self._of_current(result) if not s.acknowledged and s.user in self._named
        )

    def _of_current(self, result: int) -> list[Sealing]:
        if self.current is None:
            return []
        return [
            s for s in self._sealings.values() if s.key.key_id == self.current.key_id and s.result == result
        ]

    # --- keys -----------------------------------------------------------------------------------------

    def new_key(self, now: float, *, held_ids: frozenset[int] = frozenset()) -> TransportKey:
        """A fresh TGMK, GMK-ID and RAND; the current one from now on.

        The first is active at once, a later one after ``activation_delay``. Redrawn until the GUK-IDs of
        all named users and of the initiator differ (rule 17). ``held_ids`` are GMK-IDs held elsewhere.
        """
        activation = 0 if self.current is None else int(now + self.settings.activation_delay + 0.999)
        while True:
            key = TransportKey.generate(
                KeyType.GMK,
                random=self.random,
                exclude_ids=frozenset(self._used_ids | held_ids),
                activation=activation,
                expiry=int(now + self.settings.lifetime),
                group_ids=(self.group,),
                text=str(self.terms),
            )
            ids = [guk_id(key, user) for user in (*self._named, self.initiator)]
            if len(set(ids)) == len(ids):
                break
        self._used_ids.add(key.key_id)
        self.current, self.made_at = key, now
        return key

    def refresh_due(self) -> float | None:
        """When the current key is to be replaced."""
        if self.current is None:
            return None
        return self.made_at + self.settings.lifetime * self.settings.refresh_at

    def seal_to(self, user: str, now: float) -> SealedMessage:
        """The current key for ``user``. The sealing is on record before its octets are returned.

        Raises :class:`NotNamed`, :class:`GukIdCollision`.
        """
        key = self._current_for(user)
        mine = guk_id(key, user)
        others = (*(u for u in self.holders(key) if u != user), self.initiator)
        if any(guk_id(key, other) == mine for other in others):
            raise GukIdCollision(f"the GUK-ID of {user} is taken in this key")
        return self._seal(key, user, now, INSTALLED)

    def seal_revocation(self, user: str, now: float) -> SealedMessage:
        """The withdrawal of the current key for ``user``: the same key with status bit 0 cleared."""
        return self._seal(self._current_for(user).revoke(), user, now, REVOKED)

    def _current_for(self, user: str) -> TransportKey:
        if self.current is None:
            raise NotNamed("there is no key yet")
        if user not in self._named:
            raise NotNamed(f"{user} was not named by this user")
        return self.current

    def _seal(self, key: TransportKey, user: str, now: float, result: int) -> SealedMessage:
        # Every I_MESSAGE of one initiator has its own T (RFC 3830 5.2), and receivers order keys by it. The low 16
        # bits of T's fraction are random, so two steps of 2**-16 s are what surely orders two messages.
        self._last_time = max(now, self._last_time + 2**-15)
        message = self.seal(key, user, self._last_time)
        self._sealings[user, key.key_id, result] = Sealing(user, key, message, result)
        return message

    # --- proofs ---------------------------------------------------------------------------------------

    def acknowledge(self, octets: bytes, now: float) -> Sealing:
        """Verifies an acknowledgement of any key of this group and counts it.

        Raises :class:`~mcptt_sip.mcptt.keying.AcknowledgementError` when it proves nothing: a wrong MAC or
        signature, another group, user, key or I_MESSAGE than was made for that user.
        """
        claim = Acknowledgement.decode(octets)
        sealing = self._sealings.get((claim.user, claim.key_id, claim.result))
        if sealing is None:
            raise AcknowledgementError(f"no such key was sealed to {claim.user}")
        verify_acknowledgement(
            claim,
            sealing.key,
            csb_id=sealing.message.csb_id,
            digest=sealing.message.signed_digest,
            group=self.group,
            user=claim.user,
            verify=lambda data, signature: self.verify(claim.user, data, signature, now),
            result=sealing.result,
        )
        sealing.acknowledged = True
        return sealing
