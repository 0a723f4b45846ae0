# SPDX-License-Identifier: Apache-2.0
"""Sockets for SIP on asyncio: UDP, TCP and TLS, connection reuse both ways, keep-alive (RFC 3261 18, RFC 5626).

A `Transport` turns octets into `Flow`s and back. It knows nothing of transactions: what arrives goes to a
`Receiver`, whole messages only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol, cast

from mcptt_sip.errors import ParseError, Unreachable
from mcptt_sip.flow import Flow
from mcptt_sip.message import KeepAlive, Limits, MessageFramer
from mcptt_sip.stun import binding_request, binding_response, is_stun, read_response

__all__ = ["Address", "Receiver", "Transport", "TransportSettings"]

log = logging.getLogger(__name__)

Address = tuple[str, int]
_PING = b"\r\n\r\n"
_PONG = b"\r\n"


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
    max_connections: int = 10_000
    max_connections_per_source: int = 256
    #: a connection that does not take what is written to it is closed when so much waits
    max_unsent: int = 4 * 1024 * 1024
    limits: Limits = field(default_factory=Limits)
    #: our certificate, for connections that come in over TLS; ``verify_mode`` asks peers for theirs. A certificate
    #: that is loaded into it again is shown from the next connection on
    tls_server: ssl.SSLContext | None = None
    #: whom to trust, for connections that go out over TLS; the host's authorities when ``None``
    tls_client: ssl.SSLContext | None = None


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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.socket = cast(asyncio.DatagramTransport, transport)
        self.local = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._owner.datagram(data, Flow("udp", self.local, (addr[0], addr[1])))

    def error_received(self, exc: Exception) -> None:
        log.debug("udp %s: %s", self.local, exc)  # an ICMP error; transactions notice by their timers


class _Connection(asyncio.Protocol):
    """One connection over TCP or TLS, whoever opened it. `name` is what a TLS peer's certificate was checked for."""

    def __init__(self, owner: Transport, kind: str, number: int, outgoing: bool, name: str | None = None) -> None:
        self._owner = owner
        self._kind = kind
        self._number = number
        self.outgoing = outgoing
        self.name = name
        self.flow: Flow | None = None
        self.framer = MessageFramer(owner.settings.limits)
        self.socket: asyncio.Transport | None = None
        self.last_heard = 0.0
        self.lingering = False  # framing is lost: nothing is read any more
        self.pinged = False  # the peer keeps this flow alive: its silence means something

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.socket = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        local, remote = transport.get_extra_info("sockname")[:2], transport.get_extra_info("peername")[:2]
        self.flow = Flow(self._kind, local, remote, self._number)
        self.last_heard = self._owner.loop.time()
        if not self._owner.admit(self):
            self.socket.abort()

    def data_received(self, data: bytes) -> None:
        assert self.flow is not None and self.socket is not None
        if self.lingering:
            return
        self.last_heard = self._owner.loop.time()
        for item in self.framer.receive(data):
            if isinstance(item, ParseError):
                log.info("flow=%s closed: %s", self.flow, item)
                self._owner.receiver.broken(item, self.flow)
                self._linger()
                return
            if isinstance(item, KeepAlive):
                if item is KeepAlive.PING:
                    self.pinged = True
                    self.socket.write(_PONG)
            else:
                self._owner.receiver.received(item, self.flow)

    def _linger(self) -> None:
        """Ends this side, and reads what is still coming for a while: closing over unread octets would reset the
        connection, and the peer would lose the answer that tells him why."""
        assert self.socket is not None
        self.lingering = True
        self._owner.gone(self)
        if self.socket.can_write_eof() and not self.socket.is_closing():
            self.socket.write_eof()
        self._owner.loop.call_later(self._owner.settings.linger, self.socket.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.gone(self)


class Transport:
    """All sockets of one user agent."""

    def __init__(self, receiver: Receiver, settings: TransportSettings | None = None) -> None:
        self.receiver = receiver
        self.settings = settings or TransportSettings()
        self.loop = asyncio.get_running_loop()
        self._datagrams: dict[Address, _Datagrams] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: dict[Flow, _Connection] = {}
        self._per_source: Counter[str] = Counter()
        self._kept: dict[Flow, list[tuple[bytes, float]]] = {}
        self._numbers = itertools.count(1)
        self._ticker: asyncio.TimerHandle | None = None
        self._closed = False
        self._default_context: ssl.SSLContext | None = None

    # --- opening --------------------------------------------------------------------------------------

    async def listen(self, transport: str, host: str, port: int) -> Address:
        """Opens a socket for requests; port 0 chooses one. Raises OSError when it cannot."""
        if transport == "udp":
            _, protocol = await self.loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(host, port)
            )
            self._datagrams[protocol.local] = protocol
            return protocol.local
        if transport not in ("tcp", "tls"):
            raise ValueError(f"no transport {transport!r}")
        context = None
        if transport == "tls":
            context = self.settings.tls_server
            if context is None:
                raise ValueError("TLS needs a certificate: TransportSettings.tls_server")
        server = await self.loop.create_server(
            lambda: _Connection(self, transport, next(self._numbers), outgoing=False),
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
        context = None
        if transport == "tls":
            context, name = self._client_context(), name or host
        else:
            name = None
        for flow, connection in self._connections.items():
            if (
                (flow.transport, flow.remote, connection.name) == (transport, address, name)
                and connection.socket is not None
                and not connection.socket.is_closing()
            ):
                return flow
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                _, connection = await self.loop.create_connection(
                    lambda: _Connection(self, transport, next(self._numbers), outgoing=True, name=name),
                    *address,
                    ssl=context,
                    server_hostname=name,
                )
        except (TimeoutError, OSError) as error:  # ssl.SSLError is an OSError
            raise Unreachable(f"{transport}:{host}:{port}", (str(error) or "no answer in time",)) from None
        assert connection.flow is not None
        self._tick()
        return connection.flow

    def _client_context(self) -> ssl.SSLContext:
        if self.settings.tls_client is not None:
            return self.settings.tls_client
        if self._default_context is None:
            self._default_context = ssl.create_default_context()
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
        for local in self._datagrams:
            if (":" in local[0]) == family:
                return Flow("udp", local, remote)
        local = await self.listen("udp", "::" if family else "0.0.0.0", 0)  # noqa: S104 - for answers only
        return Flow("udp", local, remote)

    # --- sending --------------------------------------------------------------------------------------

    def send(self, data: bytes, flow: Flow) -> bool:
        """Hands octets to the kernel; ``False`` when the flow is gone."""
        if flow.transport == "udp":
            protocol = self._datagrams.get(flow.local)
            if protocol is None or protocol.socket is None:
                return False
            protocol.socket.sendto(data, flow.remote)
            return True
        connection = self._connections.get(flow)
        if connection is None or connection.socket is None or connection.socket.is_closing():
            return False
        connection.socket.write(data)
        if connection.socket.get_write_buffer_size() > self.settings.max_unsent:
            log.info("flow=%s closed: the peer does not read", flow)
            connection.socket.abort()
        return True

    # --- keeping alive --------------------------------------------------------------------------------

    def keep(self, flow: Flow) -> None:
        """From now on this side pings `flow` (RFC 5626 4.4), and three unanswered pings end it."""
        if flow.transport == "udp":
            self._kept.setdefault(flow, [])
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
            watched = connection.outgoing or connection.pinged
            if silent > (patience if watched else self.settings.idle_timeout):
                log.info("flow=%s silent for %.1f s: closed", flow, silent)
                assert connection.socket is not None
                connection.socket.abort()
            elif connection.outgoing:
                self.send(_PING, flow)
        for flow, pings in list(self._kept.items()):
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
        if data in (_PING, _PONG, b""):
            if data == _PING:
                self.send(_PONG, flow)
            return
        self.receiver.received(data, flow)

    def admit(self, connection: _Connection) -> bool:
        """Whether a new connection may stay."""
        assert connection.flow is not None
        source = connection.flow.remote[0]
        if not connection.outgoing and (
            len(self._connections) >= self.settings.max_connections
            or self._per_source[source] >= self.settings.max_connections_per_source
        ):
            log.warning("flow=%s refused: too many connections", connection.flow)
            return False
        self._per_source[source] += 1
        self._connections[connection.flow] = connection
        self._tick()
        return True

    def gone(self, connection: _Connection) -> None:
        """A connection has ended."""
        flow = connection.flow
        if flow is None or self._connections.pop(flow, None) is None:
            return
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
            if connection.socket is not None:
                connection.socket.close()
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await server.wait_closed()


