# SPDX-License-Identifier: Apache-2.0
"""Where a call goes when its first target is not the last: 3xx, other servers, Replaces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from mcptt_sip.flow import Flow
from mcptt_sip.outgoing import Cause, ResponseReceived
from mcptt_sip.session import Ended, InviteReceived, Refused
from mcptt_sip.stack import SipStack, StackSettings
from tests.sip.joined import Net, tokens

ALICE = "<sip:alice@192.0.2.1>"


def redirecting(net: Net, contacts: str, *, then: int = 200) -> None:
    """Bob's first answer is a 302."""

    def answer(event: Any, now: float) -> None:
        if isinstance(event, InviteReceived):
            if len(net.bob.told(InviteReceived)) == 1:
                event.session.reject(302, headers=[("Contact", contacts)], now=now)
            elif then == 200:
                event.session.accept(now=now)
            else:
                event.session.reject(then, now=now)

    net.bob.handler = answer


def test_a_redirected_call_goes_to_the_contacts_in_the_order_of_q() -> None:
    net = Net()
    redirecting(net, f'<sip:last@192.0.2.1:{net.bob.address[1]}>;q=0.1, <{net.bob.uri};method=INVITE?X=y>;q=0.9')
    session = net.alice.stack.invite("sip:old@192.0.2.1:5062", from_=ALICE, now=net.now, redirects=5)
    net.run()
    first, second = (event.session.request for event in net.bob.told(InviteReceived))
    assert session.established
    assert str(second.uri) == net.bob.uri, "header and method parameters of a contact stay out of a Request-URI"
    assert second.headers.call_id == first.headers.call_id
    assert second.headers.cseq.number == first.headers.cseq.number + 1


def test_after_a_failure_the_next_contact_is_tried_and_none_twice() -> None:
    net = Net()
    port = net.bob.address[1]
    redirecting(net, f"<sip:a@192.0.2.1:{port}>, <sip:old@192.0.2.1:{port}>, <sip:b@192.0.2.1:{port}>", then=486)
    net.alice.stack.invite(f"sip:old@192.0.2.1:{port}", from_=ALICE, now=net.now, redirects=5)
    net.run()
    assert [event.session.request.uri.user for event in net.bob.told(InviteReceived)] == ["old", "a", "b"]
    (refused,) = net.alice.told(Refused)
    assert refused.response.status == 486


def test_a_call_that_follows_no_redirection_is_told_of_it() -> None:
    net = Net()
    redirecting(net, f"<{net.bob.uri}>")
    net.alice.stack.invite(net.bob.uri, from_=ALICE, now=net.now)
    net.run()
    assert [event.response.status for event in net.alice.told(Refused)] == [302]
    assert len(net.bob.told(InviteReceived)) == 1


def two_servers(stack: SipStack, now: float, *, answer: Callable[[Any], Any] | None) -> list[object]:
    """The edge's part: binds each message to the first of two places that it may go to; what the first one says."""
    tried: list[object] = []
    for outgoing in stack.to_send():
        if outgoing.flow is None:
            places = [place for place in ("one", "two") if place not in outgoing.avoid]
            flow = Flow("udp", ("192.0.2.1", 5061), ("192.0.2.9", 5000 + len(places)))
            stack.bind(outgoing, flow, now, place=places[0], more=len(places) > 1)
            tried.append(places[0])
            if answer is not None and places[0] == "one":
                stack.receive(answer(outgoing.message), flow, now)
    return tried


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_a_server_that_says_503_or_nothing_gives_way_to_the_next(method: str) -> None:
    for silent in (False, True):
        stack = SipStack(StackSettings(user="alice", session_expires=0), token=tokens(1))
        if method == "INVITE":
            stack.invite("sip:bob@example.org", from_=ALICE, now=0.0)
        else:
            stack.request(stack.compose("MESSAGE", "sip:bob@example.org", from_=ALICE), 0.0)
        refusal = None if silent else lambda request: request.response(503, to_tag="x")
        tried, now, branches = [], 0.0, set()
        while now < 100.0 and not stack.events():
            tried += two_servers(stack, now, answer=refusal)
            branches |= {key[0] for key in stack._clients}
            due = stack.next_timer()
            now = 100.0 if due is None else due
            stack.handle_timer(now)
        assert [place for place, _ in itertools.groupby(tried)] == ["one", "two"]
        assert len(branches) == 2, "another server, another transaction"
        assert now >= 32.0, "the last one is waited for"


def test_a_call_takes_the_place_of_another() -> None:
    net = Net()
    net.bob.handler = lambda event, now: isinstance(event, InviteReceived) and event.session.accept(now=now)
    old = net.alice.stack.invite(net.bob.uri, from_=ALICE, now=net.now)
    net.run()
    assert old.established and old.dialog is not None
    replaces = f"{old.call_id};to-tag={old.dialog.remote_tag};from-tag={old.local_tag}"
    new = net.alice.stack.invite(net.bob.uri, from_=ALICE, headers=[("Replaces", replaces)], now=net.now)
    net.run()
    assert new.established and old.ended
    assert [event.cause for event in net.bob.told(Ended)] == [Cause.REPLACED]


@pytest.mark.parametrize(
    ("replaces", "status"),
    [
        ("nobody;to-tag=1;from-tag=2", 481),
        ("{call_id};to-tag={to};from-tag={from_};early-only", 486),
        ("{call_id};to-tag={to}", 400),
    ],
)
def test_a_call_that_cannot_be_replaced_goes_on(replaces: str, status: int) -> None:
    net = Net()
    net.bob.handler = lambda event, now: isinstance(event, InviteReceived) and event.session.accept(now=now)
    old = net.alice.stack.invite(net.bob.uri, from_=ALICE, now=net.now)
    net.run()
    assert old.dialog is not None
    value = replaces.format(call_id=old.call_id, to=old.dialog.remote_tag, from_=old.local_tag)
    net.alice.stack.invite(net.bob.uri, from_=ALICE, headers=[("Replaces", value)], now=net.now)
    net.run()
    assert [event.response.status for event in net.alice.told(Refused)] == [status]
    assert old.established


def test_info_outside_a_dialog_is_nobodys() -> None:
    net = Net()
    net.alice.stack.request(net.alice.stack.compose("INFO", net.bob.uri, from_=ALICE), net.now)
    net.run()
    assert [event.response.status for event in net.alice.told(ResponseReceived)] == [481]
