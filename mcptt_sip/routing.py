# SPDX-License-Identifier: Apache-2.0
"""What a transaction sends by itself, and where messages go: ACK and CANCEL, the next hop, the way of a response
(RFC 3261 8.1.2, 9.1, 17.1.1.3, 18.2; RFC 3581).
"""

from __future__ import annotations

from mcptt_sip.field_lines import Headers
from mcptt_sip.flow import Flow
from mcptt_sip.grammar import format_host
from mcptt_sip.headers import NameAddr, Via
from mcptt_sip.message import Request, Response
from mcptt_sip.uri import SipUri

__all__ = [
    "make_ack", "make_cancel", "next_hop", "secured", "stamp_source", "via_target", "wants_sips", "way_back",
]  # fmt: skip


def make_ack(request: Request, response: Response) -> Request:
    """The ACK of a 300-699 (17.1.1.3): inside the INVITE's transaction, with its top Via."""
    ack = Request("ACK", request.uri, Headers())
    ack.headers.add("Via", request.headers.top_via)
    for name in ("route", "from"):
        ack.headers.copy_from(request.headers, name)
    ack.headers.copy_from(response.headers, "to")
    ack.headers.copy_from(request.headers, "call-id")
    ack.headers.add("CSeq", f"{request.headers.cseq.number} ACK")
    ack.headers.add("Max-Forwards", "70")
    return ack


def make_cancel(invite: Request) -> Request:
    """CANCEL (9.1): same Request-URI, Call-ID, To, From, CSeq number, top Via and Route as the INVITE."""
    cancel = Request("CANCEL", invite.uri)
    cancel.headers.add("Via", invite.headers.top_via)
    for name in ("route", "from", "to", "call-id"):
        cancel.headers.copy_from(invite.headers, name)
    cancel.headers.add("CSeq", f"{invite.headers.cseq.number} CANCEL")
    cancel.headers.add("Max-Forwards", "70")
    return cancel


def next_hop(request: Request) -> str:
    """The URI to resolve: the first loose route, else the Request-URI (8.1.2), which is that of the strict router where
    one comes first."""
    if request.strictly_routed:
        return str(request.uri)
    for route in request.headers.get_all("route")[:1]:
        first = NameAddr.parse(route).uri
        if isinstance(first, SipUri) and "lr" in first.params:
            return str(first)
    return str(request.uri)


def stamp_source(request: Request, flow: Flow) -> None:
    """received and rport in the top Via (18.2.1, RFC 3581 4)."""
    via: Via = request.headers.top_via
    host, port = flow.remote
    changed = via
    if "rport" in via.params:
        changed = changed.with_param("rport", str(port)).with_param("received", format_host(host))
    elif via.host.lower() != host:
        changed = changed.with_param("received", format_host(host))
    if changed is not via:
        request.headers.replace_value("Via", changed)


def wants_sips(request: Request) -> bool:
    """Whether the Contact of its answer has to be a SIPS URI (12.1.1)."""
    headers = request.headers
    if request.uri.scheme == "sips":
        return True
    told = headers.record_route or headers.contact
    return bool(told) and told[0].uri.scheme == "sips"


def secured(contact: str) -> str:
    """A Contact value with a SIPS URI, which says TLS by itself (RFC 5630 3.1.4)."""
    return contact.replace("<sip:", "<sips:", 1).replace(";transport=tls", "", 1)


def via_target(via: Via) -> str:
    """Where a response goes when its connection is gone (18.2.2): received, or sent-by, with the port of sent-by."""
    port = "" if via.port is None else f":{via.port}"
    transport = "ws" if via.transport == "WSS" else via.transport.lower()
    return f"sip:{format_host(via.received or via.host)}{port};transport={transport}"


def way_back(via: Via, flow: Flow) -> Flow:
    """The flow of the responses (18.2.2): the connection; for a datagram, the source's address, with the port of
    the top Via unless the sender asked for its own (RFC 3581). A maddr is not followed: with it anybody could have
    answers sent to somebody else."""
    if flow.reliable or "rport" in via.params:
        return flow
    port = via.port or 5060
    return flow if port == flow.remote[1] else flow.toward((flow.remote[0], port))
