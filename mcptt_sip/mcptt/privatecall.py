# SPDX-License-Identifier: Apache-2.0
"""Private calls on the server: two legs, the caller's key message passed on unopened, media relayed; sans-IO.

The mechanism that the temporary group call reuses for each of its users: the calling client makes the key (a PCK) and
seals it to the one called user; the server, which checks who signed for whom, can open nothing (TS 33.180 7.2,
TS 24.379 11.1.1). The key message travels in the SDP's ``a=key-mgmt`` (RFC 4567); a part of its own, as in a group
call, is taken as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import SipError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import SERVER_HEADERS, Contents, Headers, read_contents, warning_header
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupMedia, KeyMessageCheck, MediaPlane, Observer
from mcptt_sip.mcptt.keying import MIKEY, KeyingError, i_message
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Policy, warning_text
from mcptt_sip.mcptt.urgency import declined
from mcptt_sip.session import InviteSession
from mcptt_sip.stack import SipStack
from mikey import MikeyError

log = logging.getLogger(__name__)

PRIVATE_SESSION = "private"


def private_key_of(contents: Contents) -> tuple[GroupMediaDescription, bytes]:
    """The SDP of a private call's offer, and its one key message: in ``a=key-mgmt``, as a part of its own, or the same
    in both. Raises :class:`KeyingError`, :class:`~mcptt_sip.mcptt.mediadescription.MediaRefused`."""
    if contents.mikey is not None:
        return GroupMediaDescription.decode(contents.sdp, beside=contents.mikey), contents.mikey
    theirs = GroupMediaDescription.decode_keyed(contents.sdp)
    if theirs.key is None:
        raise KeyingError("a private call without a key")
    return theirs, theirs.key


@dataclass(slots=True, eq=False)  # each is itself: comparing their fields would go round in circles
class PrivateLeg:
    """One side's session: the caller's, or one of the called user's devices while they ring."""

    call: PrivateCallState
    user: str
    session: InviteSession
    destination: Destination
    theirs: GroupMediaDescription | None = None


@dataclass(slots=True, eq=False)  # each is itself: comparing their fields would go round in circles
class PrivateCallState:
    """One private call. ``key_id`` is the PCK-ID, which stands in every packet's MKI."""

    caller: PrivateLeg
    media: GroupMedia
    key_id: int
    ringing: list[PrivateLeg] = field(default_factory=list)
    called: PrivateLeg | None = None
    last_refusal: tuple[int, str | None] = (480, None)
    rings_until: float | None = None
    over: bool = False


