# SPDX-License-Identifier: Apache-2.0
"""The proxy of RFC 3261 16 between user agents, with the clock in the hand: forwarding, forking, the best answer,
CANCEL, dialogs that stay on the way, loops, late answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.auth import DigestAuthenticator, DigestCredentials, Verdict
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.message import Request, Response, parse
from mcptt_sip.outgoing import Outgoing, ResponseReceived
from mcptt_sip.proxy import Forwarding, ProxySettings, RequestToForward, SipProxy, Target
from mcptt_sip.services import StackSettings
from mcptt_sip.session import (
    Answered,
    Cancelled,
    Confirmed,
    Ended,
    InviteReceived,
    InviteSession,
    Progressed,
    Refused,
)
from mcptt_sip.stack import FlowLost
from mcptt_sip.testing import StackEnd, StackPair, tokens
from mcptt_sip.uri import SipUri

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
BODY: dict[str, Any] = {"body": SDP, "content_type": "application/sdp"}
NAMES = ("alice", "bob", "carol", "dave")


class ProxyEnd(StackEnd):
    """The proxy's place."""

    def __init__(self, port: int, settings: ProxySettings, stack: StackSettings) -> None:
        super().__init__("proxy", port)
        self.stack = SipProxy(stack, token=tokens(port), proxying=settings)  # type: ignore[assignment]


class ProxyNet(StackPair):
    """Four telephones and one proxy, through which alice calls; ``targets`` is where the proxy sends a request."""

    def __init__(self, transport: str = "udp", *, loss: float = 0.0, **proxying: Any) -> None:
        super().__init__(transport, loss=loss)
        self.proxy = ProxyEnd(5060, ProxySettings(**proxying), StackSettings())
        self.carol, self.dave = (StackEnd(name, 5063 + n) for n, name in enumerate(("carol", "dave")))
        for end in (self.proxy, self.carol, self.dave):
            self.ends[end.address] = end
            end.stack.add_listener("udp", *end.address)
            end.stack.add_listener("tcp", *end.address)
        self.targets: Callable[[Forwarding], list[Target]] = lambda _: [Target(self.bob.uri)]
        self.proxy.handler = self._route
        for end in (self.alice, self.bob, self.carol, self.dave):
            end.handler = self.answering()

    def _route(self, event: object, now: float) -> None:
        if isinstance(event, RequestToForward):
            event.forwarding.to(self.targets(event.forwarding), now)

    def dispatch(self, end: StackEnd, outgoing: Outgoing) -> None:
        flow = outgoing.flow
        if flow is None:
            assert outgoing.target is not None
            uri = SipUri.parse(outgoing.target)
            transport = uri.param("transport") or self.transport
            flow = Flow(transport, end.address, (uri.host, uri.port or 5060), 0 if transport == "udp" else 7)
            octets = end.stack.bind(outgoing, flow, self.now)
        else:
            octets = outgoing.octets
        self._send(octets, flow)

    def answering(self, status: int = 200, after: str = "") -> Callable[[object, float], None]:
        """What a telephone does with an INVITE: answers so; ``ring`` and stays at it."""

        def handle(event: object, now: float) -> None:
            if isinstance(event, InviteReceived):
                event.session.progress(180, now=now)
                if after != "ring":
                    take(event.session, status, now)
            elif isinstance(event, RequestReceived):
                event.incoming.respond(status if status >= 300 else 200, now=now)

        return handle

    def call(self, **more: Any) -> InviteSession:
        return self.alice.stack.invite(
            "sip:bob@example.org", from_=f"<{self.alice.uri}>", now=self.now, target="sip:192.0.2.1:5060;lr",
            **(BODY | more),
        )

    def ask(self, method: str = "MESSAGE", *, target: str = "sip:192.0.2.1:5060;lr", **more: Any) -> None:
        request = self.alice.stack.compose(method, "sip:bob@example.org", from_=f"<{self.alice.uri}>", **more)
        self.alice.stack.request(request, self.now, target=target)

    def arrived(self, end: StackEnd, method: str) -> list[Request]:
        """The requests that were sent to ``end``."""
        return [message for at, message, to in self.log if to is end and isinstance(message, Request)
                and message.method == method]  # fmt: skip

    @property
    def statuses(self) -> list[int]:
        """The final answers that alice was given."""
        told = [e.response.status for e in self.alice.told(Answered) if e.response is not None]
        told += [e.response.status for e in self.alice.told(Refused) if e.response is not None]
        return told + [e.response.status for e in self.alice.told(ResponseReceived) if e.response.status >= 200]

    log: list[tuple[float, Request | Response, StackEnd]]

    def _send(self, octets: bytes, flow: Flow) -> None:
        if not hasattr(self, "log"):
            self.log = []
        self.log.append((self.now, parse(octets), self.ends[flow.remote]))
        super()._send(octets, flow)

    def nothing_left(self) -> None:
        for end in self.ends.values():
            assert not end.stack._clients and not end.stack._servers, end.name
            assert end.stack.next_timer() is None, end.name


