# SPDX-License-Identifier: Apache-2.0
"""From the initiator's INVITE to his answer when not everybody behaves: each failure branch and race of it, as the
server shows it."""

from __future__ import annotations

import pytest

from mcptt_sip.flow import Flow
from mcptt_sip.mcptt.contents import read_contents
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.message import Request, Response
from mcptt_sip.session import Answered, Cancelled, Ended, InviteSession, Refused
from tests.mcptt.calls import GIVE_UP, clean, condition, talking
from tests.mcptt.exchange import Exchange, Telephone, key_message, uri, warning_codes


def test_a_retransmitted_invite_makes_nothing_twice() -> None:
    exchange = Exchange(transport="udp")
    alice, bob = exchange.phones_of("alice", "bob")
    lost: list[Response] = []

    def lose(message: Request | Response, flow: Flow) -> bool:
        """The first answers to the INVITE, whatever they are."""
        mine = isinstance(message, Response) and flow.remote == alice.address and len(lost) < 4
        if mine and isinstance(message, Response):
            lost.append(message)
        return mine

    exchange.lose = lose
    session = alice.call("bob")
    exchange.run(20.0)
    sent = [m for _, f, m in exchange.wire if isinstance(m, Request) and m.method == "INVITE" and f == alice.flow]
    assert len(sent) > 2, "the first, and its repetitions"
    assert alice.answer_to(session).status == 200
    assert len(bob.invitations) == 1 and len(exchange.calls) == 1 and len(exchange.plane.opened) == 1


def test_a_new_invite_with_an_old_key_message_is_a_replay() -> None:
    exchange = Exchange()
    alice, bob = exchange.phones_of("alice", "bob")
    octets = key_message("alice", "bob")
    first = alice.call("bob", key=octets)
    exchange.run()
    first.bye(exchange.now)
    exchange.run()
    again = alice.call("bob", key=octets)
    exchange.run()
    assert (alice.answer_to(again).status, warning_codes(alice.answer_to(again))) == (488, [136])
    assert len(bob.invitations) == 1


def test_a_refused_attempt_leaves_its_key_message_usable() -> None:
    """What the server did not pass on was not used up: a right given a moment later lets it through."""
    exchange = Exchange(users={"alice": {"allow_regroup": False}})
    alice, bob = exchange.phones_of("alice", "bob")
    octets = key_message("alice", "bob")
    alice.call("bob", key=octets)
    exchange.run()
    exchange.policy = Exchange().policy
    session = alice.call("bob", key=octets)
    exchange.run()
    assert alice.answer_to(session).status == 200 and len(bob.invitations) == 1


def test_an_unknown_requirement_gets_420() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    session = alice.call("bob", headers=[("Require", "teleportation")])
    exchange.run()
    answer = alice.answer_to(session)
    assert (answer.status, answer.headers.get("Unsupported")) == (420, "teleportation")


def test_a_caller_without_100rel_gets_a_plain_183_and_the_call() -> None:
    exchange = Exchange()
    alice, _bob = exchange.phones_of("alice", "bob")
    session = alice.call("bob", headers=[("Supported", "timer, tdialog")])
    exchange.run()
    progress = [m for _, _, m in exchange.wire if isinstance(m, Response) and m.status == 183]
    assert len(progress) == 1 and progress[0].headers.rseq is None
    assert alice.answer_to(session).status == 200


# --- step 6 and 9 --------------------------------------------------------------------------------------------------


def test_an_acknowledgement_goes_by_whatever_can_carry_it() -> None:
    exchange = Exchange()
    alice, _, carol = exchange.phones_of("alice", "bob", "carol")
    bob, dave = exchange.phones[1], exchange.phone("dave", script="ring")
    bob.script = "ring"
    session = alice.call("bob")
    exchange.run()
    by_refer = alice.refer(session, "carol")
    exchange.run()
    assert alice.contents_of(session).acknowledgements == () and carol.invitations
    assert alice.fragments(by_refer)[-1].acknowledgement == b"proof of carol"
    bob.respond(bob.invitations[0], "answer")
    exchange.run()
    (info,) = [request for request in alice.requests if request.method == "INFO"]
    assert read_contents(info).acknowledgements == (b"proof of bob",)
    assert info.headers.get("Info-Package") == "g.3gpp.mcptt-info"
    assert dave.invitations == []


def test_no_info_goes_to_who_does_not_take_it() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    bob, _ = exchange.phone("bob", script="ring"), exchange.phone("carol")
    session = alice.call("bob", headers=[("Recv-Info", "")])
    exchange.run()
    alice.refer(session, "carol")
    exchange.run()
    bob.respond(bob.invitations[0], "answer")
    exchange.run()
    assert not alice.requests and uri("bob") in exchange.call.legs


def test_an_answer_with_unusable_media_ends_that_leg_only() -> None:
    exchange, (alice, *_), session = talking("bob")
    exchange.plane.opened[0].refuse = frozenset({uri("carol")})
    carol = exchange.phone("carol")
    refer = alice.refer(session, "carol")
    exchange.run()
    assert alice.fragments(refer)[-1].status == 488 and carol.told(Ended)
    assert uri("carol") not in exchange.call.legs and uri("carol") not in exchange.call.forks


