# SPDX-License-Identifier: Apache-2.0
"""SIP, SIPS and tel URIs, and any other as an opaque one (RFC 3261 19.1, RFC 3966, RFC 5954).

A URI that was parsed prints as it was written; `replace` makes a new one that prints canonically.

:RFC 3966: yes
:RFC 5954: yes
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from mcptt_sip.errors import ParseError
from mcptt_sip.grammar import Params, format_host, kept

__all__ = ["HOST_PORT", "AbsoluteUri", "SipUri", "TelUri", "Uri", "host_and_port", "is_address", "parse_uri"]

#: sent-by = host [ COLON port ], host and port as groups
HOST_PORT = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-_.]+)(?:[ \t]*:[ \t]*([0-9]{1,5}))?"
_USER_SAFE = "-_.!~*'()&=+$,;?/"
_HEADER_SAFE = "-_.!~*'()[]/?:+$"
_sip = re.compile(
    r"(?P<scheme>[Ss][Ii][Pp][Ss]?):"
    r"(?:(?P<user>[A-Za-z0-9\-_.!~*'()%&=+$,;?/]+)(?::(?P<password>[A-Za-z0-9\-_.!~*'()%&=+$,]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-_.]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<params>(?:;[A-Za-z0-9\-_.!~*'()%\[\]/:&+$]+(?:=[A-Za-z0-9\-_.!~*'()%\[\]/:&+$]+)?)*)"
    r"(?:\?(?P<headers>[A-Za-z0-9\-_.!~*'()%\[\]/?:+$=&]*))?"
).fullmatch
_scheme = re.compile(r"([A-Za-z][A-Za-z0-9+\-.]*):").match
_plain_name = re.compile(r"[A-Za-z0-9\-_.!~*'()\[\]/:&+$]+").fullmatch
_bad_escape = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_absolute = re.compile(r"[A-Za-z0-9\-_.!~*'()%;/?:@&=+$,\[\]#]+").fullmatch
# up to the first digit, then all: with digits on both sides of one the time would grow with the square of the length
_tel_number = re.compile(r"\+[\-.()]*[0-9][0-9\-.()]*|[0-9A-Fa-f*#\-.()]+").fullmatch
_tel_separators = re.compile(r"[\-.()]")


def _unescape(text: str) -> str:
    return unquote(text, errors="surrogateescape") if "%" in text else text


def _host(text: str) -> str:
    """A host without brackets. ``:::`` is read as ``::`` (RFC 5118 4.10), other nonsense refused."""
    if text[0] != "[":
        return text
    inner = text[1:-1]
    try:
        ipaddress.IPv6Address(inner)
    except ValueError:
        inner = inner.replace(":::", "::")
        try:
            ipaddress.IPv6Address(inner)
        except ValueError:
            raise ParseError(f"{text} is no IPv6 reference") from None
    return inner


def host_and_port(host: str, port: str | None) -> tuple[str, int | None]:
    """A host without brackets and a port as a number, from the text of both (`HOST_PORT`)."""
    number = None if port is None else int(port)
    if number is not None and number > 65535:
        raise ParseError("a port above 65535")
    return _host(host), number


def is_address(host: str) -> bool:
    """Whether a host (without brackets) is a numeric address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _same_host(one: str, other: str) -> bool:
    if one.lower() == other.lower():
        return True
    if ":" in one and ":" in other:
        return ipaddress.IPv6Address(one) == ipaddress.IPv6Address(other)
    return False


