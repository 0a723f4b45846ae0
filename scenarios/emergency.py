# SPDX-License-Identifier: Apache-2.0
"""An emergency call, a dispatcher who interrupts, and an ordinary call that becomes an emergency.

``bob`` may not make emergency calls: his is refused with 403, and the answer says that it is none. ``alice`` may: her
call says to every phone that it is an emergency. While ``carol`` talks, alice asks for the floor with a priority that
pre-empts: carol is told to stop, and alice is heard.

In an ordinary call alice then declares an emergency: every phone shows it, her requests go before others by that alone,
carol, who has no right to, can neither declare one nor take this one back, and alice takes it back herself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

from mcptt_sip.ops.scenario import CommandFailed, Lab, Process, ScenarioFailed

DATA = Path(__file__).parent / "data"


async def scenario(lab: Lab) -> None:
    lab.user("alice", allow_emergency_group_call=True, user_priority=200)
    for name in ("bob", "carol"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server("--preemptive-priority", "100")
    alice, bob, carol = await lab.phones("alice", "bob", "carol")

    lab.tell("bob may not make emergency calls; alice may, and every phone shows it")
    await refused(bob, "emergency carol")
    await alice.do("emergency bob carol")
    for phone in (bob, carol):
        await phone.expect("invited", urgency="emergency")

    lab.tell("carol talks, and alice interrupts her")
    talking = asyncio.ensure_future(carol.do(f"say {DATA / 'carol.wav'}"))
    await carol.expect("floor-granted")
    await alice.do(f"say {DATA / 'alice.wav'} 200")
    await interrupted(carol, talking)
    await asyncio.gather(*(lab.heard(name, "alice", DATA / "alice.wav") for name in ("bob", "carol")))
    await alice.do("release")
    await asyncio.gather(*(phone.expect("ended") for phone in (bob, carol)))

    lab.tell("an ordinary call: alice declares an emergency, and interrupts carol without any priority")
    await alice.do("call bob carol")
    await asyncio.gather(*(phone.expect("joined") for phone in (bob, carol)))
    talking = asyncio.ensure_future(carol.do(f"say {DATA / 'carol.wav'}"))
    await carol.expect("floor-granted")
    await alice.do("declare emergency")
    for phone in (bob, carol):
        await phone.expect("urgency", urgency="emergency", user=lab.uri("alice"))
    await refused(carol, "declare normal")
    await alice.do(f"say {DATA / 'alice.wav'}")
    await interrupted(carol, talking)

    lab.tell("it is over when she says so")
    await alice.do("declare normal")
    for phone in (bob, carol):
        await phone.expect("urgency", urgency="normal")
    await refused(carol, "declare emergency")
    await alice.do("release")


async def refused(phone: Process, command: str) -> None:
    """403 with Warning 100: no right to it."""
    try:
        await phone.do(command)
    except CommandFailed as failure:
        if failure.event["status"] != 403 or not str(failure.event["warning"]).startswith("100 "):
            raise
    else:
        raise ScenarioFailed(f"{phone.name}: {command} was not refused")


async def interrupted(phone: Process, talking: Awaitable[object]) -> None:
    """Its user loses the floor while he talks."""
    try:
        await talking
    except CommandFailed:
        await phone.expect("floor-revoked")
    else:
        raise ScenarioFailed(f"{phone.name} was not interrupted")
