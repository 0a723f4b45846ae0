# SPDX-License-Identifier: Apache-2.0
"""RFC 5923: a TLS connection serves both ways, for whom its certificate proves and for nobody else."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mcptt_sip.endpoint import SipEndpoint, steady
from mcptt_sip.errors import Unreachable
from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.outgoing import ResponseReceived
from mcptt_sip.services import StackSettings
from mcptt_sip.stack import FlowLost, SipStack
from mcptt_sip.tls import ServerTls, TlsIdentity, client_context
from mcptt_sip.transport import TransportSettings
from tests.sip.certificates import Authority

pytestmark = pytest.mark.network
HOST = "127.0.0.1"


class Proxy:
    """One end with a listener and, usually, a certificate that it shows both ways."""

    def __init__(self, authority: Authority, identity: TlsIdentity, *, shows: bool = True) -> None:
        self.requests: list[RequestReceived] = []
        self.answers: list[int] = []
        self.lost: list[Flow] = []
        self._changed = asyncio.Event()
        self.stack = SipStack(StackSettings(answer_options=False), token=lambda: os.urandom(8))
        tls = ServerTls([identity], client_authorities=authority.file if shows else None)
        self.endpoint = SipEndpoint(
            self.stack, on_event=self._event, clock=steady(time.time),
            settings=TransportSettings(
                tls_server=tls.context, tls_client=client_context(authority.file, identity=identity if shows else None)
            ),
        )  # fmt: skip
        self.port = 0

    def _event(self, event: object, now: float) -> None:
        if isinstance(event, RequestReceived):
            self.requests.append(event)
            event.incoming.respond(200, now=now)
        elif isinstance(event, ResponseReceived):
            self.answers.append(event.response.status)
        elif isinstance(event, FlowLost):
            self.lost.append(event.flow)
        self._changed.set()

    async def connect(self, port: int, name: str) -> Flow:
        return await self.endpoint._transport.connect("tls", HOST, port, name=name)

    async def ask(self, flow: Flow) -> None:
        request = self.stack.compose("OPTIONS", f"sip:{HOST};transport=tls", from_="<sip:a@example.org>")
        before = len(self.answers)
        self.stack.request(request, time.time(), flow=flow)
        self.endpoint.transmit()
        await self.until(lambda: len(self.answers) > before)

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(10.0):
            while not happened():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def two(folder: Path, *, shows: bool = True) -> AsyncIterator[tuple[Proxy, Proxy]]:
    authority = Authority(folder)
    ends = [
        Proxy(authority, authority.sign(f"{name}.example.org", HOST, shown_for=(f"{name}.example.org",)), shows=shows)
        for name in ("one", "two")
    ]
    try:
        for end in ends:
            end.port = (await end.endpoint.listen("tls", HOST, 0))[1]
        yield ends[0], ends[1]
    finally:
        for end in ends:
            await end.endpoint.close()


async def test_who_listens_is_reached_on_the_connection_that_he_opened(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        flow = await other.connect(one.port, "one.example.org")
        await other.ask(flow)
        via = one.requests[0].incoming.request.headers.top_via
        assert "alias" in via.params and via.port == other.port
        back = await one.connect(other.port, "two.example.org")
        assert back.remote == flow.local, "no second connection"
        await one.ask(back)
        assert len(other.requests) == 1


async def test_another_name_than_the_certificates_gets_a_connection_of_its_own_or_none(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        await other.ask(await other.connect(one.port, "one.example.org"))
        with pytest.raises(Unreachable, match="certificate"):
            await one.connect(other.port, "three.example.org")


async def test_a_port_that_is_claimed_without_a_certificate_is_not_believed(tmp_path: Path) -> None:
    async with two(tmp_path, shows=False) as (one, other):
        flow = await other.connect(one.port, "one.example.org")
        await other.ask(flow)
        back = await one.connect(other.port, "two.example.org")
        assert back.remote == (HOST, other.port), "a connection that this side opened"


async def test_an_alias_goes_with_its_connection(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        await other.ask(await other.connect(one.port, "one.example.org"))
        back = await one.connect(other.port, "two.example.org")
        one.endpoint._transport._connections[back].abort()
        await one.until(lambda: back in one.lost)
        new = await one.connect(other.port, "two.example.org")
        assert new.remote == (HOST, other.port)
        await one.ask(new)
