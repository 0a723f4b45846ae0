# SPDX-License-Identifier: Apache-2.0
"""A bad network in user space, for UDP and TCP: loss, duplication, reordering, delay, jitter, bandwidth, partition.

:class:`Path` decides what becomes of each packet and needs no network: time and randomness are passed in.
:class:`UdpLink` and :class:`TcpLink` stand between clients and a server on an asyncio loop.

>>> import random
>>> path = Path(Conditions(delay=0.1, bandwidth=10_000), random.Random(1))
>>> path.packet(1000, now=0.0), path.packet(1000, now=0.0)
([0.2], [0.30000000000000004])
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from media.udp import Address, Datagrams

__all__ = ["Conditions", "Path", "TcpLink", "UdpLink"]

log = logging.getLogger(__name__)

_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Conditions:
    """One direction of a network. Shares are 0..1, times seconds, sizes octets.

    :param loss: share of the packets that are lost, by chance and ``burst`` in a row on average
    :param duplication: share of the packets that come twice
    :param reordering: share of the packets that overtake: they are not held up by ``delay`` and ``jitter``
    :param jitter: each packet is held up by a random time between 0 and this, so that packets overtake each other too
    :param bandwidth: octets a second; packets wait behind each other for it. ``None``: without limit
    :param queue: octets that wait so at most; what comes then is lost
    :param partition: nothing passes
    """

    loss: float = 0.0
    burst: float = 1.0
    duplication: float = 0.0
    reordering: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    bandwidth: float | None = None
    queue: int = 64_000
    partition: bool = False

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share from 0 to 1")
        if min(self.delay, self.jitter, self.queue) < 0 or self.burst < 1.0:
            raise ValueError("times and sizes are not negative, and a burst has one packet at least")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ValueError("a bandwidth is more than nothing")


class Path:
    """One direction, packet by packet. ``conditions`` may be changed at any time."""

    def __init__(self, conditions: Conditions, chance: random.Random) -> None:
        self.conditions = conditions
        self.counters: Counter[str] = Counter()
        self._chance = chance
        self._losing = False
        self._free_at = 0.0
        self._in_order = 0.0

    def packet(self, size: int, now: float) -> list[float]:
        """When a packet of ``size`` octets arrives: never, once or twice."""
        c = self.conditions
        if c.partition or self._lost():
            self.counters["partition" if c.partition else "lost"] += 1
            return []
        sent = self._sent(size, now)
        if sent is None:
            self.counters["queue"] += 1
            return []
        copies = 1
        if self._chance.random() < c.duplication:
            self.counters["duplicated"] += 1
            copies = 2
        times = []
        for _ in range(copies):
            if self._chance.random() < c.reordering:
                self.counters["overtook"] += 1
                times.append(sent)
            else:
                times.append(sent + c.delay + self._chance.random() * c.jitter)
        self.counters["passed"] += 1
        return times

    def octets(self, size: int, now: float) -> float | None:
        """When so many octets of a stream arrive: in order and whole, a loss costs a retransmission's time.
        ``None`` during a partition."""
        c = self.conditions
        if c.partition:
            return None
        sent = self._sent(size, now, unlimited=True)
        assert sent is not None
        at = sent + c.delay + self._chance.random() * c.jitter
        while self._lost():
            self.counters["retransmitted"] += 1
            at += max(0.2, 2 * c.delay)
        self._in_order = max(self._in_order, at)
        self.counters["passed"] += 1
        return self._in_order

    def _lost(self) -> bool:
        """Two states (Gilbert): losing ends with probability 1/burst, and begins so often that the share is right."""
        c = self.conditions
        if c.loss <= 0.0 or c.loss >= 1.0:
            return c.loss >= 1.0
        leave = 1.0 / c.burst
        enter = min(1.0, leave * c.loss / (1.0 - c.loss))
        self._losing = self._chance.random() >= leave if self._losing else self._chance.random() < enter
        return self._losing

    def _sent(self, size: int, now: float, unlimited: bool = False) -> float | None:
        """When the last octet has left through the bottleneck."""
        c = self.conditions
        if c.bandwidth is None:
            return now
        start = max(now, self._free_at)
        if not unlimited and (start - now) * c.bandwidth + size > c.queue:
            return None
        self._free_at = start + size / c.bandwidth
        return self._free_at


class _Schedule:
    """Things to be done at their times, on one loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def now(self) -> float:
        return self._loop.time()

    def at(self, when: float, do: Callable[[], None]) -> None:
        if when <= self.now:
            do()
            return
        heapq.heappush(self._due, (when, next(self._number), do))
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due[0][0], self._run) if self._due else None

    def _run(self) -> None:
        self._timer = None
        while self._due and self._due[0][0] <= self.now + 1e-4:
            heapq.heappop(self._due)[2]()
        self._arm()

    def clear(self) -> None:
        self._due.clear()
        self._arm()


