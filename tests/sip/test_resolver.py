# SPDX-License-Identifier: Apache-2.0
"""RFC 3263 with a name service in the hand, and the DNS records of a zone read by dnspython."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.message
import dns.resolver
import pytest

from mcptt_sip.dnslookup import DnsLookup
from mcptt_sip.errors import Unreachable
from mcptt_sip.resolver import Lookup, Naptr, Place, Resolver, Srv, SystemLookup
from mcptt_sip.uri import SipUri


class Zone:
    """A name service whose answers stand in tables; `asked` keeps the questions."""

    def __init__(
        self,
        naptr: dict[str, list[Naptr]] | None = None,
        srv: dict[str, list[Srv]] | None = None,
        addresses: dict[str, list[str]] | None = None,
    ) -> None:
        self._naptr, self._srv, self._addresses = naptr or {}, srv or {}, addresses or {}
        self.asked: list[str] = []

    async def naptr(self, name: str) -> Sequence[Naptr]:
        self.asked.append(f"NAPTR {name}")
        return self._naptr.get(name, [])

    async def srv(self, name: str) -> Sequence[Srv]:
        self.asked.append(f"SRV {name}")
        return self._srv.get(name, [])

    async def addresses(self, name: str) -> Sequence[str]:
        self.asked.append(f"A {name}")
        return self._addresses.get(name, [])


#: the example of RFC 3263 4.1
EXAMPLE = Zone(
    naptr={
        "example.com": [
            Naptr(90, 50, "SIP+D2T", "_sip._tcp.example.com"),
            Naptr(50, 50, "SIPS+D2T", "_sips._tcp.example.com"),
            Naptr(100, 50, "SIP+D2U", "_sip._udp.example.com"),
            Naptr(10, 50, "SIP+D2S", "_sip._sctp.example.com"),
        ]
    },
    srv={
        "_sips._tcp.example.com": [Srv(0, 1, 5061, "server1.example.com")],
        "_sip._tcp.example.com": [Srv(0, 1, 5060, "server1.example.com"), Srv(1, 2, 5070, "server2.example.com")],
        "_sip._udp.example.com": [Srv(0, 1, 5080, "server1.example.com")],
    },
    addresses={
        "server1.example.com": ["192.0.2.1", "2001:db8::1"],
        "server2.example.com": ["192.0.2.2"],
        "host.example.com": ["192.0.2.3"],
    },
)


def resolver(lookup: Lookup, **more: Any) -> Resolver:
    return Resolver(lookup, below=random.Random(1).randrange, **more)


async def places(uri: str, lookup: Lookup = EXAMPLE, *, large: bool = False, **more: Any) -> list[str]:
    found = await resolver(lookup, **more).places(SipUri.parse(uri), large=large)
    return [f"{place.transport} {place.address} {place.port}" for place in found]


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        # 4.1: a numeric address
        ("sip:192.0.2.9", ["udp 192.0.2.9 5060"]),
        ("sip:192.0.2.9:5090", ["udp 192.0.2.9 5090"]),
        ("sip:[2001:db8::9]", ["udp 2001:db8::9 5060"]),
        ("sips:192.0.2.9", ["tls 192.0.2.9 5061"]),
        ("sip:192.0.2.9;transport=tcp", ["tcp 192.0.2.9 5060"]),
        ("sip:192.0.2.9;transport=TLS", ["tls 192.0.2.9 5061"]),
        ("sips:192.0.2.9;transport=tcp", ["tls 192.0.2.9 5061"]),
        ("sip:example.com;maddr=192.0.2.7", ["udp 192.0.2.7 5060"]),
        # a port: no NAPTR, no SRV
        ("sip:host.example.com:5070", ["udp 192.0.2.3 5070"]),
        ("sips:host.example.com:5070", ["tls 192.0.2.3 5070"]),
        # neither: NAPTR, in its order, what is not served left aside
        (
            "sip:example.com",
            [
                "tls 192.0.2.1 5061", "tls 2001:db8::1 5061", "tcp 192.0.2.1 5060", "tcp 2001:db8::1 5060",
                "tcp 192.0.2.2 5070", "udp 192.0.2.1 5080", "udp 2001:db8::1 5080",
            ],
        ),
        ("sips:example.com", ["tls 192.0.2.1 5061", "tls 2001:db8::1 5061"]),
        # a transport: its SRV
        ("sip:example.com;transport=udp", ["udp 192.0.2.1 5080", "udp 2001:db8::1 5080"]),
        # no records at all: addresses
        ("sip:host.example.com", ["udp 192.0.2.3 5060"]),
        ("sips:host.example.com", ["tls 192.0.2.3 5061"]),
        ("sip:host.example.com;transport=tcp", ["tcp 192.0.2.3 5060"]),
    ],
)  # fmt: skip
async def test_places_of_a_uri(uri: str, wanted: list[str]) -> None:
    assert await places(uri) == wanted


async def test_without_naptr_the_srv_records_of_each_transport_are_asked_for() -> None:
    zone = Zone(srv={"_sip._tcp.a.example": [Srv(0, 0, 5065, "h.a.example")]}, addresses={"h.a.example": ["192.0.2.5"]})
    assert await places("sip:a.example", zone) == ["tcp 192.0.2.5 5065"]
    assert zone.asked == [
        "NAPTR a.example", "SRV _sip._udp.a.example", "SRV _sip._tcp.a.example", "SRV _sips._tcp.a.example",
        "A h.a.example",
    ]  # fmt: skip


async def test_a_large_request_avoids_datagrams() -> None:
    assert await places("sip:192.0.2.9", large=True) == ["tcp 192.0.2.9 5060"]
    assert not [place for place in await places("sip:example.com", large=True) if place.startswith("udp")]
    assert await places("sip:192.0.2.9;transport=udp", large=True) == ["udp 192.0.2.9 5060"]
    assert await places("sip:192.0.2.9", large=True, transports=("udp",)) == ["udp 192.0.2.9 5060"]


async def test_a_server_that_has_no_address_is_passed_over() -> None:
    zone = Zone(
        srv={"_sip._udp.a.example": [Srv(0, 0, 1, "gone.example"), Srv(1, 0, 2, "here.example")]},
        addresses={"here.example": ["192.0.2.6"]},
    )
    assert await places("sip:a.example", zone) == ["udp 192.0.2.6 2"]


async def test_a_service_that_is_decidedly_not_there() -> None:
    zone = Zone(srv={"_sip._udp.a.example": [Srv(0, 0, 0, ".")]}, addresses={"a.example": ["192.0.2.6"]})
    assert await places("sip:a.example", zone) == ["udp 192.0.2.6 5060"]


@pytest.mark.parametrize(
    "uri",
    [
        "sip:nobody.example",
        "sip:192.0.2.1;transport=sctp",
        "sip:192.0.2.1;transport=ws",
        "sips:192.0.2.1;transport=udp",
    ],
)
async def test_what_leads_nowhere_is_said_to(uri: str) -> None:
    with pytest.raises(Unreachable):
        await places(uri)


async def test_a_place_carries_the_name_of_the_uri_for_the_certificate() -> None:
    found = await resolver(EXAMPLE).places(SipUri.parse("sips:bob@example.com"))
    assert found[0] == Place("tls", "192.0.2.1", 5061, "example.com")


async def test_servers_are_drawn_by_priority_then_weight() -> None:
    records = [Srv(1, 60, 1, "a"), Srv(1, 30, 1, "b"), Srv(1, 10, 1, "c"), Srv(0, 0, 1, "first"), Srv(1, 0, 1, "d")]
    names = {name: [f"192.0.2.{number}"] for number, name in enumerate(["a", "b", "c", "d", "first"], 1)}
    draws, ours = 6000, resolver(Zone(srv={"_sip._udp.x": records}, addresses=names))
    seconds: Counter[str] = Counter()
    for _ in range(draws):
        found = [place.address for place in await ours.places(SipUri.parse("sip:x;transport=udp"))]
        assert found[0] == "192.0.2.5" and len(set(found)) == 5
        seconds[found[1]] += 1
    for address, share in (("192.0.2.1", 0.6), ("192.0.2.2", 0.3), ("192.0.2.3", 0.1)):
        assert abs(seconds[address] / draws - share) < 0.04
    assert seconds["192.0.2.4"] < draws * 0.03, "weight 0 has a small chance"


async def test_the_host_knows_itself() -> None:
    assert "127.0.0.1" in await SystemLookup().addresses("localhost")
    with pytest.raises(Unreachable):
        await SystemLookup().addresses("no such host")


ANSWERS = {
    ("example.com", "NAPTR"): (
        'example.com. 60 IN NAPTR 50 60 "s" "SIPS+D2T" "" _sips._tcp.example.com.\n'
        'example.com. 60 IN NAPTR 50 60 "u" "E2U+sip" "!^.*$!sip:x@example.com!" .'
    ),
    ("_sips._tcp.example.com", "SRV"): "_sips._tcp.example.com. 60 IN SRV 5 7 5061 one.example.com.",
    ("one.example.com", "A"): "one.example.com. 60 IN A 192.0.2.1",
    ("one.example.com", "AAAA"): "one.example.com. 60 IN AAAA 2001:db8::1",
}


class _Answers(dns.asyncresolver.Resolver):
    """Answers from `ANSWERS`, made of wire octets as a server's are."""

    def __init__(self, failing: bool = False) -> None:
        super().__init__(configure=False)
        self.failing = failing

    async def resolve(self, qname: Any, rdtype: Any = "A", *args: Any, **kwargs: Any) -> Any:
        if self.failing:
            raise dns.exception.Timeout
        query = dns.message.make_query(qname, rdtype)
        response = dns.message.make_response(query)
        text = ANSWERS.get((qname, rdtype))
        if text is None:
            raise dns.resolver.NXDOMAIN
        made = dns.message.from_text(f"{response.to_text().split(';ANSWER')[0]};ANSWER\n{text}\n")
        wire = dns.message.from_wire(made.to_wire())
        return wire.answer[0]


async def test_records_of_the_dns() -> None:
    lookup = DnsLookup(_Answers())
    assert await lookup.naptr("example.com") == [Naptr(50, 60, "SIPS+D2T", "_sips._tcp.example.com")]
    assert await lookup.srv("_sips._tcp.example.com") == [Srv(5, 7, 5061, "one.example.com")]
    assert await lookup.addresses("one.example.com") == ["2001:db8::1", "192.0.2.1"]
    assert await lookup.addresses("nobody.example.com") == [] and await lookup.srv("nobody.example.com") == []
    assert await places("sip:example.com", lookup) == ["tls 2001:db8::1 5061", "tls 192.0.2.1 5061"]


async def test_a_name_server_that_does_not_answer() -> None:
    lookup = DnsLookup(_Answers(failing=True))
    assert await lookup.naptr("example.com") == [] and await lookup.srv("example.com") == []
    with pytest.raises(Unreachable):
        await lookup.addresses("one.example.com")
