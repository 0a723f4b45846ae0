# SPDX-License-Identifier: Apache-2.0
"""What can happen to an INVITE session, the states it stands in, and what it tells the application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from mcptt_sip.dialog import Dialog
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.message import Request, Response
from mcptt_sip.services import Cause

if TYPE_CHECKING:
    from mcptt_sip.session import InviteSession

__all__ = [
    "Answered",
    "Cancelled",
    "Confirmed",
    "Due",
    "Ended",
    "Farewell",
    "Happens",
    "InviteReceived",
    "Progressed",
    "ProvisionalAcknowledged",
    "Refreshed",
    "Refused",
    "SessionState",
    "Unacknowledged",
]


class SessionState(Enum):
    """Where a session stands."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    CALLING = auto()  # caller: INVITE sent, nothing heard
    PROCEEDING = auto()  # a provisional response was heard, or: callee, not decided yet
    CANCEL_PENDING = auto()  # caller: gave up before anything was heard (9.1: CANCEL waits for a 1xx)
    CANCELLING = auto()  # caller: CANCEL sent
    ACCEPTING = auto()  # callee: the 2xx waits for a PRACK (RFC 3262 3)
    ACCEPTED = auto()  # callee: 2xx sent, ACK awaited
    HANGING = auto()  # callee: wants to end, but may not before the ACK (15)
    CONFIRMED = auto()
    LEAVING = auto()  # BYE sent
    ENDED = auto()

    @property
    def going(self) -> bool:
        """Whether it is over, or somebody has said that it shall be."""
        return self in _GOING


_GOING = frozenset({
    SessionState.CANCEL_PENDING, SessionState.CANCELLING, SessionState.HANGING, SessionState.LEAVING,
    SessionState.ENDED,
})  # fmt: skip


class Happens(Enum):
    """What can happen to a session."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    PROVISIONAL = auto()
    SUCCESS = auto()
    FAILURE = auto()
    CHALLENGE = auto()  # a failure that a signature may cure, or a too small session interval
    REDIRECT = auto()  # a failure after which there is another target to try
    FAIL_OVER = auto()  # 503 or silence of one server of several
    NO_ANSWER = auto()
    CANCEL = auto()  # the application's wish
    PROGRESS = auto()
    ACCEPT = auto()
    ACCEPT_LATER = auto()
    REJECT = auto()
    PRACKED = auto()
    NO_PRACK = auto()
    CANCEL_IN = auto()
    ACK = auto()
    NO_ACK = auto()
    BYE = auto()  # the application's wish
    BYE_IN = auto()
    BYE_DONE = auto()
    LOST = auto()  # the peer does not know the dialog any more, or the session timer ran out


class Due(Enum):
    """Timers of a session."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    SUCCESS_AGAIN = auto()
    NO_ACK = auto()
    RELIABLE_AGAIN = auto()
    NO_PRACK = auto()
    PROGRESS_AGAIN = auto()
    CANCEL_GIVEN_UP = auto()
    REFRESH = auto()
    EXPIRE = auto()
    GLARE = auto()
    INVITATION_OVER = auto()


@dataclass(slots=True)
class Farewell:
    """What a BYE or CANCEL carries, and why it is sent."""

    headers: HeaderItems = ()
    body: bytes = b""
    content_type: str | None = None
    cause: Cause = Cause.LOCAL_BYE
    request: Request | None = None


@dataclass(slots=True)
class Unacknowledged:
    """A 2xx to INVITE that is repeated until its ACK (13.3.1.4)."""

    send: Callable[[], None]
    cseq: int
    interval: float
    brings_answer: bool  # the offer was in the 2xx, and the ACK answers it


@dataclass(frozen=True, slots=True)
class InviteReceived:
    """A new call; `session.request` is the INVITE."""

    session: InviteSession


@dataclass(frozen=True, slots=True)
class Progressed:
    """Caller: a provisional response above 100; `dialog` is its early dialog, if it made one."""

    session: InviteSession
    response: Response
    dialog: Dialog | None


@dataclass(frozen=True, slots=True)
class Answered:
    """Caller: the 2xx came and was acknowledged."""

    session: InviteSession
    response: Response


@dataclass(frozen=True, slots=True)
class Refused:
    """Caller: the call did not come about. `cause` RESPONSE, TIMEOUT, TRANSPORT or CANCELLED."""

    session: InviteSession
    response: Response | None
    cause: Cause


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Callee: the ACK arrived in `request` (with the answer in its body when the offer was late); also after a
    re-INVITE that was accepted. A re-INVITE that overtook an ACK without a body stands for it."""

    session: InviteSession
    request: Request


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The session has refreshed itself by a re-INVITE with our last description, `offer`; `response` answers it."""

    session: InviteSession
    response: Response
    offer: bytes


@dataclass(frozen=True, slots=True)
class ProvisionalAcknowledged:
    """Callee: the PRACK for the reliable provisional response arrived, and was answered 200."""

    session: InviteSession
    request: Request


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Callee: the caller gave up; 487 was sent."""

    session: InviteSession


@dataclass(frozen=True, slots=True)
class Ended:
    """A session is over; `request` is the BYE that said so, if one did. Callee sessions that were never
    answered end so too, with NO_PRACK or REMOTE_BYE."""

    session: InviteSession
    cause: Cause
    request: Request | None
