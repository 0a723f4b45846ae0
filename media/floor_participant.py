# SPDX-License-Identifier: Apache-2.0
"""The floor participant of TS 24.380 6.2.4: one client's side of floor control, as a table; sans-IO.

What the user and the server do goes in by methods with ``now`` (seconds of any one clock); messages to send come
out of :meth:`FloorParticipant.to_send`, what the user is to know out of :meth:`~FloorParticipant.events`.

>>> alice = FloorParticipant(ssrc=1, user="sip:alice@x")
>>> alice.call_established(0.0)
>>> alice.press(1.0, priority=5)
>>> [type(message).__name__ for message in alice.to_send()]
['FloorRequest']
>>> alice.receive(FloorGranted(ssrc=2, duration=30), 1.1)
>>> alice.events(), alice.state.name
([Granted(duration=30, ssrc=None, indicator=None)], 'HAS_PERMISSION')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from media.floor_messages import (
    NOT_QUEUED,
    UNDISCLOSED,
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
    Source,
)

__all__ = [
    "Denied",
    "Event",
    "FloorParticipant",
    "Granted",
    "Idle",
    "Lost",
    "MediaEnded",
    "ParticipantSettings",
    "ParticipantState",
    "Queued",
    "Released",
    "RemovedFromQueue",
    "RequestTimedOut",
    "Revoked",
    "Taken",
]


@dataclass(frozen=True, slots=True)
class ParticipantSettings:
    """Timers in seconds, counters in messages (TS 24.380 11.1). T100 and T101 with their counters stay below 6 s."""

    t100: float = 1.0  # Floor Release resend
    c100: int = 3
    t101: float = 1.0  # Floor Request resend
    c101: int = 3
    t103: float = 4.0  # end of RTP media
    t104: float = 3.0  # Queue Position Request resend, while queued
    c104: int = 3
    t132: float = 2.0  # a queued user decides whether to take the floor
    #: a talker who hears nothing of the server stops by himself this long after the duration that he was granted
    #: (the server's T2 begins with the first packet, T1 after the grant at the latest)
    overrun: float = 5.0
    #: in the queue, a grant is taken at once while the user still presses
    auto_accept_when_queued: bool = True


class ParticipantState(Enum):
    """Names of 6.2.4."""

    START_STOP = auto()
    HAS_NO_PERMISSION = auto()
    PENDING_REQUEST = auto()
    HAS_PERMISSION = auto()
    PENDING_RELEASE = auto()
    QUEUED = auto()
    QUEUED_GRANTED = auto()  # "U: queued" with T132 running: the user is asked
    RELEASING = auto()


class On(Enum):
    """What can happen."""

    ESTABLISHED = auto()
    ESTABLISHED_WITH_REQUEST = auto()  # mc_implicit_request was offered
    ESTABLISHED_WITH_GRANT = auto()  # and mc_granted answered
    ASK_POSITION = auto()
    MEDIA = auto()  # another's audio
    PRESS = auto()
    RELEASE = auto()
    GRANTED = auto()
    DENY = auto()
    REVOKE = auto()
    IDLE = auto()
    TAKEN = auto()
    QUEUE_INFO = auto()
    T100 = auto()
    T101 = auto()
    T103 = auto()
    T104 = auto()
    T132 = auto()
    LIMIT = auto()  # the granted duration is over, and nobody has said so
    RELEASING = auto()  # call release, part 1
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Granted:
    """The floor is ours: speak now, for ``duration`` seconds at most (``None``: not stated)."""

    duration: int | None
    ssrc: int | None
    indicator: FloorIndicator | None


@dataclass(frozen=True, slots=True)
class Denied:
    cause: int
    phrase: str


@dataclass(frozen=True, slots=True)
class Queued:
    """``position`` counts from 1; 255 is not disclosed."""

    position: int
    priority: int


@dataclass(frozen=True, slots=True)
class Revoked:
    cause: int


@dataclass(frozen=True, slots=True)
class Taken:
    """``user`` talks, under ``ssrc``."""

    user: str | None
    ssrc: int | None
    permission: bool
    indicator: FloorIndicator | None


@dataclass(frozen=True, slots=True)
class Idle:
    """Nobody talks."""


@dataclass(frozen=True, slots=True)
class RequestTimedOut:
    """The server never answered the request."""


@dataclass(frozen=True, slots=True)
class Released:
    """The floor, or the wish for it, is given back."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The server says that the floor is another's, or nobody's, while we held it."""


