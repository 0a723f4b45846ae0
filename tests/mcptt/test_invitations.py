# SPDX-License-Identifier: Apache-2.0
"""A member's leg: refusals, silence, several devices, how to answer and how urgent."""

from __future__ import annotations

import pytest

from mcptt_sip.mcptt.contents import SipFragment, read_contents, warning_of
from mcptt_sip.mcptt.policy import Commencement, Urgency, warning_text
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.session import Cancelled, Ended
from tests.mcptt.calls import GIVE_UP, clean, talking
from tests.mcptt.exchange import Exchange, uri, warning_codes

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


# --- step 4: several devices ---------------------------------------------------------------------------------------


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


# --- step 4: how to answer, and how urgent -------------------------------------------------------------------------


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


# --- what is not handed on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, told",
    [
        ((302, None), (480, None)),
        ((401, None), (480, None)),
        ((422, None), (480, None)),
        ((486, "399 call sip:mallory@elsewhere.example"), (486, None)),
        ((403, "100 function not allowed due to <script>"), (403, warning_text(100))),
        ((480, "110 go away"), (480, warning_text(110))),
        ((404, None), (404, None)),
    ],
)
def test_a_members_own_words_and_ways_are_not_handed_on(
    said: tuple[int, str | None], told: tuple[int, str | None]
) -> None:
    """A Warning is rebuilt from the table; a redirection or a challenge is no business of the caller's."""
    exchange, (alice, _bob), session = talking("bob")
    exchange.phone("carol", script=said)
    refer = alice.refer(session, "carol")
    exchange.run()
    assert alice.fragments(refer)[-1] == SipFragment(*told)
    other = alice.call("carol")
    exchange.run()
    answer = alice.answer_to(other)
    assert (answer.status, warning_of(answer)) == told


def test_a_changed_priority_holds_from_the_next_invitation_on() -> None:
    exchange, (alice, *_), session = talking("bob")
    carol = exchange.phone("carol")
    exchange.policy = Exchange(users={"carol": {"user_priority": 9}}).policy
    alice.refer(session, "carol")
    exchange.run()
    assert b"mc_priority=9" in carol.invitations[0].request.body