class PrivateCallFunction:
    """All private calls of one server. Who calls is authenticated; whether he may is asked here."""

    def __init__(
        self,
        stack: SipStack,
        *,
        settings: ControllingSettings,
        policy: Callable[[], Policy],
        destinations: Callable[[str, float], Sequence[Destination]],
        check_key: KeyMessageCheck,
        media: MediaPlane,
        token: Callable[[], bytes],
        ring_time_limit: float = 60.0,
        observe: Observer = lambda _name, _details: None,
    ) -> None:
        self.stack = stack
        self.settings = settings
        self.calls: list[PrivateCallState] = []
        self._policy = policy
        self._destinations = destinations
        self._check_key = check_key
        self._media = media
        self._token = token
        self._ring_time_limit = ring_time_limit
        self._observe = observe

    # --- the caller's INVITE ----------------------------------------------------------------------------

    def invited(self, session: InviteSession, caller: Destination, contents: Contents, now: float) -> None:
        """An authenticated user's INVITE of session type ``private``."""
        if len(contents.targets) != 1:
            self._refuse(session, 403, warning_text(145), f"{len(contents.targets)} targets, not one", now)
            return
        target = contents.targets[0]
        policy = self._policy()
        decision = policy.may_add(policy.question(caller.user, target))
        if not decision.allowed:
            self._refuse(session, decision.status, decision.warning_text, decision.because, now)
            return
        try:
            if contents.info.temporary_group:
                raise KeyingError("a private call has no group")
            theirs, key = private_key_of(contents)
            key_id = self._check_key(i_message(key), caller.user, target)
        except (MikeyError, KeyingError) as error:
            self._refuse(session, 488, warning_text(136), f"I_MESSAGE for {target}: {error}", now)
            return
        except SipError as error:
            self._refuse(session, getattr(error, "status", 400), None, str(error), now)
            return
        if len(self.calls) >= self.settings.max_calls or self._calls_of(caller.user) >= self.settings.max_private_calls:
            log.warning("call-id=%s user=%s too many private calls", session.call_id, caller.user)
            session.reject(500, headers=[("Retry-After", self.settings.retry_after)], now=now)
            return
        places = self._destinations(target, now)
        if not places:
            self._refuse(session, 480, warning_text(146), f"{target} is not registered", now)
            return
        try:
            media = self._media.open_private(session.call_id)
        except OSError as error:
            log.error("call-id=%s no media: %s", session.call_id, error)
            session.reject(500, headers=[("Retry-After", "10")], now=now)
            return
        call = PrivateCallState(PrivateLeg(None, caller.user, session, caller, theirs), media, key_id)  # type: ignore[arg-type]
        call.caller.call = call
        call.rings_until = now + self._ring_time_limit
        session.context = call.caller
        self.calls.append(call)
        log.info("call-id=%s private call user=%s calls %s: %s", session.call_id, caller.user, target, decision.because)
        self._observe("private-call", {"caller": caller.user, "called": target, "call_id": session.call_id})
        session.progress(180, now=now)
        for place in places:
            self._invite(call, place, contents.mikey, now)

    def _calls_of(self, user: str) -> int:
        return sum(user in (call.caller.user, call.called and call.called.user) for call in self.calls)

    def _invite(self, call: PrivateCallState, place: Destination, key: bytes | None, now: float) -> None:
        """``key``: the key message of a part of its own. Each goes out where it came in, octet for octet."""
        info = McpttInfo(session_type=PRIVATE_SESSION, request_uri=place.user, calling_user_id=call.caller.user)
        assert call.caller.theirs is not None
        parts = [
            Part("application/sdp", replace(self._offer(call), key=call.caller.theirs.key).encode()),
            Part(documents.MCPTT_INFO, info.encode()),
        ]
        if key is not None:
            parts.append(Part(MIKEY, key))
        content_type, body = build_multipart(parts, self._token)
        session = self.stack.invite(
            place.contact,
            from_=f"<{call.caller.user}>",
            to=f"<{place.user}>",
            headers=[
                *SERVER_HEADERS,
                ("P-Asserted-Identity", f"<{self.settings.identity}>"),
                self.settings.commencement.header,
            ],
            body=body,
            content_type=content_type,
            now=now,
            flow=place.flow,
        )
        leg = PrivateLeg(call, place.user, session, place)
        session.context = leg
        call.ringing.append(leg)

    def _offer(self, call: PrivateCallState) -> GroupMediaDescription:
        return GroupMediaDescription(audio=call.media.audio, floor=call.media.floor)

    # --- what the called user's devices say --------------------------------------------------------------

    def answered(self, leg: PrivateLeg, contents: Contents | None, now: float) -> None:
        """A 200: the first one has the call, the others are let go."""
        call = leg.call
        if leg in call.ringing:
            call.ringing.remove(leg)
        if call.over or call.called is not None:
            leg.session.context = None
            leg.session.bye(now)
            return
        try:
            if contents is None:
                raise SipError("the answer cannot be read")
            leg.theirs = GroupMediaDescription.decode(contents.sdp)
            for side in (call.caller, leg):
                assert side.theirs is not None
                call.media.add_leg(side.destination, side.theirs, call.key_id)
        except (SipError, ValueError) as error:
            log.warning("call-id=%s answer not usable: %s", leg.session.call_id, error)
            leg.session.context = None
            leg.session.bye(now)
            call.last_refusal = (488, None)
            self._nobody_left(call, now)
            return
        call.called, call.rings_until = leg, None
        for other in call.ringing:
            other.session.cancel(now)
        info = McpttInfo(session_type=PRIVATE_SESSION, called_party_id=leg.user)
        content_type, body = build_multipart(
            [Part("application/sdp", self._offer(call).encode()), Part(documents.MCPTT_INFO, info.encode())],
            self._token,
        )
        call.caller.session.accept(body=body, content_type=content_type, now=now)

    def refused(self, leg: PrivateLeg, status: int, warning: str | None, now: float) -> None:
        """A final answer that is no 2xx; the last one is handed on."""
        call = leg.call
        if leg in call.ringing:
            call.ringing.remove(leg)
            call.last_refusal = (status, warning)
            self._nobody_left(call, now)

    def _nobody_left(self, call: PrivateCallState, now: float) -> None:
        if not call.ringing and call.called is None and not call.over:
            status, warning = call.last_refusal
            self._release(call, status, now, headers=self._warning(warning))

    def changed(self, incoming: ServerRequest, leg: PrivateLeg, now: float) -> None:
        """A re-INVITE or UPDATE with an offer: a refresh, or another place for this side's media."""
        call = leg.call
        try:
            contents = read_contents(incoming.request)
            if contents.info.emergency or contents.info.imminent_peril:
                incoming.respond(
                    403, headers=self._warning(warning_text(100, "no urgent private calls")),
                    body=declined(contents.info).encode(), content_type=documents.MCPTT_INFO, now=now,
                )
                return
            theirs = GroupMediaDescription.decode(contents.sdp)
            if leg.theirs is None or theirs != replace(leg.theirs, key=None):
                self._move(leg, theirs)
        except (SipError, ValueError) as error:
            log.info("call-id=%s user=%s change refused: %s", leg.session.call_id, leg.user, error)
            incoming.respond(488, now=now)
            return
        incoming.respond(200, body=self._offer(call).encode(), content_type="application/sdp", now=now)

    def _move(self, leg: PrivateLeg, theirs: GroupMediaDescription) -> None:
        """As :meth:`~mcptt_sip.mcptt.groupcall.Leg.move_media`."""
        media, key_id = leg.call.media, leg.call.key_id
        media.remove_leg(leg.user)
        try:
            media.add_leg(leg.destination, theirs, key_id)
        except (SipError, ValueError):
            if leg.theirs is not None:
                media.add_leg(leg.destination, leg.theirs, key_id)
            raise
        leg.theirs = theirs

    # --- the end ----------------------------------------------------------------------------------------

    def cancelled(self, leg: PrivateLeg, now: float) -> None:
        """The caller gave up."""
        self._end(leg.call, now)

    def ended(self, leg: PrivateLeg, now: float) -> None:
        """One side's BYE, or its loss: the other side's call is over too."""
        if not leg.call.over and leg in (leg.call.caller, leg.call.called):
            self._end(leg.call, now, gone=leg)

    def _end(self, call: PrivateCallState, now: float, gone: PrivateLeg | None = None) -> None:
        call.over = True
        for ringing in call.ringing:
            ringing.session.cancel(now)
        for leg in (call.caller, call.called):
            if leg is not None and leg is not gone and call.called is not None:
                leg.session.bye(now)
        call.media.close()
        if call in self.calls:
            self.calls.remove(call)
        self._observe("private-call-ended", {"caller": call.caller.user, "call_id": call.caller.session.call_id})

    def release_all(self, now: float) -> None:
        """The server goes down."""
        for call in list(self.calls):
            self._release(call, 503, now)

    def policy_changed(self, users: Collection[str], now: float) -> None:
        """Whoever is not among these users any more is in no call."""
        for call in list(self.calls):
            legs = [call.caller, *([call.called] if call.called is not None else call.ringing)]
            if any(leg.user not in users for leg in legs):
                self._release(call, 403, now)

    def _release(self, call: PrivateCallState, status: int, now: float, headers: HeaderItems = ()) -> None:
        """Ends a call; `status` is the answer to an INVITE that has none, unless its CANCEL is on record already."""
        if call.called is None and not call.caller.session.ended:
            call.caller.session.reject(status, headers=headers, now=now)
        self._end(call, now)

    # --- time -------------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        return min((call.rings_until for call in self.calls if call.rings_until is not None), default=None)

    def handle_timer(self, now: float) -> None:
        for call in list(self.calls):
            if call.rings_until is not None and call.rings_until <= now:
                call.rings_until = None
                self._release(call, 408, now)

    def _warning(self, text: str | None) -> Headers:
        return warning_header(self.settings.domain, text)

    def _refuse(self, session: InviteSession, status: int, warning: str | None, because: str, now: float) -> None:
        log.info("call-id=%s private call refused status=%d: %s", session.call_id, status, because)
        session.reject(status, headers=self._warning(warning), now=now)
