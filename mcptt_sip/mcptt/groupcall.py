# SPDX-License-Identifier: Apache-2.0
"""What a controlling MCPTT function keeps of one temporary group call, and the media plane that it orders about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mcptt_sip.errors import SipError
from mcptt_sip.headers import TargetDialog
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.regroup import TemporaryGroupCall
from mcptt_sip.session import InviteSession
from mcptt_sip.subscription import NotifierSubscription

Address = tuple[str, int]


class GroupMedia(Protocol):
    """One call's relay and floor control server; holds CSKs, never a group key."""

    @property
    def audio(self) -> Address: ...
    @property
    def floor(self) -> Address: ...
    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None: ...
    def bind(self, user: str, guk_id: int) -> None: ...
    def remove_leg(self, user: str) -> None: ...
    def close(self) -> None: ...


class MediaPlane(Protocol):
    def open(self, group: str) -> GroupMedia: ...


#: told what happened in a call, for the operator: (name, details); must not block
Observer = Callable[[str, dict[str, Any]], None]


class KeyMessageCheck(Protocol):
    """Checks an I_MESSAGE without opening it (rule 22): signed by ``sender``, for ``recipient``, in time.

    Returns its CSB-ID (the recipient's GUK-ID). Raises :class:`~mikey.MikeyError`.
    """

    def __call__(self, octets: bytes, sender: str, recipient: str, now: float) -> int: ...


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


@dataclass(slots=True)
class GroupCall:
    """One temporary group call: its machine, its legs, its media."""

    group: str
    session_identity: str
    machine: TemporaryGroupCall
    media: GroupMedia
    legs: dict[str, Leg] = field(default_factory=dict)
    watchers: dict[int, tuple[NotifierSubscription, str, int]] = field(default_factory=dict)
    acknowledgement: str = "none"
    roster_version: int = 0
    roster_due: float | None = None
    roster_told: float = float("-inf")

    @property
    def initiator(self) -> str:
        return self.machine.initiator


@dataclass(frozen=True, slots=True)
class ControllingSettings:
    """Names of this function and what an operator may set."""

    identity: str  # public service identity, e.g. sip:mcptt@mcx.example
    domain: str  # host name in Warnings and group ids
    answer_mode: str = "Auto"
    roster_interval: float = 5.0  # RFC 4575 3.10: not more than one NOTIFY in this time


class Refusal(SipError):
    """Why a request is not done, with the answer that says so."""

    def __init__(self, status: int, warning: str | None, because: str) -> None:
        super().__init__(because)
        self.status = status
        self.warning = warning


def names_dialog(value: str, session: InviteSession) -> bool:
    """RFC 4538: Call-ID and both tags, as this side sees them."""
    try:
        dialog = TargetDialog.parse(value)
    except SipError:
        return False
    mine = (session.call_id, session.local_tag, session.remote_tag)
    return (dialog.call_id, dialog.local_tag, dialog.remote_tag) == mine
