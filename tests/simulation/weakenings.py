# SPDX-License-Identifier: Apache-2.0
"""Faults put into the program on purpose, one for each rule: a machine that does not find them would prove nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from mcptt_sip.mcptt import call as call_module
from mcptt_sip.mcptt import distribution as distribution_module
from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.directing import DirectedRegroup
from mcptt_sip.mcptt.distribution import KeyDistribution
from mcptt_sip.mcptt.groupkeys import GroupKeys
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.mcptt.keying import Acknowledgement
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import ParticipatingFunction
from mcptt_sip.mcptt.registration import Registration
from mcptt_sip.mcptt.regroup import TemporaryGroupCall
from media.srtp import SrtpReceiver
from mikey import MikeyError, SqliteReplayCache, TransportKey, imessage, verifying
from tests.simulation.loop import CURRENT
from tests.simulation.media import LightMedia
from tests.simulation.phones import MALLORY, USERS

Patch = AbstractContextManager[Any]


@dataclass(frozen=True)
class Weakening:
    """One fault, the rule that must tell it, and what makes the machine meet it soon."""

    rule: str
    patch: Callable[[], Patch]
    weights: Mapping[str, float] = field(default_factory=dict)
    moves: tuple[str, ...] = ()
    steps: int = 150
    calm_every: int = 400


#: nothing but calls and changes of keys
PEACE = {
    "crash": 0, "fuse": 0, "server_crash": 0, "cut_off": 0, "heal": 0, "reset": 0, "weather": 0, "hostile": 0,
    "mood": 0, "restart": 0, "declare": 0, "take_over": 0,
}  # fmt: skip
HOSTILE = {**PEACE, "hostile": 30, "add": 20, "rekey": 12}


# --- 1: secrecy and recipients -----------------------------------------------------------------------------


def key_in_the_acknowledgement() -> Patch:
    """The proof of possession is the key itself."""
    kept: dict[int, bytes] = {}
    acknowledge = call_module.acknowledge  # type: ignore[attr-defined]

    def remembering(key: TransportKey, **options: Any) -> Acknowledgement:
        kept[key.key_id] = key.key.reveal()
        return acknowledge(key, **options)

    encode = Acknowledgement.encode

    def leaking(self: Acknowledgement) -> bytes:
        return encode(self) + kept[self.key_id]

    stack = mock.patch.object(Acknowledgement, "encode", leaking)
    return _both(stack, mock.patch.object(call_module, "acknowledge", remembering))


def key_in_the_log() -> Patch:
    """A line of the log shows the key."""
    install = Regroup.install

    def logging_it(self: Regroup, key: TransportKey, timestamp: float) -> None:
        install(self, key, timestamp)
        logging.getLogger("mcptt_sip").info("group=%s key=%s", self.group, key.key.reveal().hex())

    return mock.patch.object(Regroup, "install", logging_it)


def removed_stay_named() -> Patch:
    """Whoever is removed gets the next key all the same."""
    return mock.patch.object(KeyDistribution, "remove", lambda self, user: None)


def server_remembers_keys() -> Patch:
    """A server that was given keys by somebody, by whatever way that left no trace on the wire."""
    register = ParticipatingFunction.register

    def registering(self: Any, *arguments: Any, **options: Any) -> Any:
        self.found = _stolen
        return register(self, *arguments, **options)

    install = Regroup.install

    def stealing(self: Regroup, key: TransportKey, timestamp: float) -> None:
        install(self, key, timestamp)
        _stolen.append(bytes(key.key.reveal()))

    _stolen.clear()
    return _both(
        mock.patch.object(ParticipatingFunction, "register", registering),
        mock.patch.object(Regroup, "install", stealing),
    )


_stolen: list[bytes] = []


# --- 2, 3: order of checks, pinning ------------------------------------------------------------------------


def unverified() -> Patch:
    """Decapsulates without having checked the signature."""
    return mock.patch.object(verifying, "_check_signature", lambda *_: None)


def any_signer() -> Patch:
    """Takes a key for the call from whoever signed it."""
    open_group_key = call_module.open_group_key  # type: ignore[attr-defined]

    def opening(client: McpttClient, octets: bytes, signer: str, group: str, **options: Any) -> Any:
        for user in (signer, MALLORY, *USERS):
            try:
                return open_group_key(client, octets, user, group, **options)
            except MikeyError as error:
                last = error
        raise last

    return mock.patch.object(call_module, "open_group_key", opening)


def any_group() -> Patch:
    """Does not look which group a key is for."""
    return mock.patch.object(imessage, "_check_usable", lambda *_: None)


# --- 4: identifiers and groups -----------------------------------------------------------------------------


def one_store_of_keys() -> Patch:
    """All groups of a phone keep their keys in one place, by GMK-ID."""
    begin = GroupKeys.__init__

    def sharing(self: GroupKeys, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        process = CURRENT.get()
        self._held = _stores.setdefault(process, {})

    _stores.clear()
    return mock.patch.object(GroupKeys, "__init__", sharing)


_stores: dict[Any, dict[int, Any]] = {}


def repeated_identifiers() -> Patch:
    """Draws GMK-IDs that are in use, and lets the later key overwrite the earlier."""
    generate = TransportKey.generate.__func__  # type: ignore[attr-defined]

    def careless(cls: type[TransportKey], *arguments: Any, **options: Any) -> TransportKey:
        options["exclude_ids"] = frozenset()
        made: TransportKey = generate(cls, *arguments, **options)
        object.__setattr__(made, "key_id", made.key_id & ~0xFF | made.key_id & 0x03)
        return made

    install = GroupKeys.install

    def overwriting(self: GroupKeys, key: TransportKey, timestamp: float, now: float) -> Any:
        self._held.pop(key.key_id, None)
        self._ended.discard(key.key_id)
        return install(self, key, timestamp, now)

    return _both(
        mock.patch.object(TransportKey, "generate", classmethod(careless)),
        mock.patch.object(GroupKeys, "install", overwriting),
    )


def lost_keys() -> Patch:
    """Changing the key of one group drops those of the others."""
    install = Regroup.install

    def dropping(self: Regroup, key: TransportKey, timestamp: float) -> None:
        install(self, key, timestamp)
        for other in self.client.calls.values():
            if other is not self:
                other.keys.drop_all()

    return mock.patch.object(Regroup, "install", dropping)


# --- 5: removal, expiry, who is told -----------------------------------------------------------------------


def old_key_goes_on() -> Patch:
    """Sends under the first key for ever."""
    def oldest(self: GroupKeys, now: float) -> TransportKey | None:
        usable = [held for held in self._held.values() if now < held.expires]
        return min(usable, key=lambda held: held.timestamp).key if usable else None

    return mock.patch.object(GroupKeys, "sending", oldest)


def no_expiry() -> Patch:
    """A key is good for ever."""
    install = GroupKeys.install

    def lasting(self: GroupKeys, key: TransportKey, timestamp: float, now: float) -> Any:
        held = install(self, key, timestamp, now)
        held.expires = 1e12
        return held

    return _both(
        mock.patch.object(GroupKeys, "install", lasting),
        mock.patch.object(KeyDistribution, "refresh_due", lambda self: 1e12),
    )


def not_told() -> Patch:
    """Whoever did not acknowledge is passed over in silence."""
    async def silent(self: DirectedRegroup, proved: Callable[[str], bool], users: Any) -> frozenset[str]:
        await asyncio.sleep(0)
        return frozenset()

    return mock.patch.object(DirectedRegroup, "_until", silent)


def forgetful_of_holders() -> Patch:
    """Only who acknowledged counts as a holder of the key."""
    return mock.patch.object(KeyDistribution, "holders", lambda self, key: self.keyed())


def revocation_goes_back() -> Patch:
    """When the newest key is revoked, the one before is used again."""
    revoke = GroupKeys.revoke

    def reviving(self: GroupKeys, key: TransportKey, timestamp: float) -> None:
        revoke(self, key, timestamp)
        self._revoked = float("-inf")

    return mock.patch.object(GroupKeys, "revoke", reviving)


# --- 6, 7: indexes and replay ------------------------------------------------------------------------------


def same_ssrc() -> Patch:
    """SSRC and sequence begin alike in every call."""
    def random_sequence(self: LightMedia, user: str) -> None:
        begin(self, user)
        self.sequence = 0

    begin = LightMedia.__init__
    return _both(
        mock.patch.object(LightMedia, "draw_ssrc", staticmethod(lambda: 0x5EED)),
        mock.patch.object(LightMedia, "__init__", random_sequence),
    )


def forgetful_replay() -> Patch:
    """The replay cache remembers nothing."""
    return _both(
        mock.patch.object(SqliteReplayCache, "check", lambda *_: None),
        mock.patch.object(SqliteReplayCache, "record", lambda *_: None),
    )


def old_after_rejoin() -> Patch:
    """A message that was held back is taken although a newer one of its group was accepted."""
    from mikey import store

    return _both(
        mock.patch.object(store, "line_of", lambda _opened: None),
        mock.patch.object(McpttClient, "_is_overtaken", lambda *_: False),
    )


def open_window() -> Patch:
    """A receiver plays the same packet as often as it comes."""
    from media import srtp

    return _both(
        mock.patch.object(srtp._Window, "check", lambda *_: None),
        mock.patch.object(SrtpReceiver, "retire", lambda *_: None),
    )


# --- 8, 9: proofs and protection ---------------------------------------------------------------------------


def unsigned_proofs() -> Patch:
    """An acknowledgement counts by its MAC, which every member can make."""
    return mock.patch.object(McpttClient, "verify_signature", lambda *_: None)


def unchecked_proofs() -> Patch:
    """An acknowledgement counts as it comes."""
    return mock.patch.object(distribution_module, "verify_acknowledgement", lambda *_, **__: None)


def first_answer_counts() -> Patch:
    """The call is established when the server says so."""
    async def at_once(self: InitiatedRegroup) -> None:
        return None

    return mock.patch.object(InitiatedRegroup, "_until_first_is_keyed", at_once)


def anothers_guk_id() -> Patch:
    """Sends under the initiator's name."""
    apply_keys = Regroup.apply_keys

    def posing(self: Regroup) -> None:
        self.me, me = self.initiator, self.me
        try:
            apply_keys(self)
        finally:
            self.me = me

    return mock.patch.object(Regroup, "apply_keys", posing)


