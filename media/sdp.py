# SPDX-License-Identifier: Apache-2.0
"""Session descriptions (RFC 8866): read, changed and written with every attribute kept in its order.

>>> lines = ("v=0", "o=- 1 1 IN IP4 192.0.2.1", "s=-", "c=IN IP4 192.0.2.1", "t=0 0", "m=audio 4000 RTP/SAVP 96")
>>> text = "".join(line + "\\r\\n" for line in lines)
>>> session = SessionDescription.parse(text)
>>> session.media[0].port, session.host_of(session.media[0]), str(session) == text
(4000, '192.0.2.1', True)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from media.errors import SdpError

__all__ = ["MAX_OCTETS", "McpttFmtp", "MediaDescription", "SessionDescription"]

MAX_OCTETS = 16384
MAX_MEDIA = 32
_LINE = re.compile(r"([a-z])=(.*)", re.DOTALL).fullmatch
_MEDIA = re.compile(r"(\S+) ([0-9]{1,5})(?:/([0-9]{1,5}))? (\S+)((?: \S+)*)").fullmatch
_CONNECTION = re.compile(r"IN (IP4|IP6) (\S+)").fullmatch

Lines = list[tuple[str, str]]


class _Attributes:
    """Access to the ``a=`` lines among ``lines``."""

    __slots__ = ()
    lines: Lines

    def attributes(self, name: str) -> Iterator[str]:
        """The values of every ``a=name:value``; ``""`` for a bare ``a=name``."""
        for kind, value in self.lines:
            if kind == "a":
                key, _, rest = value.partition(":")
                if key == name:
                    yield rest

    def attribute(self, name: str) -> str | None:
        """The first of :meth:`attributes`, or ``None``."""
        return next(self.attributes(name), None)

    @property
    def connection(self) -> str | None:
        """The host of ``c=``, ``None`` without one."""
        for kind, value in self.lines:
            if kind == "c":
                match = _CONNECTION(value)
                if match is None:
                    raise SdpError(f"c={value[:60]!r} is not understood")
                host = match[2].partition("/")[0]
                try:
                    ipaddress.ip_address(host)
                except ValueError:
                    return host  # a name: resolving it is the application's business
                return host
        return None


@dataclass(slots=True)
class MediaDescription(_Attributes):
    """One ``m=`` section; ``lines`` are those after it, as (type, value)."""

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...] = ()
    lines: Lines = field(default_factory=list)
    ports: int | None = None

    @property
    def direction(self) -> str | None:
        """``sendrecv``, ``sendonly``, ``recvonly`` or ``inactive`` when stated here."""
        for kind, value in self.lines:
            if kind == "a" and value in ("sendrecv", "sendonly", "recvonly", "inactive"):
                return value
        return None

    def rtpmap(self, payload_type: int | str) -> str | None:
        """``opus/48000/2`` of a payload type."""
        return self._of_format("rtpmap", str(payload_type))

    def fmtp(self, payload_type: int | str) -> str | None:
        """Format parameters of a payload type."""
        return self._of_format("fmtp", str(payload_type))

    def _of_format(self, name: str, number: str) -> str | None:
        for value in self.attributes(name):
            head, _, rest = value.partition(" ")
            if head == number:
                return rest.strip()
        return None

    @property
    def ssrcs(self) -> tuple[int, ...]:
        """The SSRCs of ``a=ssrc`` (RFC 5576), each once."""
        found: list[int] = []
        for value in self.attributes("ssrc"):
            number = value.split(" ", 1)[0]
            if not number.isdecimal() or int(number) > 0xFFFFFFFF:
                raise SdpError(f"a=ssrc:{value[:40]!r} is not understood")
            if int(number) not in found:
                found.append(int(number))
        return tuple(found)

    def extension_id(self, uri: str) -> int | None:
        """The local identifier of a header extension (``a=extmap``, RFC 8285)."""
        for value in self.attributes("extmap"):
            head, _, rest = value.partition(" ")
            number = head.partition("/")[0]
            if rest.split(" ", 1)[0] == uri and number.isdecimal() and 0 < int(number) < 15:
                return int(number)
        return None

    def __str__(self) -> str:
        ports = "" if self.ports is None else f"/{self.ports}"
        formats = "".join(f" {name}" for name in self.formats)
        return f"m={self.kind} {self.port}{ports} {self.protocol}{formats}\r\n" + _text(self.lines)


@dataclass(slots=True)
class SessionDescription(_Attributes):
    """A whole description: the session's lines, then its media."""

    lines: Lines
    media: list[MediaDescription] = field(default_factory=list)

    @classmethod
    def parse(cls, data: bytes | str) -> SessionDescription:
        """Reads at most :data:`MAX_OCTETS`. Bare LF is accepted. Raises :class:`SdpError` with the line."""
        if len(data) > MAX_OCTETS:
            raise SdpError(f"more than {MAX_OCTETS} octets")
        try:
            text = data if isinstance(data, str) else data.decode("utf-8")
        except UnicodeDecodeError:
            raise SdpError("not UTF-8") from None
        session = cls([])
        lines = session.lines
        for number, raw in enumerate(text.replace("\r\n", "\n").rstrip("\n").split("\n"), 1):
            match = _LINE(raw)
            if match is None:
                raise SdpError(f"{raw[:60]!r} is not type=value", number)
            kind, value = match.groups()
            if number == 1 and (kind, value) != ("v", "0"):
                raise SdpError("the first line is not v=0", number)
            if kind == "m":
                section = _media(value, number)
                session.media.append(section)
                lines = section.lines
                if len(session.media) > MAX_MEDIA:
                    raise SdpError(f"more than {MAX_MEDIA} media", number)
            else:
                lines.append((kind, value))
        if not any(kind == "o" for kind, _ in session.lines):
            raise SdpError("no o= line")
        return session

    @classmethod
    def make(cls, host: str, *, session_id: int = 1, version: int = 1, name: str = "-") -> SessionDescription:
        """A description without media of an end at ``host`` (a numeric address)."""
        family = f"IP{ipaddress.ip_address(host).version}"
        return cls(
            [
                ("v", "0"),
                ("o", f"- {session_id} {version} IN {family} {host}"),
                ("s", name),
                ("c", f"IN {family} {host}"),
                ("t", "0 0"),
            ]
        )

    def host_of(self, media: MediaDescription) -> str:
        """Where ``media`` is to be sent: its own ``c=``, else the session's."""
        host = media.connection or self.connection
        if host is None:
            raise SdpError(f"no connection address for m={media.kind}")
        return host

    def __str__(self) -> str:
        return _text(self.lines) + "".join(map(str, self.media))

    def encode(self) -> bytes:
        """The octets of a body."""
        return str(self).encode()


