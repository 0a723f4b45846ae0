# SPDX-License-Identifier: Apache-2.0
"""The telephone of ``mcptt ua`` in this process, on real sockets, with its events kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.callmedia import CallMediaSettings
from mcptt_sip.ops.ua import Telephone, TelephoneOptions
from mcptt_sip.transaction import Timers
from mcptt_sip.useragent import TELEPHONE, UserAgent

HOST = "127.0.0.1"
#: a fifth of the standard's, so that 64*T1 takes 6.4 s
FAST = Timers(t1=0.1)


class Phone(Telephone):
    """Keeps its events; `until` waits for one."""

    def __init__(self, options: TelephoneOptions, agent: UserAgent) -> None:
        super().__init__(options, agent)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._changed = asyncio.Event()

    def tell(self, event: str, **details: Any) -> None:
        self.events.append((event, details))
        self._changed.set()

    def told(self, event: str) -> list[dict[str, Any]]:
        return [details for name, details in self.events if name == event]

    async def until(self, event: str, count: int = 1, *, seconds: float = 20.0) -> list[dict[str, Any]]:
        async with asyncio.timeout(seconds):
            while len(self.told(event)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.told(event)

    @property
    def port(self) -> int:
        return self.agent.addresses[0][2]

    @property
    def uri(self) -> str:
        return f"sip:ua@{HOST}:{self.port}"


@asynccontextmanager
async def telephone(
    *listen: str, user: str | None = None, password: str | None = None, timers: Timers = FAST,
    identity: str | None = None, proxy: str | None = None, media_host: str | None = None, transport: Any = None,
    **options: Any,
) -> AsyncIterator[Phone]:  # fmt: skip
    """A telephone on `listen` (UDP when there is none), with the options of ``mcptt ua``."""
    chosen = TelephoneOptions(listen=listen or (f"udp:{HOST}:0",), auth_user=user, password=password, **options)
    agent = UserAgent(
        identity or f"sip:ua@{HOST}",
        listen=chosen.listen,
        credentials=DigestCredentials(user or "ua", password) if password is not None else None,
        media=CallMediaSettings(sdes=chosen.sdes),
        media_host=media_host,
        proxy=proxy,
        follow_refers="all",
        settings=replace(TELEPHONE, session_expires=chosen.session_expires, timers=timers),
        transport=transport,
    )
    phone = Phone(chosen, agent)
    async with agent:
        yield phone
