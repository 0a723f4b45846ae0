# SPDX-License-Identifier: Apache-2.0
"""Secrets at rest: AES-256-GCM under a passphrase (scrypt) or a key file (HKDF).

The salt stands beside what is sealed and is no secret. Each record is bound to a context, so that one record
cannot be put in another's place.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mikey.errors import StoreError
from mikey.keys import Secret

SALT_OCTETS = 16
NONCE_OCTETS = 12
MIN_KEY_FILE_OCTETS = 32
MAX_KEY_FILE_OCTETS = 4096
#: scrypt: 2**15 blocks of 1 kB, 32 MB and about a tenth of a second
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 15, 8, 1


@dataclass(frozen=True, slots=True, repr=False)
class Unlock:
    """What opens a store: a passphrase, which is stretched, or the octets of a key file."""

    secret: Secret
    stretched: bool

    @classmethod
    def passphrase(cls, text: str) -> Unlock:
        """A passphrase of at least eight characters. Raises `StoreError`."""
        if len(text) < 8:
            raise StoreError("a passphrase has at least eight characters")
        return cls(Secret(text.encode()), True)

    @classmethod
    def key_file(cls, path: Path, *, create: bool = False) -> Unlock:
        """The key in a file that only its owner reads; `create` draws 32 random octets when there is none.

        Raises `StoreError` for a file that others may read, or of fewer than 32 or more than 4096 octets.
        """
        try:
            if create and not path.exists():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(os.urandom(MIN_KEY_FILE_OCTETS))
                    file.flush()
                    os.fsync(file.fileno())
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                octets = file.read(MAX_KEY_FILE_OCTETS + 1)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        if stat.S_ISREG(mode) and mode & 0o077:
            raise StoreError(f"{path}: others than its owner may read it; chmod 600")
        if not MIN_KEY_FILE_OCTETS <= len(octets) <= MAX_KEY_FILE_OCTETS:
            raise StoreError(f"{path}: a key file has {MIN_KEY_FILE_OCTETS} to {MAX_KEY_FILE_OCTETS} octets")
        return cls(Secret(octets), False)

    def vault(self, salt: bytes) -> Vault:
        """The vault of a store with this salt."""
        if self.stretched:
            key = hashlib.scrypt(self.secret.reveal(), salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, dklen=32,
                                 maxmem=64 << 20)  # fmt: skip
        else:
            from cryptography.hazmat.primitives import hashes
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

            key = HKDF(hashes.SHA256(), 32, salt, b"mikey at rest").derive(self.secret.reveal())
        return Vault(Secret(key))

    def __repr__(self) -> str:
        return "<Unlock passphrase>" if self.stretched else "<Unlock key file>"


class Vault:
    """Seals and opens records.

    >>> vault = Unlock(Secret(bytes(32)), False).vault(bytes(16))
    >>> vault.open(vault.seal(b"octets", b"here"), b"here")
    b'octets'
    """

    __slots__ = ("_aead",)

    def __init__(self, key: Secret) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aead = AESGCM(key.reveal())

    def seal(self, octets: bytes, context: bytes) -> bytes:
        """Nonce (12), ciphertext, tag (16)."""
        nonce = os.urandom(NONCE_OCTETS)
        return nonce + self._aead.encrypt(nonce, octets, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """What was sealed in this context. Raises `StoreError` under another secret or for changed octets."""
        from cryptography.exceptions import InvalidTag

        if len(sealed) < NONCE_OCTETS + 16:
            raise StoreError("a sealed record is broken")
        try:
            return self._aead.decrypt(sealed[:NONCE_OCTETS], sealed[NONCE_OCTETS:], context)
        except InvalidTag:
            raise StoreError("sealed under another passphrase or key file, or changed") from None


def sync_folder(folder: Path) -> None:
    """Make the names of new and replaced files in it survive a loss of power. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
