# SPDX-License-Identifier: Apache-2.0
"""Typed header field values: frozen, with ``parse`` and ``str`` (RFC 3261 20 and the extensions named at each).

``parse`` takes one value without its name, unfolded; it raises `ParseError` with the offset inside that text.

:RFC 3326: yes; Reason
:RFC 3841: partly; Accept-Contact is read and written; preferences are not applied
:RFC 3892: yes; Referred-By
:RFC 3325: partly; P-Asserted-Identity is read; trust domains are the application's
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mcptt_sip.errors import ParseError
from mcptt_sip.grammar import QUOTED, TOKEN, Params, format_host, is_token, kept, quote, split_list, unquote
from mcptt_sip.uri import HOST_PORT, SipUri, Uri, host_and_port, parse_uri

__all__ = [
    "COMPACT",
    "AcceptContact",
    "CSeq",
    "Event",
    "MediaType",
    "NameAddr",
    "RAck",
    "Reason",
    "Replaces",
    "SessionExpires",
    "SubscriptionState",
    "TargetDialog",
    "Via",
    "Warning",
    "canonical",
    "parse_delta_seconds",
]

#: compact forms (RFC 3261 7.3.3 and the registry): one letter -> full name in lower case
COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "d": "request-disposition",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "j": "reject-contact",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "n": "identity-info",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
    "y": "identity",
}

_EMPTY = Params()
_name_addr = re.compile(
    rf"[ \t]*(?:(?P<quoted>{QUOTED})[ \t]*|(?P<words>{TOKEN}(?:[ \t]+{TOKEN})*)[ \t]*)?"
    rf"<[ \t]*(?P<uri>[^<> \t\"]+)[ \t]*>(?:;tag=(?P<tag>{TOKEN}))?"
).match
_addr_spec = re.compile(r"[ \t]*(?P<uri>[^<>\s;,\"?]+)[ \t]*").match
_via = re.compile(
    rf"[ \t]*{TOKEN}[ \t]*/[ \t]*({TOKEN})[ \t]*/[ \t]*({TOKEN})[ \t]+{HOST_PORT}[ \t]*"
).fullmatch
_cseq = re.compile(rf"[ \t]*([0-9]{{1,20}})[ \t]+({TOKEN})[ \t]*").fullmatch
_rack = re.compile(rf"[ \t]*([0-9]{{1,20}})[ \t]+([0-9]{{1,20}})[ \t]+({TOKEN})[ \t]*").fullmatch
_media = re.compile(rf"[ \t]*({TOKEN})[ \t]*/[ \t]*({TOKEN})[ \t]*").match
_token_at = re.compile(rf"[ \t]*({TOKEN})[ \t]*").match
_word_at = re.compile(r"[ \t]*([^\s;,]+)[ \t]*").match
_digits_at = re.compile(r"[ \t]*([0-9]{1,20})[ \t]*").match
_warning = re.compile(rf'[ \t]*([0-9]{{3}})[ \t]+([^\s"]+)[ \t]+({QUOTED})[ \t]*').fullmatch


def canonical(name: str) -> str:
    """The key of a header name: lower case, compact form written out."""
    name = name.lower()
    return COMPACT.get(name, name)


def parse_delta_seconds(text: str) -> int | None:
    """delta-seconds, or ``None`` when it is none: above 2**32-1 or no number counts as absent (RFC 4475 3.1.2.4)."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    return int(text) if int(text) < 2**32 else None


@dataclass(frozen=True, slots=True)
class NameAddr:
    """``"display" <uri>;params``: From, To, Contact, Route, Record-Route, Refer-To, Referred-By, Path and more.

    `display` is what the quotes mean; parameters keep their raw form, so that feature tags such as
    ``+g.3gpp.icsi-ref="urn%3Aurn-7%3A…"`` leave octet for octet as they came.
    """

    uri: Uri
    display: str | None = None
    params: Params = _EMPTY
    _raw: str | None = field(default=None, repr=False, compare=False)
    #: the ``tag`` parameter of From and To
    tag: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tag", self.params.get("tag"))  # looked at many times for each message

    @classmethod
    def parse(cls, text: str) -> NameAddr:
        """Parse one name-addr or addr-spec with its parameters (RFC 3261 20.10: without ``<>`` they are the
        header's, and ``?`` is an error)."""
        return _name_addr_of(text)

    @classmethod
    def of(cls, value: NameAddr | Uri | str) -> NameAddr:
        """`value` as a NameAddr, parsed when it is text."""
        if isinstance(value, NameAddr):
            return value
        return cls.parse(value) if isinstance(value, str) else cls(value)

    def with_param(self, name: str, value: str | None = None) -> NameAddr:
        """A copy with this parameter (raw value) set."""
        return NameAddr(self.uri, self.display, self.params.with_(name, value))

    def without_param(self, name: str) -> NameAddr:
        """A copy without this parameter."""
        return NameAddr(self.uri, self.display, self.params.without(name))

    def __str__(self) -> str:
        if self._raw is not None:
            return self._raw
        display = "" if not self.display else f"{quote(self.display)} "
        return f"{display}<{self.uri}>{self.params}"


