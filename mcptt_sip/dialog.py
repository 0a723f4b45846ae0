# SPDX-License-Identifier: Apache-2.0
"""Dialogs (RFC 3261 12): identity, route set, sequence numbers, remote target; usages share one (RFC 5057).

:RFC 5057: yes; dialog usages
"""

from __future__ import annotations

from typing import Any, ClassVar

from mcptt_sip.errors import ParseError
from mcptt_sip.field_lines import HeaderItems, Headers
from mcptt_sip.flow import Flow
from mcptt_sip.grammar import Params
from mcptt_sip.headers import NameAddr
from mcptt_sip.message import Request, Response
from mcptt_sip.uri import SipUri, is_address, parse_uri

__all__ = ["Dialog", "DialogId", "route_request"]

#: (Call-ID, local tag, remote tag)
DialogId = tuple[str, str, str]

#: ports that go unsaid (RFC 3261 19.1.2, RFC 7118 5)
_PORTS = {"udp": 5060, "tcp": 5060, "tls": 5061, "ws": 80, "wss": 443}
#: what a transport parameter may mean as well: RFC 3261 26.2.2, RFC 7118 5.2.4
_SECURED = {"tcp": "tls", "ws": "wss"}
#: requests whose Contact, and whose 2xx's Contact, changes the remote target (RFC 6665, 3311, 3515, 5057 5)
TARGET_REFRESH = frozenset({"INVITE", "UPDATE", "SUBSCRIBE", "NOTIFY", "REFER"})


