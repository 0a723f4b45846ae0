# SPDX-License-Identifier: Apache-2.0
"""REFERs whose outcome is subscribed to in a dialog of its own (RFC 7614), or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mcptt_sip.call import Call
from mcptt_sip.errors import CallFailed, ParseError
from mcptt_sip.field_lines import Headers
from mcptt_sip.message import Request
from mcptt_sip.testing import Network, ScriptedPeer, run
from mcptt_sip.useragent import UserAgent
from tests.sip.test_testing import BODY, SDP, _at

EXPLICIT = ("Require", "explicitsub")


async def take(call: Call) -> None:
    await call.accept(body=BODY)
    await call.ended.wait()


async def told(peer: ScriptedPeer) -> tuple[str, bytes]:
    """The next NOTIFY, answered: its state and its body."""
    request = await peer.expect("NOTIFY", skip=(100, 200))
    peer.respond(request, 200)
    assert request.headers.event.package == "refer"
    return str(request.headers.get("subscription-state")), request.body


def test_a_transfer_is_followed_in_a_dialog_of_its_own() -> None:
    async def story() -> None:
        network = Network()
        async with (
            network.user_agent("sip:alice@example.org") as alice,
            network.user_agent("sip:bob@example.org") as bob,
            network.user_agent("sip:carol@example.org") as carol,
        ):
            bob.on_call(take)
            carol.on_call(take)
            call = await alice.call(_at(bob), body=BODY)
            assert await call.transfer(_at(carol), explicit=True) == 200
            assert call.established and not call.session.dialog.subscriptions  # type: ignore[union-attr]
            carol.on_call(lambda call: call.reject(486))
            assert await call.transfer(_at(carol), explicit=True) == 486
            await call.hang_up()
            await asyncio.sleep(200.0)
            assert not alice.stack._dialogs and not bob._referrals, "nothing is left"

    run(story())


def test_whoever_does_not_understand_it_refuses() -> None:
    async def story() -> None:
        network = Network()
        bob = network.peer("sip:bob@example.org")
        async with network.user_agent("sip:alice@example.org") as alice:
            calling = asyncio.ensure_future(alice.call(bob.contact, body=BODY))
            bob.respond(await bob.expect("INVITE"), 200, body=SDP)
            await bob.expect("ACK")
            call = await calling
            for status, headers in ((420, [("Unsupported", "explicitsub")]), (200, [])):
                transferring = asyncio.ensure_future(call.transfer("sip:carol@example.org", explicit=True))
                refer = await bob.expect("REFER")
                assert refer.headers.require == ["explicitsub"]
                bob.respond(refer, status, headers=headers)
                if status == 420:
                    with pytest.raises(CallFailed):
                        await transferring
            with pytest.raises(CallFailed, match="Refer-Events-At"):
                await transferring
            assert call.established

    run(story())


async def referred(alice: ScriptedPeer, bob: UserAgent, target: str) -> str:
    """The URI of the events of a REFER outside any dialog."""
    alice.send("REFER", bob, headers=[("Refer-To", f"<{target}>"), EXPLICIT])
    answer = await alice.expect(200)
    assert answer.headers.require == ["explicitsub"] and answer.headers.get("refer-events-at").startswith("<sip:")
    return str(answer.headers.refer_events_at.uri)


def test_the_outcome_is_told_to_all_who_know_where_and_for_a_while_after_the_end() -> None:
    async def story() -> None:
        network = Network()
        alice, carol = network.peer("sip:alice@example.org"), network.peer("sip:carol@example.org")
        second = network.peer("sip:dave@example.org")
        async with network.user_agent("sip:bob@example.org", follow_refers="all") as bob:
            events = await referred(alice, bob, carol.contact)
            invite = await carol.expect("INVITE")
            for watcher in (alice, second):
                watcher.send("SUBSCRIBE", events, headers=[("Event", "refer"), ("Expires", 60)])
                await watcher.expect(200)
                state, body = await told(watcher)
                assert state.startswith("active") and body == b"SIP/2.0 100 Trying\r\n"
            carol.respond(invite, 180)
            for watcher in (alice, second):
                assert (await told(watcher))[1] == b"SIP/2.0 180 Ringing\r\n"
            carol.respond(invite, 486)
            for watcher in (alice, second):
                assert await told(watcher) == ("terminated;reason=noresource", b"SIP/2.0 486 Busy Here\r\n")
            await asyncio.sleep(60.0)
            alice.send("SUBSCRIBE", events, headers=[("Event", "refer")])
            await alice.expect(200)
            assert await told(alice) == ("terminated;reason=noresource", b"SIP/2.0 486 Busy Here\r\n")
            await asyncio.sleep(10.0)
            alice.send("SUBSCRIBE", events, headers=[("Event", "refer")])
            await alice.expect(489)
            await asyncio.sleep(100.0)
            assert not bob._referrals and not bob.stack._dialogs and not bob.stack._servers

    run(story())


def test_nobody_asks_for_what_he_does_not_know() -> None:
    async def story() -> None:
        network = Network()
        alice, carol = network.peer("sip:alice@example.org"), network.peer("sip:carol@example.org")
        async with network.user_agent("sip:bob@example.org", follow_refers="all") as bob:
            one, other = [await referred(alice, bob, carol.contact) for _ in range(2)]
            assert one != other and len(one.partition("@")[0]) >= len("sip:") + 32
            guesses: list[tuple[str, str]] = [
                (str(bob.identity.uri), "refer"), (one.replace("sip:", "sip:0", 1), "refer"), (one, "presence"),
            ]  # fmt: skip
            way = one.partition("@")[2]
            for uri, event in guesses:
                target = f"{uri.partition('@')[0]}@{way}"
                alice.send("SUBSCRIBE", target, headers=[("Event", event)])
                await alice.expect(489)
            alice.send("REFER", bob, headers=[("Refer-To", "<tel:110>"), EXPLICIT])
            await alice.expect(416)
            assert len(bob._referrals) == 2
            for number in range(17):  # one REFER has a limited number of listeners
                alice.send("SUBSCRIBE", one, headers=[("Event", "refer")])
                await alice.expect(200 if number < 16 else 480, skip=(100, "NOTIFY"))

    run(story())


@pytest.mark.parametrize("tag", ["nosub", "explicitsub"])
def test_who_wants_no_subscription_in_the_dialog_gets_none(tag: str) -> None:
    """No NOTIFY comes, and none is waited for."""

    async def story() -> None:
        network = Network()
        async with (
            network.user_agent("sip:alice@example.org") as alice,
            network.user_agent("sip:bob@example.org") as bob,
        ):
            bob.on_call(take)
            call = await alice.call(_at(bob), body=BODY)
            lines: list[tuple[str, Any]] = [("Refer-To", "<sip:nobody@192.0.2.250>"), ("Require", tag)]
            sent = call.session.send("REFER", headers=lines, now=network.now())
            alice.transmit()
            await asyncio.sleep(1.0)
            assert sent.response is not None and sent.response.status == 200
            assert not call.session.dialog.subscriptions and "NOTIFY" not in " ".join(network.said())  # type: ignore[union-attr]
            await call.hang_up()

    run(story())


def test_the_header_has_angle_brackets() -> None:
    assert Headers().refer_events_at is None
    good = Headers([("Refer-Events-At", "<sips:vPT3@example.com;gr>")])
    assert str(good.refer_events_at.uri) == "sips:vPT3@example.com;gr"  # type: ignore[union-attr]
    for wrong in ("sip:wsXa9@example.com", "", "<>"):
        with pytest.raises(ParseError):
            _ = Headers([("Refer-Events-At", wrong)]).refer_events_at


def test_a_request_is_no_answer() -> None:
    """RFC 7614 4.8: the header means nothing elsewhere."""
    request = Request("REFER", "sip:a@b", [("Refer-Events-At", "<sip:x@y>")])
    assert request.headers.refer_events_at is not None  # read, and used by nobody
