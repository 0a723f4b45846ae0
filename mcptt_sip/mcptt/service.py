# SPDX-License-Identifier: Apache-2.0
"""The MCPTT server without its sockets: what each event of the stack means to which function; sans-IO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from mcptt_sip.errors import ParseError, SipError
from mcptt_sip.incoming import RequestReceived, ServerRequest
from mcptt_sip.mcptt.affiliation import Affiliations
from mcptt_sip.mcptt.contents import FEATURE_TAGS, is_release_for_all, read_contents, warning_header, warning_of
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.groupcall import ControllingSettings, KeyMessageCheck, Leg, MediaPlane, Observer
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MIKEY
from mcptt_sip.mcptt.outbox import Outbox
from mcptt_sip.mcptt.participating import Answer, ParticipatingFunction
from mcptt_sip.mcptt.policy import Policy, warning_text
from mcptt_sip.mcptt.privatecall import PRIVATE_SESSION, PrivateCallFunction, PrivateLeg
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.userprofile import UserProfile
from mcptt_sip.outgoing import RequestFailed, ResponseReceived
from mcptt_sip.registrar import Registrar
from mcptt_sip.session import (
    Answered,
    Cancelled,
    Confirmed,
    Ended,
    InviteReceived,
    InviteSession,
    Refused,
)
from mcptt_sip.stack import FlowLost, SipStack, StackSettings
from mcptt_sip.subscription import NotifierSubscription, Resubscribed, SubscriptionEnded
from mikey import Keyring, ReplayCache

log = logging.getLogger(__name__)

#: what the server answers; another method gets 405 with this list
METHODS = (
    "INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE", "INFO", "MESSAGE", "REFER", "SUBSCRIBE", "NOTIFY", "OPTIONS",
    "REGISTER",
)


class McpttService:
    """Participating and controlling function on one :class:`~mcptt_sip.stack.SipStack`.

    Feed the stack, then call :meth:`handle`; send what the stack has to say after it.
    """

    def __init__(
        self,
        stack: SipStack,
        participating: ParticipatingFunction,
        controlling: ControllingFunction,
        private: PrivateCallFunction,
    ) -> None:
        self.stack = stack
        self.participating = participating
        self.controlling = controlling
        self.private = private

    def handle(self, event: object, now: float) -> None:
        """One event of the stack."""
        match event:
            case InviteReceived(session):
                try:
                    self._invited(session, now)
                except ParseError as error:  # a header that only this use of the message needed
                    log.info("call-id=%s INVITE not readable: %s", session.call_id, error)
                    session.reject(error.status, now=now)
            case RequestReceived(incoming):
                try:
                    self._requested(incoming, now)
                except ParseError as error:
                    log.info("call-id=%s request not readable: %s", incoming.request.headers.call_id, error)
                    if not incoming.answered:
                        incoming.respond(error.status, now=now)
            case Answered() | Refused() | Cancelled() | Ended() if isinstance(event.session.context, PrivateLeg):
                self._private(event, event.session.context, now)
            case Answered(session, response) if isinstance(session.context, Leg):
                try:
                    contents = read_contents(response)
                except SipError as error:
                    log.warning("call-id=%s answer not readable: %s", session.call_id, error)
                    self.controlling.answered(session.context, None, now)
                    return
                self.controlling.answered(session.context, contents, now)
            case Refused(session, response, cause) if isinstance(session.context, Leg):
                status = response.status if response is not None else 408
                warning = warning_of(response) if response is not None else None
                log.debug("call-id=%s %s", session.call_id, cause.value)
                self.controlling.refused(session.context, status, warning, now)
                session.context = None  # a session that is over is nobody's: no garbage in a circle
            case Cancelled(session) if isinstance(session.context, Leg):
                self.controlling.cancelled(session.context, now)
                session.context = None
            case Ended(session, cause, request) if isinstance(session.context, Leg):
                self.controlling.ended(session.context, cause, is_release_for_all(request), now)
                session.context = None
            case Confirmed(session, _) if isinstance(session.context, Leg):
                self.controlling.confirmed(session.context, now)
            case ResponseReceived(request, response) if isinstance(request.context, Outbox):
                if response.status >= 200:
                    request.context.answered(now)
            case RequestFailed(request, _) if isinstance(request.context, Outbox):
                request.context.answered(now)
            case ResponseReceived(request, response) if isinstance(request.context, Leg):
                if response.status >= 200:
                    self.controlling.urgency.answered(request.context, response, now)
            case RequestFailed(request, _) if isinstance(request.context, Leg):
                self.controlling.urgency.answered(request.context, None, now)
            case Resubscribed(subscription, _):
                self.controlling.conference.resubscribed(subscription, now)
            case SubscriptionEnded(subscription, _, _) if isinstance(subscription, NotifierSubscription):
                self.controlling.conference.unsubscribed(subscription)
            case FlowLost(flow):
                self.participating.flow_lost(flow, now)
            case _:
                log.debug("event %s", type(event).__name__)

    def _private(self, event: Answered | Refused | Cancelled | Ended, leg: PrivateLeg, now: float) -> None:
        match event:
            case Answered(_, response):
                try:
                    contents = read_contents(response)
                except SipError as error:
                    log.warning("call-id=%s answer not readable: %s", leg.session.call_id, error)
                    contents = None
                self.private.answered(leg, contents, now)
            case Refused(_, response, _):
                status = response.status if response is not None else 408
                self.private.refused(leg, status, warning_of(response) if response is not None else None, now)
            case Cancelled():
                self.private.cancelled(leg, now)
            case Ended():
                self.private.ended(leg, now)

    def next_timer(self) -> float | None:
        due = (self.controlling.next_timer(), self.private.next_timer())
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        self.controlling.handle_timer(now)
        self.private.handle_timer(now)

    def policy_changed(self, users: Collection[str], now: float) -> None:
        """There is another policy, with these users: whoever is none any more leaves his calls."""
        self.controlling.policy_changed(users, now)
        self.private.policy_changed(users, now)

    def _invited(self, session: InviteSession, now: float) -> None:
        known = self.participating.authenticate(session.request, now)
        if isinstance(known, Answer):
            session.reject(known.status, headers=known.headers, now=now)
            return
        caller = self.participating.device(known.uri, session.request, session.flow, now)
        if caller is None:
            log.info("call-id=%s user=%s is not registered", session.call_id, known.uri)
            session.reject(403, headers=self._warning(warning_text(100, "missing registration")), now=now)
            return
        try:
            contents = read_contents(session.request)
        except SipError:
            contents = None  # the controlling function says what is wrong with it
        if contents is not None and contents.info.session_type == PRIVATE_SESSION:
            self.private.invited(session, caller, contents, now)
        else:
            self.controlling.invited(session, caller, now)

    def _requested(self, incoming: ServerRequest, now: float) -> None:
        method = incoming.request.method
        sender = self._sender(incoming, now)
        if isinstance(sender, Answer):
            log.info("call-id=%s %s refused status=%d: %s", incoming.request.headers.call_id, method, sender.status,
                     sender.because)
            incoming.respond(sender.status, headers=sender.headers, now=now)
            return
        leg = incoming.session.context if incoming.session is not None else None
        match method:
            case "REGISTER":
                answer = self.participating.register(incoming.request, incoming.flow, sender, now)
                if answer.status >= 300:
                    log.info("user=%s REGISTER refused status=%d: %s", sender.uri, answer.status, answer.because)
                incoming.respond(answer.status, headers=answer.headers, now=now)
                if answer.status < 300:
                    self.controlling.registered(sender.uri, now)
            case "REFER":
                self.controlling.referred(incoming, sender.uri, now)
            case "MESSAGE" if incoming.session is None:
                device = self.participating.device(sender.uri, incoming.request, incoming.flow, now)
                self.controlling.returning.asked(incoming, sender.uri, device, now)
            case "MESSAGE":
                self.controlling.key_messages.received(incoming, sender.uri, now)
            case "SUBSCRIBE":
                self.controlling.conference.subscribed(incoming, sender.uri, now)
            case "OPTIONS":
                incoming.respond(200, now=now)
            case "INVITE" | "UPDATE" if isinstance(leg, Leg):
                self.controlling.changed(incoming, leg, now)
            case "INVITE" | "UPDATE" if isinstance(leg, PrivateLeg):
                self.private.changed(incoming, leg, now)
            case "INFO":
                incoming.respond(469, headers=[("Recv-Info", "g.3gpp.mcptt-info")], now=now)
            case _:  # INVITE and UPDATE in a dialog whose leg is not in any call
                incoming.respond(481, now=now)

    def _sender(self, incoming: ServerRequest, now: float) -> UserProfile | Answer:
        """In a dialog over its own flow: the leg's user. Everything else is authenticated."""
        session = incoming.session
        if session is not None and isinstance(session.context, Leg | PrivateLeg) and session.flow == incoming.flow:
            profile = self.controlling.profile(session.context.user)
            if profile is not None:
                return profile
        return self.participating.authenticate(incoming.request, now)

    def _warning(self, text: str) -> list[tuple[str, object]]:
        return warning_header(self.participating.domain, text)


