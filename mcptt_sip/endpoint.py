# SPDX-License-Identifier: Apache-2.0
"""A `SipStack` with its sockets, its clock and one timer.

::

    agent = SipEndpoint(stack, on_event=handle)
    await agent.listen("tcp", "127.0.0.1", 5060)
    stack.request(...); agent.transmit()
    ...
    await agent.close()
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable

from mcptt_sip.errors import ParseError, SipError, Unreachable
from mcptt_sip.flow import Flow
from mcptt_sip.layer import TransactionLayer
from mcptt_sip.outgoing import Outgoing
from mcptt_sip.resolver import Lookup, Place, Resolver, SystemLookup
from mcptt_sip.trace import Direction, MessageRecord, TraceSink
from mcptt_sip.transport import Address, Receiver, Transport, TransportSettings
from mcptt_sip.uri import SipUri

__all__ = ["SipEndpoint", "steady"]

log = logging.getLogger(__name__)


def steady(clock: Callable[[], float]) -> Callable[[], float]:
    """``clock`` as it stands at the first call, going on evenly by the running loop's time: no timer fires early or
    never when somebody sets the machine's clock."""
    tick: Callable[[], float] | None = None
    ahead = 0.0

    def now() -> float:
        nonlocal tick, ahead
        if tick is None:
            tick = asyncio.get_running_loop().time
            ahead = clock() - tick()
        return ahead + tick()

    return now


