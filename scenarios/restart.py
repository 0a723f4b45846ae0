# SPDX-License-Identifier: Apache-2.0
"""The initiator's phone crashes and is started again, and nothing that matters was forgotten.

Before the first octet of a key leaves her phone, ``alice``'s journal (``--store``) says whom it was made for. She adds
``bob``, ``carol`` and ``dave``, removes dave, and is killed. Her restarted phone joins the call again with
``resume``: those who stayed get a fresh key from it, dave does not, and she can add him again.
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
    store = str(lab.secrets_dir / "alice-store")
    bob, carol, dave = await lab.phones("bob", "carol", "dave")
    alice = await lab.phone("alice", "--store", store)
    await alice.do("call bob carol dave")
    await alice.do("remove dave")

    lab.tell("alice's phone is killed, and started again")
    noticed = asyncio.ensure_future(lab.gone("alice"))
    alice.kill()
    await noticed
    before = len(bob.seen("key"))
    alice = await lab.phone("alice", "--store", store)
    await alice.do("resume")
    members = await alice.do("members")
    if members["keyed"] != [lab.uri("bob"), lab.uri("carol")]:
        raise ScenarioFailed(f"after the restart are keyed: {members['keyed']}")
    if len(bob.seen("key")) != before + 1 or dave.seen("key")[1:]:
        raise ScenarioFailed("the fresh key went to others than those who stayed")

    lab.tell("alice talks; bob and carol hear her; dave is added again and hears her too")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await asyncio.gather(*(lab.heard(name, "alice", DATA / "alice.wav") for name in ("bob", "carol")))
    await alice.do("add dave")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await lab.heard("dave", "alice", DATA / "alice.wav")
    await alice.do("release")
    await asyncio.gather(*(phone.expect("ended") for phone in (bob, carol)))
