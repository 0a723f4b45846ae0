# SPDX-License-Identifier: Apache-2.0
"""What the controlling function orders of the media plane, on a real relay: urgency on the floor, and silence."""

from __future__ import annotations

import asyncio
import random
import socket
import time

import pytest

from mcptt_sip.flow import Flow
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription, MediaRefused
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Urgency
from mcptt_sip.mcptt.server import RelayPlane
from media.floor_messages import FloorIdle, FloorIndicator, decode_all
from mikey import KeyType, TransportKey

pytestmark = pytest.mark.network

BITS = {
    Urgency.NORMAL: FloorIndicator(0),
    Urgency.IMMINENT_PERIL: FloorIndicator.IMMINENT_PERIL,
    Urgency.EMERGENCY: FloorIndicator.EMERGENCY,
}


def member(number: int, seed: int | None = None) -> tuple[Destination, GroupMediaDescription]:
    csk = TransportKey.generate(KeyType.CSK, random=random.Random(number if seed is None else seed).randbytes)
    flow = Flow("tcp", ("127.0.0.1", 5060), ("127.0.0.1", 5061), number)
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(*kind) as one, socket.socket(*kind) as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        theirs = GroupMediaDescription(one.getsockname(), two.getsockname(), ssrc=number)
    return Destination(f"sip:user{number}@x", "sip:1@127.0.0.1", flow, csk, "1"), theirs


@pytest.mark.parametrize("urgency", Urgency)
async def test_every_floor_message_says_that_the_group_is_temporary_and_how_urgent_the_call_is(
    urgency: Urgency,
) -> None:
    said: list[FloorIndicator] = []

    def trace(kind: str, outbound: bool, *rest: object) -> None:
        if kind == "floor-opened" and outbound:
            octets = rest[2]
            assert isinstance(octets, bytes)
            said.extend(m.indicator for m in decode_all(octets) if isinstance(m, FloorIdle) and m.indicator)

    media = RelayPlane("127.0.0.1", clock=time.time, trace=trace).open("sip:g@x", 0.0)
    media.declare(urgency, {"sip:m1@x"})
    try:
        media.add_leg(*member(1), 1)
    finally:
        media.close()
    urgent = FloorIndicator.EMERGENCY | FloorIndicator.IMMINENT_PERIL
    assert said and all(bits & FloorIndicator.TEMPORARY_GROUP and bits & urgent == BITS[urgency] for bits in said)


async def test_silence_is_told_and_only_where_it_is_limited() -> None:
    plane = RelayPlane("127.0.0.1", clock=time.time, trace=None)
    silent: asyncio.Queue[str] = asyncio.Queue()
    plane.silent = silent.put_nowait
    calls = [plane.open(group, limit) for group, limit in (("never", 0.0), ("soon", 0.05))]
    try:
        for media in calls:
            media.add_leg(*member(1), 1)
        async with asyncio.timeout(10):
            assert await silent.get() == "soon"
    finally:
        for media in calls:
            media.close()
    assert silent.empty()


async def test_legs_that_could_not_be_told_apart_are_refused() -> None:
    media = RelayPlane("127.0.0.1", clock=time.time, trace=None).open("sip:g@x", 0.0)
    try:
        media.add_leg(*member(1), 1)
        with pytest.raises(ValueError, match="CSK"):
            media.add_leg(*member(2, seed=1), 2)
        nameless, theirs = member(3)
        with pytest.raises(MediaRefused, match="ssrc"):
            media.add_leg(nameless, GroupMediaDescription(theirs.audio, theirs.floor), 3)
    finally:
        media.close()
