# SPDX-License-Identifier: Apache-2.0
"""Legs of a running call: session timers, changes of media, silence, and whatever bad input does not do to them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import CLIENT_HEADERS
from mcptt_sip.mcptt.documents import McpttInfo, ResourceLists
from mcptt_sip.mcptt.keying import MIKEY
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription, MediaRefused
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause, ResponseReceived
from mcptt_sip.session import Ended, InviteSession
from tests.mcptt.exchange import DOMAIN, SERVICE, Exchange, Telephone, key_message, uri, warning_codes

LONG = RegroupSettings(max_duration=100_000.0, max_silence=0.0)


def running(*names: str, regroup: RegroupSettings | None = None,
            **settings: object) -> tuple[Exchange, list[Telephone], InviteSession]:
    exchange = Exchange(regroup=regroup, **settings)  # type: ignore[arg-type]
    phones = exchange.phones_of("alice", *names)
    session = phones[0].call(names[0])
    exchange.run()
    for name in names[1:]:
        phones[0].refer(session, name)
    exchange.run()
    return exchange, phones, session


# --- session timers (RFC 4028) --------------------------------------------------------------------------------


def test_every_leg_has_a_session_timer_that_the_client_refreshes() -> None:
    exchange, (_alice, bob, carol), session = running("bob", "carol", regroup=LONG)
    for phone in (bob, carol):
        assert phone.invitations[0].request.headers.get("Session-Expires") == "1800;refresher=uas"
    for leg in (session, bob.invitations[0], carol.invitations[0]):
        assert leg.session_timer is not None and leg.session_timer.refresher
    exchange.run(3 * 1800.0)
    updates = [m for _, f, m in exchange.wire if isinstance(m, Request) and m.method == "UPDATE"]
    assert len(updates) >= 3 * 5 and all(f.remote == exchange.address for _, f, m in exchange.wire if m in updates)
    assert len(exchange.call.legs) == 3, "a refresh is no change of who is in"


@pytest.mark.parametrize("who", ["alice", "carol"])
def test_a_leg_that_is_not_refreshed_ends_and_its_user_counts_as_lost(who: str) -> None:
    exchange, phones, _ = running("bob", "carol", regroup=LONG, session_expires=90)
    dead = next(phone for phone in phones if phone.name == who)
    exchange.phones.remove(dead)
    exchange.run(50.0)
    assert uri(who) in exchange.call.legs
    exchange.run(15.0)  # 10: the BYE goes out a third of the interval before its end
    assert uri(who) not in exchange.call.legs
    assert exchange.sent_to(dead, "BYE")[0].headers.get("Reason") == 'SIP;cause=408;text="Session expired"'
    assert (uri(who) in exchange.call.lost) is (who == "carol")
    assert exchange.call.machine.initiator_present is (who != "alice")


def test_a_site_may_leave_session_timers_to_its_clients() -> None:
    _, (_, bob), session = running("bob", session_expires=0)
    assert bob.invitations[0].request.headers.get("Session-Expires") is None
    assert session.session_timer is not None and session.session_timer.refresher, "alice asked for one, and keeps it"


# --- changes -----------------------------------------------------------------------------------------------------


def test_a_reinvite_moves_the_media_of_its_leg_and_nobody_elses() -> None:
    exchange, (_alice, bob, _carol), _ = running("bob", "carol")
    media = exchange.plane.opened[0]
    before = dict(media.legs)
    moved = bob.describe(audio=("192.0.2.200", 9000), floor=("192.0.2.200", 9001))
    bob.invitations[0].reinvite(body=moved.encode(), content_type="application/sdp", now=exchange.now)
    exchange.run()
    assert media.legs[uri("bob")].audio == ("192.0.2.200", 9000)
    assert {u: d for u, d in media.legs.items() if u != uri("bob")} == {
        u: d for u, d in before.items() if u != uri("bob")
    }
    (answer,) = [e.response for e in bob.told(ResponseReceived) if e.client_request.method == "INVITE"]
    assert answer.status == 200 and b"RTP/SAVP" in answer.body


def test_a_refresh_by_reinvite_changes_nothing_and_a_downgrade_is_refused_and_ends_nothing() -> None:
    exchange, (_, bob, _carol), _ = running("bob", "carol")
    media = exchange.plane.opened[0]
    order = list(media.legs)
    same = bob.describe().encode()
    for body, status in ((same, 200), (same.replace(b"RTP/SAVP", b"RTP/AVP"), 488), (same, 200)):
        bob.invitations[0].reinvite(body=body, content_type="application/sdp", now=exchange.now)
        exchange.run()
        answers = [e.response.status for e in bob.told(ResponseReceived) if e.client_request.method == "INVITE"]
        assert answers[-1] == status
    assert list(media.legs) == order, "nobody was taken out and put in again"
    assert bob.invitations[0].established


def test_a_change_that_cannot_be_made_leaves_the_leg_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 3261 14.2: after the 488 he hears and talks where he did."""
    exchange, (_alice, bob, _carol), _ = running("bob", "carol")
    media = exchange.plane.opened[0]
    before, take = media.legs[uri("bob")], media.add_leg

    def particular(destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        if theirs.ssrc is None:
            raise MediaRefused("the description does not say under which SSRC audio will come")
        take(destination, theirs, guk_id)

    monkeypatch.setattr(media, "add_leg", particular)
    body = replace(bob.describe(audio=("192.0.2.200", 9000)), ssrc=None).encode()
    bob.invitations[0].reinvite(body=body, content_type="application/sdp", now=exchange.now)
    exchange.run()
    (answer,) = [e.response for e in bob.told(ResponseReceived) if e.client_request.method == "INVITE"]
    assert answer.status == 488 and media.legs[uri("bob")] == before
    bob.invitations[0].reinvite(body=bob.describe().encode(), content_type="application/sdp", now=exchange.now)
    bob.invitations[0].bye(exchange.now)
    exchange.run()
    assert uri("bob") not in media.legs, "and leaves as everybody does"


def test_silence_releases_a_running_call_only() -> None:
    exchange = Exchange(regroup=RegroupSettings(max_silence=77.0))
    alice = exchange.phone("alice")
    bob = exchange.phone("bob", script="ring")
    alice.call("bob")
    exchange.run()
    group = exchange.call.group
    assert exchange.plane.opened[0].max_silence == 77.0
    exchange.server.controlling.media_silent(group, exchange.now)
    assert exchange.calls, "while it rings nobody can talk"
    bob.respond(bob.invitations[0], "answer")
    exchange.run()
    exchange.server.controlling.media_silent(group, exchange.now)
    exchange.run()
    assert not exchange.calls and bob.told(Ended)
    exchange.server.controlling.media_silent(group, exchange.now)


# --- bad input ---------------------------------------------------------------------------------------------------


def sdp(text: bytes) -> list[Part]:
    info = McpttInfo(session_type="prearranged", request_uri=f"sip:tmp-9@{DOMAIN}", temporary_group=True)
    return [
        Part("application/sdp", text), Part(documents.MCPTT_INFO, info.encode()),
        Part(documents.RESOURCE_LISTS, ResourceLists((uri("carol"),)).encode()),
        Part(MIKEY, key_message("alice", "carol")),
    ]


BODIES: dict[str, tuple[int, list[Part]]] = {
    "no SDP": (488, sdp(b"")[1:]),
    "SDP that is none": (488, sdp(b"v=0\r\nnonsense")),
    "no media": (488, sdp(b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\n")),
    "broken XML": (400, [*sdp(b"")[2:], Part(documents.MCPTT_INFO, b"<mcptt")]),
    "another root": (400, [*sdp(b"")[2:], Part(documents.MCPTT_INFO, b"<a/>")]),
    "an entity": (400, [*sdp(b"")[2:], Part(documents.MCPTT_INFO, b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')]),
    "two infos": (400, [*sdp(b""), Part(documents.MCPTT_INFO, McpttInfo().encode())]),
    "a list of no URI": (400, [*sdp(b"")[:2], Part(documents.RESOURCE_LISTS, b"<resource-lists/>")]),
    "a huge key": (488, [*sdp(b"")[:3], Part(MIKEY, b"\x01" * 9000)]),
    "nothing": (403, [Part("text/plain", b"hello")]),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_has_its_status_and_the_calls_of_others_go_on(name: str) -> None:
    status, parts = BODIES[name]
    exchange, (alice, bob), session = running("bob")
    exchange.phone("carol")
    bad = alice.call("carol", parts=parts)
    exchange.run()
    assert alice.answer_to(bad).status == status
    assert session.established and bob.invitations[0].established and len(exchange.calls) == 1
    good = alice.call("carol")
    exchange.run()
    assert alice.answer_to(good).status == 200


ALONE: dict[str, tuple[str, int]] = {
    "BYE": (SERVICE, 481), "UPDATE": (SERVICE, 481), "NOTIFY": (SERVICE, 481), "PRACK": (SERVICE, 481),
    "INFO": (SERVICE, 481), "PUBLISH": (SERVICE, 405), "OPTIONS": (SERVICE, 200), "REFER": (SERVICE, 481),
    "SUBSCRIBE": (SERVICE, 489), "MESSAGE": (SERVICE, 403),
}


@pytest.mark.parametrize("method", ALONE)
def test_a_request_that_makes_no_sense_alone_is_answered(method: str) -> None:
    to, status = ALONE[method]
    exchange, (alice, _), session = running("bob")
    request = alice.stack.compose(method, to, from_=f"<{alice.uri}>", headers=CLIENT_HEADERS)
    if method in ("REFER", "SUBSCRIBE"):
        request.headers.add("Contact", f"<sip:alice@{alice.address[0]}:{alice.address[1]}>")
    sent = alice.request(request)
    exchange.run()
    answer = alice.answer_to(sent)
    assert answer.status == status
    assert status != 405 or "INVITE" in answer.headers.allow
    assert session.established


@pytest.mark.parametrize("lie", ["From", "password", "nobody"])
def test_nobody_calls_in_anothers_name(lie: str) -> None:
    exchange = Exchange()
    alice, mallory = exchange.phones_of("alice", "mallory")
    exchange.phone("bob")
    if lie == "From":
        mallory.uri = alice.uri
    elif lie == "password":
        mallory.credentials = type(mallory.credentials)("alice", "a guess")
    else:
        mallory.credentials = type(mallory.credentials)("zoe", "anything")
    session = mallory.call("bob", key=key_message("mallory", "bob"))
    exchange.run()
    answer = mallory.answer_to(session)
    assert answer.status == (403 if lie == "From" else 401)
    assert not exchange.calls and (lie != "From" or warning_codes(answer) == [100])


def test_no_changed_message_ends_the_server_or_a_call() -> None:
    """Octets of whole, well signed requests with some of them changed: each is answered or dropped, none does harm."""
    exchange, (alice, bob, carol), session = running("bob", "carol")
    originals = [bytes(m) for _, f, m in exchange.wire if isinstance(m, Request) and f == alice.flow]
    chance = random.Random(3)
    answers = set()
    for number in range(400):
        octets = bytearray(chance.choice(originals))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(octets))
            match chance.randrange(3):
                case 0:
                    octets[at] = chance.randrange(256)
                case 1:
                    del octets[at : at + chance.randrange(1, 40)]
                case _:
                    octets[at:at] = octets[: chance.randrange(1, 40)]
        # another transaction each time, where the change left that readable
        octets = octets.replace(b"branch=z9hG4bK", b"branch=z9hG4bK%d" % number, 1)
        begun = len(exchange.wire)
        exchange.server.stack.receive_octets(bytes(octets), type(alice.flow)(
            alice.flow.transport, alice.flow.remote, alice.flow.local, alice.flow.id), exchange.now)
        exchange.run(0.05)
        answers |= {m.status for _, _, m in exchange.wire[begun:] if isinstance(m, Response)}
    assert len(answers) >= 4, answers
    assert len(exchange.calls) <= 3
    again = bob.call("carol")
    exchange.run()
    assert bob.answer_to(again).status == 200
    assert session.call_id and carol.invitations
    assert not [e for e in bob.told(Ended) if e.cause is Cause.TIMEOUT]


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "REGISTER"])
def test_a_signature_that_cannot_be_read_is_400(method: str) -> None:
    """Nothing below the server's own functions looks into it, and still the request has its answer."""
    exchange, (alice, _), session = running("bob")
    alice.credentials = None  # type: ignore[assignment]
    broken = ("Authorization", 'Digest username="alice, realm=')
    if method == "INVITE":
        made = alice.call("bob", headers=[broken])
        exchange.run()
        assert alice.answer_to(made).status == 400
    else:
        sent = alice.request(alice.stack.compose(method, SERVICE, from_=f"<{alice.uri}>", headers=[broken]))
        exchange.run()
        assert alice.answer_to(sent).status == 400
    assert session.established


def test_a_package_that_the_server_does_not_take_gets_469_and_ends_nothing() -> None:
    exchange, (alice, _), session = running("bob")
    sent = session.send("INFO", headers=[("Info-Package", "weather")], now=exchange.now)
    exchange.run()
    assert (alice.answer_to(sent).status, session.established) == (469, True)


def test_a_multipart_that_is_cut_off_is_400_and_ends_nothing() -> None:
    exchange, (alice, _), session = running("bob")
    content_type, body = build_multipart(sdp(b"v=0"), alice.stack.token)
    sent = session.send("MESSAGE", body=body[: len(body) // 2], content_type=content_type, now=exchange.now)
    exchange.run()
    assert alice.answer_to(sent).status == 400 and session.established
