# SPDX-License-Identifier: Apache-2.0
"""A client's keys: sealed on disk, renewed ahead of the period's end, used while the KMS is down."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mikey import Keyring, KeyType, Kms, KmsClient, KmsServer, TransportKey, seal, unseal
from mikey.at_rest import Unlock
from mikey.errors import KmsError, KmsUnreachable, MikeyError, StoreError, UnknownKms
from mikey.key_cache import KeyCache
from mikey.key_keeper import KeyKeeper, Renewal
from mikey.kms_store import KmsStore, token_digest

from .conftest import ALICE, BOB, NOW
from .test_kms_store import found_in, secrets_of

PERIOD = 2592000


class Clock:
    """A clock in the hand; waiting moves it."""

    def __init__(self) -> None:
        self.now = NOW
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@dataclasses.dataclass
class Site:
    """A KMS with a store, which can be switched off."""

    store: KmsStore
    clock: Clock
    folder: Path
    server: KmsServer | None = None
    url: str = "http://127.0.0.1:1"

    async def up(self) -> None:
        self.server = KmsServer(self.store, clock=self.clock)
        host, port = await self.server.start()
        self.url = f"http://{host}:{port}"

    async def down(self) -> None:
        if self.server is not None:
            await self.server.stop()
            self.server = None

    def unlock(self) -> Unlock:
        return Unlock.passphrase("the phone's passphrase")

    def keeper(self, uri: str = ALICE, *, cached: bool = True, renewal: Renewal | None = None) -> KeyKeeper:
        client = KmsClient(self.url, token=f"token of {uri}", uri=uri, clock=self.clock)
        cache = KeyCache(self.folder / f"{uri.partition('@')[0]}.keys", self.unlock()) if cached else None
        return KeyKeeper(client, Keyring(), clock=self.clock, cache=cache, wait=self.clock.wait,
                         renewal=renewal or Renewal())  # fmt: skip


@pytest.fixture
async def site(kms: Kms, tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "kms").mkdir()
    unlock = Unlock.key_file(tmp_path / "kms" / "key", create=True)
    with KmsStore.create(tmp_path / "kms" / "db", unlock, kms, now=NOW) as store:
        store.put_users(((u, token_digest(f"token of {u}")) for u in (ALICE, BOB)), now=NOW)
        made = Site(store, Clock(), tmp_path)
        await made.up()
        yield made
        await made.down()


async def close(*keepers: KeyKeeper) -> None:
    for keeper in keepers:
        await keeper._client.close()


def periods(keeper: KeyKeeper) -> list[int]:
    return [k.period_no for k in keeper.keyring.key_sets(ALICE)]


@pytest.mark.network
async def test_rule_27_keys_come_back_from_disk_while_the_kms_is_down(site: Site) -> None:
    first = site.keeper()
    await first.start()
    await close(first)
    await site.down()
    site.url = "http://127.0.0.1:1"
    again = site.keeper()
    await again.start()
    assert periods(again) == periods(first) == [1542, 1543]
    assert again.next_attempt() == 0
    assert not await again.renew() and isinstance(again.failure, KmsUnreachable)
    csk = TransportKey.generate(KeyType.CSK)
    message = seal(csk, sender=ALICE, recipient=ALICE, keyring=again.keyring, now=NOW)
    assert unseal(message.octets, sender_uri=ALICE, me=ALICE, keyring=again.keyring, now=NOW, replay=None,
                  expect_type=KeyType.CSK).key.same_key(csk)  # fmt: skip
    without = site.keeper(cached=False)
    with pytest.raises(KmsUnreachable):
        await without.start()
    await close(again, without)


@pytest.mark.network
async def test_rule_27_the_next_periods_keys_are_fetched_ahead_and_the_past_is_dropped(site: Site) -> None:
    keeper = site.keeper(renewal=Renewal(interval=10 * 86400, ahead=3 * 86400))
    await keeper.start()
    assert periods(keeper) == [1542, 1543]
    task = asyncio.ensure_future(keeper.run())
    while site.clock.now <= NOW + 4 * PERIOD:
        await asyncio.wait({task}, timeout=0.02)
        assert keeper.holds_present() and not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    number = keeper.keyring.certificates[0].periods.number(site.clock.now)
    assert number >= 1546 and number in periods(keeper)
    assert await keeper.renew()  # it may have been stopped right at a boundary
    assert periods(keeper)[-2:] == [number, number + 1]
    assert min(periods(keeper)) >= number - 3
    assert max(site.clock.waits) <= 10 * 86400
    await close(keeper)


@pytest.mark.network
async def test_a_kms_that_is_down_is_asked_again_ever_more_slowly(site: Site) -> None:
    keeper = site.keeper()
    await keeper.start()
    await site.down()
    task = asyncio.ensure_future(keeper.run())
    while len(site.clock.waits) < 8:
        await asyncio.wait({task}, timeout=0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert site.clock.waits[:8] == [86400, 30, 60, 120, 240, 480, 960, 1920]
    assert keeper.holds_present() and keeper.failure is not None
    await close(keeper)


@pytest.mark.network
async def test_replaced_master_keys_take_over_and_dropped_partners_go(site: Site) -> None:
    partner = Kms.generate("kms.partner.example", ["partner.example"])
    site.store.put_partner(partner.certificate, now=NOW)
    keeper = site.keeper()
    await keeper.start()
    ring = keeper.keyring
    assert ring.certificate_for("sip:x@partner.example", NOW).kms_uri == "kms.partner.example"
    old = ring.key_set_for(ALICE, NOW)
    new = site.store.replace(now=NOW)
    site.store.drop_partner("kms.partner.example", now=NOW)
    assert await keeper.renew()
    assert ring.key_set_for(ALICE, NOW).certificate.same_keys(new)
    assert next(k for k in ring.key_sets(ALICE) if k.rsk == old.rsk).certificate.revoked
    with pytest.raises(UnknownKms):
        ring.certificate_for("sip:x@partner.example", NOW)
    await close(keeper)


@pytest.mark.network
async def test_rotated_master_keys_are_fetched_ahead_and_used_from_the_boundary(site: Site) -> None:
    """Users who held the next period's keys already get them anew under the new master keys, and talk across."""
    alice, bob = site.keeper(), site.keeper(BOB)
    for keeper in (alice, bob):
        await keeper.start()
    new = site.store.rotate(NOW, now=NOW)
    assert new.valid_from is not None
    for keeper in (alice, bob):
        assert await keeper.renew()
    csk = TransportKey.generate(KeyType.CSK)
    for at, certificate in ((new.valid_from - 60, site.store.kms.certificates[0]), (new.valid_from + 60, new)):
        site.clock.now = at
        message = seal(csk, sender=ALICE, recipient=BOB, keyring=alice.keyring, now=at)
        out = unseal(message.octets, sender_uri=ALICE, me=BOB, keyring=bob.keyring, now=at, replay=None,
                     expect_type=None)  # fmt: skip
        assert out.key.same_key(csk) and alice.keyring.key_set_for(ALICE, at).certificate.same_keys(certificate)
    await close(alice, bob)


