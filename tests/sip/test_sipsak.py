# SPDX-License-Identifier: Apache-2.0
"""sipsak against our user agent and registrar over a real socket on loopback."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from mcptt_sip.auth import DigestAuthenticator, Ha1, Verdict, ha1
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.registrar import Registrar
from tests.sip.sipp import HOST, Agent, agent, needed

pytestmark = [pytest.mark.network, pytest.mark.interop, needed("sipsak", "sipsak")]

REALM = HOST


async def sipsak(*arguments: str) -> tuple[int, str]:
    """Its exit status and what it said."""
    process = await asyncio.create_subprocess_exec(
        "sipsak", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace")


def registering(ours: Agent) -> Registrar:
    """Makes a user agent a registrar that knows alice, whose password is secret. sipsak 0.9.8.1 knows MD5 only."""
    registrar, source = Registrar(), random.Random(1)
    known = {"alice": Ha1(ha1("alice", REALM, "secret", "MD5"), "MD5")}
    digest = DigestAuthenticator(REALM, known.get, lambda: source.randbytes(16), algorithms=("MD5",))

    def answer(event: Any, now: float) -> None:
        if not isinstance(event, RequestReceived):
            return
        incoming = event.incoming
        verdict, _ = digest.check(incoming.request, now)
        if verdict is not Verdict.GOOD:
            incoming.respond(401, headers=digest.challenge(now, stale=verdict is Verdict.STALE), now=now)
            return
        outcome = registrar.register(incoming.request, incoming.flow, now)
        incoming.respond(outcome.status, outcome.reason, headers=outcome.headers, now=now)

    ours.on = answer
    return registrar


async def test_options() -> None:
    async with agent() as ours:
        code, said = await sipsak("-vv", "-s", f"sip:ua@{HOST}:{ours.port}")
    assert code == 0, said
    assert "SIP/2.0 200 OK" in said and "Allow: INVITE" in said


async def test_register_with_digest() -> None:
    async with agent() as ours:
        registrar = registering(ours)
        contact = f"sip:alice@{HOST}:5999"
        code, said = await sipsak(
            "-vv", "-U", "-C", contact, "-x", "600", "-u", "alice", "-a", "secret",
            "-s", f"sip:alice@{HOST}:{ours.port}",
        )  # fmt: skip
        assert code == 0, said
        assert "All usrloc tests completed successful" in said
        answered = [event.incoming.request for event in ours.told(RequestReceived)]
        assert [request.method for request in answered] == ["REGISTER", "REGISTER"]
        (binding,) = registrar.bindings(f"sip:alice@{HOST}", time.time())
        assert str(binding.contact) == contact and 590 < binding.expires_at - time.time() <= 600


async def test_register_with_the_wrong_password() -> None:
    async with agent() as ours:
        registrar = registering(ours)
        code, said = await sipsak(
            "-vv", "-U", "-C", f"sip:alice@{HOST}:5999", "-u", "alice", "-a", "wrong",
            "-s", f"sip:alice@{HOST}:{ours.port}",
        )  # fmt: skip
        assert code != 0, said
        assert registrar.bindings(f"sip:alice@{HOST}", time.time()) == []
