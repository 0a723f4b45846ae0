# SPDX-License-Identifier: Apache-2.0
"""The floor control server of TS 24.380 6.3: arbitration of one call's floor, as a table; sans-IO.

Participants are named by their MCPTT IDs. What arrives goes in by methods with ``now`` (seconds of any one
clock); messages come out of :meth:`FloorControlServer.to_send` as (participant, message), the talker's first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from media.floor_messages import (
    NOT_QUEUED,
    DenyCause,
    FloorAck,
    FloorDeny,
    FloorGranted,
    FloorIdle,
    FloorIndicator,
    FloorMessage,
    FloorRelease,
    FloorRequest,
    FloorRevoke,
    FloorTaken,
    QueuePositionInfo,
    QueuePositionRequest,
    RevokeCause,
)

__all__ = [
    "Event",
    "FloorControlServer",
    "FloorFree",
    "FloorServerSettings",
    "FloorState",
    "FloorTakenBy",
    "Inactive",
    "Participant",
]


@dataclass(frozen=True, slots=True)
class FloorServerSettings:
    """Timers in seconds, counters in messages (TS 24.380 11.1.3)."""

    t1: float = 4.0  # end of RTP media
    t2: float = 30.0  # stop talking
    t3: float = 3.0  # grace after a revoke
    t4: float = 30.0  # inactivity
    t7: float = 1.0  # Floor Idle again
    c7: int = 10
    t8: float = 1.0  # Floor Revoke again
    t20: float = 1.0  # Floor Granted again, to one from the queue
    c20: int = 3
    #: Floor Taken is sent again so often, as far apart: a listener who missed it would play nothing
    taken_repeats: int = 2
    taken_interval: float = 0.25
    queue_depth: int = 32
    #: a request of at least this (authorised) priority pre-empts a talker of a lower one; None: never
    preemptive_priority: int | None = None
    #: in a broadcast call, the only one who may talk
    broadcaster: str | None = None
    #: media of the last talker that was under way when he released the floor
    release_grace: float = 0.2
    acknowledged_grants: bool = False


class FloorState(Enum):
    """States of the general floor control operation (6.3.4)."""

    IDLE = auto()
    TAKEN = auto()
    PENDING_REVOKE = auto()


class On(Enum):
    """What can happen to the floor."""

    REQUEST = auto()
    RELEASE = auto()  # by the holder, or he left
    MEDIA = auto()  # the holder's
    REVOKE = auto()  # something is to be taken from the holder: the cause is set
    T1 = auto()
    T2 = auto()
    T3 = auto()
    T4 = auto()
    T7 = auto()
    T8 = auto()
    T20 = auto()
    TAKEN_AGAIN = auto()


@dataclass(frozen=True, slots=True)
class FloorTakenBy:
    participant: str
    ssrc: int


@dataclass(frozen=True, slots=True)
class FloorFree:
    """Nobody holds the floor."""


@dataclass(frozen=True, slots=True)
class Inactive:
    """T4 ran out: nobody has talked for so long; call control decides what follows."""


Event = FloorTakenBy | FloorFree | Inactive


@dataclass(slots=True)
class Participant:
    """One party of the call. ``priority`` is the highest he is authorised to use."""

    name: str
    media_ssrc: int
    priority: int = 0
    queueing: bool = True
    receive_only: bool = False
    warned_until: float = float("-inf")


@dataclass(slots=True)
class _Waiting:
    """A place in the queue."""

    name: str
    priority: int
    preemptive: bool
    number: int

    @property
    def rank(self) -> tuple[bool, int, int]:
        return (not self.preemptive, -self.priority, self.number)


class FloorControlServer:
    """The floor of one call.

    :param ssrc_of: the server's own SSRC in floor messages towards a participant
    :param indicator: what every message says of the call
    """

    def __init__(
        self,
        settings: FloorServerSettings | None = None,
        *,
        ssrc_of: Callable[[str], int],
        indicator: FloorIndicator = FloorIndicator.NORMAL | FloorIndicator.QUEUEING,
        now: float = 0.0,
    ) -> None:
        self.settings = settings or FloorServerSettings()
        self.state = FloorState.IDLE
        self.holder: str | None = None
        self.participants: dict[str, Participant] = {}
        self.indicator = indicator
        self._ssrc_of = ssrc_of
        self._queue: list[_Waiting] = []
        self._requests = 0
        self._holder_priority = 0
        self._sequence = 0
        self._timers: dict[On, float] = {On.T4: now + self.settings.t4}
        self._count: dict[On, int] = {}
        self._revoke_cause = int(RevokeCause.OTHER)
        self._last_holder: tuple[str, float] | None = None
        self._from_queue = False
        self._request: tuple[Participant, int, bool] | None = None
        self._out: list[tuple[str, FloorMessage]] = []
        self._events: list[Event] = []

    # --- who is there ---------------------------------------------------------------------------------

    def join(
        self,
        participant: str,
        now: float,
        *,
        media_ssrc: int,
        priority: int = 0,
        queueing: bool = True,
        implicit_request: bool = False,
        receive_only: bool = False,
    ) -> None:
        """A party comes in and is told at once how the floor stands (6.3.5.2)."""
        self.leave(participant, now)
        member = Participant(participant, media_ssrc, priority, queueing, receive_only)
        self.participants[participant] = member
        if implicit_request and (self.state is FloorState.IDLE or queueing):
            self._requested(member, priority, False, now)
            if self.holder == participant:
                return
        self._tell(participant)

    def leave(self, participant: str, now: float) -> None:
        """A party is gone: his floor is free, his place in the queue too."""
        if self.participants.pop(participant, None) is None:
            return
        self._unqueue(participant)
        if self.holder == participant:
            self._happen(On.RELEASE, now)

    # --- what arrives ---------------------------------------------------------------------------------

    def receive(self, participant: str, message: FloorMessage, now: float) -> None:
        """A message of one who has joined. What a participant may not send is ignored."""
        member = self.participants.get(participant)
        if member is None:
            return
        match message:
            case FloorRequest():
                emergency = FloorIndicator.EMERGENCY | FloorIndicator.IMMINENT_PERIL
                urgent = bool((message.indicator or FloorIndicator(0)) & self.indicator & emergency)
                self._requested(member, min(message.priority or 0, member.priority), urgent, now)
            case FloorRelease():
                self._acknowledge(participant, message)
                if self.holder == participant:
                    self._happen(On.RELEASE, now)
                else:
                    self._unqueue(participant)
                    self._tell(participant)
            case QueuePositionRequest():
                self._tell_position(participant)
            case _:
                pass

    def media_received(self, participant: str, ssrc: int, now: float) -> bool:
        """Whether a media packet of ``participant`` may pass; one without permission is told so (6.3.5.7)."""
        member = self.participants.get(participant)
        if member is None or ssrc != member.media_ssrc:
            return False
        if participant == self.holder:
            self._happen(On.MEDIA, now)
            return True
        if self._last_holder is not None and self._last_holder[0] == participant and now <= self._last_holder[1]:
            return True
        if now >= member.warned_until:
            member.warned_until = now + self.settings.t8
            self._send_revoke(participant, RevokeCause.NO_PERMISSION)
        return False

    def revoke(self, now: float, cause: int = RevokeCause.OTHER) -> None:
        """Call control takes the floor from whoever holds it."""
        self._revoke_cause = int(cause)
        self._happen(On.REVOKE, now)

    # --- what comes of it -----------------------------------------------------------------------------

    def to_send(self) -> list[tuple[str, FloorMessage]]:
        """(participant, message) since the last call."""
        out, self._out = self._out, []
        return out

    def events(self) -> list[Event]:
        """For call control, since the last call."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        return min(self._timers.values(), default=None)

    def handle_timer(self, now: float) -> None:
        """Everything that is due by ``now``."""
        for on in [on for on, due in self._timers.items() if due <= now]:
            if on in self._timers and self._timers[on] <= now:
                del self._timers[on]
                self._happen(on, now)

    @property
    def queue(self) -> tuple[str, ...]:
        """Who waits, in the order in which they will get the floor."""
        return tuple(waiting.name for waiting in self._queue)

    # --- the table's driver ---------------------------------------------------------------------------

    def _happen(self, on: On, now: float) -> None:
        row = TABLE.get((self.state, on))
        if row is not None:
            row(self, now)

    def _requested(self, member: Participant, priority: int, urgent: bool, now: float) -> None:
        broadcaster = self.settings.broadcaster
        if member.receive_only or (broadcaster is not None and member.name != broadcaster):
            self._deny(member.name, DenyCause.RECEIVE_ONLY)
        else:
            self._request = (member, priority, urgent)
            self._happen(On.REQUEST, now)

    # --- actions: requests ----------------------------------------------------------------------------

    def _request_when_idle(self, now: float) -> None:
        assert self._request is not None
        member, priority, _ = self._request
        if len(self.participants) < 2:
            self._deny(member.name, DenyCause.ONLY_ONE_PARTICIPANT)
        else:
            self._grant(member, priority, now, from_queue=False)

    def _request_when_taken(self, now: float) -> None:
        assert self._request is not None
        member, priority, urgent = self._request
        if member.name == self.holder:
            self._send_granted()
            return
        threshold = self.settings.preemptive_priority
        preemptive = urgent or (threshold is not None and threshold <= priority > self._holder_priority)
        if not (self._enqueue(member, priority, preemptive) and preemptive):
            return
        if self.state is FloorState.TAKEN:
            self._revoke_cause = RevokeCause.PREEMPTED
            self._happen(On.REVOKE, now)

    def _enqueue(self, member: Participant, priority: int, preemptive: bool) -> bool:
        """Whether ``member`` waits now; he is told his place, or why not."""
        already = next((waiting for waiting in self._queue if waiting.name == member.name), None)
        if already is not None:
            already.priority = priority
            already.preemptive = already.preemptive or preemptive
        elif not (member.queueing or preemptive):
            self._deny(member.name, DenyCause.ANOTHER_HAS_PERMISSION)
            return False
        elif len(self._queue) >= self.settings.queue_depth:
            self._deny(member.name, DenyCause.QUEUE_FULL)
            return False
        else:
            self._requests += 1
            self._queue.append(_Waiting(member.name, priority, preemptive, self._requests))
        before = self.queue
        self._queue.sort(key=lambda waiting: waiting.rank)
        if member.queueing:
            self._tell_position(member.name)
        for name, was in zip(self.queue, before, strict=True):
            if name != was and name != member.name:
                self._tell_position(name)
        return True

    def _unqueue(self, name: str) -> None:
        if name in self.queue:
            behind = self.queue[self.queue.index(name) + 1 :]
            self._queue = [waiting for waiting in self._queue if waiting.name != name]
            for other in behind:
                self._tell_position(other)

    # --- actions: the floor ---------------------------------------------------------------------------

    def _grant(self, member: Participant, priority: int, now: float, *, from_queue: bool) -> None:
        """Entering "G: Floor Taken" (6.3.4.4.2)."""
        self.state, self.holder, self._holder_priority = FloorState.TAKEN, member.name, priority
        self._from_queue = from_queue
        self._last_holder = None
        self._sequence = self._sequence + 1 & 0xFFFF
        self._timers = {On.T1: now + self.settings.t1}
        self._count = {On.T20: 1, On.TAKEN_AGAIN: 0}
        self._send_granted()
        if from_queue:
            self._timers[On.T20] = now + self.settings.t20
        if self.settings.taken_repeats:
            self._timers[On.TAKEN_AGAIN] = now + self.settings.taken_interval
        for name in self.participants:
            if name != member.name:
                self._tell(name)
        self._events.append(FloorTakenBy(member.name, member.media_ssrc))

    def _free(self, now: float) -> None:
        """The floor comes back: to the next in the queue, else entering "G: Floor Idle" (6.3.4.3.2)."""
        if self.holder is not None:
            self._last_holder = (self.holder, now + self.settings.release_grace)
        last, self.holder = self.holder, None
        while self._queue:
            waiting = self._queue.pop(0)
            member = self.participants.get(waiting.name)
            if member is not None and len(self.participants) > 1:
                for name in self.queue:
                    self._tell_position(name)
                held = self._last_holder
                self._grant(member, waiting.priority, now, from_queue=True)
                self._last_holder = held if last != member.name else None
                return
        self.state = FloorState.IDLE
        self._sequence = self._sequence + 1 & 0xFFFF
        self._count = {On.T7: 1}
        self._timers = {On.T4: now + self.settings.t4, On.T7: now + self.settings.t7}
        self._tell_all()
        self._events.append(FloorFree())

    def _media(self, now: float) -> None:
        self._timers[On.T1] = now + self.settings.t1
        if On.T2 not in self._timers and self.state is FloorState.TAKEN:
            self._timers.pop(On.T20, None)
            self._timers[On.T2] = now + self.settings.t2

    def _talked_too_long(self, now: float) -> None:
        self._revoke_cause = RevokeCause.BURST_TOO_LONG
        self._begin_revoke(now)

    def _begin_revoke(self, now: float) -> None:
        """Entering "G: pending Floor Revoke" (6.3.4.5.2)."""
        assert self.holder is not None
        self.state = FloorState.PENDING_REVOKE
        self._timers = {
            On.T1: self._timers.get(On.T1, now + self.settings.t1),
            On.T3: now + self.settings.t3,
            On.T8: now + self.settings.t8,
        }
        self._send_revoke(self.holder, self._revoke_cause)

    def _revoke_again(self, now: float) -> None:
        assert self.holder is not None
        self._send_revoke(self.holder, self._revoke_cause)
        self._timers[On.T8] = now + self.settings.t8

    def _granted_again(self, now: float) -> None:
        if self._count[On.T20] < self.settings.c20:
            self._count[On.T20] += 1
            self._send_granted()
            self._timers[On.T20] = now + self.settings.t20

    def _taken_again(self, now: float) -> None:
        if self._count[On.TAKEN_AGAIN] < self.settings.taken_repeats:
            self._count[On.TAKEN_AGAIN] += 1
            self._timers[On.TAKEN_AGAIN] = now + self.settings.taken_interval
            for name in self.participants:
                if name != self.holder:
                    self._tell(name)

    def _idle_again(self, now: float) -> None:
        if self._count.get(On.T7, self.settings.c7) < self.settings.c7:
            self._count[On.T7] += 1
            self._timers[On.T7] = now + self.settings.t7
            self._tell_all()

    def _inactive(self, _now: float) -> None:
        self._events.append(Inactive())

    # --- messages -------------------------------------------------------------------------------------

    def _send(self, to: str, message: FloorMessage) -> None:
        self._out.append((to, message))

    def _acknowledge(self, to: str, message: FloorMessage) -> None:
        if message.ack_requested:
            self._send(
                to,
                FloorAck(ssrc=self._ssrc_of(to), source=2, acknowledged=message.TYPE, indicator=self.indicator),
            )

    def _send_granted(self) -> None:
        assert self.holder is not None
        member = self.participants[self.holder]
        self._send(
            member.name,
            FloorGranted(
                ssrc=self._ssrc_of(member.name),
                ack_requested=self.settings.acknowledged_grants,
                duration=max(1, int(self.settings.t2)),
                granted_ssrc=member.media_ssrc,
                priority=self._holder_priority,
                indicator=self.indicator,
            ),
        )

    def _deny(self, to: str, cause: DenyCause) -> None:
        phrase = cause.name.replace("_", " ").lower()
        self._send(to, FloorDeny(ssrc=self._ssrc_of(to), reject=(int(cause), phrase), indicator=self.indicator))

    def _send_revoke(self, to: str, cause: int) -> None:
        self._send(to, FloorRevoke(ssrc=self._ssrc_of(to), reject=(int(cause), ""), indicator=self.indicator))

    def _tell_position(self, name: str) -> None:
        position, priority = NOT_QUEUED, 0
        for place, waiting in enumerate(self._queue, 1):
            if waiting.name == name:
                position, priority = min(place, NOT_QUEUED - 1), waiting.priority
        self._send(
            name,
            QueuePositionInfo(ssrc=self._ssrc_of(name), queue=(position, priority), indicator=self.indicator),
        )

    def _tell(self, name: str) -> None:
        """How the floor stands: Floor Taken or Floor Idle with the sequence number of the last change."""
        ssrc = self._ssrc_of(name)
        if self.holder is None:
            self._send(name, FloorIdle(ssrc=ssrc, sequence=self._sequence, indicator=self.indicator))
            return
        if self.holder == name:
            self._send_granted()
            return
        may_ask = self.settings.broadcaster is None and not self.participants[name].receive_only
        self._send(
            name,
            FloorTaken(
                ssrc=ssrc,
                granted_party=self.holder,
                permission=int(may_ask),
                sequence=self._sequence,
                granted_ssrc=self.participants[self.holder].media_ssrc,
                indicator=self.indicator,
            ),
        )

    def _tell_all(self) -> None:
        for name in self.participants:
            self._tell(name)


