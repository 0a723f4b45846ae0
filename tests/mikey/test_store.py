# SPDX-License-Identifier: Apache-2.0
"""The replay cache in a file: restarts, kill -9, lost and corrupt files, several openers, bounds."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mikey import KeyType, MemoryReplayCache, OpenedKey, ReplayCache, SealedMessage, SqliteReplayCache, unseal
from mikey.errors import BadSignature, MikeyError, Replayed, ReplayStateLost, StoreError, Superseded

from .conftest import ALICE, BOB, GROUP, NOW, World

SKEW = 300.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replay.db"


@pytest.fixture
def cache(path: Path) -> SqliteReplayCache:
    return SqliteReplayCache(path, now=NOW, first_use=True)


def opened(world: World, message: SealedMessage, cache: ReplayCache, now: float = NOW) -> OpenedKey:
    return unseal(
        message.octets, sender_uri=ALICE, me=BOB, keyring=world.ring, now=now, replay=cache,
        expect_type=KeyType.GMK, expect_group=GROUP,
    )  # fmt: skip


@pytest.fixture
def some(world: World) -> OpenedKey:
    """An accepted message whose digest and time the tests vary."""
    return opened(world, world.sealed(), MemoryReplayCache())


def entry(some: OpenedKey, number: int, timestamp: float = NOW) -> OpenedKey:
    """Each of a group of its own: within one group T goes up."""
    key = dataclasses.replace(some.key, group_ids=(f"sip:group-{number}@example.org",))
    return dataclasses.replace(some, key=key, signed_digest=number.to_bytes(32, "big"), timestamp=timestamp)


def test_a_message_held_back_is_refused_once_a_newer_one_of_its_group_was_accepted(
    world: World, path: Path, cache: SqliteReplayCache
) -> None:
    old, older = world.sealed(), world.sealed(now=NOW - 1)
    opened(world, world.sealed(now=NOW + 1), cache, NOW + 1)
    for _ in range(2):  # asked again, the answer is the same
        with pytest.raises(Superseded):
            opened(world, old, cache, NOW + 1)
    assert len(cache) == 1
    cache.close()
    with SqliteReplayCache(path, now=NOW + 2) as again:
        with pytest.raises(Superseded):
            opened(world, older, again, NOW + 2)
        opened(world, world.sealed(now=NOW + 2), again, NOW + 2)


def test_the_order_of_one_group_is_nobody_elses_business(some: OpenedKey, cache: SqliteReplayCache) -> None:
    newer = entry(some, 1, NOW)
    cache.record(newer, NOW)
    cache.record(entry(some, 2, NOW - 1), NOW)
    another = dataclasses.replace(newer, sender_uri=BOB, signed_digest=bytes(31) + b"\x03", timestamp=NOW - 1)
    cache.record(another, NOW)
    assert len(cache) == 3


def test_a_message_opens_once_and_the_hit_tells_what_to_acknowledge(world: World, cache: SqliteReplayCache) -> None:
    message = world.sealed()
    first = opened(world, message, cache)
    with pytest.raises(Replayed) as caught:
        opened(world, message, cache)
    assert caught.value.opened is first and len(cache) == 1
    assert cache.forget_keys("sip:other@example.org") == 0 and cache.forget_keys(GROUP) == 1
    with pytest.raises(Replayed) as caught:
        opened(world, message, cache)
    assert caught.value.opened is None


def test_what_was_refused_is_not_remembered(world: World, cache: SqliteReplayCache) -> None:
    message = world.sealed()
    octets = bytearray(message.octets)
    octets[-1] ^= 1
    with pytest.raises(BadSignature):
        opened(world, dataclasses.replace(message, octets=bytes(octets)), cache)
    assert len(cache) == 0
    opened(world, message, cache)


def test_a_second_signature_over_the_same_octets_is_a_replay(world: World, cache: SqliteReplayCache) -> None:
    message = world.sealed()
    opened(world, message, cache)
    n = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    at = len(message.octets) - 97
    s = int.from_bytes(message.octets[at : at + 32], "big")
    other = message.octets[:at] + (n - s).to_bytes(32, "big") + message.octets[at + 32 :]
    with pytest.raises(Replayed):
        opened(world, dataclasses.replace(message, octets=other), cache)
    opened(world, dataclasses.replace(message, octets=other), MemoryReplayCache())  # it would have held


def test_a_restart_forgets_keys_but_no_message(world: World, path: Path, cache: SqliteReplayCache) -> None:
    message, later = world.sealed(), world.sealed(now=NOW + 1)
    opened(world, message, cache)
    cache.close()
    with SqliteReplayCache(path, now=NOW + 1) as again:
        with pytest.raises(Replayed) as caught:
            opened(world, message, again, NOW + 1)
        assert caught.value.opened is None
        opened(world, later, again, NOW + 1)  # a whole file is no lost state


def test_a_missing_file_is_lost_state_for_one_skew(world: World, path: Path) -> None:
    with SqliteReplayCache(path, now=NOW, skew=SKEW) as cache:
        with pytest.raises(ReplayStateLost):
            opened(world, world.sealed(), cache)
        at = NOW + SKEW
        with pytest.raises(ReplayStateLost):
            opened(world, world.sealed(now=at - 1), cache, at)
        # T's fraction ends in random bits, which a float loses now and then: at the very floor it may count as past
        opened(world, world.sealed(now=at + 0.001), cache, at)
    with SqliteReplayCache(path, now=NOW, first_use=True) as cache, pytest.raises(ReplayStateLost):
        opened(world, world.sealed(now=at - 1), cache, at)  # first_use does not excuse a file that is there
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_empty_file_is_lost_state(world: World, path: Path) -> None:
    path.touch()
    with SqliteReplayCache(path, now=NOW, first_use=True) as cache, pytest.raises(ReplayStateLost):
        opened(world, world.sealed(), cache)


@pytest.mark.parametrize("damage", ["text", "header", "cut", "middle", "state"])
def test_a_corrupt_file_is_lost_state_and_kept_aside(path: Path, some: OpenedKey, damage: str) -> None:
    with SqliteReplayCache(path, now=NOW, first_use=True) as cache:
        for number in range(400):
            with cache._lock:
                cache._connection.execute(
                    "INSERT INTO accepted VALUES (?, ?)", (number.to_bytes(32, "big"), NOW - number / 10)
                )
    whole = path.read_bytes()
    if damage == "text":
        path.write_text("this is no database")
    elif damage == "header":
        path.write_bytes(b"\0" * 64 + whole[64:])
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "middle":
        path.write_bytes(whole[:9000] + b"\xff" * 6000 + whole[15000:])
    else:
        connection = sqlite3.connect(path)
        connection.execute("DELETE FROM state")
        connection.commit()
        connection.close()
    damaged = path.read_bytes()
    with SqliteReplayCache(path, now=NOW) as cache:
        with pytest.raises(ReplayStateLost):
            cache.check(bytes(32), NOW + SKEW, NOW)
        cache.check(bytes(32), NOW + SKEW + 1, NOW + SKEW + 1)
        cache.record(entry(some, 1, NOW + SKEW + 1), NOW + SKEW + 1)
    assert path.with_name("replay.db.corrupt").read_bytes() == damaged
    with SqliteReplayCache(path, now=NOW) as cache, pytest.raises(Replayed):
        cache.check((1).to_bytes(32, "big"), NOW + SKEW + 1, NOW)


def test_a_file_that_breaks_while_in_use_accepts_nothing(
    world: World, path: Path, cache: SqliteReplayCache
) -> None:
    path.write_bytes(b"\xff" * 4096)
    with pytest.raises(StoreError):
        opened(world, world.sealed(), cache)


def test_files_that_are_not_ours_are_left_alone(path: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        SqliteReplayCache(path, now=NOW)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreError):
        SqliteReplayCache(tmp_path / "no" / "such" / "folder.db", now=NOW)
    with pytest.raises(StoreError):
        SqliteReplayCache(path, now=NOW, skew=0)


def test_a_file_of_a_later_version_is_refused_not_replaced(path: Path, cache: SqliteReplayCache) -> None:
    cache.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="another version"):
        SqliteReplayCache(path, now=NOW)


def test_a_locked_file_accepts_nothing_and_loses_nothing(
    path: Path, cache: SqliteReplayCache, some: OpenedKey
) -> None:
    cache._connection.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError):
        cache.check(bytes(32), NOW, NOW)
    with pytest.raises(StoreError):
        cache.record(some, NOW)
    other.execute("ROLLBACK")
    other.close()
    cache.check(bytes(32), NOW, NOW)
    cache.record(some, NOW)


def test_it_is_bounded_and_what_falls_out_stays_refused(path: Path, some: OpenedKey) -> None:
    with SqliteReplayCache(path, now=NOW, first_use=True, capacity=10) as cache:
        for number in range(25):
            cache.record(entry(some, number, NOW + number), NOW + 24)
        assert len(cache) == 10 and len(cache._opened) == 10
        for number in range(25):
            with pytest.raises(Replayed if number >= 15 else ReplayStateLost):
                cache.check(number.to_bytes(32, "big"), NOW + number, NOW + 24)
        with pytest.raises(ReplayStateLost):  # new, but as old as what was dropped
            cache.check(b"\xff" * 32, NOW + 14, NOW + 24)
        cache.check(b"\xff" * 32, NOW + 15, NOW + 24)


def test_entries_leave_with_the_window_and_the_clock_may_step_back(path: Path, some: OpenedKey) -> None:
    with SqliteReplayCache(path, now=NOW, first_use=True, skew=SKEW) as cache:
        for number in range(5):
            cache.record(entry(some, number), NOW)
        cache.record(entry(some, 100, NOW + SKEW), NOW + SKEW)
        assert len(cache) == 6
        cache.record(entry(some, 101, NOW + SKEW + 1), NOW + SKEW + 1)
        assert len(cache) == 2
    with SqliteReplayCache(path, now=NOW, skew=SKEW) as cache, pytest.raises(ReplayStateLost):
        cache.check(bytes(32), NOW, NOW)


def test_one_of_many_threads_and_of_two_openers_records(path: Path, cache: SqliteReplayCache, some: OpenedKey) -> None:
    other = SqliteReplayCache(path, now=NOW)
    accepted: list[int] = []
    refused: list[MikeyError] = []

    def attempt(number: int) -> None:
        try:
            (cache if number % 2 else other).record(some, NOW)
        except Replayed as error:
            refused.append(error)
        else:
            accepted.append(number)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == 1 and len(refused) == 11 and len(other) == 1
    with pytest.raises(Replayed):
        other.check(some.signed_digest, NOW, NOW)


def test_the_companion_writes_in_the_same_transaction(path: Path, some: OpenedKey) -> None:
    def keep(connection: sqlite3.Connection, accepted: OpenedKey) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (key_id INTEGER)")
        connection.execute("INSERT INTO kept VALUES (?)", (accepted.key.key_id,))
        if accepted.timestamp >= NOW + 1:
            raise OSError("the vault is closed")

    with SqliteReplayCache(path, now=NOW, first_use=True, companion=keep) as cache:
        cache.record(some, NOW)
        with pytest.raises(OSError, match="vault"):
            cache.record(entry(some, 1, NOW + 1), NOW)
        assert len(cache) == 1
        cache.check((1).to_bytes(32, "big"), NOW + 1, NOW)
        assert cache._connection.execute("SELECT key_id FROM kept").fetchall() == [(some.key.key_id,)]


_RECORDER = """
import dataclasses, os, sys
from mikey import *
kms = Kms.generate("kms.example.org", ["example.org"])
ring, now = Keyring(), 1_790_000_000.0
ring.add_certificate(kms.certificate)
ring.add_key_set(kms.issue("sip:a@example.org", now))
m = seal(TransportKey.generate(KeyType.CSK), sender="sip:a@example.org", recipient="sip:a@example.org", keyring=ring,
         now=now)
first = unseal(m.octets, sender_uri="sip:a@example.org", me="sip:a@example.org", keyring=ring, now=now, replay=None,
               expect_type=None)
cache = SqliteReplayCache(sys.argv[1], now=now, first_use=True)
while True:
    digest = os.urandom(32)
    cache.record(dataclasses.replace(first, signed_digest=digest), now)
    os.write(1, digest)
"""


def test_kill_9_loses_no_recorded_message(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _RECORDER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = process.stdout.read(32 * 60)
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read()
    process.wait()
    process.stdout.close()
    digests = [told[i : i + 32] for i in range(0, len(told), 32)]
    assert len(digests) >= 60 and os.path.exists(path)
    with SqliteReplayCache(path, now=NOW) as cache:
        assert len(digests) <= len(cache) <= len(digests) + 1
        for digest in digests:
            with pytest.raises(Replayed):
                cache.check(digest, NOW, NOW)
        cache.check(bytes(32), NOW, NOW)  # nothing was lost, so new messages go on being accepted
