# SPDX-License-Identifier: Apache-2.0
"""A floor control server and its participants, joined by a list of messages, with the clock in the hand."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from media import floor_participant as fp
from media import floor_server as fs
from media.floor_fields import URGENT
from media.floor_messages import (
    DenyCause,
    FloorAck,
    FloorGranted,
    FloorIdle,
    FloorIndicator,
    FloorMessage,
    FloorRequest,
    FloorRevokeRequest,
    FloorTaken,
    QueuedFloorRequests,
    QueuedRequestsPurpose,
    QueuePositionInfo,
    RevokeCause,
    decode,
)
from media.floor_participant import FloorParticipant, ParticipantState
from media.floor_server import FloorControlServer, FloorServerSettings, FloorState

NAMES = ("alice", "bob", "carol", "dave", "erin")


class Net:
    """One call: messages take ``delay`` seconds, some are lost, doubled or late; every octet is encoded."""

    def __init__(
        self, names: tuple[str, ...] = NAMES[:3], *, loss: float = 0.0, seed: int = 1, **settings: object
    ) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.loss = loss
        self.server = FloorControlServer(FloorServerSettings(**settings), ssrc_of=lambda _name: 999)  # type: ignore[arg-type]
        self.people: dict[str, FloorParticipant] = {}
        self.heard: dict[str, list[fp.Event]] = {}
        self._flying: list[tuple[float, int, str, str, bytes]] = []
        self._number = itertools.count()
        for name in names:
            self.join(name)
        self.run(0.1)

    def join(self, name: str, **options: object) -> None:
        implicit = bool(options.get("implicit_request"))
        ssrc = 100 + NAMES.index(name)
        self.people[name] = FloorParticipant(ssrc=ssrc, user=f"sip:{name}@x", implicit_request=implicit)
        self.people[name].call_established(self.now)
        self.heard[name] = []
        self.server.join(name, self.now, media_ssrc=NAMES.index(name), **{"priority": 5, **options})  # type: ignore[arg-type]
        self._collect()

    def _fly(self, source: str, target: str, octets: bytes) -> None:
        for _ in range(1 + (self.random.random() < self.loss / 2)):
            if self.random.random() >= self.loss:
                delay = 0.01 + (self.random.random() * 0.2 if self.loss else 0.0)
                heapq.heappush(self._flying, (self.now + delay, next(self._number), source, target, octets))

    def _collect(self) -> None:
        for name, message in self.server.to_send():
            self._fly("", name, message.encode())
        for name, person in self.people.items():
            for message in person.to_send():
                self._fly(name, "", message.encode())
            self.heard[name] += person.events()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = [self._flying[0][0]] if self._flying else []
            due += [t for p in (self.server, *self.people.values()) if (t := p.next_timer()) is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            while self._flying and self._flying[0][0] <= self.now:
                _, _, source, target, octets = heapq.heappop(self._flying)
                if target:
                    if target in self.people:
                        self.people[target].receive(decode(octets), self.now)
                else:
                    self.server.receive(source, decode(octets), self.now)
            self.server.handle_timer(self.now)
            for person in self.people.values():
                person.handle_timer(self.now)
            self._collect()
        self.now = end

    def press(self, name: str, priority: int = 0) -> None:
        self.people[name].press(self.now, priority)
        self._collect()

    def release(self, name: str) -> None:
        self.people[name].release(self.now)
        self._collect()

    def talk(self, name: str) -> bool:
        passed = self.server.media_received(name, NAMES.index(name), self.now)
        self._collect()
        return passed

    def talkers(self) -> list[str]:
        return [n for n, p in self.people.items() if p.state is ParticipantState.HAS_PERMISSION]

    def last(self, name: str, kind: type) -> fp.Event | None:
        return next((e for e in reversed(self.heard[name]) if isinstance(e, kind)), None)


def test_one_asks_and_talks_and_everyone_knows_it() -> None:
    net = Net()
    net.press("alice")
    net.run(0.1)
    assert net.talkers() == ["alice"]
    assert net.last("alice", fp.Granted) == fp.Granted(30, 0, FloorIndicator.NORMAL | FloorIndicator.QUEUEING)
    taken = net.last("bob", fp.Taken)
    assert isinstance(taken, fp.Taken) and (taken.user, taken.ssrc, taken.permission) == ("alice", 0, True)
    net.release("alice")
    net.run(0.1)
    assert net.server.state is FloorState.IDLE and isinstance(net.heard["bob"][-1], fp.Idle)
    assert net.people["alice"].state is ParticipantState.HAS_NO_PERMISSION


def test_two_ask_at_once_and_exactly_one_is_granted_the_other_waits_and_follows() -> None:
    net = Net()
    net.press("bob")
    net.press("carol")
    net.run(0.1)
    assert net.talkers() == ["bob"] and net.last("carol", fp.Queued) == fp.Queued(1, 0)
    net.release("bob")
    net.run(0.1)
    assert net.talkers() == ["carol"]
    taken = net.last("bob", fp.Taken)
    assert isinstance(taken, fp.Taken) and taken.user == "carol"


def test_the_queue_is_ordered_by_authorised_priority_then_by_time() -> None:
    net = Net(NAMES)
    net.press("alice")
    net.run(0.1)
    for name, priority in (("bob", 1), ("carol", 200), ("dave", 5), ("erin", 1)):
        net.press(name, priority)
        net.run(0.05)
    assert net.server.queue == ("carol", "dave", "bob", "erin"), "nobody gets more than his 5"
    assert net.last("erin", fp.Queued) == fp.Queued(4, 1)
    net.release("bob")
    net.run(0.1)
    assert net.last("erin", fp.Queued) == fp.Queued(3, 1)
    order = []
    for _ in range(4):
        (holder,) = net.talkers()
        order.append(holder)
        net.release(holder)
        net.run(0.1)
    assert order == ["alice", "carol", "dave", "erin"]


def test_one_without_queueing_is_denied_while_another_talks() -> None:
    net = Net()
    net.join("dave", queueing=False)
    net.press("alice")
    net.run(0.1)
    net.press("dave")
    net.run(0.1)
    assert net.last("dave", fp.Denied) == fp.Denied(DenyCause.ANOTHER_HAS_PERMISSION, "another has permission")


def test_a_full_queue_a_listener_and_one_alone_are_denied_each_with_its_cause() -> None:
    net = Net(queue_depth=1)
    net.join("dave", receive_only=True)
    for name in ("alice", "bob", "carol", "dave"):
        net.press(name)
        net.run(0.1)
    causes = {name: net.last(name, fp.Denied) for name in ("carol", "dave")}
    assert [getattr(d, "cause", None) for d in causes.values()] == [DenyCause.QUEUE_FULL, DenyCause.RECEIVE_ONLY]
    lonely = Net(("alice",))
    lonely.press("alice")
    lonely.run(0.1)
    assert getattr(lonely.last("alice", fp.Denied), "cause", None) == DenyCause.ONLY_ONE_PARTICIPANT


def test_a_higher_priority_pre_empts_and_the_talker_is_told() -> None:
    net = Net(preemptive_priority=5)
    net.press("alice", 1)
    net.run(0.1)
    net.press("bob", 5)
    net.run(0.2)
    assert net.last("alice", fp.Revoked) == fp.Revoked(RevokeCause.PREEMPTED)
    assert net.talkers() == ["bob"]


def test_one_who_talks_too_long_is_stopped_with_cause_2() -> None:
    net = Net(t2=2.0)
    net.press("alice")
    net.run(0.1)
    for _ in range(150):
        for talker in net.talkers():
            net.talk(talker)
        net.run(0.02)
    assert net.last("alice", fp.Revoked) == fp.Revoked(RevokeCause.BURST_TOO_LONG)
    assert net.talkers() == [] and net.server.state is FloorState.IDLE


def test_a_talker_who_does_not_stop_is_cut_off_after_the_grace() -> None:
    net = Net(t2=1.0, t3=1.0)
    net.press("alice")
    net.run(0.1)
    del net.people["alice"]  # deaf from now on, and still sending
    passed = []
    for _ in range(150):
        passed.append(net.talk("alice"))
        net.run(0.02)
    assert passed[:50] == [True] * 50 and not any(passed[-20:])
    assert net.server.holder is None


def test_media_without_the_floor_does_not_pass_and_is_answered_with_cause_3() -> None:
    net = Net()
    assert not net.talk("bob")
    net.run(0.1)
    assert net.last("bob", fp.Revoked) == fp.Revoked(RevokeCause.NO_PERMISSION)
    net.press("alice")
    net.run(0.1)
    assert net.talk("alice") and not net.talk("bob")
    assert not net.server.media_received("alice", 77, net.now), "only under the SSRC that he announced"
    assert not net.server.media_received("nobody", 0, net.now)


def test_the_last_packets_of_a_burst_pass_after_its_release() -> None:
    net = Net()
    net.press("alice")
    net.run(0.1)
    net.talk("alice")
    net.release("alice")
    net.run(0.05)
    assert net.talk("alice")
    net.run(0.5)
    assert not net.talk("alice")


def test_a_silent_holder_loses_the_floor_after_t1() -> None:
    net = Net()
    net.press("alice")
    net.run(3.9)
    assert net.server.holder == "alice"
    net.run(0.3)
    assert net.server.holder is None and net.talkers() == []
    assert isinstance(net.last("alice", fp.Lost), fp.Lost)


def test_a_holder_who_leaves_frees_the_floor_and_one_in_the_queue_his_place() -> None:
    net = Net()
    for name in ("alice", "bob", "carol"):
        net.press(name)
        net.run(0.1)
    net.server.leave("bob", net.now)
    net.server.leave("alice", net.now)
    net._collect()
    net.run(0.1)
    assert net.server.holder is None or net.server.holder == "carol"
    assert "bob" not in net.server.queue


def test_who_joins_late_learns_at_once_who_talks() -> None:
    net = Net()
    net.press("alice")
    net.run(0.1)
    net.join("erin")
    net.run(0.1)
    taken = net.last("erin", fp.Taken)
    assert isinstance(taken, fp.Taken) and taken.user == "alice"


def test_an_implicit_request_is_a_request() -> None:
    net = Net()
    net.join("dave", implicit_request=True)
    net.run(0.1)
    assert net.talkers() == ["dave"]


def test_a_lost_release_is_repeated_and_a_lost_request_too() -> None:
    net = Net()
    net.loss = 1.0
    net.press("alice")
    net.run(0.5)
    net.loss = 0.0
    net.run(1.0)
    assert net.talkers() == ["alice"]
    net.loss = 1.0
    net.release("alice")
    net.run(0.5)
    net.loss = 0.0
    net.run(1.0)
    assert net.server.holder is None


def test_a_server_that_never_answers_is_given_up() -> None:
    net = Net()
    net.loss = 1.0
    net.press("alice")
    net.run(6.0)
    assert isinstance(net.last("alice", fp.RequestTimedOut), fp.RequestTimedOut)
    assert net.people["alice"].state is ParticipantState.HAS_NO_PERMISSION


def test_inactivity_is_told_once_and_idle_is_repeated_ten_times() -> None:
    net = Net(t4=20.0)
    net.press("alice")
    net.run(0.1)
    net.release("alice")
    net.run(60.0)
    assert net.server.events().count(fs.Inactive()) == 1
    assert net.server.next_timer() is None


def test_only_the_broadcaster_may_talk_in_a_broadcast_call() -> None:
    net = Net(broadcaster="alice")
    net.press("bob")
    net.run(0.1)
    assert getattr(net.last("bob", fp.Denied), "cause", None) == DenyCause.RECEIVE_ONLY
    net.press("alice")
    net.run(0.1)
    taken = net.last("bob", fp.Taken)
    assert isinstance(taken, fp.Taken) and not taken.permission


def test_what_a_participant_may_not_send_is_ignored() -> None:
    net = Net()
    net.server.receive("stranger", FloorRequest(ssrc=1), net.now)
    net.server.receive("alice", fs.FloorGranted(ssrc=1, duration=1), net.now)
    assert net.server.holder is None and net.server.to_send() == []


@pytest.mark.parametrize("seed", range(12))
def test_with_loss_doubles_and_disorder_never_do_two_hold_the_floor_beyond_the_grace(seed: int) -> None:
    net = Net(NAMES, loss=0.2, seed=seed, t1=1.5, t2=3.0, t3=0.5)
    source = random.Random(seed)
    both_since: float | None = None
    grants = 0
    for _ in range(1500):
        name = source.choice(NAMES)
        person = net.people[name]
        move = source.random()
        if move < 0.25 and person.state is ParticipantState.HAS_NO_PERMISSION:
            net.press(name, source.randrange(6))
        elif move < 0.4 and person.state is not ParticipantState.HAS_NO_PERMISSION:
            net.release(name)
        for talker in net.talkers():
            net.talk(talker)
        net.run(source.random() * 0.1)
        grants += sum(isinstance(e, fs.FloorTakenBy) for e in net.server.events())
        if len(net.talkers()) > 1:
            both_since = net.now if both_since is None else both_since
            assert net.now - both_since < 1.5 + 2 * 0.25 + 0.5, "T1, the repeats of Floor Taken, the way"
        else:
            both_since = None
    assert grants > 30
    # and the floor is never blocked: when all is quiet, somebody who asks gets it
    for name in NAMES:
        net.release(name)
    net.loss = 0.0
    net.run(10.0)
    net.press("erin")
    net.run(0.5)
    assert net.talkers() == ["erin"]


def test_audio_cut_in_gives_the_floor_to_whoever_asks_and_tells_the_talker_why() -> None:
    net = Net(audio_cut_in=True)
    net.press("alice")
    net.run(0.1)
    net.talk("alice")
    net.press("bob")
    net.run(0.05)
    assert net.talkers() == ["bob"]
    assert net.last("alice", fp.Revoked) == fp.Revoked(RevokeCause.PREEMPTED)
    assert net.talk("bob") and not net.talk("alice")


def test_one_who_was_stopped_for_talking_too_long_is_denied_until_t9_is_over() -> None:
    net = Net(t2=1.0, t9=5.0)
    net.press("alice")
    net.run(0.1)
    for _ in range(60):
        for talker in net.talkers():
            net.talk(talker)
        net.run(0.02)
    net.press("alice")
    net.run(0.1)
    assert getattr(net.last("alice", fp.Denied), "cause", None) == DenyCause.RETRY_AFTER
    net.run(5.0)
    net.press("alice")
    net.run(0.1)
    assert net.talkers() == ["alice"]


def test_a_request_that_has_waited_too_long_is_taken_out_of_the_queue_and_its_owner_is_told() -> None:
    net = Net(max_wait=2.0, t1=30.0)
    net.press("alice")
    net.run(0.1)
    net.press("bob")
    net.run(1.0)
    net.press("carol")
    net.run(1.2)
    assert net.server.queue == ("carol",) and isinstance(net.heard["bob"][-1], fp.RemovedFromQueue)
    assert net.last("carol", fp.Queued) == fp.Queued(1, 0)
    net.run(1.0)
    assert net.server.queue == () and net.people["carol"].state is ParticipantState.HAS_NO_PERMISSION


def test_one_of_authority_takes_the_floor_and_requests_from_others_and_nobody_else_does() -> None:
    net = Net(NAMES[:3], t1=30.0)
    net.join("dave", authority=True)
    for name in ("alice", "bob", "carol"):
        net.press(name)
        net.run(0.1)
    cancel = QueuedFloorRequests(
        ssrc=1, purpose=QueuedRequestsPurpose.CANCEL_REQUEST, queued_users=("bob", "nobody")
    )
    for name in ("carol", "dave"):
        net.server.receive(name, cancel, net.now)
        assert net.server.queue == (("bob", "carol") if name == "carol" else ("carol",))
    sent = [(to, m) for to, m in net.server.to_send() if isinstance(m, QueuedFloorRequests)]
    assert [(to, m.purpose, m.queued_users) for to, m in sent] == [("dave", 1, ("bob",)), ("bob", 2, ("bob",))]
    for name in ("carol", "dave"):
        net.server.receive(name, FloorRevokeRequest(ssrc=1, revoked_user="alice"), net.now)
        net._collect()
        net.run(0.1)
        assert net.server.holder == ("alice" if name == "carol" else "carol")
    assert net.last("alice", fp.Revoked) == fp.Revoked(RevokeCause.BY_ANOTHER_CLIENT)


def test_an_emergency_request_pre_empts_only_in_an_emergency_call() -> None:
    net = Net()
    net.people["bob"].indicator = FloorIndicator.EMERGENCY
    net.press("alice")
    net.run(0.1)
    net.press("bob")
    net.run(0.2)
    assert net.talkers() == ["alice"] and net.server.queue == ("bob",)
    net.release("bob")
    net.run(0.1)
    net.server.declare(FloorIndicator.EMERGENCY, {"bob"})
    net.press("bob")
    net.run(0.2)
    assert net.talkers() == ["bob"]
    granted = net.last("bob", fp.Granted)
    assert isinstance(granted, fp.Granted) and granted.indicator is not None
    assert granted.indicator & URGENT == FloorIndicator.EMERGENCY


def test_only_the_requests_of_who_declared_the_emergency_go_before_others() -> None:
    """A member who says EMERGENCY in another's emergency call has no right by that."""
    net = Net()
    net.server.declare(FloorIndicator.EMERGENCY, {"bob"})
    net.people["carol"].indicator = FloorIndicator.EMERGENCY
    net.press("alice")
    net.run(0.1)
    net.press("carol")
    net.run(0.2)
    assert net.talkers() == ["alice"] and net.server.queue == ("carol",)
    net.people["bob"].indicator = FloorIndicator.IMMINENT_PERIL  # not what the call is
    net.press("bob")
    net.run(0.2)
    assert net.talkers() == ["alice"]
    net.release("bob")
    net.people["bob"].indicator = FloorIndicator.EMERGENCY
    net.press("bob")
    net.run(0.2)
    assert net.talkers() == ["bob"] and net.server.queue == ("carol",)


