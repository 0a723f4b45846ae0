# SPDX-License-Identifier: Apache-2.0
"""The security rules that fall to this package, each with the attack it is made against."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mikey import (
    LENIENT,
    OFFLINE,
    STRICT,
    Keyring,
    KeyType,
    Kms,
    MemoryReplayCache,
    OpenedKey,
    PairingBudget,
    TransportKey,
    eccsi,
    sakke,
    unseal,
    unseal_own,
    verify,
)
from mikey.errors import (
    BadKeyParameters,
    BadSignature,
    CertificateInvalid,
    DecapsulationFailed,
    Deviation,
    GroupMismatch,
    KeyExpired,
    KeyNotYetActive,
    KeyRevoked,
    KmsNotForDomain,
    MikeyError,
    NoExpiry,
    PairingBudgetExceeded,
    RecipientMismatch,
    Replayed,
    ReplayStateLost,
    SenderMismatch,
    StaleTimestamp,
    Superseded,
    UnknownKms,
    WrongKeyType,
    WrongProfile,
)
from mikey.policy import Policy

from .conftest import ALICE, BOB, CAROL, GROUP, NOW, World

PROFILES = [STRICT, LENIENT, OFFLINE]
EVE = "sip:eve@partner.example"


def opened(world: World, octets: bytes, **changes: Any) -> OpenedKey:
    settings: dict[str, Any] = {
        "sender_uri": ALICE, "me": BOB, "keyring": world.ring, "now": NOW, "replay": None, "expect_type": None,
    }  # fmt: skip
    return unseal(octets, **{**settings, **changes})


@pytest.fixture
def pairings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts decapsulations."""
    count: list[int] = []
    whole = sakke.decapsulate

    def counted(*arguments: Any, **more: Any) -> Any:
        count.append(1)
        return whole(*arguments, **more)

    monkeypatch.setattr(sakke, "decapsulate", counted)
    return count


# -- rule 4: whose word counts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def partner() -> Kms:
    return Kms.generate("kms.partner.example", ["partner.example", "example.org"])


def test_rule_4_a_partner_kms_does_not_vouch_for_our_domain(world: World, partner: Kms, pairings: list[int]) -> None:
    theirs = Keyring()  # the partner has made himself an Alice, and knows our certificate
    theirs.add_certificate(partner.certificate)
    theirs.add_key_set(partner.issue(ALICE, NOW))
    ours = Keyring()
    ours.add_certificate(world.kms.certificate)
    ours.add_certificate(dataclasses.replace(partner.certificate, role="External"))
    ours.add_key_set(world.ring.key_set_for(BOB, NOW))
    theirs_for_bob = Keyring()
    theirs_for_bob.add_certificate(world.kms.certificate, home=True)
    forged = world.sealed(sender=theirs.key_set_for(ALICE, NOW), keyring=theirs_for_bob)
    for policy in PROFILES:
        with pytest.raises(KmsNotForDomain):
            opened(world, forged.octets, keyring=ours, policy=policy)
    assert not pairings
    # the same KMS counts for its own users, also in sealing to them
    theirs.add_key_set(partner.issue(EVE, NOW))
    good = world.sealed(sender=theirs.key_set_for(EVE, NOW), keyring=theirs_for_bob)
    assert opened(world, good.octets, keyring=ours, sender_uri=EVE).sender_kms_uri == "kms.partner.example"
    assert ours.certificate_for(EVE, NOW).kms_uri == "kms.partner.example"
    assert ours.certificate_for(ALICE, NOW).kms_uri == "kms.example.org"


def test_rule_4_a_partner_without_domains_counts_for_none(world: World, partner: Kms) -> None:
    ring = Keyring()
    ring.add_certificate(dataclasses.replace(partner.certificate, role="External", domains=()))
    with pytest.raises(UnknownKms):
        ring.certificate_for(EVE, NOW)