@dataclass(frozen=True, slots=True)
class SipUri:
    """A SIP or SIPS URI. `user` and `password` are unescaped, `host` is without brackets.

    ``==`` compares the parts as they are; `equivalent` compares as RFC 3261 19.1.4 and RFC 5954 4.2 say.
    """

    host: str
    user: str | None = None
    port: int | None = None
    params: Params = field(default_factory=Params)
    headers: tuple[tuple[str, str], ...] = ()
    password: str | None = field(default=None, repr=False)
    scheme: str = "sip"
    _raw: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> SipUri:
        """Parse the text of one URI, nothing around it."""
        match = _sip(text)
        if match is None:
            raise ParseError(f"not a SIP URI: {text[:80]!r}")
        scheme, user, password, host, port, params, headers = match.groups()
        if "%" in text and _bad_escape(text):
            raise ParseError("a percent sign without two hexadecimal digits", offset=text.index("%"))
        plain_host, number = host_and_port(host, port)
        return cls(
            plain_host,
            None if user is None else _unescape(user),
            number,
            _uri_params(params) if params else _NO_PARAMS,
            _uri_headers(headers) if headers else (),
            None if password is None else _unescape(password),
            scheme.lower(),
            text,
        )

    def replace(self, **changes: Any) -> SipUri:
        """A copy with other parts."""
        parts: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("host", "user", "port", "params", "headers", "password", "scheme")
        }
        return SipUri(**(parts | changes))

    def param(self, name: str) -> str | None:
        """A URI parameter, unescaped once; ``""`` when it stands alone, ``None`` when absent."""
        value = self.params.get(name)
        return None if value is None else _unescape(value)

    @property
    def transport(self) -> str | None:
        """The ``transport`` parameter in lower case."""
        value = self.param("transport")
        return None if value is None else value.lower()

    @property
    def aor(self) -> SipUri:
        """The address-of-record in it: no port, parameters, headers, password (RFC 3261 10.3 step 5)."""
        return SipUri(self.host.lower(), self.user, scheme=self.scheme)

    def equivalent(self, other: object) -> bool:
        """RFC 3261 19.1.4, with the IPv6 rule of RFC 5954 4.2."""
        if not isinstance(other, SipUri):
            return False
        if (self.scheme, self.user, self.password, self.port) != (
            other.scheme,
            other.user,
            other.password,
            other.port,
        ) or not _same_host(self.host, other.host):
            return False
        mine, theirs = self.params._folded(), other.params._folded()
        for name in mine.keys() | theirs.keys():
            both = name in mine and name in theirs
            if both and _fold(mine[name]) != _fold(theirs[name]):
                return False
            if not both and name in _MUST_MATCH:
                return False
        return sorted((n.lower(), v) for n, v in self.headers) == sorted(
            (n.lower(), v) for n, v in other.headers
        )

    def __str__(self) -> str:
        if self._raw is not None:
            return self._raw
        text = f"{self.scheme}:"
        if self.user is not None:
            text += quote(self.user, safe=_USER_SAFE, errors="surrogateescape")
            if self.password is not None:
                text += ":" + quote(self.password, safe="-_.!~*'()&=+$,", errors="surrogateescape")
            text += "@"
        text += format_host(self.host)
        if self.port is not None:
            text += f":{self.port}"
        text += str(self.params)
        if self.headers:
            text += "?" + "&".join(
                f"{quote(n, safe=_HEADER_SAFE)}={quote(v, safe=_HEADER_SAFE, errors='surrogateescape')}"
                for n, v in self.headers
            )
        return text


_NO_PARAMS = Params()
#: parameters that make a difference when only one of two URIs has them (RFC 3261 19.1.4)
_MUST_MATCH = frozenset({"user", "ttl", "method", "maddr", "transport"})


def _fold(value: str | None) -> str | None:
    return None if value is None else _unescape(value).lower()


def _uri_params(text: str) -> Params:
    items: list[tuple[str, str | None]] = []
    seen = set()
    for part in text[1:].split(";"):
        name, equals, value = part.partition("=")
        if "%" in name and _plain_name(plain := _unescape(name)):
            name = plain  # 19.1.4: an escaped character means the same as itself; lr may stand as %6C%72
        if (key := name.lower()) in seen:
            raise ParseError(f"the URI parameter {name} appears twice")
        seen.add(key)
        items.append((name, value if equals else None))
    return Params(items)


def _uri_headers(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in text.split("&"):
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise ParseError("a header of a URI without name or value")
        pairs.append((_unescape(name), _unescape(value)))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class TelUri:
    """A telephone number (RFC 3966). `number` is as written; `equivalent` ignores visual separators."""

    number: str
    params: Params = field(default_factory=Params)
    _raw: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> TelUri:
        """Parse ``tel:number;params``."""
        scheme, _, rest = text.partition(":")
        number, _, params = rest.partition(";")
        if scheme.lower() != "tel" or _tel_number(number) is None:
            raise ParseError(f"not a tel URI: {text[:80]!r}")
        return cls(number, _uri_params(";" + params) if params else _NO_PARAMS, text)

    @property
    def scheme(self) -> str:
        """``tel``."""
        return "tel"

    def equivalent(self, other: object) -> bool:
        """RFC 3966 5."""
        if not isinstance(other, TelUri):
            return False
        one, two = (_tel_separators.sub("", uri.number).lower() for uri in (self, other))
        return one == two and {k: _fold(v) for k, v in self.params._folded().items()} == {
            k: _fold(v) for k, v in other.params._folded().items()
        }

    def __str__(self) -> str:
        return self._raw if self._raw is not None else f"tel:{self.number}{self.params}"


@dataclass(frozen=True, slots=True)
class AbsoluteUri:
    """A URI of a scheme this stack gives no meaning to; kept as it is."""

    scheme: str
    text: str

    def equivalent(self, other: object) -> bool:
        """Octet for octet, but for the case of the scheme."""
        return isinstance(other, AbsoluteUri) and (
            self.scheme == other.scheme and self.text.partition(":")[2] == other.text.partition(":")[2]
        )

    def __str__(self) -> str:
        return self.text


Uri = SipUri | TelUri | AbsoluteUri


@kept
def parse_uri(text: str) -> Uri:
    """Any URI: `SipUri`, `TelUri`, or `AbsoluteUri` for every other scheme."""
    match = _scheme(text)
    if match is None:
        raise ParseError(f"not a URI: {text[:80]!r}")
    scheme = match[1].lower()
    if scheme == "sip" or scheme == "sips":
        return SipUri.parse(text)
    if scheme == "tel":
        return TelUri.parse(text)
    if _absolute(text) is None or (_bad_escape(text) and scheme in ("http", "https", "urn")):
        raise ParseError(f"not a URI: {text[:80]!r}")
    return AbsoluteUri(scheme, text)

