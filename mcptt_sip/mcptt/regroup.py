# SPDX-License-Identifier: Apache-2.0
"""The controlling function's side of a temporary group call, as two tables; sans-IO.

:class:`TemporaryGroupCall` follows the ten steps of the proposal: what arrives from the initiator, the
members and the clock goes in by methods; what is to be done comes out of :meth:`~TemporaryGroupCall.events`
as orders (invite this user, answer the initiator, tell him how an add ended, …). It holds no key, no
socket and no clock; an I_MESSAGE passes through in the order that carries it and is not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from mcptt_sip.mcptt.policy import WARNINGS, warning_text


@dataclass(frozen=True, slots=True)
class AnswerCondition:
    """Step 9: when the initiator's INVITE is answered: ``first``, ``quorum:N`` or ``all``."""

    name: str = "first"
    quorum: int = 1

    @classmethod
    def parse(cls, text: str) -> AnswerCondition:
        if text in ("first", "all"):
            return cls(text)
        kind, _, number = text.partition(":")
        if kind == "quorum" and number.isdecimal() and int(number) > 0:
            return cls("quorum", int(number))
        raise ValueError(f"{text!r} is not first, all or quorum:N")

    def met(self, connected: int, invited: int) -> bool:
        """``connected`` members have accepted, ``invited`` have not answered yet."""
        if self.name == "all":
            return connected > 0 and invited == 0
        return connected >= self.quorum


@dataclass(frozen=True, slots=True)
class RegroupSettings:
    """What an operator may set of a temporary group call. Times are seconds."""

    answer_condition: AnswerCondition = AnswerCondition()
    #: TNG1: after this long the initiator is answered with those who accepted, or the call is abandoned
    answer_time_limit: float = 30.0
    proceed_at_time_limit: bool = True
    #: the first user's refusal does not end a call to which others may still be added; TNG1 does
    stay_when_refused: bool = False
    #: how long one user may ring
    ring_time_limit: float = 60.0
    max_participants: int = 1000
    #: TNG3, the longest a call may last
    max_duration: float = 4 * 3600.0
    #: T4 of the floor: a call in which nobody talks for so long ends; 0: never
    max_silence: float = 1800.0
    #: a call whose initiator is gone goes on under the key it has; nobody can add or rekey any more
    keep_without_initiator: bool = True

    def __post_init__(self) -> None:
        for name in ("answer_time_limit", "ring_time_limit", "max_duration", "max_participants"):
            if not getattr(self, name) > 0:  # of NaN nothing is true
                raise ValueError(f"{name.replace('_', ' ')} {getattr(self, name)}: more than 0 is needed")
        if not self.max_silence >= 0:
            raise ValueError(f"max silence {self.max_silence}: 0 for none, or more")


class CallState(Enum):
    INVITING = auto()
    RUNNING = auto()
    RELEASED = auto()


class MemberState(Enum):
    INVITED = auto()
    CONNECTED = auto()
    GONE = auto()


class On(Enum):
    """What can happen to the call."""

    CONDITION_MET = auto()
    NOBODY_LEFT_TO_WAIT_FOR = auto()
    TNG1_PROCEED = auto()
    TNG1_ABANDON = auto()
    REQUIRED_REFUSED = auto()
    TNG3 = auto()
    SILENT = auto()
    INITIATOR_CANCELLED = auto()
    INITIATOR_RELEASED = auto()
    INITIATOR_LEFT = auto()
    INITIATOR_RETURNED = auto()
    ALONE = auto()


class OnMember(Enum):
    """What can happen to one user's membership."""

    ADDED = auto()
    ACCEPTED = auto()
    REFUSED = auto()
    RANG_TOO_LONG = auto()
    REMOVED = auto()
    LEFT = auto()


# --- orders ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AffiliateImplicitly:
    """Step 3 for the initiator; a member's affiliation follows from his 200 (17.4.2.2)."""

    user: str


@dataclass(frozen=True, slots=True)
class UndoAffiliation:
    user: str


@dataclass(frozen=True, slots=True)
class InviteMember:
    """Step 4 (and 8): ``key`` is the initiator's I_MESSAGE, octet for octet as it came."""

    user: str
    key: bytes


@dataclass(frozen=True, slots=True)
class AnswerInitiator:
    """Step 9. Warnings are MC codes; acknowledgements pass on opaquely. ``missing`` are the users without whom the
    call proceeds, for the INFO of 6.3.3.3."""

    acknowledgements: tuple[bytes, ...]
    warnings: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RefuseInitiator:
    status: int
    warning: str | None


