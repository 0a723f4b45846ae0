# SPDX-License-Identifier: Apache-2.0
"""The network of the simulation: datagrams that are lost, doubled, late and out of order; streams that are late, cut
into pieces, held up by a partition, reset by a crash. One seeded source of chance decides it all.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.simulation.loop import Process, VirtualLoop, current

Address = tuple[str, int]
#: (what, from, to, octets)
Observer = Callable[[str, Address, Address, bytes], None]
#: what becomes of one message that a process writes: those that leave instead
Tamper = Callable[[Process, bytes], list[bytes]]


@dataclass(frozen=True, slots=True)
class Quality:
    """Of every way between two hosts. Seconds and shares."""

    delay: float = 0.01
    jitter: float = 0.005
    loss: float = 0.0
    duplicates: float = 0.0


class Receive(Protocol):
    def __call__(self, octets: bytes, source: Address, /) -> None: ...


class Network:
    """Hosts are names; an address is (host, port)."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, on_octets: Observer) -> None:
        self.loop = loop
        self.chance = chance
        self.quality = Quality()
        #: hosts that reach nobody
        self.cut_off: set[str] = set()
        self.on_octets = on_octets
        self.tamper: Tamper = lambda _process, octets: [octets]
        #: told of a process that dies by its own fuse
        self.on_fuse: Callable[[Process], None] = lambda _process: None
        self._ports = 20_000
        self._sent = 0
        self._sockets: dict[Address, tuple[Process, contextvars.Context, Receive]] = {}
        self._servers: dict[Address, Server] = {}
        self.streams: dict[Stream, None] = {}
        #: addresses of streams whose machine went without a word
        self.silenced: set[Address] = set()
        loop.network = self

    def port(self) -> int:
        self._ports = self._ports + 1 if self._ports < 65_000 else 20_001
        return self._ports

    def parted(self, one: str, other: str) -> bool:
        return one != other and (one in self.cut_off or other in self.cut_off)

    def latency(self) -> float:
        """Without jitter, what leaves first arrives first."""
        self._sent = (self._sent + 1) % 10_000
        return self.quality.delay + self._sent * 1e-8 + self.quality.jitter * self.chance.random() ** 2 * 4

    def blown(self, process: Process) -> bool:
        """Counts one message of ``process``; whether it died of it."""
        if process.fuse is not None:
            process.fuse -= 1
            if process.fuse <= 0:
                process.fuse = None
                self.on_fuse(process)
        return process.dead

    # --- datagrams --------------------------------------------------------------------------------------

    def bind(self, receive: Receive, host: str, port: int = 0) -> Address:
        """A socket of the current process."""
        process = current()
        if host in ("0.0.0.0", "::"):
            host = process.host
        address = host, port or self.port()
        if address in self._sockets:
            raise OSError(f"{address} is in use")
        self._sockets[address] = process, contextvars.copy_context(), receive
        return address

    def unbind(self, address: Address) -> None:
        self._sockets.pop(address, None)

    def send(self, octets: bytes, source: Address, target: Address, kind: str = "udp") -> None:
        """One datagram, from the socket ``source`` of the current process."""
        process = current()
        if process.dead or source not in self._sockets or self.blown(process):
            return
        for one in self.tamper(process, octets) if kind == "udp" else [octets]:
            self.on_octets(kind, source, target, one)
            copies = 0 if self.chance.random() < self.quality.loss else 1
            if self.chance.random() < self.quality.duplicates:
                copies += 1
            for _ in range(copies):
                self.loop.call_later(self.latency(), self._arrive, one, source, target, context=_NOBODY)

    def _arrive(self, octets: bytes, source: Address, target: Address) -> None:
        bound = self._sockets.get(target)
        if bound is not None and not self.parted(source[0], target[0]):
            _, context, receive = bound
            self.loop.call_soon(receive, octets, source, context=context)

    def datagram_endpoint(self, factory: Any, local: Address) -> tuple[Datagrams, Any]:
        protocol = factory()
        transport = Datagrams(self, protocol, *local[:2])
        protocol.connection_made(transport)
        return transport, protocol

    # --- streams ----------------------------------------------------------------------------------------

    def server(self, factory: Any, host: str, port: int) -> Server:
        address = host, port or self.port()
        if address in self._servers:
            raise OSError(f"{address} is in use")
        server = self._servers[address] = Server(self, factory, address)
        return server

    def forget_server(self, server: Server) -> None:
        if self._servers.get(server.address) is server:
            del self._servers[server.address]

    async def connection(self, factory: Any, host: str, port: int) -> tuple[Stream, Any]:
        process = current()
        await asyncio.sleep(2 * self.latency())
        while self.parted(process.host, host):  # noqa: ASYNC110 - a SYN is sent again and again
            await asyncio.sleep(1.0)
        server = self._servers.get((host, port))
        if server is None or server.process.dead:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        protocol = factory()
        here = Stream(self, process, contextvars.copy_context(), (process.host, self.port()), (host, port), protocol)
        there = Stream(self, server.process, server.context, (host, port), here.local, None)
        here.peer, there.peer = there, here
        self.loop.call_soon(there.accept, server.factory, context=server.context)
        protocol.connection_made(here)
        return here, protocol

    # --- what goes wrong --------------------------------------------------------------------------------

    def heal(self) -> None:
        """Nobody is cut off any more: what was held up arrives."""
        self.cut_off.clear()
        self.resume()

    def resume(self) -> None:
        """After a change of ``cut_off``: goes on with what is not held up any more."""
        for stream in list(self.streams):
            stream.resume()

    def kill(self, process: Process, *, silently: bool) -> None:
        """The sockets of a dead process. ``silently``: its machine is gone too, so that nobody is told."""
        for address in [a for a, (owner, _, _) in self._sockets.items() if owner is process]:
            del self._sockets[address]
        for server in [s for s in self._servers.values() if s.process is process]:
            self.forget_server(server)
        for stream in [s for s in self.streams if s.process is process]:
            stream.die(silently)

    def cut_stream(self, stream: Stream) -> None:
        """A box on the way forgets the connection: both ends are told."""
        for end in (stream, stream.peer):
            if end is not None:
                self.loop.call_later(self.latency(), end.arrive, _RESET, context=_NOBODY)


