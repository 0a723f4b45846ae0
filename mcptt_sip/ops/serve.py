# SPDX-License-Identifier: Apache-2.0
"""``mcptt serve``: the MCPTT server as a program."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcptt_sip.mcptt.policy import Policy, PolicyError
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.server import McpttServer, ServerSettings
from mcptt_sip.ops.capture import Capture
from mcptt_sip.ops.programs import PASSED, StopSignals, emit, listener
from mcptt_sip.ops.tracing import CaptureTap
from mcptt_sip.transport import TransportSettings
from mikey import Keyring, MemoryReplayCache
from mikey.kms_client import KmsClient

log = logging.getLogger(__name__)

#: seconds; how far a client's clock may be off (RFC 3830 5.4)
REPLAY_SKEW = 300.0


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The command line of the server."""

    listen: tuple[str, ...]
    identity: str
    domain: str
    policy: Path
    kms: str
    kms_token: str = field(repr=False)
    regroup: RegroupSettings = RegroupSettings()
    keep_alive: float = 5.0
    media_host: str = "127.0.0.1"
    pcap: Path | None = None


class PolicyFile:
    """A policy file that is read again when it changes. A broken change is logged, and the one before stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._mark()
        self._policy = Policy.parse(path.read_text(encoding="utf-8"))

    def _mark(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def __call__(self) -> Policy:
        """The policy in force."""
        try:
            mark = self._mark()
            if mark != self._seen:
                self._seen = mark
                self._policy = Policy.parse(self._path.read_text(encoding="utf-8"))
                log.info("policy %s taken into use: %d users", self._path.name, len(self._policy.profiles))
        except (OSError, PolicyError) as error:
            log.error("policy %s is not used, the one before stays: %s", self._path.name, error)
        return self._policy


#: the server that the program runs; a scenario may put a hostile one here
SERVER_CLASS: type[McpttServer] = McpttServer


async def run_server(options: ServerOptions) -> int:
    """Serves until it is told to stop."""
    stop = StopSignals().install()
    policy = PolicyFile(options.policy)
    keyring = Keyring()
    kms = KmsClient(options.kms, token=options.kms_token, uri=options.identity, clock=time.time)
    try:
        await kms.fetch(keyring)
    finally:
        await kms.close()
    tap = CaptureTap(Capture(options.pcap) if options.pcap is not None else None)

    def observe(name: str, details: dict[str, Any]) -> None:
        emit(name, **details)

    server = SERVER_CLASS(
        ServerSettings(
            identity=options.identity,
            domain=options.domain,
            listen=tuple(listener(text) for text in options.listen),
            media_host=options.media_host,
            regroup=options.regroup,
            agent=TransportSettings(keep_alive=options.keep_alive),
        ),
        policy=policy,
        keyring=keyring,
        # Its state ends with the process: what was made before the start may have been accepted before.
        replay=MemoryReplayCache(skew=REPLAY_SKEW, lost_at=time.time() - REPLAY_SKEW),
        trace=tap.sip,
        media_trace=tap.media,
        observe=observe,
    )
    opened = await server.start()
    named = {transport: f"{transport}:{host}:{port}" for transport, host, port in opened}
    emit("ready", identity=options.identity, addresses=[[host, port] for _, host, port in opened], **named)
    await stop.asked.wait()
    await server.aclose()
    # what was to be said has been handed to the kernel by now; the loop ends with the program
    await asyncio.sleep(0)
    tap.close()
    return PASSED
