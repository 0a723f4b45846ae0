# SPDX-License-Identifier: Apache-2.0
"""Floor control towards one participant: the machine of TS 24.380 6.3.5, as a table; sans-IO.

One of these stands on the server for each party of the call, between him and the arbitration
(:mod:`media.floor_server`): it knows what he was told last, answers what the arbitration need not hear of, and stops
him when he sends media without the floor. The state "U: not permitted and initiating" is of sessions with
non-controlling functions, which do not exist here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from media.floor_fields import DenyCause, RevokeCause
from media.floor_messages import (
    FloorAck,
    FloorMessage,
    FloorRelease,
    FloorRequest,
    QueuePositionRequest,
)

__all__ = ["Arbitration", "FloorTowards", "On", "Participant", "Request", "TowardsState"]


class TowardsState(Enum):
    """States of 6.3.5; the names without "U:"."""

    START_STOP = auto()
    NOT_PERMITTED_IDLE = auto()
    NOT_PERMITTED_TAKEN = auto()
    PERMITTED = auto()
    PENDING_REVOKE = auto()
    SENDS_MEDIA = auto()  # "U: not permitted but sends media"
    RELEASING = auto()


class On(Enum):
    """What can happen: first what the participant does, then what the arbitration decides, then time and the call."""

    REQUEST = auto()
    RELEASE = auto()
    POSITION = auto()
    ACK = auto()
    MEDIA = auto()
    IS_IDLE = auto()
    IS_TAKEN = auto()
    GRANT = auto()
    REVOKE = auto()
    T8 = auto()
    RELEASING = auto()
    RELEASED = auto()


@dataclass(slots=True)
class Participant:
    """One party of the call.

    :param priority: the highest that he is authorised to use
    :param queueing: whether he negotiated ``mc_queueing``
    :param receive_only: he is never given the floor
    :param authority: whether he may take the floor from others and requests out of the queue (releases 17, 19)
    """

    name: str
    media_ssrc: int
    priority: int = 0
    queueing: bool = True
    receive_only: bool = False
    authority: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A Floor Request as far as it is authorised; ``urgent``: of an emergency or imminent peril call."""

    member: Participant
    priority: int
    urgent: bool


class Arbitration(Protocol):
    """What the machine towards a participant asks of the arbitration."""

    def check(self, request: Request, now: float) -> DenyCause | None:
        """Why he may not ask for the floor at all."""

    def request(self, request: Request, now: float) -> None:
        """He asks while the floor is free."""

    def contend(self, request: Request, now: float) -> None:
        """He asks while another talks."""

    def released(self, name: str, now: float) -> None:
        """The talker has finished."""

    def media(self, name: str, now: float) -> None:
        """The talker sends."""

    def acknowledged(self, name: str, message_type: int) -> None:
        """He has got a message that asked for an acknowledgement."""

    def unqueue(self, name: str, now: float) -> None:
        """He does not wait any more."""

    def tell(self, name: str, now: float) -> None:
        """Floor Granted, Floor Taken or Floor Idle to him, as the floor stands."""

    def deny(self, name: str, cause: DenyCause) -> None: ...

    def revoke_from(self, name: str, cause: int) -> None: ...

    def tell_position(self, name: str) -> None: ...

    @property
    def holder(self) -> str | None: ...