@pytest.mark.network
async def test_a_keyring_may_be_shared_with_the_users_of_another_kms(site: Site) -> None:
    """What one KMS does not vouch for is left alone when another one put it there."""
    other = Kms.generate("kms.partner.example", ["partner.example"])
    for _ in range(2):  # from the KMS, then from disk
        keeper = site.keeper()
        keeper.keyring.add_certificate(other.certificate)
        keeper.keyring.add_key_set(other.issue("sip:alice@partner.example", NOW))
        await keeper.start()
        assert await keeper.renew()
        assert other.certificate in keeper.keyring.certificates
        assert keeper._cache is not None and other.certificate not in keeper._cache.load(ALICE)[0]
        await close(keeper)


@pytest.mark.network
async def test_a_revoked_user_goes_on_until_his_period_ends(site: Site) -> None:
    keeper = site.keeper()
    await keeper.start()
    site.store.revoke_user(ALICE, now=NOW)
    assert not await keeper.renew() and keeper.failure is not None and keeper.failure.code == 403
    assert keeper.holds_present()
    site.clock.now += 2 * PERIOD
    assert not keeper.holds_present()
    fresh = site.keeper(cached=False)
    with pytest.raises(KmsError, match="revoked"):
        await fresh.start()
    await close(keeper, fresh)


@pytest.mark.network
async def test_master_secrets_are_with_neither_client_nor_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    keeper = site.keeper()
    await keeper.start()
    user = [s for k in keeper.keyring for s in (k.rsk.reveal(), k.ssk.reveal(), k.ssk.reveal().hex().encode())]
    needles = [*secrets_of(site.store.kms), *user, *(u.hex().upper().encode() for u in user)]
    assert found_in(site.folder, needles) == []
    said = caplog.text.encode()
    assert b"kms issued" in said and not any(n in said for n in needles)
    await close(keeper)


