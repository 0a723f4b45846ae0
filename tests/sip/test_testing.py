# SPDX-License-Identifier: Apache-2.0
"""What `mcptt_sip.testing` gives to the tests of applications; with it, the user agent without a network."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from mcptt_sip.call import Call
from mcptt_sip.endpoint import SipEndpoint
from mcptt_sip.errors import CallFailed, LocalProtocolError, ParseError, RequestTimeout
from mcptt_sip.incoming import RequestReceived, ServerRequest
from mcptt_sip.outgoing import Cause
from mcptt_sip.services import StackSettings
from mcptt_sip.stack import SipStack
from mcptt_sip.testing import Network, run, tokens

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n"
BODY = ("application/sdp", SDP)


async def three_rings(call: Call) -> None:
    """A handler as an application would write it."""
    await call.ring()
    await asyncio.sleep(9.0)
    await call.accept(body=BODY)


def test_a_handler_is_tested_with_a_scripted_peer_and_no_waiting() -> None:
    async def story() -> None:
        network = Network()
        async with network.user_agent("sip:machine@example.org") as agent:
            agent.on_call(three_rings)
            alice = network.peer("sip:alice@example.org")
            alice.invite(agent, body=SDP)
            await alice.expect(180)
            answer = await alice.expect(200)
            assert 9.0 <= network.now() < 10.0 and answer.body == SDP
            alice.ack(answer)
            alice.send("BYE")
            await alice.expect(200)
            assert not agent.calls or all(call.session.ended for call in agent.calls)

    run(story())


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_phone_may_ring_for_an_hour(transport: str) -> None:
    async def story() -> None:
        network = Network()
        async with (
            network.user_agent("sip:alice@example.org", transport=transport) as alice,
            network.user_agent("sip:bob@example.org", transport=transport) as bob,
        ):
            async def answer(call: Call) -> None:
                await call.ring()
                await asyncio.sleep(3600.0)
                await call.accept(body=BODY)

            bob.on_call(answer)
            host, port = bob.addresses[0][1:]
            call = await alice.call(f"sip:bob@{host}:{port};transport={transport}", body=BODY)
            assert network.now() >= 3600.0
            await call.hang_up()

    run(story())


def test_two_user_agents_talk_over_a_network_that_loses_a_third() -> None:
    async def story() -> None:
        network = Network(loss=0.33, seed=7)
        async with (
            network.user_agent("sip:alice@example.org") as alice,
            network.user_agent("sip:bob@example.org") as bob,
        ):
            bob.on_call(three_rings)
            for _ in range(20):
                call = await alice.call(_at(bob), body=BODY)
                await call.hang_up()
                await call.ended.wait()

    run(story())


def _at(agent: Any) -> str:
    _, host, port = agent.addresses[0]
    return f"sip:x@{host}:{port}"


def test_what_is_not_answered_in_time_is_cancelled() -> None:
    async def story() -> None:
        network = Network()
        bob = network.peer("sip:bob@example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            calling = asyncio.ensure_future(alice.call(bob.contact, body=BODY, timeout=20.0))
            invite = await bob.expect("INVITE")
            bob.respond(invite, 180)
            cancel = await bob.expect("CANCEL")
            assert 20.0 <= network.now() < 21.0
            bob.respond(cancel, 200)
            bob.respond(invite, 487)
            await bob.expect("ACK")
            with pytest.raises(CallFailed, match="in time"):
                await calling

    run(story())


def test_silence_is_a_timeout_after_64_t1() -> None:
    async def story() -> None:
        network = Network()
        bob = network.peer("sip:bob@example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            with pytest.raises(RequestTimeout):
                await alice.request("OPTIONS", bob.contact)
            assert 32.0 <= network.now() < 33.0
            with pytest.raises(CallFailed):
                await alice.call(bob.contact, body=BODY)

    run(story())


def test_a_handler_that_fails_refuses_its_call_and_one_that_does_nothing_too() -> None:
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org") as bob:
            async def broken(call: Call) -> None:
                raise ZeroDivisionError

            async def idle(call: Call) -> None:
                pass

            for handler, status in ((broken, 500), (idle, 480)):
                bob.on_call(handler)
                alice.invite(bob)
                alice.ack(await alice.expect(status))

    run(story())


def test_a_call_without_a_handler_is_unavailable_and_requests_are_answered() -> None:
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org") as bob:
            said: list[bytes] = []

            @bob.on_message
            async def message(incoming: ServerRequest) -> None:
                said.append(incoming.request.body)

            alice.invite(bob)
            alice.ack(await alice.expect(480))
            alice.send("MESSAGE", bob, body=b"hello", headers=[("Content-Type", "text/plain")])
            await alice.expect(200)
            alice.send("SUBSCRIBE", bob, headers=[("Event", "presence")])
            await alice.expect(489)
            alice.send("PUBLISH", bob, headers=[("Event", "presence")])
            await alice.expect(405)
            assert said == [b"hello"]

    run(story())


def test_a_cancelled_call_is_told_to_its_handler() -> None:
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org") as bob:
            causes: list[Cause | None] = []

            @bob.on_call
            async def ring(call: Call) -> None:
                await call.ring()
                await call.ended.wait()
                causes.append(call.cause)

            alice.invite(bob)
            await alice.expect(180)
            alice.cancel()
            await alice.expect(200)
            alice.ack(await alice.expect(487))
            await asyncio.sleep(1.0)
            assert causes == [Cause.CANCELLED]

    run(story())


def test_a_subscription_is_an_iterator_of_its_notifications() -> None:
    async def story() -> None:
        network = Network()
        bob = network.peer("sip:bob@example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            watch = alice.subscribe(bob.contact, "presence", expires=600)
            subscribe = await bob.expect("SUBSCRIBE")
            bob.respond(subscribe, 200, headers=[("Expires", "600")], tag="b")
            assert (await watch.accepted()).status == 200
            bob._dialog = {
                "call_id": subscribe.headers.call_id, "local": f"{subscribe.headers.to};tag=b",
                "remote": str(subscribe.headers.from_), "target": str(subscribe.headers.contact[0].uri),
            }  # fmt: skip
            for number, state in enumerate(("active;expires=600", "terminated;reason=noresource")):
                lines = [("Event", "presence"), ("Subscription-State", state), ("Content-Type", "text/plain")]
                bob.send("NOTIFY", headers=lines, body=b"%d" % number)
                await bob.expect(200)
            assert [request.body async for request in watch] == [b"0", b"1"]

    run(story())


def test_an_attended_transfer_replaces_the_call() -> None:
    async def story() -> None:
        network = Network()
        async with (
            network.user_agent("sip:alice@example.org") as alice,
            network.user_agent("sip:bob@example.org") as bob,
            network.user_agent("sip:carol@example.org") as carol,
        ):
            ends: list[tuple[str, Cause | None]] = []
            for name, agent in (("bob", bob), ("carol", carol)):
                async def take(call: Call, name: str = name) -> None:
                    await call.accept(body=BODY)
                    await call.ended.wait()
                    ends.append((name, call.cause))

                agent.on_call(take)
            first = await alice.call(_at(bob), body=BODY)
            second = await alice.call(_at(carol), body=BODY)
            assert await first.transfer(second) == 200
            await first.hang_up()
            await second.ended.wait()
            await asyncio.sleep(1.0)
            assert ("carol", Cause.REPLACED) in ends and ("bob", Cause.REMOTE_BYE) in ends
            assert [call.established for call in bob.calls] == [True], "Bob and Carol are in a call"

    run(story())


def test_waiting_for_what_never_comes_is_an_error_and_no_hang() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        run(story())


def test_an_unexpected_message_says_what_was_on_the_wire() -> None:
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org") as bob:
            alice.invite(bob)
            with pytest.raises(AssertionError, match=r"480.*INVITE"):
                await alice.expect(200)
            alice.nothing()
            with pytest.raises(AssertionError, match="no BYE came"):
                await alice.expect("BYE", timeout=100.0)

    run(story())


def test_a_service_route_is_taken_by_every_later_request() -> None:
    """RFC 3608."""

    async def story() -> None:
        network = Network()
        server = network.peer("sip:example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            registering = asyncio.ensure_future(alice.register(server.contact, expires=600))
            register = await server.expect("REGISTER")
            route = f"<{server.contact};lr>"
            server.respond(register, 200, headers=[("Service-Route", route), ("Expires", "600")])
            registration = await registering
            assert registration.service_route == (route,)
            asking = asyncio.ensure_future(alice.request("OPTIONS", "sip:bob@example.net"))
            request = await server.expect("OPTIONS")
            assert request.headers.get("route") == route and str(request.uri) == "sip:bob@example.net"
            server.respond(request, 200)
            assert (await asking).status == 200
            closing = asyncio.ensure_future(registration.close())
            server.respond(await server.expect("REGISTER"), 200)
            await closing

    run(story())


def test_a_registration_is_refreshed_before_it_ends_and_tried_again_when_it_failed() -> None:
    async def story() -> None:
        network = Network()
        server = network.peer("sip:example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            registering = asyncio.ensure_future(alice.register(server.contact, expires=600))
            server.respond(await server.expect("REGISTER"), 200, headers=[("Expires", "600")])
            registration = await registering
            changes: list[bool] = []
            registration.on_change = lambda registered, _response: changes.append(registered)
            first = network.now()
            second = await server.expect("REGISTER", timeout=700.0)
            assert network.now() - first < 600.0
            server.respond(second, 503)
            third = await server.expect("REGISTER", timeout=700.0)
            assert third.headers.call_id == second.headers.call_id
            assert third.headers.cseq.number > second.headers.cseq.number
            server.respond(third, 200, headers=[("Expires", "600")])
            await asyncio.sleep(1.0)
            assert changes == [False, True]
            closing = asyncio.ensure_future(registration.close())
            last = await server.expect("REGISTER")
            assert last.headers.get("expires") == "0"
            server.respond(last, 200)
            await closing

    run(story())


def test_published_state_is_kept_alive_changed_restored_and_removed() -> None:
    """RFC 3903."""

    async def story() -> None:
        network = Network()
        agent = network.peer("sip:presence@example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            publishing = asyncio.ensure_future(alice.publish(agent.contact, "presence", b"here", "text/plain"))

            async def answer(tag: str | None, status: int = 200) -> Any:
                request = await agent.expect("PUBLISH", timeout=4000.0)
                lines = [("SIP-ETag", tag), ("Expires", "1000")] if tag else []
                agent.respond(request, status, headers=lines)
                return request

            first = await answer("a")
            assert first.body == b"here" and "sip-if-match" not in first.headers
            publication = await publishing
            refresh = await answer("b")
            assert refresh.body == b"" and refresh.headers.get("sip-if-match") == "a" and network.now() < 1000.0
            changing = asyncio.ensure_future(publication.modify(b"away"))
            change = await answer("c")
            assert change.body == b"away" and change.headers.get("sip-if-match") == "b"
            await changing
            lost = await answer(None, 412)  # the agent has forgotten
            assert lost.headers.get("sip-if-match") == "c"
            again = await answer("d")
            assert again.body == b"away" and "sip-if-match" not in again.headers
            closing = asyncio.ensure_future(publication.close())
            removal = await answer("e")
            assert removal.headers.get("expires") == "0" and removal.headers.get("sip-if-match") == "d"
            await closing

    run(story())


def test_a_registrar_that_has_died_does_not_keep_the_agent_from_closing() -> None:
    async def story() -> None:
        network = Network()
        server = network.peer("sip:example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            registering = asyncio.ensure_future(alice.register(server.contact, expires=600))
            server.respond(await server.expect("REGISTER"), 200, headers=[("Expires", "600")])
            await registering
            began = network.now()
        assert network.now() - began < 5.0

    run(story())


def test_a_call_that_is_over_is_freed_without_the_collector() -> None:
    async def story() -> None:
        network = Network()
        async with (
            network.user_agent("sip:alice@example.org") as alice,
            network.user_agent("sip:bob@example.org") as bob,
        ):
            kept: list[weakref.ref[Call]] = []

            @bob.on_call
            async def take(call: Call) -> None:
                kept.append(weakref.ref(call))
                call.on_hold = lambda held: call.ended.set() if held else None  # a circle, as applications make them
                await call.accept(body=BODY)

            for _ in range(5):
                call = await alice.call(_at(bob), body=BODY)
                kept.append(weakref.ref(call))
                await call.hang_up()
                await call.ended.wait()
                del call
            await asyncio.sleep(70.0)  # the transactions' timers
            assert [ref() for ref in kept] == [None] * 10

    gc.disable()
    try:
        run(story())
    finally:
        gc.enable()


def test_options_in_a_call_say_that_it_stands() -> None:
    """11.2: in a dialog the answer is the same; SBCs ask so every few seconds, and end a call whose end says 405."""
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org") as bob:
            @bob.on_call
            async def take(call: Call) -> None:
                await call.accept(body=BODY)
                await call.ended.wait()

            alice.invite(bob, body=SDP)
            alice.ack(await alice.expect(200))
            alice.send("OPTIONS")
            answer = await alice.expect(200)
            assert "OPTIONS" in answer.headers.allow and answer.headers.cseq.method == "OPTIONS"
            alice.send("BYE")
            await alice.expect(200)
            alice.send("OPTIONS")
            await alice.expect(481)

    run(story())


def test_a_handler_may_answer_and_hang_up_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """15: the BYE waits for the ACK; the handler is over before that, and so may be the user agent."""
    async def story(close: bool) -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org") as bob:
            @bob.on_call
            async def brief(call: Call) -> None:
                await call.accept(body=BODY)
                await call.hang_up()
                await call.hang_up()

            alice.invite(bob, body=SDP)
            answer = await alice.expect(200)
            closing = asyncio.ensure_future(bob.close()) if close else None
            await asyncio.sleep(0.1)
            alice.ack(answer)
            alice.respond(await alice.expect("BYE"), 200)
            if closing is not None:
                await closing

    for close in (False, True):
        run(story(close))
    gc.collect()
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("rings", [False, True])
def test_hanging_up_twice_is_hanging_up(rings: bool) -> None:
    async def story() -> None:
        network = Network()
        bob = network.peer("sip:bob@example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            call = await alice.dial(bob.contact, body=BODY)
            invite = await bob.expect("INVITE")
            if rings:
                bob.respond(invite, 180)
                await asyncio.sleep(0.1)
            await call.hang_up()
            await call.hang_up()

    run(story())


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (200, [("Content-Type", "multipart/mixed")]), (200, [("Contact", "no address <")]), (302, [("Contact", "<")]),
        (200, [("Record-Route", "nowhere"), ("Contact", "<sip:bob@192.0.2.9>")]), (200, [("Session-Expires", "soon")]),
        (200, [("Allow", "a b")]), (422, [("Min-SE", "much")]), (401, [("WWW-Authenticate", "Digest =")]),
    ],
)  # fmt: skip
def test_an_answer_with_a_part_that_cannot_be_read_is_an_answer(status: int, lines: list[tuple[str, str]]) -> None:
    """Else its caller would wait for ever: the transaction is over, and so nothing else will come."""
    async def story() -> None:
        network = Network()
        bob = network.peer("sip:bob@example.org")
        async with network.user_agent("sip:alice@example.org", audio=lines[0][0] == "Content-Type") as alice:
            body = None if alice.audio else BODY
            calling = asyncio.ensure_future(alice.call(bob.contact, body=body))
            invite = await bob.expect("INVITE")
            bob.respond(invite, status, headers=lines, body=b"x", tag="b")
            await bob.expect("ACK")
            if status == 200 and not alice.audio:
                await (await calling).hang_up()
            else:
                with pytest.raises(CallFailed):
                    await calling

    run(story())


@pytest.mark.parametrize(
    "line",
    [("Record-Route", "nowhere"), ("Allow", "a b"), ("Min-SE", "much"), ("Supported", "a b"), ("Contact", "<")],
)  # fmt: skip
def test_a_call_with_a_part_that_cannot_be_read_is_400_before_anybody_hears_of_it(line: tuple[str, str]) -> None:
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org") as bob:
            bob.on_call(three_rings)
            alice.invite(bob, body=SDP, headers=[line])
            alice.ack(await alice.expect(400))
            assert not bob.calls

    run(story())


def test_a_transfer_waits_for_a_status_and_goes_to_a_uri_only() -> None:
    async def story() -> None:
        network = Network()
        bob = network.peer("sip:bob@example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            calling = asyncio.ensure_future(alice.call(bob.contact, body=BODY))
            invite = await bob.expect("INVITE")
            bob.respond(invite, 200, body=SDP, tag="b", headers=[("Content-Type", "application/sdp")])
            await bob.expect("ACK")
            call = await calling
            with pytest.raises(ParseError):
                await call.transfer("no uri at all")
            transferring = asyncio.ensure_future(call.transfer("sip:carol@example.org"))
            bob.respond(await bob.expect("REFER"), 202)
            bob._dialog = {
                "call_id": call.id, "local": f"{invite.headers.to};tag=b", "remote": str(invite.headers.from_),
                "target": str(invite.headers.contact[0].uri),
            }  # fmt: skip
            for body in (b"", b"nothing of a status", b"SIP/2.0 100 Trying", b"SIP/2.0 486 Busy Here"):
                state = "terminated;reason=noresource" if b"486" in body else "active;expires=60"
                lines = [("Event", "refer"), ("Subscription-State", state), ("Content-Type", "message/sipfrag")]
                bob.send("NOTIFY", headers=lines, body=body)
                await bob.expect(200)
            assert await transferring == 486

    run(story())


def test_a_refer_that_cannot_be_read_is_answered_and_leaves_nothing() -> None:
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        async with network.user_agent("sip:bob@example.org", follow_refers="all") as bob:
            alice.send("REFER", bob, headers=[("Refer-To", "<sip:carol@example.org>"), ("Event", ";")])
            await alice.expect(400)
            await asyncio.sleep(60.0)
            assert not bob.stack._servers

    run(story())


def test_a_request_over_which_the_application_raises_is_refused() -> None:
    async def story() -> None:
        network = Network()
        alice = network.peer("sip:alice@example.org")
        stack = SipStack(StackSettings(), token=tokens(1))

        def handle(event: object, now: float) -> None:
            if isinstance(event, RequestReceived):
                _ = event.incoming.request.headers.p_asserted_identity
                event.incoming.respond(200, now=now)
                raise LocalProtocolError("what comes after the answer")

        endpoint = SipEndpoint(stack, on_event=handle, clock=network.now, sockets=network.sockets)
        _, port = await endpoint.listen("udp", "192.0.2.77", 5060)
        for headers, status in (([("P-Asserted-Identity", "<")], 400), ([], 200)):
            alice.send("MESSAGE", f"sip:bob@192.0.2.77:{port}", headers=headers)
            await alice.expect(status)
        await asyncio.sleep(60.0)
        assert not stack._servers
        await endpoint.close()

    run(story())
