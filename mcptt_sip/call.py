# SPDX-License-Identifier: Apache-2.0
"""A call as an object whose life reads top to bottom like a script. Made by `mcptt_sip.useragent.UserAgent`.

:RFC 6086: partly; packages are refused with 469 unless the application takes them
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from mcptt_sip.callbody import SDP, Body, described, fragment_status, session_description, warning
from mcptt_sip.callmedia import CallMedia, check_digits
from mcptt_sip.errors import CallFailed, LocalProtocolError, ParseError, RequestTimeout, Unreachable
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.flow import Flow
from mcptt_sip.grammar import Params
from mcptt_sip.headers import NameAddr, Replaces
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.message import Request, Response
from mcptt_sip.offeranswer import NotAcceptable
from mcptt_sip.outgoing import Cause, ClientRequest
from mcptt_sip.session import InviteSession, SessionState
from mcptt_sip.session_events import Answered, Ended, Progressed, Refreshed, Refused

__all__ = ["Call", "Host", "Waiter", "fragment_status", "session_description"]

log = logging.getLogger(__name__)

#: early dialogs of one call whose answers are kept
_MAX_ANSWERS = 64


class Host(Protocol):
    """The user agent, as its calls see it."""

    def now(self) -> float:
        """The time."""
        ...

    def transmit(self) -> None:
        """Something may be waiting to be sent."""
        ...

    async def open_media(self, flow: Flow | None) -> CallMedia:
        """Audio for a new call that goes over `flow`."""
        ...

    def subscribe(self, uri: str, event: str) -> AsyncIterator[Request]:
        """The notifications of an event package."""
        ...


class Waiter:
    """Who waits for the final response to a request; the context of its `ClientRequest`."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        #: told each NOTIFY of the subscription that the request made
        self.notified: Callable[[Request], None] | None = None
        #: told when that subscription is over
        self.ended: Callable[[], None] | None = None

    def answered(self, response: Response) -> None:
        if response.status >= 200 and not self.done.done():
            self.done.set_result(response)

    def failed(self, sent: ClientRequest, cause: Cause) -> None:
        if not self.done.done():
            text = f"{sent.method} {sent.request.uri}: {cause.value}"
            error = RequestTimeout(text) if cause is Cause.TIMEOUT else Unreachable(str(sent.request.uri), (text,))
            self.done.set_exception(error)