# -- the file ---------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, kms: Kms) -> KeyCache:
    cache = KeyCache(tmp_path / "keys", Unlock.passphrase("a passphrase"))
    cache.save(ALICE, (kms.certificate,), (kms.issue(ALICE, NOW), kms.issue(ALICE, NOW + PERIOD)))
    return cache


def test_the_cache_opens_for_its_user_and_secret_only(tmp_path: Path, kms: Kms) -> None:
    cache = saved(tmp_path, kms)
    assert os.stat(cache.path).st_mode & 0o777 == 0o600
    certificates, key_sets = cache.load(ALICE)
    assert certificates == (kms.certificate,)
    assert [k.rsk for k in key_sets] == [kms.issue(ALICE, NOW + d).rsk for d in (0, PERIOD)]
    with pytest.raises(StoreError):
        cache.load(BOB)
    with pytest.raises(StoreError):
        KeyCache(cache.path, Unlock.passphrase("another passphrase")).load(ALICE)
    cache.save(ALICE, (), key_sets)
    assert cache.load(ALICE)[0] == (kms.certificate,)
    assert KeyCache(tmp_path / "none", Unlock.passphrase("a passphrase")).load(ALICE) == ((), ())


def test_a_damaged_cache_is_one_error_and_gives_nothing(tmp_path: Path, kms: Kms) -> None:
    cache = saved(tmp_path, kms)
    octets = cache.path.read_bytes()
    for damaged in (b"", octets[:20], octets[:-1], octets + b"x", b"X" + octets[1:], octets[:60] + b"?" + octets[61:]):
        cache.path.write_bytes(damaged)
        ring = Keyring()
        with pytest.raises(StoreError):
            cache.fill(ALICE, ring)
        assert list(ring) == [] and ring.certificates == ()


def test_a_crash_while_writing_leaves_the_cache_before(
    tmp_path: Path, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = saved(tmp_path, kms)
    before = cache.path.read_bytes()

    def torn(source: object, target: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("mikey.key_cache.os.replace", torn)
    with pytest.raises(StoreError, match="no space"):
        cache.save(ALICE, (kms.certificate,), ())
    assert cache.path.read_bytes() == before


def test_a_key_set_follows_its_certificate(kms: Kms) -> None:
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    ring.add_key_set(kms.issue(ALICE, NOW))
    lines = ring.key_set_for(ALICE, NOW).receiver_key
    ring.add_certificate(dataclasses.replace(kms.certificate, valid_to=NOW + 10))
    assert ring.key_set_for(ALICE, NOW).receiver_key is lines  # the tables are kept
    with pytest.raises(MikeyError):
        ring.key_set_for(ALICE, NOW + 11)


def test_when_the_kms_is_asked(kms: Kms) -> None:
    ring, renewal = Keyring(), Renewal()
    assert renewal.due(ring, ALICE, NOW, None) == NOW
    ring.add_certificate(kms.certificate)
    present = kms.issue(ALICE, NOW)
    ring.add_key_set(present)
    assert renewal.due(ring, ALICE, NOW, NOW) == max(NOW, min(present.valid_to - 7 * 86400, NOW + 86400))
    assert renewal.due(ring, ALICE, NOW, None) == NOW
    ring.add_key_set(kms.issue(ALICE, present.valid_to))
    assert dataclasses.replace(renewal, interval=1e9).due(ring, ALICE, NOW, NOW) == present.valid_to
    short = Kms.generate("kms.example.org", ["example.org"], user_key_period=3600)
    ring = Keyring()
    ring.add_certificate(short.certificate)
    one = short.issue(ALICE, NOW)
    ring.add_key_set(one)
    start = float(one.valid_from)
    assert renewal.due(ring, ALICE, start, start) == start + 1800


def test_identity_of_a_revoked_certificate_does_not_sign(kms: Kms) -> None:
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    ring.add_key_set(kms.issue(ALICE, NOW))
    ring.add_certificate(dataclasses.replace(kms.certificate, revoked=True))
    with pytest.raises(MikeyError):
        seal(TransportKey.generate(KeyType.CSK), sender=ALICE, recipient=BOB, keyring=ring, now=NOW)
