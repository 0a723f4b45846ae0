# SPDX-License-Identifier: Apache-2.0
"""The server's media of one call: a socket for audio that is copied unopened, and one for floor control.

It holds each member's CSK for floor control and no media key. Members' addresses are those of SDP until an authentic
packet under the CSK comes from another: a floor message or receiver report on the floor control socket, a receiver
report (the keep-alive) on the audio socket. Use :class:`GroupRelay` inside a running asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from media.errors import FloorMessageError, RtpError, SrtpError
from media.fanout import FanOut
from media.floor_messages import FloorIndicator, FloorMessage, decode_all
from media.floor_server import FloorControlServer, FloorFree, FloorServerSettings, FloorTakenBy, Inactive
from media.relay import Relay, RelaySettings
from media.rtcp import Report, ReportBlock, decode_report, is_report, ntp_middle, round_trip
from media.srtp import CSK, SrtpKey, SrtpReceiver, SrtpSender
from media.udp import Address, Trace, open_pair

__all__ = ["GroupRelay", "GroupRelaySettings"]

log = logging.getLogger(__name__)

#: floor datagrams sent before the loop has its turn
_SLICE = 16
#: seconds between looks at whose keep-alive is due, at least
_TICK = 0.05


@dataclass(frozen=True, slots=True)
class GroupRelaySettings:
    """Everything that can be set."""

    relay: RelaySettings = field(default_factory=RelaySettings)
    floor: FloorServerSettings = field(default_factory=FloorServerSettings)
    #: a sender report to every member, so that he notices a dead server and the way is measured; seconds, 0: none
    floor_keepalive: float = 5.0
    #: with more members than this, a thread sends: the loop would feel it
    thread_above: int = 200
    #: octets that the system may hold for the audio socket
    send_buffer: int = 1 << 22
    #: of the clock that members measure jitter with: their codec's RTP clock
    clock_rate: int = 48000
    dscp: int = 46
    max_datagram: int = 1500


@dataclass(slots=True)
class _FloorLeg:
    """One member's floor control channel."""

    participant: str
    address: Address
    ssrc: int  # ours, towards him
    sender: SrtpSender
    receiver: SrtpReceiver
    #: the newest index that was heard, at each socket, of each of his SSRCs
    newest: dict[tuple[str, int], int] = field(default_factory=dict)
    #: what he last reported: of the talker whom he hears, and the way to him and back in seconds
    heard: ReportBlock | None = None
    round_trip: float | None = None


