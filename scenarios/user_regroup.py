# SPDX-License-Identifier: Apache-2.0
"""The whole temporary group call in one story, step by step in the words of the ten steps.

A KMS, a server and five phones, each a process of its own. ``alice``, the dispatcher, calls ``bob`` alone and
talks while ``carol`` and ``dave`` are being added; ``bob`` asks for the floor while it is taken, waits in the
queue, gets it and answers; ``erin`` joins late and hears from then on; ``bob`` is removed while ``dave`` talks:
everyone else gets a new key without a gap in the audio, and bob's phone, to which a tap on carol's line still
mirrors every packet, can read none of it. Before all that, ``erin`` tries to start such a call without the
right to, and is refused. At the end ``alice`` revokes the key and releases the call.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcptt_sip.ops.scenario import CommandFailed, Lab, Process, ScenarioFailed

DATA = Path(__file__).parent / "data"
PHONES = ("alice", "bob", "carol", "dave", "erin")


def voice(name: str) -> Path:
    """The speech that ships with the project for one phone."""
    return DATA / f"{name}.wav"


async def start(lab: Lab) -> dict[str, Process]:
    """Everything up and registered. Only alice may start calls."""
    for name in PHONES:
        lab.user(name, allow_regroup=name == "alice" and lab.breakage != "unauthorised")
    lab.tell("Starting a KMS, an MCPTT server and five phones")
    await lab.start_kms()
    hostile = lab.breakage in ("swap", "strip")
    await lab.start_server(
        *(["--break", lab.breakage] if hostile and lab.breakage else []),
        module="mcptt_sip.scenarios.hostile_server" if hostile else None,
    )
    bob = await lab.phone("bob", "--tap", "127.0.0.1:0")
    tap = (await bob.expect("tap"))["address"]
    started = await asyncio.gather(
        lab.phone("alice", *(["--break", "norekey"] if lab.breakage == "norekey" else []),
                  module="mcptt_sip.scenarios.hostile_phone" if lab.breakage == "norekey" else None),
        lab.phone("carol", "--mirror", tap),
        lab.phone("dave", *(["--break", "wrongkey"] if lab.breakage == "wrongkey" else []),
                  module="mcptt_sip.scenarios.hostile_phone" if lab.breakage == "wrongkey" else None),
        lab.phone("erin"),
    )
    return {"bob": bob, **dict(zip(("alice", "carol", "dave", "erin"), started, strict=True))}


async def refused_without_right(erin: Process) -> None:
    """A call by someone who may not start it."""
    try:
        await erin.do("call bob")
    except CommandFailed as failure:
        if failure.event.get("status") != 403:
            raise
        return
    raise ScenarioFailed("erin has no right to start a call, but started one")


async def until_refused(lab: Lab, alice: Process) -> None:
    """With a fault that stops the very first attempt: shows it, then repairs it, so that the rest is shown."""
    if lab.breakage == "unauthorised":
        await refused_without_right(alice)
        lab.tell("  the caller has not the right: refused. The right is given now, and the call repeated")
        lab.user("alice", allow_regroup=True)
    if lab.breakage == "strip":
        try:
            await alice.do("call bob")
        except CommandFailed as failure:
            lab.tell(f"  the key did not arrive: {failure.event.get('message')}. The call is repeated")
        else:
            raise ScenarioFailed("a call without its key was accepted")


async def add(lab: Lab, alice: Process, *names: str) -> None:
    """Step 7 and 8 for several users at once; a swapped key is refused and sent again."""
    results = await asyncio.gather(*(alice.do(f"add {name}") for name in names), return_exceptions=True)
    for name, result in zip(names, results, strict=True):
        if isinstance(result, CommandFailed) and lab.breakage == "swap":
            lab.tell(f"  {name} did not get the key made for him: {result.event.get('message')}; added again")
            await alice.do(f"add {name}")
        elif isinstance(result, BaseException):
            raise result


async def say(phone: Process, name: str) -> None:
    await phone.do(f"say {voice(name)}", timeout=30)


async def scenario(lab: Lab) -> None:
    phones = await start(lab)
    alice, bob, carol, dave, erin = (phones[name] for name in PHONES)

    lab.tell("erin, who may not, tries to start a call")
    await refused_without_right(erin)
    lab.tell("1-3  alice calls bob alone; the server checks the right and affiliates her")
    await until_refused(lab, alice)
    await alice.do("call bob")
    joined = await bob.expect("joined")
    lab.tell("4-6  bob's phone verified, opened and acknowledged the key")
    lab.tell("9    the server answered alice's INVITE")

    lab.tell("7-8  alice talks while carol and dave are being added; bob asks for the floor and waits")
    talking = asyncio.ensure_future(say(alice, "alice"))
    await alice.expect("floor-granted")
    answering = asyncio.ensure_future(say(bob, "bob"))
    await bob.expect("floor-queued", group=joined["group"])
    await add(lab, alice, "carol", "dave")
    await asyncio.gather(talking, answering)

    lab.tell("8    erin joins late, and hears from then on")
    await add(lab, alice, "erin")
    await say(carol, "carol")

    lab.tell("10   bob is removed while dave talks; everyone else is rekeyed without a gap")
    talking = asyncio.ensure_future(say(dave, "dave"))
    await dave.expect("floor-granted")
    await alice.do("remove bob")
    removed = await alice.expect("removed")
    lab.facts["removed_at"] = removed["t"]
    await talking
    await bob.expect("ended")
    lab.tell("     erin and alice talk on; the tap mirrors every packet to the removed phone")
    await say(erin, "erin")
    await say(alice, "alice")
    tapped = await bob.do("taps")
    lab.facts["tap"] = {k: tapped[k] for k in ("packets", "authenticated", "keys")} | {
        "after_removal": sum(1 for at in tapped["times"] if at >= removed["t"]),
        "authenticated_after_removal": sum(1 for at in tapped["authenticated_times"] if at >= removed["t"]),
    }

    lab.tell("     alice revokes the key and releases the call")
    await alice.do("revoke")
    for phone in (carol, dave, erin):
        await phone.expect("revoked")
    await alice.do("release")
    await asyncio.gather(*(phone.expect("ended") for phone in (carol, dave, erin)))
