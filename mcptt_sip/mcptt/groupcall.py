# SPDX-License-Identifier: Apache-2.0
"""What a controlling MCPTT function keeps of one temporary group call, and the media plane that it orders about."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mcptt_sip.errors import SipError
from mcptt_sip.headers import TargetDialog
from mcptt_sip.mcptt.contents import INFO_PACKAGE
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.outbox import Outbox
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Commencement, Urgency, known_warning
from mcptt_sip.mcptt.regroup import TemporaryGroupCall
from mcptt_sip.mcptt.roster import Roster
from mcptt_sip.session import InviteSession

log = logging.getLogger(__name__)

Address = tuple[str, int]


class GroupMedia(Protocol):
    """One call's relay and floor control server; holds CSKs, never a group key."""

    @property
    def audio(self) -> Address: ...
    @property
    def floor(self) -> Address: ...
    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        """Raises ValueError or :class:`~mcptt_sip.errors.SipError` when this leg cannot be told from another."""
        ...

    def bind(self, user: str, guk_id: int) -> None: ...
    def declare(self, urgency: Urgency, by: Collection[str]) -> None:
        """What the call is from now on, by whose word: their floor requests that say so too go before others."""
        ...

    def remove_leg(self, user: str) -> None: ...
    def close(self) -> None: ...


class MediaPlane(Protocol):
    def open(self, group: str, max_silence: float) -> GroupMedia:
        """Raises ``OSError`` when there are no resources. After ``max_silence`` seconds (0: never) without a talker
        the controlling function is told."""
        ...

    def open_unread(self, group: str) -> GroupMedia:
        """The same for a call whose members arbitrate the floor: their floor messages are copied unread."""
        ...

    def open_private(self, label: str) -> GroupMedia:
        """The same for a private call, whose packets carry the PCK-ID alone."""
        ...


#: told what happened in a call, for the operator: (name, details); must not block
Observer = Callable[[str, dict[str, Any]], None]


class KeyMessageCheck(Protocol):
    """Checks an I_MESSAGE without opening it (rule 22): signed by ``sender``, for ``recipient``, in time.

    Returns its CSB-ID (the recipient's GUK-ID). Raises :class:`~mikey.MikeyError`.
    """

    def __call__(self, octets: bytes, sender: str, recipient: str) -> int: ...


@dataclass(slots=True)
class Leg:
    """One participant's session with the server."""

    call: GroupCall
    user: str
    session: InviteSession
    destination: Destination
    initiator: bool = False
    guk_id: int = 0
    theirs: GroupMediaDescription | None = None
    in_media: bool = False
    #: who signed the key that he was sent last
    key_from: str | None = None
    #: MESSAGEs to him, from the first one on
    outbox: Outbox | None = None
    #: what he takes the call for, and what he is being told that it is
    told: Urgency = Urgency.NORMAL
    telling: Urgency | None = None

    def join_media(self) -> None:
        """Into the media of the call, where he has any. Raises what :meth:`GroupMedia.add_leg` does."""
        if self.theirs is not None and not self.in_media:
            self.call.media.add_leg(self.destination, self.theirs, self.guk_id)
            self.in_media = True

    def leave_media(self) -> None:
        if self.in_media:
            self.in_media = False  # first: it is not tried twice, whatever is wrong
            self.call.media.remove_leg(self.user)

    def hang_up(self, now: float, why: str) -> None:
        """Out of the call; `why` is for the user."""
        self.leave_media()
        if self.call.legs.get(self.user) is self:
            del self.call.legs[self.user]
        self.session.context = None
        self.session.bye(now, headers=[("Reason", f'SIP;cause=200;text="{why}"')])

    def inform(self, content_type: str, body: bytes, now: float) -> None:
        """INFO of our package in his dialog (RFC 6086), where there still is one and it is understood."""
        if INFO_PACKAGE not in self.session.request.headers.values("Recv-Info"):
            log.info("group=%s user=%s takes no INFO", self.call.group, self.user)
        elif not self.session.ended:
            headers = [("Info-Package", INFO_PACKAGE), ("Content-Disposition", "Info-Package")]
            self.session.send("INFO", headers=headers, body=body, content_type=content_type, now=now)

    def take_over(self, old: Leg | None) -> None:
        """Into the media in the place of the same user's ``old`` leg, which stays there when this one cannot come."""
        heard = old is not None and old.in_media
        if old is not None:
            old.leave_media()
        try:
            self.join_media()
        except (SipError, ValueError):
            if old is not None and heard:
                old.join_media()
            raise

    def move_media(self, theirs: GroupMediaDescription) -> None:
        """To another place. When he cannot be had there he stays where he is (RFC 3261 14.2), and this raises."""
        before = self.theirs
        self.leave_media()
        self.theirs = theirs
        try:
            self.join_media()
        except (SipError, ValueError):
            self.theirs = before
            self.join_media()
            raise


#: challenges, missing extensions, session intervals and glare concern one hop (RFC 3261 21.4, RFC 4028 6)
_BETWEEN_NEIGHBOURS = frozenset({401, 407, 420, 421, 422, 423, 491, 494})


