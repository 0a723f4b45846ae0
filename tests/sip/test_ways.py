# SPDX-License-Identifier: Apache-2.0
"""Which way a request in a dialog goes: the flow the peer was heard on, or where the next hop says."""

from __future__ import annotations

import pytest

from mcptt_sip.dialog import Dialog
from mcptt_sip.flow import Flow
from mcptt_sip.message import Request, parse
from mcptt_sip.stack import SipStack, StackSettings
from mcptt_sip.testing import tokens

FLOW = Flow("udp", ("192.0.2.1", 5060), ("192.0.2.9", 5062))


def invite(*, contact: str, via: str = "192.0.2.9:5062", more: str = "") -> Request:
    made = parse(
        f"INVITE sip:bob@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP {via};branch=z9hG4bK1\r\n{more}"
        f"From: <sip:alice@example.org>;tag=1\r\nTo: <sip:bob@example.org>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n"
        f"Contact: <{contact}>\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert isinstance(made, Request)
    return made


@pytest.mark.parametrize(
    ("what", "message", "reused"),
    [
        ("the contact is where it came from", invite(contact="sip:a@192.0.2.9:5062"), True),
        ("the contact is elsewhere", invite(contact="sip:a@192.0.2.7:5062"), False),
        ("the contact is another port", invite(contact="sip:a@192.0.2.9:5070"), False),
        ("the contact is another transport", invite(contact="sip:a@192.0.2.9:5062;transport=tcp"), False),
        ("the contact is a name", invite(contact="sip:session@mcx.example;gr=1"), True),
        (
            "a peer behind a NAT gives its private address in both places",
            invite(contact="sip:a@10.0.0.5:5062", via="10.0.0.5:5062"),
            True,
        ),
        (
            "a proxy did not stay: the way is to the caller",
            invite(contact="sip:a@10.0.0.5:5062", more="Via: SIP/2.0/UDP 10.0.0.5:5062;branch=z9hG4bKa\r\n"),
            False,
        ),
        (
            "a proxy that stays is the next hop",
            invite(
                contact="sip:a@10.0.0.5", more="Via: SIP/2.0/UDP 10.0.0.5;branch=z9hG4bKa\r\n"
                "Record-Route: <sip:192.0.2.9:5062;lr>\r\n",
            ),
            True,
        ),
        (
            "a proxy that stays elsewhere is the next hop",
            invite(contact="sip:a@192.0.2.9:5062", more="Record-Route: <sip:192.0.2.8;lr>\r\n"),
            False,
        ),
    ],
)  # fmt: skip
def test_the_way_of_a_request(what: str, message: Request, reused: bool) -> None:
    dialog = Dialog.uas(message, "2", FLOW)
    assert dialog.way == (FLOW if reused else None), what


def test_a_refreshed_target_changes_the_way() -> None:
    dialog = Dialog.uas(invite(contact="sip:a@192.0.2.9:5062"), "2", FLOW)
    again = invite(contact="sip:a@192.0.2.3:5062")
    dialog.heard(again, FLOW)
    dialog.refresh_target(again)
    assert dialog.way is None
    assert str(dialog.request("BYE").uri) == "sip:a@192.0.2.3:5062"


@pytest.mark.parametrize(
    ("local", "transport", "contact"),
    [
        (("192.0.2.1", 5060), "udp", "<sip:a@192.0.2.1:5060>"),
        (("2001:db8::1", 5062), "udp", "<sip:a@[2001:db8::1]:5062>"),
        (("10.0.0.1", 5070), "udp", "<sip:a@10.0.0.1:5070>"),
        (("192.0.2.1", 40000), "tcp", "<sip:a@192.0.2.1:5061;transport=tcp>"),
        (("2001:db8::1", 40000), "tcp", "<sip:a@[2001:db8::1]:40000;transport=tcp>"),
        (("192.0.2.1", 40000), "ws", "<sip:a@192.0.2.1:40000;transport=ws>"),
    ],
)
def test_a_contact_is_of_the_listener_that_the_peer_reaches(
    local: tuple[str, int], transport: str, contact: str
) -> None:
    stack = SipStack(StackSettings(user="a"), token=tokens(1))
    for kind, host, port in (
        ("udp", "2001:db8::1", 5062), ("udp", "192.0.2.1", 5060), ("udp", "0.0.0.0", 5070), ("tcp", "0.0.0.0", 5061),
    ):  # fmt: skip
        stack.add_listener(kind, host, port)
    assert stack.contact(Flow(transport, local, ("192.0.2.9", 9))) == contact
