# SPDX-License-Identifier: Apache-2.0
"""Keys from the initiator to the members and their proofs back, with real I_MESSAGEs and signatures."""

from __future__ import annotations

import dataclasses

import pytest

from mcptt_sip.body import Part
from mcptt_sip.mcptt import distribution
from mcptt_sip.mcptt.distribution import GukIdCollision, KeyDistribution, NotNamed
from mcptt_sip.mcptt.groupkeys import GroupKeys, KeyConflict, KeyRefused, StaleKey
from mcptt_sip.mcptt.keying import (
    REVOKED,
    Acknowledgement,
    AcknowledgementError,
    GroupTerms,
    KeyingError,
    acknowledge,
    i_message,
    mikey_part,
)
from mikey import MikeyError, OpenedKey, TransportKey, derive, guk_id
from tests.mcptt.users import ALICE, BOB, CAROL, DAVE, GROUP, NOW, Users


def proof(users: Users, opened: OpenedKey, user: str, **changes: object) -> bytes:
    arguments: dict[str, object] = {
        "csb_id": opened.csb_id, "digest": opened.signed_digest, "group": GROUP, "user": user,
        "sign": users.signer(user),
    }
    return acknowledge(opened.key, **(arguments | changes)).encode()  # type: ignore[arg-type]


@pytest.fixture
def keyed(users: Users) -> tuple[KeyDistribution, OpenedKey]:
    """Bob was sent the first key and has opened it."""
    d = users.distribution()
    d.name(BOB)
    d.new_key(NOW)
    return d, users.open(d.seal_to(BOB, NOW).octets, BOB)


def test_a_member_opens_what_was_sealed_to_him_and_nobody_else_does(users: Users) -> None:
    d = users.distribution()
    d.name(BOB)
    key = d.new_key(NOW)
    octets = d.seal_to(BOB, NOW).octets
    opened = users.open(octets, BOB)
    assert opened.key.key == key.key and opened.csb_id == guk_id(key, BOB)
    assert GroupTerms.parse(opened.key.text) == d.terms
    with pytest.raises(MikeyError):
        users.open(octets, CAROL)


def test_a_key_is_sealed_only_to_users_that_were_named(users: Users) -> None:
    d = users.distribution()
    d.name(BOB)
    d.new_key(NOW)
    with pytest.raises(NotNamed):
        d.seal_to(CAROL, NOW)
    d.remove(BOB)
    with pytest.raises(NotNamed):
        d.seal_to(BOB, NOW)


def test_only_a_proof_counts_as_keyed(users: Users, keyed: tuple[KeyDistribution, OpenedKey]) -> None:
    d, opened = keyed
    assert d.keyed() == frozenset() and d.awaiting() == {BOB} and d.holders(opened.key) == {BOB}
    d.acknowledge(proof(users, opened, BOB), NOW)
    assert d.keyed() == {BOB} and d.awaiting() == frozenset()


def test_every_octet_of_a_proof_matters(users: Users, keyed: tuple[KeyDistribution, OpenedKey]) -> None:
    d, opened = keyed
    octets = proof(users, opened, BOB)
    for at in range(0, len(octets), 3):
        changed = bytearray(octets)
        changed[at] ^= 1
        with pytest.raises(AcknowledgementError):
            d.acknowledge(bytes(changed), NOW)
    assert d.keyed() == frozenset()


@pytest.mark.parametrize(
    "what", ["another user's signature", "another group", "another message", "another result", "not the key"]
)
def test_a_proof_of_something_else_is_refused(
    users: Users, keyed: tuple[KeyDistribution, OpenedKey], what: str
) -> None:
    d, opened = keyed
    match what:
        case "another user's signature":
            octets = proof(users, opened, BOB, sign=users.signer(CAROL))
        case "another group":
            octets = proof(users, opened, BOB, group=GROUP.replace("0f", "1f"))
        case "another message":
            octets = proof(users, opened, BOB, digest=bytes(32))
        case "another result":
            octets = proof(users, opened, BOB, result=REVOKED)
        case _:
            other = users.distribution(seed=9)
            other.name(BOB)
            fake = dataclasses.replace(opened.key, key=other.new_key(NOW).key)
            octets = acknowledge(
                fake, csb_id=opened.csb_id, digest=opened.signed_digest, group=GROUP, user=BOB, sign=users.signer(BOB)
            ).encode()
    with pytest.raises(AcknowledgementError):
        d.acknowledge(octets, NOW)


@pytest.mark.parametrize("octets", [b"", b"\x01" * 100, bytes(400), b"\x01" * 600])
def test_octets_that_are_no_acknowledgement_are_refused(octets: bytes) -> None:
    with pytest.raises(AcknowledgementError):
        Acknowledgement.decode(octets)


