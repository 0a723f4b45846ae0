# SPDX-License-Identifier: Apache-2.0
"""The small pieces of RFC 3261 section 25 that every header and URI is made of.

Values are text in which octets that are not UTF-8 stand as lone surrogates, so that what came in goes out
octet for octet. All scanning is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from typing import TypeVar

from mcptt_sip.errors import ParseError

__all__ = ["TOKEN", "Params", "format_host", "is_token", "kept", "quote", "split_list", "unquote"]

T = TypeVar("T")

#: token = 1*(alphanum / "-" / "." / "!" / "%" / "*" / "_" / "+" / "`" / "'" / "~")
TOKEN = r"[A-Za-z0-9\-.!%*_+`'~]+"  # noqa: S105
#: quoted-string; a backslash takes any octet but CR and LF with it
QUOTED = r'"(?:[^"\\\r\n]|\\[^\r\n])*"'

_token = re.compile(TOKEN).fullmatch
_quoted = re.compile(QUOTED)
# gen-value = token / host / quoted-string; also accepted are the URIs and octets that peers leave unquoted
_param = re.compile(rf"[ \t]*;[ \t]*({TOKEN})(?:[ \t]*=[ \t]*({QUOTED}|[^\x00-\x20;,\"<>\x7f]+))?[ \t]*").match
_list_part = re.compile(rf'(?:{QUOTED}|<[^>"]*(?:"[^"]*"[^>"]*)*>|[^,"<]+)*')
_quoted_pair = re.compile(r"\\(.)", re.DOTALL)


#: the same few values stand in message after message: so many of a kind are kept parsed, each of at most so many
#: characters
_KEPT, _KEPT_LENGTH = 4096, 256


def kept(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read`, which gives the same for the same text and never what can be changed, with its last results kept."""
    remembering = lru_cache(_KEPT)(read)

    @wraps(read)
    def of(text: str) -> T:
        return remembering(text) if len(text) <= _KEPT_LENGTH else read(text)

    return of


def is_token(text: str) -> bool:
    """Whether `text` is a token (RFC 3261 25.1)."""
    return _token(text) is not None


def unquote(text: str) -> str:
    """What a quoted-string means; any other text means itself."""
    if len(text) >= 2 and text[0] == '"' and text[-1] == '"':
        inner = text[1:-1]
        return _quoted_pair.sub(r"\1", inner) if "\\" in inner else inner
    return text


def quote(text: str) -> str:
    """`text` as a quoted-string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def format_host(host: str) -> str:
    """A host as it stands in a URI or a Via: IPv6 in brackets (RFC 5954)."""
    return f"[{host}]" if ":" in host else host


def split_list(text: str) -> list[str]:
    """The values of a comma-separated header; commas inside quotes and angle brackets do not separate.

    Raises `ParseError` at an empty value or an unbalanced quote.
    """
    if "," not in text:
        return [text.strip(" \t")]
    if '"' not in text and "<" not in text:
        parts = [part.strip(" \t") for part in text.split(",")]
    else:
        parts, at = [], 0
        while True:
            match = _list_part.match(text, at)
            assert match is not None  # the pattern matches the empty string
            end = match.end()
            parts.append(text[at:end].strip(" \t"))
            if end == len(text):
                break
            if text[end] != ",":
                raise ParseError("a quote or bracket does not close", offset=end)
            at = end + 1
    if "" in parts:
        raise ParseError("an empty value stands between commas")
    return parts


class Params:
    """``;name=value`` pairs in their order. Names match without case, values keep their raw form.

    ``params.get("tag")`` is the value without quotes, ``""`` for a name that stands alone, ``None`` when
    absent; ``params.raw("tag")`` the value as written. Immutable: `with_` and `without` give new ones.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[tuple[str, str | None]] = ()) -> None:
        self._items = tuple(items)

    @classmethod
    def parse(cls, text: str, at: int = 0) -> Params:
        """Parse ``;a;b=c`` from `at` to the end of `text`."""
        items: list[tuple[str, str | None]] = []
        end = len(text)
        while at < end:
            match = _param(text, at)
            if match is None:
                if text[at:].strip(" \t") == "":
                    break
                raise ParseError("not a parameter", offset=at)
            items.append(match.groups())  # type: ignore[arg-type]
            at = match.end()
        return cls(items)

    def raw(self, name: str) -> str | None:
        """The first value of `name` as written, with its quotes."""
        name = name.lower()
        for key, value in self._items:
            if key.lower() == name:
                return value
        return None

    def get(self, name: str) -> str | None:
        """The first value of `name` without quotes; ``""`` when it stands alone; ``None`` when absent."""
        name = name.lower()
        for key, value in self._items:
            if key == name or key.lower() == name:
                if value is None:
                    return ""
                return unquote(value) if value[:1] == '"' else value
        return None

    def with_(self, name: str, value: str | None = None) -> Params:
        """A copy in which `name` has this raw value, in its old place if it had one."""
        lowered = name.lower()
        items = list(self._items)
        for index, (key, _) in enumerate(items):
            if key.lower() == lowered:
                items[index] = (key, value)
                return Params(items)
        return Params((*items, (name, value)))

    def without(self, name: str) -> Params:
        """A copy in which `name` does not appear."""
        name = name.lower()
        return Params(item for item in self._items if item[0].lower() != name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in [key.lower() for key, _ in self._items]

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Params):
            return NotImplemented
        return self._folded() == other._folded()

    def __hash__(self) -> int:
        return hash(frozenset(self._folded().items()))

    def _folded(self) -> dict[str, str | None]:
        return {key.lower(): None if value is None else unquote(value) for key, value in self._items}

    def __str__(self) -> str:
        if not self._items:
            return ""
        return "".join(f";{name}" if value is None else f";{name}={value}" for name, value in self._items)

    def __repr__(self) -> str:
        return f"Params({str(self)!r})"
