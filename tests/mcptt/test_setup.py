# SPDX-License-Identifier: Apache-2.0
"""The ten steps when not everybody behaves: each failure branch and each race, as the server shows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mcptt_sip.flow import Flow
from mcptt_sip.mcptt.contents import RELEASE_FOR_ALL, SipFragment, is_release_for_all, read_contents, warning_of
from mcptt_sip.mcptt.policy import Commencement, Urgency, warning_text
from mcptt_sip.mcptt.regroup import AnswerCondition, RegroupSettings
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import Answered, Cancelled, Ended, InviteSession, Refused
from tests.mcptt.exchange import Exchange, Telephone, key_message, uri, warning_codes

GIVE_UP = 33.0  # seconds: a little more than 64*T1


def condition(text: str, **more: object) -> RegroupSettings:
    return RegroupSettings(answer_condition=AnswerCondition.parse(text), **more)  # type: ignore[arg-type]


def clean(exchange: Exchange) -> bool:
    """Nothing is left of any call: no leg, no affiliation, no media."""
    controlling = exchange.server.controlling
    return (
        not controlling.calls and not controlling._by_identity and not controlling._affiliations._groups
        and all(media.closed and not media.legs for media in exchange.plane.opened)
    )


def talking(*names: str, **settings: object) -> tuple[Exchange, list[Telephone], InviteSession]:
    """Alice, who called, and the others, who are all in the call."""
    exchange = Exchange(**settings)  # type: ignore[arg-type]
    phones = exchange.phones_of("alice", *names)
    session = phones[0].call(names[0])
    exchange.run()
    for name in names[1:]:
        phones[0].refer(session, name)
    exchange.run()
    assert exchange.call.machine.connected == tuple(map(uri, names))
    return exchange, phones, session


# --- step 2 and 4: one INVITE, one call ---------------------------------------------------------------------


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


REFUSALS: dict[str, tuple[int, str | None]] = {
    "busy": (486, None),
    "declined": (480, warning_text(110)),
    "a key that he cannot open": (488, warning_text(136)),
    "his own policy": (403, warning_text(100)),
    "everywhere": (603, None),
    "broken": (500, None),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_only_users_refusal_is_the_answer_to_the_call(name: str) -> None:
    status, warning = REFUSALS[name]
    exchange = Exchange()
    alice = exchange.phone("alice")
    exchange.phone("bob", script=(status, warning))
    session = alice.call("bob")
    exchange.run()
    answer = alice.answer_to(session)
    assert (answer.status, warning_of(answer)) == (status, warning)
    exchange.run(GIVE_UP)
    assert clean(exchange)


@pytest.mark.parametrize("name", REFUSALS)
def test_an_added_users_refusal_is_told_and_ends_nothing(name: str) -> None:
    status, warning = REFUSALS[name]
    exchange, (alice, _bob), session = talking("bob")
    exchange.phone("carol", script=(status, warning))
    refer = alice.refer(session, "carol")
    exchange.run()
    assert alice.answer_to(refer).status == 200, "never 202, and the verdict on the user comes by NOTIFY"
    assert alice.fragments(refer) == [SipFragment(100), SipFragment(status, warning)]
    assert exchange.call.machine.connected == (uri("bob"),)


@pytest.mark.parametrize("script", ["ring", "silent"])
def test_a_user_who_never_answers_is_given_up_and_delays_nobody(script: str) -> None:
    exchange, (alice, *_), session = talking("bob", regroup=RegroupSettings(ring_time_limit=40.0))
    carol = exchange.phone("carol", script=script)
    dave = exchange.phone("dave")
    late, quick = alice.refer(session, "carol"), alice.refer(session, "dave")
    exchange.run()
    assert alice.fragments(quick)[-1].status == 200 and dave.invitations[0].established
    exchange.run(45.0)
    assert alice.fragments(late)[-1].status == 408
    assert uri("carol") not in exchange.call.forks
    if script == "ring":
        assert carol.told(Cancelled)


def test_a_user_who_is_gone_without_a_word_fails_with_408() -> None:
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol")
    exchange.lose = lambda _message, flow: flow.remote == carol.address
    refer = alice.refer(session, "carol")
    exchange.run(GIVE_UP)
    assert [f.status for f in alice.fragments(refer)] == [100, 408]


# --- step 4: several devices ----------------------------------------------------------------------------------


def test_every_device_rings_and_the_first_that_answers_has_the_call() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    desk, belt, car = (exchange.phone("bob", device, script="ring") for device in ("desk", "belt", "car"))
    session = alice.call("bob")
    exchange.run()
    assert all(len(phone.invitations) == 1 for phone in (desk, belt, car))
    belt.respond(belt.invitations[0], "answer")
    exchange.run()
    assert alice.answer_to(session).status == 200
    assert belt.invitations[0].established and desk.told(Cancelled) and car.told(Cancelled)
    assert [leg.destination.client_id for leg in exchange.call.legs.values()] == ["1", "belt"]
    (cancel,) = exchange.sent_to(desk, "CANCEL")
    assert "not selected for call" in (cancel.headers.get("Reason") or "")


def test_two_devices_that_answer_at_once_leave_one_leg() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    desk, belt = exchange.phone("bob", "desk"), exchange.phone("bob", "belt")
    session = alice.call("bob")
    exchange.run()
    assert alice.answer_to(session).status == 200
    won = [phone for phone in (desk, belt) if not phone.told(Ended)]
    (lost,) = (phone for phone in (desk, belt) if phone.told(Ended))
    assert len(won) == 1 and len(exchange.call.legs) == 2
    (bye,) = exchange.sent_to(lost, "BYE")
    assert read_contents(bye).info.release_reason == "not selected for call"
    assert alice.contents_of(session).acknowledgements == (b"proof of bob",)


def test_two_200s_that_are_read_together_leave_one_leg() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    desk, belt = (exchange.phone("bob", device, script="ring") for device in ("desk", "belt"))
    session = alice.call("bob")
    exchange.run()
    exchange.together = True
    for phone in (desk, belt):
        phone.respond(phone.invitations[0], "answer")
    exchange.run()
    assert alice.answer_to(session).status == 200
    assert [bool(phone.told(Ended)) for phone in (desk, belt)] == [False, True]


def test_one_devices_refusal_leaves_the_others_ringing_and_a_6xx_speaks_for_all() -> None:
    exchange, (alice, *_), session = talking("bob")
    desk, belt = exchange.phone("carol", "desk", (486, None)), exchange.phone("carol", "belt", "ring")
    refer = alice.refer(session, "carol")
    exchange.run()
    assert len(alice.fragments(refer)) == 1, "the other device still rings"
    belt.respond(belt.invitations[0], (480, warning_text(110)))
    exchange.run()
    assert alice.fragments(refer)[-1].status == 486
    desk.script, belt.script = (603, None), "ring"
    refer = alice.refer(session, "carol")
    exchange.run()
    assert alice.fragments(refer)[-1].status == 603 and belt.told(Cancelled)


def test_a_device_whose_connection_is_gone_is_not_tried() -> None:
    exchange, (alice, *_), session = talking("bob")
    desk, belt = exchange.phone("carol", "desk"), exchange.phone("carol", "belt")
    exchange.hang_up_flow(desk)
    refer = alice.refer(session, "carol")
    exchange.run()
    assert alice.fragments(refer)[-1].status == 200 and len(belt.invitations) == 1
    exchange.hang_up_flow(belt)
    assert uri("carol") not in exchange.server.participating._destinations, "nothing of it is kept"


@pytest.mark.parametrize("which", ["desk", "belt"])
def test_a_call_is_with_the_device_that_makes_it(which: str) -> None:
    """Its contact, its connection, and the CSK of its own registration."""
    exchange = Exchange()
    devices = {name: exchange.phone("bob", name) for name in ("desk", "belt")}
    exchange.phone("dave")
    session = devices[which].call("dave")
    exchange.run()
    assert devices[which].answer_to(session).status == 200
    mine = exchange.call.legs[uri("bob")].destination
    assert (mine.client_id, mine.csk.key_id) == (which, devices[which].csk.key_id)
    assert not devices["belt" if which == "desk" else "desk"].invitations


# --- step 4: how to answer, and how urgent ---------------------------------------------------------------------


MODES: dict[str, tuple[list[tuple[str, object]], Commencement]] = {
    "automatic": ([("Answer-Mode", "Auto")], Commencement.AUTOMATIC),
    "the other spelling": ([("Answer-Mode", "Automatic")], Commencement.AUTOMATIC),
    "manual": ([("Answer-Mode", "Manual")], Commencement.MANUAL),
    "forced": ([("Priv-Answer-Mode", "Auto")], Commencement.FORCED),
    "both, with the privilege": (
        [("Priv-Answer-Mode", "Auto"), ("Answer-Mode", "Manual")], Commencement.FORCED
    ),
    "none": ([], Commencement.AUTOMATIC),
}


@pytest.mark.parametrize("name", MODES)
def test_the_commencement_mode_goes_to_every_member_in_one_header(name: str) -> None:
    headers, wanted = MODES[name]
    exchange = Exchange(users={"alice": {"allow_force_auto_answer": True}})
    alice, bob, carol = exchange.phones_of("alice", "bob", "carol")
    session = alice.call("bob", headers=headers, leave_out=["Answer-Mode"])
    exchange.run()
    alice.refer(session, "carol")
    exchange.run()
    for phone in (bob, carol):
        sent = phone.invitations[0].request.headers
        given = [(name, sent.get(name)) for name in ("Answer-Mode", "Priv-Answer-Mode") if sent.get(name)]
        assert given == [wanted.header]


def test_who_may_not_force_an_answer_asks_for_an_ordinary_one_beside_it() -> None:
    exchange = Exchange()
    alice, bob = exchange.phones_of("alice", "bob")
    session = alice.call("bob", headers=[("Priv-Answer-Mode", "Auto"), ("Answer-Mode", "Manual")])
    exchange.run()
    assert alice.answer_to(session).status == 200
    assert bob.invitations[0].request.headers.get("Answer-Mode") == "Manual"


@pytest.mark.parametrize("name", ["emergency", "imminent_peril"])
def test_an_urgent_call_says_so_to_members_on_the_floor_and_in_its_priority(name: str) -> None:
    rights = {"allow_emergency_group_call": True, "allow_imminent_peril_call": True}
    exchange = Exchange(users={"alice": rights})
    alice, bob = exchange.phones_of("alice", "bob")
    session = alice.call("bob", **{name: True})
    exchange.run()
    assert alice.answer_to(session).status == 200
    info = read_contents(bob.invitations[0].request).info
    assert getattr(info, name) is True and [info.emergency, info.imminent_peril].count(None) == 1
    urgency = Urgency.EMERGENCY if name == "emergency" else Urgency.IMMINENT_PERIL
    level = {Urgency.EMERGENCY: "mcpttp.15", Urgency.IMMINENT_PERIL: "mcpttp.10"}[urgency]
    assert bob.invitations[0].request.headers.get("Resource-Priority") == level
    assert exchange.plane.opened[0].urgency is urgency


def test_a_caller_cannot_claim_a_priority_that_the_call_does_not_have() -> None:
    exchange = Exchange()
    alice, bob = exchange.phones_of("alice", "bob")
    alice.call("bob", headers=[("Resource-Priority", "mcpttp.15")])
    exchange.run()
    assert bob.invitations[0].request.headers.get("Resource-Priority") == "mcpttp.5"


@pytest.mark.parametrize("right", [True, False])
def test_an_alert_without_its_right_is_taken_back_by_info_and_the_call_goes_on(right: bool) -> None:
    rights = {"allow_emergency_group_call": True, "allow_activate_emergency_alert": right}
    exchange = Exchange(users={"alice": rights})
    alice, bob = exchange.phones_of("alice", "bob")
    session = alice.call("bob", emergency=True, alert=True)
    exchange.run()
    assert read_contents(bob.invitations[0].request).info.alert is (True if right else None)
    assert (149 in warning_codes(alice.answer_to(session))) is not right
    infos = [read_contents(request).info.alert for request in alice.requests if request.method == "INFO"]
    assert infos == ([] if right else [False])


# --- step 6 and 9 ----------------------------------------------------------------------------------------------


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


# --- CANCEL at every step --------------------------------------------------------------------------------------


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


# --- step 7 and 8 ----------------------------------------------------------------------------------------------


def test_a_user_may_be_added_before_the_call_is_answered() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    bob, _carol = exchange.phone("bob", script="ring"), exchange.phone("carol")
    session = alice.call("bob")
    exchange.run()
    refer = alice.refer(session, "carol")
    exchange.run()
    assert alice.fragments(refer)[-1].status == 200
    assert alice.answer_to(session).status == 200, "carol was the first to answer"
    bob.respond(bob.invitations[0], "answer")
    exchange.run()
    assert set(exchange.call.machine.connected) == {uri("bob"), uri("carol")}


@pytest.mark.parametrize("same", [True, False])
def test_two_refers_for_one_user_make_one_invitation(same: bool) -> None:
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol", script="ring")
    key = key_message("alice", "carol", 77)
    first = alice.refer(session, "carol", key=key)
    exchange.run()
    second = alice.refer(session, "carol", key=key if same else key_message("alice", "carol", 78))
    exchange.run()
    assert len(carol.invitations) == 1
    assert alice.answer_to(second).status == (200 if same else 486)
    carol.respond(carol.invitations[0], "answer")
    exchange.run()
    told = [alice.fragments(refer)[-1].status for refer in (first, second) if refer is first or same]
    assert told == [200] * len(told)


def test_a_key_message_that_was_used_for_an_add_adds_nobody_again() -> None:
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol")
    key = key_message("alice", "carol", 77)
    alice.refer(session, "carol", key=key)
    exchange.run()
    carol.invitations[0].bye(exchange.now)
    exchange.run()
    again = alice.refer(session, "carol", key=key)
    exchange.run()
    assert alice.answer_to(again).status == 488 and len(carol.invitations) == 1


QUIET: dict[str, list[tuple[str, object]]] = {
    "Refer-Sub: false": [("Refer-Sub", "false")],
    "nosub": [("Require", "nosub")],
}


@pytest.mark.parametrize("how", QUIET)
def test_a_refer_without_subscription_shows_its_outcome_in_the_conference_package(how: str) -> None:
    exchange, (alice, bob), session = talking("bob")
    exchange.phone("carol")
    exchange.phone("dave", script=(486, "110 busy"))
    watch = alice.subscribe(alice.session_identity(session))
    other = bob.subscribe(alice.session_identity(session))
    exchange.run(6.0)
    refers = [alice.refer(session, name, headers=QUIET[how]) for name in ("carol", "dave")]
    exchange.run(6.0)
    for refer in refers:
        answer = alice.answer_to(refer)
        assert (answer.status, answer.headers.get("Refer-Sub")) == (200, "false")
        assert not alice.fragments(refer)
    users = {user.entity: user for roster in alice.rosters(watch)[1:] for user in roster.users}
    assert users[uri("carol")].status == "connected" and users[uri("carol")].acknowledgement
    assert users[uri("dave")].status == "disconnected" and "cause=486" in (users[uri("dave")].outcome or "")
    assert not any(user.acknowledgement for roster in bob.rosters(other) for user in roster.users)
    fetches = {phone: phone.subscribe(alice.session_identity(session), expires=0) for phone in (alice, bob)}
    exchange.run()
    for phone, fetch in fetches.items():
        proofs = [user.entity for user in phone.rosters(fetch)[0].users if user.acknowledgement]
        assert proofs == ([uri("carol")] if phone is alice else []), "a proof is the initiator's business"


BAD_REFERS: dict[str, tuple[int, dict[str, object]]] = {
    "two users": (400, {"headers": [("Refer-To", f"<{uri('dave')};method=INVITE>")]}),
    "nobody": (400, {"refer_to": "<not a uri>"}),
    "another method": (403, {"refer_to": f"<{uri('carol')};method=MESSAGE>"}),
    "headers": (403, {"refer_to": f"<{uri('carol')};method=INVITE?Subject=x>"}),
    "another domain": (403, {"refer_to": "<sip:carol@elsewhere.example;method=INVITE>"}),
    "an explicit subscription": (420, {"headers": [("Require", "explicitsub")]}),
    "another's key": (488, {"key": key_message("alice", "dave", 5)}),
    "nobody's key": (488, {"key": b"\x01"}),
}


@pytest.mark.parametrize("name", BAD_REFERS)
def test_a_bad_refer_has_its_status_and_the_next_one_works(name: str) -> None:
    status, options = BAD_REFERS[name]
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol")
    refer = alice.refer(session, "carol", **options)  # type: ignore[arg-type]
    exchange.run()
    assert alice.answer_to(refer).status == status and not carol.invitations
    good = alice.refer(session, "carol")
    exchange.run()
    assert alice.fragments(good)[-1].status == 200


def test_a_refer_in_the_dialog_of_another_call_is_refused() -> None:
    """Alice leads two calls; what comes in the dialog of one is not about the other."""
    exchange, (alice, *_), session = talking("bob")
    carol, dave = exchange.phone("carol"), exchange.phone("dave")
    other = alice.call("dave")
    exchange.run()
    assert other.dialog is not None and dave.invitations
    other.dialog.remote_target = alice.session_identity(session)
    sent = other.send("REFER", headers=[("Refer-To", f"<{carol.uri};method=INVITE>")], now=exchange.now)
    exchange.run()
    assert (alice.answer_to(sent).status, carol.invitations) == (403, [])


@pytest.mark.parametrize("status", [481, 489, 500, 404])
def test_a_refused_notify_keeps_the_user_and_the_call(status: int) -> None:
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol", script="ring")
    alice.refer(session, "carol")
    exchange.run()
    notifier = next(
        usage for dialog in exchange.server.stack._dialogs.values() for usage in dialog.subscriptions
        if usage.event == "refer"
    )
    # the subscriber's stack has forgotten the subscription, and says so
    alice.stack._dialogs = {k: d for k, d in alice.stack._dialogs.items() if d.session is not None}
    alice.stack._expected.clear()
    assert notifier is not None
    carol.respond(carol.invitations[0], "answer")
    exchange.run()
    assert uri("carol") in exchange.call.legs and session.established


def test_the_subscription_may_end_before_the_outcome_and_the_user_is_added_all_the_same() -> None:
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol", script="ring")
    refer = alice.refer(session, "carol")
    exchange.run()
    refer.unsubscribe(exchange.now)
    exchange.run()
    carol.respond(carol.invitations[0], "answer")
    exchange.run()
    assert uri("carol") in exchange.call.legs


def test_removing_one_who_still_rings_takes_the_invitation_back() -> None:
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol", script="ring")
    added = alice.refer(session, "carol")
    exchange.run()
    removed = alice.refer(session, "carol", "BYE")
    exchange.run()
    assert carol.told(Cancelled)
    assert (alice.fragments(added)[-1].status, alice.fragments(removed)[-1].status) == (487, 200)


# --- TNG1 and its races ----------------------------------------------------------------------------------------


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


# --- the end ---------------------------------------------------------------------------------------------------


def test_the_initiators_leaving_while_others_ring_takes_nobody_out() -> None:
    exchange, (_alice, _bob, _dave), session = talking("bob", "dave")
    carol = exchange.phone("carol", script="ring")
    exchange.phones[0].refer(session, "carol")
    exchange.run()
    session.bye(exchange.now)
    exchange.run()
    assert exchange.call.machine.connected == (uri("bob"), uri("dave"))
    carol.respond(carol.invitations[0], "answer")
    exchange.run()
    assert uri("carol") in exchange.call.legs


def test_a_release_for_all_cancels_who_rings_and_ends_who_talks() -> None:
    exchange, (alice, bob), session = talking("bob")
    carol = exchange.phone("carol", script="ring")
    refer = alice.refer(session, "carol")
    exchange.run()
    session.bye(exchange.now, headers=[("Reason", RELEASE_FOR_ALL)])
    exchange.run(GIVE_UP)
    assert bob.told(Ended) and carol.told(Cancelled) and alice.fragments(refer)[-1].status == 487
    assert is_release_for_all(None) is False and clean(exchange)


@pytest.mark.parametrize("keep", [True, False])
def test_a_lost_initiator_ends_the_call_or_not_as_is_set(keep: bool) -> None:
    exchange, (alice, bob, carol), _ = talking(
        "bob", "carol", regroup=RegroupSettings(keep_without_initiator=keep)
    )
    exchange.hang_up_flow(alice)
    exchange.run()
    assert bool(exchange.calls) is keep and bool(bob.told(Ended)) is not keep
    if keep:
        carol.invitations[0].bye(exchange.now)
        exchange.run(GIVE_UP)
        assert bob.told(Ended), "one alone is no call"
    exchange.run(GIVE_UP)
    assert clean(exchange)


ENDS: dict[str, Callable[[Exchange], None]] = {
    "maximum duration": lambda exchange: exchange.run(100.0),
    "nobody talks": lambda exchange: exchange.server.controlling.media_silent(exchange.call.group, exchange.now),
    "the server stops": lambda exchange: exchange.server.controlling.release_all("going down", exchange.now),
}


@pytest.mark.parametrize("why", ENDS)
def test_the_server_ends_a_call_for_everybody_and_says_why(why: str) -> None:
    exchange, phones, session = talking("bob", "carol", regroup=RegroupSettings(max_duration=60.0))
    ENDS[why](exchange)
    exchange.run(GIVE_UP)
    assert session.ended and all(phone.told(Ended) for phone in phones)
    assert "cause=200" in (exchange.sent_to(phones[0], "BYE")[0].headers.get("Reason") or "")
    exchange.run(GIVE_UP)
    assert clean(exchange)


def test_a_member_who_leaves_loses_his_affiliation_and_his_place_on_the_relay() -> None:
    exchange, (_, bob, _carol), _ = talking("bob", "carol")
    affiliations = exchange.server.controlling._affiliations
    group = exchange.call.group
    assert affiliations.users(group) == {uri(name) for name in ("alice", "bob", "carol")}
    bob.invitations[0].bye(exchange.now)
    exchange.run()
    assert affiliations.users(group) == {uri("alice"), uri("carol")}
    assert uri("bob") not in exchange.plane.opened[0].legs
    assert affiliations.count(uri("bob")) == 0


def test_the_causes_of_an_end_are_those_of_sip() -> None:
    exchange, (alice, bob), session = talking("bob")
    bob.invitations[0].bye(exchange.now)
    exchange.run()
    session.bye(exchange.now)
    exchange.run(GIVE_UP)
    assert [e.cause for e in alice.told(Ended)] == [Cause.LOCAL_BYE] and clean(exchange)
