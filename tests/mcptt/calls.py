# SPDX-License-Identifier: Apache-2.0
"""Calls that stand already, and what must be left of one that is over."""

from __future__ import annotations

from mcptt_sip.mcptt.regroup import AnswerCondition, RegroupSettings
from mcptt_sip.session import InviteSession
from tests.mcptt.exchange import Exchange, Telephone, uri

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
