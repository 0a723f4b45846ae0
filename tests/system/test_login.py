# SPDX-License-Identifier: Apache-2.0
"""The few lines that an application writes, against programs that run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mcptt_sip import login
from mcptt_sip.errors import RegistrationFailed
from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.mcptt.callerrors import AddFailed
from mcptt_sip.ops.phone import proxy_uri
from mcptt_sip.ops.recording import samples_of
from mcptt_sip.ops.scenario import Lab, laboratory
from media.quality import score
from mikey.errors import KmsError

pytestmark = pytest.mark.network
DATA = Path(__file__).parents[2] / "scenarios" / "data"
VOICE, CAROL = DATA / "alice.wav", DATA / "carol.wav"


async def first_burst(regroup: Regroup, path: Path) -> tuple[str, float]:
    async for talker in regroup.talk_bursts():
        return talker.user, await talker.record(path)
    raise AssertionError("the call ended before anybody talked")


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
            listening = asyncio.ensure_future(first_burst(regroup, tmp_path / "heard.wav"))
            await asyncio.sleep(0)  # it listens from here on
            await carol.do(f"say {CAROL}")
            talker, seconds = await listening
            assert talker == Lab.uri("carol")
            reference, rate = samples_of(CAROL)
            part, _ = samples_of(tmp_path / "heard.wav")
            assert score(reference, part, rate) >= 0.85 and abs(seconds - len(reference) / rate) < 0.3
            await regroup.remove(Lab.uri("bob"))
            await bob.expect("ended")
        await carol.expect("ended")
        with pytest.raises(RegistrationFailed):
            async with login(Lab.uri("alice"), **(account | {"password": "wrong"})):
                pass
        with pytest.raises(KmsError):
            async with login(Lab.uri("alice"), **(account | {"kms_token": "wrong"})):
                pass
