# SPDX-License-Identifier: Apache-2.0
"""One user in two temporary groups at once: what happens in one changes nothing in the other.

``alice`` and ``dave`` each call ``bob`` and ``carol``. The groups have the same members and different keys. In
alice's group the key is replaced, bob is removed, and the call is released; all the while dave's group keeps the key it
had, and carol hears dave.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import Lab, ScenarioFailed

DATA = Path(__file__).parent / "data"


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol", "dave"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server()
    alice, bob, carol, dave = await lab.phones("alice", "bob", "carol", "dave")
    first = (await alice.do("call bob carol"))["group"]
    second = (await dave.do("call bob carol"))["group"]
    for phone in (bob, carol):
        if {event["group"] for event in phone.seen("joined")} != {first, second}:
            raise ScenarioFailed(f"{phone.name} is not in both groups")
    keys = {phone.name: len(phone.seen("key", group=second)) for phone in (bob, carol, dave)}

    lab.tell("in alice's group: a new key, bob is removed, the call is released")
    await alice.do("rekey")
    await alice.do("remove bob")
    await bob.expect("ended", group=first)
    await alice.do("release")
    await carol.expect("ended", group=first)

    lab.tell("dave's group has its key and its members, and carol and bob hear him")
    for phone in (bob, carol, dave):
        if len(phone.seen("key", group=second)) != keys[phone.name] or phone.seen("ended", group=second):
            raise ScenarioFailed(f"{phone.name}: the other group was touched")
    await dave.do(f"say {DATA / 'dave.wav'}")
    for name in ("bob", "carol"):
        await lab.processes[name].expect("burst-heard", group=second, user=lab.uri("dave"))
    await dave.do("release")
    await asyncio.gather(*(phone.expect("ended", group=second) for phone in (bob, carol)))