def _name_addr_of(text: str) -> NameAddr:
    match = _name_addr(text)
    if match is None:
        match = _addr_spec(text)
        if match is None:
            raise ParseError("neither name-addr nor addr-spec")
        display, uri, tag = None, match["uri"], None
    else:
        quoted, words, uri, tag = match.groups()
        display = unquote(quoted) if quoted is not None else words
    end = match.end()
    if end == len(text):
        params = _EMPTY if tag is None else Params((("tag", tag),))
    else:
        params = Params.parse(text, end if tag is None else match.start("tag") - len(";tag="))
    return NameAddr(parse_uri(uri), display, params, text)


@dataclass(frozen=True, slots=True)
class Via:
    """One Via value (RFC 3261 20.42, 3581). `transport` in upper case; `host` without brackets."""

    transport: str
    host: str
    port: int | None = None
    params: Params = _EMPTY
    version: str = "2.0"
    #: the transaction identifier; ``None`` from RFC 2543 peers
    branch: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "branch", self.params.get("branch"))

    @classmethod
    def parse(cls, text: str) -> Via:
        """Parse ``SIP/2.0/UDP host:port;params``."""
        end = text.find(";")
        if end < 0:
            return cls(*_sent_by_of(text))
        transport, host, port, _, version = _sent_by_of(text[:end])
        return cls(transport, host, port, Params.parse(text, end), version)

    @classmethod
    def first(cls, text: str) -> Via:
        """The first of the values that stand in one line."""
        return cls.parse(split_list(text)[0] if "," in text else text)

    @property
    def received(self) -> str | None:
        """The address the request really came from, without brackets (RFC 5118 4.5)."""
        value = self.params.get("received")
        return value.strip("[]") if value else None

    @property
    def rport(self) -> int | None:
        """The port the request really came from (RFC 3581); ``None`` when absent or still empty."""
        value = self.params.get("rport")
        return int(value) if value and value.isascii() and value.isdigit() and len(value) <= 5 else None

    def with_param(self, name: str, value: str | None = None) -> Via:
        """A copy with this parameter set."""
        return Via(self.transport, self.host, self.port, self.params.with_(name, value), self.version)

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"SIP/{self.version}/{self.transport} {format_host(self.host)}{port}{self.params}"


@kept
def _sent_by_of(text: str) -> tuple[str, str, int | None, Params, str]:
    """What a Via says before its parameters, as the fields of one without any."""
    match = _via(text)
    if match is None:
        raise ParseError("not a Via")
    version, transport, sent_by, port = match.groups()
    return transport.upper(), *host_and_port(sent_by, port), _EMPTY, version


@dataclass(frozen=True, slots=True)
class CSeq:
    """Sequence number below 2**32 and method (RFC 3261 20.16)."""

    number: int
    method: str

    @classmethod
    def parse(cls, text: str) -> CSeq:
        """Parse ``number method``."""
        match = _cseq(text)
        if match is None:
            raise ParseError("not a CSeq")
        number = int(match[1])
        if number >= 2**32:
            raise ParseError("a CSeq above 2**32-1")
        return cls(number, match[2])

    def __str__(self) -> str:
        return f"{self.number} {self.method}"


@dataclass(frozen=True, slots=True)
class RAck:
    """What a PRACK acknowledges (RFC 3262 7.2)."""

    rseq: int
    cseq: int
    method: str

    @classmethod
    def parse(cls, text: str) -> RAck:
        """Parse ``rseq cseq method``."""
        match = _rack(text)
        if match is None or int(match[1]) >= 2**32 or int(match[2]) >= 2**32:
            raise ParseError("not a RAck")
        return cls(int(match[1]), int(match[2]), match[3])

    def __str__(self) -> str:
        return f"{self.rseq} {self.cseq} {self.method}"


