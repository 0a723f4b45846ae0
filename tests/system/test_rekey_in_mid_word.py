# SPDX-License-Identifier: Apache-2.0
"""The key is replaced while somebody talks, again and again, on a line that loses packets."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.distribution import DistributionSettings
from mcptt_sip.ops.link import Conditions
from mcptt_sip.ops.link import Path as Line
from mcptt_sip.ops.recording import samples_of
from media.endpoint import MemberMedia
from media.quality import score
from media.udp import Address
from tests.security.town import Townsman, town, uri

pytestmark = pytest.mark.network
VOICES = Path(__file__).parents[2] / "scenarios" / "data"
LOSS = Conditions(loss=0.02)


class LossyMedia(MemberMedia):
    """Every fiftieth audio packet on its way to this member is lost, by chance."""

    line: Line

    def _audio_received(self, octets: bytes, source: Address) -> None:
        if self.line.packet(len(octets), 0.0):
            super()._audio_received(octets, source)


def behind(chance: random.Random) -> type[McpttClient]:
    media = type("Lossy", (LossyMedia,), {"line": Line(LOSS, chance)})
    return type("Behind", (McpttClient,), {"media_class": media})


async def heard(listener: Townsman, recording: Path, talker: str, number: int) -> tuple[float, dict[str, Any]]:
    """The score of the ``number``-th burst of ``talker``, and what is told of it."""
    while len(listener.seen("burst-heard", user=uri(talker))) < number:
        await listener.until_told()
    burst = listener.seen("burst-heard", user=uri(talker))[number - 1]
    listener.call.media.flush_recording()
    track, rate = samples_of(recording)
    part = track[burst["offset"] : burst["offset"] + burst["samples"]]
    reference, _ = samples_of(VOICES / f"{talker}.wav")
    assert abs(len(part) - len(reference)) <= 0.05 * len(reference)
    return score(reference, part, rate), burst


@pytest.mark.soak
async def test_no_rekey_is_heard(tmp_path: Path, soak_seconds: float) -> None:
    """``make soak`` makes fifty repetitions of it and more; the short form a few."""
    chance = random.Random(20)
    settings = DistributionSettings(activation_delay=1.2, transit=0.2)
    async with town() as here:
        alice = await here.phone("alice", distribution=settings)
        bob = await here.phone("bob")
        carol = await here.phone("carol", behind(chance))
        dave = await here.phone("dave", behind(chance))
        call = await alice.client.start_regroup(uri("bob"))
        for name in ("carol", "dave"):
            await call.add(uri(name))
        for man, name in ((carol, "carol"), (dave, "dave")):
            man.call.media.record(tmp_path / f"{name}.wav")
        ends = time.monotonic() + soak_seconds
        worst, repetitions, rekeys = 1.0, 0, 0
        while repetitions == 0 or (time.monotonic() < ends and repetitions < 60):
            repetitions += 1
            async with bob.call.floor():
                talking = asyncio.ensure_future(bob.call.say(VOICES / "bob.wav"))
                await call.rekey()
                rekeys += 1
                assert not talking.done(), "the key was replaced while he talked"
                await talking
            for man, name in ((carol, "carol"), (dave, "dave")):
                got, burst = await heard(man, tmp_path / f"{name}.wav", "bob", repetitions)
                worst = min(worst, got)
                assert got >= 0.85, f"repetition {repetitions}: {name} heard {got:.2f}, {burst}"
        print(f"\n{repetitions} repetitions, {rekeys} rekeys, worst score {worst:.3f}")
