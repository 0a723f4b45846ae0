# SPDX-License-Identifier: Apache-2.0
"""An I_MESSAGE as a table of its fields, and what is unusual about it. No cryptography, no keys.

The table goes as far as the octets can be read, so that a broken message shows where it breaks.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mikey.errors import MikeyError, ParseError
from mikey.identity import ntp_decode
from mikey.keys import KeyType
from mikey.payloads import (
    ECCSI,
    GE_KEY_PARAMETERS,
    GENERAL_EXTENSION,
    ID_BYTES,
    ID_URI,
    IDR,
    MAP_EMPTY,
    MAP_GENERIC_ID,
    MAP_SRTP_ID,
    NAMES,
    PRF_HMAC_SHA_256,
    RAND,
    SAKKE,
    SAKKE_INIT,
    SIGN,
    SP,
    VERSION,
    GenericId,
    Idr,
    IMessage,
    T,
    decode_chain,
    decode_opaque,
)
from mikey.policy import STRICT
from mikey.reader import Reader

DATA_TYPES = {
    0: "pre-shared key", 1: "pre-shared key, answer", 2: "public key", 3: "public key, answer",
    4: "Diffie-Hellman", 5: "Diffie-Hellman, answer", 6: "error", 7: "DHHMAC", 8: "DHHMAC, answer",
    9: "RSA-R", 10: "RSA-R, answer", SAKKE_INIT: "SAKKE I_MESSAGE",
}  # fmt: skip
ROLES = {
    1: "initiator (IDRi)", 2: "responder (IDRr)", 3: "KMS", 4: "pre-shared key", 5: "application",
    6: "initiator's KMS (IDRkmsi)", 7: "responder's KMS (IDRkmsr)",
    8: "initiator's UID (IDRuidi)", 9: "responder's UID (IDRuidr)",
}  # fmt: skip
ID_TYPES = {0: "NAI", 1: "URI", 2: "byte string"}
SP_PARAMETERS = {
    0: "encryption", 1: "session encryption key length", 2: "authentication", 3: "session authentication key length",
    4: "session salt length", 5: "PRF", 6: "key derivation rate", 7: "SRTP encryption", 8: "SRTCP encryption",
    9: "FEC order", 10: "SRTP authentication", 11: "authentication tag length", 12: "prefix length",
    13: "ROC transmission rate", 14: "SRTP authentication", 15: "SRTCP authentication",
    16: "SRTP authentication key length", 17: "SRTCP authentication key length",
    18: "SRTP authentication tag length", 19: "SRTCP authentication tag length", 20: "AEAD tag length",
}  # fmt: skip
SP_VALUES = {
    (0, 0): "NULL", (0, 1): "AES-CM", (0, 2): "AES-F8", (0, 6): "AES-GCM", (2, 0): "NULL", (2, 1): "HMAC-SHA-1",
    (2, 2): "RCC mode 1", (2, 3): "RCC mode 2", (2, 4): "RCC mode 3", (5, 0): "AES-CM",
}  # fmt: skip
EXTENSIONS = {0: "vendor id", 1: "SDP ids", 3: "MBMS key id", 6: "SAKKE-to-self", 7: "key parameters"}


@dataclass(frozen=True, slots=True)
class Row:
    """One field: where it stands, its octets, what it is called and means, and the clause that says so."""

    offset: int
    octets: bytes
    field: str
    meaning: str
    clause: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is not as TS 33.180 has it; `word` is stable, `text` one sentence."""

    word: str
    text: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """The table of one message, remarks on it, and the error that ended the reading, if one did."""

    rows: tuple[Row, ...]
    remarks: tuple[Remark, ...]
    error: MikeyError | None
    """What `mikey.read` raises under the strict policy."""


