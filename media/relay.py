# SPDX-License-Identifier: Apache-2.0
"""The filter of a blind relay: which packets of a group's media pass, and to whom; sans-IO.

A relay holds no media key. What it can check stands in clear: the source address, the sender's SSRC, and the
GUK-ID at the end of the MKI, which names the member whose key the packet is (allegedly) protected under. The
checks keep strangers, one member's packets under another's name and what is under a key that its member has left out;
that a packet is authentic, its receivers find out for themselves.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Address", "Leg", "Relay", "RelaySettings"]

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Sizes in octets."""

    mki_length: int = 8
    #: octets after the MKI: the ROC
    trailer: int = 4
    tag: int = 16
    min_packet: int = 12 + 16 + 8 + 4
    max_packet: int = 1400
    #: packets a member may send in a second, with so many at once
    rate: float = 200.0
    burst: float = 100.0
    #: how far the sequence number may be from the last one while a burst goes on, and after how long a silence of
    #: the leg (seconds) it may be any
    progress: int = 1000
    pause: float = 1.0
    #: GUK-IDs of a member that are valid: the last ones that were bound to his leg
    guk_ids: int = 4
    #: seconds for which a GUK-ID still passes once its member has sent under another one: what was under way
    grace: float = 4.0
    max_legs: int = 2000
    #: SRTCP with floor messages is relayed, instead of SRTP
    control: bool = False


@dataclass(slots=True)
class Leg:
    """One participant's media address and what his packets must show."""

    participant: str
    audio: Address
    media_ssrc: int
    #: the last ones that were bound, each with the time from which it is refused
    guk_ids: dict[bytes, float]
    receive_only: bool = False
    #: under which he sends: of the last key that he has switched to
    guk_id: bytes = b""
    tokens: float = 0.0
    refilled: float = 0.0
    sent: int = 0
    sequence: int = 0
    #: when a packet passed last
    passed: float = float("-inf")


@dataclass(slots=True)
class Relay:
    """The legs of one call.

    :param may_pass: asked for each packet that is in order, with (participant, SSRC, now): floor control's word
    """

    may_pass: Callable[[str, int, float], bool]
    settings: RelaySettings = field(default_factory=RelaySettings)
    legs: dict[str, Leg] = field(default_factory=dict)
    #: packets by what became of them: ``relayed``, or the reason of the drop
    counters: Counter[str] = field(default_factory=Counter)
    _by_source: dict[Address, Leg] = field(default_factory=dict)
    _destinations: tuple[Address, ...] | None = None

    def add(
        self, participant: str, audio: Address, media_ssrc: int, guk_id: int, now: float, *, receive_only: bool = False
    ) -> None:
        """A leg, in place of one that the participant had. Raises ValueError when an address is taken, or full."""
        self.remove(participant)
        if audio in self._by_source:
            raise ValueError(f"{audio} is another participant's media address")
        if len(self.legs) >= self.settings.max_legs:
            raise ValueError(f"more than {self.settings.max_legs} legs")
        leg = Leg(participant, audio, media_ssrc, {guk_id.to_bytes(4, "big"): float("inf")}, receive_only)
        leg.tokens, leg.refilled = self.settings.burst, now
        self.legs[participant] = self._by_source[audio] = leg
        self._destinations = None

    def bind(self, participant: str, guk_id: int) -> None:
        """A further GUK-ID of a participant, after a new group key. Those before stay valid until he has switched."""
        leg = self.legs.get(participant)
        octets = guk_id.to_bytes(4, "big")
        if leg is not None and octets not in leg.guk_ids:
            leg.guk_ids[octets] = float("inf")
            if len(leg.guk_ids) > self.settings.guk_ids:
                del leg.guk_ids[next(iter(leg.guk_ids))]

    def move(self, participant: str, audio: Address) -> bool:
        """A participant's media now comes from, and goes to, another address: whether it does. Only what is
        authenticated may say so."""
        leg = self.legs.get(participant)
        if leg is None or audio in self._by_source:
            return False
        del self._by_source[leg.audio]
        leg.audio = audio
        self._by_source[audio] = leg
        self._destinations = None
        return True

    def remove(self, participant: str) -> None:
        """Nothing goes to him or comes from him any more."""
        leg = self.legs.pop(participant, None)
        if leg is not None:
            self._by_source.pop(leg.audio, None)
            self._destinations = None

    @property
    def destinations(self) -> tuple[Address, ...]:
        """Every leg's address; the same tuple until one changes."""
        if self._destinations is None:
            self._destinations = tuple(leg.audio for leg in self.legs.values())
        return self._destinations

    def accept(self, packet: bytes, source: Address, now: float) -> bool:
        """Whether a packet goes on, as it is, to all :attr:`destinations` but its source; else it is counted."""
        reason = self._refuse(packet, source, now)
        self.counters["relayed" if reason is None else reason] += 1
        return reason is None

    def _refuse(self, packet: bytes, source: Address, now: float) -> str | None:
        leg = self._by_source.get(source)
        if leg is None:
            return "unknown-source"
        settings = self.settings
        if not settings.min_packet <= len(packet) <= settings.max_packet:
            return "size"
        if packet[0] >> 6 != 2 or (packet[1] != 204 if settings.control else 192 <= packet[1] <= 208):
            return "not-rtp"
        leg.tokens = min(settings.burst, leg.tokens + (now - leg.refilled) * settings.rate)
        leg.refilled = now
        if leg.tokens < 1.0:
            return "rate"
        leg.tokens -= 1.0
        end = len(packet) - settings.trailer
        guk_id = packet[end - 4 : end]
        refused_from = leg.guk_ids.get(guk_id)
        if refused_from is None:
            return "foreign-guk-id"
        if now >= refused_from:
            return "retired-guk-id"
        if settings.control:
            self._sent_under(leg, guk_id, now)
            return None
        sequence, ssrc = struct.unpack_from(">H4xI", packet, 2)
        if ssrc != leg.media_ssrc:
            return "foreign-ssrc"
        if leg.receive_only:
            return "receive-only"
        if now - leg.passed < settings.pause:
            ahead = (sequence - leg.sequence + 0x8000 & 0xFFFF) - 0x8000
            if abs(ahead) > settings.progress:
                return "sequence"
        if not self.may_pass(leg.participant, ssrc, now):
            return "no-floor"
        self._sent_under(leg, guk_id, now)
        leg.sent += 1
        leg.sequence = sequence
        leg.passed = now
        return None

    def _sent_under(self, leg: Leg, guk_id: bytes, now: float) -> None:
        """Retires the group key that a member has switched from (security rule 28).

        A GUK-ID is of one GMK-ID, and of the leg alone: whoever makes up a GMK-ID retires nobody else's key. A member
        who has not switched is not refused here, as his listeners must learn that he has not (rule 2).
        """
        if guk_id == leg.guk_id or leg.guk_ids[guk_id] != float("inf"):
            return
        # not by the order in which they were bound: of two key changes in quick succession, the later one's messages
        # may overtake the earlier one's
        if leg.guk_id in leg.guk_ids:
            leg.guk_ids[leg.guk_id] = now + self.settings.grace
        leg.guk_id = guk_id
