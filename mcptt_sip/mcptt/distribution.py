# SPDX-License-Identifier: Apache-2.0
"""The signer's side of a group key: made, sealed to users one by one, acknowledged, replaced, revoked.

Sans-IO. A key is sealed only to identities that this user named (security rule 5). Everyone an I_MESSAGE was
made for counts as a holder of that key, whatever SIP said about its delivery (rule 6); *keyed* is only who
proved it with an acknowledgement that was verified here (rule 12).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.journal import GroupRecord, Journal, NoJournal, entry
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
    #: what was said before a user joined must not be readable by him: a new key before each join
    rekey_on_join: bool = False
    #: failed adds within this time share one new key
    coalesce: float = 2.0
    #: acknowledgements of so many keys before the current one still count as a proof of that key
    awaited_keys: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.lifetime < math.inf:  # of NaN nothing is true
            raise ValueError("a TGMK must have a finite, positive lifetime")
        if not 0 < self.refresh_at <= 1:
            raise ValueError(f"a key is replaced at a share of its life, not at {self.refresh_at}")
        if not 0 <= self.activation_delay < math.inf:
            raise ValueError(f"a new key is sent under after {self.activation_delay} s: 0 or more")


@dataclass(slots=True)
class Sealing:
    """One I_MESSAGE that was made: for whom, which key, and whether he proved that he has it.

    ``generation`` counts the keys of the group; a revocation belongs to the generation of its key.
    """

    user: str
    key: TransportKey
    message: SealedMessage
    result: int
    generation: int
    acknowledged: bool = False


@dataclass(slots=True)
class KeyDistribution:
    """All keys of one group that this client makes, as its initiator or as a deputy who has taken over.

    :param signer: this client's user, who signs every I_MESSAGE
    :param seal: makes an I_MESSAGE, see :class:`Seal`
    :param verify: ``(user, octets, signature, at)`` raises unless it is this user's ECCSI signature
    :param random: ``random(n)`` gives n octets of system randomness
    :param journal: written before anything that it speaks of leaves (rule 15)
    """

    group: str
    signer: str
    terms: GroupTerms
    seal: Seal
    verify: Callable[[str, bytes, bytes, float], None]
    random: Callable[[int], bytes]
    settings: DistributionSettings = field(default_factory=DistributionSettings)
    journal: Journal = field(default_factory=NoJournal)
    current: TransportKey | None = None
    made_at: float = 0.0
    generation: int = 0
    _named: set[str] = field(default_factory=set)
    _sealed_to: set[str] = field(default_factory=set)
    _removed: set[str] = field(default_factory=set)
    _sealings: dict[tuple[str, int, int], Sealing] = field(default_factory=dict)
    _newest: dict[str, Sealing] = field(default_factory=dict)
    #: user -> the newest (generation, result) that he acknowledged
    _proved: dict[str, tuple[int, int]] = field(default_factory=dict)
    _used_ids: set[int] = field(default_factory=set)
    _last_time: float = 0.0
    _begun: bool = False

    @classmethod
    def resume(cls, record: GroupRecord, **parts: Any) -> KeyDistribution:
        """After a restart: knows whom and what the journal names, and holds no key yet."""
        distribution = cls(record.group, record.signer, GroupTerms.parse(record.terms), **parts)
        distribution._named = set(record.members)
        distribution._sealed_to, distribution._removed = set(record.sealed_to), set(record.removed)
        distribution._used_ids = set(record.used_ids)
        distribution._last_time = record.last_time
        distribution._begun = True
        return distribution

    def succeed(self, key: TransportKey, users: Iterable[str], last_time: float) -> None:
        """Takes over a group in which ``key`` is in force and ``users`` hold it (rule 15).

        ``last_time`` is the T of the newest key message that was seen in the group; this client's are newer.
        """
        self.current = key
        self.generation += 1
        self._used_ids.add(key.key_id)
        self._named.update(users)
        self._sealed_to.update(users)
        self._last_time = max(self._last_time, last_time)

    # --- who ------------------------------------------------------------------------------------------

    def name(self, user: str) -> None:
        """The user of this client, or his configuration, wants ``user`` in the group."""
        self._named.add(user)
        self._removed.discard(user)

    def remove(self, user: str) -> None:
        """``user`` gets no key from now on; those he has are what the next key is for."""
        if user in self._named or user not in self._removed:
            self._write("removed", user=user)
        self._named.discard(user)
        self._removed.add(user)

    def absent(self, user: str) -> None:
        """``user`` is not in the call, of his own accord: no key is sent to him until he is added again."""
        self._named.discard(user)

    @property
    def named(self) -> frozenset[str]:
        return frozenset(self._named)

    @property
    def sealed_to(self) -> frozenset[str]:
        """Everyone that any key of this group was ever sealed to."""
        return frozenset(self._sealed_to)

    def may_ask_for_a_key(self, user: str) -> bool:
        """A key request is served only for someone already sealed to and not removed (rule 5)."""
        return user in self._sealed_to and user not in self._removed

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

    def pending(self, user: str) -> Sealing | None:
        """The newest I_MESSAGE that was made for ``user``, while he has not acknowledged it."""
        newest = self._newest.get(user)
        if newest is None or newest.acknowledged or user not in self._named:
            return None
        return newest

    def proved(self, user: str, generation: int, result: int = INSTALLED) -> bool:
        """Whether ``user`` acknowledged the key of this generation, or a newer one."""
        return self._proved.get(user, (0, 0)) >= (generation, result)

    # --- keys -----------------------------------------------------------------------------------------

    def new_key(self, now: float, *, held_ids: frozenset[int] = frozenset()) -> TransportKey:
        """A fresh TGMK, GMK-ID and RAND; the current one from now on.

        The first is active at once, a later one after ``activation_delay``. Redrawn until the GUK-IDs of
        all named users and of the signer differ (rule 17). ``held_ids`` are GMK-IDs held elsewhere.
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
            if self._distinct(key):
                break
        self._write("key", gmk_id=f"{key.key_id:08x}")
        self._used_ids.add(key.key_id)
        self.current, self.made_at = key, now
        self.generation += 1
        # a proof of an older key may still be under way, when several keys are made at once
        oldest = {True: self.generation - 1, False: self.generation - self.settings.awaited_keys}
        self._sealings = {k: s for k, s in self._sealings.items() if s.generation >= oldest[s.acknowledged]}
        return key

    def _distinct(self, key: TransportKey) -> bool:
        """Whether all that would send under ``key`` have GUK-IDs (28 bits) of their own."""
        ids = [guk_id(key, user) for user in {*self._named, self.signer}]
        return len(set(ids)) == len(ids)

    def refresh_due(self) -> float | None:
        """When the current key is to be replaced."""
        if self.current is None:
            return None
        return self.made_at + self.settings.lifetime * self.settings.refresh_at

    def seal_to(self, user: str, now: float) -> SealedMessage:
        """The current key for ``user``. The sealing is on record before its octets are returned.

        Raises :class:`NotNamed`, :class:`GukIdCollision`, :class:`~mcptt_sip.mcptt.journal.JournalError`.
        """
        key = self._current_for(user)
        mine = guk_id(key, user)
        # who is named gets this key as well, sooner or later
        others = {*self.holders(key), *self._named, self.signer} - {user}
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
        at = self.next_time(now)
        self._write("sealed", user=user, gmk_id=f"{key.key_id:08x}", t=at)
        message = self.seal(key, user, at)
        sealing = Sealing(user, key, message, result, self.generation)
        self._sealings[user, key.key_id, result] = self._newest[user] = sealing
        self._sealed_to.add(user)
        return message

    def next_time(self, now: float) -> float:
        """A T for a key message: every one of a signer has its own (RFC 3830 5.2), and receivers order keys by it.

        The low 16 bits of T's fraction are random, so two steps of 2**-16 s are what surely orders two messages.
        """
        self._last_time = max(now, self._last_time + 2**-15)
        return self._last_time

    def _write(self, what: str, **details: object) -> None:
        if not self._begun:
            self._begun = True
            self.journal.append(entry("group", group=self.group, signer=self.signer, terms=str(self.terms)))
        self.journal.append(entry(what, **details))

    def at_session(self, identity: str) -> None:
        """Where the call can be found again after a restart."""
        self._write("session", identity=identity)

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
        proved = (sealing.generation, sealing.result)
        self._proved[sealing.user] = max(proved, self._proved.get(sealing.user, proved))
        return sealing
