# SPDX-License-Identifier: Apache-2.0
"""Users who are added and removed by REFER: the outcomes, and what can go wrong on the way."""

from __future__ import annotations

import pytest

from mcptt_sip.mcptt.contents import NOT_IN_CALL
from mcptt_sip.session import Cancelled
from tests.mcptt.calls import talking
from tests.mcptt.exchange import Exchange, key_message, uri, warning_codes


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


def test_a_key_that_meets_a_removal_goes_to_nobody_who_is_out() -> None:
    """The update for carol is on its way while she is being removed: what comes after is refused, and says why."""
    exchange, (alice, bob, carol), session = talking("bob", "carol")
    exchange.together = True
    removal = alice.refer(session, "carol", "BYE")
    updates = {name: alice.send_key(session, name) for name in ("bob", "carol")}
    exchange.run()
    assert alice.fragments(removal)[-1].status == 200
    assert alice.answer_to(updates["bob"]).status == 200
    late = alice.answer_to(updates["carol"])
    assert (late.status, warning_codes(late)) == (403, [100]) and NOT_IN_CALL in (late.headers.get("Warning") or "")
    assert [r.method for r in bob.requests] == ["MESSAGE"] and not carol.requests
    assert session.established, "a verdict on one user is none on the call"


def test_only_the_one_who_leads_the_call_sends_keys_and_only_to_members() -> None:
    exchange, (alice, bob, _carol), session = talking("bob", "carol")
    exchange.phone("dave")
    forged, stranger = bob.send_key(bob.invitations[0], "carol"), alice.send_key(session, "dave")
    exchange.run()
    assert warning_codes(bob.answer_to(forged)) == [190] and warning_codes(alice.answer_to(stranger)) == [100]
    assert not exchange.sent_to(exchange.phones[2], "MESSAGE")
