# SPDX-License-Identifier: Apache-2.0
"""Each security rule, the test that plays its attack, and the rule switched off: with that, the test must fail.

Loaded as a pytest plugin (``-p tests.security.weakenings``) it switches the rule off in each test that it names.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mcptt_sip.mcptt import (
    call,
    controlling,
    directing,
    distribution,
    groupcall,
    groupkeys,
    initiated,
    invitation,
    userkeys,
)
from mcptt_sip.mcptt import participating as participating_module
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.keying import GroupTerms
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.ops import eavesdrop
from media import endpoint, floor_participant, reception, relay
from mikey import imessage as imessage_module
from mikey import keyring, replay, verifying
from mikey.errors import MikeyError

Patch = pytest.MonkeyPatch
LIFE, KEYS = "tests/security/test_life.py", "tests/security/test_keys.py"
SIGNALLING, MEDIA = "tests/security/test_signalling.py", "tests/security/test_media_rules.py"
MIKEY = "tests/mikey/test_rules.py"


@dataclass(frozen=True)
class Proof:
    """``weaken`` switches rule number ``rule`` off; ``test`` (its name without parameters) must notice."""

    rule: int
    test: str
    weaken: Callable[[Patch], None]


def returns(place: object, name: str, value: object) -> Callable[[Patch], None]:
    """The function or method gives this answer, whatever it is asked."""
    return lambda patch: patch.setattr(place, name, lambda *_arguments, **_options: value)


async def _nothing(*_arguments: object) -> None:
    return None


# --- weakenings that are more than an answer ------------------------------------------------------------------


def any_ssrc(patch: Patch) -> None:
    """The SSRC of a grant is not looked at."""
    honest = endpoint.MemberMedia._floor_event

    def careless(self: endpoint.MemberMedia, event: Any) -> None:
        if isinstance(event, floor_participant.Granted):
            event = dataclasses.replace(event, ssrc=None)
        honest(self, event)

    patch.setattr(endpoint.MemberMedia, "_floor_event", careless)


def keys_without_end(patch: Patch) -> None:
    honest = groupkeys.GroupKeys.install

    def careless(self: groupkeys.GroupKeys, *arguments: Any) -> groupkeys.HeldKey:
        held = honest(self, *arguments)
        held.expires = float("inf")
        return held

    patch.setattr(groupkeys.GroupKeys, "install", careless)


def own_clock_only(patch: Patch) -> None:
    honest = groupkeys.GroupKeys.install

    def careless(self: groupkeys.GroupKeys, key: Any, timestamp: float, now: float) -> groupkeys.HeldKey:
        held = honest(self, key, timestamp, now)
        held.send_from = max(now, float(key.activation or 0))
        return held

    patch.setattr(groupkeys.GroupKeys, "install", careless)


def only_the_keyed_hold_keys(patch: Patch) -> None:
    """Who did not acknowledge counts as not holding the key."""

    def careless(self: distribution.KeyDistribution, key: Any) -> frozenset[str]:
        return frozenset(s.user for s in self._sealings.values() if s.key.key_id == key.key_id and s.acknowledged)

    patch.setattr(distribution.KeyDistribution, "holders", careless)


def no_memory_of_messages(patch: Patch) -> None:
    patch.setattr(replay.MemoryReplayCache, "check", lambda *_: None)
    patch.setattr(replay.MemoryReplayCache, "record", lambda *_: None)


def any_authority(patch: Patch) -> None:
    """Every KMS vouches for every domain."""
    patch.setattr(keyring.Keyring, "authorities", lambda self, _uri, _kms_uri=None: list(self.certificates))


def any_group(patch: Patch) -> None:
    """The group inside the sealed key parameters is not compared."""
    honest = imessage_module._check_usable

    def careless(opened: Any, now: float, expect_group: str | None, *more: Any) -> None:
        honest(opened, now, None, *more)

    patch.setattr(imessage_module, "_check_usable", careless)


def any_period(patch: Patch) -> None:
    honest = keyring.Keyring.identities

    def careless(self: keyring.Keyring, uri: str, at: float, **options: Any) -> Any:
        return honest(self, uri, at, **(options | {"grace": 1e12}))

    patch.setattr(keyring.Keyring, "identities", careless)


def old_media_is_fresh(patch: Patch) -> None:
    honest = reception.Reception.__init__

    def careless(self: reception.Reception, *arguments: Any, **options: Any) -> None:
        honest(self, *arguments, **options)
        self.settings = dataclasses.replace(self.settings, freshness=1e12)

    patch.setattr(reception.Reception, "__init__", careless)


def keys_come_back(patch: Patch) -> None:
    """A key that ended is forgotten, and can be installed again."""
    honest = groupkeys.GroupKeys._end

    def careless(self: groupkeys.GroupKeys, key_id: int) -> None:
        honest(self, key_id)
        self._ended.discard(key_id)
        self._revoked = float("-inf")

    patch.setattr(groupkeys.GroupKeys, "_end", careless)


def anyone_signs(patch: Patch) -> None:
    """Any member's keys are taken."""

    class Everyone:
        def __contains__(self, _user: object) -> bool:
            return True

    patch.setattr(call.Regroup, "signers", Everyone())