def any_sdp() -> Patch:
    """Takes a session description whatever protection it asks for."""
    decode = GroupMediaDescription.decode.__func__  # type: ignore[attr-defined]

    def lenient(cls: type[GroupMediaDescription], body: bytes, **_: object) -> GroupMediaDescription:
        lines = [line for line in body.splitlines() if not line.startswith(b"a=crypto")]
        return decode(cls, b"\r\n".join([*lines, b""]).replace(b"RTP/AVP", b"RTP/SAVP"))  # type: ignore[no-any-return]

    return mock.patch.object(GroupMediaDescription, "decode", classmethod(lenient))


# --- 10, 11: state, ends, errors ---------------------------------------------------------------------------


def refusal_ends_the_call() -> Patch:
    """One user's refusal is the end for all."""
    refused = TemporaryGroupCall._refused

    def ending(self: TemporaryGroupCall, member: Any, now: float, outcome: Any) -> None:
        refused(self, member, now, outcome)
        if self.connected:
            self.initiator_left(release=True, now=now)

    return _both(
        mock.patch.object(TemporaryGroupCall, "_refused", ending),
        mock.patch.dict("mcptt_sip.mcptt.regroup.MEMBER_TABLE", _with_action(TemporaryGroupCall, "_refused", ending)),
    )


