# SPDX-License-Identifier: Apache-2.0
"""What a hard-nosed peer found wrong once: each said to the telephone word for word, and judged by the RFC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mcptt_sip.message import Request, Response
from tests.sip.raw_peer import HOST, SDP, RawPeer, raw_peer
from tests.sip.telephones import Phone, telephone

pytestmark = pytest.mark.network

G729 = SDP.replace("AVP 0", "AVP 18")
PCMA = SDP.replace("AVP 0", "AVP 8")
RELIABLE = "Require: 100rel\r\nRSeq: {}\r\n"


@asynccontextmanager
async def called(**options: object) -> AsyncIterator[tuple[Phone, RawPeer]]:
    """A telephone that waits for calls, and who calls it."""
    async with telephone(**options) as phone, raw_peer(phone.port) as peer:  # type: ignore[arg-type]
        yield phone, peer


@asynccontextmanager
async def calling(**options: object) -> AsyncIterator[tuple[Phone, RawPeer, Request]]:
    """A telephone that calls the peer, and its INVITE."""
    async with raw_peer() as peer, telephone(**options) as phone:  # type: ignore[arg-type]
        task = asyncio.ensure_future(phone.place(peer.uri))
        try:
            yield phone, peer, await peer.request("INVITE")
        finally:
            task.cancel()


async def established(peer: RawPeer, invite: Request, **answer: str) -> None:
    """The peer answers the telephone's INVITE."""
    peer.reply(invite, 200, body=SDP, **answer)  # type: ignore[arg-type]
    await peer.request("ACK")


async def answered(peer: RawPeer, **invite: str) -> Response:
    """The peer's INVITE is answered, and its ACK sent."""
    peer.ask("INVITE", 1, body=SDP, **invite)  # type: ignore[arg-type]
    response = await peer.final("INVITE")
    assert response.status == 200
    peer.ask("ACK", 1, of=response)
    return response


# --- headers


@pytest.mark.parametrize("asks", [";rport", ""])
async def test_every_via_of_one_line_comes_back(asks: str) -> None:
    """RFC 3261 8.2.6.2."""
    async with called() as (_, peer):
        others = ", SIP/2.0/TCP first.example;branch=z9hG4bKfirst, SIP/2.0/UDP zero.example"
        peer.ask("OPTIONS", 1, via=f"{asks}{others}")
        vias = (await peer.final("OPTIONS")).headers.via
        assert [via.host for via in vias] == [HOST, "first.example", "zero.example"]
        peer.send(
            f"OPTIONS sip:ua@{HOST} SIP/2.0\r\nVia: SIP/2.0/UDP private.example:{peer.port};branch=z9hG4bKq{others}\r\n"
            f"From: <{peer.uri}>;tag=1\r\nTo: <sip:ua@{HOST}>\r\nCall-ID: 2\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\n"
            "Content-Length: 0\r\n\r\n"
        )
        first, *below = (await peer.final("OPTIONS")).headers.via
        assert first.received == HOST and [via.host for via in below] == ["first.example", "zero.example"]


async def test_option_tags_have_no_case() -> None:
    """RFC 3261 7.3.1."""
    async with called() as (_, peer):
        peer.ask("OPTIONS", 1, headers="Require: Timer, 100REL\r\n")
        assert (await peer.final("OPTIONS")).status == 200
        peer.ask("INVITE", 2, body=SDP, call_id="2", headers="Supported: TIMER\r\nSession-Expires: 20\r\n")
        assert (await peer.final("INVITE")).status == 422
        peer.ask("OPTIONS", 3, headers="Require: Unheard-Of\r\n")
        refused = await peer.final("OPTIONS")
        assert refused.status == 420 and refused.headers.unsupported == ["Unheard-Of"]


@pytest.mark.parametrize("method", ["OPTIONS", "MESSAGE"])
async def test_replaces_is_for_invite(method: str) -> None:
    """RFC 3891 3."""
    async with called() as (_, peer):
        peer.ask(method, 1, headers="Replaces: 1;to-tag=2;from-tag=3\r\n")
        assert (await peer.final(method)).status == 400


async def test_a_cancel_finds_any_request_and_ends_none_but_an_invite() -> None:
    """RFC 3261 9.2."""
    async with called() as (_, peer):
        peer.ask("OPTIONS", 1, branch="z9hG4bKsame")
        await peer.final("OPTIONS")
        peer.ask("CANCEL", 1, branch="z9hG4bKsame")
        assert (await peer.final("CANCEL")).status == 200
        peer.ask("CANCEL", 1, branch="z9hG4bKother")
        assert (await peer.final("CANCEL")).status == 481


