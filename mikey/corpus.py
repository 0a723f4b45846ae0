# SPDX-License-Identifier: Apache-2.0
"""Judge the cases of an I_MESSAGE corpus: accept, reject, or policy (sound, but strict refuses).

A case names the receiver's KMS and key sets, the claimed sender, the clock and the text of the message. Each
is judged alone, with an empty replay cache: under STRICT first, then under OFFLINE (LENIENT without a clock),
both by the same `unseal` that a phone uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mikey.errors import MikeyError
from mikey.imessage import OpenedKey, unseal
from mikey.keyring import Keyring
from mikey.keys import KeySet, KmsCertificate, Secret
from mikey.policy import OFFLINE, STRICT, Policy
from mikey.text_form import decode_text


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case."""

    verdict: str
    """accept, reject or policy."""
    reason: str | None
    """The reason of the strict refusal, or of the lenient one for reject."""
    opened: OpenedKey | None


def certificate_of(kms: Mapping[str, Any]) -> KmsCertificate:
    """A certificate from the corpus' JSON form (names in lower case, keys in hex)."""
    return KmsCertificate(
        kms_uri=kms["kms_uri"],
        pub_enc_key=bytes.fromhex(kms["pub_enc_key_z"]),
        pub_auth_key=bytes.fromhex(kms["pub_auth_key_kpak"]),
        user_key_period=int(kms["user_key_period"]),
        user_key_offset=int(kms["user_key_offset"]),
        user_id_format=str(kms.get("user_id_format", 2)),
    )


def keyring_of(case: Mapping[str, Any]) -> Keyring:
    """The receiver's keyring: his KMS trusted for him, the sender's KMS for the sender."""
    receiver = case["receiver"]
    keyring = Keyring()
    own = certificate_of(case["kms"])
    other = case.get("sender_kms")
    sender = case["sender_uri"]
    keyring.add_certificate(own, home=True, domains=[receiver["uri"]] + ([sender] if other is None else []))
    if other is not None:
        keyring.add_certificate(certificate_of(other), home=False, domains=[sender])
    for key in receiver["keys"]:
        keyring.add_key_set(_key_set(
            receiver["uri"], key["uid"], int(key["key_period_no"]), own, key["rsk"], key.get("ssk") or "",
            key.get("pvt") or "",
        ))  # fmt: skip
    return keyring


@lru_cache(maxsize=64)
def _key_set(
    uri: str, uid: str, period_no: int, certificate: KmsCertificate, rsk: str, ssk: str, pvt: str
) -> KeySet:
    """The same object for the same keys, so that the many cases of one receiver share its tables."""
    return KeySet(
        uri, bytes.fromhex(uid), period_no, certificate, Secret(bytes.fromhex(rsk)), Secret(bytes.fromhex(ssk)),
        bytes.fromhex(pvt),
    )  # fmt: skip


def judge(case: Mapping[str, Any]) -> Verdict:
    """Judge the `input` of one case."""
    try:
        keyring = keyring_of(case)
        text = case["message_text"]
        if not isinstance(text, str):
            raise ValueError("message_text is no text")
    except (MikeyError, KeyError, ValueError, TypeError, AttributeError) as error:
        return Verdict("reject", f"input: {error}", None)
    try:
        return Verdict("accept", None, _open(case, keyring, STRICT))
    except MikeyError as strict:
        try:
            return Verdict("policy", strict.reason, _open(case, keyring, OFFLINE))
        except MikeyError as lenient:
            return Verdict("reject", lenient.reason, None)


def _open(case: Mapping[str, Any], keyring: Keyring, policy: Policy) -> OpenedKey:
    return unseal(
        decode_text(case["message_text"], policy),
        sender_uri=case["sender_uri"],
        me=case["receiver"]["uri"],
        keyring=keyring,
        now=float(case["now_unix"]),
        replay=None,
        expect_type=None,
        policy=policy,
        allow_pending=policy is OFFLINE,
    )