class Datagrams(asyncio.DatagramTransport):
    """A UDP socket for asyncio."""

    def __init__(self, network: Network, protocol: Any, host: str, port: int) -> None:
        super().__init__()
        self._network = network
        self.address = network.bind(protocol.datagram_received, host, port)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": self.address, "socket": _Socket(self.address)}.get(name, default)

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._network.send(bytes(data), self.address, addr)

    def close(self) -> None:
        self._network.unbind(self.address)


class _Socket:
    """What of a socket is asked for by name."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Address:
        return self._address

    def setsockopt(self, *_: Any) -> None:
        """Nothing here is delayed on purpose."""

    def dup(self) -> _Socket:
        return self

    def recvfrom(self, _: int) -> tuple[bytes, Address]:
        """The network brings each datagram by itself."""
        raise BlockingIOError


class Server:
    """A listening socket."""

    def __init__(self, network: Network, factory: Any, address: Address) -> None:
        self._network = network
        self.factory = factory
        self.address = address
        self.process = current()
        self.context = contextvars.copy_context()
        self.sockets = (_Socket(address),)

    def close(self) -> None:
        self._network.forget_server(self)

    async def wait_closed(self) -> None:
        """Connections that were accepted live on."""


_NOBODY = contextvars.Context()
_RESET = ConnectionResetError("connection reset by peer")
_END = None


class Stream(asyncio.Transport):
    """One end of a connection. What it writes arrives at ``peer`` whole and in order, or not at all."""

    def __init__(
        self, network: Network, process: Process, context: contextvars.Context, local: Address, remote: Address,
        protocol: Any,
    ) -> None:
        super().__init__()
        self._network = network
        self.process = process
        self.context = context.copy()
        self.local, self.remote = local, remote
        self._protocol = protocol
        self.peer: Stream | None = None
        self._closing = False
        self._lost = False
        self._paused = False
        self._arrived: deque[bytes | ConnectionResetError | None] = deque()
        self._held: deque[bytes | ConnectionResetError | None] = deque()
        self._last = 0.0
        #: the newest message that the program wrote, and a way to write one that it did not
        self.last_written = b""
        network.streams[self] = None

    def accept(self, factory: Any) -> None:
        self._protocol = factory()
        self._protocol.connection_made(self)

    # --- asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": self.local, "peername": self.remote, "socket": _Socket(self.local)}.get(name, default)

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        peer = self.peer
        return 0 if peer is None else sum(len(item) for item in peer._held if isinstance(item, bytes))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._put(_END)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._read()

    def write(self, data: Any) -> None:
        if self._closing or self.process.dead or self._network.blown(self.process):
            return
        self.last_written = bytes(data)
        for octets in self._network.tamper(self.process, self.last_written):
            self.inject(octets)

    def inject(self, octets: bytes) -> None:
        """Sends octets as they are."""
        if self._closing or self.process.dead or not octets:
            return
        network = self._network
        network.on_octets("tcp", self.local, self.remote, octets)
        at = network.chance.randrange(len(octets)) if network.chance.random() < 0.1 else 0
        for piece in (octets[:at], octets[at:]):
            if piece:
                self._put(piece)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._put(_END)
            self._network.loop.call_soon(self._lose, None, context=self.context)

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._put(_RESET)
            self._network.loop.call_soon(self._lose, None, context=self.context)

    # --- the way to the peer

    def _put(self, item: bytes | ConnectionResetError | None) -> None:
        network, peer = self._network, self.peer
        if peer is None or peer._lost or self.process.dead:
            return
        at = network.loop.time() + network.latency()
        if network.chance.random() < network.quality.loss:
            at += 0.2  # a segment is sent again
        # the loop keeps no order among timers of one instant
        peer._last = at = max(at, peer._last + 1e-6)
        network.loop.call_at(at, peer.arrive, item, context=_NOBODY)

    def arrive(self, item: bytes | ConnectionResetError | None) -> None:
        if self._lost or self.process.dead:
            return
        if self._held or self._network.parted(self.local[0], self.remote[0]):
            self._held.append(item)
            return
        self._arrived.append(item)
        self._network.loop.call_soon(self._read, context=self.context)

    def resume(self) -> None:
        if not self._network.parted(self.local[0], self.remote[0]):
            held, self._held = self._held, deque()
            for item in held:
                self.arrive(item)

    def _read(self) -> None:
        while self._arrived and not self._paused and not self._lost and self._protocol is not None:
            item = self._arrived.popleft()
            if isinstance(item, bytes):
                self._protocol.data_received(item)
            elif item is _END:
                if not self._protocol.eof_received():
                    self.close()
            else:
                self._closing = True
                self._lose(item)

    def _lose(self, why: ConnectionResetError | None) -> None:
        if not self._lost:
            self._lost = True
            self._network.streams.pop(self, None)
            self._protocol.connection_lost(why)

    def die(self, silently: bool) -> None:
        """Its process is dead."""
        self._lost = self._closing = True
        self._network.streams.pop(self, None)
        peer = self.peer
        if silently:
            self._network.silenced.add(self.local)
        elif peer is not None:
            self._network.loop.call_later(self._network.latency(), peer.arrive, _RESET, context=_NOBODY)
