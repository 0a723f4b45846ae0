# SPDX-License-Identifier: Apache-2.0
"""New keys in the middle of words, and nobody hears anything of it.

``bob`` and ``dave`` talk one after the other while ``alice`` replaces the key again and again: every member goes on
sending under the old key until the new one is in force, and receives under both until the old one has died away. What
was heard is compared with what was said; not a sample may be missing or doubled.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import Lab, ScenarioFailed

DATA = Path(__file__).parent / "data"
REKEYS = 2


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol", "dave"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server()
    alice = await lab.phone("alice", "--activation-delay", "1.2")
    bob, carol, dave = await lab.phones("bob", "carol", "dave")
    await alice.do("call bob carol dave")
    for talker, listeners in ((bob, ("alice", "carol", "dave")), (dave, ("alice", "bob", "carol"))):
        lab.tell(f"{talker.name} talks; alice replaces the key {REKEYS} times meanwhile")
        before = len(carol.seen("sending-key"))
        talking = asyncio.ensure_future(talker.do(f"say {DATA / f'{talker.name}.wav'}", timeout=30))
        await talker.expect("floor-granted")
        for _ in range(REKEYS):
            await alice.do("rekey")
        if talking.done():
            raise ScenarioFailed("the keys were not replaced while somebody talked")
        await talking
        if len(carol.seen("sending-key")) != before + REKEYS:
            raise ScenarioFailed("carol did not change her key as often as alice replaced it")
        await asyncio.gather(*(lab.heard(name, talker.name, DATA / f"{talker.name}.wav") for name in listeners))
    await alice.do("release")
