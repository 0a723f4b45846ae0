# SPDX-License-Identifier: Apache-2.0
"""Kamailio as registrar and record-routing proxy between two telephones, over every transport that it has."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mcptt_sip.tls import client_context
from mcptt_sip.transport import TransportSettings
from tests.sip.certificates import Authority
from tests.sip.sipp import free_port, needed
from tests.sip.telephones import HOST, Phone, telephone

MODULES = Path("/usr/lib/x86_64-linux-gnu/kamailio/modules")
pytestmark = [
    pytest.mark.network,
    pytest.mark.interop,
    needed("kamailio", "kamailio"),
    pytest.mark.xdist_group("kamailio"),
    pytest.mark.skipif(
        not all((MODULES / name).exists() for name in ("tls.so", "websocket.so", "uuid.so")),
        reason="apt-get install kamailio-tls-modules kamailio-websocket-modules kamailio-extra-modules",
    ),
]


@dataclass(frozen=True)
class Kamailio:
    """A running one: its SIP, TLS and WebSocket ports, and who signed its certificate."""

    sip: int
    tls: int
    ws: int
    authority: Authority

    def uri(self, transport: str, user: str | None = None) -> str:
        port = {"tls": self.tls, "wss": self.tls, "ws": self.ws}.get(transport, self.sip)
        return f"sip:{user + '@' if user else ''}{HOST}:{port};transport={transport}"


@asynccontextmanager
async def kamailio(folder: Path, *defines: str) -> AsyncIterator[Kamailio]:
    """Kamailio until the block ends."""
    authority = Authority(folder)
    identity = authority.sign(HOST, "localhost", file="kamailio")
    made = Kamailio(free_port(), free_port(), free_port(), authority)
    text = (Path(__file__).parent / "kamailio.cfg").read_text()
    for name, value in (("SIPPORT", made.sip), ("TLSPORT", made.tls), ("WSPORT", made.ws), ("RUNDIR", folder)):
        text = text.replace(name, str(value))
    (folder / "kamailio.cfg").write_text(text)
    server = "method = TLSv1.2+\nverify_certificate = no\nrequire_certificate = no\n"
    keys = f"private_key = {identity.key}\ncertificate = {identity.certificate}\n"
    (folder / "tls.cfg").write_text(f"[server:default]\n{server}{keys}[client:default]\n{server}")
    with (folder / "kamailio.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "kamailio", "-DD", "-E", "-f", str(folder / "kamailio.cfg"), "-Y", str(folder), "-P", str(folder / "pid"),
            "-m", "64", "-M", "8", *(word for name in defines for word in ("-A", name)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await _answers(made, process, folder)
        yield made
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _answers(made: Kamailio, process: asyncio.subprocess.Process, folder: Path) -> None:
    """Until it answers OPTIONS."""
    async with asyncio.timeout(20.0), telephone() as asker:
        while True:
            assert process.returncode is None, (folder / "kamailio.log").read_text()[-2000:]
            try:
                async with asyncio.timeout(0.3):
                    response = await asker.agent.request("OPTIONS", made.uri("udp"))
            except TimeoutError:
                continue
            assert response.status == 200
            return


@asynccontextmanager
async def registered(server: Kamailio, transport: str, user: str, **options: object) -> AsyncIterator[Phone]:
    """A telephone that Kamailio knows."""
    listen = [f"{transport}:{HOST}:0"] if transport in ("udp", "tcp") else []
    trust = TransportSettings(tls_client=client_context(server.authority.file))
    async with telephone(
        *(listen or [f"udp:{HOST}:0"]), user=user, password="secret", identity=f"sip:{user}@{HOST}",
        proxy=server.uri(transport), transport=trust, register=server.uri(transport, user), **options,  # type: ignore[arg-type]
    ) as phone:  # fmt: skip
        await phone.register()
        assert phone.told("registered"), phone.events
        yield phone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kamailio")


@pytest.mark.parametrize("algorithm", ["MD5", "SHA256"])
async def test_telephones_call_each_other_through_the_proxy(tmp_path: Path, algorithm: str) -> None:
    defines = ["WITH_AUTH"] + ["SHA256"] * (algorithm == "SHA256")
    kinds = ["udp", "tcp", "tls", "ws", "wss"]
    async with kamailio(tmp_path, *defines) as server:
        for caller, callee in zip(kinds, [*kinds[1:], kinds[0]], strict=True):
            async with (
                registered(server, callee, "bob") as bob,
                registered(server, caller, "alice") as alice,
            ):
                call = await alice.agent.call(f"sip:bob@{HOST}:{server.sip}")
                (incoming,) = await bob.until("incoming")
                assert incoming["from"] == f"sip:alice@{HOST}"
                route = call.session.dialog
                assert route is not None and route.route_set, "the proxy stays on the way"
                assert call.media is not None
                await call.hold()
                await bob.until("held")
                await call.resume()
                await bob.until("resumed")
                message = await alice.agent.message(f"sip:bob@{HOST}:{server.sip}", "hello")
                assert message.status == 200
                (theirs,) = bob.agent.calls
                await (call if caller in ("udp", "tls", "wss") else theirs).hang_up()
                async with asyncio.timeout(5.0):
                    await call.ended.wait()
                    await theirs.ended.wait()


async def test_a_wrong_password_and_a_user_who_is_not_there(tmp_path: Path) -> None:
    async with kamailio(tmp_path, "WITH_AUTH") as server, telephone(
        user="mallory", password="guess", register=server.uri("udp", "mallory"), proxy=server.uri("udp")
    ) as mallory:
        await mallory.register()
        assert [told["status"] for told in mallory.told("registration-failed")] == [401]
        await mallory.place(f"sip:nobody@{HOST}:{server.sip}")
        assert [told["status"] for told in mallory.told("call-failed")] == [404]


async def test_kamailio_forks_to_two_devices_and_the_slower_one_is_cancelled(tmp_path: Path) -> None:
    async with (
        kamailio(tmp_path) as server, registered(server, "udp", "bob", answer_after=0.4) as quick,
        registered(server, "tcp", "bob", ring=True) as slow,
        registered(server, "udp", "alice") as alice,
    ):
        call = await alice.agent.call(f"sip:bob@{HOST}:{server.sip}")
        await quick.until("answered")
        await slow.until("incoming")
        for waiting in list(slow.agent.calls):
            async with asyncio.timeout(5.0):
                await waiting.ended.wait()
        assert not slow.told("answered")
        await call.hang_up()


