# SPDX-License-Identifier: Apache-2.0
"""The header section of a message: lines in their order and raw form, and typed ways to read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from mcptt_sip.errors import LocalProtocolError, ParseError
from mcptt_sip.grammar import is_token, split_list
from mcptt_sip.headers import (
    AcceptContact,
    CSeq,
    Event,
    MediaType,
    NameAddr,
    RAck,
    Reason,
    Replaces,
    SessionExpires,
    SubscriptionState,
    TargetDialog,
    Via,
    Warning,
    canonical,
    parse_delta_seconds,
    parse_options,
)

__all__ = ["HeaderItems", "Headers"]

#: what an application may give as headers: pairs, the values anything that prints as a header value
HeaderItems = Iterable[tuple[str, object]]

T = TypeVar("T")
_fold = re.compile(r"\r\n[ \t]+")
_line_end = re.compile(r"\r\n(?![ \t])")
_SPELLINGS = (
    "Via From To Call-ID CSeq Contact Max-Forwards Content-Type Content-Length Route Record-Route Supported Require "
    "Allow Accept Expires Event User-Agent Server Authorization Proxy-Authorization WWW-Authenticate "
    "Proxy-Authenticate RSeq RAck Session-Expires Min-SE Subscription-State Refer-To Referred-By Subject "
    "Accept-Contact P-Preferred-Service P-Asserted-Identity P-Preferred-Identity Resource-Priority Warning Path "
    "Service-Route Content-Disposition Recv-Info Info-Package Target-Dialog Refer-Sub Answer-Mode Reason "
    "Allow-Events Min-Expires Unsupported Retry-After v f t i m c l k s o r b e x u a via from to"
)
#: usual spellings of header names, and what they are looked up by
_KEYS = {name: canonical(name) for name in _SPELLINGS.split(" ")}

_ANSWERED = ("from", "to", "call-id", "cseq")

# (key, name as written, unfolded value, raw line)
_Line = tuple[str, str, str, str]


class Headers:
    """Header fields in order. Names match without case, compact forms included.

    Raw access: `get` (first value of the first line), `get_all` (each line), `values` (each value, lists cut at their
    commas). Typed access: the properties; they parse once, and raise `ParseError` (status 400) on nonsense. A
    header that is absent reads as ``None`` or an empty list, except From, To, Call-ID, CSeq, Via: `ParseError`.
    """

    __slots__ = ("_lines", "_typed", "_values")

    def __init__(self, pairs: HeaderItems = ()) -> None:
        self._lines: list[_Line] = []
        self._values: dict[str, list[str]] = {}
        self._typed: dict[str, object] = {}
        self.extend(pairs)

    @classmethod
    def scan(cls, text: str, limit: int) -> tuple[Headers, tuple[str, int] | None]:
        """Read a header section (without its blank line). With it comes the first fault and where (in
        characters), or ``None``: the lines that can be read are there all the same, to answer with."""
        self = cls.__new__(cls)
        lines: list[_Line] = []
        values: dict[str, list[str]] = {}
        self._lines, self._values, self._typed = lines, values, {}
        fault: tuple[str, int] | None = None
        if not text:
            return self, None
        folded = "\r\n " in text or "\r\n\t" in text
        # a CR or LF that ends no line; it is looked for once, as there is hardly ever one
        bare = text.count("\r") != (ends := text.count("\r\n")) or text.count("\n") != ends
        raw_lines = _line_end.split(text) if folded else text.split("\r\n")
        if len(raw_lines) > limit:
            return self, ("too many header lines", len(text))
        at = 0
        for raw in raw_lines:
            name, colon, value = raw.partition(":")
            key = _KEYS.get(name) if colon else ""
            if key is None:  # not one of the usual spellings
                name = name.rstrip(" \t")
                key = canonical(name) if is_token(name) else ""
            if not key:
                fault = fault or ("not a header line", at)
            else:
                if folded and "\r\n" in value:
                    value = _fold.sub(" ", value)
                value = value.strip(" \t")
                if bare and ("\r" in value or "\n" in value):
                    # left out, so that no answer repeats what a careless peer would read as two lines
                    fault = fault or ("a bare CR or LF in a header", at)
                    at += len(raw) + 2
                    continue
                lines.append((key, name, value, raw))
                if key in values:
                    values[key].append(value)
                else:
                    values[key] = [value]
            at += len(raw) + 2
        return self, fault

    # raw access

    def get(self, name: str) -> str | None:
        """The value of the first line of this name, unfolded; ``None`` when absent."""
        found = self._values.get(name) or self._values.get(canonical(name))
        return found[0] if found else None

    def get_all(self, name: str) -> list[str]:
        """The value of each line of this name."""
        return list(self._values.get(canonical(name), ()))

    def values(self, name: str) -> list[str]:
        """Each value of this name, over all lines, lists cut at commas."""
        return [value for line in self._values.get(canonical(name), ()) for value in split_list(line)]

    def count(self, name: str) -> int:
        """How many lines have this name (canonical, lower case)."""
        return len(self._values.get(name, ()))

    def items(self) -> Iterator[tuple[str, str]]:
        """(name as written, unfolded value) of each line in order."""
        return ((name, value) for _, name, value, _ in self._lines)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and canonical(name) in self._values

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self.items()

    # changes

    def add(self, name: str, value: object) -> None:
        """Append a line."""
        self._insert(len(self._lines), name, value)

    def add_first(self, name: str, value: object) -> None:
        """Put a line before all others: a Via, a Route."""
        self._insert(0, name, value)

    def set(self, name: str, value: object) -> None:
        """Make this the only line of its name, where its first one stood, else at the end."""
        key = canonical(name)
        at = next((i for i, line in enumerate(self._lines) if line[0] == key), None)
        if at is None:
            self.add(name, value)
            return
        text = _checked(name, value)
        self._lines[at] = (key, name, text, f"{name}: {text}")
        if len(self._values[key]) > 1:
            self._lines = [line for i, line in enumerate(self._lines) if line[0] != key or i == at]
        self._values[key] = [text]
        self._typed.pop(key, None)

    def replace_first(self, name: str, value: object) -> None:
        """Change the first line of this name only (the top Via)."""
        key = canonical(name)
        for at, line in enumerate(self._lines):
            if line[0] == key:
                text = _checked(name, value)
                self._lines[at] = (key, name, text, f"{name}: {text}")
                self._values[key][0] = text
                self._typed.pop(key, None)
                return
        self.add_first(name, value)

    def remove(self, name: str) -> None:
        """Drop every line of this name."""
        key = canonical(name)
        if self._values.pop(key, None) is not None:
            self._lines = [line for line in self._lines if line[0] != key]
            self._typed.pop(key, None)

    def extend(self, pairs: HeaderItems) -> None:
        """Append a line for each pair."""
        for name, value in pairs:
            self.add(name, value)

    def copy_from(self, other: Headers, name: str) -> None:
        """Append the lines of this name (canonical) of `other` in their raw form."""
        values = other._values.get(name)
        if not values:
            return
        for line in other._lines:
            if line[0] == name:
                self._lines.append(line)
        self._values.setdefault(name, []).extend(values)
        self._typed.pop(name, None)

    @classmethod
    def answering(cls, other: Headers) -> Headers:
        """What a response has of its request, in raw form: every Via, then one From, To, Call-ID, CSeq (of a header
        that a broken request repeats, the first)."""
        made = cls.__new__(cls)
        values = other._values
        wanted = {name: None for name in _ANSWERED if name in values}
        vias: list[_Line] = []
        first: dict[str, _Line] = {}
        for line in other._lines:
            key = line[0]
            if key == "via":
                vias.append(line)
            elif key in wanted and key not in first:
                first[key] = line
        made._lines = [*vias, *(first[name] for name in wanted)]
        made._values = {name: [first[name][2]] for name in wanted}
        if vias:
            made._values["via"] = [line[2] for line in vias]
        typed = other._typed
        made._typed = {name: typed[name] for name in _ANSWERED if name in typed}
        return made

    def copy(self) -> Headers:
        """An independent copy."""
        made = Headers.__new__(Headers)
        made._lines = list(self._lines)
        made._values = {key: list(values) for key, values in self._values.items()}
        made._typed = dict(self._typed)
        return made

    def _insert(self, at: int, name: str, value: object) -> None:
        text = _checked(name, value)
        key = canonical(name)
        self._lines.insert(at, (key, name, text, f"{name}: {text}"))
        if at == 0:
            self._values.setdefault(key, []).insert(0, text)
        else:
            self._values.setdefault(key, []).append(text)
        self._typed.pop(key, None)

    def encode(self, start_line: str, body: bytes) -> bytes:
        """The whole message. Content-Length is put right."""
        length = self._values.get("content-length")
        if length is None or len(length) != 1 or length[0] != str(len(body)):
            if length is None or self.content_length_differs(len(body)):
                self.set("Content-Length", len(body))
        head = "\r\n".join([start_line, *(line[3] for line in self._lines), "", ""])
        return head.encode("utf-8", "surrogateescape") + body

    def content_length_differs(self, length: int) -> bool:
        """Whether Content-Length says something else than `length` (leading zeros are the same)."""
        values = self._values.get("content-length", [])
        return len(values) != 1 or not values[0].isdigit() or int(values[0]) != length

    # typed access

    def _one(self, key: str, parse: Callable[[str], T]) -> T | None:
        found = self._typed.get(key)
        if found is None:
            values = self._values.get(key)
            if not values:
                return None
            found = self._typed[key] = parse(values[0])
        return found  # type: ignore[return-value]

    def _must(self, key: str, parse: Callable[[str], T]) -> T:
        found = self._one(key, parse)
        if found is None:
            raise ParseError(f"{key} is missing")
        return found

    def _list(self, key: str, parse: Callable[[str], T]) -> list[T]:
        found = self._typed.get(key)
        if found is None:
            found = self._typed[key] = [parse(value) for value in self.values(key)]
        return found  # type: ignore[return-value]

    def _options(self, key: str) -> list[str]:
        return [tag for line in self._values.get(key, ()) for tag in parse_options(line)]

    @property
    def top_via(self) -> Via:
        """The first Via value."""
        found = self._typed.get("via")
        if found is None:
            lines = self._values.get("via")
            if not lines:
                raise ParseError("via is missing")
            first = lines[0]
            found = self._typed["via"] = Via.parse(split_list(first)[0] if "," in first else first)
        return found  # type: ignore[return-value]

    @property
    def via(self) -> list[Via]:
        """Every Via, topmost first."""
        values = self.values("via")
        return [self.top_via, *map(Via.parse, values[1:])] if values else []

    @property
    def from_(self) -> NameAddr:
        """From; its `tag` is ``None`` for an RFC 2543 peer."""
        return self._typed.get("from") or self._must("from", NameAddr.parse)  # type: ignore[return-value]

    @property
    def to(self) -> NameAddr:
        """To."""
        return self._typed.get("to") or self._must("to", NameAddr.parse)  # type: ignore[return-value]

    @property
    def call_id(self) -> str:
        """Call-ID."""
        return self._typed.get("call-id") or self._must("call-id", _word)  # type: ignore[return-value]

    @property
    def cseq(self) -> CSeq:
        """CSeq."""
        return self._typed.get("cseq") or self._must("cseq", CSeq.parse)  # type: ignore[return-value]

    @property
    def contact(self) -> list[NameAddr]:
        """Every Contact; empty for ``*``, see `contact_star`."""
        return [] if self.contact_star else self._list("contact", NameAddr.parse)

    @property
    def contact_star(self) -> bool:
        """Whether Contact is ``*`` (RFC 3261 10.2.2)."""
        return self._values.get("contact") == ["*"]

    @property
    def route(self) -> list[NameAddr]:
        """Route values."""
        return self._list("route", NameAddr.parse)

    @property
    def record_route(self) -> list[NameAddr]:
        """Record-Route values, topmost first."""
        return self._list("record-route", NameAddr.parse)

    @property
    def path(self) -> list[NameAddr]:
        """Path values (RFC 3327)."""
        return self._list("path", NameAddr.parse)

    @property
    def max_forwards(self) -> int | None:
        """Max-Forwards; ``None`` when absent or above 255 (RFC 4475 3.1.2.4)."""
        value = parse_delta_seconds(self.get("max-forwards") or "")
        return value if value is not None and value <= 255 else None

    @property
    def content_length(self) -> int | None:
        """Content-Length."""
        return self._one("content-length", _length)

    @property
    def content_type(self) -> MediaType | None:
        """Content-Type."""
        return self._one("content-type", MediaType.parse)

    @property
    def expires(self) -> int | None:
        """Expires in seconds; ``None`` when absent or out of range."""
        return parse_delta_seconds(self.get("expires") or "")

    @property
    def min_expires(self) -> int | None:
        """Min-Expires in seconds."""
        return parse_delta_seconds(self.get("min-expires") or "")

    @property
    def retry_after(self) -> int | None:
        """Retry-After in seconds, its comment and parameters left aside."""
        value = (self.get("retry-after") or "").replace(";", " ").replace("(", " ").split()
        return parse_delta_seconds(value[0]) if value else None

    @property
    def supported(self) -> list[str]:
        """Option tags of Supported."""
        return self._options("supported")

    @property
    def require(self) -> list[str]:
        """Option tags of Require."""
        return self._options("require")

    @property
    def unsupported(self) -> list[str]:
        """Option tags of Unsupported."""
        return self._options("unsupported")

    @property
    def allow(self) -> list[str]:
        """Methods of Allow."""
        return self._options("allow")

    @property
    def accept(self) -> list[MediaType] | None:
        """Accept; ``None`` when absent (application/sdp is meant), empty when it accepts nothing."""
        lines = self._values.get("accept")
        if lines is None:
            return None
        return [MediaType.parse(value) for line in lines if line for value in split_list(line)]

    @property
    def event(self) -> Event | None:
        """Event."""
        return self._one("event", Event.parse)

    @property
    def subscription_state(self) -> SubscriptionState | None:
        """Subscription-State."""
        return self._one("subscription-state", SubscriptionState.parse)

    @property
    def refer_to(self) -> NameAddr | None:
        """Refer-To; more than one is a `ParseError` (RFC 3515 2.4.2)."""
        if self.count("refer-to") > 1 or len(self.values("refer-to")) > 1:
            raise ParseError("more than one Refer-To")
        return self._one("refer-to", NameAddr.parse)

    @property
    def referred_by(self) -> NameAddr | None:
        """Referred-By (RFC 3892)."""
        return self._one("referred-by", NameAddr.parse)

    @property
    def target_dialog(self) -> TargetDialog | None:
        """Target-Dialog (RFC 4538); an incomplete one counts as absent, as the RFC says."""
        try:
            return self._one("target-dialog", TargetDialog.parse)
        except ParseError:
            return None

    @property
    def replaces(self) -> Replaces | None:
        """Replaces (RFC 3891)."""
        if self.count("replaces") > 1:
            raise ParseError("more than one Replaces")
        return self._one("replaces", Replaces.parse)

    @property
    def rseq(self) -> int | None:
        """RSeq (RFC 3262)."""
        return parse_delta_seconds(self.get("rseq") or "")

    @property
    def rack(self) -> RAck | None:
        """RAck (RFC 3262)."""
        return self._one("rack", RAck.parse)

    @property
    def session_expires(self) -> SessionExpires | None:
        """Session-Expires (RFC 4028)."""
        return self._one("session-expires", SessionExpires.parse)

    @property
    def min_se(self) -> SessionExpires | None:
        """Min-SE (RFC 4028); only its seconds count."""
        return self._one("min-se", SessionExpires.parse)

    @property
    def warning(self) -> list[Warning]:
        """Warning values."""
        return self._list("warning", Warning.parse)

    @property
    def reason(self) -> list[Reason]:
        """Reason values (RFC 3326)."""
        return self._list("reason", Reason.parse)

    @property
    def accept_contact(self) -> list[AcceptContact]:
        """Accept-Contact values (RFC 3841)."""
        return self._list("accept-contact", AcceptContact.parse)

    @property
    def p_asserted_identity(self) -> list[NameAddr]:
        """P-Asserted-Identity values (RFC 3325)."""
        return self._list("p-asserted-identity", NameAddr.parse)


def _word(text: str) -> str:
    if not text or " " in text or "\t" in text:
        raise ParseError("not one word")
    return text


def _length(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise ParseError("not a length")
    return int(text)


def _checked(name: str, value: object) -> str:
    text = str(value)
    if not is_token(name):
        raise LocalProtocolError(f"{name!r} is no header name")
    if "\r" in text or "\n" in text:
        raise LocalProtocolError(f"a line break in {name}")
    return text.strip(" \t")
