# SPDX-License-Identifier: Apache-2.0
"""The header section of a message: lines in their order and raw form, and typed ways to read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, KeysView
from typing import TypeVar

from mcptt_sip.errors import ParseError
from mcptt_sip.grammar import is_token, split_list
from mcptt_sip.header_line import HeaderLine, content_length, key_of, line_of, read_lines
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
_ANSWERED = ("from", "to", "call-id", "cseq")
#: headers of one value
_SINGLE = ("call-id", "cseq", "from", "to", "max-forwards", "content-length", "content-type")


class Headers:
    """Header fields in order. Names match without case, compact forms included.

    Raw access: `get` (first value of the first line), `get_all` (each line), `values` (each value, lists cut at their
    commas). Typed access: the properties; they parse once, and raise `ParseError` (status 400) on nonsense. A
    header that is absent reads as ``None`` or an empty list, except From, To, Call-ID, CSeq, Via: `ParseError`.
    """

    __slots__ = ("_first", "_lines")

    def __init__(self, pairs: HeaderItems = ()) -> None:
        self._lines: list[HeaderLine] = []
        self._first: dict[str, HeaderLine] = {}  # the first line of each name
        if pairs:
            self.extend(pairs)

    @classmethod
    def _of(cls, lines: list[HeaderLine]) -> Headers:
        made = cls.__new__(cls)
        made._lines = lines
        made._first = {line.key: line for line in lines}
        if len(made._first) != len(lines):
            made._first = {line.key: line for line in reversed(lines)}
        return made

    @classmethod
    def scan(cls, text: str, limit: int) -> tuple[Headers, tuple[str, int] | None]:
        """Read a header section (without its blank line). With it comes the first fault and where (in
        characters), or ``None``: the lines that can be read are there all the same, to answer with."""
        if not text:
            return cls(), None
        raw_lines = text.split("\r\n")
        if len(raw_lines) <= limit:
            try:
                return cls._of(read_lines(raw_lines)), None
            except ParseError:
                pass  # where, and what can be read all the same, is found out below
        return cls._scan_unusual(text, limit)

    @classmethod
    def _scan_unusual(cls, text: str, limit: int) -> tuple[Headers, tuple[str, int] | None]:
        """The same for a section with folded lines, or with a fault in it."""
        raw_lines = _line_end.split(text)
        if len(raw_lines) > limit:
            return cls(), ("too many header lines", len(text))
        lines: list[HeaderLine] = []
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
                lines.append(HeaderLine(key_of(name), value, raw))
            at += len(raw) + 2
        return cls._of(lines), fault

    # raw access

    def _all(self, key: str) -> Iterable[HeaderLine]:
        """Each line of this name (canonical)."""
        first = self._first.get(key)
        if first is None:
            return ()
        if len(self._first) == len(self._lines):
            return (first,)
        return [line for line in self._lines if line.key == key]

    def get(self, name: str) -> str | None:
        """The value of the first line of this name, unfolded; ``None`` when absent."""
        found = self._first.get(key_of(name))
        return None if found is None else found.value

    def get_all(self, name: str) -> list[str]:
        """The value of each line of this name."""
        return [line.value for line in self._all(key_of(name))]

    def values(self, name: str) -> list[str]:
        """Each value of this name, over all lines, lists cut at commas."""
        return [value for line in self._all(key_of(name)) for value in split_list(line.value)]

    def count(self, name: str) -> int:
        """How many lines have this name."""
        return len(self.get_all(name))

    @property
    def names(self) -> KeysView[str]:
        """The names that stand here, in lower case and written out."""
        return self._first.keys()

    def items(self) -> Iterator[tuple[str, str]]:
        """(name as written, unfolded value) of each line in order."""
        return ((line.name, line.value) for line in self._lines)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and key_of(name) in self._first

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self.items()

    # changes

    def add(self, name: str, value: object) -> None:
        """Append a line."""
        self._append(line_of(name, value))

    def _append(self, line: HeaderLine) -> None:
        self._lines.append(line)
        self._first.setdefault(line.key, line)

    def add_first(self, name: str, value: object) -> None:
        """Put a line before all others: a Via, a Route."""
        self._put_first(line_of(name, value))

    def _put_first(self, line: HeaderLine) -> None:
        self._lines.insert(0, line)
        self._first[line.key] = line

    def set(self, name: str, value: object) -> None:
        """Make this the only line of its name, where its first one stood, else at the end."""
        line = line_of(name, value)
        if line.key not in self._first:
            self._append(line)
            return
        at = self._lines.index(self._first[line.key])  # by place: a later line may be the very same one
        later = [one for one in self._lines[at + 1 :] if one.key != line.key]
        self._lines = [*self._lines[:at], line, *later]
        self._first[line.key] = line

    def replace_first(self, name: str, value: object) -> None:
        """Change the first line of this name only (the top Via); where there is none, it comes before all others."""
        line = line_of(name, value)
        if line.key in self._first:
            self._replace(line)
        else:
            self._put_first(line)

    def _replace(self, line: HeaderLine) -> None:
        self._lines[self._lines.index(self._first[line.key])] = line
        self._first[line.key] = line

    def replace_value(self, name: str, value: object) -> None:
        """Change the first value of this name; others that stand in the same line stay (a top Via)."""
        known = self._first.get(key_of(name))
        others = split_list(known.value)[1:] if known is not None and "," in known.value else []
        self.replace_first(name, ", ".join([str(value), *others]))

    def remove(self, name: str) -> None:
        """Drop every line of this name."""
        key = key_of(name)
        if self._first.pop(key, None) is not None:
            self._lines = [line for line in self._lines if line.key != key]

    def extend(self, pairs: HeaderItems) -> None:
        """Append a line for each pair."""
        for name, value in pairs:
            self._append(line_of(name, value))

    def copy_from(self, other: Headers, name: str) -> None:
        """Append the lines of this name (canonical) of `other` in their raw form."""
        for line in other._all(name):
            self._append(line)

    @classmethod
    def answering(cls, other: Headers, to: str | None = None) -> Headers:
        """What a response has of its request, in raw form: every Via, then one From, To, Call-ID, CSeq (of a header
        that a broken request repeats, the first). `to`: what its To says instead."""
        given = other._first
        lines = [*other._all("via"), *[given[key] for key in _ANSWERED if key in given]]
        if to is not None and "to" in given:
            lines[lines.index(given["to"])] = line_of("To", to)
        return cls._of(lines)

    def copy(self) -> Headers:
        """An independent copy."""
        made = Headers.__new__(Headers)
        made._lines = self._lines.copy()
        made._first = self._first.copy()
        return made

    def add_missing(self, others: Headers) -> None:
        """Append what `others` has under names that do not stand here."""
        lines = [line for line in others._lines if line.key not in self._first]
        self._lines += lines
        for line in lines:
            self._first.setdefault(line.key, line)

    def encode(self, start_line: str, body: bytes) -> bytes:
        """The whole message. Content-Length is put right."""
        if "content-length" not in self._first:
            self._append(content_length(len(body)))
        elif self.content_length_differs(len(body)):
            self.set("Content-Length", len(body))
        head = "\r\n".join([start_line, *[line.raw for line in self._lines], "", ""])
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
        first = self._first
        if len(first) != len(self._lines):
            for key in _SINGLE:
                if self.count(key) > 1:
                    raise ParseError(f"{key} stands twice")
        for key, name, read in _OBLIGATORY:
            line = first.get(key)
            if line is None:
                if key == "content-length":
                    return
                raise ParseError(f"{name}: {key} is missing")
            if line.typed is None:
                try:
                    line.typed = read(line.value)
                except ParseError as error:
                    raise ParseError(f"{name}: {error.reason}", status=error.status) from None

    def _one(self, key: str, parse: Callable[[str], T]) -> T | None:
        line = self._first.get(key)
        if line is None:
            return None
        if line.typed is None:
            line.typed = parse(line.value)
        found: T = line.typed
        return found

    def _must(self, key: str, parse: Callable[[str], T]) -> T:
        found = self._one(key, parse)
        if found is None:
            raise ParseError(f"{key} is missing")
        return found

    def _list(self, key: str, parse: Callable[[str], T]) -> list[T]:
        first = self._first.get(key)
        if first is None:
            return []
        if first.typed is not None and len(self._first) == len(self._lines):
            return [*first.typed]
        found: list[T] = []
        for line in self._all(key):
            if line.typed is None:
                line.typed = tuple(map(parse, split_list(line.value)))
            found += line.typed
        return found

    def _options(self, key: str) -> list[str]:
        if key not in self._first:
            return []
        return [tag for line in self._all(key) for tag in parse_options(line.value)]

    @property
    def top_via(self) -> Via:
        """The first Via value."""
        line = self._first.get("via")
        return self._must("via", Via.first) if line is None or line.typed is None else line.typed

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
        first = self._first.get("via")
        if first is None or (len(self._first) != len(self._lines) and self.count("via") > 1):
            return False
        return "," not in first.value or len(split_list(first.value)) == 1

    @property
    def from_(self) -> NameAddr:
        """From; its `tag` is ``None`` for an RFC 2543 peer."""
        line = self._first.get("from")
        return self._must("from", NameAddr.parse) if line is None or line.typed is None else line.typed

    @property
    def to(self) -> NameAddr:
        """To."""
        line = self._first.get("to")
        return self._must("to", NameAddr.parse) if line is None or line.typed is None else line.typed

    @property
    def call_id(self) -> str:
        """Call-ID."""
        line = self._first.get("call-id")
        return self._must("call-id", parse_word) if line is None or line.typed is None else line.typed

    @property
    def cseq(self) -> CSeq:
        """CSeq."""
        line = self._first.get("cseq")
        return self._must("cseq", CSeq.parse) if line is None or line.typed is None else line.typed

    @property
    def contact(self) -> list[NameAddr]:
        """Every Contact; empty for ``*``, see `contact_star`."""
        first = self._first.get("contact")
        if first is None or (first.value == "*" and self.contact_star):
            return []
        return self._list("contact", NameAddr.parse)

    @property
    def contact_star(self) -> bool:
        """Whether Contact is ``*`` (RFC 3261 10.2.2)."""
        return self.get_all("contact") == ["*"]

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

    def understands(self, tag: str) -> bool:
        """Whether the sender understands this extension (lower case): he supports or even requires it."""
        return self.supports(tag) or self.requires(tag)

    def _names(self, key: str, tag: str) -> bool:
        return key in self._first and any(tag in parse_option_tags(line.value) for line in self._all(key))

    @property
    def unsupported(self) -> list[str]:
        """Option tags of Unsupported as they are written."""
        return self._options("unsupported")

    @property
    def allow(self) -> list[str]:
        """Methods of Allow, which compare as they are written (RFC 3261 7.1)."""
        return self._options("allow")

    @property
    def accept(self) -> list[MediaType] | None:
        """Accept; ``None`` when absent (application/sdp is meant), empty when it accepts nothing."""
        values = self.get_all("accept")
        if not values:
            return None
        return [MediaType.parse(one) for value in values if value for one in split_list(value)]

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
    def refer_events_at(self) -> NameAddr | None:
        """Refer-Events-At (RFC 7614 4.8), which has angle brackets."""
        if not (self.get("refer-events-at") or "<").startswith("<"):
            raise ParseError("Refer-Events-At without angle brackets")
        return self._one("refer-events-at", NameAddr.parse)

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