def any_media_profile(patch: Patch) -> None:
    """SDP may say what it likes."""
    honest = GroupMediaDescription.decode

    def careless(_cls: type[GroupMediaDescription], body: bytes, **_: object) -> GroupMediaDescription:
        lines = [line for line in body.split(b"\r\n") if not line.startswith((b"a=crypto", b"a=key-", b"a=finger"))]
        return honest(b"\r\n".join(lines).replace(b"RTP/AVP", b"RTP/SAVP"))

    patch.setattr(GroupMediaDescription, "decode", classmethod(careless))


def any_csk_message(patch: Patch) -> None:
    """A CSK message may have been used before."""
    honest = participating_module.unseal
    patch.setattr(participating_module, "unseal", lambda *a, **options: honest(*a, **(options | {"replay": None})))


def server_floor_whatever_is_signed(patch: Patch) -> None:
    honest = GroupTerms.parse
    patch.setattr(
        invitation, "GroupTerms",
        type("Careless", (), {"parse": staticmethod(lambda text: dataclasses.replace(honest(text), floor="server"))}),
    )  # fmt: skip


def unsigned_lists(patch: Patch) -> None:
    honest = call.read_members

    def careless(octets: bytes, *, group: str, signers: Any, verify: Any) -> Any:
        import json

        claimed = str(json.loads(octets[:-129])["signer"])
        return honest(octets, group=group, signers=[claimed], verify=lambda *_: None)

    patch.setattr(call, "read_members", careless)


def any_caller_name(patch: Patch) -> None:
    """Who is shown as the caller need not be the one who signed."""
    honest = invitation.open_group_key

    def careless(client: Any, octets: bytes, signer: str, group: str, **options: Any) -> Any:
        try:
            return honest(client, octets, signer, group, **options)
        except MikeyError:
            return honest(client, octets, "sip:alice@mcx.example", group, **options)

    patch.setattr(invitation, "open_group_key", careless)


def one_thing_at_a_time(patch: Patch) -> None:
    """An add waits until a rekey is through."""
    lock = asyncio.Lock()
    adding, rekeying = directing.DirectedRegroup.add, directing.DirectedRegroup.rekey

    async def add(self: directing.DirectedRegroup, user: str) -> None:
        async with lock:
            await adding(self, user)

    async def rekey(self: directing.DirectedRegroup) -> None:
        async with lock:
            await rekeying(self)

    patch.setattr(directing.DirectedRegroup, "add", add)
    patch.setattr(directing.DirectedRegroup, "rekey", rekey)


def whatever_group_is_answered(patch: Patch) -> None:
    honest = McpttClient.contents_of

    def careless(self: McpttClient, message: Any) -> Any:
        contents = honest(self, message)
        info = dataclasses.replace(contents.info, calling_group_id=next(iter(self.calls), None))
        return dataclasses.replace(contents, info=info)

    patch.setattr(McpttClient, "contents_of", careless)


def clashes_are_passed_over(patch: Patch) -> None:
    patch.setattr(call.Regroup, "on_media_event", lambda self, name, details: self.emit(name, **details))


def journal_after_the_fact(patch: Patch) -> None:
    """What is sealed is written down only later, or never."""
    honest = distribution.KeyDistribution._write

    def careless(self: distribution.KeyDistribution, what: str, **details: object) -> None:
        if what != "sealed":
            honest(self, what, **details)

    patch.setattr(distribution.KeyDistribution, "_write", careless)


def world_readable(patch: Patch) -> None:
    import os

    honest = os.open
    patch.setattr(eavesdrop.os, "open", lambda path, flags, _mode=0: honest(path, flags, 0o644))