def printable(octets: bytes) -> str:
    """Octets of an identity as text: UTF-8 with control characters escaped, else hex.

    >>> printable(b"sip:a@b\\x1b[1m"), printable(b"\\xff\\x00")
    ('sip:a@b\\\\x1b[1m', 'ff00')
    """
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        return octets.hex()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def moment(unix: float) -> str:
    """Unix seconds as ISO 8601 UTC; a number where the calendar has no such day.

    >>> moment(1_800_000_000)
    '2027-01-15 08:00:00Z'
    """
    try:
        at = datetime.datetime.fromtimestamp(unix, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{unix:.0f} s"
    return at.isoformat(sep=" ", timespec="milliseconds" if unix % 1 else "seconds").replace("+00:00", "Z")


def key_id_meaning(csb_id: int) -> str:
    """What the purpose tag of a CSB ID says (TS 33.180 §G)."""
    try:
        kind = KeyType(csb_id >> 28)
    except ValueError:
        return f"purpose tag {csb_id >> 28}: not assigned"
    return "GUK-ID of the recipient under a GMK" if kind is KeyType.GMK else f"{kind.name}-ID"


class _Table:
    """Reads field by field and writes down each."""

    def __init__(self, octets: bytes) -> None:
        self.reader = Reader(octets)
        self.rows: list[Row] = []

    def take(self, count: int, name: str, clause: str, say: Callable[[bytes], str]) -> bytes:
        start = self.reader.at
        octets = self.reader.take(count, name)
        self.rows.append(Row(start, octets, name, say(octets), clause))
        return octets

    def number(self, count: int, name: str, clause: str, say: Callable[[int], str] = str) -> int:
        return int.from_bytes(self.take(count, name, clause, lambda o: say(int.from_bytes(o, "big"))), "big")


def rows_of(octets: bytes) -> Iterator[Row]:
    """The fields of a MIKEY message in order, as far as they can be read; the rest as one row "unread"."""
    table = _Table(octets)
    try:
        code = _header(table)
        while code:
            code = _payload(table, code)
    except MikeyError as error:
        stopped = str(error)
    else:
        stopped = "octets after the last payload"
    yield from table.rows
    at = sum(len(row.octets) for row in table.rows)
    if at < len(octets):
        yield Row(at, octets[at:], "unread", stopped, "RFC 3830 §6")


def _payload_name(code: int) -> str:
    return "last payload" if code == 0 else NAMES.get(code, f"unknown payload {code}")


def _header(table: _Table) -> int:
    clause = "RFC 3830 §6.1"
    table.number(1, "HDR version", clause, lambda v: str(v) if v == VERSION else f"{v}: not known")
    table.number(1, "data type", "RFC 6509 §4.1", lambda v: f"{v}: {DATA_TYPES.get(v, 'not known here')}")
    code = table.number(1, "next payload", clause, _payload_name)
    table.number(1, "V, PRF", clause, lambda v: f"V={v >> 7}, PRF function {v & 127}"
                 + (" (HMAC-SHA-256)" if v & 127 == PRF_HMAC_SHA_256 else ""))  # fmt: skip
    table.number(4, "CSB ID", "TS 33.180 §E.1, §G", key_id_meaning)
    count = table.number(1, "#CS", clause, lambda v: f"{v} crypto sessions")
    names = {MAP_SRTP_ID: "SRTP-ID", MAP_EMPTY: "empty map", MAP_GENERIC_ID: "GENERIC-ID"}
    kind = table.number(1, "CS ID map type", "RFC 6043 §6.1.1", lambda v: names.get(v, f"{v}: not known"))
    for number in range(count if kind in (MAP_SRTP_ID, MAP_GENERIC_ID) else 0):
        if kind == MAP_SRTP_ID:
            table.number(1, f"CS {number + 1} policy", "RFC 3830 §6.1.1")
            table.number(4, "SSRC", "RFC 3830 §6.1.1", lambda v: f"{v:08x}")
            table.number(4, "ROC", "RFC 3830 §6.1.1")
            continue
        clause = "RFC 6043 §6.1.1"
        start = table.reader.at
        session = GenericId.decode(table.reader)
        said = f"CS-ID {session.cs_id}, prot type {session.prot_type}, policies {list(session.policies)}"
        if session.session_data:
            said += f", session data {session.session_data.hex()}"
        said += f", SPI {session.spi.hex() or 'empty'}"
        table.rows.append(Row(start, table.reader.octets[start : table.reader.at], f"crypto session {number + 1}",
                              said, clause))  # fmt: skip
    return code


def _payload(table: _Table, code: int) -> int:
    name = _payload_name(code)
    if code == SIGN:
        clause = "RFC 6509 §4.3"
        head = table.number(2, "SIGN type, length", clause, lambda v: f"type {v >> 12}"
                            + (" (ECCSI)" if v >> 12 == ECCSI else "") + f", {v & 0xFFF} octets")  # fmt: skip
        if head & 0xFFF == 129:
            table.take(32, "r", "RFC 6507 §5.2.1", lambda o: "ECCSI")
            table.take(32, "s", "RFC 6507 §5.2.1", lambda o: "ECCSI")
            table.take(65, "PVT", "RFC 6507 §5.2.1", lambda o: "the signer's public token")
        else:
            table.take(head & 0xFFF, "signature", clause, lambda o: "")
        return 0
    following = table.number(1, f"{name} next payload", "RFC 3830 §6.1", _payload_name)
    known = _PAYLOADS.get(code)
    if known is not None:
        known(table)
        return following
    if code not in NAMES:
        raise ParseError(f"payload type {code} is not known, so its length is not", table.reader.at)
    start = table.reader.at
    opaque = decode_opaque(code, table.reader)
    table.rows.append(Row(start, opaque.data, name, "kept, not looked into", "RFC 3830 §6"))
    return following


def _timestamp(table: _Table) -> None:
    kind = table.number(1, "TS type", "RFC 3830 §6.6", lambda v: {0: "NTP-UTC", 1: "NTP", 2: "COUNTER"}.get(v, str(v)))
    if kind == 2:
        table.number(4, "TS value", "RFC 3830 §6.6", lambda v: f"counter {v}")
    else:
        table.take(8, "TS value", "RFC 3830 §6.6", lambda o: moment(ntp_decode(o)))


def _rand(table: _Table) -> None:
    length = table.number(1, "RAND length", "RFC 3830 §6.11")
    table.take(length, "RAND", "RFC 3830 §6.11", lambda o: "public; equal for all who get the key")


def _idr(table: _Table) -> None:
    role = table.number(1, "ID role", "RFC 6509 §4.4, TS 33.180 §E.7", lambda v: ROLES.get(v, f"{v}: not known"))
    table.number(1, "ID type", "RFC 3830 §6.7", lambda v: ID_TYPES.get(v, f"{v}: not known"))
    length = table.number(2, "ID length", "RFC 6043 §6.6")
    clause = "TS 33.180 §F.2.1" if role in (8, 9) else "RFC 6043 §6.6"
    table.take(length, "ID data", clause, lambda o: f"UID {o.hex()}" if role in (8, 9) else printable(o))


def _policy(table: _Table) -> None:
    clause = "RFC 3830 §6.10"
    table.number(1, "policy number", clause)
    table.number(1, "prot type", clause, lambda v: "SRTP" if v == 0 else str(v))
    length = table.number(2, "parameters length", clause)
    start = table.reader.at
    inner = Reader(table.reader.take(length, "SP"))
    while not inner.done:
        at = inner.at
        kind, value = inner.number(1, "SP parameter"), inner.counted(1, "SP parameter")
        number = int.from_bytes(value, "big")
        name = SP_PARAMETERS.get(kind, f"parameter {kind}")
        said = f"{name}: {SP_VALUES.get((kind, number), number)}"
        clause = "RFC 4771 §4" if kind in range(13, 20) else "RFC 7714 §14" if kind == 20 else "RFC 3830 §6.10.1"
        table.rows.append(Row(start + at, inner.octets[at : inner.at], f"SP {kind}", said, clause))


def _sakke(table: _Table) -> None:
    clause = "RFC 6509 §4.2"
    table.number(1, "SAKKE parameters", clause, lambda v: f"set {v}")
    table.number(1, "ID scheme", "RFC 6509 §4.2, TS 33.180 §E.5",
                 lambda v: {1: "tel URI, monthly keys", 2: "3GPP UID"}.get(v, f"{v}: not known"))  # fmt: skip
    length = table.number(2, "SED length", clause)
    if length in (273, 289):
        table.take(257, "R", "RFC 6508 §4", lambda o: "SAKKE point")
        table.take(length - 257, "H", "RFC 6508 §4", lambda o: f"masked key of {length - 257} octets")
    else:
        table.take(length, "SED", "RFC 6508 §4", lambda o: "of unusual length")


def _extension(table: _Table) -> None:
    clause = "RFC 3830 §6.15"
    kind = table.number(1, "extension type", clause, lambda v: EXTENSIONS.get(v, str(v)))
    length = table.number(2, "extension length", clause)
    first = table.reader.octets[table.reader.at : table.reader.at + 1]
    if kind == GE_KEY_PARAMETERS and length > 35 and first and first[0] & 0x40:
        clause = "TS 33.180 §E.6, §8.5.4"
        end = table.reader.at + length
        table.number(1, "message type", clause, lambda v: f"{v:02x}: protected")
        table.number(5, "date and time", clause, moment)
        table.take(5, "payload id, number", clause, lambda o: "not used")
        table.number(1, "algorithm", clause, lambda v: "AEAD_AES_128_GCM" if v == 1 else f"{v}: not known")
        table.take(16, "IV", clause, lambda o: "")
        table.number(4, "DPPK-ID", clause, lambda v: f"{v:08x}")
        table.number(1, "IEI", clause)
        table.number(2, "sealed length", clause)
        table.take(end - table.reader.at, "sealed key parameters", clause, lambda o: "ciphertext and tag of 16 octets")
    else:
        table.take(length, "extension data", clause, lambda o: "")


_PAYLOADS: dict[int, Callable[[_Table], None]] = {
    T: _timestamp, RAND: _rand, IDR: _idr, SP: _policy, SAKKE: _sakke, GENERAL_EXTENSION: _extension,
}  # fmt: skip


# -- what is unusual ------------------------------------------------------------------------------------------


def annotate(octets: bytes, now: float | None = None) -> Annotation:
    """Table and remarks of a message. `now` (Unix seconds) tells how old T is; None: T is not judged."""
    rows = tuple(rows_of(octets))
    try:
        message = IMessage.decode(octets, max_octets=STRICT.max_octets, max_payloads=STRICT.max_payloads)
    except MikeyError as error:
        return Annotation(rows, tuple(_fragment_remarks(octets, error)), error)
    return Annotation(rows, tuple(_remarks(message, now)), None)


def _fragment_remarks(octets: bytes, error: MikeyError) -> Iterator[Remark]:
    if len(octets) > 1 and octets[1] != SAKKE_INIT:
        yield Remark("data-type", f"Data type {octets[1]} is no I_MESSAGE of MIKEY-SAKKE, whose type is 26.")
    try:
        _, payloads, _ = decode_chain(octets)
    except MikeyError:
        yield Remark(error.reason, f"The message cannot be read to its end: {error}.")
        return
    if all(p.code != SIGN for p in payloads):
        yield Remark("missing-signature", "There is no SIGN payload: nobody vouches for this message.")
    yield Remark(error.reason, f"Every receiver refuses it: {error}.")


def _remarks(message: IMessage, now: float | None) -> Iterator[Remark]:
    header, signature, sakke = message.header, message.signature, message.sakke
    kind: KeyType | None = None
    try:
        kind = KeyType(message.key_type)
    except ValueError:
        yield Remark("key-type", f"Purpose tag {message.key_type} of the CSB ID is not assigned.")
    if header.v_flag:
        yield Remark("v-flag", "The V flag is set; a SAKKE sender leaves it 0 and a receiver ignores it.")
    if header.prf != PRF_HMAC_SHA_256:
        yield Remark("other-prf", f"PRF function {header.prf} instead of 1, PRF-HMAC-SHA-256.")
    yield from _map_remarks(message, kind)
    if message.t.ts_type != 0:
        yield Remark("ts-type", f"T is of type {message.t.ts_type}; TS 33.180 has NTP-UTC, type 0.")
    if message.t.ts_type < 2 and now is not None and abs(now - message.timestamp) > STRICT.skew:
        late = now - message.timestamp
        said = f"{late:.0f} s old" if late > 0 else f"{-late:.0f} s ahead of the clock"
        yield Remark("time-skew", f"T is {said}; a phone allows {STRICT.skew:.0f} s.")
    if len(message.rand) < 16:
        yield Remark("short-rand", f"RAND has {len(message.rand)} octets instead of at least 16.")
    yield from _identity_remarks(message)
    if sakke.parameters != 1:
        yield Remark("sakke-parameters", f"SAKKE parameter set {sakke.parameters}; only set 1 exists.")
    if sakke.scheme not in (1, 2):
        yield Remark("id-scheme", f"Identifier scheme {sakke.scheme} is neither RFC 6509's nor 3GPP's.")
    if len(sakke.sed) != 273:
        what = "a 256-bit key" if len(sakke.sed) == 289 else "an unusual length"
        yield Remark("sed-length", f"The encapsulated data have {len(sakke.sed)} octets instead of 273: {what}.")
    if sakke.sed[:1] != b"\x04":
        yield Remark("sakke-point", "The SAKKE point is not in uncompressed form (04).")
    if signature.sig_type != ECCSI or len(signature.value) != 129:
        yield Remark("signature-type", "The signature is no ECCSI signature of 129 octets: nobody can vouch for it.")
    elif signature.value[64] != 4:
        yield Remark("signature-point", "The PVT of the signature is not in uncompressed form (04).")
    yield from _policy_remarks(message, kind)
    yield from _parameter_remarks(message, kind)


def _map_remarks(message: IMessage, kind: KeyType | None) -> Iterator[Remark]:
    header = message.header
    if header.map_type != MAP_GENERIC_ID:
        name = "SRTP-ID" if header.map_type == MAP_SRTP_ID else "empty"
        yield Remark("map-type", f"The CS ID map is {name}; TS 33.180 senders write GENERIC-ID.")
    elif not header.sessions:
        yield Remark("empty-generic-map", "The GENERIC-ID map has no crypto session.")
    numbers = {p.number for p in message.security_policies}
    for session in header.sessions:
        if not isinstance(session, GenericId):
            continue
        unknown = [n for n in session.policies if n not in numbers]
        if unknown and numbers:
            yield Remark("policy-number", f"CS-ID {session.cs_id} names policy {unknown[0]}, which no SP payload has.")
        if not session.spi:
            continue
        own = message.csb_id.to_bytes(4, "big")
        if kind is KeyType.GMK and not (len(session.spi) == 8 and session.spi[4:] == own):
            yield Remark("foreign-spi", "The SPI is not GMK-ID || GUK-ID, the MKI of this key.")
        elif kind is not None and kind is not KeyType.GMK and session.spi != own:
            yield Remark("foreign-spi", "The SPI is not the key id, the MKI of this key.")


def _identity_remarks(message: IMessage) -> Iterator[Remark]:
    for roles, who in (((1, 8), "the initiator"), ((2, 9), "the responder")):
        if all(message.idr(role) is None for role in roles):
            yield Remark("missing-identity", f"No IDR payload names {who}.")
    for role, who in ((6, "the initiator's KMS"), (7, "the responder's KMS")):
        if message.idr(role) is None:
            yield Remark("missing-kms-id", f"No IDR payload names {who}.")
    for payload in message.payloads:
        if not isinstance(payload, Idr):
            continue
        if payload.role not in (1, 2, 6, 7, 8, 9):
            yield Remark("identity-role", f"An IDR payload of role {payload.role} has no place in an I_MESSAGE.")
        elif payload.role in (8, 9):
            if len(payload.data) != 32 or payload.id_type not in (ID_URI, ID_BYTES):
                yield Remark("uid-form", f"The UID of role {payload.role} is not 32 octets of ID type 1 or 2.")
        elif payload.role in (1, 2) and len(payload.data) == 32 and b":" not in payload.data:
            yield Remark("uid-in-uri-role", f"Role {payload.role} holds what looks like a UID instead of a URI.")
        elif payload.data.endswith(b"\0"):
            yield Remark("kms-uri-nul", f"The identity of role {payload.role} ends in a C string's NUL.")


def _policy_remarks(message: IMessage, kind: KeyType | None) -> Iterator[Remark]:
    for policy in message.security_policies:
        if policy.prot_type != 0 or kind is None:
            continue
        stated, usual = policy.values, kind.default_profile
        other = sorted(t for t in {*stated, *usual} if stated.get(t) != usual.get(t))
        if other:
            names = ", ".join(SP_PARAMETERS.get(t, f"parameter {t}") for t in other)
            what = f"SP payload {policy.number} differs from the {kind.name} profile of TS 33.180"
            yield Remark("profile", f"{what}: {names}.")


def _parameter_remarks(message: IMessage, kind: KeyType | None) -> Iterator[Remark]:
    extensions = message.extensions(GE_KEY_PARAMETERS)
    if not extensions:
        if kind is KeyType.GMK:
            yield Remark("no-key-parameters", "A group key without key parameters: group, status and expiry are open.")
        return
    data = extensions[0].data
    if not data or not data[0] & 0x40:
        yield Remark("clear-key-parameters", "The key parameters are in the clear, the form before TS 33.180 v1.2.")
    elif len(data) >= 32 and int.from_bytes(data[28:32], "big") != message.csb_id:
        yield Remark("dppk-id", "The DPPK-ID of the key parameters is not the CSB ID.")
    if len(data) >= 6 and data[0] & 0x40 and message.t.ts_type < 2:
        date = int.from_bytes(data[1:6], "big")
        if abs(date - message.timestamp) > 86400:
            yield Remark("key-parameters-date", f"The date of the key parameters, {moment(date)}, is not that of T.")