class UdpLink:
    """Datagrams from anyone to ``target`` and back, over a bad network.

    Every client has an address of his own towards the server, as behind a network address translation; ``up`` and
    ``down`` are all clients' together. Use :meth:`open`; ``address`` is where clients send to.
    """

    def __init__(self, host: str, target: Address, up: Path, down: Path, *, max_clients: int = 256) -> None:
        self.target = target
        self.up, self.down = up, down
        self._host = host
        self._max_clients = max_clients
        self._schedule = _Schedule()
        self._outside = Datagrams(host)
        self._outside.on_datagram = self._from_client
        self._clients: dict[Address, Datagrams] = {}
        self.address = self._outside.address

    @classmethod
    async def open(
        cls,
        target: Address,
        conditions: Conditions,
        chance: random.Random,
        *,
        back: Conditions | None = None,
        host: str = "127.0.0.1",
    ) -> UdpLink:
        """A link on a port that the system chooses; ``back`` is for the way from the server (as ``conditions``, when
        not stated). Raises ``OSError``."""
        return cls(host, target, Path(conditions, chance), Path(back or conditions, chance))

    def _from_client(self, octets: bytes, source: Address) -> None:
        inside = self._clients.get(source)
        if inside is None:
            if len(self._clients) >= self._max_clients:
                self.up.counters["too-many-clients"] += 1
                return
            inside = self._clients[source] = Datagrams(self._host)
            inside.on_datagram = lambda reply, _server: self._back(reply, source)
        for when in self.up.packet(len(octets), self._schedule.now):
            self._schedule.at(when, lambda: inside.send(octets, self.target))

    def _back(self, octets: bytes, client: Address) -> None:
        for when in self.down.packet(len(octets), self._schedule.now):
            self._schedule.at(when, lambda: self._outside.send(octets, client))

    def set(self, conditions: Conditions, back: Conditions | None = None) -> None:
        """Both directions are so from now on; what is under way arrives."""
        self.up.conditions, self.down.conditions = conditions, back or conditions

    def close(self) -> None:
        """Nothing passes any more; what is under way is lost."""
        self._schedule.clear()
        self._outside.close()
        for inside in self._clients.values():
            inside.close()


class TcpLink:
    """Connections to ``target``, over a bad network: octets stay in order and whole, and are late.

    During a partition octets wait; what waited passes when it is over. :meth:`reset` breaks every connection.
    """

    def __init__(self, target: Address, conditions: Conditions, chance: random.Random) -> None:
        self.target = target
        self.conditions = conditions
        self.counters: Counter[str] = Counter()
        self._chance = chance
        self._server: asyncio.Server | None = None
        self._healed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.address: Address = ("", 0)

    @classmethod
    async def open(
        cls, target: Address, conditions: Conditions, chance: random.Random, *, host: str = "127.0.0.1"
    ) -> TcpLink:
        """A link on a port that the system chooses. Raises ``OSError``."""
        link = cls(target, conditions, chance)
        link._server = await asyncio.start_server(link._connected, host, 0)
        link.address = link._server.sockets[0].getsockname()[:2]
        link.set(conditions)
        return link

    def set(self, conditions: Conditions) -> None:
        """Every connection is so from now on."""
        self.conditions = conditions
        if conditions.partition:
            self._healed.clear()
        else:
            self._healed.set()

    def reset(self) -> None:
        """Breaks every connection, without a farewell."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError):
                # closed so, a connection ends with RST instead of FIN
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._join(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        self._writers.add(writer)
        try:
            await self._healed.wait()
            there, onward = await asyncio.open_connection(*self.target)
            ends.append(onward)
            self._writers.add(onward)
            await asyncio.gather(self._pump(reader, onward), self._pump(there, writer))
        except OSError as error:
            self.counters["refused"] += 1
            log.debug("%s: %s", self.target, error)
            writer.transport.abort()
        finally:
            for end in ends:
                self._writers.discard(end)
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: octets are read as they come and written when they arrive."""
        loop, path = asyncio.get_running_loop(), Path(self.conditions, self._chance)
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

        async def deliver() -> None:
            while True:
                at, octets = await waiting.get()
                await asyncio.sleep(at - loop.time())
                await self._healed.wait()
                if not octets:
                    writer.write_eof()
                    return
                writer.write(octets)
                await writer.drain()

        delivery = asyncio.ensure_future(deliver())
        try:
            while octets := await reader.read(_CHUNK):
                await self._healed.wait()
                path.conditions = self.conditions
                at = path.octets(len(octets), loop.time())
                await waiting.put((loop.time() if at is None else at, octets))
            await waiting.put((loop.time(), b""))
            await delivery
        except OSError as error:  # an end is gone, and so the other one goes
            log.debug("%s: %s", self.target, error)
            writer.transport.abort()
        finally:
            delivery.cancel()

    async def close(self) -> None:
        """Ends every connection and stops listening."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