@pytest.mark.parametrize(
    "changes", [{"revoked": True}, {"valid_to": NOW - 86400 * 40}, {"valid_from": NOW + 86400 * 40}]
)
def test_rule_4_a_certificate_out_of_force_neither_seals_nor_opens(world: World, changes: dict[str, Any]) -> None:
    ring = Keyring()
    ring.add_certificate(dataclasses.replace(world.kms.certificate, **changes))
    ring.add_key_set(world.ring.key_set_for(BOB, NOW))
    with pytest.raises(CertificateInvalid):
        opened(world, world.sealed().octets, keyring=ring)
    with pytest.raises(CertificateInvalid):
        world.sealed(keyring=ring, sender=world.ring.key_set_for(ALICE, NOW))


# -- who signed, for whom -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", PROFILES, ids=lambda p: p.name)
@pytest.mark.parametrize("hashed", [True, False])
def test_sender_and_recipient_are_bound_under_every_profile(
    world: World, policy: Policy, hashed: bool, pairings: list[int]
) -> None:
    octets = world.sealed(hashed_ids=hashed).octets
    with pytest.raises(SenderMismatch):
        opened(world, octets, sender_uri=CAROL, policy=policy)
    with pytest.raises(RecipientMismatch):
        opened(world, octets, me=CAROL, policy=policy)
    with pytest.raises(SenderMismatch):
        opened(world, octets, sender_uri=None, expect_group=GROUP, policy=policy)
    with pytest.raises(StaleTimestamp):
        opened(world, octets, now=NOW + 301, policy=STRICT)
    assert not pairings
    # Mallory (Carol) signs what says that it is Alice's
    message = bytearray(octets[:-129])
    forged = bytes(message) + world.ring.key_set_for(CAROL, NOW).sign(bytes(message))
    with pytest.raises(BadSignature):
        opened(world, forged, policy=policy)
    assert not pairings


def test_identity_hiding_proves_a_uid_and_then_a_uri(world: World) -> None:
    out = opened(world, world.sealed().octets, sender_uri=None)
    assert out.sender_uri is None and out.sender_uid == world.ring.key_set_for(ALICE, NOW).uid
    assert out.authenticate(ALICE, world.ring).sender_uri == ALICE
    with pytest.raises(SenderMismatch):
        out.authenticate(CAROL, world.ring)
    with pytest.raises(SenderMismatch):
        opened(world, world.sealed(hashed_ids=False).octets, sender_uri=None)


def test_a_server_verifies_without_keys(world: World, pairings: list[int]) -> None:
    server = Keyring()
    server.add_certificate(world.kms.certificate)
    octets = world.sealed().octets
    verified = verify(octets, sender_uri=ALICE, recipient_uri=BOB, keyring=server, now=NOW)
    assert verified.sender_uri == ALICE and verified.recipient_uri == BOB and not pairings
    for wrong in ({"sender_uri": CAROL}, {"recipient_uri": CAROL}, {"expect_type": KeyType.CSK}, {"now": NOW + 400}):
        with pytest.raises(MikeyError):
            verify(octets, **{"sender_uri": ALICE, "recipient_uri": BOB, "keyring": server, "now": NOW, **wrong})  # type: ignore[arg-type]


def test_sakke_to_self_opens_ones_own_message(world: World) -> None:
    key = world.tgmk()
    octets = world.sealed(key, to_self=True).octets
    out = unseal_own(octets, me=ALICE, keyring=world.ring, now=NOW)
    assert out.key == key and out.sender_uri == ALICE
    assert opened(world, octets, expect_group=GROUP).key == key
    with pytest.raises(DecapsulationFailed):
        unseal_own(world.sealed(key).octets, me=ALICE, keyring=world.ring, now=NOW)
    with pytest.raises(SenderMismatch):
        unseal_own(octets, me=CAROL, keyring=world.ring, now=NOW)


# -- rule 8 and 16: what binds a temporary group's key under every profile ------------------------------------


