# SPDX-License-Identifier: Apache-2.0
"""The floor control server of TS 24.380 6.3: arbitration of one call's floor, as a table; sans-IO.

Participants are named by their MCPTT IDs; towards each stands a machine of :mod:`media.floor_towards`. What arrives
goes in by methods with ``now`` (seconds of any one clock); messages come out of :meth:`FloorControlServer.to_send` as
(participant, message), the talker's first.

>>> server = FloorControlServer(ssrc_of=lambda name: 1)
>>> for number, name in enumerate(("sip:alice@x", "sip:bob@x")):
...     server.join(name, 0.0, media_ssrc=number + 1)
>>> _ = server.to_send()
>>> server.receive("sip:bob@x", FloorRequest(ssrc=7), 1.0)
>>> [(name, type(message).__name__) for name, message in server.to_send()]
[('sip:bob@x', 'FloorGranted'), ('sip:alice@x', 'FloorTaken')]
>>> server.holder, server.media_received("sip:alice@x", 1, 1.1), server.media_received("sip:bob@x", 2, 1.1)
('sip:bob@x', False, True)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto

from media import floor_towards
from media.floor_fields import URGENT
from media.floor_messages import (
    DenyCause,
    FloorGranted,
    FloorIndicator,
    FloorMessage,
    FloorRequest,
    FloorRevokeRequest,
    QueuedFloorRequests,
    QueuedRequestsPurpose,
    RevokeCause,
)
from media.floor_queue import FloorQueue
from media.floor_towards import FloorTowards, Participant, Request
from media.floor_wording import EVERYONE, Wording

__all__ = [
    "EVERYONE",
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
    t9: float = 0.0  # one whose floor was revoked is denied so long
    t20: float = 1.0  # Floor Granted again, to one from the queue
    c20: int = 3
    #: Floor Taken is sent again so often, as far apart: a listener who missed it would play nothing
    taken_repeats: int = 2
    taken_interval: float = 0.25
    queue_depth: int = 32
    #: a request that has waited so long is taken out of the queue; None: never
    max_wait: float | None = None
    #: a request of at least this (authorised) priority pre-empts a talker of a lower one; None: never
    preemptive_priority: int | None = None
    #: whoever asks gets the floor from whoever talks, at once
    audio_cut_in: bool = False
    #: in a broadcast call, the only one who may talk
    broadcaster: str | None = None
    #: media of the last talker that was under way when he released the floor
    release_grace: float = 0.2
    #: Floor Granted, Floor Deny and Queue Position Info ask to be acknowledged; an acknowledged grant ends T20
    acknowledged: bool = False


class FloorState(Enum):
    """States of the general floor control operation (6.3.4)."""

    START_STOP = auto()
    IDLE = auto()
    TAKEN = auto()
    PENDING_REVOKE = auto()
    RELEASING = auto()


class On(Enum):
    """What can happen to the floor."""

    ESTABLISHED = auto()
    REQUEST = auto()  # one that may have it while it is free
    CUT_IN = auto()  # one who may take it from the talker at once
    RELEASE = auto()  # by the holder, or he left
    MEDIA = auto()  # the holder's
    REVOKE = auto()  # something is to be taken from the holder: the cause is set
    T1 = auto()
    T2 = auto()
    T3 = auto()
    T4 = auto()
    T7 = auto()
    T20 = auto()
    TAKEN_AGAIN = auto()
    WAITED = auto()  # someone has waited too long
    RELEASING = auto()
    RELEASED = auto()


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


class FloorControlServer:
    """The floor of one call.

    :param ssrc_of: the server's own SSRC in floor messages towards a participant
    :param indicator: what every message says of the call; :meth:`declare` changes it while the call goes on
    :param everyone_hears: messages reach all participants alike (a member arbitrates): what is meant for one names
        him in its User ID, what all are to know is said once, to :data:`EVERYONE`
    """

    def __init__(
        self,
        settings: FloorServerSettings | None = None,
        *,
        ssrc_of: Callable[[str], int],
        indicator: FloorIndicator = FloorIndicator.NORMAL | FloorIndicator.QUEUEING,
        everyone_hears: bool = False,
    ) -> None:
        self.settings = settings or FloorServerSettings()
        self.state = FloorState.START_STOP
        self._holder: str | None = None
        self.participants: dict[str, FloorTowards] = {}
        self._words = Wording(
            ssrc_of, indicator, acknowledged=self.settings.acknowledged, everyone_hears=everyone_hears
        )
        #: towards whom T8 runs, so that a large call's timers are found at once
        self._revoking: dict[str, FloorTowards] = {}
        self._queue = FloorQueue(self.settings.queue_depth)
        self._holder_priority = 0
        self._timers: dict[On, float] = {}
        self._count: dict[On, int] = {}
        self._revoke_cause = int(RevokeCause.OTHER)
        self._retry_after: dict[str, float] = {}
        self._request: Request | None = None
        self._events: list[Event] = []
        #: who declared the emergency or peril that the indicator tells of
        self._declared_by: frozenset[str] = frozenset()

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
        authority: bool = False,
    ) -> None:
        """A party comes in and is told at once how the floor stands (6.3.5.2)."""
        self.leave(participant, now)
        self._happen(On.ESTABLISHED, now)
        member = Participant(participant, media_ssrc, priority, queueing, receive_only, authority)
        towards = FloorTowards(member, self, t8=self.settings.t8, grace=self.settings.release_grace)
        self.participants[participant] = towards
        towards.happen(
            floor_towards.On.IS_IDLE if self.holder is None else floor_towards.On.IS_TAKEN, now
        )
        if implicit_request and (self.holder is None or queueing):
            towards.asks(Request(member, priority, False), now)

    def leaving(self, participant: str, now: float) -> None:
        """A party's call is being released: he is told nothing more, his floor is free (6.3.5.8)."""
        if (towards := self.participants.get(participant)) is not None:
            towards.happen(floor_towards.On.RELEASING, now)
            self._forget(participant, now)

    def leave(self, participant: str, now: float) -> None:
        """A party is gone: his floor is free, his place in the queue too."""
        towards = self.participants.pop(participant, None)
        if towards is not None:
            towards.happen(floor_towards.On.RELEASED, now)
            self._forget(participant, now)
            self._retry_after.pop(participant, None)
            self._revoking.pop(participant, None)

    def _forget(self, name: str, now: float) -> None:
        self.unqueue(name, now)
        if self.holder == name:
            self._happen(On.RELEASE, now)

    def releasing(self, now: float) -> None:
        """The whole call is being released: nobody is granted or told anything any more (6.3.4.6)."""
        for towards in self.participants.values():
            towards.happen(floor_towards.On.RELEASING, now)
        self._happen(On.RELEASING, now)

    def released(self, name: str, now: float) -> None:
        """The talker has finished."""
        if self.holder == name:
            self.participants[name].lets_pass(now)
            self._happen(On.RELEASE, now)

    def end(self, now: float) -> None:
        """The call is over."""
        for name in list(self.participants):
            self.participants.pop(name).happen(floor_towards.On.RELEASED, now)
        self._revoking.clear()
        self._happen(On.RELEASING, now)
        self._happen(On.RELEASED, now)

    # --- what arrives ---------------------------------------------------------------------------------

    def receive(self, participant: str, message: FloorMessage, now: float) -> None:
        """A message of one who has joined. What a participant may not send is ignored."""
        towards = self.participants.get(participant)
        if towards is None:
            return
        if message.ack_requested:
            self._words.acknowledgement(participant, message.TYPE)
        member = towards.member
        match message:
            case FloorRequest():
                said = (message.indicator or FloorIndicator(0)) & self.indicator & URGENT
                urgent = bool(said) and participant in self._declared_by
                priority = min(message.priority or 0, member.priority)
                towards.receive(message, Request(member, priority, urgent), now)
            case FloorRevokeRequest():
                if member.authority and self.holder == message.revoked_user:
                    self.revoke(now, RevokeCause.BY_ANOTHER_CLIENT)
            case QueuedFloorRequests():
                if member.authority and message.purpose == QueuedRequestsPurpose.CANCEL_REQUEST:
                    self._cancel(participant, message.queued_users or (), now)
            case _:
                towards.receive(message, None, now)

    def media_received(self, participant: str, ssrc: int, now: float) -> bool:
        """Whether a media packet of ``participant`` may pass; one without permission is told so (6.3.5.7)."""
        towards = self.participants.get(participant)
        return towards is not None and ssrc == towards.member.media_ssrc and towards.media(now)

    def revoke(self, now: float, cause: int = RevokeCause.OTHER) -> None:
        """Call control, or one of authority, takes the floor from whoever holds it."""
        self._revoke_cause = int(cause)
        self._happen(On.REVOKE, now)

    # --- what comes of it -----------------------------------------------------------------------------

    @property
    def holder(self) -> str | None:
        """Who has the floor."""
        return self._holder

    def to_send(self) -> list[tuple[str, FloorMessage]]:
        """(participant, message) since the last call."""
        return self._words.taken()

    def events(self) -> list[Event]:
        """For call control, since the last call."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        due = list(self._timers.values())
        due += [at for towards in self._revoking.values() if (at := towards.next_timer()) is not None]
        return min(due, default=None)

    def handle_timer(self, now: float) -> None:
        """Everything that is due by ``now``."""
        for on in [on for on, due in self._timers.items() if due <= now]:
            if on in self._timers and self._timers[on] <= now:
                del self._timers[on]
                self._happen(on, now)
        for name, towards in list(self._revoking.items()):
            towards.handle_timer(now)
            if towards.next_timer() is None:
                self._revoking.pop(name, None)

    @property
    def pending(self) -> bool:
        """Whether :meth:`to_send` or :meth:`events` would give something."""
        return bool(self._events) or self._words.pending

    @property
    def queue(self) -> tuple[str, ...]:
        """Who waits, in the order in which they will get the floor."""
        return self._queue.names

    @property
    def indicator(self) -> FloorIndicator:
        """What every message says of the call."""
        return self._words.indicator

    def declare(self, urgency: FloorIndicator, by: Collection[str] = ()) -> None:
        """The call is an emergency or imminent peril call from now on, or (0) neither. The requests of those by whose
        word it is, when they say so too, go before others; nobody else's do, whatever they say."""
        self._words.indicator = self._words.indicator & ~URGENT | urgency
        self._declared_by = frozenset(by)

    # --- the table's driver ---------------------------------------------------------------------------

    def _happen(self, on: On, now: float) -> None:
        row = TABLE.get((self.state, on))
        if row is not None:
            self.state, action = row
            action(self, now)

    # --- what the machines towards the participants ask -----------------------------------------------

    def check(self, request: Request, now: float) -> DenyCause | None:
        """Why ``request`` cannot be granted, now or later."""
        member, broadcaster = request.member, self.settings.broadcaster
        if member.receive_only or (broadcaster is not None and member.name != broadcaster):
            return DenyCause.RECEIVE_ONLY
        if now < self._retry_after.get(member.name, now):
            return DenyCause.RETRY_AFTER
        if len(self.participants) < 2:
            return DenyCause.ONLY_ONE_PARTICIPANT
        return None

    def request(self, request: Request, now: float) -> None:
        """Someone asks while the floor is free."""
        self._request = request
        self._happen(On.REQUEST, now)

    def contend(self, request: Request, now: float) -> None:
        """Someone asks while another talks (the order of checks is that of 6.3.5.4.4)."""
        if self.settings.audio_cut_in:
            self._request = request
            self._happen(On.CUT_IN, now)
            return
        threshold = self.settings.preemptive_priority
        preemptive = request.urgent or (
            threshold is not None and threshold <= request.priority > self._holder_priority
        )
        if self._enqueue(request, preemptive, now) and preemptive and self.state is FloorState.TAKEN:
            self.revoke(now, RevokeCause.PREEMPTED)

    def media(self, name: str, now: float) -> None:
        """The holder sends."""
        if name == self.holder:
            self._happen(On.MEDIA, now)

    def acknowledged(self, name: str, message_type: int) -> None:
        """The holder knows that he has the floor."""
        if name == self.holder and message_type == FloorGranted.TYPE:
            self._timers.pop(On.T20, None)

    # --- the queue ------------------------------------------------------------------------------------

    def _enqueue(self, request: Request, preemptive: bool, now: float) -> bool:
        """Whether he waits now; he is told his place, or why not."""
        member = request.member
        if member.name not in self._queue:
            if not (member.queueing or preemptive):
                self.deny(member.name, DenyCause.ANOTHER_HAS_PERMISSION)
                return False
            if self._queue.full:
                self.deny(member.name, DenyCause.QUEUE_FULL)
                return False
        moved = self._queue.put(member.name, request.priority, preemptive, now)
        if member.queueing:
            self.tell_position(member.name)
        for name in moved:
            self.tell_position(name)
        self._watch_queue()
        return True

    def unqueue(self, name: str, now: float) -> None:
        """He does not wait any more; those behind him move up."""
        for other in self._queue.remove(name):
            self.tell_position(other)
        self._watch_queue()

    def remove_from_queue(self, name: str, now: float) -> bool:
        """Call control, or one of authority, takes a request back; its owner is told (position 254)."""
        if name not in self._queue:
            return False
        self.unqueue(name, now)
        self.tell_position(name)
        return True

    def _cancel(self, by: str, names: tuple[str, ...], now: float) -> None:
        """Queued Floor Requests: a result to the one who asked, a notice to each whose request is gone."""
        gone = tuple(name for name in names if self.remove_from_queue(name, now))
        self._words.queued_requests(by, QueuedRequestsPurpose.CANCEL_RESULT, gone)
        for name in gone:
            self._words.queued_requests(name, QueuedRequestsPurpose.CANCEL_NOTIFY, (name,))

    def _watch_queue(self) -> None:
        self._timers.pop(On.WAITED, None)
        if self.settings.max_wait is not None and (oldest := self._queue.oldest) is not None:
            self._timers[On.WAITED] = oldest + self.settings.max_wait

    def _waited(self, now: float) -> None:
        assert self.settings.max_wait is not None
        for name in self._queue.older_than(now - self.settings.max_wait + 1e-6):
            self.remove_from_queue(name, now)

    # --- actions: the floor ---------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        self._timers = {On.T4: now + self.settings.t4}

    def _grant_request(self, now: float) -> None:
        assert self._request is not None
        self._grant(self._request.member.name, self._request.priority, now)

    def _cut_in(self, now: float) -> None:
        """The talker is told why, and that another talks; T3 is 0 s (11.1.3)."""
        assert self._holder is not None and self._request is not None
        self.participants[self._holder].revoke(RevokeCause.PREEMPTED, now)
        self.unqueue(self._request.member.name, now)
        self._grant(self._request.member.name, self._request.priority, now)

    def _grant(self, name: str, priority: int, now: float, *, from_queue: bool = False) -> None:
        """Entering "G: Floor Taken" (6.3.4.4.2)."""
        self._holder, self._holder_priority = name, priority
        self._words.changed()
        self._timers = {On.T1: now + self.settings.t1}
        self._watch_queue()
        self._count = {On.T20: 1, On.TAKEN_AGAIN: 0}
        self.participants[name].happen(floor_towards.On.GRANT, now)
        if from_queue or self.settings.acknowledged:
            self._timers[On.T20] = now + self.settings.t20
        if self.settings.taken_repeats:
            self._timers[On.TAKEN_AGAIN] = now + self.settings.taken_interval
        self._tell_others(now)
        self._events.append(FloorTakenBy(name, self.participants[name].member.media_ssrc))

    def _free(self, now: float) -> None:
        """Entering "G: Floor Idle" (6.3.4.3.2), or the floor goes to the next in the queue."""
        self._holder = None
        while (waiting := self._queue.pop()) is not None:
            if waiting.name in self.participants and len(self.participants) > 1:
                for name in self.queue:
                    self.tell_position(name)
                self.state = FloorState.TAKEN
                self._grant(waiting.name, waiting.priority, now, from_queue=True)
                return
        self._words.changed()
        self._count = {On.T7: 1}
        self._timers = {On.T4: now + self.settings.t4, On.T7: now + self.settings.t7}
        self._tell_others(now)
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
        """Entering "G: pending Floor Revoke" (6.3.4.5.2); T8 runs towards the talker."""
        assert self._holder is not None
        self._timers = {
            On.T1: self._timers.get(On.T1, now + self.settings.t1),
            On.T3: now + self.settings.t3,
        }
        self._watch_queue()
        if self.settings.t9 and self._revoke_cause == RevokeCause.BURST_TOO_LONG:
            self._retry_after[self._holder] = now + self.settings.t9
        self.participants[self._holder].revoke(self._revoke_cause, now)

    def _granted_again(self, now: float) -> None:
        assert self._holder is not None
        if self._count[On.T20] < self.settings.c20:
            self._count[On.T20] += 1
            self._timers[On.T20] = now + self.settings.t20
            self.participants[self._holder].happen(floor_towards.On.GRANT, now)

    def _taken_again(self, now: float) -> None:
        if self._count[On.TAKEN_AGAIN] < self.settings.taken_repeats:
            self._count[On.TAKEN_AGAIN] += 1
            self._timers[On.TAKEN_AGAIN] = now + self.settings.taken_interval
            self._tell_others(now)

    def _idle_again(self, now: float) -> None:
        if self._count.get(On.T7, self.settings.c7) < self.settings.c7:
            self._count[On.T7] += 1
            self._timers[On.T7] = now + self.settings.t7
            self._tell_others(now)

    def _inactive(self, _now: float) -> None:
        self._events.append(Inactive())

    def _begin_end(self, _now: float) -> None:
        self._holder = None
        self._queue.clear()
        self._timers.clear()

    def _ended(self, _now: float) -> None:
        self._retry_after.clear()

    # --- messages -------------------------------------------------------------------------------------

    def _tell_others(self, now: float) -> None:
        on = floor_towards.On.IS_IDLE if self.holder is None else floor_towards.On.IS_TAKEN
        for name, towards in list(self.participants.items()):
            if name != self.holder:
                towards.happen(on, now)

    def tell(self, name: str, now: float) -> None:
        """How the floor stands: Floor Granted with what is left of T2 (8.2.3.3), Floor Taken or Floor Idle."""
        if self.holder is None:
            self._words.idle(name)
            return
        media_ssrc = self.participants[self.holder].member.media_ssrc
        if self.holder == name:
            left = self._timers.get(On.T2, now + self.settings.t2) - now
            self._words.granted(name, media_ssrc, duration=max(1, int(left)), priority=self._holder_priority)
        else:
            may_ask = self.settings.broadcaster is None and not self.participants[name].member.receive_only
            self._words.taken_by(
                name, self.holder, media_ssrc, may_ask=may_ask or self._words.everyone_hears
            )

    def deny(self, name: str, cause: DenyCause) -> None:
        """Floor Deny."""
        self._words.denied(name, cause)

    def revoke_from(self, name: str, cause: int) -> None:
        """Floor Revoke."""
        self._revoking[name] = self.participants[name]
        self._words.revoked(name, cause)

    def tell_position(self, name: str) -> None:
        """Queue Position Info."""
        self._words.position(name, self._queue.position(name))