def test_an_emergency_that_is_over_pre_empts_nobody() -> None:
    net = Net()
    net.server.declare(FloorIndicator.IMMINENT_PERIL, {"bob"})
    net.people["bob"].indicator = FloorIndicator.IMMINENT_PERIL
    net.server.declare(FloorIndicator(0))
    net.press("alice")
    net.run(0.1)
    net.press("bob")
    net.run(0.2)
    assert net.talkers() == ["alice"] and net.server.queue == ("bob",)
    assert not net.server.indicator & URGENT


def messages_to(server: FloorControlServer, name: str) -> list[FloorMessage]:
    return [message for to, message in server.to_send() if to == name]


def test_messages_that_ask_for_it_are_acknowledged_and_an_acknowledged_grant_is_not_repeated() -> None:
    server = FloorControlServer(FloorServerSettings(acknowledged=True), ssrc_of=lambda _name: 9)
    for number, name in enumerate(("a", "b")):
        server.join(name, 0.0, media_ssrc=number)
    server.to_send()
    client = FloorParticipant(ssrc=1)
    client.call_established(0.0)
    client.press(0.0)
    (request,) = client.to_send()
    server.receive("a", request, 0.0)
    (granted,) = messages_to(server, "a")
    assert isinstance(granted, FloorGranted) and granted.ack_requested
    server.handle_timer(1.1)
    assert [type(m) for m in messages_to(server, "a")] == [FloorGranted], "T20"
    client.receive(granted, 1.2)
    (ack,) = client.to_send()
    assert ack == FloorAck(ssrc=1, source=0, acknowledged=FloorGranted.TYPE, indicator=FloorIndicator.NORMAL)
    server.receive("a", ack, 1.3)
    server.handle_timer(2.5)
    assert messages_to(server, "a") == []
    server.receive("b", FloorRequest(ssrc=2), 2.6)
    (info,) = messages_to(server, "b")
    assert isinstance(info, QueuePositionInfo) and info.ack_requested


