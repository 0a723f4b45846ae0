# SPDX-License-Identifier: Apache-2.0
"""Session timers (RFC 4028): what to ask for, what to answer, when to refresh, when to give up.

:RFC 4028: yes; both roles
"""

from __future__ import annotations

from dataclasses import dataclass

from mcptt_sip.field_lines import Headers
from mcptt_sip.headers import SessionExpires
from mcptt_sip.message import Request, Response

__all__ = ["FLOOR", "SessionTimer", "agree", "answer_headers", "offer_headers", "too_small"]

#: the least Min-SE (4)
FLOOR = 90


@dataclass(frozen=True, slots=True)
class SessionTimer:
    """An interval agreed on: seconds, and whether this side refreshes."""

    seconds: int
    refresher: bool

    @property
    def refresh_after(self) -> float:
        """Half the interval (7.2, 10)."""
        return self.seconds / 2

    @property
    def expire_after(self) -> float:
        """BYE slightly before the interval ends: the less of 32 s and a third of it (10)."""
        return self.seconds - min(32.0, self.seconds / 3)


def offer_headers(seconds: int, min_se: int, given: Headers) -> list[tuple[str, object]]:
    """What a caller adds to its INVITE or UPDATE (7.1); nothing when the application gave its own."""
    if not seconds or "session-expires" in given:
        return []
    wanted: list[tuple[str, object]] = [("Session-Expires", SessionExpires(max(seconds, min_se)))]
    if min_se > FLOOR and "min-se" not in given:
        wanted.append(("Min-SE", min_se))
    return wanted


def too_small(request: Request, min_se: int) -> bool:
    """Whether a request is to be answered 422 (9): its interval is under ours, and it knows what 422 means."""
    asked = request.headers.session_expires
    return asked is not None and asked.seconds < min_se and request.headers.supports("timer")


def answer_headers(
    request: Request, seconds: int, min_se: int, given: Headers
) -> tuple[list[tuple[str, object]], SessionTimer | None]:
    """What a callee adds to its 2xx (9), and what that makes of the session.

    The interval may be shortened, never below the request's Min-SE. A caller that does not know timers cannot refresh:
    then this side does.
    """
    own = given.session_expires
    if own is not None:
        refresher = own.refresher or "uas"
        return [], SessionTimer(own.seconds, refresher == "uas")
    asked = request.headers.session_expires
    if asked is None and not seconds:
        return [], None
    knows = request.headers.supports("timer")
    if asked is None and not knows:
        return [], None
    floor = request.headers.min_se
    least = max(floor.seconds if floor else FLOOR, FLOOR)
    interval = asked.seconds if asked is not None else seconds
    if seconds:
        interval = min(interval, max(seconds, least))
    interval = max(interval, min_se if asked is None else min(min_se, interval), FLOOR)
    # table 2: who does not support timers is never the refresher; a wish of the caller holds
    refresher = "uas" if not knows else (asked.refresher if asked and asked.refresher else "uac")
    headers: list[tuple[str, object]] = [("Session-Expires", SessionExpires(interval, refresher))]
    if refresher == "uac" and not given.requires("timer"):
        headers.append(("Require", "timer"))
    return headers, SessionTimer(interval, refresher == "uas")


def agree(response: Response) -> SessionTimer | None:
    """What a 2xx means for the caller (7.2); without Session-Expires there is no timer."""
    agreed = response.headers.session_expires
    if agreed is None:
        return None
    return SessionTimer(max(agreed.seconds, 1), agreed.refresher != "uas")
