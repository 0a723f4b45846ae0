# SPDX-License-Identifier: Apache-2.0
"""The whole system of one simulation, and everybody who watches it: what is noted, what counts as a disturbance, and
why a call may end.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.message import parse
from mikey import MikeyError
from tests.simulation.hostile import HostileServer, user_of
from tests.simulation.invariants import AFTERMATH, Invariants
from tests.simulation.loop import CURRENT, Process, VirtualLoop
from tests.simulation.network import Address, Network, Stream
from tests.simulation.phones import (
    HOSTS,
    MALLORY,
    NAMES,
    SERVER_HOST,
    SERVICE,
    START,
    USERS,
    Phone,
    PhoneSettings,
    ServerHost,
    kms,
)
from tests.simulation.truth import Group, Truth

REGROUP = RegroupSettings(answer_time_limit=10.0, ring_time_limit=8.0, max_duration=900.0)
#: seconds after which it is known why a call ended
HINDSIGHT = 30.0
#: a call that has lost its initiator may end whenever somebody leaves it
WITHOUT_INITIATOR, INITIATOR_DIED = "its initiator is out of it", "its initiator died"
#: an expected way for a user's wish to fail
FAILURES = (SipError, MikeyError)


class World:
    """KMS, server, phones and network of one seed. Nothing happens here by itself; see :mod:`.machine`."""

    def __init__(self, seed: int, *, tail: int) -> None:
        self.seed = seed
        self.step = 0
        self.events: Counter[str] = Counter()
        self.tail: deque[str] = deque(maxlen=tail)
        self._digest = hashlib.sha256()
        self._adding: Counter[tuple[str, str]] = Counter()
        self._dead: list[Process] = []
        #: (when, at whom, of which group, cause, what was known by then of the group)
        self._ended: deque[tuple[float, Phone, Group, str, str | None]] = deque()
        #: (user, group) -> since when he is in it, or was
        self._joined: dict[tuple[str, str], float] = {}
        #: what users are waiting for
        self._operations = 0
        #: host -> when something last disturbed it
        self.disturbed: dict[str, float] = {}
        #: (group, user, or "" for everybody) -> when the hostile server last meddled with them
        self.touched: dict[tuple[str, str], float] = {}

    def _build(self, loop: VirtualLoop, store: Path) -> None:
        self.loop = loop
        self.truth = Truth(loop.virtual_clock, SERVICE)
        self.truth.know(kms().certificate, [*USERS, SERVICE, MALLORY], START)
        self.network = Network(loop, random.Random(f"network {self.seed}"), self._on_octets)
        self.network.on_fuse = lambda process: self.kill(process, silently=False)
        self.host = ServerHost(self.network, self.truth, f"{self.seed}")
        self.hostile = HostileServer(
            random.Random(f"hostile {self.seed}"), self.host.clock, self._send_later, self._newest_key
        )
        self.network.tamper = self._tamper
        self.phones = [Phone(name, self.network, self.truth, store, f"{self.seed}") for name in NAMES]
        for phone in self.phones:
            phone.on_event = self._on_phone_event
        self.invariants = Invariants(self.truth, self.phones, self.host)

    def _settings(self, number: int) -> PhoneSettings:
        return PhoneSettings(transport="tcp" if number % 2 else "udp")

    # --- what is seen -----------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        line = f"{self.loop.time():12.6f} {self.step} {text}"
        self.tail.append(line)
        self._digest.update(line.encode())

    def _on_octets(self, kind: str, source: Address, target: Address, octets: bytes) -> None:
        line = f"{self.loop.time():.9f} {kind} {source} {target} {len(octets)} "
        self._digest.update(line.encode() + octets)
        if kind == "audio":
            user, group = self._media[source]
            phone = next(p for p in self.phones if p.host == source[0])
            process = phone.process
            assert process is not None
            self.truth.packet_sent(process, user, group, octets, phone.clock())
            return
        if kind != "relayed":
            self.truth.search(octets, f"a message from {source} to {target}")
            if len(octets) > 4:
                branch = octets.partition(b"branch=z9hG4bK")[2][:6].decode(errors="replace")
                self.tail.append(f"    {line}{octets[:60].splitlines()[0].decode(errors='replace')} {branch}")

    @property
    def _media(self) -> dict[Address, tuple[str, str]]:
        return {c.media.audio_address: (p.uri, c.group) for p in self.phones for c in p.calls}

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        process = CURRENT.get()
        if process is None or not process.dead:
            error = context.get("exception")
            self.truth.violate("11 errors", f"{process}: {context.get('message')}: {error!r}")

    def _on_phone_event(self, phone: Phone, name: str, details: dict[str, Any]) -> None:
        self.note(f"  {phone.name} {name} {details}")
        self.truth.counts[f"event {name}"] += 1
        group = self.truth.groups.get(details.get("group", ""))
        match name:
            case "registered":
                if not phone.registered:
                    phone.registered = True
                    self.came_back(phone)
            case "joined" if (call := phone.call(details["group"])) is not None:
                self._joined[phone.uri, details["group"]] = self.truth.now
                if group is not None and group.wanted(phone.uri):
                    group.out.pop(phone.uri, None)
                offer = call.session.request.body if call.session is not None else b""
                if b"a=crypto" in offer or b"RTP/AVP" in offer:
                    self.truth.violate("9 protection", f"{phone.uri} joins a call whose SDP asks for other protection")
            case "established" if group is not None:
                group.established = True
                if group.over in (WITHOUT_INITIATOR, INITIATOR_DIED):
                    group.over = None  # he has come back: from now on there is no more reason to end than before
            case "revocation-acknowledged" if group is not None:
                self.truth.told_keyed[group.group, details["user"]] = self.truth.now  # one revokes what one holds
            case "keyed" if group is not None:
                self.truth.told_keyed[group.group, details["user"]] = self.truth.now
                call = phone.call(group.group)
                if call is not None and details["user"] not in call.distribution.named:  # type: ignore[attr-defined]
                    self.truth.violate("8 keyed", f"{details['user']} is told to be keyed, who is not in {group.group}")
            case "left" | "key-request" if group is not None:
                self.truth.told_left[group.group, details["user"]] = self.truth.now
            case "ended" if group is not None:
                if phone.uri == group.initiator:  # to whom "failed" is told: his call, or his way back, was refused
                    there = group.established and details.get("cause") != "failed"
                else:
                    there = (phone.uri, group.group) in self._joined
                if there and phone.uri not in group.out:
                    self._ended.append((self.truth.now, phone, group, str(details.get("cause")), group.over))
                if phone.uri == group.initiator:
                    self.truth.close(group.group, WITHOUT_INITIATOR)

    def came_back(self, phone: Phone) -> None:
        """A phone is registered after a start."""

    def _judge_ends(self) -> None:
        """No call ends without a reason: what is refused or fails in one leaves the others alone."""
        while self._ended and self._ended[0][0] < self.truth.now - HINDSIGHT:
            self._judge_end(*self._ended.popleft())

    def _judge_end(self, now: float, phone: Phone, group: Group, cause: str, known: str | None) -> None:
        over = group.over or known
        if over == WITHOUT_INITIATOR and phone.uri == group.initiator:
            over = None  # that is what is to be explained
        if over is not None or phone.uri in group.out:
            return
        for user, host in ((phone.uri, phone.host), ("", SERVER_HOST), (group.initiator, HOSTS[group.initiator])):
            since = now - AFTERMATH
            if self._settings(USERS.index(user or phone.uri)).transport == "udp":
                # a BYE that is lost for good is noticed when there is something to say
                since = min(since, self._joined.get((user, group.group), group.opened_at))
            if self.disturbed.get(host, -1e9) > since:
                return
        if any(now - self.touched.get((group.group, user), -1e9) < AFTERMATH for user in (phone.uri, "")):
            return
        if now - group.opened_at > REGROUP.max_duration - 1:
            return
        if "expired" in cause and self.truth.expired(phone.uri, group.group, START + now + phone.skew):
            return
        self.truth.violate("10 calls", f"{group.group} ended at {phone.uri} without a reason: {cause}")

    def _tamper(self, process: Process, octets: bytes) -> list[bytes]:
        before = sum(self.hostile.done.values())
        out = self.hostile.outgoing(process, octets)
        if sum(self.hostile.done.values()) != before:
            self.note(f"  hostile move: {dict(self.hostile.done)}")
            self._touch(octets)
        return out

    def _touch(self, octets: bytes) -> None:
        """The server meddled with this message: whose call may end of it."""
        message = parse(octets)
        calls = self.host.server.controlling.calls.values() if self.host.server is not None else ()
        legs = [leg for call in calls for leg in call.legs.values()]
        for leg in legs:
            if leg.session.call_id == message.headers.call_id:
                if message.headers.cseq.method == "INVITE" and message.headers.to.tag is not None:
                    self.invariants.misled.add((leg.call.group, leg.user))
                self.touched[leg.call.group, "" if leg.initiator else leg.user] = self.truth.now
        to = {str(message.headers.to.uri), user_of(message)}
        for group in self.truth.groups.values():
            if group.initiator in to:
                self.touched[group.group, ""] = self.truth.now
            for user in to:
                self.touched[group.group, user] = self.truth.now

    def _newest_key(self, group: str) -> Any:
        found = self.truth.groups.get(group)
        return found.keys[-1].key if found is not None and found.keys else None

    def _send_later(self, seconds: float, process: Process, octets: bytes) -> None:
        """The hostile server sends a message of its own accord, on the connection that the message names."""
        for stream in self.network.streams:
            if stream.process is process and stream.last_written == octets:
                self.loop.call_later(seconds, self._send_now, stream, octets, context=process.context.copy())
                return

    def _send_now(self, stream: Stream, octets: bytes) -> None:
        self._touch(octets)
        stream.inject(octets)

    def kill(self, process: Process, *, silently: bool) -> None:
        process.dead = True
        self.network.kill(process, silently=silently)
        self._dead.append(process)
        self.disturb(process.host)
        for group in self.truth.groups.values():
            if process.host == HOSTS[group.initiator]:
                self.truth.close(group.group, INITIATOR_DIED)
        self.note(f"  {process} is dead")

    def disturb(self, host: str) -> None:
        self.disturbed[host] = self.loop.time()

    # --- operations of users ----------------------------------------------------------------------------

    def operate(self, phone: Phone, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Lets the user of a phone do something; how it ends is counted."""
        process = phone.process
        assert process is not None

        async def doing() -> None:
            self._operations += 1
            outcome = "done"
            try:
                await work()
            except FAILURES as error:
                outcome = type(error).__name__
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            except Exception as error:
                if process.dead:
                    raise
                outcome = "error"
                self.note(traceback.format_exc())
                self.truth.violate("11 errors", f"{phone.name} {name}: {error!r}")
            finally:
                self._operations -= 1
                if not process.dead:
                    self.events[f"{name} {outcome}"] += 1
                    self.note(f"  {phone.name} {name} {outcome}")

        process.spawn(doing())

    def phone_of(self, user: str) -> Phone:
        return self.phones[USERS.index(user)]

    def _initiated(self) -> list[tuple[Phone, Any, Group]]:
        """Calls in the hands of a living initiator."""
        return [
            (phone, call, self.truth.groups[call.group])
            for phone in self.phones
            for call in phone.calls
            if getattr(call, "directing", False) and call.group in self.truth.groups
        ]

    def _alive_groups(self) -> set[str]:
        return {call.group for phone in self.phones for call in phone.calls}
