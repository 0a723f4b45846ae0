# SPDX-License-Identifier: Apache-2.0
"""A running call becomes an emergency or imminent peril call, or is one no more (TS 24.379 10.1.1.2.1.3, 10.1.1.2.1.4,
10.1.1.4.6); sans-IO.

A member asks for it in a re-INVITE. When he may, the floor goes by it from then on, and every other member is told in a
re-INVITE of the server: once, however often it changes while one is under way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import SERVER_HEADERS, focus_contact
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupCall, Leg, Observer, Refusal
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.policy import Policy, Urgency, warning_text
from mcptt_sip.message import Response

log = logging.getLogger(__name__)

#: seconds until a member is told whose session has something else under way
_AGAIN = 0.5
#: and of one who answers that he cannot just now, and does not say when
_LATER = 5.0
#: he has something else under way (RFC 3261 14.2), or cannot just now
_BUSY = frozenset({480, 491, 500, 503})


def urgency_of(info: McpttInfo) -> Urgency:
    """What a call is said to be. Raises :class:`~mcptt_sip.mcptt.groupcall.Refusal` when it is said to be both."""
    if info.emergency and info.imminent_peril:
        raise Refusal(403, warning_text(150), "emergency and imminent peril, both")
    if info.emergency:
        return Urgency.EMERGENCY
    return Urgency.IMMINENT_PERIL if info.imminent_peril else Urgency.NORMAL


def change(info: McpttInfo, current: Urgency) -> Urgency | None:
    """What the call is to be from now on; ``None`` when nothing is said of it. Raises what :func:`urgency_of` does."""
    if info.emergency or info.imminent_peril:
        return urgency_of(info)
    over = (info.emergency is False and current is Urgency.EMERGENCY) or (
        info.imminent_peril is False and current is Urgency.IMMINENT_PERIL
    )
    if over:
        return Urgency.NORMAL
    return None if info.emergency is None and info.imminent_peril is None else current


def declined(info: McpttInfo) -> McpttInfo:
    """What a refusal states: each indication that the request has, as false; none that it has not."""
    return McpttInfo(emergency=info.emergency and False, imminent_peril=info.imminent_peril and False)


def statement(urgency: Urgency, before: Urgency) -> tuple[bool | None, bool | None]:
    """The elements emergency-ind and imminentperil-ind that say so to one who took it for ``before``: what the call is
    no more is stated as false."""

    def said(which: Urgency) -> bool | None:
        return True if urgency is which else False if before is which else None

    return said(Urgency.EMERGENCY), said(Urgency.IMMINENT_PERIL)


class UrgencyChanges:
    """Of all calls of one server."""

    def __init__(
        self,
        settings: ControllingSettings,
        *,
        policy: Callable[[], Policy],
        token: Callable[[], bytes],
        offer: Callable[[Leg], GroupMediaDescription],
        observe: Observer,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._token = token
        self._offer = offer
        self._observe = observe
        #: legs that could not be told yet, and when they shall be
        self._waiting: dict[int, tuple[float, Leg]] = {}

    def asked(self, leg: Leg, info: McpttInfo) -> Urgency | None:
        """What a member's re-INVITE wants the call to be. Raises :class:`Refusal` when he may not want it."""
        call = leg.call
        wanted = change(info, call.urgency)
        if wanted is None:
            return None
        by = leg.user if leg.user in call.declared_by else next(iter(sorted(call.declared_by)), "")
        decision = self._policy().may_change_urgency(leg.user, by, call.urgency, wanted)
        if not decision.allowed:
            raise Refusal(decision.status, decision.warning_text, decision.because, info=declined(info))
        return wanted

    def take(self, leg: Leg, urgency: Urgency, now: float) -> None:
        """By the word of ``leg``'s user the call is that now; the others are told."""
        call = leg.call
        if urgency is not call.urgency:
            call.declared_by.clear()
        if urgency is not Urgency.NORMAL:
            call.declared_by.add(leg.user)
        leg.told = urgency
        call.media.declare(urgency, call.declared_by)
        if urgency is call.urgency:
            return
        call.urgency, call.urgency_by = urgency, leg.user
        log.info("group=%s user=%s urgency=%s", call.group, leg.user, urgency.value)
        self._observe("urgency", {"group": call.group, "user": leg.user, "urgency": urgency.value})
        self.tell_all(call, now)

    def tell_all(self, call: GroupCall, now: float) -> None:
        """Everybody in the call who does not know what it is."""
        for leg in call.legs.values():
            if leg.in_media:
                self.tell(leg, now)

    def tell(self, leg: Leg, now: float) -> None:
        """One member, unless he knows."""
        call = leg.call
        known = leg.told is call.urgency or leg.telling is not None
        if known or leg.session.ended or call.legs.get(leg.user) is not leg:
            return
        emergency, peril = statement(call.urgency, leg.told)
        info = McpttInfo(
            session_type="prearranged", request_uri=leg.user, calling_user_id=call.urgency_by or call.initiator,
            calling_group_id=call.group, emergency=emergency, imminent_peril=peril,
        )
        content_type, body = build_multipart(
            [Part("application/sdp", self._offer(leg).encode()), Part(documents.MCPTT_INFO, info.encode())],
            self._token,
        )
        headers = [
            ("Contact", focus_contact(call.session_identity)),
            *SERVER_HEADERS,
            ("P-Asserted-Identity", f"<{self._settings.identity}>"),
            ("Resource-Priority", self._settings.resource_priority[call.urgency]),
        ]
        try:
            leg.session.reinvite(headers=headers, body=body, content_type=content_type, now=now, context=leg)
        except LocalProtocolError as error:  # another change is under way, or his ACK
            log.debug("group=%s user=%s is told later: %s", call.group, leg.user, error)
            self._waiting[id(leg)] = (now + _AGAIN, leg)
            return
        leg.telling = call.urgency

    def answered(self, leg: Leg, response: Response | None, now: float) -> None:
        """The end of a re-INVITE to a member: it may have changed again meanwhile."""
        telling, leg.telling = leg.telling, None
        if response is not None and response.status in _BUSY:
            self._waiting[id(leg)] = (now + max(_AGAIN, response.headers.retry_after or _LATER), leg)
            return
        if response is None or response.status >= 300:
            # his call goes on, he only shows it as what it was (TS 24.379 has nothing better either)
            log.info("group=%s user=%s does not take the change: %s", leg.call.group, leg.user, response)
        leg.told = telling if telling is not None else leg.told
        self.tell(leg, now)

    # --- time -------------------------------------------------------------------------------------------

    def due(self) -> Iterable[float]:
        return (at for at, _ in self._waiting.values())

    def handle_timer(self, now: float) -> None:
        for key, (at, leg) in list(self._waiting.items()):
            if at <= now:
                del self._waiting[key]
                self.tell(leg, now)
