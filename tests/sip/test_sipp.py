# SPDX-License-Identifier: Apache-2.0
"""SIPp against our user agent over real sockets on loopback: as caller and as callee."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import Answered, Cancelled, Ended, InviteReceived, ProvisionalAcknowledged, Refused
from mcptt_sip.transaction import Timers
from tests.sip.sipp import FOUND, KEPT, SDP, agent, has, keep, needed, recv, request, response, scenario, send, sipp

pytestmark = [pytest.mark.network, pytest.mark.interop, needed("sipp", "sip-tester")]

BODY: dict[str, Any] = {"body": SDP.encode(), "content_type": "application/sdp"}
#: a fifth of the standard's, so that 64*T1 takes 6.4 s
FAST = Timers(t1=0.1)
#: SIPp leaves repetitions to its scenario
COUNTED = "-nr"


def take(event: Any, now: float) -> None:
    """Takes every call and answers every request."""
    if isinstance(event, InviteReceived):
        event.session.progress(180, now=now)
        event.session.accept(**BODY, now=now)
    elif isinstance(event, RequestReceived):
        incoming = event.incoming
        offer = incoming.method in ("INVITE", "UPDATE") and incoming.request.body
        incoming.respond(200, **(BODY if offer else {}), now=now)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_fifty_calls_from_sipp(tmp_path: Path, transport: str) -> None:
    async with agent(transport) as ours:
        ours.on = take
        async with sipp(tmp_path, "uac", "-r", "50", to=ours.port, transport=transport, calls=50) as theirs:
            await theirs.succeeded()
        assert len(ours.told(InviteReceived)) == len(ours.told(Ended)) == 50
        assert not ours.stack._dialogs


def hang_up(event: Any, now: float) -> None:
    """Ends each call once it is answered."""
    if isinstance(event, Answered):
        event.session.bye(now)


#: of each hundred of the messages that are marked so; SIPp and we repeat them
LOST = 20


async def test_calls_from_sipp_over_a_network_that_loses(tmp_path: Path) -> None:
    # transactions by name: a repeated 200 to the INVITE must not pass for the BYE's
    caller = scenario(
        request("INVITE", body=SDP, lost=LOST, retrans=100, start_txn="invite"),
        recv(100, optional="true", response_txn="invite"),
        recv(180, optional="true", response_txn="invite"),
        recv(200, lost=LOST, rrs="true", response_txn="invite"),
        request("ACK", inside=True, lost=LOST, ack_txn="invite"),
        request("BYE", 2, inside=True, lost=LOST, retrans=100, start_txn="bye"),
        recv(200, lost=LOST, response_txn="bye"),
    )
    async with agent() as ours:
        ours.on = take
        async with sipp(tmp_path, caller, "-r", "50", to=ours.port, calls=50) as theirs:
            await theirs.succeeded()
        assert len(ours.told(InviteReceived)) == 50, "a repeated INVITE is no second call"
        await ours.until(Ended, 50)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_fifty_calls_to_sipp(tmp_path: Path, transport: str) -> None:
    async with agent(transport) as ours:
        ours.on = hang_up
        async with sipp(tmp_path, "uas", transport=transport, calls=50) as theirs:
            for _ in range(50):
                ours.call(theirs)
            await ours.until(Answered, 50)
            await theirs.succeeded()
        assert not ours.stack._dialogs


async def test_calls_to_sipp_over_a_network_that_loses(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", lost=LOST),
        response(200, "OK", body=SDP, retrans=100, lost=LOST),
        recv("ACK"),
        recv("BYE", lost=LOST),
        response(200, "OK", tag=None),
    )
    async with agent(timers=FAST) as ours:
        ours.on = hang_up
        async with sipp(tmp_path, callee, calls=50) as theirs:
            for _ in range(50):
                ours.call(theirs)
            await ours.until(Answered, 50)
            await theirs.succeeded()
        assert {event.cause for event in ours.told(Ended)} == {Cause.LOCAL_BYE}


# --- SIPp calls: one call each, as the scenario says to the letter

CALLED: dict[str, str] = {
    "options": scenario(
        request("OPTIONS"), recv(200, has("Allow", "INVITE.*BYE") + has("Supported", "100rel") + has("Accept")), FOUND
    ),
    "max-forwards of 0 is enough for an endpoint": scenario(request("OPTIONS", more="Max-Forwards: 0"), recv(200)),
    "a method that nobody knows": scenario(request("DANCE"), recv(501, has("Allow", "INVITE")), FOUND),
    "an option tag that nobody knows": scenario(
        request("OPTIONS", more="Require: timer, flying"), recv(420, has("Unsupported", "flying")), FOUND
    ),
    "a body that nobody can read": scenario(
        request("INVITE", more="Content-Type: text/frobnicate", body="a\n"),
        recv(100, optional="true"), recv(415, has("Accept", "application/sdp")), request("ACK", inside=True), FOUND,
    ),
    "an answer that nobody could read": scenario(
        request("INVITE", more="Accept: text/frobnicate", body=SDP),
        recv(100, optional="true"), recv(406), request("ACK", inside=True),
    ),
    "bye of no call": scenario(request("BYE"), recv(481)),
    "bye with a tag of no call": scenario(
        send("""BYE sip:ua@[remote_ip]:[remote_port] SIP/2.0
        Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
        From: <sip:sipp@[local_ip]>;tag=1
        To: <sip:ua@[remote_ip]>;tag=nobody
        Call-ID: [call_id]
        CSeq: 7 BYE
        Max-Forwards: 70"""), recv(481),
    ),
    "cancel of nothing": scenario(request("CANCEL"), recv(481)),
    "prack of nothing": scenario(request("PRACK", more="RAck: 1 1 INVITE"), recv(481)),
    "update of nothing": scenario(request("UPDATE"), recv(481)),
    "notify of nothing": scenario(
        request("NOTIFY", more="Event: refer\nSubscription-State: active"), recv(481)
    ),
    "the same request by two ways": scenario(
        request("INVITE", body=SDP, branch="z9hG4bKone[call_number]"), recv(100, optional="true"),
        recv(180, optional="true"), recv(200, rrs="true"),
        request("ACK", inside=True),
        send("""INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
        Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=z9hG4bKtwo[call_number]
        From: <sip:sipp@[local_ip]:[local_port]>;tag=sipp[call_number]
        To: <sip:[service]@[remote_ip]:[remote_port]>
        Call-ID: [call_id]
        CSeq: 1 INVITE
        Contact: <sip:sipp@[local_ip]:[local_port]>
        Max-Forwards: 70"""),
        recv(482),
    ),
    "the call's offer is in the 200": scenario(
        request("INVITE"), recv(100, optional="true"), recv(180, optional="true"),
        recv(200, has("Content-Type", "sdp"), rrs="true"),
        request("ACK", inside=True, body=SDP), request("BYE", 2, inside=True), recv(200), FOUND,
    ),
    "hold and resume": scenario(
        request("INVITE", body=SDP), recv(100, optional="true"), recv(180, optional="true"), recv(200, rrs="true"),
        request("ACK", inside=True),
        request("INVITE", 2, inside=True, body=SDP + "a=sendonly\r\n"), recv(100, optional="true"),
        recv(200, has("Contact")), request("ACK", 2, inside=True),
        request("INVITE", 3, inside=True, body=SDP), recv(100, optional="true"), recv(200),
        request("ACK", 3, inside=True),
        request("BYE", 4, inside=True), recv(200), FOUND,
    ),
    "update with an offer": scenario(
        request("INVITE", body=SDP), recv(100, optional="true"), recv(180, optional="true"), recv(200, rrs="true"),
        request("ACK", inside=True),
        request("UPDATE", 2, inside=True, body=SDP), recv(200, has("Content-Type", "sdp")),
        request("BYE", 3, inside=True), recv(200), FOUND,
    ),
    "info and message in the call": scenario(
        request("INVITE", body=SDP), recv(100, optional="true"), recv(180, optional="true"), recv(200, rrs="true"),
        request("ACK", inside=True),
        request("INFO", 2, inside=True), recv(200), request("MESSAGE", 3, inside=True), recv(200),
        request("BYE", 4, inside=True), recv(200),
    ),
    "an old CSeq, and the call goes on": scenario(
        request("INVITE", 5, body=SDP), recv(100, optional="true"), recv(180, optional="true"), recv(200, rrs="true"),
        request("ACK", 5, inside=True),
        request("INFO", 3, inside=True), recv(500),
        request("BYE", 6, inside=True), recv(200),
    ),
    "session timer": scenario(
        request("INVITE", body=SDP, more="Supported: timer\nSession-Expires: 1800;refresher=uac"),
        recv(100, optional="true"), recv(180, optional="true"),
        recv(200, has("Session-Expires", "1800;refresher=uac"), rrs="true"),
        request("ACK", inside=True), request("BYE", 2, inside=True), recv(200), FOUND,
    ),
    "too small a session interval": scenario(
        request("INVITE", body=SDP, more="Supported: timer\nSession-Expires: 20"),
        recv(100, optional="true"), recv(422, has("Min-SE", "90")), request("ACK", inside=True), FOUND,
    ),
    "the 200 is repeated until its ack": scenario(
        request("INVITE", body=SDP), recv(100, optional="true"), recv(180, optional="true"),
        recv(200, rrs="true"), recv(200), recv(200),
        request("ACK", inside=True), request("BYE", 2, inside=True), recv(200),
    ),
    "no ack at all: bye after 64 T1": scenario(
        request("INVITE", body=SDP), recv(100, optional="true"), recv(180, optional="true"),
        recv(200, rrs="true", next="1"),
        '<label id="1"/>', recv(200, optional="true", next="1"), recv("BYE"),
        send("""SIP/2.0 200 OK
        [last_Via:]
        [last_From:]
        [last_To:]
        [last_Call-ID:]
        [last_CSeq:]"""),
    ),
}  # fmt: skip


REPEATED = {"the 200 is repeated until its ack", "no ack at all: bye after 64 T1"}


@pytest.mark.parametrize("name", CALLED)
async def test_sipp_asks(tmp_path: Path, name: str) -> None:
    async with agent(timers=FAST) as ours:
        ours.on = take
        more = [COUNTED] if name in REPEATED else []
        async with sipp(tmp_path, CALLED[name], *more, to=ours.port) as theirs:
            await theirs.succeeded()


RELIABLE = scenario(
    request("INVITE", body=SDP, more="Supported: 100rel"), recv(100, optional="true"),
    # each repeated until its PRACK comes
    recv(183, has("Require", "100rel") + '<ereg regexp="[0-9]+" search_in="hdr" header="RSeq:" check_it="true" '
         'assign_to="rseq"/>', rrs="true"), recv(183),
    request("PRACK", 2, inside=True, more="RAck: 999 1 INVITE"), recv(481),
    request("PRACK", 3, inside=True, more="RAck: [$rseq] 1 INVITE"), recv(200),
    recv(200, rrs="true"), request("ACK", inside=True), request("BYE", 4, inside=True), recv(200), FOUND,
)  # fmt: skip


async def test_reliable_progress_and_its_prack(tmp_path: Path) -> None:
    async with agent(timers=FAST) as ours:
        def ring(event: Any, now: float) -> None:
            if isinstance(event, InviteReceived):
                event.session.progress(183, reliable=True, now=now)
            elif isinstance(event, ProvisionalAcknowledged):
                event.session.accept(**BODY, now=now)

        ours.on = ring
        async with sipp(tmp_path, RELIABLE, COUNTED, to=ours.port) as theirs:
            await theirs.succeeded()


CANCELS = scenario(
    request("INVITE", body=SDP, branch="z9hG4bK[call_id]"), recv(100, optional="true"), recv(180),
    # as if it had been lost: the answer is the same, and there is no second call
    request("INVITE", body=SDP, branch="z9hG4bK[call_id]"), recv(180),
    request("CANCEL", branch="z9hG4bK[call_id]"), recv(200), recv(487),
    request("ACK", inside=True, branch="z9hG4bK[call_id]"),
)  # fmt: skip


async def test_sipp_cancels_while_it_rings(tmp_path: Path) -> None:
    async with agent(timers=FAST) as ours:
        def ring(event: Any, now: float) -> None:
            if isinstance(event, InviteReceived):
                event.session.progress(180, now=now)

        ours.on = ring
        async with sipp(tmp_path, CANCELS, COUNTED, to=ours.port) as theirs:
            await theirs.succeeded()
        assert len(ours.told(InviteReceived)) == len(ours.told(Cancelled)) == 1


# --- SIPp is called


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "Not Found"), (486, "Busy"), (503, "Later"), (302, "Moved"), (603, "Decline")]
)
async def test_sipp_refuses(tmp_path: Path, status: int, reason: str) -> None:
    callee = scenario(recv("INVITE"), response(100, "Trying"), response(status, reason), recv("ACK"))
    async with agent(timers=FAST) as ours:
        async with sipp(tmp_path, callee) as theirs:
            ours.call(theirs)
            (refused,) = await ours.until(Refused)
            await theirs.succeeded()
        assert (refused.cause, refused.response.status) == (Cause.RESPONSE, status)


async def test_sipp_says_nothing(tmp_path: Path) -> None:
    # 17.1.1.2: at 0, 1, 3, 7, 15, 31 and 63 times T1
    async with agent(timers=FAST) as ours:
        async with sipp(tmp_path, scenario(*[recv("INVITE")] * 7), COUNTED) as theirs:
            ours.call(theirs)
            (refused,) = await ours.until(Refused)
            await theirs.succeeded()
        assert (refused.cause, refused.response) == (Cause.TIMEOUT, None)


async def test_sipp_asks_who_calls(tmp_path: Path) -> None:
    challenge = 'WWW-Authenticate: Digest realm="sipp", nonce="abc", algorithm=MD5, qop="auth"'
    callee = scenario(
        recv("INVITE"), response(401, "Unauthorized", more=challenge), recv("ACK"),
        recv("INVITE", '<verifyauth assign_to="found" username="alice" password="secret"/>'),
        '<nop next="1" test="found"></nop>', response(403, "Forbidden"), recv("ACK", next="2"),
        '<label id="1"/>', response(200, "OK", body=SDP), recv("ACK"), recv("BYE"), response(200, "OK", tag=None),
        '<label id="2"/>',
    )  # fmt: skip
    async with agent(timers=FAST) as ours:
        ours.on = hang_up
        async with sipp(tmp_path, callee) as theirs:
            ours.call(theirs, DigestCredentials("alice", "secret"))
            await ours.until(Answered)
            await theirs.succeeded()


async def test_the_callee_hangs_up(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", keep(), rrs="true"), response(200, "OK", body=SDP, kept=True), recv("ACK"),
        send("""BYE [next_url] SIP/2.0
        Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
        From: <sip:service@[local_ip]:[local_port]>;tag=sipp[call_number]
        To:[$from]
        Call-ID: [call_id]
        CSeq: 1 BYE
        Max-Forwards: 70"""), recv(200), KEPT,
    )  # fmt: skip
    async with agent(timers=FAST) as ours:
        async with sipp(tmp_path, callee) as theirs:
            ours.call(theirs)
            (ended,) = await ours.until(Ended)
            await theirs.succeeded()
        assert ended.cause is Cause.REMOTE_BYE


async def test_a_lost_ack_is_sent_again_for_the_repeated_200(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", keep()), response(200, "OK", body=SDP, kept=True), recv("ACK"),
        response(200, "OK", body=SDP, kept=True), recv("ACK"), KEPT,
    )  # fmt: skip
    async with agent(timers=FAST) as ours:
        async with sipp(tmp_path, callee, COUNTED) as theirs:
            session = ours.call(theirs)
            await theirs.succeeded()
        assert session.established and len(ours.told(Answered)) == 1


async def test_the_second_callee_that_answers_is_acknowledged_and_told_goodbye(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", keep()),
        response(200, "OK", tag="one", body=SDP, kept=True), recv("ACK", has("To", "tag=one")),
        response(200, "OK", tag="two", body=SDP, kept=True), recv("ACK", has("To", "tag=two")),
        recv("BYE", has("To", "tag=two")), response(200, "OK", tag=None), KEPT, FOUND,
    )  # fmt: skip
    async with agent(timers=FAST) as ours:
        async with sipp(tmp_path, callee, COUNTED) as theirs:
            session = ours.call(theirs)
            await theirs.succeeded()
        assert session.established and session.remote_tag == "one"
