# SPDX-License-Identifier: Apache-2.0
"""Identities and key periods: the octets that ECCSI and SAKKE bind a key to.

Two forms exist: the hashed UID of TS 33.180 §F.2.1 (identifier scheme 2, key periods of fixed length counted
from 1900) and the native form of RFC 6509 §3 (scheme 1: month and tel URI). URIs are taken octet for octet as
provisioned: neither form folds case or removes ports (a KMS URI spelled otherwise gives another UID).
"""

from __future__ import annotations

import calendar
import datetime
import hashlib
import math
from dataclasses import dataclass

from mikey.errors import MikeyError, ParseError

NTP_OFFSET = 2208988800
"""Seconds from 1900-01-01 to 1970-01-01, UTC."""

SCHEME_TEL = 1
"""RFC 6509 §5: tel URI with monthly keys."""
SCHEME_3GPP = 2
"""TS 33.180 §E.5: hashed UID."""

_ERA = 1 << 32


def ntp_encode(unix: float, low_fraction: int = 0) -> bytes:
    """NTP-UTC time stamp of RFC 3830 §6.6: 32-bit seconds since 1900 modulo 2**32, 32-bit fraction.

    `low_fraction` (0..65535) fills the 16 bits that lie below the resolution of a float clock, so that two
    messages made at the same reading have distinct stamps (RFC 3830 §5.2).
    """
    seconds = math.floor(unix)
    fraction = int((unix - seconds) * _ERA) & 0xFFFF0000 | low_fraction & 0xFFFF
    return ((seconds + NTP_OFFSET) % _ERA).to_bytes(4, "big") + fraction.to_bytes(4, "big")


def ntp_decode(octets: bytes) -> float:
    """Unix seconds of an 8-octet NTP stamp. Seconds below 2**31 are of era 1 (from 2036-02-07 06:28:16)."""
    if len(octets) != 8:
        raise ParseError("an NTP time stamp has 8 octets")
    seconds = int.from_bytes(octets[:4], "big")
    if seconds < 1 << 31:
        seconds += _ERA
    return seconds - NTP_OFFSET + int.from_bytes(octets[4:], "big") / _ERA


def minimal_octets(value: int) -> bytes:
    """Minimal big-endian octets; zero is one octet 00 (TS 33.180 §F.2.1)."""
    if value < 0:
        raise MikeyError("an integer of a UID cannot be negative")
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")


def kdf_input(fc: int, *parameters: bytes) -> bytes:
    """The string S of TS 33.220 §B.2: FC || P0 || len16(P0) || P1 || len16(P1) ..."""
    s = bytes((fc,))
    for parameter in parameters:
        if len(parameter) > 0xFFFF:
            raise MikeyError("a KDF parameter is longer than 65535 octets")
        s += parameter + len(parameter).to_bytes(2, "big")
    return s


def uid(uri: str, kms_uri: str, period: int, offset: int, period_no: int) -> bytes:
    """The 32-octet UID of TS 33.180 §F.2.1: SHA-256 over FC 00 and the six parameters.

    >>> uid("sip:user@example.org", "kms.example.org", 2592000, 0, 1388).hex()[:16]
    '3a81fb14c3b1d0fe'
    """
    return hashlib.sha256(
        kdf_input(
            0x00,
            b"MIKEY-SAKKE-UID",
            uri.encode(),
            kms_uri.encode(),
            minimal_octets(period),
            minimal_octets(offset),
            minimal_octets(period_no),
        )
    ).digest()


def tel_identifier(uri: str, year: int, month: int) -> bytes:
    """The native identifier of RFC 6509 §3.2: `YYYY-MM` NUL tel-URI NUL.

    The URI must be a global tel URI without visual separators or parameters.
    """
    number = uri.removeprefix("tel:+")
    if number == uri or not number.isascii() or not number.isdigit():
        raise MikeyError("RFC 6509 identities are global tel URIs without separators or parameters")
    return f"{year:04d}-{month:02d}\0{uri}\0".encode()


@dataclass(frozen=True, slots=True)
class KeyPeriods:
    """How a KMS cuts time: UserKeyPeriod and UserKeyOffset in seconds, or calendar months (RFC 6509 §3.3).

    Period numbers of `monthly` are year * 12 + month - 1; otherwise floor((NTP seconds - offset) / period).
    """

    seconds: int = 2592000
    offset: int = 0
    monthly: bool = False

    def number(self, unix: float) -> int:
        """The period that contains the Unix time."""
        if self.monthly:
            at = datetime.datetime.fromtimestamp(unix, datetime.UTC)
            return at.year * 12 + at.month - 1
        return (math.floor(unix) + NTP_OFFSET - self.offset) // self.seconds

    def start(self, number: int) -> int:
        """First Unix second of the period."""
        if self.monthly:
            return calendar.timegm((number // 12, number % 12 + 1, 1, 0, 0, 0))
        return self.offset + number * self.seconds - NTP_OFFSET

    def end(self, number: int) -> int:
        """First Unix second after the period."""
        return self.start(number + 1)

    def allowed(self, unix: float, grace: float) -> tuple[int, ...]:
        """The period of `unix` and, within `grace` seconds of a boundary, the neighbour behind it."""
        number = self.number(unix)
        out = [number]
        if unix - self.start(number) < grace:
            out.append(number - 1)
        if self.end(number) - unix <= grace:
            out.append(number + 1)
        return tuple(n for n in out if n >= 0)

    def nearest(self, unix: float, number: int) -> float:
        """The instant of the period `number` that is nearest to `unix`."""
        return min(max(unix, self.start(number)), self.end(number) - 1)


def domain_of(uri: str) -> str:
    """The domain that answers for a URI: host of a SIP URI or of user@host, `tel:` for tel URIs.

    Lower case, without port and parameters; empty for what is no URI. KmsDomainList entries are compared with this.
    As RFC 3261 25.1 reads it: what stands before the ``@`` is the user, and may hold ``;`` and ``?``.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and scheme.lower() == "tel":
        return "tel:"
    if not colon or scheme.lower() not in ("sip", "sips", "im", "pres", "mailto", "xmpp"):
        rest = uri
    user, _, host = rest.rpartition("@")
    if "@" in user:
        return ""
    host = host.split(";", 1)[0].split("?", 1)[0]
    if host.startswith("["):
        host = host.partition("]")[0] + "]"
    else:
        host = host.partition(":")[0]
    return host.rstrip(".").lower()
