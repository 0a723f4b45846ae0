# SPDX-License-Identifier: Apache-2.0
"""Every Warning of the table, with its status, where the protocol makes it occur; and the limits beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mcptt_sip.body import Part
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import ACCEPT_CONTACT, FEATURE_TAGS, read_contents
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.keying import MIKEY
from mcptt_sip.mcptt.policy import WARNINGS, warning_text
from mcptt_sip.mcptt.regroup import AnswerCondition, RegroupSettings
from mcptt_sip.message import Response
from mcptt_sip.session import InviteSession
from tests.mcptt.exchange import DOMAIN, Exchange, Telephone, key_message, uri, warning_codes

Users = Mapping[str, Mapping[str, Any]]


def called(
    users: Users | None = None, *targets: str, script: str | tuple[int, str | None] = "answer", wait: float = 1.0,
    regroup: RegroupSettings | None = None, absent: bool = False, **options: Any,
) -> tuple[Exchange, Telephone, Response]:
    """What the server answers to alice's call to bob."""
    exchange = Exchange(users=users, regroup=regroup)
    alice = exchange.phone("alice")
    if not absent:
        exchange.phone("bob", script=script)
    session = alice.call(*(targets or ("bob",)), **options)
    exchange.run(wait)
    return exchange, alice, alice.answer_to(session)


def response(*arguments: Any, **options: Any) -> Callable[[], Response]:
    return lambda: called(*arguments, **options)[2]


def running(users: Users | None = None, *more: str, **settings: Any) -> tuple[Exchange, Telephone, InviteSession]:
    """Alice and bob talk; everybody of ``more`` is registered."""
    exchange = Exchange(users=users, **settings)
    alice, _, *_ = exchange.phones_of("alice", "bob", *more)
    session = alice.call("bob")
    exchange.run()
    assert exchange.call.machine.connected == (uri("bob"),)
    return exchange, alice, session


def added(users: Users | None = None, user: str = "carol", *, settings: Mapping[str, Any] | None = None,
          **options: Any) -> Callable[[], Response]:
    def run() -> Response:
        exchange, alice, session = running(users, "carol", **(settings or {}))
        refer = alice.refer(session, user, **options)
        exchange.run()
        assert uri("carol") not in exchange.call.legs
        return alice.answer_to(refer)

    return run


def by_bob(what: str) -> Callable[[], Response]:
    """A member who is not the initiator adds somebody."""

    def run() -> Response:
        exchange, alice, session = running(None, "carol")
        bob = exchange.phones[1]
        refer = bob.refer(bob.invitations[0], "carol", what, to=alice.session_identity(session))
        exchange.run()
        return bob.answer_to(refer)

    return run


def by_mallory(method: str, to: str | None = None) -> Callable[[], Response]:
    """Someone outside the call watches or joins it."""

    def run() -> Response:
        exchange, alice, session = running()
        mallory = exchange.phone("mallory")
        there = to or alice.session_identity(session)
        made = mallory.subscribe(there) if method == "SUBSCRIBE" else mallory.call("bob", to=there)
        exchange.run()
        return mallory.answer_to(made)

    return run


def busy_user(name: str, **rights: Any) -> Callable[[], Response]:
    """``name`` is in a call already when alice calls him (or calls herself)."""

    def run() -> Response:
        exchange = Exchange(users={name: rights})
        alice, _bob, carol = exchange.phones_of("alice", "bob", "carol")
        (alice if name == "alice" else carol).call("bob")
        exchange.run()
        assert len(exchange.calls) == 1
        second = alice.call("carol" if name == "alice" else "bob")
        exchange.run()
        assert len(exchange.calls) == 1
        return alice.answer_to(second)

    return run


def group_in_use() -> Response:
    exchange, alice, _ = running(None, "carol")
    (group,) = exchange.calls
    again = alice.call("carol", group=group)
    exchange.run()
    return alice.answer_to(again)


def already_there() -> Response:
    exchange, alice, session = running()
    refer = alice.refer(session, "bob")
    exchange.run()
    return alice.answer_to(refer)