async def test_an_invitation_that_is_over_at_once_does_not_ring() -> None:
    """RFC 3261 13.3.1."""
    async with called(ring=True) as (phone, peer):
        peer.ask("INVITE", 1, body=SDP, headers="Expires: 0\r\n")
        assert (await peer.final("INVITE")).status == 487
        await phone.until("ended")


async def test_a_part_that_has_to_be_understood_and_is_not_is_415() -> None:
    """RFC 5621 8.4."""
    async with called() as (_, peer):
        for handling, status in (("required", 415), ("optional", 200)):
            body = (
                f"--b\r\nContent-Type: application/sdp\r\n\r\n{SDP}\r\n--b\r\nContent-Type: application/x-strange\r\n"
                f"Content-Disposition: render; handling={handling}\r\n\r\nx\r\n--b--\r\n"
            )
            peer.ask("INVITE", 1, call_id=handling, body=body, kind="multipart/mixed;boundary=b")
            assert (await peer.final("INVITE")).status == status


async def test_what_has_no_place_in_a_request_uri_does_not_stand_there() -> None:
    """RFC 3261 19.1.1 table 1, 19.1.5."""
    async with raw_peer() as peer, telephone() as phone:
        asking = asyncio.ensure_future(
            phone.place(f"{peer.uri};transport=udp;method=INVITE?Subject=Hi%20there&From=sip:x%40y&Route=%3Csip:z%3E")
        )
        invite = await peer.request("INVITE")
        assert str(invite.uri) == f"{peer.uri};transport=udp" == str(invite.headers.to.uri)
        assert invite.headers.get("subject") == "Hi there" and "route" not in invite.headers
        assert len(invite.headers.get_all("from")) == 1 and invite.headers.from_.uri != "sip:x@y"
        asking.cancel()


async def test_an_answer_with_another_via_below_is_for_somebody_else() -> None:
    """RFC 3261 8.1.3.3."""
    async with calling() as (phone, peer, invite):
        invite.headers.add("Via", "SIP/2.0/UDP other.example;branch=z9hG4bKo")
        peer.reply(invite, 486)
        invite.headers.set("Via", invite.headers.get_all("via")[0])
        peer.reply(invite, 180)
        await phone.until("progress")
        assert not phone.told("call-failed")


# --- who is quicker


async def test_a_cancel_right_behind_its_invite_ends_the_call_and_nothing_else() -> None:
    async with called(once=True) as (phone, peer):
        peer.ask("INVITE", 1, body=SDP, branch="z9hG4bKboth")
        peer.ask("CANCEL", 1, branch="z9hG4bKboth")
        assert (await peer.final("CANCEL")).status == 200
        assert (await peer.final("INVITE")).status == 487
        (ended,) = await phone.until("ended")
        assert ended["cause"] == "cancelled" and phone.over.is_set() and not phone.told("ringing")


async def test_a_change_that_crosses_our_invite_gets_491_and_the_call_comes_about() -> None:
    """RFC 3311 5.2, RFC 3261 14.2."""
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 180)
        await phone.until("progress")
        peer.ask("UPDATE", 1, of=invite, body=PCMA)
        assert (await peer.final("UPDATE")).status == 491
        peer.ask("INVITE", 2, of=invite, body=PCMA)
        assert (await peer.final("INVITE")).status == 491
        await established(peer, invite)
        assert (await phone.until("answered"))[0]["codec"] == "PCMU"


async def test_an_update_is_taken_once_offer_and_answer_are_through() -> None:
    """RFC 3262 5: the answer was in a reliable provisional response."""
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 183, body=SDP, headers=RELIABLE.format(1))
        prack = await peer.request("PRACK")
        peer.reply(prack, 200)
        peer.ask("UPDATE", 1, of=invite, body=PCMA)
        assert (await peer.final("UPDATE")).status == 200
        peer.ask("INVITE", 2, of=invite, body=PCMA)
        assert (await peer.final("INVITE")).status == 491
        peer.reply(invite, 200)
        await peer.request("ACK")
        assert (await phone.until("answered"))[0]["codec"] == "PCMA"


async def test_a_bye_that_overtakes_the_answer_ends_the_call() -> None:
    """RFC 3261 15.1.2, RFC 5407 3.1.2."""
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 180)
        await phone.until("progress")
        peer.ask("BYE", 1, of=invite)
        assert (await peer.final("BYE")).status == 200
        peer.reply(invite, 200, body=SDP)
        await peer.request("ACK")
        (ended,) = await phone.until("ended")
        assert ended["cause"] == "remote_bye"
        peer.ask("INFO", 2, of=invite)
        assert (await peer.final("INFO")).status == 481


