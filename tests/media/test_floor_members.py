# SPDX-License-Identifier: Apache-2.0
"""The floor among the members: an arbiter, his deputies, a network that loses, and members who lie."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence

import pytest

from media import floor_participant as fp
from media.floor_members import MemberFloor, MemberFloorSettings
from media.floor_messages import FloorGranted, FloorIdle, FloorRequest, FloorRevoke, FloorTaken, decode
from media.floor_participant import ParticipantSettings, ParticipantState
from media.floor_server import FloorServerSettings

NAMES = ("alice", "bob", "carol", "dave")
SETTINGS = MemberFloorSettings(
    participant=ParticipantSettings(overrun=2.0), server=FloorServerSettings(t1=2.0, t2=4.0, t3=1.0), heartbeat=1.0,
    lost_after=3.5,
)  # fmt: skip


class Group:
    """Members who all hear what each sends, when it is not lost; the server between copies, reads nothing."""

    def __init__(self, order: Sequence[str] = ("alice", "bob"), *, loss: float = 0.0, seed: int = 1) -> None:
        self.now = 0.0
        self.loss = loss
        self.random = random.Random(seed)
        self.order = order
        self.members: dict[str, MemberFloor] = {}
        self.heard: dict[str, list[fp.Event]] = {}
        #: groups of members between whom nothing passes
        self.apart: tuple[frozenset[str], ...] = ()
        self._flying: list[tuple[float, int, str, str, bytes]] = []
        self._number = itertools.count()
        for name in NAMES:
            self.start(name)
        self.run(0.2)

    def start(self, name: str) -> None:
        member = MemberFloor(name, self.order, 100 + NAMES.index(name), settings=SETTINGS)
        self.members[name], self.heard[name] = member, []
        for other in NAMES:
            if other != name:
                member.joined(other, self.now, priority=5)
        member.call_established(self.now)
        self.collect()

    def kill(self, name: str) -> None:
        del self.members[name]
        for member in self.members.values():
            member.left(name, self.now)

    def reaches(self, one: str, other: str) -> bool:
        return not any((one in side) != (other in side) for side in self.apart)

    def collect(self) -> None:
        for name, member in self.members.items():
            for message in member.to_send():
                for other in self.members:
                    if other != name and self.reaches(name, other) and self.random.random() >= self.loss:
                        at = self.now + 0.01 + self.random.random() * 0.05
                        heapq.heappush(self._flying, (at, next(self._number), name, other, message.encode()))
            self.heard[name] += member.events()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = [self._flying[0][0]] if self._flying else []
            due += [at for member in self.members.values() if (at := member.next_timer()) is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            while self._flying and self._flying[0][0] <= self.now:
                _, _, source, target, octets = heapq.heappop(self._flying)
                if target in self.members:
                    self.members[target].receive(source, decode(octets), self.now)
            for member in self.members.values():
                member.handle_timer(self.now)
            self.collect()
        self.now = end

    def press(self, name: str, priority: int = 0) -> None:
        self.members[name].press(self.now, priority)
        self.collect()
        self.run(0.2)

    def release(self, name: str) -> None:
        self.members[name].release(self.now)
        self.collect()
        self.run(0.2)

    def talk(self) -> None:
        for name in self.talkers():
            self.members[name].media_sent(self.now)
            for other, member in self.members.items():
                if other != name and self.reaches(name, other):
                    member.media_received(self.now, name)
        self.collect()

    def talkers(self) -> list[str]:
        return [name for name, member in self.members.items() if member.state is ParticipantState.HAS_PERMISSION]

    def last(self, name: str, kind: type) -> fp.Event | None:
        return next((event for event in reversed(self.heard[name]) if isinstance(event, kind)), None)


@pytest.mark.parametrize("talker", NAMES)
def test_whoever_asks_gets_the_floor_the_arbiter_himself_too_and_all_others_know(talker: str) -> None:
    group = Group()
    group.press(talker)
    assert group.talkers() == [talker]
    for name in NAMES:
        taken = group.last(name, fp.Taken)
        assert name == talker or (isinstance(taken, fp.Taken) and taken.user == talker)
    group.run(1.5)
    assert group.talkers() == [talker], "heartbeats take nothing away"
    group.release(talker)
    assert group.talkers() == [] and all(isinstance(group.heard[n][-1], fp.Idle) for n in NAMES if n != talker)


def test_a_second_waits_and_follows_and_answers_reach_only_whom_they_are_meant_for() -> None:
    group = Group()
    group.press("carol")
    group.press("dave")
    assert group.last("dave", fp.Queued) == fp.Queued(1, 0)
    assert group.last("bob", fp.Queued) is None and group.last("carol", fp.Queued) is None
    group.release("carol")
    assert group.talkers() == ["dave"]


def test_when_the_arbiter_is_lost_while_one_talks_all_go_idle_and_the_deputy_takes_over() -> None:
    group = Group()
    group.press("carol")
    group.kill("alice")
    group.run(5.0)
    assert group.talkers() == [] and isinstance(group.last("carol", fp.Lost), fp.Lost)
    assert {member.arbiter for member in group.members.values()} == {"bob"}
    group.press("dave")
    assert group.talkers() == ["dave"]
    taken = group.last("carol", fp.Taken)
    assert isinstance(taken, fp.Taken) and taken.user == "dave"


def test_a_request_pending_when_the_arbiter_dies_is_granted_by_the_deputy() -> None:
    group = Group()
    group.kill("alice")
    group.members["carol"].press(group.now)
    granted = False
    for _ in range(80):
        group.run(0.1)
        if group.members["carol"].state is ParticipantState.HAS_NO_PERMISSION:
            group.members["carol"].press(group.now)
            group.collect()
        granted = granted or group.talkers() == ["carol"]
    assert granted


def test_without_any_deputy_left_a_request_is_denied_at_once() -> None:
    group = Group(("alice",))
    group.kill("alice")
    group.run(5.0)
    group.press("bob")
    denied = group.last("bob", fp.Denied)
    assert isinstance(denied, fp.Denied) and denied.phrase == "nobody arbitrates"
    assert group.members["bob"].next_timer() is None


def test_the_first_of_the_order_decides_again_when_he_is_back() -> None:
    group = Group()
    group.apart = (frozenset({"alice", "dave"}),)
    group.run(5.0)
    assert group.members["bob"].arbitrates and group.members["alice"].arbitrates
    group.press("carol")
    assert group.talkers() == ["carol"]
    group.apart = ()
    group.run(2.5)
    assert not group.members["bob"].arbitrates
    assert {member.arbiter for member in group.members.values()} == {"alice"} and group.talkers() == []
    group.press("bob")
    assert group.talkers() == ["bob"]


def test_a_member_who_is_not_the_arbiter_decides_nothing() -> None:
    group = Group()
    group.press("carol")
    forged = [
        FloorIdle(ssrc=1, sequence=500), FloorTaken(ssrc=1, sequence=501, granted_party="dave"),
        FloorRevoke(ssrc=1, user_id="carol", reject=(4, "")), FloorGranted(ssrc=1, user_id="bob", duration=30),
    ]  # fmt: skip
    for liar in ("dave", "bob", "stranger"):
        for message in forged:
            for name in ("alice", "carol"):
                group.members[name].receive(liar, message, group.now)
    group.collect()
    assert group.talkers() == ["carol"]
    # a grant that nobody waits for is given back, even the arbiter's
    group.members["dave"].receive("alice", FloorGranted(ssrc=1, user_id="dave", duration=30), group.now)
    group.collect()
    group.run(0.2)
    assert group.talkers() == ["carol"]


def test_a_request_counts_for_whom_it_was_protected_by_not_for_whom_it_names() -> None:
    group = Group()
    group.members["alice"].receive("dave", FloorRequest(ssrc=1, user_id="carol"), group.now)
    group.collect()
    group.run(0.2)
    assert group.talkers() == []  # dave was granted it, did not wait for it, and gave it back


@pytest.mark.parametrize("seed", range(6))
def test_with_loss_and_arbiters_that_die_and_return_two_never_hold_the_floor_for_long(seed: int) -> None:
    group = Group(("alice", "bob", "carol"), loss=0.15, seed=seed)
    grace = SETTINGS.server.t2 + SETTINGS.participant.overrun + 0.5
    together: float | None = None
    granted = 0
    for _ in range(1500):
        name = group.random.choice(NAMES)
        if name in group.members:
            member, move = group.members[name], group.random.random()
            if move < 0.3 and member.state is ParticipantState.HAS_NO_PERMISSION:
                member.press(group.now)
            elif move < 0.5 and member.state is not ParticipantState.HAS_NO_PERMISSION:
                member.release(group.now)
            elif move < 0.51 and len(group.members) > 2:
                group.kill(name)
        elif group.random.random() < 0.1:
            group.start(name)
            for other, member in group.members.items():
                if other != name:
                    member.joined(name, group.now, priority=5)
        group.collect()
        group.run(0.05)
        group.talk()
        granted += len(group.talkers())
        if len(group.talkers()) > 1:
            together = group.now if together is None else together
            assert group.now - together <= grace
        else:
            together = None
    assert granted > 100
    group.loss = 0.0
    for name in NAMES:
        if name in group.members:
            group.release(name)
    group.run(15.0)
    present = next(iter(group.members))
    group.press(present)
    group.run(1.5)
    assert group.talkers() == [present]
