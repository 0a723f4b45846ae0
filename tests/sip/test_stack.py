# SPDX-License-Identifier: Apache-2.0
"""Calls, requests and subscriptions between two stacks; every message is real octets, time is in the hand."""

from __future__ import annotations

import pytest

from mcptt_sip.auth import DigestAuthenticator, DigestClient, DigestCredentials, Verdict, parse_auth
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.flow import Flow
from mcptt_sip.headers import TargetDialog
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause, RequestFailed, ResponseReceived
from mcptt_sip.session import (
    Answered,
    Cancelled,
    Confirmed,
    Ended,
    InviteReceived,
    InviteSession,
    Progressed,
    ProvisionalAcknowledged,
    Refused,
)
from mcptt_sip.stack import FlowLost
from mcptt_sip.subscription import Notified, NotifierSubscription, SubscriptionEnded
from tests.sip.joined import Net, tokens

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\n"


@pytest.fixture(params=["udp", "tcp"])
def net(request: pytest.FixtureRequest) -> Net:
    return Net(request.param)


def call(net: Net, **more: object) -> InviteSession:
    arguments: dict[str, object] = {"body": SDP, "content_type": "application/sdp", "flow": net.flow(net.alice)}
    return net.alice.stack.invite(
        net.bob.uri, from_=f"<{net.alice.uri}>", now=net.now, **(arguments | more)  # type: ignore[arg-type]
    )


def accepting(net: Net) -> None:
    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.accept(body=SDP, content_type="application/sdp", now=now)

    net.bob.handler = handle


def established(net: Net) -> tuple[InviteSession, InviteSession]:
    accepting(net)
    mine = call(net)
    net.run()
    (invited,) = net.bob.told(InviteReceived)
    return mine, invited.session


def test_a_call_with_a_reliable_183_from_invite_to_bye(net: Net) -> None:
    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.progress(183, reliable=True, now=now)
        elif isinstance(event, ProvisionalAcknowledged):
            event.session.accept(body=SDP, content_type="application/sdp", now=now)

    net.bob.handler = handle
    session = call(net)
    net.run()
    assert net.sent() == [
        "INVITE", "183 INVITE", "PRACK", "200 PRACK", "200 INVITE", "ACK",
    ]  # fmt: skip
    (progressed,), (answered,) = net.alice.told(Progressed), net.alice.told(Answered)
    assert progressed.response.status == 183 and answered.response.body == SDP
    assert net.bob.told(Confirmed)
    session.bye(net.now, headers=[("Reason", 'SIP;cause=200;text="bye"')])
    net.run()
    assert net.sent()[-2:] == ["BYE", "200 BYE"]
    (ended,) = net.bob.told(Ended)
    assert ended.cause is Cause.REMOTE_BYE and "bye" in ended.request.headers.get("Reason")
    assert net.alice.stack._dialogs == {} and net.bob.stack._dialogs == {}


def test_a_request_that_is_answered_late_has_100_before(net: Net) -> None:
    """RFC 4320 4: nothing provisional but that, not before timer E is T2, and never 408."""
    request = net.alice.stack.compose("MESSAGE", net.bob.uri, from_=f"<{net.alice.uri}>")
    net.alice.stack.request(request, net.now, flow=net.flow(net.alice))
    net.run(3.0)
    (received,) = net.bob.told(RequestReceived)
    assert "100 MESSAGE" not in net.sent()
    net.run(3.0)
    for status in (100, 183, 408):
        with pytest.raises(LocalProtocolError, match="4320"):
            received.incoming.respond(status, now=net.now)
    received.incoming.respond(200, now=net.now)
    net.run(1.0)
    answers = [text for text in net.sent() if text.endswith(" MESSAGE")]
    assert answers[0] == "100 MESSAGE" and answers[-1] == "200 MESSAGE"
    assert [told.response.status for told in net.alice.told(ResponseReceived)][-1] == 200
    net.run(100.0)
    assert not net.bob.stack._servers and not net.alice.stack._clients


