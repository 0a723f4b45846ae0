# SPDX-License-Identifier: Apache-2.0
"""What a REFER to a session identity asks: one user in, or out (RFC 4579 5.5, 5.11; security rule 23); sans-IO."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mcptt_sip.headers import NameAddr
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt.contents import Headers, SipFragment
from mcptt_sip.mcptt.groupcall import GroupCall, Refusal, names_dialog
from mcptt_sip.mcptt.policy import warning_text
from mcptt_sip.subscription import NotifierSubscription
from mcptt_sip.uri import SipUri

log = logging.getLogger(__name__)

SIPFRAG = "message/sipfrag;version=2.0"
#: seconds that the outcome of a referral may take at the most: ringing, and some more
REFER_EXPIRES = 120


@dataclass(frozen=True, slots=True)
class Referral:
    """``quiet``: no subscription is wanted (RFC 4488, RFC 7614), the outcome shows in the conference package."""

    user: str
    remove: bool
    quiet: bool


def read_referral(incoming: ServerRequest, call: GroupCall | None, sender: str, domain: str) -> Referral:
    """``sender`` is the authenticated user, whatever Referred-By says. Raises :class:`Refusal`."""
    request = incoming.request
    if call is None:
        raise Refusal(481, warning_text(137), "no such session")
    leg = call.legs.get(sender)
    if leg is None or not call.directs(sender):
        raise Refusal(403, warning_text(190), f"{sender} is neither the initiator nor his deputy")
    if incoming.session is None:
        target_dialog = request.headers.get("Target-Dialog")
        if target_dialog is None or not names_dialog(target_dialog, leg.session):
            raise Refusal(403, warning_text(190), "Target-Dialog does not name the initiator's session")
    elif incoming.session is not leg.session:
        raise Refusal(403, warning_text(190), "the REFER comes in another session's dialog")
    refer_to = request.headers.get_all("Refer-To")
    if len(refer_to) != 1:
        raise Refusal(400, None, f"{len(refer_to)} Refer-To")
    uri = SipUri.parse(str(NameAddr.parse(refer_to[0]).uri))
    method = (uri.param("method") or "INVITE").upper()
    if method not in ("INVITE", "BYE") or uri.headers:
        raise Refusal(403, warning_text(190), "Refer-To asks for more than adding or removing one user")
    user = str(uri.aor)
    if uri.host != domain:
        raise Refusal(403, warning_text(190), f"{user} is not of {domain}")
    quiet = request.headers.requires("nosub") or (
        (request.headers.get("Refer-Sub") or "").partition(";")[0].strip().lower() == "false"
    )
    return Referral(user, method == "BYE", quiet)


def accept_referral(
    incoming: ServerRequest, referral: Referral, contact: Headers, domain: str, now: float
) -> NotifierSubscription | None:
    """200, never 202 (RFC 7647 5); with the subscription that it makes, unless none is wanted."""
    if referral.quiet:
        headers = [*contact, ("Refer-Sub", "false")]
        if incoming.request.headers.requires("nosub"):
            headers.append(("Require", "nosub"))
        incoming.respond(200, headers=headers, now=now)
        return None
    subscription = incoming.accept_subscription(headers=contact, now=now)
    subscription.notify(SipFragment(100).encode(domain), SIPFRAG, state="active", expires=REFER_EXPIRES, now=now)
    return subscription


def notify_outcome(subscription: NotifierSubscription, fragment: SipFragment, domain: str, now: float) -> None:
    """The last NOTIFY of a referral (RFC 3515 2.4.4)."""
    if subscription.terminated:
        # a NOTIFY was refused or the subscription ran out; the invitation is not withdrawn by that
        log.info("the outcome %d of a REFER: nobody listens", fragment.status)
        return
    subscription.notify(fragment.encode(domain), SIPFRAG, state="terminated", reason="noresource", now=now)
