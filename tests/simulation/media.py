# SPDX-License-Identifier: Apache-2.0
"""Media of the simulation: one protected packet instead of a voice, over the simulated network.

Protection is the real one (:mod:`media.srtp`) and so is the relay's filter (:mod:`media.relay`); there are no codecs,
no pacing and no floor: who wants to talk sends a packet. They stand where :class:`media.endpoint.MemberMedia` and
:class:`media.relay_endpoint.GroupRelay` stand in a program.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Any

from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import Destination
from media.errors import SrtpError
from media.relay import Relay
from media.srtp import GROUP, SrtpKey, SrtpReceiver, SrtpSender
from tests.simulation.loop import current
from tests.simulation.network import Address, Network

#: told of each packet that a member opened: (user, MKI, SSRC, index)
Heard = Callable[[str, bytes, int, int], None]


class LightMedia:
    """One member's media in one call."""

    network: Network
    on_heard: Heard

    def __init__(self, user: str) -> None:
        random = current().random
        self.user = user
        self.ssrc = self.draw_ssrc()
        self.sequence = random.randrange(1 << 15)
        self.find_key: Callable[[bytes], SrtpKey | None] = lambda _mki: None
        self.talker_guk_ids: Callable[[str], Collection[bytes]] = lambda _user: ()
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda _name, _details: None
        self.trace: Any = None
        self.sending: SrtpKey | None = None
        self.closed = False
        self._sender: SrtpSender | None = None
        self._receiver = SrtpReceiver(lambda mki: self.find_key(mki), GROUP, own_ssrcs={self.ssrc})
        self._peer: Address | None = None
        host = current().host
        self.audio_address = self.network.bind(self._audio, host)
        self.floor_address = self.network.bind(self._floor, host)

    @staticmethod
    def draw_ssrc() -> int:
        """Anew for every call and after every start."""
        return current().random.randrange(1, 1 << 32)

    @classmethod
    async def open(cls, _host: str, *, user: str, clock: Callable[[], float], settings: Any = None) -> LightMedia:
        return cls(user)

    def set_csk(self, _key: SrtpKey) -> None:
        """There is no floor control here."""

    def connect(self, audio: Address, floor: Address) -> None:
        self._peer = audio

    def is_connected(self, audio: Address, _floor: Address) -> bool:
        return self._peer == audio

    def declare(self, _urgency: object) -> None:
        """There is no floor control here."""

    def set_sending_key(self, key: SrtpKey | None) -> None:
        self.sending = key
        if key is None:
            return
        if self._sender is None:
            self._sender = SrtpSender(key, self.ssrc, GROUP)
        else:
            self._sender.set_key(key)

    def retire_key(self, gmk_id: bytes) -> None:
        self._receiver.retire(gmk_id)

    def talk(self) -> bool:
        """Sends one packet, if there is a key to send under; whether it was."""
        if self.closed or self.sending is None or self._sender is None or self._peer is None:
            return False
        rtp = struct.pack(">BBHII", 0x80, 96, self.sequence, self.sequence * 960, self.ssrc) + b"twenty milliseconds."
        self.sequence = self.sequence + 1 & 0xFFFF
        self.network.send(self._sender.protect(rtp), self.audio_address, self._peer, "audio")
        return True

    def _audio(self, octets: bytes, source: Address) -> None:
        if source != self._peer or self.closed:
            return
        try:
            opened = self._receiver.unprotect(octets)
        except SrtpError:
            return
        self.on_heard(self.user, opened.mki, opened.ssrc, opened.index)

    def _floor(self, _octets: bytes, _source: Address) -> None:
        """There is no floor control here."""

    async def request_floor(self, priority: int = 0) -> None:
        """Everybody may talk at any time: keys are looked at here, not turns."""

    async def release_floor(self) -> None:
        """See :meth:`request_floor`."""

    async def close(self) -> None:
        self.closed = True
        self.network.unbind(self.audio_address)
        self.network.unbind(self.floor_address)


class LightRelay:
    """One call's relay."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._relay = Relay(lambda _participant, _ssrc, _now: True)
        host = current().host
        self.audio = network.bind(self._audio, host)
        self.floor = network.bind(self._floor, host)

    def _audio(self, octets: bytes, source: Address) -> None:
        if self._relay.accept(octets, source, self._network.loop.time()):
            for target in self._relay.destinations:
                if target != source:
                    self._network.send(octets, self.audio, target, "relayed")

    def _floor(self, _octets: bytes, _source: Address) -> None:
        """There is no floor control here."""

    @property
    def legs(self) -> Collection[str]:
        return self._relay.legs.keys()

    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        assert theirs.ssrc is not None
        now = self._network.loop.time()
        self._relay.add(destination.user, theirs.audio, theirs.ssrc, guk_id, now)

    def bind(self, user: str, guk_id: int) -> None:
        self._relay.bind(user, guk_id)

    def declare(self, _urgency: object, _by: object) -> None:
        """There is no floor control here."""

    def remove_leg(self, user: str) -> None:
        self._relay.remove(user)

    def close(self) -> None:
        self._network.unbind(self.audio)
        self._network.unbind(self.floor)


class LightPlane:
    """Opens a relay for each call."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def open(self, _group: str, _max_silence: float = 0.0) -> LightRelay:
        return LightRelay(self._network)

    def open_unread(self, _group: str) -> LightRelay:
        return LightRelay(self._network)

    def open_private(self, label: str) -> LightRelay:
        raise NotImplementedError(f"{label}: nobody makes private calls here")