def take(session: InviteSession, status: int, now: float) -> None:
    if status < 300:
        session.accept(**BODY, now=now)  # type: ignore[attr-defined]
    else:
        session.reject(status, now=now)  # type: ignore[attr-defined]


def keeping(found: list[Forwarding]) -> Callable[[object, float], None]:
    """A proxy that does not decide yet."""

    def handle(event: object, _now: float) -> None:
        if isinstance(event, RequestToForward):
            found.append(event.forwarding)

    return handle


def place(uri: object) -> str:
    """A Record-Route entry without what the proxy knows its dialogs by."""
    return re.sub(r"^(sips?:)[0-9a-f]{20}@", r"\1", str(uri))


@pytest.fixture(params=["udp", "tcp"])
def net(request: pytest.FixtureRequest) -> ProxyNet:
    return ProxyNet(request.param)


def test_a_call_through_the_proxy_from_invite_to_bye(net: ProxyNet) -> None:
    session = net.call()
    net.run(5.0)
    assert net.statuses == [200] and [e.response.status for e in net.alice.told(Progressed)] == [180]
    (invited,) = net.bob.told(InviteReceived)
    assert len(net.bob.told(Confirmed)) == 1, "the ACK came through"
    request = invited.session.request
    assert request.headers.max_forwards == 69 and len(request.headers.via) == 2
    transport = ";transport=tcp" if net.transport == "tcp" else ""
    assert [place(r.uri) for r in request.headers.record_route] == [f"sip:192.0.2.1:5060{transport};lr"]
    assert str(request.headers.contact[0].uri).startswith("sip:alice@"), "the Contact is the caller's own"
    assert str(request.uri) == net.bob.uri and request.body == SDP
    session.send("INFO", now=net.now)
    net.run()
    invited.session.bye(net.now)
    net.run(60.0)
    assert len(net.arrived(net.proxy, "BYE")) == 1 and len(net.arrived(net.alice, "BYE")) == 1, "the dialog stays here"
    assert len(net.arrived(net.bob, "INFO")) == 1 and len(net.alice.told(Ended)) == 1
    assert not net.proxy.told(RequestToForward)[1:], "a request in a dialog goes on by itself"
    net.nothing_left()


def test_without_record_route_the_dialog_goes_directly() -> None:
    net = ProxyNet(record_route=False)
    session = net.call()
    net.run()
    session.bye(net.now)
    net.run(60.0)
    assert not net.arrived(net.proxy, "BYE") and len(net.arrived(net.bob, "BYE")) == 1
    net.nothing_left()


def test_two_lines_of_record_route_where_the_transport_changes() -> None:
    """RFC 5658: each side reaches the proxy by its own transport."""
    net = ProxyNet("udp")
    net.targets = lambda _: [Target(f"{net.bob.uri};transport=tcp")]
    session = net.call()
    net.run()
    (invited,) = net.bob.told(InviteReceived)
    routes = [place(r.uri) for r in invited.session.request.headers.record_route]
    assert routes == ["sip:192.0.2.1:5060;transport=tcp;lr", "sip:192.0.2.1:5060;lr"]
    invited.session.send("INFO", now=net.now)
    session.send("INFO", now=net.now)
    net.run()
    assert len(net.arrived(net.alice, "INFO")) == 1 and len(net.arrived(net.bob, "INFO")) == 1
    session.bye(net.now)
    net.run(60.0)
    net.nothing_left()


