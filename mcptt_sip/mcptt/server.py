# SPDX-License-Identifier: Apache-2.0
"""The MCPTT server: participating and controlling function with their sockets, clock and relays.

::

    server = McpttServer(settings, policy=lambda: policy, keyring=keyring, replay=replay)
    addresses = await server.start()
    ...
    await server.aclose()
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mcptt_sip.endpoint import SipEndpoint, steady
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupMedia, MediaPlane, Observer
from mcptt_sip.mcptt.mediadescription import INDICATED, GroupMediaDescription, MediaRefused
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Policy, Urgency
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.service import assemble
from mcptt_sip.trace import TraceSink
from mcptt_sip.transport import TransportSettings
from media.floor_messages import FloorIndicator
from media.floor_server import FloorServerSettings
from media.relay import RelaySettings
from media.relay_endpoint import GroupRelay, GroupRelaySettings
from media.srtp import SrtpKey
from media.unread_relay import UnreadRelay
from mikey import Keyring, ReplayCache, TransportKey, srtp_keys, verify

log = logging.getLogger(__name__)

#: CS-ID of floor control between a client and its server, protected under the CSK (TS 33.180 E.1.3)
FLOOR_CONTROL = 6

MediaTrace = Callable[[str, bool, tuple[str, int], tuple[str, int], bytes, float], None]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What an operator may set. Times in seconds."""

    identity: str  # public service identity, e.g. sip:mcptt@mcx.example
    domain: str  # realm, domain of group ids, host in Warnings
    listen: tuple[tuple[str, str, int], ...] = (("udp", "127.0.0.1", 5060), ("tcp", "127.0.0.1", 5060))
    media_host: str = "127.0.0.1"
    regroup: RegroupSettings = RegroupSettings()
    #: what the controlling function is told besides its names; see :class:`ControllingSettings`
    controlling: ControllingSettings | None = None
    #: a floor request of this (authorised) priority and more interrupts a talker of a lower one; ``None``: never
    preemptive_priority: int | None = None
    agent: TransportSettings = TransportSettings()


def floor_key(csk: TransportKey) -> SrtpKey:
    """The SRTCP master key and salt of floor control under ``csk`` (TS 33.180 9.4; both directions)."""
    master, salt = srtp_keys(csk, csb_id=csk.key_id, cs_id=FLOOR_CONTROL)
    return SrtpKey(master.reveal(), salt.reveal(), csk.key_id.to_bytes(4, "big"))


#: what the packets of a private call end with: the tag, and the PCK-ID as MKI
PRIVATE_PACKETS = RelaySettings(mki_length=4, trailer=0, min_packet=12 + 16 + 4)


R = TypeVar("R", GroupRelay, UnreadRelay)


def announced_ssrc(theirs: GroupMediaDescription) -> int:
    """What a member sends audio under; only he draws it (rule 1)."""
    if theirs.ssrc is None:
        raise MediaRefused("the description does not say under which SSRC audio will come (a=ssrc)")
    return theirs.ssrc


class Relaying(Generic[R]):
    """What all relays have in common, as the controlling function orders them about."""

    def __init__(self, relay: R) -> None:
        self._relay: R = relay
        self.audio = relay.audio
        self.floor = relay.floor

    def declare(self, _urgency: Urgency, _by: Collection[str]) -> None:
        """Where the server does not arbitrate it has no say in whose request goes before others."""

    def bind(self, user: str, guk_id: int) -> None:
        self._relay.bind(user, guk_id)

    def remove_leg(self, user: str) -> None:
        self._relay.remove_leg(user)

    def close(self) -> None:
        self._relay.close()


class RelayedMedia(Relaying[GroupRelay]):
    """One call's relay and floor control server."""

    def declare(self, urgency: Urgency, by: Collection[str]) -> None:
        self._relay.declare(INDICATED[urgency], by)

    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        self._relay.add_leg(
            destination.user,
            audio=theirs.audio,
            floor=theirs.floor,
            media_ssrc=announced_ssrc(theirs),
            csk=floor_key(destination.csk),
            guk_id=guk_id,
            priority=destination.priority,
            queueing=theirs.queueing,
            implicit_request=theirs.implicit_request,
        )


class UnreadMedia(Relaying[UnreadRelay]):
    """One call's relay when members arbitrate the floor."""

    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        self._relay.add_leg(
            destination.user, audio=theirs.audio, floor=theirs.floor, media_ssrc=announced_ssrc(theirs), guk_id=guk_id
        )


