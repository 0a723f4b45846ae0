# SPDX-License-Identifier: Apache-2.0
"""The callee's side of a session (RFC 3261 13.3, 9.2; RFC 3262).

:RFC 3262: yes; 100rel
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mcptt_sip.dialog import Dialog
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause
from mcptt_sip.services import Services
from mcptt_sip.session import COMMON, InviteSession
from mcptt_sip.session_events import (
    Cancelled,
    Confirmed,
    Due,
    Ended,
    Farewell,
    Happens,
    ProvisionalAcknowledged,
    SessionState,
)

__all__ = ["ServerSession"]


@dataclass(slots=True)
class _Reliable:
    """A reliable provisional response waiting for its PRACK."""

    response: Response
    rseq: int
    interval: float


class ServerSession(InviteSession):
    """A call this side receives. The tag and the dialog are there from the start; the dialog is confirmed by the
    2xx."""

    __slots__ = (
        "_accepted", "_common", "_farewell", "_last_progress", "_queue", "_reliable", "_rseq", "_settled",
        "_transaction", "prack_answer", "replaces",
    )  # fmt: skip

    def __init__(self, services: Services, transaction: Any, request: Request) -> None:
        tag = services.tag()
        super().__init__(
            services, request, SessionState.PROCEEDING, local_tag=tag, flow=transaction.flow
        )
        self._transaction = transaction
        self._accepted: Response | None = None
        self._farewell = Farewell()
        self._last_progress: tuple[Response, bool] | None = None
        self._queue: deque[Response] | None = None
        self._common: Headers | None = None  # what its responses have in common, while there are more to come
        self._reliable: _Reliable | None = None
        self._rseq = 0
        self._settled = False  # whether the caller has its answer, in a reliable response
        #: the call whose place this one takes when it is accepted (RFC 3891)
        self.replaces: InviteSession | None = None
        #: gives (content type, body) for the 200 to a PRACK that carried an offer (RFC 3262 5)
        self.prack_answer: Callable[[Request], tuple[str, bytes] | None] | None = None
        self.dialog = Dialog.uas(request, tag, transaction.flow)
        self.dialog.session = self

    def begin(self, now: float) -> None:
        """13.3.1: an invitation with an Expires is over then, as if it were cancelled, when nothing final was said. Who
        sent it may be gone, and his CANCEL lost."""
        headers = self.request.headers
        if "expires" in headers.names and (expires := headers.expires) is not None:
            self.start_timer(Due.INVITATION_OVER, now + expires)

    # --- verbs

    def progress(
        self,
        status: int = 180,
        *,
        reason: str | None = None,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        reliable: bool | None = None,
        now: float,
    ) -> None:
        """A provisional response, repeated every minute while it rings (13.3.1.1).

        `reliable`: with RSeq, repeated until its PRACK (RFC 3262); by default where the caller requires it.
        Asking for it from a caller that does not support it is a `LocalProtocolError`. A second reliable response
        waits for the PRACK of the first. 199 (RFC 6228) is for a caller who supports it, and needs a Reason.
        """
        if not 101 <= status <= 199:
            raise LocalProtocolError(f"{status} is no provisional response of an application")
        if status == 199 and not self.request.headers.supports("199"):
            raise LocalProtocolError("the caller does not support 199")
        if reliable is None:
            reliable = self.request.headers.requires("100rel")
        if reliable and not self.request.headers.understands("100rel"):
            raise LocalProtocolError("the caller does not support 100rel")
        response = self._response(status, reason, headers, body, content_type)
        if status == 199:
            if not response.headers.reason:
                raise LocalProtocolError("199 needs a Reason (RFC 6228 5)")
            understood = [tag for tag in response.headers.supported if tag != "199"]
            response.headers.set("Supported", ", ".join(understood))
        self._step(Happens.PROGRESS, (response, reliable), now, local=True)

    def accept(
        self,
        status: int = 200,
        *,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
    ) -> None:
        """The 2xx, repeated until its ACK, for 64·T1 (then BYE, and `Ended` with NO_ACK). It waits for the PRACK of
        a reliable response that carried a description (RFC 3262 3)."""
        if not 200 <= status <= 299:
            raise LocalProtocolError(f"{status} does not accept")
        response = self._response(status, None, headers, body, content_type)
        waits = self._reliable is not None and self._reliable.response.body
        self._step(Happens.ACCEPT_LATER if waits else Happens.ACCEPT, response, now, local=True)

    def reject(
        self,
        status: int,
        *,
        reason: str | None = None,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
    ) -> None:
        """A final response of 300 to 699."""
        if not 300 <= status <= 699:
            raise LocalProtocolError(f"{status} does not reject")
        response = self.request.response(
            status, reason, headers=headers, body=body, content_type=content_type, to_tag=self.local_tag
        )
        self._step(Happens.REJECT, response, now, local=True)

    # --- what the stack calls

    def receive_request(self, transaction: Any, request: Request, now: float) -> None:
        """PRACK is ours; the rest is common."""
        if request.method == "PRACK":
            self._receive_prack(transaction, request, now)
        else:
            super().receive_request(transaction, request, now)

    def _may_offer(self, transaction: Any, request: Request, now: float) -> bool:
        if self.state is not SessionState.CONFIRMED and (
            request.method == "INVITE" or (request.body and not self._settled)
        ):
            self._later(transaction, request, now)  # the first offer is not through yet
            return False
        return super()._may_offer(transaction, request, now)

    def receive_cancel(self, transaction: Any, now: float) -> None:
        """CANCEL: 487, if nothing final was said yet (9.2)."""
        if transaction is self._transaction:
            self._step(Happens.CANCEL_IN, None, now)
        else:
            super().receive_cancel(transaction, now)

    def transport_failed(self, transaction: Any, now: float) -> None:
        """A response to the INVITE could not be sent anywhere."""
        if transaction is self._transaction:
            self._step(Happens.LOST, Farewell(cause=Cause.TRANSPORT), now)

    # --- inside

    def _response(
        self, status: int, reason: str | None, headers: HeaderItems, body: bytes, content_type: str | None
    ) -> Response:
        if self._common is None:
            self._common = self.request.response(200, to_tag=self.local_tag).headers
            self._common.copy_from(self.request.headers, "record-route")
        given = self._common.copy()
        if headers:
            given.extend(headers)
        if content_type is not None:
            given.set("Content-Type", content_type)
        given.add_missing(self._services.introduction(self.request, self._transaction.flow))
        return Response(status, reason, given, body)

    def _progress(self, said: tuple[Response, bool], now: float) -> None:
        response, reliable = said
        if reliable:
            if self._reliable is not None:
                self._queue = self._queue or deque()
                self._queue.append(response)
                return
            self._send_reliable(response, now)
        elif response.status == 199:  # says something once, and nothing of how it stands
            self._services.answer(self._transaction, response, now)
        else:
            self._last_progress = (response, False)
            self._services.answer(self._transaction, response, now)
            self.start_timer(Due.PROGRESS_AGAIN, now + self._services.settings.progress_interval)

    def _send_reliable(self, response: Response, now: float) -> None:
        timers = self._services.settings.timers
        if not self._rseq:  # RFC 3262 3: starts anywhere in 1..2**31-1
            self._rseq = int.from_bytes(self._services.token()[:4], "big") % (2**31 - 1) + 1
        else:
            self._rseq += 1
        response.headers.set("RSeq", self._rseq)
        if not response.headers.requires("100rel"):
            response.headers.add("Require", "100rel")
        self._reliable = _Reliable(response, self._rseq, timers.t1)
        self._services.answer(self._transaction, response, now)
        self.start_timer(Due.RELIABLE_AGAIN, now + timers.t1)
        self.start_timer(Due.NO_PRACK, now + timers.give_up)
        if response.status == 199:
            return
        self._last_progress = (response, True)
        self.start_timer(Due.PROGRESS_AGAIN, now + self._services.settings.reliable_progress_interval)

    def _receive_prack(self, transaction: Any, request: Request, now: float) -> None:
        rack = request.headers.rack
        waiting = self._reliable
        invite = self.request.headers.cseq.number
        if (
            rack is None
            or waiting is None
            or (rack.rseq, rack.cseq, rack.method) != (waiting.rseq, invite, "INVITE")
        ):
            self._services.answer(transaction, request.response(481), now)
            return
        self._settled = self._settled or bool(waiting.response.body)
        self._reliable = None
        self._stop(Due.RELIABLE_AGAIN, Due.NO_PRACK)
        response = request.response(200)
        if request.body and self.prack_answer is not None and (made := self.prack_answer(request)) is not None:
            response.headers.set("Content-Type", made[0])
            response.body = made[1]
        self._services.answer(transaction, response, now)
        self._services.emit(ProvisionalAcknowledged(self, request))
        if self._reliable is None and self._queue and self.state is SessionState.PROCEEDING:
            self._send_reliable(self._queue.popleft(), now)
        self._step(Happens.PRACKED, None, now)

    def _accept_later(self, response: Response, now: float) -> None:
        self._accepted = response

    def _accept_held(self, _: Any, now: float) -> None:
        assert self._accepted is not None
        self._accept(self._accepted, now)

    def _accept(self, response: Response, now: float) -> None:
        self._settle()
        dialog = self._dialog()
        dialog.confirmed = True
        self.add_timer_answer(self.request, response, now)
        self._remember_description(
            self.request.headers, response.headers.get("content-type"), response.body
        )
        outgoing = self._services.answer(self._transaction, response, now)
        self.repeat_until_ack(lambda: self._services.send_again(outgoing), self.request, now)
        self._accepted = None
        if self.replaces is not None and not self.replaces.ended:
            self.replaces.bye(now, cause=Cause.REPLACED)
            self.replaces = None

    def _release(self, now: float) -> None:
        super()._release(now)
        self._transaction.session = None
        self._common = None
        self.replaces = None

    def _settle(self) -> None:
        """A final response goes out: nothing provisional is repeated any more (RFC 3262 3)."""
        self._stop(Due.RELIABLE_AGAIN, Due.NO_PRACK, Due.PROGRESS_AGAIN)
        self._queue = None
        self._last_progress = None
        self._common = None

    def _reject(self, response: Response, now: float) -> None:
        self._settle()
        self._services.answer(self._transaction, response, now)

    def _reject_by_bye(self, farewell: Farewell, now: float) -> None:
        response = self.request.response(480, headers=farewell.headers, to_tag=self.local_tag)
        self._reject(response, now)
        self._services.emit(Ended(self, farewell.cause, None))

    def _cancelled(self, _: Any, now: float) -> None:
        self._reject(self.request.response(487, to_tag=self.local_tag), now)
        self._services.emit(Cancelled(self))

    def _bye_early(self, farewell: Farewell, now: float) -> None:
        """The caller ends an early dialog: 487 to the INVITE (15.1.2)."""
        self._reject(self.request.response(487, to_tag=self.local_tag), now)
        self._services.emit(Ended(self, farewell.cause, farewell.request))

    def _lost_unanswered(self, farewell: Farewell, now: float) -> None:
        """The caller's connection is gone: nobody will cancel, and without an answer the transaction had no end."""
        self._reject(self.request.response(480, to_tag=self.local_tag), now)
        self._lost(farewell, now)

    def _no_prack(self, _: Any, now: float) -> None:
        """RFC 3262 3: 5xx."""
        self._reject(self.request.response(504, to_tag=self.local_tag), now)
        self._services.emit(Ended(self, Cause.NO_PRACK, None))

    def _confirmed(self, request: Request, now: float) -> None:
        self._services.emit(Confirmed(self, request))

    def _hang(self, farewell: Farewell, now: float) -> None:
        """15: the callee MUST NOT send a BYE until the ACK is there, or its time is over."""
        self._farewell = farewell

    def _hung(self, _: Any, now: float) -> None:
        self._send_bye(self._farewell, now)

    def _timer_fired(self, due: Due, now: float) -> None:
        if due is Due.RELIABLE_AGAIN and self._reliable is not None:
            self._services.answer(self._transaction, self._reliable.response, now)
            self._reliable.interval *= 2  # RFC 3262 3: doubles, T2 is no limit
            self.start_timer(due, now + self._reliable.interval)
        elif due is Due.NO_PRACK:
            self._reliable = None
            self._step(Happens.NO_PRACK, None, now)
        elif due is Due.INVITATION_OVER:
            self._step(Happens.CANCEL_IN, None, now)
        elif due is Due.PROGRESS_AGAIN and self._last_progress is not None:
            response, reliable = self._last_progress
            if reliable and self._reliable is None:
                self._send_reliable(response.copy(), now)
            else:
                self._services.answer(self._transaction, response, now)
                self.start_timer(due, now + self._services.settings.progress_interval)
        else:
            super()._timer_fired(due, now)