# --- targets and routes


async def test_a_refused_change_moves_no_target() -> None:
    """RFC 6141 4.6."""
    async with called() as (phone, peer), raw_peer() as elsewhere:
        first = await answered(peer)
        await phone.until("answered")
        for number, method in enumerate(("UPDATE", "INVITE"), 2):
            peer.ask(method, number, of=first, body=G729, contact=elsewhere.uri)
            assert (await peer.final(method)).status == 488
            if method == "INVITE":
                peer.ask("ACK", number, of=first)
        await phone.run_line("hangup")
        assert str((await peer.request("BYE")).uri) == peer.uri and not elsewhere.heard


async def test_an_accepted_change_moves_the_target() -> None:
    async with called() as (phone, peer), raw_peer() as elsewhere:
        first = await answered(peer)
        await phone.until("answered")
        peer.ask("UPDATE", 2, of=first, contact=elsewhere.uri)
        assert (await peer.final("UPDATE")).status == 200
        await phone.run_line("hangup")
        assert str((await elsewhere.request("BYE")).uri) == elsewhere.uri


async def test_what_may_be_lost_moves_no_target() -> None:
    """RFC 6141 4.7."""
    async with calling() as (phone, peer, invite), raw_peer() as elsewhere:
        peer.reply(invite, 183, headers=RELIABLE.format(1))
        peer.reply(await peer.request("PRACK"), 200)
        peer.reply(invite, 180, contact=elsewhere.uri)
        await phone.until("progress", 2)
        peer.reply(invite, 183, headers=RELIABLE.format(2))
        prack = await peer.request("PRACK")
        assert str(prack.uri) == peer.uri and not elsewhere.heard


async def test_the_ack_of_a_change_goes_where_its_answer_says() -> None:
    """RFC 3261 12.2.1.2."""
    async with calling() as (phone, peer, invite), raw_peer() as elsewhere:
        await established(peer, invite)
        await phone.until("answered")
        holding = asyncio.ensure_future(phone.run_line("hold"))
        change = await peer.request("INVITE")
        peer.reply(change, 200, body=SDP.replace("AVP 0", "AVP 0\r\na=recvonly"), contact=elsewhere.uri)
        assert (await elsewhere.request("ACK")).headers.cseq.number == change.headers.cseq.number
        await holding


async def test_a_strict_router_before_a_loose_one_is_where_requests_go() -> None:
    """RFC 3261 12.2.1.1, 8.1.2."""
    async with calling() as (phone, peer, invite), raw_peer() as strict, raw_peer() as loose:
        routes = f"Record-Route: <sip:{HOST}:{loose.port};lr>, <sip:{HOST}:{strict.port}>\r\n"
        peer.reply(invite, 200, body=SDP, headers=routes)
        ack = await strict.request("ACK")
        assert str(ack.uri) == f"sip:{HOST}:{strict.port}"
        assert [str(route.uri) for route in ack.headers.route] == [f"sip:{HOST}:{loose.port};lr", peer.uri]
        await phone.until("answered")
        await phone.run_line("hangup")
        assert await strict.request("BYE") and not loose.heard


# --- descriptions


async def test_each_of_a_fork_has_an_answer_of_his_own() -> None:
    """RFC 3261 13.2.1: what one callee said answers nothing for another."""
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 183, tag="a", body=SDP)
        await phone.until("progress")
        peer.reply(invite, 200, tag="b")
        await peer.request("ACK")
        await peer.request("BYE")
        (failed,) = await phone.until("call-failed")
        assert failed["status"] == 200 and not phone.told("answered")


async def test_of_a_fork_the_answer_of_the_one_who_answers_is_in_force() -> None:
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 183, tag="a", body=SDP)
        peer.reply(invite, 183, tag="b", body=PCMA)
        await phone.until("progress", 2)
        peer.reply(invite, 200, tag="a")
        await peer.request("ACK")
        assert (await phone.until("answered"))[0]["codec"] == "PCMU"


@pytest.mark.parametrize("later", [PCMA, "no description at all"])
async def test_the_first_description_is_the_answer(later: str) -> None:
    """RFC 3261 13.2.1: others of the same callee MUST be ignored."""
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 183, body=SDP)
        await phone.until("progress")
        peer.reply(invite, 200, body=later)
        await peer.request("ACK")
        assert (await phone.until("answered"))[0]["codec"] == "PCMU"


