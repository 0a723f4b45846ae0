# SPDX-License-Identifier: Apache-2.0
"""Where SIP meets keys: the I_MESSAGE in a body, the terms it signs, and the acknowledgement of a key.

The I_MESSAGE travels as one ``application/mikey`` part, binary; base64 is read too, and either is passed on
as it came. What the server must not be able to change stands in the signed and sealed text of the key
parameters (:class:`GroupTerms`). The acknowledgement (:class:`Acknowledgement`) is end-to-end evidence that
one user holds one key: a MAC that only a holder of the key can make, and the user's own ECCSI signature,
because every member could compute another's MAC.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcptt_sip.body import Part
from mcptt_sip.errors import SipError
from mikey import TransportKey, acknowledgement_key

MIKEY = "application/mikey"
ACKNOWLEDGEMENT = "application/vnd.mcptt-sip.key-ack"

#: digest/mikey: field messages have up to about 750 octets
MAX_I_MESSAGE = 4096
MAX_ACKNOWLEDGEMENT = 512
#: Results an acknowledgement can state.
INSTALLED, REVOKED = 0, 1

_LABEL = b"TGMK-ACK"


class KeyingError(SipError):
    """A body does not carry exactly the key material that it must. Outwardly all are one refusal (488, 136)."""


class AcknowledgementError(SipError):
    """An acknowledgement does not prove that its user holds the key. The user counts as not keyed."""


def mikey_part(parts: Sequence[Part], *, limit: int = MAX_I_MESSAGE) -> bytes | None:
    """The octets of the one ``application/mikey`` part as they came, ``None`` when there is none.

    Raises :class:`KeyingError` when there are several or it is too large: which one to believe must never
    be a choice.
    """
    found = [part for part in parts if part.content_type.partition(";")[0].strip().lower() == MIKEY]
    if not found:
        return None
    if len(found) > 1:
        raise KeyingError(f"{len(found)} application/mikey parts")
    if len(found[0].body) > limit * 4 // 3 + 4:
        raise KeyingError(f"application/mikey of {len(found[0].body)} octets")
    return found[0].body


def i_message(octets: bytes) -> bytes:
    """The binary I_MESSAGE of an ``application/mikey`` body: itself, or what its base64 stands for."""
    if octets[:1] != b"\x01":
        try:
            octets = base64.b64decode(bytes(octets).strip(), validate=True)
        except binascii.Error:
            raise KeyingError("application/mikey is neither binary nor base64") from None
    if len(octets) > MAX_I_MESSAGE:
        raise KeyingError(f"I_MESSAGE of {len(octets)} octets")
    return bytes(octets)


@dataclass(frozen=True, slots=True)
class GroupTerms:
    """What the initiator decides for the group and signs: the text of the key parameters.

    ``acknowledgement`` is ``none``, ``optional`` or ``required``; ``floor`` is ``server`` or ``members``
    (who arbitrates); ``deputies`` may update and revoke when the initiator is lost.
    """

    acknowledgement: str = "required"
    floor: str = "server"
    deputies: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"ack={self.acknowledgement};floor={self.floor}"
        return text + "".join(f";deputy={uri.replace('%', '%25').replace(';', '%3B')}" for uri in self.deputies)

    @classmethod
    def parse(cls, text: str) -> GroupTerms:
        """Raises :class:`KeyingError`: terms that cannot be read in full are not agreed to."""
        acknowledgement, floor, deputies = "none", "server", []
        for item in text.split(";") if text else []:
            name, _, value = item.partition("=")
            if name == "ack" and value in ("none", "optional", "required"):
                acknowledgement = value
            elif name == "floor" and value in ("server", "members"):
                floor = value
            elif name == "deputy" and value:
                deputies.append(value.replace("%3B", ";").replace("%25", "%"))
            else:
                raise KeyingError(f"signed group terms have an unknown entry {item!r}")
        return cls(acknowledgement, floor, tuple(deputies))


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """One user's proof that he opened one I_MESSAGE.

    On the wire: version 1 | result 1 | GMK-ID 4 | CSB-ID 4 | user URI 2+n | MAC 32 | ECCSI signature 129,
    at most :data:`MAX_ACKNOWLEDGEMENT` octets. It is not bound to a Call-ID, which a B2BUA rewrites, but to
    the SHA-256 of the signed octets of that very I_MESSAGE, the group and the user.
    """

    user: str
    key_id: int
    csb_id: int
    result: int
    mac: bytes
    signature: bytes

    def encode(self) -> bytes:
        uri = self.user.encode()
        return (
            struct.pack(">BBIIH", 1, self.result, self.key_id, self.csb_id, len(uri))
            + uri
            + self.mac
            + self.signature
        )

    @classmethod
    def decode(cls, octets: bytes) -> Acknowledgement:
        if not 12 + 32 + 129 <= len(octets) <= MAX_ACKNOWLEDGEMENT:
            raise AcknowledgementError(f"{len(octets)} octets are no acknowledgement")
        version, result, key_id, csb_id, size = struct.unpack_from(">BBIIH", octets)
        if version != 1 or len(octets) != 12 + size + 32 + 129:
            raise AcknowledgementError("version or length of the acknowledgement is wrong")
        try:
            user = octets[12 : 12 + size].decode()
        except UnicodeDecodeError:
            raise AcknowledgementError("the user is not UTF-8") from None
        return cls(user, key_id, csb_id, result, octets[12 + size : 44 + size], octets[44 + size :])


def _signed_fields(digest: bytes, group: str, user: str, result: int) -> bytes:
    fields = (_LABEL, digest, group.encode(), user.encode(), bytes([result]))
    return b"".join(struct.pack(">H", len(value)) + value for value in fields)


def acknowledge(
    key: TransportKey,
    *,
    csb_id: int,
    digest: bytes,
    group: str,
    user: str,
    sign: Callable[[bytes], bytes],
    result: int = INSTALLED,
) -> Acknowledgement:
    """``user`` proves that he opened the I_MESSAGE whose signed octets have the SHA-256 ``digest``.

    ``sign`` makes the user's ECCSI signature; the MAC's key is RFC 3830 4.1.4's authentication key of the
    TGMK for the user's own GUK-ID as CSB-ID (security rule 3), used by nothing else here.
    """
    fields = _signed_fields(digest, group, user, result)
    mac = hmac.digest(acknowledgement_key(key, csb_id).reveal(), fields, hashlib.sha256)
    return Acknowledgement(user, key.key_id, csb_id, result, mac, sign(fields + mac))


def verify_acknowledgement(
    acknowledgement: Acknowledgement,
    key: TransportKey,
    *,
    csb_id: int,
    digest: bytes,
    group: str,
    user: str,
    verify: Callable[[bytes, bytes], None],
    result: int = INSTALLED,
) -> None:
    """Returns when it proves what :func:`acknowledge` states, else raises :class:`AcknowledgementError`.

    ``verify(octets, signature)`` raises unless the signature is this user's.
    """
    if (acknowledgement.user, acknowledgement.key_id, acknowledgement.csb_id) != (user, key.key_id, csb_id):
        raise AcknowledgementError("it is for another user or key")
    if acknowledgement.result != result:
        raise AcknowledgementError(f"it states result {acknowledgement.result}, not {result}")
    fields = _signed_fields(digest, group, user, result)
    mac = hmac.digest(acknowledgement_key(key, csb_id).reveal(), fields, hashlib.sha256)
    if not hmac.compare_digest(mac, acknowledgement.mac):
        raise AcknowledgementError("its MAC is wrong")
    try:
        verify(fields + acknowledgement.mac, acknowledgement.signature)
    except Exception as error:
        raise AcknowledgementError("its signature is wrong") from error
