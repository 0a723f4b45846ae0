# SPDX-License-Identifier: Apache-2.0
"""Event notification, both sides (RFC 6665), and the refer package (RFC 3515, 4488, 7614, 7647).

A subscription is a usage of its dialog (RFC 5057): whatever becomes of it, a call in the same dialog goes on.

:RFC 6665: yes; both sides; notifier packages are the application's
:RFC 4488: yes; Refer-Sub
:RFC 7647: yes
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.dialog import Dialog
from mcptt_sip.errors import LocalProtocolError, ParseError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.headers import Event, SubscriptionState
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause, ClientRequest
from mcptt_sip.services import Services

__all__ = [
    "NotifierState",
    "NotifierSubscription",
    "Notified",
    "Resubscribed",
    "SubscriberState",
    "Subscription",
    "SubscriptionEnded",
]


class SubscriberState(Enum):
    """Figure 1 of RFC 6665 as the subscriber sees it."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    NOTIFY_WAIT = auto()
    PENDING = auto()
    ACTIVE = auto()
    ENDING = auto()  # this side unsubscribed and waits for the last NOTIFY
    TERMINATED = auto()


class NotifierState(Enum):
    """The notifier's side."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    PENDING = auto()
    ACTIVE = auto()
    TERMINATED = auto()


class Happens(Enum):
    """What can happen to a subscription, on either side."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    NOTIFIED_PENDING = auto()
    NOTIFIED_ACTIVE = auto()
    NOTIFIED_TERMINATED = auto()
    REFUSED = auto()  # the SUBSCRIBE or REFER was
    NOT_WANTED = auto()  # Refer-Sub: false (RFC 4488 4), nosub, explicitsub (RFC 7614)
    TIMER_N = auto()  # no NOTIFY in 64*T1 (RFC 6665 4.1.2.4)
    EXPIRED = auto()
    UNSUBSCRIBE = auto()
    NOTIFY_PENDING = auto()
    NOTIFY_ACTIVE = auto()
    NOTIFY_TERMINATED = auto()
    NOTIFY_FAILED = auto()
    RESUBSCRIBED = auto()
    UNSUBSCRIBED = auto()


Action = Callable[[Any, Any, float], None]


@dataclass(frozen=True, slots=True)
class Notified:
    """A NOTIFY came, and was answered 200; its body is the state."""

    subscription: Subscription
    request: Request


@dataclass(frozen=True, slots=True)
class Resubscribed:
    """Notifier: a SUBSCRIBE refreshed the subscription (answered 200). The full state is due now, by `notify`."""

    subscription: NotifierSubscription
    request: Request


@dataclass(frozen=True, slots=True)
class SubscriptionEnded:
    """A usage is over; `reason` is that of Subscription-State, where there was one."""

    subscription: Subscription | NotifierSubscription
    cause: Cause
    reason: str | None


class _Usage:
    """What both sides have."""

    __slots__ = ("_due", "_services", "context", "dialog", "event", "id", "scheduled")

    def __init__(self, services: Services, event: str, event_id: str | None) -> None:
        self._services = services
        self.event = event
        self.id = event_id
        self.dialog: Dialog | None = None
        self.context: Any = None
        self.scheduled: list[Any] | None = None
        self._due: dict[str, float] = {}

    def next_timer(self) -> float | None:
        """The next deadline."""
        return min(self._due.values()) if self._due else None

    def handle_timer(self, now: float) -> None:
        """The deadline has come."""
        raise NotImplementedError  # each side has timers of its own

    def _event(self) -> str:
        return self.event if self.id is None else f"{self.event};id={self.id}"

    def _start(self, due: str, at: float) -> None:
        self._due[due] = at
        self._services.watch(self)

    def _join(self, dialog: Dialog) -> None:
        self.dialog = dialog
        dialog.subscriptions = (*dialog.subscriptions, self)
        self._services.add_dialog(dialog)

    def _leave(self) -> None:
        self._due.clear()
        self._services.watch(self)
        if self.dialog is not None:
            self.dialog.subscriptions = tuple(u for u in self.dialog.subscriptions if u is not self)
            self._services.drop_dialog(self.dialog)