@dataclass(frozen=True, slots=True)
class ReportAdd:
    """The outcome of a REFER, for its NOTIFY. ``handle`` is what the caller gave with it; ``None`` where the REFER
    wanted no subscription and the outcome goes into the roster."""

    handle: object | None
    user: str
    status: int
    warning: str | None = None
    acknowledgement: bytes | None = None


@dataclass(frozen=True, slots=True)
class PassAcknowledgement:
    """An acknowledgement that no answer can carry any more: to the initiator by INFO."""

    user: str
    acknowledgement: bytes


@dataclass(frozen=True, slots=True)
class ReleaseMember:
    """BYE, or CANCEL while the user has not answered."""

    user: str
    answered: bool


@dataclass(frozen=True, slots=True)
class ReleaseInitiator:
    cause: str


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """``user`` is in the call now, or not any more."""

    user: str
    connected: bool


@dataclass(frozen=True, slots=True)
class CallReleased:
    cause: str


Order = (
    AffiliateImplicitly
    | UndoAffiliation
    | InviteMember
    | AnswerInitiator
    | RefuseInitiator
    | ReportAdd
    | PassAcknowledgement
    | ReleaseMember
    | ReleaseInitiator
    | RosterChanged
    | CallReleased
)


@dataclass(slots=True)
class Member:
    """One named user. ``reports`` are the handles of the REFERs that asked for him, until they are answered; a REFER
    that was sent again asks for the same."""

    user: str
    state: MemberState = MemberState.GONE
    reports: list[object | None] = field(default_factory=list)
    key: bytes = b""  # SHA-256 of his I_MESSAGE, while he is invited
    rings_until: float | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came with an event of a member."""

    status: int = 200
    warning: str | None = None
    acknowledgement: bytes | None = None
    key: bytes = b""
    handle: object | None = None


#: the handle of the initiator's INVITE, which reports by its own answer
_NO_REPORT = object()


class TemporaryGroupCall:
    """One temporary group call as its controlling function sees it.

    The caller has authenticated and authorised what it passes in (steps 2 and 7); this machine decides
    what follows. ``group`` is the temporary group id that client 1 proposed.
    """

    def __init__(
        self, group: str, initiator: str, *, now: float, settings: RegroupSettings | None = None
    ) -> None:
        self.group = group
        self.initiator = initiator
        self.settings = settings or RegroupSettings()
        self.state = CallState.INVITING
        self.members: dict[str, Member] = {}
        self._connected: dict[str, Member] = {}
        self._invited: dict[str, Member] = {}
        self.initiator_present = True
        self.required: frozenset[str] = frozenset()
        self._given_up: set[str] = set()  # required members who refused
        self._acknowledgements: list[bytes] = []
        self._last_refusal: tuple[int, str | None] = (480, None)
        self._out: list[Order] = []
        self._tng1: float | None = now + self.settings.answer_time_limit
        self._tng3: float | None = now + self.settings.max_duration

    # --- what arrives ---------------------------------------------------------------------------------

    def start(self, user: str, key: bytes, now: float, *, required: Iterable[str] = ()) -> None:
        """Steps 3 and 4: the initiator's INVITE, already authorised, names ``user``.

        ``required`` are users without whom it is not to be answered before TNG1; they may be added later.
        """
        self.required = frozenset(required) - {self.initiator}
        self._out.append(AffiliateImplicitly(self.initiator))
        self._on_member(OnMember.ADDED, user, now, _Outcome(key=key, handle=_NO_REPORT))

    def add(self, user: str, key: bytes, handle: object | None, now: float) -> None:
        """Step 7: one REFER, already authorised. Its outcome comes as :class:`ReportAdd`.

        The same REFER once more (the same I_MESSAGE, while the user is being invited) waits for the same outcome.
        """
        refusal = self.refusal_of(user, key)
        if refusal is not None:
            self._out.append(ReportAdd(handle, user, *refusal))
            return
        member = self.members.get(user)
        if member is not None:
            member.reports.append(handle)
            return
        self._on_member(OnMember.ADDED, user, now, _Outcome(key=key, handle=handle))

    def refusal_of(self, user: str, key: bytes) -> tuple[int, str] | None:
        """Why ``user`` cannot be added now, as (status, Warning text); ``None`` when he can."""
        if self.state is CallState.RELEASED:
            return 481, warning_text(137)
        member = self.members.get(user)
        if member is not None and member.state is MemberState.INVITED and member.key == _digest(key):
            return None
        if user == self.initiator or member is not None:
            return 486, warning_text(123)
        if len(self.members) + 1 >= self.settings.max_participants:
            return WARNINGS[122][0], warning_text(122)
        return None

    def accepted(self, user: str, acknowledgement: bytes | None, now: float) -> None:
        """Step 6: the user's 200, with his acknowledgement when it has one."""
        self._on_member(OnMember.ACCEPTED, user, now, _Outcome(acknowledgement=acknowledgement))

    def refused(self, user: str, status: int, warning: str | None, now: float) -> None:
        """A final answer that is no 2xx, or 408 when there was none. Ends nothing but this invitation."""
        self._on_member(OnMember.REFUSED, user, now, _Outcome(status=status, warning=warning))

    def left(self, user: str, now: float) -> None:
        """A member's BYE, or his leg is dead."""
        self._on_member(OnMember.LEFT, user, now, _Outcome(status=487))

    def remove(self, user: str, handle: object | None, now: float) -> None:
        """A REFER with method BYE. Removing who is not there succeeds: the wish is fulfilled."""
        if user == self.initiator:
            self._out.append(ReportAdd(handle, user, 403, warning_text(190)))
            return
        self._on_member(OnMember.REMOVED, user, now, _Outcome(status=487))
        self._out.append(ReportAdd(handle, user, 200))

    def dismissed(self, user: str, now: float) -> None:
        """He is no user any more: as if he had been removed, and nobody waits for the outcome. The initiator takes the
        call with him: it stands on his right."""
        if user == self.initiator:
            self.initiator_left(release=True, now=now)
        else:
            self._on_member(OnMember.REMOVED, user, now, _Outcome(status=404, warning=warning_text(141)))

    def initiator_cancelled(self, now: float) -> None:
        """CANCEL. One that crossed the 200 ends the call as well: the initiator is not in it."""
        self._on(On.INITIATOR_CANCELLED, now)

    def silent(self, now: float) -> None:
        """T4 of the floor ran out."""
        self._on(On.SILENT, now)

    def initiator_left(self, *, release: bool, now: float) -> None:
        """The initiator's BYE (``release``: with the Reason that ends it for all), or his leg is dead."""
        everybody = release or self.state is CallState.INVITING or not self.settings.keep_without_initiator
        self.initiator_present = False
        self._out.append(UndoAffiliation(self.initiator))
        self._on(On.INITIATOR_RELEASED if everybody else On.INITIATOR_LEFT, now)
        self._alone(now)

    def initiator_returned(self, now: float) -> None:
        """He joins again, whether his loss was noticed or not."""
        self.initiator_present = True
        self._on(On.INITIATOR_RETURNED, now)

    # --- time -----------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        # everybody may ring equally long: who was invited first is the first to have rung too long
        ringing = next(iter(self._invited.values()), None)
        due = [self._tng1, self._tng3, ringing.rings_until if ringing else None]
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        for member in list(self._invited.values()):
            if member.rings_until is not None and member.rings_until <= now:
                self._on_member(OnMember.RANG_TOO_LONG, member.user, now, _Outcome(status=408))
        if self._tng1 is not None and self._tng1 <= now:
            self._tng1 = None
            proceed = self.settings.proceed_at_time_limit and bool(self._connected)
            self._on(On.TNG1_PROCEED if proceed else On.TNG1_ABANDON, now)
        if self._tng3 is not None and self._tng3 <= now:
            self._tng3 = None
            self._on(On.TNG3, now)

    def events(self) -> list[Order]:
        """The orders since the last call, in the order to carry them out."""
        out, self._out = self._out, []
        return out

    # --- who is in ------------------------------------------------------------------------------------

    @property
    def connected(self) -> tuple[str, ...]:
        """Members who accepted; the initiator is not among them."""
        return tuple(self._connected)

    @property
    def invited(self) -> tuple[str, ...]:
        return tuple(self._invited)

    # --- the tables' drivers --------------------------------------------------------------------------

    def _on(self, on: On, now: float) -> None:
        row = CALL_TABLE.get((self.state, on))
        if row is not None:
            self.state, action = row
            action(self, now)

    def _on_member(self, on: OnMember, user: str, now: float, outcome: _Outcome) -> None:
        member = self.members.get(user) or Member(user)
        row = MEMBER_TABLE.get((member.state, on))
        if row is None:
            return
        member.state, action = row
        places = {MemberState.INVITED: self._invited, MemberState.CONNECTED: self._connected}
        for state, place in places.items():
            if state is member.state:
                place[user] = self.members[user] = member
            else:
                place.pop(user, None)
        if member.state is MemberState.GONE:
            self.members.pop(user, None)
        action(self, member, now, outcome)

    # --- actions on a member --------------------------------------------------------------------------

    def _invite(self, member: Member, now: float, outcome: _Outcome) -> None:
        if outcome.handle is not _NO_REPORT:
            member.reports.append(outcome.handle)
        member.key = _digest(outcome.key)
        self._given_up.discard(member.user)
        member.rings_until = now + self.settings.ring_time_limit
        self._out.append(InviteMember(member.user, outcome.key))

    def _joined(self, member: Member, now: float, outcome: _Outcome) -> None:
        member.rings_until = None
        self._out.append(AffiliateImplicitly(member.user))
        if member.reports:
            self._report(member, outcome)
        elif outcome.acknowledgement is not None:
            if self.state is CallState.INVITING:
                self._acknowledgements.append(outcome.acknowledgement)
            else:
                self._out.append(PassAcknowledgement(member.user, outcome.acknowledgement))
        self._out.append(RosterChanged(member.user, True))
        self._check_condition(now)

    def _refused(self, member: Member, now: float, outcome: _Outcome) -> None:
        self._last_refusal = (outcome.status, outcome.warning)
        self._report(member, outcome)
        self._out.append(RosterChanged(member.user, False))
        if member.user in self.required:
            self._given_up.add(member.user)
            if not self.settings.proceed_at_time_limit:
                self._on(On.REQUIRED_REFUSED, now)
        self._check_condition(now)
        self._alone(now)

    def _rang_too_long(self, member: Member, now: float, outcome: _Outcome) -> None:
        self._out.append(ReleaseMember(member.user, answered=False))
        self._refused(member, now, outcome)

    def _removed_while_ringing(self, member: Member, now: float, outcome: _Outcome) -> None:
        self._rang_too_long(member, now, outcome)

    def _removed(self, member: Member, now: float, outcome: _Outcome) -> None:
        self._out.append(ReleaseMember(member.user, answered=True))
        self._gone(member, now, outcome)

    def _gone(self, member: Member, now: float, _outcome: _Outcome) -> None:
        self._out.append(UndoAffiliation(member.user))
        self._out.append(RosterChanged(member.user, False))
        if self.state is CallState.INVITING:
            self._check_condition(now)
        self._alone(now)

    def _report(self, member: Member, outcome: _Outcome) -> None:
        handles, member.reports = member.reports, []
        for handle in handles:
            self._out.append(
                ReportAdd(handle, member.user, outcome.status, outcome.warning, outcome.acknowledgement)
            )

    # --- actions on the call --------------------------------------------------------------------------

    def _check_condition(self, now: float) -> None:
        if self.state is not CallState.INVITING:
            return
        connected, invited = self.connected, self.invited
        waited_for = self.required - self._given_up - frozenset(connected)
        if self.settings.answer_condition.met(len(connected), len(invited)) and not waited_for:
            self._on(On.CONDITION_MET, now)
        elif not connected and not invited and not self.settings.stay_when_refused:
            self._on(On.NOBODY_LEFT_TO_WAIT_FOR, now)

    def _alone(self, now: float) -> None:
        if not self.initiator_present and len(self.members) <= 1:
            self._on(On.ALONE, now)

    def _answer(self, _now: float) -> None:
        missing = self.required - frozenset(self.connected)
        self._answer_with((111,) if missing else (), missing)

    def _proceed(self, _now: float) -> None:
        self._answer_with((111,), (self.required | frozenset(self.invited)) - frozenset(self.connected))

    def _answer_with(self, warnings: tuple[int, ...], missing: frozenset[str]) -> None:
        self._tng1 = None
        self._out.append(AnswerInitiator(tuple(self._acknowledgements), warnings, tuple(sorted(missing))))
        self._acknowledgements.clear()
        self._out.append(RosterChanged(self.initiator, True))

    def _refuse(self, now: float) -> None:
        self._out.append(RefuseInitiator(*self._last_refusal))
        self._end("every invited user refused", now)

    def _abandon_for_required(self, now: float) -> None:
        self._out.append(RefuseInitiator(self._last_refusal[0], warning_text(112)))
        self._end("abandoned: a required member refused", now)

    def _abandon(self, now: float) -> None:
        self._out.append(RefuseInitiator(WARNINGS[112][0], warning_text(112)))
        self._end("abandoned at the time limit", now)

    def _cancelled(self, now: float) -> None:
        self._end("cancelled by the initiator", now)

    def _released(self, now: float) -> None:
        self._end("released by the initiator", now)

    def _expired(self, now: float) -> None:
        self._release_everybody("maximum duration", now)

    def _fell_silent(self, now: float) -> None:
        self._release_everybody("nobody talked for too long", now)

    def _release_everybody(self, cause: str, now: float) -> None:
        if self.initiator_present:
            self._out.append(ReleaseInitiator(cause))
        self._end(cause, now)

    def _refuse_and_expire(self, now: float) -> None:
        self._abandon(now)

    def _nobody(self, now: float) -> None:
        self._end("at most one participant is left", now)

    def _go_on(self, _now: float) -> None:
        self._out.append(RosterChanged(self.initiator, False))

    def _come_back(self, _now: float) -> None:
        self._out += [AffiliateImplicitly(self.initiator), RosterChanged(self.initiator, True)]

    def _end(self, cause: str, _now: float) -> None:
        self._tng1 = self._tng3 = None
        for member in self.members.values():
            self._report(member, _Outcome(status=487))
            self._out.append(ReleaseMember(member.user, answered=member.state is MemberState.CONNECTED))
            if member.state is MemberState.CONNECTED:
                self._out.append(UndoAffiliation(member.user))
        for place in (self.members, self._connected, self._invited):
            place.clear()
        self._acknowledgements.clear()
        if self.initiator_present:
            self._out.append(UndoAffiliation(self.initiator))
        self._out.append(CallReleased(cause))