def _with_action(owner: type, name: str, action: Any) -> dict[Any, Any]:
    from mcptt_sip.mcptt.regroup import MEMBER_TABLE

    return {row: (state, action) for row, (state, old) in MEMBER_TABLE.items() if old.__name__ == name}


def calls_are_kept() -> Patch:
    """A client does not let go of a call that is over."""
    return mock.patch.object(McpttClient, "forget", lambda *_: None)


def tasks_are_kept() -> Patch:
    """Something of a call goes on when it is over."""
    end = Regroup._end

    async def leaving_something(self: Regroup, cause: str) -> None:
        await end(self, cause)
        self.client.spawn(asyncio.sleep(1e6))

    return mock.patch.object(Regroup, "_end", leaving_something)


def renewals_stop() -> Patch:
    """The first registration that is not renewed is the last."""
    async def once(self: Registration) -> None:
        return None

    return mock.patch.object(Registration, "_keep", once)


def relay_keeps_legs() -> Patch:
    """Who is out of the call still gets its audio."""
    from tests.simulation.media import LightRelay

    return mock.patch.object(LightRelay, "remove_leg", lambda *_: None)


def errors_escape() -> Patch:
    """A refused acknowledgement is an error of the program."""
    on_acknowledgement = DirectedRegroup.on_acknowledgement

    def failing(self: DirectedRegroup, octets: bytes) -> Any:
        sealing = on_acknowledgement(self, octets)
        if sealing is None:
            raise RuntimeError("an acknowledgement that proves nothing")
        return sealing

    return mock.patch.object(DirectedRegroup, "on_acknowledgement", failing)