@dataclass(slots=True)
class Fork:
    """One user's invitation at every device that he has registered: one leg of them at most becomes his
    (security rule 21)."""

    user: str
    legs: list[Leg] = field(default_factory=list)
    refusals: list[tuple[int, str | None]] = field(default_factory=list)

    def refused(self, leg: Leg, status: int, warning: str | None) -> None:
        """One device has said no, or nothing in time (408).

        What is between the server and the device, or would send the caller elsewhere, is 480 to him (rule 5).
        """
        self.legs = [other for other in self.legs if other is not leg]
        between = status < 400 or status in _BETWEEN_NEIGHBOURS
        self.refusals.append((480 if between else status, known_warning(warning)))

    @property
    def best(self) -> tuple[int, str | None]:
        """The answer to hand on (RFC 3261 16.7 step 6): 6xx before all, then what a user said rather than a
        machine's silence, then the lowest class."""

        def rank(refusal: tuple[int, str | None]) -> tuple[bool, bool, int]:
            status, _ = refusal
            return status < 600, status in (408, 480, 487, 503), status // 100

        return min(self.refusals, key=rank, default=(480, None))


@dataclass(slots=True)
class GroupCall:
    """One temporary group call: its machine, its legs, its media. ``legs`` are those in the call, and the
    initiator's from his INVITE on; ``forks`` are the invitations under way."""

    group: str
    session_identity: str
    machine: TemporaryGroupCall
    roster: Roster
    media: GroupMedia = field(init=False)
    legs: dict[str, Leg] = field(default_factory=dict)
    forks: dict[str, Fork] = field(default_factory=dict)
    acknowledgement: str = "none"
    commencement: Commencement = Commencement.AUTOMATIC
    urgency: Urgency = Urgency.NORMAL
    #: by whose word it is an emergency or imminent peril call, and who changed that last
    declared_by: set[str] = field(default_factory=set)
    urgency_by: str | None = None
    alert: bool = False
    #: INFO bodies for the initiator that wait for his ACK
    after_ack: list[McpttInfo] = field(default_factory=list)
    #: who may go on in the initiator's place when he is lost, in his order
    deputies: tuple[str, ...] = ()
    #: who made the newest key that was passed on
    signer: str = ""
    #: the signer's list of members, signed and opaque (security rule 20)
    member_list: bytes | None = None
    #: who was in the call and was not removed, and whose leg was lost rather than ended
    former: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    #: user -> contact of the device at which he asked to join again
    wanted_at: dict[str, str] = field(default_factory=dict)
    #: when the operator is told of the members, and was
    members_due: float | None = None
    members_told: float = float("-inf")

    @property
    def initiator(self) -> str:
        return self.machine.initiator

    @property
    def director(self) -> Leg | None:
        """The leg of the one who makes keys, adds and removes: the initiator, or his first deputy who is there."""
        return next((self.legs[user] for user in (self.initiator, *self.deputies) if user in self.legs), None)

    def directs(self, user: str) -> bool:
        director = self.director
        return director is not None and director.user == user

    def let_initiator_go(self, status: int, why: str, now: float) -> None:
        """Ends his leg, whether he has his answer yet or not."""
        initiator = self.legs.get(self.initiator)
        if initiator is not None and initiator.in_media:
            initiator.hang_up(now, why)
        elif initiator is not None:
            del self.legs[self.initiator]
            initiator.session.context = None
            if not initiator.session.ended:  # his CANCEL may be on record already
                initiator.session.reject(status, now=now)


@dataclass(frozen=True, slots=True)
class ControllingSettings:
    """Names of this function and what an operator may set."""

    identity: str  # public service identity, e.g. sip:mcptt@mcx.example
    domain: str  # host name in Warnings and group ids
    #: of a call whose initiator did not ask for another one
    commencement: Commencement = Commencement.AUTOMATIC
    roster_interval: float = 5.0  # seconds; RFC 4575 3.10: not more than one NOTIFY in this time
    #: calls at one time; beyond, 500 with Retry-After
    max_calls: int = 1000
    #: private calls that one user may be in at a time
    max_private_calls: int = 8
    #: subscriptions of one member to a call's roster: his devices, with some that they have forgotten
    max_subscriptions: int = 16
    retry_after: int = 10
    #: session timer of every leg (RFC 4028), seconds; 0: none
    session_expires: int = 1800
    #: seconds between two words to the operator on a call's members
    members_interval: float = 0.2
    #: value of Resource-Priority (RFC 8101) of a call's INVITEs to members
    resource_priority: Mapping[Urgency, str] = field(
        default_factory=lambda: {
            Urgency.NORMAL: "mcpttp.5", Urgency.IMMINENT_PERIL: "mcpttp.10", Urgency.EMERGENCY: "mcpttp.15",
        }
    )


class Refusal(SipError):
    """Why a request is not done, with the answer that says so: ``info`` is stated in its body."""

    def __init__(
        self,
        status: int,
        warning: str | None,
        because: str,
        *,
        info: McpttInfo | None = None,
        headers: Sequence[tuple[str, object]] = (),
    ) -> None:
        super().__init__(because)
        self.status = status
        self.warning = warning
        self.info = info
        self.headers = list(headers)


def names_dialog(value: str, session: InviteSession) -> bool:
    """RFC 4538: Call-ID and both tags, as this side sees them."""
    try:
        dialog = TargetDialog.parse(value)
    except SipError:
        return False
    mine = (session.call_id, session.local_tag, session.remote_tag)
    return (dialog.call_id, dialog.local_tag, dialog.remote_tag) == mine
