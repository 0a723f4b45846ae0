# SPDX-License-Identifier: Apache-2.0
"""The registrar with the clock in the hand."""

from __future__ import annotations

import pytest

from mcptt_sip.flow import Flow
from mcptt_sip.message import Request, parse
from mcptt_sip.registrar import Registrar, RegistrarSettings

AOR = "sip:alice@example.org"
PHONE = Flow("tcp", ("192.0.2.1", 5060), ("192.0.2.9", 40000), 1)
TABLET = Flow("udp", ("192.0.2.1", 5060), ("192.0.2.10", 5060))


def request(*contacts: str, cseq: int = 1, call_id: str = "one", expires: int | None = None, to: str = AOR) -> Request:
    lines = [
        "REGISTER sip:example.org SIP/2.0", "Via: SIP/2.0/TCP 192.0.2.9;branch=z9hG4bKx", f"To: <{to}>",
        f"From: <{AOR}>;tag=1", f"Call-ID: {call_id}", f"CSeq: {cseq} REGISTER", "Max-Forwards: 70",
        *(f"Contact: {contact}" for contact in contacts), "Content-Length: 0",
    ]  # fmt: skip
    if expires is not None:
        lines.insert(-1, f"Expires: {expires}")
    message = parse("\r\n".join((*lines, "", "")).encode())
    assert isinstance(message, Request)
    return message


def contacts(registrar: Registrar, now: float) -> list[str]:
    return [str(binding.contact) for binding in registrar.bindings(AOR, now)]


def test_a_contact_is_registered_refreshed_and_expires() -> None:
    r = Registrar()
    outcome = r.register(request("<sip:a@192.0.2.9:40000>", expires=600), PHONE, 100.0)
    assert outcome.status == 200 and outcome.headers == (("Contact", "<sip:a@192.0.2.9:40000>;expires=600"),)
    assert r.bindings(AOR, 100.0)[0].flow == PHONE
    r.register(request("<sip:a@192.0.2.9:40000>", expires=600, cseq=2), PHONE, 500.0)
    assert len(r.bindings(AOR, 1000.0)) == 1 and r.bindings(AOR, 1100.0) == []


def test_several_devices_stand_in_the_order_of_q() -> None:
    r = Registrar()
    r.register(request("<sip:a@192.0.2.9>;q=0.3", call_id="p"), PHONE, 0.0)
    r.register(request("<sip:a@192.0.2.10>;q=0.7", call_id="t"), TABLET, 1.0)
    assert contacts(r, 2.0) == ["sip:a@192.0.2.10", "sip:a@192.0.2.9"]
    r.register(request("<sip:a@192.0.2.10>;expires=0", call_id="t", cseq=2), TABLET, 3.0)
    assert contacts(r, 4.0) == ["sip:a@192.0.2.9"]


def test_a_star_removes_all_and_needs_expires_zero() -> None:
    r = Registrar()
    r.register(request("<sip:a@192.0.2.9>"), PHONE, 0.0)
    assert r.register(request("*", cseq=2), PHONE, 1.0).status == 400
    assert r.register(request("*", cseq=2, expires=0), PHONE, 1.0).status == 200
    assert contacts(r, 1.0) == []


def test_a_path_is_kept_in_its_order_and_one_that_cannot_be_read_registers_nothing() -> None:
    """RFC 3327."""
    r = Registrar()
    good, bad = request("<sip:a@192.0.2.9>"), request("<sip:a@192.0.2.9>", cseq=2)
    good.headers.extend([("Path", "<sip:p1;lr>, <sip:p2;lr>"), ("Path", "<sip:p3;lr>")])
    bad.headers.add("Path", "no route at all")
    assert r.register(good, PHONE, 0.0).status == 200 and r.register(bad, PHONE, 1.0).status == 400
    assert [binding.path for binding in r.bindings(AOR, 1.0)] == [("<sip:p1;lr>, <sip:p2;lr>", "<sip:p3;lr>")]


def test_a_request_without_contact_asks_what_there_is() -> None:
    r = Registrar()
    r.register(request("<sip:a@192.0.2.9>", expires=60), PHONE, 0.0)
    assert r.register(request(cseq=2), PHONE, 10.0).headers == (("Contact", "<sip:a@192.0.2.9>;expires=50"),)


def test_an_older_request_changes_nothing() -> None:
    r = Registrar()
    r.register(request("<sip:a@192.0.2.9>", cseq=5), PHONE, 0.0)
    assert r.register(request("<sip:a@192.0.2.9>;expires=0", cseq=4), PHONE, 1.0).status == 500
    assert len(r.bindings(AOR, 1.0)) == 1


def test_too_brief_an_interval_is_refused_and_too_long_a_one_cut() -> None:
    r = Registrar(RegistrarSettings(min_expires=60, max_expires=100))
    outcome = r.register(request("<sip:a@192.0.2.9>", expires=5), PHONE, 0.0)
    assert (outcome.status, outcome.headers) == (423, (("Min-Expires", "60"),))
    r.register(request("<sip:a@192.0.2.9>", expires=5000), PHONE, 0.0)
    assert r.bindings(AOR, 99.0) and not r.bindings(AOR, 100.0)


@pytest.mark.parametrize("contact", ["<sip:a@h>;q=2", "<sip:a@h>;q=x"])
def test_a_wrong_q_is_refused_and_nothing_changes(contact: str) -> None:
    r = Registrar()
    assert r.register(request("<sip:b@h>", contact), PHONE, 0.0).status == 400
    assert contacts(r, 0.0) == []


def test_the_number_of_contacts_is_limited() -> None:
    r = Registrar(RegistrarSettings(max_bindings=2))
    assert r.register(request("<sip:a@h1>", "<sip:a@h2>", "<sip:a@h3>"), PHONE, 0.0).status == 403


def test_a_lost_flow_takes_its_bindings_with_it() -> None:
    r = Registrar()
    r.register(request("<sip:a@192.0.2.9>", call_id="p"), PHONE, 0.0)
    r.register(request("<sip:a@192.0.2.10>", call_id="t"), TABLET, 0.0)
    assert r.flow_lost(PHONE, 1.0) == [AOR]
    assert contacts(r, 1.0) == ["sip:a@192.0.2.10"]


def test_a_device_that_comes_back_on_a_new_flow_takes_its_own_place() -> None:
    r = Registrar()
    instance = ';+sip.instance="<urn:uuid:0>";reg-id=1'
    r.register(request("<sip:a@192.0.2.9:1>" + instance, call_id="p"), PHONE, 0.0)
    outcome = r.register(request("<sip:a@192.0.2.9:2>" + instance, call_id="q"), TABLET, 1.0)
    assert contacts(r, 1.0) == ["sip:a@192.0.2.9:2"]
    assert ("Require", "outbound") in outcome.headers


def test_the_address_of_record_is_compared_in_canonical_form() -> None:
    r = Registrar()
    r.register(request("<sip:a@h>", to="sip:alice@EXAMPLE.org:5060;transport=tcp"), PHONE, 0.0)
    assert len(r.bindings(AOR, 0.0)) == 1
