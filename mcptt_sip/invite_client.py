# SPDX-License-Identifier: Apache-2.0
"""The caller's side of a session (RFC 3261 13.2, 9.1; RFC 3262; RFC 6026).

:RFC 6228: yes; 199 in every role
"""

from __future__ import annotations

from typing import Any

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.dialog import Dialog
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.flow import Flow
from mcptt_sip.headers import NameAddr, RAck
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause, ClientRequest
from mcptt_sip.routing import make_cancel
from mcptt_sip.services import Services
from mcptt_sip.session import COMMON, InviteSession
from mcptt_sip.session_events import (
    Answered,
    Due,
    Farewell,
    Happens,
    Progressed,
    Refused,
    SessionState,
)
from mcptt_sip.session_timer import agree, offer_headers
from mcptt_sip.uri import SipUri

__all__ = ["ClientSession"]


class ClientSession(InviteSession):
    """A call this side makes.

    Forks: each early dialog is in `dialogs`; the first 2xx makes `dialog`, every later one from another callee is
    acknowledged and ended with BYE. Reliable provisional responses are acknowledged by PRACK, in order.
    """

    __slots__ = (
        "_challenges", "_described", "_ended_early", "_farewell", "_given_flow", "_redirects", "_rseq", "_targets",
        "_transaction", "_visited",
    )  # fmt: skip

    def __init__(
        self,
        services: Services,
        request: Request,
        *,
        flow: Flow | None,
        target: str | None,
        credentials: DigestCredentials | None,
        redirects: int = 0,
        context: Any = None,
    ) -> None:
        super().__init__(
            services,
            request,
            SessionState.CALLING,
            local_tag=request.headers.from_.tag or "",
            flow=flow,
            target=target,
            credentials=credentials,
            context=context,
        )
        self._given_flow = flow  # what responses come on is no rule for the next INVITE
        self._transaction: Any = None
        self._rseq: dict[str, int] = {}
        self._challenges = 0
        #: tags of early dialogs in which offer and answer are through (RFC 3262 5)
        self._described: set[str] = set()
        #: the BYE of each early dialog that its callee has ended: his 2xx was overtaken by it (RFC 5407 3.1.2)
        self._ended_early: dict[str, Request] = {}
        self._farewell: Farewell | None = None
        self._redirects = redirects  # targets of 3xx that may still be tried
        self._targets: list[str] = []
        self._visited = {str(request.uri)}

    def start(self, now: float) -> None:
        """Send the INVITE."""
        settings = self._services.settings
        headers = self.request.headers
        for name, value in offer_headers(settings.session_expires, settings.min_se, headers):
            headers.add(name, value)
        self._send_invite(now)

    def cancel(self, now: float, *, headers: HeaderItems = ()) -> None:
        """CANCEL as soon as a provisional response allows it (9.1); a 2xx that comes all the same gets ACK and
        BYE. Ends in `Refused` with CANCELLED, in 64·T1 at the latest."""
        self._step(Happens.CANCEL, Farewell(tuple(headers), cause=Cause.CANCELLED), now, local=True)

    # --- as transaction user

    def on_response(self, transaction: Any, response: Response, flow: Flow, now: float) -> None:
        """A response to the INVITE."""
        self._flow = flow
        if response.status == 100:
            if self.state in (SessionState.CALLING, SessionState.CANCEL_PENDING):
                self._step(Happens.PROVISIONAL, (transaction, response, flow), now)
        elif response.status < 200:
            self._step(Happens.PROVISIONAL, (transaction, response, flow), now)
        elif response.status < 300:
            self._services.authenticated(self.credentials, response)
            self._step(Happens.SUCCESS, (transaction, response, flow), now)
            bye = self._ended_early.pop(response.headers.to.tag or "", None)
            if bye is not None:
                self._step(Happens.BYE_IN, Farewell(cause=Cause.REMOTE_BYE, request=bye), now)
        elif transaction is self._transaction:
            self._step(self._meaning(transaction, response), response, now)

    def on_failure(self, transaction: Any, cause: Cause, now: float) -> None:
        """No answer, or no way to send."""
        if transaction is self._transaction:
            another = transaction.more and self.state is SessionState.CALLING
            self._step(Happens.FAIL_OVER if another else Happens.NO_ANSWER, cause, now)

    def _meaning(self, transaction: Any, response: Response) -> Happens:
        """What a final failure is to this call."""
        if self.state in (SessionState.CALLING, SessionState.PROCEEDING):
            if self._curable(response):
                return Happens.CHALLENGE
            if response.status == 503 and transaction.more:
                return Happens.FAIL_OVER
            if self._redirected(response):
                return Happens.REDIRECT
        return Happens.FAILURE

    def _redirected(self, response: Response) -> bool:
        """Whether there is another target to try (8.1.3.4, 16.7 step 4): the contacts of a 3xx by their q, then what
        is left of them after a failure; a 6xx speaks for all."""
        # 305 names a proxy, not another place of the callee (21.3.4)
        if 300 <= response.status < 400 and response.status != 305 and self._redirects:
            found = []
            for contact in response.headers.contact:
                uri = contact.uri
                if isinstance(uri, SipUri) and (uri.scheme == "sips" or self.request.uri.scheme != "sips"):
                    text = str(uri.replace(headers=(), params=uri.params.without("method")))
                    if text not in self._visited:
                        self._visited.add(text)
                        found.append((-_q(contact), text))
            self._targets = [text for _, text in sorted(found, key=lambda pair: pair[0])] + self._targets
        return response.status < 600 and bool(self._targets) and self._redirects > 0

    def _curable(self, response: Response) -> bool:
        if response.status not in (401, 407, 422):
            return False
        self._challenges += 1
        if self._challenges > self._services.settings.max_challenges:
            return False
        if response.status != 422:
            return self._services.answer_challenge(self.credentials, self.request, response)
        asked, least = self.request.headers.session_expires, response.headers.min_se
        return bool(asked and least and least.seconds > asked.seconds)  # RFC 4028 7.3

    # --- requests in an early dialog

    def receive_request(self, transaction: Any, request: Request, now: float) -> None:
        """See `InviteSession`. A BYE in an early dialog is one that has overtaken the 2xx."""
        if request.method == "BYE" and self.state in _UNANSWERED:
            self._ended_early[request.headers.from_.tag or ""] = request
        super().receive_request(transaction, request, now)

    def _may_offer(self, transaction: Any, request: Request, now: float) -> bool:
        """14.2, RFC 3311 5.2: not while our INVITE is in progress, or its offer has no answer."""
        if self.state in _UNANSWERED and (
            request.method == "INVITE"
            or (request.body and (request.headers.from_.tag or "") not in self._described)
        ):
            self._services.answer(transaction, request.response(491), now)
            return False
        return super()._may_offer(transaction, request, now)

    # --- actions

    def _send_invite(self, now: float) -> None:
        self._services.authorize(self.credentials, self.request)
        self._transaction = self._services.start(
            self.request, self, now, flow=self._given_flow, target=self.target
        )

    def _retry(self, response: Response, now: float) -> None:
        self._forget_early()
        request = self.request.copy()
        request.headers.remove("via")
        request.headers.set("CSeq", f"{request.headers.cseq.number + 1} INVITE")
        if response.status == 422 and response.headers.min_se is not None:
            seconds = response.headers.min_se.seconds
            request.headers.set("Session-Expires", seconds)
            request.headers.set("Min-SE", seconds)
            self.min_se = max(self.min_se, seconds)
        self.request = request
        self._send_invite(now)

    def _try_next_target(self, response: Response, now: float) -> None:
        """Same To, From and Call-ID, a new Request-URI (8.1.3.4)."""
        self._forget_early()
        self._redirects -= 1
        request = self.request.copy()
        request.headers.remove("via")
        request.headers.set("CSeq", f"{request.headers.cseq.number + 1} INVITE")
        request.uri = self._targets.pop(0)
        self.request = request
        self._given_flow = None
        self._send_invite(now)

    def _try_next_server(self, _: Any, now: float) -> None:
        """The same request, to another server of the same target (RFC 3263 4.3)."""
        self._forget_early()
        tried = self._transaction
        request = self.request.copy()
        request.headers.remove("via")
        self.request = request
        self._transaction = self._services.start(
            request, self, now, flow=None, target=self.target, avoid=tried.avoid | {tried.place}
        )

    def _progress(self, heard: tuple[Any, Response, Flow], now: float) -> None:
        transaction, response, flow = heard
        if response.status == 100:
            return
        reliable = response.headers.requires("100rel") and response.headers.rseq is not None
        if response.status == 199 and not reliable and response.headers.to.tag not in self.dialogs:
            return  # RFC 6228 4: of a dialog that was never heard of
        dialog = self._early_dialog(transaction, response, flow)
        if dialog is not None and reliable and not self._acknowledge_provisional(dialog, response, now):
            return
        if response.status == 199 and dialog is not None:
            self._early_dialog_is_over(dialog)
        self._services.emit(Progressed(self, response, dialog))

    def _early_dialog_is_over(self, dialog: Dialog) -> None:
        """RFC 6228 4; not for certain where it has another usage (RFC 5057). More may come, and a final answer will."""
        if dialog.subscriptions:
            return
        del self.dialogs[dialog.remote_tag]
        dialog.session = None
        self._services.drop_dialog(dialog)
        if self.dialog is dialog:
            self.dialog = next(reversed(self.dialogs.values()), None)

    def _early_dialog(self, transaction: Any, response: Response, flow: Flow) -> Dialog | None:
        tag = response.headers.to.tag
        if not tag:
            return None
        dialog = self.dialogs.get(tag)
        if dialog is None:
            if len(self.dialogs) >= 64:  # a fork this wide is an attack
                return None
            dialog = Dialog.uac(transaction.request, response, flow)
            dialog.session = self
            self.dialogs[tag] = dialog
            self._services.add_dialog(dialog)
        elif response.headers.requires("100rel"):  # RFC 6141 4.7: what may be lost changes no target
            dialog.refresh_target(response)
        dialog.flow = flow
        if self.dialog is None or not self.dialog.confirmed:
            self.dialog = dialog
        return dialog

    def _acknowledge_provisional(self, dialog: Dialog, response: Response, now: float) -> bool:
        """PRACK (RFC 3262 4). ``False``: repeated or out of order, not for the application."""
        rseq = response.headers.rseq
        assert rseq is not None
        last = self._rseq.get(dialog.remote_tag)
        if last is not None and rseq != last + 1:
            return False
        self._rseq[dialog.remote_tag] = rseq
        if response.body:
            self._described.add(dialog.remote_tag)
        rack = RAck(rseq, response.headers.cseq.number, "INVITE")
        request = dialog.request("PRACK", [("RAck", rack)])
        if self.prack_body is not None and (made := self.prack_body(response)) is not None:
            request.headers.set("Content-Type", made[0])
            request.body = made[1]
        ClientRequest(
            self._services,
            request,
            flow=self._services.flow_of(dialog),
            credentials=self.credentials,
            dialog=dialog,
            session=self,
            done=self._prack_done,
        ).start(now)
        return True

    def _prack_done(self, _: ClientRequest, response: Response | None, cause: Cause, now: float) -> bool:
        # 2xx carries an answer where the PRACK made an offer: the application wants that; failures show in
        # the INVITE itself
        return response is None or response.status >= 300 or not response.body

    def _answered(self, heard: tuple[Any, Response, Flow], now: float) -> None:
        transaction, response, flow = heard
        dialog = self._early_dialog(transaction, response, flow)
        if dialog is None:  # RFC 2543: a 2xx without To tag
            dialog = Dialog.uac(transaction.request, response, flow)
            dialog.session = self
            self._services.add_dialog(dialog)
        dialog.confirm(response)
        self.dialog = dialog
        for tag, other in list(self.dialogs.items()):
            if other is not dialog:
                del self.dialogs[tag]
                other.session = None
                self._services.drop_dialog(other)
        self._remember_description(
            response.headers, self.request.headers.get("content-type"), self.request.body
        )
        self.acknowledge(transaction, dialog, response, now)
        self._start_session_timer(agree(response), now)
        self._services.emit(Answered(self, response))

    def _success_again(self, heard: tuple[Any, Response, Flow], now: float) -> None:
        """A 2xx once more: the same gets its ACK again, another callee's gets ACK and BYE (13.2.2.4)."""
        transaction, response, flow = heard
        tag = response.headers.to.tag or ""
        if self.dialog is not None and tag == self.dialog.remote_tag:
            self.acknowledge(transaction, self.dialog, response, now)
            return
        self._decline_fork(transaction, response, flow, now)

    def _decline_fork(self, transaction: Any, response: Response, flow: Flow, now: float) -> None:
        known = (response.headers.to.tag or "") in transaction.acks
        dialog = Dialog.uac(transaction.request, response, flow)
        self.acknowledge(transaction, dialog, response, now)
        if not known:
            dialog.subscriptions = (self,)  # holds the dialog until its BYE is answered
            self._services.add_dialog(dialog)
            farewell = self._farewell or Farewell()  # what was to be said by CANCEL is said by the BYE
            request = dialog.request("BYE", farewell.headers, farewell.body)
            if farewell.content_type is not None:
                request.headers.set("Content-Type", farewell.content_type)

            def gone(_: ClientRequest, response: Response | None, cause: Cause, now: float) -> bool:
                dialog.subscriptions = ()
                self._services.drop_dialog(dialog)
                return True

            ClientRequest(
                self._services,
                request,
                flow=self._services.flow_of(dialog),
                credentials=self.credentials,
                dialog=dialog,
                done=gone,
            ).start(now)

    def _refused(self, response: Response, now: float) -> None:
        self._services.emit(Refused(self, response, Cause.RESPONSE))

    def _unanswered(self, cause: Cause, now: float) -> None:
        self._services.emit(Refused(self, None, cause))

    def _want_cancel(self, farewell: Farewell, now: float) -> None:
        self._farewell = farewell

    def _send_cancel(self, farewell: Farewell, now: float) -> None:
        self._farewell = farewell
        cancel = make_cancel(self._transaction.request)
        cancel.headers.extend(farewell.headers)
        self._services.start_cancel(self._transaction, cancel, now)
        self.start_timer(Due.CANCEL_GIVEN_UP, now + self._services.settings.timers.give_up)

    def _send_wanted_cancel(self, heard: tuple[Any, Response, Flow], now: float) -> None:
        assert self._farewell is not None
        self._send_cancel(self._farewell, now)

    def _progress_while_cancelling(self, heard: tuple[Any, Response, Flow], now: float) -> None:
        """A reliable response still wants its PRACK."""
        transaction, response, flow = heard
        if response.status > 100:
            dialog = self._early_dialog(transaction, response, flow)
            if dialog and response.headers.requires("100rel") and response.headers.rseq is not None:
                self._acknowledge_provisional(dialog, response, now)

    def _cancelled(self, response: Response | None, now: float) -> None:
        self._services.emit(Refused(self, response, Cause.CANCELLED))

    def _cancelled_unheard(self, cause: Cause, now: float) -> None:
        self._services.emit(Refused(self, None, Cause.CANCELLED))

    def _answered_too_late(self, heard: tuple[Any, Response, Flow], now: float) -> None:
        """A 2xx crossed the CANCEL: ACK and BYE."""
        self._due.clear()
        transaction, response, flow = heard
        self._decline_fork(transaction, response, flow, now)
        self._services.emit(Refused(self, response, Cause.CANCELLED))

    def _timer_fired(self, due: Due, now: float) -> None:
        if due is Due.CANCEL_GIVEN_UP:
            # a callee who said 100 and died: nothing else ends the transaction of the INVITE
            self._services.destroy(self._transaction)
            self._step(Happens.NO_ANSWER, Cause.TIMEOUT, now)
        else:
            super()._timer_fired(due, now)

    def _forget_early(self) -> None:
        for dialog in self.dialogs.values():
            dialog.session = None
            self._services.drop_dialog(dialog)
        self.dialogs = {}
        self.dialog = None
        self._rseq = {}
        self._described.clear()
        self._ended_early.clear()


