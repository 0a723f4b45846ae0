# SPDX-License-Identifier: Apache-2.0
"""The signer's own list of whom he sealed the group's key to: signed, numbered, passed on opaquely by the server.

Membership has three states (security rule 20): *keyed* (the member's own signed acknowledgement, which the signer
verified), *sealed* (this list: the signer says so) and *listed* (the conference package: the server says so).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcptt_sip.errors import SipError

MEMBER_LIST = "application/vnd.mcptt-sip.members"
#: a thousand members of about 40 octets each
MAX_MEMBER_LIST = 1 << 17

_LABEL = b"TGMK-MEMBERS"
_SIGNATURE = 129


class MemberListError(SipError):
    """Octets that are no list of members by the one who is said to have signed it."""


@dataclass(frozen=True, slots=True)
class MemberList:
    """``number`` grows with each list; ``at`` is the Unix time of its making by the signer's clock."""

    group: str
    signer: str
    number: int
    at: float
    users: tuple[str, ...]


def sign_members(
    group: str, signer: str, number: int, users: Sequence[str], sign: Callable[[bytes], bytes], now: float
) -> bytes:
    """JSON of the fields of :class:`MemberList`, then the signer's ECCSI signature (129 octets) over a label and it."""
    text = json.dumps(
        {"group": group, "signer": signer, "number": number, "at": now, "users": list(users)}, separators=(",", ":")
    ).encode()
    return text + sign(_LABEL + text)


def read_members(
    octets: bytes, *, group: str, signers: Sequence[str], verify: Callable[[str, bytes, bytes, float], None]
) -> MemberList:
    """The list, if one of ``signers`` signed it for ``group``. Raises :class:`MemberListError`.

    ``verify(user, octets, signature, at)`` raises unless the signature is this user's.
    """
    if not _SIGNATURE < len(octets) <= MAX_MEMBER_LIST:
        raise MemberListError(f"{len(octets)} octets are no list of members")
    text, signature = octets[:-_SIGNATURE], octets[-_SIGNATURE:]
    try:
        fields = json.loads(text)
        found = MemberList(
            str(fields["group"]), str(fields["signer"]), int(fields["number"]), float(fields["at"]),
            tuple(str(user) for user in fields["users"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise MemberListError("the list of members cannot be read") from error
    if found.group != group or found.signer not in signers:
        raise MemberListError("the list is of another group or signer")
    try:
        verify(found.signer, _LABEL + text, signature, found.at)
    except Exception as error:
        raise MemberListError("the signature of the list is wrong") from error
    return found