def test_199_ends_an_early_dialog_and_the_call_goes_on(net: Net) -> None:
    """RFC 6228: once, with its reason, and only for a caller who supports it."""

    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.progress(180, now=now)

    net.bob.handler = handle
    session = call(net)
    net.run()
    (invited,) = net.bob.told(InviteReceived)
    with pytest.raises(LocalProtocolError, match="Reason"):
        invited.session.progress(199, now=net.now)
    assert session.dialog is not None
    invited.session.progress(199, headers=[("Reason", "SIP;cause=486")], now=net.now)
    net.run()
    assert session.dialogs == {} and session.dialog is None and net.alice.stack._dialogs == {}
    assert [event.response.status for event in net.alice.told(Progressed)] == [180, 199]
    ended = net.alice.told(Progressed)[-1].response
    assert "199" not in ended.headers.supported and "timer" in ended.headers.supported
    net.run(130.0)
    assert net.sent().count("199 INVITE") == 1 and net.sent().count("180 INVITE") == 3
    invited.session.accept(body=SDP, content_type="application/sdp", now=net.now)
    net.run()
    assert net.alice.told(Answered) and session.established


def test_199_of_a_dialog_that_was_never_heard_of_means_nothing(net: Net) -> None:
    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.progress(199, headers=[("Reason", "SIP;cause=486")], now=now)

    net.bob.handler = handle
    session = call(net)
    net.run()
    assert not net.alice.told(Progressed) and session.dialogs == {}
    net.bob.handler = lambda _event, _now: None
    (invited,) = net.bob.told(InviteReceived)
    invited.session.request.headers.set("Supported", "timer")
    with pytest.raises(LocalProtocolError, match="199"):
        invited.session.progress(199, headers=[("Reason", "SIP;cause=486")], now=net.now)


def test_either_side_may_hang_up(net: Net) -> None:
    _, theirs = established(net)
    theirs.bye(net.now)
    net.run()
    assert net.alice.told(Ended)[0].cause is Cause.REMOTE_BYE


def test_a_refusal_and_its_headers_arrive(net: Net) -> None:
    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.reject(403, headers=[("Warning", '399 x "119 not authorised"')], now=now)

    net.bob.handler = handle
    call(net)
    net.run()
    (refused,) = net.alice.told(Refused)
    assert (refused.response.status, refused.cause) == (403, Cause.RESPONSE)
    assert net.sent() == ["INVITE", "403 INVITE", "ACK"]


def test_a_call_is_cancelled_while_it_rings(net: Net) -> None:
    net.bob.handler = lambda e, now: e.session.progress(180, now=now) if isinstance(e, InviteReceived) else None
    session = call(net)
    net.run()
    session.cancel(net.now)
    net.run()
    assert net.sent()[-4:] == ["CANCEL", "200 CANCEL", "487 INVITE", "ACK"]
    assert net.bob.told(Cancelled) and net.alice.told(Refused)[0].cause is Cause.CANCELLED


def test_nothing_is_left_of_a_cancelled_call_to_somebody_who_died_while_it_rang() -> None:
    net = Net("udp")
    net.bob.handler = lambda e, now: e.session.progress(180, now=now) if isinstance(e, InviteReceived) else None
    session = call(net)
    net.run()
    net.loss = 1.0
    session.cancel(net.now)
    net.run(70.0)
    assert net.alice.told(Refused)[0].cause is Cause.CANCELLED
    assert not net.alice.stack._clients and not net.alice.stack._dialogs


def test_a_call_may_ring_for_an_hour() -> None:
    net = Net("udp")
    net.bob.handler = lambda e, now: e.session.progress(180, now=now) if isinstance(e, InviteReceived) else None
    call(net)
    net.run(3600.0)
    net.bob.told(InviteReceived)[0].session.accept(now=net.now)
    net.run()
    assert net.alice.told(Answered)


def test_nobody_there_is_a_timeout_after_64_t1() -> None:
    net = Net("udp", loss=1.0)
    call(net)
    net.run(31.9)
    assert not net.alice.told(Refused)
    net.run(0.2)
    assert net.alice.told(Refused)[0].cause is Cause.TIMEOUT
    assert net.sent().count("INVITE") == 7


