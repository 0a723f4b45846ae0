# SPDX-License-Identifier: Apache-2.0
"""Sealing for many at once, and tables on disk: what comes out is what one by one gives."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gmpy2 import mpz

from mikey import Keyring, Kms, NotSealed, SealedMessage, TransportKey, field, fixed_base, pool, seal_many, unseal
from mikey import seal_many_async as seal_many_soon
from mikey.errors import NoKeyForPeriod, SealRefused, StoreError, UnknownKms
from mikey.field import G, multiply
from mikey.fixed_base import FixedBase, TangentTable
from mikey.tables import TableFolder, default_folder, keep_tables

from .conftest import ALICE, NOW, World, counting_random

COUNT = 40


@pytest.fixture(scope="module")
def crowd(kms: Kms) -> tuple[Keyring, list[str]]:
    """Forty users of one KMS who hold their keys."""
    ring, uris = Keyring(), [f"sip:user{n}@example.org" for n in range(COUNT)]
    ring.add_certificate(kms.certificate)
    for uri in (ALICE, *uris):
        ring.add_key_set(kms.issue(uri, NOW))
    return ring, uris


def opened(message: SealedMessage | NotSealed, ring: Keyring, key: TransportKey) -> str:
    assert isinstance(message, SealedMessage)
    out = unseal(message.octets, sender_uri=ALICE, me=message.recipient, keyring=ring, now=NOW, replay=None,
                 expect_type=None)  # fmt: skip
    assert out.key.same_key(key) and out.csb_id == message.csb_id
    assert out.signed_digest == message.signed_digest and out.timestamp == message.timestamp
    return message.recipient


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Process ids of all workers."""
    started: list[int] = []
    fork = os.fork

    def counted() -> int:
        pid = fork()
        if pid:
            started.append(pid)
        return pid

    monkeypatch.setattr("mikey.pool.os.fork", counted)
    return started


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_everyone_gets_a_message_that_he_can_open(
    crowd: tuple[Keyring, list[str]], world: World, forks: list[int]
) -> None:
    ring, uris = crowd
    key = world.tgmk()
    messages = list(seal_many(key, sender=ALICE, recipients=uris, keyring=ring, now=NOW, workers=3))
    assert sorted(m.recipient for m in messages) == sorted(uris) and len(forks) == 3 and gone(forks)
    assert {opened(m, ring, key) for m in messages[::8]} <= set(uris)
    assert len({m.octets[-129:-97] for m in messages if isinstance(m, SealedMessage)}) == COUNT  # no nonce twice
    assert len({m.timestamp for m in messages if isinstance(m, SealedMessage)}) == COUNT


def test_few_recipients_are_sealed_here(
    crowd: tuple[Keyring, list[str]], world: World, forks: list[int]
) -> None:
    ring, uris = crowd
    for count in (0, 1, 3):
        got = list(seal_many(world.tgmk(), sender=ALICE, recipients=uris[:count], keyring=ring, now=NOW, workers=3))
        assert [m.recipient for m in got] == uris[:count]
    list(seal_many(world.tgmk(), sender=ALICE, recipients=uris[:16], keyring=ring, now=NOW, random=counting_random()))
    assert forks == []
    assert pool.workers_for(1000, 1, {}) == 0 and pool.workers_for(16, 99, {}) == 16


def test_a_stranger_among_many_is_one_failure(crowd: tuple[Keyring, list[str]], world: World) -> None:
    ring, uris = crowd
    mixed = [*uris[:20], "sip:eve@elsewhere.example", *uris[20:]]
    got = list(seal_many(world.tgmk(), sender=ALICE, recipients=mixed, keyring=ring, now=NOW, workers=2))
    failed = [m for m in got if isinstance(m, NotSealed)]
    assert [m.recipient for m in failed] == ["sip:eve@elsewhere.example"] and len(got) == len(mixed)
    assert isinstance(failed[0].error, UnknownKms)
    refused = list(seal_many(world.tgmk(expiry=0), sender=ALICE, recipients=uris, keyring=ring, now=NOW, workers=2))
    assert all(isinstance(m, NotSealed) and isinstance(m.error, SealRefused) for m in refused)
    with pytest.raises(NoKeyForPeriod):
        list(seal_many(world.tgmk(), sender="sip:nobody@example.org", recipients=uris, keyring=ring, now=NOW))


def test_leaving_the_loop_ends_the_workers(
    crowd: tuple[Keyring, list[str]], world: World, forks: list[int]
) -> None:
    ring, uris = crowd
    stream = seal_many(world.tgmk(), sender=ALICE, recipients=uris, keyring=ring, now=NOW, workers=2)
    assert isinstance(stream, Iterator)
    for _ in range(3):
        next(stream)
    assert len(forks) == 2
    stream.close()  # type: ignore[attr-defined]
    assert gone(forks)


def test_a_worker_that_dies_loses_nobody(
    crowd: tuple[Keyring, list[str]], world: World, forks: list[int]
) -> None:
    ring, uris = crowd
    stream = seal_many(world.tgmk(), sender=ALICE, recipients=uris, keyring=ring, now=NOW, workers=2)
    got = [next(stream), next(stream)]
    os.kill(forks[0], signal.SIGKILL)
    got += stream
    assert sorted(m.recipient for m in got) == sorted(uris) and gone(forks)


