# SPDX-License-Identifier: Apache-2.0
"""The few lines that an application writes, against programs that run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcptt_sip import login
from mcptt_sip.errors import RegistrationFailed
from mcptt_sip.mcptt.callerrors import AddFailed
from mcptt_sip.ops.phone import proxy_uri
from mcptt_sip.ops.scenario import Lab, laboratory
from mikey.errors import KmsError

pytestmark = pytest.mark.network
VOICE = Path(__file__).parents[2] / "scenarios" / "data" / "alice.wav"


async def test_a_dispatcher_in_a_dozen_lines(tmp_path: Path) -> None:
    async with laboratory(tmp_path, capture=False) as lab:
        for name in ("alice", "bob", "carol"):
            lab.user(name)
        await lab.start_kms()
        await lab.start_server()
        bob, carol = await lab.phones("bob", "carol")
        account = {
            "password": lab.password("alice"), "proxy": proxy_uri(lab.facts["proxy"]), "kms": lab.facts["kms"],
            "kms_token": lab.token("alice"),
        }
        async with login(Lab.uri("alice"), **account) as alice:
            regroup = await alice.regroup([Lab.uri("bob")])
            await regroup.add(Lab.uri("carol"))
            async with regroup.floor(priority=5):
                await regroup.say(VOICE)
            await lab.heard("carol", "alice", VOICE)
            with pytest.raises(AddFailed):
                await regroup.add(Lab.uri("nobody"))
            await regroup.remove(Lab.uri("bob"))
            await bob.expect("ended")
        await carol.expect("ended")
        with pytest.raises(RegistrationFailed):
            async with login(Lab.uri("alice"), **(account | {"password": "wrong"})):
                pass
        with pytest.raises(KmsError):
            async with login(Lab.uri("alice"), **(account | {"kms_token": "wrong"})):
                pass
