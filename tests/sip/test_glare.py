# SPDX-License-Identifier: Apache-2.0
"""Two ends change one session at once (RFC 3261 14.1, 14.2): both changes are made, one after the other."""

from __future__ import annotations

import pytest

from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.message import Request
from mcptt_sip.outgoing import Cause, RequestFailed, ResponseReceived
from mcptt_sip.session import Ended, InviteReceived, InviteSession
from mcptt_sip.testing import StackEnd
from tests.sip.joined import Net

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"


@pytest.fixture(params=["udp", "tcp"])
def net(request: pytest.FixtureRequest) -> Net:
    return Net(request.param)


def established(net: Net) -> tuple[InviteSession, InviteSession]:
    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.accept(body=SDP, content_type="application/sdp", now=now)
        elif isinstance(event, RequestReceived):
            event.incoming.respond(200, body=SDP, content_type="application/sdp", now=now)

    net.alice.handler = net.bob.handler = handle
    mine = net.alice.stack.invite(
        net.bob.uri, from_=f"<{net.alice.uri}>", body=SDP, content_type="application/sdp", now=net.now
    )
    net.run()
    (invited,) = net.bob.told(InviteReceived)
    return mine, invited.session


def change(session: InviteSession, net: Net) -> None:
    session.reinvite(body=SDP, content_type="application/sdp", now=net.now)


def outcomes(end: StackEnd) -> list[int]:
    return [e.response.status for e in end.told(ResponseReceived) if e.response.status >= 200]


def test_both_get_491_and_then_both_get_their_way(net: Net) -> None:
    mine, theirs = established(net)
    change(mine, net)
    change(theirs, net)
    net.run(8.0)
    assert net.sent().count("491 INVITE") == 2, "and no more: who waits does not refuse the other's second try"
    assert outcomes(net.alice) == outcomes(net.bob) == [200]
    assert mine.pending_invite is theirs.pending_invite is mine.glared is theirs.glared is None
    assert not net.alice.told(Ended) and not net.bob.told(Ended)
    change(mine, net)
    net.run()
    assert outcomes(net.alice) == [200, 200], "the session can be changed again"


def test_while_one_waits_the_others_change_is_made_and_no_second_of_his_own() -> None:
    net = Net("udp")
    mine, theirs = established(net)
    change(mine, net)
    change(theirs, net)
    net.run(0.1)
    assert mine.glared is not None and mine.pending_invite is None
    with pytest.raises(LocalProtocolError, match="under way"):
        change(mine, net)
    net.run(8.0)
    assert outcomes(net.alice) == outcomes(net.bob) == [200]


@pytest.mark.parametrize("who", ["the one who waits", "the other"])
def test_a_change_whose_session_ends_before_its_second_try_is_told_so(who: str) -> None:
    net = Net("udp")
    mine, theirs = established(net)
    change(mine, net)
    change(theirs, net)
    net.run(0.1)
    (mine if who == "the one who waits" else theirs).bye(net.now)
    net.run(60.0)
    for end in (net.alice, net.bob):
        assert [e.cause for e in end.told(RequestFailed)] == [Cause.SESSION_OVER]
        assert not outcomes(end) and len(end.told(Ended)) == 1
        assert end.stack.next_timer() is None, "nothing is left"


def test_a_change_that_is_never_answered_is_told_when_the_peer_hangs_up_and_its_transaction_goes() -> None:
    """A 100 and nothing more: Timer B has stopped."""
    net = Net("udp")
    mine, theirs = established(net)
    net.bob.handler = lambda _event, _now: None
    change(mine, net)
    net.run(5.0)
    theirs.bye(net.now)
    net.run(120.0)
    assert "487 INVITE" in net.sent()
    assert [e.cause for e in net.alice.told(RequestFailed)] == [Cause.SESSION_OVER]
    assert not outcomes(net.alice), "he has been told once"
    assert not net.alice.stack._clients and not net.bob.stack._servers
    assert [m.method for _, m in net.wire if isinstance(m, Request)][-2:] == ["BYE", "ACK"]


def update(session: InviteSession, net: Net) -> None:
    session.send("UPDATE", body=SDP, content_type="application/sdp", now=net.now)


def test_offers_in_update_collide_as_those_in_invite_do(net: Net) -> None:
    """RFC 3311 5.2: 491 to whatever brings an offer while one of ours is out."""
    mine, theirs = established(net)
    update(mine, net)
    update(theirs, net)
    net.run(8.0)
    assert outcomes(net.alice) == outcomes(net.bob) == [491] and not net.alice.told(RequestReceived)
    update(mine, net)
    change(theirs, net)
    net.run(8.0)
    assert outcomes(net.alice) == [491, 491] and outcomes(net.bob) == [491, 200], "the re-INVITE is tried again"
    update(mine, net)
    net.run()
    assert outcomes(net.alice) == [491, 491, 200] and mine.pending_invite is None


def test_one_offer_at_a_time_leaves_and_a_refresh_is_none() -> None:
    """RFC 3311 5.1."""
    net = Net("udp")
    mine, theirs = established(net)
    update(mine, net)
    for again in (update, change):
        with pytest.raises(LocalProtocolError, match="under way"):
            again(mine, net)
    mine.send("UPDATE", now=net.now)
    theirs.bye(net.now)
    net.run(5.0)
    assert len(net.alice.told(Ended)) == 1 and not net.alice.stack._dialogs
