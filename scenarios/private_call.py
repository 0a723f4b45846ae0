# SPDX-License-Identifier: Apache-2.0
"""A private call: the mechanism that the temporary group call reuses for each of its users.

``alice`` calls ``bob`` alone. She makes a key (a PCK), seals it to him, and the server passes it on unopened. They talk
in both directions; meanwhile alice starts a temporary group call with ``carol``, which has nothing to do with it.
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
    await lab.start_server()
    alice, bob, carol = await lab.phones("alice", "bob", "carol")
    lab.tell("alice calls bob alone; they talk in both directions")
    await alice.do("private bob")
    await bob.expect("joined")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await lab.heard("bob", "alice", DATA / "alice.wav")
    await bob.do(f"say {DATA / 'bob.wav'}")
    await lab.heard("alice", "bob", DATA / "bob.wav")
    lab.tell("a temporary group call goes side by side with it")
    await alice.do("call carol")
    await alice.do("release")
    await carol.expect("ended")
    if bob.seen("ended"):
        raise ScenarioFailed("the private call ended with the group call")
    await bob.do("hangup")
    await asyncio.gather(*(phone.expect("ended") for phone in (alice, bob)))
