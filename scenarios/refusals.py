# SPDX-License-Identifier: Apache-2.0
"""Users who decline, never answer, are unknown or away: each is reported, and none holds up the others.

``alice`` talks with ``bob``. She adds, all at once, ``carol`` (who accepts), ``dave`` (who declines), ``erin`` (whose
phone rings and rings) and ``frank`` (who is not registered). Carol is in at once; the refusals come with their
status and Warning; while erin's phone still rings, carol hears alice.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import CommandFailed, Lab, Process, ScenarioFailed

DATA = Path(__file__).parent / "data"
RINGS_FOR = 8.0


async def refused(alice: Process, name: str) -> tuple[int | None, str]:
    """The status and the Warning's code that an add ends with."""
    try:
        await alice.do(f"add {name}", timeout=RINGS_FOR + 10)
    except CommandFailed as failure:
        return failure.event.get("status"), str(failure.event.get("warning") or "")[:3]
    raise ScenarioFailed(f"{name} was added")


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol", "dave", "erin", "frank"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server("--ring-time-limit", str(RINGS_FOR))
    alice, _bob, carol = await lab.phones("alice", "bob", "carol")
    await lab.phone("dave", "--answer", "decline")
    erin = await lab.phone("erin", "--answer", "ring")
    await alice.do("call bob")

    lab.tell("alice adds carol, dave, erin and frank at once")
    outcomes = [asyncio.ensure_future(refused(alice, name)) for name in ("dave", "erin", "frank")]
    await alice.do("add carol")
    await erin.expect("ringing")
    if outcomes[1].done():
        raise ScenarioFailed("erin's phone does not ring")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await lab.heard("carol", "alice", DATA / "alice.wav")
    dave, ringing, frank = await asyncio.gather(*outcomes)
    lab.tell(f"  dave: {dave}; erin, after {RINGS_FOR:g} s: {ringing}; frank: {frank}")
    if dave != (480, "110") or ringing[0] != 408 or frank[0] not in (404, 480):
        raise ScenarioFailed(f"outcomes {dave}, {ringing}, {frank}")
    await carol.do(f"say {DATA / 'carol.wav'}")
    await lab.heard("alice", "carol", DATA / "carol.wav")
    await alice.do("release")
