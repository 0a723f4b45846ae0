# SPDX-License-Identifier: Apache-2.0
"""The programs of the page for people who come from aiosip, on a network in memory."""

from __future__ import annotations

import re
from pathlib import Path

import mcptt_sip
from mcptt_sip.call import Call
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.subscription import NotifierSubscription
from mcptt_sip.testing import Network, run
from mcptt_sip.useragent import UserAgent
from scenarios.examples import coming_from_aiosip as page

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n"


def test_a_subscriber_hears_everything_that_the_notifier_says() -> None:
    async def story() -> None:
        network = Network()
        async with (
            network.user_agent("sip:server@example.org") as server,
            network.user_agent("sip:alice@example.org") as alice,
        ):
            page.notifier(server, ["away", "busy", "here"])
            _, host, port = server.addresses[0]
            assert await page.subscriber(alice, f"sip:bob@{host}:{port}") == ["away", "busy", "here"]

    run(story())


def test_a_visitor_is_let_in_and_leaves() -> None:
    async def story() -> None:
        network = Network()
        async with (
            network.user_agent("sip:door@example.org") as door,
            network.user_agent("sip:alice@example.org") as alice,
        ):
            page.doorman(door, SDP)
            _, host, port = door.addresses[0]
            assert await page.visitor(alice, f"sip:door@{host}:{port}", SDP, 60.0) == SDP
            assert 60.0 <= network.now() < 62.0

    run(story())


def test_every_name_of_the_page_is_there() -> None:
    right = [line[50:] for line in Path(page.__file__).read_text().splitlines() if "``" in line]
    owners = {"agent": UserAgent, "incoming": ServerRequest, "subscription": NotifierSubscription, "call": Call}
    found = 0
    for owner, name in re.findall(r"\b(agent|incoming|subscription|call)\.(\w+)", " ".join(right)):
        found += 1
        assert hasattr(owners[owner], name) or name in ("ended",), f"{owner}.{name}"
    assert found >= 8
    assert hasattr(mcptt_sip, "DigestCredentials")
