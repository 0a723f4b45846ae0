# SPDX-License-Identifier: Apache-2.0
"""Key period boundaries, neighbours and grace, rotation of master keys, and the wrap of NTP in 2036."""

from __future__ import annotations

import dataclasses

import pytest

from mikey import STRICT, Keyring, KeyType, Kms, OpenedKey, Policy, SealedMessage, TransportKey, seal, unseal
from mikey.errors import (
    CertificateInvalid,
    MikeyError,
    NoKeyForPeriod,
    RecipientMismatch,
    StaleTimestamp,
    WrongPeriod,
)
from mikey.identity import KeyPeriods, ntp_decode, ntp_encode

from .conftest import ALICE, BOB, NOW

HOUR, DAY = 3600.0, 86400.0
PERIODS = KeyPeriods(2592000)
START = float(PERIODS.start(PERIODS.number(NOW) + 1))
"""A boundary: the first second of period N + 1."""
ERA_1 = float((1 << 32) - 2208988800)
"""2036-02-07 06:28:16 UTC: the NTP seconds begin again at 0."""


@pytest.fixture(scope="module")
def two_periods() -> tuple[Kms, Keyring]:
    """Everyone's keys on both sides of START."""
    kms = Kms.generate("kms.example.org", ["example.org"])
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    for uri in (ALICE, BOB):
        for at in (START - 1, START):
            ring.add_key_set(kms.issue(uri, at))
    return kms, ring


def csk_of(ring: Keyring, at: float) -> SealedMessage:
    return seal(TransportKey.generate(KeyType.CSK), sender=ALICE, recipient=BOB, keyring=ring, now=at)


def opened(ring: Keyring, message: SealedMessage, now: float, policy: Policy = STRICT) -> OpenedKey:
    return unseal(
        message.octets, sender_uri=ALICE, me=BOB, keyring=ring, now=now, replay=None, expect_type=KeyType.CSK,
        policy=policy,
    )  # fmt: skip


