# SPDX-License-Identifier: Apache-2.0
"""A KMS, an MCPTT server and clients in one process, talking over real sockets on loopback.

Any of them can be a dishonest one: a subclass that differs from the honest one in one method.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mcptt_sip.mcptt.call import CallSettings, Regroup
from mcptt_sip.mcptt.client import ClientSettings, McpttClient
from mcptt_sip.mcptt.distribution import DistributionSettings
from mcptt_sip.mcptt.invitation import Invitation
from mcptt_sip.mcptt.policy import Policy
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.server import McpttServer, ServerSettings
from mikey import Keyring, Kms, MemoryReplayCache

DOMAIN = "mcx.example"
SERVICE = f"sip:mcptt@{DOMAIN}"
USERS = ("alice", "bob", "carol", "dave", "mallory")
#: seconds that anything here may take
PATIENCE = float(os.environ.get("MCPTT_TEST_PATIENCE", "15"))


def uri(name: str) -> str:
    return f"sip:{name}@{DOMAIN}"


@dataclass
class Townsman:
    """A client and everything that it told."""

    client: McpttClient
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    told: asyncio.Condition = field(default_factory=asyncio.Condition)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def tell(self, name: str, details: dict[str, Any]) -> None:
        self.events.append((name, details))
        task = asyncio.ensure_future(self._wake())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _wake(self) -> None:
        async with self.told:
            self.told.notify_all()

    def seen(self, name: str, **details: Any) -> list[dict[str, Any]]:
        return [d for n, d in self.events if n == name and all(d.get(k) == v for k, v in details.items())]

    async def until(self, name: str, **details: Any) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE), self.told:
            await self.told.wait_for(lambda: self.seen(name, **details))
        return self.seen(name, **details)[0]

    async def until_told(self) -> None:
        """Something more has happened."""
        async with self.told:
            await self.told.wait()

    @property
    def call(self) -> Regroup:
        (call,) = self.client.calls.values()
        return call


@dataclass
class Town:
    kms: Kms
    server: McpttServer
    proxy: str
    observed: list[tuple[str, dict[str, Any]]]
    clients: list[McpttClient] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def keyring(self, user: str) -> Keyring:
        ring = Keyring()
        ring.add_certificate(self.kms.certificate)
        ring.add_key_set(self.kms.issue(user, time.time()))
        return ring

    async def phone(
        self, name: str, kind: type[McpttClient] = McpttClient, *, replay: Any = None, answer: bool = True,
        clock: Callable[[], float] = time.time, distribution: DistributionSettings | None = None,
        call: CallSettings | None = None, acknowledgement: str = "required", transport: str = "udp",
        deputies: tuple[str, ...] = (), callers: tuple[str, ...] | None = None, **parts: Any,
    ) -> Townsman:
        """A registered client that accepts what it is invited to (``answer``) or declines it."""
        settings = ClientSettings(
            server=SERVICE, proxy=self.proxy, username=name, password=f"password of {name}",
            listen=((transport, "127.0.0.1", 0),), acknowledgement=acknowledgement,
            call=call or CallSettings(resend_after=0.3, send_attempts=3, add_timeout=3.0),
            distribution=distribution or DistributionSettings(activation_delay=0.5, transit=0.0, coalesce=0.1),
            deputies=tuple(uri(deputy) for deputy in deputies), callers=callers,
        )
        client = kind(
            uri(name), settings, keyring=self.keyring(uri(name)), replay=replay or MemoryReplayCache(), clock=clock,
            on_event=lambda event, details: man.tell(event, details), **parts,
        )
        man = Townsman(client)

        async def invited(invitation: Invitation) -> None:
            if answer:
                await invitation.accept()
            else:
                invitation.decline()

        client.on_regroup(invited)
        await client.start()
        self.clients.append(client)
        return man

    async def crash(self, man: Townsman) -> None:
        """The client's process is gone: nothing is said, the kernel closes its sockets."""
        self.clients.remove(man.client)
        await man.client.vanish()

    async def phones(self, *names: str) -> list[Townsman]:
        return [await self.phone(name) for name in names]

    def observe(self, name: str, details: dict[str, Any]) -> None:
        self.observed.append((name, details))
        self.news.set()

    async def until_gone(self, name: str) -> None:
        """The server has noticed that ``name`` is not in the call any more."""
        async with asyncio.timeout(PATIENCE):
            while uri(name) in self.seen("members")[-1]["connected"]:
                self.news.clear()
                await self.news.wait()

    def seen(self, name: str, **details: Any) -> list[dict[str, Any]]:
        """What the server told its operator."""
        return [d for n, d in self.observed if n == name and all(d.get(k) == v for k, v in details.items())]


@asynccontextmanager
async def town(kind: type[McpttServer] = McpttServer, settings: RegroupSettings | None = None) -> AsyncIterator[Town]:
    kms = Kms.generate(f"kms.{DOMAIN}", [DOMAIN])
    lines = []
    for name in USERS:
        lines += [
            f'[user."{uri(name)}"]', f'password = "password of {name}"', "allow-regroup = true",
            "allow-private-call = true", "allow-private-call-to-any-user = true",
        ]
    policy = Policy.parse("\n".join(lines))
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    ring.add_key_set(kms.issue(SERVICE, time.time()))
    observed: list[tuple[str, dict[str, Any]]] = []
    server = kind(
        ServerSettings(
            SERVICE, DOMAIN, (("tcp", "127.0.0.1", 0), ("udp", "127.0.0.1", 0)),
            regroup=settings or RegroupSettings(),
        ),
        policy=lambda: policy, keyring=ring, replay=MemoryReplayCache(),
        observe=lambda name, details: here.observe(name, details),
    )
    (_, host, port), _ = await server.start()
    here = Town(kms, server, f"sip:{host}:{port};transport=tcp", observed)
    try:
        yield here
    finally:
        for client in here.clients:
            await client.aclose()
        await server.aclose()
