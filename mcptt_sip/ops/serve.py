# SPDX-License-Identifier: Apache-2.0
"""``mcptt serve``: the MCPTT server as a program."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mcptt_sip.mcptt.groupcall import ControllingSettings
from mcptt_sip.mcptt.policy import Commencement, Policy, PolicyError, Urgency
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.server import McpttServer, ServerSettings
from mcptt_sip.mcptt.userkeys import KeySource, held_keys
from mcptt_sip.ops.capture import Capture
from mcptt_sip.ops.programs import PASSED, StopSignals, calm_collector, emit, listener
from mcptt_sip.ops.tracing import CaptureTap
from mcptt_sip.session_timer import FLOOR as SESSION_FLOOR
from mcptt_sip.tls import ServerTls, TlsIdentity
from mcptt_sip.transport import TransportSettings
from mikey import Keyring, ReplayCache

log = logging.getLogger(__name__)

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
    controlling: ControllingSettings | None = None
    preemptive_priority: int | None = None
    keep_alive: float = 5.0
    #: PEM files, for tls and wss: the server's certificate, its key, and who signs those of clients (mutual TLS)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_authorities: Path | None = None
    max_connections_per_source: int = 1024
    media_host: str = "127.0.0.1"
    kms_authority: Path | None = None
    store: Path | None = None
    pcap: Path | None = None


ANSWER_MODES = {"automatic": Commencement.AUTOMATIC, "manual": Commencement.MANUAL}


def controlling_settings(
    identity: str,
    domain: str,
    *,
    answer_mode: str = "automatic",
    max_calls: int = 1000,
    session_expires: int = 1800,
    resource_priority: Sequence[str] = (),
) -> ControllingSettings:
    """From the command line; raises ValueError with a sentence."""
    if answer_mode not in ANSWER_MODES:
        raise ValueError(f"--answer-mode {answer_mode!r} is not {' or '.join(ANSWER_MODES)}")
    if session_expires and session_expires < SESSION_FLOOR:
        raise ValueError(f"--session-expires {session_expires}: RFC 4028 allows {SESSION_FLOOR} or more, or 0 for none")
    settings = ControllingSettings(
        identity, domain, ANSWER_MODES[answer_mode], max_calls=max_calls, session_expires=session_expires
    )
    priorities = dict(settings.resource_priority)
    for text in resource_priority:
        name, _, value = text.partition("=")
        namespace, _, level = value.partition(".")
        if name not in {urgency.value for urgency in Urgency}:
            raise ValueError(f"--resource-priority {text!r}: the urgency is {', '.join(u.value for u in Urgency)}")
        if namespace not in ("mcpttp", "mcpttq") or not level.isdecimal() or int(level) > 15:
            raise ValueError(f"--resource-priority {text!r}: the value is mcpttp.0 to .15, or mcpttq.0 to .15")
        priorities[Urgency(name)] = value
    return replace(settings, resource_priority=priorities)


def server_tls(options: ServerOptions) -> ServerTls | None:
    """The server's side of TLS, when there is a certificate; raises OSError, ssl.SSLError or ValueError."""
    if options.tls_certificate is None:
        if any(text.startswith(("tls:", "wss:")) for text in options.listen):
            raise ValueError("tls and wss need --tls-certificate")
        return None
    identity = TlsIdentity(options.tls_certificate, options.tls_key or options.tls_certificate)
    return ServerTls([identity], client_authorities=options.tls_client_authorities)


def _reload(tls: ServerTls) -> None:
    """SIGHUP: a renewed certificate is taken into use for new connections."""
    try:
        tls.reload()
    except OSError as error:  # ssl.SSLError is one
        log.error("certificate not reloaded, the one before stays: %s", error)
    else:
        log.info("certificate reloaded")


class PolicyFile:
    """A policy file that is read again when it changes. A broken change is logged, and the one before stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problem = ""
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
                text = self._path.read_text(encoding="utf-8")
                self._seen = mark  # what could not be read is tried again, what was read and is wrong is not
                self._policy = Policy.parse(text)
                log.info("policy %s taken into use: %d users", self._path.name, len(self._policy.profiles))
            self._problem = ""
        except (OSError, UnicodeDecodeError, PolicyError) as error:
            if str(error) != self._problem:  # said once, not at every decision
                log.error("policy %s is not used, the one before stays: %s", self._path.name, error)
            self._problem = str(error)
        return self._policy


#: seconds between two looks at the policy file when nothing asks for it
POLICY_INTERVAL = 2.0


async def follow_policy(policy: Callable[[], Policy], server: McpttServer) -> None:
    """Tells the server of a policy that has stood for two looks: of a file that is just being written some users may
    be missing. One without any user is no reason to end every call."""
    told = seen = policy()
    while True:
        await asyncio.sleep(POLICY_INTERVAL)
        read, before = policy(), seen
        seen = read
        if read is not before or read is told:
            continue
        told = read
        if not read.profiles:
            log.error("the policy has no users; nobody is taken out of his calls for that")
            continue
        try:
            server.policy_changed(read.profiles.keys())
        except Exception:  # the next change is followed all the same
            log.exception("the policy could not be followed")


#: the server that the program runs; a scenario may put a hostile one here
SERVER_CLASS: type[McpttServer] = McpttServer


async def run_server(options: ServerOptions) -> int:
    """Serves until it is told to stop."""
    stop = StopSignals().install()
    policy = PolicyFile(options.policy)
    tls = server_tls(options)  # first: what is wrong here is said now, not when the KMS has been reached
    source = KeySource(options.kms, options.kms_token, options.identity, options.kms_authority, options.store)
    async with held_keys(source) as keyring:
        return await _serve(options, tls, policy, keyring, source.replay(time.time()), stop)


async def _serve(
    options: ServerOptions, tls: ServerTls | None, policy: PolicyFile, keyring: Keyring, replay: ReplayCache,
    stop: StopSignals,
) -> int:  # fmt: skip
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
            controlling=options.controlling,
            preemptive_priority=options.preemptive_priority,
            agent=TransportSettings(
                keep_alive=options.keep_alive,
                max_connections_per_source=options.max_connections_per_source,
                tls_server=None if tls is None else tls.context,
            ),
        ),
        policy=policy,
        keyring=keyring,
        replay=replay,
        trace=tap.sip,
        media_trace=tap.media,
        observe=observe,
    )
    if tls is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, tls)
    opened = await server.start()
    calm_collector()
    named = {transport: f"{transport}:{host}:{port}" for transport, host, port in opened}
    emit("ready", identity=options.identity, addresses=[[host, port] for _, host, port in opened], **named)
    following = asyncio.ensure_future(follow_policy(policy, server))
    await stop.asked.wait()
    following.cancel()
    await server.aclose()
    # what was to be said has been handed to the kernel by now; the loop ends with the program
    await asyncio.sleep(0)
    tap.close()
    return PASSED