class Dialog:
    """One peer-to-peer relationship. `local` and `remote` are the From and To of requests this side sends, tags
    included; `route_set` holds name-addrs as text in the order in which requests carry them."""

    __slots__ = (
        "call_id",
        "confirmed",
        "flow",
        "initiator",
        "local",
        "local_cseq",
        "local_tag",
        "refers",
        "remote",
        "remote_cseq",
        "remote_tag",
        "remote_target",
        "route_set",
        "secure",
        "sent_by",
        "session",
        "subscriptions",
    )
    SNAPSHOT: ClassVar[tuple[str, ...]] = (
        "call_id", "local_tag", "remote_tag", "local", "remote", "remote_target", "route_set",
        "local_cseq", "remote_cseq", "secure", "confirmed", "initiator",
    )  # fmt: skip

    def __init__(
        self,
        *,
        call_id: str,
        local: str,
        remote: str,
        local_tag: str,
        remote_tag: str,
        remote_target: str,
        route_set: tuple[str, ...] = (),
        local_cseq: int = 0,
        remote_cseq: int | None = None,
        secure: bool = False,
        confirmed: bool = False,
        initiator: bool = False,
        flow: Flow | None = None,
    ) -> None:
        self.call_id = call_id
        self.local = local
        self.remote = remote
        self.local_tag = local_tag
        self.remote_tag = remote_tag
        self.remote_target = remote_target
        self.route_set = tuple(route_set)
        self.local_cseq = local_cseq
        self.remote_cseq = remote_cseq
        self.secure = secure
        self.confirmed = confirmed  # False: early
        self.initiator = initiator  # whether this side sent the request that made it
        self.flow = flow
        #: where the peer itself says to be, when no proxy stands between: the sent-by of its only Via
        self.sent_by: tuple[str, int] | None = None
        self.session: Any = None  # the INVITE usage
        self.refers = 0  # REFERs taken in this dialog (RFC 3515 2.4.6)
        self.subscriptions: tuple[Any, ...] = ()  # the SUBSCRIBE and REFER usages

    @classmethod
    def uac(cls, request: Request, response: Response, flow: Flow | None) -> Dialog:
        """From the request this side sent and a response with a To tag (12.1.2)."""
        headers = response.headers
        contacts = headers.contact
        target = str(contacts[0].uri) if contacts else str(request.uri)
        return cls(
            call_id=request.headers.call_id,
            local=str(request.headers.from_),
            remote=str(headers.to),
            local_tag=request.headers.from_.tag or "",
            remote_tag=headers.to.tag or "",
            remote_target=target,
            route_set=tuple(reversed(headers.values("record-route"))),
            local_cseq=request.headers.cseq.number,
            secure=_secure(request, flow),
            confirmed=response.status >= 200,
            initiator=True,
            flow=flow,
        )

    @classmethod
    def uas(cls, request: Request, local_tag: str, flow: Flow | None) -> Dialog:
        """From a request that came in (12.1.1). Without Contact (RFC 2543) the From URI is the target."""
        headers = request.headers
        contacts = headers.contact
        target = contacts[0].uri if contacts else headers.from_.uri
        if not isinstance(target, SipUri):
            raise ParseError("the Contact holds no SIP URI")
        to, from_ = headers.to, headers.from_
        made = cls(
            call_id=headers.call_id,
            local=str(to) if to.tag else f"{to};tag={local_tag}",
            remote=str(from_),
            local_tag=local_tag,
            remote_tag=from_.tag or "",
            remote_target=str(target),
            route_set=tuple(headers.values("record-route")) if "record-route" in headers.names else (),
            remote_cseq=headers.cseq.number,
            secure=_secure(request, flow),
        )
        made.heard(request, flow)
        return made

    @property
    def id(self) -> DialogId:
        """What finds it."""
        return self.call_id, self.local_tag, self.remote_tag

    @property
    def unused(self) -> bool:
        """Whether no usage holds it any more (RFC 5057 3)."""
        return self.session is None and not self.subscriptions

    def confirm(self, response: Response) -> None:
        """A 2xx: the route set is computed anew, the target refreshed (13.2.2.4)."""
        if not self.confirmed:
            self.route_set = tuple(reversed(response.headers.values("record-route")))
            self.confirmed = True
        self.refresh_target(response)

    def refresh_target(self, message: Request | Response) -> None:
        """A target refresh (12.2.1.2, 12.2.2): the Contact of `message` becomes the remote target."""
        contacts = message.headers.contact
        if contacts and isinstance(contacts[0].uri, SipUri):
            self.remote_target = str(contacts[0].uri)

    def heard(self, request: Request, flow: Flow | None) -> None:
        """A request of the peer came over `flow`."""
        self.flow = flow
        via = request.headers.top_via
        alone = request.headers.one_via
        self.sent_by = (via.host, via.port or _PORTS.get(via.transport.lower(), 5060)) if alone else None

    @property
    def way(self) -> Flow | None:
        """The flow for the next request, or ``None`` when it has to be found by the next hop (RFC 3261 12.2.1.1).

        The flow that the peer was last heard on is used as long as the next hop is there: it is that address, or the
        address that the peer itself gives as its own (behind a NAT, or over its connection), or a name.
        """
        flow = self.flow
        if flow is None:
            return None
        try:
            hop = NameAddr.parse(self.route_set[0]).uri if self.route_set else parse_uri(self.remote_target)
        except ParseError:
            return flow
        if not isinstance(hop, SipUri) or not is_address(hop.host):
            return flow
        if hop.transport is not None and flow.transport not in (hop.transport, _SECURED.get(hop.transport)):
            return None
        there = hop.host, hop.port or _PORTS.get(flow.transport, 5060)
        return flow if there in (flow.remote, self.sent_by) else None

    def in_order(self, request: Request) -> bool:
        """Take the CSeq of a request; ``False`` when it is lower than one before: 500 (12.2.2)."""
        number = request.headers.cseq.number
        if self.remote_cseq is not None and number < self.remote_cseq:
            return False
        self.remote_cseq = number
        return True

    def request(
        self,
        method: str,
        headers: HeaderItems = (),
        body: bytes = b"",
        *,
        cseq: int | None = None,
    ) -> Request:
        """A request inside the dialog (12.2.1.1): route set, From, To, Call-ID, CSeq. ACK and CANCEL give the
        `cseq` of their INVITE; every other counts on."""
        if cseq is None:
            self.local_cseq += 1
            cseq = self.local_cseq
        made = Headers(
            [
                ("From", self.local),
                ("To", self.remote),
                ("Call-ID", self.call_id),
                ("CSeq", f"{cseq} {method}"),
                ("Max-Forwards", "70"),
                *headers,
            ]
        )
        request = Request(method, self.remote_target, made, body)
        route_request(request, self.route_set)
        return request

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on after a restart, as JSON-able values. The flow is not among it."""
        data = {name: getattr(self, name) for name in self.SNAPSHOT}
        data["route_set"] = list(self.route_set)
        return data

    @classmethod
    def restore(cls, data: dict[str, Any], flow: Flow | None = None) -> Dialog:
        """The dialog of a `snapshot`."""
        unknown = data.keys() ^ set(cls.SNAPSHOT)
        if unknown:
            raise ValueError(f"not a dialog snapshot: {', '.join(sorted(unknown))}")
        return cls(**data, flow=flow)

    def __repr__(self) -> str:
        return f"<Dialog {self.call_id} {self.local_tag} {self.remote_tag}>"


def _secure(request: Request, flow: Flow | None) -> bool:
    return request.uri.scheme == "sips" and flow is not None and flow.transport in ("tls", "wss")


def route_request(request: Request, route_set: tuple[str, ...]) -> None:
    """Put a route set on a request whose URI is the remote target; a first hop without ``lr`` is a strict
    router, and takes the Request-URI (12.2.1.1)."""
    if not route_set:
        return
    first = NameAddr.parse(route_set[0]).uri
    if isinstance(first, SipUri) and "lr" not in first.params:
        routes = [*route_set[1:], f"<{request.uri}>"]
        # "stripping any parameters that are not allowed in a Request-URI" (table 1: method, headers)
        request.uri = first.replace(headers=(), params=Params(first.params.without("method")))
        request.strictly_routed = True
    else:
        routes = list(route_set)
    for route in routes:
        request.headers.add("Route", route)
