# SPDX-License-Identifier: Apache-2.0
"""The torture messages of RFC 4475 and RFC 5118, and a user agent server that answers them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcptt_sip.errors import ParseError
from mcptt_sip.field_lines import Headers
from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.message import KeepAlive, MessageFramer, Request, Response, parse
from mcptt_sip.registrar import Registrar
from mcptt_sip.session import InviteReceived
from mcptt_sip.stack import SipStack, StackSettings
from tests.sip.joined import tokens

VECTORS = Path(__file__).parent.parent / "vectors" / "torture"
SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\n"


@dataclass(frozen=True)
class Case:
    """One message with what the manifest says of it."""

    name: str
    octets: bytes
    entry: dict[str, Any]

    @property
    def checks(self) -> dict[str, Any]:
        """The values of `checks`, remarks left out."""
        return {name: value for name, value in self.entry["checks"].items() if name != "note"}

    @property
    def valid(self) -> bool:
        return self.entry["class"] == "valid"

    def allowed(self, transport: str) -> list[int | str]:
        """Answers that count as right: codes, classes such as ``2xx``, or ``drop``."""
        entry = self.entry
        return entry.get("uas_stream", entry["uas"]) if transport == "tcp" else entry["uas"]


def cases() -> list[Case]:
    """All 61."""
    manifest = json.loads((VECTORS / "manifest.json").read_text())
    return [
        Case(entry["name"], (VECTORS / entry["file"]).read_bytes(), entry)
        for group in ("rfc4475", "rfc5118")
        for entry in manifest[group]
    ]


def fits(status: int | None, allowed: list[int | str]) -> bool:
    """Whether a last response (``None``: there was none) is one of `allowed`."""
    if status is None:
        return "drop" in allowed
    return status in allowed or f"{status // 100}xx" in allowed


class Server:
    """A user agent server that takes every call, answers every request, and is a registrar."""

    def __init__(self, transport: str) -> None:
        self.stack = SipStack(StackSettings(user="uas"), token=tokens(1))
        self.stack.add_listener("udp", "192.0.2.100", 5060)
        self.stack.add_listener("tcp", "192.0.2.100", 5060)
        self.flow = Flow(transport, ("192.0.2.100", 5060), ("198.51.100.7", 5060), int(transport == "tcp"))
        self.registrar = Registrar()
        self.framer = MessageFramer()
        self.framed: list[bytes | KeepAlive | ParseError] = []
        self.out: list[Response] = []
        self.events: list[object] = []
        self.sent_to: set[tuple[str, int]] = set()

    def receive(self, octets: bytes, now: float = 0.0) -> None:
        """A datagram, or a piece of the stream; everything that comes of it."""
        if self.flow.transport == "udp":
            self.stack.receive_octets(octets, self.flow, now)
        else:
            for item in self.framer.receive(octets):
                self.framed.append(item)
                if isinstance(item, bytes):
                    self.stack.receive_octets(item, self.flow, now)
                elif isinstance(item, ParseError) and item.partial is not None:
                    self._answered(bytes(item.partial.response(item.status)))
        self._settle(now)

    def last_status(self) -> int | None:
        """The status of the last response."""
        return self.out[-1].status if self.out else None

    def _settle(self, now: float) -> None:
        while events := self.stack.events():
            for event in events:
                self.events.append(event)
                if isinstance(event, InviteReceived):
                    event.session.accept(body=SDP, content_type="application/sdp", now=now)
                elif isinstance(event, RequestReceived):
                    incoming = event.incoming
                    if incoming.method == "REGISTER":
                        outcome = self.registrar.register(incoming.request, incoming.flow, now)
                        incoming.respond(outcome.status, outcome.reason, headers=outcome.headers, now=now)
                    else:
                        incoming.respond(200, now=now)
        for outgoing in self.stack.to_send():
            assert outgoing.flow is not None, "a server answers where the request came from"
            self.sent_to.add(outgoing.flow.remote)
            self._answered(outgoing.octets)

    def _answered(self, octets: bytes) -> None:
        self.out.append(answer(octets))


def answer(octets: bytes) -> Response:
    """A response as a peer sees it that looks at no more than the status line and the header lines: what a
    broken request says of itself stands in its response again."""
    head, _, body = octets.partition(b"\r\n\r\n")
    first, _, rest = head.decode("utf-8", "surrogateescape").partition("\r\n")
    version, status, reason = first.split(" ", 2)
    assert version == "SIP/2.0"
    headers, fault = Headers.scan(rest, 100)
    assert fault is None
    return Response(int(status), reason, headers, body)


def readable(octets: bytes) -> Request | Response:
    """The message, or as much of it as can be read."""
    try:
        return parse(octets)
    except ParseError as error:
        if error.partial is None:
            raise
        partial: Request = error.partial
        return partial
