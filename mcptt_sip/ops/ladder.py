# SPDX-License-Identifier: Apache-2.0
"""A capture read back as the messages of a call: SIP, opened floor messages, and what each means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.contents import Contents, read_contents
from mcptt_sip.message import KeepAlive, MessageFramer, Request, Response, parse
from mcptt_sip.ops.capture import FLOOR, SIP, Address, Packet, dissect


@dataclass(frozen=True, slots=True)
class Step:
    """One arrow of the ladder. ``frame`` is its number in the capture, from 1."""

    frame: int
    at: float
    source: Address
    target: Address
    protocol: str
    message: Request | Response | None
    octets: bytes
    contents: Contents | None = None

    @property
    def method(self) -> str:
        """The request's method, or that of the request which a response answers."""
        if isinstance(self.message, Request):
            return self.message.method
        if isinstance(self.message, Response):
            return (self.message.headers.get("CSeq") or " ").split()[-1]
        return ""

    @property
    def status(self) -> int | None:
        return self.message.status if isinstance(self.message, Response) else None

    @property
    def call_id(self) -> str:
        return "" if self.message is None else str(self.message.headers.get("Call-ID"))


@dataclass
class Ladder:
    """All messages of a capture in order. ``names`` tells whose an address is."""

    steps: list[Step] = field(default_factory=list)
    names: dict[Address, str] = field(default_factory=dict)

    def name(self, address: Address) -> str:
        return self.names.get(address, f"{address[0]}:{address[1]}")

    def requests(self, method: str, *, source: str | None = None, target: str | None = None) -> list[Step]:
        return [
            s
            for s in self.steps
            if isinstance(s.message, Request)
            and s.method == method
            and (source is None or self.name(s.source) == source)
            and (target is None or self.name(s.target) == target)
        ]

    def responses(self, request: Step, *, status: int | None = None) -> list[Step]:
        """The responses to a request: same Call-ID, same CSeq, the other way."""
        assert request.message is not None
        wanted = request.message.headers.get("CSeq")
        return [
            s
            for s in self.steps
            if isinstance(s.message, Response)
            and s.call_id == request.call_id
            and s.message.headers.get("CSeq") == wanted
            and (s.source, s.target) == (request.target, request.source)
            and (status is None or s.status == status)
        ]


def read_ladder(packets: Iterable[Packet], names: Mapping[Address, str]) -> Ladder:
    """SIP and floor messages of ``packets``; a message of a stream may span several packets."""
    ladder = Ladder(names=dict(names))
    streams: dict[tuple[Address, Address], MessageFramer] = {}
    for frame, packet in enumerate(packets, 1):
        if packet.interface not in (SIP, FLOOR):
            continue
        protocol, source, target, payload = dissect(packet)
        if packet.interface == FLOOR:
            ladder.steps.append(Step(frame, packet.at, source, target, "floor", None, payload))
            continue
        if protocol == "tcp":
            framer = streams.setdefault((source, target), MessageFramer())
            whole = [item for item in framer.receive(payload) if isinstance(item, bytes)]
        else:
            whole = [payload] if payload.strip() else []
        for octets in whole:
            try:
                message = parse(octets)
            except SipError:
                continue
            try:
                contents = read_contents(message)
            except SipError:
                contents = None
            ladder.steps.append(
                Step(frame, packet.at, source, target, "sip", message, octets, contents)
            )
    return ladder


__all__ = ["KeepAlive", "Ladder", "Step", "read_ladder"]
