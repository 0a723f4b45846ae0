# SPDX-License-Identifier: Apache-2.0
"""A user's keys on disk between runs, sealed: certificates and key sets as the KMS gave them.

One file, replaced as a whole, so that a crash leaves the one before or the one after. What it holds was validated
when it came; it is authenticated by its sealing, and the SSK's equation is checked again when it is read.
"""

from __future__ import annotations

import os
from pathlib import Path

from mikey.at_rest import SALT_OCTETS, Unlock, Vault, sync_folder
from mikey.errors import MikeyError, StoreError
from mikey.keyring import Keyring
from mikey.keys import KeySet, KmsCertificate
from mikey.kms_documents import KmsResponse, decode_response, encode_response

_MAGIC = b"MIKEYKC1"
MAX_OCTETS = 4 << 20


class KeyCache:
    """The sealed file of one user."""

    def __init__(self, path: Path, unlock: Unlock) -> None:
        self.path = path
        self._unlock = unlock
        self._vaults: dict[bytes, Vault] = {}

    def _vault(self, salt: bytes) -> Vault:
        if salt not in self._vaults:
            self._vaults = {salt: self._unlock.vault(salt)}
        return self._vaults[salt]

    def save(self, uri: str, certificates: tuple[KmsCertificate, ...], key_sets: tuple[KeySet, ...]) -> None:
        """Replace what is on disk; it is there when this returns. Raises `StoreError`."""
        home = key_sets[0].kms_uri if key_sets else "-"
        known = list(certificates)
        for key_set in key_sets:  # a KMS may name the certificates of past master keys no more
            if not any(c.same_keys(key_set.certificate) for c in known):
                known.append(key_set.certificate)
        documents = (
            encode_response(KmsResponse(uri, home, 0.0, "-", cache=tuple(known), cache_no=len(known))),
            encode_response(KmsResponse(uri, home, 0.0, "-", key_sets=key_sets)),
        )
        plain = b"".join(len(d).to_bytes(4, "big") + d for d in documents)
        salt = next(iter(self._vaults), None) or os.urandom(SALT_OCTETS)
        head = _MAGIC + salt
        octets = head + self._vault(salt).seal(plain, head + uri.encode())
        draft = self.path.with_name(self.path.name + ".new")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(octets)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error

    def load(self, uri: str) -> tuple[tuple[KmsCertificate, ...], tuple[KeySet, ...]]:
        """Certificates and key sets of `uri`; nothing when there is no file.

        Raises `StoreError` for another secret, another user, or a broken file.
        """
        try:
            with open(self.path, "rb") as file:
                octets = file.read(MAX_OCTETS + 1)
        except FileNotFoundError:
            return (), ()
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        at = len(_MAGIC) + SALT_OCTETS
        head = octets[:at]
        if len(octets) > MAX_OCTETS or len(head) < at or not head.startswith(_MAGIC):
            raise StoreError(f"{self.path}: no key cache")
        plain = self._vault(head[len(_MAGIC) :]).open(octets[at:], head + uri.encode())
        first = 4 + int.from_bytes(plain[:4], "big")
        try:
            certificates = decode_response(plain[4:first]).cache or ()
            key_sets = [
                _bound(document, certificates)
                for document in decode_response(plain[first + 4 :]).key_sets or ()
                if not isinstance(document, KeySet)
            ]
        except StoreError:
            raise
        except MikeyError as error:
            raise StoreError(f"{self.path}: {error}") from None
        return certificates, tuple(key_sets)

    def fill(self, uri: str, keyring: Keyring) -> tuple[KmsCertificate, ...]:
        """Put what is on disk into a keyring; the certificates among it. Raises `StoreError`."""
        certificates, key_sets = self.load(uri)
        home = {k.kms_uri for k in key_sets}
        for certificate in certificates:
            keyring.add_certificate(certificate, home=certificate.kms_uri in home)
        for key_set in key_sets:
            keyring.add_key_set(key_set)
        return certificates


def _bound(document: object, certificates: tuple[KmsCertificate, ...]) -> KeySet:
    from mikey.kms_documents import KeySetDocument

    assert isinstance(document, KeySetDocument)
    for certificate in certificates:
        if document.kms_uri != certificate.kms_uri:
            continue
        key_set = document.bind(certificate)
        try:
            key_set.validate_signing_key()
        except MikeyError:
            continue  # of another generation of master keys
        return key_set
    raise StoreError(f"no certificate for the key set of {document.uri}")