@pytest.mark.parametrize("seed", range(10))
def test_lost_messages_are_repeated_until_the_call_stands(seed: int) -> None:
    net = Net("udp", loss=0.4, seed=seed)
    accepting(net)
    session = call(net)
    net.run(60.0)
    if net.alice.told(Answered):
        assert len(net.alice.told(Answered)) == 1 and len(net.bob.told(InviteReceived)) == 1
        session.bye(net.now)
        net.run(60.0)
        assert len(net.bob.told(Ended)) == 1
    assert net.alice.stack._clients == {} and net.bob.stack._servers == {}


def test_an_accepted_call_without_ack_ends_with_bye() -> None:
    net = Net("udp")
    accepting(net)
    call(net)
    net.settle()
    net.run(0.015)
    net.loss = 1.0
    net.run(40.0)
    assert any(e.cause is Cause.NO_ACK for e in net.bob.told(Ended))


def test_messages_and_info_in_a_dialog_go_both_ways(net: Net) -> None:
    mine, theirs = established(net)
    for end in (net.alice, net.bob):
        end.handler = lambda e, now: e.incoming.respond(200, now=now) if isinstance(e, RequestReceived) else None
    mine.send("MESSAGE", body=b"\x00\xff key", content_type="application/mikey", now=net.now)
    theirs.send("INFO", headers=[("Info-Package", "x")], body=b"proof", content_type="a/b", now=net.now)
    net.run()
    (message,), (info,) = net.bob.told(RequestReceived), net.alice.told(RequestReceived)
    assert message.incoming.request.body == b"\x00\xff key" and message.incoming.session is theirs
    assert info.incoming.request.body == b"proof" and info.incoming.session is mine
    assert [e.response.status for e in net.alice.told(ResponseReceived) + net.bob.told(ResponseReceived)] == [200, 200]


def test_a_refer_in_a_dialog_of_its_own_is_told_its_outcome(net: Net) -> None:
    session, theirs = established(net)
    subscriptions: list[NotifierSubscription] = []

    def handle(event: object, now: float) -> None:
        if isinstance(event, RequestReceived):
            subscription = event.incoming.accept_subscription(now=now)
            subscription.notify(b"SIP/2.0 100 Trying\r\n", "message/sipfrag", now=now)
            subscriptions.append(subscription)

    net.bob.handler = handle
    dialog = TargetDialog.of(
        session.call_id, local_tag=session.remote_tag or "", remote_tag=session.local_tag
    )
    refer = net.alice.stack.refer(
        net.bob.uri, "<sip:carol@192.0.2.1;method=INVITE>", from_=f"<{net.alice.uri}>", flow=net.flow(net.alice),
        headers=[("Require", "tdialog"), ("Target-Dialog", dialog)], now=net.now, context="mine",
    )
    net.run()
    request = net.bob.told(RequestReceived)[0].incoming.request
    read = request.headers.target_dialog
    assert (read.call_id, read.local_tag, read.remote_tag) == (
        theirs.call_id, theirs.local_tag, theirs.remote_tag
    ) or (read.local_tag, read.remote_tag) == (theirs.local_tag, theirs.remote_tag)
    subscriptions[0].notify(
        b"SIP/2.0 200 OK\r\n", "message/sipfrag", state="terminated", reason="noresource", now=net.now
    )
    net.run()
    bodies = [e.request.body for e in net.alice.told(Notified)]
    assert bodies == [b"SIP/2.0 100 Trying\r\n", b"SIP/2.0 200 OK\r\n"]
    assert refer.context == "mine" and refer.terminated
    assert [e for e in net.alice.told(ResponseReceived) if e.client_request.context == "mine"]
    assert session.established, "the call goes on whatever becomes of the subscription"
    assert len(net.bob.stack._dialogs) == 1


def test_a_refused_refer_says_so(net: Net) -> None:
    net.bob.handler = lambda e, now: e.incoming.respond(403, now=now) if isinstance(e, RequestReceived) else None
    net.alice.stack.refer(
        net.bob.uri, "<sip:carol@x>", from_=f"<{net.alice.uri}>", flow=net.flow(net.alice), now=net.now
    )
    net.run()
    assert net.alice.told(ResponseReceived)[0].response.status == 403
    assert net.alice.told(SubscriptionEnded) and net.alice.stack._expected == {}


