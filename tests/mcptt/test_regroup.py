# SPDX-License-Identifier: Apache-2.0
"""The controlling side's two tables: every row, and what the ten steps come to."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcptt_sip.mcptt import regroup
from mcptt_sip.mcptt.regroup import (
    CALL_TABLE,
    MEMBER_TABLE,
    AnswerCondition,
    AnswerInitiator,
    CallReleased,
    CallState,
    InviteMember,
    MemberState,
    On,
    OnMember,
    PassAcknowledgement,
    RefuseInitiator,
    RegroupSettings,
    ReleaseMember,
    ReportAdd,
    TemporaryGroupCall,
)

ALICE, BOB, CAROL, DAVE = "sip:alice@x", "sip:bob@x", "sip:carol@x", "sip:dave@x"


def call(**settings: object) -> TemporaryGroupCall:
    return TemporaryGroupCall("sip:g@x", ALICE, now=0.0, settings=RegroupSettings(**settings))  # type: ignore[arg-type]


def orders(of: TemporaryGroupCall, kind: type) -> list[object]:
    return [order for order in of.events() if isinstance(order, kind)]


CALL_ROWS = {
    ("INVITING", "CONDITION_MET"): "RUNNING",
    ("INVITING", "NOBODY_LEFT_TO_WAIT_FOR"): "RELEASED",
    ("INVITING", "TNG1_PROCEED"): "RUNNING",
    ("INVITING", "TNG1_ABANDON"): "RELEASED",
    ("INVITING", "REQUIRED_REFUSED"): "RELEASED",
    ("INVITING", "TNG3"): "RELEASED",
    ("INVITING", "INITIATOR_CANCELLED"): "RELEASED",
    ("INVITING", "INITIATOR_RELEASED"): "RELEASED",
    ("RUNNING", "TNG3"): "RELEASED",
    ("RUNNING", "SILENT"): "RELEASED",
    ("RUNNING", "INITIATOR_CANCELLED"): "RELEASED",
    ("RUNNING", "INITIATOR_RELEASED"): "RELEASED",
    ("RUNNING", "INITIATOR_LEFT"): "RUNNING",
    ("RUNNING", "INITIATOR_RETURNED"): "RUNNING",
    ("RUNNING", "ALONE"): "RELEASED",
}

MEMBER_ROWS = {
    ("GONE", "ADDED"): "INVITED",
    ("INVITED", "ACCEPTED"): "CONNECTED",
    ("INVITED", "REFUSED"): "GONE",
    ("INVITED", "LEFT"): "GONE",
    ("INVITED", "RANG_TOO_LONG"): "GONE",
    ("INVITED", "REMOVED"): "GONE",
    ("CONNECTED", "REMOVED"): "GONE",
    ("CONNECTED", "LEFT"): "GONE",
}


def test_the_tables_are_these() -> None:
    assert {(s.name, e.name): n.name for (s, e), (n, _) in CALL_TABLE.items()} == CALL_ROWS
    assert {(s.name, e.name): n.name for (s, e), (n, _) in MEMBER_TABLE.items()} == MEMBER_ROWS


def test_nothing_leaves_the_released_state() -> None:
    assert not any(state is CallState.RELEASED for state, _ in CALL_TABLE)


def test_steps_3_to_9_for_one_user() -> None:
    c = call()
    c.start(BOB, b"key of bob", 0.0)
    assert c.events() == [regroup.AffiliateImplicitly(ALICE), InviteMember(BOB, b"key of bob")]
    c.accepted(BOB, b"proof", 1.0)
    assert orders(c, AnswerInitiator) == [AnswerInitiator((b"proof",))]
    assert c.state is CallState.RUNNING


def test_users_are_added_before_and_after_the_answer() -> None:
    c = call()
    c.start(BOB, b"b", 0.0)
    c.add(CAROL, b"c", "refer 1", 0.1)
    c.accepted(CAROL, b"proof of carol", 0.5)
    done = c.events()
    assert ReportAdd("refer 1", CAROL, 200, None, b"proof of carol") in done
    # carol was the first to accept: the initiator is answered, without bob's proof
    assert AnswerInitiator(()) in done
    c.accepted(BOB, b"proof of bob", 0.9)
    assert PassAcknowledgement(BOB, b"proof of bob") in c.events()
    c.add(DAVE, b"d", "refer 2", 2.0)
    assert orders(c, InviteMember) == [InviteMember(DAVE, b"d")]


@pytest.mark.parametrize(
    "condition, accepts, answered_after", [("first", 3, 1), ("quorum:2", 3, 2), ("all", 3, 3), ("quorum:9", 3, None)]
)
def test_the_initiator_is_answered_when_the_condition_is_met(
    condition: str, accepts: int, answered_after: int | None
) -> None:
    c = call(answer_condition=AnswerCondition.parse(condition))
    c.start(BOB, b"", 0.0)
    for number, user in enumerate((CAROL, DAVE)):
        c.add(user, b"", number, 0.0)
    c.events()
    seen = None
    for number, user in enumerate((BOB, CAROL, DAVE)[:accepts], 1):
        c.accepted(user, None, 1.0)
        if orders(c, AnswerInitiator):
            seen = number
    assert seen == answered_after


def test_at_the_time_limit_the_call_proceeds_with_warning_111_or_is_abandoned_with_112() -> None:
    c = call(answer_condition=AnswerCondition.parse("all"))
    c.start(BOB, b"", 0.0)
    c.add(CAROL, b"", "r", 0.0)
    c.accepted(BOB, None, 1.0)
    c.events()
    assert c.next_timer() == 30.0
    c.handle_timer(30.0)
    assert orders(c, AnswerInitiator) == [AnswerInitiator((), (111,), (CAROL,))]

    c = call()
    c.start(BOB, b"", 0.0)
    c.handle_timer(30.0)
    refused = [o for o in c.events() if isinstance(o, RefuseInitiator)]
    assert len(refused) == 1 and (refused[0].warning or "").startswith("112 ")
    assert c.state is CallState.RELEASED


def test_a_refusal_of_the_only_user_is_handed_on_with_its_status_and_warning() -> None:
    c = call()
    c.start(BOB, b"", 0.0)
    c.refused(BOB, 488, "136 authentication of the MIKEY-SAKKE I_MESSAGE failed", 1.0)
    done = c.events()
    assert RefuseInitiator(488, "136 authentication of the MIKEY-SAKKE I_MESSAGE failed") in done
    assert any(isinstance(o, CallReleased) for o in done)


def test_one_who_never_answers_is_let_go_and_the_call_goes_on() -> None:
    c = call(ring_time_limit=10.0)
    c.start(BOB, b"", 0.0)
    c.accepted(BOB, None, 1.0)
    c.add(CAROL, b"", "r", 2.0)
    c.events()
    c.handle_timer(12.0)
    done = c.events()
    assert ReleaseMember(CAROL, answered=False) in done
    assert ReportAdd("r", CAROL, 408, None, None) in done
    assert c.state is CallState.RUNNING and c.connected == (BOB,)


@pytest.mark.parametrize("user, status", [(ALICE, 486), (BOB, 486)])
def test_who_is_in_cannot_be_added_again(user: str, status: int) -> None:
    c = call()
    c.start(BOB, b"", 0.0)
    c.events()
    c.add(user, b"another key", "r", 0.0)
    (report,) = orders(c, ReportAdd)
    assert isinstance(report, ReportAdd) and report.status == status


def test_the_cap_on_participants_counts_those_still_ringing() -> None:
    c = call(max_participants=3)
    c.start(BOB, b"", 0.0)
    c.add(CAROL, b"", 1, 0.0)
    c.events()
    c.add(DAVE, b"", 2, 0.0)
    (report,) = orders(c, ReportAdd)
    assert isinstance(report, ReportAdd) and (report.warning or "").startswith("122 ")


def test_removing_who_is_not_there_succeeds_and_the_initiator_cannot_be_removed() -> None:
    c = call()
    c.start(BOB, b"", 0.0)
    c.accepted(BOB, None, 0.0)
    c.events()
    c.remove(CAROL, 1, 1.0)
    c.remove(ALICE, 2, 1.0)
    assert [o.status for o in c.events() if isinstance(o, ReportAdd)] == [200, 403]


@pytest.mark.parametrize("keep, release, goes_on", [(True, False, True), (True, True, False), (False, False, False)])
def test_what_happens_when_the_initiator_goes(keep: bool, release: bool, goes_on: bool) -> None:
    c = call(keep_without_initiator=keep)
    c.start(BOB, b"", 0.0)
    c.accepted(BOB, None, 0.0)
    c.add(CAROL, b"", 1, 0.0)
    c.accepted(CAROL, None, 0.0)
    c.initiator_left(release=release, now=5.0)
    assert (c.state is CallState.RUNNING) == goes_on
    if goes_on:
        c.left(BOB, 6.0)
        assert c.state is CallState.RELEASED, "one participant alone is no call"


USERS = (BOB, CAROL, DAVE, "sip:erin@x")
MOVES = ("add", "accepted", "refused", "left", "remove")


@given(st.lists(st.tuples(st.sampled_from(MOVES), st.sampled_from(USERS), st.floats(0.0, 20.0)), max_size=60))
def test_whatever_happens_every_refer_is_answered_once_and_every_call_ends(
    moves: list[tuple[str, str, float]],
) -> None:
    c = call(ring_time_limit=25.0, max_duration=600.0)
    now, handles, seen = 0.0, itertools.count(), []
    asked = []
    c.start(BOB, b"k", now)
    for move, user, wait in moves:
        now += wait
        c.handle_timer(now)
        match move:
            case "add" | "remove":
                asked.append(next(handles))
                if move == "add":
                    c.add(user, b"k", asked[-1], now)
                else:
                    c.remove(user, asked[-1], now)
            case "accepted":
                c.accepted(user, b"proof", now)
            case "refused":
                c.refused(user, 480, None, now)
            case "left":
                c.left(user, now)
        seen += c.events()
        assert not set(c.connected) & set(c.invited)
        assert all(m.state is not MemberState.GONE for m in c.members.values())
        assert len([o for o in seen if isinstance(o, AnswerInitiator | RefuseInitiator)]) <= 1
    c.handle_timer(now + 1000.0)
    seen += c.events()
    assert c.state is CallState.RELEASED and c.next_timer() is None
    assert sorted(o.handle for o in seen if isinstance(o, ReportAdd)) == asked
    assert len([o for o in seen if isinstance(o, CallReleased)]) == 1
    assert len([o for o in seen if isinstance(o, AnswerInitiator | RefuseInitiator)]) == 1


def test_the_event_names_are_all_used() -> None:
    assert {event for _, event in CALL_TABLE} == set(On)
    assert {event for _, event in MEMBER_TABLE} == set(OnMember)