@pytest.mark.parametrize("policy", PROFILES, ids=lambda p: p.name)
def test_rule_8_no_profile_unbinds_a_temporary_groups_key(world: World, policy: Policy) -> None:
    def attempt(key: TransportKey, **sealing: Any) -> OpenedKey:
        octets = world.sealed(key, management_server=True, **sealing).octets
        return opened(world, octets, expect_group=GROUP, policy=policy)

    good = world.tgmk()
    assert attempt(good).key == good
    for groups in ((), (GROUP + "x",), (GROUP.upper(),), (GROUP, GROUP), (GROUP, "sip:other@example.org")):
        with pytest.raises(GroupMismatch):
            attempt(good.replace(group_ids=groups))
    for expiry in (0, int(NOW) + 86400 * 2, 2**40 - 1):
        with pytest.raises(NoExpiry):
            attempt(good.replace(expiry=expiry))
    with pytest.raises(WrongProfile):
        attempt(good, srtp_policy={0: 1, 1: 16})
    with pytest.raises(KeyRevoked) as caught:
        attempt(good.revoke())
    assert caught.value.opened is not None and caught.value.opened.key.same_key(good)
    with pytest.raises(KeyNotYetActive):
        attempt(good.replace(activation=int(NOW) + 60))
    with pytest.raises(WrongKeyType):
        opened(world, world.sealed(TransportKey.generate(KeyType.CSK)).octets, expect_group=GROUP, policy=policy)
    if not policy.any_age:
        with pytest.raises(KeyExpired):
            opened(world, world.sealed(good.replace(expiry=int(NOW) + 5)).octets, expect_group=GROUP, now=NOW + 6,
                   policy=policy)  # fmt: skip