PROOFS = (
    Proof(1, f"{MEDIA}::test_rule_1_under_an_ssrc_from_the_network_nothing_is_sent", any_ssrc),
    Proof(2, f"{KEYS}::test_rule_2_a_withheld_rekey_names_who_did_not_get_it",
          returns(distribution.KeyDistribution, "proved", True)),
    Proof(2, f"{KEYS}::test_rule_2_nobody_sends_under_a_key_after_its_expiry", keys_without_end),
    Proof(3, f"{KEYS}::test_rule_3_a_proof_of_something_else_does_not_establish_a_call",
          returns(distribution, "verify_acknowledgement", None)),
    Proof(4, f"{MIKEY}::test_rule_4_a_partner_kms_does_not_vouch_for_our_domain", any_authority),
    Proof(5, f"{LIFE}::test_rule_5_a_key_request_for_a_stranger_or_one_removed_makes_no_message",
          returns(distribution.KeyDistribution, "may_ask_for_a_key", True)),
    Proof(6, f"{KEYS}::test_rule_6_one_who_declined_may_hold_the_key_and_the_next_key_is_without_him",
          only_the_keyed_hold_keys),
    Proof(7, f"{KEYS}::test_rule_7_an_old_invitation_after_leaving_is_refused", no_memory_of_messages),
    Proof(8, f"{MIKEY}::test_rule_8_no_profile_unbinds_a_temporary_groups_key", any_group),
    Proof(9, "tests/mikey/test_periods.py::test_rule_9_in_mid_period_the_keys_of_the_last_period_are_refused",
          any_period),
    Proof(10, "tests/media/test_reception.py::test_an_old_recording_is_not_played_to_a_fresh_receiver",
          old_media_is_fresh),
    Proof(11, "tests/media/test_reception.py::test_nobody_is_heard_while_another_holds_the_floor",
          returns(reception.Reception, "_owner", True)),
    Proof(12, f"{SIGNALLING}::test_rule_12_a_200_without_a_proof_does_not_establish_the_call",
          lambda patch: patch.setattr(initiated.InitiatedRegroup, "_until_first_is_keyed", _nothing)),
    Proof(13, f"{KEYS}::test_rule_13_the_servers_own_200_is_no_acknowledgement",
          returns(distribution.KeyDistribution, "proved", True)),
    Proof(14, f"{LIFE}::test_rule_14_a_members_wrong_clock_makes_no_gap_at_a_rekey", own_clock_only),
    Proof(15, f"{LIFE}::test_rule_15_a_members_key_is_refused_also_when_the_server_passes_it_on", anyone_signs),
    Proof(15, f"{KEYS}::test_rule_15_a_revocation_is_for_good", keys_come_back),
    Proof(15, f"{LIFE}::test_rule_15_everyone_a_key_left_for_is_on_record_before_the_octets_leave",
          journal_after_the_fact),
    Proof(16, f"{SIGNALLING}::test_rule_16_another_media_profile_ends_the_leg", any_media_profile),
    Proof(17, "tests/mcptt/test_key_distribution.py::test_rule_17_no_two_members_send_under_one_guk_id",
          returns(distribution.KeyDistribution, "_distinct", True)),
    Proof(18, f"{MEDIA}::test_rule_18_a_replayed_or_foreign_csk_message_registers_nobody", any_csk_message),
    Proof(18, f"{MEDIA}::test_rule_18_a_server_that_sends_under_the_members_own_ssrc_loses_him",
          clashes_are_passed_over),
    Proof(19, f"{MEDIA}::test_rule_19_where_the_signed_terms_say_members_the_servers_grants_are_nobodys",
          server_floor_whatever_is_signed),
    Proof(20, f"{LIFE}::test_rule_20_the_list_of_members_is_the_signers_and_only_grows_newer", unsigned_lists),
    Proof(21, f"{LIFE}::test_rule_21_a_second_device_takes_the_call_over_with_a_fresh_key_message",
          returns(controlling.ControllingFunction, "_left_behind", None)),
    Proof(22, f"{SIGNALLING}::test_rule_22_only_the_signer_is_shown_as_the_caller", any_caller_name),
    Proof(23, f"{SIGNALLING}::test_rule_23_a_member_who_is_not_the_initiator_adds_and_removes_nobody",
          returns(groupcall.GroupCall, "directs", True)),
    Proof(24, f"{LIFE}::test_rule_24_one_who_never_acknowledges_holds_up_nobody", one_thing_at_a_time),
    Proof(24, f"{LIFE}::test_rule_24_with_rekey_on_join_a_newcomer_holds_no_earlier_key_and_joins_share_one",
          returns(directing.DirectedRegroup, "_key_for_a_join", None)),
    Proof(25, f"{SIGNALLING}::test_rule_25_the_answered_group_is_the_proposed_one_or_the_call_ends",
          whatever_group_is_answered),
    Proof(26, f"{MIKEY}::test_rule_26_forged_floods_cost_no_pairing_and_valid_ones_a_budget",
          returns(verifying, "_check_signature", None)),
    Proof(27, "tests/system/test_userkeys.py::test_rule_27_a_store_with_a_kmss_secrets_is_refused",
          returns(userkeys, "holds_master_secrets", False)),
    Proof(28, "tests/media/test_relay.py::test_a_member_who_floods_is_cut_to_his_rate_and_nobody_else_is",
          returns(relay.Relay, "_refuse", None)),
    Proof(28, "tests/media/test_relay.py::test_a_key_that_a_member_has_left_is_refused_and_one_that_he_has_not_is_not",
          returns(relay.Relay, "_sent_under", None)),
    Proof(29, f"{MEDIA}::test_rule_29_the_file_of_group_keys_is_its_owners_alone", world_readable),
)  # fmt: skip

BY_TEST = {proof.test: proof for proof in PROOFS}


@pytest.fixture(autouse=True)
def _switched_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = BY_TEST.get(request.node.nodeid.partition("[")[0])
    if proof is not None:
        proof.weaken(monkeypatch)
