# SPDX-License-Identifier: Apache-2.0
"""The actors: phones with their users, the server, the KMS. The programs are the real ones."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.call import CallSettings, Regroup
from mcptt_sip.mcptt.client import ClientSettings, McpttClient
from mcptt_sip.mcptt.distribution import DistributionSettings
from mcptt_sip.mcptt.invitation import Invitation
from mcptt_sip.mcptt.journal import GroupRecord, JournalError
from mcptt_sip.mcptt.policy import Policy
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.server import McpttServer, ServerSettings
from mcptt_sip.transport import TransportSettings
from mikey import Keyring, Kms, MemoryReplayCache, OpenedKey, SqliteReplayCache, TransportKey, sakke
from mikey.identity import KeyPeriods
from tests.simulation.loop import Process
from tests.simulation.media import LightMedia, LightPlane
from tests.simulation.network import Network
from tests.simulation.truth import SeededKeySet, Truth

DOMAIN = "mcx.example"
SERVICE = f"sip:mcptt@{DOMAIN}"
NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")
#: has keys of the same KMS, and no phone: what the hostile server signs, it signs with these
MALLORY = f"sip:mallory@{DOMAIN}"
SERVER_HOST, SERVER_PORT = "10.0.0.1", 5060
_PERIOD = 2_592_000
#: Unix time at which a simulation begins: some hours before a key period ends
START = KeyPeriods(_PERIOD, 0).end(KeyPeriods(_PERIOD, 0).number(1_790_000_000.0)) - 4 * 3600.0
#: seconds after which a user whose phone could not register tries again
PATIENCE = 5.0


def uri(name: str) -> str:
    return f"sip:{name}@{DOMAIN}"


USERS = tuple(uri(name) for name in NAMES)
#: each user's phone has its own
HOSTS = {user: f"10.0.0.{number}" for number, user in enumerate(USERS, 11)}


# --- the KMS -----------------------------------------------------------------------------------------------


@cache
def kms() -> Kms:
    """One KMS for every simulation of this Python process, as its tables are dear."""
    import random

    made = Kms.generate(f"kms.{DOMAIN}", [DOMAIN], random=random.Random("the KMS").randbytes)
    sakke.precompute(made.certificate.pub_enc_key)
    return made


@cache
def key_set(user: str, period: int) -> SeededKeySet:
    """A user's keys of one period, counted from that of :data:`START`."""
    issued = kms().issue(user, START + period * _PERIOD)
    return SeededKeySet(**{f.name: getattr(issued, f.name) for f in dataclasses.fields(issued)})


def key_set_at(user: str, at: float) -> SeededKeySet:
    """A user's keys of the period of the Unix time ``at``."""
    periods = kms().certificate.periods
    return key_set(user, periods.number(at) - periods.number(START))


def keyring(user: str) -> Keyring:
    """Two key periods' keys and the certificate."""
    ring = Keyring()
    ring.add_certificate(kms().certificate)
    for period in (0, 1):
        ring.add_key_set(key_set(user, period))
    return ring


# --- phones ------------------------------------------------------------------------------------------------


class Mood(Enum):
    """What a user does with an invitation."""

    ACCEPTS = auto()
    HESITATES = auto()
    DECLINES = auto()
    IGNORES = auto()


class WatchedReplay:
    """A phone's replay cache, which outlives the phone's process. A dead process does not write."""

    def __init__(self, path: Path, process: Process, user: str, truth: Truth) -> None:
        self._cache = SqliteReplayCache(path, now=process.clock(), first_use=True)
        self._process, self._user, self._truth = process, user, truth

    def check(self, digest: bytes, timestamp: float, now: float) -> None:
        self._cache.check(digest, timestamp, now)

    def record(self, opened: OpenedKey, now: float) -> None:
        if self._process.dead:
            raise SipError("the dead write nothing")
        self._cache.record(opened, now)
        self._truth.message_accepted(self._process, self._user, opened)

    def close(self) -> None:
        self._cache.close()


class WatchedJournal:
    """One group's journal on the disk of its initiator's phone. The phone may die as it writes."""

    def __init__(self, disk: dict[str, list[str]], group: str, process: Process, network: Network) -> None:
        self._disk, self._group = disk, group
        self._process, self._network = process, network

    def append(self, line: str) -> None:
        if self._process.dead or self._network.blown(self._process):
            raise JournalError("the dead write nothing")
        self._disk.setdefault(self._group, []).append(line)

    def lines(self) -> list[str]:
        return list(self._disk.get(self._group, ()))

    def close(self) -> None:
        if not self._process.dead:
            self._disk.pop(self._group, None)


class SimulatedClient(McpttClient):
    """The real client with light media."""

    media_class = LightMedia  # type: ignore[assignment]


