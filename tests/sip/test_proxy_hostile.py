# SPDX-License-Identifier: Apache-2.0
"""The proxy among careless and hostile peers: stray answers, headers that cannot be read, ACKs for nobody."""

from __future__ import annotations

import asyncio

import pytest

from mcptt_sip.auth import DigestAuthenticator
from mcptt_sip.endpoint import SipEndpoint
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.message import Response
from mcptt_sip.proxy import Forwarding, RequestToForward, SipProxy, Target
from mcptt_sip.testing import Network, run, tokens
from tests.sip.test_proxy import ProxyNet, keeping, place


def text(first: str, *lines: str, method: str = "INVITE") -> bytes:
    """A message with the headers that every message has, those of ``lines`` before them."""
    return "\r\n".join(
        (first, *lines, "From: <sip:a@example.org>;tag=a", "To: <sip:bob@example.org>", "Call-ID: c1",
         f"CSeq: 1 {method}", "Max-Forwards: 70", "Content-Length: 0", "", "")
    ).encode()  # fmt: skip


VIA = "Via: SIP/2.0/UDP 192.0.2.1:5061;branch=z9hG4bK1;rport"


def from_alice(net: ProxyNet, octets: bytes) -> None:
    net._send(octets, Flow("udp", net.alice.address, net.proxy.address))


def statuses(net: ProxyNet) -> list[int]:
    """What alice was answered."""
    return [m.status for _, m, to in net.log if to is net.alice and isinstance(m, Response)]


@pytest.mark.parametrize("method", ["INVITE", "SUBSCRIBE"])
def test_a_record_route_that_cannot_be_read_is_400_and_leaves_nothing(method: str) -> None:
    net = ProxyNet()
    flow = Flow("udp", net.proxy.address, net.bob.address)
    net.targets = lambda _: [Target(net.bob.uri, flow)]
    broken = "Record-Route: <sip:x;lr>,,<sip:y;lr>"
    from_alice(net, text(f"{method} sip:bob@example.org SIP/2.0", VIA, broken, method=method))
    net.run(400.0)
    assert statuses(net)[:1] == [400] and not net.arrived(net.bob, method)
    net.nothing_left()


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
@pytest.mark.parametrize("below", [[], ["Via: SIP/2.0/UDP x;branch=1,,SIP/2.0/UDP y"]], ids=["none", "unreadable"])
def test_an_answer_without_a_way_back_is_none(method: str, below: list[str]) -> None:
    net = ProxyNet()
    net.bob.handler = lambda _event, _now: None
    from_alice(net, text(f"{method} sip:bob@example.org SIP/2.0", VIA, method=method))
    net.run(0.1)
    (forwarded,) = net.arrived(net.bob, method)
    for _ in range(2):
        # given at once: what the log keeps has to have a Via that can be read
        net.proxy.stack.receive_octets(
            text("SIP/2.0 200 OK", f"Via: {forwarded.headers.values('via')[0]}", *below, method=method),
            Flow("udp", net.proxy.address, net.bob.address), net.now,
        )  # fmt: skip
        net.settle()
        net.run(1.0)
    assert 200 not in statuses(net)
    net._send(text("SIP/2.0 404 Not Found", *(f"Via: {via}" for via in forwarded.headers.values("via")), method=method),
              Flow("udp", net.bob.address, net.proxy.address))  # fmt: skip
    net.run(1.0)
    assert 404 in statuses(net), "the transaction still waits for its answer"


def test_the_ack_of_an_answer_that_the_proxy_gave_alone_goes_round_no_ring() -> None:
    net = ProxyNet(names=frozenset({"example.org"}))
    from_alice(net, text("ACK sip:bob@192.0.2.1:5060 SIP/2.0", VIA, method="ACK"))
    net.run(5.0)
    assert len(net.arrived(net.proxy, "ACK")) <= 2


def test_the_ack_of_a_2xx_goes_on_also_when_it_has_the_branch_of_its_invite() -> None:
    """RFC 6026 7.1: in Accepted, an ACK is the core's. RFC 2543 peers, and careless ones, use the branch again."""
    net = ProxyNet()
    from_alice(net, text("INVITE sip:bob@example.org SIP/2.0", VIA, "Contact: <sip:a@192.0.2.1:5061>"))
    net.run(1.0)
    answer = next(m for _, m, to in net.log if to is net.alice and isinstance(m, Response) and m.status == 200)
    route = f"Route: {answer.headers.values('record-route')[0]}"
    ack = text(f"ACK {answer.headers.contact[0].uri} SIP/2.0", VIA, route, method="ACK")
    from_alice(net, ack.replace(b"To: <sip:bob@example.org>", b"To: " + str(answer.headers.to).encode()))
    net.run(1.0)
    assert len(net.arrived(net.bob, "ACK")) == 1