def come_back(withdrawn: bool = False) -> Response:
    exchange, alice, _ = running()
    if withdrawn:
        exchange.policy = Exchange(users={"alice": {"allow_regroup": False}}).policy
    (group,) = exchange.calls
    again = alice.call(group=group)
    exchange.run()
    return alice.answer_to(again)


def unknown_to_the_policy() -> Response:
    exchange = Exchange()
    alice = exchange.phone("alice")
    session = alice.call("bob")
    profiles = {user: profile for user, profile in exchange.policy.profiles.items() if user != uri("bob")}
    exchange.policy = type(exchange.policy)(profiles)
    exchange.run()
    return alice.answer_to(session)


ALL = AnswerCondition.parse("all")
PROCEED = RegroupSettings(answer_condition=ALL, answer_time_limit=20.0)
ABANDON = RegroupSettings(answer_condition=ALL, answer_time_limit=20.0, proceed_at_time_limit=False)
AUTO, MANUAL, FORCED = (("Answer-Mode", "Auto"),), (("Answer-Mode", "Manual"),), (("Priv-Answer-Mode", "Auto"),)
ENCRYPTED = (
    b'<mcpttinfo xmlns="urn:3gpp:ns:mcpttInfo:1.0"><mcptt-Params><session-type>prearranged</session-type>'
    b'<mcptt-request-uri type="Encrypted"><x/></mcptt-request-uri></mcptt-Params></mcpttinfo>'
)