class Subscription(_Usage):
    """This side subscribed, by SUBSCRIBE or by REFER. `request` is that `ClientRequest`, whose own responses arrive as
    `ResponseReceived`. A SUBSCRIBE is refreshed by itself until `unsubscribe`."""

    __slots__ = ("_expires", "credentials", "request", "state")
    TABLE: ClassVar[dict[tuple[SubscriberState, Happens], tuple[SubscriberState, Action]]]

    def __init__(self, services: Services, request: ClientRequest, event: str, *, now: float) -> None:
        super().__init__(services, event, None)
        self.state = SubscriberState.NOTIFY_WAIT
        self.request = request
        self.credentials: DigestCredentials | None = request.credentials
        headers = request.request.headers
        self._expires = headers.expires or 0
        if request.method == "SUBSCRIBE" and headers.event is not None:
            self.id = headers.event.id
        elif request.dialog is not None:
            self.id = str(headers.cseq.number)
        if request.dialog is not None:
            self._join(request.dialog)
        else:
            services.expect(headers.call_id, headers.from_.tag or "", self)
        self._start("N", now + services.settings.timers.give_up)

    @property
    def terminated(self) -> bool:
        """Whether it is over."""
        return self.state is SubscriberState.TERMINATED

    # --- verbs

    def refresh(self, now: float, *, expires: int | None = None) -> None:
        """A SUBSCRIBE inside the dialog."""
        if self.state not in (SubscriberState.ACTIVE, SubscriberState.PENDING):
            raise LocalProtocolError("the subscription is not active")
        self._resubscribe(self._expires or 3600 if expires is None else expires, now)

    def unsubscribe(self, now: float) -> None:
        """Expires: 0 (RFC 6665 4.1.2.3); a last NOTIFY may follow. Nothing happens when it is over."""
        self._step(Happens.UNSUBSCRIBE, None, now)

    # --- what the stack calls

    def matches(self, event: Event) -> bool:
        """Whether a NOTIFY is for this subscription. The first REFER of a dialog may go without id."""
        if event.package != self.event:
            return False
        return event.id == self.id or (self.event == "refer" and event.id is None)

    def notified(self, transaction: Any, request: Request, now: float) -> None:
        """A NOTIFY; answered here."""
        state = request.headers.subscription_state
        if state is None:
            raise ParseError("a NOTIFY without Subscription-State")
        if self.dialog is None:
            # the NOTIFY may come first, and makes the dialog then (RFC 6665 4.4.1)
            sent = self.request.request.headers
            dialog = Dialog.uas(request, sent.from_.tag or "", transaction.flow)
            dialog.local_cseq = sent.cseq.number
            dialog.confirmed = dialog.initiator = True
            self._join(dialog)
        else:
            self.dialog.refresh_target(request)
            self.dialog.heard(request, transaction.flow)
        on = {"active": Happens.NOTIFIED_ACTIVE, "pending": Happens.NOTIFIED_PENDING}.get(
            state.state, Happens.NOTIFIED_TERMINATED if state.state == "terminated" else Happens.NOTIFIED_ACTIVE
        )
        response = request.response(200, headers=[("Contact", self._services.contact_for(request, transaction.flow))])
        self._services.answer(transaction, response, now)
        self._step(on, (request, state), now)

    def on_result(self, sent: ClientRequest, response: Response | None, cause: Cause, now: float) -> bool:
        """The final result of the SUBSCRIBE or REFER that made it, or of a refresh."""
        first = sent is self.request
        if response is None or response.status >= 300:
            if response is not None and response.status == 423 and sent.method == "SUBSCRIBE":
                least = response.headers.min_expires
                if least is not None and least > (sent.request.headers.expires or 0):
                    self._expires = least
                    sent.request.headers.set("Expires", least)
                    sent._retry(now)
                    return True
            gone = first or response is None or response.status in _ENDING
            if gone:
                self._step(Happens.REFUSED, (response, cause), now)
            return not first
        if self.terminated:
            return not first
        if self.dialog is None and sent.dialog is None:
            flow = sent.flow
            self._join(Dialog.uac(sent.request, response, flow))
        if sent.method == "REFER" and (
            (response.headers.get("refer-sub") or "").lower().startswith("false")
            or sent.request.headers.requires("nosub")
            or sent.request.headers.requires("explicitsub")
        ):
            self._step(Happens.NOT_WANTED, None, now)
            return False
        if sent.method == "SUBSCRIBE" and response.headers.expires:
            self._expires = response.headers.expires
            self._expire_in(self._expires, now)
        return not first

    def handle_timer(self, now: float) -> None:
        """Timer N, refresh, expiry."""
        for name, at in sorted(self._due.items(), key=lambda item: item[1]):
            if at <= now and self._due.get(name) == at:
                del self._due[name]
                if name == "N":
                    self._step(Happens.TIMER_N, None, now)
                elif name == "refresh":
                    if self.state in (SubscriberState.ACTIVE, SubscriberState.PENDING):
                        self._resubscribe(self._expires, now)
                else:
                    self._step(Happens.EXPIRED, None, now)

    # --- inside

    def _step(self, on: Happens, argument: Any, now: float) -> None:
        row = self.TABLE.get((self.state, on))
        if row is None:
            return
        self.state, action = row
        action(self, argument, now)
        if self.terminated:
            headers = self.request.request.headers
            self._services.expect_no_more(headers.call_id, headers.from_.tag or "")
            self._leave()

    def _resubscribe(self, expires: int, now: float) -> None:
        assert self.dialog is not None
        request = self.dialog.request("SUBSCRIBE", [("Event", self._event()), ("Expires", expires)])
        ClientRequest(
            self._services,
            request,
            flow=self._services.flow_of(self.dialog),
            credentials=self.credentials,
            dialog=self.dialog,
            done=self.on_result,
        ).start(now)

    def _expire_in(self, seconds: int, now: float) -> None:
        self._start("expire", now + seconds)
        if self.request.method == "SUBSCRIBE":
            # ahead of the end by a tenth, and by time for a retransmission or two
            self._start("refresh", now + max(seconds - max(seconds * 0.1, 5.0), seconds * 0.5))

    def _take(self, notified: tuple[Request, SubscriptionState], now: float) -> None:
        request, state = notified
        self._due.pop("N", None)
        if state.expires is not None:
            self._expire_in(state.expires, now)
        self._services.emit(Notified(self, request))

    def _take_last(self, notified: tuple[Request, SubscriptionState], now: float) -> None:
        request, state = notified
        self._services.emit(Notified(self, request))
        self._services.emit(SubscriptionEnded(self, Cause.NOTIFIED, state.reason))

    def _take_last_wanted(self, notified: tuple[Request, SubscriptionState], now: float) -> None:
        request, state = notified
        self._services.emit(Notified(self, request))
        self._services.emit(SubscriptionEnded(self, Cause.UNSUBSCRIBED, state.reason))

    def _take_while_ending(self, notified: tuple[Request, SubscriptionState], now: float) -> None:
        self._services.emit(Notified(self, notified[0]))

    def _refused(self, result: tuple[Response | None, Cause], now: float) -> None:
        self._services.emit(SubscriptionEnded(self, result[1], None))

    def _quiet(self, _: Any, now: float) -> None:
        pass

    def _silent(self, _: Any, now: float) -> None:
        self._services.emit(SubscriptionEnded(self, Cause.TIMEOUT, None))

    def _expired(self, _: Any, now: float) -> None:
        self._services.emit(SubscriptionEnded(self, Cause.EXPIRED, None))

    def _say_goodbye(self, _: Any, now: float) -> None:
        self._due.clear()
        self._start("N", now + self._services.settings.timers.give_up)
        self._resubscribe(0, now)

    def _ended(self, _: Any, now: float) -> None:
        self._services.emit(SubscriptionEnded(self, Cause.UNSUBSCRIBED, None))


