# SPDX-License-Identifier: Apache-2.0
"""A SIP user agent for applications: calls, messages, registrations and transfers, on asyncio.

::

    ua = UserAgent("sip:echo@example.org", listen=["udp:127.0.0.1:5060"])

    @ua.on_call
    async def echo(call):
        await call.ring()
        media = await call.answer()
        await media.loop_back(until=call.ended)

    async with ua:
        call = await ua.call("sip:alice@example.org")
        await call.media.play("welcome.wav")
        await call.hang_up()

:RFC 3428: yes; MESSAGE
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.call import Call, Waiter, session_description
from mcptt_sip.callmedia import CallMedia, CallMediaSettings
from mcptt_sip.endpoint import SipEndpoint, steady
from mcptt_sip.errors import CallFailed, ParseError, SipError, Unreachable
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.flow import Flow
from mcptt_sip.headers import NameAddr
from mcptt_sip.incoming import RequestReceived, ServerRequest
from mcptt_sip.message import Response
from mcptt_sip.offeranswer import NotAcceptable, OfferAnswer
from mcptt_sip.outgoing import RequestFailed, ResponseReceived
from mcptt_sip.publication import Publication
from mcptt_sip.registration import Registration
from mcptt_sip.resolver import Lookup
from mcptt_sip.services import StackSettings
from mcptt_sip.session import Confirmed, Ended, InviteReceived, Progressed, ProvisionalAcknowledged, Refused
from mcptt_sip.session_events import Answered, Cancelled, Refreshed, SessionState
from mcptt_sip.stack import FlowLost, SipStack
from mcptt_sip.subscription import Notified, NotifierSubscription, Resubscribed, Subscription, SubscriptionEnded
from mcptt_sip.trace import TraceSink
from mcptt_sip.transfer import Referral, accept_refer
from mcptt_sip.transport import Transport, TransportSettings
from mcptt_sip.uri import SipUri
from mcptt_sip.watch import Watch

__all__ = ["TELEPHONE", "UserAgent", "parse_listener"]

log = logging.getLogger(__name__)

CallHandler = Callable[[Call], Coroutine[Any, Any, object]]
RequestHandler = Callable[[ServerRequest], Coroutine[Any, Any, object]]

#: what a telephone understands, as against a server
TELEPHONE = StackSettings(
    supported=("100rel", "199", "timer", "replaces", "tdialog", "norefersub", "nosub", "explicitsub", "outbound",
               "gruu", "path"),
    allow=(
        "INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE", "INFO", "MESSAGE", "REFER", "SUBSCRIBE", "NOTIFY",
        "OPTIONS",
    ),
    allow_events=("refer",),
    flow_loss_ends_calls=False,
)  # fmt: skip


class UserAgent:
    """One identity with its sockets and calls. Use it in ``async with``, or `start` and `close` it.

    :param identity: the address-of-record, From of what is sent
    :param listen: ``TRANSPORT:HOST:PORT`` each (udp, tcp, tls, ws, wss); IPv6 hosts in brackets; port 0 chooses one
    :param credentials: for 401 and 407
    :param proxy: a SIP URI where every request outside a dialog is sent first
    :param audio: whether calls have audio of ours; without it the application gives and reads bodies
    :param media_host: numeric address of RTP; by default that of the first listener
    :param max_redirects: how many targets of 3xx responses a call tries
    :param follow_refers: ``in-dialog`` (or with the Target-Dialog of a call of ours), ``all`` or ``none``
    :param clock: gives Unix seconds; by default steady ones, whatever happens to the machine's clock
    :param sockets: makes the transport in place of real sockets; see `mcptt_sip.testing`
    """

    def __init__(
        self,
        identity: str,
        *,
        listen: Sequence[str] = (),
        credentials: DigestCredentials | None = None,
        proxy: str | None = None,
        audio: bool = True,
        media_host: str | None = None,
        media: CallMediaSettings | None = None,
        max_redirects: int = 5,
        follow_refers: str = "in-dialog",
        settings: StackSettings | None = None,
        transport: TransportSettings | None = None,
        lookup: Lookup | None = None,
        trace: TraceSink | None = None,
        clock: Callable[[], float] | None = None,
        token: Callable[[], bytes] = lambda: secrets.token_bytes(8),
        sockets: Callable[[Any, TransportSettings | None], Transport] = Transport,
    ) -> None:
        self.identity = NameAddr.of(identity)
        self._listen = tuple(listen)
        self.credentials = credentials
        self.proxy = proxy
        self.audio = audio
        self.media_settings = media or CallMediaSettings()
        self.max_redirects = max_redirects
        self.follow_refers = follow_refers
        clock = clock or steady(time.time)
        uri = self.identity.uri
        chosen = settings or TELEPHONE
        if chosen.user is None and isinstance(uri, SipUri):
            chosen = replace(chosen, user=uri.user)
        self.stack = SipStack(chosen, token=token)
        self.endpoint = SipEndpoint(
            self.stack, on_event=self._event, clock=clock, trace=trace, settings=transport, lookup=lookup,
            sockets=sockets,
        )  # fmt: skip
        self.addresses: list[tuple[str, str, int]] = []
        self.calls: set[Call] = set()
        self._clock = clock
        self._token = token
        self._media_host = media_host
        self._registrations: set[Registration] = set()
        self._publications: set[Publication] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._referrals: dict[str, Referral] = {}  # by the user part of the URI of their events
        self._on_call: CallHandler | None = None
        self._on_transfer: CallHandler | None = None
        self._on_request: dict[str, RequestHandler] = {}

    # --- handlers

    def on_call(self, handler: CallHandler) -> CallHandler:
        """A coroutine for each call that comes in. When it returns, an unanswered call is refused (480), an answered
        one goes on; an exception ends the call (500, or BYE)."""
        self._on_call = handler
        return handler

    def on_transfer(self, handler: CallHandler) -> CallHandler:
        """A coroutine for each call that was made because a REFER asked for it, once it is answered."""
        self._on_transfer = handler
        return handler

    def on(self, method: str) -> Callable[[RequestHandler], RequestHandler]:
        """A coroutine for each request of this method outside calls (and MESSAGE inside), REFER included, which it
        must answer. Unhandled ones get 405 (SUBSCRIBE: 489)."""

        def keep(handler: RequestHandler) -> RequestHandler:
            self._on_request[method.upper()] = handler
            return handler

        return keep

    def on_message(self, handler: RequestHandler) -> RequestHandler:
        """`on` for MESSAGE (RFC 3428)."""
        return self.on("MESSAGE")(handler)

    # --- life

    async def start(self) -> None:
        """Opens the listeners. Raises OSError; none is open then."""
        try:
            for text in self._listen:
                transport, host, port = parse_listener(text)
                bound = await self.endpoint.listen(transport, host, port)
                self.addresses.append((transport, *bound))
        except BaseException:
            await self.endpoint.close()
            raise

    async def close(self, timeout: float = 2.0) -> None:
        """Unregisters, ends every call, waits so many seconds at most for the answers, and closes the sockets."""
        calls = list(self.calls)
        for call in calls:
            await call.hang_up()
        try:
            async with asyncio.timeout(timeout):
                # 15: no BYE before the ACK, and a caller who was told nothing would talk to nobody
                hanging = [call for call in calls if call.session.state is SessionState.HANGING]
                await asyncio.gather(*(call.ended.wait() for call in hanging))
                await asyncio.gather(*(publication.close() for publication in self._publications))
                await asyncio.gather(*(registration.close() for registration in self._registrations))
        except TimeoutError:
            log.info("closed before everything was acknowledged and unregistered")
        await self.endpoint.settle(timeout)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        await self.endpoint.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- calls

    async def call(
        self, uri: str, *, headers: HeaderItems = (), body: tuple[str, bytes] | None = None, late_offer: bool = False,
        timeout: float | None = None, from_: str | None = None,
    ) -> Call:  # fmt: skip
        """Calls, and returns once it is answered. Raises `CallFailed` with the response, if there was one.

        :param timeout: seconds that it may ring; then it is cancelled
        """
        call = await self.dial(uri, headers=headers, body=body, late_offer=late_offer, from_=from_)
        try:
            async with asyncio.timeout(timeout):
                await call.answered()
        except TimeoutError:
            await call.hang_up()
            raise CallFailed("nobody answered in time", call.response) from None
        except asyncio.CancelledError:
            await call.hang_up()
            raise
        return call

    async def dial(
        self, uri: str, *, headers: HeaderItems = (), body: tuple[str, bytes] | None = None, late_offer: bool = False,
        from_: str | None = None,
    ) -> Call:  # fmt: skip
        """Begins a call and returns at once; see `Call.answered`, `Call.ringing`.

        `body` takes the place of our own audio; with `late_offer` the callee makes the offer.
        """
        media = None
        if self.audio and body is None:
            try:
                flow = await self.flow_to(uri)
            except Unreachable:
                flow = None  # the INVITE will say so
            media = await self.open_media(flow)
        if media is not None and not late_offer:
            body = "application/sdp", media.negotiation.offer()
        kind, octets = body or (None, b"")
        try:
            session = self.stack.invite(
                uri, from_=from_ or str(self.identity), headers=[*self._routes(), *headers], body=octets,
                content_type=kind, now=self.now(), target=self.proxy, credentials=self.credentials,
                redirects=self.max_redirects,
            )  # fmt: skip
        except SipError:
            if media is not None:
                media.close()
            raise
        call = Call(self, session, incoming=False, audio=media is not None)
        if media is not None:
            media.on_digit = lambda digit: call.on_digit(digit)
            if late_offer:
                call.offer_late(media)
            else:
                call.media = media
        self._keep(call)
        self.endpoint.transmit()
        return call

    # --- other requests

    async def request(
        self, method: str, uri: str, *, headers: HeaderItems = (), body: bytes = b"", content_type: str | None = None,
        from_: str | None = None, to: str | None = None,
    ) -> Response:  # fmt: skip
        """A request outside any dialog; its final response, whatever its status. Raises `RequestTimeout`,
        `Unreachable`."""
        waiter = Waiter()
        request = self.stack.compose(
            method, uri, from_=from_ or str(self.identity), to=to, headers=[*self._routes(), *headers], body=body,
            content_type=content_type,
        )  # fmt: skip
        self.stack.request(
            request, self.now(), target=self.proxy, credentials=self.credentials, context=waiter
        )
        self.endpoint.transmit()
        return await waiter.done

    async def message(self, uri: str, text: str, *, headers: HeaderItems = ()) -> Response:
        """MESSAGE of text/plain (RFC 3428)."""
        return await self.request(
            "MESSAGE", uri, body=text.encode(), content_type="text/plain;charset=UTF-8", headers=headers
        )

    async def register(
        self, registrar: str, *, aor: str | None = None, expires: int = 3600, q: float | None = None,
        instance: str | None = None, reg_id: int | None = None, headers: HeaderItems = (), keep_trying: bool = False,
    ) -> Registration:  # fmt: skip
        """Registers, and stays registered until `Registration.close`. Raises `RegistrationFailed`, `RequestTimeout`,
        `Unreachable`.

        :param instance: a URN that names this device (RFC 5626 4.1); `reg_id` its flow
        :param keep_trying: nothing of that is raised: the first REGISTER, too, is tried until it succeeds
        """
        registration = Registration(
            self, registrar, aor or str(self.identity.uri), expires=expires, q=q, instance=instance, reg_id=reg_id,
            headers=headers,
        )  # fmt: skip
        await registration.start(keep_trying=keep_trying)
        self._registrations.add(registration)
        return registration

    def subscribe(
        self, uri: str, event: str, *, expires: int = 3600, headers: HeaderItems = (), accept: str | None = None
    ) -> Watch:
        """SUBSCRIBE (RFC 6665); the notifications are what `Watch` iterates over."""
        lines = [*self._routes(), *([("Accept", accept)] if accept else []), *headers]
        watch = Watch(self)
        watch.subscription = self.stack.subscribe(
            uri, event=event, from_=str(self.identity), expires=expires, headers=lines, now=self.now(),
            target=self.proxy, credentials=self.credentials, context=watch.waiter,
        )  # fmt: skip
        self.endpoint.transmit()
        return watch

    async def publish(
        self, uri: str, event: str, body: bytes, content_type: str, *, expires: int = 3600
    ) -> Publication:
        """PUBLISH (RFC 3903), refreshed until `Publication.close`. Raises `CallFailed`, `RequestTimeout`,
        `Unreachable`."""

        async def send(headers: HeaderItems, octets: bytes, kind: str | None) -> Response:
            return await self.request("PUBLISH", uri, headers=headers, body=octets, content_type=kind)

        publication = Publication(send, event, body, content_type, expires=expires)
        await publication.start()
        self._publications.add(publication)
        return publication

    # --- what calls and registrations need

    def now(self) -> float:
        """The time, as the stack is told it."""
        return self._clock()

    def transmit(self) -> None:
        """Something may be waiting to be sent."""
        self.endpoint.transmit()

    async def open_media(self, flow: Flow | None) -> CallMedia:
        """Audio for a new call, at the address that the peer on `flow` sees."""
        return await CallMedia.open(self._host(flow), settings=self.media_settings, token=self._token)

    async def flow_to(self, uri: str) -> Flow:
        """See `mcptt_sip.registration.RegistrationHost`."""
        return await self.endpoint.flow_to(self.proxy or uri)

    def contact(self, flow: Flow) -> str:
        """See `mcptt_sip.registration.RegistrationHost`."""
        return self.stack.contact(flow)

    def keep(self, flow: Flow, *, stun: bool) -> None:
        """See `mcptt_sip.registration.RegistrationHost`."""
        self.endpoint.keep(flow, stun=stun)

    async def register_once(
        self, registrar: str, aor: str, headers: HeaderItems, flow: Flow, call_id: str | None, cseq: int
    ) -> tuple[Response | SipError, str, int]:
        """See `mcptt_sip.registration.RegistrationHost`."""
        waiter = Waiter()
        request = self.stack.compose("REGISTER", registrar, from_=f"<{aor}>", to=f"<{aor}>", call_id=call_id,
                                     headers=headers)  # fmt: skip
        if cseq:
            request.headers.set("CSeq", f"{cseq + 1} REGISTER")
        sent = self.stack.request(request, self.now(), flow=flow, credentials=self.credentials, context=waiter)
        self.endpoint.transmit()
        outcome: Response | SipError
        try:
            outcome = await waiter.done
        except SipError as error:
            outcome = error
        return outcome, sent.request.headers.call_id, sent.request.headers.cseq.number

    # --- inside

    def _host(self, flow: Flow | None) -> str:
        if self._media_host is not None:
            return self._media_host
        if flow is not None and flow.local[0] not in ("0.0.0.0", "::"):  # noqa: S104
            return flow.local[0]
        for _, host, _ in self.addresses:
            if host not in ("0.0.0.0", "::"):  # noqa: S104
                return host
        return "127.0.0.1"

    def _routes(self) -> list[tuple[str, object]]:
        return [
            ("Route", route)
            for registration in self._registrations if registration.registered
            for route in registration.service_route
        ]  # fmt: skip

    def _keep(self, call: Call) -> None:
        self.calls.add(call)

        async def forget() -> None:
            await call.ended.wait()
            self.calls.discard(call)
            call.release()

        self.spawn(forget())

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Runs a coroutine until it ends or the agent is closed."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _event(self, event: object, now: float) -> None:
        match event:
            case InviteReceived(session):
                self._called(session)
            case RequestReceived(incoming):
                self._requested(incoming)
            case ResponseReceived(sent, response):
                if isinstance(sent.context, Waiter):
                    sent.context.answered(response)
            case RequestFailed(sent, cause):
                if isinstance(sent.context, Waiter):
                    sent.context.failed(sent, cause)
            case Notified(Subscription(context=Waiter(notified=told)), request):
                if told is not None:
                    told(request)
            case SubscriptionEnded(Subscription(context=Waiter(ended=over))):
                if over is not None:
                    over()
            case Resubscribed(NotifierSubscription(context=Referral() as referral) as subscription):
                referral.tell_again(subscription, self.now())
            case FlowLost(flow):
                for registration in self._registrations:
                    registration.flow_lost(flow)
            case _:
                self._call_event(event)

    def _call_event(self, event: object) -> None:
        call = getattr(getattr(event, "session", None), "context", None)
        if not isinstance(call, Call):
            return
        match event:
            case Progressed():
                call.progressed(event)
            case Answered():
                call.was_answered(event)
            case Refused():
                call.refused(event)
            case Confirmed(_, request):
                call.was_confirmed(request)
            case ProvisionalAcknowledged(_, request):
                call.was_acknowledged(request)
            case Refreshed():
                call.was_refreshed(event)
            case Cancelled():
                call.was_cancelled()
            case Ended():
                call.was_ended(event)

    def _called(self, session: Any) -> None:
        now = self.now()
        if self._on_call is None:
            session.reject(480, now=now)
            return
        if self.audio:
            try:
                offer = session_description(session.request)
                if offer is not None:
                    settings = self.media_settings
                    OfferAnswer(
                        self._host(session.flow), 9, codecs=settings.codecs, sdes=settings.sdes, token=self._token
                    ).answer(offer)
            except ParseError as error:
                session.reject(400, reason=error.reason[:60], now=now)
                return
            except NotAcceptable as error:
                reason = error.reason.replace('"', "'").replace("\\", "")
                session.reject(488, headers=[("Warning", f'305 localhost "{reason}"')], now=now)
                return
        call = Call(self, session, incoming=True, audio=self.audio)
        self._keep(call)
        self.spawn(self._handle(call, self._on_call))

    async def _handle(self, call: Call, handler: CallHandler) -> None:
        try:
            await handler(call)
        except (CallFailed, NotAcceptable) as error:
            log.info("call-id=%s %s", call.id, error)
        except Exception:
            log.exception("call-id=%s the handler failed", call.id)
            if call.undecided:
                await call.reject(500)
            else:
                await call.hang_up()
        if call.undecided:
            await call.reject(480)

    def _requested(self, incoming: ServerRequest) -> None:
        call = None if incoming.session is None else incoming.session.context
        if isinstance(call, Call) and call.received(incoming):
            return
        handler = self._on_request.get(incoming.method)
        if handler is not None:
            self.spawn(self._answer(incoming, handler))
        elif incoming.method == "REFER":
            self._referred(incoming)
        elif incoming.method == "OPTIONS" and incoming.session is not None:
            # 11.2: in a dialog the answer is the same; a peer asks so whether the call still stands
            incoming.respond(200, headers=self.stack.option_headers(), now=self.now())
        elif incoming.method == "SUBSCRIBE" and (referral := self._referral_of(incoming)) is not None:
            referral.watched(incoming, self.now())
        elif incoming.method == "SUBSCRIBE":
            known = ", ".join(self.stack.settings.allow_events)
            incoming.respond(489, headers=[("Allow-Events", known)], now=self.now())
        else:
            handled = ("INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE", "INFO", "REFER", "NOTIFY", "OPTIONS")
            allowed = ", ".join(dict.fromkeys((*handled, *self._on_request)))
            incoming.respond(405, headers=[("Allow", allowed)], now=self.now())

    async def _answer(self, incoming: ServerRequest, handler: RequestHandler) -> None:
        try:
            await handler(incoming)
        except ParseError as error:  # a header that only this handler needed
            log.info("call-id=%s %s", incoming.request.headers.call_id, error)
            if not incoming.answered:
                incoming.respond(error.status, now=self.now())
        except Exception:
            log.exception("call-id=%s the handler failed", incoming.request.headers.call_id)
            if not incoming.answered:
                incoming.respond(500, now=self.now())
        if not incoming.answered:
            incoming.respond(200, now=self.now())
        self.endpoint.transmit()

    def _referred(self, incoming: ServerRequest) -> None:
        user = (self._token() + self._token()).hex()  # who knows it may ask (RFC 7614 8)
        there = NameAddr.parse(self.stack.contact_for(incoming.request, incoming.flow, user=user)).uri
        referral = accept_refer(incoming, allowed=self._may_refer(incoming), events_at=str(there), now=self.now())
        if referral is not None:
            if referral.events_at is not None:
                self._referrals[user] = referral
            self.spawn(self._follow(referral, user))

    def _referral_of(self, incoming: ServerRequest) -> Referral | None:
        """What a SUBSCRIBE outside any dialog wants to know the outcome of (RFC 7614 4.5)."""
        event, uri = incoming.request.headers.event, incoming.request.uri
        if incoming.dialog is not None or event is None or event.package != "refer" or not isinstance(uri, SipUri):
            return None
        return self._referrals.get(uri.user or "")

    def _may_refer(self, incoming: ServerRequest) -> bool:
        if self.follow_refers != "in-dialog":
            return self.follow_refers == "all"
        if incoming.session is not None:
            return True
        wanted = incoming.request.headers.target_dialog
        return wanted is not None and (
            self.stack.session_of(wanted.call_id, wanted.local_tag, wanted.remote_tag) is not None
        )

    async def _follow(self, referral: Referral, user: str) -> None:
        def tell(status: int, reason: str) -> None:
            referral.tell(status, reason, self.now())
            self.endpoint.transmit()

        call = await referral.follow(lambda uri, headers: self.dial(uri, headers=headers), tell)
        # RFC 7614 4.7: who subscribes late is told, too
        kept = 2 * self.stack.settings.timers.give_up
        asyncio.get_running_loop().call_later(kept, self._referrals.pop, user, None)
        if call is not None and self._on_transfer is not None:
            await self._handle(call, self._on_transfer)



def parse_listener(text: str) -> tuple[str, str, int]:
    """``TRANSPORT:HOST:PORT``, IPv6 hosts in brackets. Raises ValueError with a sentence."""
    transport, _, address = text.partition(":")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise ValueError(f"{text!r} is not TRANSPORT:HOST:PORT")
    if transport not in ("udp", "tcp", "tls", "ws", "wss"):
        raise ValueError(f"{text!r}: the transport is one of udp, tcp, tls, ws, wss")
    return transport, host.strip("[]"), int(port)


