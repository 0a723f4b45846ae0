# SPDX-License-Identifier: Apache-2.0
"""Key parameters (General Extension 7, TS 33.180 §E.6): sealed under a key derived from the transported
one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mikey import derive
from mikey.errors import BadKeyParameters, ParseError
from mikey.keys import NOT_REVOKED, KeyType
from mikey.reader import Reader

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROTECTED = 0x40
AEAD_AES_128_GCM = 1
_AAD = 32
_GROUP_IEI = 0x7B


@dataclass(frozen=True, slots=True)
class KeyParameters:
    """The plaintext of TS 33.180 §E.6.3. Times are Unix seconds in 5 octets."""

    key_type: int
    status: int = NOT_REVOKED
    activation: int = 0
    expiry: int = 0
    text: str = ""
    group_ids: tuple[str, ...] = ()
    reserved: bytes = b""
    """What follows the fields known here."""

    def encode(self) -> bytes:
        """Plaintext octets. Raises `BadKeyParameters` for values that have no encoding."""
        try:
            text = self.text.encode()
            out = (
                bytes((self.key_type,))
                + self.status.to_bytes(4, "big")
                + self.activation.to_bytes(5, "big")
                + self.expiry.to_bytes(5, "big")
                + len(text).to_bytes(2, "big")
                + text
            )
            if _has_groups(self.key_type):
                groups = bytes((len(self.group_ids),))
                for group in self.group_ids:
                    groups += bytes((_GROUP_IEI,)) + len(group.encode()).to_bytes(2, "big") + group.encode()
                out += len(groups).to_bytes(2, "big") + groups
        except (OverflowError, ValueError) as error:
            raise BadKeyParameters(f"key parameters cannot be encoded: {error}") from None
        return out + self.reserved

    @classmethod
    def decode(cls, octets: bytes) -> KeyParameters:
        """Read plaintext octets. Raises `BadKeyParameters`."""
        try:
            reader = Reader(octets)
            key_type, status = reader.number(1, "key type"), reader.number(4, "status")
            activation, expiry = reader.number(5, "activation"), reader.number(5, "expiry")
            text = reader.counted(2, "text").decode()
            groups: list[str] = []
            if _has_groups(key_type):
                inner = Reader(reader.counted(2, "group ids"))
                for _ in range(inner.number(1, "number of group ids")):
                    if inner.number(1, "group IEI") != _GROUP_IEI:
                        raise ParseError("group id with another IEI than 7B", inner.at)
                    groups.append(inner.counted(2, "group id").decode())
                if not inner.done:
                    raise ParseError("octets after the group ids", inner.at)
        except (ParseError, UnicodeDecodeError) as error:
            raise BadKeyParameters(f"malformed key parameters: {error}") from None
        return cls(key_type, status, activation, expiry, text, tuple(groups), octets[reader.at :])


def _has_groups(key_type: int) -> bool:
    return key_type in (KeyType.GMK, KeyType.MKFC, KeyType.MUSIK)


def protect(parameters: KeyParameters, key: bytes, csb_id: int, now: float, iv: bytes) -> bytes:
    """The data of a General Extension 7: an MCData protected payload (TS 33.180 §E.6.1, §8.5.4).

    `iv` 16 random octets; AEAD_AES_128_GCM under the DPCK of `key` with the CSB-ID as DPPK-ID; additional
    data are the 32 octets before the IEI.
    """
    head = (
        bytes((PROTECTED,))
        + int(now).to_bytes(5, "big")
        + bytes(5)  # payload id, sequence number: not used here
        + bytes((AEAD_AES_128_GCM,))
        + iv
        + csb_id.to_bytes(4, "big")
    )
    sealed = _aead(derive.dpck(key, csb_id)[-16:]).encrypt(iv, parameters.encode(), head)
    return head + b"\0" + len(sealed).to_bytes(2, "big") + sealed


def unprotect(data: bytes, key: bytes, csb_id: int) -> KeyParameters:
    """Open a protected payload. Raises `BadKeyParameters` for any fault of form or authenticity."""
    from cryptography.exceptions import InvalidTag

    try:
        reader = Reader(data)
        head = reader.take(_AAD, "protected payload")
        reader.number(1, "IEI")
        sealed = reader.counted(2, "protected payload")
    except ParseError as error:
        raise BadKeyParameters(f"malformed key parameters: {error}") from None
    if not reader.done or head[11] != AEAD_AES_128_GCM or len(sealed) < 16:
        raise BadKeyParameters("malformed key parameters")
    if int.from_bytes(head[28:32], "big") != csb_id:
        raise BadKeyParameters("the DPPK-ID is not the CSB-ID (TS 33.180 E.6.1)")
    keys = [derive.dpck(key, csb_id)]
    if len(key) == 32:  # deployed senders of 256-bit keys cut the result, or the key, to 16 octets
        keys += [keys[0][-16:], derive.dpck(key[:16], csb_id)]
    for dpck in keys:
        try:
            return KeyParameters.decode(_aead(dpck).decrypt(head[12:28], sealed, head))
        except InvalidTag:
            continue
    raise BadKeyParameters("the key parameters are not authentic")


def is_protected(data: bytes) -> bool:
    """Whether the data begin like a protected payload rather than the clear pre-1.2 form."""
    return bool(data) and bool(data[0] & PROTECTED)


def decode_clear(data: bytes, tag: int) -> KeyParameters:
    """The clear pre-1.2 form: 17 or more octets, key type as it is or one higher, no or empty group ids."""
    try:
        reader = Reader(data)
        key_type, status = reader.number(1, "key type"), reader.number(4, "status")
        activation, expiry = reader.number(5, "activation"), reader.number(5, "expiry")
        text = reader.counted(2, "text").decode()
    except (ParseError, UnicodeDecodeError) as error:
        raise BadKeyParameters(f"malformed key parameters: {error}") from None
    if key_type not in (tag, tag + 1):
        raise BadKeyParameters("the key type is not that of the message")
    return KeyParameters(tag, status, activation, expiry, text, (), data[reader.at :])


def _aead(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
