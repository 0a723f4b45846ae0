# SPDX-License-Identifier: Apache-2.0
"""What really happened in a simulation, noted where it cannot be missed: at the mathematics and at the wire.

:func:`probing` looks over the shoulder of SAKKE and ECCSI themselves, so that what a client or a server believes of
itself plays no part. Nothing here changes what the program does. What must not be is a :class:`Violation`; it is
noted, and raised by the machine after the step, since a program may swallow what is raised in the middle of it.
"""

from __future__ import annotations

import base64
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest import mock

from mcptt_sip.mcptt.keying import INSTALLED, REVOKED
from mikey import KeySet, KmsCertificate, OpenedKey, TransportKey, derive, eccsi, sakke
from tests.simulation.loop import CURRENT, Clock, Process

#: identifiers are cut to so many bits, that the clashes of 28 bits happen (security rule 17)
IDENTIFIER_BITS = 8
#: keys whose octets are looked for on the wire: the newest ones
WATCHED_KEYS = 12
#: seconds that a timer may be late
LATE = 0.05
_LABEL = b"TGMK-ACK"


class Violation(AssertionError):
    """Something happened that must not. ``rule`` names the invariant (DESIGN.md 4) and what of it."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


@dataclass(slots=True)
class Made:
    """A TGMK that somebody made."""

    key: TransportKey
    group: str
    maker: str
    at: float
    #: the maker's own clock at that time
    clock: float
    sealed_to: set[str] = field(default_factory=set)
    revoked: bool = False


@dataclass(slots=True)
class Group:
    """A temporary group as the user who initiated it knows it."""

    group: str
    initiator: str
    named: set[str]
    #: who may make its keys beside the initiator
    deputies: frozenset[str] = frozenset()
    #: deputy who took over -> whom he wants in it
    named_by: dict[str, set[str]] = field(default_factory=dict)
    #: the call was given up, released or lost its initiator: everybody may end it
    over: str | None = None
    established: bool = False
    opened_at: float = 0.0
    keys: list[Made] = field(default_factory=list)
    #: users with whose leg something happened that ends it: removed, left, failed
    out: dict[str, str] = field(default_factory=dict)

    def wishes_of(self, maker: str) -> set[str]:
        """Whom this maker of keys wants in it."""
        return self.named if maker == self.initiator else self.named_by.setdefault(maker, set())

    def wanted(self, user: str) -> bool:
        """Whether somebody who makes keys wants him in it."""
        return user in self.named or any(user in wishes for wishes in self.named_by.values())


@dataclass(slots=True)
class Sealed:
    """One SAKKE encapsulation."""

    process: Process
    key: bytes
    user: str
    #: the groups for which the sealing process's own user had named the recipient at that time
    named_in: frozenset[str]
    at: float


class Truth:
    """Everything that is noted. Times are the simulation's own, unless they are called a clock's."""

    def __init__(self, clock: Clock, service: str) -> None:
        self._clock = clock
        self.service = service
        self.groups: dict[str, Group] = {}
        self.made: dict[bytes, Made] = {}
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self.users: dict[bytes, str] = {}
        #: (user, digest, group, result) of every acknowledgement that the user's own process signed
        self.acknowledged: set[tuple[str, bytes, str, int]] = set()
        #: (user, group) -> when he installed which key, by octets
        self.installed: dict[tuple[str, str], dict[bytes, float]] = {}
        self.accepted: dict[str, set[bytes]] = {}
        self.opened: dict[Process, list[OpenedKey]] = {}
        self.verified: dict[Process, deque[bytes]] = {}
        self.sealed: list[Sealed] = []
        #: (group, user) -> when its signer's client last told that this user proved a key
        self.told_keyed: dict[tuple[str, str], float] = {}
        #: (group, user) -> when he was last told that this user is not in the call, or was not
        self.told_left: dict[tuple[str, str], float] = {}
        self.used: dict[tuple[bytes, int], set[int]] = {}
        self.heard: dict[tuple[Process, bytes, int], set[int]] = {}
        self._watched: deque[tuple[Made, list[bytes]]] = deque(maxlen=WATCHED_KEYS)

    @property
    def now(self) -> float:
        return self._clock.now

    def violate(self, rule: str, what: str) -> None:
        self.violations.append(Violation(rule, what))

    def know(self, certificate: KmsCertificate, users: list[str], at: float) -> None:
        """The identities that a SAKKE recipient may have."""
        number = certificate.periods.number(at)
        for user in users:
            for period in (number - 1, number, number + 1):
                self.users[certificate.uid(user, period)] = user

    # --- the users' wishes ------------------------------------------------------------------------------

    def open(self, group: str, initiator: str, deputies: frozenset[str] = frozenset()) -> Group:
        found = self.groups[group] = Group(group, initiator, set(), deputies, opened_at=self.now)
        return found

    def close(self, group: str, why: str) -> None:
        found = self.groups.get(group)
        if found is not None and found.over is None:
            found.over = why

    # --- keys -------------------------------------------------------------------------------------------

    def key_installed(self, user: str, group: str, key: TransportKey) -> None:
        """A client took a key into use (its ``key_observer``)."""
        process = CURRENT.get()
        if process is None or process.dead:
            return
        octets, found = key.key.reveal(), self.groups.get(group)
        self.settle_sealed(making=octets)
        if found is None:
            self.violate("3 pinning", f"{user} installs a key for {group}, which nobody opened")
            return
        makers = {found.initiator, *found.deputies}
        made = self.made.get(octets)
        opened = self._taken(process, octets)
        if made is None and opened is None and user in makers:
            made = self.made[octets] = Made(key, group, user, self.now, process.clock())
            found.keys.append(made)
            known = self.installed.get((user, group), {})  # who comes back cannot know what a deputy made meanwhile
            others = [m for m in found.keys if m is not made and (m.maker == user or m.key.key.reveal() in known)]
            if any(m.key.key_id == key.key_id for m in others):
                self.violate("4 identifiers", f"{user} makes a second key with GMK-ID {key.key_id:08x} in {group}")
            self._watch(made)
            self.counts["keys made"] += 1
        elif made is None:
            self.violate("3 pinning", f"{user} installs a key in {group} that none of {sorted(makers)} made")
            return
        elif made.group != group:
            self.violate("3 pinning", f"{user} installs in {group} a key that {made.maker} made for {made.group}")
        elif made.maker not in makers:
            self.violate("3 pinning", f"{user} installs in {group} a key of {made.maker}")
        elif user not in made.sealed_to and user != made.maker:
            self.violate("3 pinning", f"{user} installs in {group} a key that was not sealed to him")
        elif opened is None and user != made.maker:
            self.violate("7 replay", f"{user} installs in {group} a key whose message is not on record")
        elif made.key.key_id != key.key_id or made.key.rand != key.rand:
            self.violate("4 identifiers", f"{user} installs in {group} a key under another id or RAND than it was made")
        self.installed.setdefault((user, group), {})[octets] = self.now
        self.counts["keys installed"] += 1

    def _taken(self, process: Process, octets: bytes) -> OpenedKey | None:
        """The message that brought this key to this process: each counts once."""
        opened = self.opened.get(process, [])
        for at, one in enumerate(opened):
            if one.key.key.reveal() == octets:
                return opened.pop(at)
        return None

    def message_accepted(self, process: Process, user: str, opened: OpenedKey) -> None:
        """A replay cache took note of an I_MESSAGE: from here on its key may be used."""
        known = self.accepted.setdefault(user, set())
        if opened.signed_digest in known:
            self.violate("7 replay", f"{user} accepts for a second time a message of T {opened.timestamp:.3f}")
        known.add(opened.signed_digest)
        if opened.key.group_ids:
            self.opened.setdefault(process, []).append(opened)
        self.counts["messages accepted"] += 1

    def forget(self, process: Process) -> None:
        """A process is no more."""
        self.verified.pop(process, None)
        self.opened.pop(process, None)
        for key in [key for key in self.heard if key[0] is process]:
            del self.heard[key]

    def forget_groups(self) -> None:
        """All calls are over: a key of theirs that turns up again is nobody's. What was accepted stays known."""
        for table in (
            self.groups, self.made, self.acknowledged, self.installed, self.told_keyed, self.told_left, self.used,
            self.heard, self.opened,
        ):  # fmt: skip
            table.clear()

    def settle_sealed(self, making: bytes | None = None) -> None:
        """Every key went only to whom its maker's user had named. ``making`` is about to become known."""
        waiting = [one for one in self.sealed if one.key == making and making not in self.made]
        for one in self.sealed:
            made = self.made.get(one.key)
            if one in waiting:
                continue
            if made is None:
                if one.user != self.service:
                    self.violate("1 recipients", f"{one.process} sealed to {one.user} a key that is no group's")
            elif made.group not in one.named_in:
                self.violate("1 recipients", f"{one.process} sealed a key of {made.group} to {one.user}, unnamed")
            else:
                made.sealed_to.add(one.user)
        self.sealed = waiting

    # --- the wire ---------------------------------------------------------------------------------------

    def _watch(self, made: Made) -> None:
        octets = made.key.key.reveal()
        patterns = [octets, octets.hex().encode(), octets.hex().upper().encode()]
        for offset in range(3):
            encoded = base64.b64encode(bytes(offset) + octets)
            whole = len(encoded) - (0, 3, 2)[(offset + len(octets)) % 3]  # the last characters have other bits in them
            patterns.append(encoded[(0, 2, 3)[offset] : whole])
        self._watched.append((made, patterns))

    def search(self, octets: bytes, where: str) -> None:
        """No TGMK in clear: not on the wire, so not in the server; not in a log."""
        for made, patterns in self._watched:
            if any(pattern in octets for pattern in patterns):
                self.violate("1 secrecy", f"the key {made.key.key_id:08x} of {made.group} stands in {where}")

    def packet_sent(self, process: Process, user: str, group: str, octets: bytes, own_clock: float) -> None:
        """A member's audio packet, as it left."""
        self.counts["packets sent"] += 1
        roc, end = int.from_bytes(octets[-4:], "big"), len(octets) - 4
        mki, ssrc = octets[end - 8 : end], int.from_bytes(octets[8:12], "big")
        index = roc << 16 | int.from_bytes(octets[2:4], "big")
        key_id = int.from_bytes(mki[:4], "big")
        made = self.key_of(user, group, key_id)
        if made is None:
            self.violate("9 protection", f"{user} sends in {group} under {key_id:08x}, which is no key of it")
            return
        if int.from_bytes(mki[4:], "big") != derive.guk_id(made.key.key.reveal(), key_id, user):
            self.violate("8 talker", f"{user} sends in {group} under another's GUK-ID")
        seen = self.used.setdefault((made.key.key.reveal() + mki[4:], ssrc), set())
        if index in seen:
            self.violate("6 index", f"{user} uses index {index} of SSRC {ssrc:08x} twice under {key_id:08x} of {group}")
        seen.add(index)
        self.sends_under(user, group, made, own_clock)

    def key_of(self, user: str, group: str, key_id: int) -> Made | None:
        """GMK-IDs are short here: of those that agree, the one that this user installed last."""
        found = self.groups.get(group)
        times = self.installed.get((user, group), {})
        candidates = [m for m in found.keys if m.key.key_id == key_id] if found is not None else []
        candidates = [m for m in candidates if m.key.key.reveal() in times]
        return max(candidates, key=lambda m: times[m.key.key.reveal()], default=None)

    def sends_under(self, user: str, group: str, made: Made, own_clock: float) -> None:
        """Checks that this member may send under that key now."""
        if own_clock > made.key.expiry + LATE:
            late = own_clock - made.key.expiry
            self.violate("5 expiry", f"{user} sends in {group} under {made.key.key_id:08x}, {late:.2f} s too old")
        newer = self._newest_due(user, group)
        if newer is not None and newer.at > made.at:
            self.violate(
                "5 removal",
                f"{user} sends in {group} under {made.key.key_id:08x} although he acknowledged {newer.key.key_id:08x}",
            )

    def _newest_due(self, user: str, group: str) -> Made | None:
        """The newest key that this member must have switched to: its activation has come, by the clock of whoever is
        nearest to it (security rule 14)."""
        due = None
        for octets, at in self.installed.get((user, group), {}).items():
            made = self.made[octets]
            wait = max(0.0, made.key.activation - made.clock) if made.key.activation else 0.0
            if self.now > at + wait + LATE and (due is None or made.at > due.at):
                due = made
        return due

    def expired(self, user: str, group: str, own_clock: float) -> bool:
        """Whether every key of the group that this user was ever given has come to its end."""
        keys = self.installed.get((user, group), {})
        return all(self.made[octets].key.expiry <= own_clock + LATE or self.made[octets].revoked for octets in keys)

    def packet_heard(self, user: str, mki: bytes, ssrc: int, index: int) -> None:
        """A member's receiver opened a packet."""
        process = CURRENT.get()
        if process is None or process.dead:
            return
        self.counts["packets heard"] += 1
        seen = self.heard.setdefault((process, mki, ssrc), set())
        if index in seen:
            self.violate("7 replay", f"{user} plays packet {index} of SSRC {ssrc:08x} for a second time")
        seen.add(index)

    # --- proofs -----------------------------------------------------------------------------------------

    def signed(self, process: Process, user: str, octets: bytes) -> None:
        """A user's signature. Those of acknowledgements are noted."""
        fields: list[bytes] = []
        at = 0
        while at + 2 <= len(octets) and len(fields) < 5:
            size = int.from_bytes(octets[at : at + 2], "big")
            fields.append(octets[at + 2 : at + 2 + size])
            at += 2 + size
        if fields and fields[0] == _LABEL and len(fields) == 5 and not process.dead:
            _, digest, group, whose, result = fields
            if whose.decode() == user:
                self.acknowledged.add((user, digest, group.decode(), result[0] if result else -1))
                self.counts["acknowledgements signed"] += 1

    def proved(self, user: str, digest: bytes, group: str, *, revoked: bool = False) -> bool:
        """Whether the user's own process acknowledged this very message."""
        return (user, digest, group, REVOKED if revoked else INSTALLED) in self.acknowledged