@pytest.mark.parametrize("policy", PROFILES, ids=lambda p: p.name)
def test_rule_8_key_parameters_in_the_clear_or_left_out_bind_nothing(
    world: World, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mikey import key_parameters

    clear = b"\0" + (1).to_bytes(4, "big") + bytes(5) + (int(NOW) + 60).to_bytes(5, "big") + b"\0\0"
    with monkeypatch.context() as patch:
        patch.setattr(key_parameters, "protect", lambda *_: clear)
        octets = world.sealed().octets
    with pytest.raises(Deviation):
        opened(world, octets, expect_group=GROUP, policy=policy)
    whole = key_parameters.protect
    with monkeypatch.context() as patch:  # sealed under another key
        patch.setattr(key_parameters, "protect", lambda p, key, *more: whole(p, bytes(16), *more))
        octets = world.sealed().octets
    with pytest.raises(BadKeyParameters):
        opened(world, octets, expect_group=GROUP, policy=policy)


def test_a_switch_names_each_habit_and_strict_has_none() -> None:
    assert not any(getattr(STRICT, s) for s in Policy.switches())
    assert all(getattr(LENIENT, s) for s in Policy.switches() if s != "any_age") and not LENIENT.any_age
    bare = OFFLINE.without_switches()
    assert dataclasses.replace(bare, name="strict") == STRICT
    for switch in Policy.switches():
        assert Deviation(switch, "x").reason == switch.replace("_", "-")


def test_a_key_for_later_or_revoked_is_told_when_asked_for(world: World) -> None:
    later = world.tgmk(activation=int(NOW) + 60)
    assert opened(world, world.sealed(later).octets, expect_group=GROUP, allow_pending=True).key == later
    gone = world.tgmk().revoke()
    assert opened(world, world.sealed(gone).octets, expect_group=GROUP, allow_revoked=True).key.revoked


# -- rule 7: replay -------------------------------------------------------------------------------------------


def test_rule_7_leaving_drops_the_key_and_keeps_the_entry(world: World) -> None:
    cache, message = MemoryReplayCache(), world.sealed()
    first = opened(world, message.octets, replay=cache)
    with pytest.raises(Replayed) as caught:
        opened(world, message.octets, replay=cache)
    assert caught.value.opened is first
    assert cache.forget_keys("sip:other@example.org") == 0 and cache.forget_keys(GROUP) == 1
    with pytest.raises(Replayed) as caught:
        opened(world, message.octets, replay=cache)
    assert caught.value.opened is None


def test_rule_7_lost_state_refuses_for_one_skew(world: World) -> None:
    cache = MemoryReplayCache(lost_at=NOW)
    with pytest.raises(ReplayStateLost):
        opened(world, world.sealed().octets, replay=cache)
    later = NOW + 301
    opened(world, world.sealed(now=later).octets, replay=cache, now=later)


def test_rule_7_the_cache_is_bounded_and_forgets_nothing_silently(world: World) -> None:
    cache, key = MemoryReplayCache(capacity=3), world.tgmk()
    messages = [world.sealed(key, now=NOW + n) for n in range(5)]
    for m in messages:
        opened(world, m.octets, replay=cache)
    assert len(cache) == 3
    for number, m in enumerate(messages):
        with pytest.raises(ReplayStateLost if number < 2 else Replayed):
            opened(world, m.octets, replay=cache)


def test_rule_14_a_message_held_back_does_not_bring_an_old_key_into_use_again(world: World) -> None:
    cache, first, second = MemoryReplayCache(), world.sealed(), world.sealed(now=NOW + 1)
    opened(world, second.octets, replay=cache, now=NOW + 1)
    cache.forget_keys(GROUP)
    with pytest.raises(Superseded):
        opened(world, first.octets, replay=cache, now=NOW + 1)
    opened(world, world.sealed(now=NOW + 2).octets, replay=cache, now=NOW + 2)


def test_rule_7_what_fails_late_is_not_recorded(world: World) -> None:
    cache = MemoryReplayCache()
    octets = world.sealed().octets
    with pytest.raises(GroupMismatch):
        opened(world, octets, replay=cache, expect_group="sip:other@example.org")
    assert len(cache) == 0 and opened(world, octets, replay=cache, expect_group=GROUP)


# -- rule 26: what a stranger may cost ------------------------------------------------------------------------


def test_rule_26_forged_floods_cost_no_pairing_and_valid_ones_a_budget(world: World, pairings: list[int]) -> None:
    budget = PairingBudget(rate=1.0, burst=3.0)
    octets = world.sealed().octets
    for _ in range(20):
        with pytest.raises(BadSignature):
            opened(world, octets[:-1] + bytes((octets[-1] ^ 1,)), budget=budget)
    assert not pairings
    for _ in range(3):
        opened(world, octets, budget=budget)
    for _ in range(5):
        with pytest.raises(PairingBudgetExceeded):
            opened(world, octets, budget=budget)
    assert len(pairings) == 3
    opened(world, world.sealed(sender=CAROL).octets, sender_uri=CAROL, budget=budget)  # another's share
    opened(world, octets, budget=budget, now=NOW + 1)  # refilled
    assert len(pairings) == 5


def test_rule_26_the_budget_is_bounded_and_the_clock_may_step_back() -> None:
    budget = PairingBudget(rate=1.0, burst=1.0, signers=2)
    for signer in (b"a", b"b", b"c"):
        budget.spend(signer, NOW)
    assert len(budget._buckets) == 2
    with pytest.raises(PairingBudgetExceeded):
        budget.spend(b"c", NOW - 1000)


def test_rule_26_a_signers_point_is_kept_only_after_success(world: World) -> None:
    cache = eccsi.SignerCache(size=2)
    key_set = world.ring.key_set_for(ALICE, NOW)
    kpak, good = key_set.certificate.pub_auth_key, key_set.sign(b"octets")
    for n in range(20):
        with pytest.raises(BadSignature):
            eccsi.verify(b"other", good, n.to_bytes(32, "big"), kpak, cache)
    assert len(cache) == 0
    eccsi.verify(b"octets", good, key_set.uid, kpak, cache)
    eccsi.verify(b"octets", good, key_set.uid, kpak, cache)
    assert len(cache) == 1
    with pytest.raises(BadSignature):
        eccsi.verify(b"others", good, key_set.uid, kpak, cache)


# -- rule 17: short identifiers -------------------------------------------------------------------------------


def test_rule_17_key_ids_are_drawn_outside_those_held() -> None:
    held = {n for n in range(16) if n != 11}
    source = iter([bytes((0, 0, 0, n)) for n in range(16)])

    def random(count: int) -> bytes:
        return next(source) if count == 4 else bytes(count)

    assert TransportKey.generate(KeyType.GMK, random=random, exclude_ids=held).key_id == 11


def test_no_time_is_no_time(world: World) -> None:
    """NaN is nearer to nothing than any skew."""
    sealed = world.sealed()
    for now in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no time"):
            unseal(
                sealed.octets, sender_uri=None, me=BOB, keyring=world.ring, now=now, replay=None, expect_type=None
            )
