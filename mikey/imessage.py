# SPDX-License-Identifier: Apache-2.0
"""I_MESSAGEs of TS 33.180 §E: seal a key for one user, read a message, verify it, open it.

Sealing is in `mikey.sealing`, verifying in `mikey.verifying`, opening here; all are had from this module. The
receiver's order of checks (cheap before dear, nothing decapsulated before its signature holds) stands in
`verifying.authenticate` and `unseal` and nowhere else:

1. form: size, chain, version, data type, one each of T, RAND, SAKKE, SIGN (`IMessage.decode`);
2. what is spoken: parameter set, identifier scheme, signature type, time stamp type, PRF, RAND, key type;
3. T within the clock skew;  4. replay;
5. KMSs: known, answering for this domain, unrevoked, within their dates;
6. identities of the period of T: IDRi is the claimed sender, IDRr is this user;
7. the ECCSI signature over the octets as received;
8. SAKKE, with its TEST; key id and MKI;  9. key parameters: group, status, activation, expiry, profile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mikey import key_parameters, sakke
from mikey.errors import (
    BadKeyParameters,
    DecapsulationFailed,
    GroupMismatch,
    KeyExpired,
    KeyNotYetActive,
    KeyRevoked,
    NoExpiry,
    NoKeyForPeriod,
    SenderMismatch,
    WrongKeyType,
    WrongProfile,
)
from mikey.key_parameters import KeyParameters
from mikey.keyring import Keyring
from mikey.keys import GROUP_PROFILE, PRIVATE_PROFILE, KeySet, KeyType, Secret, TransportKey, gmk_id_of
from mikey.payloads import (
    GE_KEY_PARAMETERS,
    GE_SAKKE_TO_SELF,
    ROLE_INITIATOR_KMS,
    GenericId,
    IMessage,
    SakkeData,
)
from mikey.policy import STRICT, Policy
from mikey.reader import Reader
from mikey.sealing import SealedMessage, seal
from mikey.verifying import VerifiedMessage, allow, authenticate, check_spoken, read, verify

__all__ = [
    "GROUP_PROFILE",
    "PRIVATE_PROFILE",
    "Budget",
    "OpenedKey",
    "ReplayCache",
    "SealedMessage",
    "VerifiedMessage",
    "read",
    "seal",
    "unseal",
    "unseal_own",
    "verify",
]


@dataclass(frozen=True, slots=True)
class OpenedKey:
    """A key that passed every check, with the message that brought it."""

    key: TransportKey
    message: IMessage = field(repr=False)
    me: str
    sender_uri: str | None
    """None while only the UID is authenticated; see `authenticate`."""
    sender_uid: bytes
    sender_kms_uri: str
    timestamp: float
    """T, Unix seconds."""
    csb_id: int
    """For a GMK one's own GUK-ID."""
    signed_digest: bytes
    srtp_policy: Mapping[int, int]
    """SRTP parameters in force: of the SP payload, or the default profile of the key type."""
    srtp_policy_stated: bool
    """Whether an SP payload stated them."""
    parameters_sealed: bool
    """Whether protected key parameters were present."""

    def authenticate(self, sender_uri: str, keyring: Keyring, policy: Policy = STRICT) -> OpenedKey:
        """Identity hiding (TS 33.180 §5.2.6): bind the proved UID to a URI learnt from the protected
        metadata.

        Returns the key with `sender_uri` set. Raises `SenderMismatch`, or what selecting a KMS raises.
        """
        for identity in keyring.identities(
            sender_uri, self.timestamp, kms_uri=self.sender_kms_uri, grace=policy.period_grace
        ):
            if identity.uid == self.sender_uid:
                return dataclasses.replace(self, sender_uri=sender_uri)
        raise SenderMismatch("the proved UID is not that of the claimed sender")


class ReplayCache(Protocol):
    """Remembers accepted messages by the SHA-256 of their signed octets (signatures are malleable)."""

    def check(self, digest: bytes, timestamp: float, now: float) -> None:
        """Raise `Replayed` or `ReplayStateLost`, or return: the message is new."""

    def record(self, opened: OpenedKey, now: float) -> None:
        """Remember an accepted message, in one transaction with its key where keys are stored."""


