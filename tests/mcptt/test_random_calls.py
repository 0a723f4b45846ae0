# SPDX-License-Identifier: Apache-2.0
"""Telephones that do what they like, on a way that loses messages: the server's books always agree, and end empty."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter

import pytest

from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.mcptt.contents import CLIENT_HEADERS, RELEASE_FOR_ALL
from mcptt_sip.mcptt.documents import MCPTT_INFO, McpttInfo
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, Acknowledgement
from mcptt_sip.mcptt.memberlist import MEMBER_LIST
from mcptt_sip.mcptt.regroup import AnswerCondition, CallState, RegroupSettings
from mcptt_sip.session import InviteSession
from mcptt_sip.subscription import Subscription
from tests.mcptt.exchange import DOMAIN, NAMES, SERVICE, Exchange, Telephone

SCRIPTS: list[str | tuple[int, str | None]] = ["answer", "answer", "answer", "ring", "silent", (486, None), (603, None)]


class Chaos:
    """Random moves of one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        condition = self.chance.choice(["first", "quorum:2", "all"])
        self.exchange = Exchange(
            transport=self.chance.choice(["tcp", "udp"]),
            regroup=RegroupSettings(
                answer_condition=AnswerCondition.parse(condition), proceed_at_time_limit=self.chance.random() < 0.7,
                stay_when_refused=self.chance.random() < 0.3, keep_without_initiator=self.chance.random() < 0.7,
                max_duration=2000.0,
            ),
        )
        self.phones = [self.exchange.phone(name) for name in NAMES]
        self.phones.append(self.exchange.phone("bob", "second"))
        self.calls: list[tuple[Telephone, InviteSession]] = []
        self.refers: list[tuple[Telephone, Subscription]] = []
        self.done: Counter[str] = Counter()

    def move(self) -> None:
        name = self.chance.choice(
            ["call", "call", "call", "call", "add", "add", "add", "add", "remove", "leave", "release", "answer",
             "answer", "crash", "watch", "script", "loss", "together",
             "member leaves", "register", "update", "proof", "list", "join", "offer", "wait", "wait long"]
        )
        self.done[name] += 1
        try:
            getattr(self, name.replace(" ", "_"))()
        except LocalProtocolError:
            self.done["not possible"] += 1  # what a telephone cannot do in its state, it does not do
        self.exchange.run(self.chance.choice([0.0, 0.005, 0.02, 0.3]))

    def _session(self) -> tuple[Telephone, InviteSession]:
        open_ = [(phone, session) for phone, session in self.calls if not session.ended]
        if not open_:
            raise LocalProtocolError("no call")
        return self.chance.choice(open_)

    def call(self) -> None:
        phone = self.chance.choice(self.phones)
        if len(self.exchange.calls) < 3:
            required = (self.chance.choice(self.phones).uri,) if self.chance.random() < 0.2 else ()
            self.calls.append((phone, phone.call(self.chance.choice(NAMES), required=required)))

    def add(self) -> None:
        phone, session = self._session()
        headers = [("Refer-Sub", "false")] if self.chance.random() < 0.3 else []
        if session.dialog is not None:
            refer = phone.refer(session, self.chance.choice(NAMES), headers=headers)
            self.refers += [] if headers else [(phone, refer)]

    def remove(self) -> None:
        phone, session = self._session()
        if session.dialog is not None:
            self.refers.append((phone, phone.refer(session, self.chance.choice(NAMES), "BYE")))

    def leave(self) -> None:
        self._session()[1].bye(self.exchange.now)

    def release(self) -> None:
        self._session()[1].bye(self.exchange.now, headers=[("Reason", RELEASE_FOR_ALL)])

    def _invitation(self, established: bool) -> tuple[Telephone, InviteSession]:
        found = [
            (phone, session) for phone in self.phones for session in phone.invitations
            if not session.ended and session.established is established
        ]
        if not found:
            raise LocalProtocolError("no invitation")
        return self.chance.choice(found)

    def answer(self) -> None:
        phone, session = self._invitation(False)
        phone.respond(session, self.chance.choice(["answer", (486, None)]))

    def member_leaves(self) -> None:
        self._invitation(True)[1].bye(self.exchange.now)

    def watch(self) -> None:
        phone, session = self._session()
        if session.dialog is not None:
            phone.subscribe(phone.session_identity(session), expires=self.chance.choice([0, 60, 3600]))

    def script(self) -> None:
        self.chance.choice(self.phones).script = self.chance.choice(SCRIPTS)

    def loss(self) -> None:
        share = self.chance.choice([0.0, 0.1, 0.3])
        self.exchange.lose = lambda _message, flow: not flow.reliable and self.chance.random() < share

    def together(self) -> None:
        self.exchange.together = not self.exchange.together

    def update(self) -> None:
        phone, session = self._session()
        phone.send_key(session, self.chance.choice(NAMES))

    def proof(self) -> None:
        phone, session = self._invitation(True)
        octets = Acknowledgement(phone.uri, 1, 2, 0, bytes(32), bytes(129)).encode()
        session.send("MESSAGE", body=octets, content_type=ACKNOWLEDGEMENT, now=self.exchange.now)

    def list(self) -> None:
        _, session = self._session()
        session.send("MESSAGE", body=b"a list of members", content_type=MEMBER_LIST, now=self.exchange.now)

    def join(self) -> None:
        """Somebody asks to come back into a call, by message or, as its initiator, by INVITE."""
        phone = self.chance.choice(self.phones)
        group = self.chance.choice([*self.exchange.calls, f"sip:tmp-0@{DOMAIN}"])
        if self.chance.random() < 0.5:
            self.calls.append((phone, phone.call(group=group)))
            return
        info = McpttInfo(request_uri=group, key_operation="join")
        phone.request(phone.stack.compose(
            "MESSAGE", SERVICE, from_=f"<{phone.uri}>", headers=CLIENT_HEADERS, body=info.encode(),
            content_type=MCPTT_INFO,
        ))

    def offer(self) -> None:
        phone, session = self._invitation(True)
        moved = phone.describe(audio=("192.0.2.200", self.chance.randrange(9000, 9100)))
        session.reinvite(body=moved.encode(), content_type="application/sdp", now=self.exchange.now)

    def register(self) -> None:
        self.chance.choice(self.phones).register(self.chance.choice([0, 80000]))

    def crash(self) -> None:
        """A device is gone with its connection, and starts again."""
        phone = self.chance.choice(self.phones)
        if phone.flow.reliable and self.chance.random() < 0.5:
            self.phones.remove(phone)
            self.exchange.hang_up_flow(phone)
            self.calls = [(who, session) for who, session in self.calls if who is not phone]
            self.refers = [(who, refer) for who, refer in self.refers if who is not phone]
            self.phones.append(self.exchange.phone(phone.name, phone.device))

    def wait(self) -> None:
        self.exchange.run(self.chance.uniform(0.0, 8.0))

    def wait_long(self) -> None:
        self.exchange.run(self.chance.uniform(20.0, 70.0))

    # --- what must hold

    def check(self) -> None:
        controlling = self.exchange.server.controlling
        for group, call in controlling.calls.items():
            machine = call.machine
            members = {user for user, leg in call.legs.items() if not leg.initiator}
            assert members == set(machine.connected), "the legs are those of the members"
            assert set(call.forks) == set(machine.invited) and not members & set(call.forks)
            assert all(fork.legs for fork in call.forks.values())
            assert machine.state is not CallState.RELEASED
            in_media = {user for user, leg in call.legs.items() if leg.in_media}
            assert in_media == set(call.media.legs)  # type: ignore[attr-defined]
            assert members <= in_media
            present = {call.initiator} if machine.initiator_present else set()
            assert controlling._affiliations.users(group) == members | present
            assert call.roster.watching <= set(call.legs)
            sessions = [leg.session for leg in call.legs.values()]
            assert len({id(session) for session in sessions}) == len(sessions)
        assert len(controlling._by_identity) == len(controlling.calls)

    def end(self) -> None:
        """Nobody does anything any more: in time nothing is left."""
        exchange = self.exchange
        exchange.lose = lambda _message, _flow: False
        for _, session in self.calls:
            with contextlib.suppress(LocalProtocolError):  # it is being cancelled already
                session.bye(exchange.now)
        exchange.run(4000.0)
        controlling = exchange.server.controlling
        assert not controlling.calls and not controlling._affiliations._groups
        assert all(media.closed and not media.legs for media in exchange.plane.opened)
        assert not exchange.server.stack._dialogs and not exchange.server.stack._servers
        for phone, refer in self.refers:
            assert refer.terminated, (phone.name, refer)


def run(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(60):
        chaos.move()
        chaos.check()
    chaos.end()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_telephones_do_the_books_agree_and_end_empty(seed: int) -> None:
    run(seed)


@pytest.mark.soak
def test_no_seed_leaves_a_call_behind(soak_seconds: float) -> None:
    """``make soak``: as many seeds as there is time for; a failing one is named, and replays with :func:`run`."""
    ends, seed = time.monotonic() + soak_seconds / 6, 1000
    while time.monotonic() < ends:
        try:
            run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        seed += 1
