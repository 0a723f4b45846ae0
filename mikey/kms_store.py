# SPDX-License-Identifier: Apache-2.0
"""What a KMS must not lose, in one SQLite file: master secrets (sealed), users, partners, what was issued, audit.

The master secrets are sealed under a passphrase or key file; nothing else in the file is secret (bearer tokens
are kept as digests). Every change is one durable transaction, so that a crash leaves the state before or after it.
Several processes may hold the file open; `refresh` notices what another one changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from gmpy2 import mpz

from mikey import eccsi, sakke
from mikey.at_rest import SALT_OCTETS, Unlock, Vault, sync_folder
from mikey.errors import KmsError, StoreError
from mikey.identity import domain_of
from mikey.keys import KmsCertificate, Secret
from mikey.kms import Kms, MasterSecrets
from mikey.kms_documents import decode_certificate, encode_certificate

APPLICATION_ID = 0x4D4B4D53  # "MKMS"
_VERSION = 1
_CHECK = b"this opens the store"
_SCHEMA = """
CREATE TABLE lock (salt BLOB NOT NULL, stretched INTEGER NOT NULL, proof BLOB NOT NULL);
CREATE TABLE state (revision INTEGER NOT NULL);
CREATE TABLE generation (number INTEGER PRIMARY KEY, certificate BLOB NOT NULL, secrets BLOB NOT NULL);
CREATE TABLE user (uri TEXT PRIMARY KEY NOT NULL, token BLOB UNIQUE, revoked_at REAL) WITHOUT ROWID;
CREATE TABLE partner (kms_uri TEXT NOT NULL, digest BLOB NOT NULL, certificate BLOB NOT NULL,
                      PRIMARY KEY (kms_uri, digest)) WITHOUT ROWID;
CREATE TABLE issued (uri TEXT NOT NULL, period INTEGER NOT NULL, generation TEXT NOT NULL, pvt BLOB NOT NULL,
                     first_at REAL NOT NULL, PRIMARY KEY (uri, period, generation)) WITHOUT ROWID;
CREATE TABLE audit (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, event TEXT NOT NULL,
                    subject TEXT NOT NULL, detail TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit log; holds no secret."""

    number: int
    at: float
    """Unix seconds."""
    event: str
    subject: str
    """A user's or a KMS' URI."""
    detail: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A key set that leaves the KMS: recorded before it is sent."""

    uri: str
    period_no: int
    generation: str
    """Under which master keys, see `generation_name`."""
    pvt: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something else worth an audit line, such as a refusal."""

    event: str
    subject: str
    detail: str
    at: float


def generation_name(certificate: KmsCertificate) -> str:
    """Which master keys these are, wherever they stand in the list: 32 bits of the SHA-256 of KPAK and Z, in hex."""
    return hashlib.sha256(certificate.pub_auth_key + certificate.pub_enc_key).hexdigest()[:8]


def token_digest(token: str) -> bytes:
    """How a bearer token is kept: SHA-256. Tokens are random, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).digest()


def holds_master_secrets(path: Path) -> bool:
    """Whether a file is the store of a KMS, by its head; for programs that must never run beside one."""
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except OSError:
        return False
    return head.startswith(b"SQLite format 3\0") and head[68:72] == APPLICATION_ID.to_bytes(4, "big")


