# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in SIP, as a tree an application can act on.

``SipError`` > ``ProtocolError`` (someone broke the protocol) > ``LocalProtocolError`` (this side did: nothing
was sent) and ``ParseError`` (the peer did: carries the status to answer with).
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CallFailed",
    "LocalProtocolError",
    "ParseError",
    "ProtocolError",
    "RegistrationFailed",
    "RequestTimeout",
    "SipError",
    "Unreachable",
]


class SipError(Exception):
    """Root of every error this package raises on purpose."""


class ProtocolError(SipError):
    """A rule of the protocol was broken; `status` is the response code that says so."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class LocalProtocolError(ProtocolError):
    """This side asked for something its state does not allow. Nothing was sent, nothing changed."""


class ParseError(ProtocolError):
    """Octets that are not the SIP they claim to be.

    `offset` is where in the input the fault was seen (octets from its start), `status` the answer due
    (400, 413, 416, 505, 513), `partial` the request as far as it could be read, when that is enough to
    answer it (RFC 3261 8.2.6), else ``None``.
    """

    def __init__(self, reason: str, *, offset: int = 0, status: int = 400, partial: Any = None) -> None:
        super().__init__(reason, status=status)
        self.offset = offset
        self.partial = partial

    def __str__(self) -> str:
        return f"{self.reason} (at octet {self.offset})"


class RequestTimeout(SipError):
    """No final response within 64·T1 (RFC 3261 17.1.2.2 timer F, 17.1.1.2 timer B)."""


class Unreachable(SipError):
    """No flow to the target could be opened; `tried` names each address and what it said."""

    def __init__(self, target: str, tried: tuple[str, ...] = ()) -> None:
        super().__init__(f"{target} is unreachable" + (f" (tried {', '.join(tried)})" if tried else ""))
        self.target = target
        self.tried = tried


class CallFailed(SipError):
    """A call ended before it was answered; `response` is the final response, if there was one."""

    def __init__(self, reason: str, response: Any = None) -> None:
        super().__init__(reason)
        self.response = response

    @property
    def status(self) -> int | None:
        """The status code of the final response."""
        return None if self.response is None else int(self.response.status)


class RegistrationFailed(CallFailed):
    """A REGISTER was refused."""
