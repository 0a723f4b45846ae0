# SPDX-License-Identifier: Apache-2.0
"""INVITE sessions: what both sides share once they talk (RFC 3261 14, 15; RFC 3311; RFC 4028).

`mcptt_sip.invite_client` and `mcptt_sip.invite_server` add how a session comes about. Each class has a ``TABLE``:
(state, event) -> (next state, action). A pair that is missing is ignored when the peer caused it, and a
`LocalProtocolError` when the application did.

:RFC 3311: yes; UPDATE
:RFC 5407: yes; races
:RFC 6141: yes; a target, or a description, that was refused is not in force
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.dialog import Dialog
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.flow import Flow
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause, ClientRequest, Outgoing
from mcptt_sip.reinvite import ReInvite
from mcptt_sip.services import Services
from mcptt_sip.session_events import (
    Answered,
    Cancelled,
    Confirmed,
    Due,
    Ended,
    Farewell,
    Happens,
    InviteReceived,
    Progressed,
    ProvisionalAcknowledged,
    Refreshed,
    Refused,
    SessionState,
    Unacknowledged,
)
from mcptt_sip.session_timer import SessionTimer, agree, answer_headers, offer_headers

__all__ = [
    "Answered",
    "Cancelled",
    "Confirmed",
    "Ended",
    "InviteReceived",
    "InviteSession",
    "Progressed",
    "ProvisionalAcknowledged",
    "ReInvite",
    "Refused",
    "SessionState",
]

#: a hook that gives (content type, body) for an ACK or PRACK, from the response it acknowledges
BodyHook = Callable[[Response], tuple[str, bytes] | None]

Action = Callable[[Any, Any, float], None]
Table = dict[tuple[SessionState, Happens], tuple[SessionState, Action]]


class InviteSession:
    """One call leg. `request` is its INVITE; `dialog` the early or confirmed dialog; `dialogs` all early ones by
    remote tag; `context` is the application's own. `ack_body` and `prack_body` give bodies for ACK and PRACK."""

    __slots__ = (
        "_due", "_flow", "_sdp", "_services", "_timer", "_unacknowledged", "ack_body", "context", "credentials",
        "dialog", "dialogs", "glared", "local_tag", "min_se", "pending_invite", "pending_offer", "prack_body",
        "request", "scheduled", "state", "target",
    )  # fmt: skip
    TABLE: ClassVar[Table]

    def __init__(
        self,
        services: Services,
        request: Request,
        state: SessionState,
        *,
        local_tag: str,
        flow: Flow | None,
        target: str | None = None,
        credentials: DigestCredentials | None = None,
        context: Any = None,
    ) -> None:
        self._services = services
        self.request = request
        self.state = state
        self.local_tag = local_tag
        self._flow = flow
        self.target = target
        self.credentials = credentials
        self.context = context
        self.dialog: Dialog | None = None
        self.dialogs: dict[str, Dialog] = {}
        self.ack_body: BodyHook | None = None
        self.prack_body: BodyHook | None = None
        #: the change under way: a `ReInvite` of ours, or an UPDATE of ours with an offer, or the server transaction of
        #: the peer's re-INVITE
        self.pending_invite: Any = None
        #: the re-INVITE of ours that waits for its second try after a glare; the peer's has its turn
        self.glared: ReInvite | None = None
        #: an UPDATE of the peer that awaits its answer
        self.pending_offer: Any = None
        #: the largest Min-SE that was heard in this session (RFC 4028 7.4)
        self.min_se = 0
        self.scheduled: list[Any] | None = None
        self._due: dict[Due, float] = {}
        self._timer: SessionTimer | None = None
        self._unacknowledged: Unacknowledged | None = None
        self._sdp: tuple[str, bytes] | None = None  # last description sent, for refreshes by re-INVITE

    # --- what it is

    @property
    def call_id(self) -> str:
        """Call-ID."""
        return self.request.headers.call_id

    @property
    def remote_tag(self) -> str | None:
        """The peer's tag, once it has one."""
        return None if self.dialog is None else self.dialog.remote_tag

    @property
    def flow(self) -> Flow | None:
        """The flow the peer was last heard on."""
        return self._flow if self.dialog is None else self.dialog.flow

    @property
    def established(self) -> bool:
        """Whether it was answered and is not over."""
        return self.state in (SessionState.CONFIRMED, SessionState.ACCEPTED)

    @property
    def ended(self) -> bool:
        """Whether it is over, or on its way there."""
        return self.state in (SessionState.LEAVING, SessionState.ENDED)

    @property
    def session_timer(self) -> SessionTimer | None:
        """The agreed session timer."""
        return self._timer

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.call_id} {self.state.name}>"

    # --- verbs of one side only

    def progress(
        self, status: int = 180, *, reason: str | None = None, headers: HeaderItems = (), body: bytes = b"",
        content_type: str | None = None, reliable: bool | None = None, now: float,
    ) -> None:  # fmt: skip
        """Callee: a provisional response. See `ServerSession`."""
        raise LocalProtocolError("only the callee answers")

    def accept(
        self, status: int = 200, *, headers: HeaderItems = (), body: bytes = b"", content_type: str | None = None,
        now: float,
    ) -> None:  # fmt: skip
        """Callee: the 2xx. See `ServerSession`."""
        raise LocalProtocolError("only the callee answers")

    def reject(
        self, status: int, *, reason: str | None = None, headers: HeaderItems = (), body: bytes = b"",
        content_type: str | None = None, now: float,
    ) -> None:  # fmt: skip
        """Callee: 300 to 699. See `ServerSession`."""
        raise LocalProtocolError("only the callee answers")

    def cancel(self, now: float, *, headers: HeaderItems = ()) -> None:
        """Caller: give up. See `ClientSession`."""
        raise LocalProtocolError("only the caller cancels")

    # --- verbs of both sides

    def bye(
        self,
        now: float,
        *,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        cause: Cause = Cause.LOCAL_BYE,
    ) -> None:
        """End it, whatever its state: BYE; CANCEL while it rings for the caller, 480 for the callee; after the
        ACK where that is still due. `Ended` (or `Refused`) says `cause`. Nothing happens the second time."""
        if not self.state.going:
            self._step(Happens.BYE, Farewell(tuple(headers), body, content_type, cause), now, local=True)

    def send(
        self,
        method: str,
        *,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
        context: Any = None,
    ) -> ClientRequest:
        """A request inside the dialog: MESSAGE, INFO, UPDATE, REFER, OPTIONS; INVITE is `reinvite`."""
        if method == "INVITE":
            return self.reinvite(headers=headers, body=body, content_type=content_type, now=now, context=context)
        if method in ("ACK", "CANCEL", "BYE", "PRACK"):
            raise LocalProtocolError(f"{method} is sent by the session itself")
        offering = method == "UPDATE" and bool(body)
        if offering and (self.pending_invite is not None or self.pending_offer is not None):
            raise LocalProtocolError("an offer is under way")  # RFC 3311 5.1
        request = self._request(method, headers, body, content_type)
        sent = ClientRequest(
            self._services,
            request,
            flow=self._services.flow_of(self._dialog()),
            credentials=self.credentials,
            dialog=self.dialog,
            session=self,
            done=self._request_done,
            context=context,
        )
        if method in ("REFER", "SUBSCRIBE"):
            self._services.attach_subscription(sent, now)
        if offering:
            self.pending_invite = sent
        sent.start(now)
        return sent

    def reinvite(
        self,
        *,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
        context: Any = None,
        renew: Callable[[], tuple[str, bytes]] | None = None,
    ) -> ReInvite:
        """A re-INVITE (14.1). Its 2xx is acknowledged by itself (with `ack_body` when the offer was in the 2xx);
        491 makes it try again by itself after the time of 14.1, with the (content type, body) that `renew` gives then:
        the peer's change has gone before, and an offer builds on it (RFC 3264 8)."""
        if self.state is not SessionState.CONFIRMED:
            raise LocalProtocolError("only a confirmed session is changed")
        if self.pending_invite is not None or self.glared is not None:
            raise LocalProtocolError("another re-INVITE is under way")
        request = self._request("INVITE", headers, body, content_type)
        sent = ReInvite(
            self._services,
            request,
            flow=self._services.flow_of(self._dialog()),
            credentials=self.credentials,
            dialog=self.dialog,
            session=self,
            done=self._request_done,
            context=context,
        )
        sent.renew = renew
        self.pending_invite = sent
        sent.start(now)
        return sent

    @property
    def changing(self) -> bool:
        """Whether a re-INVITE should wait: for another of ours, or for the ACK of the peer's (14.1)."""
        return self.pending_invite is not None or self.glared is not None or self._unacknowledged is not None

    # --- what the stack calls

    def receive_request(self, transaction: Any, request: Request, now: float) -> None:
        """A request in its dialog, in order (the stack has seen to that), other than ACK."""
        if self.dialog is not None:
            self.dialog.heard(request, transaction.flow)
        if request.method == "BYE":
            self._services.answer(transaction, request.response(200), now)
            self._step(Happens.BYE_IN, Farewell(cause=Cause.REMOTE_BYE, request=request), now)
            return
        if self.ended:
            self._services.answer(transaction, request.response(481), now)
            return
        waiting = self._unacknowledged
        if request.method == "INVITE" and waiting is not None and not waiting.brings_answer:
            # it overtook the ACK, and says the same: who has no 2xx makes no re-INVITE (RFC 5407 3.1.4)
            self._acknowledged(request, now)
        if request.method in ("INVITE", "UPDATE") and not self._may_offer(transaction, request, now):
            return
        if request.method == "INVITE":
            self.pending_invite = transaction
        elif request.method == "UPDATE":
            if not request.body:  # a refresh: nothing to decide
                self.answer_refresh(transaction, request, now)
                return
            self.pending_offer = transaction
        self._services.deliver(transaction, self, now)

    def receive_ack(self, request: Request, now: float) -> None:
        """An ACK in its dialog."""
        waiting = self._unacknowledged
        if waiting is not None and request.headers.cseq.number == waiting.cseq:
            self._acknowledged(request, now)

    def _acknowledged(self, request: Request, now: float) -> None:
        self._unacknowledged = None
        self._stop(Due.SUCCESS_AGAIN, Due.NO_ACK)
        self._step(Happens.ACK, request, now)

    def receive_cancel(self, transaction: Any, now: float) -> None:
        """A CANCEL for a re-INVITE of the peer that is not answered yet (9.2)."""
        if self.pending_invite is transaction and transaction.request is not None:
            self.pending_invite = None
            self._services.answer(transaction, transaction.request.response(487), now)

    def transport_failed(self, transaction: Any, now: float) -> None:
        """A response could not be sent anywhere. That to a re-INVITE is repeated, and missed when no ACK comes."""

    def flow_lost(self, now: float) -> None:
        """The connection of the dialog is gone: `Ended` with FLOW_LOST."""
        self._step(Happens.LOST, Farewell(cause=Cause.FLOW_LOST), now)

    def next_timer(self) -> float | None:
        """The next deadline."""
        return min(self._due.values()) if self._due else None

    def handle_timer(self, now: float) -> None:
        """Fire what is due, in its order."""
        for due in sorted((d for d, at in self._due.items() if at <= now), key=self._due.__getitem__):
            if due in self._due:
                del self._due[due]
                self._timer_fired(due, now)

    # --- for re-INVITE and UPDATE

    def _may_offer(self, transaction: Any, request: Request, now: float) -> bool:
        """Glare (14.2, RFC 3311 5.2): 491 while an offer of ours is out, 500 while one of theirs waits."""
        if request.method != "INVITE" and not request.body:
            return True
        if isinstance(self.pending_invite, ClientRequest):
            self._services.answer(transaction, request.response(491), now)
            return False
        if self.pending_invite is not None or self.pending_offer is not None or self._unacknowledged is not None:
            self._later(transaction, request, now)
            return False
        return True

    def _later(self, transaction: Any, request: Request, now: float) -> None:
        """14.2, RFC 3311 5.2: 500, and to come again in 0 to 10 seconds."""
        wait = ("Retry-After", self._services.token()[0] % 11)
        self._services.answer(transaction, request.response(500, headers=[wait]), now)

    def answer_refresh(self, transaction: Any, request: Request, now: float) -> None:
        """200 to an UPDATE without an offer."""
        response = request.response(200, headers=[("Contact", self._services.contact_for(request, transaction.flow))])
        self._dialog().refresh_target(request)
        self.add_timer_answer(request, response, now)
        self._services.answer(transaction, response, now)

    def add_timer_answer(self, request: Request, response: Response, now: float) -> None:
        """Put the session timer into a 2xx to INVITE or UPDATE, and start it."""
        settings = self._services.settings
        if (asked := request.headers.min_se) is not None:
            self.min_se = max(self.min_se, asked.seconds)
        headers, timer = answer_headers(request, settings.session_expires, settings.min_se, response.headers)
        for name, value in headers:
            response.headers.add(name, value)
        self._start_session_timer(timer, now)

    def repeat_until_ack(self, send: Callable[[], None], invite: Request, now: float) -> None:
        """A 2xx to `invite` was sent: repeat it until its ACK comes (13.3.1.4), on every transport."""
        timers = self._services.settings.timers
        self._unacknowledged = Unacknowledged(send, invite.headers.cseq.number, timers.t1, not invite.body)
        self._due[Due.NO_ACK] = now + timers.give_up
        self.start_timer(Due.SUCCESS_AGAIN, now + timers.t1)

    def offer_answered(self, transaction: Any) -> None:
        """The application has answered a re-INVITE or UPDATE of the peer."""
        self.pending_invite = None if self.pending_invite is transaction else self.pending_invite
        self.pending_offer = None if self.pending_offer is transaction else self.pending_offer

    # --- inside

    def _dialog(self) -> Dialog:
        if self.dialog is None:
            raise LocalProtocolError("there is no dialog yet")
        return self.dialog

    def _request(
        self, method: str, headers: HeaderItems, body: bytes, content_type: str | None
    ) -> Request:
        if self.ended:
            raise LocalProtocolError("the session is over")
        request = self._dialog().request(method, headers, body)
        if content_type is not None:
            request.headers.set("Content-Type", content_type)
        if method in ("INVITE", "UPDATE"):
            settings = self._services.settings
            if "supported" not in request.headers:
                request.headers.add("Supported", ", ".join(settings.supported))
            if self._timer is not None:
                least = max(settings.min_se, self.min_se)
                for name, value in offer_headers(self._timer.seconds, least, request.headers):
                    refresher = ";refresher=uac" if self._timer.refresher else ";refresher=uas"
                    request.headers.add(name, f"{value}{refresher}" if name == "Session-Expires" else value)
        return request

    def _request_done(self, sent: ClientRequest, response: Response | None, cause: Cause, now: float) -> bool:
        """What the result of a request in the dialog means for the session (12.2.1.2, RFC 5057 5)."""
        status = 0 if response is None else response.status
        if self.pending_invite is sent:
            self.pending_invite = None
        vital = sent.method in ("INVITE", "UPDATE")
        refreshing = sent.context is _REFRESH
        if response is not None and status < 300 and vital:
            self.described(sent.request.headers.get("content-type"), sent.request.body)
            self._start_session_timer(agree(response), now)
        gone = status == 481 or (vital and (status == 408 or response is None))
        if gone and self.state is SessionState.CONFIRMED:
            # 12.2.1.2, 14.1: by a BYE, for a peer who is there after all
            self._step(Happens.BYE, Farewell(cause=Cause.RESPONSE if response else cause), now)
        elif gone or status in _DIALOG_ENDING:
            self._step(Happens.LOST, Farewell(cause=Cause.RESPONSE if response else cause), now)
        elif status == 422 and vital and refreshing and response is not None and response.headers.min_se:
            self.min_se = max(self.min_se, response.headers.min_se.seconds)
            self._timer = SessionTimer(response.headers.min_se.seconds, True)
            self._refresh(now)
        elif refreshing and response is not None and status in _NOT_NOW:
            self.start_timer(Due.REFRESH, now + max(2.0, response.headers.retry_after or 0))
        if refreshing and response is not None and status < 300 and sent.request.body:
            self._services.emit(Refreshed(self, response, sent.request.body))
        return refreshing

    def _start_session_timer(self, timer: SessionTimer | None, now: float) -> None:
        if self.ended or self._timer is timer is None:  # a BYE overtook the answer to a refresh; or no timer, as before
            return
        self._timer = timer
        self._stop(Due.REFRESH, Due.EXPIRE)
        if timer is not None:
            if timer.refresher:
                self.start_timer(Due.REFRESH, now + timer.refresh_after)
            self.start_timer(Due.EXPIRE, now + timer.expire_after)
        self._services.watch(self)

    def _refresh(self, now: float) -> None:
        """RFC 4028 7.4: by UPDATE where the peer allows it, else by a re-INVITE with the same description."""
        if self.state is not SessionState.CONFIRMED:
            return
        if self.changing:
            self.start_timer(Due.REFRESH, now + 1.0)
            return
        if self._sdp is None:
            self.send("UPDATE", now=now, context=_REFRESH)
        else:
            content_type, body = self._sdp
            self.reinvite(body=body, content_type=content_type, now=now, context=_REFRESH)

    def _remember_description(self, peer: Headers, content_type: str | None, body: bytes) -> None:
        """Keep the description only when a refresh will need it."""
        if "UPDATE" not in peer.allow and body and content_type is not None:
            self._sdp = (content_type, body)

    def described(self, content_type: str | None, body: bytes) -> None:
        """This description of ours is in force now; it is what a refresh repeats (RFC 4028 7.4)."""
        if body and content_type is not None and self._sdp is not None:
            self._sdp = content_type, body

    def start_timer(self, due: Due, at: float) -> None:
        """Set one of the session's deadlines."""
        self._due[due] = at
        self._services.watch(self)

    def _stop(self, *dues: Due) -> None:
        for due in dues:
            self._due.pop(due, None)

    def _timer_fired(self, due: Due, now: float) -> None:
        if due is Due.SUCCESS_AGAIN and (waiting := self._unacknowledged) is not None:
            waiting.send()
            waiting.interval = min(2 * waiting.interval, self._services.settings.timers.t2)
            self.start_timer(due, now + waiting.interval)
        elif due is Due.NO_ACK:
            self._unacknowledged = None
            self._stop(Due.SUCCESS_AGAIN)
            self._step(Happens.NO_ACK, Farewell(cause=Cause.NO_ACK), now)
        elif due is Due.REFRESH:
            self._refresh(now)
        elif due is Due.EXPIRE:
            self.bye(now, headers=[("Reason", 'SIP;cause=408;text="Session expired"')], cause=Cause.SESSION_EXPIRED)
        elif due is Due.GLARE and self.glared is not None:
            self.glared.try_again(now)

    def _step(self, on: Happens, argument: Any, now: float, *, local: bool = False) -> None:
        row = self.TABLE.get((self.state, on))
        if row is None:
            if local:
                raise LocalProtocolError(f"{on.name} is not possible while {self.state.name}")
            return
        self.state, action = row
        action(self, argument, now)
        if self.state is SessionState.ENDED:
            self._release(now)

    # --- actions of the common rows

    def _ignore(self, _: Any, now: float) -> None:
        pass

    def _send_bye(self, farewell: Farewell, now: float) -> None:
        self._due.clear()
        request = self._dialog().request("BYE", farewell.headers, farewell.body)
        if farewell.content_type is not None:
            request.headers.set("Content-Type", farewell.content_type)
        ClientRequest(
            self._services,
            request,
            flow=self._services.flow_of(self._dialog()),
            credentials=self.credentials,
            dialog=self.dialog,
            session=self,
            done=self._bye_done,
        ).start(now)
        self._services.emit(Ended(self, farewell.cause, None))

    def _bye_done(self, _: ClientRequest, response: Response | None, cause: Cause, now: float) -> bool:
        self._step(Happens.BYE_DONE, response, now)
        return True

    def _bye_received(self, farewell: Farewell, now: float) -> None:
        self._refuse_pending(now)
        self._services.emit(Ended(self, farewell.cause, farewell.request))

    def _lost(self, farewell: Farewell, now: float) -> None:
        self._refuse_pending(now)
        self._services.emit(Ended(self, farewell.cause, None))

    def _refuse_pending(self, now: float) -> None:
        """The end: pending requests of the peer get 487 (15.1.2), and of a change of ours nothing will come."""
        left = (self.pending_invite, self.pending_offer, self.glared)
        self.pending_invite = self.pending_offer = self.glared = None
        for pending in left:
            if isinstance(pending, ReInvite):
                pending.abandon(now)
            elif pending is not None and not isinstance(pending, ClientRequest) and pending.request is not None:
                self._services.answer(pending, pending.request.response(487), now)

    def _confirm_again(self, request: Request, now: float) -> None:
        """The ACK of a re-INVITE."""
        self._services.emit(Confirmed(self, request))

    def _give_up_change(self, farewell: Farewell, now: float) -> None:
        """A re-INVITE's 2xx found no ACK: the session ends (14.2)."""
        self._send_bye(farewell, now)

    def _release(self, now: float) -> None:
        """Let go of the dialogs."""
        self._refuse_pending(now)
        self._due.clear()
        self._services.watch(self)
        self._unacknowledged = None
        self._sdp = None
        for dialog in {id(d): d for d in (self.dialog, *self.dialogs.values()) if d is not None}.values():
            dialog.session = None
            self._services.drop_dialog(dialog)
        self.dialogs = {}

    def acknowledge(self, transaction: Any, dialog: Dialog, response: Response, now: float) -> None:
        """ACK a 2xx (13.2.2.4); a repeated 2xx gets the same ACK again."""
        acks: dict[str, Outgoing] = transaction.acks
        if (known := acks.get(dialog.remote_tag)) is not None:
            self._services.send_again(known)
            return
        request = dialog.request("ACK", cseq=response.headers.cseq.number)
        for name in ("authorization", "proxy-authorization"):
            request.headers.copy_from(transaction.request.headers, name)
        late = not transaction.request.body  # our request made no offer: the 2xx did
        if late and self.ack_body is not None and (made := self.ack_body(response)) is not None:
            request.headers.set("Content-Type", made[0])
            request.body = made[1]
            if self._sdp is None:
                self._remember_description(response.headers, *made)
            self.described(*made)
        flow = self._services.flow_of(dialog)
        acks[dialog.remote_tag] = self._services.send_alone(request, now, flow=flow, target=None)


#: answers to a refresh after which it is tried again, as long as the session lasts
_NOT_NOW = frozenset({480, 491, 500, 503, 504})
_REFRESH = object()  # context of a refresh that the session makes by itself
#: responses that end the dialog with all its usages (RFC 5057 5.1)
_DIALOG_ENDING = frozenset({404, 410, 416, 482, 483, 484, 485, 502, 604})

A = InviteSession
#: rows of both sides, from the moment the call stands
COMMON: Table = {
    (SessionState.CONFIRMED, Happens.BYE): (SessionState.LEAVING, A._send_bye),
    (SessionState.CONFIRMED, Happens.BYE_IN): (SessionState.ENDED, A._bye_received),
    (SessionState.CONFIRMED, Happens.LOST): (SessionState.ENDED, A._lost),
    (SessionState.CONFIRMED, Happens.ACK): (SessionState.CONFIRMED, A._confirm_again),
    (SessionState.CONFIRMED, Happens.NO_ACK): (SessionState.LEAVING, A._give_up_change),
    (SessionState.LEAVING, Happens.BYE_IN): (SessionState.LEAVING, A._ignore),
    (SessionState.LEAVING, Happens.BYE_DONE): (SessionState.ENDED, A._ignore),
}
