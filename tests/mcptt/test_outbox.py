# SPDX-License-Identifier: Apache-2.0
"""MESSAGEs of one leg over datagrams: one at a time, so that none is refused because another has overtaken it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mcptt_sip.body import parse_multipart
from mcptt_sip.flow import Flow
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MIKEY
from mcptt_sip.mcptt.outbox import MAX_WAITING, TOGETHER, Outbox


@dataclass
class Session:
    """Notes what is sent in it."""

    transport: str
    ended: bool = False
    sent: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def flow(self) -> Flow:
        return Flow(self.transport, ("192.0.2.1", 5060), ("192.0.2.2", 5060))

    def send(self, method: str, *, body: bytes, content_type: str, now: float, context: Any = None) -> None:
        assert method == "MESSAGE"
        self.sent.append((content_type, body))


def outbox(session: Any) -> Outbox:
    return Outbox(session, lambda: bytes(range(8)))


def proofs(sent: tuple[str, bytes]) -> list[bytes]:
    return [part.body for part in parse_multipart(*sent)]


def test_over_datagrams_the_next_waits_for_the_answer_and_acknowledgements_go_together() -> None:
    session = Session("udp")
    box = outbox(session)
    octets = [bytes([number]) * 40 for number in range(8)]
    for one in octets:
        box.send(ACKNOWLEDGEMENT, one, 1.0)
    assert len(session.sent) == 1
    while sum(len(proofs(sent)) for sent in session.sent) < len(octets):
        box.answered(2.0)
    assert [proof for sent in session.sent for proof in proofs(sent)] == octets
    assert max(len(proofs(sent)) for sent in session.sent) == TOGETHER
    box.answered(3.0)
    box.send(ACKNOWLEDGEMENT, b"later", 4.0)
    assert proofs(session.sent[-1]) == [b"later"]


def test_a_key_travels_alone_and_in_its_order() -> None:
    session = Session("udp")
    box = outbox(session)
    for kind, body in ((ACKNOWLEDGEMENT, b"a"), (MIKEY, b"k"), (MIKEY, b"l"), (ACKNOWLEDGEMENT, b"b")):
        box.send(kind, body, 1.0)
    for _ in range(4):
        box.answered(2.0)
    assert session.sent == [(ACKNOWLEDGEMENT, b"a"), (MIKEY, b"k"), (MIKEY, b"l"), (ACKNOWLEDGEMENT, b"b")]


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_over_a_connection_nothing_waits(transport: str) -> None:
    session = Session(transport)
    box = outbox(session)
    for number in range(5):
        box.send(ACKNOWLEDGEMENT, bytes([number]), 1.0)
    assert len(session.sent) == 5


def test_what_waits_is_bounded_and_goes_with_its_session() -> None:
    session = Session("udp")
    box = outbox(session)
    for number in range(MAX_WAITING + 10):
        box.send(MIKEY, number.to_bytes(4, "big"), 1.0)
    box.answered(2.0)
    assert session.sent[1] == (MIKEY, (10).to_bytes(4, "big"))
    session.ended = True
    box.answered(3.0)
    box.send(MIKEY, b"late", 4.0)
    assert len(session.sent) == 2