def test_the_initiators_unusable_media_ends_the_call_when_it_would_begin() -> None:
    exchange = Exchange()
    alice, bob = exchange.phones_of("alice", "bob")
    exchange.plane.refuse.add(uri("alice"))
    session = alice.call("bob")
    exchange.run()
    assert alice.answer_to(session).status == 488 and bob.told(Ended)
    exchange.run(GIVE_UP)
    assert clean(exchange)


def test_a_first_refusal_may_leave_the_call_open_for_others() -> None:
    exchange = Exchange(regroup=RegroupSettings(stay_when_refused=True))
    alice = exchange.phone("alice")
    exchange.phone("bob", script=(486, None))
    exchange.phone("carol")
    session = alice.call("bob")
    exchange.run()
    assert not alice.told(Refused)
    alice.refer(session, "carol")
    exchange.run()
    assert alice.answer_to(session).status == 200

    other = alice.call("bob")
    exchange.run(31.0)
    assert (alice.answer_to(other).status, warning_codes(alice.answer_to(other))) == (480, [112])


@pytest.mark.parametrize("text, answers, answered", [("first", 1, True), ("quorum:2", 1, False), ("quorum:2", 2, True),
                                                     ("all", 2, False), ("all", 3, True)])
def test_the_initiator_is_answered_at_the_configured_moment(text: str, answers: int, answered: bool) -> None:
    exchange = Exchange(regroup=condition(text))
    alice = exchange.phone("alice")
    phones = [exchange.phone(name, script="ring") for name in ("bob", "carol", "dave")]
    session = alice.call("bob")
    exchange.run()
    for name in ("carol", "dave"):
        alice.refer(session, name)
    exchange.run()
    for phone in phones[:answers]:
        phone.respond(phone.invitations[0], "answer")
        exchange.run()
    assert bool(alice.told(Answered)) == answered


def test_required_members_are_waited_for_though_others_answer() -> None:
    exchange = Exchange()
    alice, _bob, _carol = exchange.phones_of("alice", "bob", "carol")
    session = alice.call("bob", required=(uri("carol"),))
    exchange.run(5.0)
    assert not alice.told(Answered)
    alice.refer(session, "carol")
    exchange.run()
    assert warning_codes(alice.answer_to(session)) == []


@pytest.mark.parametrize("proceed", [True, False])
def test_a_required_members_refusal_is_known_at_once(proceed: bool) -> None:
    exchange = Exchange(regroup=RegroupSettings(proceed_at_time_limit=proceed))
    alice, bob = exchange.phones_of("alice", "bob")
    exchange.phone("carol", script=(486, None))
    session = alice.call("bob", required=(uri("carol"),))
    exchange.run()
    alice.refer(session, "carol")
    exchange.run()
    answer = alice.answer_to(session)
    assert (answer.status, warning_codes(answer)) == ((200, [111, 149]) if proceed else (486, [112]))
    assert bool(bob.told(Ended)) is not proceed


@pytest.mark.parametrize("right", [True, False])
def test_who_did_not_answer_is_told_by_info_after_the_ack(right: bool) -> None:
    users = {"alice": {"allow_to_receive_non_acknowledged_users_information": right}}
    exchange = Exchange(users=users, regroup=condition("all", answer_time_limit=10.0))
    alice, _bob = exchange.phones_of("alice", "bob")
    exchange.phone("carol", script="ring")
    session = alice.call("bob", required=(uri("dave"),))
    exchange.run()
    alice.refer(session, "carol")
    exchange.run(12.0)
    assert warning_codes(alice.answer_to(session)) == ([111, 149] if right else [111])
    told = [read_contents(request).info.non_acknowledged for request in alice.requests if request.method == "INFO"]
    assert told == ([(uri("carol"), uri("dave"))] if right else [])
    order = [m.method for _, f, m in exchange.wire if isinstance(m, Request) and m.method in ("ACK", "INFO")
             and alice.address in (f.local, f.remote)]
    assert order[-2:] == (["ACK", "INFO"] if right else order[-2:])


def test_a_lost_200_is_repeated_and_without_an_ack_nobody_stays_in_a_call() -> None:
    exchange = Exchange(transport="udp")
    alice, bob = exchange.phones_of("alice", "bob")
    exchange.lose = lambda message, flow: (
        isinstance(message, Request) and message.method == "ACK" and flow == alice.flow
    )
    carol = exchange.phone("carol")
    bob.script = "ring"
    session = alice.call("bob")
    exchange.run()
    alice.refer(session, "carol")
    exchange.run()
    bob.respond(bob.invitations[0], "answer")
    exchange.run(GIVE_UP + 2)
    sent = [m for _, f, m in exchange.wire if isinstance(m, Response) and m.status == 200
            and m.headers.cseq.method == "INVITE" and f.remote == alice.address]
    assert len(sent) > 5 and session.ended and bob.told(Ended) and carol.told(Ended)
    exchange.run(GIVE_UP)
    assert clean(exchange)


