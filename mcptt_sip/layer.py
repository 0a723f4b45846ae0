# SPDX-License-Identifier: Apache-2.0
"""The transaction layer: transactions with where they go, how messages find them, one clock for all of them
(RFC 3261 17, 18.1.1, 18.2; RFC 3581). Sans-IO; `mcptt_sip.stack.SipStack` is built on it.

:RFC 3581: yes; rport
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mcptt_sip.deadlines import Deadlines, Timed
from mcptt_sip.errors import ParseError, SipError
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.flow import Flow
from mcptt_sip.grammar import format_host
from mcptt_sip.message import Request, Response, parse
from mcptt_sip.outgoing import Cause, Outgoing
from mcptt_sip.routing import make_ack, next_hop, secured, stamp_source, via_target, wants_sips, way_back
from mcptt_sip.services import StackSettings, TransactionUser
from mcptt_sip.transaction import (
    BRANCH_COOKIE,
    InviteClientTransaction,
    InviteServerTransaction,
    NonInviteClientTransaction,
    NonInviteServerTransaction,
    On,
    Pass,
    Send,
    ServerKey,
    State,
    TimedOut,
    client_key,
    server_key,
)

__all__ = ["ClientRecord", "ServerRecord", "TransactionLayer"]

log = logging.getLogger(__name__)

#: requests whose Contact leads to the dialog they make or refresh (RFC 3261 8.1.1.8, 12.2.1.1)
_WITH_CONTACT = frozenset({"INVITE", "SUBSCRIBE", "REFER", "NOTIFY", "UPDATE", "REGISTER"})


class _Record:
    """What both kinds are to the clock."""

    __slots__ = ()
    layer: TransactionLayer
    machine: Any

    def next_timer(self) -> float | None:
        """The machine's next deadline."""
        due: dict[On, float] = self.machine.due
        return min(due.values()) if due else None

    def handle_timer(self, now: float) -> None:
        """The machine's deadline has come."""
        self.machine.handle_timer(now)
        self.layer._drive(self, now)  # type: ignore[arg-type]


class ClientRecord(_Record):
    """A client transaction: its machine, its user, the flow it goes over. `acks` are those of a 2xx by To tag."""

    __slots__ = (
        "acks", "avoid", "fallback", "flow", "key", "layer", "machine", "more", "place", "request", "scheduled",
        "target", "user",
    )  # fmt: skip

    def __init__(
        self, layer: TransactionLayer, request: Request, user: TransactionUser, flow: Flow | None, target: str | None
    ) -> None:
        self.layer = layer
        self.request = request
        self.user = user
        self.flow = flow
        self.target = target
        self.fallback: Flow | None = None
        self.key = client_key(request)
        self.machine: InviteClientTransaction | NonInviteClientTransaction
        self.acks: dict[str, Outgoing] = {}
        self.scheduled: list[Any] | None = None
        self.avoid: frozenset[object] = frozenset()
        self.place: object = None  # the server of the target that the edge chose, and whether there are others
        self.more = False


class ServerRecord(_Record):
    """A server transaction, and the flow that its request came on. `session` is the call it began, if any.

    `way` is the flow of its responses; where that is a connection, `via` says where they go when it is gone. A finished
    transaction only repeats its answer: it lets go of its `request`, which is ``None`` then.
    """

    __slots__ = (
        "final", "flow", "key", "layer", "machine", "merge", "method", "request", "scheduled", "session", "via", "way",
    )  # fmt: skip

    def __init__(self, layer: TransactionLayer, request: Request, flow: Flow, key: ServerKey) -> None:
        self.layer = layer
        self.request: Request = request
        self.method = request.method
        self.flow = flow
        via = request.headers.top_via
        self.via = via if flow.reliable else None
        self.way = way_back(via, flow)
        self.key = key
        self.machine: InviteServerTransaction | NonInviteServerTransaction
        self.merge: tuple[str, str, int, str] | None = None
        self.session: Any = None
        self.final = False
        self.scheduled: list[Any] | None = None


