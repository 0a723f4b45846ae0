# SPDX-License-Identifier: Apache-2.0
"""The things a user holds: transported keys, KMS certificates and his key sets, as values that keep
secrets."""

from __future__ import annotations

import dataclasses
import hmac
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from mikey import derive, eccsi, sakke
from mikey.errors import CertificateInvalid, InvalidKey, MikeyError, Unsupported
from mikey.identity import SCHEME_3GPP, SCHEME_TEL, KeyPeriods, tel_identifier, uid

Random = Callable[[int], bytes]
"""Source of random octets: `os.urandom`, or one of a test."""

GROUP_PROFILE: Mapping[int, int] = {0: 6, 1: 16, 2: 4, 4: 12, 5: 0, 6: 0, 13: 1, 18: 4, 19: 0, 20: 16}
"""SRTP parameters of group media: AEAD_AES_128_GCM, RCC mode 3 with the ROC in every packet (TS 33.180
§E.4.1)."""
PRIVATE_PROFILE: Mapping[int, int] = {0: 6, 1: 16, 4: 12, 5: 0, 6: 0, 20: 16}
"""SRTP parameters of private calls and of CSKs (TS 33.180 §E.3.1)."""


class KeyType(IntEnum):
    """Purpose tag: the four top bits of a key id (TS 33.180 §G)."""

    GMK = 0
    PCK = 1
    CSK = 2
    SPK = 3
    MKFC = 4
    MSCCK = 5
    MUSIK = 6

    @property
    def has_groups(self) -> bool:
        """Whether key parameters of this type list group ids (TS 33.180 §E.6.3)."""
        return self in (KeyType.GMK, KeyType.MKFC, KeyType.MUSIK)

    @property
    def default_cs_ids(self) -> tuple[int, ...]:
        """CS-IDs of MCPTT (TS 33.180 §E.1.3); a private call sends with 0 (initiator) and 1 (receiver)."""
        return {KeyType.GMK: (4,), KeyType.PCK: (0, 1), KeyType.MUSIK: (7,)}.get(self, (6,))

    @property
    def video_cs_ids(self) -> tuple[int, ...]:
        """CS-IDs of MCVideo (TS 33.180 §E.1.3); a private call sends with 2 (initiator) and 3 (receiver)."""
        return {KeyType.GMK: (5,), KeyType.PCK: (2, 3), KeyType.MUSIK: (9,)}.get(self, (8,))

    @property
    def default_profile(self) -> Mapping[int, int]:
        """SRTP parameters where the message states none (TS 33.180 §E.3.1, §E.4.1)."""
        return GROUP_PROFILE if self is KeyType.GMK else PRIVATE_PROFILE


class Secret:
    """Octets that print as `<secret 16>`, do not pickle and compare in constant time.

    >>> Secret(b"0123456789abcdef")
    <secret 16>
    """

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = bytes(octets)

    def reveal(self) -> bytes:
        """The octets themselves; the only way to them."""
        return self._octets

    def __len__(self) -> int:
        return len(self._octets)

    def __repr__(self) -> str:
        return f"<secret {len(self._octets)}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._octets, other._octets)

    def __hash__(self) -> int:
        return hash((Secret, len(self._octets)))

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a secret is not pickled")

    def __getstate__(self) -> object:
        raise TypeError("a secret is not copied out")


NOT_REVOKED = 0x1
SHARED_WITH_GATEWAY = 0x2


