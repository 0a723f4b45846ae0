# SPDX-License-Identifier: Apache-2.0
"""Descriptions that change while a call is set up, stands, and refreshes itself (RFC 3264, 3261 14, 4028): each said to
the telephone word for word."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from mcptt_sip.headers import SessionExpires
from mcptt_sip.message import Request
from tests.sip.raw_peer import HOST, SDP, RawPeer, raw_peer
from tests.sip.telephones import Phone, telephone
from tests.sip.test_interop_faults import PCMA, RELIABLE, answered, called, calling, established

pytestmark = pytest.mark.network


def version(message: Any) -> int:
    """What o= counts."""
    line = next(line for line in message.body.decode().splitlines() if line.startswith("o="))
    return int(line.split()[2])


def line_of(phone: Phone, line: str) -> asyncio.Task[None]:
    return asyncio.ensure_future(phone.run_line(line))


async def test_an_update_of_one_branch_leaves_our_offer_to_the_other() -> None:
    """RFC 3261 13.2.1: every dialog of a fork has its own offer and answer."""
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 183, tag="a", body=SDP, headers=RELIABLE.format(1))
        peer.reply(await peer.request("PRACK"), 200)
        peer.ask("UPDATE", 1, of=invite, tag="a", body=PCMA)
        assert (await peer.final("UPDATE")).status == 200
        peer.reply(invite, 200, tag="b", body=SDP)
        await peer.request("ACK")
        assert (await phone.until("answered"))[0]["codec"] == "PCMU"


async def test_after_a_glare_our_offer_builds_on_the_peers_change() -> None:
    async with calling() as (phone, peer, invite):
        await established(peer, invite)
        await phone.until("answered")
        holding = line_of(phone, "hold")
        hold = await peer.request("INVITE")
        peer.reply(hold, 491)
        await peer.request("ACK")
        peer.ask("INVITE", 1, of=invite, body=PCMA)
        theirs = await peer.final("INVITE")
        peer.ask("ACK", 1, of=invite)
        again = await peer.request("INVITE", seconds=10.0)
        assert version(hold) < version(theirs) < version(again) and b"a=sendonly" in again.body
        peer.reply(again, 200, body=SDP.replace("a=sendrecv", "a=recvonly"))
        await asyncio.wait_for(holding, 5.0)
        assert phone.told("done") and not phone.told("error")


@pytest.mark.parametrize("offer", ["ours", "theirs"])
async def test_no_change_of_ours_before_the_ack_of_theirs(offer: str) -> None:
    """RFC 3261 14.1."""
    async with called() as (phone, peer):
        first = await answered(peer)
        await phone.until("answered")
        peer.ask("INVITE", 2, of=first, body=SDP if offer == "theirs" else "")
        await peer.final("INVITE")
        holding = line_of(phone, "hold")
        with pytest.raises(AssertionError, match="no INVITE"):
            await peer.request("INVITE", seconds=0.2)
        peer.ask("ACK", 2, of=first, body="" if offer == "theirs" else SDP)
        peer.reply(await peer.request("INVITE"), 200, body=SDP)
        await asyncio.wait_for(holding, 5.0)
        assert phone.told("done")


async def test_an_offer_that_was_answered_by_prack_has_no_second_answer() -> None:
    """RFC 3262 5."""
    async with calling(late_offer=True) as (phone, peer, invite):
        peer.reply(invite, 183, body=SDP, headers=RELIABLE.format(1))
        prack = await peer.request("PRACK")
        assert prack.body
        peer.reply(prack, 200)
        peer.reply(invite, 200, body=SDP)
        assert not (await peer.request("ACK")).body
        await phone.until("answered")


async def test_a_payload_type_keeps_its_meaning() -> None:
    """RFC 3264 8.3.2."""
    events = SDP.replace("AVP 0", "AVP 0 96") + "a=rtpmap:96 telephone-event/8000\r\n"
    async with called() as (phone, peer):
        peer.ask("INVITE", 1, body=events)
        first = await peer.final("INVITE")
        assert b"a=rtpmap:96 telephone-event/8000" in first.body
        peer.ask("ACK", 1, of=first)
        await phone.until("answered")
        holding = line_of(phone, "hold")
        hold = await peer.request("INVITE")
        assert b"a=rtpmap:96 telephone-event/8000" in hold.body and hold.body.count(b"rtpmap:96 ") == 1
        assert b"opus/48000/2" in hold.body and len(set(_numbers(hold))) == len(_numbers(hold))
        peer.reply(hold, 200, body=events)
        await asyncio.wait_for(holding, 5.0)


def _numbers(message: Request) -> list[bytes]:
    return [line.split()[0] for line in message.body.splitlines() if line.startswith(b"a=rtpmap:")]


# --- refreshes


SHORT = "Session-Expires: 90;refresher=uac\r\nRequire: timer\r\nAllow: INVITE, ACK, BYE\r\n"


def refresh_now(phone: Phone) -> None:
    """The clock in the hand: the refresh is due."""
    (call,) = phone.agent.calls
    session = call.session
    session._refresh(phone.agent.now())
    phone.agent.transmit()


async def test_the_answer_to_a_refresh_holds_like_any_other() -> None:
    async with calling() as (phone, peer, invite):
        await established(peer, invite, headers=SHORT)
        await phone.until("answered")
        refresh_now(phone)
        refresh = await peer.request("INVITE")
        assert refresh.body == invite.body
        peer.reply(refresh, 200, body=PCMA.replace("m=audio ", "m=audio 1"), headers=SHORT)
        await peer.request("ACK")
        (call,) = phone.agent.calls
        agreed = call.media.negotiation.agreed  # type: ignore[union-attr]
        assert agreed is not None and agreed.codec.name == "PCMA" and agreed.remote == (HOST, _port(PCMA, "1"))


def _port(sdp: str, before: str) -> int:
    return int(before + sdp.partition("m=audio ")[2].split()[0])


async def test_a_call_without_an_offer_is_refreshed_as_well() -> None:
    async with calling(late_offer=True) as (phone, peer, invite):
        peer.reply(invite, 200, body=SDP, headers=SHORT)
        ack = await peer.request("ACK")
        await phone.until("answered")
        refresh_now(phone)
        assert (await peer.request("INVITE")).body == ack.body


@pytest.mark.parametrize(("headers", "wait"), [("Retry-After: 7\r\n", 7.0), ("", 2.0)])
async def test_a_refresh_that_failed_for_now_is_tried_again(headers: str, wait: float) -> None:
    async with calling() as (phone, peer, invite):
        await established(peer, invite, headers=SHORT)
        await phone.until("answered")
        (call,) = phone.agent.calls
        refresh_now(phone)
        at = phone.agent.now()
        peer.reply(await peer.request("INVITE"), 503, headers=headers)
        await peer.request("ACK")
        due = call.session.next_timer()
        assert due is not None and abs(due - at - wait) < 1.0 and not call.ended.is_set()


async def test_an_interval_that_is_too_small_is_not_raised_for_ever() -> None:
    async with calling() as (phone, peer, invite):
        tries = 0
        while not phone.told("call-failed"):
            tries += 1
            asked = invite.headers.session_expires
            assert asked is not None and tries < 20
            peer.reply(invite, 422, headers=f"Min-SE: {asked.seconds + 1}\r\n")
            await peer.request("ACK")
            more = asyncio.ensure_future(peer.request("INVITE"))
            failed = asyncio.ensure_future(phone.until("call-failed"))
            await asyncio.wait((more, failed), return_when=asyncio.FIRST_COMPLETED)
            if more.done():
                invite = more.result()
            for task in (more, failed):
                task.cancel()
        assert phone.told("call-failed")[0]["status"] == 422


def test_a_refresher_that_is_nobody_is_none() -> None:
    assert SessionExpires.parse("1800;refresher=UAS").refresher == "uas"
    assert SessionExpires.parse("1800;refresher=foo") == SessionExpires(1800)


# --- small ones


async def test_a_proxy_that_is_named_by_305_is_no_other_callee() -> None:
    async with calling() as (phone, peer, invite), raw_peer() as other:
        peer.reply(invite, 305, contact=other.uri)
        assert (await phone.until("call-failed"))[0]["status"] == 305 and not other.heard


@pytest.mark.parametrize("kind", ["text", "text/", ";"])
async def test_a_message_whose_type_cannot_be_read_is_400(kind: str) -> None:
    async with called() as (_, peer):
        peer.ask("MESSAGE", 1, body="hello", kind=kind)
        assert (await peer.final("MESSAGE")).status == 400


async def test_a_digit_that_no_telephone_has_is_an_error_and_sent_nowhere() -> None:
    async with called() as (phone, peer):
        await answered(peer)
        await phone.until("answered")
        await phone.run_line("digits 12Z")
        assert "Z" in phone.told("error")[0]["reason"]
        assert not any(isinstance(message, Request) for message in peer.heard)


async def test_a_name_in_a_description_is_looked_up_beside_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4566 5.7. Nothing else waits for the name service, and the peer's packets are his."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
    real = loop.getaddrinfo

    async def look_up(host: Any, port: Any, **more: Any) -> Any:
        if host != "media.example.org":
            return await real(host, port, **more)
        waiting: asyncio.Future[Any] = loop.create_future()
        asked.put_nowait(waiting)
        return await waiting

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
        theirs.bind((HOST, 0))
        theirs.setblocking(False)
        port = theirs.getsockname()[1]
        sdp = SDP.replace(f"c=IN IP4 {HOST}", "c=IN IP4 media.example.org").replace(
            SDP.partition("m=audio ")[2].split()[0], str(port)
        )
        async with called(echo=True) as (phone, peer):
            first = await answered_with(peer, sdp)
            await phone.until("answered")
            found = await asyncio.wait_for(asked.get(), 5.0)
            ours = int(first.body.decode().partition("m=audio ")[2].split()[0])
            packet = b"\x80\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x07" + b"\xff" * 160
            theirs.sendto(packet, (HOST, ours))
            peer.ask("OPTIONS", 5, of=first)
            assert (await peer.final("OPTIONS")).status == 200, "the telephone lives"
            found.set_result([(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (HOST, 0))])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            theirs.sendto(packet, (HOST, ours))
            assert (await asyncio.wait_for(loop.sock_recv(theirs, 2000), 5.0))[12:] == packet[12:], "the echo"
            (call,) = phone.agent.calls
            assert call.media is not None and call.media.counters["received"] == 1


async def answered_with(peer: RawPeer, sdp: str) -> Any:
    peer.ask("INVITE", 1, body=sdp)
    response = await peer.final("INVITE")
    peer.ask("ACK", 1, of=response)
    return response


async def test_a_name_that_nobody_knows_is_no_reason_to_stop() -> None:
    async with telephone() as phone, raw_peer(phone.port) as peer:
        first = await answered_with(peer, SDP.replace(f"c=IN IP4 {HOST}", "c=IN IP4 nobody.invalid"))
        assert first.status == 200
        await phone.until("answered")
        await phone.run_line("hangup")
        await phone.until("ended")