def test_a_failed_notify_ends_its_subscription_and_not_the_call(net: Net) -> None:
    session, _ = established(net)
    kept: list[NotifierSubscription] = []

    def handle(event: object, now: float) -> None:
        if isinstance(event, RequestReceived):
            kept.append(event.incoming.accept_subscription(now=now))
            kept[0].notify(b"SIP/2.0 100 Trying\r\n", "message/sipfrag", now=now)

    net.bob.handler = handle
    session.send("REFER", headers=[("Refer-To", "<sip:c@x>")], now=net.now)
    net.run()
    for usage in list(session.dialog.subscriptions):  # type: ignore[union-attr]
        usage._leave()  # alice forgets it: the next NOTIFY gets 481
    kept[0].notify(b"SIP/2.0 180 Ringing\r\n", "message/sipfrag", now=net.now)
    net.run()
    assert net.sent()[-1] == "481 NOTIFY"
    assert net.bob.told(SubscriptionEnded) and session.established and not net.bob.told(Ended)


def test_a_roster_is_fetched_by_subscribe_with_expires_zero(net: Net) -> None:
    def handle(event: object, now: float) -> None:
        if isinstance(event, RequestReceived):
            event.incoming.accept_subscription(now=now).notify(b"<who/>", "application/conference-info+xml", now=now)

    net.bob.handler = handle
    net.alice.stack.subscribe(
        net.bob.uri, event="conference", expires=0, from_=f"<{net.alice.uri}>", flow=net.flow(net.alice), now=net.now
    )
    net.run()
    assert [e.request.body for e in net.alice.told(Notified)] == [b"<who/>"]
    assert net.alice.told(SubscriptionEnded) and net.alice.stack._dialogs == net.bob.stack._dialogs == {}


def test_digest_is_answered_by_itself_and_the_nonce_used_again(net: Net) -> None:
    server = DigestAuthenticator("x", {"alice": "secret"}.get, tokens(9), algorithms=("SHA-256",))
    checked = []

    def handle(event: object, now: float) -> None:
        if isinstance(event, RequestReceived):
            verdict, name = server.check(event.incoming.request, now)
            checked.append((verdict, name))
            if verdict is Verdict.GOOD:
                event.incoming.respond(200, now=now)
            else:
                event.incoming.respond(401, headers=server.challenge(now), now=now)

    net.bob.handler = handle
    credentials = DigestCredentials("alice", "secret")
    for _ in range(3):
        request = net.alice.stack.compose("MESSAGE", net.bob.uri, from_=f"<{net.alice.uri}>")
        net.alice.stack.request(request, net.now, flow=net.flow(net.alice), credentials=credentials)
        net.run()
    assert net.sent().count("401 MESSAGE") == 1 and net.sent().count("200 MESSAGE") == 3
    wrong = net.alice.stack.compose("MESSAGE", net.bob.uri, from_=f"<{net.alice.uri}>")
    net.alice.stack.request(wrong, net.now, flow=net.flow(net.alice), credentials=DigestCredentials("alice", "no"))
    net.run()
    assert net.alice.told(ResponseReceived)[-1].response.status == 401


@pytest.mark.parametrize("method", ["MESSAGE", "INVITE"])
def test_the_next_nonce_is_the_one_that_the_server_wants(net: Net, method: str) -> None:
    """RFC 7616 3.5: no second challenge, also where each nonce is good once."""
    nonces = iter(["one", "two", "three", "four"])
    good = [""]

    def handle(event: object, now: float) -> None:
        if not isinstance(event, InviteReceived | RequestReceived):
            return
        request = event.session.request if isinstance(event, InviteReceived) else event.incoming.request
        _, params = parse_auth(request.headers.get("authorization") or "Digest")
        challenged = params.get("nonce") != good[0]
        good[0] = next(nonces)
        if challenged:
            status, line = 401, ("WWW-Authenticate", f'Digest realm="x", nonce="{good[0]}", qop="auth"')
        else:
            assert params["nc"] == "00000001"
            status, line = 200, ("Authentication-Info", f'nextnonce="{good[0]}"')
        if isinstance(event, RequestReceived):
            event.incoming.respond(status, headers=[line], now=now)
        elif challenged:
            event.session.reject(status, headers=[line], now=now)
        else:
            event.session.accept(headers=[line], now=now)

    net.bob.handler = handle
    for _ in range(3):
        credentials = DigestCredentials("alice", "secret")
        if method == "INVITE":
            call(net, credentials=credentials)
        else:
            request = net.alice.stack.compose("MESSAGE", net.bob.uri, from_=f"<{net.alice.uri}>")
            net.alice.stack.request(request, net.now, flow=net.flow(net.alice), credentials=credentials)
        net.run()
    assert net.sent().count(f"401 {method}") == 1 and net.sent().count(f"200 {method}") == 3