class Phone:
    """One user with one phone, which may be dead."""

    def __init__(self, name: str, network: Network, truth: Truth, store: Path, seed: str) -> None:
        self.name = name
        self.uri = uri(name)
        self.host = HOSTS[self.uri]
        self.network = network
        self.truth = truth
        #: seconds that its clock is ahead
        self.skew = 0.0
        self.mood = Mood.ACCEPTS
        self.starts = 0
        self.client: McpttClient | None = None
        self.process: Process | None = None
        self.on_event: Callable[[Phone, str, dict[str, Any]], None] = lambda _phone, _name, _details: None
        self.registered = False
        #: group -> lines of its journal
        self.journals: dict[str, list[str]] = {}
        self._store = store / f"{name}.replay"
        self._replay: WatchedReplay | None = None
        self._seed = seed

    def clock(self) -> float:
        return START + self.network.loop.time() + self.skew

    @property
    def alive(self) -> bool:
        return self.process is not None and not self.process.dead

    @property
    def calls(self) -> list[Any]:
        """Its calls; none while it is dead."""
        return list(self.client.calls.values()) if self.alive and self.client is not None else []

    def start(self, settings: PhoneSettings) -> None:
        """A new process, which registers."""
        self.starts += 1
        self.registered = False
        process = self.process = Process(self.name, self.host, f"{self._seed} {self.name} {self.starts}")
        process.clock = self.clock
        if self._replay is not None:
            self._replay.close()
        self._replay = WatchedReplay(self._store, process, self.uri, self.truth)
        process.context.run(self._load, process, settings)
        process.spawn(self._register(process, settings))

    def _load(self, process: Process, settings: PhoneSettings) -> None:
        assert self._replay is not None

        def told(name: str, details: dict[str, Any]) -> None:
            if not process.dead:
                self.on_event(self, name, details)

        def installed(group: str, key: TransportKey) -> None:
            self.truth.key_installed(self.uri, group, key)

        client = SimulatedClient(
            self.uri,
            ClientSettings(
                server=SERVICE, proxy=f"sip:{SERVER_HOST}:{SERVER_PORT};transport={settings.transport}",
                username=self.name, password=f"password of {self.name}", listen=(("udp", self.host, 0),),
                host=self.host, expires=settings.expires, call=settings.call, distribution=settings.distribution,
                agent=settings.agent,
            ),
            keyring=keyring(self.uri), replay=self._replay, clock=self.clock,
            random=process.random.randbytes, on_event=told, key_observer=installed,
            journal=lambda group: WatchedJournal(self.journals, group, process, self.network),
        )
        client.on_regroup(self._invited)
        self.client = client

    async def _register(self, process: Process, settings: PhoneSettings) -> None:
        while True:
            assert self.client is not None
            try:
                await self.client.start()
            except SipError:
                await asyncio.sleep(PATIENCE)
                self._load(process, settings)
                continue
            return

    async def _invited(self, invitation: Invitation) -> None:
        process = self.process
        assert process is not None
        mood = self.mood
        if invitation.initiator == MALLORY:
            # her signature is good, and so is her right to call: that she is no friend, her name tells
            invitation.decline()
            return
        if mood is Mood.IGNORES:
            return
        if mood is Mood.HESITATES:
            invitation.ring()
        await asyncio.sleep(process.random.random() * (4.0 if mood is Mood.HESITATES else 0.05))
        if mood is Mood.DECLINES:
            invitation.decline()
        else:
            await invitation.accept()

    def unfinished(self) -> list[GroupRecord]:
        """The groups that it initiated and did not end."""
        records = [GroupRecord.read(lines) for lines in self.journals.values()]
        return [record for record in records if record is not None]

    def call(self, group: str) -> Regroup | None:
        return self.client.calls.get(group) if self.alive and self.client is not None else None

    def close(self) -> None:
        if self._replay is not None:
            self._replay.close()


@dataclasses.dataclass(frozen=True)
class PhoneSettings:
    """Shorter times than in life: more happens in an hour."""

    transport: str = "tcp"
    expires: int = 600
    call: CallSettings = CallSettings(resend_after=1.0, send_attempts=3, add_timeout=15.0)
    distribution: DistributionSettings = DistributionSettings(
        lifetime=600.0, activation_delay=1.0, transit=0.2, rekey_on_failed_add=True, coalesce=0.5
    )
    agent: TransportSettings = TransportSettings(keep_alive=10.0)


# --- the server --------------------------------------------------------------------------------------------


class ServerHost:
    """The machine that the server runs on."""

    def __init__(self, network: Network, truth: Truth, seed: str) -> None:
        self.network = network
        self.truth = truth
        self.skew = 0.0
        self.starts = 0
        self.process: Process | None = None
        self.server: McpttServer | None = None
        self._seed = seed

    def clock(self) -> float:
        return START + self.network.loop.time() + self.skew

    @property
    def alive(self) -> bool:
        return self.process is not None and not self.process.dead

    def start(self, settings: RegroupSettings) -> None:
        self.starts += 1
        process = self.process = Process("server", SERVER_HOST, f"{self._seed} server {self.starts}")
        process.clock = self.clock
        process.context.run(self._load, process, settings)
        assert self.server is not None
        process.spawn(self.server.start())

    def _load(self, process: Process, settings: RegroupSettings) -> None:
        ring = Keyring()
        ring.add_certificate(kms().certificate)
        for period in (0, 1):
            ring.add_key_set(key_set(SERVICE, period))
        self.server = McpttServer(
            ServerSettings(
                SERVICE, DOMAIN, (("tcp", SERVER_HOST, SERVER_PORT), ("udp", SERVER_HOST, SERVER_PORT)),
                media_host=SERVER_HOST, regroup=settings, agent=TransportSettings(keep_alive=10.0),
            ),
            policy=policy, keyring=ring, clock=self.clock, random=process.random.randbytes,
            replay=MemoryReplayCache(skew=300.0, lost_at=self.clock() - 300.0),
            media=LightPlane(self.network),
        )


@cache
def _policy() -> Policy:
    lines = []
    for user in (*NAMES, "mallory"):
        lines += [
            f'[user."{uri(user)}"]', f'password = "password of {user}"', "allow-regroup = true",
            "allow-private-call = true", "allow-private-call-to-any-user = true",
        ]
        if user != NAMES[-1]:
            lines += ["allow-emergency-group-call = true", "allow-imminent-peril-call = true"]
        if user == NAMES[0]:
            lines += ["allow-cancel-group-emergency = true"]
    return Policy.parse("\n".join(lines))


def policy() -> Policy:
    return _policy()