@contextmanager
def probing(truth: Truth) -> Iterator[None]:
    """Notes every encapsulation, signature check and decapsulation, and cuts identifiers short."""
    encapsulate, decapsulate, verify_one_of = sakke.encapsulate, sakke.decapsulate, eccsi.verify_one_of

    def encapsulating(ssv: bytes, identity: bytes, z: bytes) -> bytes:
        process = CURRENT.get()
        if process is not None and not process.dead:
            user = truth.users.get(bytes(identity), identity.hex())
            named = frozenset(g.group for g in truth.groups.values() if g.wanted(user))
            truth.sealed.append(Sealed(process, bytes(ssv), user, named, truth.now))
            truth.counts["encapsulations"] += 1
        return encapsulate(ssv, identity, z)

    def verifying(candidates: Sequence[bytes], *arguments: Any, **options: Any) -> int:
        which = verify_one_of(candidates, *arguments, **options)
        process = CURRENT.get()
        if process is not None:
            truth.verified.setdefault(process, deque(maxlen=4)).append(bytes(candidates[which]))
        return which

    def decapsulating(sed: bytes, receiver: sakke.ReceiverKey, **options: Any) -> tuple[bytes, frozenset[str]]:
        process = CURRENT.get()
        if process is not None:
            truth.counts["decapsulations"] += 1
            if not any(bytes(sed) in octets for octets in truth.verified.get(process, ())):
                truth.violate("2 order", f"{process} decapsulates what it has not verified")
        secret, used = decapsulate(sed, receiver, **options)
        if process is not None and secret in truth.made and truth.users.get(receiver.identity) == truth.service:
            truth.violate("1 secrecy", f"{process} opens a TGMK")
        return secret, used

    with (
        mock.patch.object(sakke, "encapsulate", encapsulating),
        mock.patch.object(sakke, "decapsulate", decapsulating),
        mock.patch.object(eccsi, "verify_one_of", verifying),
        mock.patch.object(derive, "LOW28", (1 << IDENTIFIER_BITS) - 1),
        mock.patch.object(SeededKeySet, "truth", truth),
    ):
        yield


class SeededKeySet(KeySet):
    """A key set whose signatures have their nonces from the process's own randomness: the same run signs the same
    octets. The signatures are real ones."""

    truth: ClassVar[Truth | None] = None

    def sign(self, octets: bytes) -> bytes:
        process = CURRENT.get()
        if process is None or self.truth is None:
            raise RuntimeError("a signature outside any process")
        self.truth.signed(process, self.uri, octets)
        nonce = process.random.randrange(2, int(eccsi.ORDER) - 2)
        return eccsi.sign(octets, self.ssk.reveal(), self._hs, self.pvt, j=nonce)
