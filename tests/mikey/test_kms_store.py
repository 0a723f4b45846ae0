# SPDX-License-Identifier: Apache-2.0
"""The KMS on disk: what a crash, a thief of the file and a second administrator find."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mikey import Keyring, Kms, KmsClient, KmsServer
from mikey.__main__ import main as mikey_main
from mikey.at_rest import Unlock
from mikey.errors import CertificateInvalid, KmsError, StoreError
from mikey.kms_documents import encode_certificate
from mikey.kms_http import Journal
from mikey.kms_store import Issued, KmsStore, Note, generation_name, holds_master_secrets, token_digest
from mikey.tls import client_context

from .conftest import ALICE, BOB, CAROL, NOW

PERIOD = 2592000
KEY = b"the octets of a key file, 32 and more"


def key_file(path: Path, octets: bytes = KEY) -> Unlock:
    path.write_bytes(octets)
    path.chmod(0o600)
    return Unlock.key_file(path)


@pytest.fixture
def unlock(tmp_path: Path) -> Unlock:
    return key_file(tmp_path / "kms.key")


@pytest.fixture
def store(kms: Kms, tmp_path: Path, unlock: Unlock) -> Iterator[KmsStore]:
    with KmsStore.create(tmp_path / "kms.db", unlock, kms, now=NOW) as made:
        made.put_users([(ALICE, token_digest("token-of-alice")), (BOB, None)], now=NOW)
        yield made


def secrets_of(kms: Kms) -> list[bytes]:
    """Every form in which a master secret could have got out."""
    out = []
    for _, master in kms.generations:
        for secret in (master.ksak, master.z, master.seed):
            octets = secret.reveal()
            core = octets.lstrip(b"\0")
            out += [core, core.hex().encode(), core.hex().upper().encode(), str(int.from_bytes(octets, "big")).encode()]
            out += [base64.b64encode(octets)[4:-4], base64.urlsafe_b64encode(octets)[4:-4]]
    return out


def found_in(folder: Path, needles: list[bytes]) -> list[str]:
    return [f"{f.name}" for f in sorted(folder.rglob("*")) if f.is_file() for n in needles if n in f.read_bytes()]


# -- the file ---------------------------------------------------------------------------------------------------


def test_a_store_gives_back_its_kms(kms: Kms, store: KmsStore, tmp_path: Path, unlock: Unlock) -> None:
    assert os.stat(tmp_path / "kms.db").st_mode & 0o777 == 0o600
    with KmsStore(tmp_path / "kms.db", unlock) as again:
        assert again.kms.certificates == kms.certificates
        mine, theirs = again.kms.issue(ALICE, NOW), kms.issue(ALICE, NOW)
        assert (mine.rsk, mine.ssk, mine.pvt) == (theirs.rsk, theirs.ssk, theirs.pvt)
        assert again.users == {ALICE, BOB} and again.tokens == {token_digest("token-of-alice"): ALICE}


def test_master_secrets_and_tokens_are_not_in_its_files(
    kms: Kms, store: KmsStore, tmp_path: Path, unlock: Unlock
) -> None:
    store.rotate(NOW, now=NOW)
    store.record([Issued(ALICE, 1542, generation_name(kms.certificate), kms.issue(ALICE, NOW).pvt, NOW)])
    files = {f.name for f in tmp_path.iterdir()}
    assert {"kms.db", "kms.db-wal"} <= files
    needles = [*secrets_of(store.kms), b"token-of-alice", kms.issue(ALICE, NOW).ssk.reveal()]
    assert found_in(tmp_path, needles) == []
    (tmp_path / "plain").write_bytes(needles[0])  # the search would find it
    assert found_in(tmp_path, needles) == ["plain"]


def test_another_key_or_a_passphrase_does_not_open_it(store: KmsStore, tmp_path: Path) -> None:
    path = tmp_path / "kms.db"
    for wrong in (key_file(tmp_path / "other", b"x" * 40), Unlock.passphrase("long enough")):
        with pytest.raises(StoreError):
            KmsStore(path, wrong)


def test_a_passphrase_opens_it(kms: Kms, tmp_path: Path) -> None:
    path = tmp_path / "kms.db"
    KmsStore.create(path, Unlock.passphrase("correct horse"), kms, now=NOW).close()
    KmsStore(path, Unlock.passphrase("correct horse")).close()
    with pytest.raises(StoreError, match="another passphrase"):
        KmsStore(path, Unlock.passphrase("correct mule"))
    with pytest.raises(StoreError, match="eight characters"):
        Unlock.passphrase("short")


def test_key_files_that_others_read_or_that_are_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = Unlock.key_file(path, create=True)
    assert Unlock.key_file(path).secret == made.secret and os.stat(path).st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(StoreError, match="may read it"):
        Unlock.key_file(path)
    for octets in (b"", b"x" * 31, b"x" * 5000):
        with pytest.raises(StoreError, match="key file has"):
            key_file(path, octets)
    with pytest.raises(StoreError):
        Unlock.key_file(tmp_path / "none")


def test_changing_the_key_leaves_nothing_under_the_old_one(store: KmsStore, tmp_path: Path, unlock: Unlock) -> None:
    path, new = tmp_path / "kms.db", key_file(tmp_path / "new", b"y" * 32)
    (old,) = sqlite3.connect(path).execute("SELECT secrets FROM generation").fetchone()
    store.change_unlock(new, now=NOW)
    assert found_in(tmp_path, [old]) == []
    store.rotate(NOW, now=NOW)  # goes on under the new key
    with pytest.raises(StoreError):
        KmsStore(path, unlock)
    with KmsStore(path, new) as again:
        assert len(again.kms.generations) == 2


def test_files_that_are_no_store_are_left_alone(kms: Kms, store: KmsStore, tmp_path: Path, unlock: Unlock) -> None:
    with pytest.raises(StoreError, match="is there already"):
        KmsStore.create(tmp_path / "kms.db", unlock, kms, now=NOW)
    with pytest.raises(StoreError, match="no such store"):
        KmsStore(tmp_path / "none", unlock)
    for content in (b"", b"hello" * 1000):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(StoreError):
            KmsStore(tmp_path / "other", unlock)
        assert (tmp_path / "other").read_bytes() == content
        assert not holds_master_secrets(tmp_path / "other")


def test_rule_27_a_store_of_master_secrets_is_told_by_its_head(store: KmsStore, tmp_path: Path) -> None:
    store.close()
    assert holds_master_secrets(tmp_path / "kms.db")
    assert not holds_master_secrets(tmp_path / "kms.key") and not holds_master_secrets(tmp_path / "none")


@pytest.mark.parametrize("statement", [
    "UPDATE generation SET certificate = replace(certificate, 'example.org', 'example.com')",
    "UPDATE generation SET secrets = zeroblob(220)",
    "UPDATE lock SET proof = zeroblob(60)",
])  # fmt: skip
def test_a_changed_store_does_not_serve(store: KmsStore, tmp_path: Path, unlock: Unlock, statement: str) -> None:
    path = tmp_path / "kms.db"
    store.close()
    with sqlite3.connect(path) as connection:
        connection.create_function("replace", 3, lambda a, b, c: a.replace(b.encode(), c.encode()))
        connection.execute(statement)
    connection.close()
    with pytest.raises(StoreError):
        KmsStore(path, unlock)


def test_a_draft_left_by_a_crash_is_no_store(kms: Kms, tmp_path: Path, unlock: Unlock) -> None:
    (tmp_path / "kms.db.new").write_bytes(b"half a store")
    with pytest.raises(StoreError, match="no such store"):
        KmsStore(tmp_path / "kms.db", unlock)
    KmsStore.create(tmp_path / "kms.db", unlock, kms, now=NOW).close()
    assert not (tmp_path / "kms.db.new").exists()


# -- administration ---------------------------------------------------------------------------------------------


def test_two_administrators_do_not_undo_each_others_rotation(store: KmsStore, tmp_path: Path, unlock: Unlock) -> None:
    with KmsStore(tmp_path / "kms.db", unlock) as other:
        first = store.rotate(NOW, now=NOW)
        assert first.valid_from is not None
        second = other.rotate(first.valid_from + 1, now=NOW)  # had not looked since
        assert [c.pub_auth_key for c in other.kms.certificates][1:] == [first.pub_auth_key, second.pub_auth_key]
        assert store.refresh() and store.kms.certificates == other.kms.certificates
        assert not store.refresh()
        other.record([Note("refused", ALICE, "x", NOW)])
        assert not store.refresh()  # nothing that matters has changed


def test_master_keys_do_not_change_in_the_past(store: KmsStore) -> None:
    with pytest.raises(KmsError, match="boundary ahead"):
        store.rotate(NOW - 1, now=NOW)
    with pytest.raises(KmsError, match="no generation"):
        store.revoke_generation(5, now=NOW)


def test_compromised_master_keys_are_replaced_at_once(store: KmsStore) -> None:
    planned = store.rotate(NOW, now=NOW)
    old = store.kms.issue(ALICE, NOW)
    new = store.replace(now=NOW)
    fresh = store.kms.issue(ALICE, NOW)
    fresh.validate()
    assert fresh.certificate == new and fresh.uid == old.uid and fresh.rsk != old.rsk
    assert [c.revoked for c in store.kms.certificates] == [True, False, False]
    assert planned.valid_from is not None and generation_name(planned) != generation_name(new)
    assert store.kms.issue(ALICE, planned.valid_from).certificate == planned
    ring = Keyring()
    for certificate in store.kms.certificates:
        ring.add_certificate(certificate)
    assert {i.certificate for i in ring.identities(ALICE, NOW)} == {new}
    with pytest.raises(CertificateInvalid):
        store.kms.certificates[0].check(NOW)


def test_users_of_other_domains_are_not_provisioned(store: KmsStore) -> None:
    with pytest.raises(KmsError, match="does not answer for"):
        store.put_users([("sip:eve@elsewhere.example", None)], now=NOW)
    assert store.users == {ALICE, BOB}
    for act in (store.revoke_user, store.restore_user):
        with pytest.raises(KmsError, match="no user"):
            act(CAROL, now=NOW)


def test_a_partner_needs_domains_that_are_not_ours(store: KmsStore) -> None:
    partner = Kms.generate("kms.partner.example", ["partner.example"]).certificate
    for changes in ({"domains": ()}, {"domains": ("partner.example", "Example.org")}, {"kms_uri": "kms.example.org"}):
        with pytest.raises(KmsError):
            store.put_partner(dataclasses.replace(partner, **changes), now=NOW)  # type: ignore[arg-type]
    assert store.partners == ()
    store.put_partner(partner, now=NOW)
    assert [(p.kms_uri, p.role) for p in store.partners] == [("kms.partner.example", "External")]
    store.drop_partner("kms.partner.example", now=NOW)
    assert store.partners == ()


def test_the_audit_log_tells_what_happened_and_no_secret(store: KmsStore, kms: Kms) -> None:
    key_set = kms.issue(ALICE, NOW)
    one = Issued(ALICE, key_set.period_no, generation_name(kms.certificate), key_set.pvt, NOW)
    store.record([one, one, Note("refused", BOB, "no keys for that period", NOW)])
    store.revoke_user(BOB, now=NOW + 1)
    events = [(e.event, e.subject) for e in store.audit()]
    assert events == [("created", "kms.example.org"), ("users", "kms.example.org"), ("issued", ALICE),
                      ("issued-again", ALICE), ("refused", BOB), ("revoked-user", BOB)]  # fmt: skip
    assert store.issued(ALICE) == [one] and store.issued(BOB) == []
    assert [e.number for e in store.audit(after=4, limit=1)] == [5]
    assert store.prune_audit(NOW + 1, now=NOW + 2) == 5
    assert [e.event for e in store.audit()] == ["revoked-user", "pruned"]


def test_the_admin_command(store: KmsStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        base = ["kms-admin", str(tmp_path / "kms.db"), "--key-file", str(tmp_path / "kms.key")]
        assert mikey_main([*base, *arguments]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    partner = tmp_path / "partner.xml"
    partner.write_bytes(encode_certificate(Kms.generate("kms.partner.example", ["partner.example"]).certificate))
    (tmp_path / "more").write_text(f"token-of-carol {CAROL}\n")
    assert json.loads(run("add-users", str(tmp_path / "more"))) == {"new": 1}
    run("add-partner", str(partner))
    run("revoke-user", CAROL)
    assert "KmsCertificate" in run("certificate")
    assert json.loads(run("rotate"))["valid_from"] > time.time()
    shown = [json.loads(line) for line in run("show").splitlines()]
    assert shown[2] == {"users": 3, "revoked": [CAROL]} and shown[3]["partner"] == "kms.partner.example"
    run("change-key", "--new-key-file", str(tmp_path / "new.key"))
    assert "another passphrase or key file" in run("show", code=3)
    (tmp_path / "kms.key").write_bytes((tmp_path / "new.key").read_bytes())
    events = [json.loads(line)["event"] for line in run("audit").splitlines()]
    assert events[-5:] == ["users", "partner", "revoked-user", "rotated", "changed-lock"]
    run("drop-partner", "kms.partner.example")
    assert "no partner" in run("drop-partner", "kms.partner.example", code=3)


# -- serving ----------------------------------------------------------------------------------------------------


@pytest.mark.network
async def test_a_serving_kms_follows_its_store(store: KmsStore, tmp_path: Path, unlock: Unlock) -> None:
    server = KmsServer(store, clock=lambda: NOW)
    host, port = await server.start()
    client = KmsClient(f"http://{host}:{port}", token="token-of-alice", uri=ALICE, clock=lambda: NOW)
    try:
        await client.fetch()
        assert [(i.uri, i.period_no) for i in store.issued(ALICE)] == [(ALICE, 1542), (ALICE, 1543)]
        with KmsStore(tmp_path / "kms.db", unlock) as other:  # an administrator
            certificate = other.replace(now=NOW)
            other.put_partner(Kms.generate("kms.partner.example", ["partner.example"]).certificate, now=NOW)
            assert await client.init() == certificate
            found = await client.request("lookup/sip%3Ax%40partner.example")
            assert found.cache is not None and [c.kms_uri for c in found.cache] == ["kms.partner.example"]
            with pytest.raises(KmsError, match="no KMS is known"):
                await client.request("lookup/sip%3Ax%40nowhere.example")
            other.revoke_user(ALICE, now=NOW)
            for resource in ("keyprov", "init", "certcache"):
                with pytest.raises(KmsError, match="revoked"):
                    await client.request(resource)
            assert other.audit()[-1].event == "refused"
            other.restore_user(ALICE, now=NOW)
            assert await client.keyprov()
    finally:
        await client.close()
        await server.stop()


@pytest.mark.network
@pytest.mark.parametrize("error", [StoreError("disk full"), MemoryError("no memory")])
async def test_a_store_that_fails_hands_out_nothing(
    store: KmsStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(happened: Any) -> None:
        raise error

    server = KmsServer(store, clock=lambda: NOW)
    host, port = await server.start()
    client = KmsClient(f"http://{host}:{port}", token="token-of-alice", uri=ALICE, clock=lambda: NOW)
    monkeypatch.setattr(store, "record", full)
    try:
        for _ in range(2):
            with pytest.raises(KmsError) as caught:
                await client.request("keyprov")
            assert caught.value.code == 503
        monkeypatch.undo()
        assert (await client.request("keyprov")).key_sets  # and goes on afterwards
    finally:
        await client.close()
        await server.stop()


async def test_what_waits_for_the_disk_shares_the_next_commit(store: KmsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    started, gate, whole = asyncio.Event(), threading.Event(), store.record
    loop = asyncio.get_running_loop()

    def record(happened: Any) -> None:
        batches.append(len(happened))
        loop.call_soon_threadsafe(started.set)
        gate.wait()  # the disk is slow
        whole(happened)

    monkeypatch.setattr(store, "record", record)
    journal = Journal(store)
    notes = [asyncio.ensure_future(journal.record(Note("refused", ALICE, str(n), NOW))) for n in range(1)]
    await started.wait()
    notes += [asyncio.ensure_future(journal.record(Note("refused", ALICE, str(n), NOW))) for n in range(1, 10)]
    await asyncio.sleep(0)  # all have been put in the queue
    notes[5].cancel()  # whoever asked has gone; what happened is written all the same
    assert not any(n.done() for n in notes[:5])
    gate.set()
    await asyncio.gather(*notes, return_exceptions=True)
    await journal.close()
    assert batches == [1, 9]
    assert [e.detail for e in store.audit() if e.event == "refused"] == [str(n) for n in range(10)]


@pytest.mark.network
async def test_kill_9_loses_no_issued_key(tmp_path: Path) -> None:
    """Killed in the middle of issuing, again and again: what a client holds was recorded and is issued again alike."""
    users = {f"token-{n}": f"sip:user{n}@example.org" for n in range(12)}
    (tmp_path / "users").write_text(json.dumps(users))
    held: dict[str, bytes] = {}

    async def fetch(url: str, authority: Path, token: str, uri: str) -> None:
        context = client_context(authority)
        async with KmsClient(url, token=token, uri=uri, clock=time.time, ssl_context=context) as client:
            response = await client.request("keyprov")
        assert response.key_sets
        octets = response.key_sets[0].rsk.reveal() + response.key_sets[0].pvt
        assert held.setdefault(uri, octets) == octets

    for turn in range(4):
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "mikey", "kms", "--store", str(tmp_path / "kms.db"), "--key-file",
             str(tmp_path / "kms.key"), "--users", str(tmp_path / "users")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            asked = [fetch(ready["url"], Path(ready["authority"]), token, uri) for token, uri in users.items()]
            pending = {asyncio.ensure_future(one) for one in asked}
            done: set[asyncio.Task[None]] = set()
            while len(done) <= turn * 3:  # some have their keys, the others are on the way
                more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            process.send_signal(signal.SIGKILL)
            for one in done:
                one.result()
            for failed in await asyncio.gather(*pending, return_exceptions=True):
                assert failed is None or isinstance(failed, KmsError)
        finally:
            process.kill()
            process.communicate()
    assert len(held) >= 4
    with KmsStore(tmp_path / "kms.db", Unlock.key_file(tmp_path / "kms.key")) as store:
        for uri, octets in held.items():
            (record,) = store.issued(uri)
            again = store.kms.issue(uri, record.at)
            assert record.pvt == again.pvt and octets == again.rsk.reveal() + again.pvt
        assert found_in(tmp_path, secrets_of(store.kms)) == []