@dataclass(frozen=True, slots=True)
class MediaType:
    """Content-Type, or one value of Accept. `full` is ``type/subtype`` in lower case."""

    full: str
    params: Params = _EMPTY
    _raw: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> MediaType:
        """Parse ``type/subtype;params``."""
        return _media_type_of(text)

    def accepts(self, other: str) -> bool:
        """Whether this range (``*/*``, ``multipart/*``, ``application/sdp``) covers the type `other`."""
        kind, _, sub = self.full.partition("/")
        kind2, _, sub2 = other.lower().partition("/")
        return kind in ("*", kind2) and sub in ("*", sub2)

    def __str__(self) -> str:
        return self._raw if self._raw is not None else f"{self.full}{self.params}"


@kept
def _media_type_of(text: str) -> MediaType:
    match = _media(text)
    if match is None:
        raise ParseError("not a media type")
    params = Params.parse(text, match.end()) if match.end() < len(text) else _EMPTY
    return MediaType(f"{match[1]}/{match[2]}".lower(), params, text)


@dataclass(frozen=True, slots=True)
class Event:
    """An event package and its ``id`` (RFC 6665 8.4). Packages compare with case (they are tokens)."""

    package: str
    params: Params = _EMPTY

    @classmethod
    def parse(cls, text: str) -> Event:
        """Parse ``package;id=...``."""
        match = _token_at(text)
        if match is None:
            raise ParseError("not an event package")
        return cls(match[1], Params.parse(text, match.end()))

    @property
    def id(self) -> str | None:
        """The ``id`` parameter."""
        return self.params.get("id")

    def __str__(self) -> str:
        return f"{self.package}{self.params}"


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """``active``, ``pending`` or ``terminated``, with reason and times in seconds (RFC 6665 4.1.3)."""

    state: str
    reason: str | None = None
    expires: int | None = None
    retry_after: int | None = None

    @classmethod
    def parse(cls, text: str) -> SubscriptionState:
        """Parse a Subscription-State."""
        match = _token_at(text)
        if match is None:
            raise ParseError("not a subscription state")
        params = Params.parse(text, match.end())
        times = [parse_delta_seconds(params.get(name) or "") for name in ("expires", "retry-after")]
        return cls(match[1].lower(), params.get("reason"), *times)

    def __str__(self) -> str:
        text = self.state
        for name, value in (
            ("expires", self.expires),
            ("reason", self.reason),
            ("retry-after", self.retry_after),
        ):
            if value is not None:
                text += f";{name}={value}"
        return text


@dataclass(frozen=True, slots=True)
class SessionExpires:
    """Session-Expires and Min-SE in seconds (RFC 4028 4, 5). `refresher` is ``uac``, ``uas`` or ``None``."""

    seconds: int
    refresher: str | None = None

    @classmethod
    def parse(cls, text: str) -> SessionExpires:
        """Parse ``1800;refresher=uas``."""
        match = _digits_at(text)
        seconds = None if match is None else parse_delta_seconds(match[1])
        if match is None or seconds is None:
            raise ParseError("not a session interval")
        refresher = Params.parse(text, match.end()).get("refresher")
        known = refresher is not None and refresher.lower() in ("uac", "uas")  # another word says nothing
        return cls(seconds, refresher.lower() if refresher and known else None)

    def __str__(self) -> str:
        return f"{self.seconds}" + (f";refresher={self.refresher}" if self.refresher else "")


@dataclass(frozen=True, slots=True)
class _DialogId:
    """A Call-ID and two tags."""

    call_id: str
    params: Params

    def _tag(self, name: str) -> str:
        value = self.params.get(name)
        if not value:
            raise ParseError(f"{name} is missing")
        return value


def _dialog_id(text: str) -> tuple[str, Params]:
    match = _word_at(text)
    if match is None:
        raise ParseError("no Call-ID")
    return match[1], Params.parse(text, match.end())


@dataclass(frozen=True, slots=True)
class Replaces(_DialogId):
    """The dialog to replace (RFC 3891); tags as the recipient sees them: `to_tag` is his own."""

    @classmethod
    def parse(cls, text: str) -> Replaces:
        """Parse ``call-id;to-tag=…;from-tag=…``; both tags are obligatory."""
        value = cls(*_dialog_id(text))
        _ = value.to_tag, value.from_tag
        return value

    @property
    def to_tag(self) -> str:
        """The recipient's local tag."""
        return self._tag("to-tag")

    @property
    def from_tag(self) -> str:
        """The recipient's remote tag."""
        return self._tag("from-tag")

    @property
    def early_only(self) -> bool:
        """Whether only an early dialog may be replaced."""
        return "early-only" in self.params

    def __str__(self) -> str:
        return f"{self.call_id}{self.params}"