class SipEndpoint:
    """Drives one stack.

    :param on_event: told each event of the stack with the time; may call the stack's verbs, must not block
    :param clock: gives the time in seconds that the stack is told
    :param trace: told every message that crosses a socket
    :param lookup: the name service; the host's own resolver when ``None``, which knows no NAPTR and SRV records
    :param sockets: makes what has the sockets, when it is first needed
    """

    def __init__(
        self,
        stack: TransactionLayer,
        *,
        on_event: Callable[[object, float], None],
        clock: Callable[[], float] = time.time,
        trace: TraceSink | None = None,
        settings: TransportSettings | None = None,
        lookup: Lookup | None = None,
        sockets: Callable[[Receiver, TransportSettings | None], Transport] = Transport,
    ) -> None:
        self.stack = stack
        stack.on_alias = lambda flow, port: self._transport.alias(flow, port)
        stack.on_silence = lambda flow: self._transport.distrust(flow)
        self._on_event = on_event
        self._clock = clock
        self._trace = trace
        self._settings = settings
        self._transport_made: Transport | None = None
        self._sockets = sockets
        self._resolver = Resolver(
            lookup or SystemLookup(), transports=("udp", "tcp", "tls", "ws", "wss"), below=self._below
        )
        self._opening: defaultdict[Place, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._busy = False
        self._closed = False
        self._transmitted = asyncio.Event()

    def _below(self, limit: int) -> int:
        return int.from_bytes(self.stack.token()[:8], "big") % limit

    @property
    def _transport(self) -> Transport:
        if self._transport_made is None:
            self._transport_made = self._sockets(self, self._settings)
        return self._transport_made

    # --- for the application --------------------------------------------------------------------------

    async def listen(self, transport: str, host: str, port: int) -> Address:
        """Opens a socket that peers can reach us at; port 0 chooses one. Returns its address."""
        bound = await self._transport.listen(transport, host, port)
        self.stack.add_listener(transport, *bound)
        return bound

    def transmit(self) -> None:
        """Lets the stack say what it has to say, hands out its events, and sets the timer."""
        if self._busy or self._closed:
            return  # the loop below comes round again
        self._busy = True
        try:
            while True:
                events, outgoing = self.stack.events(), self.stack.to_send()
                if not events and not outgoing:
                    break
                for one in outgoing:
                    self._send(one)
                for event in events:
                    self._tell(event)
        finally:
            self._busy = False
        self._set_timer()
        self._transmitted.set()

    async def settle(self, timeout: float) -> None:
        """Waits until no request of ours awaits its answer, or so many seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.stack.busy_clients:
                    self._transmitted.clear()
                    await self._transmitted.wait()
        except TimeoutError:
            log.info("%d requests were never answered", self.stack.busy_clients)

    async def flow_to(self, uri: str) -> Flow:
        """A flow to where a URI leads. Raises `Unreachable`."""
        flow, _, _ = await self._reach(SipUri.parse(uri), large=False, avoid=frozenset())
        return flow

    def keep(self, flow: Flow, *, stun: bool = True) -> None:
        """See `Transport.keep`."""
        self._transport.keep(flow, stun=stun)

    async def close(self) -> None:
        """Sends what is still to be sent, then lets go of every socket. Transactions under way are dropped."""
        self.transmit()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        if self._transport_made is not None:
            await self._transport_made.close()

    # --- sending --------------------------------------------------------------------------------------

    def _tell(self, event: object) -> None:
        try:
            self._on_event(event, self._clock())
        except Exception as error:
            # what goes wrong over one event keeps nobody from the others
            log.exception("event %s", type(event).__name__)
            self.stack.unhandled(event, error, self._clock())

    def _send(self, outgoing: Outgoing) -> None:
        flow = outgoing.flow
        if flow is None:
            task = asyncio.ensure_future(self._open(outgoing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        self._write(outgoing, outgoing.octets, flow)

    def _write(self, outgoing: Outgoing, octets: bytes, flow: Flow) -> None:
        at = self._clock()  # before the peer can have it
        if not self._transport.send(octets, flow):
            self.stack.send_failed(outgoing, at)
        elif self._trace is not None:
            self._trace(MessageRecord(at, Direction.SENT, flow, octets))

    async def _open(self, outgoing: Outgoing) -> None:
        """Finds a flow for a message without one; the same for messages that go to the same place."""
        try:
            flow, place, more = await self._flow_to(outgoing)
            octets = self.stack.bind(outgoing, flow, self._clock(), place=place, more=more)
        except SipError as error:
            log.info("call-id=%s target=%s %s", outgoing.message.headers.get("call-id"), outgoing.target, error)
            self.stack.send_failed(outgoing, self._clock())
        else:
            self._write(outgoing, octets, flow)
        self.transmit()

    async def _flow_to(self, outgoing: Outgoing) -> tuple[Flow, Place, bool]:
        """The first place of the target that can be reached (RFC 3263 4.3), and whether there are more. A large
        request goes over TCP (RFC 3261 18.1.1)."""
        if outgoing.target is None:
            raise Unreachable("a message without a target")
        uri = SipUri.parse(outgoing.target)
        large = len(outgoing.octets) + 200 > self.stack.settings.mtu  # the Via is still to come
        return await self._reach(uri, large=large and outgoing.is_request, avoid=outgoing.avoid)

    async def _reach(self, uri: SipUri, *, large: bool, avoid: frozenset[object]) -> tuple[Flow, Place, bool]:
        found = await self._resolver.places(uri, large=large)
        if large:  # 18.1.1: what finds no connection is tried as a datagram all the same
            found = [*found, *await self._resolver.places(uri)]
        places = [place for place in dict.fromkeys(found) if place not in avoid]
        tried: list[str] = []
        for number, place in enumerate(places, 1):
            try:
                async with self._opening[place]:
                    flow = await self._transport.connect(place.transport, place.address, place.port, name=place.name)
                    return flow, place, number < len(places)
            except Unreachable as error:
                tried += error.tried
        raise Unreachable(str(uri), tuple(tried))

    # --- what the sockets bring -----------------------------------------------------------------------

    def received(self, data: bytes, flow: Flow) -> None:
        """See `mcptt_sip.transport.Receiver`."""
        now = self._clock()
        if self._trace is not None:
            self._trace(MessageRecord(now, Direction.RECEIVED, flow, data))
        self.stack.receive_octets(data, flow, now)
        self.transmit()

    def broken(self, error: ParseError, flow: Flow) -> None:
        """See `mcptt_sip.transport.Receiver`."""
        if error.partial is not None and error.partial.method != "ACK":
            answer = bytes(error.partial.response(error.status, headers=[("Connection", "close")]))
            at = self._clock()
            if self._transport.send(answer, flow) and self._trace is not None:
                self._trace(MessageRecord(at, Direction.SENT, flow, answer))

    def flow_closed(self, flow: Flow) -> None:
        """See `mcptt_sip.transport.Receiver`."""
        self.stack.flow_closed(flow, self._clock())
        self.transmit()

    # --- time -----------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due = self.stack.next_timer()
        if due is None or self._closed:
            return
        if self._timer is not None:
            if self._timer_due <= due:
                return  # it looks again when its time has come
            self._timer.cancel()
        self._timer_due = due
        delay = max(0.0, due - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.stack.handle_timer(self._clock())
        self.transmit()