class Call:
    """One call, made or received.

    `media` is its audio once there is any; calls without audio of ours carry bodies as the application gives them.
    `ended` is set when the call is over, and `cause` says why. ``context`` is the application's own.

    Handlers that may be set: `on_digit(digit)`, `on_hold(held)` when the peer holds or resumes, `on_progress(response)`
    for a call that was made, `on_request(incoming)` for requests in the call (True: it was answered).
    """

    def __init__(self, host: Host, session: InviteSession, *, incoming: bool, audio: bool) -> None:
        self.session = session
        self.incoming = incoming
        self.media: CallMedia | None = None
        #: the answer of each early dialog, by its tag: the first description (RFC 3261 13.2.1); and whose is in force
        self._answers: dict[str | None, bytes] = {}
        self._answered_by: str | None = None
        self.ended = asyncio.Event()
        self.ringing = asyncio.Event()
        self.confirmed = asyncio.Event()
        self.cause: Cause | None = None
        self.response: Response | None = None
        self.context: Any = None
        self.on_digit: Callable[[str], None] = lambda _digit: None
        self.on_hold: Callable[[bool], None] = lambda _held: None
        self.on_progress: Callable[[Response], None] = lambda _response: None
        self.on_request: Callable[[ServerRequest], bool] = lambda _incoming: False
        self._host = host
        self._audio = audio
        self._body: Body | None = None
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._offer_due = False  # our offer is in a 2xx, or a reliable 1xx; its answer comes with the ACK, or PRACK
        self._offered_early = False
        self._changing = asyncio.Lock()
        self._acknowledged = asyncio.Event()  # cleared while a 2xx of ours awaits its ACK
        self._acknowledged.set()
        self._held = False
        session.context = self

    # --- what it is

    @property
    def id(self) -> str:
        """Call-ID."""
        return self.session.call_id

    @property
    def request(self) -> Request:
        """The INVITE."""
        return self.session.request

    @property
    def peer(self) -> NameAddr:
        """Who the other one says to be: From of a call received, To of one that was made."""
        headers = self.request.headers
        return headers.from_ if self.incoming else headers.to

    @property
    def established(self) -> bool:
        """Whether it was answered and is not over."""
        return self.session.established

    @property
    def undecided(self) -> bool:
        """Whether it is a call received that has no final answer of ours."""
        return self.incoming and self.session.state is SessionState.PROCEEDING

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.session.state.name}>"

    # --- the callee's verbs

    async def ring(
        self,
        status: int = 180,
        *,
        early_media: bool = False,
        reliable: bool | None = None,
        headers: HeaderItems = (),
        body: Body | None = None,
    ) -> CallMedia | None:
        """A provisional response; with `early_media` the answer is in it, sent reliably, and the audio begins.

        `reliable`: see `mcptt_sip.invite_server.ServerSession.progress`. Raises `CallFailed` when the caller has given
        up.
        """
        if early_media:
            reliable = True if reliable is None else reliable
        wanted = self.request.headers.requires("100rel") if reliable is None else reliable
        late = self._audio and session_description(self.request) is None
        if early_media or (body is None and late and wanted):  # RFC 3262 5: our offer MUST be in it
            body = await self._answer_body()
            self._offered_early = late and wanted
        self._check_not_over()
        kind, octets = body or (None, b"")
        self.session.progress(
            status, headers=headers, body=octets, content_type=kind, reliable=reliable, now=self._host.now()
        )
        self._host.transmit()
        return self.media

    async def answer(self, *, headers: HeaderItems = (), body: Body | None = None) -> CallMedia:
        """200; the audio begins. Raises `NotAcceptable` after a 488 when nothing in the offer can be done here.

        `body` is for calls without audio of ours, which have no `CallMedia`: use `accept` there.
        """
        await self.accept(headers=headers, body=body)
        if self.media is None:
            raise LocalProtocolError("the call has no audio of ours; accept() answers it")
        return self.media

    async def accept(self, *, headers: HeaderItems = (), body: Body | None = None) -> None:
        """As `answer`, for calls with audio or without."""
        self._check_not_over()
        if body is None and self._audio and not self._offered_early:
            try:
                body = await self._answer_body()
            except NotAcceptable as error:
                await self.reject(488, headers=[warning(305, error.reason)])
                raise
        self._check_not_over()
        self._body = body or self._body
        kind, octets = body or (None, b"")
        self.session.accept(headers=headers, body=octets, content_type=kind, now=self._host.now())
        self._acknowledged.clear()
        self._host.transmit()

    async def reject(self, status: int = 486, reason: str | None = None, *, headers: HeaderItems = ()) -> None:
        """A final response of 300 to 699. Raises `CallFailed` when the caller has given up."""
        self._check_not_over()
        self.session.reject(status, reason=reason, headers=headers, now=self._host.now())
        self._over(Cause.RESPONSE)
        self._host.transmit()

    def _check_not_over(self) -> None:
        """The caller may give up while his call is still being handed to whoever decides."""
        if self.session.ended and self.cause is not Cause.RESPONSE:
            raise CallFailed("the caller gave up", None)

    async def redirect(self, *targets: str) -> None:
        """302 to these URIs."""
        await self.reject(302, headers=[("Contact", f"<{target}>") for target in targets])

    async def _answer_body(self) -> Body:
        """Our description for a provisional or final 2xx: an answer, or an offer when the INVITE had none."""
        if self._body is not None:
            return self._body
        media = await self._open_media()
        offer = session_description(self.request)
        if offer is None:
            self._offer_due = True
            self._body = SDP, media.negotiation.offer()
        else:
            self._body = SDP, media.negotiation.answer(offer)
            media.apply()
        return self._body

    async def _open_media(self) -> CallMedia:
        if self.media is None:
            self.media = await self._host.open_media(self.session.flow)
            self.media.on_digit = lambda digit: self.on_digit(digit)
            if self.session.ended:
                self.media.close()
        return self.media

    # --- the caller's verbs

    async def answered(self) -> None:
        """Returns when the call was answered; raises `CallFailed` when it comes to nothing."""
        await asyncio.shield(self._outcome)

    # --- both sides' verbs

    async def hang_up(self, *, headers: HeaderItems = ()) -> None:
        """Ends it, in whatever state: BYE, CANCEL, or a refusal. Nothing happens when it is over."""
        self.session.bye(self._host.now(), headers=headers)
        if self.incoming and self.session.state is SessionState.ENDED:
            self._over(Cause.LOCAL_BYE)
        self._host.transmit()

    async def hold(self) -> None:
        """Puts the peer on hold (RFC 3264 8.4). Raises `CallFailed` when the peer refuses; the call goes on."""
        await self._change("inactive" if self.media and self.media.negotiation.held_by_peer else "sendonly")

    async def resume(self) -> None:
        """Ends our hold."""
        await self._change("sendrecv")

    async def _change(self, direction: str) -> None:
        if self.media is None:
            raise LocalProtocolError("the call has no audio of ours")
        async with self._changing:
            negotiation = self.media.negotiation
            before, negotiation.wanted = negotiation.wanted, direction
            try:
                response = await self.reinvite((SDP, negotiation.offer()), renew=lambda: (SDP, negotiation.offer()))
                description = described(response)
                if description is None:
                    raise CallFailed("a 2xx without an answer", response)
                negotiation.accept(description)
            except (CallFailed, NotAcceptable, RequestTimeout, Unreachable):
                negotiation.wanted = before
                raise
            self.media.apply()

    async def reinvite(
        self, body: Body | None = None, *, headers: HeaderItems = (), renew: Callable[[], Body] | None = None
    ) -> Response:
        """An INVITE in the call; its 2xx. Raises `CallFailed`, and the call goes on as it was. It waits for the ACK of
        the peer's own change (RFC 3261 14.1); `renew` as for `InviteSession.reinvite`."""
        waiter = Waiter()
        kind, octets = body or (None, b"")
        await self._acknowledged.wait()
        self.session.reinvite(
            headers=headers, body=octets, content_type=kind, now=self._host.now(), context=waiter, renew=renew
        )
        self._host.transmit()
        response = await waiter.done
        if response.status >= 300:
            raise CallFailed(f"the change was refused: {response.status} {response.reason}", response)
        return response

    async def send(
        self, method: str, *, headers: HeaderItems = (), body: bytes = b"", content_type: str | None = None
    ) -> Response:
        """A request in the call (INFO, MESSAGE, UPDATE, OPTIONS …); its final response."""
        waiter = Waiter()
        self.session.send(
            method, headers=headers, body=body, content_type=content_type, now=self._host.now(), context=waiter
        )
        self._host.transmit()
        return await waiter.done

    async def send_digits(self, digits: str) -> None:
        """Telephone events in the audio (RFC 4733), or, to a peer that takes none, INFO of dtmf-relay."""
        agreed = None if self.media is None else self.media.negotiation.agreed
        check_digits(digits)
        if self.media is not None and agreed is not None and agreed.event_send is not None:
            await self.media.send_digits(digits)
            return
        for digit in digits:
            body = f"Signal={digit}\r\nDuration=100\r\n".encode()
            await self.send("INFO", body=body, content_type="application/dtmf-relay")

    async def transfer(self, target: str | Call, *, headers: HeaderItems = (), explicit: bool = False) -> int:
        """Asks the peer to call `target`, a URI or (attended, RFC 3891) the peer of another call; the final status of
        that call as the peer tells it: in the dialog of this one, or (`explicit`) in one of its own, which the peer
        must understand (RFC 7614). This call goes on; hang it up when the status is 200 (RFC 5589 6).

        Raises `CallFailed` when the peer refuses to try, `ParseError` when the target is no URI.
        """
        if isinstance(target, Call):
            target = target._as_target()
        progress: asyncio.Queue[int | None] = asyncio.Queue()
        waiter = Waiter()

        def notified(request: Request) -> None:
            # a first NOTIFY may say nothing yet (RFC 6665 4.2.2); nor does a body that cannot be read
            if (status := fragment_status(request.body)) is not None:
                progress.put_nowait(status)

        waiter.notified = notified
        waiter.ended = lambda: progress.put_nowait(None)
        lines = [("Refer-To", NameAddr.parse(target if target.startswith("<") else f"<{target}>")), *headers]
        if explicit:
            lines.append(("Require", "explicitsub"))
        self.session.send("REFER", headers=lines, now=self._host.now(), context=waiter)
        self._host.transmit()
        response = await waiter.done
        if response.status >= 300:
            raise CallFailed(f"the transfer was refused: {response.status} {response.reason}", response)
        if (response.headers.get("refer-sub") or "").lower().startswith("false"):
            return response.status
        if explicit:
            if (events_at := response.headers.refer_events_at) is None:
                raise CallFailed("the peer accepted without Refer-Events-At", response)
            async for request in self._host.subscribe(str(events_at.uri), "refer"):
                notified(request)
            progress.put_nowait(None)
        last = 0
        while (status := await progress.get()) is not None:
            last = status
            if status >= 200:
                break
        return last

    def _as_target(self) -> str:
        """Refer-To of an attended transfer: the remote target, and the dialog that its call is to replace."""
        dialog = self.session.dialog
        if dialog is None or not self.established:
            raise LocalProtocolError("only an established call is transferred to")
        replaces = str(
            Replaces(dialog.call_id, Params([("to-tag", dialog.remote_tag), ("from-tag", dialog.local_tag)]))
        )
        for plain, escaped in (("%", "%25"), (";", "%3B"), ("=", "%3D"), ("@", "%40"), ("&", "%26"), ("?", "%3F")):
            replaces = replaces.replace(plain, escaped)
        return f"<{dialog.remote_target}?Replaces={replaces}>"

    # --- what the user agent tells

    def progressed(self, event: Progressed) -> None:
        """A provisional response."""
        self.response = event.response
        if event.response.status in (180, 182, 183):
            self.ringing.set()
        if self.media is not None and self.session.ack_body is None:
            tag = event.response.headers.to.tag
            if event.response.status != 199:
                self._take_answer_of(event.response)
            elif self._answers.pop(tag, None) is not None and tag == self._answered_by:
                self.media.negotiation.withdraw()  # RFC 6228 4: no media to an early dialog that is over
        self.on_progress(event.response)

    def was_answered(self, event: Answered) -> None:
        """The 2xx to our INVITE."""
        self.response = event.response
        if self.media is not None:
            if self.session.ack_body is None:
                good = self._take_answer_of(event.response)
            else:
                good = self.media.negotiation.agreed is not None  # his offer was answered in the ACK, or a PRACK
            if not good:
                self._give_up("the answer has nothing that can be done here", event.response)
                return
        if not self._outcome.done():
            self._outcome.set_result(None)

    def _take_answer_of(self, response: Response) -> bool:
        """The answer of the callee who sent this: his first description, whatever others say (RFC 3261 13.2.1)."""
        tag = response.headers.to.tag
        first = self._answers.get(tag) or described(response)
        if first is None:
            return False
        if tag not in self._answers or self._answered_by != tag:
            if not self._take_answer(first, first=True):
                return False
            if len(self._answers) < _MAX_ANSWERS:
                self._answers[tag] = first
            self._answered_by = tag
        return True

    def _take_answer(self, description: bytes, *, first: bool = False) -> bool:
        assert self.media is not None
        try:
            self.media.negotiation.accept(description, first=first)
        except NotAcceptable as error:
            log.info("call-id=%s answer not accepted: %s", self.id, error)
            return False
        self.media.apply()
        return True

    def offer_late(self, media: CallMedia) -> None:
        """Our INVITE has no offer: the peer's comes in its 2xx or a reliable 1xx, and our answer with ACK or PRACK."""
        self.media = media

        through: set[str | None] = set()  # in whose dialogs the offer of a reliable 1xx was answered

        def answer(response: Response) -> Body | None:
            offer, tag = described(response), response.headers.to.tag
            if offer is None or tag in through:
                return None
            if len(through) < _MAX_ANSWERS:
                through.add(tag)
            try:
                made = media.negotiation.answer(offer)
            except NotAcceptable as error:
                log.info("call-id=%s offer not accepted: %s", self.id, error)
                asyncio.get_running_loop().call_soon(self._give_up, error.reason, response)
                return None
            media.apply()
            return SDP, made

        self.session.ack_body = self.session.prack_body = answer

    def _give_up(self, reason: str, response: Response | None) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(CallFailed(reason, response))
            self._outcome.exception()  # nobody has to wait for it
        self.session.bye(self._host.now(), headers=[("Reason", 'SIP;cause=488;text="Not Acceptable Here"')])
        self._host.transmit()

    def refused(self, event: Refused) -> None:
        """Our INVITE came to nothing."""
        self.response = event.response
        if not self._outcome.done():
            what = event.cause.value
            if event.response is not None:
                what = f"{event.response.status} {event.response.reason}"
            self._outcome.set_exception(CallFailed(what, event.response))
            self._outcome.exception()  # nobody has to wait for it
        self._over(event.cause)

    def was_confirmed(self, request: Request) -> None:
        """An ACK arrived: of the call, or of a re-INVITE."""
        self._acknowledged.set()
        if self._offer_due and self.media is not None:
            self._offer_due = False
            description = described(request)
            if description is None or not self._take_answer(description):
                self._give_up("the ACK brought no answer that can be done here", None)
                return
            self._tell_hold()
        self.confirmed.set()

    def was_acknowledged(self, request: Request) -> None:
        """A PRACK arrived; when our offer was in the provisional response, it brings the answer."""
        description = described(request)
        if self._offer_due and self.media is not None and description is not None:
            self._offer_due = False
            if not self._take_answer(description):
                self._give_up("the PRACK brought no answer that can be done here", None)

    def was_refreshed(self, event: Refreshed) -> None:
        """The session refreshed itself by repeating our description: the answer holds like any other (RFC 3264 8)."""
        description = described(event.response)
        if self.media is None or description is None:
            return
        try:
            self.media.negotiation.offer_again(event.offer)
            self.media.negotiation.accept(description)
        except NotAcceptable as error:
            log.info("call-id=%s answer to a refresh not accepted: %s", self.id, error)
            return
        self.media.apply()
        self._tell_hold()

    def was_ended(self, event: Ended) -> None:
        """BYE, or worse."""
        if not self._outcome.done():
            self._outcome.set_exception(CallFailed(event.cause.value, self.response))
            self._outcome.exception()
        self._over(event.cause)

    def was_cancelled(self) -> None:
        """The caller gave up."""
        self._over(Cause.CANCELLED)

    def _over(self, cause: Cause) -> None:
        if self.ended.is_set():
            return
        self.cause = cause
        if self.media is not None:
            self.media.close()
        log.info("call-id=%s ended: %s", self.id, cause.value)
        self._acknowledged.set()
        self.ended.set()

    def release(self) -> None:
        """It is over: the circles between call, session and audio are opened, so that no collector has to look."""
        self.session.context = None
        self.session.ack_body = self.session.prack_body = None
        if self.media is not None:
            self.media.on_digit = lambda _digit: None
        self.on_request = lambda _incoming: False
        self.on_progress = lambda _response: None
        self.on_digit = lambda _digit: None
        self.on_hold = lambda _held: None

    def received(self, incoming: ServerRequest) -> bool:
        """A request in the call; whether it was answered here."""
        if self.on_request(incoming):
            return True
        method = incoming.method
        if method in ("INVITE", "UPDATE"):
            self._offered(incoming)
        elif method == "INFO":
            self._informed(incoming)
        else:
            return False
        return True

    def _offered(self, incoming: ServerRequest) -> None:
        """A re-INVITE or UPDATE."""
        now = self._host.now()
        body = self._body
        if self.media is not None:
            try:
                offer = session_description(incoming.request)
                if offer is None and incoming.method == "UPDATE":
                    body = None  # its body says something else: nothing is offered, and so nothing answered
                elif offer is None:
                    self._offer_due = incoming.method == "INVITE"
                    body = SDP, self.media.negotiation.offer()
                else:
                    body = SDP, self.media.negotiation.answer(offer)
                    self.media.apply()
            except (NotAcceptable, ParseError) as error:
                incoming.respond(488, headers=[warning(305, error.reason)], now=now)
                return
            self._tell_hold()
        kind, octets = body or (None, b"")
        incoming.respond(200, body=octets, content_type=kind, now=now)
        if incoming.method == "INVITE":
            self._acknowledged.clear()

    def _tell_hold(self) -> None:
        held = self.media is not None and self.media.negotiation.held_by_peer
        if held != self._held:
            self._held = held
            self.on_hold(held)

    def _informed(self, incoming: ServerRequest) -> None:
        """INFO: dtmf-relay is understood, a package is not (RFC 6086 4.2.2)."""
        headers, now = incoming.request.headers, self._host.now()
        if headers.get("info-package") is not None:
            incoming.respond(469, headers=[("Recv-Info", "")], now=now)
            return
        media = headers.content_type
        if media is not None and media.full in ("application/dtmf-relay", "application/dtmf"):
            match = re.search(rb"(?:Signal[ \t]*=[ \t]*)?([0-9*#A-Da-d])", incoming.request.body)
            if match is not None:
                self.on_digit(match[1].decode().upper())
        elif incoming.request.body:
            incoming.respond(415, headers=[("Accept", "application/dtmf-relay")], now=now)
            return
        incoming.respond(200, now=now)