class FloorTowards:
    """The machine of one participant.

    :param t8: Floor Revoke again, seconds
    :param grace: media that was under way when he released the floor still passes, seconds
    """

    def __init__(self, member: Participant, arbitration: Arbitration, *, t8: float, grace: float) -> None:
        self.member = member
        self.state = TowardsState.START_STOP
        self._arbitration = arbitration
        self._t8 = t8
        self._grace = grace
        self._due: float | None = None
        self._request: Request | None = None
        self._cause = int(RevokeCause.OTHER)
        self._sent_since = False
        self._passing_until = float("-inf")
        self._acknowledged = 0

    # --- what the participant does --------------------------------------------------------------------

    def receive(self, message: FloorMessage, request: Request | None, now: float) -> None:
        """A message of his; ``request`` what a Floor Request amounts to."""
        match message:
            case FloorRequest():
                self.asks(request, now)
            case FloorRelease():
                self.happen(On.RELEASE, now)
            case QueuePositionRequest():
                self.happen(On.POSITION, now)
            case FloorAck():
                self._acknowledged = -1 if message.acknowledged is None else message.acknowledged
                self.happen(On.ACK, now)
            case _:
                pass

    def asks(self, request: Request | None, now: float) -> None:
        """He asks for the floor, by a message or implicitly with the call."""
        self._request = request
        self.happen(On.REQUEST, now)

    def media(self, now: float) -> bool:
        """A media packet of his: whether it may pass."""
        if self.state in (TowardsState.PERMITTED, TowardsState.PENDING_REVOKE):
            self.happen(On.MEDIA, now)
            return True
        if now <= self._passing_until:
            return True
        self.happen(On.MEDIA, now)
        return False

    # --- what the arbitration decides -----------------------------------------------------------------

    def revoke(self, cause: int, now: float) -> None:
        """The floor is taken from him."""
        self._cause = cause
        self.happen(On.REVOKE, now)

    def lets_pass(self, now: float) -> None:
        """The floor is no more his: what is under way still passes, for the grace."""
        self._passing_until = now + self._grace

    # --- time -----------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        return self._due

    def handle_timer(self, now: float) -> None:
        """T8, when it is due."""
        if self._due is not None and self._due <= now:
            self._due = None
            self.happen(On.T8, now)

    # --- the table's driver ---------------------------------------------------------------------------

    def happen(self, on: On, now: float) -> None:
        """One event; what the table does not name changes nothing."""
        row = TABLE.get((self.state, on))
        if row is not None:
            self.state, action = row
            action(self, now)

    def _tell(self, now: float) -> None:
        self._due = None
        self._arbitration.tell(self.member.name, now)

    def _inform(self, now: float) -> None:
        self._arbitration.tell(self.member.name, now)

    def _ask(self, now: float) -> None:
        assert self._request is not None
        cause = self._arbitration.check(self._request, now)
        if cause is not None:
            self._arbitration.deny(self.member.name, cause)
        else:
            self._arbitration.request(self._request, now)

    def _contend(self, now: float) -> None:
        assert self._request is not None
        cause = self._arbitration.check(self._request, now)
        if cause is not None:
            self._arbitration.deny(self.member.name, cause)
        else:
            self._arbitration.contend(self._request, now)

    def _stop_waiting(self, now: float) -> None:
        self._arbitration.unqueue(self.member.name, now)
        self._arbitration.tell(self.member.name, now)

    def _position(self, _now: float) -> None:
        self._arbitration.tell_position(self.member.name)

    def _finished(self, now: float) -> None:
        self._arbitration.released(self.member.name, now)

    def _finished_and_asks(self, now: float) -> None:
        """One whom the floor is being taken from asks anew: he has stopped, and his release was lost."""
        request = self._request
        self._arbitration.released(self.member.name, now)
        self.asks(request, now)

    def _talks(self, now: float) -> None:
        self._arbitration.media(self.member.name, now)

    def _has_acknowledged(self, _now: float) -> None:
        self._arbitration.acknowledged(self.member.name, self._acknowledged)

    def _revoked(self, now: float) -> None:
        self._due = now + self._t8
        self._arbitration.revoke_from(self.member.name, self._cause)

    def _without_permission(self, now: float) -> None:
        self._cause = int(RevokeCause.NO_PERMISSION)
        self._sent_since = False
        self._revoked(now)

    def _goes_on(self, _now: float) -> None:
        self._sent_since = True

    def _stopped_or_again(self, now: float) -> None:
        if self._sent_since:
            self._sent_since = False
            self._revoked(now)
        else:
            self._stopped(now)

    def _stopped(self, now: float) -> None:
        self._due = None
        self.state = S.NOT_PERMITTED_IDLE if self._arbitration.holder is None else S.NOT_PERMITTED_TAKEN
        self._arbitration.tell(self.member.name, now)

    def _stopped_waiting(self, now: float) -> None:
        self._arbitration.unqueue(self.member.name, now)
        self._stopped(now)

    def _stopped_and_asks(self, now: float) -> None:
        self._due = None
        self.state = S.NOT_PERMITTED_IDLE if self._arbitration.holder is None else S.NOT_PERMITTED_TAKEN
        self.asks(self._request, now)

    def _end(self, _now: float) -> None:
        self._due = None
        self._passing_until = float("-inf")


S, T = TowardsState, FloorTowards

_LEAVING: dict[tuple[TowardsState, On], tuple[TowardsState, Callable[[FloorTowards, float], None]]] = {
    **{(state, On.RELEASING): (S.RELEASING, T._end) for state in S if state not in (S.START_STOP, S.RELEASING)},
    **{(state, On.RELEASED): (S.START_STOP, T._end) for state in S if state is not S.START_STOP},
}

