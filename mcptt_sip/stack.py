# SPDX-License-Identifier: Apache-2.0
"""SipStack, the transaction user: what each message means to calls, subscriptions and the application; sans-IO.

::

    stack = SipStack(StackSettings(), token=lambda: os.urandom(8))
    stack.receive_octets(datagram, flow, now)
    for event in stack.events(): ...
    for outgoing in stack.to_send(): ...

:RFC 3261: yes; user agents, registrars, and a proxy core in `mcptt_sip.proxy`; a Via's maddr is not followed
:RFC 3891: yes; Replaces
:RFC 4538: yes; Target-Dialog
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mcptt_sip.auth import DigestClient, DigestCredentials
from mcptt_sip.body import parse_multipart
from mcptt_sip.dialog import Dialog
from mcptt_sip.errors import ParseError
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.flow import Flow
from mcptt_sip.grammar import Params
from mcptt_sip.headers import NameAddr
from mcptt_sip.incoming import RequestReceived, ServerRequest
from mcptt_sip.invite_client import ClientSession
from mcptt_sip.invite_server import ServerSession
from mcptt_sip.layer import ServerRecord, TransactionLayer
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import ClientRequest
from mcptt_sip.services import StackSettings
from mcptt_sip.session import InviteReceived, InviteSession, SessionState
from mcptt_sip.session_timer import too_small
from mcptt_sip.subscription import NotifierSubscription, Subscription
from mcptt_sip.uri import SipUri, parse_uri

__all__ = ["FlowLost", "SipStack", "StackSettings"]

log = logging.getLogger(__name__)

#: methods with a meaning; others are unknown and get 501
_METHODS = frozenset(
    {
        "INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE", "INFO", "MESSAGE", "REFER", "SUBSCRIBE", "NOTIFY",
        "OPTIONS", "PUBLISH", "REGISTER",
    }
)  # fmt: skip
#: headers that a call comes to read only when its state has changed already
_READ_LATER: dict[str, Callable[[Headers], object]] = {
    "contact": lambda headers: headers.contact,
    "record-route": lambda headers: headers.record_route,
    "allow": lambda headers: headers.allow,
    "supported": lambda headers: headers.supported,
    "require": lambda headers: headers.require,
    "session-expires": lambda headers: headers.session_expires,
    "min-se": lambda headers: headers.min_se,
    "event": lambda headers: headers.event,
}
#: headers that may bring another nonce
_NEXT_NONCE = frozenset({"authentication-info", "proxy-authentication-info"})
#: requests that make no sense outside a dialog
_ONLY_IN_DIALOG = frozenset({"BYE", "PRACK", "UPDATE", "NOTIFY", "INFO"})


@dataclass(frozen=True, slots=True)
class FlowLost:
    """A connection is gone, or a kept flow does not answer any more. Its calls have ended before this comes."""

    flow: Flow


class SipStack(TransactionLayer):
    """RFC 3261's transaction user and everything below it down to, not including, the socket.

    `token` gives 8 or more fresh random octets; the system's randomness outside of tests.
    """

    def __init__(self, settings: StackSettings | None = None, *, token: Callable[[], bytes]) -> None:
        super().__init__(settings or StackSettings(), token)
        self._dialogs: dict[tuple[str, str, str], Dialog] = {}
        self._expected: dict[tuple[str, str], Subscription] = {}
        self._digests: OrderedDict[DigestCredentials, DigestClient] = OrderedDict()

    def flow_closed(self, flow: Flow, now: float) -> None:
        """A connection is gone: what waited for it has failed, calls over it have ended."""
        self._flow_gone(flow, now)
        number = flow.id  # compared first: thousands of dialogs are looked through
        for dialog in [d for d in self._dialogs.values() if d.flow and d.flow.id == number and d.flow == flow]:
            dialog.flow = None
            if isinstance(dialog.session, InviteSession) and self.settings.flow_loss_ends_calls:
                dialog.session.flow_lost(now)
        self.emit(FlowLost(flow))

    # --- verbs ----------------------------------------------------------------------------------------

    def compose(
        self,
        method: str,
        uri: str,
        *,
        from_: str,
        to: str | None = None,
        call_id: str | None = None,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
    ) -> Request:
        """A request outside any dialog: From with a fresh tag, To, Call-ID, CSeq, Max-Forwards. Headers in `uri` become
        headers of the request as far as they are harmless; what else has no place in a Request-URI is left out."""
        uri, more = _of_uri(uri)
        made = Headers(
            [
                ("From", NameAddr.parse(from_).with_param("tag", self.tag())),
                ("To", to or f"<{uri}>"),
                ("Call-ID", call_id or self.token().hex() + self.token().hex()),
                ("CSeq", f"{int.from_bytes(self.token()[:3], 'big') + 1} {method}"),
                ("Max-Forwards", "70"),
            ]
        )
        made.extend(headers)
        made.extend(pair for pair in more if pair[0] not in made)
        for name, values in (("Allow", self.settings.allow), ("Supported", self.settings.supported)):
            if method in ("INVITE", "REFER", "SUBSCRIBE", "OPTIONS", "REGISTER") and name not in made:
                made.add(name, ", ".join(values))
        if content_type is not None:
            made.set("Content-Type", content_type)
        return Request(method, uri, made, body)

    def request(
        self,
        request: Request,
        now: float,
        *,
        flow: Flow | None = None,
        target: str | None = None,
        credentials: DigestCredentials | None = None,
        context: Any = None,
    ) -> ClientRequest:
        """Sends a request that makes no dialog. Its result comes as `ResponseReceived` or `RequestFailed`."""
        sent = ClientRequest(self, request, flow=flow, target=target, credentials=credentials, context=context)
        sent.start(now)
        return sent

    def invite(
        self,
        uri: str,
        *,
        from_: str,
        to: str | None = None,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
        flow: Flow | None = None,
        target: str | None = None,
        credentials: DigestCredentials | None = None,
        redirects: int = 0,
        context: Any = None,
    ) -> InviteSession:
        """Calls `uri`. What becomes of it comes as `Progressed`, `Answered`, `Refused` and, later, `Ended`.

        `redirects`: how many targets of 3xx responses are tried; by default none, and the application is told.
        """
        request = self.compose(
            "INVITE", uri, from_=from_, to=to, headers=headers, body=body, content_type=content_type
        )
        session = ClientSession(
            self, request, flow=flow, target=target, credentials=credentials, redirects=redirects, context=context
        )
        session.start(now)
        return session

    def subscribe(
        self,
        uri: str,
        *,
        event: str,
        from_: str,
        to: str | None = None,
        expires: int = 3600,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
        flow: Flow | None = None,
        target: str | None = None,
        credentials: DigestCredentials | None = None,
        context: Any = None,
    ) -> Subscription:
        """SUBSCRIBE (RFC 6665) in a dialog of its own."""
        request = self.compose(
            "SUBSCRIBE", uri, from_=from_, to=to, body=body, content_type=content_type,
            headers=[("Event", event), ("Expires", str(expires)), *headers],
        )  # fmt: skip
        return self._subscribing(request, event.partition(";")[0], now, flow, target, credentials, context)

    def refer(
        self,
        uri: str,
        refer_to: str,
        *,
        from_: str,
        to: str | None = None,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
        flow: Flow | None = None,
        target: str | None = None,
        credentials: DigestCredentials | None = None,
        context: Any = None,
    ) -> Subscription:
        """REFER outside a dialog; its NOTIFYs arrive as `Notified(subscription, ...)`. `subscription.request` is
        the ClientRequest of the REFER, whose response arrives as ResponseReceived."""
        request = self.compose(
            "REFER", uri, from_=from_, to=to, body=body, content_type=content_type,
            headers=[("Refer-To", refer_to), *headers],
        )  # fmt: skip
        return self._subscribing(request, "refer", now, flow, target, credentials, context)

    def _subscribing(
        self,
        request: Request,
        event: str,
        now: float,
        flow: Flow | None,
        target: str | None,
        credentials: DigestCredentials | None,
        context: Any,
    ) -> Subscription:
        sent = ClientRequest(self, request, flow=flow, target=target, credentials=credentials, context=context)
        subscription = Subscription(self, sent, event, now=now)
        subscription.context = context
        sent.subscription = subscription
        sent._done = subscription.on_result
        sent.start(now)
        return subscription

    # --- what sessions and subscriptions need ---------------------------------------------------------

    def add_dialog(self, dialog: Dialog) -> None:
        """Requests in `dialog` are for its usages from now on."""
        self._dialogs[dialog.id] = dialog

    def drop_dialog(self, dialog: Dialog) -> None:
        """Forget a dialog if no usage holds it."""
        if dialog.unused and self._dialogs.get(dialog.id) is dialog:
            del self._dialogs[dialog.id]

    def expect(self, call_id: str, local_tag: str, subscription: Any) -> None:
        """A NOTIFY that finds no dialog yet is for this subscription (RFC 6665 4.1.2.4)."""
        self._expected[call_id, local_tag] = subscription

    def expect_no_more(self, call_id: str, local_tag: str) -> None:
        """Undo `expect`."""
        self._expected.pop((call_id, local_tag), None)

    def flow_of(self, dialog: Dialog) -> Flow | None:
        """The flow to use for a request in `dialog`; ``None``: resolve the next hop."""
        return dialog.way

    def deliver(self, transaction: ServerRecord, session: Any, now: float) -> None:
        """Give the request of a server transaction in the dialog of `session` to the application."""
        dialog = None if session is None else session.dialog
        self.emit(RequestReceived(ServerRequest(self, transaction, session, dialog)))

    def attach_subscription(self, client_request: ClientRequest, now: float) -> None:
        """A REFER or SUBSCRIBE inside a dialog makes a subscription there (RFC 3515 2.4.4)."""
        event = client_request.request.headers.event
        package = "refer" if client_request.method == "REFER" or event is None else event.package
        subscription = Subscription(self, client_request, package, now=now)
        subscription.context = client_request.context
        client_request.subscription = subscription
        of_session = client_request._done

        def done(sent: ClientRequest, response: Response | None, cause: Any, now: float) -> bool:
            quiet = of_session(sent, response, cause, now) if of_session is not None else False
            return subscription.on_result(sent, response, cause, now) or quiet

        client_request._done = done

    def authorize(self, credentials: DigestCredentials | None, request: Request) -> None:
        """Sign with the nonces already known."""
        if credentials is not None:
            self._digest(credentials).authorize(request)

    def answer_challenge(
        self, credentials: DigestCredentials | None, request: Request, response: Response
    ) -> bool:
        """Whether the same request with a new signature can succeed."""
        return credentials is not None and self._digest(credentials).answer(request, response)

    def authenticated(self, credentials: DigestCredentials | None, response: Response) -> None:
        """See `Services`."""
        if credentials is not None and not _NEXT_NONCE.isdisjoint(response.headers.names):
            self._digest(credentials).learn(response)

    def _digest(self, credentials: DigestCredentials) -> DigestClient:
        client = self._digests.pop(credentials, None) or DigestClient(credentials, self.token)
        self._digests[credentials] = client
        while len(self._digests) > self.settings.max_credentials:
            self._digests.popitem(last=False)
        return client

    def unhandled(self, event: object, error: Exception, now: float) -> None:
        """See `TransactionLayer.unhandled`: a request without an answer would keep its transaction for ever."""
        if isinstance(event, RequestReceived) and not event.incoming.answered:
            event.incoming.respond(error.status if isinstance(error, ParseError) else 500, now=now)

    # --- requests that come in ------------------------------------------------------------------------

    def _dispatch(self, record: ServerRecord, to_tag: str | None, now: float) -> None:
        request = record.request
        if request.method == "CANCEL":
            self._cancel_received(record, now)
            return
        names = request.headers.names
        for name, read in _READ_LATER.items():
            if name in names:
                read(request.headers)  # 400 now, not when a call stands on it
        if (refusal := self._refusal(request, record)) is not None:
            status, headers = refusal
            self.answer(record, request.response(status, headers=headers, to_tag=self.tag()), now)
        elif to_tag is not None:
            self._in_dialog(record, to_tag, now)
        else:
            self._out_of_dialog(record, now)

    def _refusal(self, request: Request, record: ServerRecord) -> tuple[int, HeaderItems] | None:
        """The checks of RFC 3261 8.2 that need no application: status and headers, or ``None``."""
        method, settings, headers = request.method, self.settings, request.headers
        if method not in settings.allow:
            return (405 if method in _METHODS else 501), [("Allow", ", ".join(settings.allow))]
        if request.uri.scheme not in ("sip", "sips", "tel"):
            return 416, ()
        if record.merge is not None and self._merges.get(record.merge) is not record:
            return 482, ()  # 8.2.2.2: the same request came another way
        names = headers.names  # most of what follows is asked of few requests
        if "require" in names and (required := headers.require):
            known = _ALWAYS.union(map(str.lower, settings.supported))
            if unsupported := [tag for tag in required if tag.lower() not in known]:
                return 420, [("Unsupported", ", ".join(unsupported))]
        if method != "INVITE" and "replaces" in names:
            return 400, ()  # RFC 3891 3
        if request.body and method in ("INVITE", "UPDATE") and not self._accepts(request):
            return 415, [("Accept", ", ".join(settings.accept))]
        if method == "INVITE" and not self._can_answer(request):
            return 406, [("Warning", '399 - "no session description can be given in a type that Accept names"')]
        if method in ("INVITE", "UPDATE") and "session-expires" in names and too_small(request, settings.min_se):
            return 422, [("Min-SE", settings.min_se)]
        if request.body and (encoding := headers.get("content-encoding")) and encoding.lower() != "identity":
            return 415, [("Accept-Encoding", "identity")]
        return None

    def _accepts(self, request: Request) -> bool:
        """Whether the body is of a type and a disposition that are understood, or need not be (20.11)."""
        media = request.headers.content_type
        disposition = _disposition(request.headers.get("content-disposition"))
        if "handling=optional" in disposition:
            return media is not None
        if media is None or disposition.partition(";")[0] not in _DISPOSITIONS:
            return False
        if media.full.startswith("multipart/") and _says_required(request.body):
            for part in parse_multipart(str(media), request.body):  # RFC 5621 8.4
                required = "handling=required" in _disposition(part.header("content-disposition"))
                if required and not self._takes(part.type):
                    return False
        return self._takes(media.full)

    def _takes(self, media: str) -> bool:
        accept = self.settings.accept
        return media in accept or any(_covers(range_, media) for range_ in accept)

    @staticmethod
    def _can_answer(request: Request) -> bool:
        """Whether Accept admits the SDP that every 2xx to an INVITE carries (13.3.1.3, 21.4.7; RFC 4475 3.3.15)."""
        headers = request.headers
        if "accept" not in headers.names or (accept := headers.accept) is None:
            return True
        return any(media.accepts("application/sdp") or media.full.startswith("multipart/") for media in accept)

    def _response_received(self, response: Response, flow: Flow, now: float) -> None:
        """What cannot be read in an answer counts as absent: nobody can be told of it, and whoever waits for the answer
        shall have it. One with another Via below ours has gone astray (8.1.3.3)."""
        if not response.headers.one_via:
            log.info("call-id=%s an answer for somebody else", response.headers.call_id)
            return
        for name, read in _READ_LATER.items():
            if name in response.headers.names:
                try:
                    read(response.headers)
                except ParseError as error:
                    log.info("call-id=%s %s left out: %s", response.headers.call_id, name, error)
                    response.headers.remove(name)
        super()._response_received(response, flow, now)

    def _ack_received(self, request: Request, now: float) -> None:
        self._acknowledged(request, now)
        dialog = self._find_dialog(request)
        if dialog is not None and isinstance(dialog.session, InviteSession):
            dialog.session.receive_ack(request, now)

    def _cancel_received(self, record: ServerRecord, now: float) -> None:
        """9.2: 200 to the CANCEL itself, then the INVITE is answered by its session. Another request is found, and
        nothing happens to it."""
        transaction = record.key[:-1]
        invite = self._servers.get((*transaction, "INVITE"))
        if invite is None:
            others = (method for method in self.settings.allow if method != "CANCEL")
            found = any((*transaction, method) in self._servers for method in others)
            self.answer(record, record.request.response(200 if found else 481, to_tag=self.tag()), now)
            return
        tag = invite.session.local_tag if invite.session is not None else self.tag()
        self.answer(record, record.request.response(200, to_tag=tag), now)
        if isinstance(invite.session, InviteSession):
            invite.session.receive_cancel(invite, now)

    def _find_dialog(self, request: Request) -> Dialog | None:
        headers = request.headers
        return self._dialogs.get((headers.call_id, headers.to.tag or "", headers.from_.tag or ""))

    def _in_dialog(self, record: ServerRecord, to_tag: str, now: float) -> None:
        request = record.request
        dialog = self._find_dialog(request)
        if dialog is None:
            expected = self._expected.get((request.headers.call_id, to_tag))
            if request.method == "NOTIFY" and expected is not None and self._is_for(expected, request):
                expected.notified(record, request, now)
            else:
                self.answer(record, request.response(481), now)
            return
        if not dialog.in_order(request):
            self.answer(record, request.response(500, headers=[("Retry-After", "1")]), now)
            return
        session = dialog.session
        match request.method:
            case "NOTIFY":
                self._notified(record, dialog, now)
            case "SUBSCRIBE" if (held := self._notifier(dialog, request)) is not None:
                held.resubscribed(record, request, now)
            case "SUBSCRIBE" | "REFER":
                record.session = session
                dialog.heard(request, record.flow)
                self.emit(RequestReceived(ServerRequest(self, record, session, dialog)))
            case _ if isinstance(session, InviteSession):
                record.session = session
                session.receive_request(record, request, now)
            case _:
                self.answer(record, request.response(481), now)

    @staticmethod
    def _is_for(subscription: Subscription, request: Request) -> bool:
        event = request.headers.event
        return event is not None and subscription.matches(event)

    def _notified(self, record: ServerRecord, dialog: Dialog, now: float) -> None:
        for usage in dialog.subscriptions:
            if isinstance(usage, Subscription) and self._is_for(usage, record.request):
                usage.notified(record, record.request, now)
                return
        self.answer(record, record.request.response(481), now)

    @staticmethod
    def _notifier(dialog: Dialog, request: Request) -> NotifierSubscription | None:
        event = request.headers.event
        if event is None:
            return None
        return next(
            (u for u in dialog.subscriptions if isinstance(u, NotifierSubscription) and u.matches(event)), None
        )

    def _out_of_dialog(self, record: ServerRecord, now: float) -> None:
        request = record.request
        match request.method:
            case "INVITE":
                replaced, status = self._to_replace(request)
                if status:
                    self.answer(record, request.response(status, to_tag=self.tag()), now)
                    return
                session = ServerSession(self, record, request)
                session.replaces = replaced
                record.session = session
                assert session.dialog is not None
                self.add_dialog(session.dialog)
                session.begin(now)
                self.emit(InviteReceived(session))
            case "OPTIONS" if self.settings.answer_options:
                self._answer_options(record, now)
            case method if method in _ONLY_IN_DIALOG:
                self.answer(record, request.response(481, to_tag=self.tag()), now)
            case _:
                self.emit(RequestReceived(ServerRequest(self, record, None, None)))

    def _to_replace(self, request: Request) -> tuple[InviteSession | None, int]:
        """The session that an INVITE wants to take the place of, or the status of the refusal (RFC 3891 3)."""
        headers = request.headers
        if "replaces" not in headers.names or (wanted := headers.replaces) is None:
            return None, 0
        session = self.session_of(wanted.call_id, wanted.to_tag, wanted.from_tag)
        if session is None:
            return None, 481
        if session.ended:
            return None, 603
        if session.state in (SessionState.CONFIRMED, SessionState.ACCEPTED, SessionState.HANGING):
            return (None, 486) if wanted.early_only else (session, 0)
        # an early dialog is replaced at the side that called only
        return (session, 0) if isinstance(session, ClientSession) else (None, 481)

    def session_of(self, call_id: str, local_tag: str, remote_tag: str) -> InviteSession | None:
        """The call with this dialog identifier, as Replaces and Target-Dialog (RFC 4538) name it."""
        dialog = self._dialogs.get((call_id, local_tag, remote_tag))
        return dialog.session if dialog is not None and isinstance(dialog.session, InviteSession) else None

    def _answer_options(self, record: ServerRecord, now: float) -> None:
        """RFC 3261 11.2."""
        response = record.request.response(200, headers=self.option_headers(), to_tag=self.tag())
        self.answer(record, response, now)

    def option_headers(self) -> list[tuple[str, object]]:
        """What the 200 to OPTIONS says (11.2)."""
        settings = self.settings
        return [
            ("Allow", ", ".join(settings.allow)),
            ("Accept", ", ".join(settings.accept + settings.accept_elsewhere)),
            ("Supported", ", ".join(settings.supported)),
            ("Allow-Events", ", ".join(settings.allow_events)),
        ]

#: whether a multipart may have a part that has to be understood
_says_required = re.compile(rb"handling[ \t]*=[ \t]*required", re.IGNORECASE).search
#: what the body of an INVITE or UPDATE may be for; without a word SDP is the session's
_DISPOSITIONS = frozenset({"", "session", "render"})

#: option tags that need nothing of the stack: the application's business, or true of every SIP element here
_ALWAYS = frozenset({"recipient-list-invite", "multiple-refer", "pref", "eventlist", "resource-priority"})


#: headers of a URI that are put into the request (19.1.5: of the others some never, some are not to be trusted)
_FROM_URI = frozenset({"subject", "priority", "in-reply-to", "accept-contact", "reject-contact", "request-disposition"})


def _of_uri(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A Request-URI as table 1 of 19.1.1 has it, and the headers that the URI asks for."""
    if "?" not in text and ";method=" not in text.lower():
        return text, []
    uri = parse_uri(text)
    if not isinstance(uri, SipUri):
        return text, []
    plain = uri.replace(headers=(), params=Params(uri.params.without("method")))
    return str(plain), [pair for pair in uri.headers if pair[0].lower() in _FROM_URI]


def _disposition(text: str | None) -> str:
    return (text or "").lower().replace(" ", "")


def _covers(accepted: str, media: str) -> bool:
    """Whether a media range such as ``multipart/*`` covers a type."""
    if accepted == media:
        return True
    kind, _, sub = accepted.lower().partition("/")
    return accepted == "*/*" or (kind == media.partition("/")[0] and sub in ("*", media.partition("/")[2]))
