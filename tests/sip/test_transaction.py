# SPDX-License-Identifier: Apache-2.0
"""Every timer of RFC 3261 17 and RFC 6026: when it fires, how often, and over which transports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mcptt_sip.transaction import (
    InviteClientTransaction,
    InviteServerTransaction,
    NonInviteClientTransaction,
    NonInviteServerTransaction,
    Pass,
    Send,
    State,
    TimedOut,
    Timers,
    TransportFailed,
)


def response(status: int) -> Any:
    return SimpleNamespace(status=status)


def lived(machine: Any, until: float) -> list[tuple[float, object]]:
    """What the machine says, and when, if nothing comes from outside."""
    said: list[tuple[float, object]] = [(0.0, event) for event in machine.events()]
    while (due := machine.next_timer()) is not None and due <= until:
        machine.handle_timer(due)
        said += [(due, event) for event in machine.events()]
    return said


def sendings(said: list[tuple[float, object]]) -> list[float]:
    return [at for at, event in said if isinstance(event, Send)]


def invite_client(*, reliable: bool | None) -> InviteClientTransaction:
    return InviteClientTransaction("INVITE", lambda request, _response: "ACK", reliable=reliable, now=0.0)


# --- client


def test_timer_a_doubles_without_limit_until_timer_b_gives_up_after_32_seconds() -> None:
    machine = invite_client(reliable=False)
    said = lived(machine, 100.0)
    assert sendings(said) == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert said[-1] == (32.0, TimedOut()) and machine.terminated


def test_a_reliable_transport_needs_no_timer_a() -> None:
    said = lived(invite_client(reliable=True), 100.0)
    assert sendings(said) == [0.0] and said[-1] == (32.0, TimedOut())


def test_timer_a_begins_when_the_flow_is_chosen() -> None:
    machine = invite_client(reliable=None)
    machine.bind(False, 3.0)
    assert sendings(lived(machine, 5.0)) == [0.0, 3.5, 4.5]
    over_tcp = invite_client(reliable=None)
    over_tcp.bind(True, 3.0)
    assert sendings(lived(over_tcp, 30.0)) == [0.0]


def test_a_provisional_response_stops_timers_a_and_b() -> None:
    machine = invite_client(reliable=False)
    machine.receive(response(180), 1.0)
    assert machine.state is State.PROCEEDING and machine.next_timer() is None


@pytest.mark.parametrize(("reliable", "d"), [(False, 32.0), (True, 0.0)])
def test_timer_d_absorbs_repeated_failures(reliable: bool, d: float) -> None:
    machine = invite_client(reliable=reliable)
    machine.events()
    machine.receive(response(486), 1.0)
    assert [type(event) for event in machine.events()] == [Send, Pass], "ACK first"
    if not reliable:
        machine.receive(response(486), 2.0)
        assert machine.events() == [Send("ACK")], "the same ACK, and nothing for the application"
        assert machine.next_timer() == 1.0 + d
        machine.handle_timer(33.0)
    assert machine.terminated


def test_timer_m_lets_other_callees_answer_for_32_seconds() -> None:
    machine = invite_client(reliable=False)
    machine.events()
    machine.receive(response(200), 1.0)
    machine.receive(response(200), 20.0)
    assert [type(event) for event in machine.events()] == [Pass, Pass]
    assert machine.next_timer() == 33.0
    machine.handle_timer(33.0)
    assert machine.terminated


def test_timer_e_doubles_up_to_t2_until_timer_f_gives_up() -> None:
    machine = NonInviteClientTransaction("OPTIONS", reliable=False, now=0.0)
    said = lived(machine, 100.0)
    assert sendings(said) == [0.0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert said[-1] == (32.0, TimedOut())


def test_timer_e_beats_at_t2_after_a_provisional_response() -> None:
    machine = NonInviteClientTransaction("OPTIONS", reliable=False, now=0.0)
    machine.receive(response(100), 0.1)
    assert sendings(lived(machine, 13.0)) == [0.0, 0.5, 4.5, 8.5, 12.5]


@pytest.mark.parametrize(("reliable", "k"), [(False, 5.0), (True, None)])
def test_timer_k_absorbs_repeated_answers(reliable: bool, k: float | None) -> None:
    machine = NonInviteClientTransaction("OPTIONS", reliable=reliable, now=0.0)
    machine.events()
    machine.receive(response(200), 1.0)
    machine.receive(response(200), 1.5)
    assert [type(event) for event in machine.events()] == [Pass]
    assert machine.next_timer() == (None if k is None else 1.0 + k)
    machine.handle_timer(10.0)
    assert machine.terminated


# --- server


def invite_server(*, reliable: bool) -> InviteServerTransaction:
    return InviteServerTransaction("100", reliable=reliable, now=0.0)


def non_invite_server(*, reliable: bool) -> NonInviteServerTransaction:
    return NonInviteServerTransaction("100", reliable=reliable, now=0.0)


@pytest.mark.parametrize("reliable", [False, True])
@pytest.mark.parametrize(
    ("timers", "late"), [(Timers(), 3.5), (Timers(t1=0.25), 3.75), (Timers(t1=1.0, t2=4.0), 3.0), (Timers(t1=4.0), 0.0)]
)
def test_a_late_answer_to_another_request_has_100_sent_before_it(reliable: bool, timers: Timers, late: float) -> None:
    """RFC 4320 4.1: when timer E of the client has grown to T2."""
    machine = NonInviteServerTransaction("100", reliable=reliable, now=0.0, timers=timers)
    assert lived(machine, 10.0) == [(late, Send("100"))]
    machine.receive_again(10.5)
    machine.respond("200", 200, 11.0)
    machine.receive_again(11.5)
    assert machine.events() == [Send("100"), Send("200"), *([] if reliable else [Send("200")])]


def test_a_quick_answer_to_another_request_needs_no_100() -> None:
    machine = non_invite_server(reliable=False)
    machine.respond("200", 200, 3.0)
    assert lived(machine, 60.0) == [(0.0, Send("200"))] and machine.terminated


def test_a_slow_user_has_trying_sent_for_it_after_200_milliseconds() -> None:
    assert lived(invite_server(reliable=False), 5.0) == [(0.2, Send("100"))]


def test_a_quick_user_needs_no_trying() -> None:
    machine = invite_server(reliable=False)
    machine.respond("180", 180, 0.1)
    assert lived(machine, 5.0) == [(0.0, Send("180"))]


def test_timer_g_doubles_up_to_t2_until_timer_h_gives_up() -> None:
    machine = invite_server(reliable=False)
    machine.respond("486", 486, 0.0)
    said = lived(machine, 100.0)
    assert sendings(said) == [0.0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert said[-1] == (32.0, TimedOut()) and machine.terminated


def test_over_a_reliable_transport_only_timer_h_waits_for_the_ack() -> None:
    machine = invite_server(reliable=True)
    machine.respond("486", 486, 0.0)
    said = lived(machine, 100.0)
    assert sendings(said) == [0.0] and said[-1] == (32.0, TimedOut())


@pytest.mark.parametrize(("reliable", "i"), [(False, 5.0), (True, None)])
def test_timer_i_absorbs_repeated_acks(reliable: bool, i: float | None) -> None:
    machine = invite_server(reliable=reliable)
    machine.respond("486", 486, 0.0)
    machine.acknowledge(1.0)
    machine.acknowledge(1.5)
    assert machine.next_timer() == (None if i is None else 1.0 + i)
    machine.handle_timer(10.0)
    assert machine.terminated


@pytest.mark.parametrize("reliable", [False, True])
def test_timer_l_absorbs_the_request_after_a_2xx_which_the_user_repeats(reliable: bool) -> None:
    machine = invite_server(reliable=reliable)
    machine.respond("200", 200, 0.0)
    machine.receive_again(0.3)
    machine.respond("200", 200, 0.5)
    assert machine.events() == [Send("200"), Send("200")], "nothing for the repeated request"
    assert machine.next_timer() == 32.0
    machine.handle_timer(32.0)
    assert machine.terminated


@pytest.mark.parametrize(("reliable", "j"), [(False, 32.0), (True, None)])
def test_timer_j_answers_repeated_requests(reliable: bool, j: float | None) -> None:
    machine = non_invite_server(reliable=reliable)
    machine.receive_again(0.1)
    assert machine.events() == [], "nothing to repeat yet"
    machine.respond("200", 200, 1.0)
    machine.receive_again(1.5)
    expected = [Send("200")] if j is None else [Send("200"), Send("200")]
    assert machine.events() == expected
    assert machine.next_timer() == (None if j is None else 1.0 + j)
    machine.handle_timer(40.0)
    assert machine.terminated


@pytest.mark.parametrize(
    "machine",
    [
        invite_client(reliable=False),
        NonInviteClientTransaction("OPTIONS", reliable=False, now=0.0),
        non_invite_server(reliable=False),
    ],
)
def test_a_transport_that_fails_ends_it_and_is_told(machine: Any) -> None:
    machine.events()
    machine.transport_failed(1.0)
    assert machine.events() == [TransportFailed()] and machine.terminated and machine.next_timer() is None


def test_a_server_whose_answer_fails_may_answer_again() -> None:
    machine = invite_server(reliable=True)
    machine.respond("180", 180, 0.0)
    machine.transport_failed(0.1)
    machine.respond("200", 200, 1.0)
    assert machine.events() == [Send("180"), TransportFailed(), Send("200")]
