# SPDX-License-Identifier: Apache-2.0
"""A WebRTC peer that talks into a group and hears it, through its member's client.

Only aiortc's documented parts are used. The peer's audio is read all the time, as an unread track would fill memory;
it goes to the group while the floor is held.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from media.endpoint import MemberMedia
from media.errors import FloorError
from media.tracks import HeardTrack

__all__ = ["PeerMember"]

log = logging.getLogger(__name__)


class _Gate(MediaStreamTrack):
    """What the peer says, from now on and until closed."""

    kind = "audio"

    def __init__(self, most: int) -> None:
        super().__init__()
        self.ready: asyncio.Queue[Any] = asyncio.Queue(maxsize=most)

    async def recv(self) -> Any:
        frame = await self.ready.get()
        if frame is None:
            self.stop()
            raise MediaStreamError
        return frame


class PeerMember:
    """Joins an ``aiortc.RTCPeerConnection`` to a member; make it before the connection is negotiated.

    :param most: frames of the peer that wait for the group at most; later ones are dropped and counted
    """

    def __init__(self, connection: Any, member: MemberMedia, *, most: int = 50) -> None:
        self.dropped = 0
        self._member = member
        self._most = most
        self._gate: _Gate | None = None
        self._talking: asyncio.Task[dict[str, float]] | None = None
        self._reading: set[asyncio.Task[None]] = set()
        self._heard = HeardTrack()
        member.listeners.append(self._heard.put)
        connection.addTrack(self._heard)
        connection.on("track", self._on_track)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            task = asyncio.ensure_future(self._read(track))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            if self._gate is not None:
                if self._gate.ready.full():
                    self.dropped += 1
                else:
                    self._gate.ready.put_nowait(frame)

    async def press(self, priority: int = 0) -> None:
        """Asks for the floor and, when it is given, lets the peer's audio through until :meth:`release`.

        Raises what :meth:`MemberMedia.request_floor` raises.
        """
        await self._member.request_floor(priority)
        self._gate = _Gate(self._most)
        self._talking = asyncio.ensure_future(self._member.send(self._gate))

    async def release(self) -> dict[str, float] | None:
        """Gives the floor back; {start, duration} of what was sent, ``None`` when the floor was lost meanwhile."""
        talking, self._talking, gate, self._gate = self._talking, None, self._gate, None
        await self._member.release_floor()
        if gate is not None:
            gate.stop()
        if talking is None:
            return None
        try:
            return await talking
        except FloorError as error:
            log.info("the peer's burst ended: %s", error)
            return None

    async def close(self) -> None:
        """Lets go of both; neither is closed."""
        await self.release()
        self._heard.stop()
        if self._heard.put in self._member.listeners:
            self._member.listeners.remove(self._heard.put)
        for task in list(self._reading):
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
