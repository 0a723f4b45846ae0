# SPDX-License-Identifier: Apache-2.0
"""A stateful proxy (RFC 3261 16); sans-IO, driven by `SipEndpoint` as a `SipStack` is.

::

    proxy = SipProxy(token=lambda: os.urandom(8))
    endpoint = SipEndpoint(proxy, on_event=handle)

    def handle(event, now):
        match event:
            case RequestToForward(forwarding) if forwarding.request.method == "REGISTER":
                forwarding.respond(...)
            case RequestToForward(forwarding):
                forwarding.to([Target("sip:bob@192.0.2.4")], now)

Requests in a dialog that was record-routed go on by themselves. What a proxy decides by is the application's: whose
requests it takes (`DigestAuthenticator`), and where they go (`Registrar`).

:RFC 5393: yes; loops are found, and Max-Breadth says how many targets are tried at once
:RFC 5658: yes
:RFC 4320: yes
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from mcptt_sip.errors import ParseError
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.flow import Flow
from mcptt_sip.forwarding import Branch, Forwarding, RequestToForward, Target, copy_for
from mcptt_sip.grammar import format_host
from mcptt_sip.headers import Via
from mcptt_sip.layer import ClientRecord, ServerRecord, TransactionLayer
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Outgoing
from mcptt_sip.services import StackSettings
from mcptt_sip.stack import FlowLost
from mcptt_sip.uri import SipUri

__all__ = ["Forwarding", "ProxySettings", "RequestToForward", "SipProxy", "Target"]

log = logging.getLogger(__name__)

@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What may be set; times in seconds."""

    #: hosts and domains, beside the addresses of its listeners, whose Route entries are this proxy's own
    names: frozenset[str] = frozenset()
    #: whether dialogs stay on this way (16.6 step 4)
    record_route: bool = True
    #: an INVITE that has been told to ring so long is cancelled (timer C, 16.6 step 11: more than three minutes)
    timer_c: float = 181.0
    #: option tags of Proxy-Require that it understands
    understood: frozenset[str] = frozenset()
    #: makes what a dialog's Route entries bear; one that is kept lets dialogs outlive a restart. None: fresh octets
    secret: bytes | None = field(default=None, repr=False)
    #: places that one request is sent to at the most
    max_branches: int = 16
    #: how many branches a request may have at a time, here and further on (RFC 5393 5.3.3), when it does not ask for
    #: fewer; of more targets the rest wait until others have failed
    max_breadth: int = 60

    def __post_init__(self) -> None:
        if self.max_breadth < 1:
            raise ValueError("a request needs a breadth of 1 to go anywhere")
        if self.timer_c <= 180:
            raise ValueError("timer C must be more than three minutes")


