# SPDX-License-Identifier: Apache-2.0
"""The transferee's side of a transfer: a REFER is checked, the call that it asks for is made, its outcome told
(RFC 3515, 4488, 5589, 7614, 7647). The transferor's side is `mcptt_sip.call.Call.transfer`.

:RFC 3515: yes; REFER
:RFC 3420: yes; sipfrag
:RFC 5589: yes; blind and attended
:RFC 7614: yes; nosub and explicitsub, which an agent understands and a server for groups does not
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from mcptt_sip.call import Call
from mcptt_sip.errors import CallFailed, ParseError, SipError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.subscription import NotifierSubscription
from mcptt_sip.uri import SipUri

__all__ = ["Referral", "accept_refer"]

log = logging.getLogger(__name__)

_FRAGMENT = "message/sipfrag;version=2.0"
#: who watch one REFER at a time
_MAX_SUBSCRIPTIONS = 16
#: headers of a Refer-To URI that may stand in the INVITE (RFC 3261 19.1.5: the others are not to be trusted)
_TAKEN = frozenset({"replaces", "require", "accept-contact"})


def accept_refer(incoming: ServerRequest, *, allowed: bool, events_at: str, now: float) -> Referral | None:
    """Answers a REFER; ``None`` when it was refused: 400 without one Refer-To, 416 for a target that is no SIP URI,
    403 where the sender may not, 603 for another method than INVITE. `events_at` is a URI that nobody can guess, where
    its outcome may be asked for when the sender requires that (RFC 7614 4.3)."""
    headers = incoming.request.headers
    try:
        target = headers.refer_to
    except ParseError:
        target = None
    if target is None:
        incoming.respond(400, "One Refer-To is needed", now=now)
    elif not allowed:
        incoming.respond(403, now=now)
    elif not isinstance(target.uri, SipUri):
        incoming.respond(416, now=now)
    elif (target.uri.param("method") or "INVITE") != "INVITE":
        incoming.respond(603, now=now)
    else:
        referral = Referral(incoming, target.uri)
        quiet = (headers.get("refer-sub") or "").strip().lower().startswith("false")
        if headers.requires("explicitsub"):
            referral.events_at = events_at
            more = [("Require", "explicitsub"), ("Refer-Events-At", f"<{events_at}>")]
            incoming.respond(200, headers=more, now=now)
        elif quiet or headers.requires("nosub"):
            incoming.respond(200, headers=[("Refer-Sub", "false")] if quiet else [], now=now)
        else:
            referral.watched(incoming, now)
        return referral
    return None


class Referral:
    """A REFER that was accepted. `events_at` is the URI where its outcome can be subscribed to, if that was wanted."""

    def __init__(self, incoming: ServerRequest, target: SipUri) -> None:
        self.incoming = incoming
        self.events_at: str | None = None
        self.uri = str(target.replace(headers=(), params=target.params.without("method")))
        self.headers: list[tuple[str, object]] = [
            (name, value) for name, value in target.headers if name.lower() in _TAKEN
        ]
        if (referred_by := incoming.request.headers.get("referred-by")) is not None:
            self.headers.append(("Referred-By", referred_by))
        self._subscriptions: list[NotifierSubscription] = []
        self._told = b"SIP/2.0 100 Trying\r\n"
        self._over = False

    def watched(self, incoming: ServerRequest, now: float) -> None:
        """Accepts the subscription to its outcome that a REFER or SUBSCRIBE makes, and tells how it stands."""
        self._subscriptions = [one for one in self._subscriptions if not one.terminated]
        if len(self._subscriptions) >= _MAX_SUBSCRIPTIONS:
            incoming.respond(480, now=now)
            return
        subscription = incoming.accept_subscription(now=now)
        subscription.context = self
        self._subscriptions.append(subscription)
        self.tell_again(subscription, now)

    def tell_again(self, subscription: NotifierSubscription, now: float) -> None:
        """It is new or was refreshed: how it stands is told at once (RFC 6665 4.2.1.2)."""
        if not subscription.terminated:
            over = self._over
            subscription.notify(
                self._told, _FRAGMENT, state="terminated" if over else "active",
                reason="noresource" if over else None, now=now,
            )  # fmt: skip
        if subscription.terminated and subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            subscription.context = None  # no garbage in a circle

    def tell(self, status: int, reason: str, now: float) -> None:
        """NOTIFY of what became of it so far; a final status ends the subscriptions."""
        self._told = f"SIP/2.0 {status} {reason}\r\n".encode()
        self._over = status >= 200
        for subscription in list(self._subscriptions):
            self.tell_again(subscription, now)

    async def follow(
        self, dial: Callable[[str, HeaderItems], Awaitable[Call]], tell: Callable[[int, str], None]
    ) -> Call | None:
        """Makes the call, and returns it when it is answered."""
        try:
            call = await dial(self.uri, self.headers)
            call.on_progress = lambda response: tell(response.status, response.reason)
            await call.answered()
        except CallFailed as error:
            response = error.response
            tell(*((503, "Service Unavailable") if response is None else (response.status, response.reason)))
            return None
        except (SipError, OSError) as error:
            log.info("call-id=%s transfer: %s", self.incoming.request.headers.call_id, error)
            tell(503, "Service Unavailable")
            return None
        tell(200, "OK")
        return call