async def test_an_early_dialog_that_is_over_gets_no_audio() -> None:
    """RFC 6228 4."""
    async with calling() as (phone, peer, invite):
        peer.reply(invite, 183, tag="a", body=SDP)
        await phone.until("progress")
        (call,) = phone.agent.calls
        assert call.media is not None and call.media.negotiation.agreed is not None
        peer.reply(invite, 199, tag="a", headers="Reason: SIP;cause=486\r\n")
        await phone.until("progress", 2)
        assert call.media.negotiation.agreed is None
        peer.reply(invite, 200, tag="b", body=PCMA)
        await peer.request("ACK")
        assert (await phone.until("answered"))[0]["codec"] == "PCMA"


async def test_a_call_without_any_offer_comes_to_nothing() -> None:
    async with calling(late_offer=True) as (phone, peer, invite):
        assert not invite.body
        peer.reply(invite, 200)
        await peer.request("ACK")
        await peer.request("BYE")
        await phone.until("call-failed")


async def test_the_reliable_180_of_an_invite_without_an_offer_has_one() -> None:
    """RFC 3262 5."""
    async with called(reliable=True, answer_after=0.2) as (phone, peer):
        peer.ask("INVITE", 1, headers="Supported: 100rel\r\n")
        ringing = await peer.provisional(180)
        assert ringing.headers.rseq is not None and b"m=audio" in ringing.body
        peer.ask("PRACK", 2, of=ringing, body=PCMA, headers=f"RAck: {ringing.headers.rseq} 1 INVITE\r\n")
        assert (await peer.final("PRACK")).status == 200
        taken = await peer.final("INVITE")
        assert taken.status == 200 and not taken.body, "offer and answer are through"
        peer.ask("ACK", 1, of=taken)
        assert (await phone.until("answered"))[0]["codec"] == "PCMA"


async def test_an_update_without_an_offer_is_answered_without_one() -> None:
    async with called() as (phone, peer):
        first = await answered(peer)
        await phone.until("answered")
        optional = "Content-Disposition: icon;handling=optional\r\n"
        peer.ask("UPDATE", 2, of=first, body="x", kind="text/plain", headers=optional)
        taken = await peer.final("UPDATE")
        assert taken.status == 200 and not taken.body


# --- ends


@pytest.mark.parametrize(("method", "status"), [("INVITE", 408), ("INVITE", 481), ("UPDATE", 408), ("INFO", 481)])
async def test_an_end_that_the_peer_may_not_know_of_is_told_by_bye(method: str, status: int) -> None:
    """RFC 3261 12.2.1.2, 14.1."""
    async with calling() as (phone, peer, invite):
        await established(peer, invite)
        await phone.until("answered")
        (call,) = phone.agent.calls
        if method == "INVITE":
            call.session.reinvite(body=SDP.encode(), content_type="application/sdp", now=phone.agent.now())
        else:
            call.session.send(method, now=phone.agent.now())
        phone.agent.endpoint.transmit()
        peer.reply(await peer.request(method), status)
        await peer.request("BYE")
        await phone.until("ended")


async def test_challenges_are_not_answered_for_ever() -> None:
    async with calling(user="ua", password="secret") as (phone, peer, invite):
        tries = 1
        while True:
            headers = f'WWW-Authenticate: Digest realm="r", nonce="n{tries}", stale=true\r\n'
            peer.reply(invite, 401, headers=headers)
            more = asyncio.ensure_future(peer.request("INVITE"))
            failed = asyncio.ensure_future(phone.until("call-failed"))
            await asyncio.wait((more, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                more.cancel()
                break
            invite, tries = more.result(), tries + 1
            failed.cancel()
        assert 2 <= tries <= 8


async def test_the_refreshed_subscription_of_a_refer_is_told_how_it_stands() -> None:
    """RFC 6665 4.2.1.2."""
    async with called() as (_, peer), raw_peer() as third:
        first = await answered(peer)
        peer.ask("REFER", 2, of=first, headers=f"Refer-To: <{third.uri}>\r\n")
        assert (await peer.final("REFER")).status == 200
        peer.reply(await peer.request("NOTIFY"), 200)
        invite = await third.request("INVITE")
        third.reply(invite, 180)
        peer.reply(await peer.request("NOTIFY"), 200)
        peer.ask("SUBSCRIBE", 3, of=first, headers="Event: refer;id=2\r\nExpires: 60\r\n")
        assert (await peer.final("SUBSCRIBE")).status == 200
        told = await peer.request("NOTIFY")
        assert told.body.startswith(b"SIP/2.0 180")