def test_the_ack_for_a_strict_router_is_made_for_it() -> None:
    net = ProxyNet(record_route=False)
    routes = "Route: <sip:192.0.2.1:5060;lr>, <sip:192.0.2.1:5063>"
    from_alice(net, text(f"ACK {net.bob.uri} SIP/2.0", VIA, routes, method="ACK"))
    net.run(1.0)
    (ack,) = net.arrived(net.carol, "ACK")
    assert str(ack.uri) == "sip:192.0.2.1:5063" and [str(r.uri) for r in ack.headers.route] == [net.bob.uri]


def test_what_the_application_says_after_the_caller_gave_up_is_not_sent() -> None:
    net = ProxyNet()
    found: list[Forwarding] = []
    net.proxy.handler = keeping(found)
    session = net.call()
    net.run(2.0)
    session.cancel(net.now)  # type: ignore[attr-defined]
    net.run(1.0)
    found[0].respond(404, now=net.now)
    net.run(5.0)
    assert 404 not in statuses(net)


def test_a_provisional_answer_to_no_invite_goes_no_further() -> None:
    """RFC 4320 4.1."""
    net = ProxyNet()

    def handle(event: object, now: float) -> None:
        if isinstance(event, RequestReceived):
            with pytest.raises(LocalProtocolError, match="4320"):
                event.incoming.respond(183, now=now)
            incoming = event.incoming  # as somebody does who has not heard of it
            incoming._services.answer(incoming._transaction, incoming.request.response(183), now)
            event.incoming.respond(200, now=now)

    net.bob.handler = handle
    net.ask()
    net.run(1.0)
    assert statuses(net) == [200]


def test_a_proxy_that_listens_on_every_address_knows_its_own_routes() -> None:
    net = ProxyNet()
    net.proxy.stack._listeners.clear()
    net.proxy.stack.add_listener("udp", "0.0.0.0", 5060)
    session = net.call()
    net.run(1.0)
    session.bye(net.now)
    net.run(5.0)
    assert len(net.arrived(net.bob, "BYE")) == 1 and len(net.arrived(net.bob, "ACK")) == 1
    assert len(net.arrived(net.proxy, "BYE")) == 1


@pytest.mark.parametrize("flow", [None, Flow("udp", ("192.0.2.1", 5060), ("192.0.2.1", 5062))], ids=["found", "given"])
def test_a_path_that_cannot_be_read_leads_nowhere(flow: Flow | None) -> None:
    """Whoever registered it hurts himself alone: the others are rung, and the caller hears of it."""
    net = ProxyNet()
    broken = Target(net.carol.uri, flow, ("no route at all",))
    net.targets = lambda _: [broken]
    net.call()
    net.run(5.0)
    assert net.statuses == [500]
    net.targets = lambda _: [broken, Target(net.bob.uri)]
    net.call()
    net.run(5.0)
    assert sorted(net.statuses) == [200, 500]


def test_the_way_of_a_sips_call_is_sips() -> None:
    """16.6 step 4."""
    net = ProxyNet()
    net.proxy.stack.add_listener("tls", "192.0.2.1", 5061)
    there = Flow("tls", ("192.0.2.1", 5061), net.bob.address, 9)
    net.targets = lambda _: [Target("sips:bob@192.0.2.1:5062", there)]
    from_alice(net, text("INVITE sips:bob@example.org SIP/2.0", VIA))
    net.run(0.1)
    (came,) = net.arrived(net.bob, "INVITE")
    assert [place(r.uri) for r in came.headers.record_route] == ["sips:192.0.2.1:5061;lr", "sip:192.0.2.1:5060;lr"]


def test_credentials_that_cannot_be_read_are_refused_and_leave_nothing() -> None:
    """What the application raises over a request is an answer, and no transaction for ever."""
    async def story() -> None:
        network = Network()
        digest = DigestAuthenticator("example.org", {"alice": "secret"}.get, tokens(3), proxy=True)
        decided: list[int] = []

        def handle(event: object, now: float) -> None:
            if isinstance(event, RequestToForward):
                digest.check(event.forwarding.request, now)
                event.forwarding.respond(404, now=now)
                decided.append(404)
                raise LocalProtocolError("what comes after the decision")

        proxy = SipProxy(token=tokens(1))
        endpoint = SipEndpoint(proxy, on_event=handle, clock=network.now, sockets=network.sockets)
        _, port = await endpoint.listen("udp", "192.0.2.77", 5060)
        alice = network.peer("sip:alice@example.org")
        for line, status in ((("Proxy-Authorization", "Digest ="), 400), (("Subject", "none"), 404)):
            alice.invite(f"sip:bob@192.0.2.77:{port}", headers=[line])
            alice.ack(await alice.expect(status))
        await asyncio.sleep(60.0)
        assert decided == [404] and not proxy._servers
        await endpoint.close()

    run(story())
