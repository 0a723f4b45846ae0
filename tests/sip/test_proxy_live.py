# SPDX-License-Identifier: Apache-2.0
"""The proxy on real sockets, between SIPp and SIPp."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mcptt_sip.endpoint import SipEndpoint, steady
from mcptt_sip.proxy import ProxySettings, RequestToForward, SipProxy, Target
from tests.sip.sipp import HOST, needed, recv, request, scenario, send, sipp

pytestmark = [pytest.mark.network, pytest.mark.interop, needed("sipp", "sip-tester")]


@asynccontextmanager
async def proxy_to(*targets: str, transport: str = "udp") -> AsyncIterator[tuple[int, SipProxy]]:
    """A proxy that sends everything to these places; its port."""

    def handle(event: object, now: float) -> None:
        if isinstance(event, RequestToForward):
            event.forwarding.to([Target(uri) for uri in targets], now)

    proxy = SipProxy(token=lambda: os.urandom(8), proxying=ProxySettings())
    endpoint = SipEndpoint(proxy, on_event=handle, clock=steady(time.time))
    _, port = await endpoint.listen(transport, HOST, 0)
    if transport != "udp":
        await endpoint.listen("udp", HOST, port)
    try:
        yield port, proxy
    finally:
        await endpoint.close()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_load_goes_through(tmp_path: Path, transport: str) -> None:
    """SIPp's own scenarios at both ends: INVITE, 180, 200, ACK, BYE, at 100 calls a second."""
    (tmp_path / "callee").mkdir()
    async with sipp(tmp_path / "callee", "uas", calls=300, transport=transport) as callee:
        target = f"sip:service@{HOST}:{callee.port}" + (";transport=tcp" if transport == "tcp" else "")
        async with proxy_to(target, transport=transport) as (port, _proxy):
            async with sipp(tmp_path, "uac", "-r", "100", to=port, calls=300, transport=transport) as caller:
                await caller.succeeded()
            await callee.succeeded()


RINGING = scenario(
    recv("INVITE"),
    send("""SIP/2.0 180 Ringing
        [last_Via:]
        [last_From:]
        [last_To:];tag=[call_number]
        [last_Call-ID:]
        [last_CSeq:]
        [last_Record-Route:]
        Contact: <sip:[local_ip]:[local_port]>"""),
    recv("CANCEL"),
    send("""SIP/2.0 200 OK
        [last_Via:]
        [last_From:]
        [last_To:]
        [last_Call-ID:]
        [last_CSeq:]"""),
)


async def test_who_is_not_chosen_hears_a_cancel(tmp_path: Path) -> None:
    """A fork over real sockets: one rings, the other answers."""
    (tmp_path / "rings").mkdir()
    (tmp_path / "answers").mkdir()
    async with (
        sipp(tmp_path / "rings", RINGING) as rings, sipp(tmp_path / "answers", "uas") as answers,
        proxy_to(f"sip:r@{HOST}:{rings.port}", f"sip:a@{HOST}:{answers.port}") as (port, _proxy),
    ):  # fmt: skip
        async with sipp(tmp_path, "uac", to=port) as caller:
            await caller.succeeded()
        await answers.succeeded()
        await rings.succeeded()


REFUSED = scenario(request("INVITE"), recv(100, optional="true"), recv(404), request("ACK", inside=True))
REFUSING = scenario(
    recv("INVITE"),
    send("""SIP/2.0 404 Not Found
        [last_Via:]
        [last_From:]
        [last_To:];tag=[call_number]
        [last_Call-ID:]
        [last_CSeq:]"""),
    recv("ACK"),
)


async def test_a_refusal_comes_back_and_is_acknowledged_hop_by_hop(tmp_path: Path) -> None:
    (tmp_path / "callee").mkdir()
    async with (
        sipp(tmp_path / "callee", REFUSING) as callee,
        proxy_to(f"sip:x@{HOST}:{callee.port}") as (port, _proxy),
    ):
        async with sipp(tmp_path, REFUSED, to=port) as caller:
            await caller.succeeded()
        await callee.succeeded()
