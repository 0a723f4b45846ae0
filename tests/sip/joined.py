# SPDX-License-Identifier: Apache-2.0
"""Two stacks joined by a list of octets, with the clock in the hand."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from mcptt_sip.flow import Flow
from mcptt_sip.message import Request, Response, parse
from mcptt_sip.stack import SipStack, StackSettings


def tokens(seed: int) -> Callable[[], bytes]:
    source = random.Random(seed)
    return lambda: source.randbytes(8)


class End:
    """One stack with its address and what it told."""

    def __init__(self, name: str, port: int, settings: StackSettings | None = None) -> None:
        self.name = name
        self.address = ("192.0.2.1", port)
        self.stack = SipStack(settings or StackSettings(user=name), token=tokens(port))
        self.seen: list[Any] = []
        self.handler: Callable[[Any, float], None] = lambda _event, _now: None

    @property
    def uri(self) -> str:
        return f"sip:{self.name}@192.0.2.1:{self.address[1]}"

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


class Net:
    """Alice and Bob, and the way between them: ``transport`` udp or tcp, with loss if wanted."""

    def __init__(self, transport: str = "udp", *, loss: float = 0.0, seed: int = 1, **settings: Any) -> None:
        self.now = 100.0
        self.transport = transport
        self.loss = loss
        self.random = random.Random(seed)
        self.alice = End("alice", 5061, StackSettings(user="alice", **settings))
        self.bob = End("bob", 5062, StackSettings(user="bob", **settings))
        self.ends = {end.address: end for end in (self.alice, self.bob)}
        self.wire: list[tuple[float, Request | Response]] = []
        self._flying: list[tuple[float, int, End, bytes, Flow]] = []
        self._number = itertools.count()
        for end in self.ends.values():
            end.stack.add_listener("udp", *end.address)
            end.stack.add_listener("tcp", *end.address)

    def flow(self, end: End) -> Flow:
        other = self.bob if end is self.alice else self.alice
        return Flow(self.transport, end.address, other.address, 0 if self.transport == "udp" else 7)

    def settle(self) -> None:
        """Sends what there is, hands out events."""
        again = True
        while again:
            again = False
            for end in self.ends.values():
                for outgoing in end.stack.to_send():
                    again = True
                    flow = outgoing.flow
                    if flow is None:
                        flow = self.flow(end)
                        if outgoing.target is not None and "transport=tcp" in outgoing.target:
                            flow = Flow("tcp", end.address, flow.remote, 7)
                        octets = end.stack.bind(outgoing, flow, self.now)
                    else:
                        octets = outgoing.octets
                    self.wire.append((self.now, parse(octets)))
                    if flow.transport == "tcp" or self.random.random() >= self.loss:
                        target = self.ends[flow.remote]
                        back = Flow(flow.transport, flow.remote, flow.local, flow.id)
                        item = (self.now + 0.01, next(self._number), target, octets, back)
                        heapq.heappush(self._flying, item)
                for event in end.stack.events():
                    again = True
                    end.seen.append(event)
                    end.handler(event, self.now)

    def run(self, seconds: float = 1.0) -> None:
        end_time = self.now + seconds
        self.settle()
        while True:
            due = [self._flying[0][0]] if self._flying else []
            due += [t for end in self.ends.values() if (t := end.stack.next_timer()) is not None]
            if not due or min(due) > end_time:
                break
            self.now = max(self.now, min(due))
            while self._flying and self._flying[0][0] <= self.now:
                _, _, target, octets, flow = heapq.heappop(self._flying)
                target.stack.receive_octets(octets, flow, self.now)
            for end in self.ends.values():
                end.stack.handle_timer(self.now)
            self.settle()
        self.now = end_time

    def sent(self) -> list[str]:
        """The wire in short: methods and ``status method``."""
        out = []
        for _, message in self.wire:
            if isinstance(message, Request):
                out.append(message.method)
            else:
                out.append(f"{message.status} {message.headers.cseq.method}")
        return out