def test_a_call_answered_with_the_floor_is_one_in_which_its_caller_may_talk() -> None:
    client = FloorParticipant(ssrc=1, implicit_request=True)
    client.call_established(0.0, granted=True)
    assert client.state is ParticipantState.HAS_PERMISSION and client.events() == [fp.Granted(None, None, None)]


def test_a_talker_whom_no_word_reaches_stops_by_himself_at_the_end_of_what_he_was_granted() -> None:
    client = FloorParticipant(ssrc=1, settings=fp.ParticipantSettings(overrun=5.0))
    client.call_established(0.0)
    client.press(0.0)
    client.receive(FloorGranted(ssrc=9, duration=30), 0.1)
    assert client.next_timer() == 35.1
    client.handle_timer(35.1)
    assert client.events()[-1] == fp.Revoked(RevokeCause.BURST_TOO_LONG)
    assert client.state is ParticipantState.PENDING_RELEASE


def test_t103_tells_that_a_talker_has_fallen_silent_and_floor_idle_stops_it() -> None:
    client = FloorParticipant(ssrc=1)
    client.call_established(0.0)
    for now in (1.0, 2.0):
        client.media_received(now)
    assert client.next_timer() == 6.0
    client.handle_timer(6.0)
    assert client.events() == [fp.MediaEnded()]
    client.media_received(7.0)
    client.receive(FloorIdle(ssrc=9, sequence=1), 7.5)
    assert client.next_timer() is None


