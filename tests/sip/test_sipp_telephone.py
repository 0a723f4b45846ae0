# SPDX-License-Identifier: Apache-2.0
"""SIPp against the telephone of ``mcptt ua``: offers and answers (RFC 3264), transfers (RFC 3515, RFC 3420, RFC 5589),
reliable ringing (RFC 3262), registration."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcptt_sip.errors import RegistrationFailed
from tests.sip.sipp import FOUND, KEPT, SDP, has, keep, needed, recv, request, response, scenario, send, sipp
from tests.sip.telephones import telephone

pytestmark = [pytest.mark.network, pytest.mark.interop, needed("sipp", "sip-tester")]

COUNTED = "-nr"  # SIPp leaves repetitions to its scenario
G729 = SDP.replace("RTP/AVP 0", "RTP/AVP 18")
PROVISIONAL = (recv(100, optional="true"), recv(180, optional="true"), recv(183, optional="true"))
RINGING = (*PROVISIONAL, recv(200, rrs="true"), request("ACK", inside=True))
BYE = (request("BYE", 9, inside=True), recv(200))


def body(pattern: str) -> str:
    """An action: fail unless the message holds this."""
    from xml.sax.saxutils import quoteattr

    return f'<ereg regexp={quoteattr(pattern)} search_in="msg" check_it="true" assign_to="found"/>'


MULTIPART = (
    "--frontier\nContent-Type: text/plain\n\nhello\n--frontier\nContent-Type: application/sdp\n\n"
    + SDP.replace("\r\n", "\n") + "--frontier--\n"
)  # fmt: skip


def refused_change(*, offer: str, status: int) -> str:
    """A re-INVITE that is refused, after which the call goes on and ends well."""
    return scenario(
        request("INVITE", body=SDP), *RINGING,
        request("INVITE", 2, inside=True, body=offer, branch="z9hG4bK2[call_number]"), recv(100, optional="true"),
        recv(status), request("ACK", 2, inside=True, branch="z9hG4bK2[call_number]"),
        request("INFO", 3, inside=True), recv(200), *BYE,
    )  # fmt: skip


CALLS: dict[str, str] = {
    "a call is answered with the codec that was offered": scenario(
        request("INVITE", body=SDP), *PROVISIONAL, recv(200, body("m=audio [0-9]+ RTP/AVP 0"), rrs="true"),
        request("ACK", inside=True), *BYE, FOUND,
    ),
    "an offer nobody can answer is refused with a warning": scenario(
        request("INVITE", body=G729), recv(100, optional="true"), recv(488, has("Warning", "305")),
        request("ACK", inside=True), FOUND,
    ),
    "an offer inside a multipart body": scenario(
        request("INVITE", more="Content-Type: multipart/mixed;boundary=frontier", body=MULTIPART), *PROVISIONAL,
        recv(200, has("Content-Type", "application/sdp"), rrs="true"), request("ACK", inside=True), *BYE, FOUND,
    ),
    "the offer is in the 200 and the answer in the ACK": scenario(
        request("INVITE"), *PROVISIONAL, recv(200, body("m=audio [1-9]"), rrs="true"),
        request("ACK", inside=True, body=SDP), *BYE, FOUND,
    ),
    "an ACK without the answer ends the call": scenario(
        request("INVITE"), *PROVISIONAL, recv(200, rrs="true"), request("ACK", inside=True), recv("BYE"),
        send("SIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]"),
    ),
    "hold is answered with recvonly, inactive with inactive, and resumed": scenario(
        request("INVITE", body=SDP), *RINGING,
        request("INVITE", 2, inside=True, body=SDP + "a=sendonly\r\n"), recv(100, optional="true"),
        recv(200, body("a=recvonly")), request("ACK", 2, inside=True),
        request("INVITE", 3, inside=True, body=SDP + "a=inactive\r\n"), recv(100, optional="true"),
        recv(200, body("a=inactive")), request("ACK", 3, inside=True),
        request("INVITE", 4, inside=True, body=SDP), recv(100, optional="true"),
        recv(200, body("a=sendrecv")), request("ACK", 4, inside=True), *BYE, FOUND,
    ),
    "hold of the old kind": scenario(
        request("INVITE", body=SDP), *RINGING,
        request("INVITE", 2, inside=True, body=SDP.replace("c=IN IP4 127.0.0.1", "c=IN IP4 0.0.0.0")),
        recv(100, optional="true"), recv(200, body("a=recvonly")), request("ACK", 2, inside=True), *BYE, FOUND,
    ),
    "a re-INVITE without an offer": scenario(
        request("INVITE", body=SDP), *RINGING,
        request("INVITE", 2, inside=True), recv(100, optional="true"), recv(200, body("m=audio [1-9]")),
        request("ACK", 2, inside=True, body=SDP), *BYE, FOUND,
    ),
    "a re-INVITE that nobody can answer is refused and the call goes on": refused_change(offer=G729, status=488),
    "a re-INVITE with a broken description is refused and the call goes on": refused_change(
        offer="v=0\r\nthis is no SDP\r\n", status=488
    ),
    "an UPDATE that nobody can answer is refused and the call goes on": scenario(
        request("INVITE", body=SDP), *RINGING, request("UPDATE", 2, inside=True, body=G729), recv(488), *BYE,
    ),
    "a second stream is refused in its place": scenario(
        request("INVITE", body=SDP + "m=video 7000 RTP/AVP 31\r\n"), *PROVISIONAL,
        recv(200, body("m=audio [1-9]") + body("m=video 0 "), rrs="true"), request("ACK", inside=True), *BYE, FOUND,
    ),
    "an unknown event package": scenario(
        request("SUBSCRIBE", more="Event: weather\nExpires: 60"), recv(489, has("Allow-Events", "refer")), FOUND,
    ),
    "a message of text": scenario(
        request("MESSAGE", more="Content-Type: text/plain", body="hello\n"), recv(200),
        request("MESSAGE", 2, more="Content-Type: application/x-unknown", body="hello\n"),
        recv(415, has("Accept", "text/plain")), FOUND,
    ),
    "an INFO of an unknown package": scenario(
        request("INVITE", body=SDP), *RINGING,
        request("INFO", 2, inside=True, more="Info-Package: unheard"), recv(469, has("Recv-Info", "")),
        request("INFO", 3, inside=True, more="Content-Type: application/x-unknown", body="x\n"), recv(415), *BYE, FOUND,
    ),
    "a REFER without a target": scenario(
        request("INVITE", body=SDP), *RINGING, request("REFER", 2, inside=True), recv(400),
        request("REFER", 3, inside=True, more="Refer-To: <sip:a@b>\nRefer-To: <sip:c@d>"), recv(400),
        request("REFER", 4, inside=True, more="Refer-To: <http://example.org/>"), recv(416),
        request("REFER", 5, inside=True, more="Refer-To: <sip:a@b;method=BYE>"), recv(603), *BYE,
    ),
    "requests that a telephone does not serve": scenario(
        request("PUBLISH", more="Event: presence"), recv(405, has("Allow", "INVITE")),
        request("REGISTER", 2), recv(405), FOUND,
    ),
    "a re-INVITE of no call": scenario(
        send("""INVITE sip:ua@[remote_ip]:[remote_port] SIP/2.0
        Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
        From: <sip:sipp@[local_ip]>;tag=1
        To: <sip:ua@[remote_ip]>;tag=nobody
        Call-ID: [call_id]
        CSeq: 7 INVITE
        Contact: <sip:sipp@[local_ip]:[local_port]>
        Max-Forwards: 70"""), recv(100, optional="true"), recv(481),
        send("""ACK sip:ua@[remote_ip]:[remote_port] SIP/2.0
        Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=z9hG4bKstray
        From: <sip:sipp@[local_ip]>;tag=1
        To: <sip:ua@[remote_ip]>;tag=nobody
        Call-ID: [call_id]
        CSeq: 7 ACK
        Max-Forwards: 70"""),
        request("OPTIONS", 8), recv(200),
    ),
    "a CANCEL after the 200 changes nothing": scenario(
        request("INVITE", body=SDP, branch="z9hG4bKc[call_number]"), *PROVISIONAL, recv(200, rrs="true"),
        request("ACK", inside=True), request("CANCEL", branch="z9hG4bKc[call_number]"), recv(200), *BYE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
async def test_sipp_calls_a_telephone(tmp_path: Path, name: str) -> None:
    async with telephone() as ours, sipp(tmp_path, CALLS[name], to=ours.port) as theirs:
        await theirs.succeeded()


async def test_digits_by_info_are_told(tmp_path: Path) -> None:
    relay = "Content-Type: application/dtmf-relay"
    dials = scenario(
        request("INVITE", body=SDP), *RINGING,
        request("INFO", 2, inside=True, more=relay, body="Signal=5\nDuration=160\n"), recv(200),
        request("INFO", 3, inside=True, more=relay, body="Signal= #\nDuration=160\n"), recv(200), *BYE,
    )  # fmt: skip
    async with telephone() as ours:
        async with sipp(tmp_path, dials, to=ours.port) as theirs:
            await theirs.succeeded()
        assert [digit["digit"] for digit in ours.told("digit")] == ["5", "#"]


@pytest.mark.parametrize("code", [404, 486, 603])
async def test_a_telephone_refuses_as_it_was_told(tmp_path: Path, code: int) -> None:
    caller = scenario(
        request("INVITE", body=SDP), recv(100, optional="true"), recv(code), request("ACK", inside=True)
    )
    async with telephone(reject=code) as ours, sipp(tmp_path, caller, to=ours.port) as theirs:
        await theirs.succeeded()


async def test_a_telephone_rings_until_the_caller_cancels(tmp_path: Path) -> None:
    caller = scenario(
        request("INVITE", body=SDP, branch="z9hG4bK[call_id]"), recv(100, optional="true"), recv(180),
        request("CANCEL", branch="z9hG4bK[call_id]"), recv(200), recv(487),
        request("ACK", inside=True, branch="z9hG4bK[call_id]"),
    )  # fmt: skip
    async with telephone(ring=True) as ours:
        async with sipp(tmp_path, caller, COUNTED, to=ours.port) as theirs:
            await theirs.succeeded()
        assert not ours.told("answered") and not ours.agent.stack._dialogs


async def test_a_telephone_hangs_up_after_its_time(tmp_path: Path) -> None:
    caller = scenario(
        request("INVITE", body=SDP), *RINGING, recv("BYE"),
        send("SIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]"),
    )
    async with telephone(hangup_after=0.05, answer_after=0.05) as ours:
        async with sipp(tmp_path, caller, to=ours.port) as theirs:
            await theirs.succeeded()
        await ours.until("ended")


# --- reliable ringing

RSEQ = '<ereg regexp="[0-9]+" search_in="hdr" header="RSeq:" check_it="true" assign_to="rseq"/>'


@pytest.mark.parametrize("how", ["Supported", "Require"])
async def test_a_reliable_180_is_repeated_until_its_prack(tmp_path: Path, how: str) -> None:
    caller = scenario(
        request("INVITE", body=SDP, more=f"{how}: 100rel"), recv(100, optional="true"),
        recv(180, has("Require", "100rel") + RSEQ, rrs="true"), recv(180),
        request("PRACK", 2, inside=True, more="RAck: 1 77 INVITE"), recv(481), recv(180),
        request("PRACK", 3, inside=True, more="RAck: [$rseq] 1 INVITE"), recv(200),
        request("PRACK", 4, inside=True, more="RAck: [$rseq] 1 INVITE"), recv(481),
        recv(200, rrs="true"), request("ACK", inside=True), *BYE, FOUND,
    )  # fmt: skip
    always = how == "Supported"
    async with telephone(reliable=always, answer_after=1.2) as ours, sipp(
        tmp_path, caller, COUNTED, to=ours.port
    ) as theirs:
        await theirs.succeeded()


async def test_a_prack_that_is_lost_is_sent_again_and_progress_comes_in_order(tmp_path: Path) -> None:
    rel = "Require: 100rel\nRSeq: {}"
    callee = scenario(
        recv("INVITE", keep() + has("Require", "100rel")),
        response(180, "Ringing", kept=True, more=rel.format(7)), recv("PRACK"),  # not answered: as if lost
        recv("PRACK", has("RAck", "7 [0-9]+ INVITE"), crlf="true"), response(200, "OK", tag=None),
        response(183, "Progress", kept=True, more=rel.format(9)),  # out of order: no PRACK
        response(183, "Progress", kept=True, more=rel.format(8)),
        recv("PRACK", has("RAck", "8 [0-9]+ INVITE")), response(200, "OK", tag=None),
        response(200, "OK", kept=True, body=SDP), recv("ACK"), recv("BYE"), response(200, "OK", tag=None),
        KEPT, FOUND,
    )  # fmt: skip
    async with telephone(reliable=True, hangup_after=0.0) as ours:
        async with sipp(tmp_path, callee, COUNTED) as theirs:
            await ours.place(theirs.uri)
            await theirs.succeeded()
        assert [progress["status"] for progress in ours.told("progress")] == [180, 183]


# --- transfer


def notified(status: str, *, last: bool) -> str:
    state = "terminated" if last else "active"
    return recv("NOTIFY", has("Event", "refer") + has("Subscription-State", state) + body(f"SIP/2.0 {status}"))


OK = response(200, "OK", tag=None)
CALLEE = scenario(recv("INVITE", has("Referred-By", "sipp")), response(200, "OK", body=SDP), recv("ACK"), FOUND)
BUSY = scenario(recv("INVITE"), response(486, "Busy"), recv("ACK"))


@pytest.mark.parametrize(("answer", "told"), [(CALLEE, "200 OK"), (BUSY, "486 Busy")])
async def test_a_refer_is_followed_and_its_outcome_told(tmp_path: Path, answer: str, told: str) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    async with telephone() as ours, sipp(there, answer) as target:
        wish = f"Refer-To: <{target.uri}>\nReferred-By: <sip:sipp@127.0.0.1>"
        refers = scenario(
            request("INVITE", body=SDP), *RINGING, request("REFER", 2, inside=True, more=wish),
            recv(200, optional="true"), notified("100 Trying", last=False), OK, notified(told, last=True), OK,
            request("BYE", 9, inside=True), recv(200), FOUND,
        )  # fmt: skip
        async with sipp(here, refers, to=ours.port) as theirs:
            await theirs.succeeded()
            await target.succeeded()


@pytest.mark.parametrize("how", ["Refer-Sub: false\nSupported: norefersub", "Require: nosub"])
async def test_a_refer_without_subscription_is_followed_in_silence(tmp_path: Path, how: str) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    callee = scenario(recv("INVITE"), response(200, "OK", body=SDP), recv("ACK"))
    async with telephone() as ours, sipp(there, callee) as target:
        confirm = has("Refer-Sub", "false") if how.startswith("Refer") else ""
        refers = scenario(
            request("INVITE", body=SDP), *RINGING,
            request("REFER", 2, inside=True, more=f"Refer-To: <{target.uri}>\n{how}"), recv(200, confirm),
            *BYE, FOUND if confirm else "",
        )  # fmt: skip
        async with sipp(here, refers, to=ours.port) as theirs:
            await theirs.succeeded()
            await target.succeeded()


async def test_a_refer_outside_the_dialog_names_its_call(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    callee = scenario(recv("INVITE"), response(200, "OK", body=SDP), recv("ACK"))
    async with telephone() as ours, sipp(there, callee) as target:
        tag = '<ereg regexp="tag=([^;]*)" search_in="hdr" header="To:" check_it="true" assign_to="all,totag"/>'
        refers = scenario(
            request("INVITE", body=SDP), *PROVISIONAL, recv(200, tag, rrs="true"), request("ACK", inside=True),
            send(f"""REFER sip:ua@[remote_ip]:[remote_port] SIP/2.0
            Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
            From: <sip:sipp@[local_ip]:[local_port]>;tag=other
            To: <sip:ua@[remote_ip]:[remote_port]>
            Call-ID: other///[call_id]
            CSeq: 1 REFER
            Contact: <sip:sipp@[local_ip]:[local_port]>
            Max-Forwards: 70
            Refer-To: <{target.uri}>
            Require: tdialog
            Target-Dialog: [call_id];local-tag=[$totag];remote-tag=sipp[call_number]"""),
            recv(200, optional="true"), recv("NOTIFY"), OK, recv("NOTIFY"), OK,
            '<Reference variables="all,totag"/>',
        )  # fmt: skip
        ours.agent.follow_refers = "in-dialog"
        async with sipp(here, refers, to=ours.port) as theirs:
            await theirs.succeeded()
            await target.succeeded()


async def test_a_refer_of_a_stranger_is_forbidden(tmp_path: Path) -> None:
    refers = scenario(request("REFER", more="Refer-To: <sip:premium@example.org>"), recv(403))
    async with telephone() as ours:
        ours.agent.follow_refers = "in-dialog"
        async with sipp(tmp_path, refers, to=ours.port) as theirs:
            await theirs.succeeded()


# --- the telephone calls


async def test_a_telephone_follows_a_redirection(tmp_path: Path) -> None:
    moved = scenario(
        recv("INVITE"), send("""SIP/2.0 302 Moved
        [last_Via:]
        [last_From:]
        [last_To:];tag=sipp
        [last_Call-ID:]
        [last_CSeq:]
        Contact: <sip:new@[local_ip]:[local_port]>"""), recv("ACK"),
        recv("INVITE", body("INVITE sip:new@")), response(200, "OK", body=SDP), recv("ACK"),
        recv("BYE"), OK, FOUND,
    )  # fmt: skip
    async with telephone(hangup_after=0.0) as ours, sipp(tmp_path, moved) as theirs:
        await ours.place(theirs.uri)
        await theirs.succeeded()


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256", "SHA-512-256", "MD5-sess"])
@pytest.mark.parametrize("kind", [(401, "WWW-Authenticate", "Authorization"),
                                  (407, "Proxy-Authenticate", "Proxy-Authorization")])  # fmt: skip
async def test_a_telephone_answers_a_challenge(
    tmp_path: Path, algorithm: str, kind: tuple[int, str, str]
) -> None:
    status, ask, answer = kind
    challenge = f'{ask}: Digest realm="sipp", nonce="abc", algorithm={algorithm}, qop="auth,auth-int", opaque="o"'
    callee = scenario(
        recv("INVITE"), response(status, "Who", more=challenge), recv("ACK"),
        recv("INVITE", has(answer, f"algorithm={algorithm}.*nc=00000001") + has(answer, 'opaque="o"')),
        response(200, "OK", body=SDP), recv("ACK"), recv("BYE"), OK, FOUND,
    )  # fmt: skip
    async with telephone(user="alice", password="secret", hangup_after=0.0) as ours, sipp(tmp_path, callee) as theirs:
        await ours.place(theirs.uri)
        await theirs.succeeded()


async def test_a_telephone_with_the_wrong_password_is_told_so(tmp_path: Path) -> None:
    challenge = 'WWW-Authenticate: Digest realm="sipp", nonce="{}", algorithm=MD5, qop="auth"'
    callee = scenario(
        recv("INVITE"), response(401, "Who", more=challenge.format("a")), recv("ACK"),
        recv("INVITE"), response(401, "Who", more=challenge.format("b")), recv("ACK"),
    )  # fmt: skip
    async with telephone(user="alice", password="wrong") as ours:
        async with sipp(tmp_path, callee) as theirs:
            await ours.place(theirs.uri)
            await theirs.succeeded()
        assert [failed["status"] for failed in ours.told("call-failed")] == [401]


async def test_a_stale_nonce_is_answered_again(tmp_path: Path) -> None:
    challenge = 'WWW-Authenticate: Digest realm="sipp", nonce="{}", algorithm=MD5, qop="auth"{}'
    callee = scenario(
        recv("INVITE"), response(401, "Who", more=challenge.format("a", "")), recv("ACK"),
        recv("INVITE", has("Authorization", 'nonce="a"')),
        response(401, "Who", more=challenge.format("b", ", stale=TRUE")), recv("ACK"),
        recv("INVITE", has("Authorization", 'nonce="b"')), response(200, "OK", body=SDP), recv("ACK"),
        recv("BYE"), OK, FOUND,
    )  # fmt: skip
    async with telephone(user="alice", password="secret", hangup_after=0.0) as ours, sipp(tmp_path, callee) as theirs:
        await ours.place(theirs.uri)
        await theirs.succeeded()


async def test_several_early_dialogs_and_the_one_that_answers(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", keep()), response(180, "Ringing", tag="one", kept=True),
        response(180, "Ringing", tag="two", kept=True), response(183, "Progress", tag="three", kept=True, body=SDP),
        response(200, "OK", tag="two", kept=True, body=SDP), recv("ACK", has("To", "tag=two")),
        recv("BYE", has("To", "tag=two")), OK, KEPT, FOUND,
    )  # fmt: skip
    async with telephone(hangup_after=0.0) as ours, sipp(tmp_path, callee) as theirs:
        await ours.place(theirs.uri)
        await theirs.succeeded()


async def test_an_answer_that_cannot_be_done_gets_ack_and_bye(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE"), response(200, "OK", body=G729), recv("ACK"), recv("BYE", has("Reason", "cause=488")), OK, FOUND
    )
    async with telephone() as ours:
        async with sipp(tmp_path, callee) as theirs:
            await ours.place(theirs.uri)
            await theirs.succeeded()
        assert ours.told("call-failed")


async def test_a_call_without_offer_answers_in_its_ack(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", has("Content-Length", "0")), response(200, "OK", body=SDP),
        recv("ACK", body("m=audio [1-9][0-9]* RTP/AVP 0")), recv("BYE"), OK, FOUND,
    )
    async with telephone(late_offer=True, hangup_after=0.0) as ours, sipp(tmp_path, callee) as theirs:
        await ours.place(theirs.uri)
        await theirs.succeeded()


async def test_a_hundred_and_then_nothing_is_cancelled_when_the_telephone_stops(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", keep()), response(100, "Trying", tag=None), recv("CANCEL"), OK,
        response(487, "Terminated", kept=True), recv("ACK"), KEPT,
    )  # fmt: skip
    async with telephone() as ours, sipp(tmp_path, callee) as theirs:
        call = await ours.agent.dial(theirs.uri)
        await call.hang_up()
        await theirs.succeeded()
        await call.ended.wait()


async def test_a_telephone_holds_and_resumes(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", keep()), response(200, "OK", body=SDP), recv("ACK"),
        recv("INVITE", body("a=sendonly")), response(200, "OK", tag=None, body=SDP + "a=recvonly\r\n"), recv("ACK"),
        recv("INVITE", body("a=sendrecv") + body("o=- [0-9]+ 3 ")), response(200, "OK", tag=None, body=SDP),
        recv("ACK"),
        recv("BYE"), OK, KEPT, FOUND,
    )  # fmt: skip
    async with telephone() as ours, sipp(tmp_path, callee) as theirs:
        call = await ours.agent.call(theirs.uri)
        await call.hold()
        assert call.media is not None and call.media.negotiation.agreed is not None
        assert not call.media.negotiation.agreed.receives
        await call.resume()
        assert call.media.negotiation.agreed.receives and call.media.negotiation.agreed.sends
        await call.hang_up()
        await theirs.succeeded()


async def test_a_telephone_transfers_its_peer(tmp_path: Path) -> None:
    callee = scenario(
        recv("INVITE", keep(), rrs="true"), response(200, "OK", body=SDP, kept=True), recv("ACK"),
        recv("REFER", has("Refer-To", "sip:carol@example.org")), response(200, "OK", tag=None),
        send("""NOTIFY [next_url] SIP/2.0
        Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
        From: <sip:service@[local_ip]:[local_port]>;tag=sipp[call_number]
        To:[$from]
        Call-ID: [call_id]
        CSeq: 1 NOTIFY
        Contact: <sip:[local_ip]:[local_port]>
        Event: refer
        Subscription-State: terminated;reason=noresource
        Content-Type: message/sipfrag
        Max-Forwards: 70""", body="SIP/2.0 200 OK\n"), recv(200),
        recv("BYE"), OK, KEPT, FOUND,
    )  # fmt: skip
    async with telephone() as ours, sipp(tmp_path, callee) as theirs:
        call = await ours.agent.call(theirs.uri)
        assert await call.transfer("sip:carol@example.org") == 200
        await call.hang_up()
        await theirs.succeeded()


# --- registration

CONTACT = "Contact: <sip:ua@127.0.0.1>;expires=1800"
CHALLENGE = 'WWW-Authenticate: Digest realm="sipp", nonce="{}", algorithm=MD5, qop="auth"{}'


async def test_a_telephone_registers_with_its_password_and_leaves_when_it_stops(tmp_path: Path) -> None:
    verify = '<verifyauth assign_to="found" username="alice" password="secret"/>'
    registrar = scenario(
        recv("REGISTER", has("Contact", "sip:.*:[0-9]+") + has("Expires", "3600") + has("To", "sip:alice@127.0.0.1>")),
        response(401, "Who", more=CHALLENGE.format("a", "")),
        recv("REGISTER", verify), '<nop next="1" test="found"></nop>', response(403, "Forbidden", next="2"),
        '<label id="1"/>', response(200, "OK", more="Expires: 1800"),
        recv("REGISTER", has("Expires", "^ 0")), response(200, "OK"), '<label id="2"/>', FOUND,
    )  # fmt: skip
    async with sipp(tmp_path, registrar) as theirs:
        async with telephone(user="alice", password="secret", register=theirs.uri.replace("service", "alice")) as ours:
            await ours.register()
            assert [told["expires"] for told in ours.told("registered")] == [1800]
        await theirs.succeeded()


async def test_the_wrong_password_and_a_stale_nonce_of_a_registration(tmp_path: Path) -> None:
    registrar = scenario(
        recv("REGISTER"), response(401, "Who", more=CHALLENGE.format("a", "")),
        recv("REGISTER"), response(401, "Who", more=CHALLENGE.format("b", ", stale=true")),
        recv("REGISTER", has("Authorization", 'nonce="b"')), response(401, "Who", more=CHALLENGE.format("c", "")),
        FOUND,
    )  # fmt: skip
    async with sipp(tmp_path, registrar) as theirs:
        async with telephone(user="alice", password="wrong", register=theirs.uri) as ours:
            await ours.register()
            assert [told["status"] for told in ours.told("registration-failed")] == [401]
        await theirs.succeeded()


async def test_too_brief_a_registration_is_asked_for_again(tmp_path: Path) -> None:
    registrar = scenario(
        recv("REGISTER"), response(423, "Too Brief", more="Min-Expires: 7200"),
        recv("REGISTER", has("Expires", "7200")), response(200, "OK", more="Expires: 7200"),
        recv("REGISTER"), response(200, "OK"), FOUND,
    )  # fmt: skip
    async with sipp(tmp_path, registrar) as theirs:
        async with telephone(register=theirs.uri) as ours:
            await ours.register()
            assert ours.registration is not None and ours.registration.expires == 7200
            await ours.registration.close()
        await theirs.succeeded()


async def test_a_registration_that_is_refused_says_why(tmp_path: Path) -> None:
    registrar = scenario(recv("REGISTER"), response(403, "Forbidden"))
    async with sipp(tmp_path, registrar) as theirs, telephone() as ours:
        with pytest.raises(RegistrationFailed) as refused:
            await ours.agent.register(theirs.uri)
        assert refused.value.status == 403
        await theirs.succeeded()
