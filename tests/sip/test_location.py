# SPDX-License-Identifier: Apache-2.0
"""Location services, in memory and in a file, and the public GRUUs of a registrar."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcptt_sip.flow import Flow
from mcptt_sip.location import SqliteLocationService
from mcptt_sip.message import Request, parse
from mcptt_sip.registrar import LocationService, MemoryLocationService, Registrar

AOR = "sip:alice@example.org"
TCP = Flow("tcp", ("192.0.2.1", 5060), ("192.0.2.7", 40000), 3)
UDP = Flow("udp", ("192.0.2.1", 5060), ("192.0.2.8", 5060))
URN = "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"


def register(contact: str, *, number: int = 1, call: str = "1", more: str = "", expires: int = 600) -> Request:
    made = parse(
        f"REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/TCP h;branch=z9hG4bK{call}{number}\r\n{more}"
        f"From: <{AOR}>;tag=1\r\nTo: <{AOR}>\r\nCall-ID: {call}\r\nCSeq: {number} REGISTER\r\n"
        f"Contact: {contact}\r\nExpires: {expires}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert isinstance(made, Request)
    return made


@pytest.fixture(params=["memory", "sqlite"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocationService]:
    if request.param == "memory":
        yield MemoryLocationService()
        return
    service = SqliteLocationService(tmp_path / "location.sqlite")
    yield service
    service.close()


def test_what_is_put_is_got_and_an_empty_list_removes(location: LocationService) -> None:
    registrar = Registrar(location=location)
    device = f'<sip:a@192.0.2.7;transport=tcp>;q=0.3;reg-id=1;+sip.instance="<{URN}>"'
    assert registrar.register(register(device, more="Path: <sip:p1;lr>, <sip:p2;lr>\r\n"), TCP, 10.0).status == 200
    assert registrar.register(register("<sip:b@192.0.2.8>", call="2"), UDP, 11.0).status == 200
    first, second = registrar.bindings(AOR, 12.0)
    assert (str(first.contact), first.q, first.flow) == ("sip:b@192.0.2.8", 1.0, UDP)
    assert (second.q, second.flow, second.reg_id, second.instance) == (0.3, TCP, 1, f"<{URN}>")
    assert second.path == ("<sip:p1;lr>, <sip:p2;lr>",) and second.expires_at == 610.0
    assert location.over(TCP) == [AOR] and location.over(UDP) == [AOR]
    assert registrar.flow_lost(TCP, 13.0) == [AOR]
    assert [binding.flow for binding in registrar.bindings(AOR, 13.0)] == [UDP]
    assert registrar.register(register("*", number=2, call="2", expires=0), UDP, 14.0).status == 200
    assert registrar.bindings(AOR, 15.0) == [] and location.over(UDP) == []


def test_a_registrar_that_restarts_knows_where_everybody_is(tmp_path: Path) -> None:
    file = tmp_path / "location.sqlite"
    before = SqliteLocationService(file)
    outbound = f'<sip:a@192.0.2.7>;reg-id=1;+sip.instance="<{URN}>"'
    Registrar(location=before).register(register(outbound), TCP, 10.0)
    Registrar(location=before).register(register("<sip:b@192.0.2.8>", call="2"), UDP, 10.0)
    before.close()
    after = SqliteLocationService(file)
    registrar = Registrar(location=after)
    assert len(registrar.bindings(AOR, 20.0)) == 2
    assert registrar.register(register("<sip:b@192.0.2.8>", call="2"), UDP, 20.0).status == 500, "the CSeq is known too"
    assert after.flows_are_gone() == 1, "a flow over a connection ended with its process"
    assert [str(binding.contact) for binding in registrar.bindings(AOR, 20.0)] == ["sip:b@192.0.2.8"]
    assert after.forget_expired(10_000.0) == 1 and after.get(AOR) == []
    after.close()


def test_a_device_gets_its_public_gruu_and_is_found_by_it() -> None:
    registrar = Registrar()
    device = f'<sip:a@192.0.2.7>;+sip.instance="<{URN}>"'
    outcome = registrar.register(register(device, more="Supported: gruu\r\n"), UDP, 0.0)
    (contact,) = [value for name, value in outcome.headers if name == "Contact"]
    gruu = f"{AOR};gr={URN}"
    assert f'pub-gruu="{gruu}"' in str(contact)
    registrar.register(register("<sip:b@192.0.2.8>", call="2"), UDP, 0.0)
    assert len(registrar.bindings(AOR, 1.0)) == 2
    assert [str(binding.contact) for binding in registrar.bindings(gruu, 1.0)] == ["sip:a@192.0.2.7"]
    assert registrar.bindings(f"{AOR};gr=urn:uuid:other", 1.0) == []


def test_who_does_not_ask_for_a_gruu_gets_none() -> None:
    outcome = Registrar().register(register(f'<sip:a@192.0.2.7>;+sip.instance="<{URN}>"'), UDP, 0.0)
    assert "gruu" not in str(outcome.headers)
