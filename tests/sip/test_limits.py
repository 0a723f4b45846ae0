# SPDX-License-Identifier: Apache-2.0
"""What hostile messages cost, in the parser's own steps rather than in seconds of a busy machine; and that most made
messages get past the start line and the Via, so that fuzzing reaches what is behind them."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import pytest

from mcptt_sip.errors import ParseError
from mcptt_sip.field_lines import Headers
from mcptt_sip.message import Limits, parse
from tests.sip.grammar_made import Maker

HEAD = b"OPTIONS sip:a@b SIP/2.0\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n"
VIA = b"Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\n"
WIDE = Limits(head=2_000_000, header_lines=20_000)


def read_everything(octets: bytes, limits: Limits) -> None:
    try:
        headers = parse(octets, limits).headers
    except ParseError:
        return
    for name in vars(Headers):
        if isinstance(getattr(Headers, name), property):
            try:
                getattr(headers, name)
            except ParseError:
                pass


HOSTILE: dict[str, bytes] = {
    "a header line of 64 kB": HEAD + VIA + b"Subject: " + b"a" * 64_000 + b"\r\n\r\n",
    "a Contact of 64 kB in quotes": HEAD + VIA + b'Contact: "' + b"a" * 64_000 + b'" <sip:a@b>\r\n\r\n',
    "a Contact of 64 kB of backslashes": HEAD + VIA + b'Contact: "' + b"\\" * 64_000 + b'" <sip:a@b>\r\n\r\n',
    "16,000 parameters": HEAD + VIA + b"Contact: <sip:a@b>" + b";a=b" * 16_000 + b"\r\n\r\n",
    "10,000 Via headers": HEAD + VIA * 10_000 + b"\r\n",
    "10,000 Vias in one line": HEAD + b"Via: " + b", ".join([VIA[5:-2]] * 10_000) + b"\r\n\r\n",
    "a user of 64 kB": HEAD + VIA + b"Contact: <sip:" + b"a" * 64_000 + b"@b>\r\n\r\n",
    "64 kB of percent signs": HEAD + VIA + b"Contact: <sip:" + b"%41" * 21_000 + b"@b>\r\n\r\n",
    "64 kB of commas": HEAD + VIA + b"Supported: " + b"," * 64_000 + b"\r\n\r\n",
    "64 kB of folds": HEAD + VIA + b"Subject: a" + b"\r\n b" * 16_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_costs_a_bounded_number_of_steps(name: str) -> None:
    octets = HOSTILE[name]
    steps = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        read_everything(octets, WIDE)
    finally:
        sys.setprofile(None)
    # 40 calls for each value or parameter that the message holds; a quadratic reader would need millions
    assert steps < 40 * 10_000 + 2_000


@pytest.mark.soak
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_costs_less_than_twenty_milliseconds_to_parse(name: str) -> None:
    best = min(_seconds(lambda: parse_or_refuse(HOSTILE[name])) for _ in range(5))
    assert best < 0.020


def parse_or_refuse(octets: bytes) -> None:
    try:
        parse(octets, WIDE)
    except ParseError:
        pass


def _seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def test_most_made_messages_get_past_the_start_line_and_the_via() -> None:
    maker = Maker(random.Random(7))
    past = 0
    for _ in range(3_000):
        try:
            headers = parse(maker.message()).headers
            past += 1
        except ParseError as error:
            headers = error.partial.headers if error.partial is not None else Headers()
            try:
                past += error.reason.split(":")[0] != "Via" and headers.top_via is not None
            except ParseError:
                pass
        read_everything(bytes(maker.message()), WIDE)
    assert past >= 0.3 * 3_000, f"{past} of 3000"