def test_a_next_nonce_that_cannot_be_read_or_placed_changes_nothing() -> None:
    client = DigestClient(DigestCredentials("alice", "secret"), tokens(1))
    request = Request("MESSAGE", "sip:b@x")

    def signed() -> list[str]:
        client.authorize(request)
        return [parse_auth(value)[1]["nonce"] for value in request.headers.get_all("authorization")]

    client.learn(Response(200, headers=[("Authentication-Info", 'nextnonce="early"')]))
    assert signed() == []
    challenge = Response(401, headers=[("WWW-Authenticate", 'Digest realm="x", nonce="one", qop="auth"')])
    assert client.answer(request, challenge)
    for value in ("nextnonce", 'nextnonce=""', 'rspauth="x"', ""):
        client.learn(Response(200, headers=[("Authentication-Info", value)]))
    client.learn(Response(200, headers=[("Proxy-Authentication-Info", 'nextnonce="two"')]))
    assert signed() == ["one"]
    other = Response(401, headers=[("WWW-Authenticate", 'Digest realm="y", nonce="far", qop="auth"')])
    assert client.answer(request, other)
    client.learn(Response(200, headers=[("Authentication-Info", 'nextnonce="whose"')]))
    assert signed() == ["one", "far"]


def test_a_challenged_invite_is_sent_again_with_its_answer(net: Net) -> None:
    server = DigestAuthenticator("x", {"alice": "secret"}.get, tokens(9), algorithms=("SHA-256",))

    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            verdict, _ = server.check(event.session.request, now)
            if verdict is Verdict.GOOD:
                event.session.accept(now=now)
            else:
                event.session.reject(401, headers=server.challenge(now), now=now)

    net.bob.handler = handle
    call(net, credentials=DigestCredentials("alice", "secret"))
    net.run()
    assert net.alice.told(Answered)
    assert net.sent() == ["INVITE", "401 INVITE", "ACK", "INVITE", "200 INVITE", "ACK"]


def test_a_large_request_leaves_udp_for_tcp() -> None:
    net = Net("udp")
    accepting(net)
    call(net, body=SDP + b"a=" + b"x" * 3000 + b"\r\n")
    net.run()
    vias = [m.headers.top_via.transport for _, m in net.wire if isinstance(m, Request) and m.method == "INVITE"]
    assert vias == ["TCP"] and net.alice.told(Answered)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_edge_hears_of_a_connection_over_which_nothing_was_answered(transport: str) -> None:
    net = Net(transport)
    silent: list[Flow] = []
    net.alice.stack.on_silence = silent.append
    net.bob.handler = lambda event, now: None
    request = net.alice.stack.compose("MESSAGE", net.bob.uri, from_=f"<{net.alice.uri}>")
    net.alice.stack.request(request, net.now, flow=net.flow(net.alice))
    net.run(40.0)
    assert silent == ([net.flow(net.alice)] if transport == "tcp" else [])


def test_a_lost_connection_ends_its_calls_and_requests_at_once() -> None:
    net = Net("tcp")
    mine, theirs = established(net)
    mine.send("INFO", now=net.now)
    net.alice.stack.to_send()
    net.alice.stack.flow_closed(net.flow(net.alice), net.now)
    net.bob.stack.flow_closed(net.flow(net.bob), net.now)
    net.settle()
    assert net.alice.told(Ended)[0].cause is Cause.FLOW_LOST and net.bob.told(Ended)[0].cause is Cause.FLOW_LOST
    assert net.alice.told(RequestFailed) and net.alice.told(FlowLost)
    assert mine.ended and theirs.ended