def _media(value: str, line: int) -> MediaDescription:
    match = _MEDIA(value)
    if match is None:
        raise SdpError(f"m={value[:60]!r} is not understood", line)
    kind, port, ports, protocol, formats = match.groups()
    if int(port) > 65535:
        raise SdpError("a port above 65535", line)
    count = None if ports is None else int(ports)
    return MediaDescription(kind, int(port), protocol, tuple(formats.split()), [], count)


def _text(lines: Lines) -> str:
    return "".join(f"{kind}={value}\r\n" for kind, value in lines)


@dataclass(frozen=True, slots=True)
class McpttFmtp:
    """The parameters of ``a=fmtp:MCPTT`` (TS 24.380 12.1.2): what is offered or answered about floor control."""

    queueing: bool = False
    priority: int | None = None
    granted: bool = False
    implicit_request: bool = False
    ssrc: int | None = None
    floor_ssrc: int | None = None
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> McpttFmtp:
        """Reads ``mc_queueing;mc_priority=5;…``; unknown parameters are kept."""
        flags = dict.fromkeys(("mc_queueing", "mc_granted", "mc_implicit_request"), False)
        numbers: dict[str, int | None] = dict.fromkeys(("mc_priority", "mc_ssrc", "mc_floor_ssrc"))
        limits = {"mc_priority": 255, "mc_ssrc": 0xFFFFFFFF, "mc_floor_ssrc": 0xFFFFFFFF}
        others: list[str] = []
        for item in filter(None, (part.strip() for part in text.split(";"))):
            name, equals, value = item.partition("=")
            if name in flags and not equals:
                flags[name] = True
            elif name in numbers:
                if not value.isdecimal() or int(value) > limits[name]:
                    raise SdpError(f"{item[:40]!r} is not understood")
                numbers[name] = int(value)
            else:
                others.append(item)
        return cls(
            flags["mc_queueing"],
            numbers["mc_priority"],
            flags["mc_granted"],
            flags["mc_implicit_request"],
            numbers["mc_ssrc"],
            numbers["mc_floor_ssrc"],
            tuple(others),
        )

    def __str__(self) -> str:
        items = ["mc_queueing"] * self.queueing
        items += [] if self.priority is None else [f"mc_priority={self.priority}"]
        items += ["mc_granted"] * self.granted + ["mc_implicit_request"] * self.implicit_request
        items += [] if self.ssrc is None else [f"mc_ssrc={self.ssrc}"]
        items += [] if self.floor_ssrc is None else [f"mc_floor_ssrc={self.floor_ssrc}"]
        return ";".join((*items, *self.others))