@dataclass(frozen=True, slots=True)
class RemovedFromQueue:
    """The request is no longer in the server's queue (position 254)."""


@dataclass(frozen=True, slots=True)
class MediaEnded:
    """T103 ran out: the talker is silent, though nobody has said that the floor is idle."""


Event = (
    Granted | Denied | Queued | Revoked | Taken | Idle | RequestTimedOut | Released | Lost | RemovedFromQueue
    | MediaEnded
)  # fmt: skip


class FloorParticipant:
    """One user's floor control in one call.

    :param ssrc: of this client's floor control messages
    :param implicit_request: the call was set up with ``mc_implicit_request``: the floor is asked for with it
    """

    def __init__(
        self,
        *,
        ssrc: int,
        settings: ParticipantSettings | None = None,
        user: str | None = None,
        implicit_request: bool = False,
        indicator: FloorIndicator = FloorIndicator.NORMAL,
    ) -> None:
        self.ssrc = ssrc
        self.user = user
        self.state = ParticipantState.START_STOP
        self.indicator = indicator
        self._settings = settings or ParticipantSettings()
        #: whether the last Floor Taken allowed requests: in a broadcast call it does not
        self.may_request = True
        self.implicit_request = implicit_request
        self._grant: FloorMessage | None = None
        self._priority = 0
        self._pressing = False
        self._sequence: int | None = None
        self._timers: dict[On, float] = {}
        self._count = 0
        self._out: list[FloorMessage] = []
        self._events: list[Event] = []

    # --- what happens ---------------------------------------------------------------------------------

    def call_established(self, now: float, *, granted: bool = False) -> None:
        """The call is there; with an implicit request, the floor is being asked for, or ``granted`` already
        (``mc_granted`` in the answer)."""
        if not self.implicit_request:
            on = On.ESTABLISHED
        else:
            on = On.ESTABLISHED_WITH_GRANT if granted else On.ESTABLISHED_WITH_REQUEST
        self._happen(on, None, now)

    def call_releasing(self, now: float) -> None:
        """The call is being released: nothing more is sent, nothing more is expected (6.2.4.7)."""
        self._happen(On.RELEASING, None, now)

    def call_released(self, now: float) -> None:
        """The call is over."""
        self._happen(On.ENDED, None, now)

    def media_received(self, now: float) -> None:
        """Authentic audio of another has come."""
        self._happen(On.MEDIA, None, now)

    def ask_position(self, now: float) -> None:
        """The user wants to know his place in the queue."""
        self._happen(On.ASK_POSITION, None, now)

    def press(self, now: float, priority: int = 0) -> None:
        """The user wants to talk."""
        self._priority = priority
        self._pressing = True
        self._happen(On.PRESS, None, now)

    def release(self, now: float) -> None:
        """The user has finished, or does not want to wait any more."""
        self._pressing = False
        self._happen(On.RELEASE, None, now)

    def receive(self, message: FloorMessage, now: float) -> None:
        """A message of the server. Doubled, late and unexpected ones do no harm."""
        on = _RECEIVED.get(type(message))
        if on is None:
            return
        if message.ack_requested:
            self._out.append(
                FloorAck(ssrc=self.ssrc, source=Source.PARTICIPANT, acknowledged=message.TYPE, indicator=self.indicator)
            )
        if isinstance(message, FloorTaken | FloorIdle) and not self._newer(message.sequence):
            return
        self._happen(on, message, now)

    def _newer(self, sequence: int | None) -> bool:
        """Whether a Taken or Idle is news: their Message Sequence Number orders them (8.2.3.10)."""
        if sequence is None:
            return True
        ahead = 1 if self._sequence is None else (sequence - self._sequence) & 0xFFFF
        if ahead >= 0x8000 or (ahead == 0 and self.state is not ParticipantState.PENDING_RELEASE):
            return False  # to one who gives the floor back, the same again is the answer that he waits for
        self._sequence = sequence
        return True

    def start_anew(self, now: float) -> None:
        """Another arbiter decides from now on: nobody has the floor, its numbers begin anew; a request that is
        pending is repeated to the new one."""
        self._sequence = None
        self._happen(On.IDLE, FloorIdle(ssrc=0), now)

    # --- what comes of it -----------------------------------------------------------------------------

    def to_send(self) -> list[FloorMessage]:
        """Messages for the server since the last call."""
        out, self._out = self._out, []
        return out

    def events(self) -> list[Event]:
        """What the user is to know since the last call."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        return min(self._timers.values(), default=None)

    def handle_timer(self, now: float) -> None:
        """Everything that is due by ``now``."""
        for on in [on for on, due in self._timers.items() if due <= now]:
            if self._timers.pop(on, None) is not None:
                self._happen(on, None, now)

    # --- the table's driver ---------------------------------------------------------------------------

    def _happen(self, on: On, message: FloorMessage | None, now: float) -> None:
        row = TABLE.get((self.state, on))
        if row is None:
            return
        self.state, action = row
        action(self, message, now)

    def _only(self, now: float, **timers: float) -> None:
        """These timers run from now on, and no others but T103."""
        kept = {on: due for on, due in self._timers.items() if on is On.T103}
        self._timers = kept | {On[name.upper()]: now + seconds for name, seconds in timers.items()}

    # --- actions --------------------------------------------------------------------------------------

    def _ignore(self, _message: FloorMessage | None, _now: float) -> None:
        pass

    def _asked_implicitly(self, _message: FloorMessage | None, now: float) -> None:
        self._pressing = True
        self._count = 1
        self._only(now, t101=self._settings.t101)

    def _granted_with_call(self, _message: FloorMessage | None, now: float) -> None:
        self._pressing = True
        self._only(now)
        self._events.append(Granted(None, None, None))

    def _request(self, _message: FloorMessage | None, now: float) -> None:
        self._count = 1
        self._send_request(now)

    def _send_request(self, now: float) -> None:
        self._out.append(
            FloorRequest(ssrc=self.ssrc, priority=self._priority, user_id=self.user, indicator=self.indicator)
        )
        self._only(now, t101=self._settings.t101)

    def _request_again(self, _message: FloorMessage | None, now: float) -> None:
        if self._count < self._settings.c101:
            self._count += 1
            self._send_request(now)
        else:
            self.state = ParticipantState.HAS_NO_PERMISSION
            self._only(now)
            self._events.append(RequestTimedOut())

    def _give_back(self, _message: FloorMessage | None, now: float) -> None:
        self._count = 1
        self._send_release(now)

    def _send_release(self, now: float) -> None:
        self._out.append(FloorRelease(ssrc=self.ssrc, user_id=self.user, indicator=self.indicator))
        self._only(now, t100=self._settings.t100)

    def _release_again(self, _message: FloorMessage | None, now: float) -> None:
        if self._count < self._settings.c100:
            self._count += 1
            self._send_release(now)
        else:
            self._released(None, now)

    def _released(self, _message: FloorMessage | None, now: float) -> None:
        self.state = ParticipantState.HAS_NO_PERMISSION
        self._only(now)
        self._events.append(Released())
        if self._pressing:  # pressed again before the server knew of the release
            self._happen(On.PRESS, None, now)

    def _released_and_idle(self, message: FloorMessage | None, now: float) -> None:
        self._events.append(Idle())
        self._released(message, now)

    def _released_and_taken(self, message: FloorMessage | None, now: float) -> None:
        self._taken(message, now)
        self._released(message, now)

    def _granted(self, message: FloorMessage | None, now: float) -> None:
        assert isinstance(message, FloorGranted)
        self._limit(message, now)
        self._granted_event(message)

    def _limit(self, message: FloorMessage | None, now: float) -> None:
        """A talker whom no word of the server reaches does not hold the floor for ever."""
        assert isinstance(message, FloorGranted)
        self._timers.pop(On.T103, None)
        self._only(now)
        if message.duration is not None:
            self._only(now, limit=message.duration + self._settings.overrun)

    def _granted_in_queue(self, message: FloorMessage | None, now: float) -> None:
        if self._pressing and self._settings.auto_accept_when_queued:
            self.state = ParticipantState.HAS_PERMISSION
            self._granted(message, now)
            return
        self._grant = message
        self._only(now, t132=self._settings.t132)
        self._granted_event(message)

    def _granted_event(self, message: FloorMessage | None) -> None:
        assert isinstance(message, FloorGranted)
        self._events.append(Granted(message.duration, message.granted_ssrc, message.indicator))

    def _taken_up(self, _message: FloorMessage | None, now: float) -> None:
        self._limit(self._grant, now)

    def _over_limit(self, _message: FloorMessage | None, now: float) -> None:
        self._pressing = False
        self._events.append(Revoked(RevokeCause.BURST_TOO_LONG))
        self._give_back(None, now)

    def _media(self, _message: FloorMessage | None, now: float) -> None:
        self._timers[On.T103] = now + self._settings.t103

    def _media_ended(self, _message: FloorMessage | None, _now: float) -> None:
        self._events.append(MediaEnded())

    def _released_and_media(self, message: FloorMessage | None, now: float) -> None:
        self._media(message, now)
        self._released(message, now)

    def _position_now(self, _message: FloorMessage | None, now: float) -> None:
        self._count = 0
        self._ask_position(None, now)

    def _late_grant(self, _message: FloorMessage | None, _now: float) -> None:
        """Granted after the release was sent: the server has yet to hear of that; T100 repeats it."""

    def _denied(self, message: FloorMessage | None, now: float) -> None:
        assert isinstance(message, FloorDeny)
        self._pressing = False
        self._only(now)
        self._events.append(Denied(message.cause, message.phrase))

    def _queued(self, message: FloorMessage | None, now: float) -> None:
        assert isinstance(message, QueuePositionInfo)
        position, priority = message.queue or (UNDISCLOSED, 0)
        if position == NOT_QUEUED:
            self._drop(RemovedFromQueue(), now)
            return
        self._count = 0
        self._only(now, t104=self._settings.t104)
        self._events.append(Queued(position, priority))

    def _ask_position(self, _message: FloorMessage | None, now: float) -> None:
        if self._count < self._settings.c104:
            self._count += 1
            self._out.append(QueuePositionRequest(ssrc=self.ssrc, user_id=self.user, indicator=self.indicator))
            self._only(now, t104=self._settings.t104)
        else:
            self._drop(RequestTimedOut(), now)

    def _drop(self, event: Event, now: float) -> None:
        """We wait no more."""
        self.state = ParticipantState.HAS_NO_PERMISSION
        self._pressing = False
        self._only(now)
        self._events.append(event)

    def _revoked(self, message: FloorMessage | None, now: float) -> None:
        assert isinstance(message, FloorRevoke)
        self._pressing = False
        self._events.append(Revoked(message.cause))
        self._give_back(None, now)

    def _taken(self, message: FloorMessage | None, _now: float) -> None:
        assert isinstance(message, FloorTaken)
        self.may_request = message.permission != 0
        self._events.append(
            Taken(message.granted_party, message.granted_ssrc, message.permission != 0, message.indicator)
        )

    def _idle(self, _message: FloorMessage | None, _now: float) -> None:
        self._timers.pop(On.T103, None)
        self._events.append(Idle())

    def _idle_in_queue(self, message: FloorMessage | None, now: float) -> None:
        """With an idle floor nobody waits: the server is asked whether it knows of us."""
        self._idle(message, now)
        self._position_now(None, now)

    def _lost_to_idle(self, message: FloorMessage | None, now: float) -> None:
        self._pressing = False
        self._only(now)
        self._events += [Lost(), Idle()]

    def _lost_to_another(self, message: FloorMessage | None, now: float) -> None:
        self._pressing = False
        self._only(now)
        self._events.append(Lost())
        self._taken(message, now)

    def _ended(self, _message: FloorMessage | None, _now: float) -> None:
        self._pressing = False
        self._timers.clear()


_RECEIVED: dict[type[FloorMessage], On] = {
    FloorGranted: On.GRANTED,
    FloorDeny: On.DENY,
    FloorRevoke: On.REVOKE,
    FloorIdle: On.IDLE,
    FloorTaken: On.TAKEN,
    QueuePositionInfo: On.QUEUE_INFO,
}

P, S = FloorParticipant, ParticipantState
Action = Callable[[FloorParticipant, FloorMessage | None, float], None]

#: (state, event) -> (next state, action), TS 24.380 6.2.4; what is missing changes nothing
TABLE: dict[tuple[ParticipantState, On], tuple[ParticipantState, Action]] = {
    # Start-stop (6.2.4.2)
    (S.START_STOP, On.ESTABLISHED): (S.HAS_NO_PERMISSION, P._ignore),
    (S.START_STOP, On.ESTABLISHED_WITH_REQUEST): (S.PENDING_REQUEST, P._asked_implicitly),
    (S.START_STOP, On.ESTABLISHED_WITH_GRANT): (S.HAS_PERMISSION, P._granted_with_call),
    # U: has no permission (6.2.4.3)
    (S.HAS_NO_PERMISSION, On.PRESS): (S.PENDING_REQUEST, P._request),
    (S.HAS_NO_PERMISSION, On.TAKEN): (S.HAS_NO_PERMISSION, P._taken),
    (S.HAS_NO_PERMISSION, On.IDLE): (S.HAS_NO_PERMISSION, P._idle),
    # a grant nobody waits for (a late one, or of an implicit request given up) is given back
    (S.HAS_NO_PERMISSION, On.GRANTED): (S.PENDING_RELEASE, P._give_back),
    (S.HAS_NO_PERMISSION, On.REVOKE): (S.PENDING_RELEASE, P._revoked),
    (S.HAS_NO_PERMISSION, On.MEDIA): (S.HAS_NO_PERMISSION, P._media),
    (S.HAS_NO_PERMISSION, On.T103): (S.HAS_NO_PERMISSION, P._media_ended),
    # U: pending request (6.2.4.4)
    (S.PENDING_REQUEST, On.GRANTED): (S.HAS_PERMISSION, P._granted),
    (S.PENDING_REQUEST, On.DENY): (S.HAS_NO_PERMISSION, P._denied),
    (S.PENDING_REQUEST, On.QUEUE_INFO): (S.QUEUED, P._queued),
    (S.PENDING_REQUEST, On.TAKEN): (S.PENDING_REQUEST, P._taken),
    (S.PENDING_REQUEST, On.IDLE): (S.PENDING_REQUEST, P._idle),
    (S.PENDING_REQUEST, On.RELEASE): (S.PENDING_RELEASE, P._give_back),
    (S.PENDING_REQUEST, On.REVOKE): (S.PENDING_RELEASE, P._revoked),
    (S.PENDING_REQUEST, On.MEDIA): (S.PENDING_REQUEST, P._media),
    (S.PENDING_REQUEST, On.T101): (S.PENDING_REQUEST, P._request_again),
    (S.PENDING_REQUEST, On.T103): (S.PENDING_REQUEST, P._media_ended),
    # U: has permission (6.2.4.5)
    (S.HAS_PERMISSION, On.RELEASE): (S.PENDING_RELEASE, P._give_back),
    (S.HAS_PERMISSION, On.REVOKE): (S.PENDING_RELEASE, P._revoked),
    (S.HAS_PERMISSION, On.GRANTED): (S.HAS_PERMISSION, P._limit),
    (S.HAS_PERMISSION, On.LIMIT): (S.PENDING_RELEASE, P._over_limit),
    (S.HAS_PERMISSION, On.IDLE): (S.HAS_NO_PERMISSION, P._lost_to_idle),
    (S.HAS_PERMISSION, On.TAKEN): (S.HAS_NO_PERMISSION, P._lost_to_another),
    # U: pending release (6.2.4.6)
    (S.PENDING_RELEASE, On.T100): (S.PENDING_RELEASE, P._release_again),
    (S.PENDING_RELEASE, On.IDLE): (S.HAS_NO_PERMISSION, P._released_and_idle),
    (S.PENDING_RELEASE, On.TAKEN): (S.HAS_NO_PERMISSION, P._released_and_taken),
    (S.PENDING_RELEASE, On.GRANTED): (S.PENDING_RELEASE, P._late_grant),
    (S.PENDING_RELEASE, On.MEDIA): (S.HAS_NO_PERMISSION, P._released_and_media),
    (S.PENDING_RELEASE, On.T103): (S.PENDING_RELEASE, P._media_ended),
    # U: queued (6.2.4.9)
    (S.QUEUED, On.GRANTED): (S.QUEUED_GRANTED, P._granted_in_queue),
    (S.QUEUED, On.QUEUE_INFO): (S.QUEUED, P._queued),
    (S.QUEUED, On.DENY): (S.HAS_NO_PERMISSION, P._denied),
    (S.QUEUED, On.TAKEN): (S.QUEUED, P._taken),
    (S.QUEUED, On.IDLE): (S.QUEUED, P._idle_in_queue),
    (S.QUEUED, On.RELEASE): (S.PENDING_RELEASE, P._give_back),
    (S.QUEUED, On.REVOKE): (S.PENDING_RELEASE, P._revoked),
    (S.QUEUED, On.MEDIA): (S.QUEUED, P._media),
    (S.QUEUED, On.ASK_POSITION): (S.QUEUED, P._position_now),
    (S.QUEUED, On.T103): (S.QUEUED, P._media_ended),
    (S.QUEUED, On.T104): (S.QUEUED, P._ask_position),
    (S.QUEUED_GRANTED, On.PRESS): (S.HAS_PERMISSION, P._taken_up),
    (S.QUEUED_GRANTED, On.RELEASE): (S.PENDING_RELEASE, P._give_back),
    (S.QUEUED_GRANTED, On.T132): (S.PENDING_RELEASE, P._give_back),
    (S.QUEUED_GRANTED, On.REVOKE): (S.PENDING_RELEASE, P._revoked),
    (S.QUEUED_GRANTED, On.T103): (S.QUEUED_GRANTED, P._media_ended),
    (S.QUEUED_GRANTED, On.IDLE): (S.HAS_NO_PERMISSION, P._lost_to_idle),
    (S.QUEUED_GRANTED, On.TAKEN): (S.HAS_NO_PERMISSION, P._lost_to_another),
    # Releasing (6.2.4.7), and the call's end
    **{(state, On.RELEASING): (S.RELEASING, P._ended) for state in S if state not in (S.START_STOP, S.RELEASING)},
    **{(state, On.ENDED): (S.START_STOP, P._ended) for state in S if state is not S.START_STOP},
}