def stale(kms: Kms, ring: Keyring, signer: float, recipient: float, t: float, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A message of time T whose identities are those of the periods of other times."""
    with monkeypatch.context() as patch:
        number = PERIODS.number(recipient)
        whole = Keyring.identities

        def identities(self: Keyring, uri: str, at: float, **more: object) -> object:
            found = whole(self, uri, recipient, grace=0)
            assert [i.period_no for i in found] == [number]
            return found

        patch.setattr(Keyring, "identities", identities)
        patch.setattr("mikey.sealing.ntp_encode", lambda now, low: ntp_encode(t, low))
        key = TransportKey.generate(KeyType.CSK)
        return seal(key, sender=ring.key_set_for(ALICE, signer), recipient=BOB, keyring=ring, now=signer).octets


@pytest.mark.parametrize("at", [START - 1, START - 0.001, START, START + 0.5])
def test_the_period_is_that_of_the_second_of_t(two_periods: tuple[Kms, Keyring], at: float) -> None:
    _, ring = two_periods
    message = csk_of(ring, at)
    out = opened(ring, message, at)
    expected = ring.key_set_for(ALICE, at)
    assert out.sender_uid == expected.uid and expected.period_no == PERIODS.number(at)
    assert PERIODS.number(START) == PERIODS.number(START - 0.001) + 1


def test_a_message_from_before_the_boundary_opens_after_it(two_periods: tuple[Kms, Keyring]) -> None:
    _, ring = two_periods
    message = csk_of(ring, START - 1)
    assert opened(ring, message, START + 60).timestamp < START
    with pytest.raises(StaleTimestamp):
        opened(ring, message, START + 300)


def test_without_the_keys_of_the_period_nothing_opens(two_periods: tuple[Kms, Keyring]) -> None:
    kms, ring = two_periods
    only_old = Keyring()
    only_old.add_certificate(kms.certificate)
    only_old.add_key_set(kms.issue(BOB, START - 1))
    with pytest.raises(NoKeyForPeriod):
        opened(only_old, csk_of(ring, START), START)
    with pytest.raises(NoKeyForPeriod):
        seal(TransportKey.generate(KeyType.CSK), sender=BOB, recipient=ALICE, keyring=only_old, now=START)
    with pytest.raises(NoKeyForPeriod):
        seal(TransportKey.generate(KeyType.CSK), sender=only_old.key_sets(BOB)[0], recipient=ALICE, keyring=only_old,
             now=START)  # fmt: skip


@pytest.mark.parametrize("ahead", [HOUR, 48 * HOUR - 2])
def test_t27_a_neighbours_identities_are_good_near_the_boundary(
    two_periods: tuple[Kms, Keyring], monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    kms, ring = two_periods
    for signer, recipient, t in (
        (START - 1, START - 1, START + ahead),
        (START, START, START - ahead),
        (START - 1, START, START + ahead),
        (START, START - 1, START - ahead),
    ):
        octets = stale(kms, ring, signer, recipient, t, monkeypatch)
        out = unseal(octets, sender_uri=ALICE, me=BOB, keyring=ring, now=t, replay=None, expect_type=None)
        assert out.sender_uid == ring.key_set_for(ALICE, signer).uid


@pytest.mark.parametrize("policy_name", ["STRICT", "LENIENT", "OFFLINE"])
def test_rule_9_in_mid_period_the_keys_of_the_last_period_are_refused(
    two_periods: tuple[Kms, Keyring], monkeypatch: pytest.MonkeyPatch, policy_name: str
) -> None:
    """Security rule 9: T in mid-period with the identities of N - 1."""
    import mikey

    policy: Policy = getattr(mikey, policy_name)
    kms, ring = two_periods
    t = START + 15 * DAY
    for signer, recipient in ((START - 1, START), (START, START - 1), (START - 1, START - 1)):
        octets = stale(kms, ring, signer, recipient, t, monkeypatch)
        with pytest.raises(WrongPeriod):
            unseal(octets, sender_uri=ALICE, me=BOB, keyring=ring, now=t, replay=None, expect_type=None, policy=policy)
    no_grace = dataclasses.replace(policy, period_grace=0)
    octets = stale(kms, ring, START - 1, START - 1, START + 1, monkeypatch)
    with pytest.raises(WrongPeriod):
        unseal(octets, sender_uri=ALICE, me=BOB, keyring=ring, now=START + 1, replay=None, expect_type=None,
               policy=no_grace)  # fmt: skip


def test_an_identity_of_a_far_period_is_simply_not_oneself(
    two_periods: tuple[Kms, Keyring], monkeypatch: pytest.MonkeyPatch
) -> None:
    kms, ring = two_periods
    octets = stale(kms, ring, START - 1, START - 1, START + 130 * DAY, monkeypatch)
    with pytest.raises(RecipientMismatch):
        unseal(octets, sender_uri=ALICE, me=BOB, keyring=ring, now=START + 130 * DAY, replay=None, expect_type=None)


def test_rotated_master_keys_take_over_at_the_boundary_and_a_revoked_one_ends() -> None:
    kms = Kms.generate("kms.example.org", ["example.org"])
    fresh = kms.rotate(START - DAY)
    old, new = kms.certificates
    assert (old.valid_to, fresh.valid_from) == (START, START) and new == fresh
    ring = Keyring()
    for certificate in kms.certificates:
        ring.add_certificate(certificate)
    for uri in (ALICE, BOB):
        for at in (START - 1, START):
            key_set = kms.issue(uri, at)
            key_set.validate()
            ring.add_key_set(key_set)
    for at in (START - 1, START, START + 1):
        assert opened(ring, csk_of(ring, at), at).sender_uri == ALICE
    late = csk_of(ring, START - 1)
    assert opened(ring, late, START + 100).key.type is KeyType.CSK

    revoked = Keyring()
    for certificate in (old, dataclasses.replace(new, revoked=True)):
        revoked.add_certificate(certificate)
    for key_set in ring:
        revoked.add_key_set(key_set)
    with pytest.raises(CertificateInvalid):
        opened(revoked, csk_of(ring, START + 3 * DAY), START + 3 * DAY)
    with pytest.raises(WrongPeriod):
        opened(revoked, csk_of(ring, START), START)
    with pytest.raises(CertificateInvalid):
        csk_of(revoked, START + 3 * DAY)


def test_offsets_and_short_periods(two_periods: tuple[Kms, Keyring]) -> None:
    for seconds, offset in ((60, 0), (60, 59), (3600, 1799), (2592000, 2591999)):
        periods = KeyPeriods(seconds, offset)
        for at in (NOW, NOW + 0.5, NOW + 59.999):
            n = periods.number(at)
            assert periods.start(n) <= at < periods.end(n) and periods.number(periods.start(n)) == n
            assert periods.number(periods.end(n) - 1) == n and periods.number(periods.end(n)) == n + 1
            assert periods.allowed(at, 0)[0] == n


def test_months_of_rfc_6509() -> None:
    months = KeyPeriods(monthly=True)
    new_year = 1767225600.0  # 2026-01-01 UTC
    assert months.number(new_year) == 2026 * 12 and months.number(new_year - 1) == 2025 * 12 + 11
    assert months.end(2025 * 12 + 11) == months.start(2026 * 12) == new_year
    assert months.allowed(new_year + DAY, 2 * DAY) == (2026 * 12, 2026 * 12 - 1)
    assert months.allowed(new_year + 3 * DAY, 2 * DAY) == (2026 * 12,)


# -- NTP era 1 ------------------------------------------------------------------------------------------------


def test_stamps_wrap_in_2036() -> None:
    assert ntp_encode(ERA_1 - 1)[:4] == b"\xff" * 4 and ntp_encode(ERA_1)[:4] == bytes(4)
    for unix in (ERA_1 - 1, ERA_1 - 0.5, ERA_1, ERA_1 + 0.5, ERA_1 + 2**31 - 1):
        assert ntp_decode(ntp_encode(unix)) == unix


def test_messages_across_the_wrap() -> None:
    kms = Kms.generate("kms.example.org", ["example.org"])
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    for uri in (ALICE, BOB):
        ring.add_key_set(kms.issue(uri, ERA_1))
    number = PERIODS.number(ERA_1)
    assert PERIODS.number(ERA_1 - 1) == number == (1 << 32) // 2592000  # no boundary at the wrap, and no step back
    for at, now in ((ERA_1 - 1, ERA_1 - 1), (ERA_1 - 1, ERA_1 + 1), (ERA_1, ERA_1), (ERA_1 + DAY, ERA_1 + DAY)):
        out = opened(ring, csk_of(ring, at), now)
        assert abs(out.timestamp - at) < 1e-3
    with pytest.raises(StaleTimestamp):
        opened(ring, csk_of(ring, ERA_1 - 1), ERA_1 + 301)
    with pytest.raises(MikeyError):
        opened(ring, csk_of(ring, ERA_1 + 10), NOW)
