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
from collections.abc import Callable
from dataclasses import dataclass

from mcptt_sip.endpoint import SipEndpoint
from mcptt_sip.mcptt.affiliation import Affiliations
from mcptt_sip.mcptt.contents import FEATURE_TAGS
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupMedia, Observer
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MIKEY
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription, MediaRefused
from mcptt_sip.mcptt.participating import Destination, ParticipatingFunction
from mcptt_sip.mcptt.policy import Policy
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.service import McpttService
from mcptt_sip.registrar import Registrar
from mcptt_sip.stack import SipStack, StackSettings
from mcptt_sip.trace import TraceSink
from mcptt_sip.transport import TransportSettings
from media.relay_endpoint import GroupRelay
from media.srtp import SrtpKey
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
    answer_mode: str = "Auto"
    regroup: RegroupSettings = RegroupSettings()
    agent: TransportSettings = TransportSettings()


def floor_key(csk: TransportKey) -> SrtpKey:
    """The SRTCP master key and salt of floor control under ``csk`` (TS 33.180 9.4; both directions)."""
    master, salt = srtp_keys(csk, csb_id=csk.key_id, cs_id=FLOOR_CONTROL)
    return SrtpKey(master.reveal(), salt.reveal(), csk.key_id.to_bytes(4, "big"))


class RelayedMedia:
    """One call's relay and floor control server, as the controlling function orders them about."""

    def __init__(self, relay: GroupRelay) -> None:
        self._relay = relay
        self.audio = relay.audio
        self.floor = relay.floor

    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        if theirs.ssrc is None:
            raise MediaRefused("the description does not say under which SSRC audio will come (a=ssrc)")
        self._relay.add_leg(
            destination.user,
            audio=theirs.audio,
            floor=theirs.floor,
            media_ssrc=theirs.ssrc,
            csk=floor_key(destination.csk),
            guk_id=guk_id,
            priority=destination.priority,
            queueing=theirs.queueing,
            implicit_request=theirs.implicit_request,
        )

    def bind(self, user: str, guk_id: int) -> None:
        self._relay.bind(user, guk_id)

    def remove_leg(self, user: str) -> None:
        self._relay.remove_leg(user)

    def close(self) -> None:
        self._relay.close()


class RelayPlane:
    """Opens a relay for each call on one local address."""

    def __init__(self, host: str, *, clock: Callable[[], float], trace: MediaTrace | None) -> None:
        self._host = host
        self._clock = clock
        self._trace = trace

    def open(self, group: str) -> GroupMedia:
        relay = GroupRelay(group, self._host, clock=self._clock)
        relay.trace = self._trace
        return RelayedMedia(relay)


class McpttServer:
    """One server process.

    :param policy: gives the policy in force; asked anew for each decision
    :param keyring: the server's own key sets (for CSKs) and the KMS certificates it trusts
    :param replay: remembers accepted CSK messages
    :param observe: told (name, details) of each call's steps; must not block
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
    ) -> None:
        self.settings = settings
        self.now = clock
        self._keyring = keyring
        self._observe = observe

        def token() -> bytes:
            return random(8)

        params = tuple(item.partition("=")[::2] for item in FEATURE_TAGS.split(";"))
        self.stack = SipStack(
            StackSettings(
                contact_params=tuple((name, value or None) for name, value in params),
                accept=("application/sdp", "multipart/mixed", "multipart/*", MIKEY, ACKNOWLEDGEMENT),
            ),
            token=token,
        )
        self.participating = ParticipatingFunction(
            identity=settings.identity, domain=settings.domain, policy=policy, registrar=Registrar(),
            csk_keys=keyring, replay=replay, token=token,
        )
        self.controlling = self.controlling_function(
            self.stack,
            settings=ControllingSettings(settings.identity, settings.domain, settings.answer_mode),
            regroup_settings=lambda: settings.regroup,
            policy=policy,
            affiliations=Affiliations(),
            locate=self.participating.locate,
            check_key=self._check_key,
            media=RelayPlane(settings.media_host, clock=clock, trace=media_trace),
            token=token,
            observe=observe,
        )
        self.service = McpttService(self.stack, self.participating, self.controlling)
        self._agent = SipEndpoint(
            self.stack, on_event=self._on_event, clock=clock, trace=trace, settings=settings.agent
        )
        self._timer: asyncio.TimerHandle | None = None

    def _check_key(self, octets: bytes, sender: str, recipient: str, now: float) -> int:
        """Rule 22: the server checks who signed a key message and for whom; it cannot open it."""
        checked = verify(octets, sender_uri=sender, recipient_uri=recipient, keyring=self._keyring, now=now)
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

    async def aclose(self) -> None:
        """Ends every call, then lets go of the sockets."""
        if self._timer is not None:
            self._timer.cancel()
        self.controlling.release_all("the server is going down", self.now())
        self._agent.transmit()
        await self._agent.close()

    def _on_event(self, event: object, now: float) -> None:
        self.service.handle(event, now)
        self._rearm()

    def _rearm(self) -> None:
        """One timer for what the functions above the stack wait for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.service.next_timer()
        if due is not None:
            delay = max(0.0, due - self.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.service.handle_timer(self.now())
        self._agent.transmit()
        self._rearm()