class KmsStore:
    """A KMS on disk. `kms`, `tokens`, `users`, `revoked` and `partners` are its state as last read, `revision` grows
    with each change of it.

    Opening raises `StoreError` for a wrong passphrase or key file, a foreign or broken file.

    >>> import tempfile
    >>> folder, unlock = tempfile.TemporaryDirectory(), Unlock.passphrase("correct horse")
    >>> kms, now = Kms.generate("kms.example.org", ["example.org"]), 1_800_000_000.0
    >>> with KmsStore.create(Path(folder.name) / "kms.db", unlock, kms, now=now) as store:
    ...     store.put_users([("sip:alice@example.org", token_digest("her token"))], now=now)
    ...     new = store.rotate(now + 86400, now=now)
    ...     [entry.event for entry in store.audit()]
    1
    ['created', 'users', 'rotated']
    >>> folder.cleanup()
    """

    def __init__(self, path: Path, unlock: Unlock) -> None:
        self._path = path
        if not path.exists():
            raise StoreError(f"{path}: no such store")
        self._lock = threading.RLock()
        self._connection = self._connect(path)
        self._journal = self._connect(path)
        try:
            self._check_file()
            self._vault = self._unlocked(unlock)
            self._seen = self.revision = -1
            self.refresh()
        except BaseException as error:
            self._connection.close()
            self._journal.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{path}: {error}") from error
            raise

    @classmethod
    def create(cls, path: Path, unlock: Unlock, kms: Kms, *, now: float) -> KmsStore:
        """Write a new store (mode 0600); whole or not at all. Raises `StoreError` when there is a file."""
        if path.exists():
            raise StoreError(f"{path}: is there already")
        draft = path.with_name(path.name + ".new")
        draft.unlink(missing_ok=True)
        connection = None
        try:
            os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(draft, isolation_level=None)
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(f"BEGIN;{_SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
                                     f"PRAGMA user_version = {_VERSION};")  # fmt: skip
            connection.execute("INSERT INTO state VALUES (1)")
            vault = _write_lock(connection, unlock)
            for number, (certificate, secrets) in enumerate(kms.generations):
                _write_generation(connection, vault, number, certificate, secrets)
            _write_audit(connection, now, "created", kms.certificate.kms_uri, " ".join(kms.certificate.domains))
            connection.execute("COMMIT")
            connection.close()
            os.link(draft, path)  # fails when another process was faster
            draft.unlink()
            sync_folder(path.parent)
        except (sqlite3.Error, OSError) as error:
            if connection is not None:
                connection.close()
            draft.unlink(missing_ok=True)
            raise StoreError(f"{path}: {error}") from error
        return cls(path, unlock)

    # -- the file -------------------------------------------------------------------------------------------

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error
        return connection

    def _check_file(self) -> None:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{self._path}: no KMS store")
        if version != _VERSION:
            raise StoreError(f"{self._path}: written by another version of this package ({version})")
        self._connection.execute("PRAGMA journal_mode = WAL")
        for connection in (self._connection, self._journal):
            connection.execute("PRAGMA synchronous = FULL")  # on disk before an answer leaves
            connection.execute("PRAGMA secure_delete = ON")
        (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(f"{self._path}: corrupt: {verdict}")

    def _unlocked(self, unlock: Unlock) -> Vault:
        salt, stretched, proof = self._connection.execute("SELECT salt, stretched, proof FROM lock").fetchone()
        if bool(stretched) is not unlock.stretched:
            raise StoreError(f"{self._path}: opens with a {'passphrase' if stretched else 'key file'}")
        vault = unlock.vault(salt)
        if vault.open(proof, b"lock") != _CHECK:
            raise StoreError(f"{self._path}: sealed otherwise")
        return vault

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
            self._journal.close()

    def __enter__(self) -> KmsStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction that other processes have to notice; what it wrote is read back."""
        with self._lock:
            with self._transaction() as connection:
                self._read()  # what another process has changed meanwhile
                yield connection
                connection.execute("UPDATE state SET revision = revision + 1")
            self._read()

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection | None = None) -> Iterator[sqlite3.Connection]:
        connection = self._connection if connection is None else connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error

    # -- state ----------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read again what another process has changed; cheap when nothing has. Whether anything was read."""
        with self._lock:
            try:
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
                if version == self._seen:
                    return False
                self._seen = version
                (revision,) = self._connection.execute("SELECT revision FROM state").fetchone()
                if revision == self.revision:
                    return False  # keys were issued, nothing else
                self._read()
            except sqlite3.Error as error:
                raise StoreError(f"{self._path}: {error}") from error
        return True

    def _read(self) -> None:
        alone = not self._connection.in_transaction
        if alone:
            self._connection.execute("BEGIN")  # one view of all tables
        try:
            (self.revision,) = self._connection.execute("SELECT revision FROM state").fetchone()
            generations = []
            for number, certificate, sealed in self._connection.execute(
                "SELECT number, certificate, secrets FROM generation ORDER BY number"
            ):
                generations.append(
                    (decode_certificate(certificate), _opened(self._vault.open(sealed, _context(number, certificate))))
                )
            users = self._connection.execute("SELECT uri, token, revoked_at FROM user").fetchall()
            partners = self._connection.execute("SELECT certificate FROM partner ORDER BY kms_uri").fetchall()
        finally:
            if alone:
                self._connection.execute("COMMIT")
        for certificate, secrets in generations:
            _check_pair(certificate, secrets)
        self.kms = Kms(generations)
        self.tokens = {bytes(token): uri for uri, token, _ in users if token is not None}
        self.users = frozenset(uri for uri, _, _ in users)
        self.revoked = frozenset(uri for uri, _, revoked_at in users if revoked_at is not None)
        self.partners = tuple(decode_certificate(certificate) for (certificate,) in partners)

    def _save_kms(self, connection: sqlite3.Connection, kms: Kms) -> None:
        connection.execute("DELETE FROM generation")
        for number, (certificate, secrets) in enumerate(kms.generations):
            _write_generation(connection, self._vault, number, certificate, secrets)

    # -- changes --------------------------------------------------------------------------------------------

    def rotate(self, at: float, *, now: float) -> KmsCertificate:
        """New master keys from the first period boundary at or after `at`; `at` must not be past."""
        if at < now:
            raise KmsError("master keys change at a boundary ahead")
        with self._change() as connection:
            kms = Kms(self.kms.generations)
            certificate = kms.rotate(at)
            self._save_kms(connection, kms)
            _write_audit(connection, now, "rotated", certificate.kms_uri, f"from {certificate.valid_from:.0f}")
        return certificate

    def replace(self, *, now: float) -> KmsCertificate:
        """Compromise: revoke the master keys in force and put new ones in their place at once."""
        with self._change() as connection:
            kms = Kms(self.kms.generations)
            certificate = kms.replace(now)
            self._save_kms(connection, kms)
            _write_audit(connection, now, "replaced", certificate.kms_uri, "the master keys in force are revoked")
        return certificate

    def revoke_generation(self, number: int, *, now: float) -> KmsCertificate:
        """Mark one generation's certificate revoked. Raises `KmsError` when there is none of that number."""
        with self._change() as connection:
            if not 0 <= number < len(self.kms.generations):
                raise KmsError(f"no generation {number}")
            kms = Kms(self.kms.generations)
            certificate = kms.revoke(number)
            self._save_kms(connection, kms)
            _write_audit(connection, now, "revoked-certificate", certificate.kms_uri,
                         f"generation {generation_name(certificate)}")  # fmt: skip
        return certificate

    def put_users(self, tokens: Iterable[tuple[str, bytes | None]], *, now: float) -> int:
        """Provision users: (URI, digest of the bearer token, or None for a certificate only); how many are new.

        A known user gets the new token and stays revoked if he is.
        """
        tokens = list(tokens)
        for uri, _ in tokens:
            if not self.kms.answers_for(uri):
                raise KmsError(f"this KMS does not answer for {domain_of(uri)}")
        with self._change() as connection:
            (before,) = connection.execute("SELECT count(*) FROM user").fetchone()
            connection.executemany(
                "INSERT INTO user (uri, token) VALUES (?, ?) ON CONFLICT (uri) DO UPDATE SET token = excluded.token",
                tokens,
            )
            (after,) = connection.execute("SELECT count(*) FROM user").fetchone()
            if after != before:
                _write_audit(connection, now, "users", self.kms.certificate.kms_uri, f"{after - before} new")
        return int(after - before)

    def revoke_user(self, uri: str, *, now: float) -> None:
        """No keys for this user any more; those he holds end with their period. Raises `KmsError`."""
        with self._change() as connection:
            if not connection.execute("UPDATE user SET revoked_at = ? WHERE uri = ?", (now, uri)).rowcount:
                raise KmsError(f"no user {uri}")
            _write_audit(connection, now, "revoked-user", uri, "")

    def restore_user(self, uri: str, *, now: float) -> None:
        """Undo a revocation."""
        with self._change() as connection:
            if not connection.execute("UPDATE user SET revoked_at = NULL WHERE uri = ?", (uri,)).rowcount:
                raise KmsError(f"no user {uri}")
            _write_audit(connection, now, "restored-user", uri, "")

    def put_partner(self, certificate: KmsCertificate, *, now: float) -> None:
        """Vouch for a partner KMS: its certificate must name its domains, none of them our own."""
        if certificate.kms_uri == self.kms.certificate.kms_uri:
            raise KmsError("a partner has another KmsUri than this KMS")
        if not certificate.domains:
            raise KmsError("a partner's certificate must list its domains")
        claimed = {d.lower() for d in certificate.domains} & {d.lower() for d in self.kms.certificate.domains}
        if claimed:
            raise KmsError(f"the partner claims our own domain {sorted(claimed)[0]}")
        certificate.validate()
        octets = encode_certificate(dataclasses.replace(certificate, role="External"))
        digest = hashlib.sha256(certificate.pub_auth_key + certificate.pub_enc_key).digest()
        with self._change() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO partner VALUES (?, ?, ?)", (certificate.kms_uri, digest, octets)
            )
            _write_audit(connection, now, "partner", certificate.kms_uri, " ".join(certificate.domains))

    def drop_partner(self, kms_uri: str, *, now: float) -> None:
        """Vouch no more for a partner. Raises `KmsError` when it is not known."""
        with self._change() as connection:
            if not connection.execute("DELETE FROM partner WHERE kms_uri = ?", (kms_uri,)).rowcount:
                raise KmsError(f"no partner {kms_uri}")
            _write_audit(connection, now, "dropped-partner", kms_uri, "")

    def change_unlock(self, unlock: Unlock, *, now: float) -> None:
        """Seal the master secrets under another passphrase or key file, in one transaction."""
        with self._change() as connection:
            connection.execute("DELETE FROM lock")
            self._vault = _write_lock(connection, unlock)
            self._save_kms(connection, self.kms)
            _write_audit(connection, now, "changed-lock", self.kms.certificate.kms_uri, "")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- what happens ---------------------------------------------------------------------------------------

    def record(self, happened: Iterable[Issued | Note]) -> None:
        """Write down key sets about to be sent, all in one transaction; on disk when it returns.

        By a connection of its own, so that readers do not wait for the disk. For one thread.
        """
        with self._transaction(self._journal) as connection:
            for one in happened:
                if isinstance(one, Note):
                    _write_audit(connection, one.at, one.event, one.subject, one.detail)
                    continue
                new = connection.execute(
                    "INSERT INTO issued VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (one.uri, one.period_no, one.generation, one.pvt, one.at),
                ).rowcount
                event = "issued" if new else "issued-again"
                _write_audit(connection, one.at, event, one.uri, f"period {one.period_no} generation {one.generation}")

    def issued(self, uri: str) -> list[Issued]:
        """What a user has got, oldest period first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT uri, period, generation, pvt, first_at FROM issued WHERE uri = ? ORDER BY period", (uri,)
            ).fetchall()
        return [Issued(*row) for row in rows]

    def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """Lines of the audit log with a number above `after`, oldest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT number, at, event, subject, detail FROM audit WHERE number > ? ORDER BY number LIMIT ?",
                (after, limit),
            ).fetchall()
        return [AuditEntry(*row) for row in rows]

    def prune_audit(self, before: float, *, now: float) -> int:
        """Drop lines older than the Unix time `before`; how many. That they went is noted."""
        with self._lock, self._transaction() as connection:
            dropped = connection.execute("DELETE FROM audit WHERE at < ?", (before,)).rowcount
            _write_audit(connection, now, "pruned", self.kms.certificate.kms_uri, f"{dropped} lines")
        return int(dropped)


