# SPDX-License-Identifier: Apache-2.0
"""The controlling MCPTT function of temporary group calls: legs, REFERs, key messages, roster; sans-IO.

It carries out the orders of :class:`~mcptt_sip.mcptt.regroup.TemporaryGroupCall` on a
:class:`~mcptt_sip.stack.SipStack` and a :class:`MediaPlane`. Key material passes through as octets that it
can check (who signed, for whom) and cannot open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import SipError
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents, regroup
from mcptt_sip.mcptt.admission import Admission, Admitted, refusal_of
from mcptt_sip.mcptt.affiliation import Affiliations
from mcptt_sip.mcptt.callrequest import CallRequest, read_call_request
from mcptt_sip.mcptt.conference import ConferencePackage
from mcptt_sip.mcptt.contents import (
    INFO_PACKAGE,
    Contents,
    Headers,
    SipFragment,
    focus_contact,
    read_contents,
    warning_header,
)
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import (
    ControllingSettings,
    Fork,
    GroupCall,
    KeyMessageCheck,
    Leg,
    MediaPlane,
    Observer,
    Refusal,
)
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MAX_ACKNOWLEDGEMENT, KeyingError, i_message
from mcptt_sip.mcptt.keymessages import KeyMessages
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription, MediaRefused
from mcptt_sip.mcptt.memberinvite import compose_invite
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Policy, Urgency, warning_text
from mcptt_sip.mcptt.referral import accept_referral, notify_outcome, read_referral
from mcptt_sip.mcptt.regroup import RegroupSettings, TemporaryGroupCall
from mcptt_sip.mcptt.returning import Returning
from mcptt_sip.mcptt.roster import Roster
from mcptt_sip.mcptt.urgency import UrgencyChanges, urgency_of
from mcptt_sip.mcptt.userprofile import UserProfile
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import InviteSession
from mcptt_sip.stack import SipStack
from mcptt_sip.subscription import NotifierSubscription
from mcptt_sip.uri import SipUri
from mikey import MikeyError

log = logging.getLogger(__name__)

#: why a device that rang or answered is not the one (24.379 anyExt release-reason)
NOT_SELECTED = "not selected for call"


class ControllingFunction:
    """All temporary group calls of one server.

    The caller (the participating function's side) has authenticated who sends each request.

    :param locate: every place where a user can be reached now
    """

    def __init__(
        self,
        stack: SipStack,
        *,
        settings: ControllingSettings,
        regroup_settings: Callable[[], RegroupSettings],
        policy: Callable[[], Policy],
        affiliations: Affiliations,
        locate: Callable[[str, float], Sequence[Destination]],
        check_key: KeyMessageCheck,
        media: MediaPlane,
        token: Callable[[], bytes],
        observe: Observer = lambda _name, _details: None,
    ) -> None:
        self._observe = observe
        self.stack = stack
        self.settings = settings
        self.calls: dict[str, GroupCall] = {}
        self._by_identity: dict[str, GroupCall] = {}
        self._regroup_settings = regroup_settings
        self._policy = policy
        self._affiliations = affiliations
        self._locate = locate
        self._check_key = check_key
        self._admission = Admission(
            settings, policy=policy, affiliations=affiliations, calls=self.calls, check_key=check_key
        )
        self.key_messages = KeyMessages(settings.domain, check_key, token)
        self.conference = ConferencePackage(settings, self.call_of)
        self.returning = Returning(settings.domain, self.calls.get, self._left_behind)
        self.urgency = UrgencyChanges(
            settings, policy=policy, token=token, offer=lambda leg: self._offer(leg.call, leg.destination),
            observe=observe,
        )
        self._media = media
        self._token = token

    # --- step 1 to 3: the initiator's INVITE ------------------------------------------------------------

    def invited(self, session: InviteSession, caller: Destination, now: float) -> None:
        """An authenticated user's INVITE to the service identity."""
        try:
            if (running := self._call_to_join(session)) is not None:
                self._rejoin(running, session, caller, now)
                return
            request = read_call_request(session.request, self.settings)
            admitted = self._admission.call(request, caller.user)
            call = self._open_call(request.group, caller.user, request.acknowledgement, now)
            self._open_media(call, request, admitted)
        except (SipError, ValueError) as error:
            self._refuse(session, refusal_of(error), now)
            return
        leg = Leg(call, caller.user, session, caller, initiator=True, theirs=request.theirs)
        leg.guk_id, leg.told = request.initiator_guk_id, request.urgency
        session.context = leg
        call.legs[caller.user] = leg
        log.info(
            "call-id=%s group=%s step=2 user=%s authorised: %s", session.call_id, call.group, caller.user,
            admitted.because,
        )
        self._observe("authorised", {"group": call.group, "user": caller.user, "call_id": session.call_id})
        # without 100rel users can be added only after the final answer
        headers = session.request.headers
        reliable = headers.understands("100rel")
        session.progress(183, reliable=reliable, headers=self._contact(call), now=now)
        self._admission.passed_on(request.key, now)
        call.machine.start(request.target, request.key, now, required=request.required)
        self._carry_out(call, now)

    def _open_call(self, group: str, initiator: str, acknowledgement: str, now: float) -> GroupCall:
        identity = self._new_session_identity()
        machine = TemporaryGroupCall(group, initiator, now=now, settings=self._regroup_settings())
        roster = Roster(group, initiator, interval=self.settings.roster_interval)
        return GroupCall(group, identity, machine, roster, acknowledgement=acknowledgement)

    def _open_media(self, call: GroupCall, request: CallRequest, admitted: Admitted) -> None:
        """The call exists from here on."""
        call.commencement, call.urgency, call.alert = admitted.commencement, request.urgency, admitted.alert
        call.deputies, call.signer = request.deputies, call.initiator
        call.declared_by = {call.initiator} if call.urgency is not Urgency.NORMAL else set()
        if request.alert and not call.alert:
            call.after_ack.append(McpttInfo(calling_group_id=call.group, alert=False))
        try:
            if request.floor_by_members:
                call.media = self._media.open_unread(call.group)
            else:
                call.media = self._media.open(call.group, call.machine.settings.max_silence)
            call.media.declare(call.urgency, call.declared_by)
        except OSError as error:
            raise self._admission.congestion(f"no media: {error}") from error
        self.calls[call.group] = call
        self._by_identity[SipUri.parse(call.session_identity).user or ""] = call

    # --- coming back ------------------------------------------------------------------------------------

    def _call_to_join(self, session: InviteSession) -> GroupCall | None:
        """The running call that an INVITE is for: by its session identity, or by its group without anybody to call."""
        if (call := self.call_of(session.request.uri)) is not None:
            return call
        contents = read_contents(session.request)
        return None if contents.targets else self.calls.get(contents.info.request_uri or "")

    def _rejoin(self, call: GroupCall, session: InviteSession, caller: Destination, now: float) -> None:
        """The initiator joins his call again: after a crash, or from another device, whose leg this one takes over.
        For everyone else a fresh key comes first, see :class:`Returning`."""
        profile, running = self.profile(caller.user), call.machine.state is regroup.CallState.RUNNING
        if caller.user != call.initiator or not running or profile is None or not profile.allow_regroup:
            raise Refusal(403, warning_text(121), f"{caller.user} cannot join {call.group} by INVITE")
        contents = read_contents(session.request)
        leg = Leg(call, caller.user, session, caller, initiator=True, guk_id=contents.info.initiator_guk_id or 0)
        leg.theirs, leg.told = GroupMediaDescription.decode(contents.sdp), urgency_of(contents.info)
        old = call.legs.get(caller.user)
        leg.take_over(old)
        if old is not None:
            old.hang_up(now, "taken over by another device")
        session.context = leg
        call.legs[caller.user] = leg
        self._accept(leg, (), [*self._warning(warning_text(123))], now)
        call.machine.initiator_returned(now)
        log.info("call-id=%s group=%s user=%s is back", session.call_id, call.group, caller.user)
        self._carry_out(call, now)

    def _left_behind(self, call: GroupCall, user: str, now: float) -> None:
        """``user`` is at another device now."""
        call.legs[user].hang_up(now, "taken over by another device")
        call.machine.left(user, now)
        self._carry_out(call, now)

    def registered(self, user: str, now: float) -> None:
        """He can be reached, perhaps again."""
        self.returning.registered(list(self.calls.values()), user, now)

    # --- step 4, 5, 6: a member's leg -------------------------------------------------------------------

    def key_for(self, call: GroupCall, user: str, key: bytes) -> bytes:
        """The I_MESSAGE that goes to ``user``: the octets that came for him, and no others."""
        return key

    def _invite(self, call: GroupCall, order: regroup.InviteMember, now: float) -> None:
        """At every device that he has registered, all at once; the first that answers has him."""
        destinations = self._locate(order.user, now)
        wanted = call.wanted_at.pop(order.user, None)
        destinations = [place for place in destinations if place.contact == wanted] or destinations
        if not destinations:
            call.machine.refused(order.user, 480, warning_text(146), now)
            return
        call.roster.inviting(order.user, now)
        fork = call.forks[order.user] = Fork(order.user)
        guk_id, signer = 0, call.director.user if call.director is not None else call.initiator
        try:
            guk_id = self._check_key(i_message(order.key), signer, order.user)
        except (MikeyError, KeyingError) as error:  # it was checked when it arrived; only time can have run out
            log.warning("group=%s user=%s key message: %s", call.group, order.user, error)
        for destination in destinations:
            invite = compose_invite(
                call, order.user, signer=signer, offer=self._offer(call, destination),
                key=self.key_for(call, order.user, order.key), settings=self.settings, token=self._token,
            )
            session = self.stack.invite(
                destination.contact, from_=f"<{call.group}>", to=f"<{order.user}>", headers=invite.headers,
                body=invite.body, content_type=invite.content_type, now=now, flow=destination.flow,
            )
            leg = Leg(call, order.user, session, destination, guk_id=guk_id, key_from=signer, told=call.urgency)
            session.context = leg
            fork.legs.append(leg)
            log.info("call-id=%s group=%s step=4 user=%s invited", session.call_id, call.group, order.user)

    def _offer(self, call: GroupCall, destination: Destination) -> GroupMediaDescription:
        return GroupMediaDescription(
            audio=call.media.audio, floor=call.media.floor, priority=destination.priority
        )

    def answered(self, leg: Leg, contents: Contents | None, now: float) -> None:
        """Step 6: a member's 200; ``None``: with a body that cannot be read."""
        call, fork = leg.call, leg.call.forks.get(leg.user)
        if fork is None or leg not in fork.legs:
            self._not_selected(leg, now)
            return
        try:
            if contents is None:
                raise MediaRefused("the answer's body cannot be read")
            leg.theirs = GroupMediaDescription.decode(contents.sdp)
            leg.join_media()
        except (MediaRefused, ValueError) as error:
            log.warning("group=%s user=%s answer not usable: %s", call.group, leg.user, error)
            leg.hang_up(now, "the answer's media is not that of a regroup call")
            self.refused(leg, 488, None, now)
            return
        del call.forks[leg.user]
        call.legs[leg.user] = leg
        call.former.add(leg.user)
        call.lost.discard(leg.user)
        for other in fork.legs:
            if other is not leg:
                self._not_selected(other, now)
        offered = [octets for octets in contents.acknowledgements if len(octets) <= MAX_ACKNOWLEDGEMENT]
        acknowledgement = offered[0] if len(offered) == 1 else None
        call.machine.accepted(leg.user, acknowledgement, now)
        self._carry_out(call, now)
        self.urgency.tell(leg, now)

    def _not_selected(self, leg: Leg, now: float) -> None:
        """CANCEL, or BYE when his 200 was faster (security rule 21)."""
        leg.session.context = None
        body = McpttInfo(calling_group_id=leg.call.group, release_reason=NOT_SELECTED).encode()
        reason = [("Reason", f'SIP;cause=200;text="{NOT_SELECTED}"')]
        leg.session.bye(now, headers=reason, body=body, content_type=documents.MCPTT_INFO)

    def refused(self, leg: Leg, status: int, warning: str | None, now: float) -> None:
        """One device's refusal; the user's, when it is the last or speaks for all of them (6xx)."""
        call, fork = leg.call, leg.call.forks.get(leg.user)
        log.info("group=%s user=%s refused status=%d %s", call.group, leg.user, status, warning or "")
        if fork is None or leg not in fork.legs:
            return
        fork.refused(leg, status, warning)
        if fork.legs and status < 600:
            return
        del call.forks[leg.user]
        for other in fork.legs:
            self._not_selected(other, now)
        call.machine.refused(leg.user, *fork.best, now)
        self._carry_out(call, now)

    def ended(self, leg: Leg, cause: Cause, for_all: bool, now: float) -> None:
        """A leg's BYE, or its loss."""
        call = leg.call
        if call.legs.get(leg.user) is not leg:
            return
        del call.legs[leg.user]
        leg.leave_media()
        log.info("group=%s user=%s left: %s", call.group, leg.user, cause.value)
        if leg.initiator:
            # without his ACK the initiator has never been in the call
            call.machine.initiator_left(release=for_all or cause is Cause.NO_ACK, now=now)
        else:
            if cause is not Cause.REMOTE_BYE:
                call.lost.add(leg.user)
            call.machine.left(leg.user, now)
        self._carry_out(call, now)

    def cancelled(self, leg: Leg, now: float) -> None:
        leg.call.legs.pop(leg.user, None)
        leg.leave_media()
        leg.call.machine.initiator_cancelled(now)
        self._carry_out(leg.call, now)

    def confirmed(self, leg: Leg, now: float) -> None:
        """The ACK: what had to wait for it is sent to the initiator."""
        self.urgency.tell(leg, now)
        waiting, leg.call.after_ack = leg.call.after_ack, []
        for info in waiting if leg.initiator else ():
            leg.inform(documents.MCPTT_INFO, info.encode(), now)

    def changed(self, incoming: ServerRequest, leg: Leg, now: float) -> None:
        """A re-INVITE or UPDATE with an offer in a leg: a refresh, another place for his media, another urgency."""
        try:
            contents = read_contents(incoming.request)
            theirs, urgency = GroupMediaDescription.decode(contents.sdp), self.urgency.asked(leg, contents.info)
            if theirs != leg.theirs:
                leg.move_media(theirs)
        except Refusal as refusal:
            log.info("group=%s user=%s change refused: %s", leg.call.group, leg.user, refusal)
            headers, (body, kind) = self._refusal_headers(refusal), _stated(refusal)
            incoming.respond(refusal.status, headers=headers, body=body, content_type=kind, now=now)
            return
        except (SipError, ValueError) as error:
            log.info("group=%s user=%s change refused: %s", leg.call.group, leg.user, error)
            incoming.respond(488, headers=self._warning(None, str(error)), now=now)
            return
        incoming.respond(
            200, headers=self._contact(leg.call), body=self._offer(leg.call, leg.destination).encode(),
            content_type="application/sdp", now=now,
        )
        if urgency is not None:
            self.urgency.take(leg, urgency, now)

    def media_silent(self, group: str, now: float) -> None:
        """T4: nobody has talked for as long as the settings allow."""
        call = self.calls.get(group)
        if call is not None:
            call.machine.silent(now)
            self._carry_out(call, now)

    # --- step 7: REFER ----------------------------------------------------------------------------------

    def referred(self, incoming: ServerRequest, sender: str, now: float) -> None:
        """REFER to a session identity: add (method INVITE) or remove (method BYE) one user."""
        call = self.call_of(incoming.request.uri)
        try:
            referral = read_referral(incoming, call, sender, self.settings.domain)
            assert call is not None
            key = b"" if referral.remove else self._admission.addition(incoming, call, referral.user, sender)
        except (SipError, ValueError) as error:
            refusal = refusal_of(error)
            log.info("call-id=%s REFER refused: %s", incoming.request.headers.call_id, refusal)
            incoming.respond(refusal.status, headers=self._refusal_headers(refusal), now=now)
            return
        handle = accept_referral(incoming, referral, self._contact(call), self.settings.domain, now)
        log.info(
            "call-id=%s group=%s step=7 user=%s refer method=%s", incoming.request.headers.call_id, call.group,
            referral.user, "BYE" if referral.remove else "INVITE",
        )
        if referral.remove:
            call.former -= {referral.user}
            call.lost -= {referral.user}
            call.machine.remove(referral.user, handle, now)
        else:
            self._admission.passed_on(key, now)
            call.machine.add(referral.user, key, handle, now)
        self._carry_out(call, now)

    # --- orders -----------------------------------------------------------------------------------------

    def _carry_out(self, call: GroupCall, now: float) -> None:
        orders = call.machine.events()
        while orders:
            for order in orders:
                self._order(call, order, now)
            orders = call.machine.events()

    def _order(self, call: GroupCall, order: regroup.Order, now: float) -> None:
        match order:
            case regroup.AffiliateImplicitly(user):
                self._affiliations.affiliate_implicitly(user, call.group)
                self._observe("affiliated", {"group": call.group, "user": user})
                log.info("group=%s step=3 user=%s implicitly affiliated", call.group, user)
            case regroup.UndoAffiliation(user):
                self._affiliations.undo_implicit(user, call.group)
            case regroup.InviteMember():
                self._invite(call, order, now)
            case regroup.AnswerInitiator():
                self._answer_initiator(call, order, now)
            case regroup.RefuseInitiator(status, warning):
                leg = call.legs.pop(call.initiator)
                if not leg.session.ended:  # his CANCEL may be on record already
                    leg.session.context = None
                    leg.session.reject(status, headers=self._warning(warning), now=now)
            case regroup.ReportAdd():
                self._report(call, order, now)
            case regroup.PassAcknowledgement(_, acknowledgement):
                if call.director is not None:
                    call.director.inform(ACKNOWLEDGEMENT, acknowledgement, now)
            case regroup.ReleaseMember(user, answered):
                self._release_member(call, user, answered, now)
            case regroup.ReleaseInitiator(cause):
                if (initiator := call.legs.get(call.initiator)) is not None:
                    initiator.hang_up(now, cause)
            case regroup.RosterChanged(user, connected):
                if connected:
                    call.roster.connected(user, now)
                else:
                    call.roster.gone(user, now)
                    call.roster.dismiss(user, now)
                if call.members_due is None:
                    call.members_due = max(now, call.members_told + self.settings.members_interval)
                log.info("group=%s user=%s members=%d", call.group, user, len(call.machine.connected))
            case regroup.CallReleased(cause):
                self._close(call, cause, now)

    def _answer_initiator(self, call: GroupCall, order: regroup.AnswerInitiator, now: float) -> None:
        leg = call.legs[call.initiator]
        if leg.session.ended:
            return  # his CANCEL or BYE is on record, and ends the call when it is handled
        try:
            leg.join_media()
        except (MediaRefused, ValueError) as error:
            log.warning("group=%s user=%s offer not usable: %s", call.group, leg.user, error)
            leg.session.context = None
            leg.session.reject(488, headers=self._warning(None, str(error)), now=now)
            del call.legs[call.initiator]
            call.machine.initiator_left(release=True, now=now)
            return
        warnings = [header for code in order.warnings for header in self._warning(warning_text(code))]
        profile = self.profile(call.initiator)
        if order.missing and profile is not None and profile.allow_to_receive_non_acknowledged_users_information:
            call.after_ack.append(McpttInfo(calling_group_id=call.group, non_acknowledged=order.missing))
        if call.after_ack:
            warnings += self._warning(warning_text(149))
        self._accept(leg, order.acknowledgements, warnings, now)
        log.info("call-id=%s group=%s step=9 initiator answered", leg.session.call_id, call.group)

    def _accept(self, leg: Leg, acknowledgements: Sequence[bytes], warnings: Headers, now: float) -> None:
        """The initiator's 200."""
        info = McpttInfo(session_type="prearranged", calling_group_id=leg.call.group, temporary_group=True)
        parts = [
            Part("application/sdp", self._offer(leg.call, leg.destination).encode()),
            Part(documents.MCPTT_INFO, info.encode()),
            *(Part(ACKNOWLEDGEMENT, octets) for octets in acknowledgements),
        ]
        content_type, body = build_multipart(parts, self._token)
        headers = [*self._contact(leg.call), ("Recv-Info", INFO_PACKAGE), *warnings]
        leg.session.accept(headers=headers, body=body, content_type=content_type, now=now)

    def _report(self, call: GroupCall, order: regroup.ReportAdd, now: float) -> None:
        if order.handle is None:
            call.roster.outcome(order.user, order.status, order.warning, order.acknowledgement, now)
            return
        assert isinstance(order.handle, NotifierSubscription)
        notify_outcome(
            order.handle, SipFragment(order.status, order.warning, order.acknowledgement), self.settings.domain, now
        )

    def _release_member(self, call: GroupCall, user: str, answered: bool, now: float) -> None:
        if answered:
            if (leg := call.legs.get(user)) is not None:
                leg.hang_up(now, "removed from the call" if call.machine.connected else "call released")
            return
        fork = call.forks.pop(user, None)
        for leg in fork.legs if fork is not None else ():
            leg.session.context = None
            leg.session.bye(now)

    def _close(self, call: GroupCall, cause: str, now: float) -> None:
        for user in list(call.forks):
            self._release_member(call, user, False, now)
        for leg in list(call.legs.values()):
            if not leg.initiator:
                self._release_member(call, leg.user, True, now)
        call.roster.close(now)
        call.media.close()
        self._affiliations.undo_group(call.group)
        self.calls.pop(call.group, None)
        self._by_identity.pop(SipUri.parse(call.session_identity).user or "", None)
        log.info("group=%s released: %s", call.group, cause)
        self._observe("released", {"group": call.group, "cause": cause})

    def release_all(self, why: str, now: float) -> None:
        """The server goes down: every call ends, and everybody is told."""
        for call in list(self.calls.values()):
            call.let_initiator_go(503, why, now)
            self._close(call, why, now)

    def policy_changed(self, users: Collection[str], now: float) -> None:
        """Whoever is not among these users any more is in no call: neither as a member, nor invited, nor as its
        initiator, whose call ends. A right that somebody has lost is asked for when he uses it."""
        for call in list(self.calls.values()):
            try:
                self._dismiss(call, users, now)
            except Exception:  # as for `handle_timer`
                log.exception("group=%s is given up", call.group)
                self._close(call, "internal error", now)

    def _dismiss(self, call: GroupCall, users: Collection[str], now: float) -> None:
        call.former = {user for user in call.former if user in users}
        call.lost = {user for user in call.lost if user in users}
        gone = [user for user in dict.fromkeys((call.initiator, *call.legs, *call.forks)) if user not in users]
        for user in gone:
            log.info("group=%s user=%s dismissed: no user any more", call.group, user)
            if user == call.initiator:
                call.let_initiator_go(403, "no user any more", now)
            call.machine.dismissed(user, now)
        self._carry_out(call, now)

    # --- time -------------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        due = [call.machine.next_timer() for call in self.calls.values()]
        for call in self.calls.values():
            due += [call.roster.due, call.members_due]
        due += self.urgency.due()
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        self.urgency.handle_timer(now)
        for call in list(self.calls.values()):
            try:
                self._call_timer(call, now)
            except Exception:  # whatever is wrong with one call, the time of all others goes on
                log.exception("group=%s is given up", call.group)
                self._close(call, "internal error", now)

    def _call_timer(self, call: GroupCall, now: float) -> None:
        call.machine.handle_timer(now)
        self._carry_out(call, now)
        if call.group not in self.calls:
            return
        call.roster.handle_timer(now)
        if call.members_due is not None and call.members_due <= now:
            call.members_due, call.members_told = None, now
            present = [call.initiator] if call.machine.initiator_present else []
            connected = sorted([*present, *call.machine.connected])
            self._observe("members", {"group": call.group, "connected": connected})

    # --- small things -----------------------------------------------------------------------------------

    def profile(self, user: str) -> UserProfile | None:
        """The policy's profile of ``user``."""
        return self._policy().profiles.get(user)

    def call_of(self, uri: object) -> GroupCall | None:
        """The call whose session identity ``uri`` is."""
        try:
            return self._by_identity.get(SipUri.parse(str(uri)).user or "")
        except SipError:
            return None

    def _new_session_identity(self) -> str:
        service = SipUri.parse(self.settings.identity)
        return f"sip:session-{self._token().hex()}@{service.host};gr={self._token().hex()[:8]}"

    def _contact(self, call: GroupCall) -> Headers:
        return [("Contact", focus_contact(call.session_identity))]

    def _warning(self, text: str | None, plain: str | None = None) -> Headers:
        return warning_header(self.settings.domain, text or plain)

    def _refusal_headers(self, refusal: Refusal) -> Headers:
        plain = str(refusal) if refusal.status == 400 else None
        return [*self._warning(refusal.warning, plain), *refusal.headers]

    def _refuse(self, session: InviteSession, refusal: Refusal, now: float) -> None:
        log.info("call-id=%s refused status=%d: %s", session.call_id, refusal.status, refusal)
        self._observe("refused", {"call_id": session.call_id, "status": refusal.status, "because": str(refusal)})
        body, content_type = _stated(refusal)
        session.reject(
            refusal.status, headers=self._refusal_headers(refusal), body=body, content_type=content_type, now=now
        )


def _stated(refusal: Refusal) -> tuple[bytes, str | None]:
    """The body of a refusal, and its type."""
    return (b"", None) if refusal.info is None else (refusal.info.encode(), documents.MCPTT_INFO)
