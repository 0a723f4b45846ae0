# SPDX-License-Identifier: Apache-2.0
"""How a temporary group call ends, for one and for all."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from mcptt_sip.mcptt.contents import RELEASE_FOR_ALL, is_release_for_all
from mcptt_sip.mcptt.groupcall import GroupCall, Leg
from mcptt_sip.mcptt.policy import Policy
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import Cancelled, Ended
from tests.mcptt.calls import GIVE_UP, clean, talking
from tests.mcptt.exchange import Exchange, uri


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


def dismiss(exchange: Exchange, name: str) -> None:
    """The operator takes a user out."""
    profiles = dict(exchange.policy.profiles)
    del profiles[uri(name)]
    exchange.policy = Policy(profiles)
    exchange.server.policy_changed(profiles, exchange.now)
    exchange.run(GIVE_UP)


def test_who_is_no_user_any_more_leaves_his_call_and_the_others_stay() -> None:
    exchange, (_alice, bob, carol), session = talking("bob", "carol")
    dave = exchange.phone("dave", script="ring")
    refer = exchange.phones[0].refer(session, "dave")
    exchange.run()
    dismiss(exchange, "bob")
    assert bob.told(Ended) and not carol.told(Ended) and not session.ended
    assert exchange.call.machine.connected == (uri("carol"),) and uri("bob") not in exchange.plane.opened[0].legs
    dismiss(exchange, "dave")
    assert dave.told(Cancelled) and exchange.phones[0].fragments(refer)[-1].status == 404
    again = exchange.phones[0].refer(session, "bob")
    exchange.run()
    assert exchange.phones[0].answer_to(again).status in (403, 404)
    dismiss(exchange, "erin")  # who was in no call
    assert exchange.call.machine.connected == (uri("carol"),)
    session.bye(exchange.now, headers=[("Reason", RELEASE_FOR_ALL)])
    exchange.run(GIVE_UP)
    assert clean(exchange)


@pytest.mark.parametrize("answered", [True, False])
def test_the_call_of_an_initiator_who_is_no_user_any_more_ends(answered: bool) -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    bob = exchange.phone("bob", script="answer" if answered else "ring")
    session = alice.call("bob")
    exchange.run()
    assert session.established is answered
    dismiss(exchange, "alice")
    assert session.ended and bob.told(Ended if answered else Cancelled) and clean(exchange)
    assert answered or alice.answer_to(session).status == 403


def test_the_call_of_an_absent_initiator_who_is_no_user_any_more_ends() -> None:
    exchange, (alice, bob, carol), _ = talking("bob", "carol", regroup=RegroupSettings(keep_without_initiator=True))
    exchange.hang_up_flow(alice)
    exchange.run()
    assert exchange.calls and not bob.told(Ended)
    dismiss(exchange, "alice")
    assert bob.told(Ended) and carol.told(Ended) and clean(exchange)


def test_who_left_and_is_no_user_any_more_is_no_former_member() -> None:
    exchange, (_alice, bob, _carol), _ = talking("bob", "carol")
    bob.invitations[0].bye(exchange.now)
    exchange.run()
    assert uri("bob") in exchange.call.former
    dismiss(exchange, "bob")
    assert uri("bob") not in exchange.call.former


def test_the_only_invited_user_is_no_user_any_more() -> None:
    exchange = Exchange()
    alice = exchange.phone("alice")
    exchange.phone("bob", script="ring")
    session = alice.call("bob")
    exchange.run()
    dismiss(exchange, "bob")
    assert alice.answer_to(session).status == 404 and clean(exchange)


def test_a_call_in_which_something_is_wrong_keeps_nobody_in_another() -> None:
    exchange, _, _ = talking("bob")
    carol, dave, _erin = exchange.phones_of("carol", "dave", "erin")
    session = carol.call("dave")
    exchange.run()
    carol.refer(session, "erin")
    exchange.run()
    del exchange.plane.opened[0].legs[uri("bob")]  # the media plane will not find him
    users = set(exchange.policy.profiles) - {uri("bob"), uri("dave")}
    exchange.server.policy_changed(users, exchange.now)
    exchange.run(GIVE_UP)
    assert dave.told(Ended) and [call.initiator for call in exchange.calls.values()] == [uri("carol")]


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


def test_a_call_that_is_over_is_freed_without_a_search_for_garbage() -> None:
    """A leg and its session know one another; the server lets go of a session that is over, so no circle is left."""
    exchange = Exchange()
    alice, _bob, _carol = exchange.phones_of("alice", "bob", "carol")
    session = alice.call("bob")
    exchange.run()
    alice.refer(session, "carol")
    exchange.run()
    gc.collect()
    there = sum(isinstance(thing, GroupCall | Leg) for thing in gc.get_objects())
    gc.disable()
    try:
        session.bye(exchange.now, headers=[("Reason", RELEASE_FOR_ALL)])
        exchange.run(80.0)
        left = sum(isinstance(thing, GroupCall | Leg) for thing in gc.get_objects())
        assert not exchange.calls and left == there - 4, "the call, and a leg of each"
    finally:
        gc.enable()