@dataclass(frozen=True, slots=True, repr=False)
class TransportKey:
    """A key that an I_MESSAGE carries, with its RAND and key parameters (TS 33.180 §E.6).

    The *TGMK* of a temporary group call is a key of type GMK with exactly one group id and a finite expiry.
    One TGMK has one GMK-ID and one RAND for all members: a listener derives the talker's keys from its own
    copy.
    """

    type: KeyType
    key: Secret
    """16 octets (32 outside parameter set 1's own size)."""
    key_id: int
    """32 bits: purpose tag in the top four, 28 random ones. The GMK-ID, PCK-ID, CSK-ID ..."""
    rand: bytes
    """At least 16 octets, not secret (RFC 3830 §6.11)."""
    activation: int = 0
    """Unix seconds; 0: the time stamp of the message."""
    expiry: int = 0
    """Unix seconds; 0: never."""
    status: int = NOT_REVOKED
    """Bit 0: 1 = not revoked. Bit 1: shared with a security gateway (TS 33.180 §E.6.9)."""
    group_ids: tuple[str, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        if self.key_id >> 28 != self.type or self.key_id >> 32:
            raise MikeyError("the purpose tag of the key id is not the key's type")

    @classmethod
    def generate(
        cls,
        type: KeyType,
        *,
        random: Random = os.urandom,
        exclude_ids: Set[int] = frozenset(),
        size: int = 16,
        activation: int = 0,
        expiry: int = 0,
        group_ids: tuple[str, ...] = (),
        text: str = "",
    ) -> TransportKey:
        """Draw a key of `size` octets, a key id outside `exclude_ids` and a RAND of 16 octets.

        >>> key = TransportKey.generate(KeyType.CSK)
        >>> key.key_id >> 28, len(key.key), len(key.rand)
        (2, 16, 16)
        """
        if size not in (16, 32):
            raise Unsupported("keys have 16 or 32 octets")
        for _ in range(1000):
            key_id = type << 28 | int.from_bytes(random(4), "big") & derive.LOW28
            if key_id not in exclude_ids:
                break
        else:
            raise MikeyError("no free key id found: the source of random octets is broken")
        return cls(
            type, Secret(random(size)), key_id, random(16), activation, expiry, NOT_REVOKED, group_ids, text
        )

    @property
    def revoked(self) -> bool:
        """Status bit 0 is 0 (TS 33.180 §E.6.9)."""
        return not self.status & NOT_REVOKED

    def revoke(self) -> TransportKey:
        """The same key with the revoked status, to be sealed as a revocation."""
        return dataclasses.replace(self, status=self.status & ~NOT_REVOKED)

    def replace(self, **changes: object) -> TransportKey:
        """A copy with other key parameters."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def usable(self, now: float) -> bool:
        """Not revoked, activation <= now < expiry (TS 33.180 §E.6)."""
        return not self.revoked and self.activation <= now and (not self.expiry or now < self.expiry)

    def csb_id(self, uri: str | None = None) -> int:
        """The CSB-ID that delivers this key to `uri`: the GUK-ID for a GMK, else the key id."""
        if self.type is KeyType.GMK:
            if uri is None:
                raise MikeyError("the CSB-ID of a GMK is per user")
            return derive.guk_id(self.key.reveal(), self.key_id, uri)
        return self.key_id

    def mki(self, csb_id: int) -> bytes:
        """MKI of media: GMK-ID || GUK-ID (8 octets) for a GMK, else the key id (4 octets)."""
        own = self.key_id.to_bytes(4, "big")
        return own + csb_id.to_bytes(4, "big") if self.type is KeyType.GMK else own

    def same_key(self, other: TransportKey) -> bool:
        """Same id, key and RAND, whatever the key parameters say (security rules 15 and 17)."""
        return self.key_id == other.key_id and self.key == other.key and self.rand == other.rand

    def __repr__(self) -> str:
        state = " revoked" if self.revoked else ""
        return f"<{self.type.name} {self.key_id:08x}{state}>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a key is not pickled")


@dataclass(frozen=True, slots=True)
class KmsCertificate:
    """A KMS certificate (TS 33.180 §D.3.2): the public keys of one KMS and how it cuts time."""

    kms_uri: str
    """KmsUri, verbatim: it goes into every UID."""
    pub_enc_key: bytes = field(repr=False)
    """Z, 257 octets."""
    pub_auth_key: bytes = field(repr=False)
    """KPAK, 65 octets."""
    user_key_period: int = 2592000
    user_key_offset: int = 0
    user_id_format: str = "2"
    """"2": hashed UIDs of TS 33.180; "1": the native form of RFC 6509 (tel URIs, calendar months)."""
    valid_from: float | None = None
    """Unix seconds, inclusive."""
    valid_to: float | None = None
    """Unix seconds, exclusive."""
    revoked: bool = False
    role: str = "Root"
    """Root: one's own KMS; External: a partner's."""
    domains: tuple[str, ...] = ()
    """KmsDomainList: the domains of users that this KMS answers for."""
    cert_uri: str | None = None
    issuer: str | None = None
    parameter_set: int = 1
    is_security_gateway: bool | None = None

    def __post_init__(self) -> None:
        if self.parameter_set != 1:
            raise Unsupported("only SAKKE parameter set 1 exists (RFC 6509 appendix A)")
        if self.user_id_format not in ("1", "2"):
            raise Unsupported("UserIdFormat must be 2 (TS 33.180) or 1 (RFC 6509)")
        if self.user_key_period < 1 or self.user_key_offset < 0:
            raise CertificateInvalid("UserKeyPeriod must be positive, UserKeyOffset not negative")

    @property
    def periods(self) -> KeyPeriods:
        """The key periods of this KMS."""
        return KeyPeriods(self.user_key_period, self.user_key_offset, monthly=self.user_id_format == "1")

    @property
    def scheme(self) -> int:
        """The identifier scheme of SAKKE payloads for its users (RFC 6509 §4.2, TS 33.180 §E.5)."""
        return SCHEME_TEL if self.user_id_format == "1" else SCHEME_3GPP

    def same_keys(self, other: KmsCertificate) -> bool:
        """Whether it is of the same master keys, whatever its dates and revocation say."""
        return (self.kms_uri, self.pub_auth_key, self.pub_enc_key) == (
            other.kms_uri, other.pub_auth_key, other.pub_enc_key,
        )  # fmt: skip

    def uid(self, uri: str, period_no: int) -> bytes:
        """The identity octets of a user in a key period."""
        if self.user_id_format == "1":
            return tel_identifier(uri, period_no // 12, period_no % 12 + 1)
        return uid(uri, self.kms_uri, self.user_key_period, self.user_key_offset, period_no)

    def check(self, at: float) -> None:
        """Raise `CertificateInvalid` when revoked or when `at` (Unix seconds) is outside its dates."""
        if self.revoked:
            raise CertificateInvalid(f"the certificate of {self.kms_uri} is revoked")
        if (self.valid_from is not None and at < self.valid_from) or (
            self.valid_to is not None and at >= self.valid_to
        ):
            raise CertificateInvalid(f"the certificate of {self.kms_uri} is outside its dates")

    def validate(self) -> None:
        """Raise `InvalidKey` unless KPAK and Z are points of their curves and Z has order q."""
        eccsi.validate_kpak(self.pub_auth_key)
        sakke.validate_public(self.pub_enc_key)


@dataclass(frozen=True, eq=False, repr=False)
class KeySet:
    """One user's keys for one key period (KmsKeySet, TS 33.180 §D.3.3)."""

    uri: str
    uid: bytes
    """UserID: identity octets, 32 for TS 33.180."""
    period_no: int
    certificate: KmsCertificate
    rsk: Secret
    """UserDecryptKey, 257 octets."""
    ssk: Secret
    """UserSigningKeySSK, 32 octets."""
    pvt: bytes
    """UserPubTokenPVT, 65 octets."""

    @property
    def kms_uri(self) -> str:
        """The KMS that issued it."""
        return self.certificate.kms_uri

    @property
    def valid_from(self) -> int:
        """First Unix second of its key period."""
        return self.certificate.periods.start(self.period_no)

    @property
    def valid_to(self) -> int:
        """First Unix second after its key period."""
        return self.certificate.periods.end(self.period_no)

    @cached_property
    def receiver_key(self) -> sakke.ReceiverKey:
        """The RSK made ready for pairings: line table and own point, built when first needed."""
        return sakke.ReceiverKey(self.rsk.reveal(), self.uid, self.certificate.pub_enc_key)

    @cached_property
    def _hs(self) -> bytes:
        return eccsi.hs(self.certificate.pub_auth_key, self.uid, self.pvt)

    def under(self, certificate: KmsCertificate) -> KeySet:
        """The same keys under a newer copy of their certificate (revoked since, or with an end); tables are kept."""
        renewed = dataclasses.replace(self, certificate=certificate)
        for name in ("receiver_key", "_hs"):
            if name in self.__dict__:
                renewed.__dict__[name] = self.__dict__[name]
        return renewed

    def validate(self) -> None:
        """Check both keys before first use: SSK (RFC 6507 §5.1.2), RSK (RFC 6508 §6.1.2).

        Raises `InvalidKey`. A UID other than the one that follows from URI, KMS and period is refused too.
        """
        if self.uid != self.certificate.uid(self.uri, self.period_no):
            raise InvalidKey(f"the UID of the key set is not that of {self.uri} in period {self.period_no}")
        self.validate_signing_key()
        self.receiver_key.validate()

    def validate_signing_key(self) -> None:
        """The cheap half of `validate`: [SSK]G = KPAK + [HS]PVT."""
        eccsi.validate_ssk(self.certificate.pub_auth_key, self.uid, self.ssk.reveal(), self.pvt)

    def sign(self, octets: bytes) -> bytes:
        """ECCSI signature over octets: r || s || PVT, 129 octets (RFC 6507 §5.2.1)."""
        return eccsi.sign(octets, self.ssk.reveal(), self._hs, self.pvt)

    def __repr__(self) -> str:
        return f"<KeySet {self.uri} period {self.period_no} of {self.kms_uri}>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a key set is not pickled")


