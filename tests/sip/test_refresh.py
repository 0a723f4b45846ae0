# SPDX-License-Identifier: Apache-2.0
"""What a refresh repeats (RFC 4028 7.4), and the Contact of a call to a SIPS URI (RFC 3261 12.1.1); octets in hand."""

from __future__ import annotations

import pytest

from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.message import Request, Response
from mcptt_sip.session import InviteReceived
from mcptt_sip.stack import SipStack, StackSettings
from mcptt_sip.testing import tokens

FLOW = Flow("udp", ("192.0.2.1", 5060), ("192.0.2.9", 5062))
FIRST, SECOND, THIRD = (b"v=0\r\no=- 1 %d IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\n" % version for version in (1, 2, 3))
KIND = "application/sdp"


class Caller:
    """A stack that has called a peer who knows no UPDATE; `say` and `hear` are the peer's."""

    def __init__(self) -> None:
        self.stack = SipStack(StackSettings(session_expires=200), token=tokens(3))
        self.stack.add_listener("udp", "192.0.2.1", 5060)
        self.session = self.stack.invite(
            "sip:bob@192.0.2.9:5062", from_="<sip:alice@192.0.2.1>", body=FIRST, content_type=KIND, now=0.0, flow=FLOW
        )
        (self.invite,) = self.hear()
        assert isinstance(self.invite, Request)
        self.answer(self.invite, 0.0, "Session-Expires: 200;refresher=uac\r\nAllow: INVITE, ACK, BYE\r\n")
        self.hear()

    def hear(self) -> list[Request | Response]:
        return [outgoing.message for outgoing in self.stack.to_send()]

    def answer(self, request: Request, now: float, headers: str = "", status: int = 200) -> None:
        to = str(request.headers.to)
        self.say(
            f"SIP/2.0 {status} X\r\nVia: {request.headers.get('via')}\r\nFrom: {request.headers.from_}\r\n"
            f"To: {to if 'tag=' in to else to + ';tag=b'}\r\nCall-ID: {request.headers.call_id}\r\n"
            f"CSeq: {request.headers.cseq}\r\nContact: <sip:bob@192.0.2.9:5062>\r\n{headers}", now,
            FIRST if status < 300 else b"",
        )  # fmt: skip

    def ask(self, method: str, cseq: int, now: float, headers: str = "", body: bytes = b"") -> None:
        self.say(
            f"{method} sip:192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9:5062;branch=z9hG4bK{method}{cseq}\r\n"
            f"From: {self.invite.headers.to};tag=b\r\nTo: {self.invite.headers.from_}\r\n"
            f"Call-ID: {self.invite.headers.call_id}\r\nCSeq: {cseq} {method}\r\nMax-Forwards: 70\r\n"
            f"Contact: <sip:bob@192.0.2.9:5062>\r\n{headers}", now, body,
        )  # fmt: skip

    def say(self, head: str, now: float, body: bytes) -> None:
        kind = f"Content-Type: {KIND}\r\n" if body else ""
        self.stack.receive_octets(f"{head}{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body, FLOW, now)

    def refresh(self, now: float) -> Request:
        """The re-INVITE that half of the interval brings."""
        self.stack.handle_timer(now)
        (sent,) = (m for m in self.hear() if isinstance(m, Request) and m.method == "INVITE")
        return sent


def test_a_refresh_repeats_what_we_said_last_and_the_least_interval_that_was_heard() -> None:
    caller = Caller()
    assert caller.refresh(100.0).body == FIRST
    caller = Caller()
    caller.ask("INVITE", 1, 10.0, "Session-Expires: 300;refresher=uas\r\nMin-SE: 120\r\nSupported: timer\r\n", FIRST)
    (event,) = (e for e in caller.stack.events() if isinstance(e, RequestReceived))
    event.incoming.respond(200, body=SECOND, content_type=KIND, now=10.0)
    caller.ask("ACK", 1, 10.0)
    caller.hear()
    sent = caller.refresh(110.0)
    assert sent.body == SECOND, "the description of our answer is in force"
    assert sent.headers.get("min-se") == "120"


@pytest.mark.parametrize(("status", "in_force"), [(200, THIRD), (488, FIRST)])
def test_a_refresh_repeats_no_change_of_ours_that_was_refused(status: int, in_force: bytes) -> None:
    caller = Caller()
    caller.session.reinvite(body=THIRD, content_type=KIND, now=5.0)
    (sent,) = caller.hear()
    assert isinstance(sent, Request)
    caller.answer(sent, 5.0, "Session-Expires: 200;refresher=uac\r\n" if status == 200 else "", status)
    caller.hear()
    assert caller.refresh(105.0).body == in_force


def test_a_422_to_a_refresh_is_remembered() -> None:
    caller = Caller()
    sent = caller.refresh(100.0)
    caller.answer(sent, 100.0, "Min-SE: 400\r\n", 422)
    again = next(m for m in caller.hear() if isinstance(m, Request) and m.method == "INVITE")
    assert again.headers.session_expires is not None and again.headers.session_expires.seconds == 400
    assert again.headers.get("min-se") == "400"


@pytest.mark.parametrize(
    ("uri", "contact", "route", "transport", "scheme"),
    [
        ("sips:bob@192.0.2.1", "sips:a@192.0.2.9", "", "tls", "sips"),
        ("sip:bob@192.0.2.1", "sips:a@192.0.2.9", "", "tls", "sips"),
        ("sip:bob@192.0.2.1", "sips:a@192.0.2.9", "Record-Route: <sip:p.example;lr>\r\n", "tls", "sip"),
        ("sip:bob@192.0.2.1", "sip:a@192.0.2.9", "Record-Route: <sips:p.example;lr>\r\n", "tls", "sips"),
        ("sip:bob@192.0.2.1", "sip:a@192.0.2.9", "", "tls", "sip"),
        ("sips:bob@192.0.2.1", "sips:a@192.0.2.9", "", "tcp", "sip"),
    ],
)
def test_who_was_called_by_sips_answers_with_sips(
    uri: str, contact: str, route: str, transport: str, scheme: str
) -> None:
    """12.1.1; where there is no TLS a SIPS URI of ours would lead nowhere."""
    stack = SipStack(StackSettings(), token=tokens(4))
    stack.add_listener(transport, "192.0.2.1", 5061)
    flow = Flow(transport, ("192.0.2.1", 5061), ("192.0.2.9", 40000), 3)
    stack.receive_octets(
        f"INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/{transport.upper()} 192.0.2.9;branch=z9hG4bK1\r\n"
        f"From: <sip:a@x>;tag=1\r\nTo: <{uri}>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\nMax-Forwards: 70\r\n"
        f"{route}Contact: <{contact}>\r\n"
        "Content-Length: 0\r\n\r\n".encode(), flow, 0.0,
    )  # fmt: skip
    (event,) = (e for e in stack.events() if isinstance(e, InviteReceived))
    event.session.accept(now=0.0)
    (answer,) = (outgoing.message for outgoing in stack.to_send())
    expected = "<sips:192.0.2.1:5061>" if scheme == "sips" else f"<sip:192.0.2.1:5061;transport={transport}>"
    assert [str(value) for value in answer.headers.contact] == [expected]