class NotifierSubscription(_Usage):
    """This side notifies. One NOTIFY is outstanding at a time; others wait in order.

    `final_state` gives (content type, body) for the NOTIFY that the stack itself sends when the subscription expires
    or the subscriber ends it.
    """

    __slots__ = ("_expires_at", "_outstanding", "_queue", "credentials", "final_state", "state")
    TABLE: ClassVar[dict[tuple[NotifierState, Happens], tuple[NotifierState, Action]]]

    def __init__(
        self,
        services: Services,
        dialog: Dialog,
        event: str,
        event_id: str | None,
        *,
        expires: int,
        credentials: DigestCredentials | None = None,
        now: float,
    ) -> None:
        super().__init__(services, event, event_id)
        self.state = NotifierState.PENDING
        self.credentials = credentials
        self.final_state: Callable[[], tuple[str, bytes]] | None = None
        self._queue: deque[tuple[Happens, list[tuple[str, object]], bytes]] = deque()
        self._outstanding: ClientRequest | None = None
        self._expires_at = now + expires
        self._join(dialog)
        if expires > 0:
            self._start("expire", self._expires_at)

    @property
    def terminated(self) -> bool:
        """Whether it is over (the last NOTIFY may still be on its way)."""
        return self.state is NotifierState.TERMINATED

    # --- verbs

    def notify(
        self,
        body: bytes = b"",
        content_type: str | None = None,
        *,
        state: str = "active",
        reason: str | None = None,
        expires: int | None = None,
        headers: HeaderItems = (),
        now: float,
    ) -> None:
        """NOTIFY with this state; ``terminated`` ends the usage. A fetch (Expires: 0) always ends with its first.

        `expires` overrides what is left of the subscription. `LocalProtocolError` when it is over.
        """
        if self.terminated:
            raise LocalProtocolError("the subscription is over")
        if state not in ("active", "pending", "terminated"):
            raise LocalProtocolError(f"{state} is no subscription state")
        left = max(0, round(self._expires_at - now)) if expires is None else expires
        if left == 0 and state != "terminated":
            state, reason = "terminated", reason or "timeout"
        if state == "terminated":
            value = SubscriptionState(state, reason)
        else:
            value = SubscriptionState(state, expires=left)
        on = Happens[f"NOTIFY_{state.upper()}"]
        lines: list[tuple[str, object]] = [("Event", self._event()), ("Subscription-State", value), *headers]
        if content_type is not None:
            lines.append(("Content-Type", content_type))
        self._step(on, (on, lines, body), now)

    # --- what the stack calls

    def matches(self, event: Event) -> bool:
        """Whether a SUBSCRIBE refreshes this one."""
        return event.package == self.event and event.id == self.id

    def resubscribed(self, transaction: Any, request: Request, now: float) -> None:
        """A SUBSCRIBE inside the dialog; answered here."""
        expires = request.headers.expires
        if expires is None:
            expires = 3600
        response = request.response(
            200,
            headers=[("Expires", expires), ("Contact", self._services.contact_for(request, transaction.flow))],
        )
        self._services.answer(transaction, response, now)
        assert self.dialog is not None
        self.dialog.refresh_target(request)
        self.dialog.heard(request, transaction.flow)
        self._step(Happens.RESUBSCRIBED if expires else Happens.UNSUBSCRIBED, (request, expires), now)

    def handle_timer(self, now: float) -> None:
        """Expiry."""
        if (at := self._due.get("expire")) is not None and at <= now:
            del self._due["expire"]
            self._step(Happens.EXPIRED, None, now)

    # --- inside

    def _step(self, on: Happens, argument: Any, now: float) -> None:
        row = self.TABLE.get((self.state, on))
        if row is None:
            return
        self.state, action = row
        action(self, argument, now)

    def _put(self, notify: tuple[Happens, list[tuple[str, object]], bytes], now: float) -> None:
        if self._outstanding is None:
            self._send(notify, now)
            return
        limit = self._services.settings.max_queued_notifies
        if len(self._queue) >= limit:
            self._queue.popleft()
        self._queue.append(notify)

    def _send(self, notify: tuple[Happens, list[tuple[str, object]], bytes], now: float) -> None:
        assert self.dialog is not None
        _, headers, body = notify
        request = self.dialog.request("NOTIFY", headers, body)
        self._outstanding = ClientRequest(
            self._services,
            request,
            flow=self._services.flow_of(self.dialog),
            credentials=self.credentials,
            dialog=self.dialog,
            done=self._notify_done,
        )
        self._outstanding.start(now)

    def _notify_done(self, _: ClientRequest, response: Response | None, cause: Cause, now: float) -> bool:
        self._outstanding = None
        if response is None or response.status in _ENDING:
            self._queue.clear()
            ended = self.terminated
            self._step(Happens.NOTIFY_FAILED, cause, now)
            if ended:
                self._leave()
        elif self._queue:
            self._send(self._queue.popleft(), now)
        elif self.terminated:
            self._leave()
        return True

    def _put_last(self, notify: tuple[Happens, list[tuple[str, object]], bytes], now: float) -> None:
        self._due.clear()
        self._put(notify, now)

    def _last_state(self, reason: str) -> tuple[Happens, list[tuple[str, object]], bytes]:
        lines: list[tuple[str, object]] = [
            ("Event", self._event()),
            ("Subscription-State", SubscriptionState("terminated", reason)),
        ]
        body = b""
        if self.final_state is not None:
            content_type, body = self.final_state()
            lines.append(("Content-Type", content_type))
        return Happens.NOTIFY_TERMINATED, lines, body

    def _expired(self, _: Any, now: float) -> None:
        self._put_last(self._last_state("timeout"), now)
        self._services.emit(SubscriptionEnded(self, Cause.EXPIRED, "timeout"))

    def _unsubscribed(self, _: Any, now: float) -> None:
        self._put_last(self._last_state("timeout"), now)
        self._services.emit(SubscriptionEnded(self, Cause.UNSUBSCRIBED, "timeout"))

    def _resubscribed(self, asked: tuple[Request, int], now: float) -> None:
        request, expires = asked
        self._expires_at = now + expires
        self._start("expire", self._expires_at)
        self._services.emit(Resubscribed(self, request))

    def _failed(self, cause: Cause, now: float) -> None:
        self._leave()
        self._services.emit(SubscriptionEnded(self, cause, None))

    def _quiet(self, _: Any, now: float) -> None:
        pass


