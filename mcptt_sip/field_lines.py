# SPDX-License-Identifier: Apache-2.0
"""The header section of a message: lines in their order and raw form, and typed ways to read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, KeysView
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
    parse_length,
    parse_option_tags,
    parse_options,
    parse_word,
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
    "Allow-Events Min-Expires Unsupported Retry-After v f t i m c l k s o r b e x u a"
)
#: usual spellings of header names, and what they are looked up by
_KEYS = {name: canonical(spelled) for spelled in _SPELLINGS.split(" ") for name in (spelled, spelled.lower())}

_ANSWERED = ("from", "to", "call-id", "cseq")
#: headers of one value
_SINGLE = ("call-id", "cseq", "from", "to", "max-forwards", "content-length", "content-type")

# (key, name as written, unfolded value, raw line)
_Line = tuple[str, str, str, str]


class Headers:
    """Header fields in order. Names match without case, compact forms included.

    Raw access: `get` (first value of the first line), `get_all` (each line), `values` (each value, lists cut at their
    commas). Typed access: the properties; they parse once, and raise `ParseError` (status 400) on nonsense. A
    header that is absent reads as ``None`` or an empty list, except From, To, Call-ID, CSeq, Via: `ParseError`.
    """

    __slots__ = ("_fields", "_lines", "_typed")

    def __init__(self, pairs: HeaderItems = ()) -> None:
        self._lines: list[_Line] = []
        # the same lines by their key; copies share these lists, so a change makes a new one
        self._fields: dict[str, list[_Line]] = {}
        self._typed: dict[str, object] = {}
        if pairs:
            self.extend(pairs)

    @classmethod
    def scan(cls, text: str, limit: int) -> tuple[Headers, tuple[str, int] | None]:
        """Read a header section (without its blank line). With it comes the first fault and where (in
        characters), or ``None``: the lines that can be read are there all the same, to answer with."""
        self = cls()
        if not text:
            return self, None
        lines, fields = self._lines, self._fields
        raw_lines = text.split("\r\n")
        ends = len(raw_lines) - 1
        if ends >= limit or text.count("\r") != ends or text.count("\n") != ends:
            return cls._scan_unusual(text, limit)
        for raw in raw_lines:
            name, colon, value = raw.partition(":")
            key = _KEYS.get(name)
            if key is None:  # not one of the usual spellings
                name = name.rstrip(" \t")
                key = canonical(name) if is_token(name) else ""
            if not key or not colon:
                return cls._scan_unusual(text, limit)
            line = (key, name, value.strip(" \t"), raw)
            lines.append(line)
            if key in fields:
                fields[key].append(line)
            else:
                fields[key] = [line]
        return self, None

    @classmethod
    def _scan_unusual(cls, text: str, limit: int) -> tuple[Headers, tuple[str, int] | None]:
        """The same for a section with folded lines, or with a fault in it."""
        self = cls()
        raw_lines = _line_end.split(text)
        if len(raw_lines) > limit:
            return self, ("too many header lines", len(text))
        fault: tuple[str, int] | None = None
        at = 0
        for raw in raw_lines:
            name, colon, value = raw.partition(":")
            name = name.rstrip(" \t")
            value = _fold.sub(" ", value).strip(" \t")
            if not colon or not is_token(name):
                fault = fault or ("not a header line", at)
            elif "\r" in value or "\n" in value:
                # left out, so that no answer repeats what a careless peer would read as two lines
                fault = fault or ("a bare CR or LF in a header", at)
            else:
                line = (canonical(name), name, value, raw)
                self._lines.append(line)
                self._fields.setdefault(line[0], []).append(line)  # nobody shares it yet
            at += len(raw) + 2
        return self, fault

    # raw access

    def get(self, name: str) -> str | None:
        """The value of the first line of this name, unfolded; ``None`` when absent."""
        found = self._fields.get(_KEYS.get(name) or canonical(name))
        return None if found is None else found[0][2]

    def get_all(self, name: str) -> list[str]:
        """The value of each line of this name."""
        return [line[2] for line in self._fields.get(canonical(name), ())]

    def values(self, name: str) -> list[str]:
        """Each value of this name, over all lines, lists cut at commas."""
        return [value for line in self._fields.get(canonical(name), ()) for value in split_list(line[2])]

    def count(self, name: str) -> int:
        """How many lines have this name (canonical, lower case)."""
        return len(self._fields.get(name, ()))

    @property
    def names(self) -> KeysView[str]:
        """The names that stand here, in lower case and written out."""
        return self._fields.keys()

    def items(self) -> Iterator[tuple[str, str]]:
        """(name as written, unfolded value) of each line in order."""
        return ((name, value) for _, name, value, _ in self._lines)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (_KEYS.get(name) or canonical(name)) in self._fields

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self.items()

    # changes

    def add(self, name: str, value: object) -> None:
        """Append a line."""
        line = _line(name, value)
        self._append(line)
        self._typed.pop(line[0], None)

    def add_first(self, name: str, value: object) -> None:
        """Put a line before all others: a Via, a Route."""
        line = _line(name, value)
        self._lines.insert(0, line)
        self._fields[line[0]] = [line, *self._fields.get(line[0], ())]
        self._typed.pop(line[0], None)

    def set(self, name: str, value: object) -> None:
        """Make this the only line of its name, where its first one stood, else at the end."""
        key = canonical(name)
        known = self._fields.get(key)
        if known is None:
            self.add(name, value)
            return
        self.replace_first(name, value)
        if len(known) > 1:
            first = self._fields[key][0]
            self._lines = [line for line in self._lines if line[0] != key or line is first]
            self._fields[key] = [first]

    def replace_first(self, name: str, value: object) -> None:
        """Change the first line of this name only (the top Via); where there is none, it comes before all others."""
        line = _line(name, value)
        known = self._fields.get(line[0])
        if known is None:
            self.add_first(name, value)
            return
        self._lines[self._lines.index(known[0])] = line
        self._fields[line[0]] = [line, *known[1:]]
        self._typed.pop(line[0], None)

    def replace_value(self, name: str, value: object) -> None:
        """Change the first value of this name; others that stand in the same line stay (a top Via)."""
        known = self._fields.get(_KEYS.get(name) or canonical(name))
        others = split_list(known[0][2])[1:] if known is not None and "," in known[0][2] else []
        self.replace_first(name, ", ".join([str(value), *others]))

    def remove(self, name: str) -> None:
        """Drop every line of this name."""
        key = canonical(name)
        if self._fields.pop(key, None) is not None:
            self._lines = [line for line in self._lines if line[0] != key]
            self._typed.pop(key, None)

    def extend(self, pairs: HeaderItems) -> None:
        """Append a line for each pair."""
        for name, value in pairs:
            self.add(name, value)

    def copy_from(self, other: Headers, name: str) -> None:
        """Append the lines of this name (canonical) of `other` in their raw form."""
        lines = other._fields.get(name)
        if lines is not None:
            self._lines += lines
            self._fields[name] = [*self._fields[name], *lines] if name in self._fields else lines
            self._typed.pop(name, None)

    @classmethod
    def answering(cls, other: Headers, to: str | None = None) -> Headers:
        """What a response has of its request, in raw form: every Via, then one From, To, Call-ID, CSeq (of a header
        that a broken request repeats, the first). `to`: what its To says instead."""
        made = cls()
        fields = other._fields
        vias = fields.get("via")
        if vias is not None:
            made._fields["via"] = vias
            made._lines += vias
        for name in _ANSWERED:
            lines = fields.get(name)
            if lines is None:
                continue
            if name == "to" and to is not None:
                lines = [_line("To", to)]
            elif len(lines) > 1:
                lines = lines[:1]
            made._fields[name] = lines
            made._lines += lines
        return made

    def copy(self) -> Headers:
        """An independent copy."""
        made = Headers()
        made._lines = list(self._lines)
        made._fields = dict(self._fields)
        made._typed = dict(self._typed)
        return made

    def add_missing(self, others: Headers) -> None:
        """Append what `others` has under names that do not stand here."""
        for key, lines in others._fields.items():
            if key not in self._fields:
                self._lines += lines
                self._fields[key] = lines
                self._typed.pop(key, None)

    def _append(self, line: _Line) -> None:
        self._lines.append(line)
        key = line[0]
        known = self._fields.get(key)
        self._fields[key] = [line] if known is None else [*known, line]

    def encode(self, start_line: str, body: bytes) -> bytes:
        """The whole message. Content-Length is put right."""
        length = self._fields.get("content-length")
        text = str(len(body))
        if length is None:
            self._append(("content-length", "Content-Length", text, f"Content-Length: {text}"))
        elif (length[0][2] != text or len(length) > 1) and self.content_length_differs(len(body)):
            self.set("Content-Length", text)
        head = "\r\n".join([start_line, *[line[3] for line in self._lines], "", ""])
        return head.encode("utf-8", "surrogateescape") + body

    def content_length_differs(self, length: int) -> bool:
        """Whether Content-Length says something else than `length` (leading zeros are the same)."""
        values = self.get_all("content-length")
        return len(values) != 1 or not values[0].isdigit() or int(values[0]) != length

    # typed access

    def read_obligatory(self) -> None:
        """Reads the headers without which no message can be handled (RFC 3261 8.1.1, 8.2.6.2): Via, From, To, Call-ID,
        CSeq, and Content-Length where it stands. The results are kept. Raises `ParseError`, also when a header of one
        value stands twice."""
        fields, typed = self._fields, self._typed
        if len(fields) != len(self._lines):
            for key in _SINGLE:
                if self.count(key) > 1:
                    raise ParseError(f"{key} stands twice")
        for key, name, read in _OBLIGATORY:
            lines = fields.get(key)
            if lines is None:
                if key == "content-length":
                    return
                raise ParseError(f"{name}: {key} is missing")
            try:
                typed[key] = read(lines[0][2])
            except ParseError as error:
                raise ParseError(f"{name}: {error.reason}", status=error.status) from None

    def _one(self, key: str, parse: Callable[[str], T]) -> T | None:
        found = self._typed.get(key)
        if found is None:
            lines = self._fields.get(key)
            if lines is None:
                return None
            found = self._typed[key] = parse(lines[0][2])
        return found  # type: ignore[return-value]

    def _must(self, key: str, parse: Callable[[str], T]) -> T:
        lines = self._fields.get(key)
        if lines is None:
            raise ParseError(f"{key} is missing")
        found = self._typed[key] = parse(lines[0][2])
        return found

    def _list(self, key: str, parse: Callable[[str], T]) -> list[T]:
        found = self._typed.get(key)
        if found is None:
            lines = self._fields.get(key, ())
            if len(lines) == 1 and "," not in lines[0][2]:
                found = [parse(lines[0][2])]
            else:
                found = [parse(value) for value in self.values(key)]
            self._typed[key] = found
        return found  # type: ignore[return-value]

    def _options(self, key: str) -> list[str]:
        lines = self._fields.get(key)
        return [] if lines is None else [tag for line in lines for tag in parse_options(line[2])]

    @property
    def top_via(self) -> Via:
        """The first Via value."""
        found = self._typed.get("via")
        if found is None:
            lines = self._fields.get("via")
            if lines is None:
                raise ParseError("via is missing")
            found = self._typed["via"] = Via.first(lines[0][2])
        return found  # type: ignore[return-value]

    @property
    def via(self) -> list[Via]:
        """Every Via, topmost first."""
        if self.one_via:
            return [self.top_via]
        values = self.values("via")
        return [self.top_via, *map(Via.parse, values[1:])] if values else []

    @property
    def one_via(self) -> bool:
        """Whether there is one Via value and no other: no proxy stands between."""
        lines = self._fields.get("via", ())
        return len(lines) == 1 and ("," not in lines[0][2] or len(split_list(lines[0][2])) == 1)

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
        return self._typed.get("call-id") or self._must("call-id", parse_word)  # type: ignore[return-value]

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
        lines = self._fields.get("contact")
        return lines is not None and len(lines) == 1 and lines[0][2] == "*"

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
    def max_breadth(self) -> int | None:
        """Max-Breadth (RFC 5393 5.3.1); ``None`` when absent. Of an endless number, what ten digits say."""
        value = self.get("max-breadth")
        if value is not None and not (value.isascii() and value.isdigit()):
            raise ParseError("Max-Breadth is no number")
        return None if value is None else int(value.lstrip("0")[:10] or "0")

    @property
    def content_length(self) -> int | None:
        """Content-Length."""
        return self._one("content-length", parse_length)

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
        """Option tags of Supported as they are written; see `supports`."""
        return self._options("supported")

    @property
    def require(self) -> list[str]:
        """Option tags of Require as they are written; see `requires`."""
        return self._options("require")

    def supports(self, tag: str) -> bool:
        """Whether Supported names this option tag (lower case), however it is written (RFC 3261 7.3.1)."""
        return self._names("supported", tag)

    def requires(self, tag: str) -> bool:
        """Whether Require names this option tag (lower case)."""
        return self._names("require", tag)

    def _names(self, key: str, tag: str) -> bool:
        return any(tag in parse_option_tags(line[2]) for line in self._fields.get(key, ()))

    @property
    def unsupported(self) -> list[str]:
        """Option tags of Unsupported as they are written."""
        return self._options("unsupported")

    @property
    def allow(self) -> list[str]:
        """Methods of Allow, which compare as they are written (RFC 3261 7.1)."""
        return [method for line in self._fields.get("allow", ()) for method in parse_options(line[2])]

    @property
    def accept(self) -> list[MediaType] | None:
        """Accept; ``None`` when absent (application/sdp is meant), empty when it accepts nothing."""
        lines = self._fields.get("accept")
        if lines is None:
            return None
        return [MediaType.parse(value) for line in lines if line[2] for value in split_list(line[2])]

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


#: (key, name in an error, what reads it), Content-Length last
_OBLIGATORY: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    ("via", "Via", Via.first),
    ("from", "From", NameAddr.parse),
    ("to", "To", NameAddr.parse),
    ("call-id", "Call-ID", parse_word),
    ("cseq", "CSeq", CSeq.parse),
    ("content-length", "Content-Length", parse_length),
)


def _line(name: str, value: object) -> _Line:
    """The line that a name and a value make; refuses what would make several."""
    key = _KEYS.get(name)
    if key is None:
        if not is_token(name):
            raise LocalProtocolError(f"{name!r} is no header name")
        key = canonical(name)
    text = str(value)
    if "\r" in text or "\n" in text:
        raise LocalProtocolError(f"a line break in {name}")
    text = text.strip(" \t")
    return key, name, text, f"{name}: {text}"