def _q(contact: NameAddr) -> float:
    """The preference of a contact (20.10); nonsense is the least."""
    try:
        return min(1.0, max(0.0, float(contact.params.get("q") or 1.0)))
    except ValueError:
        return 0.0


#: states in which the INVITE has no final answer
_UNANSWERED = frozenset({
    SessionState.CALLING, SessionState.PROCEEDING, SessionState.CANCEL_PENDING, SessionState.CANCELLING,
})  # fmt: skip

S, H, C = SessionState, Happens, ClientSession
ClientSession.TABLE = {
    (S.CALLING, H.PROVISIONAL): (S.PROCEEDING, C._progress),
    (S.CALLING, H.SUCCESS): (S.CONFIRMED, C._answered),
    (S.CALLING, H.FAILURE): (S.ENDED, C._refused),
    (S.CALLING, H.CHALLENGE): (S.CALLING, C._retry),
    (S.CALLING, H.REDIRECT): (S.CALLING, C._try_next_target),
    (S.CALLING, H.FAIL_OVER): (S.CALLING, C._try_next_server),
    (S.CALLING, H.NO_ANSWER): (S.ENDED, C._unanswered),
    (S.CALLING, H.CANCEL): (S.CANCEL_PENDING, C._want_cancel),
    (S.CALLING, H.BYE): (S.CANCEL_PENDING, C._want_cancel),
    (S.PROCEEDING, H.PROVISIONAL): (S.PROCEEDING, C._progress),
    (S.PROCEEDING, H.SUCCESS): (S.CONFIRMED, C._answered),
    (S.PROCEEDING, H.FAILURE): (S.ENDED, C._refused),
    (S.PROCEEDING, H.CHALLENGE): (S.CALLING, C._retry),
    (S.PROCEEDING, H.REDIRECT): (S.CALLING, C._try_next_target),
    (S.PROCEEDING, H.FAIL_OVER): (S.CALLING, C._try_next_server),
    (S.PROCEEDING, H.NO_ANSWER): (S.ENDED, C._unanswered),
    (S.PROCEEDING, H.CANCEL): (S.CANCELLING, C._send_cancel),
    (S.PROCEEDING, H.BYE): (S.CANCELLING, C._send_cancel),
    (S.CANCEL_PENDING, H.PROVISIONAL): (S.CANCELLING, C._send_wanted_cancel),
    (S.CANCEL_PENDING, H.SUCCESS): (S.ENDED, C._answered_too_late),
    (S.CANCEL_PENDING, H.FAILURE): (S.ENDED, C._cancelled),
    (S.CANCEL_PENDING, H.NO_ANSWER): (S.ENDED, C._cancelled_unheard),
    (S.CANCELLING, H.PROVISIONAL): (S.CANCELLING, C._progress_while_cancelling),
    (S.CANCELLING, H.SUCCESS): (S.ENDED, C._answered_too_late),
    (S.CANCELLING, H.FAILURE): (S.ENDED, C._cancelled),
    (S.CANCELLING, H.NO_ANSWER): (S.ENDED, C._cancelled_unheard),
    (S.CONFIRMED, H.SUCCESS): (S.CONFIRMED, C._success_again),
    (S.LEAVING, H.SUCCESS): (S.LEAVING, C._success_again),
    (S.ENDED, H.SUCCESS): (S.ENDED, C._success_again),
    **COMMON,
}
