# SPDX-License-Identifier: Apache-2.0
"""Rights change while the server runs: each refusal says why, ``mcptt admin why`` says the same, the next try works.

``alice`` may not form groups at first. Her call is refused; the operator asks why, gives her the right, and the same
call succeeds. Then she may call only ``bob``: adding ``carol`` is refused until the operator extends her list. A user
who is taken out of the policy is unknown; one who may take part in one call only is busy for a second. A member who is
taken out leaves the call, and the others get another key.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from mcptt_sip.ops.scenario import CommandFailed, Lab, Process, ScenarioFailed, program


async def admin(lab: Lab, *words: str) -> tuple[int, str]:
    """``mcptt admin``: its exit code, and what it printed."""
    command = [*program("admin"), *words, "--policy", str(lab.secrets_dir / "policy.toml")]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def changed(lab: Lab, *words: str) -> None:
    code, printed = await admin(lab, "user", *words)
    if code:
        raise ScenarioFailed(f"admin user {' '.join(words)}: {printed}")


async def refusal(phone: Process, command: str, status: int, code: str) -> None:
    """The command must fail with this status and Warning."""
    try:
        await phone.do(command)
    except CommandFailed as failure:
        event: dict[str, Any] = failure.event
        if event.get("status") == status and str(event.get("warning")).startswith(code):
            return
        raise ScenarioFailed(f"{command}: {event}") from failure
    raise ScenarioFailed(f"{command} was allowed")


async def scenario(lab: Lab) -> None:
    lab.user("alice", allow_regroup=False)
    for name in ("bob", "carol", "dave", "erin"):
        lab.user(name)
    await lab.start_kms()
    await lab.start_server()
    alice, bob, carol, _dave, erin = await lab.phones("alice", "bob", "carol", "dave", "erin")

    lab.tell("alice has no right to form a group")
    await refusal(alice, "call bob", 403, "119")
    code, printed = await admin(lab, "why", lab.uri("alice"), "bob", "--json")
    answer = json.loads(printed)
    if code != 1 or answer["allowed"] or "119" not in answer["verdict"]:
        raise ScenarioFailed(f"why: {printed}")
    lab.tell(f"  {answer['verdict']}")

    lab.tell("she is given it, and may call bob only")
    await changed(
        lab, "set", "alice", "allow-regroup=true", "allow-private-call-to-any-user=false",
        f"PrivateCallList={lab.uri('bob')}",
    )
    await alice.do("call bob")
    await refusal(alice, "add carol", 403, "144")
    await changed(lab, "set", "alice", "allow-private-call-to-any-user=true")
    await alice.do("add carol")

    lab.tell("dave is taken out, and erin may take part in one call at a time")
    await changed(lab, "remove", "dave")
    await refusal(alice, "add dave", 404, "141")
    await changed(lab, "set", "erin", "MaxSimultaneousCallsN6=1")
    await alice.do("add erin")
    await refusal(erin, "call bob", 486, "103")

    lab.tell("carol is taken out of the policy while she is in the call")
    await changed(lab, "remove", "carol")
    await carol.expect("ended")
    await alice.do("rekey")
    members = await alice.do("members")
    if members["keyed"] != sorted(map(lab.uri, ("bob", "erin"))):
        raise ScenarioFailed(f"members: {members}")
    await alice.do("release")
    await bob.expect("ended")