def test_all_are_rung_and_who_answers_first_has_the_call(net: ProxyNet) -> None:
    net.targets = lambda _: [Target(end.uri) for end in (net.bob, net.carol, net.dave)]
    net.bob.handler = net.dave.handler = net.answering(after="ring")
    net.carol.handler = net.answering()
    net.call()
    net.run(5.0)
    assert net.statuses == [200]
    for end in (net.bob, net.dave):
        assert len(net.arrived(end, "CANCEL")) == 1 and len(end.told(Cancelled)) == 1
    assert not net.arrived(net.carol, "CANCEL") and len(net.carol.told(Confirmed)) == 1


def test_two_who_answer_at_once_are_both_told_of() -> None:
    """16.7 step 5: every 2xx to an INVITE goes on."""
    net = ProxyNet()
    net.targets = lambda _: [Target(net.bob.uri), Target(net.carol.uri)]
    net.call()
    net.run(5.0)
    assert len([m for _, m, to in net.log if to is net.alice and isinstance(m, Response) and m.status == 200
                and m.headers.cseq.method == "INVITE"]) >= 2  # fmt: skip
    assert len(net.bob.told(Confirmed)) + len(net.carol.told(Confirmed)) >= 1


@pytest.mark.parametrize(
    ("answers", "best"),
    [
        ((486, 404), 486), ((404, 486), 404), ((503, 486), 486), ((503, 503), 500), ((302, 404), 302),
        ((603, 404), 603), ((480, 407), 407), ((500, 486), 486), ((486, 415), 415), ((408, 486), 486),
    ],
)  # fmt: skip
def test_the_best_answer_is_chosen_when_all_have_answered(answers: tuple[int, int], best: int, net: ProxyNet) -> None:
    net.targets = lambda _: [Target(net.bob.uri), Target(net.carol.uri)]
    for end, status in zip((net.bob, net.carol), answers, strict=True):
        end.handler = net.answering(status)
    net.call()
    net.run(5.0)
    assert net.statuses == [best]
    net.run(120.0)
    net.nothing_left()


# --- RFC 6228: early dialogs that are over


@pytest.mark.parametrize(
    ("headers", "told"),
    [([("Supported", "199")], True), ([("Supported", "timer")], False),
     ([("Supported", "199, 100rel"), ("Require", "100rel")], False)],
)  # fmt: skip
def test_the_caller_is_told_of_the_early_dialog_of_a_branch_that_failed(
    headers: list[tuple[str, str]], told: bool
) -> None:
    net = ProxyNet()
    net.targets = lambda _: [Target(net.bob.uri), Target(net.carol.uri)]
    net.bob.handler = net.carol.handler = net.answering(after="ring")
    session = net.call(headers=headers)
    net.run(1.0)
    first, second = (end.told(InviteReceived)[0].session for end in (net.bob, net.carol))
    take(first, 486, net.now)
    net.run(1.0)
    ends = [m for _, m, to in net.log if to is net.alice and isinstance(m, Response) and m.status == 199]
    assert len(ends) == told and net.statuses == []
    if told:
        assert ends[0].headers.to.tag == first.local_tag and ends[0].headers.reason[0].cause == 486
        assert set(session.dialogs) == {second.local_tag}
    take(second, 404, net.now)
    net.run(60.0)
    assert net.statuses == [486]
    assert sum(isinstance(m, Response) and m.status == 199 for _, m, to in net.log if to is net.alice) == told
    net.nothing_left()


# --- RFC 5393 5: how many at a time


def breadths(net: ProxyNet, *ends: StackEnd, method: str = "INVITE") -> list[list[str]]:
    return [[m.headers.get("max-breadth") or "" for m in net.arrived(end, method)] for end in ends]


