# SPDX-License-Identifier: Apache-2.0
"""A running call becomes an emergency or imminent peril call and is one no more: who may, and who is told
(TS 24.379 10.1.1.2.1.3, 10.1.1.2.1.4, 10.1.1.4.6; rights of TS 24.484)."""

from __future__ import annotations

from typing import Any

import pytest

from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt.contents import read_contents
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import Refusal
from mcptt_sip.mcptt.policy import Urgency
from mcptt_sip.mcptt.urgency import change, statement
from mcptt_sip.message import Request
from mcptt_sip.session import InviteSession
from tests.mcptt.exchange import Exchange, Telephone, uri

E, P, N = Urgency.EMERGENCY, Urgency.IMMINENT_PERIL, Urgency.NORMAL
RIGHTS: dict[str, dict[str, Any]] = {
    "bob": {"allow_emergency_group_call": True, "allow_imminent_peril_call": True},
    "carol": {"allow_emergency_group_call": True},
    "dave": {"allow_cancel_group_emergency": True, "allow_cancel_imminent_peril": True},
}


def running(*added: str) -> tuple[Exchange, dict[str, Telephone], dict[str, InviteSession]]:
    """Alice's call with bob, carol and dave, of whom she alone has no right in the matter."""
    added = added or ("carol", "dave")
    exchange = Exchange(users=RIGHTS)
    phones = exchange.phones_of("alice", "bob", *added)
    session = phones[0].call("bob")
    exchange.run()
    for name in added:
        phones[0].refer(session, name)
    exchange.run()
    sessions = {phone.name: phone.invitations[0] if phone.invitations else session for phone in phones}
    return exchange, {phone.name: phone for phone in phones}, sessions


def told(exchange: Exchange, phone: Telephone, session: InviteSession) -> list[McpttInfo]:
    """What the server's re-INVITEs to this phone say."""
    first = session.request.headers.cseq.number if phone.invitations else 0
    seen: dict[int, McpttInfo] = {}
    for request in exchange.sent_to(phone, "INVITE"):
        if request.headers.cseq.number != first and request.headers.call_id == session.call_id:
            seen[request.headers.cseq.number] = read_contents(request).info
    return list(seen.values())


@pytest.mark.parametrize(
    ("info", "current", "wanted"),
    [
        ({}, N, None), ({}, E, None), ({"emergency": True}, N, E), ({"emergency": True}, P, E),
        ({"emergency": True}, E, E),
        ({"imminent_peril": True}, N, P), ({"imminent_peril": True}, E, P), ({"emergency": False}, E, N),
        ({"emergency": False}, P, P), ({"emergency": False}, N, N), ({"imminent_peril": False}, P, N),
        ({"imminent_peril": False}, E, E), ({"emergency": False, "imminent_peril": True}, E, P),
        ({"emergency": True, "imminent_peril": False}, P, E), ({"emergency": False, "imminent_peril": False}, E, N),
    ],
)  # fmt: skip
def test_what_a_re_invite_says_of_the_call(info: dict[str, Any], current: Urgency, wanted: Urgency | None) -> None:
    assert change(McpttInfo(**info), current) is wanted


def test_emergency_and_imminent_peril_at_once_are_neither() -> None:
    with pytest.raises(Refusal, match="both"):
        change(McpttInfo(emergency=True, imminent_peril=True), N)


@pytest.mark.parametrize("before", Urgency)
@pytest.mark.parametrize("now", Urgency)
def test_what_is_said_is_what_is_understood(before: Urgency, now: Urgency) -> None:
    emergency, peril = statement(now, before)
    assert change(McpttInfo(emergency=emergency, imminent_peril=peril), before) in ({now} if now is not before else
                                                                                    {now, None})  # fmt: skip