def test_a_broadcast_call_tells_its_listeners_not_to_ask() -> None:
    client = FloorParticipant(ssrc=1)
    client.call_established(0.0)
    client.receive(FloorTaken(ssrc=9, granted_party="a", permission=0, sequence=1), 0.1)
    assert not client.may_request
    client.receive(FloorTaken(ssrc=9, granted_party="a", permission=1, sequence=2), 0.2)
    assert client.may_request


def test_floor_granted_tells_what_is_left_of_the_talk_limit() -> None:
    net = Net()
    net.press("alice")
    net.run(0.1)
    net.talk("alice")
    net.run(3.5)
    net.server.receive("alice", FloorRequest(ssrc=1), net.now)
    (granted,) = [m for m in messages_to(net.server, "alice") if isinstance(m, FloorGranted)]
    assert granted.duration == 26


def test_where_everyone_hears_everything_a_message_for_one_names_him_and_one_for_all_is_said_once() -> None:
    server = FloorControlServer(ssrc_of=lambda _name: 9, everyone_hears=True)
    for number, name in enumerate(NAMES):
        server.join(name, 0.0, media_ssrc=number)
    server.to_send()
    server.receive("bob", FloorRequest(ssrc=1), 1.0)
    (to, granted), (all_, taken) = server.to_send()
    assert (to, all_) == ("bob", fs.EVERYONE)
    assert isinstance(granted, FloorGranted) and granted.user_id == "bob"
    assert isinstance(taken, FloorTaken) and taken.granted_party == "bob" and taken.user_id is None


def test_an_idle_floor_makes_one_who_believes_to_wait_ask_for_his_place() -> None:
    client = FloorParticipant(ssrc=1)
    client.call_established(0.0)
    client.press(0.0)
    client.receive(QueuePositionInfo(ssrc=9, queue=(1, 0)), 0.1)
    client.to_send()
    client.receive(FloorIdle(ssrc=9, sequence=3), 1.0)
    assert [type(m).__name__ for m in client.to_send()] == ["QueuePositionRequest"]
    client.receive(QueuePositionInfo(ssrc=9, queue=(254, 0)), 1.1)
    assert client.state is ParticipantState.HAS_NO_PERMISSION
