# SPDX-License-Identifier: Apache-2.0
"""The examples, run as programs from what is built for installation, outside the source tree."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from mcptt_sip.errors import CallFailed
from tests.sip.sipp import HOST, free_port, needed, sipp
from tests.sip.telephones import telephone

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.network, pytest.mark.xdist_group("examples")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the build puts into the wheel: packages and their data, nothing of the tree beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo-out", "vectors")
    shutil.copytree(ROOT, source, ignore=skipped)
    build = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-c", build, "-q", "build", "--build-lib", str(folder / "site")]
    made = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    return folder / "site"


class Program:
    """One example that runs; its lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, pattern: str) -> re.Match[str]:
        """The next line that matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20.0):
            while said := (await self.process.stdout.readline()).decode():
                self.lines.append(said)
                if match := re.search(pattern, said):
                    return match
        raise AssertionError(f"it ended after {self.lines}: {await self.errors()}")

    async def errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def ended(self) -> int:
        async with asyncio.timeout(30.0):
            return await self.process.wait()


@asynccontextmanager
async def example(site: Path, name: str, *arguments: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"mcptt_sip.scenarios.examples.{name}", *arguments, cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def tone(path: Path, hertz: int, seconds: float, rate: int = 16000) -> Path:
    samples = (8000 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def pitch(path: Path) -> float:
    """The strongest frequency of a recording."""
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
        rate = file.getframerate()
    assert len(samples) > rate // 4, "hardly anything was recorded"
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


async def test_a_message_is_left_on_the_answering_machine(installed: Path, tmp_path: Path) -> None:
    folder, speech = tmp_path / "messages", tone(tmp_path / "tone.wav", 440, 1.0)
    async with example(installed, "uas", "--listen", f"udp:{HOST}:0", "--folder", str(folder)) as machine:
        port = (await machine.line(rf"udp:{HOST}:(\d+)"))[1]
        async with example(installed, "uac", f"sip:m@{HOST}:{port}", "--play", str(speech), "--digits", "4#") as caller:
            assert await caller.ended() == 0, await caller.errors()
        await machine.line("sip:caller@localhost left")
    (message,) = folder.glob("*.wav")
    assert abs(pitch(message) - 440) < 5


async def test_nobody_there_is_a_failure(installed: Path) -> None:
    async with telephone(reject=486) as busy, example(installed, "uac", busy.uri) as caller:
        assert await caller.ended() == 1
        assert "486" in await caller.errors()


async def test_two_parties_are_connected_and_hear_each_other(installed: Path) -> None:
    async with (
        telephone(identity="sip:one@localhost") as one,
        telephone(identity="sip:two@localhost", answer_after=0.2) as two,
        example(installed, "click_to_dial", one.uri, two.uri) as click,
    ):
        await click.line("connected")
        (first,), (second,) = one.agent.calls, two.agent.calls
        assert first.media is not None and second.media is not None
        await one.until("resumed")
        agreed = first.media.negotiation.agreed, second.media.negotiation.agreed
        assert [a is not None and a.remote for a in agreed] == [second.media.address, first.media.address]
        await second.hang_up()
        await first.ended.wait()
        await click.line("over")


@pytest.mark.interop
@needed("sipp", "sip-tester")
async def test_load_goes_through_the_back_to_back_user_agent(installed: Path, tmp_path: Path) -> None:
    async with sipp(tmp_path, "uas", calls=60) as callee:
        target = f"{HOST}:{callee.port}"
        async with example(installed, "b2bua", "--listen", f"udp:{HOST}:0", "--to", target) as between:
            port = (await between.line(rf"udp:{HOST}:(\d+)"))[1]
            arguments = (f"sip:service@{HOST}:{port}", "--rate", "60", "--calls", "60", "--hold", "0.1")
            async with example(installed, "load", *arguments) as load:
                assert (await load.line("60 calls"))
                assert await load.ended() == 0, load.lines
            await callee.succeeded()


async def test_holding_passes_through_the_back_to_back_user_agent(installed: Path) -> None:
    async with telephone() as callee:
        target = f"{HOST}:{callee.port}"
        async with (
            example(installed, "b2bua", "--listen", f"udp:{HOST}:0", "--to", target) as between,
            telephone() as me,
        ):
            port = (await between.line(rf"udp:{HOST}:(\d+)"))[1]
            call = await me.agent.call(f"sip:x@{HOST}:{port}")
            await call.hold()
            await callee.until("held")
            (theirs,) = callee.agent.calls
            await theirs.hang_up()
            await call.ended.wait()


async def test_a_registered_telephone_is_found(installed: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text('alice = "secret"\n')
    port = free_port()
    arguments = ("--listen", f"udp:{HOST}:{port}", "--passwords", str(users))
    async with example(installed, "registrar", *arguments) as registrar:
        await registrar.line("listening")
        register = f"sip:alice@{HOST}:{port}"
        async with telephone(user="alice", password="wrong", register=register) as stranger:
            await stranger.register()
            assert [told["status"] for told in stranger.told("registration-failed")] == [401]
        async with telephone(user="alice", password="secret", register=register) as alice, telephone() as bob:
            await alice.register()
            call = await bob.agent.call(register)
            assert call.established and await alice.until("answered")
            await call.hang_up()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_registered_telephones_call_one_another_through_the_proxy(
    installed: Path, tmp_path: Path, transport: str
) -> None:
    users = tmp_path / "users.toml"
    users.write_text('alice = "secret"\nbob = "other"\n')
    port = free_port()
    arguments = ("--listen", f"udp:{HOST}:{port}", "--listen", f"tcp:{HOST}:{port}", "--domain", HOST)
    async with example(installed, "proxy", *arguments, "--passwords", str(users)) as proxy:
        await proxy.line("listening on tcp")
        at = f"sip:{HOST}:{port};transport={transport};lr"
        async with (
            telephone(user="alice", password="secret", register=f"sip:alice@{HOST}:{port}", proxy=at) as alice,
            telephone(user="bob", password="other", register=f"sip:bob@{HOST}:{port}", proxy=at) as bob,
        ):
            await alice.register()
            await bob.register()
            call = await bob.agent.call(f"sip:alice@{HOST}:{port}")
            assert call.established and await alice.until("answered")
            await proxy.line("INVITE of bob for alice")
            assert call.session.dialog is not None
            routes = call.session.dialog.route_set
            assert routes and all(f"{HOST}:{port}" in route for route in routes), "the call stays with the proxy"
            await call.hold()
            await alice.until("held")
            (theirs,) = alice.agent.calls
            await theirs.hang_up()
            await call.ended.wait()
            with pytest.raises(CallFailed) as refusal:
                await bob.agent.call(f"sip:nobody@{HOST}:{port}")
            assert refusal.value.status == 404