def test_nothing_is_left_of_an_invitation_whose_connection_is_lost_before_its_answer() -> None:
    net = Net("tcp")
    net.bob.handler = lambda event, now: isinstance(event, InviteReceived) and event.session.progress(180, now=now)
    call(net)
    net.run()
    net.bob.stack.flow_closed(net.flow(net.bob), net.now)
    net.run(60.0)
    assert net.bob.told(Ended)[0].cause is Cause.FLOW_LOST
    assert not net.bob.stack._servers and not net.bob.stack._dialogs


@pytest.mark.parametrize(
    "change, status",
    [
        (lambda r: r.headers.set("Require", "foo, 100rel"), 420),
        (lambda r: setattr(r, "method", "DANCE") or r.headers.set("CSeq", "1 DANCE"), 501),
        (lambda r: setattr(r, "uri", "mailto:x@y"), 416),
        (lambda r: r.headers.set("Content-Type", "text/html"), 415),
        (lambda r: r.headers.set("Content-Encoding", "gzip"), 415),
    ],
)
def test_what_needs_no_application_is_answered_by_the_stack(change: object, status: int) -> None:
    net = Net("tcp")
    request = net.alice.stack.compose(
        "INVITE", net.bob.uri, from_=f"<{net.alice.uri}>", body=SDP, content_type="application/sdp"
    )
    change(request)  # type: ignore[operator]
    net.alice.stack.request(request, net.now, flow=net.flow(net.alice))
    net.run()
    assert [e.response.status for e in net.alice.told(ResponseReceived)] == [status]
    assert not net.bob.told(InviteReceived)


def test_a_stray_bye_cancel_and_notify_get_481(net: Net) -> None:
    for method in ("BYE", "NOTIFY", "PRACK", "UPDATE"):
        request = net.alice.stack.compose(method, net.bob.uri, from_=f"<{net.alice.uri}>")
        net.alice.stack.request(request, net.now, flow=net.flow(net.alice))
    inside = net.alice.stack.compose("INFO", net.bob.uri, from_="<sip:a@x>", to=f"<{net.bob.uri}>;tag=unknown")
    net.alice.stack.request(inside, net.now, flow=net.flow(net.alice))
    net.run()
    assert [e.response.status for e in net.alice.told(ResponseReceived)] == [481] * 5


def test_octets_that_are_half_sip_get_400_and_garbage_silence() -> None:
    net = Net("udp")
    flow = net.flow(net.bob)
    head = (
        "INVITE sip:bob@x SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5061;branch=z9hG4bKq;rport\r\nFrom: <sip:a@x>;tag=1\r\n"
        "To: <sip:b@x>\r\nCall-ID: q\r\nCSeq: x INVITE\r\n\r\n"
    )
    net.bob.stack.receive_octets(head.encode(), flow, net.now)
    net.bob.stack.receive_octets(b"\x00\xff" * 50, flow, net.now)
    net.bob.stack.receive_octets(b"SIP/2.0 200 OK\r\n\r\n", flow, net.now)
    answers = [outgoing.message for outgoing in net.bob.stack.to_send()]
    assert [getattr(m, "status", None) for m in answers] == [400]


def test_the_same_request_by_two_ways_is_merged_away() -> None:
    net = Net("udp")
    request = net.alice.stack.compose("MESSAGE", net.bob.uri, from_=f"<{net.alice.uri}>")
    for _ in range(2):
        net.alice.stack.request(request.copy(), net.now, flow=net.flow(net.alice))
    net.run(0.1)
    assert "482 MESSAGE" in net.sent() and len(net.bob.told(RequestReceived)) == 1


def test_session_timers_refresh_a_long_call_and_end_a_dead_one() -> None:
    """RFC 4028."""
    net = Net("udp", session_expires=120)
    established(net)
    net.run(600.0)
    assert not net.alice.told(Ended) and "UPDATE" in net.sent()
    net.loss = 1.0
    net.run(300.0)
    assert net.alice.told(Ended) and net.bob.told(Ended)