@pytest.mark.parametrize(
    ("asked", "shares"),
    [(None, ["20", "20", "20"]), ("60", ["20", "20", "20"]), ("9999999999999", ["20", "20", "20"]),
     ("0010", ["3", "3", "4"]), ("3", ["1", "1", "1"])],
)  # fmt: skip
def test_the_breadth_of_a_request_is_shared_by_its_branches(asked: str | None, shares: list[str]) -> None:
    net = ProxyNet()
    net.targets = lambda _: [Target(end.uri) for end in (net.bob, net.carol, net.dave)]
    net.call(headers=[] if asked is None else [("Max-Breadth", asked)])
    net.run(5.0)
    assert breadths(net, net.bob, net.carol, net.dave) == [[share] for share in shares]
    assert breadths(net, net.bob, method="ACK")[0][:1] == ["60"], "every request that is sent on has one"


def test_a_target_for_which_there_is_no_breadth_waits_until_another_has_failed() -> None:
    net = ProxyNet()
    net.targets = lambda _: [Target(end.uri) for end in (net.bob, net.carol, net.dave)]
    net.bob.handler = net.carol.handler = net.dave.handler = net.answering(after="ring")
    net.call(headers=[("Max-Breadth", "2")])
    net.run(5.0)
    assert breadths(net, net.bob, net.carol, net.dave) == [["1"], ["1"], []]
    net.carol.told(InviteReceived)[0].session.reject(486, now=net.now)
    net.run(5.0)
    assert breadths(net, net.bob, net.carol, net.dave) == [["1"], ["1"], ["1"]] and net.statuses == []
    take(net.dave.told(InviteReceived)[0].session, 200, net.now)
    net.run(5.0)
    assert net.statuses == [200] and len(net.bob.told(Cancelled)) == 1
    net.run(60.0)


def test_a_breadth_of_one_tries_one_after_the_other_and_the_best_answer_is_chosen_of_all() -> None:
    net = ProxyNet()
    net.targets = lambda _: [Target("sip:"), Target(net.bob.uri), Target(net.carol.uri), Target(net.dave.uri)]
    for end, status in ((net.bob, 404), (net.carol, 486), (net.dave, 480)):
        end.handler = net.answering(status)
    net.call(headers=[("Max-Breadth", "1")])
    net.run(5.0)
    assert breadths(net, net.bob, net.carol, net.dave) == [["1"], ["1"], ["1"]] and net.statuses == [404]
    net.ask("MESSAGE", headers=[("Max-Breadth", "1")])
    net.run(5.0)
    assert breadths(net, net.bob, net.dave, method="MESSAGE") == [["1"], ["1"]]
    net.run(60.0)
    net.nothing_left()


@pytest.mark.parametrize("end_by", [200, 603, "cancel"])
def test_who_waits_for_breadth_is_not_tried_after_the_end(end_by: int | str) -> None:
    net = ProxyNet()
    net.targets = lambda _: [Target(end.uri) for end in (net.bob, net.carol)]
    net.bob.handler = net.answering(after="ring")
    session = net.call(headers=[("Max-Breadth", "1")])
    net.run(5.0)
    if isinstance(end_by, int):
        take(net.bob.told(InviteReceived)[0].session, end_by, net.now)
    else:
        session.cancel(net.now)
    net.run(5.0)
    assert not net.arrived(net.carol, "INVITE") and net.statuses == [487 if end_by == "cancel" else end_by]
    if end_by == 200:
        session.bye(net.now)
    net.run(60.0)
    net.nothing_left()


@pytest.mark.parametrize(("asked", "status"), [("0", 440), ("two", 400), ("-1", 400)])
def test_a_breadth_that_admits_nobody_is_refused(asked: str, status: int) -> None:
    net = ProxyNet()
    net.call(headers=[("Max-Breadth", asked)])
    net.run(5.0)
    assert net.statuses == [status] and not net.arrived(net.bob, "INVITE")
    with pytest.raises(ValueError, match="breadth"):
        ProxySettings(max_breadth=0)


