# SPDX-License-Identifier: Apache-2.0
"""The INVITE that changes a session (RFC 3261 14.1): its 2xx is acknowledged, a glare makes it try again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mcptt_sip.flow import Flow
from mcptt_sip.message import Response
from mcptt_sip.outgoing import Cause, ClientRequest
from mcptt_sip.session_events import Due, SessionState

if TYPE_CHECKING:
    from mcptt_sip.session import InviteSession

__all__ = ["ReInvite"]


class ReInvite(ClientRequest):
    """An INVITE inside a session."""

    __slots__ = ("_abandoned", "renew")
    _abandoned: bool
    #: gives the description of the second try
    renew: Callable[[], tuple[str, bytes]] | None

    def start(self, now: float) -> None:
        """Send it."""
        self._abandoned = False
        super().start(now)

    def on_response(self, transaction: Any, response: Response, flow: Flow, now: float) -> None:
        """A response; 2xx may come several times."""
        session: InviteSession = self.session
        if 200 <= response.status < 300 and session.dialog is not None:
            again = bool(transaction.acks)
            session.dialog.refresh_target(response)  # 12.2.1.2: where the ACK goes already
            session.acknowledge(transaction, session.dialog, response, now)
            if again:
                return
        elif response.status == 491 and session.pending_invite is self:
            session.pending_invite, session.glared = None, self
            self._wait(session, now)
            return
        if not self._abandoned:
            super().on_response(transaction, response, flow, now)

    def on_failure(self, transaction: Any, cause: Cause, now: float) -> None:
        """No final response."""
        if not self._abandoned:
            super().on_failure(transaction, cause, now)

    def _wait(self, session: InviteSession, now: float) -> None:
        """14.1: the owner of the Call-ID waits 2.1 to 4 s, the other 0 to 2 s, in steps of 10 ms."""
        step = int.from_bytes(self._services.token()[:2], "big")
        owner = session.dialog is not None and session.dialog.initiator
        session.start_timer(Due.GLARE, now + (2.1 + step % 191 / 100 if owner else step % 201 / 100))

    def try_again(self, now: float) -> None:
        """After a glare: unless the peer's own change is under way, which comes first."""
        session: InviteSession = self.session
        session.glared = None
        if session.changing or session.pending_offer is not None:
            session.glared = self
            self._wait(session, now)
        elif session.state is SessionState.CONFIRMED:
            session.pending_invite = self
            if self.renew is not None:
                kind, self.request.body = self.renew()
                self.request.headers.set("Content-Type", kind)
            self._retry(now)

    def abandon(self, now: float) -> None:
        """The session is over. A peer that said no more than 100 may never say anything else."""
        self._abandoned = True
        self._services.destroy_later(self.transaction, now)
        self._finish(None, Cause.SESSION_OVER, now)