def test_whoever_has_sent_his_200_is_on_the_relay_before_its_ack() -> None:
    """A floor request may be faster than the ACK of the 200 that allows it."""
    exchange = Exchange()
    alice, _bob = exchange.phones_of("alice", "bob")
    exchange.lose = lambda message, _flow: isinstance(message, Request) and message.method == "ACK"
    alice.call("bob")
    exchange.run()
    assert set(exchange.plane.opened[0].legs) == {uri("alice"), uri("bob")}


# --- CANCEL at every step ------------------------------------------------------------------------------------------


def cancel_after(seconds: float, script: str = "ring", **settings: object) -> tuple[Exchange, Telephone, InviteSession]:
    exchange = Exchange(**settings)  # type: ignore[arg-type]
    alice = exchange.phone("alice")
    exchange.phone("bob", script=script)
    session = alice.call("bob")
    exchange.run(seconds)
    session.bye(exchange.now)
    exchange.run(GIVE_UP)
    return exchange, alice, session


@pytest.mark.parametrize("step", range(1, 16))
def test_a_call_given_up_at_any_step_leaves_nothing(step: int) -> None:
    """CANCEL, or BYE once there is an answer, at every 10 ms of the set-up: challenge, 183, PRACK, leg, 200, ACK."""
    for script in ("ring", "answer", "silent"):
        exchange, alice, session = cancel_after(step * 0.01 - 0.005, script)
        assert session.ended and not alice.told(Answered)[1:]
        bob = exchange.phones[1]
        for invitation in bob.invitations:
            assert script == "silent" or invitation.ended, (script, invitation)
        if script == "silent":
            exchange.run(2 * GIVE_UP)
        left = exchange.calls.values()
        # an initiator who only leaves lets the others talk on: with one alone the call is over
        assert not left and clean(exchange), (script, step)


def test_a_cancel_that_crosses_the_members_200_ends_his_leg() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    bob = exchange.phone("bob", script="ring")
    session = alice.call("bob")
    exchange.run()
    session.bye(exchange.now)
    bob.respond(bob.invitations[0], "answer")
    exchange.run(GIVE_UP)
    assert bob.told(Ended) or bob.told(Cancelled)
    assert bob.invitations[0].ended and clean(exchange)


@pytest.mark.parametrize("first", ["alice", "bob"])
def test_a_cancel_that_is_read_together_with_the_members_200_ends_everything(first: str) -> None:
    """Whichever of the two stands first in what was read."""
    exchange = Exchange()
    names = {"alice": "answer", "bob": "ring"}
    phones = {name: exchange.phone(name, script=names[name]) for name in sorted(names, key=lambda name: name != first)}
    alice, bob = phones["alice"], phones["bob"]
    session = alice.call("bob")
    exchange.run()
    exchange.together = True
    bob.respond(bob.invitations[0], "answer")
    session.bye(exchange.now)
    exchange.run(GIVE_UP)
    assert bob.told(Ended) and not alice.told(Answered) and clean(exchange)


def test_a_caller_who_never_acknowledges_the_183_gets_a_5xx_and_nothing_stays() -> None:
    exchange = Exchange(regroup=RegroupSettings(answer_time_limit=60.0))
    alice = exchange.phone("alice")
    exchange.phone("bob", script="ring")
    exchange.lose = lambda message, _flow: isinstance(message, Request) and message.method == "PRACK"
    session = alice.call("bob")
    exchange.run(GIVE_UP)
    assert alice.answer_to(session).status // 100 == 5
    exchange.run(GIVE_UP)
    assert clean(exchange)


def test_a_caller_whose_connection_is_lost_while_it_rings_leaves_nothing() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    bob = exchange.phone("bob", script="ring")
    alice.call("bob")
    exchange.run()
    exchange.hang_up_flow(alice)
    exchange.run(GIVE_UP)
    assert bob.told(Cancelled) and clean(exchange)


# --- TNG1 and its races --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [-0.02, 0.0, 0.02])
def test_an_answer_that_meets_the_time_limit_is_either_in_time_or_not(early: float) -> None:
    """A member's 200 and a REFER that arrive around TNG1: one answer to the initiator, and no leg hangs."""
    limit = 10.0
    exchange = Exchange(regroup=condition("all", answer_time_limit=limit, proceed_at_time_limit=False))
    alice = exchange.phone("alice")
    bob, carol = exchange.phone("bob", script="ring"), exchange.phone("carol", script="ring")
    session = alice.call("bob")
    exchange.run(1.0)
    (call,) = exchange.calls.values()
    assert call.machine._tng1 is not None
    exchange.run(call.machine._tng1 - exchange.now - 0.01 + early)
    if not bob.invitations[0].ended:
        bob.respond(bob.invitations[0], "answer")
    refer = alice.refer(session, "carol")
    exchange.run(2 * GIVE_UP)
    answers = [e for e in alice.seen if isinstance(e, Answered | Refused) and e.session is session]
    assert len(answers) == 1
    if alice.told(Refused):
        assert bob.invitations[0].ended and all(i.ended for i in carol.invitations)
        exchange.run(GIVE_UP)
        assert clean(exchange)
    else:
        assert bob.invitations[0].established
    assert refer.terminated or alice.fragments(refer)
