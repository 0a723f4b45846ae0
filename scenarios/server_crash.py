# SPDX-License-Identifier: Apache-2.0
"""The server is killed in the middle of a call, and started again.

A server keeps no call over its death. Every phone notices at once that its connection is gone, ends the call visibly,
and registers again by itself as soon as there is a server; then ``alice`` calls again, with a new group and a new key.
Nobody had to do anything but call.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import Lab, ScenarioFailed

DATA = Path(__file__).parent / "data"


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol"):
        lab.user(name)
    await lab.start_kms()
    server = await lab.start_server()
    phones = await lab.phones("alice", "bob", "carol")
    alice = phones[0]
    first = (await alice.do("call bob carol"))["group"]

    lab.tell("the server is killed: every phone's call ends, and says so")
    server.kill()
    await asyncio.gather(*(phone.expect("ended", group=first) for phone in phones))
    await server.expect("exit")

    lab.tell("it is started again: every phone registers by itself")
    registered = [len(phone.events) for phone in phones]
    await lab.start_server()
    await asyncio.gather(
        *(phone.expect("registered", after=after, timeout=60) for phone, after in zip(phones, registered, strict=True))
    )
    second = (await alice.do("call bob carol"))["group"]
    if second == first:
        raise ScenarioFailed("the new call has the old group")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await asyncio.gather(*(lab.heard(name, "alice", DATA / "alice.wav") for name in ("bob", "carol")))
    await alice.do("release")
