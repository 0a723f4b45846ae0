# SPDX-License-Identifier: Apache-2.0
"""The bad network does what it says, with the clock in the hand and on real sockets."""

from __future__ import annotations

import asyncio
import doctest
import itertools
import random
import statistics

import pytest

from mcptt_sip.ops import link
from mcptt_sip.ops.link import Conditions, Path, TcpLink, UdpLink
from media.udp import Address, Datagrams


def run(conditions: Conditions, count: int = 20000, *, every: float = 0.02, size: int = 100) -> list[list[float]]:
    """Arrivals of packets sent at a steady pace, each relative to when it was sent."""
    path = Path(conditions, random.Random(7))
    return [[at - n * every for at in path.packet(size, n * every)] for n in range(count)]


def test_shares_are_what_was_asked_for() -> None:
    arrivals = run(Conditions(loss=0.05, duplication=0.02, reordering=0.1, delay=0.05))
    counts = [len(times) for times in arrivals]
    assert counts.count(0) / len(counts) == pytest.approx(0.05, abs=0.005)
    assert counts.count(2) / len(counts) == pytest.approx(0.02 * 0.95, abs=0.004)
    times = [at for packet in arrivals for at in packet]
    assert sum(at < 0.01 for at in times) / len(times) == pytest.approx(0.1, abs=0.01)
    assert all(at == pytest.approx(0.05) for at in times if at > 0.01)


def test_losses_come_in_bursts_of_the_length_asked_for() -> None:
    lost = [not times for times in run(Conditions(loss=0.1, burst=5.0), 50000)]
    assert statistics.mean(lost) == pytest.approx(0.1, abs=0.02)
    starts = sum(now and not before for before, now in itertools.pairwise(lost))
    assert sum(lost) / starts == pytest.approx(5.0, rel=0.15)


def test_jitter_lies_between_nothing_and_its_limit_and_makes_packets_overtake() -> None:
    arrivals = run(Conditions(delay=0.1, jitter=0.04))
    times = [at for packet in arrivals for at in packet]
    assert 0.1 <= min(times) < 0.101 and 0.139 < max(times) <= 0.14
    assert statistics.mean(times) == pytest.approx(0.12, abs=0.001)
    order = [n * 0.02 + packet[0] for n, packet in enumerate(arrivals)]
    assert order != sorted(order)


def test_packets_wait_for_the_bandwidth_and_what_does_not_fit_the_queue_is_lost() -> None:
    path = Path(Conditions(bandwidth=10_000, queue=3_000), random.Random(1))
    at = [path.packet(1000, 0.0) for _ in range(5)]
    assert at == [[pytest.approx(0.1)], [pytest.approx(0.2)], [pytest.approx(0.3)], [], []]
    assert path.counters["queue"] == 2
    assert path.packet(1000, 10.0) == [pytest.approx(10.1)]


def test_a_stream_stays_in_order_and_a_loss_costs_time() -> None:
    path = Path(Conditions(loss=0.2, delay=0.01, jitter=0.05), random.Random(3))
    times = [path.octets(100, n * 0.01) for n in range(1000)]
    assert times == sorted(times, key=lambda at: at or 0.0) and None not in times
    assert path.counters["retransmitted"] == pytest.approx(250, abs=60)


def test_nothing_passes_a_partition_and_conditions_may_change() -> None:
    path = Path(Conditions(partition=True), random.Random(1))
    assert path.packet(10, 0.0) == [] and path.octets(10, 0.0) is None
    path.conditions = Conditions()
    assert path.packet(10, 1.0) == [1.0]


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.1}, {"duplication": -0.1}, {"delay": -1.0}, {"bandwidth": 0.0}, {"burst": 0.5}]
)
def test_conditions_that_no_network_has_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Conditions(**wrong)  # type: ignore[arg-type]


def test_the_example_runs() -> None:
    assert doctest.testmod(link).failed == 0


class Echo:
    """A UDP server that answers to where a datagram came from."""

    def __init__(self) -> None:
        self.socket = Datagrams("127.0.0.1")
        self.socket.on_datagram = self._on
        self.sources: set[Address] = set()

    def _on(self, octets: bytes, source: Address) -> None:
        self.sources.add(source)
        self.socket.send(b"<" + octets, source)


@pytest.mark.network
async def test_datagrams_pass_both_ways_and_each_client_has_an_address_of_his_own() -> None:
    echo = Echo()
    bad = await UdpLink.open(echo.socket.address, Conditions(delay=0.01, duplication=1.0), random.Random(1),
                             back=Conditions())  # fmt: skip
    clients = [Datagrams("127.0.0.1") for _ in range(3)]
    heard: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in clients]
    try:
        for number, (client, queue) in enumerate(zip(clients, heard, strict=True)):
            client.on_datagram = lambda octets, _source, queue=queue: queue.put_nowait(octets)
            client.send(b"%d" % number, bad.address)
        async with asyncio.timeout(10):
            got = [[await queue.get(), await queue.get()] for queue in heard]
        assert got == [[b"<%d" % number] * 2 for number in range(3)]
        assert len(echo.sources) == 3
        bad.set(Conditions(partition=True))
        clients[0].send(b"x", bad.address)
        for _ in range(3):  # it stands in the link's socket already: the loop's next look finds it
            await asyncio.sleep(0)
        assert bad.up.counters["partition"] == 1
        bad.set(Conditions())
        clients[0].send(b"y", bad.address)
        async with asyncio.timeout(10):
            while (octets := await heard[0].get()) != b"<y":
                assert octets == b"<0", "a packet passed the partition"
    finally:
        bad.close()
        echo.socket.close()
        for client in clients:
            client.close()


@pytest.mark.network
async def test_a_stream_passes_whole_waits_out_a_partition_and_breaks_at_a_reset() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while octets := await reader.read(1000):
            writer.write(octets)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    conditions = Conditions(delay=0.005, jitter=0.01)
    bad = await TcpLink.open(server.sockets[0].getsockname()[:2], conditions, random.Random(1))
    sent = random.Random(5).randbytes(200_000)
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*bad.address)
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
            bad.set(Conditions(partition=True))
            writer.write(b"later")
            waiting = asyncio.ensure_future(reader.readexactly(5))
            assert not (await asyncio.wait((waiting,), timeout=0.1))[0]
            bad.set(conditions)
            assert await waiting == b"later"
            writer.write_eof()
            assert await reader.read() == b"", "the end of a stream passes too"
            reader, writer = await asyncio.open_connection(*bad.address)
            writer.write(b"x")
            await reader.readexactly(1)
            bad.reset()
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
    finally:
        await bad.close()
        server.close()
