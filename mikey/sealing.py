# SPDX-License-Identifier: Apache-2.0
"""Seal a key for one user: make, encrypt and sign an I_MESSAGE (TS 33.180 §E.2 to E.4)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from mikey import eccsi, key_parameters, sakke
from mikey.errors import NoKeyForPeriod, SealRefused
from mikey.identity import SCHEME_3GPP, ntp_decode, ntp_encode
from mikey.key_parameters import KeyParameters
from mikey.keyring import Keyring
from mikey.keys import KeySet, KeyType, Random, TransportKey
from mikey.payloads import (
    ECCSI,
    GE_KEY_PARAMETERS,
    GE_SAKKE_TO_SELF,
    ID_URI,
    MAP_GENERIC_ID,
    ROLE_INITIATOR,
    ROLE_INITIATOR_KMS,
    ROLE_RESPONDER,
    ROLE_RESPONDER_KMS,
    ROLE_UID_INITIATOR,
    ROLE_UID_RESPONDER,
    SP,
    GeneralExtension,
    GenericId,
    Header,
    Idr,
    Opaque,
    Payload,
    Rand,
    SakkeData,
    SecurityPolicy,
    Signature,
    Timestamp,
    encode_chain,
)


@dataclass(frozen=True, slots=True)
class SealedMessage:
    """What `seal` made."""

    octets: bytes
    """The whole I_MESSAGE, for `application/mikey`."""
    csb_id: int
    """GUK-ID of the recipient for a GMK, else the key id."""
    signed_digest: bytes
    """SHA-256 of the signed octets: what an acknowledgement names."""
    timestamp: float
    """T as sent, Unix seconds."""
    recipient: str


def seal(
    key: TransportKey,
    *,
    sender: KeySet | str,
    recipient: str,
    keyring: Keyring,
    now: float,
    random: Random = os.urandom,
    management_server: bool = False,
    hashed_ids: bool = True,
    srtp_policy: Mapping[int, int] | None = None,
    cs_ids: tuple[int, ...] | None = None,
    to_self: bool = False,
    long_key: bool = False,
) -> SealedMessage:
    """Seal a key for one recipient: the I_MESSAGE of TS 33.180 §E.2 to E.4, signed and encrypted.

    `sender` is the signing key set or the URI of one in `keyring`; `now` (Unix seconds) becomes T. A GMK must
    have exactly one group id and a finite expiry, unless `management_server` says that it is an ordinary
    group's key. Identities are UIDs (roles 8, 9) or, with `hashed_ids=False` or under a KMS of RFC 6509's
    native form, URIs (roles 1, 2). `srtp_policy` and `cs_ids` default to the profile of the key type.
    `cs_ids` of MCVideo are `key.type.video_cs_ids`. `to_self` adds the key for the sender's own other devices (RFC
    6509 §2.1, SAKKE-to-self). `long_key` lets a key of 32 octets through, which receivers take under the switch of
    that name only: parameter set 1 carries 16.

    Raises `SealRefused`, `UnknownKms`, `CertificateInvalid`, `NoKeyForPeriod`.
    """
    signer = keyring.key_set_for(sender, now) if isinstance(sender, str) else sender
    if not signer.valid_from <= now < signer.valid_to:
        raise NoKeyForPeriod("the signing key set is of another period")
    to = keyring.identities(recipient, now, grace=0)[0]
    _refuse_to_seal(key, now, management_server, long_key)
    secret, csb_id = key.key.reveal(), key.csb_id(recipient)
    profile = srtp_policy or key.type.default_profile
    mki = key.mki(csb_id)
    sessions = tuple(
        GenericId(cs_id, spi=mki) for cs_id in (key.type.default_cs_ids if cs_ids is None else cs_ids)
    )
    stamp = ntp_encode(now, int.from_bytes(random(2), "big"))
    chain: list[Payload] = [Timestamp(0, stamp), Rand(key.rand)]
    if hashed_ids and signer.certificate.scheme == to.certificate.scheme == SCHEME_3GPP:
        chain += [Idr(ROLE_UID_INITIATOR, ID_URI, signer.uid), Idr(ROLE_UID_RESPONDER, ID_URI, to.uid)]
    else:
        chain += [
            Idr(ROLE_INITIATOR, ID_URI, signer.uri.encode()),
            Idr(ROLE_RESPONDER, ID_URI, recipient.encode()),
        ]
    chain += [
        Idr(ROLE_INITIATOR_KMS, ID_URI, signer.kms_uri.encode()),
        Idr(ROLE_RESPONDER_KMS, ID_URI, to.certificate.kms_uri.encode()),
        _stated(tuple(profile.items())),
        SakkeData(1, to.certificate.scheme, sakke.encapsulate(secret, to.uid, to.certificate.pub_enc_key)),
    ]
    if to_self:
        own = SakkeData(
            1,
            signer.certificate.scheme,
            sakke.encapsulate(secret, signer.uid, signer.certificate.pub_enc_key),
        )
        chain.append(GeneralExtension(GE_SAKKE_TO_SELF, b"\0" + own.encode()))
    parameters = KeyParameters(key.type, key.status, key.activation, key.expiry, key.text, key.group_ids)
    chain.append(
        GeneralExtension(
            GE_KEY_PARAMETERS, key_parameters.protect(parameters, secret, csb_id, now, random(16))
        )
    )
    chain.append(Signature(ECCSI, bytes(eccsi.SIGNATURE_OCTETS)))
    octets = encode_chain(Header(csb_id, MAP_GENERIC_ID, sessions), chain)[: -eccsi.SIGNATURE_OCTETS]
    digest = hashlib.sha256(octets).digest()  # all but the signature is signed
    return SealedMessage(octets + signer.sign(octets), csb_id, digest, ntp_decode(stamp), recipient)


@lru_cache(maxsize=32)
def _stated(parameters: tuple[tuple[int, int], ...]) -> Opaque:
    """The SP payload of a profile; a sender has few of them."""
    return Opaque(SP, SecurityPolicy.of(dict(parameters)).encode())


def _refuse_to_seal(key: TransportKey, now: float, management_server: bool, long_key: bool) -> None:
    if len(key.rand) < 16:
        raise SealRefused("RAND must have at least 16 octets (RFC 3830 §6.11)")
    if len(key.key) != 16 and not (long_key and len(key.key) == 32):
        raise SealRefused("parameter set 1 carries keys of 16 octets")
    if key.group_ids and not key.type.has_groups:
        raise SealRefused(f"a {key.type.name} has no group ids")
    if key.type is KeyType.GMK and not management_server:
        if len(key.group_ids) != 1:
            raise SealRefused("a temporary group's key has exactly one group id")
        if not key.expiry:
            raise SealRefused("a temporary group's key has a finite expiry")
    if key.expiry and key.expiry <= max(now, key.activation) and not key.revoked:
        raise SealRefused("the key expires before it can be used")
