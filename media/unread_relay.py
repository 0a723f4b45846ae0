# SPDX-License-Identifier: Apache-2.0
"""The server's media of a call whose floor the members arbitrate: audio and floor messages are copied unread.

It knows each member's addresses from SDP, and what stands in clear: SSRC and GUK-ID. Members behind a translation of
addresses cannot be followed, as nothing of theirs is authentic to this server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from media.fanout import Address, FanOut
from media.relay import Relay, RelaySettings
from media.udp import Trace, open_pair

__all__ = ["UnreadRelay", "UnreadRelaySettings"]

log = logging.getLogger(__name__)



@dataclass(frozen=True, slots=True)
class UnreadRelaySettings:
    """Everything that can be set."""

    relay: RelaySettings = field(default_factory=RelaySettings)
    #: floor messages of a member: packets a second, and so many at once
    floor_rate: float = 50.0
    floor_burst: float = 200.0
    thread_above: int = 200
    send_buffer: int = 1 << 22
    dscp: int = 46
    max_datagram: int = 1500


class UnreadRelay:
    """The media of one call; use it inside a running asyncio loop. Raises ``OSError`` without a socket on ``host``."""

    def __init__(
        self,
        group: str,
        host: str,
        *,
        clock: Callable[[], float] = time.time,
        settings: UnreadRelaySettings | None = None,
    ) -> None:
        self.group = group
        self.settings = settings or UnreadRelaySettings()
        self.trace: Trace | None = None
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        s = self.settings
        self._audio_relay = Relay(lambda *_packet: True, s.relay)
        # SRTCP: the MKI stands at the very end, the shortest message is 12 octets
        floor = replace(
            s.relay, trailer=0, min_packet=12 + 16 + 4 + 8, rate=s.floor_rate, burst=s.floor_burst, control=True
        )
        self._floor_relay = Relay(lambda *_packet: True, floor)
        self._audio, self._floor = open_pair(
            host, dscp=s.dscp, max_datagram=s.max_datagram, send_buffer=s.send_buffer
        )
        self._audio.on_datagram = lambda octets, source: self._copy("audio", octets, source)
        self._floor.on_datagram = lambda octets, source: self._copy("floor", octets, source)
        self._lines = {
            "audio": (self._audio_relay, self._audio, FanOut()), "floor": (self._floor_relay, self._floor, FanOut()),
        }  # fmt: skip

    @property
    def audio(self) -> Address:
        """Where members send audio."""
        return self._audio.address

    @property
    def floor(self) -> Address:
        """Where members send floor control messages."""
        return self._floor.address

    def add_leg(self, participant: str, *, audio: Address, floor: Address, media_ssrc: int, guk_id: int) -> None:
        """A member comes in. Raises ValueError when an address is another's, or of another family than the relay's."""
        self._audio.check_reach(audio, floor)
        now = self._loop.time()
        self._audio_relay.add(participant, audio, media_ssrc, guk_id, now)
        try:
            self._floor_relay.add(participant, floor, 0, guk_id, now)
        except ValueError:
            self._audio_relay.remove(participant)
            raise

    def bind(self, participant: str, guk_id: int) -> None:
        """A further GUK-ID under which the participant will send, after a new group key."""
        for relay, _, _ in self._lines.values():
            relay.bind(participant, guk_id)

    def remove_leg(self, participant: str) -> None:
        """A member is out: nothing goes to him or comes from him any more."""
        for relay, _, _ in self._lines.values():
            relay.remove(participant)

    def _copy(self, kind: str, octets: bytes, source: Address) -> None:
        relay, line, fan_out = self._lines[kind]
        if self.trace is not None:
            self.trace(kind, False, line.address, source, octets, self._clock())
        if not octets or not relay.accept(octets, source, self._loop.time()):
            return
        targets = relay.destinations
        threaded = len(targets) > self.settings.thread_above
        line.send_many(octets, targets, source, fan_out, thread=threaded)
        if self.trace is not None:
            at = self._clock()
            for target in targets:
                if target != source:
                    self.trace(kind, True, line.address, target, octets, at)

    def statistics(self) -> dict[str, Any]:
        """Counters: packets relayed and dropped by reason; those of floor messages begin with ``floor-``."""
        floor = {f"floor-{reason}": count for reason, count in self._floor_relay.counters.items()}
        lines = self._lines.values()
        return {
            **self._audio_relay.counters,
            **floor,
            "legs": len(self._audio_relay.legs),
            "unsent": sum(fan_out.lost for _, _, fan_out in lines),
            "unreachable": sum(fan_out.unreachable for _, _, fan_out in lines),
            "behind": sum(line.dropped for _, line, _ in lines),
            "failed": sum(line.failed for _, line, _ in lines),
        }

    def close(self) -> None:
        """Lets go of both sockets. Harmless twice."""
        log.info("group=%s relay closed: %s", self.group, self.statistics())
        self._audio.close()
        self._floor.close()
