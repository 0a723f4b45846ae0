# SPDX-License-Identifier: Apache-2.0
"""Requests and responses (RFC 3261 7): parse, build, frame.

What was parsed goes out octet for octet as it came in, order, case, compact forms and folds included, as long
as a header is not changed. Octets that are not UTF-8 survive as surrogates.

:RFC 4475: yes; all 49 messages
:RFC 5118: yes; all 12 messages
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from mcptt_sip.errors import LocalProtocolError, ParseError
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.grammar import TOKEN, is_token
from mcptt_sip.headers import NameAddr
from mcptt_sip.uri import SipUri, Uri, parse_uri

__all__ = [
    "REASONS",
    "HeaderItems",
    "Headers",
    "KeepAlive",
    "Limits",
    "MessageFramer",
    "Request",
    "Response",
    "parse",
]

#: reason phrases of the response codes (RFC 3261 21 and the registry)
REASONS = {
    100: "Trying", 180: "Ringing", 181: "Call Is Being Forwarded", 182: "Queued", 183: "Session Progress",
    199: "Early Dialog Terminated", 200: "OK", 202: "Accepted", 204: "No Notification",
    300: "Multiple Choices", 301: "Moved Permanently", 302: "Moved Temporarily", 305: "Use Proxy",
    380: "Alternative Service", 400: "Bad Request", 401: "Unauthorized", 402: "Payment Required",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable",
    407: "Proxy Authentication Required", 408: "Request Timeout", 410: "Gone",
    412: "Conditional Request Failed", 413: "Request Entity Too Large", 414: "Request-URI Too Long",
    415: "Unsupported Media Type", 416: "Unsupported URI Scheme", 417: "Unknown Resource-Priority",
    420: "Bad Extension", 421: "Extension Required", 422: "Session Interval Too Small",
    423: "Interval Too Brief", 428: "Use Identity Header", 429: "Provide Referrer Identity",
    430: "Flow Failed", 433: "Anonymity Disallowed", 436: "Bad Identity-Info",
    437: "Unsupported Certificate", 438: "Invalid Identity Header",
    439: "First Hop Lacks Outbound Support", 440: "Max-Breadth Exceeded", 469: "Bad Info Package",
    470: "Consent Needed", 480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist",
    482: "Loop Detected", 483: "Too Many Hops", 484: "Address Incomplete", 485: "Ambiguous",
    486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here", 489: "Bad Event",
    491: "Request Pending", 493: "Undecipherable", 494: "Security Agreement Required",
    500: "Server Internal Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Server Time-out", 505: "Version Not Supported",
    513: "Message Too Large", 555: "Push Notification Service Not Supported", 580: "Precondition Failure",
    600: "Busy Everywhere", 603: "Decline", 604: "Does Not Exist Anywhere", 606: "Not Acceptable",
    607: "Unwanted", 608: "Rejected",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may cost, in octets and counts. Beyond: 413 for the body, 513 for the header section."""

    head: int = 65_536
    header_lines: int = 2_048
    body: int = 1_048_576


DEFAULT_LIMITS = Limits()


class Request:
    """A request. `uri` is parsed when first read; ``str(request.uri)`` is what stood on the wire."""

    __slots__ = ("_uri", "_uri_text", "body", "headers", "method", "strictly_routed")

    def __init__(
        self,
        method: str,
        uri: Uri | str,
        headers: Headers | HeaderItems = (),
        body: bytes = b"",
    ) -> None:
        self.method = method
        self._uri_text = str(uri)
        self._uri: Uri | None = None if isinstance(uri, str) else uri
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.body = body
        #: whether `uri` is that of a strict router, and the request's own is the last Route (RFC 3261 12.2.1.1)
        self.strictly_routed = False

    @property
    def uri(self) -> Uri:
        """The Request-URI."""
        if self._uri is None:
            self._uri = parse_uri(self._uri_text)
        return self._uri

    @uri.setter
    def uri(self, value: Uri | str) -> None:
        self._uri_text = str(value)
        self._uri = None if isinstance(value, str) else value

    def response(
        self,
        status: int,
        reason: str | None = None,
        *,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        to_tag: str | None = None,
    ) -> Response:
        """A response with the Via, From, To, Call-ID, CSeq of this request (RFC 3261 8.2.6.2).

        `to_tag` is added to a To that has none. A 100 copies Timestamp; Record-Route and Contact are for
        whoever makes a dialog.
        """
        to_with_tag: str | None = None
        if to_tag is not None and status > 100:
            try:
                to = self.headers.to
            except ParseError:
                # nothing can be added to what is no name-addr, or not there; a 400 says so all the same
                pass
            else:
                if to.tag is None:
                    to_with_tag = f"{str(to).rstrip()};tag={to_tag}"
        made = Headers.answering(self.headers, to_with_tag)
        if status == 100:
            made.copy_from(self.headers, "timestamp")
        if headers:
            made.extend(headers)
        if content_type is not None:
            made.set("Content-Type", content_type)
        return Response(status, reason, made, body)

    def copy(self) -> Request:
        """A copy whose headers can be changed."""
        made = Request(self.method, self._uri_text, self.headers.copy(), self.body)
        made._uri = self._uri
        made.strictly_routed = self.strictly_routed
        return made

    def __bytes__(self) -> bytes:
        return self.headers.encode(f"{self.method} {self._uri_text} SIP/2.0", self.body)

    def __repr__(self) -> str:
        return f"<{self.method} {self._uri_text} {self.headers.get('call-id')}>"