class SipProxy(TransactionLayer):
    """Takes requests, asks the application where they go, and sends them on.

    :param token: gives 8 or more fresh random octets
    """

    def __init__(
        self, settings: StackSettings | None = None, *, token: Callable[[], bytes],
        proxying: ProxySettings | None = None,
    ) -> None:  # fmt: skip
        super().__init__(settings or StackSettings(), token)
        self.proxying = proxying or ProxySettings()
        #: this machine's addresses that peers were seen to use
        self._addresses: set[str] = set()
        self._mark = ""
        self._secret = self.proxying.secret or b"".join(token() for _ in range(4))

    def flow_closed(self, flow: Flow, now: float) -> None:
        """A connection is gone: what waited for an answer over it has failed."""
        self._flow_gone(flow, now)
        self.emit(FlowLost(flow))

    def unhandled(self, event: object, error: Exception, now: float) -> None:
        """See :meth:`TransactionLayer.unhandled`: a request that was not decided about is refused, or its transaction
        would stay for ever. Such a one may have credentials that cannot be read."""
        if isinstance(event, RequestToForward) and not event.forwarding.decided:
            event.forwarding.respond(error.status if isinstance(error, ParseError) else 500, now=now)

    # --- requests ---------------------------------------------------------------------------------------

    def _dispatch(self, record: ServerRecord, to_tag: str | None, now: float) -> None:
        request = record.request
        if request.method == "CANCEL":
            self._cancel_received(record, now)
            return
        self._addresses.add(record.flow.local[0])
        request.headers.values("record-route")  # what cannot be read is 400 here, not when it is being sent on
        mark = loop_mark(request)
        refusal = self._refusal_of(request, mark)
        if refusal is not None:
            status, headers = refusal
            self.answer(record, request.response(status, headers=headers, to_tag=self.tag()), now)
            return
        routed = self._take_off_own_routes(request)
        record.session = forwarding = Forwarding(self, record, request, mark)
        if to_tag is not None and routed:
            forwarding.follow(now)
        else:
            self.emit(RequestToForward(forwarding))

    def _refusal_of(self, request: Request, mark: str) -> tuple[int, HeaderItems] | None:
        """16.3: status and headers, or ``None``."""
        headers = request.headers
        if request.uri.scheme not in ("sip", "sips", "tel"):
            return 416, ()
        if headers.max_forwards == 0:
            return 483, ()
        if self._has_been_here(request, mark):
            return 482, ()
        if self.breadth(request) == 0:
            return 440, ()
        asked = headers.values("Proxy-Require")
        unknown = [tag for tag in asked if tag.strip().lower() not in self.proxying.understood]
        if unknown:
            return 420, [("Unsupported", ", ".join(unknown))]
        return None

    def breadth(self, request: Request) -> int:
        """How many branches a request may have at a time (RFC 5393 5.3.3)."""
        asked = request.headers.max_breadth
        return self.proxying.max_breadth if asked is None else min(asked, self.proxying.max_breadth)

    def _has_been_here(self, request: Request, mark: str) -> bool:
        """RFC 5393 4.2: whether this proxy sent the same request on before."""
        vias = request.headers.via
        return any((via.branch or "").endswith(f".{mark}") and self._is_here(via.host, via.port) for via in vias)

    def _cancel_received(self, record: ServerRecord, now: float) -> None:
        """16.10. What was never sent on in a transaction is not cancelled either: 481."""
        invite = self._servers.get((*record.key[:-1], "INVITE"))
        status = 481 if invite is None else 200
        self.answer(record, record.request.response(status, to_tag=self.tag()), now)
        if invite is not None and isinstance(invite.session, Forwarding):
            invite.session.cancel(now)

    def _ack_received(self, request: Request, now: float) -> None:
        """The ACK of a 2xx goes on without any transaction (16.11); that of another final ends here.

        One that is for this proxy and for none of its transactions (of an answer that it gave without any: 400, 503)
        would be sent to itself until its Max-Forwards is used up."""
        mark = loop_mark(request)
        if self._acknowledged(request, now) or request.headers.max_forwards == 0 or self._has_been_here(request, mark):
            return
        if not self._take_off_own_routes(request) and self.proxying.record_route:
            return  # of no dialog that has come this way
        ack = copy_for(request, Target(str(request.uri)), self.proxying.max_breadth)
        _postprocess(ack)
        self._mark = mark
        self.send_alone(ack, now, flow=None, target=None)

    def _take_off_own_routes(self, request: Request) -> bool:
        """16.4: whether the request came by a Route that this proxy has given to its dialog.

        Anybody can make up a Route to this place: who has no right here must not be relayed by it (26.1.1).
        """
        headers, found, given = request.headers, False, False
        routes = headers.route
        if routes and isinstance(request.uri, SipUri) and "lr" in request.uri.params and self._is_own(request.uri):
            # a strict router before us put the next hop where the target belongs
            given = self._is_given(request.uri, headers)
            request.uri = routes.pop().uri
            found = True
        while routes and self._is_own(routes[0].uri):
            given = given or self._is_given(routes[0].uri, headers)
            routes, found = routes[1:], True
        if found:
            headers.remove("route")
            headers.extend(("Route", str(route)) for route in routes)
        return given

    def _ticket(self, call_id: str, tag: str | None) -> str:
        """What a dialog's Route entry bears, of the tag of who began it."""
        return hmac.digest(self._secret, f"{call_id} {tag}".encode(), "sha256")[:10].hex()

    def _is_given(self, uri: object, headers: Headers) -> bool:
        shown = uri.user if isinstance(uri, SipUri) else None
        tickets = [self._ticket(headers.call_id, tag) for tag in (headers.from_.tag, headers.to.tag)]
        return shown is not None and any(hmac.compare_digest(shown.encode(), known.encode()) for known in tickets)

    def _is_own(self, uri: object) -> bool:
        return isinstance(uri, SipUri) and self._is_here(uri.host, uri.port)

    def _is_here(self, host: str, port: int | None) -> bool:
        if host.lower() in self.proxying.names:
            return True
        host, port = host.strip("[]"), port or 5060
        # of a socket that is bound to every address, each that peers were seen to use is one
        hosts = (host, "0.0.0.0", "::") if host in self._addresses else (host,)  # noqa: S104
        return any((one, port) in listeners for listeners in self._listeners.values() for one in hosts)

    def _reached_at(self, flow: Flow) -> tuple[str, int]:
        """See :meth:`TransactionLayer._reached_at`; what stands in Via and Record-Route is known again."""
        at = super()._reached_at(flow)
        self._addresses.add(at[0])
        return at

    # --- on the way --------------------------------------------------------------------------------------

    def send_on(
        self, branch: Branch, request: Request, flow: Flow | None, mark: str, now: float
    ) -> ClientRecord:
        """Sends one copy in a transaction of its own, with this proxy's Via above the others."""
        _postprocess(request)
        below = request.headers.values("via")
        request.headers.remove("via")
        self._mark = mark
        if flow is not None:
            self._record_route(branch, request, flow)
        record = self.start(request, branch, now, flow=flow, target=None)
        for via in below:
            request.headers.add("Via", via)
        return record

    def bind(
        self, outgoing: Outgoing, flow: Flow, now: float, *, place: object = None, more: bool = False
    ) -> bytes:
        """See :meth:`TransactionLayer.bind`: the way is known, and what Record-Route says of it."""
        record, message = outgoing.transaction, outgoing.message
        if isinstance(record, ClientRecord) and isinstance(record.user, Branch) and isinstance(message, Request):
            self._record_route(record.user, message, flow)
        return super().bind(outgoing, flow, now, place=place, more=more)

    def _record_route(self, branch: Branch, request: Request, flow: Flow) -> None:
        """16.6 step 4; two lines where the way changes its transport or address family (RFC 5658)."""
        if not self.proxying.record_route or request.method not in _WITH_DIALOG:
            return
        headers = request.headers
        others = headers.values("record-route")[branch.recorded :]
        headers.remove("record-route")
        secure = request.uri.scheme == "sips" or any(
            isinstance(route.uri, SipUri) and route.uri.scheme == "sips" for route in headers.route[:1]
        )
        ticket = self._ticket(headers.call_id, headers.from_.tag)
        ours = list(dict.fromkeys(self._route_to(one, secure, ticket) for one in (flow, branch.forwarding.flow)))
        headers.extend(("Record-Route", line) for line in (*ours, *others))
        branch.recorded = len(ours)

    def _route_to(self, flow: Flow, secure: bool, ticket: str) -> str:
        """``secure``: the request is for a SIPS URI, so this has to be one (16.6 step 4), which says TLS by itself."""
        host, port = self._reached_at(flow)
        scheme = "sips" if secure and flow.transport in ("tls", "wss") else "sip"
        kind = {"udp": "", "wss": ";transport=ws", "tls": "" if scheme == "sips" else ";transport=tls"}.get(
            flow.transport, f";transport={flow.transport}"
        )
        return f"<{scheme}:{ticket}@{format_host(host)}:{port}{kind};lr>"

    def _branch(self) -> str:
        mark, self._mark = self._mark, ""
        return f"{super()._branch()}.{mark}" if mark else super()._branch()

    def _address(self, request: Request, flow: Flow) -> None:
        """This proxy's Via for a flow; the others, the Contact and all else stay as they are."""
        own, *below = request.headers.values("via") or [""]
        branch = Via.parse(own).branch if own else self._branch()
        host, port = self._reached_at(flow)
        request.headers.remove("via")
        request.headers.add_first(
            "Via", f"SIP/2.0/{flow.transport.upper()} {format_host(host)}:{port};branch={branch};rport"
        )
        for via in below:
            request.headers.add("Via", via)

    # --- responses ---------------------------------------------------------------------------------------

    def _response_received(self, response: Response, flow: Flow, now: float) -> None:
        """What belongs to no transaction is not sent on (RFC 6026 7.3), nor is what has no Via but ours, or others that
        cannot be read (16.7 step 3): whoever has learned a branch could else make this proxy write to anybody."""
        if len(response.headers.values("via")) < 2 and response.headers.cseq.method != "CANCEL":
            log.info("call-id=%s an answer %d for nobody", response.headers.call_id, response.status)
            return
        super()._response_received(response, flow, now)

    def send_back(self, response: Response, record: ServerRecord) -> None:
        """A response without a transaction, the way of its request."""
        self._out.append(Outgoing(response, record.way, is_request=False))


#: what makes a dialog, and so has a way to be remembered
_WITH_DIALOG = frozenset({"INVITE", "SUBSCRIBE", "REFER", "NOTIFY", "UPDATE"})


def loop_mark(request: Request) -> str:
    """What a request is known by when it comes back unchanged (RFC 5393 4.2.2), in a branch parameter."""
    headers = request.headers
    parts = (
        str(request.uri), headers.from_.tag, headers.to.tag, headers.call_id, headers.cseq.number,
        headers.values("route"), headers.values("proxy-require"), headers.values("proxy-authorization"),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _postprocess(request: Request) -> None:
    """16.6 step 6: a strict router as the next hop wants itself in the Request-URI."""
    routes = request.headers.route
    if routes and isinstance(first := routes[0].uri, SipUri) and "lr" not in first.params:
        rest = [str(route) for route in routes[1:]]
        request.headers.remove("route")
        request.headers.extend(("Route", value) for value in (*rest, f"<{request.uri}>"))
        request.uri = first
        request.strictly_routed = True
