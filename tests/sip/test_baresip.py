# SPDX-License-Identifier: Apache-2.0
"""baresip, in a network namespace of its own with our telephone and registrar: it registers, calls and is called, with
audio both ways, in clear and over SRTP with SDES keys.

baresip wants an interface that is not the loopback: a veth pair of the namespace. Everything in it is a process of its
own, entered through ``ip netns exec``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sip.sipp import needed
from tests.sip.test_examples import pitch, tone

pytestmark = [
    pytest.mark.network,
    pytest.mark.interop,
    pytest.mark.xdist_group("baresip"),
    needed("baresip", "baresip-core"),
    needed("ip", "iproute2"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root"),
]
HOST = "10.9.9.1"

CONFIG = """sip_listen {host}:5110
audio_player aufile,/dev/null
audio_source aufile,{folder}/tone.wav
audio_alert aufile,/dev/null
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
rtp_ports 20000-20100
rtcp_mux no
jitter_buffer_type fixed
jitter_buffer_delay 5-10
call_local_timeout 120
module_path /usr/lib/baresip/modules
module stdio.so
module g711.so
module aufile.so
module srtp.so
module uuid.so
module sndfile.so
module_tmp account.so
module_app contact.so
module_app menu.so
net_interface v0
snd_path {folder}
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"sip{os.getpid()}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    try:
        ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{HOST}/24", "dev", "v0")
        ip("-n", name, "link", "set", "v0", "up")
        ip("-n", name, "link", "set", "v1", "up")
        ip("-n", name, "route", "add", "default", "via", "10.9.9.254", "dev", "v0")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)


class Inside:
    """A process in the namespace, its lines, and its standard input."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def until(self, text: str, seconds: float = 20.0) -> str:
        """Reads on until a line holds the text."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                while line := (await self.process.stdout.readline()).decode("utf-8", "replace"):
                    self.said += line
                    if text in line:
                        return line
        except TimeoutError:
            pass
        raise AssertionError(f"no {text!r} in:\n{self.said}")

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of this name of ``mcptt ua --json``."""
        found: dict[str, Any] = json.loads(await self.until(f'"event": "{name}"'))
        return found

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())


@asynccontextmanager
async def inside(namespace: str, *command: str) -> AsyncIterator[Inside]:
    process = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", namespace, *command,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield Inside(process)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(5.0):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def baresip(folder: Path, account: str) -> list[str]:
    """The command that starts baresip with one account."""
    (folder / "config").write_text(CONFIG.format(host=HOST, folder=folder))
    (folder / "accounts").write_text(account + "\n")
    (folder / "contacts").write_text("")
    return [shutil.which("baresip") or "baresip", "-f", str(folder)]


def telephone(*options: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mcptt")), "ua", "--listen", f"udp:{HOST}:5070", "--json", *options]


@pytest.mark.parametrize("protection", ["clear", "sdes"])
async def test_baresip_calls_and_is_called_with_audio_both_ways(
    namespace: str, tmp_path: Path, protection: str
) -> None:
    tone(tmp_path / "tone.wav", 440, 20.0, rate=8000)  # what baresip says
    speech = tone(tmp_path / "speech.wav", 1000, 20.0)  # what we say
    heard = tmp_path / "heard.wav"
    secure = protection == "sdes"
    account = f"<sip:bob@{HOST};transport=udp>;regint=0;answermode=auto;audio_codecs=PCMU" + (
        ";mediaenc=srtp-mand" if secure else ""
    )
    options = ["--play", str(speech), "--record", str(heard), *(["--sdes"] if secure else [])]
    async with (
        inside(namespace, *telephone(*options)) as ours,
        inside(namespace, *baresip(tmp_path, account)) as theirs,
    ):
        await ours.event("ready")
        await theirs.until("baresip is ready")

        theirs.type(f"/dial sip:ua@{HOST}:5070")
        await ours.event("incoming")
        answered = await ours.event("answered")
        assert answered["codec"] == "PCMU" and (answered["srtp"] is not None) == secure
        await asyncio.sleep(5.8)  # of speech: baresip reports every 5 s
        theirs.type("/hangup")
        ended = await ours.event("ended")
        assert ended["cause"] == "remote_bye" and ended["received"] > 40 and ended["sent"] > 40
        assert ended["lost"] == 0 and ended["jitter"] < 0.1, "what its RTCP says of our audio"
        assert abs(pitch(heard) - 440) < 10
        heard.unlink()
        for file in tmp_path.glob("dump-*"):
            file.unlink()

        ours.type(f"call sip:bob@{HOST}:5110")
        await ours.event("answered")
        await asyncio.sleep(1.5)
        ours.type("hangup")
        ended = await ours.event("ended")
        assert ended["cause"] == "local_bye" and ended["received"] > 40
        assert abs(pitch(heard) - 440) < 10
        await theirs.until("terminated")
        (decoded,) = tmp_path.glob("dump-*-dec.wav")
        theirs.type("/quit")
        await theirs.process.wait()
        assert abs(pitch(decoded) - 1000) < 20


async def test_baresip_registers_with_its_password(namespace: str, tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text('bob = "secret"\n')
    tone(tmp_path / "tone.wav", 440, 1.0, rate=8000)
    account = f"<sip:bob@{HOST};transport=udp>;auth_user=bob;auth_pass=secret;regint=300;outbound=\"sip:{HOST}:5080\""
    registrar = [
        sys.executable, "-m", "mcptt_sip.scenarios.examples.registrar", "--listen", f"udp:{HOST}:5080",
        "--realm", HOST, "--passwords", str(users), "--algorithm", "MD5",  # it gives up at SHA-256
    ]  # fmt: skip
    async with inside(namespace, *registrar) as server:
        await server.until("listening")
        async with inside(namespace, *baresip(tmp_path, account)) as theirs:
            where = await server.until(f"sip:bob@{HOST} is at")
            assert f"{HOST}:5110" in where
            theirs.type("/quit")
            await theirs.process.wait()
        assert "[]" in await server.until("is at"), "it leaves when it quits"
