# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a temporary group call, one class for each thing that an application can act on."""

from __future__ import annotations

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.contents import warning_of
from mcptt_sip.message import Response
from mcptt_sip.outgoing import Cause


class CallerNotAllowed(SipError):
    """This user's own policy takes no calls of that one."""


class AddFailed(SipError):
    """One user could not be added, or did not prove that he holds the key. The call goes on."""

    def __init__(self, user: str, status: int, warning: str | None = None) -> None:
        super().__init__(f"{user} was not added: {status}" + (f" ({warning})" if warning else ""))
        self.user = user
        self.status = status
        self.warning = warning


class RegroupFailed(SipError):
    """The call was not established; ``status`` and ``warning`` are the server's, or say what was missing."""

    def __init__(self, why: str, status: int | None = None, warning: str | None = None) -> None:
        super().__init__(f"{why}" + (f": {status}" if status else "") + (f" ({warning})" if warning else ""))
        self.status = status
        self.warning = warning

    @classmethod
    def refused(cls, response: Response | None, cause: Cause) -> RegroupFailed:
        """What an INVITE came to that was not answered with a 2xx."""
        status = response.status if response is not None else None
        warning = warning_of(response) if response is not None else None
        return cls(f"call refused ({cause.value})", status, warning)


class NotRekeyed(SipError):
    """These users did not acknowledge a new key (or a revocation) in time; they count as not keyed."""

    def __init__(self, users: frozenset[str]) -> None:
        super().__init__("no acknowledgement from " + ", ".join(sorted(users)))
        self.users = users


class ChangeRefused(SipError):
    """The server does not change the running call; it goes on as it was."""

    def __init__(self, what: str, status: int | None, warning: str | None = None) -> None:
        super().__init__(f"{what}: {status or 'no answer'}" + (f" ({warning})" if warning else ""))
        self.status = status
        self.warning = warning


class NotADeputy(SipError):
    """Only the initiator, and when he is lost a deputy whom he signed for, makes keys for the group."""
