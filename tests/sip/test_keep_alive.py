# SPDX-License-Identifier: Apache-2.0
"""Keep-alives (RFC 5626 4.4): silence means something only where the peer has shown that it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mcptt_sip.connection import PING, PONG
from mcptt_sip.transport import Transport
from tests.sip.test_transport import OPTIONS, end

pytestmark = pytest.mark.network
SETTINGS: dict[str, Any] = {"keep_alive": 0.04, "keep_alive_misses": 3}  # 0.14 s of silence


@asynccontextmanager
async def peer(answer: Callable[[int], bytes]) -> AsyncIterator[tuple[int, asyncio.Queue[int]]]:
    """A TCP server that gives these octets for the n-th ping; its port, and the numbers of the pings it has had."""
    pings: asyncio.Queue[int] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while await reader.read(4) == PING:
            number += 1
            pings.put_nowait(number)
            writer.write(answer(number))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], pings
    finally:
        server.close()


async def test_a_callee_who_answers_no_pings_may_ring_on() -> None:
    async with peer(lambda _: b"") as (port, pings), end(**SETTINGS) as (transport, ear):
        await transport.connect("tcp", "127.0.0.1", port)
        for _ in range(12):
            await asyncio.wait_for(pings.get(), 5.0)
        assert not ear.closed


async def test_one_who_has_answered_and_falls_silent_is_gone() -> None:
    async with peer(lambda number: PONG if number <= 5 else b"") as (port, pings), end(**SETTINGS) as (transport, ear):
        flow = await transport.connect("tcp", "127.0.0.1", port)
        await ear.until("closed")
        assert ear.closed == [flow] and 5 < pings.qsize() < 12


async def incoming(transport: Transport) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", (await transport.listen("tcp", "127.0.0.1", 0))[1])


async def ping_four_times(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, every: float) -> None:
    for _ in range(4):
        writer.write(PING)
        assert await asyncio.wait_for(reader.readexactly(2), 5.0) == PONG
        await asyncio.sleep(every)


async def test_a_peer_who_pings_seldom_is_not_taken_for_dead() -> None:
    """RFC 5626 4.4.1: every 95 to 120 seconds, that is; here 0.3, against 0.14 of our own."""
    async with end(**SETTINGS) as (transport, ear):
        reader, writer = await incoming(transport)
        await ping_four_times(reader, writer, every=0.3)
        writer.write(OPTIONS)
        await ear.until("heard")
        assert not ear.closed
        writer.close()


async def test_a_peer_who_has_pinged_often_and_stops_is_gone() -> None:
    async with end(**SETTINGS) as (transport, ear):
        reader, writer = await incoming(transport)
        await ping_four_times(reader, writer, every=0.02)
        await ear.until("closed")
        writer.close()


async def test_a_datagram_flow_without_stun_is_kept_by_empty_lines_and_never_ends() -> None:
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    class Silent(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            heard.put_nowait(data)

    endpoint, _ = await loop.create_datagram_endpoint(Silent, local_addr=("127.0.0.1", 0))
    async with end(**SETTINGS) as (transport, ear):
        flow = await transport.connect("udp", "127.0.0.1", endpoint.get_extra_info("sockname")[1])
        transport.keep(flow, stun=False)
        assert [await asyncio.wait_for(heard.get(), 5.0) for _ in range(8)] == [PING] * 8 and not ear.closed
        transport.keep(flow)  # the peer has agreed to STUN meanwhile, and does not answer
        await ear.until("closed")
        assert ear.closed == [flow]
    endpoint.close()


async def test_a_server_who_has_answered_once_is_known_to_answer() -> None:
    """A connection that was half open from its beginning is noticed."""
    known = [PONG]
    async with peer(lambda _: known[0]) as (port, pings), end(**SETTINGS) as (transport, ear):
        first = await transport.connect("tcp", "127.0.0.1", port)
        for _ in range(3):
            await asyncio.wait_for(pings.get(), 5.0)
        known[0] = b""
        transport.distrust(first)
        second = await transport.connect("tcp", "127.0.0.1", port)
        await ear.until("closed", 2)
        assert second != first and set(ear.closed) == {first, second}


async def test_a_connection_over_which_a_request_was_never_answered_is_used_no_more_until_it_speaks() -> None:
    async with end() as (server, there), end() as (client, here):
        port = (await server.listen("tcp", "127.0.0.1", 0))[1]
        first = await client.connect("tcp", "127.0.0.1", port)
        assert await client.connect("tcp", "127.0.0.1", port) == first
        client.send(OPTIONS, first)
        await there.until("heard")
        client.distrust(first)
        second = await client.connect("tcp", "127.0.0.1", port)
        assert second != first and await client.connect("tcp", "127.0.0.1", port) == second
        client.distrust(second)
        server.send(OPTIONS, there.heard[0][1])
        await here.until("heard")
        assert await client.connect("tcp", "127.0.0.1", port) == first