@pytest.mark.parametrize(("name", "urgency"), [("emergency", E), ("imminent_peril", P)])
def test_a_member_declares_it_and_everybody_else_is_told(name: str, urgency: Urgency) -> None:
    exchange, phones, sessions = running()
    sent = phones["bob"].declare(sessions["bob"], **{name: True})
    exchange.run()
    assert phones["bob"].answer_to(sent).status == 200
    assert exchange.call.urgency is urgency and exchange.call.declared_by == {uri("bob")}
    media = exchange.plane.opened[0]
    assert (media.urgency, media.declared_by) == (urgency, {uri("bob")}), "the floor goes by it"
    for who in ("alice", "carol", "dave"):
        (info,) = told(exchange, phones[who], sessions[who])
        assert getattr(info, name) is True and info.calling_user_id == uri("bob")
        assert info.calling_group_id == exchange.call.group and info.request_uri == uri(who)
        (request,) = {r.headers.cseq.number: r for r in exchange.sent_to(phones[who], "INVITE")
                      if r.headers.call_id == sessions[who].call_id
                      and r.headers.get("Resource-Priority") != "mcpttp.5"}.values()  # fmt: skip
        priority = exchange.server.controlling.settings.resource_priority[urgency]
        assert request.headers.get("Resource-Priority") == priority
    assert not told(exchange, phones["bob"], sessions["bob"]), "who said it knows"
    assert exchange.told("urgency") == [{"group": exchange.call.group, "user": uri("bob"), "urgency": urgency.value}]


def test_who_is_added_afterwards_is_invited_to_what_it_is() -> None:
    exchange, phones, sessions = running("carol")
    phones["bob"].declare(sessions["bob"], emergency=True)
    exchange.run()
    dave = exchange.phone("dave")
    phones["alice"].refer(sessions["alice"], "dave")
    exchange.run()
    assert read_contents(dave.invitations[0].request).info.emergency is True
    assert dave.invitations[0].request.headers.get("Resource-Priority") == "mcpttp.15"
    assert not told(exchange, dave, dave.invitations[0])


def test_who_was_invited_before_and_answers_afterwards_is_told_then() -> None:
    exchange, phones, sessions = running("carol")
    dave = exchange.phone("dave", script="ring")
    phones["alice"].refer(sessions["alice"], "dave")
    exchange.run()
    phones["bob"].declare(sessions["bob"], emergency=True)
    exchange.run()
    assert not told(exchange, dave, dave.invitations[0])
    dave.respond(dave.invitations[0], "answer")
    exchange.run()
    (info,) = told(exchange, dave, dave.invitations[0])
    assert info.emergency is True


@pytest.mark.parametrize(
    ("started", "who", "says", "allowed"),
    [
        ({}, "alice", {"emergency": True}, False), ({}, "alice", {"imminent_peril": True}, False),
        ({}, "carol", {"emergency": True}, True), ({}, "carol", {"imminent_peril": True}, False),
        ("emergency", "bob", {"emergency": False}, True), ("emergency", "carol", {"emergency": False}, False),
        ("emergency", "dave", {"emergency": False}, True), ("emergency", "alice", {"emergency": False}, False),
        ("imminent_peril", "bob", {"imminent_peril": False}, True),
        ("imminent_peril", "carol", {"imminent_peril": False}, False),
        ("imminent_peril", "dave", {"imminent_peril": False}, True),
        ("imminent_peril", "carol", {"emergency": True}, True),
        ("emergency", "bob", {"emergency": False, "imminent_peril": True}, True),
        ("emergency", "dave", {"emergency": False, "imminent_peril": True}, False),
        ({}, "alice", {"emergency": False}, True), ({}, "bob", {"emergency": True, "imminent_peril": True}, False),
    ],
)  # fmt: skip
def test_who_may(started: str | dict[str, Any], who: str, says: dict[str, Any], allowed: bool) -> None:
    exchange, phones, sessions = running()
    if isinstance(started, str):
        phones["bob"].declare(sessions["bob"], **{started: True})
        exchange.run()
    before = exchange.call.urgency
    known = {name: len(told(exchange, phones[name], sessions[name])) for name in phones}
    sent = phones[who].declare(sessions[who], **says)
    exchange.run()
    answer = phones[who].answer_to(sent)
    assert answer.status == (200 if allowed else 403)
    if not allowed:
        assert exchange.call.urgency is before
        assert {name: len(told(exchange, phones[name], sessions[name])) for name in phones} == known
        info = read_contents(answer).info
        if not says.get("emergency") or not says.get("imminent_peril"):  # both at once is refused as such
            assert all(getattr(info, name) is False for name, value in says.items() if value)
        assert answer.headers.get("Warning"), "the refusal says why"
    assert len(exchange.call.legs) == 4, "a call never ends of it"