def _both(one: Patch, other: Patch) -> Patch:
    from contextlib import ExitStack

    class Both(ExitStack):
        def __enter__(self) -> Both:
            super().__enter__()
            self.enter_context(one)
            self.enter_context(other)
            return self

    return Both()


KEY_CHANGES = {**PEACE, "rekey": 25, "talk": 25, "add": 20, "start": 20, "remove": 8, "release": 0.2, "revoke": 0}

WEAKENINGS: Mapping[str, Weakening] = {
    "key_in_the_acknowledgement": Weakening("1 secrecy", key_in_the_acknowledgement, PEACE),
    "key_in_the_log": Weakening("1 secrecy", key_in_the_log, PEACE),
    "server_remembers_keys": Weakening("1 secrecy", server_remembers_keys, PEACE, steps=20, calm_every=20),
    "removed_stay_named": Weakening("1 recipients", removed_stay_named, KEY_CHANGES),
    "unverified": Weakening("2 order", unverified, PEACE),
    "any_signer": Weakening("3 pinning", any_signer, HOSTILE, ("usurp",), 400),
    "any_group": Weakening("3 pinning", any_group, HOSTILE, ("other_group", "hoard"), 400),
    "one_store_of_keys": Weakening("3 pinning", one_store_of_keys, KEY_CHANGES),
    "repeated_identifiers": Weakening("4 identifiers", repeated_identifiers, KEY_CHANGES),
    "lost_keys": Weakening("4 groups", lost_keys, KEY_CHANGES),
    "old_key_goes_on": Weakening("5 removal", old_key_goes_on, KEY_CHANGES),
    "revocation_goes_back": Weakening("5 removal", revocation_goes_back, {**KEY_CHANGES, "revoke": 25}, steps=400),
    "no_expiry": Weakening("5 expiry", no_expiry, {**PEACE, "rekey": 0, "remove": 0, "release": 0, "wait": 30}),
    "not_told": Weakening("5 told", not_told, HOSTILE, ("starve", "withhold"), 400),
    "forgetful_of_holders": Weakening("5 holders", forgetful_of_holders, PEACE),
    "same_ssrc": Weakening("6 index", same_ssrc, {**PEACE, "leave": 12, "add": 30, "talk": 40}, steps=400),
    "forgetful_replay": Weakening("7 replay", forgetful_replay, HOSTILE, ("replay", "twice"), 400),
    "old_after_rejoin": Weakening("5 removal", old_after_rejoin, {**HOSTILE, "leave": 10}, ("late",), 1500),
    "open_window": Weakening("7 replay", open_window, {**PEACE, "weather": 10, "talk": 30}, steps=400),
    "unsigned_proofs": Weakening("8 keyed", unsigned_proofs, HOSTILE, ("starve", "forge_proof"), 400),
    "unchecked_proofs": Weakening("8 keyed", unchecked_proofs, HOSTILE, ("starve", "forge_proof"), 400),
    "first_answer_counts": Weakening(
        "8 keyed", first_answer_counts, {**HOSTILE, "start": 40}, ("withhold_proof",), 400
    ),
    "anothers_guk_id": Weakening("8 talker", anothers_guk_id, PEACE),
    "any_sdp": Weakening("9 protection", any_sdp, HOSTILE, ("downgrade",), 400),
    "refusal_ends_the_call": Weakening("10 calls", refusal_ends_the_call, {**PEACE, "mood": 60, "add": 60}, steps=400),
    "calls_are_kept": Weakening("10", calls_are_kept, PEACE, steps=30, calm_every=30),
    "tasks_are_kept": Weakening("10 end", tasks_are_kept, PEACE, steps=30, calm_every=30),
    "renewals_stop": Weakening("10", renewals_stop, PEACE, steps=10, calm_every=10),
    "relay_keeps_legs": Weakening("10 state", relay_keeps_legs, PEACE),
    "errors_escape": Weakening("11 errors", errors_escape, HOSTILE, ("forge_proof",), 400),
}
