# SPDX-License-Identifier: Apache-2.0
"""Message bodies of several parts (RFC 2046 5.1, RFC 5621): walk and build. Bodies are octets throughout.

:RFC 2046: partly; multipart
:RFC 5621: yes
"""

from __future__ import annotations

import base64
import binascii
import quopri
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mcptt_sip.errors import LocalProtocolError, ParseError
from mcptt_sip.field_lines import Headers
from mcptt_sip.grammar import is_token, quote
from mcptt_sip.headers import MediaType

__all__ = ["Part", "build_multipart", "parse_multipart", "walk"]

#: parts in one multipart, and multiparts inside each other, that are read
MAX_PARTS = 256
MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One body part. `content_type` as written; `headers` are its other headers in order."""

    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = field(default=())

    @property
    def type(self) -> str:
        """``type/subtype`` in lower case, without parameters."""
        return MediaType.parse(self.content_type).full

    def header(self, name: str) -> str | None:
        """A header of the part, such as Content-ID or Content-Disposition."""
        name = name.lower()
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def content_id(self) -> str | None:
        """Content-ID without its angle brackets (RFC 2392)."""
        value = self.header("content-id")
        return None if value is None else value.strip().removeprefix("<").removesuffix(">")

    @property
    def disposition(self) -> str | None:
        """The type of Content-Disposition in lower case."""
        value = self.header("content-disposition")
        return None if value is None else value.partition(";")[0].strip().lower()

    def decoded(self) -> bytes:
        """The body with its Content-Transfer-Encoding undone; `ParseError` when it is broken or unknown."""
        encoding = (self.header("content-transfer-encoding") or "binary").strip().lower()
        if encoding in ("binary", "8bit", "7bit"):
            return self.body
        if encoding == "base64":
            try:
                return base64.b64decode(b"".join(self.body.split()), validate=True)
            except binascii.Error:
                raise ParseError("not base64") from None
        if encoding == "quoted-printable":
            return quopri.decodestring(self.body)
        raise ParseError(f"unknown transfer encoding {encoding[:40]!r}", status=415)


def parse_multipart(content_type: str, body: bytes) -> list[Part]:
    """The parts of a body, multiparts inside it walked as well, in order, leaves only.

    A body that is no multipart is its own single part; an empty one has none. Preamble and epilogue are
    dropped, as RFC 2046 5.1.1 says. A part without Content-Type is text/plain. Raises `ParseError`.
    """
    return list(walk(content_type, body))


def walk(content_type: str, body: bytes, _depth: int = 0) -> Iterator[Part]:
    """As `parse_multipart`, one part at a time."""
    media = MediaType.parse(content_type)
    if not media.full.startswith("multipart/"):
        if body:
            yield Part(content_type, body)
        return
    for part in _split(media, body):
        if part.type.startswith("multipart/"):
            if _depth + 1 >= MAX_DEPTH:
                raise ParseError("multiparts too deep inside each other")
            yield from walk(part.content_type, part.body, _depth + 1)
        else:
            yield part


def _split(media: MediaType, body: bytes) -> list[Part]:
    boundary = media.params.get("boundary")
    if not boundary or len(boundary) > 70:
        raise ParseError("a multipart needs a boundary of 1 to 70 characters")
    delimiter = b"--" + boundary.encode("utf-8", "surrogateescape")
    parts: list[Part] = []
    position = _delimiter(body, delimiter, 0)
    if position is None:
        raise ParseError("the boundary never appears")
    _, at, last = position
    while not last:
        position = _delimiter(body, delimiter, at - 2)
        if position is None:
            raise ParseError("the closing boundary is missing", offset=len(body))
        end, after, last = position
        parts.append(_part(body[at : max(at, end)], at))
        if len(parts) > MAX_PARTS:
            raise ParseError("too many body parts", offset=at)
        at = after
    return parts


def _delimiter(body: bytes, delimiter: bytes, start: int) -> tuple[int, int, bool] | None:
    """The next delimiter line: where its CRLF begins, where the part after it begins, whether it closes."""
    at = max(0, start)
    while (at := body.find(delimiter, at)) >= 0:
        if at != 0 and body[at - 2 : at] != b"\r\n":
            at += 1
            continue
        end = at + len(delimiter)
        last = body.startswith(b"--", end)
        if last:
            return max(0, at - 2), end + 2, True
        line = end
        while line < len(body) and body[line] in b" \t":
            line += 1
        if body.startswith(b"\r\n", line):
            return max(0, at - 2), line + 2, False
        at = end
    return None


def _part(data: bytes, offset: int) -> Part:
    if data.startswith(b"\r\n"):
        head, content = b"", data[2:]
    else:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            raise ParseError("a body part without a blank line", offset=offset)
        head, content = data[:end], data[end + 4 :]
    headers, fault = Headers.scan(head.decode("utf-8", "surrogateescape"), 256)
    if fault is not None:
        raise ParseError(f"body part: {fault[0]}", offset=offset + fault[1])
    content_type = headers.get("content-type") or "text/plain"
    MediaType.parse(content_type)
    others = tuple((name, value) for name, value in headers.items() if name.lower() not in ("content-type", "c"))
    return Part(content_type, content, others)


def build_multipart(
    parts: Iterable[Part], token: Callable[[], bytes], *, subtype: str = "mixed"
) -> tuple[str, bytes]:
    """(Content-Type, body) of a multipart. The boundary comes from `token` and occurs in no part."""
    parts = list(parts)
    if not parts:
        raise LocalProtocolError("a multipart has at least one part")
    while True:
        boundary = token().hex()[:40]
        if not boundary:
            raise LocalProtocolError("token() gives at least one octet")
        mark = b"--" + boundary.encode()
        if not any(mark in part.body for part in parts):
            break
    out = bytearray()
    for part in parts:
        # Headers refuses line breaks and bad names: nothing from an application can open a part of its own
        headers = Headers([("Content-Type", part.content_type), *part.headers])
        out += mark + b"\r\n"
        for name, value in headers.items():
            out += f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")
        out += b"\r\n" + part.body + b"\r\n"
    out += mark + b"--\r\n"
    shown = boundary if is_token(boundary) else quote(boundary)
    return f"multipart/{subtype};boundary={shown}", bytes(out)
