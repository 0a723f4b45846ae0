# SPDX-License-Identifier: Apache-2.0
"""What an MCPTT message carries besides plain SIP: feature tags, bodies, warnings, sipfrags."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mcptt_sip.body import Part, parse_multipart
from mcptt_sip.mcptt.documents import MCPTT_INFO, RESOURCE_LISTS, DocumentError, McpttInfo, ResourceLists
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, mikey_part
from mcptt_sip.mcptt.memberlist import MEMBER_LIST
from mcptt_sip.message import Request, Response

ICSI = "urn%3Aurn-7%3A3gpp-service.ims.icsi.mcptt"
SERVICE = "urn:urn-7:3gpp-service.ims.icsi.mcptt"
FEATURE_TAGS = f'+g.3gpp.mcptt;+g.3gpp.icsi-ref="{ICSI}"'
#: INFO package of late acknowledgements and key requests
INFO_PACKAGE = "g.3gpp.mcptt-info"

Headers = list[tuple[str, object]]

#: Two fields, each required and explicit (24.379 10.1.1.2.1.1)
ACCEPT_CONTACT: Headers = [
    ("Accept-Contact", "*;+g.3gpp.mcptt;require;explicit"),
    ("Accept-Contact", f'*;+g.3gpp.icsi-ref="{ICSI}";require;explicit'),
]
#: of a request by a client
CLIENT_HEADERS: Headers = [*ACCEPT_CONTACT, ("P-Preferred-Service", SERVICE)]
#: of a request by the server
SERVER_HEADERS: Headers = [*ACCEPT_CONTACT, ("P-Asserted-Service", SERVICE)]
#: the Reason by which an initiator ends the call for everybody (24.379 6.3.3.2.4)
RELEASE_FOR_ALL = 'SIP;cause=200;text="User requested release"'
#: why the server did not pass a key message on; in the Warning with MC code 100
NOT_IN_CALL = "the user is not in the call"


def focus_contact(session_identity: str) -> str:
    """Contact of the controlling function: the session identity is a GRUU and a focus."""
    return f"<{session_identity}>;{FEATURE_TAGS};isfocus"


_controls = re.compile(r"[\x00-\x1f\x7f]+")


def warning_header(host: str, text: str | None) -> Headers:
    """``Warning: 399 host "NNN text"``: the MC code stands inside the quotes (24.379 4.4.2)."""
    if not text:
        return []
    plain = _controls.sub(" ", text)  # what a peer wrote may be quoted here
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    return [("Warning", f'399 {host} "{quoted}"')]


def warning_of(message: Request | Response) -> str | None:
    """The text of the first Warning, without its code and host."""
    return warning_text_of(message.headers.get("Warning"))


def warning_text_of(value: str | None) -> str | None:
    match = re.search(r'"((?:[^"\\]|\\.)*)"', value or "")
    return re.sub(r"\\(.)", r"\1", match.group(1)) if match else None


def is_release_for_all(request: Request | None) -> bool:
    """Whether a BYE ends the call for everybody."""
    return request is not None and any(
        "User requested release" in value for value in request.headers.get_all("Reason")
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """The bodies of one MCPTT message. ``mikey`` is as it came (binary or base64), never re-encoded."""

    info: McpttInfo
    sdp: bytes = b""
    targets: tuple[str, ...] = ()
    mikey: bytes | None = None
    acknowledgements: tuple[bytes, ...] = ()
    #: the signer's list of members, opaque to the server
    member_list: bytes | None = None


def read_contents(message: Request | Response) -> Contents:
    """Walks the body, nested multiparts included.

    Raises :class:`~mcptt_sip.errors.SipError` (with the ``status`` to answer where there is one): a broken
    multipart, document, or more than one part of a kind that must be alone.
    """
    content_type = message.headers.get("Content-Type")
    if content_type is None or not message.body:
        return Contents(McpttInfo())
    if content_type.lower().startswith("multipart/"):
        parts = parse_multipart(content_type, message.body)
    else:
        parts = [Part(content_type, message.body)]

    def of(kind: str) -> list[bytes]:
        return [p.body for p in parts if p.content_type.partition(";")[0].strip().lower() == kind]

    infos, sdps, lists, members = of(MCPTT_INFO), of("application/sdp"), of(RESOURCE_LISTS), of(MEMBER_LIST)
    if len(infos) > 1 or len(sdps) > 1 or len(members) > 1:
        raise DocumentError("more than one mcptt-info, SDP or member list part")
    return Contents(
        info=McpttInfo.decode(infos[0]) if infos else McpttInfo(),
        sdp=sdps[0] if sdps else b"",
        targets=ResourceLists.decode(*lists).uris if lists else (),
        mikey=mikey_part(parts),
        acknowledgements=tuple(of(ACKNOWLEDGEMENT)),
        member_list=members[0] if members else None,
    )


_REASONS = {
    100: "Trying", 200: "OK", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout", 480:
    "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist", 486: "Busy Here",
    487: "Request Terminated", 488: "Not Acceptable Here",
}


@dataclass(frozen=True, slots=True)
class SipFragment:
    """``message/sipfrag`` (RFC 3420) of a refer NOTIFY: the outcome of an invitation.

    The acknowledgement rides inside the fragment, after its status line, as RFC 3515 wants the body to be a
    sipfrag and nothing else.
    """

    status: int
    warning: str | None = None
    acknowledgement: bytes | None = None

    def encode(self, host: str) -> bytes:
        lines = [f"SIP/2.0 {self.status} {_REASONS.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in warning_header(host, self.warning)]
        body = self.acknowledgement or b""
        if body:
            lines += [f"Content-Type: {ACKNOWLEDGEMENT}", f"Content-Length: {len(body)}", "", ""]
        else:
            lines.append("")
        return "\r\n".join(lines).encode() + body

    @classmethod
    def decode(cls, octets: bytes) -> SipFragment:
        """Raises :class:`DocumentError` when it does not begin with a status line."""
        head, _, body = octets.partition(b"\r\n\r\n")
        lines = head.decode("utf-8", "replace").split("\r\n")
        match = re.fullmatch(r"SIP/2\.0 ([1-6]\d\d)(?: .*)?", lines[0].strip())
        if match is None:
            raise DocumentError("a sipfrag of a refer NOTIFY begins with a status line")
        fields = dict(line.partition(":")[::2] for line in lines[1:] if ":" in line)
        named = {name.strip().lower(): value.strip() for name, value in fields.items()}
        carried = named.get("content-type", "").lower() == ACKNOWLEDGEMENT
        return cls(int(match.group(1)), warning_text_of(named.get("warning")), body if carried else None)
