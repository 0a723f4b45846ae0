# SPDX-License-Identifier: Apache-2.0
"""The key management server is gone, and calls go on.

``bob`` keeps his keys sealed in his phone's store. The KMS is stopped; ``alice`` calls bob and ``carol`` all the same,
replaces the key and talks: nothing of a call needs the KMS. Then bob's phone is killed, and starts again without a
KMS, from its store.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import Lab

DATA = Path(__file__).parent / "data"


async def scenario(lab: Lab) -> None:
    for name in ("alice", "bob", "carol"):
        lab.user(name)
    kms = await lab.start_kms()
    await lab.start_server()
    kept = ("--store", str(lab.secrets_dir / "bob-store"), "--key-file", str(lab.secrets_dir / "bob-key"))
    alice, _carol = await lab.phones("alice", "carol")
    bob = await lab.phone("bob", *kept)

    lab.tell("the KMS is stopped; alice calls, replaces the key, and talks")
    await kms.stop()
    group = (await alice.do("call bob carol"))["group"]
    await alice.do("rekey")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await asyncio.gather(*(lab.heard(name, "alice", DATA / "alice.wav") for name in ("bob", "carol")))

    lab.tell("bob's phone is killed, and starts again from its store")
    noticed = asyncio.ensure_future(lab.gone("bob"))
    bob.kill()
    await noticed
    again = await lab.phone("bob", *kept)
    await again.expect("joined", group=group)
    await alice.do(f"say {DATA / 'alice.wav'}")
    await lab.heard("bob", "alice", DATA / "alice.wav")
    await alice.do("release")