def gmk_id_of(key: bytes, csb_id: int, uri: str) -> int:
    """Undo the user salt: the GMK-ID from the GUK-ID of `uri` (TS 33.180 §E.6)."""
    return derive.guk_id(key, csb_id, uri)


def guk_id(key: TransportKey, uri: str) -> int:
    """The GUK-ID of a user under a GMK: CSB-ID of the message to him and of the media he sends."""
    return derive.guk_id(key.key.reveal(), key.key_id, uri)


def mki(key_id: int, csb_id: int | None = None) -> bytes:
    """MKI: GMK-ID || GUK-ID for a group key, the key id alone otherwise (TS 33.180 §E.4.1)."""
    own = key_id.to_bytes(4, "big")
    return own if csb_id is None else own + csb_id.to_bytes(4, "big")


def srtp_keys(key: TransportKey, *, csb_id: int, cs_id: int, key_length: int = 16) -> tuple[Secret, Secret]:
    """SRTP master key and 12-octet master salt of one sender (RFC 3830 §4.1.3).

    `csb_id` is the *sender's* GUK-ID for a GMK, else the key id; `cs_id` as in TS 33.180 §E.1.3 (4: MCPTT
    group, 0/1: private call, 6: CSK).
    """
    master, salt = derive.srtp_master(key.key.reveal(), cs_id, csb_id, key.rand, key_length)
    return Secret(master), Secret(salt)


def acknowledgement_key(key: TransportKey, csb_id: int) -> Secret:
    """The 32-octet MAC key of a member's acknowledgement; `csb_id` is that member's GUK-ID."""
    return Secret(derive.acknowledgement_key(key.key.reveal(), csb_id, key.rand))