#: (state, event) -> (next state, action), TS 24.380 6.3.5; what is missing changes nothing
TABLE: dict[tuple[TowardsState, On], tuple[TowardsState, Callable[[FloorTowards, float], None]]] = {
    # Start-stop (6.3.5.2): the session begins
    (S.START_STOP, On.IS_IDLE): (S.NOT_PERMITTED_IDLE, T._tell),
    (S.START_STOP, On.IS_TAKEN): (S.NOT_PERMITTED_TAKEN, T._tell),
    # U: not permitted and Floor Idle (6.3.5.3)
    (S.NOT_PERMITTED_IDLE, On.REQUEST): (S.NOT_PERMITTED_IDLE, T._ask),
    (S.NOT_PERMITTED_IDLE, On.RELEASE): (S.NOT_PERMITTED_IDLE, T._tell),
    (S.NOT_PERMITTED_IDLE, On.POSITION): (S.NOT_PERMITTED_IDLE, T._position),
    (S.NOT_PERMITTED_IDLE, On.MEDIA): (S.SENDS_MEDIA, T._without_permission),
    (S.NOT_PERMITTED_IDLE, On.IS_IDLE): (S.NOT_PERMITTED_IDLE, T._tell),
    (S.NOT_PERMITTED_IDLE, On.IS_TAKEN): (S.NOT_PERMITTED_TAKEN, T._tell),
    (S.NOT_PERMITTED_IDLE, On.GRANT): (S.PERMITTED, T._tell),
    # U: not permitted and Floor Taken (6.3.5.4)
    (S.NOT_PERMITTED_TAKEN, On.REQUEST): (S.NOT_PERMITTED_TAKEN, T._contend),
    (S.NOT_PERMITTED_TAKEN, On.RELEASE): (S.NOT_PERMITTED_TAKEN, T._stop_waiting),
    (S.NOT_PERMITTED_TAKEN, On.POSITION): (S.NOT_PERMITTED_TAKEN, T._position),
    (S.NOT_PERMITTED_TAKEN, On.MEDIA): (S.SENDS_MEDIA, T._without_permission),
    (S.NOT_PERMITTED_TAKEN, On.IS_IDLE): (S.NOT_PERMITTED_IDLE, T._tell),
    (S.NOT_PERMITTED_TAKEN, On.IS_TAKEN): (S.NOT_PERMITTED_TAKEN, T._tell),
    (S.NOT_PERMITTED_TAKEN, On.GRANT): (S.PERMITTED, T._tell),
    # U: permitted (6.3.5.5)
    (S.PERMITTED, On.REQUEST): (S.PERMITTED, T._inform),
    (S.PERMITTED, On.RELEASE): (S.PERMITTED, T._finished),
    # he asks for his place because the grant was lost
    (S.PERMITTED, On.POSITION): (S.PERMITTED, T._inform),
    (S.PERMITTED, On.ACK): (S.PERMITTED, T._has_acknowledged),
    (S.PERMITTED, On.MEDIA): (S.PERMITTED, T._talks),
    (S.PERMITTED, On.GRANT): (S.PERMITTED, T._inform),
    (S.PERMITTED, On.REVOKE): (S.PENDING_REVOKE, T._revoked),
    (S.PERMITTED, On.IS_IDLE): (S.NOT_PERMITTED_IDLE, T._tell),
    (S.PERMITTED, On.IS_TAKEN): (S.NOT_PERMITTED_TAKEN, T._tell),
    # U: pending Floor Revoke (6.3.5.6)
    (S.PENDING_REVOKE, On.REQUEST): (S.PENDING_REVOKE, T._finished_and_asks),
    (S.PENDING_REVOKE, On.RELEASE): (S.PENDING_REVOKE, T._finished),
    (S.PENDING_REVOKE, On.MEDIA): (S.PENDING_REVOKE, T._talks),
    (S.PENDING_REVOKE, On.T8): (S.PENDING_REVOKE, T._revoked),
    (S.PENDING_REVOKE, On.IS_IDLE): (S.NOT_PERMITTED_IDLE, T._tell),
    (S.PENDING_REVOKE, On.IS_TAKEN): (S.NOT_PERMITTED_TAKEN, T._tell),
    # U: not permitted but sends media (6.3.5.7); T8 ends it when no more media comes
    (S.SENDS_MEDIA, On.REQUEST): (S.SENDS_MEDIA, T._stopped_and_asks),
    (S.SENDS_MEDIA, On.RELEASE): (S.SENDS_MEDIA, T._stopped_waiting),
    (S.SENDS_MEDIA, On.POSITION): (S.SENDS_MEDIA, T._position),
    (S.SENDS_MEDIA, On.MEDIA): (S.SENDS_MEDIA, T._goes_on),
    (S.SENDS_MEDIA, On.T8): (S.SENDS_MEDIA, T._stopped_or_again),
    (S.SENDS_MEDIA, On.IS_IDLE): (S.SENDS_MEDIA, T._inform),
    (S.SENDS_MEDIA, On.IS_TAKEN): (S.SENDS_MEDIA, T._inform),
    (S.SENDS_MEDIA, On.GRANT): (S.PERMITTED, T._tell),
    # Releasing (6.3.5.8) and the session's end
    **_LEAVING,
}