def test_each_branch_rings_for_its_own_time() -> None:
    """16.6 step 11: a timer C for each; who rings on does not keep the silent one."""
    net = ProxyNet(timer_c=200.0)
    net.targets = lambda _: [Target(net.bob.uri), Target(net.carol.uri)]
    net.bob.handler = net.carol.handler = net.answering(after="ring")
    net.call()
    net.run(5.0)
    net.bob.stack.next_timer = lambda: None  # type: ignore[method-assign]
    net.bob.stack.handle_timer = lambda _now: None  # type: ignore[method-assign]
    net.run(250.0)
    assert net.arrived(net.bob, "CANCEL") and not net.arrived(net.carol, "CANCEL") and net.statuses == []
    take(net.carol.told(InviteReceived)[0].session, 200, net.now)
    net.run(5.0)
    assert net.statuses == [200]


def test_a_6xx_ends_the_ringing_of_the_others() -> None:
    net = ProxyNet()
    net.targets = lambda _: [Target(net.bob.uri), Target(net.carol.uri)]
    net.bob.handler, net.carol.handler = net.answering(603), net.answering(after="ring")
    net.call()
    net.run(5.0)
    assert net.statuses == [603] and len(net.carol.told(Cancelled)) == 1


def test_all_challenges_of_a_fork_reach_the_caller() -> None:
    """16.7 step 7."""
    net = ProxyNet()
    net.targets = lambda _: [Target(net.bob.uri), Target(net.carol.uri)]

    def challenging(realm: str) -> Callable[[object, float], None]:
        digest = DigestAuthenticator(realm, lambda _user: "secret", tokens(7))

        def handle(event: object, now: float) -> None:
            if isinstance(event, InviteReceived):
                event.session.reject(401, headers=digest.challenge(now), now=now)

        return handle

    net.bob.handler, net.carol.handler = challenging("b"), challenging("c")
    net.call()
    net.run(5.0)
    (refused,) = net.alice.told(Refused)
    assert refused.response.status == 401
    realms = {value.partition('realm="')[2][0] for value in refused.response.headers.get_all("WWW-Authenticate")}
    assert realms == {"b", "c"}


# --- giving up ------------------------------------------------------------------------------------------------


def test_the_callers_cancel_reaches_everybody_who_rings(net: ProxyNet) -> None:
    net.targets = lambda _: [Target(net.bob.uri), Target(net.carol.uri)]
    net.bob.handler = net.carol.handler = net.answering(after="ring")
    session = net.call()
    net.run(1.0)
    session.cancel(net.now)  # type: ignore[attr-defined]
    net.run(5.0)
    assert len(net.bob.told(Cancelled)) == len(net.carol.told(Cancelled)) == 1
    (refused,) = net.alice.told(Refused)
    assert refused.response is None or refused.response.status == 487
    net.run(120.0)
    net.nothing_left()


def test_a_cancel_before_the_first_answer_goes_on_when_there_is_one() -> None:
    """9.1: who has said nothing yet cannot be cancelled yet."""
    net = ProxyNet()
    net.bob.handler = lambda _event, _now: None  # its stack says 100 after 200 ms
    session = net.call()
    net.run(0.1)
    session.cancel(net.now)  # type: ignore[attr-defined]
    net.run(5.0)
    assert len(net.arrived(net.bob, "CANCEL")) == 1 and len(net.bob.told(Cancelled)) == 1
    net.run(120.0)
    net.nothing_left()


def test_a_cancel_that_nobody_answers_ends_the_call_all_the_same() -> None:
    net = ProxyNet()
    net.bob.handler = net.answering(after="ring")
    session = net.call()
    net.run(1.0)
    del net.ends[net.bob.address]
    net.ends[net.bob.address] = StackEnd("nobody", 5062)  # it has forgotten everything: 481 to the CANCEL
    session.cancel(net.now)  # type: ignore[attr-defined]
    net.run(120.0)
    assert len(net.alice.told(Refused)) == 1
    assert not net.proxy.stack._clients and not net.proxy.stack._servers