class Response:
    """A response; `reason` may be empty, and defaults to the phrase of the standard."""

    __slots__ = ("body", "headers", "reason", "status")

    def __init__(
        self,
        status: int,
        reason: str | None = None,
        headers: Headers | HeaderItems = (),
        body: bytes = b"",
    ) -> None:
        if not 100 <= status <= 699:
            raise LocalProtocolError(f"{status} is no response code")
        self.status = status
        self.reason = REASONS.get(status, "") if reason is None else reason
        if "\r" in self.reason or "\n" in self.reason:
            raise LocalProtocolError("a reason phrase is one line")
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.body = body

    def copy(self) -> Response:
        """A copy whose headers can be changed."""
        return Response(self.status, self.reason, self.headers.copy(), self.body)

    def __bytes__(self) -> bytes:
        return self.headers.encode(f"SIP/2.0 {self.status} {self.reason}", self.body)

    def __repr__(self) -> str:
        return f"<{self.status} {self.reason} to {self.headers.get('cseq')} {self.headers.get('call-id')}>"


# the case of SIP is spelled out: a flag for the whole expression would cost a quarter of the time
_request_line = re.compile(rf"({TOKEN}) ([^\s<>]+) [Ss][Ii][Pp]/2\.0").fullmatch
_version = re.compile(r"SIP/([0-9]+\.[0-9]+)", re.IGNORECASE).fullmatch
_status_line = re.compile(r"[Ss][Ii][Pp]/2\.0 ([1-6][0-9]{2})(?: ([^\r\n]*))?").fullmatch


