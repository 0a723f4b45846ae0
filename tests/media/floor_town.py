# SPDX-License-Identifier: Apache-2.0
"""Floor participants and their server on a bad network, with random users; time is fed in.

Messages are lost, doubled and overtake each other, timers fire late, clients crash and come back without memory.
Every row of the three machines that is walked is counted.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from typing import Any

from media import floor_participant, floor_server, floor_towards
from media.floor_fields import URGENT, FloorIndicator
from media.floor_messages import FloorRevokeRequest, QueuedFloorRequests, decode
from media.floor_participant import FloorParticipant, ParticipantSettings, ParticipantState
from media.floor_server import FloorControlServer, FloorServerSettings, FloorTakenBy

NAMES = ("alice", "bob", "carol", "dave", "erin", "frank")
WANTS = (ParticipantState.PENDING_REQUEST, ParticipantState.QUEUED)
TABLES: dict[str, Any] = {
    "participant": floor_participant, "arbitration": floor_server, "towards": floor_towards,
}  # fmt: skip
TIMERS = {"T1", "T2", "T3", "T4", "T7", "T8", "T20", "T100", "T101", "T103", "T104", "T132", "LIMIT", "TAKEN_AGAIN"}


class Recorder:
    """Counts rows, and refuses a timer that a machine does not answer."""

    def __init__(self, monkeypatch: Any) -> None:
        self.rows: Counter[tuple[str, str, str]] = Counter()
        for name, module, cls, method in (
            ("participant", floor_participant, FloorParticipant, "_happen"),
            ("arbitration", floor_server, FloorControlServer, "_happen"),
            ("towards", floor_towards, floor_towards.FloorTowards, "happen"),
        ):
            original = getattr(cls, method)

            def watched(machine: Any, on: Any, *rest: Any, _name: str = name, _original: Any = original,
                        _table: Any = module.TABLE) -> None:  # fmt: skip
                known = (machine.state, on) in _table
                if known:
                    self.rows[_name, machine.state.name, on.name] += 1
                assert known or on.name not in TIMERS, f"{_name} in {machine.state.name} does not answer {on.name}"
                _original(machine, on, *rest)

            monkeypatch.setattr(cls, method, watched)

    @staticmethod
    def all_rows() -> set[tuple[str, str, str]]:
        return {
            (name, state.name, on.name) for name, module in TABLES.items() for state, on in module.TABLE
        }


class Town:
    """One call and its users."""

    def __init__(
        self, seed: int, *, loss: float, participant: ParticipantSettings, indicator: FloorIndicator, **server: Any
    ) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.grants = 0
        self.together: float | None = None
        self.longest_together = 0.0
        self.settings = FloorServerSettings(**server)
        self.participant_settings = participant
        self.server = FloorControlServer(self.settings, ssrc_of=lambda _name: 999, indicator=indicator)
        self.server.declare(indicator & URGENT, {"dave"})
        self.people: dict[str, FloorParticipant] = {}
        self.last_change = 0.0
        #: one who never says a word, however long he holds the floor: nothing tells him that he lost it but messages
        self.mute = self.random.choice(NAMES)
        self._flying: list[tuple[float, int, str, str, bytes]] = []
        self._number = itertools.count()
        for name in NAMES:
            self.join(name)

    # --- users ----------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        implicit = self.random.random() < 0.3
        indicator = FloorIndicator.NORMAL
        if name == "dave":
            indicator |= FloorIndicator.EMERGENCY
        person = FloorParticipant(
            ssrc=100 + NAMES.index(name), settings=self.participant_settings, user=name, implicit_request=implicit,
            indicator=indicator,
        )  # fmt: skip
        self.people[name] = person
        self.server.join(
            name, self.now, media_ssrc=NAMES.index(name), priority=NAMES.index(name), queueing=name != "erin",
            receive_only=name == "frank", authority=name == "carol", implicit_request=implicit,
        )  # fmt: skip
        person.call_established(self.now, granted=implicit and self.server.holder == name)
        self.collect()

    def crash(self, name: str) -> None:
        """The client is gone without a word; call control notices, and he comes back with nothing remembered."""
        if self.random.random() < 0.5:
            self.people[name].call_releasing(self.now)
            self.server.leaving(name, self.now)
        self.people[name].call_released(self.now)
        self.server.leave(name, self.now)
        self._flying = [packet for packet in self._flying if name not in packet[2:4]]
        heapq.heapify(self._flying)
        self.join(name)

    def act(self) -> None:
        """One random thing."""
        name = self.random.choice(NAMES)
        person = self.people[name]
        move = self.random.random()
        idle = person.state is ParticipantState.HAS_NO_PERMISSION
        if move < 0.22 and (idle or self.random.random() < 0.1):
            person.press(self.now, self.random.randrange(8))
        elif move < 0.36 and not idle:
            person.release(self.now)
        elif move < 0.40:
            person.ask_position(self.now)
        elif move < 0.405:
            self.crash(name)
        elif move < 0.42 and name == "carol":
            self.server.receive(
                name, QueuedFloorRequests(ssrc=1, purpose=0, queued_users=self.server.queue[:1]), self.now
            )
        elif move < 0.43 and name == "carol" and self.server.holder:
            self.server.receive(name, FloorRevokeRequest(ssrc=1, revoked_user=self.server.holder), self.now)
        elif move < 0.45:
            self.server.media_received(name, NAMES.index(name), self.now)  # a client out of its mind
        elif move < 0.455:
            self.server.revoke(self.now)
        self.collect()

    # --- network and time -----------------------------------------------------------------------------

    def _fly(self, source: str, target: str, octets: bytes) -> None:
        for _ in range(1 + (self.random.random() < self.loss / 2)):
            if self.random.random() >= self.loss:
                delay = 0.01 + self.random.random() * 0.2 * (self.random.random() < 0.3)
                heapq.heappush(self._flying, (self.now + delay, next(self._number), source, target, octets))

    def collect(self) -> None:
        for name, message in self.server.to_send():
            self._fly("", name, message.encode())
        for event in self.server.events():
            self.grants += isinstance(event, FloorTakenBy)
            self.last_change = self.now
        for name, person in self.people.items():
            for message in person.to_send():
                self._fly(name, "", message.encode())
            person.events()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = [self._flying[0][0]] if self._flying else []
            timers = [t for p in (self.server, *self.people.values()) if (t := p.next_timer()) is not None]
            if timers:
                due.append(min(timers) + self.random.random() * 0.05)  # the loop is late
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            while self._flying and self._flying[0][0] <= self.now:
                _, _, source, target, octets = heapq.heappop(self._flying)
                if target:
                    self.people[target].receive(decode(octets), self.now)
                else:
                    self.server.receive(source, decode(octets), self.now)
            self.server.handle_timer(self.now)
            for person in self.people.values():
                person.handle_timer(self.now)
            self.collect()
        self.now = max(self.now, end)

    def talkers(self) -> list[str]:
        return [name for name, person in self.people.items() if person.state is ParticipantState.HAS_PERMISSION]

    def talk(self) -> None:
        """Whoever believes that he holds the floor talks, mostly; everyone else hears what passes."""
        passed = []
        for name in self.talkers():
            if name != self.mute and self.random.random() < 0.9:
                holder = self.server.holder
                if self.server.media_received(name, NAMES.index(name), self.now):
                    passed.append((name, name == holder))
        assert sum(by_right for _, by_right in passed) <= 1, f"two talk by right at {self.now}"
        for name, person in self.people.items():
            if any(other != name for other, _ in passed):
                person.media_received(self.now)
        self.collect()

    def check(self, grace: float, patience: float) -> None:
        """Never do two believe for long, never is the floor blocked for one who wants it."""
        if len(self.talkers()) > 1:
            self.together = self.now if self.together is None else self.together
            self.longest_together = max(self.longest_together, self.now - self.together)
            assert self.now - self.together <= grace, f"{self.talkers()} since {self.together}, now {self.now}"
        else:
            self.together = None
        wanting = [p for n, p in self.people.items() if n != "frank" and p.state in WANTS]
        if not wanting:
            self.last_change = self.now
        assert self.now - self.last_change <= patience, f"nothing happens since {self.last_change}, now {self.now}"
