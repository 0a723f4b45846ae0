# SPDX-License-Identifier: Apache-2.0
"""Floor control among the members themselves: one of them arbitrates, the server copies what it cannot read; sans-IO.

The arbitration is that of :mod:`media.floor_server`, run by the call's signer, and every member hears every message. A
message for one names him in its User ID. When the arbiter is not heard any more, everybody's floor is idle and the
first deputy of the signed order takes over, and so on; with none left, requests are denied. When one earlier in the
order is heard again, he is the arbiter again.

That protects against the server and outsiders; a member can forge a grant for himself, as all hold the group's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from media.floor_messages import (
    DenyCause,
    FloorAck,
    FloorDeny,
    FloorGranted,
    FloorIdle,
    FloorIndicator,
    FloorMessage,
    FloorRevoke,
    FloorTaken,
    QueuedFloorRequests,
    QueuePositionInfo,
    Source,
)
from media.floor_participant import Denied, Event, FloorParticipant, ParticipantSettings, ParticipantState
from media.floor_server import EVERYONE, FloorControlServer, FloorServerSettings

__all__ = ["MemberFloor", "MemberFloorSettings"]

_OF_THE_ARBITER = (
    FloorGranted, FloorTaken, FloorDeny, FloorIdle, FloorRevoke, QueuePositionInfo, QueuedFloorRequests,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemberFloorSettings:
    """Times in seconds."""

    participant: ParticipantSettings = field(default_factory=ParticipantSettings)
    server: FloorServerSettings = field(default_factory=FloorServerSettings)
    #: the arbiter says at least so often how the floor stands
    heartbeat: float = 2.0
    #: not heard for so long, he is lost
    lost_after: float = 6.0


class MemberFloor:
    """One member's side, arbiter or not.

    :param me: this member's MCPTT ID
    :param order: who arbitrates: the signer of the group's key, then the deputies that he signed for
    :param ssrc: of this member's floor messages
    """

    def __init__(
        self,
        me: str,
        order: Sequence[str],
        ssrc: int,
        *,
        settings: MemberFloorSettings | None = None,
        indicator: FloorIndicator = FloorIndicator.NORMAL | FloorIndicator.QUEUEING,
    ) -> None:
        if not order:
            raise ValueError("somebody must arbitrate")
        self.me = me
        self.order = tuple(order)
        self.settings = settings or MemberFloorSettings()
        self.participant = FloorParticipant(
            ssrc=ssrc, settings=self.settings.participant, user=me, indicator=indicator
        )
        self._ssrc = ssrc
        self._indicator = indicator
        #: place of the present arbiter in the order; ``len(order)`` when none is left
        self._at = 0
        self._members: dict[str, int] = {}
        self._server: FloorControlServer | None = None
        self._heard = 0.0
        self._beat: float | None = None
        self._own_events: list[Event] = []
        self._out: list[FloorMessage] = []
        self._established = False

    @property
    def arbiter(self) -> str | None:
        """Who decides now."""
        return self.order[self._at] if self._at < len(self.order) else None

    @property
    def arbitrates(self) -> bool:
        """Whether this member does."""
        return self._server is not None

    @property
    def members(self) -> tuple[str, ...]:
        """The others in the call."""
        return tuple(self._members)

    @property
    def state(self) -> ParticipantState:
        """Of this member's own floor."""
        return self.participant.state

    # --- the call -------------------------------------------------------------------------------------

    def call_established(self, now: float) -> None:
        """The member is in the call; the first of the order begins to arbitrate."""
        self._established = True
        self._heard = now
        self.participant.call_established(now)
        if self.arbiter == self.me:
            self._take_over(now)

    def call_released(self, now: float) -> None:
        """The call is over."""
        self._established = False
        self._stand_down(now)
        self.participant.call_released(now)

    def joined(self, user: str, now: float, priority: int = 0) -> None:
        """Another member is in the call, as the roster says; ``priority`` is the highest that he may use."""
        self._members[user] = priority
        if self._server is not None:
            self._server.join(user, now, media_ssrc=0, priority=priority)
            self._route(now)

    def left(self, user: str, now: float) -> None:
        """Another member has left, or was removed."""
        self._members.pop(user, None)
        if self._server is not None:
            self._server.leave(user, now)
            self._route(now)

    # --- the user -------------------------------------------------------------------------------------

    def press(self, now: float, priority: int = 0) -> None:
        """The user wants to talk."""
        if self.arbiter is None:
            self._own_events.append(Denied(DenyCause.OTHER, "nobody arbitrates"))
            return
        self.participant.press(now, priority)
        self._route(now)

    def release(self, now: float) -> None:
        """The user has finished, or does not want to wait any more."""
        self.participant.release(now)
        self._route(now)

    # --- what arrives ---------------------------------------------------------------------------------

    def receive(self, sender: str, message: FloorMessage, now: float) -> None:
        """A message of ``sender``, whose key it was protected with."""
        if not self._established or sender == self.me:
            return
        if isinstance(message, _OF_THE_ARBITER) or (
            isinstance(message, FloorAck) and message.source == Source.CONTROLLING
        ):
            self._from_arbiter(sender, message, now)
        elif self._server is not None:
            self._server.receive(sender, message, now)
        self._route(now)

    def media_received(self, now: float, sender: str | None = None) -> None:
        """Authentic audio of ``sender``: the arbiter watches over it as a server would."""
        self.participant.media_received(now)
        if self._server is not None and sender is not None:
            self._server.media_received(sender, 0, now)
        self._route(now)

    def media_sent(self, now: float) -> None:
        """This member's own audio goes out."""
        if self._server is not None:
            self._server.media_received(self.me, 0, now)
            self._route(now)

    def _from_arbiter(self, sender: str, message: FloorMessage, now: float) -> None:
        place = self.order.index(sender) if sender in self.order else len(self.order)
        if place > self._at or place == len(self.order):
            return  # not the arbiter, whatever he says of the floor
        if place < self._at:
            # one earlier in the order is back: what was decided meanwhile is void
            self._stand_down(now)
            self._at = place
            self.participant.start_anew(now)
        self._heard = now
        to = getattr(message, "user_id", None)
        if (to is None or to == self.me) and not self._holds(message):
            self.participant.receive(message, now)

    # --- time -----------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        due = [self.participant.next_timer(), self._beat]
        if self._server is not None:
            due.append(self._server.next_timer())
        elif self._established and self.arbiter is not None:
            due.append(self._heard + self.settings.lost_after)
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Everything that is due by ``now``."""
        self.participant.handle_timer(now)
        if self._server is not None:
            self._server.handle_timer(now)
            if self._beat is not None and now >= self._beat:
                self._say_how_it_stands(now)
        elif self._established and self.arbiter is not None and now >= self._heard + self.settings.lost_after:
            self._lose(now)
        self._route(now)

    def _lose(self, now: float) -> None:
        """The arbiter is not heard: the next one, and nobody has the floor."""
        self._at += 1
        self._heard = now
        self.participant.start_anew(now)
        if self.arbiter == self.me:
            self._take_over(now)

    def _take_over(self, now: float) -> None:
        server = FloorControlServer(
            self.settings.server, ssrc_of=lambda _name: self._ssrc, indicator=self._indicator, everyone_hears=True
        )
        self._server = server
        for user, priority in {self.me: 255, **self._members}.items():
            server.join(user, now, media_ssrc=0, priority=priority)
        self._say_how_it_stands(now)
        self._route(now)

    def _stand_down(self, now: float) -> None:
        if self._server is not None:
            self._server.end(now)
            self._server, self._beat = None, None

    def _say_how_it_stands(self, now: float) -> None:
        assert self._server is not None
        self._beat = now + self.settings.heartbeat
        others = [name for name in self._server.participants if name != self._server.holder]
        if others:
            self._server.tell(others[0], now)

    # --- what comes of it -----------------------------------------------------------------------------

    def to_send(self) -> list[FloorMessage]:
        """Messages for everyone in the group since the last call."""
        out, self._out = self._out, []
        return out

    def events(self) -> list[Event]:
        """What the user is to know since the last call."""
        events, self._own_events = self._own_events + self.participant.events(), []
        return events

    def _route(self, now: float) -> None:
        """What the arbiter says to himself does not go over the network; all else does."""
        while True:
            said = self.participant.to_send()
            told = [] if self._server is None else self._server.to_send()
            if not said and not told:
                return
            for message in said:
                if self._server is None:
                    self._out.append(message)
                else:
                    self._server.receive(self.me, message, now)
            for to, message in told:
                if to != self.me:
                    self._out.append(message)
                if to in (self.me, EVERYONE) and not self._holds(message):
                    self.participant.receive(message, now)
            if self._server is not None:
                self._server.events()

    def _holds(self, message: FloorMessage) -> bool:
        """Whether all are told of this member's own floor: to himself it is no news."""
        return isinstance(message, FloorTaken) and message.granted_party == self.me
