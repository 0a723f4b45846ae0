# SPDX-License-Identifier: Apache-2.0
"""One line of a header section (RFC 3261 7.3)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mcptt_sip.errors import LocalProtocolError, ParseError
from mcptt_sip.grammar import is_token
from mcptt_sip.headers import canonical

__all__ = ["HeaderLine", "content_length", "key_of", "line_of", "read_lines"]

_SPELLINGS = (
    "Via From To Call-ID CSeq Contact Max-Forwards Content-Type Content-Length Route Record-Route Supported Require "
    "Allow Accept Expires Event User-Agent Server Authorization Proxy-Authorization WWW-Authenticate "
    "Proxy-Authenticate RSeq RAck Session-Expires Min-SE Subscription-State Refer-To Referred-By Subject "
    "Accept-Contact P-Preferred-Service P-Asserted-Identity P-Preferred-Identity Resource-Priority Warning Path "
    "Service-Route Content-Disposition Recv-Info Info-Package Target-Dialog Refer-Sub Answer-Mode Reason "
    "Content-Encoding Replaces Allow-Events Min-Expires Unsupported Retry-After v f t i m c l k s o r b e x u a"
)
#: usual spellings of header names, and what they are looked up by
_KEYS = {name: canonical(spelled) for spelled in _SPELLINGS.split(" ") for name in (spelled, spelled.lower())}

#: the same few lines stand in message after message: so many are kept read, each of at most so many characters
_KEPT, _KEPT_LENGTH = 1024, 256


class HeaderLine:
    """One line. It never changes, so that messages, their copies and their answers share it.

    :param key: name in lower case, compact form written out
    :param value: value, unfolded, without the blanks around it
    :param raw: what goes on the wire, without the line end
    """

    __slots__ = ("key", "raw", "typed", "value")

    def __init__(self, key: str, value: str, raw: str) -> None:
        self.key = key
        self.value = value
        self.raw = raw
        #: what `value` means, once somebody asked: the frozen value, or a tuple of them where the header is a list
        self.typed: Any = None

    @property
    def name(self) -> str:
        """The name as written."""
        return self.raw.partition(":")[0].rstrip(" \t")


def key_of(name: str) -> str:
    """What a header name, in any spelling, is looked up by."""
    return _KEYS.get(name) or canonical(name)


def _read(raw: str) -> HeaderLine:
    name, colon, value = raw.partition(":")
    key = _KEYS.get(name)
    if key is None:  # not one of the usual spellings
        name = name.rstrip(" \t")
        key = canonical(name) if is_token(name) else ""
    if not key or not colon or "\r" in value or "\n" in value:
        raise ParseError("not a header line")
    return HeaderLine(key, value.strip(" \t"), raw)


_kept = lru_cache(_KEPT)(_read)


def read_lines(raw: list[str]) -> list[HeaderLine]:
    """The lines that have these raw forms, none of them folded. Raises `ParseError`."""
    lines = [_read(raw[0])]  # nearly always a Via, which never comes again
    lines += [_kept(line) if len(line) <= _KEPT_LENGTH else _read(line) for line in raw[1:]]
    return lines


def content_length(octets: int) -> HeaderLine:
    """The line that announces a body of so many octets."""
    return _kept(f"Content-Length: {octets}")


def line_of(name: str, value: object) -> HeaderLine:
    """The line that a name and a value make. `LocalProtocolError` for what would make none, or several."""
    if name not in _KEYS and not is_token(name):
        raise LocalProtocolError(f"{name!r} is no header name")
    text = str(value).strip(" \t")
    if "\r" in text or "\n" in text:
        raise LocalProtocolError(f"a line break in {name}")
    raw = f"{name}: {text}"
    return _kept(raw) if len(raw) <= _KEPT_LENGTH else _read(raw)