class GroupRelay:
    """The media of one call on the server.

    ``trace(kind, outbound, local, remote, octets, time)`` is told of ``audio`` and ``floor`` datagrams as on the
    wire and, as ``floor-opened``, of floor messages in clear; ``on_event(name, details)`` of ``floor-taken``
    {user}, ``floor-idle`` {} and ``inactive`` {}.

    Raises ``OSError`` when no socket can be had on ``host``.
    """

    def __init__(
        self,
        group: str,
        host: str,
        *,
        clock: Callable[[], float] = time.time,
        settings: GroupRelaySettings | None = None,
        indicator: FloorIndicator = FloorIndicator.NORMAL
        | FloorIndicator.TEMPORARY_GROUP
        | FloorIndicator.QUEUEING,
    ) -> None:
        self.group = group
        self.settings = settings or GroupRelaySettings()
        self.trace: Trace | None = None
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda _name, _details: None
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._audio, self._floor = open_pair(
            host, dscp=self.settings.dscp, max_datagram=self.settings.max_datagram,
            send_buffer=self.settings.send_buffer,
        )  # fmt: skip
        self._audio.on_datagram = self._audio_received
        self._floor.on_datagram = self._floor_received
        self._fan_out = FanOut()
        self._legs = legs = dict[str, _FloorLeg]()
        self._by_mki: dict[bytes, _FloorLeg] = {}
        now = self._loop.time()
        self._arbiter = FloorControlServer(
            self.settings.floor, ssrc_of=lambda name: legs[name].ssrc, indicator=indicator
        )
        self._relay = Relay(self._arbiter.media_received, self.settings.relay)
        self._keepalive_due = now + _TICK if self.settings.floor_keepalive else None
        #: (when, who) of the keep-alives of this round
        self._turns: deque[tuple[float, str]] = deque()
        #: floor messages that wait, in the order in which their addressees get them
        self._outbox: dict[str, list[FloorMessage]] = {}
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def audio(self) -> Address:
        """Where members send audio."""
        return self._audio.address

    @property
    def floor(self) -> Address:
        """Where members send floor control messages."""
        return self._floor.address

    @property
    def holder(self) -> str | None:
        """Who has the floor."""
        return self._arbiter.holder

    # --- legs -----------------------------------------------------------------------------------------

    def add_leg(
        self,
        participant: str,
        *,
        audio: Address,
        floor: Address,
        media_ssrc: int,
        csk: SrtpKey,
        guk_id: int,
        priority: int = 0,
        queueing: bool = True,
        implicit_request: bool = False,
        receive_only: bool = False,
    ) -> None:
        """A member comes in: he gets audio from now on and is told how the floor stands.

        Raises ValueError when his media address or the MKI of his CSK is another member's, and when the relay's own
        address is of another family.
        """
        self.remove_leg(participant)
        if csk.mki in self._by_mki:
            raise ValueError("the CSK-ID is another participant's")
        self._audio.check_reach(audio)
        now = self._loop.time()
        self._relay.add(participant, audio, media_ssrc, guk_id, now, receive_only=receive_only)
        ssrc = int.from_bytes(os.urandom(4), "big")
        leg = _FloorLeg(
            participant,
            floor,
            ssrc,
            SrtpSender(csk, ssrc, CSK),
            SrtpReceiver({csk.mki: csk}.get, CSK, own_ssrcs=(ssrc,), max_streams=16),
        )
        self._legs[participant] = self._by_mki[csk.mki] = leg
        self._arbiter.join(
            participant, now, media_ssrc=media_ssrc, priority=priority, queueing=queueing,
            implicit_request=implicit_request, receive_only=receive_only,
        )
        self._advance()

    def bind(self, participant: str, guk_id: int) -> None:
        """A further GUK-ID under which the participant will send, after a new group key."""
        self._relay.bind(participant, guk_id)

    def declare(self, urgency: FloorIndicator, by: Collection[str] = ()) -> None:
        """See :meth:`.FloorControlServer.declare`."""
        self._arbiter.declare(urgency, by)

    def remove_leg(self, participant: str) -> None:
        """A member is out: nothing goes to him any more, his floor is free."""
        leg = self._legs.get(participant)
        if leg is None:
            return
        self._relay.remove(participant)
        self._arbiter.leave(participant, self._loop.time())
        del self._legs[participant]
        self._by_mki = {mki: other for mki, other in self._by_mki.items() if other is not leg}
        self._advance()

    # --- datagrams ------------------------------------------------------------------------------------

    def _audio_received(self, octets: bytes, source: Address) -> None:
        if self.trace is not None:
            self.trace("audio", False, self.audio, source, octets, self._clock())
        if len(octets) > 1 and 192 <= octets[1] <= 223:
            self._report_received(octets, source)
            return
        if self._relay.accept(octets, source, self._loop.time()):
            targets = self._relay.destinations
            threaded = len(targets) > self.settings.thread_above
            self._audio.send_many(octets, targets, source, self._fan_out, thread=threaded)
            if self.trace is not None:
                at = self._clock()
                for target in targets:
                    if target != source:
                        self.trace("audio", True, self.audio, target, octets, at)
        if self._arbiter.pending:
            self._advance()

    def _opened(self, octets: bytes, at: str) -> tuple[_FloorLeg, bytes, bool] | None:
        """Whose it is, what, and whether it is his newest word ``at`` this socket; ``None`` and a count for what is not
        authentic.

        One that was held up, or lost and sent again by somebody else, says what he said, and not where he is.
        """
        leg = self._by_mki.get(octets[-4:])
        if leg is None:
            self.counters["floor-unknown-key"] += 1
            return None
        try:
            opened = leg.receiver.unprotect_rtcp(octets)
        except SrtpError as error:
            self.counters[f"floor-{error.reason}"] += 1
            log.debug("group=%s floor message dropped: %s", self.group, error)
            return None
        newest = opened.index > leg.newest.get((at, opened.ssrc), -1)
        if newest:
            leg.newest[at, opened.ssrc] = opened.index
        return leg, opened.data, newest

    def _report_received(self, octets: bytes, source: Address) -> None:
        """The keep-alive of a member's audio: it shows where he is now, behind whatever address translation."""
        opened = self._opened(octets, "audio")
        if opened is not None:
            leg, plain, newest = opened
            self._read_report(leg, plain)
            elsewhere = source != self._relay.legs[leg.participant].audio
            if newest and elsewhere and self._relay.move(leg.participant, source):
                self.counters["audio-moved"] += 1

    def _read_report(self, leg: _FloorLeg, plain: bytes) -> None:
        try:
            report = decode_report(plain)
        except RtpError as error:
            self.counters["floor-malformed"] += 1
            log.debug("group=%s user=%s report dropped: %s", self.group, leg.participant, error)
            return
        for block in report.blocks:
            if block.ssrc == leg.ssrc:
                leg.round_trip = round_trip(block, self._clock())
            else:
                leg.heard = block

    def _floor_received(self, octets: bytes, source: Address) -> None:
        if self.trace is not None:
            self.trace("floor", False, self.floor, source, octets, self._clock())
        opened = self._opened(octets, "floor")
        if opened is None:
            return
        leg, plain, newest = opened
        if is_report(plain):
            self._read_report(leg, plain)
            messages = []
        else:
            try:
                messages = decode_all(plain)
            except FloorMessageError as error:
                self.counters["floor-malformed"] += 1
                log.debug("group=%s user=%s floor message dropped: %s", self.group, leg.participant, error)
                return
        if newest:
            leg.address = source  # only what is authenticated moves a member's address
        if self.trace is not None and messages:
            self.trace("floor-opened", False, self.floor, source, plain, self._clock())
        for message in messages:
            self._arbiter.receive(leg.participant, message, self._loop.time())
        self._advance()

    def _send_floor(self, leg: _FloorLeg, plain: bytes, opened: bool) -> None:
        protected = leg.sender.protect_rtcp(plain)
        if self.trace is not None:
            at = self._clock()
            if opened:
                self.trace("floor-opened", True, self.floor, leg.address, plain, at)
            self.trace("floor", True, self.floor, leg.address, protected, at)
        self._floor.send(protected, leg.address)

    def _flush(self) -> None:
        """Sends what waits, several messages for one participant in one datagram (8.1.1); a large group is told in
        slices, between which the loop has its turn."""
        self._flushing = False
        for _ in range(min(_SLICE, len(self._outbox))):
            participant = next(iter(self._outbox))
            plain = b"".join(message.encode() for message in self._outbox.pop(participant))
            if (leg := self._legs.get(participant)) is not None:
                self._send_floor(leg, plain, True)
        if self._outbox and not self._closed:
            self._flushing = True
            self._loop.call_soon(self._flush)

    # --- time -----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Sends what floor control has to say and sets the timer for what comes next."""
        if self._closed:
            return
        for participant, message in self._arbiter.to_send():
            self._outbox.setdefault(participant, []).append(message)
        if not self._flushing:
            self._flush()
        for event in self._arbiter.events():
            match event:
                case FloorTakenBy(participant, _):
                    self.on_event("floor-taken", {"user": participant})
                case FloorFree():
                    self.on_event("floor-idle", {})
                case Inactive():
                    self.on_event("inactive", {})
        due = [at for at in (self._arbiter.next_timer(), self._keepalive_due) if at is not None]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due:
            self._timer = self._loop.call_at(min(due), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._arbiter.handle_timer(now)
        if self._keepalive_due is not None and self._keepalive_due <= now:
            self._keep_alive(now)
            following = self._turns[0][0] if self._turns else now + self.settings.floor_keepalive
            self._keepalive_due = max(now + _TICK, following)
        self._advance()

    def _keep_alive(self, now: float) -> None:
        """A report to those whose turn it is: everyone once in the interval, spread over it."""
        at, relayed = self._clock(), self._relay.counters["relayed"]
        while self._turns and self._turns[0][0] <= now:
            _, name = self._turns.popleft()
            if (leg := self._legs.get(name)) is not None:
                # of no stream of its own: its time is what the members' reports refer to
                report = Report(leg.ssrc, ntp=at, packets=relayed, timestamp=ntp_middle(at))
                self._send_floor(leg, report.encode(), False)
        if not self._turns:
            interval = self.settings.floor_keepalive
            names = list(self._legs)
            self._turns.extend((now + interval * place / len(names), name) for place, name in enumerate(names))

    # --- the end --------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counters: packets relayed and dropped by reason, floor messages refused, datagrams the system refused, and
        packets that a thread did not come to (``behind``) or could not send (``failed``)."""
        return {
            **self._relay.counters,
            **self.counters,
            "legs": len(self._legs),
            "unsent": self._fan_out.lost + self._audio.errors + self._floor.errors,
            "unreachable": self._fan_out.unreachable,
            "behind": self._audio.dropped,
            "failed": self._audio.failed,
        }

    def reports(self) -> dict[str, dict[str, float]]:
        """What members report of the way to them: {user: {round_trip (s), fraction_lost (0..1), lost (packets),
        jitter (s)}}, each as far as it is known; the loss is of the talker heard last."""
        found: dict[str, dict[str, float]] = {}
        for leg in self._legs.values():
            figures = found[leg.participant] = {}
            if leg.round_trip is not None:
                figures["round_trip"] = leg.round_trip
            if leg.heard is not None:
                figures["fraction_lost"] = leg.heard.fraction_lost / 256
                figures["lost"] = leg.heard.lost
                figures["jitter"] = leg.heard.jitter / self.settings.clock_rate
        return found

    def close(self) -> None:
        """Lets go of both sockets, and tells the log what passed and what did not. Harmless twice."""
        if self._closed:
            return
        self._closed = True
        log.info("group=%s relay closed: %s", self.group, self.statistics())
        if self._timer is not None:
            self._timer.cancel()
        self._audio.close()
        self._floor.close()
        self._arbiter.end(self._loop.time())
