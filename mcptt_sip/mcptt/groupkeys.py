# SPDX-License-Identifier: Apache-2.0
"""The group keys that one member holds: which may be sent under, which may be received under, and when.

A TGMK (*temporary group master key*) is the proposal's own word: a GMK of TS 33.180 (purpose tag 0, GUK-IDs,
CS-ID 4) that the initiating client makes instead of a group management server. Sans-IO: ``now`` is Unix
seconds of the member's own clock, which may be wrong; see :meth:`GroupKeys.install`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcptt_sip.errors import SipError
from mikey import TransportKey


class KeyRefused(SipError):
    """An I_MESSAGE was opened, but its key must not be used in this group. Nothing has changed."""


class StaleKey(KeyRefused):
    """Its T is not newer than the last that was accepted from this signer (swapped, delayed, doubled)."""


class KeyConflict(KeyRefused):
    """Another key with the same GMK-ID is held, or the held one is revoked."""


@dataclass(slots=True)
class HeldKey:
    """One installed key. Times are Unix seconds of the own clock."""

    key: TransportKey
    #: T of the I_MESSAGE that brought it: among activated keys the highest wins
    timestamp: float
    send_from: float
    expires: float
    retires: float | None = None

    def may_receive(self, now: float) -> bool:
        return now < self.expires and (self.retires is None or now < self.retires)


class GroupKeys:
    """All keys of one group, in the hands of one member, from one pinned signer.

    Indexed by GMK-ID; the group and the signer belong to the object, so that two groups (or two signers)
    whose 28-bit identifiers agree never touch each other.

    :param grace: seconds for which the key before is still received after the own switch to a newer one
    """

    def __init__(self, group: str, signer: str, *, grace: float = 4.0) -> None:
        self.group = group
        self.signer = signer
        self.grace = grace
        self.last_timestamp = float("-inf")
        self._held: dict[int, HeldKey] = {}
        #: GMK-IDs of keys that are over (revoked, retired, expired): known, so that none comes back
        self._ended: set[int] = set()
        self._sending: int | None = None
        #: whether the last key ran out, and no other came: nothing can be said or heard any more
        self.exhausted = False
        #: T of the newest key that was revoked: what it was to replace is not gone back to
        self._revoked = float("-inf")

    def install(self, key: TransportKey, timestamp: float, now: float) -> HeldKey:
        """Holds ``key``, whose I_MESSAGE carried T = ``timestamp``, from now on.

        It is received under at once. It is sent under from its activation time by the own clock, but not
        later than the signer meant it to: ``activation - T`` after its arrival, however wrong this clock is.

        Raises :class:`StaleKey` or :class:`KeyConflict`; then nothing is changed.
        """
        if timestamp <= self.last_timestamp:
            raise StaleKey(f"T {timestamp} is not newer than {self.last_timestamp}")
        if key.key_id in self._held or key.key_id in self._ended:
            raise KeyConflict(f"GMK-ID {key.key_id:08x} is already held, or was")
        if not key.expiry:
            raise KeyRefused("a group key must have an expiry")
        if key.expiry <= now:
            raise KeyRefused("the key has expired")
        activation = key.activation or timestamp
        send_from = max(now, min(activation, now + (activation - timestamp)))
        held = HeldKey(key, timestamp, send_from, float(key.expiry))
        self._held[key.key_id] = held
        self.last_timestamp = timestamp
        return held

    def revoke(self, key: TransportKey, timestamp: float) -> None:
        """The signer withdraws a held key: same GMK-ID, same octets, newer T. For good.

        Nothing is sent until there is a newer key, also when this one was not in force yet: the one before may be in
        the hands of somebody who was removed, which is why this one was made.
        """
        held = self._held.get(key.key_id)
        if held is None:
            raise KeyConflict(f"GMK-ID {key.key_id:08x} is not held")
        if held.key.key != key.key or held.key.rand != key.rand:
            raise KeyConflict(f"the revocation of GMK-ID {key.key_id:08x} does not carry the held key")
        if timestamp <= self.last_timestamp:
            raise StaleKey(f"T {timestamp} is not newer than {self.last_timestamp}")
        self._revoked = max(self._revoked, held.timestamp)
        self._end(key.key_id)
        self.last_timestamp = timestamp

    def holds(self, key_id: int) -> bool:
        return key_id in self._held

    @property
    def newest(self) -> int | None:
        """The GMK-ID of the held key with the highest T, whether it is in force yet or not."""
        held = max(self._held.values(), key=lambda h: h.timestamp, default=None)
        return None if held is None else held.key.key_id

    def sending(self, now: float) -> TransportKey | None:
        """The key to send under, ``None`` when there is none in force: then nothing may be sent.

        Switching to a newer key starts the retirement of the one before.
        """
        for held in self._held.values():
            if held.timestamp <= self._revoked and held.retires is None:
                held.retires = now + self.grace
        usable = [h for h in self._held.values() if h.send_from <= now < h.expires and h.retires is None]
        if not usable:
            return None
        best = max(usable, key=lambda h: h.timestamp)
        if self._sending != best.key.key_id:
            self._sending = best.key.key_id
            for older in self._held.values():
                if older.timestamp < best.timestamp and older.retires is None:
                    older.retires = now + self.grace
        return best.key

    def held(self, now: float) -> list[TransportKey]:
        """Every key that may be received under."""
        return [held.key for held in self._held.values() if held.may_receive(now)]

    def receiving(self, key_id: int, now: float) -> TransportKey | None:
        held = self._held.get(key_id)
        return held.key if held is not None and held.may_receive(now) else None

    def has_ended(self, key_id: int, now: float) -> bool:
        """Known, and no longer valid: its packets come from someone who missed an update, or a replayer."""
        held = self._held.get(key_id)
        return key_id in self._ended or (held is not None and not held.may_receive(now))

    def next_timer(self) -> float | None:
        """When :meth:`sending` may give another answer, or a key ends."""
        due: list[float] = []
        for held in self._held.values():
            if held.key.key_id != self._sending and held.retires is None:
                due.append(min(held.send_from, held.expires))
            else:
                due.append(held.expires if held.retires is None else min(held.retires, held.expires))
        return min(due, default=None)

    def drop_ended(self, now: float) -> list[int]:
        """Lets go of the keys that can never be used again; returns their GMK-IDs, which stay known."""
        ended = [key_id for key_id, held in self._held.items() if not held.may_receive(now)]
        expired = any(self._held[key_id].expires <= now for key_id in ended)
        for key_id in ended:
            self._end(key_id)
        self.exhausted = not self._held and (expired or self.exhausted)
        return ended

    def drop_all(self) -> None:
        """Leaving the group: every key goes; the replay cache, elsewhere, keeps its entries."""
        for key_id in list(self._held):
            self._end(key_id)

    def _end(self, key_id: int) -> None:
        self._held.pop(key_id, None)
        self._ended.add(key_id)
        if self._sending == key_id:
            self._sending = None
