# SPDX-License-Identifier: Apache-2.0
"""Who may watch a call: the SUBSCRIBEs to session identities (RFC 4575, TS 24.379 10.1.3); sans-IO."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt.contents import focus_contact, warning_header
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupCall
from mcptt_sip.mcptt.memberlist import MEMBER_LIST
from mcptt_sip.mcptt.policy import warning_text
from mcptt_sip.subscription import NotifierSubscription

log = logging.getLogger(__name__)


class ConferencePackage:
    """:param call_of: the call whose session identity a Request-URI is, ``None`` when there is none"""

    def __init__(self, settings: ControllingSettings, call_of: Callable[[object], GroupCall | None]) -> None:
        self._settings = settings
        self._call_of = call_of

    def subscribed(self, incoming: ServerRequest, sender: str, now: float) -> None:
        """SUBSCRIBE of an authenticated user: only who is in the call is told who else is."""
        event = incoming.request.headers.event
        if event is None or event.package != "conference":
            incoming.respond(489, headers=[("Allow-Events", "conference")], now=now)
            return
        call = self._call_of(incoming.request.uri)
        code = 137 if call is None else 138
        if call is None or sender not in call.legs:
            headers = warning_header(self._settings.domain, warning_text(code))
            incoming.respond(404 if call is None else 403, headers=headers, now=now)
            return
        if call.roster.subscriptions_of(sender) >= self._settings.max_subscriptions:
            log.warning("group=%s user=%s has too many subscriptions", call.group, sender)
            incoming.respond(500, headers=[("Retry-After", self._settings.retry_after)], now=now)
            return
        contact = [("Contact", focus_contact(call.session_identity))]
        subscription = incoming.accept_subscription(headers=contact, now=now)
        subscription.context = call
        call.roster.watch(subscription, sender, now)
        leg = call.legs[sender]
        if call.member_list is not None and leg.in_media and not leg.session.ended:
            leg.session.send("MESSAGE", body=call.member_list, content_type=MEMBER_LIST, now=now)

    @staticmethod
    def resubscribed(subscription: NotifierSubscription, now: float) -> None:
        if isinstance(subscription.context, GroupCall):
            subscription.context.roster.refresh(subscription, now)

    @staticmethod
    def unsubscribed(subscription: NotifierSubscription) -> None:
        if isinstance(subscription.context, GroupCall):
            subscription.context.roster.unwatch(subscription)
