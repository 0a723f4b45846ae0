# SPDX-License-Identifier: Apache-2.0
"""The initiator is lost for good, and a deputy goes on.

``alice`` signs ``bob`` as her deputy into the terms of the group: only because her signature says so will anybody
take keys from him. Her phone is killed. The call goes on under the key it has; ``carol``, whom alice did not name,
cannot take over; ``bob`` can: everyone gets a new key from him, he adds ``dave`` and removes ``carol``. What bob says
after that, dave hears, and carol's phone does not even hold the key.
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
    await lab.start_server()
    bob, carol, _ = await lab.phones("bob", "carol", "dave")
    alice = await lab.phone("alice", "--deputy", lab.uri("bob"))
    await alice.do("call bob carol")
    await bob.expect("member-list")

    lab.tell("alice is killed; the server notices")
    noticed = asyncio.ensure_future(lab.gone("alice"))
    alice.kill()
    await noticed

    lab.tell("carol, whom alice did not sign for, cannot take over; bob can")
    try:
        await carol.do("takeover")
    except CommandFailed as failure:
        if failure.event["error"] != "NotADeputy":
            raise
    else:
        raise ScenarioFailed("carol took over, and alice never signed for her")
    taken = await bob.do("takeover")
    if taken["keyed"] != [lab.uri("carol")]:
        raise ScenarioFailed(f"keyed by the deputy: {taken['keyed']}")

    lab.tell("bob adds dave and removes carol, as alice could have")
    await bob.do("add dave")
    await bob.do("remove carol")
    await carol.expect("ended")
    await bob.do(f"say {DATA / 'bob.wav'}")
    await lab.heard("dave", "bob", DATA / "bob.wav")
    if carol.seen("burst-heard"):
        raise ScenarioFailed("carol heard what was said after her removal")