class Budget(Protocol):
    """What one signer may cost (security rule 26)."""

    def spend(self, signer: bytes, now: float) -> None:
        """Take one pairing from the signer's share, or raise `PairingBudgetExceeded`."""


def unseal(
    octets: bytes,
    *,
    sender_uri: str | None,
    me: str,
    keyring: Keyring,
    now: float,
    replay: ReplayCache | None,
    expect_type: KeyType | None,
    expect_group: str | None = None,
    policy: Policy = STRICT,
    allow_pending: bool = False,
    allow_revoked: bool = False,
    budget: Budget | None = None,
) -> OpenedKey:
    """Open a message addressed to `me` (one of the keyring's own identities).

    `sender_uri` is who the caller says has sent it; None accepts any UID whose KMS is known, to be bound
    later with `OpenedKey.authenticate`. With `expect_group` the key is a TGMK: every rule of the strict
    profile holds whatever `policy` switches on, the key parameters must be sealed and name exactly this
    group (octet for octet) and a finite expiry, and the SP payload must state exactly the group profile.
    `allow_pending` admits an activation ahead of `now` (to be installed early), `allow_revoked` a
    revocation. `replay` None switches the replay check off: only for looking at stored messages.

    Raises the error of the first check that fails; `Replayed.opened` tells what to acknowledge again.
    """
    if expect_group is not None:
        policy = policy.without_switches()
        if sender_uri is None:
            raise SenderMismatch("a temporary group's key needs a named sender")
    message = read(octets, policy)
    check_spoken(message, now, policy, expect_type)
    digest = message.signed_digest
    if replay is not None:
        replay.check(digest, message.timestamp, now)
    verified = authenticate(message, sender_uri, me, keyring, policy)
    held = keyring.key_sets_matching(me, [i.uid for i in verified.recipients])
    if not held:
        raise NoKeyForPeriod(f"no key set of {me} for the period of this message")
    secret = _decapsulate(message.sakke, held, verified.sender_uid, now, policy, budget)
    opened = _describe(message, secret, verified, me, policy)
    _check_usable(opened, now, expect_group, policy, allow_pending, allow_revoked)
    if replay is not None:
        replay.record(opened, now)
    return opened


def unseal_own(octets: bytes, *, me: str, keyring: Keyring, now: float, policy: Policy = STRICT) -> OpenedKey:
    """Open a message that `me` sent (from this or another device) by its SAKKE-to-self (RFC 6509 §2.1).

    The recipient is not checked. Raises as `unseal`, `DecapsulationFailed` when there is no such extension.
    """
    message = read(octets, policy)
    check_spoken(message, now, policy, None)
    verified = authenticate(message, me, None, keyring, policy)
    held = keyring.key_sets_matching(me, [verified.sender_uid])
    extensions = message.extensions(GE_SAKKE_TO_SELF)
    if not held or not extensions:
        raise DecapsulationFailed("no key for the sender in this message")
    reader = Reader(extensions[0].data, 1)
    inner = SakkeData.decode(reader)
    if inner.parameters != 1 or not reader.done:
        raise DecapsulationFailed("no key for the sender in this message")
    secret = _decapsulate(inner, held, verified.sender_uid, now, policy, None)
    return _describe(message, secret, verified, None, policy)


def _decapsulate(
    data: SakkeData, held: list[KeySet], signer: bytes, now: float, policy: Policy, budget: Budget | None
) -> bytes:
    """Step 8. Deviating forms are tried only when their switch is on; one uniform error otherwise."""
    for key_set in held:
        if budget is not None:
            budget.spend(signer, now)
        try:
            secret, _ = sakke.decapsulate(
                data.sed,
                key_set.receiver_key,
                unpadded_hash=policy.unpadded_hash,
                short_hint=policy.short_hint,
                long_key=policy.long_key,
            )
        except DecapsulationFailed:
            continue
        return secret
    raise DecapsulationFailed("SAKKE: no key")