class RelayPlane:
    """Opens a relay for each call on one local address."""

    def __init__(
        self,
        host: str,
        *,
        clock: Callable[[], float],
        trace: MediaTrace | None,
        preemptive_priority: int | None = None,
    ) -> None:
        self._host = host
        self._floor = FloorServerSettings(preemptive_priority=preemptive_priority)
        self._clock = clock
        self._trace = trace
        #: told the group of a call in which nobody has talked for too long
        self.silent: Callable[[str], None] = lambda _group: None

    def open(self, group: str, max_silence: float) -> GroupMedia:
        floor = replace(self._floor, t4=max_silence) if max_silence else self._floor
        indicator = FloorIndicator.NORMAL | FloorIndicator.TEMPORARY_GROUP | FloorIndicator.QUEUEING
        relay = GroupRelay(
            group, self._host, clock=self._clock, settings=GroupRelaySettings(floor=floor),
            indicator=indicator,
        )
        relay.trace = self._trace

        def told(name: str, _details: dict[str, Any]) -> None:
            if name == "inactive" and max_silence:
                self.silent(group)

        relay.on_event = told
        return RelayedMedia(relay)

    def open_unread(self, group: str) -> GroupMedia:
        relay = UnreadRelay(group, self._host, clock=self._clock)
        relay.trace = self._trace
        return UnreadMedia(relay)

    def open_private(self, label: str) -> GroupMedia:
        indicator = FloorIndicator.NORMAL | FloorIndicator.QUEUEING
        settings = GroupRelaySettings(relay=PRIVATE_PACKETS)
        relay = GroupRelay(label, self._host, clock=self._clock, settings=settings, indicator=indicator)
        relay.trace = self._trace
        return RelayedMedia(relay)


class McpttServer:
    """One server process.

    :param policy: gives the policy in force; asked anew for each decision
    :param keyring: the server's own key sets (for CSKs) and the KMS certificates it trusts
    :param replay: remembers accepted CSK messages
    :param observe: told (name, details) of each call's steps; must not block
    :param media: opens each call's relay; a :class:`RelayPlane` on ``settings.media_host`` when ``None``
    """

    #: the controlling function in use; a test may put a dishonest one here
    controlling_function: type[ControllingFunction] = ControllingFunction

    def __init__(
        self,
        settings: ServerSettings,
        *,
        policy: Callable[[], Policy],
        keyring: Keyring,
        replay: ReplayCache,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        trace: TraceSink | None = None,
        media_trace: MediaTrace | None = None,
        observe: Observer = lambda _name, _details: None,
        media: MediaPlane | None = None,
    ) -> None:
        self.settings = settings
        #: the time of day, by which keys go; and the stack's time, which nobody sets
        self.now, self.stack_time = clock, steady(clock)
        self._keyring = keyring
        self._observe = observe

        if media is None:
            media = RelayPlane(
                settings.media_host, clock=clock, trace=media_trace, preemptive_priority=settings.preemptive_priority
            )
            media.silent = self._silent
        self.service = assemble(
            settings.controlling or ControllingSettings(settings.identity, settings.domain),
            regroup_settings=lambda: settings.regroup,
            policy=policy,
            keyring=keyring,
            replay=replay,
            check_key=self._check_key,
            time_of_day=clock,
            media=media,
            token=lambda: random(8),
            observe=observe,
            controlling_function=self.controlling_function,
        )
        self.stack = self.service.stack
        self.participating = self.service.participating
        self.controlling = self.service.controlling
        self._agent = SipEndpoint(
            self.stack, on_event=self._on_event, clock=self.stack_time, trace=trace, settings=settings.agent
        )
        self._timer: asyncio.TimerHandle | None = None

    def _check_key(self, octets: bytes, sender: str, recipient: str) -> int:
        """Rule 22: the server checks who signed a key message and for whom; it cannot open it. Keys
        go by the time of day."""
        checked = verify(octets, sender_uri=sender, recipient_uri=recipient, keyring=self._keyring, now=self.now())
        return checked.message.csb_id

    async def start(self) -> list[tuple[str, str, int]]:
        """Opens every listener; returns (transport, host, port) of each."""
        opened: list[tuple[str, str, int]] = []
        try:
            for transport, host, port in self.settings.listen:
                # port 0 after the first listener: the same port again, when it is free for this transport
                bound = await self._agent.listen(transport, host, port)
                opened.append((transport, *bound))
        except BaseException:
            await self._agent.close()
            raise
        return opened

    def policy_changed(self, users: Collection[str]) -> None:
        """There is another policy, with these users: whoever is none any more leaves his calls."""
        try:
            self.service.policy_changed(users, self.stack_time())
            self._agent.transmit()
        finally:
            self._rearm()

    async def aclose(self) -> None:
        """Ends every call, then lets go of the sockets."""
        if self._timer is not None:
            self._timer.cancel()
        self.controlling.release_all("the server is going down", self.stack_time())
        self.service.private.release_all(self.stack_time())
        self._agent.transmit()
        await self._agent.close()

    def _on_event(self, event: object, now: float) -> None:
        try:
            self.service.handle(event, now)
        finally:
            self._rearm()

    def _silent(self, group: str) -> None:
        self.controlling.media_silent(group, self.stack_time())
        self._agent.transmit()
        self._rearm()

    def _rearm(self) -> None:
        """One timer for what the functions above the stack wait for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.service.next_timer()
        if due is not None:
            delay = max(0.0, due - self.stack_time())
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        try:
            self.service.handle_timer(self.stack_time())
            self._agent.transmit()
        finally:
            self._rearm()


