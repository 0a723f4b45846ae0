# SPDX-License-Identifier: Apache-2.0
"""The 49 messages of RFC 4475 and the 12 of RFC 5118: what is read of them, and how a server answers them.

Where `manifest.json` allows several answers, `ANSWERS` pins the one that this stack gives. No expectation of the
manifest had to be overruled by an RFC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcptt_sip.body import parse_multipart
from mcptt_sip.errors import ParseError
from mcptt_sip.grammar import Params
from mcptt_sip.headers import NameAddr
from mcptt_sip.message import KeepAlive, MessageFramer, Request, Response, parse
from mcptt_sip.uri import AbsoluteUri, SipUri
from media.sdp import SessionDescription
from tests.sip.torture import Server, cases, fits, readable

CASES = {case.name: case for case in cases()}
NAMES = list(CASES)
TRANSPORTS = ["udp", "tcp"]

#: messages that are refused when they are read, and with what; all others are read
REFUSED = {
    "badinv01": 400, "clerr": 400, "ncl": 400, "scalar02": 400, "scalarlg": 400, "quotbal": 400, "ltgtruri": 400,
    "lwsruri": 400, "lwsstart": 400, "trws": 400, "escruri": 400, "baddn": 400, "badvers": 505, "mismatch01": 400,
    "mismatch02": 400, "bigcode": 400, "insuf": 400, "multi01": 400, "mcl01": 400, "ipv6-bad": 400,
}  # fmt: skip
#: the last response of a server that takes what it can; 200 where nothing stands here, ``None``: silence
ANSWERS: dict[str, int | None] = {
    "wsinv": 481, "intmeth": 501, "esc02": 501, "unreason": None, "noreason": None, "badinv01": 400, "clerr": 400,
    "ncl": 400, "scalar02": 400, "scalarlg": None, "quotbal": 400, "ltgtruri": 400, "lwsruri": 400, "lwsstart": 400,
    "trws": 400, "escruri": 400, "regbadct": 400, "baddn": 400, "badvers": 505, "mismatch01": 400, "mismatch02": 400,
    "bigcode": None, "insuf": 400, "unkscm": 416, "novelsc": 416, "unksm2": 400, "bext01": 420, "invut": 415,
    "multi01": 400, "mcl01": 400, "bcast": None, "sdp01": 406, "ipv6-bad": 400, "via-received-param-with-delim": 481,
    "mult-ip-in-header": 481,
}  # fmt: skip
#: where a stream makes a difference: the message never ends, or has no length
STREAM_ANSWERS: dict[str, int | None] = {"clerr": None, "baddn": None, "inv2543": 400}


def _sip(value: NameAddr) -> SipUri:
    assert isinstance(value.uri, SipUri)
    return value.uri


def _uri(message: Request | Response) -> SipUri:
    assert isinstance(message, Request) and isinstance(message.uri, SipUri)
    return message.uri


def _unescaped(uri: SipUri) -> dict[str, str | None]:
    return {name: None if value is None else uri.param(name) for name, value in uri.params}


def _pairs(params: Params) -> dict[str, str | None]:
    return {name: None if value is None else params.get(name) for name, value in params}


def _parts(message: Request | Response) -> list[Any]:
    return parse_multipart(str(message.headers.content_type), message.body)


def _connection(message: Request | Response) -> str | None:
    lines = message.body.decode().split("\r\n")
    return next((line.split()[2] for line in lines if line.startswith("c=")), None)


#: what each name in `checks` means; those that speak of the answer are in `test_answer_has`
READ: dict[str, Callable[[Any], Any]] = {
    "method": lambda m: m.method,
    "cseq": lambda m: m.headers.cseq.number,
    "max_forwards": lambda m: m.headers.max_forwards,
    "call_id": lambda m: m.headers.call_id,
    "status": lambda m: m.status,
    "reason": lambda m: m.reason,
    "reason_utf8": lambda m: m.reason.encode("utf-8").decode("utf-8") == m.reason and not m.reason.isascii(),
    "to_tag": lambda m: m.headers.to.tag,
    "from_tag": lambda m: m.headers.from_.tag,
    "to_display": lambda m: m.headers.to.display,
    "from_display": lambda m: m.headers.from_.display,
    "to_user": lambda m: _sip(m.headers.to).user,
    "from_user": lambda m: _sip(m.headers.from_).user,
    "to_params": lambda m: _pairs(m.headers.to.params),
    "via_count": lambda m: len(m.headers.via),
    "via_hosts": lambda m: [via.host for via in m.headers.via],
    "via_host": lambda m: m.headers.top_via.host,
    "via_port": lambda m: m.headers.top_via.port,
    "via_transports": lambda m: [via.transport for via in m.headers.via],
    "via_branches": lambda m: [via.branch for via in m.headers.via],
    "via_branch": lambda m: m.headers.top_via.branch,
    "via_received": lambda m: m.headers.top_via.received,
    "subject": lambda m: m.headers.get("subject"),
    "route_count": lambda m: len(m.headers.route),
    "record_route_count": lambda m: len(m.headers.record_route),
    "accept_count": lambda m: len(m.headers.accept),
    "contact_count": lambda m: len(m.headers.contact),
    "contact_users": lambda m: [_sip(contact).user for contact in m.headers.contact],
    "contact_user": lambda m: _sip(m.headers.contact[0]).user,
    "contact_host": lambda m: _sip(m.headers.contact[0]).host,
    "contact_display": lambda m: m.headers.contact[0].display,
    "contact_params": lambda m: _pairs(m.headers.contact[0].params),
    "contact_uri": lambda m: str(m.headers.contact[0].uri),
    "contact_uri_params": lambda m: _unescaped(_sip(m.headers.contact[0])),
    "contact_uri_headers": lambda m: dict(_sip(m.headers.contact[0]).headers),
    "uri_scheme": lambda m: _uri(m).scheme,
    "uri_user": lambda m: _uri(m).user,
    "uri_password": lambda m: _uri(m).password,
    "uri_host": lambda m: _uri(m).host,
    "uri_port": lambda m: _uri(m).port,
    "uri_params": lambda m: _unescaped(_uri(m)),
    "uri_param_count": lambda m: len(_uri(m).params),
    "content_length": lambda m: m.headers.content_length,
    "body_len": lambda m: len(m.body),
    "multipart_parts": lambda m: len(_parts(m)),
    "part_types": lambda m: [part.type for part in _parts(m)],
    "part_lens": lambda m: [len(part.body) for part in _parts(m)],
    "date_zone": lambda m: m.headers.get("date").rsplit(" ", 1)[1],
    "sdp_conn": _connection,
}
#: names in `checks` that are about octets or the answer
ELSEWHERE = {"header", "octets", "response_headers", "unsupported", "must_not_send_to"}


@pytest.mark.parametrize("name", NAMES)
def test_read(name: str) -> None:
    case = CASES[name]
    if name in REFUSED:
        assert not case.valid
        with pytest.raises(ParseError) as caught:
            parse(case.octets)
        assert caught.value.status == REFUSED[name]
        assert 0 <= caught.value.offset <= len(case.octets)
        assert (caught.value.partial is not None) == (case.entry["kind"] == "request")
        return
    message = parse(case.octets)
    assert isinstance(message, Request if case.entry["kind"] == "request" else Response)
    whole = case.octets[: case.octets.index(b"\r\n\r\n") + 4 + len(message.body)]
    if "content-length" in message.headers:
        assert bytes(message) == whole, "what is not changed goes out as it came in"
    again = parse(bytes(message))
    assert again.body == message.body
    assert [*again.headers][: len(message.headers)] == [*message.headers]


@pytest.mark.parametrize("name", [name for name in NAMES if set(CASES[name].checks) - ELSEWHERE])
def test_checks(name: str) -> None:
    case = CASES[name]
    message = readable(case.octets)
    expected = {check: value for check, value in case.checks.items() if check not in ELSEWHERE}
    assert {check: READ[check](message) for check in expected} == expected


@pytest.mark.parametrize("name", [name for name in NAMES if set(CASES[name].checks) & ELSEWHERE])
def test_checks_of_octets_and_answer(name: str) -> None:
    case = CASES[name]
    message = readable(case.octets)
    server = Server("udp")
    server.receive(case.octets)
    for check, value in case.checks.items():
        match check:
            case "header":
                assert {header: message.headers.get(header) for header in value} == value
            case "octets":
                assert len(case.octets) - case.octets.index(b"\r\n\r\n") - 4 == value
            case "response_headers":
                assert all(header in server.out[-1].headers for header in value)
            case "unsupported":
                assert server.out[-1].headers.unsupported == value
            case "must_not_send_to":
                assert value not in {host for host, _ in server.sent_to}
            case _:
                assert check in READ


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", NAMES)
def test_answer(name: str, transport: str) -> None:
    case = CASES[name]
    server = Server(transport)
    server.receive(case.octets)
    status = server.last_status()
    assert fits(status, case.allowed(transport)), f"{status} is none of {case.allowed(transport)}"
    expected = ANSWERS.get(name, 200)
    assert status == (STREAM_ANSWERS.get(name, expected) if transport == "tcp" else expected)
    if case.entry["kind"] == "response":
        assert not server.out and not server.events
    for response in server.out[:1]:
        request = readable(case.octets)
        # 8.2.6.2: what a response has of its request, octet for octet but for the top Via's marks
        assert response.headers.get("call-id") == request.headers.get("call-id")
        assert response.headers.get("from") == request.headers.get("from")
        assert response.headers.get("cseq") == request.headers.get("cseq")
        assert response.headers.get_all("via")[1:] == request.headers.get_all("via")[1:]
        assert b"\r\nContent-Length: " in bytes(response)
    assert {host for host, _ in server.sent_to} <= {"198.51.100.7"}


@pytest.mark.parametrize("name", NAMES)
def test_stream_cut_at_every_octet(name: str) -> None:
    octets = CASES[name].octets
    whole = _framed([octets])
    for at in range(1, len(octets)):
        assert _framed([octets[:at], octets[at:]]) == whole, f"cut at {at}"
    assert _framed([octets[at : at + 1] for at in range(len(octets))]) == whole
    first = whole[0] if whole else None
    if isinstance(first, bytes) and name not in REFUSED:
        # the message of the stream is that of the datagram
        assert bytes(parse(first)) == bytes(parse(octets))


def _framed(pieces: list[bytes]) -> list[bytes | KeepAlive | tuple[str, int, bytes | None]]:
    framer = MessageFramer()
    out: list[bytes | KeepAlive | tuple[str, int, bytes | None]] = []
    for piece in pieces:
        for item in framer.receive(piece):
            if isinstance(item, ParseError):
                out.append((item.reason, item.status, None if item.partial is None else bytes(item.partial)))
            else:
                out.append(item)
    return out


# --- what the manifest says in words ("must")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_baddn_with_its_blank_line_is_answered(transport: str) -> None:
    server = Server(transport)
    server.receive(CASES["baddn"].octets + b"\r\n")
    assert server.last_status() == 400


def test_the_second_message_of_dblreq_is_noise_in_a_datagram_and_a_message_on_a_stream() -> None:
    datagram, stream = Server("udp"), Server("tcp")
    for server in (datagram, stream):
        server.receive(CASES["dblreq"].octets)
    assert [r.headers.cseq.method for r in datagram.out] == ["REGISTER"]
    assert [r.headers.cseq.method for r in stream.out if r.status >= 200] == ["REGISTER", "INVITE"]


@pytest.mark.parametrize(
    ("name", "aor", "contacts"),
    [
        ("escnull", "sip:null-%00-null@example.com", ["sip:%00@host5.example.com", "sip:%00%00@host5.example.com"]),
        ("cparam01", "sip:watson@example.com", ["sip:+19725552222@gw1.example.net"]),
        ("cparam02", "sip:watson@example.com", ["sip:+19725552222@gw1.example.net;unknownparam"]),
        ("regescrt", "sip:user@example.com", ["sip:user@example.com?Route=%3Csip:sip.example.com%3E"]),
        ("regbadct", "sip:user@example.com", []),
        ("unksm2", "isbn:2983792873", []),
    ],
)
def test_bindings_of_a_registrar(name: str, aor: str, contacts: list[str]) -> None:
    server = Server("udp")
    server.receive(CASES[name].octets)
    assert sorted(str(binding.contact) for binding in server.registrar.bindings(aor, 1.0)) == sorted(contacts)
    if contacts:
        assert [str(contact.uri) for contact in server.out[-1].headers.contact] == contacts


def test_requests_whose_branch_is_only_the_cookie_are_told_apart() -> None:
    server = Server("udp")
    octets = CASES["badbranch"].octets
    server.receive(octets)
    server.receive(octets.replace(b"badbranch.sadonfo23i420jv0as0derf3j3n", b"another-call"))
    assert [r.headers.call_id for r in server.out] == ["badbranch.sadonfo23i420jv0as0derf3j3n", "another-call"]
    server.receive(octets)
    assert len(server.out) == 3 and bytes(server.out[2]) == bytes(server.out[0])


def test_unknown_schemes_are_read() -> None:
    headers = readable(CASES["unksm2"].octets).headers
    assert isinstance(headers.to.uri, AbsoluteUri) and headers.to.uri.scheme == "isbn"
    assert isinstance(headers.from_.uri, AbsoluteUri) and headers.from_.uri.scheme == "http"
    assert isinstance(headers.contact[0].uri, AbsoluteUri) and headers.contact[0].uri.scheme == "name"


def test_an_unknown_header_like_contact_is_none() -> None:
    headers = readable(CASES["esc02"].octets).headers
    assert headers.get("C%6Fntact") is not None
    assert len(headers.get_all("contact")) == len(headers.contact) == 2


def test_multipart_leaves_octet_for_octet() -> None:
    octets = CASES["mpart01"].octets
    assert bytes(parse(octets)) == octets
    assert {b"\x00", b"\r", b"\n"} <= {bytes([octet]) for octet in _parts(parse(octets))[1].body}


def test_no_description_stands_in_the_answer_to_sdp01() -> None:
    server = Server("udp")
    server.receive(CASES["sdp01"].octets)
    assert all(not response.body for response in server.out)
    assert server.out[-1].headers.warning[0].code == 399


@pytest.mark.parametrize("name", ["ipv6-in-sdp", "mult-ip-in-sdp", "ipv4-mapped-ipv6"])
def test_session_descriptions_with_ipv6_are_read(name: str) -> None:
    description = SessionDescription.parse(parse(CASES[name].octets).body)
    assert description.media


def test_an_ipv4_mapped_address_equals_its_other_form() -> None:
    contact = _sip(parse(CASES["ipv4-mapped-ipv6"].octets).headers.contact[0])
    assert contact.equivalent(SipUri.parse(str(contact).replace("::ffff:192.0.2.2", "::FFFF:C000:202")))


def test_three_colons_never_leave() -> None:
    uri = _uri(parse(CASES["ipv6-bug-abnf-3-colons"].octets))
    assert str(uri.replace(port=5060)) == "sip:user@[2001:db8::192.0.2.1]:5060"


def test_received_is_sent_without_brackets() -> None:
    via = parse(CASES["via-received-param-with-delim"].octets).headers.top_via
    assert str(via.with_param("received", "2001:db8::9:255")).count("[") == 1


def test_every_message_has_its_expectation() -> None:
    assert len(CASES) == 61
    assert all(set(case.checks) <= READ.keys() | ELSEWHERE for case in CASES.values())
    assert set(REFUSED) | set(ANSWERS) | set(STREAM_ANSWERS) <= CASES.keys()
