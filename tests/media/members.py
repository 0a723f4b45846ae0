# SPDX-License-Identifier: Apache-2.0
"""Members of a group with hand-made keys, and a server that does what a test tells it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from media.endpoint import MemberMedia, MemberSettings
from media.floor_messages import (
    FloorGranted,
    FloorIdle,
    FloorMessage,
    FloorRelease,
    FloorRequest,
    FloorTaken,
    decode_all,
)
from media.srtp import CSK, SrtpKey, SrtpReceiver, SrtpSender
from media.udp import Address, Datagrams

DATA = Path(__file__).parents[2] / "scenarios" / "data"
HOST = "127.0.0.1"


def guk(gmk_id: int, user: str) -> bytes:
    return hashlib.sha256(f"{gmk_id}{user}".encode()).digest()[:4]


def group_key(gmk_id: int, guk_id: bytes) -> SrtpKey:
    """One sender's key under a group key, by any derivation that all agree on."""
    octets = hashlib.sha256(gmk_id.to_bytes(4, "big") + guk_id).digest()
    return SrtpKey(octets[:16], octets[16:28], gmk_id.to_bytes(4, "big") + guk_id)


def csk_of(user: str) -> SrtpKey:
    octets = hashlib.sha256(b"csk" + user.encode()).digest()
    return SrtpKey(octets[:16], octets[16:28], octets[28:])


class Member:
    """A MemberMedia with the keys in ``gmk_ids`` and a list of its events."""

    def __init__(self, user: str, media: MemberMedia, *gmk_ids: int) -> None:
        self.user = user
        self.media = media
        self.gmk_ids = set(gmk_ids)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()
        media.set_csk(csk_of(user))
        media.find_key = self.find_key
        media.talker_guk_ids = lambda who: {guk(gmk_id, who) for gmk_id in self.gmk_ids}
        media.on_event = self._on_event

    @classmethod
    async def open(cls, user: str, *gmk_ids: int, **options: Any) -> Member:
        settings = MemberSettings(**options)
        return cls(user, await MemberMedia.open(HOST, user=user, settings=settings), *gmk_ids)

    def find_key(self, mki: bytes) -> SrtpKey | None:
        gmk_id = int.from_bytes(mki[:4], "big")
        return group_key(gmk_id, mki[4:]) if gmk_id in self.gmk_ids else None

    def send_under(self, gmk_id: int) -> None:
        self.media.set_sending_key(group_key(gmk_id, guk(gmk_id, self.user)))

    def _on_event(self, name: str, details: dict[str, Any]) -> None:
        self.events.append((name, details))
        self._news.set()

    async def until(self, name: str, count: int = 1) -> dict[str, Any]:
        """The details of the ``count``-th event of a name."""
        async with asyncio.timeout(20):
            while len(found := [details for event, details in self.events if event == name]) < count:
                self._news.clear()
                await self._news.wait()
        return found[count - 1]


class ScriptedServer:
    """Grants the floor to whoever asks, and copies audio to all others, unless told otherwise."""

    def __init__(self) -> None:
        self.audio = Datagrams(HOST)
        self.floor = Datagrams(HOST)
        self.audio.on_datagram = self._on_audio
        self.floor.on_datagram = self._on_floor
        self.members: dict[str, Member] = {}
        self.received: list[tuple[str, FloorMessage]] = []
        self.packets: list[bytes] = []
        #: what becomes of a packet of a user; by default it goes to everyone else
        self.forward: Callable[[str, bytes], None] = self.copy
        #: what becomes of a floor message
        self.answer: Callable[[str, FloorMessage], None] = self.grant
        self.ssrc = 0x5E5E0000
        self._senders: dict[str, SrtpSender] = {}
        self._receivers: dict[str, SrtpReceiver] = {}
        self._sequence = 0
        self._news = asyncio.Event()

    async def heard(self) -> None:
        """Until something has come."""
        self._news.clear()
        await self._news.wait()

    def join(self, *members: Member, connect: bool = True) -> None:
        for member in members:
            key = csk_of(member.user)
            self.ssrc += 1
            self.members[member.user] = member
            self._senders[member.user] = SrtpSender(key, self.ssrc, CSK)
            self._receivers[member.user] = SrtpReceiver(lambda _mki, key=key: key, CSK)  # type: ignore[misc]
            if connect:
                member.media.connect(self.audio.address, self.floor.address)

    def _user(self, source: Address) -> str:
        return next(
            user for user, m in self.members.items() if source in (m.media.audio_address, m.media.floor_address)
        )

    def _on_audio(self, octets: bytes, source: Address) -> None:
        if octets and not 192 <= octets[1] <= 223:  # no keep-alive
            self.packets.append(octets)
            self._news.set()
            self.forward(self._user(source), octets)

    def copy(self, user: str, octets: bytes) -> None:
        for other in self.members:
            if other != user:
                self.send_audio(other, octets)

    def send_audio(self, user: str, octets: bytes) -> None:
        self.audio.send(octets, self.members[user].media.audio_address)

    def _on_floor(self, octets: bytes, source: Address) -> None:
        user = self._user(source)
        plain = self._receivers[user].unprotect_rtcp(octets).data
        if plain[1] == 204:
            for message in decode_all(plain):
                self.received.append((user, message))
                self._news.set()
                self.answer(user, message)

    def send(self, user: str, make: type[FloorMessage], **fields: Any) -> None:
        sender = self._senders[user]
        if make in (FloorTaken, FloorIdle):
            self._sequence += 1
            fields["sequence"] = self._sequence
        message = make(ssrc=sender.ssrc, **fields)
        self.floor.send(sender.protect_rtcp(message.encode()), self.members[user].media.floor_address)

    def tell_others(self, user: str, make: type[FloorMessage], **fields: Any) -> None:
        for other in self.members:
            if other != user:
                self.send(other, make, **fields)

    def grant(self, user: str, message: FloorMessage) -> None:
        if isinstance(message, FloorRequest):
            self.send(user, FloorGranted, duration=30, granted_ssrc=self.members[user].media.ssrc)
            self.tell_others(user, FloorTaken, granted_party=user, granted_ssrc=self.members[user].media.ssrc)
        elif isinstance(message, FloorRelease):
            for other in self.members:
                self.send(other, FloorIdle)

    async def close(self) -> None:
        for member in self.members.values():
            await member.media.close()
        self.audio.close()
        self.floor.close()
