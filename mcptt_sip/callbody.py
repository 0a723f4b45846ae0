# SPDX-License-Identifier: Apache-2.0
"""What the bodies of a call's messages say: the session description, the status in a fragment."""

from __future__ import annotations

import logging
import re

from mcptt_sip.body import parse_multipart
from mcptt_sip.errors import ParseError
from mcptt_sip.message import Request, Response

__all__ = ["SDP", "Body", "described", "fragment_status", "session_description", "warning"]

log = logging.getLogger(__name__)

SDP = "application/sdp"
#: content type and octets
Body = tuple[str, bytes]
_status_line = re.compile(rb"SIP/2\.0 ([1-6][0-9]{2})(?: |\r|\n|$)").match


def session_description(message: Request | Response) -> bytes | None:
    """The SDP in a body, inside a multipart if it stands there (RFC 5621); ``None`` without one."""
    media = message.headers.content_type
    if not message.body or media is None:
        return None
    if media.full == SDP:
        return message.body
    if media.full.startswith("multipart/"):
        for part in parse_multipart(str(media), message.body):
            if part.type == SDP:
                return part.decoded()
    return None


def described(message: Request | Response) -> bytes | None:
    """The same of a message that nobody answers: from a body that cannot be read, what nobody accepts."""
    try:
        return session_description(message)
    except ParseError as error:
        log.info("call-id=%s body: %s", message.headers.call_id, error)
        return b""


def fragment_status(body: bytes) -> int | None:
    """The status in a message/sipfrag (RFC 3515 2.4.5); ``None`` when there is none."""
    match = _status_line(body)
    return None if match is None else int(match[1])


def warning(code: int, text: str) -> tuple[str, str]:
    """A Warning header (RFC 3261 20.43)."""
    cleaned = text.replace("\\", "").replace('"', "'").encode("ascii", "replace").decode()
    return "Warning", f'{code} localhost "{cleaned}"'