#: responses to SUBSCRIBE or NOTIFY that end the usage (RFC 6665 4.1.2.2, 4.2.2, RFC 5057 5.1)
_ENDING = frozenset({404, 405, 408, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604})

R, H, B = SubscriberState, Happens, Subscription
Subscription.TABLE = {
    (R.NOTIFY_WAIT, H.NOTIFIED_PENDING): (R.PENDING, B._take),
    (R.NOTIFY_WAIT, H.NOTIFIED_ACTIVE): (R.ACTIVE, B._take),
    (R.NOTIFY_WAIT, H.NOTIFIED_TERMINATED): (R.TERMINATED, B._take_last),
    (R.NOTIFY_WAIT, H.REFUSED): (R.TERMINATED, B._refused),
    (R.NOTIFY_WAIT, H.NOT_WANTED): (R.TERMINATED, B._quiet),
    (R.NOTIFY_WAIT, H.TIMER_N): (R.TERMINATED, B._silent),
    (R.NOTIFY_WAIT, H.UNSUBSCRIBE): (R.TERMINATED, B._ended),
    (R.PENDING, H.NOTIFIED_PENDING): (R.PENDING, B._take),
    (R.PENDING, H.NOTIFIED_ACTIVE): (R.ACTIVE, B._take),
    (R.PENDING, H.NOTIFIED_TERMINATED): (R.TERMINATED, B._take_last),
    (R.PENDING, H.REFUSED): (R.TERMINATED, B._refused),
    (R.PENDING, H.EXPIRED): (R.TERMINATED, B._expired),
    (R.PENDING, H.UNSUBSCRIBE): (R.ENDING, B._say_goodbye),
    (R.ACTIVE, H.NOTIFIED_PENDING): (R.PENDING, B._take),
    (R.ACTIVE, H.NOTIFIED_ACTIVE): (R.ACTIVE, B._take),
    (R.ACTIVE, H.NOTIFIED_TERMINATED): (R.TERMINATED, B._take_last),
    (R.ACTIVE, H.REFUSED): (R.TERMINATED, B._refused),
    (R.ACTIVE, H.EXPIRED): (R.TERMINATED, B._expired),
    (R.ACTIVE, H.UNSUBSCRIBE): (R.ENDING, B._say_goodbye),
    (R.ENDING, H.NOTIFIED_PENDING): (R.ENDING, B._take_while_ending),
    (R.ENDING, H.NOTIFIED_ACTIVE): (R.ENDING, B._take_while_ending),
    (R.ENDING, H.NOTIFIED_TERMINATED): (R.TERMINATED, B._take_last_wanted),
    (R.ENDING, H.REFUSED): (R.TERMINATED, B._ended),
    (R.ENDING, H.TIMER_N): (R.TERMINATED, B._ended),
}
P, F = NotifierState, NotifierSubscription
NotifierSubscription.TABLE = {
    (P.PENDING, H.NOTIFY_PENDING): (P.PENDING, F._put),
    (P.PENDING, H.NOTIFY_ACTIVE): (P.ACTIVE, F._put),
    (P.PENDING, H.NOTIFY_TERMINATED): (P.TERMINATED, F._put_last),
    (P.PENDING, H.NOTIFY_FAILED): (P.TERMINATED, F._failed),
    (P.PENDING, H.EXPIRED): (P.TERMINATED, F._expired),
    (P.PENDING, H.RESUBSCRIBED): (P.PENDING, F._resubscribed),
    (P.PENDING, H.UNSUBSCRIBED): (P.TERMINATED, F._unsubscribed),
    (P.ACTIVE, H.NOTIFY_PENDING): (P.PENDING, F._put),
    (P.ACTIVE, H.NOTIFY_ACTIVE): (P.ACTIVE, F._put),
    (P.ACTIVE, H.NOTIFY_TERMINATED): (P.TERMINATED, F._put_last),
    (P.ACTIVE, H.NOTIFY_FAILED): (P.TERMINATED, F._failed),
    (P.ACTIVE, H.EXPIRED): (P.TERMINATED, F._expired),
    (P.ACTIVE, H.RESUBSCRIBED): (P.ACTIVE, F._resubscribed),
    (P.ACTIVE, H.UNSUBSCRIBED): (P.TERMINATED, F._unsubscribed),
    (P.TERMINATED, H.NOTIFY_FAILED): (P.TERMINATED, F._quiet),
}