S, H, U = SessionState, Happens, ServerSession
ServerSession.TABLE = {
    (S.PROCEEDING, H.PROGRESS): (S.PROCEEDING, U._progress),
    (S.PROCEEDING, H.PRACKED): (S.PROCEEDING, U._ignore),
    (S.PROCEEDING, H.NO_PRACK): (S.ENDED, U._no_prack),
    (S.PROCEEDING, H.ACCEPT): (S.ACCEPTED, U._accept),
    (S.PROCEEDING, H.ACCEPT_LATER): (S.ACCEPTING, U._accept_later),
    (S.PROCEEDING, H.REJECT): (S.ENDED, U._reject),
    (S.PROCEEDING, H.BYE): (S.ENDED, U._reject_by_bye),
    (S.PROCEEDING, H.CANCEL_IN): (S.ENDED, U._cancelled),
    (S.PROCEEDING, H.BYE_IN): (S.ENDED, U._bye_early),
    (S.PROCEEDING, H.LOST): (S.ENDED, U._lost_unanswered),
    (S.ACCEPTING, H.PRACKED): (S.ACCEPTED, U._accept_held),
    (S.ACCEPTING, H.NO_PRACK): (S.ENDED, U._no_prack),
    (S.ACCEPTING, H.REJECT): (S.ENDED, U._reject),
    (S.ACCEPTING, H.BYE): (S.ENDED, U._reject_by_bye),
    (S.ACCEPTING, H.CANCEL_IN): (S.ENDED, U._cancelled),
    (S.ACCEPTING, H.BYE_IN): (S.ENDED, U._bye_early),
    (S.ACCEPTED, H.ACK): (S.CONFIRMED, U._confirmed),
    (S.ACCEPTED, H.NO_ACK): (S.LEAVING, U._send_bye),
    (S.ACCEPTED, H.BYE): (S.HANGING, U._hang),
    (S.ACCEPTED, H.BYE_IN): (S.ENDED, U._bye_received),
    (S.ACCEPTED, H.LOST): (S.ENDED, U._lost),
    (S.HANGING, H.ACK): (S.LEAVING, U._hung),
    (S.HANGING, H.NO_ACK): (S.LEAVING, U._hung),
    (S.HANGING, H.BYE_IN): (S.ENDED, U._bye_received),
    **COMMON,
}
