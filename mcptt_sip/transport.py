# SPDX-License-Identifier: Apache-2.0
"""Sockets for SIP on asyncio: UDP, TCP, TLS, WS and WSS, connection reuse both ways, keep-alive, limits (RFC 3261 18,
RFC 5626, RFC 5923, RFC 7118).

A `Transport` turns octets into `Flow`s and back. It knows nothing of transactions: what arrives goes to a
`Receiver`, whole messages only.

:RFC 5923: yes; over TLS with certificates on both sides, never over TCP
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from mcptt_sip import websocket
from mcptt_sip.connection import PING, PONG, Connection, StreamConnection, read_small
from mcptt_sip.errors import ParseError, Unreachable
from mcptt_sip.flow import Flow
from mcptt_sip.message import Limits
from mcptt_sip.stun import binding_request, binding_response, is_stun, read_response
from mcptt_sip.tls import client_context, peer_names

__all__ = ["Address", "Receiver", "Transport", "TransportSettings"]

log = logging.getLogger(__name__)

Address = tuple[str, int]
#: transports over connections, and whether TLS is below
_SECURE = {"tcp": False, "tls": True, "ws": False, "wss": True}
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104
_MAX_DATAGRAM = 65_536
#: sources whose rate is remembered
_MAX_SOURCES = 65_536
#: peers of a datagram socket whose flows are kept made
_MAX_FLOWS = 4096


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Times in seconds, sizes in octets."""

    #: between two pings on a flow that this side keeps; three misses end it
    keep_alive: float = 5.0
    keep_alive_misses: int = 3
    connect_timeout: float = 5.0
    #: an incoming connection without any message for so long is closed
    idle_timeout: float = 3600.0
    #: how long octets are still taken in, unread, from a peer who was told that his message is not one
    linger: float = 2.0
    #: of a datagram socket, as far as the system allows: bursts wait there, and are not repeated by their senders
    receive_buffer: int = 4 * 1024 * 1024
    max_connections: int = 10_000
    max_connections_per_source: int = 256
    #: a connection that does not take what is written to it is closed when so much waits
    max_unsent: int = 4 * 1024 * 1024
    #: messages a second from one address, in bursts of so many; beyond, datagrams are dropped and connections not
    #: read for a while. 0: no limit
    max_rate_per_source: float = 0.0
    burst_per_source: int = 200
    #: messages of one connection, or datagrams, that are taken before the others have their turn
    max_messages_at_once: int = 8
    #: resource of the WebSockets that this side opens, and the web pages that may open one here (empty: any)
    websocket_path: str = "/"
    websocket_origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    #: our certificate, for connections that come in over TLS; see `mcptt_sip.tls.ServerTls`
    tls_server: ssl.SSLContext | None = None
    #: whom to trust, for connections that go out over TLS; the host's authorities when ``None``
    tls_client: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if not self.keep_alive > 0:
            raise ValueError(f"{self.keep_alive} s between two pings: more than 0 are needed")


class Receiver(Protocol):
    """Who is told what the sockets bring."""

    def received(self, data: bytes, flow: Flow) -> None:
        """A datagram, or one whole message of a stream."""
        ...

    def broken(self, error: ParseError, flow: Flow) -> None:
        """A stream lost its framing; what can be answered is answered, then the connection is closed."""
        ...

    def flow_closed(self, flow: Flow) -> None:
        """A connection is gone, or a kept flow does not answer any more."""
        ...