def test_a_dialog_goes_on_from_its_snapshot(net: Net) -> None:
    from mcptt_sip.dialog import Dialog

    mine, _ = established(net)
    assert mine.dialog is not None
    again = Dialog.restore(mine.dialog.snapshot())
    assert again.id == mine.dialog.id and again.snapshot() == mine.dialog.snapshot()
    request = again.request("INFO")
    assert isinstance(request, Request) and request.headers.cseq.number == mine.dialog.local_cseq + 1


def test_options_are_answered_with_what_is_supported(net: Net) -> None:
    request = net.alice.stack.compose("OPTIONS", net.bob.uri, from_=f"<{net.alice.uri}>")
    net.alice.stack.request(request, net.now, flow=net.flow(net.alice))
    net.run()
    response = net.alice.told(ResponseReceived)[0].response
    assert response.status == 200 and "100rel" in response.headers.supported


def test_responses_go_where_the_via_says_unless_rport_is_asked_for() -> None:
    """RFC 3581."""
    net = Net("udp")
    base = (
        "OPTIONS sip:bob@x SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bK{0}{1}\r\nFrom: <sip:a@x>;tag=1\r\n"
        "To: <sip:b@x>\r\nCall-ID: {0}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    )
    flow = Flow("udp", net.bob.address, ("192.0.2.77", 1234))
    for name, rport in (("a", ""), ("b", ";rport")):
        net.bob.stack.receive_octets(base.format(name, rport).encode(), flow, net.now)
    one, two = net.bob.stack.to_send()
    assert one.flow is not None and one.flow.remote == ("192.0.2.77", 5070)
    assert two.flow is not None and two.flow.remote == ("192.0.2.77", 1234)
    via = two.message.headers.top_via
    assert (via.received, via.rport) == ("192.0.2.77", 1234)


def test_a_broken_header_ends_its_transaction_with_400_and_a_repetition_gets_the_same() -> None:
    net = Net("udp")
    net.alice.stack.request(
        net.alice.stack.compose("MESSAGE", net.bob.uri, from_="<sip:a@b>", headers=[("Require", "a,,b")]),
        net.now, flow=net.flow(net.alice),
    )  # fmt: skip
    (outgoing,) = net.alice.stack.to_send()
    back = Flow("udp", net.bob.address, net.alice.address)
    for _ in range(2):
        net.bob.stack.receive_octets(outgoing.octets, back, net.now)
    answers = [sent.octets for sent in net.bob.stack.to_send()]
    assert len(answers) == 2 and answers[0] == answers[1] and answers[0].startswith(b"SIP/2.0 400 ")
    net.bob.stack.handle_timer(net.now + 33.0)
    assert net.bob.stack.next_timer() is None, "the transaction is gone"


def test_a_broken_reinvite_leaves_the_session_free_for_the_next() -> None:
    net = Net("udp")
    mine, theirs = established(net)
    broken = mine.reinvite(headers=[("Contact", "<sip:")], now=net.now)
    net.run()
    assert theirs.pending_invite is None
    assert net.alice.told(ResponseReceived)[-1].response.status == 400
    assert mine.pending_invite is None and broken.method == "INVITE"
    mine.reinvite(body=SDP, content_type="application/sdp", now=net.now)
    net.run()
    assert [e.incoming.method for e in net.bob.told(RequestReceived)] == ["INVITE"]


class SlowAck(Net):
    """ACKs take 100 ms longer than anything else."""

    def fate(self, flow: Flow) -> list[float]:
        _, message = self.wire[-1]
        return [0.11 if isinstance(message, Request) and message.method == "ACK" else 0.01]


@pytest.mark.parametrize("late", [False, True])
def test_a_reinvite_that_overtakes_the_ack_stands_for_it_unless_the_ack_brings_the_answer(late: bool) -> None:
    """RFC 5407 3.1.4 and 3.1.5: proxies with several processes turn the two about."""
    net = SlowAck("udp")

    def bob(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.accept(body=SDP, content_type="application/sdp", now=now)
        elif isinstance(event, RequestReceived):
            event.incoming.respond(200, body=SDP, content_type="application/sdp", now=now)

    def alice(event: object, now: float) -> None:
        if isinstance(event, Answered):
            event.session.reinvite(body=SDP, content_type="application/sdp", now=now)

    net.bob.handler, net.alice.handler = bob, alice
    offer: dict[str, object] = {"body": b"", "content_type": None} if late else {}
    mine = call(net, **offer)
    mine.ack_body = lambda _: ("application/sdp", SDP)
    net.run(60.0)
    (answer,) = net.alice.told(ResponseReceived)
    assert answer.response.status == (500 if late else 200)
    assert len(net.bob.told(Confirmed)) == (1 if late else 2)
    assert net.sent().count("200 INVITE") == (1 if late else 2), "nothing is repeated"
    assert not net.bob.told(Ended) and not net.alice.told(Ended)


def test_too_small_a_session_interval_is_refused_with_the_least_one_and_asked_again() -> None:
    net = Net("udp")
    accepting(net)
    call(net, headers=[("Supported", "timer"), ("Session-Expires", "60")])
    net.run()
    assert net.sent()[:3] == ["INVITE", "422 INVITE", "ACK"]
    (refused,) = [m for _, m in net.wire if not isinstance(m, Request) and m.status == 422]
    assert refused.headers.get("min-se") == "90"
    again = [m for _, m in net.wire if isinstance(m, Request) and m.method == "INVITE"][-1]
    assert again.headers.session_expires is not None and again.headers.session_expires.seconds == 90
    assert len(net.alice.told(Answered)) == 1


def test_an_early_update_waits_until_the_first_offer_is_answered(net: Net) -> None:
    """RFC 3311 5.2."""
    asked: list[int] = []

    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.progress(180, now=now)
        elif isinstance(event, RequestReceived):
            event.incoming.respond(200, body=SDP, content_type="application/sdp", now=now)

    net.bob.handler = handle
    mine = call(net)
    net.run()
    (invited,) = net.bob.told(InviteReceived)
    for reliable in (False, True):
        if reliable:
            invited.session.progress(
                183, reliable=True, body=SDP, content_type="application/sdp", now=net.now
            )
            net.run()
        mine.send("UPDATE", body=SDP, content_type="application/sdp", now=net.now)
        net.run()
        asked.append([event.response.status for event in net.alice.told(ResponseReceived)][-1])
    assert asked == [500, 200]


@pytest.mark.parametrize("answered", [False, True])
def test_an_invitation_expires_unless_it_is_answered(net: Net, answered: bool) -> None:
    """13.3.1: 487 when its Expires is over; the CANCEL of who sent it may be lost."""
    def handle(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            event.session.progress(180, now=now)
            if answered:
                event.session.accept(body=SDP, content_type="application/sdp", now=now)

    net.bob.handler = handle
    mine = call(net, headers=[("Expires", "20")])
    net.run(19.0)
    assert not net.bob.told(Cancelled) and not mine.ended
    net.run(40.0)
    assert len(net.bob.told(Cancelled)) == (not answered)
    assert mine.established if answered else net.alice.told(Refused)[0].response.status == 487


def test_an_explicit_subscription_is_not_promised() -> None:
    """RFC 7614 4: who requires it wants Refer-Events-At in the answer, which is not given here."""
    net = Net("udp")
    assert "explicitsub" not in net.alice.stack.settings.supported
    mine, _ = established(net)
    headers = [("Refer-To", "<sip:c@example.org>"), ("Require", "explicitsub")]
    mine.send("REFER", headers=headers, now=net.now)
    net.run()
    (answer,) = net.alice.told(ResponseReceived)
    assert answer.response.status == 420 and answer.response.headers.unsupported == ["explicitsub"]


@pytest.mark.parametrize(
    ("disposition", "status"),
    [("session", 200), ("session;handling=required", 200), ("foo", 415), ("foo;handling=required", 415),
     ("Foo ; handling = optional", 200), ("early-session", 415)],
)  # fmt: skip
def test_a_body_for_a_purpose_that_is_not_understood_is_415_unless_it_may_be_left_aside(
    disposition: str, status: int
) -> None:
    """20.11."""
    net = Net("udp")
    accepting(net)
    call(net, headers=[("Content-Disposition", disposition)])
    net.run()
    final = [*net.alice.told(Answered), *net.alice.told(Refused)][0].response
    assert final is not None and final.status == status
