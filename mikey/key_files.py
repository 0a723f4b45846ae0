# SPDX-License-Identifier: Apache-2.0
"""Key material from files, for tools: KMS documents, JSON key sets, the group keys that a phone wrote down.

The forms, told apart by their content:

- XML of a KMS (TS 33.180 §D.3): KmsResponse with KmsInit, KmsKeyProv or KmsCertCache, or a KmsCertificate alone;
- JSON with `kms` and `receiver` (a corpus case or its `input`), or with `kms` and `users`;
- JSON lines of a phone: `gmk_id`, `gmk`, `rand`, `expiry`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mikey.corpus import certificate_of, keyring_of
from mikey.errors import KmsError, MikeyError, StoreError
from mikey.keyring import ANY_DOMAIN, Keyring
from mikey.keys import KeySet, KeyType, KmsCertificate, Secret, TransportKey
from mikey.kms_documents import NS, KeySetDocument, decode_certificate, decode_response, parse


@dataclass
class HeldKeys:
    """What key files gave."""

    keyring: Keyring = field(default_factory=Keyring)
    group_keys: list[TransportKey] = field(default_factory=list)
    """Without key parameters: a phone's file does not have them."""
    sender_uri: str | None = None
    """The claimed sender, where a file names one."""
    me: str | None = None


def load(paths: Iterable[Path]) -> HeldKeys:
    """Read key files. Raises `StoreError`, without repeating content, for a form not known or broken."""
    held = HeldKeys()
    documents: list[KeySetDocument] = []
    certificates: list[KmsCertificate] = []
    for path in paths:
        try:
            octets = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        try:
            if octets.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
                _read_xml(octets, certificates, documents)
            else:
                _read_json(octets.decode(), held)
        except KeyError as error:
            raise StoreError(f"{path}: {error} is missing") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: no key file ({type(error).__name__})") from None
        except MikeyError as error:
            raise StoreError(f"{path}: {error}") from None
    for certificate in certificates:
        held.keyring.add_certificate(certificate, domains=certificate.domains or (ANY_DOMAIN,))
    for document in documents:
        held.keyring.add_key_set(_bound(document, held.keyring.certificates))
    return held


def _read_xml(octets: bytes, certificates: list[KmsCertificate], documents: list[KeySetDocument]) -> None:
    root = parse(octets)
    if root.tag == f"{{{NS}}}KmsCertificate":
        certificates.append(decode_certificate(root))
        return
    response = decode_response(root)
    if response.certificate is not None:
        certificates.append(response.certificate)
    certificates.extend(response.cache or ())
    documents.extend(k for k in response.key_sets or () if isinstance(k, KeySetDocument))


def _bound(document: KeySetDocument, certificates: Iterable[KmsCertificate]) -> KeySet:
    """The key set under the certificate whose equation its signing key satisfies."""
    failure: MikeyError = StoreError(f"no certificate of {document.kms_uri} for the key set of {document.uri}")
    for certificate in certificates:
        try:
            key_set = document.bind(certificate)
            key_set.validate_signing_key()
        except KmsError:
            continue  # another KMS
        except MikeyError as error:
            failure = StoreError(f"the key set of {document.uri}: {error}")
        else:
            return key_set
    raise failure


def _read_json(text: str, held: HeldKeys) -> None:
    if '"gmk_id"' in text:
        held.group_keys.extend(_group_key(json.loads(line)) for line in text.splitlines() if line.strip())
        return
    document = json.loads(text)
    case = document.get("input", document)
    if "receiver" in case:
        ring = keyring_of({"sender_uri": "", **case})
        for certificate in ring.certificates:
            held.keyring.add_certificate(certificate, domains=(ANY_DOMAIN,))
        for key_set in ring:
            held.keyring.add_key_set(key_set)
        held.me, held.sender_uri = case["receiver"]["uri"], case.get("sender_uri")
        return
    certificate = certificate_of(case["kms"])
    held.keyring.add_certificate(certificate, domains=(ANY_DOMAIN,))
    users = case["users"]
    for user in users.values() if isinstance(users, dict) else users:
        held.keyring.add_key_set(
            KeySet(
                uri=user["user_uri"],
                uid=bytes.fromhex(user["uid"]),
                period_no=int(user["key_period_no"]),
                certificate=certificate,
                rsk=Secret(bytes.fromhex(user["rsk"])),
                ssk=Secret(bytes.fromhex(user.get("ssk") or "")),
                pvt=bytes.fromhex(user.get("pvt") or ""),
            )
        )


def _group_key(record: Mapping[str, Any]) -> TransportKey:
    return TransportKey(
        KeyType.GMK,
        Secret(bytes.fromhex(record["gmk"])),
        int(record["gmk_id"], 16),
        bytes.fromhex(record["rand"]),
        expiry=int(record.get("expiry", 0)),
        group_ids=(record["group"],) if "group" in record else (),
    )
