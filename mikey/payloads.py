# SPDX-License-Identifier: Apache-2.0
"""The octets of MIKEY: header, payload chain and their values (RFC 3830 §6, RFC 6043 §6, RFC 6509 §4).

A message is read by its chain of next-payload fields, in whatever order, and encodes back octet for octet.
Payloads that are framed but mean nothing here are kept as `Opaque`. Nothing here is cryptography.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

from mikey.errors import DuplicatePayload, MissingPayload, ParseError, TooLarge, TrailingOctets, Unsupported
from mikey.identity import ntp_decode
from mikey.reader import Reader

VERSION = 1
SAKKE_INIT = 26
"""Data type of an I_MESSAGE (RFC 6509 §4.1)."""
PRF_HMAC_SHA_256 = 1

KEMAC, PKE, DH, SIGN, T, ID, CERT, CHASH, V, SP, RAND, ERR = range(1, 13)
TR, IDR, RANDR, GENERAL_EXTENSION, SAKKE = 13, 14, 15, 21, 26

MAP_SRTP_ID, MAP_EMPTY, MAP_GENERIC_ID = 0, 1, 2

ROLE_INITIATOR, ROLE_RESPONDER = 1, 2
ROLE_INITIATOR_KMS, ROLE_RESPONDER_KMS = 6, 7
ROLE_UID_INITIATOR, ROLE_UID_RESPONDER = 8, 9

ID_NAI, ID_URI, ID_BYTES = 0, 1, 2

ECCSI = 2
"""SIGN type (RFC 6509 §4.3)."""

GE_VENDOR_ID, GE_SDP_IDS, GE_KEY_ID, GE_SAKKE_TO_SELF, GE_KEY_PARAMETERS = 0, 1, 3, 6, 7

MAX_OCTETS = 65536
MAX_PAYLOADS = 64

_MAC_OCTETS = {0: 0, 1: 20, 2: 32}
_HASH_OCTETS = {0: 20, 1: 16}
_DH_OCTETS = {0: 192, 1: 96, 2: 128}
_TIME_OCTETS = {0: 8, 1: 8, 2: 4}

NAMES = {
    KEMAC: "KEMAC",
    PKE: "PKE",
    DH: "DH",
    SIGN: "SIGN",
    T: "T",
    ID: "ID",
    CERT: "CERT",
    CHASH: "CHASH",
    V: "V",
    SP: "SP",
    RAND: "RAND",
    ERR: "ERR",
    TR: "TR",
    IDR: "IDR",
    RANDR: "RANDR",
    SAKKE: "SAKKE",
    GENERAL_EXTENSION: "General Extension",
}


def _length(data: bytes, octets: int, what: str) -> bytes:
    if len(data) >> 8 * octets:
        raise ParseError(f"{what} is too long for its length field")
    return len(data).to_bytes(octets, "big")


class Payload(Protocol):
    """One element of the chain. `encode` gives the octets after the next-payload octet."""

    @property
    def code(self) -> int:
        """Its payload type."""

    def encode(self) -> bytes:
        """Octets without the next-payload octet (SIGN has none)."""


@dataclass(frozen=True, slots=True)
class Timestamp:
    """T (RFC 3830 §6.6): type 0 NTP-UTC, 1 NTP, 2 COUNTER."""

    code: ClassVar[int] = T
    ts_type: int
    value: bytes

    @classmethod
    def decode(cls, reader: Reader) -> Timestamp:
        ts_type = reader.octet("TS type")
        if ts_type not in _TIME_OCTETS:
            raise Unsupported(f"time stamp type {ts_type}")
        return cls(ts_type, reader.take(_TIME_OCTETS[ts_type], "time stamp"))

    def encode(self) -> bytes:
        return bytes((self.ts_type,)) + self.value

    @property
    def unix(self) -> float:
        """Unix seconds. Raises `Unsupported` for a counter."""
        if self.ts_type == 2:
            raise Unsupported("a counter holds no time (RFC 6509 §2.2.1)")
        return ntp_decode(self.value)


@dataclass(frozen=True, slots=True)
class Rand:
    """RAND (RFC 3830 §6.11)."""

    code: ClassVar[int] = RAND
    value: bytes

    @classmethod
    def decode(cls, reader: Reader) -> Rand:
        return cls(reader.counted(1, "RAND"))

    def encode(self) -> bytes:
        return _length(self.value, 1, "RAND") + self.value


@dataclass(frozen=True, slots=True)
class Idr:
    """IDR (RFC 6043 §6.6): role, ID type, data."""

    code: ClassVar[int] = IDR
    role: int
    id_type: int
    data: bytes

    @classmethod
    def decode(cls, reader: Reader) -> Idr:
        return cls(reader.octet("IDR role"), reader.octet("ID type"), reader.counted(2, "IDR"))

    def encode(self) -> bytes:
        return bytes((self.role, self.id_type)) + _length(self.data, 2, "IDR") + self.data


@dataclass(frozen=True, slots=True)
class SecurityPolicy:
    """SP (RFC 3830 §6.10): parameters as (type, value octets), in order."""

    code: ClassVar[int] = SP
    number: int
    prot_type: int
    parameters: tuple[tuple[int, bytes], ...]

    @classmethod
    def decode(cls, reader: Reader) -> SecurityPolicy:
        number, prot_type = reader.octet("policy number"), reader.octet("prot type")
        inner = Reader(reader.counted(2, "SP"))
        parameters = []
        while not inner.done:
            parameters.append((inner.octet("SP parameter"), inner.counted(1, "SP parameter")))
        return cls(number, prot_type, tuple(parameters))

    def encode(self) -> bytes:
        inner = b"".join(bytes((t,)) + _length(v, 1, "SP parameter") + v for t, v in self.parameters)
        return bytes((self.number, self.prot_type)) + _length(inner, 2, "SP") + inner

    @property
    def values(self) -> dict[int, int]:
        """Parameters as numbers; empty values are 0, the first of a type counts."""
        out: dict[int, int] = {}
        for t, v in self.parameters:
            out.setdefault(t, int.from_bytes(v, "big"))
        return out

    @classmethod
    def of(cls, values: dict[int, int], number: int = 0) -> SecurityPolicy:
        """An SRTP policy of one-octet parameters."""
        return cls(number, 0, tuple((t, bytes((v,))) for t, v in values.items()))


@dataclass(frozen=True, slots=True)
class SakkeData:
    """SAKKE (RFC 6509 §4.2): parameter set, identifier scheme, SED."""

    code: ClassVar[int] = SAKKE
    parameters: int
    scheme: int
    sed: bytes = field(repr=False)

    @classmethod
    def decode(cls, reader: Reader) -> SakkeData:
        return cls(
            reader.octet("SAKKE parameters"),
            reader.octet("ID scheme"),
            reader.counted(2, "SAKKE data"),
        )

    def encode(self) -> bytes:
        return bytes((self.parameters, self.scheme)) + _length(self.sed, 2, "SAKKE data") + self.sed


@dataclass(frozen=True, slots=True)
class GeneralExtension:
    """General Extension (RFC 3830 §6.15)."""

    code: ClassVar[int] = GENERAL_EXTENSION
    ge_type: int
    data: bytes = field(repr=False)

    @classmethod
    def decode(cls, reader: Reader) -> GeneralExtension:
        return cls(reader.octet("GE type"), reader.counted(2, "General Extension"))

    def encode(self) -> bytes:
        return bytes((self.ge_type,)) + _length(self.data, 2, "General Extension") + self.data


@dataclass(frozen=True, slots=True)
class Signature:
    """SIGN (RFC 3830 §6.5): 4-bit type, 12-bit length, octets. Always last, without a next-payload octet."""

    code: ClassVar[int] = SIGN
    sig_type: int
    value: bytes = field(repr=False)

    @classmethod
    def decode(cls, reader: Reader) -> Signature:
        head = reader.number(2, "SIGN header")
        return cls(head >> 12, reader.take(head & 0xFFF, "signature"))

    def encode(self) -> bytes:
        if len(self.value) > 0xFFF or self.sig_type > 0xF:
            raise ParseError("signature type or length out of range")
        return (self.sig_type << 12 | len(self.value)).to_bytes(2, "big") + self.value


@dataclass(frozen=True, slots=True)
class Opaque:
    """A payload that is framed, kept and passed on, but not looked into."""

    code: int
    data: bytes = field(repr=False)

    def encode(self) -> bytes:
        return self.data


def decode_opaque(code: int, reader: Reader) -> Opaque:
    """A payload that is framed here but not looked into. Raises `ParseError` when its length is not known."""
    start, name = reader.at, NAMES[code]
    if code == KEMAC:
        reader.octet(name)
        reader.counted(2, name)
        _take_by(reader, _MAC_OCTETS, name)
    elif code == PKE:
        reader.take(reader.number(2, name) & 0x3FFF, name)
    elif code == DH:
        _take_by(reader, _DH_OCTETS, name)
        _take_key_validity(reader, name)
    elif code in (ID, CERT):
        reader.octet(name)
        reader.counted(2, name)
    elif code == CHASH:
        _take_by(reader, _HASH_OCTETS, name)
    elif code == V:
        _take_by(reader, _MAC_OCTETS, name)
    elif code == ERR:
        reader.take(3, name)
    elif code == TR:
        reader.octet(name)
        _take_by(reader, _TIME_OCTETS, name)
    elif code == RANDR:
        reader.octet(name)
        reader.counted(1, name)
    return Opaque(code, reader.octets[start : reader.at])


def _take_key_validity(reader: Reader, what: str) -> None:
    """Reserved (4 bits), KV type (4 bits) and its data (RFC 3830 §6.14): none, an SPI, or an interval."""
    kind = reader.octet(what) & 0xF
    if kind > 2:
        raise ParseError(f"{what}: key validity of unknown type {kind}", reader.at - 1)
    for _ in range(kind):
        reader.counted(1, what)


def _take_by(reader: Reader, lengths: dict[int, int], what: str) -> None:
    kind = reader.octet(what)
    if kind not in lengths:
        raise ParseError(f"{what}: the length of algorithm {kind} is not known", reader.at - 1)
    reader.take(lengths[kind], what)


_DECODERS: dict[int, Callable[[Reader], Payload]] = {
    T: Timestamp.decode,
    RAND: Rand.decode,
    IDR: Idr.decode,
    SP: SecurityPolicy.decode,
    SAKKE: SakkeData.decode,
    GENERAL_EXTENSION: GeneralExtension.decode,
    SIGN: Signature.decode,
}


# -- header -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SrtpId:
    """An entry of the SRTP-ID map (RFC 3830 §6.1.1); the i-th has CS-ID i, from 1."""

    policy: int
    ssrc: int
    roc: int

    def encode(self) -> bytes:
        return bytes((self.policy,)) + self.ssrc.to_bytes(4, "big") + self.roc.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class GenericId:
    """An entry of the GENERIC-ID map (RFC 6043 §6.1.1)."""

    cs_id: int
    prot_type: int = 0
    s_flag: bool = False
    policies: tuple[int, ...] = (0,)
    session_data: bytes = b""
    spi: bytes = b""

    @classmethod
    def decode(cls, reader: Reader) -> GenericId:
        cs_id, prot_type = reader.octet("CS ID"), reader.octet("prot type")
        flags = reader.octet("#P")
        policies = tuple(reader.take(flags & 0x7F, "policies"))
        session_data = reader.counted(2, "session data")
        if prot_type == 0 and len(session_data) not in (0, 4, 10):
            raise ParseError("SRTP session data has 0, 4 or 10 octets", reader.at)
        return cls(cs_id, prot_type, bool(flags & 0x80), policies, session_data, reader.counted(1, "SPI"))

    def encode(self) -> bytes:
        if len(self.policies) > 0x7F:
            raise ParseError("more than 127 policies in one crypto session")
        return (
            bytes((self.cs_id, self.prot_type, self.s_flag << 7 | len(self.policies), *self.policies))
            + _length(self.session_data, 2, "session data")
            + self.session_data
            + _length(self.spi, 1, "SPI")
            + self.spi
        )


@dataclass(frozen=True, slots=True)
class Header:
    """HDR (RFC 3830 §6.1)."""

    csb_id: int
    map_type: int = MAP_GENERIC_ID
    sessions: tuple[SrtpId | GenericId, ...] = ()
    data_type: int = SAKKE_INIT
    v_flag: bool = False
    prf: int = PRF_HMAC_SHA_256
    version: int = VERSION

    @classmethod
    def decode(cls, reader: Reader) -> tuple[Header, int]:
        """The header and the type of the first payload."""
        version, data_type = reader.octet("version"), reader.octet("data type")
        if version != VERSION:
            raise Unsupported(f"MIKEY version {version}")
        next_payload, flags = reader.octet("next payload"), reader.octet("PRF")
        csb_id = reader.number(4, "CSB ID")
        count, map_type = reader.octet("#CS"), reader.octet("CS ID map type")
        sessions: list[SrtpId | GenericId] = []
        if map_type == MAP_SRTP_ID:
            for _ in range(count):
                sessions.append(
                    SrtpId(reader.octet("policy"), reader.number(4, "SSRC"), reader.number(4, "ROC"))
                )
        elif map_type == MAP_GENERIC_ID:
            sessions.extend(GenericId.decode(reader) for _ in range(count))
        elif map_type != MAP_EMPTY:
            raise Unsupported(f"CS ID map type {map_type}")
        elif count:
            raise ParseError("an empty map with crypto sessions", 8)
        return cls(
            csb_id, map_type, tuple(sessions), data_type, bool(flags & 0x80), flags & 0x7F, version
        ), next_payload

    def encode(self, next_payload: int) -> bytes:
        if len(self.sessions) > 255:
            raise ParseError("more than 255 crypto sessions")
        return (
            bytes((self.version, self.data_type, next_payload, self.v_flag << 7 | self.prf))
            + self.csb_id.to_bytes(4, "big")
            + bytes((len(self.sessions), self.map_type))
            + b"".join(s.encode() for s in self.sessions)
        )


def decode_chain(
    octets: bytes, *, max_octets: int = MAX_OCTETS, max_payloads: int = MAX_PAYLOADS
) -> tuple[Header, tuple[Payload, ...], tuple[int, ...]]:
    """Header, payloads and the offset of each, of any MIKEY message whose payloads are framed here.

    Raises `ParseError` (or `TooLarge`, `Unsupported`) on anything else, including octets after the chain.
    """
    if len(octets) > max_octets:
        raise TooLarge(f"more than {max_octets} octets")
    reader = Reader(octets)
    header, code = Header.decode(reader)
    payloads: list[Payload] = []
    offsets: list[int] = []
    while code:
        if len(payloads) >= max_payloads:
            raise TooLarge(f"more than {max_payloads} payloads")
        offsets.append(reader.at)
        following = 0 if code == SIGN else reader.octet("next payload")
        decoder = _DECODERS.get(code)
        if decoder is not None:
            payloads.append(decoder(reader))
        elif code in NAMES:
            payloads.append(decode_opaque(code, reader))
        else:
            raise ParseError(f"payload type {code} is not known, so its length is not", offsets[-1])
        code = following
    if not reader.done:
        raise TrailingOctets("octets after the last payload", reader.at)
    return header, tuple(payloads), tuple(offsets)


def encode_chain(header: Header, payloads: Iterable[Payload]) -> bytes:
    """The octets of a message; next-payload fields follow from the order."""
    chain = list(payloads)
    codes = [*(p.code for p in chain[1:]), 0][: len(chain)]
    out = header.encode(chain[0].code if chain else 0)
    for payload, following in zip(chain, codes, strict=True):
        if payload.code == SIGN and following:
            raise ParseError("SIGN must be the last payload")
        out += (b"" if payload.code == SIGN else bytes((following,))) + payload.encode()
    return out


# -- I_MESSAGE ----------------------------------------------------------------------------------------------

_NO_PLACE = (KEMAC, PKE, DH, CERT, V, ERR)
_P = TypeVar("_P", Timestamp, Rand, SakkeData, Signature)


@dataclass(frozen=True, slots=True)
class IMessage:
    """A parsed I_MESSAGE (RFC 6509 §2.1). Nothing in it is checked but its form."""

    octets: bytes = field(repr=False)
    header: Header
    payloads: tuple[Payload, ...]
    offsets: tuple[int, ...] = field(repr=False)

    @classmethod
    def decode(
        cls, octets: bytes, *, max_octets: int = MAX_OCTETS, max_payloads: int = MAX_PAYLOADS
    ) -> IMessage:
        """Read and check the form: data type 26, exactly one T, RAND, SAKKE and SIGN, each IDR role once."""
        header, payloads, offsets = decode_chain(octets, max_octets=max_octets, max_payloads=max_payloads)
        if header.data_type != SAKKE_INIT:
            raise Unsupported(f"data type {header.data_type} is no I_MESSAGE")
        counts: dict[int, int] = {}
        roles: set[int] = set()
        policies: set[int] = set()
        for payload in payloads:
            counts[payload.code] = counts.get(payload.code, 0) + 1
            if payload.code in _NO_PLACE:
                raise Unsupported(f"{NAMES[payload.code]} has no place in an I_MESSAGE")
            if isinstance(payload, Idr):
                if payload.role in roles:
                    raise DuplicatePayload(f"two IDR payloads of role {payload.role}")
                roles.add(payload.role)
            elif isinstance(payload, SecurityPolicy):
                if payload.number in policies:
                    raise DuplicatePayload(f"two SP payloads of number {payload.number}")
                policies.add(payload.number)
            elif isinstance(payload, GeneralExtension) and payload.ge_type == GE_KEY_PARAMETERS:
                counts[-GE_KEY_PARAMETERS] = counts.get(-GE_KEY_PARAMETERS, 0) + 1
        for code in (T, RAND, SAKKE, SIGN):
            if not counts.get(code):
                raise MissingPayload(f"no {NAMES[code]} payload")
            if counts[code] > 1:
                raise DuplicatePayload(f"two {NAMES[code]} payloads")
        if counts.get(-GE_KEY_PARAMETERS, 0) > 1:
            raise DuplicatePayload("two key parameters payloads")
        if payloads[-1].code != SIGN:
            raise ParseError("SIGN is not the last payload")
        return cls(octets, header, payloads, offsets)

    def encode(self) -> bytes:
        """The octets again, made from the values."""
        return encode_chain(self.header, self.payloads)

    def _one(self, kind: type[_P]) -> _P:
        for payload in self.payloads:
            if isinstance(payload, kind):
                return payload
        raise MissingPayload(kind.__name__)

    @property
    def csb_id(self) -> int:
        """CSB ID of the header."""
        return self.header.csb_id

    @property
    def key_type(self) -> int:
        """Purpose tag: the four top bits of the CSB ID (TS 33.180 §G)."""
        return self.header.csb_id >> 28

    @property
    def t(self) -> Timestamp:
        """The T payload."""
        return self._one(Timestamp)

    @property
    def timestamp(self) -> float:
        """T in Unix seconds."""
        return self.t.unix

    @property
    def rand(self) -> bytes:
        """Octets of RAND."""
        return self._one(Rand).value

    @property
    def sakke(self) -> SakkeData:
        """The SAKKE payload."""
        return self._one(SakkeData)

    @property
    def signature(self) -> Signature:
        """The SIGN payload."""
        return self._one(Signature)

    def idr(self, role: int) -> Idr | None:
        """The IDR payload of a role."""
        for payload in self.payloads:
            if isinstance(payload, Idr) and payload.role == role:
                return payload
        return None

    @property
    def security_policies(self) -> tuple[SecurityPolicy, ...]:
        """SP payloads in order."""
        return tuple(p for p in self.payloads if isinstance(p, SecurityPolicy))

    def extensions(self, ge_type: int) -> tuple[GeneralExtension, ...]:
        """General Extensions of a type."""
        return tuple(p for p in self.payloads if isinstance(p, GeneralExtension) and p.ge_type == ge_type)

    @property
    def signed_octets(self) -> bytes:
        """All octets through the SIGN header: everything but the signature itself (RFC 3830 §5.2)."""
        return self.octets[: len(self.octets) - len(self.signature.value)]

    @property
    def signed_digest(self) -> bytes:
        """SHA-256 of the signed octets: the name of this message in replay caches and acknowledgements."""
        return hashlib.sha256(self.signed_octets).digest()
