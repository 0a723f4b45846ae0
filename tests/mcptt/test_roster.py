# SPDX-License-Identifier: Apache-2.0
"""The conference package of a call, as its watchers see it (RFC 4575)."""

from __future__ import annotations

import itertools

import pytest

from mcptt_sip.mcptt.documents import ConferenceInfo
from mcptt_sip.mcptt.roster import OUTCOME_KEPT
from mcptt_sip.message import Request
from mcptt_sip.session import InviteSession
from mcptt_sip.subscription import Notified, Subscription, SubscriptionEnded
from tests.mcptt.exchange import Exchange, Telephone, uri

INTERVAL = 5.0


def watched(*names: str, **settings: object) -> tuple[Exchange, list[Telephone], InviteSession, Subscription]:
    """Alice in her call with bob, bob watching it, the others registered."""
    exchange = Exchange(**settings)  # type: ignore[arg-type]
    phones = exchange.phones_of("alice", "bob", *names)
    session = phones[0].call("bob")
    exchange.run(2 * INTERVAL)
    watch = phones[1].subscribe(phones[0].session_identity(session))
    exchange.run(2 * INTERVAL)
    return exchange, phones, session, watch


def statuses(roster: ConferenceInfo) -> dict[str, str]:
    return {user.entity.partition("@")[0].removeprefix("sip:"): user.status for user in roster.users}


def assembled(rosters: list[ConferenceInfo]) -> ConferenceInfo:
    """What a watcher knows after all of them; no version may be missing."""
    state = rosters[0]
    for newer in rosters[1:]:
        merged = state.apply(newer)
        assert merged is not None, "a version is missing"
        state = merged
    return state


def test_a_subscribe_is_answered_with_the_whole_state_and_then_only_changes_come() -> None:
    exchange, (alice, bob, *_), session, watch = watched("carol", "dave")
    (first,) = bob.rosters(watch)
    assert (first.state, first.version, statuses(first)) == ("full", 0, {"alice": "connected", "bob": "connected"})
    alice.refer(session, "carol")
    exchange.run(2 * INTERVAL)
    *_, second = bob.rosters(watch)
    assert (second.state, second.version) == ("partial", 1) and set(statuses(second)) == {"carol"}
    alice.refer(session, "carol", "BYE")
    exchange.run(2 * INTERVAL)
    *_, third = bob.rosters(watch)
    assert statuses(third) == {"carol": "deleted"}
    assert statuses(assembled(bob.rosters(watch))) == {"alice": "connected", "bob": "connected"}


def test_many_changes_go_out_at_once_and_not_more_often_than_the_interval() -> None:
    exchange, (alice, bob, *_), session, watch = watched("carol", "dave", "erin")
    for name in ("carol", "dave", "erin"):
        alice.refer(session, name)
        exchange.run(0.5)
    exchange.run(3 * INTERVAL)
    times = [at for at, f, m in exchange.wire if isinstance(m, Request) and m.method == "NOTIFY"
             and m.headers.event and m.headers.event.package == "conference" and f.remote == bob.address]
    assert all(later - earlier >= INTERVAL for earlier, later in itertools.pairwise(times[1:]))
    assert len(times) <= 3, "one for the SUBSCRIBE, one at once, one for all that followed"
    assert set(statuses(assembled(bob.rosters(watch)))) == {"alice", "bob", "carol", "dave", "erin"}


def test_a_missed_version_is_noticed_and_a_refresh_brings_the_whole_state() -> None:
    exchange, (alice, bob, *_), session, watch = watched("carol", "dave")
    for name in ("carol", "dave"):
        alice.refer(session, name)
        exchange.run(2 * INTERVAL)
    full, *changes = bob.rosters(watch)
    assert len(changes) == 2 and full.apply(changes[1]) is None, "the gap shows"
    watch.refresh(exchange.now)
    exchange.run(2 * INTERVAL)
    *_, again = bob.rosters(watch)
    assert again.state == "full" and again.version == changes[1].version + 1
    assert set(statuses(again)) == {"alice", "bob", "carol", "dave"}


def test_a_fetch_gets_the_state_once_and_ends() -> None:
    exchange, (alice, bob), session, _ = watched()
    fetch = bob.subscribe(alice.session_identity(session), expires=0)
    exchange.run()
    assert len(bob.rosters(fetch)) == 1 and fetch.terminated


def test_an_invited_user_shows_as_dialled_and_a_failed_one_not_at_all_later() -> None:
    exchange, (alice, bob), session, watch = watched()
    exchange.phone("carol", script="ring")
    alice.refer(session, "carol")
    exchange.run(2 * INTERVAL)
    assert statuses(bob.rosters(watch)[-1]) == {"carol": "dialing-out"}
    alice.refer(session, "carol", "BYE")
    exchange.run(2 * INTERVAL)
    assert statuses(bob.rosters(watch)[-1]) == {"carol": "deleted"}


def test_the_outcome_of_a_quiet_refer_is_in_the_whole_state_for_a_while() -> None:
    exchange, (alice, *_), session, _ = watched()
    exchange.phone("carol", script=(486, None))
    alice.refer(session, "carol", headers=[("Refer-Sub", "false")])
    exchange.run(2 * INTERVAL)
    for wait, there in ((0.0, True), (OUTCOME_KEPT, False)):
        exchange.run(wait)
        fetch = alice.subscribe(alice.session_identity(session), expires=0)
        exchange.run()
        assert ("carol" in statuses(alice.rosters(fetch)[0])) is there


@pytest.mark.parametrize("how", ["removed", "left"])
def test_who_is_out_of_the_call_is_told_nothing_more(how: str) -> None:
    exchange, (alice, bob, *_), session, watch = watched("carol")
    alice.refer(session, "carol")
    exchange.run(2 * INTERVAL)
    if how == "removed":
        alice.refer(session, "bob", "BYE")
    else:
        bob.invitations[0].bye(exchange.now)
    exchange.run(2 * INTERVAL)
    (ended,) = [e for e in bob.told(SubscriptionEnded) if e.subscription is watch]
    assert ended.reason == "noresource"
    before = len(bob.told(Notified))
    alice.refer(session, "dave")
    exchange.run(2 * INTERVAL)
    assert len(bob.told(Notified)) == before


def test_the_end_of_a_call_ends_its_subscriptions() -> None:
    exchange, (_alice, bob), session, watch = watched()
    session.bye(exchange.now)
    exchange.run()
    assert watch.terminated and not bob.stack._dialogs


def test_another_package_gets_489() -> None:
    exchange, (alice, bob), session, _ = watched()
    other = bob.subscribe(alice.session_identity(session), event="presence")
    exchange.run()
    answer = bob.answer_to(other)
    assert (answer.status, answer.headers.get("Allow-Events")) == (489, "conference")


def test_a_watcher_that_is_dead_is_forgotten() -> None:
    exchange, (alice, bob, *_), session, _ = watched("carol", "dave")
    exchange.lose = lambda _message, flow: flow.remote == bob.address
    alice.refer(session, "carol")
    exchange.run(40.0)
    assert exchange.call.roster.watching == frozenset()
    alice.refer(session, "dave")
    exchange.run(2 * INTERVAL)
    assert uri("dave") in exchange.call.legs
