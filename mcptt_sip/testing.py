# SPDX-License-Identifier: Apache-2.0
"""For the tests of applications: a network in memory, time that jumps, a peer that does what the test says.

No socket is opened and nobody waits: an hour of ringing takes as long as its messages.

::

    from mcptt_sip.testing import Network, run

    def test_the_machine_answers_after_three_rings():
        async def story():
            network = Network()
            async with network.user_agent("sip:machine@example.org") as agent:
                agent.on_call(machine)                     # the handler under test
                alice = network.peer("sip:alice@example.org")
                alice.invite(agent)
                await alice.expect(180)
                answer = await alice.expect(200)
                assert network.now() >= 9.0
                alice.ack(answer)
                alice.send("BYE")
                await alice.expect(200)
        run(story())

`StackPair` joins two `SipStack` by a list of octets for tests without asyncio.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mcptt_sip.connection import PING
from mcptt_sip.errors import Unreachable
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.flow import Flow
from mcptt_sip.grammar import format_host
from mcptt_sip.message import Request, Response, parse
from mcptt_sip.outgoing import Outgoing
from mcptt_sip.services import StackSettings
from mcptt_sip.stack import SipStack
from mcptt_sip.transport import Address, Receiver, Transport, TransportSettings
from mcptt_sip.useragent import UserAgent

__all__ = ["Network", "ScriptedPeer", "Sent", "StackEnd", "StackPair", "VirtualTimeLoop", "run", "tokens"]

T = TypeVar("T")
Message = Request | Response


def tokens(seed: int) -> Callable[[], bytes]:
    """Octets that are the same in every run: what a stack takes for randomness."""
    source = random.Random(seed)
    return lambda: source.randbytes(8)


# --- time


class _NoWaiting(selectors.DefaultSelector):
    """Where others wait, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as there is nothing else to do. It begins at 0."""

    def __init__(self) -> None:
        self._clock = _NoWaiting()
        super().__init__(self._clock)

    def time(self) -> float:
        """Seconds that have passed in this loop."""
        return self._clock.now


def run(story: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a `VirtualTimeLoop`. RuntimeError when everything waits for something that never comes."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(story)


# --- a network in memory


@dataclass(frozen=True, slots=True)
class Sent:
    """One message on the wire."""

    time: float
    flow: Flow
    message: Message

    def __str__(self) -> str:
        message = self.message
        if isinstance(message, Request):
            return message.method
        return f"{message.status} {message.headers.cseq.method}"


class Network:
    """Hosts that reach each other by their addresses. Names in URIs mean nothing here.

    :param delay: seconds from one to another
    :param loss: share of datagrams that are lost; connections lose nothing
    :param seed: of the losses, and of all tags, branches and Call-IDs
    """

    def __init__(self, *, delay: float = 0.01, loss: float = 0.0, seed: int = 1) -> None:
        self.delay, self.loss = delay, loss
        self.wire: list[Sent] = []
        self._random = random.Random(seed)
        self._seeds = itertools.count(seed)
        self._places: dict[tuple[str, Address], Callable[[bytes, Flow], None]] = {}
        self._hosts = itertools.count(1)
        self._ports = itertools.count(49152)
        self._ids = itertools.count(1)

    def now(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    def user_agent(self, identity: str, *, transport: str = "udp", audio: bool = False, **more: Any) -> UserAgent:
        """A `UserAgent` on this network, at an address of its own. Its calls have no audio of ours by default: give
        bodies to `Call.accept` and `UserAgent.call`."""
        host = f"192.0.2.{next(self._hosts)}"
        return UserAgent(
            identity, listen=[f"{transport}:{host}:5060"], audio=audio, clock=self.now, sockets=self.sockets,
            token=tokens(next(self._seeds)), **more,
        )  # fmt: skip

    def peer(self, uri: str, *, transport: str = "udp") -> ScriptedPeer:
        """A peer that says what the test tells it to, at an address of its own."""
        return ScriptedPeer(self, uri, (f"192.0.2.{next(self._hosts)}", 5060), transport, tokens(next(self._seeds)))

    def sockets(self, receiver: Receiver, settings: TransportSettings | None) -> Transport:
        """What `UserAgent` takes as `sockets`."""
        return cast(Transport, _MemoryTransport(self, receiver))

    def bind(self, transport: str, address: Address, take: Callable[[bytes, Flow], None]) -> None:
        """Octets for this address go to `take`."""
        if (transport, address) in self._places:
            raise OSError(f"{transport}:{address} is taken")
        self._places[transport, address] = take

    def unbind(self, transport: str, address: Address) -> None:
        """Nobody is there any more."""
        self._places.pop((transport, address), None)

    def reaches(self, transport: str, address: Address) -> bool:
        """Whether somebody is there."""
        return (transport, address) in self._places

    def carry(self, octets: bytes, flow: Flow) -> bool:
        """Takes octets from ``flow.local`` to ``flow.remote``; ``False``: a connection to nobody."""
        if octets.strip(b"\r\n"):
            self.wire.append(Sent(self.now(), flow, parse(octets)))
        take = self._places.get((flow.transport, flow.remote))
        if take is None:
            return not flow.reliable
        if flow.reliable or self._random.random() >= self.loss:
            back = Flow(flow.transport, flow.remote, flow.local, flow.id)
            asyncio.get_running_loop().call_later(self.delay, take, octets, back)
        return True

    def said(self) -> list[str]:
        """The wire in short: methods and ``status method``."""
        return [str(sent) for sent in self.wire]


class _MemoryTransport:
    """What `mcptt_sip.endpoint.SipEndpoint` needs of a `Transport`."""

    def __init__(self, network: Network, receiver: Receiver) -> None:
        self._network = network
        self._receiver = receiver
        self._bound: list[tuple[str, Address]] = []
        self._opened: dict[tuple[str, Address], Flow] = {}

    async def listen(self, transport: str, host: str, port: int) -> Address:
        address = host, port or next(self._network._ports)
        self._network.bind(transport, address, self._take)
        self._bound.append((transport, address))
        return address

    async def connect(self, transport: str, host: str, port: int, *, name: str | None = None) -> Flow:
        there = host, port
        if (flow := self._opened.get((transport, there))) is not None:
            return flow
        local = next((address for kind, address in self._bound if kind == transport), None)
        if transport != "udp":
            if not self._network.reaches(transport, there):
                raise Unreachable(f"{transport}:{host}:{port}", ("nobody is there",))
            local = None
        if local is None:
            own = self._bound[0][1][0] if self._bound else f"192.0.2.{next(self._network._hosts)}"
            local = await self.listen(transport, own, 0)
        number = 0 if transport == "udp" else next(self._network._ids)
        flow = self._opened[transport, there] = Flow(transport, local, there, number)
        return flow

    def send(self, data: bytes, flow: Flow) -> bool:
        return self._network.carry(data, flow)

    def _take(self, octets: bytes, flow: Flow) -> None:
        if octets == PING:
            self.send(b"\r\n", flow)
        elif octets.strip(b"\r\n"):
            self._receiver.received(octets, flow)

    def keep(self, flow: Flow, *, stun: bool = True) -> None:
        pass

    def drop(self, flow: Flow) -> None:
        pass

    def distrust(self, flow: Flow) -> None:
        pass

    def peer_names(self, flow: Flow) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        for transport, address in self._bound:
            self._network.unbind(transport, address)


class ScriptedPeer:
    """One end that knows nothing of transactions: it sends what it is told to, and waits for what is expected.

    It remembers one dialog, that of the last INVITE it sent or received.
    """

    def __init__(
        self, network: Network, uri: str, address: Address, transport: str, token: Callable[[], bytes]
    ) -> None:
        self.uri = uri
        self.address = address
        self.transport = transport
        self._network = network
        self._token = token
        self._came: asyncio.Queue[tuple[Message, Flow]] = asyncio.Queue()
        self._seen: set[bytes] = set()
        self._flow: Flow | None = None
        self._invite: Request | None = None
        self._numbers = itertools.count(1)
        self._dialog: dict[str, str] = {}
        network.bind(transport, address, self._take)

    @property
    def contact(self) -> str:
        """Where it is reached."""
        host, port = self.address
        more = "" if self.transport == "udp" else f";transport={self.transport}"
        return f"sip:{self.uri.partition(':')[2].partition('@')[0]}@{format_host(host)}:{port}{more}"

    def _take(self, octets: bytes, flow: Flow) -> None:
        if octets.strip(b"\r\n") and octets not in self._seen:
            self._came.put_nowait((parse(octets), flow))
            self._seen.add(octets)

    # --- saying

    def invite(self, whom: UserAgent | str, *, body: bytes = b"", headers: HeaderItems = ()) -> Request:
        """An INVITE outside any dialog."""
        uri = _uri_of(whom)
        self._dialog = {
            "call_id": self._token().hex(), "local": f"<{self.uri}>;tag={self._token().hex()}", "remote": f"<{uri}>",
            "target": uri,
        }  # fmt: skip
        self._flow = None
        kind = [("Content-Type", "application/sdp")] if body else []
        self._invite = self.send("INVITE", headers=[*kind, *headers], body=body)
        return self._invite

    def send(
        self, method: str, whom: UserAgent | str | None = None, *, headers: HeaderItems = (), body: bytes = b"",
        cseq: int | None = None, branch: str | None = None,
    ) -> Request:  # fmt: skip
        """A request: in the dialog, or, with `whom`, outside."""
        dialog = self._dialog
        if whom is not None:
            uri = _uri_of(whom)
            dialog = {"call_id": self._token().hex(), "local": f"<{self.uri}>;tag={self._token().hex()}",
                      "remote": f"<{uri}>", "target": uri}  # fmt: skip
        number = next(self._numbers) if cseq is None else cseq
        host, port = self.address
        sent_by = f"{self.transport.upper()} {format_host(host)}:{port}"
        via = f"SIP/2.0/{sent_by};branch=z9hG4bK{branch or self._token().hex()}"
        lines: list[tuple[str, object]] = [
            ("Via", via), ("From", dialog["local"]), ("To", dialog["remote"]), ("Call-ID", dialog["call_id"]),
            ("CSeq", f"{number} {method}"), ("Max-Forwards", "70"), ("Contact", f"<{self.contact}>"), *headers,
        ]  # fmt: skip
        request = Request(method, dialog["target"], Headers(lines), body)
        self._put(bytes(request), self._flow or self._way(dialog["target"]))
        return request

    def respond(
        self, request: Request, status: int, *, headers: HeaderItems = (), body: bytes = b"", tag: str = "scripted"
    ) -> Response:
        """A response; a body is taken for SDP."""
        lines = [("Contact", f"<{self.contact}>"), *headers]
        kind = "application/sdp" if body else None
        response = request.response(status, headers=lines, body=body, content_type=kind, to_tag=tag)
        response.headers.copy_from(request.headers, "record-route")
        if request.method == "INVITE":
            self._dialog = {
                "call_id": request.headers.call_id, "local": str(response.headers.to),
                "remote": str(request.headers.from_),
                "target": str((request.headers.contact or [request.headers.from_])[0].uri),
            }  # fmt: skip
        assert self._flow is not None, "nobody has said anything yet"
        self._put(bytes(response), self._flow)
        return response

    def ack(self, response: Response, *, body: bytes = b"") -> Request:
        """The ACK of a response to the INVITE: of a 2xx in the dialog, of another in the INVITE's transaction."""
        self._dialog["remote"] = str(response.headers.to)
        contacts = response.headers.contact
        if contacts and response.status < 300:
            self._dialog["target"] = str(contacts[0].uri)
        assert self._invite is not None
        branch = None if response.status < 300 else (self._invite.headers.top_via.branch or "").removeprefix("z9hG4bK")
        kind = [("Content-Type", "application/sdp")] if body else []
        return self.send("ACK", headers=kind, body=body, cseq=response.headers.cseq.number, branch=branch)

    def cancel(self) -> Request:
        """The CANCEL of the INVITE."""
        assert self._invite is not None
        headers = self._invite.headers
        branch = (headers.top_via.branch or "").removeprefix("z9hG4bK")
        return self.send("CANCEL", cseq=headers.cseq.number, branch=branch)

    # --- hearing

    async def expect(self, what: str | int, *, timeout: float = 64.0, skip: tuple[str | int, ...] = (100,)) -> Any:
        """The next message, which must be a request of this method or a response of this status; AssertionError when
        it is another, or none comes in so many (virtual) seconds. Repetitions and those in `skip` are passed over."""
        while True:
            try:
                async with asyncio.timeout(timeout):
                    message, flow = await self._came.get()
            except TimeoutError:
                raise AssertionError(f"no {what} came in {timeout} s; on the wire: {self._network.said()}") from None
            self._flow = flow
            found = message.method if isinstance(message, Request) else message.status
            if found == what:
                if isinstance(message, Response) and message.headers.to.tag and self._dialog:
                    self._dialog["remote"] = str(message.headers.to)
                return message
            if found not in skip:
                raise AssertionError(f"{message!r} came in place of {what}; on the wire: {self._network.said()}")

    def nothing(self) -> None:
        """AssertionError when something has come that was not expected yet."""
        assert self._came.empty(), f"{self._came.get_nowait()[0]!r} came"

    def _way(self, uri: str) -> Flow:
        host, _, port = uri.partition("@")[2].partition(";")[0].partition(":")
        return Flow(self.transport, self.address, (host, int(port or 5060)), 0 if self.transport == "udp" else 1)

    def _put(self, octets: bytes, flow: Flow) -> None:
        self._network.carry(octets, flow)