def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


C, M, T = CallState, MemberState, TemporaryGroupCall

#: (state, event) -> (next state, action) of the call: TS 24.379 10.1.1.4.2 and 6.3.3, step 9 and the end
CALL_TABLE: dict[tuple[CallState, On], tuple[CallState, Callable[[TemporaryGroupCall, float], None]]] = {
    (C.INVITING, On.CONDITION_MET): (C.RUNNING, T._answer),
    (C.INVITING, On.NOBODY_LEFT_TO_WAIT_FOR): (C.RELEASED, T._refuse),
    (C.INVITING, On.TNG1_PROCEED): (C.RUNNING, T._proceed),
    (C.INVITING, On.TNG1_ABANDON): (C.RELEASED, T._abandon),
    (C.INVITING, On.REQUIRED_REFUSED): (C.RELEASED, T._abandon_for_required),
    (C.INVITING, On.TNG3): (C.RELEASED, T._refuse_and_expire),
    (C.INVITING, On.INITIATOR_CANCELLED): (C.RELEASED, T._cancelled),
    (C.INVITING, On.INITIATOR_RELEASED): (C.RELEASED, T._released),
    (C.RUNNING, On.TNG3): (C.RELEASED, T._expired),
    (C.RUNNING, On.SILENT): (C.RELEASED, T._fell_silent),
    (C.RUNNING, On.INITIATOR_CANCELLED): (C.RELEASED, T._released),
    (C.RUNNING, On.INITIATOR_RELEASED): (C.RELEASED, T._released),
    (C.RUNNING, On.INITIATOR_LEFT): (C.RUNNING, T._go_on),
    (C.RUNNING, On.INITIATOR_RETURNED): (C.RUNNING, T._come_back),
    (C.RUNNING, On.ALONE): (C.RELEASED, T._nobody),
}

MemberAction = Callable[[TemporaryGroupCall, Member, float, _Outcome], None]

#: the same for one named user: steps 4 to 6, removal, leaving
MEMBER_TABLE: dict[tuple[MemberState, OnMember], tuple[MemberState, MemberAction]] = {
    (M.GONE, OnMember.ADDED): (M.INVITED, T._invite),
    (M.INVITED, OnMember.ACCEPTED): (M.CONNECTED, T._joined),
    (M.INVITED, OnMember.REFUSED): (M.GONE, T._refused),
    (M.INVITED, OnMember.LEFT): (M.GONE, T._refused),
    (M.INVITED, OnMember.RANG_TOO_LONG): (M.GONE, T._rang_too_long),
    (M.INVITED, OnMember.REMOVED): (M.GONE, T._removed_while_ringing),
    (M.CONNECTED, OnMember.REMOVED): (M.GONE, T._removed),
    (M.CONNECTED, OnMember.LEFT): (M.GONE, T._gone),
}