# -- records ----------------------------------------------------------------------------------------------------


def _context(number: int, certificate: bytes) -> bytes:
    return b"generation" + number.to_bytes(4, "big") + hashlib.sha256(certificate).digest()


def _write_lock(connection: sqlite3.Connection, unlock: Unlock) -> Vault:
    salt = os.urandom(SALT_OCTETS)
    vault = unlock.vault(salt)
    connection.execute("INSERT INTO lock VALUES (?, ?, ?)", (salt, unlock.stretched, vault.seal(_CHECK, b"lock")))
    return vault


def _write_generation(
    connection: sqlite3.Connection, vault: Vault, number: int, certificate: KmsCertificate, secrets: MasterSecrets
) -> None:
    octets = encode_certificate(certificate)
    plain = secrets.ksak.reveal() + secrets.z.reveal() + secrets.seed.reveal()
    sealed = vault.seal(plain, _context(number, octets))
    connection.execute("INSERT INTO generation VALUES (?, ?, ?)", (number, octets, sealed))


def _opened(octets: bytes) -> MasterSecrets:
    if len(octets) != 32 + 128 + 32:
        raise StoreError("sealed master secrets of another form")
    return MasterSecrets(Secret(octets[:32]), Secret(octets[32:160]), Secret(octets[160:]))


def _check_pair(certificate: KmsCertificate, secrets: MasterSecrets) -> None:
    """Never serve from secrets that are not those of the certificate."""
    ksak = mpz(int.from_bytes(secrets.ksak.reveal(), "big"))
    z = mpz(int.from_bytes(secrets.z.reveal(), "big"))
    if eccsi.public_point(ksak) != certificate.pub_auth_key or sakke.public_point(z) != certificate.pub_enc_key:
        raise StoreError("the master secrets are not those of the certificate")


def _write_audit(connection: sqlite3.Connection, at: float, event: str, subject: str, detail: str) -> None:
    connection.execute(
        "INSERT INTO audit (at, event, subject, detail) VALUES (?, ?, ?, ?)", (at, event, subject, detail)
    )


__all__ = ["AuditEntry", "Issued", "KmsStore", "Note", "generation_name", "holds_master_secrets", "token_digest"]
