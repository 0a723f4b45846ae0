# SPDX-License-Identifier: Apache-2.0
"""A member crashes and comes back; then he changes to a second device.

``bob``'s phone is killed. When it registers again, the server, which holds no key and keeps no old key message, asks
``alice``'s phone for a fresh one; she had keyed him and not removed him, so he is in again without anybody doing
anything. Then a second phone of bob asks to join: the first one is let go. ``mallory``, who was never in the call,
asks too, and is refused with Warning 121.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import CommandFailed, Lab, ScenarioFailed

DATA = Path(__file__).parent / "data"


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol", "mallory"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server()
    alice, bob, carol, mallory = await lab.phones("alice", "bob", "carol", "mallory")
    group = (await alice.do("call bob carol"))["group"]

    lab.tell("bob's phone is killed, and started again: he is in the call without doing anything")
    noticed = asyncio.ensure_future(lab.gone("bob"))
    bob.kill()
    await noticed
    bob = await lab.phone("bob")
    await bob.expect("joined", group=group)
    await alice.expect("key-request", user=lab.uri("bob"))
    await carol.do(f"say {DATA / 'carol.wav'}")
    await lab.heard("bob", "carol", DATA / "carol.wav")

    lab.tell("a second phone of bob asks to join: it takes the call over")
    first, second = bob, await lab.phone("bob", label="bob-2")
    await second.do(f"join {group}")
    await second.expect("joined", group=group)
    await first.expect("ended")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await lab.heard("bob-2", "alice", DATA / "alice.wav")

    lab.tell("mallory was never in the call")
    try:
        await mallory.do(f"join {group}")
    except CommandFailed as failure:
        if failure.event["status"] != 403 or not str(failure.event["warning"]).startswith("121 "):
            raise
    else:
        raise ScenarioFailed("mallory was let in")
    if mallory.seen("invited"):
        raise ScenarioFailed("mallory was invited")
    await alice.do("release")