def test_a_second_key_waits_for_its_activation_and_then_replaces_the_first(users: Users) -> None:
    d = users.distribution(activation_delay=2.0)
    for user in (BOB, CAROL):
        d.name(user)
    first = d.new_key(NOW)
    held = GroupKeys(GROUP, ALICE, grace=4.0)
    opened = users.open(d.seal_to(BOB, NOW).octets, BOB)
    held.install(opened.key, opened.timestamp, NOW)
    second = d.new_key(NOW + 10)
    assert {first.key_id, second.key_id} and first.key_id != second.key_id and first.rand != second.rand
    opened = users.open(d.seal_to(BOB, NOW + 10).octets, BOB, NOW + 10.1)
    held.install(opened.key, opened.timestamp, NOW + 10.1)

    assert held.sending(NOW + 11).key_id == first.key_id  # type: ignore[union-attr]
    assert held.receiving(second.key_id, NOW + 11), "who switches earlier is heard"
    assert held.sending(NOW + 12.5).key_id == second.key_id  # type: ignore[union-attr]
    assert held.receiving(first.key_id, NOW + 13), "who switches later is heard for the grace"
    assert held.receiving(first.key_id, NOW + 17) is None
    assert held.drop_ended(NOW + 17) == [first.key_id]
    assert held.has_ended(first.key_id, NOW + 17)


def test_a_wrong_clock_does_not_hold_back_the_change_of_keys(users: Users) -> None:
    d = users.distribution(activation_delay=2.0)
    d.name(BOB)
    d.new_key(NOW)
    one = users.open(d.seal_to(BOB, NOW).octets, BOB)
    d.new_key(NOW + 10)
    two = users.open(d.seal_to(BOB, NOW + 10).octets, BOB, NOW + 10)
    for error in (-100.0, 0.0, 100.0):
        held = GroupKeys(GROUP, ALICE)
        held.install(one.key, one.timestamp, NOW + error)
        assert held.install(two.key, two.timestamp, NOW + 10 + error).send_from <= NOW + 13 + error


def test_older_equal_and_conflicting_keys_change_nothing(users: Users) -> None:
    d = users.distribution()
    d.name(BOB)
    d.new_key(NOW)
    one = users.open(d.seal_to(BOB, NOW).octets, BOB)
    d.new_key(NOW + 5)
    two = users.open(d.seal_to(BOB, NOW + 5).octets, BOB, NOW + 5)
    held = GroupKeys(GROUP, ALICE)
    held.install(two.key, two.timestamp, NOW + 5)
    with pytest.raises(StaleKey):
        held.install(one.key, one.timestamp, NOW + 5)
    with pytest.raises(KeyConflict):
        held.install(dataclasses.replace(one.key, key_id=two.key.key_id), two.timestamp + 1, NOW + 5)
    with pytest.raises(KeyRefused):
        held.install(dataclasses.replace(one.key, expiry=0), two.timestamp + 1, NOW + 5)
    with pytest.raises(KeyRefused):
        held.install(dataclasses.replace(one.key, expiry=int(NOW)), two.timestamp + 1, NOW + 5)
    assert (not held.holds(one.key.key_id) and held.sending(NOW + 6) is None) or held.holds(two.key.key_id)


def test_a_revoked_key_is_over_for_good(users: Users) -> None:
    d = users.distribution()
    d.name(BOB)
    d.new_key(NOW)
    opened = users.open(d.seal_to(BOB, NOW).octets, BOB)
    held = GroupKeys(GROUP, ALICE)
    held.install(opened.key, opened.timestamp, NOW)
    revocation = users.open(d.seal_revocation(BOB, NOW + 1).octets, BOB, NOW + 1)
    assert revocation.key.revoked
    d.acknowledge(proof(users, revocation, BOB, result=REVOKED), NOW + 1)
    other = dataclasses.replace(revocation.key, rand=bytes(16))
    with pytest.raises(KeyConflict):
        held.revoke(other, revocation.timestamp)
    held.revoke(revocation.key, revocation.timestamp)
    assert held.sending(NOW + 1) is None and held.receiving(opened.key.key_id, NOW + 1) is None
    with pytest.raises(KeyConflict):
        held.install(opened.key, revocation.timestamp + 1, NOW + 2)