def assemble(
    settings: ControllingSettings,
    *,
    regroup_settings: Callable[[], RegroupSettings],
    policy: Callable[[], Policy],
    keyring: Keyring,
    replay: ReplayCache,
    check_key: KeyMessageCheck,
    time_of_day: Callable[[], float] | None = None,
    media: MediaPlane,
    token: Callable[[], bytes],
    observe: Observer = lambda _name, _details: None,
    controlling_function: type[ControllingFunction] = ControllingFunction,
) -> McpttService:
    """A whole server without sockets: its stack, and both functions on it."""
    params = tuple(item.partition("=")[::2] for item in FEATURE_TAGS.split(";"))
    stack = SipStack(
        StackSettings(
            contact_params=tuple((name, value or None) for name, value in params),
            supported=("100rel", "timer", "tdialog", "norefersub", "nosub"),
            allow=METHODS,
            allow_events=("conference", "refer"),
            accept=("application/sdp", "multipart/mixed", "multipart/*", MIKEY, ACKNOWLEDGEMENT),
            session_expires=settings.session_expires,
        ),
        token=token,
    )
    participating = ParticipatingFunction(
        identity=settings.identity, domain=settings.domain, policy=policy, registrar=Registrar(), csk_keys=keyring,
        replay=replay, token=token, time_of_day=time_of_day,
    )
    controlling = controlling_function(
        stack,
        settings=settings,
        regroup_settings=regroup_settings,
        policy=policy,
        affiliations=Affiliations(),
        locate=participating.destinations,
        check_key=check_key,
        media=media,
        token=token,
        observe=observe,
    )
    private = PrivateCallFunction(
        stack, settings=settings, policy=policy, destinations=participating.destinations, check_key=check_key,
        media=media, token=token, ring_time_limit=regroup_settings().ring_time_limit, observe=observe,
    )
    return McpttService(stack, participating, controlling, private)


__all__ = ["McpttService", "assemble"]
