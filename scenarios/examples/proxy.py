# SPDX-License-Identifier: Apache-2.0
"""A registrar and proxy for one domain: telephones register with their password and call one another through it, over
whichever of its transports each of them likes.

    python -m mcptt_sip.scenarios.examples.proxy --listen udp:127.0.0.1:5060 --domain 127.0.0.1 --passwords users.toml

where users.toml has a line ``alice = "secret"`` for each user.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
import tomllib
from pathlib import Path

from mcptt_sip import DigestAuthenticator, ProxySettings, Registrar, SipEndpoint, SipProxy, SipUri, Target
from mcptt_sip.auth import Verdict
from mcptt_sip.endpoint import steady
from mcptt_sip.proxy import Forwarding, RequestToForward
from mcptt_sip.stack import FlowLost
from mcptt_sip.useragent import parse_listener


class Domain:
    """Who its users are, and where."""

    def __init__(self, name: str, passwords: dict[str, str]) -> None:
        self.name = name
        self.registrar = Registrar()
        self.digest = DigestAuthenticator(name, passwords.get, lambda: secrets.token_bytes(16))
        self.proxy_digest = DigestAuthenticator(name, passwords.get, lambda: secrets.token_bytes(16), proxy=True)

    def handle(self, event: object, now: float) -> None:
        match event:
            case RequestToForward(forwarding) if forwarding.request.method == "REGISTER":
                self.register(forwarding, now)
            case RequestToForward(forwarding):
                self.forward(forwarding, now)
            case FlowLost(flow):
                self.registrar.flow_lost(flow, now)

    def register(self, forwarding: Forwarding, now: float) -> None:
        request = forwarding.request
        verdict, user = self.digest.check(request, now)
        aor = request.headers.to.uri
        if verdict is not Verdict.GOOD:
            forwarding.respond(401, headers=self.digest.challenge(now, stale=verdict is Verdict.STALE), now=now)
        elif not isinstance(aor, SipUri) or aor.user != user:
            forwarding.respond(403, now=now)
        else:
            outcome = self.registrar.register(request, forwarding.flow, now)
            forwarding.respond(outcome.status, outcome.reason, headers=outcome.headers, now=now)
            print(f"{aor} is at {[str(b.contact) for b in self.registrar.bindings(str(aor), now)]}", flush=True)

    def forward(self, forwarding: Forwarding, now: float) -> None:
        """To everybody's devices for who comes with his password; to nowhere else: this is no open relay.

        What comes in a dialog that it let through goes on by itself, by a Route that only this proxy can have given.
        """
        request = forwarding.request
        verdict, user = self.proxy_digest.check(request, now)
        if verdict is not Verdict.GOOD:
            challenge = self.proxy_digest.challenge(now, stale=verdict is Verdict.STALE)
            forwarding.respond(407, headers=challenge, now=now)
            return
        if not isinstance(request.uri, SipUri) or request.uri.host.lower() != self.name:
            forwarding.respond(403, now=now)
            return
        found = self.registrar.bindings(f"sip:{request.uri.user}@{self.name}", now)
        if not found:
            forwarding.respond(404, now=now)
            return
        print(f"{request.method} of {user} for {request.uri.user}", flush=True)
        forwarding.to(
            [Target(str(b.contact), b.flow if b.flow.reliable else None, b.path) for b in found], now
        )


async def main(listen: list[str], name: str, passwords: dict[str, str]) -> None:
    domain = Domain(name.lower(), passwords)
    proxy = SipProxy(token=lambda: secrets.token_bytes(8), proxying=ProxySettings(names=frozenset({domain.name})))
    endpoint = SipEndpoint(proxy, on_event=domain.handle, clock=steady(time.time))
    for kind, host, port in map(parse_listener, listen):
        bound = await endpoint.listen(kind, host, port)
        print(f"listening on {kind}:{bound[0]}:{bound[1]}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await endpoint.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", action="append")
    parser.add_argument("--domain", default="localhost")
    parser.add_argument("--passwords", type=Path, required=True)
    given = parser.parse_args()
    users = tomllib.loads(given.passwords.read_text())
    asyncio.run(main(given.listen or ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"], given.domain, users))