class _Nobody:
    """The user of a CANCEL: what becomes of it shows in the INVITE."""

    def on_response(self, transaction: Any, response: Response, flow: Flow, now: float) -> None:
        pass

    def on_failure(self, transaction: Any, cause: Cause, now: float) -> None:
        pass


_NOBODY = _Nobody()


class _Orphan:
    """A client transaction whose user is gone, with the end of its time."""

    __slots__ = ("_at", "_layer", "_record", "scheduled")

    def __init__(self, layer: TransactionLayer, record: ClientRecord, at: float) -> None:
        self._layer, self._record = layer, record
        self._at: float | None = at
        self.scheduled: list[Any] | None = None

    def next_timer(self) -> float | None:
        return self._at

    def handle_timer(self, now: float) -> None:
        self._at = None
        self._layer._forget(self._record)


class TransactionLayer:
    """Holds every transaction of a stack. `_request_received` is for the layer above."""

    def __init__(self, settings: StackSettings, token: Callable[[], bytes]) -> None:
        self.settings = settings
        self.token = token
        self._clients: dict[tuple[str, str], ClientRecord] = {}
        self._servers: dict[ServerKey, ServerRecord] = {}
        self._merges: dict[tuple[str, str, int, str], ServerRecord] = {}
        self._listeners: dict[str, list[tuple[str, int]]] = {}
        self._introductions: dict[tuple[str, tuple[str, int], bool], Headers] = {}  # for each of the listeners
        self._out: list[Outgoing] = []
        self._events: list[object] = []
        self._deadlines = Deadlines()
        #: see `mcptt_sip.services.Services`
        self.watch: Callable[[Timed], None] = self._deadlines.watch
        #: what the edge does when the peer on a TLS connection says that it listens at this port of its address, and
        #: takes requests on this connection as well (RFC 5923)
        self.on_alias: Callable[[Flow, int], None] | None = None
        #: what the edge does when a request over a connection was never answered
        self.on_silence: Callable[[Flow], None] | None = None

    # --- for the edge ---------------------------------------------------------------------------------

    def add_listener(self, transport: str, host: str, port: int) -> None:
        """An address that peers can reach us at; stands in Via and Contact."""
        self._listeners.setdefault(transport, []).append((host, port))
        self._introductions.clear()

    def _reached_at(self, flow: Flow) -> tuple[str, int]:
        """Where a peer on `flow` reaches us later: the listener of the flow, else one of its transport and family,
        else (a connection of ours without any) the flow itself."""
        local = flow.local
        listeners = self._listeners.get(flow.transport)
        if not listeners or local in listeners:
            return local
        family = ":" in local[0]
        same = [one for one in listeners if (":" in one[0]) == family]
        if not same:
            return local
        # by its host, else by its port (of a socket bound to every address), else the first
        best = min(same, key=lambda one: (one[0] != local[0], one[1] != local[1]))
        # of a socket bound to every address, the one that the peer sees
        return (local[0] if best[0] in ("0.0.0.0", "::") else best[0]), best[1]  # noqa: S104

    @property
    def busy_clients(self) -> int:
        """Client transactions that await a final response."""
        waiting = (State.CALLING, State.TRYING, State.PROCEEDING)
        return sum(record.machine.state in waiting for record in self._clients.values())

    def to_send(self) -> list[Outgoing]:
        """Messages since the last call, in order."""
        out, self._out = self._out, []
        return out

    def bind(
        self, outgoing: Outgoing, flow: Flow, now: float, *, place: object = None, more: bool = False
    ) -> bytes:
        """The octets for a flow that the edge chose for `outgoing.target`; fills Via and Contact.

        `place` is the server it leads to, in any form that compares; `more`: others could be tried after it.
        """
        outgoing.flow = flow
        if not outgoing.is_request:
            return outgoing.octets
        message = outgoing.message
        assert isinstance(message, Request)
        self._address(message, flow)
        outgoing._octets = bytes(message)
        record = outgoing.transaction
        if isinstance(record, ClientRecord):
            record.flow = flow
            record.place, record.more = place, more
            record.machine.bind(flow.reliable, now)
            self.watch(record)
        return outgoing.octets

    def send_failed(self, outgoing: Outgoing, now: float) -> None:
        """`outgoing` could not be sent: another way is tried, or its sender is told."""
        record = outgoing.transaction
        if outgoing.fallback is not None and isinstance(record, ClientRecord):
            # 18.1.1: what did not get through over TCP is tried over UDP all the same
            flow, outgoing.fallback = outgoing.fallback, None
            self.bind(outgoing, flow, now)
            self._out.append(outgoing)
        elif isinstance(record, ServerRecord) and record.via and outgoing.flow and outgoing.flow.reliable:
            # 18.2.2: the connection is gone; another is opened to where the request said it came from
            outgoing.flow, outgoing.target = None, via_target(record.via)
            self._out.append(outgoing)
        elif record is not None:
            record.machine.transport_failed(now)
            self._drive(record, now)

    def events(self) -> list[object]:
        """What the application is to know since the last call, in order."""
        events, self._events = self._events, []
        return events

    def unhandled(self, event: object, error: Exception, now: float) -> None:
        """The application raised this over an event."""

    def next_timer(self) -> float | None:
        """When `handle_timer` is due; it may be earlier than needed."""
        return self._deadlines.next()

    def handle_timer(self, now: float) -> None:
        """Everything that is due by `now`."""
        self._deadlines.fire(now)

    def flow_closed(self, flow: Flow, now: float) -> None:
        """A connection is gone: what waited for an answer over it has failed."""
        raise NotImplementedError

    # --- what sessions and subscriptions need ---------------------------------------------------------

    def emit(self, event: object) -> None:
        """Give an event to the application."""
        self._events.append(event)

    def tag(self) -> str:
        """A fresh tag."""
        return self.token().hex()

    def contact(self, flow: Flow, *, user: str | None = None) -> str:
        """The Contact value that leads back here over `flow`."""
        host, port = self._reached_at(flow)
        user = user or self.settings.user
        uri = f"sip:{user + '@' if user else ''}{format_host(host)}:{port}"
        if flow.transport != "udp":
            # RFC 7118 5.2.4: the URI of a secure WebSocket says ws too
            uri += f";transport={'ws' if flow.transport == 'wss' else flow.transport}"
        params = "".join(
            f";{name}" + ("" if value is None else f"={value}") for name, value in self.settings.contact_params
        )
        return f"<{uri}>{params}"

    def contact_for(self, request: Request, flow: Flow, *, user: str | None = None) -> str:
        """See `mcptt_sip.services.Services`."""
        contact = self.contact(flow, user=user)
        return secured(contact) if _over_sips(request, flow) else contact

    def introduction(self, request: Request, flow: Flow) -> Headers:
        """See `mcptt_sip.services.Services`."""
        here = flow.transport, flow.local, _over_sips(request, flow)
        made = self._introductions.get(here)
        if made is None:
            settings = self.settings
            made = Headers(
                [
                    ("Contact", self.contact_for(request, flow)),
                    ("Allow", ", ".join(settings.allow)),
                    ("Supported", ", ".join(settings.supported)),
                ]
            )
            if settings.user_agent:
                made.add("Server", settings.user_agent)
            if flow.local in self._listeners.get(flow.transport, ()):  # other addresses come and go
                self._introductions[here] = made
        return made

    def start(
        self, request: Request, user: TransactionUser, now: float, *, flow: Flow | None, target: str | None,
        avoid: frozenset[object] = frozenset(),
    ) -> ClientRecord:
        """See `mcptt_sip.services.Services`."""
        fallback = None
        if target is None and flow is None:
            target = next_hop(request)
        if flow is not None:
            self._address(request, flow)
            if flow.transport == "udp" and len(bytes(request)) > self.settings.mtu:
                # 18.1.1: too large for a datagram; a connection to the same place
                host, port = flow.remote
                fallback, flow, target = flow, None, f"sip:{format_host(host)}:{port};transport=tcp"
        else:
            request.headers.remove("via")
            request.headers.add_first("Via", f"SIP/2.0/UDP 0.0.0.0;branch={self._branch()}")
        record = ClientRecord(self, request, user, flow, target)
        record.fallback = fallback
        record.avoid = avoid
        reliable = None if flow is None else flow.reliable
        timers = self.settings.timers
        if request.method == "INVITE":
            record.machine = InviteClientTransaction(request, make_ack, reliable=reliable, now=now, timers=timers)
        else:
            record.machine = NonInviteClientTransaction(request, reliable=reliable, now=now, timers=timers)
        self._clients[record.key] = record
        self._drive(record, now)
        return record

    def start_cancel(self, transaction: Any, request: Request, now: float) -> None:
        """Send the CANCEL of an INVITE transaction where that went, in a transaction of its own."""
        flow = transaction.flow
        record = ClientRecord(self, request, _NOBODY, flow, transaction.target)
        record.machine = NonInviteClientTransaction(
            request, reliable=None if flow is None else flow.reliable, now=now, timers=self.settings.timers
        )
        self._clients[record.key] = record
        self._drive(record, now)

    def destroy(self, transaction: Any) -> None:
        """Forget a client transaction that nobody waits for any more (9.1)."""
        self._forget(transaction)

    def destroy_later(self, transaction: Any, now: float) -> None:
        """See `mcptt_sip.services.Services`."""
        self.watch(_Orphan(self, transaction, now + self.settings.timers.give_up))

    def send_alone(self, request: Request, now: float, *, flow: Flow | None, target: str | None) -> Outgoing:
        """Send a request without a transaction: the ACK of a 2xx. What it gives can be sent again."""
        if flow is not None:
            self._address(request, flow)
        else:
            request.headers.add_first("Via", f"SIP/2.0/UDP 0.0.0.0;branch={self._branch()}")
            target = target or next_hop(request)
        outgoing = Outgoing(request, flow, target)
        self._out.append(outgoing)
        return outgoing

    def send_again(self, outgoing: Outgoing) -> None:
        """Send the same octets once more."""
        self._out.append(outgoing)

    def answer(self, transaction: ServerRecord, response: Response, now: float) -> Outgoing:
        """Respond through a server transaction. What it gives can be sent again."""
        outgoing = Outgoing(response, transaction.way, transaction=transaction, is_request=False)
        transaction.final = transaction.final or response.status >= 200
        transaction.machine.respond(outgoing, response.status, now)
        self._drive(transaction, now)
        state = transaction.machine.state
        if state is State.ACCEPTED or (state is State.COMPLETED and transaction.method != "INVITE"):
            transaction.request = None  # type: ignore[assignment]
            outgoing.settle()
            if state is State.COMPLETED:
                transaction.session = outgoing.transaction = None
        return outgoing

    # --- messages that come in ------------------------------------------------------------------------

    def receive_octets(self, data: bytes, flow: Flow, now: float) -> None:
        """A datagram, or one framed message: parsed, and answered 400, 413, 505 or 513 where that is possible."""
        try:
            message = parse(data, self.settings.limits)
        except ParseError as error:
            log.info("flow=%s not SIP: %s", flow, error)
            partial = error.partial
            if isinstance(partial, Request) and partial.method != "ACK":
                self._answer_alone(partial, error.status, flow, reason=None)
            return
        self.receive(message, flow, now)

    def receive(self, message: Request | Response, flow: Flow, now: float) -> None:
        """A message that is whole and readable."""
        try:
            if isinstance(message, Response):
                self._response_received(message, flow, now)
            else:
                stamp_source(message, flow)
                if self.on_alias and flow.transport == "tls" and "alias" in (via := message.headers.top_via).params:
                    self.on_alias(flow, via.port or 5061)
                self._request_received(message, flow, now)
        except ParseError as error:
            # a header that only this use of the message needed
            log.info("flow=%s %s: %s", flow, message, error)
            if isinstance(message, Request) and message.method != "ACK":
                self._answer_alone(message, error.status, flow, reason=None)

    def _request_received(self, request: Request, flow: Flow, now: float) -> None:
        if request.method == "ACK":
            self._ack_received(request, now)
            return
        key, known = self._find_server(request)
        if known is not None:
            known.machine.receive_again(now)
            self._drive(known, now)
            return
        if len(self._servers) >= self.settings.max_server_transactions:
            self._answer_alone(request, 503, flow, headers=[("Retry-After", "5")])
            return
        to_tag = request.headers.to.tag
        record = self._new_server(request, to_tag, flow, key, now)
        try:
            self._dispatch(record, to_tag, now)
        except ParseError as error:
            # a header that only this use of the request needed; its transaction must not stay open for ever
            log.info("flow=%s %s: %s", flow, request, error)
            self.answer(record, request.response(error.status, to_tag=self.tag()), now)
        if not record.final:
            self.watch(record)  # it has to be answered in time

    def _dispatch(self, record: ServerRecord, to_tag: str | None, now: float) -> None:
        """The first request of a server transaction."""
        raise NotImplementedError

    def _ack_received(self, request: Request, now: float) -> None:
        """An ACK, whatever it is for."""
        raise NotImplementedError

    def _acknowledged(self, request: Request, now: float) -> bool:
        """Whether an ACK belongs to a server transaction: to a final answer other than 2xx (17.2.1). That of a 2xx is
        the core's, also when it has the branch of its INVITE (RFC 6026 7.1)."""
        _, known = self._find_server(request)
        if known is None or request.headers.to.tag is None or known.machine.state is State.ACCEPTED:
            return False
        if isinstance(known.machine, InviteServerTransaction):
            known.machine.acknowledge(now)
        self._drive(known, now)
        return True

    def _response_received(self, response: Response, flow: Flow, now: float) -> None:
        record = self._clients.get(client_key(response))
        if record is None:
            log.debug("call-id=%s stray response %d", response.headers.call_id, response.status)
            return
        record.machine.receive(response, now)
        self._drive(record, now, flow)

    def _find_server(self, request: Request) -> tuple[ServerKey, ServerRecord | None]:
        key = server_key(request)
        return key, self._servers.get(key)

    def _new_server(
        self, request: Request, to_tag: str | None, flow: Flow, key: ServerKey, now: float
    ) -> ServerRecord:
        record = ServerRecord(self, request, flow, key)
        timers = self.settings.timers

        def trying() -> Outgoing:
            return Outgoing(request.response(100), record.way, transaction=record, is_request=False)

        kind = InviteServerTransaction if request.method == "INVITE" else NonInviteServerTransaction
        record.machine = kind(trying, reliable=flow.reliable, now=now, timers=timers)
        self._servers[key] = record
        headers = request.headers
        if to_tag is None and request.method != "CANCEL":
            record.merge = (headers.call_id, headers.from_.tag or "", headers.cseq.number, request.method)
            self._merges.setdefault(record.merge, record)
        return record

    def _answer_alone(
        self, request: Request, status: int, flow: Flow, *, headers: HeaderItems = (), reason: str | None = None
    ) -> None:
        """A response without a transaction, to what cannot have one."""
        if "via" not in request.headers:
            log.info("flow=%s not answered: nothing could match a response without Via", flow)
            return
        try:
            stamp_source(request, flow)
        except ParseError as error:
            log.info("flow=%s answered where it came from: %s", flow, error)
        try:
            response = request.response(status, reason, headers=headers, to_tag=self.tag())
            self._out.append(Outgoing(response, flow, octets=bytes(response), is_request=False))
        except SipError as error:
            log.info("flow=%s not answered: %s", flow, error)

    # --- the machines ---------------------------------------------------------------------------------

    def _drive(self, record: ClientRecord | ServerRecord, now: float, flow: Flow | None = None) -> None:
        """Carries out what a machine says, until it says nothing more."""
        machine = record.machine
        while machine.said:
            for event in machine.events():
                if isinstance(event, Send):  # for each message: a match statement costs twice as much
                    self._put(record, event.message)
                elif isinstance(event, Pass):
                    assert isinstance(record, ClientRecord)
                    assert flow is not None or record.flow is not None
                    record.user.on_response(record, event.message, flow or record.flow, now)  # type: ignore[arg-type]
                else:
                    cause = Cause.TIMEOUT if isinstance(event, TimedOut) else Cause.TRANSPORT
                    self._failed(record, cause, now)
        if machine.state is State.TERMINATED:
            self._forget(record)
        elif machine.state is machine.RESTS_IN:
            self._deadlines.watch_last(record)
        else:
            self.watch(record)

    def _failed(self, record: ClientRecord | ServerRecord, cause: Cause, now: float) -> None:
        if isinstance(record, ClientRecord):
            if cause is Cause.TIMEOUT and self.on_silence and record.flow is not None and record.flow.reliable:
                self.on_silence(record.flow)
            record.user.on_failure(record, cause, now)
        elif record.session is not None and cause is Cause.TRANSPORT and record.method == "INVITE":
            record.session.transport_failed(record, now)

    def _put(self, record: ClientRecord | ServerRecord, message: Any) -> None:
        if isinstance(message, Outgoing):
            self._out.append(message)
        elif isinstance(record, ClientRecord):
            outgoing = Outgoing(
                message, record.flow, record.target, transaction=record, fallback=record.fallback, avoid=record.avoid
            )
            record.fallback = None
            self._out.append(outgoing)

    def _forget(self, record: ClientRecord | ServerRecord) -> None:
        self._deadlines.drop(record)
        record.machine.release()
        if isinstance(record, ClientRecord):
            record.user = _NOBODY  # who points here too: no garbage in a circle
            if self._clients.get(record.key) is record:
                del self._clients[record.key]
            return
        if self._servers.get(record.key) is record:
            del self._servers[record.key]
        if record.merge is not None and self._merges.get(record.merge) is record:
            del self._merges[record.merge]

    def _flow_gone(self, flow: Flow, now: float) -> None:
        """Requests that wait for an answer over a flow that is gone have failed."""
        for record in [r for r in self._clients.values() if r.flow and r.flow.id == flow.id and r.flow == flow]:
            if record.machine.state.name in ("CALLING", "TRYING", "PROCEEDING"):
                user = record.user
                self._forget(record)
                user.on_failure(record, Cause.TRANSPORT, now)

    # --- Via and Contact ------------------------------------------------------------------------------

    def _branch(self) -> str:
        return BRANCH_COOKIE + self.token().hex()

    def _address(self, request: Request, flow: Flow) -> None:
        """Via and Contact for a flow; the branch stays."""
        headers = request.headers
        branch = headers.top_via.branch if "via" in headers else None
        host, port = self._reached_at(flow)
        headers.remove("via")
        via = f"SIP/2.0/{flow.transport.upper()} {format_host(host)}:{port};branch={branch or self._branch()};rport"
        # RFC 5923 5: requests of the peer to our listener may come on this connection
        headers.add_first("Via", f"{via};alias" if flow.transport == "tls" and "tls" in self._listeners else via)
        if request.method in _WITH_CONTACT and "contact" not in headers:
            contact = self.contact(flow)
            if request.uri.scheme == "sips" and flow.transport in ("tls", "wss"):
                contact = secured(contact)  # 8.1.1.8
            headers.add("Contact", contact)
        if self.settings.user_agent and "user-agent" not in headers:
            headers.add("User-Agent", self.settings.user_agent)


def _over_sips(request: Request, flow: Flow) -> bool:
    """Whether the Contact of the answer is a SIPS URI (12.1.1)."""
    return flow.transport in ("tls", "wss") and wants_sips(request)