def test_timer_c_ends_endless_ringing() -> None:
    net = ProxyNet(timer_c=200.0)
    net.bob.handler = net.answering(after="ring")
    net.call()
    net.run(150.0)
    assert not net.arrived(net.bob, "CANCEL")
    net.run(400.0)
    # the telephone repeats its 180 every minute, which starts the timer anew (16.7 step 2)
    assert not net.arrived(net.bob, "CANCEL")
    for record in net.bob.stack._servers.values():
        record.machine.due.clear()
    net.bob.stack.handle_timer = lambda _now: None  # type: ignore[method-assign]
    net.bob.stack.next_timer = lambda: None  # type: ignore[method-assign]
    net.run(250.0)
    assert net.arrived(net.bob, "CANCEL")
    with pytest.raises(ValueError, match="three minutes"):
        ProxySettings(timer_c=180.0)


def test_nobody_there_is_408_to_an_invite_and_silence_to_another_request() -> None:
    """RFC 4320 4.2: a 408 to a non-INVITE would come too late."""
    net = ProxyNet()
    net.targets = lambda _: [Target("sip:bob@192.0.2.1:5062")]
    net.fate = lambda flow: [] if flow.remote == net.bob.address else [0.01]  # type: ignore[method-assign]
    net.call()
    net.run(40.0)
    assert net.statuses == [408]
    net.ask()
    net.run(40.0)
    sent = [m.status for _, m, to in net.log if to is net.alice and isinstance(m, Response)]
    assert sent.count(408) == 1, "to the INVITE alone"
    net.nothing_left()


def test_what_is_lost_is_sent_again_and_nothing_comes_twice() -> None:
    net = ProxyNet(loss=0.25)
    for _ in range(20):
        session = net.call()
        net.run(40.0)
        if session.dialog is not None and not session.ended:
            session.bye(net.now)
        net.run(80.0)
    assert net.statuses.count(200) >= 18
    calls = {e.session.call_id for e in net.bob.told(InviteReceived)}
    assert len(calls) == len(net.bob.told(InviteReceived))
    net.run(200.0)
    net.nothing_left()


# --- what a proxy refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Max-Forwards", "0")], 483), ([("Proxy-Require", "privacy")], 420), ([("Proxy-Require", "known")], 200),
        ([("Require", "anything")], 200),
    ],
)  # fmt: skip
def test_what_the_proxy_itself_answers(headers: list[tuple[str, str]], status: int) -> None:
    net = ProxyNet(understood=frozenset({"known"}))
    net.bob.stack.settings = StackSettings(supported=("anything",))
    request = net.alice.stack.compose("MESSAGE", "sip:bob@example.org", from_=f"<{net.alice.uri}>")
    for name, value in headers:
        request.headers.set(name, value)
    net.alice.stack.request(request, net.now, target="sip:192.0.2.1:5060;lr")
    net.run()
    assert net.statuses == [status] and len(net.arrived(net.bob, "MESSAGE")) == (status == 200)
    if status == 420:
        (answer,) = net.alice.told(ResponseReceived)
        assert answer.response.headers.unsupported == ["privacy"]


def test_a_scheme_that_leads_nowhere_is_416() -> None:
    net = ProxyNet()
    nowhere = "nobodyKnowsThisScheme:totallyopaquecontent"
    request = net.alice.stack.compose("MESSAGE", nowhere, from_=f"<{net.alice.uri}>")
    net.alice.stack.request(request, net.now, target="sip:192.0.2.1:5060;lr")
    net.run()
    assert net.statuses == [416]


def test_a_request_that_comes_back_unchanged_is_a_loop_and_one_with_another_target_is_none() -> None:
    """RFC 5393 4.2."""
    net = ProxyNet()
    net.targets = lambda forwarding: [Target(str(forwarding.request.uri).replace("example.org", "192.0.2.1:5060"))]
    net.ask()
    net.run()
    assert net.statuses == [482] and len(net.arrived(net.proxy, "MESSAGE")) == 3, "a spiral first, then a loop"
    net = ProxyNet()
    net.targets = lambda forwarding: [Target(net.bob.uri if "5060" in str(forwarding.request.uri)
                                             else "sip:bob@192.0.2.1:5060")]  # fmt: skip
    net.ask()
    net.run()
    assert net.statuses == [200], "a spiral is none"


