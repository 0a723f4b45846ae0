# SPDX-License-Identifier: Apache-2.0
"""What an initiator's INVITE asks of the controlling function, read and checked; sans-IO.

Everything that can be said without a user profile is said here: :func:`read_call_request` raises a
:class:`~mcptt_sip.mcptt.groupcall.Refusal` with the status and the Warning of TS 24.379 (10.1.1.4.2, 11.1.1.4).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mcptt_sip.headers import AcceptContact
from mcptt_sip.mcptt.contents import ICSI, Contents, read_contents
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import ControllingSettings, Refusal
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.policy import Commencement, Urgency, warning_text
from mcptt_sip.mcptt.urgency import urgency_of
from mcptt_sip.message import Request
from mcptt_sip.uri import SipUri

#: both must be asked for (24.379 10.1.1.2.1.1)
_FEATURES = ("+g.3gpp.mcptt", "+g.3gpp.icsi-ref")


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A wish for a temporary group call. ``key`` is the target's I_MESSAGE as it came."""

    group: str
    target: str
    key: bytes
    theirs: GroupMediaDescription
    acknowledgement: str
    initiator_guk_id: int
    required: tuple[str, ...]
    deputies: tuple[str, ...]
    floor_by_members: bool
    commencements: tuple[Commencement, ...]
    urgency: Urgency
    alert: bool


def read_call_request(request: Request, settings: ControllingSettings) -> CallRequest:
    """Raises :class:`Refusal`, or what the body's readers raise (with the ``status`` to answer where there is one)."""
    check_service(request, settings)
    contents = read_contents(request)
    info = contents.info
    if len(contents.targets) != 1:
        raise Refusal(403, warning_text(145), f"{len(contents.targets)} targets, not one")
    key = key_of(contents)
    return CallRequest(
        group=_group(info, settings),
        target=contents.targets[0],
        key=key,
        theirs=GroupMediaDescription.decode(contents.sdp, beside=key),
        acknowledgement=info.acknowledgement or "none",
        initiator_guk_id=info.initiator_guk_id or 0,
        required=info.required,
        deputies=info.deputies,
        floor_by_members=info.floor_by_members,
        commencements=_commencements(request, settings.commencement),
        urgency=_urgency(info),
        alert=bool(info.alert),
    )


def key_of(contents: Contents) -> bytes:
    """The I_MESSAGE of an INVITE or REFER: the indicator and the key come together or not at all (rule 16)."""
    if not contents.info.temporary_group or contents.mikey is None:
        raise Refusal(488, warning_text(136), "temporary group indicator without key, or key without it")
    return contents.mikey


def check_service(request: Request, settings: ControllingSettings) -> None:
    """The Request-URI, the feature tags and the priority; raises :class:`Refusal`."""
    uri, own = SipUri.parse(str(request.uri)), SipUri.parse(settings.identity)
    if uri.host != own.host or uri.user != own.user:
        gone = uri.host == own.host and uri.param("gr") is not None
        code = 137 if gone else 142
        raise Refusal(404, warning_text(code), f"{request.uri} is neither this service nor a session of it")
    contacts = request.headers.contact
    if contacts and "isfocus" in contacts[0].params:
        raise Refusal(403, warning_text(128), "a client is no focus")
    asked: set[str] = set()
    for value in request.headers.values("Accept-Contact"):
        accept = AcceptContact.parse(value)
        if accept.require and accept.explicit:
            asked |= {name.lower() for name, at in accept.features() if name != _FEATURES[1] or ICSI in (at or "")}
    if not asked.issuperset(_FEATURES):
        text = warning_text(100, "missing MCPTT feature tags")
        raise Refusal(403, text, "Accept-Contact does not require both MCPTT feature tags")
    _check_resource_priority(request, settings)


def _check_resource_priority(request: Request, settings: ControllingSettings) -> None:
    """RFC 4412 4.6.2: a value that is not understood matters only to who requires it to be."""
    if not request.headers.requires("resource-priority"):
        return
    known = {value.partition(".")[0] for value in settings.resource_priority.values()}
    asked = [v.strip() for value in request.headers.get_all("Resource-Priority") for v in value.split(",")]
    if not any(_is_priority(value, known) for value in asked):
        accepted = ", ".join(f"{namespace}.{level}" for namespace in sorted(known) for level in range(16))
        raise Refusal(417, None, f"none of {asked} is known", headers=[("Accept-Resource-Priority", accepted)])


def _is_priority(value: str, namespaces: Collection[str]) -> bool:
    namespace, _, level = value.partition(".")
    return namespace in namespaces and level.isdecimal() and int(level) <= 15


def _group(info: McpttInfo, settings: ControllingSettings) -> str:
    if info.session_type == "chat":
        raise Refusal(404, warning_text(117), "a temporary group is a prearranged one")
    if info.session_type not in (None, "prearranged"):
        raise Refusal(403, warning_text(100, "session type"), f"session type {info.session_type!r}")
    group = info.request_uri
    if not group or SipUri.parse(group).host != settings.domain:
        raise Refusal(404, warning_text(142), f"{group!r} is no group id of {settings.domain}")
    return group


def _urgency(info: McpttInfo) -> Urgency:
    if info.alert and not info.emergency:
        raise Refusal(403, warning_text(150), "an alert without an emergency")
    return urgency_of(info)


def _commencements(request: Request, default: Commencement) -> tuple[Commencement, ...]:
    """What the caller asks for, the dearer first: who lacks the privilege of Priv-Answer-Mode falls back to
    Answer-Mode where both stand there (RFC 5373 4.4)."""

    def mode(name: str) -> str | None:
        value = request.headers.get(name)
        return None if value is None else value.partition(";")[0].strip().lower()

    wanted = []
    if mode("Priv-Answer-Mode") in ("auto", "automatic"):
        wanted.append(Commencement.FORCED)
    match mode("Answer-Mode"):
        case "auto" | "automatic":
            wanted.append(Commencement.AUTOMATIC)
        case "manual":
            wanted.append(Commencement.MANUAL)
    return tuple(wanted) or (default,)