def test_what_bob_declared_carol_cannot_take_back_until_she_declares_it_too() -> None:
    exchange, phones, sessions = running()
    phones["bob"].declare(sessions["bob"], emergency=True)
    exchange.run()
    phones["carol"].declare(sessions["carol"], emergency=True)
    exchange.run()
    assert exchange.call.declared_by == {uri("bob"), uri("carol")}
    assert exchange.plane.opened[0].declared_by == {uri("bob"), uri("carol")}
    assert len(told(exchange, phones["alice"], sessions["alice"])) == 1, "nothing has changed for the others"
    sent = phones["carol"].declare(sessions["carol"], emergency=False)
    exchange.run()
    assert phones["carol"].answer_to(sent).status == 200 and exchange.call.urgency is N
    assert exchange.plane.opened[0].declared_by == frozenset()
    infos = told(exchange, phones["alice"], sessions["alice"])
    assert [info.emergency for info in infos] == [True, False]


def test_changes_faster_than_they_can_be_told_are_told_as_the_last_one() -> None:
    """One re-INVITE of a dialog at a time (RFC 3261 14.1): what came meanwhile follows."""
    exchange, phones, sessions = running()
    held: list[Request] = []

    def lose(message: object, flow: object) -> bool:
        lost = isinstance(message, Request) and message.method == "INVITE" and bool(held)
        return lost and getattr(flow, "remote", None) == phones["alice"].address

    exchange.lose = lose
    held.append(sessions["alice"].request)
    phones["bob"].declare(sessions["bob"], emergency=True)
    exchange.run(1.0)
    phones["bob"].declare(sessions["bob"], emergency=False, imminent_peril=True)
    exchange.run(1.0)
    held.clear()
    exchange.run(40.0)
    assert exchange.call.urgency is P
    assert told(exchange, phones["carol"], sessions["carol"])[-1].imminent_peril is True


def test_two_re_invites_that_cross_are_both_done() -> None:
    exchange, phones, sessions = running()
    phones["bob"].declare(sessions["bob"], emergency=True)
    phones["carol"].declare(sessions["carol"], emergency=True)
    exchange.run(10.0)
    assert exchange.call.urgency is E and exchange.call.declared_by == {uri("bob"), uri("carol")}
    assert len(told(exchange, phones["alice"], sessions["alice"])) == 1
    assert len(exchange.call.legs) == 4


def test_a_member_who_does_not_take_the_change_stays_in_the_call() -> None:
    exchange, phones, sessions = running()
    phones["dave"]._answer = lambda incoming, now: incoming.respond(488, now=now)  # type: ignore[method-assign]
    phones["bob"].declare(sessions["bob"], emergency=True)
    exchange.run(5.0)
    assert set(exchange.call.legs) == {uri(name) for name in ("alice", "bob", "carol", "dave")}
    assert len(told(exchange, phones["dave"], sessions["dave"])) == 1, "he is not asked again and again"


def test_a_call_that_begins_as_an_emergency_is_its_initiators_to_take_back() -> None:
    exchange = Exchange(users={"alice": {"allow_emergency_group_call": True}})
    alice, _bob = exchange.phones_of("alice", "bob")
    session = alice.call("bob", emergency=True)
    exchange.run()
    assert exchange.call.declared_by == {uri("alice")} and exchange.plane.opened[0].urgency is E
    assert exchange.plane.opened[0].declared_by == {uri("alice")}
    sent = alice.declare(session, emergency=False)
    exchange.run()
    assert alice.answer_to(sent).status == 200 and exchange.call.urgency is N


def test_a_member_who_cannot_just_now_is_told_again() -> None:
    """500 with Retry-After is what a re-INVITE gets while another change of his is not answered (RFC 3261 14.2)."""
    exchange, phones, sessions = running()
    answers = iter([(500, [("Retry-After", "2")]), (503, []), (200, [])])

    def busy(incoming: ServerRequest, now: float) -> None:
        status, headers = next(answers)
        body = phones["dave"].describe().encode() if status == 200 else b""
        kind = "application/sdp" if body else None
        incoming.respond(status, headers=headers, body=body, content_type=kind, now=now)

    phones["dave"]._answer = busy  # type: ignore[method-assign]
    phones["bob"].declare(sessions["bob"], emergency=True)
    exchange.run(1.0)
    assert len(told(exchange, phones["dave"], sessions["dave"])) == 1
    exchange.run(2.0)
    assert len(told(exchange, phones["dave"], sessions["dave"])) == 2
    exchange.run(60.0)
    assert [info.emergency for info in told(exchange, phones["dave"], sessions["dave"])] == [True, True, True]
    assert len(exchange.call.legs) == 4
