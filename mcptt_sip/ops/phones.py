# SPDX-License-Identifier: Apache-2.0
"""``mcptt phones``: many light phones in one process, for load; real SIP, real keys, and media that is only counted.

Each is a whole client with sockets of its own. They share what is the same for all: the KMS certificate with its
tables, and one event loop. Packets of audio are counted and not decrypted: what a phone's speaker costs is not what
is asked here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcptt_sip.mcptt.client import ClientSettings, McpttClient
from mcptt_sip.mcptt.invitation import Invitation
from mcptt_sip.mcptt.userkeys import KeySource
from mcptt_sip.ops.programs import PASSED, StopSignals, emit
from mcptt_sip.transport import TransportSettings
from media.endpoint import MemberMedia
from media.udp import Address
from mikey import Keyring, MemoryReplayCache
from mikey.kms_client import KmsClient

log = logging.getLogger(__name__)

#: descriptors of one phone: its connection, its listener, two media sockets; and some for the process
DESCRIPTORS = 4, 256


class CountingMedia(MemberMedia):
    """Sockets and floor control as ever; audio is counted as it comes."""

    def _audio_received(self, octets: bytes, source: Address) -> None:
        self.counters["audio-received"] += 1


class LightClient(McpttClient):
    """A client whose phone has no speaker."""

    media_class = CountingMedia


@dataclass(frozen=True, slots=True)
class PhonesOptions:
    """The command line. ``users`` are MCPTT IDs; tokens and passwords by user."""

    users: Sequence[str]
    server: str
    proxy: str
    kms: str
    tokens: dict[str, str] = field(repr=False)
    passwords: dict[str, str] = field(repr=False)
    host: str = "127.0.0.1"
    answer: str = "auto"
    #: every so-manieth phone behaves like ``odd``: auto, decline, ring (never answers) or die (closes its sockets)
    odd: str = "auto"
    odd_one_in: int = 0
    #: phones that fetch keys and register at the same time
    window: int = 16
    kms_authority: Path | None = None
    keep_alive: float = 30.0


class Phones:
    """The clients and what happened to them."""

    def __init__(self, options: PhonesOptions) -> None:
        self.options = options
        self.clients: dict[str, LightClient] = {}
        self.counts: Counter[str] = Counter()

    def behaviour(self, number: int) -> str:
        """How the phone with this number answers."""
        one_in = self.options.odd_one_in
        return self.options.odd if one_in and number % one_in == one_in - 1 else self.options.answer

    async def start(self) -> None:
        """Keys for all, then registrations. Raises what stands in a phone's way."""
        window = asyncio.Semaphore(self.options.window)

        async def one(number: int, user: str) -> None:
            async with window:
                await self._start_one(number, user)

        async with asyncio.TaskGroup() as group:
            for number, user in enumerate(self.options.users):
                group.create_task(one(number, user))

    async def _start_one(self, number: int, user: str) -> None:
        options = self.options
        keyring = Keyring()
        source = KeySource(options.kms, options.tokens[user], user, options.kms_authority)
        async with KmsClient(
            options.kms, token=source.token, uri=user, clock=time.time, ssl_context=source.context()
        ) as kms:
            await kms.fetch(keyring, ahead=False)
        client = LightClient(
            user,
            ClientSettings(
                server=options.server, proxy=options.proxy, username=user.partition(":")[2].partition("@")[0],
                password=options.passwords[user], listen=(), host=options.host,
                agent=TransportSettings(keep_alive=options.keep_alive),
            ),
            keyring=keyring,
            replay=MemoryReplayCache(capacity=64),
            on_event=lambda name, _details: self._told(name),
        )
        behaviour = self.behaviour(number)

        async def invited(invitation: Invitation) -> None:
            match behaviour:
                case "auto":
                    await invitation.accept()
                case "decline":
                    invitation.decline()
                case "die":
                    await client.vanish()
                case _:
                    invitation.ring()

        client.on_regroup(invited)
        await client.start()
        self.clients[user] = client

    def _told(self, name: str) -> None:
        self.counts[name] += 1

    async def stop(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self.clients.values()))

    def figures(self) -> dict[str, Any]:
        """What happened so far, over all phones, and this process's memory in octets."""
        calls = [call for client in self.clients.values() for call in client.calls.values()]
        return {
            "events": dict(self.counts), "calls": len(calls),
            "audio": sum(call.media.counters["audio-received"] for call in calls),
            "memory": resident(),
        }


def resident(pid: int | str = "self") -> int:
    """Octets of memory that a process has resident (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def run_phones(options: PhonesOptions) -> int:
    """Registers all, then answers ``figures`` and ``quit`` on standard input until its end or a signal."""
    stop = StopSignals().install()
    each, spare = DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = each * len(options.users) + spare
    if soft < needed <= hard or hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    phones = Phones(options)
    try:
        began = time.monotonic()
        try:
            await phones.start()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # one sentence for the first, as with a single phone
        emit("ready", count=len(phones.clients), seconds=round(time.monotonic() - began, 3), memory=resident())
        await _drive(phones, stop)
    finally:
        await phones.stop()
    return PASSED


async def _drive(phones: Phones, stop: StopSignals) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def read() -> None:
        while line := (await reader.readline()).decode("utf-8", "replace"):
            match line.strip():
                case "figures":
                    emit("figures", **phones.figures())
                case "quit":
                    return
                case other:
                    emit("failed", command=other, message="there are: figures, quit")

    tasks = [asyncio.ensure_future(read()), asyncio.ensure_future(stop.asked.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def read_secrets(path: Path) -> dict[str, str]:
    """A JSON object of strings; raises ValueError with a sentence."""
    table = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ValueError(f"{path} is not a JSON object of strings")
    return table