@dataclass(frozen=True, slots=True)
class TargetDialog(_DialogId):
    """The dialog that authorises a request (RFC 4538); tags as the recipient sees them."""

    @classmethod
    def parse(cls, text: str) -> TargetDialog:
        """Parse ``call-id;local-tag=…;remote-tag=…``; both tags are obligatory."""
        value = cls(*_dialog_id(text))
        _ = value.local_tag, value.remote_tag
        return value

    @classmethod
    def of(cls, call_id: str, *, local_tag: str, remote_tag: str) -> TargetDialog:
        """Build one. `local_tag` is the recipient's own tag."""
        return cls(call_id, Params([("local-tag", local_tag), ("remote-tag", remote_tag)]))

    @property
    def local_tag(self) -> str:
        """The recipient's own tag."""
        return self._tag("local-tag")

    @property
    def remote_tag(self) -> str:
        """The sender's tag."""
        return self._tag("remote-tag")

    def __str__(self) -> str:
        return f"{self.call_id}{self.params}"


@dataclass(frozen=True, slots=True)
class Warning:
    """``code agent "text"`` (RFC 3261 20.43); the code has three digits."""

    code: int
    agent: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Warning:
        """Parse one warning-value."""
        match = _warning(text)
        if match is None:
            raise ParseError("not a warning")
        return cls(int(match[1]), match[2], unquote(match[3]))

    def __str__(self) -> str:
        return f"{self.code:03d} {self.agent} {quote(self.text)}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a request was sent (RFC 3326): ``SIP;cause=200;text="..."``."""

    protocol: str
    cause: int | None = None
    text: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reason:
        """Parse one reason-value."""
        match = _token_at(text)
        if match is None:
            raise ParseError("not a reason")
        params = Params.parse(text, match.end())
        return cls(match[1], parse_delta_seconds(params.get("cause") or ""), params.get("text"))

    def __str__(self) -> str:
        text = self.protocol
        if self.cause is not None:
            text += f";cause={self.cause}"
        return text if self.text is None else f"{text};text={quote(self.text)}"


@dataclass(frozen=True, slots=True)
class AcceptContact:
    """One Accept-Contact or Reject-Contact value (RFC 3841 9.2): ``*`` and feature parameters."""

    params: Params

    @classmethod
    def parse(cls, text: str) -> AcceptContact:
        """Parse ``*;+g.3gpp.mcptt;require;explicit``."""
        text = text.lstrip(" \t")
        if not text.startswith("*"):
            raise ParseError("no asterisk")
        return cls(Params.parse(text, 1))

    @property
    def require(self) -> bool:
        """Whether a contact must match."""
        return "require" in self.params

    @property
    def explicit(self) -> bool:
        """Whether a contact must name the feature to match."""
        return "explicit" in self.params

    def features(self) -> list[tuple[str, str | None]]:
        """The feature tags asked for, raw values."""
        return [(n, v) for n, v in self.params if n.lower() not in ("require", "explicit")]

    def __str__(self) -> str:
        return f"*{self.params}"


def parse_word(text: str) -> str:
    """A Call-ID: one word."""
    if not text or " " in text or "\t" in text:
        raise ParseError("not one word")
    return text


def parse_length(text: str) -> int:
    """A Content-Length."""
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise ParseError("not a length")
    return int(text)


@kept
def parse_options(text: str) -> tuple[str, ...]:
    """Option tags or methods: tokens between commas; an empty header has none (RFC 3261 20.37)."""
    if not text.strip():
        return ()
    tags = tuple(part.strip() for part in text.split(","))
    if not is_token("".join(tags)) or "" in tags:
        wrong = next(tag for tag in tags if not is_token(tag))
        raise ParseError(f"{wrong[:40]!r} is not a token")
    return tags


@kept
def parse_option_tags(text: str) -> tuple[str, ...]:
    """Option tags, in lower case."""
    return tuple(tag.lower() for tag in parse_options(text))


def contact_uri(value: NameAddr) -> SipUri:
    """The SIP URI of a Contact; anything else cannot be a remote target here."""
    if not isinstance(value.uri, SipUri):
        raise ParseError("the Contact holds no SIP URI")
    return value.uri
