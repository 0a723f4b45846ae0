# SPDX-License-Identifier: Apache-2.0
"""The server lies, and the clients notice: keys are swapped, and then one is taken out.

Against a server that gives ``carol`` and ``dave`` each other's key messages, both phones refuse with 488 and Warning
136, because a key message is for one user and says so in what is signed. Nobody is keyed with the wrong key, the call
of ``alice`` and ``bob`` goes on, and when the two are added again (this server lies once) they are in.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import CommandFailed, Lab, ScenarioFailed

DATA = Path(__file__).parent / "data"


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol", "dave"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server("--break", "swap", module="mcptt_sip.scenarios.hostile_server")
    alice, bob, carol, dave = await lab.phones("alice", "bob", "carol", "dave")
    await alice.do("call bob")

    lab.tell("carol and dave get each other's key messages")
    outcomes = await asyncio.gather(alice.do("add carol"), alice.do("add dave"), return_exceptions=True)
    for outcome in outcomes:
        if not isinstance(outcome, CommandFailed) or outcome.event["status"] != 488:
            raise ScenarioFailed(f"a swapped key message was not refused: {outcome}")
    for phone in (carol, dave):
        if phone.seen("key") or not phone.seen("invitation-refused"):
            raise ScenarioFailed(f"{phone.name} took a key that was not for him")

    lab.tell("alice and bob talk on; added again, carol and dave are in")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await lab.heard("bob", "alice", DATA / "alice.wav")
    await asyncio.gather(alice.do("add carol"), alice.do("add dave"))
    await bob.do(f"say {DATA / 'bob.wav'}")
    await asyncio.gather(*(lab.heard(name, "bob", DATA / "bob.wav") for name in ("alice", "carol", "dave")))
    await alice.do("release")