#: (MC code, status, what makes it occur)
CASES: dict[str, tuple[int, int, Callable[[], Response]]] = {
    "no registration": (100, 403, lambda: unregistered_caller()),
    "no protected media": (100, 403, response({"alice": {"allow_private_call_media_protection": False}})),
    "no protected floor": (100, 403, response({"alice": {"allow_private_call_floor_control_protection": False}})),
    "an emergency without the right": (100, 403, response(emergency=True)),
    "imminent peril without the right": (100, 403, response(imminent_peril=True)),
    "no feature tags": (100, 403, response(leave_out=["Accept-Contact"])),
    "feature tags without a must": (
        100, 403, response(headers=[(name, str(value).replace(";require;explicit", ""))
                                    for name, value in ACCEPT_CONTACT]),
    ),
    "another session type": (100, 403, response(session_type="ambient-listening")),
    "affiliations of the caller": (102, 486, response({"alice": {"max_affiliations": 0}})),
    "affiliations of the called user": (102, 486, busy_user("bob", max_affiliations=1)),
    "calls of the caller": (103, 486, busy_user("alice", max_simultaneous_calls=1)),
    "calls of the called user, by REFER": (103, 486, lambda: added_while_busy("max_simultaneous_calls")),
    "affiliations of the called user, by REFER": (102, 486, lambda: added_while_busy("max_affiliations")),
    "calls of the called user": (103, 486, busy_user("bob", max_simultaneous_calls=1)),
    "no private calls": (107, 403, response({"alice": {"allow_private_call": False}})),
    "no private calls, by REFER": (107, 403, lambda: right_withdrawn()),
    "declined": (110, 480, response(script=(480, warning_text(110)))),
    "proceeded": (111, 200, lambda: late(PROCEED)),
    "abandoned": (112, 480, lambda: late(ABANDON)),
    "a chat": (117, 404, response(session_type="chat")),
    "no regroup": (119, 403, response({"alice": {"allow_regroup": False}})),
    "joining a stranger's call": (121, 403, by_mallory("INVITE")),
    "joining again without the right": (121, 403, lambda: come_back(withdrawn=True)),
    "too many": (122, 486, added(settings={"regroup": RegroupSettings(max_participants=2)})),
    "already there": (123, 486, already_there),
    "joining again": (123, 200, come_back),
    "automatic": (125, 403, response({"alice": {"allow_automatic_commencement": False}}, headers=AUTO)),
    "manual": (126, 403, response({"alice": {"allow_manual_commencement": False}}, headers=MANUAL)),
    "no incoming calls": (127, 403, response({"bob": {"allow_private_call_participation": False}})),
    "no incoming groups": (127, 403, response({"bob": {"allow_adhoc_group_call_participation": False}})),
    "not from this caller": (
        127, 403,
        response({"bob": {"allow_to_receive_private_call_from_any_user": False,
                          "incoming_private_call_list": (uri("carol"),)}}),
    ),
    "not from this caller, by REFER": (
        127, 403, added({"carol": {"allow_private_call_participation": False}}),
    ),
    "a client as focus": (
        128, 403, response(headers=[("Contact", f"<sip:alice@192.0.2.100:5001>;{FEATURE_TAGS};isfocus")]),
    ),
    "a key for another": (136, 488, lambda: called(key=key_message("alice", "carol"))[2]),
    "a key by another": (136, 488, lambda: called(key=key_message("mallory", "bob"))[2]),
    "no key": (136, 488, response(key=b"")),
    "a key without the indicator": (136, 488, response(temporary_group=False)),
    "two keys": (136, 488, lambda: two_keys()),
    "a key that is none": (136, 488, response(key=b"\x01 not MIKEY")),
    "a session that is not there": (137, 404, by_mallory("INVITE", f"sip:session-0@{DOMAIN};gr=1")),
    "a roster that is not there": (137, 404, by_mallory("SUBSCRIBE", f"sip:session-0@{DOMAIN};gr=1")),
    "a REFER to what is not there": (137, 481, added(to=f"sip:session-0@{DOMAIN};gr=1")),
    "a stranger's roster": (138, 403, by_mallory("SUBSCRIBE")),
    "protected XML": (140, 403, lambda: protected()),
    "an unknown user": (141, 404, unknown_to_the_policy),
    "a group of another domain": (142, 404, response(group="sip:tmp-1@elsewhere.example")),
    "another service": (142, 404, response(to=f"sip:other@{DOMAIN}")),
    "forced": (143, 403, response(headers=FORCED, leave_out=["Answer-Mode"])),
    "not in the list": (
        144, 403, response({"alice": {"allow_private_call_to_any_user": False, "private_call_list": (uri("dave"),)}}),
    ),
    "not in the list, by REFER": (
        144, 403, added({"alice": {"allow_private_call_to_any_user": False, "private_call_list": (uri("bob"),)}}),
    ),
    "nobody named": (145, 403, lambda: called(key=key_message("alice", "bob"), parts=nobody())[2]),
    "two named": (145, 403, response(None, "bob", "carol")),
    "oneself": (145, 403, response(None, "alice")),
    "an unknown user, by REFER": (141, 404, added(user="zoe", key=key_message("alice", "carol"))),
    "not registered": (146, 480, response(absent=True)),
    "an INFO follows": (149, 200, lambda: late(PROCEED)),
    "emergency and peril": (150, 403, response(emergency=True, imminent_peril=True)),
    "an alert alone": (150, 403, response(alert=True)),
    "the group is there": (165, 403, group_in_use),
    "not the initiator": (190, 403, by_bob("INVITE")),
    "not the initiator's to remove": (190, 403, by_bob("BYE")),
    "another dialog": (190, 403, added(dialog="x;local-tag=1;remote-tag=2")),
}


def added_while_busy(limit: str) -> Response:
    """Carol may be in one call, and is."""
    exchange = Exchange(users={"carol": {limit: 1}})
    alice, *_ = exchange.phones_of("alice", "bob", "carol", "dave")
    exchange.phones[3].call("carol")
    session = alice.call("bob")
    exchange.run()
    refer = alice.refer(session, "carol")
    exchange.run()
    return alice.answer_to(refer)


def unregistered_caller() -> Response:
    exchange = Exchange()
    alice, _ = exchange.phones_of("alice", "bob")
    alice.register(0)
    exchange.run()
    session = alice.call("bob")
    exchange.run()
    return alice.answer_to(session)