def test_who_revokes_a_key_that_is_not_in_force_yet_does_not_bring_the_one_before_back(users: Users) -> None:
    d = users.distribution(activation_delay=2.0)
    d.name(BOB)
    d.new_key(NOW)
    one = users.open(d.seal_to(BOB, NOW).octets, BOB)
    held = GroupKeys(GROUP, ALICE)
    held.install(one.key, one.timestamp, NOW)
    assert held.sending(NOW + 1) is not None
    d.new_key(NOW + 10)  # because somebody was removed, who has the first one
    two = users.open(d.seal_to(BOB, NOW + 10).octets, BOB, NOW + 10)
    held.install(two.key, two.timestamp, NOW + 10)
    revocation = users.open(d.seal_revocation(BOB, NOW + 11).octets, BOB, NOW + 11)
    held.revoke(revocation.key, revocation.timestamp)
    assert held.sending(NOW + 11) is None
    assert held.next_timer() == NOW + 11 + held.grace, "until then its packets may still be under way"
    assert held.sending(NOW + 20) is None and held.receiving(one.key.key_id, NOW + 20) is None
    d.new_key(NOW + 30)
    three = users.open(d.seal_to(BOB, NOW + 30).octets, BOB, NOW + 30)
    held.install(three.key, three.timestamp, NOW + 30)
    assert held.sending(NOW + 33) is not None


def test_a_key_ends_with_its_expiry(users: Users) -> None:
    d = users.distribution(lifetime=100.0)
    d.name(BOB)
    key = d.new_key(NOW)
    assert d.refresh_due() == NOW + 75.0
    held = GroupKeys(GROUP, ALICE)
    held.install(key, NOW, NOW)
    assert held.sending(NOW + 99.9) is not None
    assert held.next_timer() == NOW + 100.0
    assert held.sending(NOW + 100.0) is None


def test_rule_17_no_two_members_send_under_one_guk_id(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """With identifiers of four bits: keys are redrawn until all differ, and a newcomer who collides is told apart."""

    def four_bits(key: TransportKey, user: str) -> int:
        return guk_id(key, user) & 0xF

    monkeypatch.setattr(distribution, "guk_id", four_bits)
    collisions = 0
    for seed in range(100):
        d = users.distribution(seed=seed)
        for user in (BOB, CAROL):
            d.name(user)
        key = d.new_key(NOW)
        assert len({four_bits(key, user) for user in (ALICE, BOB, CAROL)}) == 3
        for user in (BOB, CAROL):
            d.seal_to(user, NOW)
        d.name(DAVE)
        taken = four_bits(key, DAVE) in {four_bits(key, user) for user in (ALICE, BOB, CAROL)}
        if taken:
            collisions += 1
            with pytest.raises(GukIdCollision):
                d.seal_to(DAVE, NOW)
            assert DAVE not in d.sealed_to
            d.new_key(NOW + 1)
        d.seal_to(DAVE, NOW + 1)
    assert collisions, "a hundred draws of three among sixteen: some collide"


def test_a_newcomer_does_not_take_the_guk_id_of_a_user_who_has_yet_to_get_the_key(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "LOW28", 0xF)
    d = users.distribution()
    d.name(BOB)
    key = d.new_key(NOW)
    strangers = (f"sip:user{number}@mcx.example" for number in range(1000))
    same = next(user for user in strangers if guk_id(key, user) == guk_id(key, BOB))
    d.name(same)
    with pytest.raises(GukIdCollision):
        d.seal_to(same, NOW)
    assert not d.holders(key)
    d.new_key(NOW + 1)
    assert d.seal_to(same, NOW + 1) and d.seal_to(BOB, NOW + 1)


def test_each_message_has_a_time_stamp_of_its_own(users: Users) -> None:
    d = users.distribution()
    for user in (BOB, CAROL, DAVE):
        d.name(user)
    d.new_key(NOW)
    stamps = [d.seal_to(user, NOW).timestamp for user in (BOB, CAROL, DAVE)]
    assert len(set(stamps)) == 3 and stamps == sorted(stamps)


@pytest.mark.parametrize(
    "terms", [GroupTerms(), GroupTerms("none", "members"), GroupTerms("optional", deputies=("sip:a;b%c@x", "sip:d@x"))]
)
def test_group_terms_survive_their_text(terms: GroupTerms) -> None:
    assert GroupTerms.parse(str(terms)) == terms


@pytest.mark.parametrize("text", ["ack=maybe", "ack=none;colour=red", "deputy=", "floor"])
def test_terms_that_cannot_be_read_in_full_are_refused(text: str) -> None:
    with pytest.raises(KeyingError):
        GroupTerms.parse(text)


def test_a_body_has_one_key_or_none() -> None:
    key = Part("Application/MIKEY;x=y", b"\x01abc")
    assert mikey_part([Part("text/plain", b""), key]) == b"\x01abc"
    assert mikey_part([]) is None
    with pytest.raises(KeyingError):
        mikey_part([key, key])
    with pytest.raises(KeyingError):
        mikey_part([Part("application/mikey", bytes(6000))])
    assert i_message(b"AQID") == b"\x01\x02\x03"
    with pytest.raises(KeyingError):
        i_message(b"\xff\xfe")