G, F = FloorState, FloorControlServer

#: (state, event) -> (next state, action): TS 24.380 6.3.4. A missing pair changes nothing. Where a floor that comes
#: back goes to the next in the queue, the action says so: "G: Floor Idle" is left in the same step (6.3.4.3.2).
TABLE: dict[tuple[FloorState, On], tuple[FloorState, Callable[[FloorControlServer, float], None]]] = {
    (G.START_STOP, On.ESTABLISHED): (G.IDLE, F._start),
    # G: Floor Idle
    (G.IDLE, On.REQUEST): (G.TAKEN, F._grant_request),
    (G.IDLE, On.T4): (G.IDLE, F._inactive),
    (G.IDLE, On.T7): (G.IDLE, F._idle_again),
    (G.IDLE, On.RELEASING): (G.RELEASING, F._begin_end),
    # G: Floor Taken
    (G.TAKEN, On.CUT_IN): (G.TAKEN, F._cut_in),
    (G.TAKEN, On.RELEASE): (G.IDLE, F._free),
    (G.TAKEN, On.MEDIA): (G.TAKEN, F._media),
    (G.TAKEN, On.REVOKE): (G.PENDING_REVOKE, F._begin_revoke),
    (G.TAKEN, On.T1): (G.IDLE, F._free),
    (G.TAKEN, On.T2): (G.PENDING_REVOKE, F._talked_too_long),
    (G.TAKEN, On.T20): (G.TAKEN, F._granted_again),
    (G.TAKEN, On.TAKEN_AGAIN): (G.TAKEN, F._taken_again),
    (G.TAKEN, On.WAITED): (G.TAKEN, F._waited),
    (G.TAKEN, On.RELEASING): (G.RELEASING, F._begin_end),
    # G: pending Floor Revoke
    (G.PENDING_REVOKE, On.CUT_IN): (G.TAKEN, F._cut_in),
    (G.PENDING_REVOKE, On.RELEASE): (G.IDLE, F._free),
    (G.PENDING_REVOKE, On.MEDIA): (G.PENDING_REVOKE, F._media),
    (G.PENDING_REVOKE, On.T1): (G.IDLE, F._free),
    (G.PENDING_REVOKE, On.T3): (G.IDLE, F._free),
    (G.PENDING_REVOKE, On.WAITED): (G.PENDING_REVOKE, F._waited),
    (G.PENDING_REVOKE, On.RELEASING): (G.RELEASING, F._begin_end),
    # Releasing, and the call's end
    (G.RELEASING, On.RELEASED): (G.START_STOP, F._ended),
}