def parse(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Request | Response:
    """One message from a datagram, or framed by `MessageFramer`.

    Octets after the body that Content-Length announces are ignored (RFC 3261 18.3); without Content-Length
    the body reaches to the end. Checked here: start line, header syntax, the headers every message has
    (Via, From, To, Call-ID, CSeq), each once, and Content-Length. Other headers are read when asked for.
    Raises `ParseError`.
    """
    start = 0
    while data.startswith(b"\r\n", start):
        start += 2
    end = data.find(b"\r\n\r\n", start, start + limits.head + 4)
    if end < 0:
        if len(data) - start > limits.head:
            raise ParseError("the header section is too long", offset=limits.head, status=513)
        end, body_at = len(data), len(data)
        while data.endswith(b"\r\n", start, end):
            end -= 2
    else:
        body_at = end + 4
    head = data[start:end].decode("utf-8", "surrogateescape")
    first, _, rest = head.partition("\r\n")
    headers, header_fault = Headers.scan(rest, limits.header_lines)
    message: Request | Response
    fault: ParseError | None = None
    if match := _request_line(first):
        message = Request(match[1], match[2], headers)
    elif match := _status_line(first):
        message = Response(int(match[1]), match[2] or "", headers)
    elif len(words := first.split()) > 1 and (match := _version(words[-1])):
        # enough to answer it, not enough to act on it
        fault = ParseError("not a request line of SIP/2.0", offset=start, status=400 if match[1] == "2.0" else 505)
        method = words[0] if is_token(words[0]) else "UNKNOWN"
        message = Request(method, "sip:invalid", headers)
    else:
        raise ParseError("neither request nor status line", offset=start)
    try:
        if fault is not None:
            raise fault
        if header_fault is not None:
            raise ParseError(header_fault[0], offset=_octets(head, len(first) + 2 + header_fault[1]) + start)
        if body_at == end:
            raise ParseError("the header section does not end", offset=len(data))
        _check(message, start)
        held = len(data) - body_at
        length = headers.content_length
        if length is None:
            length = held
        elif length > held:
            raise ParseError(f"Content-Length {length}, but {held} octets of body", offset=len(data))
        if length:
            message.body = data[body_at : body_at + length]
        if length > limits.body:
            raise ParseError("the body is too large", offset=body_at, status=413)
    except ParseError as error:
        if isinstance(message, Request):
            error.partial = message
        raise
    return message


def _octets(text: str, length: int) -> int:
    """How many octets the first `length` characters came from."""
    return len(text[:length].encode("utf-8", "surrogateescape"))


def _check(message: Request | Response, start: int) -> None:
    """The headers without which no message can be handled, and what they say of each other."""
    headers = message.headers
    try:
        headers.read_obligatory()
    except ParseError as error:
        error.offset = start
        raise
    if isinstance(message, Request):
        uri = message.uri
        if isinstance(uri, SipUri) and uri.headers:
            raise ParseError("headers in a Request-URI", offset=start)
        if headers.cseq.method != message.method:
            raise ParseError("the CSeq names another method", offset=start)


class KeepAlive(Enum):
    """What may stand between the messages of a stream (RFC 5626 3.5.1)."""

    PING = b"\r\n\r\n"
    PONG = b"\r\n"


_content_length = re.compile(
    rb"\r\n(?:content-length|l)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)", re.IGNORECASE
)


class MessageFramer:
    """Cuts a stream (TCP, TLS) into messages by Content-Length (RFC 3261 18.3, 20.14).

    `receive` takes any piece of the stream and gives, in order, the octets of each complete message (for
    `parse`), a `KeepAlive` for each double or single CRLF between messages, and at most one `ParseError`: then the
    framing is lost, everything later is ignored, and the connection has to be closed. Its `partial` holds the
    request it happened in where that can be answered. At most ``limits.head + limits.body`` octets are held.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._scanned = 0  # no blank line begins before this
        self._body: int | None = None  # length of the whole message once its head is complete
        self.broken = False

    @property
    def pending(self) -> int:
        """Octets held that are not a whole message yet."""
        return len(self._buffer)

    def receive(self, data: bytes) -> list[bytes | KeepAlive | ParseError]:
        """Take a piece of the stream."""
        out: list[bytes | KeepAlive | ParseError] = []
        if self.broken:
            return out
        self._buffer += data
        try:
            while (item := self._next()) is not None:
                out.append(item)
        except ParseError as error:
            self.broken = True
            self._buffer.clear()
            out.append(error)
        return out

    def close(self) -> KeepAlive | None:
        """The stream ended, or paused: a lone CRLF held back as half a ping was a pong."""
        if bytes(self._buffer) == b"\r\n":
            self._buffer.clear()
            return KeepAlive.PONG
        return None

    def _next(self) -> bytes | KeepAlive | None:
        buffer = self._buffer
        if self._body is None:
            if buffer.startswith(b"\r\n"):
                if len(buffer) == 2 or (len(buffer) == 3 and buffer[2] == 13):
                    return None
                ping = buffer.startswith(b"\r\n\r\n")
                del buffer[: 4 if ping else 2]
                self._scanned = 0
                return KeepAlive.PING if ping else KeepAlive.PONG
            end = buffer.find(b"\r\n\r\n", self._scanned)
            if end < 0:
                self._scanned = max(0, len(buffer) - 3)
                if len(buffer) > self._limits.head:
                    raise ParseError("the header section is too long", offset=len(buffer), status=513)
                return None
            if end > self._limits.head:
                raise ParseError("the header section is too long", offset=end, status=513)
            self._body = end + 4 + self._length(bytes(buffer[:end]))
        if len(buffer) < self._body:
            return None
        message = bytes(buffer[: self._body])
        del buffer[: self._body]
        self._body, self._scanned = None, 0
        return message

    def _length(self, head: bytes) -> int:
        values = _content_length.findall(b"\r\n" + head)
        reason, status = "", 400
        if len(values) != 1:
            reason = "a stream needs exactly one Content-Length"
        else:
            value = values[0].replace(b"\r\n", b" ").strip()
            if not value.isdigit():
                reason = "the Content-Length is no number"
            elif len(value) > 15 or int(value) > self._limits.body:
                reason, status = "the body is too large", 413
            else:
                return int(value)
        partial = None
        try:
            # with a length of its own the head parses, or says what can still be answered
            parsed = parse(_content_length.sub(b"", head) + b"\r\nContent-Length: 0\r\n\r\n", self._limits)
            partial = parsed if isinstance(parsed, Request) else None
        except ParseError as error:
            partial = error.partial
        raise ParseError(reason, offset=len(head), status=status, partial=partial)


def name_addr(value: NameAddr | Uri | str) -> NameAddr:
    """What an application gives as From or To, as a NameAddr."""
    return NameAddr.of(value)


def items(headers: Headers | HeaderItems | Iterable[tuple[str, object]]) -> list[tuple[str, object]]:
    """Header pairs from any of the forms an application may give."""
    return list(headers.items() if isinstance(headers, Headers) else headers)
