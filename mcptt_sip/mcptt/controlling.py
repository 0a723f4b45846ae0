# SPDX-License-Identifier: Apache-2.0
"""The controlling MCPTT function of temporary group calls: legs, REFERs, key messages, roster; sans-IO.

It carries out the orders of :class:`~mcptt_sip.mcptt.regroup.TemporaryGroupCall` on a
:class:`~mcptt_sip.stack.SipStack` and a :class:`MediaPlane`. Key material passes through as octets that it
can check (who signed, for whom) and cannot open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import SipError
from mcptt_sip.headers import NameAddr
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents, regroup
from mcptt_sip.mcptt.affiliation import Affiliations
from mcptt_sip.mcptt.contents import (
    INFO_PACKAGE,
    SERVER_HEADERS,
    Contents,
    SipFragment,
    focus_contact,
    read_contents,
    warning_header,
)
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import (
    ControllingSettings,
    GroupCall,
    KeyMessageCheck,
    Leg,
    MediaPlane,
    Observer,
    Refusal,
    names_dialog,
)
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MAX_ACKNOWLEDGEMENT, MIKEY, KeyingError, i_message
from mcptt_sip.mcptt.keymessages import KeyMessages
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription, MediaRefused
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Decision, Policy, UserProfile, warning_text
from mcptt_sip.mcptt.regroup import RegroupSettings, TemporaryGroupCall
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import InviteSession
from mcptt_sip.stack import SipStack
from mcptt_sip.subscription import NotifierState, NotifierSubscription
from mcptt_sip.uri import SipUri
from mikey import MikeyError

log = logging.getLogger(__name__)

SIPFRAG = "message/sipfrag;version=2.0"

class ControllingFunction:
    """All temporary group calls of one server.

    The caller (the participating function's side) has authenticated who sends each request.
    """

    def __init__(
        self,
        stack: SipStack,
        *,
        settings: ControllingSettings,
        regroup_settings: Callable[[], RegroupSettings],
        policy: Callable[[], Policy],
        affiliations: Affiliations,
        locate: Callable[[str, float], Destination | None],
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
        self.key_messages = KeyMessages(settings.domain, check_key, token)
        self._media = media
        self._token = token

    # --- step 1 to 3: the initiator's INVITE ------------------------------------------------------------

    def invited(self, session: InviteSession, caller: Destination, now: float) -> None:
        """An authenticated user's INVITE to the service identity."""
        try:
            contents = read_contents(session.request)
            target, key = self._one_target(contents), self._one_key(contents)
            group = self._proposed_group(contents)
            theirs = GroupMediaDescription.decode(contents.sdp)
        except MediaRefused as error:
            self._refuse(session, 488, None, f"media: {error}", now)
            return
        except Refusal as refusal:
            self._refuse(session, refusal.status, refusal.warning, str(refusal), now)
            return
        except (SipError, ValueError) as error:
            self._refuse(session, getattr(error, "status", 400), None, str(error), now)
            return
        running = sum(1 for call in self.calls.values() if caller.user in call.legs)
        decision = self._policy().may_start_regroup(caller.user, target, calls=running)
        if not decision.allowed:
            self._refuse_by(decision, session, now)
            return
        if group in self.calls:
            self._refuse(session, 403, warning_text(165), f"{group} is in use", now)
            return
        try:
            self._check_key(i_message(key), caller.user, target, now)
        except (MikeyError, KeyingError) as error:
            self._refuse(session, 488, warning_text(136), f"I_MESSAGE for {target}: {error}", now)
            return
        call = self._open_call(group, caller.user, contents.info.acknowledgement or "none", now)
        leg = Leg(call, caller.user, session, caller, initiator=True, theirs=theirs)
        leg.guk_id = contents.info.initiator_guk_id or 0
        session.context = leg
        call.legs[caller.user] = leg
        log.info(
            "call-id=%s group=%s step=2 user=%s authorised: %s", session.call_id, group, caller.user,
            decision.because,
        )
        self._observe("authorised", {"group": group, "user": caller.user, "call_id": session.call_id})
        session.progress(183, reliable=True, headers=self._contact(call), now=now)
        call.machine.start(target, key, now)
        self._carry_out(call, now)

    def _open_call(self, group: str, initiator: str, acknowledgement: str, now: float) -> GroupCall:
        identity = self._new_session_identity()
        machine = TemporaryGroupCall(group, initiator, now=now, settings=self._regroup_settings())
        call = GroupCall(group, identity, machine, self._media.open(group), acknowledgement=acknowledgement)
        self.calls[group] = call
        self._by_identity[SipUri.parse(identity).user or ""] = call
        return call

    def _one_target(self, contents: Contents) -> str:
        if len(contents.targets) != 1:
            raise Refusal(403, warning_text(145), f"{len(contents.targets)} targets, not one")
        return contents.targets[0]

    @staticmethod
    def _one_key(contents: Contents) -> bytes:
        if not contents.info.temporary_group or contents.mikey is None:
            # the indicator and the key come together or not at all (rule 16)
            raise Refusal(488, warning_text(136), "temporary group indicator without key, or key without it")
        return contents.mikey

    def _proposed_group(self, contents: Contents) -> str:
        group = contents.info.request_uri
        if not group or SipUri.parse(group).host != self.settings.domain:
            raise Refusal(403, warning_text(100), f"{group!r} is no group id of {self.settings.domain}")
        if contents.info.session_type not in (None, "prearranged"):
            raise Refusal(403, warning_text(100), f"session type {contents.info.session_type!r}")
        return group

    # --- step 4, 5, 6: a member's leg -------------------------------------------------------------------

    def key_for(self, call: GroupCall, user: str, key: bytes) -> bytes:
        """The I_MESSAGE that goes to ``user``: the octets that came for him, and no others."""
        return key

    def _invite(self, call: GroupCall, order: regroup.InviteMember, now: float) -> None:
        destination = self._locate(order.user, now)
        if destination is None:
            call.machine.refused(order.user, 480, None, now)
            return
        parts = [
            Part("application/sdp", self._offer(call, destination).encode()),
            Part(
                documents.MCPTT_INFO,
                McpttInfo(
                    session_type="prearranged",
                    request_uri=order.user,
                    calling_user_id=call.initiator,
                    calling_group_id=call.group,
                    temporary_group=True,
                    acknowledgement=call.acknowledgement,
                ).encode(),
            ),
        ]
        key = self.key_for(call, order.user, order.key)
        if key:
            parts.append(Part(MIKEY, key))
        content_type, body = build_multipart(parts, self._token)
        session = self.stack.invite(
            destination.contact,
            from_=f"<{call.group}>",
            to=f"<{order.user}>",
            headers=[
                *self._contact(call),
                *SERVER_HEADERS,
                ("P-Asserted-Identity", f"<{self.settings.identity}>"),
                ("Answer-Mode", self.settings.answer_mode),
                ("Recv-Info", INFO_PACKAGE),
            ],
            body=body,
            content_type=content_type,
            now=now,
            flow=destination.flow,
        )
        leg = Leg(call, order.user, session, destination)
        try:
            leg.guk_id = self._check_key(i_message(order.key), call.initiator, order.user, now)
        except (MikeyError, KeyingError) as error:  # it was checked when it arrived; only time can have run out
            log.warning("group=%s user=%s key message: %s", call.group, order.user, error)
        session.context = leg
        call.legs[order.user] = leg
        log.info("call-id=%s group=%s step=4 user=%s invited", session.call_id, call.group, order.user)

    def _offer(self, call: GroupCall, destination: Destination) -> GroupMediaDescription:
        return GroupMediaDescription(
            audio=call.media.audio, floor=call.media.floor, priority=destination.priority
        )

    def answered(self, leg: Leg, response_body: Contents | None, now: float) -> None:
        """Step 6: a member's 200."""
        call = leg.call
        try:
            if response_body is None:
                raise MediaRefused("the answer's body cannot be read")
            leg.theirs = GroupMediaDescription.decode(response_body.sdp)
        except (MediaRefused, ValueError) as error:
            log.warning("group=%s user=%s answer not usable: %s", call.group, leg.user, error)
            self._hang_up(leg, now, "the answer's media is not that of a regroup call")
            call.machine.refused(leg.user, 488, None, now)
            self._carry_out(call, now)
            return
        offered = [octets for octets in response_body.acknowledgements if len(octets) <= MAX_ACKNOWLEDGEMENT]
        acknowledgement = offered[0] if len(offered) == 1 else None
        self._join_media(leg)
        call.machine.accepted(leg.user, acknowledgement, now)
        self._carry_out(call, now)

    def refused(self, leg: Leg, status: int, warning: str | None, now: float) -> None:
        call = leg.call
        if call.legs.get(leg.user) is leg:
            del call.legs[leg.user]
        log.info("group=%s user=%s refused status=%d %s", call.group, leg.user, status, warning or "")
        call.machine.refused(leg.user, status, warning, now)
        self._carry_out(call, now)

    def ended(self, leg: Leg, cause: Cause, for_all: bool, now: float) -> None:
        """A leg's BYE, or its loss."""
        call = leg.call
        if call.legs.get(leg.user) is not leg:
            return
        del call.legs[leg.user]
        self._leave_media(leg)
        log.info("group=%s user=%s left: %s", call.group, leg.user, cause.value)
        if leg.initiator:
            call.machine.initiator_left(release=for_all, now=now)
        else:
            call.machine.left(leg.user, now)
        self._carry_out(call, now)

    def cancelled(self, leg: Leg, now: float) -> None:
        leg.call.legs.pop(leg.user, None)
        leg.call.machine.initiator_cancelled(now)
        self._carry_out(leg.call, now)

    def _join_media(self, leg: Leg) -> None:
        if leg.theirs is not None and not leg.in_media:
            leg.call.media.add_leg(leg.destination, leg.theirs, leg.guk_id)
            leg.in_media = True

    def _leave_media(self, leg: Leg) -> None:
        if leg.in_media:
            leg.call.media.remove_leg(leg.user)
            leg.in_media = False

    def _hang_up(self, leg: Leg, now: float, why: str) -> None:
        self._leave_media(leg)
        if leg.call.legs.get(leg.user) is leg:
            del leg.call.legs[leg.user]
        leg.session.context = None
        leg.session.bye(now, headers=[("Reason", f'SIP;cause=200;text="{why}"')])

    # --- step 7: REFER ----------------------------------------------------------------------------------

    def referred(self, incoming: ServerRequest, sender: str, now: float) -> None:
        """REFER to a session identity: add (method INVITE) or remove (method BYE) one user."""
        try:
            call, user, method = self._read_refer(incoming, sender)
            if method == "BYE":
                decision, key = Decision.yes("the initiator removes"), b""
            else:
                contents = read_contents(incoming.request)
                key = self._one_key(contents)
                decision = self._policy().may_add(sender, user)
                if decision.allowed:
                    try:
                        self._check_key(i_message(key), sender, user, now)
                    except (MikeyError, KeyingError) as error:
                        raise Refusal(488, warning_text(136), f"I_MESSAGE for {user}: {error}") from error
        except Refusal as refusal:
            log.info("call-id=%s REFER refused: %s", incoming.request.headers.call_id, refusal)
            incoming.respond(refusal.status, headers=self._warning(refusal.warning), now=now)
            return
        except (SipError, ValueError) as error:
            incoming.respond(getattr(error, "status", 400), headers=self._warning(None, str(error)), now=now)
            return
        if not decision.allowed:
            log.info("call-id=%s REFER refused: %s", incoming.request.headers.call_id, decision.because)
            text = warning_text(decision.warning or 100, decision.reason)
            incoming.respond(decision.status, headers=self._warning(text), now=now)
            return
        subscription = incoming.accept_subscription(headers=self._contact(call), now=now)
        subscription.context = (call.group, user)
        subscription.notify(
            SipFragment(100).encode(self.settings.domain), SIPFRAG, state="active", expires=120, now=now
        )
        log.info(
            "call-id=%s group=%s step=7 user=%s refer method=%s", incoming.request.headers.call_id, call.group, user,
            method,
        )
        if method == "BYE":
            call.machine.remove(user, subscription, now)
        else:
            call.machine.add(user, key, subscription, now)
        self._carry_out(call, now)

    def _read_refer(self, incoming: ServerRequest, sender: str) -> tuple[GroupCall, str, str]:
        request = incoming.request
        call = self.call_of(request.uri)
        if call is None:
            raise Refusal(481, warning_text(137), "no such session")
        leg = call.legs.get(sender)
        if leg is None or not leg.initiator:
            raise Refusal(403, warning_text(190), f"{sender} is not the initiator")
        if incoming.session is None:
            target_dialog = request.headers.get("Target-Dialog")
            if target_dialog is None or not names_dialog(target_dialog, leg.session):
                raise Refusal(403, warning_text(190), "Target-Dialog does not name the initiator's session")
        refer_to = request.headers.get_all("Refer-To")
        if len(refer_to) != 1:
            raise Refusal(400, None, f"{len(refer_to)} Refer-To")
        uri = SipUri.parse(str(NameAddr.parse(refer_to[0]).uri))
        method = (uri.param("method") or "INVITE").upper()
        if method not in ("INVITE", "BYE") or uri.headers:
            raise Refusal(403, warning_text(190), "Refer-To asks for more than adding or removing one user")
        user = str(uri.aor)
        if uri.host != self.settings.domain:
            raise Refusal(403, warning_text(190), f"{user} is not of {self.settings.domain}")
        return call, user, method

    # --- roster -----------------------------------------------------------------------------------------

    def subscribed(self, incoming: ServerRequest, sender: str, now: float) -> None:
        """SUBSCRIBE to the conference package of a session identity (RFC 4575)."""
        call = self.call_of(incoming.request.uri)
        if call is None:
            incoming.respond(404, headers=self._warning(warning_text(137)), now=now)
            return
        if sender not in call.legs:
            incoming.respond(403, headers=self._warning(warning_text(138)), now=now)
            return
        subscription = incoming.accept_subscription(headers=self._contact(call), now=now)
        self._notify_roster(call, subscription, call.roster_version, now)
        if subscription.state is not NotifierState.TERMINATED:
            call.watchers[id(subscription)] = (subscription, sender, call.roster_version)

    def unsubscribed(self, subscription: NotifierSubscription) -> None:
        for call in self.calls.values():
            call.watchers.pop(id(subscription), None)

    def _notify_roster(
        self, call: GroupCall, subscription: NotifierSubscription, version: int, now: float
    ) -> None:
        present = [call.initiator] if call.machine.initiator_present else []
        users = tuple(
            documents.ConferenceUser(user) for user in (*present, *call.machine.connected)
        )
        info = documents.ConferenceInfo(call.group, version, "full", users)
        subscription.notify(info.encode(), documents.CONFERENCE_INFO, now=now)

    def _tell_watchers(self, call: GroupCall, now: float) -> None:
        for key, (subscription, user, told) in list(call.watchers.items()):
            if told != call.roster_version:
                self._notify_roster(call, subscription, call.roster_version, now)
                call.watchers[key] = (subscription, user, call.roster_version)

    # --- orders -----------------------------------------------------------------------------------------

    def _carry_out(self, call: GroupCall, now: float) -> None:
        orders = call.machine.events()
        while orders:
            for order in orders:
                self._order(call, order, now)
            orders = call.machine.events()

    def _order(self, call: GroupCall, order: regroup.Order, now: float) -> None:
        match order:
            case regroup.AffiliateInitiator(user):
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
                leg.session.reject(status, headers=self._warning(warning), now=now)
            case regroup.ReportAdd():
                self._report(order, now)
            case regroup.PassAcknowledgement(_, acknowledgement):
                leg = call.legs[call.initiator]
                leg.session.send(
                    "INFO", headers=[("Info-Package", INFO_PACKAGE)], body=acknowledgement,
                    content_type=ACKNOWLEDGEMENT, now=now,
                )
            case regroup.ReleaseMember(user, answered):
                self._release_member(call, user, answered, now)
            case regroup.ReleaseInitiator(cause):
                self._hang_up(call.legs[call.initiator], now, cause)
            case regroup.RosterChanged(users):
                call.roster_version += 1
                self._observe("members", {"group": call.group, "connected": sorted(users)})
                call.roster_due = max(now, call.roster_told + self.settings.roster_interval)
                log.info("group=%s members=%d", call.group, len(users))
            case regroup.CallReleased(cause):
                self._close(call, cause, now)

    def _answer_initiator(self, call: GroupCall, order: regroup.AnswerInitiator, now: float) -> None:
        leg = call.legs[call.initiator]
        parts = [
            Part("application/sdp", self._offer(call, leg.destination).encode()),
            Part(
                documents.MCPTT_INFO,
                McpttInfo(
                    session_type="prearranged", calling_group_id=call.group, temporary_group=True
                ).encode(),
            ),
        ]
        parts += [Part(ACKNOWLEDGEMENT, octets) for octets in order.acknowledgements]
        content_type, body = build_multipart(parts, self._token)
        headers = [*self._contact(call), ("Recv-Info", INFO_PACKAGE)]
        for code in order.warnings:
            headers += self._warning(warning_text(code))
        leg.session.accept(headers=headers, body=body, content_type=content_type, now=now)
        self._join_media(leg)
        log.info("call-id=%s group=%s step=9 initiator answered", leg.session.call_id, call.group)

    def _report(self, order: regroup.ReportAdd, now: float) -> None:
        subscription = order.handle
        assert isinstance(subscription, NotifierSubscription)
        fragment = SipFragment(order.status, order.warning, order.acknowledgement)
        subscription.notify(
            fragment.encode(self.settings.domain),
            SIPFRAG,
            state="terminated",
            reason="noresource",
            now=now,
        )

    def _release_member(self, call: GroupCall, user: str, answered: bool, now: float) -> None:
        leg = call.legs.get(user)
        if leg is None:
            return
        if answered:
            self._hang_up(leg, now, "removed from the call" if call.machine.connected else "call released")
        else:
            del call.legs[user]
            leg.session.context = None
            leg.session.cancel(now)

    def _close(self, call: GroupCall, cause: str, now: float) -> None:
        for leg in list(call.legs.values()):
            if not leg.initiator:
                self._release_member(call, leg.user, leg.in_media, now)
        for subscription, _, _ in call.watchers.values():
            subscription.notify(b"", None, state="terminated", reason="noresource", now=now)
        call.media.close()
        self._affiliations.undo_group(call.group)
        self.calls.pop(call.group, None)
        self._by_identity.pop(SipUri.parse(call.session_identity).user or "", None)
        log.info("group=%s released: %s", call.group, cause)
        self._observe("released", {"group": call.group, "cause": cause})

    def release_all(self, why: str, now: float) -> None:
        """The server goes down: every call ends, and everybody is told."""
        for call in list(self.calls.values()):
            initiator = call.legs.get(call.initiator)
            if initiator is not None and initiator.in_media:
                self._hang_up(initiator, now, why)
            elif initiator is not None:
                del call.legs[call.initiator]
                initiator.session.reject(503, now=now)
            self._close(call, why, now)

    # --- time -------------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        due = [call.machine.next_timer() for call in self.calls.values()]
        due += [call.roster_due for call in self.calls.values()]
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        for call in list(self.calls.values()):
            call.machine.handle_timer(now)
            self._carry_out(call, now)
            if call.roster_due is not None and call.roster_due <= now:
                call.roster_due, call.roster_told = None, now
                if call.group in self.calls:
                    self._tell_watchers(call, now)

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

    def _contact(self, call: GroupCall) -> list[tuple[str, object]]:
        return [("Contact", focus_contact(call.session_identity))]

    def _warning(self, text: str | None, plain: str | None = None) -> list[tuple[str, object]]:
        return warning_header(self.settings.domain, text or plain)

    def _refuse(
        self, session: InviteSession, status: int, warning: str | None, because: str, now: float
    ) -> None:
        log.info("call-id=%s refused status=%d: %s", session.call_id, status, because)
        self._observe("refused", {"call_id": session.call_id, "status": status, "because": because})
        session.reject(status, headers=self._warning(warning), now=now)

    def _refuse_by(self, decision: Decision, session: InviteSession, now: float) -> None:
        text = warning_text(decision.warning or 100, decision.reason)
        self._refuse(session, decision.status, text, decision.because, now)


__all__ = ["ControllingFunction"]