def _describe(
    message: IMessage, secret: bytes, verified: VerifiedMessage, me: str | None, policy: Policy
) -> OpenedKey:
    """Steps 8 and 9: key id, MKI, key parameters and SRTP policy as values. `me` None: a message of one's
    own."""
    kind, csb_id = KeyType(message.key_type), message.csb_id
    extensions = message.extensions(GE_KEY_PARAMETERS)
    parameters, sealed = KeyParameters(kind), False
    if extensions:
        data = extensions[0].data
        if key_parameters.is_protected(data):
            parameters, sealed = key_parameters.unprotect(data, secret, csb_id), True
        else:
            parameters = key_parameters.decode_clear(data, kind)
            allow(policy, "clear_key_parameters", "key parameters in the clear")
        if parameters.key_type != kind:
            raise BadKeyParameters("the key parameters are for another type of key")
    key_id = csb_id
    if kind is KeyType.GMK:
        # the GUK-ID of a message of one's own is the recipient's, whose URI a UID does not tell: MKI does
        key_id = gmk_id_of(secret, csb_id, me) if me is not None else _gmk_id_from_spi(message)
    key = TransportKey(
        kind, Secret(secret), key_id, message.rand, parameters.activation, parameters.expiry,
        parameters.status, parameters.group_ids, parameters.text,
    )  # fmt: skip
    mki = key.mki(csb_id)
    for session in message.header.sessions:
        if isinstance(session, GenericId) and session.spi not in (b"", mki):
            allow(policy, "foreign_spi", "an SPI that is not the MKI of this key")
    stated = _srtp_policy(message)
    kms = message.idr(ROLE_INITIATOR_KMS)
    return OpenedKey(
        key=key,
        message=message,
        me=me if me is not None else str(verified.sender_uri),
        sender_uri=verified.sender_uri,
        sender_uid=verified.sender_uid,
        sender_kms_uri=kms.data.rstrip(b"\0").decode() if kms is not None else "",
        timestamp=message.timestamp,
        csb_id=csb_id,
        signed_digest=message.signed_digest,
        srtp_policy=stated if stated is not None else kind.default_profile,
        srtp_policy_stated=stated is not None,
        parameters_sealed=sealed,
    )


def _gmk_id_from_spi(message: IMessage) -> int:
    for session in message.header.sessions:
        if isinstance(session, GenericId) and len(session.spi) == 8 and session.spi[0] >> 4 == KeyType.GMK:
            return int.from_bytes(session.spi[:4], "big")
    raise BadKeyParameters("the GMK-ID of one's own message is not told by its MKI")


def _srtp_policy(message: IMessage) -> dict[int, int] | None:
    """The SP payload that the first crypto session names, else the first for SRTP."""
    policies = {p.number: p for p in message.security_policies if p.prot_type == 0}
    for session in message.header.sessions:
        if isinstance(session, GenericId):
            for number in session.policies:
                if number in policies:
                    return policies[number].values
    return next(iter(policies.values())).values if policies else None


def _check_usable(
    opened: OpenedKey,
    now: float,
    expect_group: str | None,
    policy: Policy,
    allow_pending: bool,
    allow_revoked: bool,
) -> None:
    """Step 9: group, expiry, profile, status, times (security rules 2, 8, 16)."""
    key = opened.key
    if expect_group is not None:
        if key.type is not KeyType.GMK:
            raise WrongKeyType(f"a {key.type.name} is no group key")
        if not opened.parameters_sealed:
            raise BadKeyParameters("a temporary group's key needs sealed key parameters")
        if key.group_ids != (expect_group,):
            raise GroupMismatch("the sealed key parameters do not name exactly this group")
        start = max(key.activation, opened.timestamp)
        if not key.expiry or key.expiry - start > policy.max_group_key_lifetime:
            raise NoExpiry("a temporary group's key needs a finite expiry")
        if not opened.srtp_policy_stated or dict(opened.srtp_policy) != GROUP_PROFILE:
            raise WrongProfile("the SP payload does not state the group profile")
    if policy.unusable_key:
        return
    if key.revoked and not allow_revoked:
        raise KeyRevoked("the key is revoked", opened)
    if key.expiry and key.expiry <= now:
        raise KeyExpired("the key has expired")
    if key.activation > now and not allow_pending:
        raise KeyNotYetActive("the key is not active yet")
