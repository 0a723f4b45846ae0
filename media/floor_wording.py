# SPDX-License-Identifier: Apache-2.0
"""What a floor control server says, as messages; sans-IO."""

from __future__ import annotations

from collections.abc import Callable

from media.floor_messages import (
    NOT_QUEUED,
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
    QueuedRequestsPurpose,
    QueuePositionInfo,
    Source,
)

__all__ = ["EVERYONE", "Wording"]

#: the addressee of a message that all are told at once, where everyone hears everything
EVERYONE = ""


class Wording:
    """Makes messages and keeps them until :meth:`taken`.

    :param ssrc_of: the server's own SSRC towards a participant
    :param acknowledged: Floor Granted, Floor Deny and Queue Position Info ask to be acknowledged
    :param everyone_hears: what is meant for one names him in its User ID; what all are to know is said once
    """

    def __init__(
        self,
        ssrc_of: Callable[[str], int],
        indicator: FloorIndicator,
        *,
        acknowledged: bool,
        everyone_hears: bool,
    ) -> None:
        self.indicator = indicator
        #: Message Sequence Number of the last change of the floor (8.2.3.10)
        self.sequence = 0
        self.everyone_hears = everyone_hears
        self._acknowledged = acknowledged
        self._ssrc_of = ssrc_of
        self._out: list[tuple[str, FloorMessage]] = []

    def taken(self) -> list[tuple[str, FloorMessage]]:
        """(participant, message) since the last call."""
        out, self._out = self._out, []
        return out

    @property
    def pending(self) -> bool:
        """Whether there is something to take."""
        return bool(self._out)

    def changed(self) -> None:
        """The floor has another holder, or none."""
        self.sequence = self.sequence + 1 & 0xFFFF

    def _to(self, name: str) -> str | None:
        return name if self.everyone_hears else None

    def _once(self, name: str, message: FloorMessage) -> None:
        """What all are to know alike."""
        if not self.everyone_hears:
            self._out.append((name, message))
        elif (EVERYONE, message) not in self._out:
            self._out.append((EVERYONE, message))

    def idle(self, name: str) -> None:
        """Floor Idle."""
        self._once(name, FloorIdle(ssrc=self._ssrc_of(name), sequence=self.sequence, indicator=self.indicator))

    def taken_by(self, name: str, holder: str, holder_ssrc: int, *, may_ask: bool) -> None:
        """Floor Taken."""
        message = FloorTaken(
            ssrc=self._ssrc_of(name), granted_party=holder, permission=int(may_ask), sequence=self.sequence,
            granted_ssrc=holder_ssrc, indicator=self.indicator,
        )  # fmt: skip
        self._once(name, message)

    def granted(self, name: str, media_ssrc: int, *, duration: int, priority: int) -> None:
        """Floor Granted."""
        message = FloorGranted(
            ssrc=self._ssrc_of(name), ack_requested=self._acknowledged, duration=duration, granted_ssrc=media_ssrc,
            priority=priority, user_id=self._to(name), indicator=self.indicator,
        )  # fmt: skip
        self._out.append((name, message))

    def denied(self, name: str, cause: DenyCause) -> None:
        """Floor Deny."""
        message = FloorDeny(
            ssrc=self._ssrc_of(name), ack_requested=self._acknowledged,
            reject=(int(cause), cause.name.replace("_", " ").lower()), user_id=self._to(name), indicator=self.indicator,
        )  # fmt: skip
        self._out.append((name, message))

    def revoked(self, name: str, cause: int) -> None:
        """Floor Revoke."""
        message = FloorRevoke(
            ssrc=self._ssrc_of(name), reject=(int(cause), ""), user_id=self._to(name), indicator=self.indicator
        )
        self._out.append((name, message))

    def position(self, name: str, place: tuple[int, int] | None) -> None:
        """Queue Position Info; ``None``: not in the queue."""
        position, priority = (NOT_QUEUED, 0) if place is None else (min(place[0], NOT_QUEUED - 1), place[1])
        message = QueuePositionInfo(
            ssrc=self._ssrc_of(name), ack_requested=self._acknowledged, queue=(position, priority),
            user_id=self._to(name), indicator=self.indicator,
        )  # fmt: skip
        self._out.append((name, message))

    def acknowledgement(self, name: str, message_type: int) -> None:
        """Floor Ack."""
        message = FloorAck(
            ssrc=self._ssrc_of(name), source=Source.CONTROLLING, acknowledged=message_type, user_id=self._to(name),
            indicator=self.indicator,
        )  # fmt: skip
        self._out.append((name, message))

    def queued_requests(self, name: str, purpose: QueuedRequestsPurpose, users: tuple[str, ...]) -> None:
        """Queued Floor Requests."""
        message = QueuedFloorRequests(
            ssrc=self._ssrc_of(name), purpose=purpose, queued_users=users, user_id=self._to(name),
            indicator=self.indicator,
        )  # fmt: skip
        self._out.append((name, message))