G, F = FloorState, FloorControlServer

#: (state, event) -> action, which sets the next state: TS 24.380 6.3.4. A missing pair changes nothing.
TABLE: dict[tuple[FloorState, On], Callable[[FloorControlServer, float], None]] = {
    # G: Floor Idle
    (G.IDLE, On.REQUEST): F._request_when_idle,
    (G.IDLE, On.T4): F._inactive,
    (G.IDLE, On.T7): F._idle_again,
    # G: Floor Taken
    (G.TAKEN, On.REQUEST): F._request_when_taken,
    (G.TAKEN, On.RELEASE): F._free,
    (G.TAKEN, On.MEDIA): F._media,
    (G.TAKEN, On.REVOKE): F._begin_revoke,
    (G.TAKEN, On.T1): F._free,
    (G.TAKEN, On.T2): F._talked_too_long,
    (G.TAKEN, On.T20): F._granted_again,
    (G.TAKEN, On.TAKEN_AGAIN): F._taken_again,
    # G: pending Floor Revoke
    (G.PENDING_REVOKE, On.REQUEST): F._request_when_taken,
    (G.PENDING_REVOKE, On.RELEASE): F._free,
    (G.PENDING_REVOKE, On.MEDIA): F._media,
    (G.PENDING_REVOKE, On.T1): F._free,
    (G.PENDING_REVOKE, On.T3): F._free,
    (G.PENDING_REVOKE, On.T8): F._revoke_again,
}
