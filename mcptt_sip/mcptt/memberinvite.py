# SPDX-License-Identifier: Apache-2.0
"""The INVITE from the controlling function to one device of a member (step 4; digest A.6); sans-IO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import INFO_PACKAGE, SERVER_HEADERS, Headers, focus_contact
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupCall
from mcptt_sip.mcptt.keying import MIKEY
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.policy import Urgency


@dataclass(frozen=True, slots=True)
class MemberInvite:
    """Everything that differs from any other INVITE."""

    headers: Headers
    content_type: str
    body: bytes


def compose_invite(
    call: GroupCall,
    user: str,
    *,
    signer: str,
    offer: GroupMediaDescription,
    key: bytes,
    settings: ControllingSettings,
    token: Callable[[], bytes],
) -> MemberInvite:
    """``key`` is the I_MESSAGE that ``signer`` made for ``user``, octet for octet as it came."""
    info = McpttInfo(
        session_type="prearranged",
        request_uri=user,
        calling_user_id=signer,
        calling_group_id=call.group,
        emergency=True if call.urgency is Urgency.EMERGENCY else None,
        alert=True if call.alert else None,
        imminent_peril=True if call.urgency is Urgency.IMMINENT_PERIL else None,
        temporary_group=True,
        acknowledgement=call.acknowledgement,
    )
    parts = [Part("application/sdp", offer.encode()), Part(documents.MCPTT_INFO, info.encode())]
    if key:
        parts.append(Part(MIKEY, key))
    content_type, body = build_multipart(parts, token)
    headers: Headers = [
        ("Contact", focus_contact(call.session_identity)),
        *SERVER_HEADERS,
        ("P-Asserted-Identity", f"<{settings.identity}>"),
        call.commencement.header,
        ("Resource-Priority", settings.resource_priority[call.urgency]),
        ("Recv-Info", INFO_PACKAGE),
    ]
    if settings.session_expires:
        # the member refreshes (24.379 6.3.3.1.2), so that a server with a thousand legs need not
        headers.append(("Session-Expires", f"{settings.session_expires};refresher=uas"))
    return MemberInvite(headers, content_type, body)
