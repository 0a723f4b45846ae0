# SPDX-License-Identifier: Apache-2.0
"""Who sent a message, to whom, when: every check up to the ECCSI signature, and nothing opened.

Steps 1 to 7 of the order in `mikey.imessage`, the replay check (4) aside: it needs the caller's cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mikey import eccsi
from mikey.errors import (
    BadSignature,
    CertificateInvalid,
    Deviation,
    MikeyError,
    RecipientMismatch,
    SenderMismatch,
    StaleTimestamp,
    UnknownKms,
    Unsupported,
    WrongKeyType,
    WrongPeriod,
)
from mikey.identity import SCHEME_3GPP, SCHEME_TEL
from mikey.keyring import Identity, Keyring
from mikey.keys import KeyType
from mikey.payloads import (
    ECCSI,
    ID_BYTES,
    ID_URI,
    MAP_GENERIC_ID,
    PRF_HMAC_SHA_256,
    ROLE_INITIATOR,
    ROLE_INITIATOR_KMS,
    ROLE_RESPONDER,
    ROLE_RESPONDER_KMS,
    ROLE_UID_INITIATOR,
    ROLE_UID_RESPONDER,
    IMessage,
)
from mikey.policy import STRICT, Policy


@dataclass(frozen=True, slots=True)
class VerifiedMessage:
    """A message whose identities, time and ECCSI signature hold; nothing is decapsulated yet."""

    message: IMessage
    sender_uri: str | None
    """None: only the UID is proved (TS 33.180 §5.2.6, identity hiding)."""
    sender_uid: bytes
    sender_period_no: int | None
    recipient_uri: str | None
    recipients: tuple[Identity, ...]
    """Who the recipient may be, by key period; exactly one when IDRr names a UID."""

    @property
    def signed_digest(self) -> bytes:
        """SHA-256 of the signed octets."""
        return self.message.signed_digest


def read(octets: bytes, policy: Policy = STRICT) -> IMessage:
    """Parse an I_MESSAGE without any cryptography. Raises `ParseError` and its like."""
    return IMessage.decode(octets, max_octets=policy.max_octets, max_payloads=policy.max_payloads)


def verify(
    octets: bytes,
    *,
    sender_uri: str | None,
    recipient_uri: str | None,
    keyring: Keyring,
    now: float,
    policy: Policy = STRICT,
    expect_type: KeyType | None = None,
) -> VerifiedMessage:
    """Every check up to and including the ECCSI signature, without opening: what a server may do.

    `recipient_uri` None leaves IDRr unchecked. `sender_uri` None proves a UID only (identity hiding). Raises
    the error of the first check that fails, in the order of `mikey.imessage`.
    """
    message = read(octets, policy)
    check_spoken(message, now, policy, expect_type)
    return authenticate(message, sender_uri, recipient_uri, keyring, policy)


def allow(policy: Policy, switch: str, text: str) -> None:
    """Raise `Deviation` unless the policy tolerates this habit."""
    if not getattr(policy, switch):
        raise Deviation(switch, text)


def check_spoken(message: IMessage, now: float, policy: Policy, expect_type: KeyType | None) -> None:
    """Steps 2 and 3: what this library speaks, and T. Raises the error of the first that fails."""
    header, signature = message.header, message.signature
    if message.sakke.parameters != 1:
        raise Unsupported(f"SAKKE parameter set {message.sakke.parameters}")
    if message.sakke.scheme not in (SCHEME_TEL, SCHEME_3GPP):
        raise Unsupported(f"identifier scheme {message.sakke.scheme}")
    if signature.sig_type != ECCSI or len(signature.value) != eccsi.SIGNATURE_OCTETS:
        raise BadSignature("not an ECCSI signature of 129 octets")
    try:
        kind = KeyType(message.key_type)
    except ValueError:
        raise WrongKeyType(f"purpose tag {message.key_type}") from None
    if expect_type is not None and kind is not expect_type:
        raise WrongKeyType(f"a {kind.name}, not a {expect_type.name}")
    timestamp = message.timestamp
    if not math.isfinite(now):
        raise ValueError(f"{now} is no time")
    if message.t.ts_type != 0:
        allow(policy, "ntp_local", "T of type NTP")
    if header.prf != PRF_HMAC_SHA_256:
        allow(policy, "other_prf", f"PRF function {header.prf}")
    if header.map_type == MAP_GENERIC_ID and not header.sessions:
        allow(policy, "empty_generic_map", "GENERIC-ID map without a crypto session")
    if not message.rand:
        raise Unsupported("an empty RAND")
    if len(message.rand) < 16:
        allow(policy, "short_rand", f"RAND of {len(message.rand)} octets")
    if not policy.any_age and abs(now - timestamp) > policy.skew:
        raise StaleTimestamp(f"T is {now - timestamp:+.0f} s from now")


def _kms_uri(message: IMessage, role: int, policy: Policy) -> str | None:
    idr = message.idr(role)
    if idr is None:
        allow(policy, "missing_kms_id", f"no IDR payload of role {role}")
        return None
    data = idr.data
    if data.endswith(b"\0"):
        allow(policy, "kms_uri_nul", "a KMS URI that ends in NUL")
        data = data[:-1]
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UnknownKms("a KMS URI that is no UTF-8") from None


def _candidates(
    message: IMessage,
    uri: str,
    roles: tuple[int, int],
    candidates: list[Identity],
    policy: Policy,
    mismatch: type[MikeyError],
) -> list[Identity]:
    """Step 6: which of the identities that T allows the message names, by URI (first role) or UID
    (second)."""
    named, hashed = message.idr(roles[0]), message.idr(roles[1])
    if named is None and hashed is None:
        allow(policy, "missing_identity", f"no IDR payload of role {roles[0]} or {roles[1]}")
    if named is not None and named.data != uri.encode():
        candidates = [c for c in candidates if c.uid == named.data]
        if not candidates:
            raise mismatch(f"the message does not name {uri}")
        allow(policy, "uid_in_uri_role", f"a UID in role {roles[0]}")
    if hashed is not None:
        if hashed.id_type not in (ID_URI, ID_BYTES):
            raise mismatch(f"ID type {hashed.id_type} for a UID")
        found = [c for c in candidates if c.uid == hashed.data]
        if not found:
            for c in candidates:
                if hashed.data in (c.certificate.uid(uri, max(c.period_no + d, 0)) for d in (-2, -1, 1, 2)):
                    raise WrongPeriod(f"an identity of {uri} of another period than T's")
            raise mismatch(f"the message does not name {uri}")
        candidates = found
    return candidates


def authenticate(
    message: IMessage, sender_uri: str | None, recipient_uri: str | None, keyring: Keyring, policy: Policy
) -> VerifiedMessage:
    """Steps 5 to 7: KMSs, identities, signature. Raises the error of the first that fails."""
    at, grace = message.timestamp, policy.period_grace
    sender_kms = _kms_uri(message, ROLE_INITIATOR_KMS, policy)
    recipient_kms = _kms_uri(message, ROLE_RESPONDER_KMS, policy)
    recipients: list[Identity] = []
    if recipient_uri is not None:
        recipients = _candidates(
            message,
            recipient_uri,
            (ROLE_RESPONDER, ROLE_UID_RESPONDER),
            keyring.identities(recipient_uri, at, kms_uri=recipient_kms, grace=grace),
            policy,
            RecipientMismatch,
        )
        scheme = message.sakke.scheme
        recipients = [r for r in recipients if r.certificate.scheme == scheme]
        if not recipients:
            raise Unsupported(f"identifier scheme {scheme} is not that of the recipient's KMS")
    if sender_uri is None:
        uid, period = _verify_uid(message, sender_kms, at, keyring, policy)
        return VerifiedMessage(message, None, uid, period, recipient_uri, tuple(recipients))
    senders = _candidates(
        message,
        sender_uri,
        (ROLE_INITIATOR, ROLE_UID_INITIATOR),
        keyring.identities(sender_uri, at, kms_uri=sender_kms, grace=grace),
        policy,
        SenderMismatch,
    )
    for sender in senders:
        try:
            _check_signature(message, sender.uid, sender.certificate.pub_auth_key, policy)
        except BadSignature:
            continue
        return VerifiedMessage(
            message, sender_uri, sender.uid, sender.period_no, recipient_uri, tuple(recipients)
        )
    raise BadSignature(f"the signature is not that of {sender_uri}")


def _verify_uid(
    message: IMessage, kms_uri: str | None, at: float, keyring: Keyring, policy: Policy
) -> tuple[bytes, None]:
    """Identity hiding: the UID of role 8 signs; its KMS is the one that the message names."""
    idr = message.idr(ROLE_UID_INITIATOR)
    if idr is None or idr.id_type not in (ID_URI, ID_BYTES):
        raise SenderMismatch("no UID of the initiator, and no sender named by the caller")
    certificates = [c for c in keyring.certificates if kms_uri is None or c.kms_uri == kms_uri]
    if not certificates:
        raise UnknownKms(str(kms_uri))
    failure: MikeyError | None = None
    for certificate in certificates:
        try:
            certificate.check(at)
            _check_signature(message, idr.data, certificate.pub_auth_key, policy)
        except CertificateInvalid as error:
            failure = error  # another generation of the same KMS may be in force
        except BadSignature as error:
            failure = failure or error
        else:
            return idr.data, None
    if isinstance(failure, CertificateInvalid):
        raise failure
    raise BadSignature("the signature is not that of the UID in the message")


def _check_signature(message: IMessage, uid: bytes, kpak: bytes, policy: Policy) -> None:
    octets = message.signed_octets
    if eccsi.verify_one_of((octets, octets[:-2]), message.signature.value, uid, kpak):
        allow(policy, "signature_scope", "signature over the message without its SIGN header")