class _Datagrams(asyncio.DatagramProtocol):
    """One UDP socket."""

    def __init__(self, owner: Transport) -> None:
        self._owner = owner
        self.local: Address = ("", 0)
        self.socket: asyncio.DatagramTransport | None = None
        self._same: socket.socket  # the same one, to read from
        self._flows: dict[Any, Flow] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.socket = cast(asyncio.DatagramTransport, transport)
        raw = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the system's limit holds then
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._owner.settings.receive_buffer)
        read_small(transport)
        self.local = transport.get_extra_info("sockname")[:2]
        self._same = raw.dup()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """One datagram, and what waits behind it: asyncio would go round its whole loop for each."""
        self._owner.hold()
        try:
            self._take(data, addr)
            for _ in range(self._owner.at_once - 1):
                try:
                    data, addr = self._same.recvfrom(_MAX_DATAGRAM)
                except BlockingIOError:
                    return
                except OSError as error:
                    self.error_received(error)
                    return
                self._take(data, addr)
        finally:
            self._owner.release()

    def _take(self, data: bytes, addr: tuple[str, int]) -> None:
        flow = self._flows.get(addr)
        if flow is None:
            if len(self._flows) >= _MAX_FLOWS:
                self._flows.clear()
            local = self._owner.local_address(self.local, addr[0])
            flow = self._flows[addr] = Flow("udp", local, (addr[0], addr[1]))
        self._owner.datagram(data, flow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._same.close()

    def error_received(self, exc: Exception) -> None:
        log.debug("udp %s: %s", self.local, exc)  # an ICMP error; transactions notice by their timers


class Transport:
    """All sockets of one user agent."""

    def __init__(self, receiver: Receiver, settings: TransportSettings | None = None) -> None:
        self.receiver = receiver
        self.settings = settings or TransportSettings()
        self.loop = asyncio.get_running_loop()
        self.counters: Counter[str] = Counter()
        self._datagrams: dict[Address, _Datagrams] = {}
        self._servers: list[asyncio.Server] = []
        self._web: list[websocket.WebSocketServer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[Flow, Connection] = {}
        #: (transport, address that a peer listens at) -> the connection that it opened
        self._aliases: dict[tuple[str, Address], Flow] = {}
        self._per_source: Counter[str] = Counter()
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()  # source: (tokens, when counted)
        self._sources: OrderedDict[str, str] = OrderedDict()  # our address towards each peer
        self._answering: OrderedDict[tuple[str, Address], None] = OrderedDict()  # servers who have answered pings
        self._distrusted: set[Flow] = set()
        #: STUN pings that were not answered yet on each datagram flow that is kept; ``None``: it is kept without
        self._kept: dict[Flow, list[tuple[bytes, float]] | None] = {}
        self._numbers = itertools.count(1)
        self._ticker: asyncio.TimerHandle | None = None
        self._closed = False
        self._holding = False
        self._held_datagrams: list[tuple[asyncio.DatagramTransport, bytes, Address]] = []
        self._held_messages: dict[Connection, list[bytes]] = {}
        self._default_context: ssl.SSLContext | None = None

    @property
    def limits(self) -> Limits:
        """See `mcptt_sip.connection.Owner`."""
        return self.settings.limits

    @property
    def at_once(self) -> int:
        """See `mcptt_sip.connection.Owner`."""
        return self.settings.max_messages_at_once

    @property
    def linger(self) -> float:
        """See `mcptt_sip.connection.Owner`."""
        return self.settings.linger

    # --- opening --------------------------------------------------------------------------------------

    async def listen(self, transport: str, host: str, port: int) -> Address:
        """Opens a socket for requests; port 0 chooses one. Raises OSError when it cannot."""
        if transport == "udp":
            _, protocol = await self.loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(host, port)
            )
            self._datagrams[protocol.local] = protocol
            return protocol.local
        if transport not in _SECURE:
            raise ValueError(f"no transport {transport!r}")
        context = None
        if _SECURE[transport]:
            context = self.settings.tls_server
            if context is None:
                raise ValueError(f"{transport} needs a certificate: TransportSettings.tls_server")
        if transport in ("ws", "wss"):
            web = websocket.WebSocketServer(
                self, transport, self._numbers,
                origins=frozenset(self.settings.websocket_origins), heartbeat=self.settings.keep_alive,
            )  # fmt: skip
            self._web.append(web)
            return await web.listen(host, port, context)
        server = await self.loop.create_server(
            lambda: StreamConnection(self, transport, next(self._numbers), outgoing=False),
            host,
            port,
            backlog=1024,
            ssl=context,
            ssl_handshake_timeout=self.settings.connect_timeout if context else None,
        )
        self._servers.append(server)
        name = server.sockets[0].getsockname()
        return name[0], name[1]

    async def connect(self, transport: str, host: str, port: int, *, name: str | None = None) -> Flow:
        """A flow to there: an open connection if there is one, else a new one. Raises `Unreachable`.

        Over TLS the peer's certificate has to be one of `name` (RFC 5922 7.1), else of `host`; a connection is used
        again only for the name it was opened for (RFC 5923 8.2).
        """
        address = await self._resolve(host, port)
        if transport == "udp":
            return await self._datagram_flow(address)
        wanted, context = name or host, None
        if _SECURE[transport]:
            context, name = self._client_context(), wanted
        else:
            name = None
        alias = self._aliases.get((transport, address))
        if alias is not None and wanted.lower() in self.peer_names(alias) and not self._connections[alias].closing:
            return alias
        for flow, known in self._connections.items():
            if (flow.transport, flow.remote, known.name) == (transport, address, name) and not known.closing:
                if flow not in self._distrusted:
                    return flow
        number, settings = next(self._numbers), self.settings
        if transport in ("ws", "wss"):
            socket, task = await websocket.connect(
                self, transport, address, number, path=settings.websocket_path, context=context, name=name,
                timeout=settings.connect_timeout, heartbeat=settings.keep_alive, host=wanted,
            )  # fmt: skip
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            assert socket.flow is not None
            return socket.flow
        try:
            async with asyncio.timeout(settings.connect_timeout):
                _, connection = await self.loop.create_connection(
                    lambda: StreamConnection(self, transport, number, outgoing=True, name=name),
                    *address,
                    ssl=context,
                    server_hostname=name,
                )
        except (TimeoutError, OSError) as error:  # ssl.SSLError is an OSError
            raise Unreachable(f"{transport}:{host}:{port}", (str(error) or "no answer in time",)) from None
        assert connection.flow is not None
        self._tick()
        return connection.flow

    def distrust(self, flow: Flow) -> None:
        """A request over this connection was never answered: it may be half open. What is sent from now on to where it
        leads has another one, until something is heard on it."""
        if flow in self._connections:
            self._distrusted.add(flow)

    def alias(self, flow: Flow, port: int) -> None:
        """The peer on a connection that it opened takes requests there too that are for its listener at ``port``
        (RFC 5923 7): for the names that its certificate proves, since anybody can claim a port."""
        if flow in self._connections and self.peer_names(flow):
            self._aliases[flow.transport, (flow.remote[0], port)] = flow

    def peer_names(self, flow: Flow) -> tuple[str, ...]:
        """The SIP domains that the peer's certificate proves (RFC 5922); none without TLS, or without a certificate."""
        connection = self._connections.get(flow)
        return () if connection is None else peer_names(connection.info("peercert"))

    def _client_context(self) -> ssl.SSLContext:
        if self.settings.tls_client is not None:
            return self.settings.tls_client
        if self._default_context is None:
            self._default_context = client_context()
        return self._default_context

    async def _resolve(self, host: str, port: int) -> Address:
        try:
            found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(f"{host}:{port}", (str(error),)) from None
        address = found[0][4]
        return str(address[0]), int(address[1])

    async def _datagram_flow(self, remote: Address) -> Flow:
        family = ":" in remote[0]
        bound = next((local for local in self._datagrams if (":" in local[0]) == family), None)
        if bound is None:
            bound = await self.listen("udp", "::" if family else "0.0.0.0", 0)  # noqa: S104 - for answers only
        return Flow("udp", self.local_address(bound, remote[0]), remote)

    def local_address(self, bound: Address, remote: str) -> Address:
        """The address that a peer sees when a socket that is bound to every address sends to him."""
        if bound[0] not in _WILDCARDS:
            return bound
        found = self._sources.get(remote)
        if found is None:
            with socket.socket(socket.AF_INET6 if ":" in remote else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect((remote, 9))  # nothing is sent: the kernel chooses a route
                    found = probe.getsockname()[0]
                except OSError:
                    return bound
            self._sources[remote] = found
            while len(self._sources) > _MAX_SOURCES:
                self._sources.popitem(last=False)
        return found, bound[1]

    # --- sending --------------------------------------------------------------------------------------

    def send(self, data: bytes, flow: Flow) -> bool:
        """Hands octets to the kernel; ``False`` when the flow is gone."""
        if flow.transport == "udp":
            protocol = self._datagrams.get(flow.local) or self._wildcard(flow.local)
            if protocol is None or protocol.socket is None:
                return False
            if self._holding:
                self._held_datagrams.append((protocol.socket, data, flow.remote))
            else:
                protocol.socket.sendto(data, flow.remote)
            return True
        connection = self._connections.get(flow)
        if connection is None or connection.closing:
            return False
        if self._holding:
            self._held_messages.setdefault(connection, []).append(data)
        else:
            self._write(connection, data)
        return True

    def hold(self) -> None:
        """What is sent from now on waits for `release`. The answers to messages that came together leave together:
        a peer who sleeps is woken once, which costs more than the rest of sending, and a connection is written once."""
        self._holding = True

    def release(self) -> None:
        """Sends what `hold` kept, in order."""
        self._holding = False
        if self._held_datagrams:
            datagrams, self._held_datagrams = self._held_datagrams, []
            for endpoint, data, remote in datagrams:
                endpoint.sendto(data, remote)
        if self._held_messages:
            messages, self._held_messages = self._held_messages, {}
            for connection, written in messages.items():
                if not connection.closing:
                    self._write(connection, *written)

    def _write(self, connection: Connection, *messages: bytes) -> None:
        connection.write(*messages)
        if connection.unsent > self.settings.max_unsent:
            log.info("flow=%s closed: the peer does not read", connection.flow)
            self.counters["unread"] += 1
            connection.abort()

    def _wildcard(self, local: Address) -> _Datagrams | None:
        """The socket that is bound to every address on this port."""
        return self._datagrams.get(("::" if ":" in local[0] else "0.0.0.0", local[1]))  # noqa: S104

    # --- keeping alive --------------------------------------------------------------------------------

    def keep(self, flow: Flow, *, stun: bool = True) -> None:
        """From now on this side pings `flow`, a datagram flow: by STUN, and three unanswered pings end it (RFC 5626
        4.4.2); or, where the peer has not said that he knows STUN, by empty lines that nobody answers, for the NATs on
        the way. Connections that this side opened are pinged anyway."""
        if flow.transport == "udp":
            if stun and self._kept.get(flow) is None:
                self._kept[flow] = []
            self._kept.setdefault(flow, None)
        self._tick()

    def drop(self, flow: Flow) -> None:
        """No more pings on a datagram flow."""
        self._kept.pop(flow, None)

    def _tick(self) -> None:
        if self._ticker is None and not self._closed:
            self._ticker = self.loop.call_later(self.settings.keep_alive, self._ping)

    def _ping(self) -> None:
        self._ticker = None
        now = self.loop.time()
        patience = self.settings.keep_alive * (self.settings.keep_alive_misses + 0.5)
        for flow, connection in list(self._connections.items()):
            silent = now - connection.last_heard
            allowed = connection.patience(patience)
            server = flow.transport, flow.remote
            if connection.answers:
                self._answering[server] = None
                if len(self._answering) > _MAX_SOURCES:
                    self._answering.popitem(last=False)
            elif connection.outgoing and server in self._answering:
                allowed = patience  # he did on another connection
            if silent > (self.settings.idle_timeout if allowed is None else allowed):
                log.info("flow=%s silent for %.1f s: closed", flow, silent)
                connection.abort()
            elif connection.outgoing and not connection.closing:
                connection.ping()
        for flow, pings in list(self._kept.items()):
            if pings is None:
                self.send(PING, flow)
                continue
            if len(pings) >= self.settings.keep_alive_misses:
                log.info("flow=%s: %d pings unanswered", flow, len(pings))
                del self._kept[flow]
                self.receiver.flow_closed(flow)
                continue
            request, transaction = binding_request()
            pings.append((transaction, now))
            self.send(request, flow)
        if self._kept or self._connections:
            self._tick()

    # --- what the protocols tell ----------------------------------------------------------------------

    def datagram(self, data: bytes, flow: Flow) -> None:
        """A datagram: SIP, STUN, or a keep-alive of two line ends."""
        if is_stun(data):
            transaction = read_response(data)
            if transaction is not None:
                pings = self._kept.get(flow)
                if pings and any(transaction == sent for sent, _ in pings):
                    pings.clear()
            elif (answer := binding_response(data, flow.remote)) is not None:
                self.send(answer, flow)
            return
        if data in (PING, PONG, b""):
            if data == PING:
                self.send(PONG, flow)
            return
        if self.settings.max_rate_per_source and self._wait(flow.remote[0]):
            self.counters["rate-limited"] += 1
            return
        self.receiver.received(data, flow)

    def message(self, data: bytes, connection: Connection) -> None:
        """See `mcptt_sip.connection.Owner`."""
        assert connection.flow is not None
        if self._distrusted:
            self._distrusted.discard(connection.flow)
        if self.settings.max_rate_per_source and (wait := self._wait(connection.flow.remote[0])):
            self.counters["rate-limited"] += 1
            connection.pause(wait)
        self.receiver.received(data, connection.flow)

    def broken(self, error: ParseError, connection: Connection) -> None:
        """See `mcptt_sip.connection.Owner`."""
        assert connection.flow is not None
        self.receiver.broken(error, connection.flow)

    def _wait(self, source: str) -> float:
        """Counts a message of `source`; seconds until its next is due, 0 while it is within its rate."""
        rate = self.settings.max_rate_per_source
        now, burst = self.loop.time(), float(self.settings.burst_per_source)
        tokens, counted = self._allowance.pop(source, (burst, now))
        tokens = min(burst, tokens + (now - counted) * rate)
        refused = tokens < 1.0
        self._allowance[source] = (tokens if refused else tokens - 1.0, now)
        while len(self._allowance) > _MAX_SOURCES:
            self._allowance.popitem(last=False)
        return (1.0 - tokens) / rate if refused else 0.0

    def admit(self, connection: Connection) -> bool:
        """Whether a new connection may stay."""
        assert connection.flow is not None
        source = connection.flow.remote[0]
        if not connection.outgoing and (
            len(self._connections) >= self.settings.max_connections
            or self._per_source[source] >= self.settings.max_connections_per_source
        ):
            log.warning("flow=%s refused: too many connections", connection.flow)
            self.counters["refused"] += 1
            return False
        self._per_source[source] += 1
        self._connections[connection.flow] = connection
        self._tick()
        return True

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        flow = connection.flow
        if flow is None or self._connections.pop(flow, None) is None:
            return
        self._distrusted.discard(flow)
        for place in [place for place, alias in self._aliases.items() if alias == flow]:
            del self._aliases[place]
        self._per_source[flow.remote[0]] -= 1
        if not self._per_source[flow.remote[0]]:
            del self._per_source[flow.remote[0]]
        if not self._closed:
            self.receiver.flow_closed(flow)

    async def close(self) -> None:
        """Lets what was written go out, then closes every socket."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        for server in self._servers:
            server.close()
        for protocol in self._datagrams.values():
            if protocol.socket is not None:
                protocol.socket.close()
        for connection in list(self._connections.values()):
            connection.close()
        for web in self._web:
            await web.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
            for task in self._tasks:
                task.cancel()
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await server.wait_closed()


