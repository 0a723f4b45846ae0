# SPDX-License-Identifier: Apache-2.0
"""What leaves the stack: messages for the edge, and client requests for the application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.dialog import TARGET_REFRESH, Dialog
from mcptt_sip.flow import Flow
from mcptt_sip.message import Request, Response, parse
from mcptt_sip.services import Cause, Services

__all__ = ["Cause", "ClientRequest", "Outgoing", "RequestFailed", "ResponseReceived"]


class Outgoing:
    """One message for the edge.

    With `flow`: write `octets` there. Without: resolve `target` (a SIP URI as text), choose or open a flow,
    call `SipStack.bind(outgoing, flow, now)` and write what that returns. Either way, `SipStack.send_failed`
    when it cannot be done.
    """

    __slots__ = ("_message", "_octets", "avoid", "fallback", "flow", "is_request", "target", "transaction")

    def __init__(
        self,
        message: Request | Response | None,
        flow: Flow | None,
        target: str | None = None,
        *,
        octets: bytes | None = None,
        transaction: Any = None,
        fallback: Flow | None = None,
        is_request: bool = True,
        avoid: frozenset[object] = frozenset(),
    ) -> None:
        self._message = message
        self._octets = octets
        self.flow = flow
        self.target = target
        self.transaction = transaction
        self.fallback = fallback  # the datagram flow left for TCP because of its size (18.1.1)
        self.is_request = is_request
        self.avoid = avoid  # places where this request has failed already (RFC 3263 4.3)

    @property
    def octets(self) -> bytes:
        """The message as it goes on the wire."""
        if self._octets is None:
            assert self._message is not None
            self._octets = bytes(self._message)
        return self._octets

    @property
    def message(self) -> Request | Response:
        """The message."""
        if self._message is None:
            self._message = parse(self.octets)
        return self._message

    def settle(self) -> None:
        """Keep the octets only; the message is read from them when somebody asks for it."""
        self._octets = self.octets
        self._message = None

    def __repr__(self) -> str:
        return f"<Outgoing {self.message!r} {self.flow or self.target}>"


class ClientRequest:
    """A non-INVITE request under way, inside or outside a dialog.

    401 and 407 are answered by itself where credentials are known. `context` is the application's own.
    """

    __slots__ = (
        "_challenges",
        "_done",
        "_services",
        "context",
        "credentials",
        "dialog",
        "flow",
        "request",
        "response",
        "session",
        "subscription",
        "target",
        "transaction",
    )

    def __init__(
        self,
        services: Services,
        request: Request,
        *,
        flow: Flow | None = None,
        target: str | None = None,
        credentials: DigestCredentials | None = None,
        dialog: Dialog | None = None,
        session: Any = None,
        done: Callable[[ClientRequest, Response | None, Cause, float], bool] | None = None,
        context: Any = None,
    ) -> None:
        self._services = services
        self.request = request
        self.response: Response | None = None
        self.flow = flow
        self.target = target
        self.credentials = credentials
        self.dialog = dialog
        self.session = session
        self.subscription: Any = None
        self.context = context
        self.transaction: Any = None
        self._challenges = 0
        # called with every final result before the application hears of it; True: it need not hear
        self._done = done

    @property
    def method(self) -> str:
        """The method of the request."""
        return self.request.method

    def start(self, now: float) -> None:
        """Send it."""
        self._services.authorize(self.credentials, self.request)
        self.transaction = self._services.start(
            self.request, self, now, flow=self.flow, target=self.target
        )

    def on_response(self, transaction: Any, response: Response, flow: Flow, now: float) -> None:
        """A response (the transaction's word)."""
        self.flow = flow
        if response.status < 200:
            self._services.emit(ResponseReceived(self, response))
            return
        if response.status in (401, 407) and self._challenges < self._services.settings.max_challenges:
            if self._services.answer_challenge(self.credentials, self.request, response):
                self._challenges += 1
                self._retry(now)
                return
        if response.status == 503 and self._fail_over(now):
            return
        self.response = response
        if response.status < 300:
            self._services.authenticated(self.credentials, response)
            if self.dialog is not None and self.method in TARGET_REFRESH:
                self.dialog.refresh_target(response)
        self._finish(response, Cause.RESPONSE, now)

    def on_failure(self, transaction: Any, cause: Cause, now: float) -> None:
        """No final response (the transaction's word)."""
        if not self._fail_over(now):
            self._finish(None, cause, now)

    def _fail_over(self, now: float) -> bool:
        """The same request to the next server of the target, in a transaction of its own (RFC 3263 4.3)."""
        if not self.transaction.more:
            return False
        request = self.request.copy()
        request.headers.remove("via")
        self.request = request
        avoid = self.transaction.avoid | {self.transaction.place}
        self.transaction = self._services.start(
            request, self, now, flow=None, target=self.target, avoid=avoid
        )
        return True

    def _retry(self, now: float) -> None:
        request = self.request.copy()
        request.headers.remove("via")
        if self.dialog is not None:
            self.dialog.local_cseq += 1
            number = self.dialog.local_cseq
        else:
            number = request.headers.cseq.number + 1
        request.headers.set("CSeq", f"{number} {request.method}")
        self.request = request
        self.start(now)

    def _finish(self, response: Response | None, cause: Cause, now: float) -> None:
        quiet = self._done is not None and self._done(self, response, cause, now)
        if quiet:
            return
        if response is None:
            self._services.emit(RequestFailed(self, cause))
        else:
            self._services.emit(ResponseReceived(self, response))

    def __repr__(self) -> str:
        return f"<ClientRequest {self.request!r} {self.response!r}>"


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """A response to `client_request`, provisional (1xx) or final."""

    client_request: ClientRequest
    response: Response


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """No final response came; `cause` is TIMEOUT or TRANSPORT."""

    client_request: ClientRequest
    cause: Cause