def right_withdrawn() -> Response:
    """The policy changes while the call runs: the next REFER feels it."""
    exchange, alice, session = running(None, "carol")
    profile = exchange.policy.profiles[uri("alice")]
    changed = type(profile)(profile.uri, profile.username, profile.password, allow_regroup=True)
    exchange.policy = type(exchange.policy)({**exchange.policy.profiles, uri("alice"): changed})
    refer = alice.refer(session, "carol")
    exchange.run()
    return alice.answer_to(refer)


def late(settings: RegroupSettings) -> Response:
    """Bob answers, carol is being invited until the time is over."""
    exchange = Exchange(regroup=settings)
    alice, _ = exchange.phones_of("alice", "bob")
    exchange.phone("carol", script="ring")
    session = alice.call("bob", required=(uri("carol"),))
    exchange.run()
    alice.refer(session, "carol")
    exchange.run(25.0)
    return alice.answer_to(session)


def nobody() -> list[Part]:
    info = McpttInfo(session_type="prearranged", request_uri=f"sip:tmp-1@{DOMAIN}", temporary_group=True)
    return [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, key_message("alice", "bob"))]


def two_keys() -> Response:
    return called(parts=[*nobody(), Part(MIKEY, key_message("alice", "bob", 1))])[2]


def protected() -> Response:
    return called(parts=[Part(documents.MCPTT_INFO, ENCRYPTED), Part(MIKEY, key_message("alice", "bob"))])[2]


@pytest.mark.parametrize("name", CASES)
def test_every_refusal_has_its_status_and_its_warning(name: str) -> None:
    code, status, happen = CASES[name]
    answer = happen()
    assert answer.status == status
    assert code in warning_codes(answer)


def test_every_warning_of_the_table_occurs() -> None:
    assert {code for code, _, _ in CASES.values()} == set(WARNINGS)


def test_the_status_of_a_warning_is_that_of_the_table() -> None:
    """But for a REFER's 481, and a user who is there already: a verdict on the request, not on the user."""
    differ = {(code, status) for code, status, _ in CASES.values() if WARNINGS[code][0] != status}
    assert differ == {(137, 481), (123, 486)}


# --- what an operator limits, and what is no user's fault ---------------------------------------------------


@pytest.mark.parametrize("limit", ["media", "calls"])
def test_a_lack_of_resources_is_a_500_with_a_time_to_come_back(limit: str) -> None:
    exchange = Exchange(max_calls=0 if limit == "calls" else 10, retry_after=7)
    exchange.plane.broken = limit == "media"
    alice, bob = exchange.phones_of("alice", "bob")
    session = alice.call("bob")
    exchange.run()
    answer = alice.answer_to(session)
    assert (answer.status, answer.headers.get("Retry-After")) == (500, "7")
    assert not exchange.calls and not bob.invitations and not exchange.server.controlling._affiliations._groups


@pytest.mark.parametrize("name", ["emergency", "imminent_peril"])
def test_a_refused_urgency_is_stated_as_false(name: str) -> None:
    _, _, answer = called(**{name: True})
    info = read_contents(answer).info
    assert answer.status == 403 and getattr(info, name) is False
    assert [info.emergency, info.imminent_peril].count(None) == 1


def test_a_resource_priority_that_must_be_understood_and_is_not_gets_417() -> None:
    required = [("Require", "resource-priority"), ("Resource-Priority", "dsn.flash")]
    _, _, answer = called(headers=required)
    assert answer.status == 417 and "mcpttp.15" in (answer.headers.get("Accept-Resource-Priority") or "")
    _, _, answer = called(headers=[("Require", "resource-priority"), ("Resource-Priority", "mcpttp.5")])
    assert answer.status == 200
    _, _, answer = called(headers=[("Resource-Priority", "dsn.flash")])
    assert answer.status == 200, "who does not require it does not mind"


def test_a_refusal_says_nothing_of_who_else_is_there() -> None:
    """The same words whether the called user is in a call, or somebody else's contact is (security rule 26)."""
    answers = {CASES[name][2]().headers.get("Warning") for name in ("a key for another", "a key by another")}
    assert len(answers) == 1
