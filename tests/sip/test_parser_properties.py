# SPDX-License-Identifier: Apache-2.0
"""What holds for any octets: messages go out as they came in, nothing but `ParseError` comes of nonsense, a stream may
be cut anywhere, and time grows no faster than the input."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcptt_sip.body import Part, build_multipart, parse_multipart
from mcptt_sip.errors import LocalProtocolError, ParseError
from mcptt_sip.field_lines import Headers
from mcptt_sip.grammar import Params, quote, split_list, unquote
from mcptt_sip.headers import CSeq, NameAddr, RAck, SessionExpires, Via, Warning
from mcptt_sip.message import KeepAlive, Limits, MessageFramer, Request, Response, parse
from mcptt_sip.uri import SipUri, parse_uri
from tests.sip.torture import Server, cases

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TOKEN_CHARACTERS = string.ascii_letters + string.digits + "-.!%*_+`'~"
tokens = st.text(TOKEN_CHARACTERS, min_size=1, max_size=12)
words = st.text(TOKEN_CHARACTERS + '()<>:\\"/[]?{}@', min_size=1, max_size=20)
methods = st.one_of(st.sampled_from(["INVITE", "OPTIONS", "BYE", "REGISTER"]), tokens)
#: text of a header: any character but line ends, and no blanks at its ends
texts = st.text(
    st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30
).map(lambda text: text.strip(" \t"))
ports = st.one_of(st.none(), st.integers(0, 65535))
hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9]{0,6}(\.[a-z][a-z0-9]{0,5}){0,2}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
names = st.one_of(
    st.none(),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=15),
)
param_values = st.one_of(
    st.none(), tokens, st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])).map(quote)
)
params = st.dictionaries(
    tokens.map(str.lower), param_values, max_size=3
).map(lambda items: Params(items.items()))
users = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
uri_params = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1, max_size=6),
    st.one_of(st.none(), st.text(string.ascii_letters + "-_.!~*'()", min_size=1, max_size=6)),
    max_size=3,
).map(lambda items: Params(items.items()))


@st.composite
def uris(draw: st.DrawFn, *, headers: bool = True) -> SipUri:
    user = draw(users)
    pairs = st.lists(st.tuples(st.text(string.ascii_letters, min_size=1, max_size=6), st.text(max_size=6)), max_size=2)
    return SipUri(
        draw(hosts), user, draw(ports), draw(uri_params), tuple(draw(pairs)) if headers else (),
        draw(users) if user else None, draw(st.sampled_from(["sip", "sips"])),
    )  # fmt: skip


@st.composite
def name_addrs(draw: st.DrawFn) -> NameAddr:
    return NameAddr(draw(uris()), draw(names), draw(params))


@st.composite
def vias(draw: st.DrawFn) -> Via:
    return Via(draw(st.sampled_from(["UDP", "TCP", "TLS", "WS"])), draw(hosts), draw(ports), draw(params))


@st.composite
def messages(draw: st.DrawFn) -> Request | Response:
    method = draw(methods)
    lines: list[tuple[str, object]] = [
        (draw(st.sampled_from(["Via", "v", "VIA"])), draw(vias())),
        (draw(st.sampled_from(["From", "f"])), draw(name_addrs())),
        (draw(st.sampled_from(["To", "t"])), draw(name_addrs())),
        (draw(st.sampled_from(["Call-ID", "i", "CALL-ID"])), draw(words)),
        ("CSeq", CSeq(draw(st.integers(0, 2**32 - 1)), method)),
    ]
    for name in draw(st.lists(tokens, max_size=4)):
        if len(name) > 1 and name.lower() not in _KNOWN:
            lines.append((name, draw(texts)))
    order = draw(st.permutations(lines))
    body = draw(st.binary(max_size=60))
    if draw(st.booleans()):
        return Request(method, draw(uris(headers=False)), order, body)
    return Response(draw(st.integers(100, 699)), draw(texts), order, body)


_KNOWN = frozenset(
    {"via", "from", "to", "call-id", "cseq", "max-forwards", "content-length", "content-type"}
)


# --- there and back


@quick
@given(messages())
def test_a_message_that_is_written_and_read_is_the_same(message: Request | Response) -> None:
    octets = bytes(message)
    again = parse(octets)
    assert bytes(again) == octets
    assert again.body == message.body and [*again.headers] == [*message.headers]
    assert again.headers.cseq == message.headers.cseq and again.headers.call_id == message.headers.call_id
    if isinstance(message, Request):
        assert isinstance(again, Request)
        assert (again.method, again.uri) == (message.method, message.uri)
    else:
        assert isinstance(again, Response)
        assert (again.status, again.reason) == (message.status, message.reason)


@quick
@given(name_addrs())
def test_a_name_addr_that_is_written_and_read_is_the_same(value: NameAddr) -> None:
    again = NameAddr.parse(str(value))
    assert again == value
    assert str(again) == str(value)


@quick
@given(vias())
def test_a_via_that_is_written_and_read_is_the_same(value: Via) -> None:
    assert Via.parse(str(value)) == value


@quick
@given(uris())
def test_a_uri_that_is_written_and_read_is_the_same(value: SipUri) -> None:
    again = parse_uri(str(value))
    assert again == value and value.equivalent(again)


@quick
@given(st.text(st.characters(exclude_characters="\r\n")))
def test_a_quoted_string_means_what_was_quoted(text: str) -> None:
    assert unquote(quote(text)) == text


@quick
@given(st.lists(st.one_of(tokens, name_addrs().map(str)), min_size=1, max_size=5))
def test_a_list_is_cut_where_it_was_joined(values: list[str]) -> None:
    assert split_list(", ".join(values)) == values


@quick
@given(st.lists(st.tuples(st.sampled_from(["text/plain", "application/sdp", "x/y;z=1"]), st.binary(max_size=50)),
                min_size=1, max_size=4))
def test_the_parts_of_a_multipart_come_out_as_they_went_in(parts: list[tuple[str, bytes]]) -> None:
    source = random.Random(1)
    made = [Part(kind, body, (("Content-ID", f"<{number}@x>"),)) for number, (kind, body) in enumerate(parts)]
    assert parse_multipart(*build_multipart(made, lambda: source.randbytes(8))) == made


# --- nonsense


TORTURE = [case.octets for case in cases()]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A torture message with some octets changed, dropped, doubled or put from another."""
    octets = bytearray(draw(st.sampled_from(TORTURE)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(octets)))
        match draw(st.integers(0, 3)):
            case 0:
                octets[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
            case 1:
                del octets[at : at + draw(st.integers(1, 30))]
            case 2:
                octets[at:at] = octets[at : at + draw(st.integers(1, 60))]
            case _:
                other = draw(st.sampled_from(TORTURE))
                start = draw(st.integers(0, len(other)))
                octets[at:at] = other[start : start + 40]
    return bytes(octets)


#: every typed way to read a header section
PROPERTIES = sorted(name for name, value in vars(Headers).items() if isinstance(value, property))


def _read_all(octets: bytes) -> bool:
    """Reads everything that can be read; whether it was a message."""
    try:
        message = parse(octets)
    except ParseError as error:
        assert 0 <= error.offset <= len(octets) and 400 <= error.status < 600
        if error.partial is None:
            return False
        message = error.partial
        bytes(error.partial.response(error.status, to_tag="x"))
    for name in PROPERTIES:
        try:
            value = getattr(message.headers, name)
        except ParseError:
            continue
        for each in value if isinstance(value, list) else [value]:
            str(each)
    try:
        content_type = message.headers.content_type
        for part in parse_multipart(str(content_type or "text/plain"), message.body):
            part.decoded()
    except ParseError as error:
        assert error.status in (400, 415)
    assert bytes(message).endswith(b"\r\n\r\n" + message.body)
    return True


@settings(quick, max_examples=500)
@given(st.one_of(mutated(), st.binary(max_size=200)))
def test_reading_any_octets_raises_nothing_but_parse_errors(octets: bytes) -> None:
    _read_all(octets)


@pytest.mark.parametrize("reason", ["a\rb", "\r", "a\x00b", "a\nb"])
def test_a_reason_phrase_is_one_line(reason: str) -> None:
    octets = f"SIP/2.0 200 {reason}\r\n".encode() + _OPTIONS.split(b"\r\n", 1)[1]
    if "\x00" in reason:
        assert bytes(parse(octets)) == octets
    else:
        with pytest.raises(ParseError):
            parse(octets)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@settings(quick, max_examples=250)
@given(octets=mutated())
def test_a_server_survives_any_octets(transport: str, octets: bytes) -> None:
    server = Server(transport)
    server.receive(octets)
    assert len(server.out) <= 4
    # and is as good as before
    fresh = Server("udp")
    fresh.stack = server.stack
    fresh.receive(_OPTIONS)
    assert fresh.last_status() == 200


_OPTIONS = (
    b"OPTIONS sip:uas@192.0.2.100 SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKafterwards\r\n"
    b"From: <sip:a@b>;tag=after\r\nTo: <sip:uas@192.0.2.100>\r\nCall-ID: afterwards\r\nCSeq: 1 OPTIONS\r\n"
    b"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
)

#: readers of one text, each with the errors it may raise
READERS: list[tuple[str, Callable[[str], Any]]] = [
    ("NameAddr", NameAddr.parse), ("Via", Via.parse), ("CSeq", CSeq.parse), ("RAck", RAck.parse),
    ("SessionExpires", SessionExpires.parse), ("Warning", Warning.parse), ("Params", Params.parse),
    ("split_list", split_list), ("uri", parse_uri),
]  # fmt: skip


@pytest.mark.parametrize("reader", [reader for _, reader in READERS], ids=[name for name, _ in READERS])
@quick
@given(text=st.one_of(st.text(max_size=60), st.text('<>";:,@[]=%?/\\ \tsip0aZ', max_size=60)))
def test_a_reader_gives_a_value_or_a_parse_error(reader: Callable[[str], Any], text: str) -> None:
    try:
        value = reader(text)
    except ParseError as error:
        assert str(error)
    else:
        assert isinstance(str(value), str)


@quick
@given(st.text(max_size=20), st.text(max_size=40))
def test_a_header_cannot_carry_another_line(name: str, value: str) -> None:
    headers = Headers()
    try:
        headers.add(name, value)
    except LocalProtocolError:
        assert len(headers) == 0
        return
    octets = headers.encode("SIP/2.0 200 OK", b"")
    expected = 3 if "content-length" in headers and len(headers) == 1 else 4
    assert octets.count(b"\r\n") == expected, "status line, the header, Content-Length, blank line"


def test_a_header_that_was_read_as_absent_is_read_anew_once_it_is_there() -> None:
    change: list[Callable[[Headers], object]] = [
        lambda headers: headers.add("Contact", "<sip:a@b>"),
        lambda headers: headers.add_first("m", "<sip:a@b>"),
        lambda headers: headers.set("contact", "<sip:a@b>"),
        lambda headers: headers.replace_first("Contact", "<sip:a@b>"),
        lambda headers: headers.copy_from(Headers([("Contact", "<sip:a@b>")]), "contact"),
        lambda headers: headers.add_missing(Headers([("Contact", "<sip:a@b>")])),
    ]
    for make in change:
        headers = Headers([("To", "<sip:b@b>")])
        assert headers.contact == []
        make(headers)
        assert [str(value) for value in headers.contact] == ["<sip:a@b>"]


def test_a_change_of_one_message_changes_no_other_that_was_made_from_it() -> None:
    """Copies, answers and what is taken over share their lines, never a change."""
    source = Headers(
        [("Via", "SIP/2.0/UDP a;branch=z9hG4bK1"), ("Via", "SIP/2.0/UDP b;branch=z9hG4bK2"),
         ("From", "<sip:a@b>;tag=1"), ("To", "<sip:b@b>"), ("Call-ID", "1"), ("CSeq", "1 INVITE"),
         ("Contact", "<sip:a@a>")]
    )  # fmt: skip
    changes: list[Callable[[Headers], object]] = [
        lambda headers: headers.add("Via", "SIP/2.0/UDP c;branch=z9hG4bK3"),
        lambda headers: headers.add_first("Via", "SIP/2.0/UDP c;branch=z9hG4bK3"),
        lambda headers: headers.replace_first("Via", "SIP/2.0/UDP c;branch=z9hG4bK3"),
        lambda headers: headers.set("Via", "SIP/2.0/UDP c;branch=z9hG4bK3"),
        lambda headers: headers.remove("Via"),
        lambda headers: headers.copy_from(source, "via"),
        lambda headers: headers.encode("x", b"body"),
    ]

    def taken() -> Headers:
        made = Headers()
        made.copy_from(source, "via")
        return made

    def completed() -> Headers:
        made = Headers()
        made.add_missing(source)
        return made

    before = list(source)
    def read() -> Headers:
        return Headers.scan("\r\n".join(f"{name}: {value}" for name, value in before), 100)[0]

    for make in (source.copy, lambda: Headers.answering(source), taken, completed, read):
        for change in changes:
            other, made = make(), make()
            kept = list(other)
            change(made)
            assert list(source) == before and list(other) == kept
            assert [made.get_all("via"), made.count("via")] == [
                [value for name, value in made if name == "Via"], sum(name == "Via" for name, _ in made)
            ]  # fmt: skip


@pytest.mark.parametrize("later", ["b", "c"])
def test_a_header_that_is_set_stands_once_also_when_a_later_line_says_the_same(later: str) -> None:
    headers = Headers([("X", "a"), ("Y", "y"), ("X", "b"), ("X", later), ("Z", "z")])
    headers.set("X", "b")
    assert list(headers) == [("X", "b"), ("Y", "y"), ("Z", "z")] and headers.get("x") == "b"
    lengths = Headers([("Content-Length", "3")] * 2)
    assert lengths.encode("x", b"abc").count(b"Content-Length: 3") == 1


def test_a_line_that_comes_again_is_read_once_and_nobody_changes_what_was_read() -> None:
    text = "Via: SIP/2.0/UDP a\r\nFrom: <sip:a@b>;tag=1\r\nContact: <sip:a@a>, <sip:a@b>"
    (one, _), (other, _) = Headers.scan(text, 100), Headers.scan(text, 100)
    assert one.from_ is other.from_
    one.contact.clear()
    with pytest.raises(AttributeError):
        one.from_.tag = "2"  # type: ignore[misc]
    assert [str(v) for v in one.contact] == [str(v) for v in other.contact] == ["<sip:a@a>", "<sip:a@b>"]
    for _ in range(2):
        wrong, fault = Headers.scan("Via: SIP/2.0/UDP a\r\nFrom: <sip:a@b\r\nTo <sip:b@b>", 100)
        assert fault == ("not a header line", 36) and wrong.names == {"via", "from"}
        with pytest.raises(ParseError):
            _ = wrong.from_


def test_what_is_kept_parsed_is_short_and_never_what_is_wrong() -> None:
    """A peer can fill what is kept with little, and cannot put an error there."""
    kept = "sip:alice@example.org"
    assert parse_uri(kept) is parse_uri(kept)
    long = f"sip:{'a' * 300}@example.org"
    assert parse_uri(long) == parse_uri(long) and parse_uri(long) is not parse_uri(long)
    address = f"<{kept}>;tag={'a' * 300}"
    assert NameAddr.parse(address) == NameAddr.parse(address) and NameAddr.parse(address) is not NameAddr.parse(address)
    for _ in range(2):
        with pytest.raises(ParseError):
            parse_uri("sip:")


# --- streams


@quick
@given(st.lists(st.one_of(messages().map(bytes), st.just(b"\r\n\r\n")), max_size=4), st.randoms(use_true_random=False))
def test_a_stream_may_be_cut_anywhere(items: list[bytes], source: random.Random) -> None:
    stream = b"".join(items)
    whole = MessageFramer().receive(stream)
    framer, out, at = MessageFramer(), [], 0
    while at < len(stream):
        step = source.randint(1, 1 + source.choice([1, 10, 100]))
        out += framer.receive(stream[at : at + step])
        at += step
    assert out == whole == [KeepAlive.PING if item == b"\r\n\r\n" else item for item in items]
    assert framer.pending == 0


@quick
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_a_framer_holds_no_more_than_its_limits(pieces: list[bytes]) -> None:
    framer = MessageFramer(Limits(head=200, body=100))
    for piece in pieces:
        broken = framer.broken
        out = framer.receive(piece)
        assert not (broken and out)
        assert sum(isinstance(item, ParseError) for item in out) <= 1
        assert framer.pending <= 200 + 4 + 100


# --- time


def _seconds(work: Callable[[], object]) -> float:
    """The best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()  # of this thread alone: the machine may be busy
        work()
        best = min(best, time.thread_time() - start)
    return best


_HEAD = (
    b"OPTIONS sip:a@b SIP/2.0\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n"
)
_MULTIPART = _HEAD + b"Via: SIP/2.0/UDP h\r\nContent-Type: multipart/mixed;boundary=a\r\n\r\n"
LONG: dict[str, Callable[[int], bytes]] = {
    "quotes": lambda n: _HEAD + b'Via: SIP/2.0/UDP h\r\nContact: ' + b'"\\' * (n // 2) + b"\r\n\r\n",
    "opening brackets": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nContact: " + b"<," * (n // 2) + b"\r\n\r\n",
    "words": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nContact: " + b"a " * (n // 2) + b"\r\n\r\n",
    "blanks": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nContact: a" + b" " * n + b"b\r\n\r\n",
    "parameters": lambda n: _HEAD + b"Via: SIP/2.0/UDP h" + b";a=b" * (n // 4) + b"\r\n\r\n",
    "semicolons": lambda n: _HEAD + b"Via: SIP/2.0/UDP h" + b";" * n + b"\r\n\r\n",
    "folds": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nSubject: a" + b"\r\n b" * (n // 4) + b"\r\n\r\n",
    "uri parameters": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nContact: <sip:a@b" + b";a=b" * (n // 4) + b">\r\n\r\n",
    "user": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nContact: <sip:" + b"a" * n + b">\r\n\r\n",
    "telephone number": lambda n: b"OPTIONS tel:+" + b"1-" * (n // 2) + b"x SIP/2.0\r\n" + _HEAD[25:]
    + b"Via: SIP/2.0/UDP h\r\n\r\n",
    "vias in one line": lambda n: _HEAD + b"Via: " + b"SIP/2.0/UDP h," * (n // 14) + b"SIP/2.0/UDP h\r\n\r\n",
    "request line": lambda n: b"OPTIONS " + b" a" * (n // 2) + b"\r\n" + _HEAD[25:] + b"Via: SIP/2.0/UDP h\r\n\r\n",
    "blank start": lambda n: b"OPTIONS" + b" " * n + b"\r\n" + _HEAD[25:] + b"Via: SIP/2.0/UDP h\r\n\r\n",
    "expires": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nExpires: " + b"9" * n + b"\r\n\r\n",
    "bare line feeds": lambda n: _HEAD + b"Via: SIP/2.0/UDP h\r\nSubject: " + b"\na" * (n // 2) + b"\r\n\r\n",
    "parts": lambda n: _MULTIPART + b"--a\r\n" * (n // 5),
    "half boundaries": lambda n: _MULTIPART + b"--a\r\n\r\n" + b"\r\n--a\t" * (n // 6),
}


@pytest.mark.parametrize("name", LONG)
def test_time_grows_no_faster_than_the_octets(name: str) -> None:
    make = LONG[name]
    short, long = make(8_000), make(64_000)
    few, many = _seconds(lambda: _read_all(short)), _seconds(lambda: _read_all(long))
    # eight times the octets: 64 times the time would be quadratic; below a millisecond nothing can be said
    assert many < max(24 * few, 0.02), f"{few * 1000:.2f} ms, then {many * 1000:.2f} ms"


def test_a_stream_that_trickles_in_costs_no_more_than_its_octets() -> None:
    octets = _HEAD + b"Via: SIP/2.0/UDP h\r\nSubject: " + b"a" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n"

    def trickle() -> None:
        framer = MessageFramer()
        out = [item for at in range(len(octets)) for item in framer.receive(octets[at : at + 1])]
        assert out == [octets]

    # 60,000 pieces: a search from the start at each would look at 1.8e9 octets
    assert _seconds(trickle) < 0.5