def test_the_application_decides_once() -> None:
    net = ProxyNet()
    found: list[Forwarding] = []
    net.proxy.handler = keeping(found)
    net.ask()
    net.run()
    found[0].respond(404, now=net.now)
    for again in (lambda: found[0].respond(200, now=net.now), lambda: found[0].follow(net.now)):
        with pytest.raises(LocalProtocolError):
            again()
    net.run()
    assert net.statuses == [404]


def test_no_place_at_all_is_480() -> None:
    net = ProxyNet()
    net.targets = lambda _: []
    net.call()
    net.run()
    assert net.statuses == [480]


def test_a_decision_may_take_its_time_and_the_caller_may_have_given_up() -> None:
    net = ProxyNet()
    found: list[Forwarding] = []
    net.proxy.handler = keeping(found)
    session = net.call()
    net.run(2.0)
    assert next(m.status for _, m, to in net.log if to is net.alice and isinstance(m, Response)) == 100
    session.cancel(net.now)  # type: ignore[attr-defined]
    net.run(2.0)
    assert len(net.alice.told(Refused)) == 1
    found[0].to([Target(net.bob.uri)], net.now)
    net.run(60.0)
    assert not net.arrived(net.bob, "INVITE")
    net.nothing_left()


# --- routes ------------------------------------------------------------------------------------------------


def test_a_path_of_a_registration_is_gone_and_its_flow_taken() -> None:
    """RFC 3327 5.3: over another proxy; here that is carol, who shows what came."""
    net = ProxyNet()
    flow = Flow("udp", net.proxy.address, net.carol.address)
    net.targets = lambda _: [Target(net.bob.uri, flow, ("<sip:192.0.2.1:5063;lr>",))]
    net.ask()
    net.run()
    (request,) = net.arrived(net.carol, "MESSAGE")
    assert [str(r.uri) for r in request.headers.route] == ["sip:192.0.2.1:5063;lr"] and str(request.uri) == net.bob.uri
    assert not net.arrived(net.bob, "MESSAGE") and len(request.headers.via) == 2


def test_strict_routers_before_and_behind_are_served() -> None:
    """16.4: ours in the Request-URI, the target last among the Routes; 16.6 step 6: the next one wants the same."""
    net = ProxyNet()
    net.targets = lambda forwarding: [Target(str(forwarding.request.uri))]
    request = net.alice.stack.compose("MESSAGE", "sip:192.0.2.1:5060;lr", from_=f"<{net.alice.uri}>",
                                      headers=[("Route", "<sip:192.0.2.1:5063>"), ("Route", f"<{net.bob.uri}>")])
    net.alice.stack.request(request, net.now, flow=Flow("udp", net.alice.address, net.proxy.address))
    net.run()
    (strict,) = net.arrived(net.carol, "MESSAGE")
    assert str(strict.uri) == "sip:192.0.2.1:5063"
    assert [str(r.uri) for r in strict.headers.route] == [net.bob.uri]


def test_a_name_of_ones_own_is_taken_off_the_route() -> None:
    net = ProxyNet(names=frozenset({"proxy.example.org"}))
    request = net.alice.stack.compose("MESSAGE", "sip:bob@example.org", from_=f"<{net.alice.uri}>",
                                      headers=[("Route", "<sip:proxy.example.org;lr>")])
    net.alice.stack.request(request, net.now, flow=Flow("udp", net.alice.address, net.proxy.address))
    net.run()
    (came,) = net.arrived(net.bob, "MESSAGE")
    assert not came.headers.route and net.statuses == [200]


def test_a_2xx_whose_transaction_is_over_goes_nowhere() -> None:
    """RFC 6026 7.3: else anybody could have this proxy write to anybody."""
    net = ProxyNet()
    net.call()
    net.run(1.0)
    late = next(m for _, m, to in net.log if to is net.proxy and isinstance(m, Response) and m.status == 200)
    net.run(100.0)
    assert not net.proxy.stack._clients
    before = len([1 for _, m, to in net.log if to is net.alice])
    net._send(bytes(late), Flow("udp", net.bob.address, net.proxy.address))
    net.run()
    assert len([1 for _, m, to in net.log if to is net.alice]) == before


