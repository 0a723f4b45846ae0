# SPDX-License-Identifier: Apache-2.0
"""Two phones are killed in a call; the others talk on, and nothing is left afterwards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mcptt_sip.ops import scenario
from media.quality import score
from tests.system import sockets
from tests.system.hearing import bursts_heard, samples

pytestmark = pytest.mark.network
VOICES = Path(__file__).parents[2] / "scenarios" / "data"


async def test_survivors_talk_and_neither_process_nor_port_is_left(tmp_path: Path) -> None:
    story = scenario.load("crashes")
    async with scenario.laboratory(tmp_path) as lab:
        playing = asyncio.ensure_future(story.scenario(lab))
        while "dave" not in lab.processes or not lab.processes["dave"].seen("joined"):
            await asyncio.wait([playing], timeout=0.05)
            assert not playing.done() or playing.result() is None
        pids = [process.pid for process in lab.processes.values()]
        bound = {
            name: sockets.bound(process.pid)
            for name, process in lab.processes.items() if Path(f"/proc/{process.pid}/fd").exists()
        }  # fmt: skip
        ports = {socket for sockets_of in bound.values() for socket in sockets_of}
        assert len(bound["kms"]) >= 1 and len(bound["server"]) >= 4, "HTTPS; SIP twice, and the relay"
        talking = [name for name in bound.keys() - {"kms", "server"} if len(bound[name]) >= 3]
        assert {"carol", "dave"} <= set(talking), "SIP, media and floor of each phone that lives to the end"
        await playing
        assert lab.processes["server"].running and lab.processes["carol"].running
    assert scenario.check_afterwards(lab) is None
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    for socket in ports:
        socket.bind_again()
    reference, rate = samples(VOICES / "dave.wav")
    (last,) = bursts_heard(tmp_path, "carol", "dave")
    assert score(reference, last, rate) >= 0.85
    reference, rate = samples(VOICES / "carol.wav")
    heard = bursts_heard(tmp_path, "dave", "carol")
    assert len(heard) == 2, "once after bob died, once after alice died"
    assert all(score(reference, burst, rate) >= 0.85 for burst in heard)


def test_events_name_the_lost(tmp_path: Path) -> None:
    """`bursts_heard` reads what `Lab.save_events` writes; an empty file gives nothing rather than an error."""
    (tmp_path / "x.events.jsonl").write_text(json.dumps({"event": "registered"}) + "\n")
    assert bursts_heard(tmp_path, "x", "y") == []
