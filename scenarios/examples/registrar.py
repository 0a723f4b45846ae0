# SPDX-License-Identifier: Apache-2.0
"""A registrar and redirect server: telephones register with their password, and whoever calls one of them is told
where it is (302).

    python -m mcptt_sip.scenarios.examples.registrar --listen udp:127.0.0.1:5060 --passwords users.toml

where users.toml has a line ``alice = "secret"`` for each user.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tomllib
from pathlib import Path

from mcptt_sip import Call, DigestAuthenticator, Registrar, SipUri, StackSettings, UserAgent
from mcptt_sip.auth import Verdict
from mcptt_sip.incoming import ServerRequest


async def main(listen: list[str], realm: str, passwords: dict[str, str], algorithms: tuple[str, ...]) -> None:
    registrar = Registrar()
    digest = DigestAuthenticator(realm, passwords.get, lambda: secrets.token_bytes(16), algorithms=algorithms)
    agent = UserAgent(f"sip:{realm}", listen=listen, audio=False, settings=StackSettings(user=None))

    @agent.on("REGISTER")
    async def register(incoming: ServerRequest) -> None:
        now = agent.now()
        verdict, user = digest.check(incoming.request, now)
        aor = incoming.request.headers.to.uri
        if verdict is not Verdict.GOOD:
            incoming.respond(401, headers=digest.challenge(now, stale=verdict is Verdict.STALE), now=now)
        elif not isinstance(aor, SipUri) or aor.user != user:
            incoming.respond(403, now=now)
        else:
            outcome = registrar.register(incoming.request, incoming.flow, now)
            incoming.respond(outcome.status, outcome.reason, headers=outcome.headers, now=now)
            print(f"{aor} is at {[str(b.contact) for b in registrar.bindings(str(aor), now)]}", flush=True)

    @agent.on_call
    async def redirect(call: Call) -> None:
        found = registrar.bindings(str(call.request.uri), agent.now())
        if found:
            await call.redirect(*(str(binding.contact) for binding in found))
        else:
            await call.reject(404)

    async with agent:
        print("listening on", *(f"{kind}:{host}:{port}" for kind, host, port in agent.addresses), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", action="append")
    parser.add_argument("--realm", default="localhost")
    parser.add_argument("--passwords", type=Path, required=True)
    parser.add_argument("--algorithm", action="append", help="of the digest, the preferred one first; some telephones "
                        "give up at the first challenge that they do not know")
    given = parser.parse_args()
    users = tomllib.loads(given.passwords.read_text())
    chosen = tuple(given.algorithm or ("SHA-256", "MD5"))
    asyncio.run(main(given.listen or ["udp:127.0.0.1:5060"], given.realm, users, chosen))