@pytest.mark.parametrize("allowed", [0, 1])
async def test_where_no_more_processes_are_allowed_all_is_sealed_here(
    crowd: tuple[Keyring, list[str]], world: World, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    ring, uris = crowd
    fork, count = os.fork, [0]

    def limited() -> int:
        count[0] += 1
        if count[0] > allowed:
            raise OSError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr("mikey.pool.os.fork", limited)
    more: Any = {"sender": ALICE, "recipients": uris, "keyring": ring, "now": NOW, "workers": 3}
    got = list(seal_many(world.tgmk(), **more))
    assert sorted(m.recipient for m in got) == sorted(uris) and count == [3]
    count[0] = 0
    got = [m async for m in seal_many_soon(world.tgmk(), **more)]
    assert sorted(m.recipient for m in got) == sorted(uris) and count == [3]


async def test_an_event_loop_goes_on_meanwhile(
    crowd: tuple[Keyring, list[str]], world: World, forks: list[int]
) -> None:
    ring, uris = crowd
    key = world.tgmk()
    got = [m async for m in seal_many_soon(key, sender=ALICE, recipients=uris, keyring=ring, now=NOW, workers=2)]
    assert sorted(m.recipient for m in got) == sorted(uris) and gone(forks)
    assert opened(got[-1], ring, key)
    few = [m async for m in seal_many_soon(key, sender=ALICE, recipients=uris[:2], keyring=ring, now=NOW)]
    assert [m.recipient for m in few] == uris[:2] and len(forks) == 2


async def test_cancelling_ends_the_workers(
    crowd: tuple[Keyring, list[str]], world: World, forks: list[int]
) -> None:
    ring, uris = crowd
    reached = asyncio.Event()

    async def consume() -> None:
        stream = seal_many_soon(world.tgmk(), sender=ALICE, recipients=uris * 20, keyring=ring, now=NOW, workers=2)
        try:
            async for _ in stream:
                if forks:
                    reached.set()
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    task = asyncio.ensure_future(consume())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(forks) == 2 and gone(forks)


# -- tables -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TableFolder:
    made = TableFolder(tmp_path / "tables")
    monkeypatch.setattr(fixed_base, "shelf", made)
    return made


def fresh() -> FixedBase:
    return FixedBase(G, kept=True, bits=64)


def files(folder: TableFolder) -> list[Path]:
    return sorted(folder.path.iterdir())


def test_a_table_comes_back_from_disk_at_the_first_use(folder: TableFolder) -> None:
    k = mpz(0x0123456789ABCDEF)
    first = fresh()
    assert not first.asked() and files(folder) == []  # nothing there, and not worth building yet
    first.build()
    assert len(files(folder)) == 1
    second = fresh()
    assert second.asked() and second.ready
    for table in (first, second):
        assert table.multiply(k) == multiply((k, G))
    assert second.dump() == first.dump()
    other = FixedBase(multiply((mpz(3), G)) or G, kept=True, bits=64)
    assert not other.asked()


def test_powers_of_g_come_back_from_disk(folder: TableFolder) -> None:
    k = mpz(2) ** 1021 + 12345
    first, second = (TangentTable(field.G_PAIRED, kept=True) for _ in range(2))
    plain = first.power(k)
    first.build()
    assert second.power(k) == plain and second.ready and first.power(k) == plain
    assert first.dump() == second.dump()


@pytest.mark.parametrize("damage", ["bit", "short", "long", "head", "empty", "other name"])
def test_a_broken_table_is_built_anew(folder: TableFolder, damage: str) -> None:
    fresh().build()
    (path,) = files(folder)
    octets = path.read_bytes()
    at = len(octets) // 2
    path.write_bytes({
        "bit": octets[:at] + bytes((octets[at] ^ 1,)) + octets[at + 1 :], "short": octets[:-1], "long": octets + b"x",
        "head": b"X" + octets[1:], "empty": b"", "other name": octets,
    }[damage])  # fmt: skip
    if damage == "other name":  # a table of another point under this name
        other = FixedBase(multiply((mpz(3), G)) or G, kept=True, bits=64)
        path.rename(folder.path / f"{other.name}.table")
        assert not other.asked()
        return
    again = fresh()
    assert not again.asked()
    again.build()
    assert again.multiply(mpz(77)) == multiply((mpz(77), G)) and path.read_bytes() == octets


def test_own_points_and_lines_are_never_on_disk(folder: TableFolder, world: World) -> None:
    key_set = world.kms.issue("sip:dave@example.org", NOW)
    key_set.validate()
    key_set.receiver_key.own_point.build()
    assert files(folder) == []


def test_folders_that_others_may_write_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "file").write_bytes(b"")
    for path in (shared, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError):
            TableFolder(path)
    monkeypatch.setattr(fixed_base, "shelf", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "mikey" == keep_tables()
    assert isinstance(fixed_base.shelf, TableFolder) and os.stat(tmp_path / "mikey").st_mode & 0o777 == 0o700


def test_a_full_disk_is_no_error(folder: TableFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("mikey.tables.os.replace", full)
    fresh().build()
    assert files(folder) == []


def test_encapsulation_is_the_same_with_tables_without_and_from_disk(folder: TableFolder, world: World) -> None:
    from mikey import sakke

    z, identity, key = world.kms.certificate.pub_enc_key, world.ring.key_set_for(ALICE, NOW).uid, bytes(range(16))
    base, power, public = sakke.base_table, sakke.power_table, dict(sakke._public)
    try:
        results = []
        for _ in range(2):
            sakke.base_table = FixedBase(G, kept=True)
            sakke.power_table = TangentTable(field.G_PAIRED, kept=True)
            sakke._public.clear()
            results.append(sakke.encapsulate(key, identity, z))
            sakke.precompute(z)
            results.append(sakke.encapsulate(key, identity, z))
        assert len(set(results)) == 1 and len(files(folder)) == 3
    finally:
        sakke.base_table, sakke.power_table = base, power
        sakke._public.clear()
        sakke._public.update(public)
