# SPDX-License-Identifier: Apache-2.0
"""What a group member plays of the opened packets that reach him, and when; sans-IO.

A packet is played only when the owner of its GUK-ID holds the floor, and, from a talker of whom nothing was heard
yet, only when its RFC 6051 time is fresh: a recording played back to a member who has just joined stays silent.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from media.jitter import DelayEstimator, JitterBuffer
from media.rtp import RtpPacket

__all__ = ["Burst", "BurstEnded", "Impersonated", "Played", "Reception", "ReceptionSettings"]


@dataclass(frozen=True, slots=True)
class ReceptionSettings:
    """Times in seconds."""

    payload_type: int = 96
    clock_rate: int = 48000
    frame: float = 0.02
    #: from the arrival of a burst's quickest packet to its playing: of the first burst, and between which bounds it is
    #: fitted to what was heard
    delay: float = 0.06
    least_delay: float = 0.04
    most_delay: float = 0.2
    #: frames of one burst held at most
    max_frames: int = 250
    #: a burst without packets for so long is over
    patience: float = 0.5
    #: how far a burst's stated time may be from the own clock (security rule 10)
    freshness: float = 5.0
    #: media that overtakes its Floor Taken waits for it this long
    grace: float = 0.2
    #: packets that wait so at most
    held: int = 64
    #: streams (MKI, SSRC) remembered; one forgotten must state a fresh time again
    streams: int = 4096
    #: bursts that wait for their playing at most
    bursts: int = 8


#: packets of a burst whose way is remembered: a minute's
_TRANSITS = 3000


class Burst:
    """One talk burst of ``user``: its jitter buffer and figures."""

    __slots__ = (
        "_arrival", "_first", "_timestamp", "_transit", "buffer", "captured", "jitter", "sequence", "ssrc", "transits",
        "user",
    )  # fmt: skip

    def __init__(self, user: str, packet: RtpPacket, buffer: JitterBuffer) -> None:
        self.user = user
        self.ssrc = packet.ssrc
        self.buffer = buffer
        self.sequence = packet.sequence
        self.jitter = 0.0  # seconds, RFC 3550 6.4.1
        #: when the burst's first sample was spoken (Unix time), as far as its packets say
        self.captured: float | None = None
        #: of each packet, how long it was on its way, all from the same unknown beginning (seconds)
        self.transits: deque[float] = deque(maxlen=_TRANSITS)
        self._first = self._timestamp = packet.timestamp
        self._arrival: float | None = None
        self._transit = 0.0

    def continues(self, packet: RtpPacket, step: int) -> bool:
        """Whether the packet's sequence number and timestamp have gone on alike since the burst's first."""
        numbers = (packet.sequence - self.sequence + 0x8000 & 0xFFFF) - 0x8000
        return packet.timestamp == self._timestamp + numbers * step & 0xFFFFFFFF

    def measure(self, packet: RtpPacket, now: float, clock_rate: int) -> None:
        """Takes the packet's arrival into the jitter."""
        elapsed = (packet.timestamp - self._timestamp + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        if self._arrival is not None:
            moved = now - self._arrival - elapsed / clock_rate
            self.jitter += (abs(moved) - self.jitter) / 16
            self._transit += moved
        self.transits.append(self._transit)
        self._arrival = now
        if packet.ntp is not None and self.captured is None:
            spoken = (packet.timestamp - self._first + 0x80000000 & 0xFFFFFFFF) - 0x80000000
            self.captured = packet.ntp - spoken / clock_rate
        # follow the stream, so that a burst may be longer than half the number space
        self.sequence, self._timestamp = packet.sequence, packet.timestamp


@dataclass(frozen=True, slots=True)
class Played:
    """A frame to play at ``due``; ``payload`` is ``None`` for one to conceal. ``offset`` counts frames in its
    burst."""

    burst: Burst
    offset: int
    payload: bytes | None
    due: float
    #: the payload after a lost one, when it is there already
    following: bytes | None = None


@dataclass(frozen=True, slots=True)
class BurstEnded:
    """Everything of the burst was played."""

    burst: Burst


@dataclass(frozen=True, slots=True)
class Impersonated:
    """Someone sends under this member's own GUK-ID (security rule 11)."""

    mki: bytes


Event = Played | BurstEnded | Impersonated


class Reception:
    """One member's playing of one call.

    :param me: this member's MCPTT ID
    :param owns: whether a user sends under an MKI (by the GUK-ID at its end); answers are kept until
        :meth:`forget_owners`
    """

    def __init__(
        self, me: str, owns: Callable[[str, bytes], bool], settings: ReceptionSettings | None = None
    ) -> None:
        self.settings = settings or ReceptionSettings()
        self.counters: Counter[str] = Counter()
        self.holder: str | None = None
        self._me = me
        self._owns = owns
        self._owners: dict[tuple[str, bytes], bool] = {}
        self._before: tuple[str, float] | None = None
        self._held: deque[tuple[float, float, RtpPacket, bytes]] = deque()
        self._streams: OrderedDict[tuple[bytes, int], None] = OrderedDict()
        self._bursts: deque[Burst] = deque()
        self._events: list[Event] = []
        s = self.settings
        self.estimator = DelayEstimator(s.delay, least=s.least_delay, most=s.most_delay)
        self._step = round(self.settings.frame * self.settings.clock_rate)

    # --- floor ----------------------------------------------------------------------------------------

    def floor(self, holder: str | None, now: float) -> None:
        """Floor Taken by ``holder``, this member's own Floor Granted, or Floor Idle (``None``)."""
        if holder == self.holder:
            return
        if self.holder is not None:
            # what is still under way of the burst before is heard
            self._before = self.holder, now + self.settings.grace
        for burst in self._bursts:
            burst.buffer.end()
        self.holder = holder
        held, self._held = self._held, deque()
        for arrived, wall, packet, mki in held:
            self._judge(packet, mki, arrived, wall)

    def forget_owners(self) -> None:
        """Keys came or went: who owns which GUK-ID is asked again."""
        self._owners.clear()

    # --- packets --------------------------------------------------------------------------------------

    def receive(self, packet: RtpPacket, mki: bytes, now: float, wall: float) -> None:
        """An authentic packet. ``wall`` is Unix time, ``now`` the time that :meth:`handle_timer` goes by."""
        if packet.payload_type != self.settings.payload_type:
            self.counters["payload-type"] += 1
        elif not packet.payload:
            self.counters["empty"] += 1
        else:
            self._judge(packet, mki, now, wall)

    def _owner(self, user: str, mki: bytes) -> bool:
        known = self._owners.get((user, mki))
        if known is None:
            if len(self._owners) >= self.settings.streams:
                self._owners.clear()
            known = self._owners[user, mki] = self._owns(user, mki)
        return known

    def _judge(self, packet: RtpPacket, mki: bytes, now: float, wall: float) -> None:
        """Whose packet it is, against who holds the floor (security rule 11)."""
        if self._owner(self._me, mki):
            if not self.counters["impersonated"]:
                self._events.append(Impersonated(mki))
            self.counters["impersonated"] += 1
        elif self.holder is not None and self._owner(self.holder, mki):
            self._take(self.holder, packet, mki, now, wall, begins=True)
        elif self._before is not None and now <= self._before[1] and self._owner(self._before[0], mki):
            self._take(self._before[0], packet, mki, now, wall, begins=False)
        elif len(self._held) < self.settings.held:
            self._held.append((now, wall, packet, mki))
        else:
            self.counters["not-the-floor-holder"] += 1

    def _take(self, user: str, packet: RtpPacket, mki: bytes, now: float, wall: float, *, begins: bool) -> None:
        stream = mki, packet.ssrc
        if packet.ntp is not None and abs(wall - packet.ntp) > self.settings.freshness:
            self.counters["stale"] += 1
            return
        burst = self._burst_of(user, packet)
        if stream not in self._streams and packet.ntp is None and burst is None:
            # a key replaced in the middle of a burst does not make the talker a stranger
            self.counters["no-time"] += 1
            return
        if burst is None:
            if not begins or len(self._bursts) >= self.settings.bursts:
                self.counters["late"] += 1
                return
            burst = self._begin(user, packet)
        self._streams[stream] = None
        self._streams.move_to_end(stream)
        if len(self._streams) > self.settings.streams:
            self._streams.popitem(last=False)
        burst.measure(packet, now, self.settings.clock_rate)
        self.counters["frames"] += burst.buffer.put(packet.timestamp, packet.payload, now)

    def _burst_of(self, user: str, packet: RtpPacket) -> Burst | None:
        """The burst that the packet belongs to. A timestamp that has run ahead of the sequence number begins a new
        one, unless it is a pause within a burst: no marker, and the floor has not changed."""
        for burst in reversed(self._bursts):
            if (burst.user, burst.ssrc) != (user, packet.ssrc):
                continue
            if burst.continues(packet, self._step) or not (packet.marker or burst.buffer.ending):
                return burst
        return None

    def _begin(self, user: str, packet: RtpPacket) -> Burst:
        for burst in self._bursts:
            burst.buffer.end()
        s = self.settings
        buffer = JitterBuffer(
            delay=self.estimator.delay, most=s.most_delay, frame=s.frame, clock_rate=s.clock_rate,
            max_frames=s.max_frames, patience=s.patience,
        )  # fmt: skip
        burst = Burst(user, packet, buffer)
        self._bursts.append(burst)
        self.counters["bursts"] += 1
        return burst

    # --- time -----------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """What is to be played or told since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        due = [self._bursts[0].buffer.next_timer()] if self._bursts else []
        if self._held:
            due.append(self._held[0][0] + self.settings.grace)
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Everything due by ``now``. Bursts are played one after the other, however they arrived."""
        while self._held and self._held[0][0] + self.settings.grace <= now:
            self._held.popleft()
            self.counters["not-the-floor-holder"] += 1
        while self._bursts:
            burst = self._bursts[0]
            self._events += [
                Played(burst, frame.offset, frame.payload, frame.due, frame.following)
                for frame in burst.buffer.pull(now)
            ]
            if not burst.buffer.ended(now):
                break
            self._finish(self._bursts.popleft())

    def stop(self) -> None:
        """The call is over: bursts under way end with what was played of them."""
        while self._bursts:
            self._finish(self._bursts.popleft())
        self._held.clear()

    def _finish(self, burst: Burst) -> None:
        self.counters["lost"] += burst.buffer.lost
        self.counters["late"] += burst.buffer.late
        self.counters["duplicates"] += burst.buffer.duplicates
        quickest = min(burst.transits, default=0.0)
        self.estimator.learn([transit - quickest for transit in burst.transits])
        self._events.append(BurstEnded(burst))