def test_who_may_is_the_applications_word() -> None:
    """Proxy authentication (22.3), with the digest that the servers use."""
    net = ProxyNet()
    digest = DigestAuthenticator("example.org", {"alice": "secret"}.get, tokens(3), proxy=True)

    def handle(event: object, now: float) -> None:
        if isinstance(event, RequestToForward):
            verdict, user = digest.check(event.forwarding.request, now)
            if verdict is Verdict.GOOD and user == "alice":
                event.forwarding.to([Target(net.bob.uri)], now)
            else:
                event.forwarding.respond(407, headers=digest.challenge(now), now=now)

    net.proxy.handler = handle
    net.call(credentials=DigestCredentials("alice", "secret"))
    net.run(5.0)
    net.call(credentials=DigestCredentials("alice", "wrong"))
    net.run(5.0)
    assert net.statuses == [200, 407]


def test_a_connection_that_is_gone_fails_what_waited_for_it() -> None:
    net = ProxyNet("tcp")
    net.bob.handler = lambda _event, _now: None
    net.call()
    net.run(1.0)
    net.proxy.stack.flow_closed(Flow("tcp", net.proxy.address, net.bob.address, 7), net.now)
    net.run(1.0)
    assert net.statuses == [500] and len(net.proxy.told(FlowLost)) == 1


TORTURE = sorted((Path(__file__).parents[1] / "vectors" / "torture").rglob("*.dat"))


@pytest.mark.parametrize("case", TORTURE, ids=lambda case: case.stem)
def test_torture_messages_are_forwarded_or_refused_and_end_nothing(case: Path) -> None:
    net = ProxyNet()
    net.targets = lambda forwarding: [Target(str(forwarding.request.uri)), Target(net.bob.uri)]
    flow = Flow("udp", net.proxy.address, net.alice.address)
    net.fate = lambda _flow: []  # type: ignore[method-assign]
    net.dispatch = lambda end, outgoing: None  # type: ignore[method-assign]
    net.proxy.stack.receive_octets(case.read_bytes(), flow, net.now)
    net.settle()
    net.run(400.0)
    assert not net.proxy.stack._clients
    net.dispatch = ProxyNet.dispatch.__get__(net)  # type: ignore[method-assign]
    net.fate = ProxyNet.fate.__get__(net)  # type: ignore[method-assign]
    net.targets = lambda _: [Target(net.bob.uri)]
    net.ask()
    net.run()
    assert net.statuses == [200], "the next one is served"


@pytest.mark.parametrize("route", ["<sip:192.0.2.1:5060;lr>", "<sip:00112233445566778899@192.0.2.1:5060;lr>"])
def test_a_to_tag_and_a_route_of_ones_own_making_open_nothing(route: str) -> None:
    """26.1.1: a request that only looks as if it were in a dialog is decided about like any other."""
    net = ProxyNet()
    net.proxy.handler = lambda event, now: (
        event.forwarding.respond(407, now=now) if isinstance(event, RequestToForward) else None
    )
    request = net.alice.stack.compose("MESSAGE", net.bob.uri, from_=f"<{net.alice.uri}>", to=f"<{net.bob.uri}>;tag=1",
                                      headers=[("Route", route)])  # fmt: skip
    net.alice.stack.request(request, net.now, flow=Flow("udp", net.alice.address, net.proxy.address))
    net.run()
    assert net.statuses == [407] and not net.arrived(net.bob, "MESSAGE")


def test_dialogs_outlive_a_restart_when_the_secret_is_kept() -> None:
    net = ProxyNet(secret=b"kept")
    session = net.call()
    net.run()
    restarted = ProxyEnd(5060, ProxySettings(secret=b"kept"), StackSettings())
    restarted.handler = net.proxy.handler
    for transport in ("udp", "tcp"):
        restarted.stack.add_listener(transport, *restarted.address)
    net.ends[restarted.address] = net.proxy = restarted
    session.send("INFO", now=net.now)
    net.run()
    assert len(net.arrived(net.bob, "INFO")) == 1 and not net.proxy.told(RequestToForward)