def _uri_of(whom: UserAgent | str) -> str:
    if isinstance(whom, str):
        return whom
    kind, host, port = whom.addresses[0]
    user = getattr(whom.identity.uri, "user", None) or "ua"
    return f"sip:{user}@{format_host(host)}:{port}" + ("" if kind == "udp" else f";transport={kind}")


# --- two stacks joined by a list of octets


class StackEnd:
    """One stack with its address and what it told. `handler(event, now)` may call the stack's verbs."""

    def __init__(self, name: str, port: int, settings: StackSettings | None = None) -> None:
        self.name = name
        self.address = ("192.0.2.1", port)
        self.stack = SipStack(settings or StackSettings(user=name), token=tokens(port))
        self.seen: list[Any] = []
        self.handler: Callable[[Any, float], object] = lambda _event, _now: None

    @property
    def uri(self) -> str:
        """Where it is reached."""
        return f"sip:{self.name}@192.0.2.1:{self.address[1]}"

    def told(self, kind: type) -> list[Any]:
        """Its events of one kind."""
        return [event for event in self.seen if isinstance(event, kind)]


class StackPair:
    """Alice and Bob and the way between them, with the clock in the hand: `run` lets time pass.

    :param transport: ``udp`` or ``tcp``
    :param loss: share of datagrams that are lost
    :param settings: of both stacks, as for `StackSettings`
    """

    def __init__(self, transport: str = "udp", *, loss: float = 0.0, seed: int = 1, **settings: Any) -> None:
        self.now = 100.0
        self.transport = transport
        self.loss = loss
        self.random = random.Random(seed)
        self.alice = StackEnd("alice", 5061, StackSettings(user="alice", **settings))
        self.bob = StackEnd("bob", 5062, StackSettings(user="bob", **settings))
        self.ends = {end.address: end for end in (self.alice, self.bob)}
        self.wire: list[tuple[float, Message]] = []
        self._flying: list[tuple[float, int, StackEnd, bytes, Flow]] = []
        self._number = itertools.count()
        for end in self.ends.values():
            end.stack.add_listener("udp", *end.address)
            end.stack.add_listener("tcp", *end.address)

    def flow(self, end: StackEnd) -> Flow:
        """The flow from an end to the other."""
        other = self.bob if end is self.alice else self.alice
        return Flow(self.transport, end.address, other.address, 0 if self.transport == "udp" else 7)

    def fate(self, flow: Flow) -> list[float]:
        """When a message arrives, in seconds from now: once, never, or several times. Override it for worse ways."""
        return [] if flow.transport != "tcp" and self.random.random() < self.loss else [0.01]

    def dispatch(self, end: StackEnd, outgoing: Outgoing) -> None:
        """Puts one message of an end on its way, as the edge of a stack does. Override it for others."""
        flow = outgoing.flow
        if flow is None:
            flow = self.flow(end)
            if outgoing.target is not None and "transport=tcp" in outgoing.target:
                flow = Flow("tcp", end.address, flow.remote, 7)
            octets = end.stack.bind(outgoing, flow, self.now)
        else:
            octets = outgoing.octets
        self._send(octets, flow)

    def settle(self) -> None:
        """Sends what there is, hands out events."""
        again = True
        while again:
            again = False
            for end in self.ends.values():
                for outgoing in end.stack.to_send():
                    again = True
                    self.dispatch(end, outgoing)
                for event in end.stack.events():
                    again = True
                    end.seen.append(event)
                    end.handler(event, self.now)

    def _send(self, octets: bytes, flow: Flow) -> None:
        self.wire.append((self.now, parse(octets)))
        back = Flow(flow.transport, flow.remote, flow.local, flow.id)
        for delay in self.fate(flow):
            item = (self.now + delay, next(self._number), self.ends[flow.remote], octets, back)
            heapq.heappush(self._flying, item)

    def next_event(self) -> float | None:
        """When something happens next."""
        due = [self._flying[0][0]] if self._flying else []
        due += [at for end in self.ends.values() if (at := end.stack.next_timer()) is not None]
        return min(due) if due else None

    def step(self, now: float) -> None:
        """Time is `now`: what has arrived is taken, what is due is done."""
        self.now = max(self.now, now)
        while self._flying and self._flying[0][0] <= self.now:
            _, _, target, octets, flow = heapq.heappop(self._flying)
            target.stack.receive_octets(octets, flow, self.now)
        for end in self.ends.values():
            end.stack.handle_timer(self.now)
        self.settle()

    def run(self, seconds: float = 1.0) -> None:
        """Lets so much time pass."""
        end_time = self.now + seconds
        self.settle()
        while (due := self.next_event()) is not None and due <= end_time:
            self.step(due)
        self.now = end_time

    def sent(self) -> list[str]:
        """The wire in short: methods and ``status method``."""
        return [str(Sent(at, self.flow(self.alice), message)) for at, message in self.wire]


