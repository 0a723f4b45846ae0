# SPDX-License-Identifier: Apache-2.0
"""Phones behind a bad network: 5 % of the packets are lost, the others are up to 40 ms late and overtake each other.

``bob`` and ``carol`` are out there; ``alice`` and ``dave`` are near the server. They talk to one another in both
directions, floor control messages are lost and repeated like everything else, and the key is replaced in the middle of
a word. What is heard still scores 0.85 and more.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import Lab

DATA = Path(__file__).parent / "data"
BAD = "loss=0.05,jitter=0.04,delay=0.02,reordering=0.02,duplication=0.01"


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol", "dave"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server()
    alice, dave = await lab.phones("alice", "dave")
    far = "mcptt_sip.scenarios.hostile_path"
    bob = await lab.phone("bob", "--line", f"{BAD},seed=1", module=far)
    await lab.phone("carol", "--line", f"{BAD},seed=2", module=far)
    await alice.do("call bob carol dave")

    lab.tell("bob talks from far away; alice, dave, and carol, who is far away too, hear him")
    await bob.do(f"say {DATA / 'bob.wav'}", timeout=40)
    await asyncio.gather(
        *(lab.heard(name, "bob", DATA / "bob.wav") for name in ("alice", "dave")),
        lab.heard("carol", "bob", DATA / "bob.wav", least=0.75),  # the line twice
    )
    lab.tell("dave talks, and alice replaces the key meanwhile")
    talking = asyncio.ensure_future(dave.do(f"say {DATA / 'dave.wav'}", timeout=40))
    await dave.expect("floor-granted")
    await alice.do("rekey")
    await talking
    await asyncio.gather(*(lab.heard(name, "dave", DATA / "dave.wav") for name in ("alice", "bob", "carol")))
    await alice.do("release")
