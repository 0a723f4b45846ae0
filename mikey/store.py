# SPDX-License-Identifier: Apache-2.0
"""A replay cache in a SQLite file: what was accepted stays refused across restarts (security rule 7).

What the file holds is no secret: digests of signed octets and their times. Keys are held in memory only, unless
the caller stores them in the same transaction.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mikey.errors import Replayed, ReplayStateLost, StoreError, Superseded
from mikey.imessage import OpenedKey
from mikey.replay import line_of

APPLICATION_ID = 0x4D4B5243  # "MKRC"
_VERSION = 2
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE accepted (digest BLOB PRIMARY KEY NOT NULL, timestamp REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX accepted_by_time ON accepted (timestamp);
CREATE TABLE newest (line BLOB PRIMARY KEY NOT NULL, timestamp REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE state (floor REAL NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {_VERSION};
"""

Companion = Callable[[sqlite3.Connection, OpenedKey], None]
"""Writes what belongs to an accepted message, such as its key sealed at rest, into the same transaction."""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time creates or sets aside a file of this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class SqliteReplayCache:
    """A `ReplayCache` that outlives the process; several threads and processes may share one file.

    An entry is dropped when its T has left the skew window, or when more than `capacity` are held; what is dropped
    raises the floor, and messages at or below the floor are refused: nothing is forgotten silently, nor when the
    clock steps back. A file that is missing, empty or corrupt (it is then kept as `<file>.corrupt`) is lost state:
    until T has passed `now`, the Unix time of opening, by one `skew`, messages may have been accepted before and are
    refused. `first_use` asserts that there never was a file, and is ignored where there is one. A file put back from
    an older copy cannot be told from a good one: keep it out of backups.

    Each acceptance is on disk when `record` returns. Raises `StoreError` when the file cannot be used; then nothing
    is accepted.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        now: float,
        skew: float = 300.0,
        capacity: int = 65536,
        first_use: bool = False,
        companion: Companion | None = None,
    ) -> None:
        if skew <= 0 or capacity < 1:
            raise StoreError("skew and capacity of a replay cache must be positive")
        self._path = Path(path)
        self._skew, self._capacity = skew, capacity
        self._companion = companion
        self._opened: dict[bytes, OpenedKey] = {}
        self._lock = threading.Lock()
        try:
            with _alone(self._path.parent):
                self._connection = self._open(now, first_use and not self._path.exists())
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    # -- opening --------------------------------------------------------------------------------------------

    def _open(self, now: float, first_use: bool) -> sqlite3.Connection:
        connection = self._connect()
        try:
            version = self._version(connection)
            if version is None:
                self._create(connection, float("-inf") if first_use else now + self._skew)
            elif version != _VERSION:
                raise StoreError(f"{self._path}: written by another version of this package ({version})")
        except sqlite3.OperationalError:
            connection.close()  # locked, full or not writable: nothing is lost
            raise
        except sqlite3.DatabaseError:
            connection.close()
            for suffix in ("", "-journal"):
                if os.path.exists(f"{self._path}{suffix}"):
                    os.replace(f"{self._path}{suffix}", f"{self._path}{suffix}.corrupt")
            connection = self._connect()
            self._create(connection, now + self._skew)
        except StoreError:
            connection.close()
            raise
        # a rollback journal keeps what is committed in one file, where a write-ahead log could be left behind
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        return sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)

    def _version(self, connection: sqlite3.Connection) -> int | None:
        """The version of the file, None when it is empty. Raises `DatabaseError` when it is corrupt."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            return None
        if application != APPLICATION_ID:
            raise StoreError(f"{self._path}: the file of another program")
        if version == _VERSION:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            rows = connection.execute("SELECT floor FROM state").fetchall()
            if verdict != "ok" or len(rows) != 1 or not isinstance(rows[0][0], float):
                raise sqlite3.DatabaseError("the replay cache is corrupt")
        return int(version)

    @staticmethod
    def _create(connection: sqlite3.Connection, floor: float) -> None:
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO state (floor) VALUES (?)", (floor,))
        connection.execute("COMMIT")

    def close(self) -> None:
        """Close the file and drop the keys held."""
        with self._lock:
            self._opened.clear()
            self._connection.close()

    def __enter__(self) -> SqliteReplayCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the protocol ---------------------------------------------------------------------------------------

    def check(self, digest: bytes, timestamp: float, now: float) -> None:
        """Raise `Replayed` or `ReplayStateLost`, or return: the message is new. `StoreError`: cannot be told."""
        with self._lock:
            try:
                self._check(digest, timestamp)
            except sqlite3.Error as error:
                raise StoreError(f"{self._path}: {error}") from error

    def _check(self, digest: bytes, timestamp: float) -> None:
        if self._connection.execute("SELECT 1 FROM accepted WHERE digest = ?", (digest,)).fetchone():
            raise Replayed("this message was accepted before", self._opened.get(digest))
        (floor,) = self._connection.execute("SELECT floor FROM state").fetchone()
        if timestamp <= floor:
            raise ReplayStateLost("this message may have been accepted before")

    def record(self, opened: OpenedKey, now: float) -> None:
        """Remember an accepted message; it is on disk on return.

        Raises `Replayed` when another thread or process was faster, `Superseded` when a newer message of the same
        signer for the same temporary group was accepted before, `ReplayStateLost` when the floor has passed the
        message since it was checked, `StoreError` when it cannot be written: in each case nothing is remembered and
        the key must not be used. What the companion raises is passed on.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    dropped = self._record(opened, now)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"{self._path}: {error}") from error
            self._opened[opened.signed_digest] = opened
            for digest in dropped:
                self._opened.pop(digest, None)

    def _record(self, opened: OpenedKey, now: float) -> list[bytes]:
        self._check(opened.signed_digest, opened.timestamp)
        if (line := line_of(opened)) is not None:
            found = self._connection.execute("SELECT timestamp FROM newest WHERE line = ?", (line,)).fetchone()
            if found is not None and opened.timestamp <= found[0]:
                raise Superseded("a newer key of this group was accepted before")
            self._connection.execute("INSERT OR REPLACE INTO newest VALUES (?, ?)", (line, opened.timestamp))
        self._connection.execute("INSERT INTO accepted VALUES (?, ?)", (opened.signed_digest, opened.timestamp))
        (held,) = self._connection.execute("SELECT count(*) FROM accepted").fetchone()
        (old,) = self._connection.execute(
            "SELECT count(*) FROM accepted WHERE timestamp < ?", (now - self._skew,)
        ).fetchone()
        dropped: list[bytes] = []
        if excess := max(old, held - self._capacity, 0):
            oldest = self._connection.execute(
                "SELECT digest, timestamp FROM accepted ORDER BY timestamp LIMIT ?", (excess,)
            ).fetchall()
            dropped = [digest for digest, _ in oldest]
            self._connection.executemany("DELETE FROM accepted WHERE digest = ?", [(d,) for d in dropped])
            self._connection.execute("UPDATE state SET floor = max(floor, ?)", (oldest[-1][1],))
            # what the floor refuses needs no other reason
            self._connection.execute("DELETE FROM newest WHERE timestamp <= (SELECT floor FROM state)")
        if self._companion is not None:
            self._companion(self._connection, opened)
        return dropped

    # -- what is held ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock:
            (count,) = self._connection.execute("SELECT count(*) FROM accepted").fetchone()
        return int(count)

    def forget_keys(self, group: str | None = None) -> int:
        """Drop held keys, of one group or all, and keep the entries: their messages stay refused."""
        with self._lock:
            leaving = [d for d, o in self._opened.items() if group is None or group in o.key.group_ids]
            for digest in leaving:
                del self._opened[digest]
        return len(leaving)
