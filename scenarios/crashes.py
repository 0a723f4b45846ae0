# SPDX-License-Identifier: Apache-2.0
"""Two phones die in the middle of a call, and the others talk on.

``alice`` calls ``bob``, ``carol`` and ``dave``. While bob talks, his process is killed: no BYE, no unregister,
a socket that the kernel closes. The server notices, takes the floor from him, and the roster says so. Then alice,
the initiator, is killed in the same way: the call is kept (nobody can be added or rekeyed any more), and after
twenty seconds without her carol and dave still hear one another under the key that she made.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import Lab

DATA = Path(__file__).parent / "data"

#: seconds that the call goes on without the initiator before the survivors talk
ALONE = 20.0


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol", "dave"):
        lab.user(name, allow_regroup=name == "alice")
    await lab.start_kms()
    await lab.start_server()
    alice, bob, carol, dave = await lab.phones("alice", "bob", "carol", "dave")
    await alice.do("call bob carol dave")

    lab.tell("bob is killed while he talks")
    bob.tell(f"say {DATA / 'bob.wav'}")
    await bob.expect("floor-granted")
    noticed = asyncio.ensure_future(lab.gone("bob"))
    bob.kill()
    await noticed
    lab.tell("  the server noticed; carol gets the floor that was his")
    await carol.do(f"say {DATA / 'carol.wav'}")

    lab.tell("alice, the initiator, is killed")
    noticed = asyncio.ensure_future(lab.gone("alice"))
    alice.kill()
    await noticed
    lab.tell(f"  the server noticed; the call goes on for {ALONE:g} s")
    await asyncio.sleep(ALONE)  # what is shown is that time itself does no harm
    lab.tell("carol and dave talk to one another")
    await dave.do(f"say {DATA / 'dave.wav'}")
    await carol.do(f"say {DATA / 'carol.wav'}")
    await dave.do("hangup")
    await carol.expect("ended")
