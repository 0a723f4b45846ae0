# SPDX-License-Identifier: Apache-2.0
"""A group member's media: two UDP sockets, floor control, talking, hearing, recording. Needs an asyncio loop.

Everything here works without SIP: whoever has the server's two addresses, a CSK for floor control and keys for the
group's media can talk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from media import floor_participant as floor
from media.capture import FileFrames, open_microphone, track_frames, until
from media.codec import FRAME_SECONDS
from media.codecs import OPUS, Codec
from media.errors import (
    FloorDenied,
    FloorError,
    FloorMessageError,
    FloorRevoked,
    MediaError,
    NoMicrophone,
    RtpError,
    SrtpError,
    SsrcClash,
)
from media.figures import member_figures
from media.floor_channel import FloorChannel
from media.floor_messages import FloorIndicator, FloorMessage
from media.playout import Playout
from media.reception import Impersonated, Reception, ReceptionSettings
from media.rtp import RtpPacket, random_ssrc
from media.srtp import GROUP, SrtpKey, SrtpPolicy, SrtpReceiver
from media.talking import Talker
from media.udp import Address, Datagrams, Trace, open_pair

__all__ = ["MemberMedia", "MemberSettings"]
log = logging.getLogger(__name__)



@dataclass(frozen=True, slots=True)
class MemberSettings:
    """Times in seconds, sizes in octets."""

    reception: ReceptionSettings = field(default_factory=ReceptionSettings)
    floor: floor.ParticipantSettings = field(default_factory=floor.ParticipantSettings)
    #: what is talked and heard, under this payload type; it prevails over what ``reception`` says of them
    codec: Codec = OPUS
    payload_type: int = 96
    #: how audio is protected: a group's media (:data:`~media.srtp.GROUP`), or that of two under one key
    protection: SrtpPolicy = GROUP
    #: identifier of the RFC 6051 header extension
    extension_id: int = 1
    #: the burst's time stands in this many packets at its beginning, then at this interval
    timed_packets: int = 3
    timed_interval: float = 0.5
    bit_rate: int = 24000
    #: receiver reports under the CSK on both sockets: they keep a NAT's binding alive (RFC 6263 4.6), show the
    #: server where this member is, and tell it how its packets arrive; 0 sends none
    keepalive: float = 15.0
    first_keepalive: float = 0.5  #: from the first to the second (the first may come too early), then twice as long
    #: no floor control message of the server for so long: ``server-silent``; 0 does not watch
    silence: float = 0.0
    #: without a microphone, ``start_microphone`` sends silence and says so; ``False`` raises NoMicrophone
    silence_without_microphone: bool = True
    #: IP precedence of both sockets: expedited forwarding (RFC 3246)
    dscp: int = 46
    max_datagram: int = 1500
    #: how often the recording is brought up to date on disk
    flush: float = 0.5


class MemberMedia:
    """One member's media in one call; see :meth:`open`.

    ``find_key``, ``talker_guk_ids``, ``on_event``, ``tap`` and ``trace`` may be set at any time:

    - ``find_key(mki)`` gives the sender's key behind an 8-octet MKI = GMK-ID || GUK-ID, or ``None``.
    - ``talker_guk_ids(user)`` gives the GUK-IDs (4 octets each) of an MCPTT ID under the keys held.
    - ``on_event(name, details)``: ``floor-granted`` {duration; access,
      seconds from the wish to the floor}, ``floor-denied`` {cause, phrase}, ``floor-queued``
      {position}, ``floor-revoked`` {cause}, ``floor-taken`` {user}, ``floor-idle`` {}, ``floor-timeout`` {},
      ``floor-unqueued`` {} (the server has taken the request back), ``talker-silent`` {} (T103),
      ``burst-sent`` {start, duration}, ``burst-heard`` {user, start, offset, samples, lost, late, jitter, concealed,
      silent (frames), delay of the jitter buffer; mouth_to_ear, rating of the E-model, opinion score},
      ``impersonated`` {mki}, ``ssrc-refused`` {ssrc}, ``ssrc-clash`` {}, ``no-microphone`` {}, ``server-silent`` {}.
      Times are Unix seconds; ``offset`` is the index of the burst's first sample in the recording (16 kHz).
    - ``tap(packet, source)`` gets every audio packet as it came, before anything is checked.
    - ``trace(kind, outbound, local, remote, octets, time)``: ``audio`` and ``floor`` datagrams as on the wire, and
      ``floor-opened``: floor messages in clear.
    """

    def __init__(
        self, audio: Datagrams, floor_: Datagrams, user: str, clock: Callable[[], float], settings: MemberSettings
    ) -> None:
        self.user = user
        self.settings = settings
        self.ssrc = random_ssrc()
        self.floor_ssrc = random_ssrc(self.ssrc)
        self.find_key: Callable[[bytes], SrtpKey | None] = lambda _mki: None
        self.talker_guk_ids: Callable[[str], Collection[bytes]] = lambda _user: ()
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda _name, _details: None
        self.tap: Callable[[bytes, Address], None] | None = None
        self.trace: Trace | None = None
        self.counters: Counter[str] = Counter()
        self._audio, self._floor = audio, floor_
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._audio_peer: Address | None = None
        self._floor_peer: Address | None = None
        self._receiver = SrtpReceiver(
            lambda mki: self.find_key(mki), settings.protection, own_ssrcs={self.ssrc}
        )
        self._talker = Talker(
            self.ssrc,
            self._speak,
            payload_type=settings.payload_type,
            extension_id=settings.extension_id,
            codec=settings.codec,
            bit_rate=settings.bit_rate,
            timed_packets=settings.timed_packets,
            timed_interval=settings.timed_interval,
            protection=settings.protection,
        )
        self._channel = FloorChannel(
            user, self.floor_ssrc, settings.codec.clock_rate, settings.floor, lambda mki: self.find_key(mki), self._owns
        )
        self._outcome: asyncio.Future[None] | None = None
        self._has_floor = False
        self._lost_floor: FloorError | None = None
        self._pressed = self._loop.time()
        heard = replace(settings.reception, payload_type=settings.payload_type, clock_rate=settings.codec.clock_rate)
        self._reception = Reception(user, self._owns, heard)
        self._playout = Playout(self._reception, clock, settings.codec)
        self._timer: asyncio.TimerHandle | None = None
        self._keepalive_due: float | None = None
        self._keepalive_step = 0.0
        self._microphone: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        host: str,
        *,
        user: str,
        clock: Callable[[], float] = time.time,
        settings: MemberSettings | None = None,
    ) -> MemberMedia:
        """Two UDP sockets on ``host`` (IPv4 or IPv6), ports chosen by the system. Raises ``OSError``.

        :param user: the member's MCPTT ID
        :param clock: Unix time
        """
        settings = settings or MemberSettings()
        audio, floor_ = open_pair(host, dscp=settings.dscp, max_datagram=settings.max_datagram)
        media = cls(audio, floor_, user, clock, settings)
        audio.on_datagram = media._audio_received
        floor_.on_datagram = media._floor_received
        return media

    @property
    def audio_address(self) -> Address:
        """(host, port) that audio is received at and sent from."""
        return self._audio.address

    @property
    def floor_address(self) -> Address:
        """The same for floor control."""
        return self._floor.address

    @property
    def has_floor(self) -> bool:
        """Whether this member may talk now."""
        return self._has_floor

    # --- set-up ---------------------------------------------------------------------------------------

    def connect(
        self, audio: Address, floor: Address, *, implicit_request: bool = False, granted: bool = False
    ) -> None:
        """The server's addresses; from now on it is talked to, and only it is listened to.

        With an implicit request (``mc_implicit_request`` in the offer) the floor is asked for with the call; it is
        there already when the answer said so (``mc_granted``).
        """
        self._audio_peer, self._floor_peer = audio, floor
        now = self._loop.time()
        self._channel.establish(now, implicit_request=implicit_request, granted=granted)
        if self.settings.keepalive:
            self._keepalive_due, self._keepalive_step = now, min(self.settings.first_keepalive, self.settings.keepalive)
        self._advance()

    def is_connected(self, audio: Address, floor: Address) -> bool:
        """Whether these are the server's addresses."""
        return (self._audio_peer, self._floor_peer) == (audio, floor)

    def set_csk(self, key: SrtpKey) -> None:
        """The key of floor control between this member and the server (4-octet MKI), both ways."""
        self._channel.set_csk(key)

    def declare(self, urgency: FloorIndicator) -> None:
        """This user's requests are of the emergency or imminent peril that he declared; 0: of neither any more."""
        self._channel.declare(urgency)

    def arbitrate(self, order: Sequence[str], members: Sequence[str] = ()) -> None:
        """Members arbitrate, in this order (the key's signer, then his deputies), over a server that reads nothing.
        Before :meth:`connect`; ``members`` are the others in the call."""
        self._channel.arbitrate(order)
        for user in members:
            self.member_joined(user)

    def member_joined(self, user: str, priority: int = 0) -> None:
        """Another is in a call whose members arbitrate; ``priority`` is the highest that he may use."""
        if self._channel.members is not None:
            self._channel.members.joined(user, self._loop.time(), priority)
            self._advance()

    def member_left(self, user: str) -> None:
        """Another has left such a call."""
        if self._channel.members is not None:
            self._channel.members.left(user, self._loop.time())
            self._advance()

    def set_sending_key(self, key: SrtpKey | None) -> None:
        """Audio goes out under ``key`` from the next packet on; with ``None`` no audio goes out at all."""
        self._talker.set_key(key)
        self._channel.set_group_key(key)
        self._reception.forget_owners()

    def retire_key(self, gmk_id: bytes) -> None:
        """Lets go of every key whose MKI begins with the GMK-ID (4 octets); ``find_key`` is asked anew."""
        self._receiver.retire(gmk_id)
        self._channel.retire(gmk_id)
        self._reception.forget_owners()

    @property
    def listeners(self) -> list[Callable[[str, bytes, float], None]]:
        """Each is told every frame that is played: (user, 640 octets of 16 kHz mono, when it is due on the loop)."""
        return self._playout.listeners

    def record(self, path: Path | str) -> None:
        """Everything that is heard from now on, with its silences, as a WAV of 16 kHz mono.

        Raises ``OSError``.
        """
        self._playout.record(path, self._loop.time(), self.settings.flush)
        self._advance()

    def flush_recording(self) -> None:
        """The file of :meth:`record` holds everything that was played so far."""
        self._playout.flush()

    # --- floor ----------------------------------------------------------------------------------------

    async def request_floor(self, priority: int = 0) -> None:
        """Asks for the floor and returns when it is given, after waiting in the queue if need be.

        Raises :class:`FloorDenied`, :class:`FloorRevoked`, or :class:`FloorError` when the server does not
        answer. Cancelling gives the wish back.
        """
        if self._closed:
            raise FloorError("the call is over")
        if self._has_floor:
            return
        if self._outcome is not None:
            raise FloorError("the floor is already being asked for")
        self._outcome = self._loop.create_future()
        try:
            self.press(priority)
            await self._outcome
        except asyncio.CancelledError:
            self.release()
            raise
        finally:
            self._outcome = None

    async def release_floor(self) -> None:
        """Gives the floor back, after the burst under way has ended; harmless without it."""
        self._talker.stop.set()
        await self._talker.silent.wait()
        self.release()

    def press(self, priority: int = 0) -> None:
        """Asks for the floor; what comes of it is told by events."""
        self._lost_floor, self._pressed = None, self._loop.time()
        self._channel.machine.press(self._loop.time(), priority)
        self._advance()

    def release(self) -> None:
        """Gives back the floor, or the wish for it."""
        self._talker.stop.set()
        self._has_floor = False
        if self._reception.holder == self.user:
            self._reception.floor(None, self._loop.time())
        self._channel.machine.release(self._loop.time())
        self._advance()

    def _floor_event(self, event: floor.Event) -> None:
        now = self._loop.time()
        match event:
            case floor.Granted(duration, ssrc, _):
                access = round(now - self._pressed, 6)
                if ssrc not in (None, 0, self.ssrc):
                    # only the sender draws its SSRC (security rule 1): under another one nothing is sent
                    self.on_event("ssrc-refused", {"ssrc": ssrc})
                    self._decide(FloorError("the server granted the floor to another SSRC than announced"))
                    self.release()
                    return
                self._has_floor = True
                self._reception.floor(self.user, now)
                self.on_event("floor-granted", {"duration": duration, "access": access})
                self._decide(None)
            case floor.Denied(cause, phrase):
                self.on_event("floor-denied", {"cause": cause, "phrase": phrase})
                self._decide(FloorDenied(cause, phrase))
            case floor.Queued(position, _):
                self.on_event("floor-queued", {"position": position})
            case floor.Revoked(cause):
                self.on_event("floor-revoked", {"cause": cause})
                self._lose(FloorRevoked(cause))
            case floor.Lost():
                self._lose(FloorError("the server gave the floor to another, or to nobody"))
            case floor.Taken(user, _, _, _):
                self._reception.floor(user, now)
                self.on_event("floor-taken", {"user": user})
            case floor.Idle():
                self._reception.floor(None, now)
                self.on_event("floor-idle", {})
            case floor.RemovedFromQueue():
                self.on_event("floor-unqueued", {})
                self._decide(FloorError("the request was taken out of the queue"))
            case floor.MediaEnded():
                self.on_event("talker-silent", {})
            case floor.RequestTimedOut():
                self.on_event("floor-timeout", {})
                self.on_event("server-silent", {})
                self._decide(FloorError("the server does not answer"))
            case floor.Released():
                if self._channel.state is floor.ParticipantState.HAS_NO_PERMISSION:
                    self._decide(FloorError("the floor was given back"))

    def _decide(self, error: FloorError | None) -> None:
        if self._outcome is None or self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)

    def _lose(self, error: FloorError) -> None:
        if self._has_floor:
            self._has_floor = False
            self._lost_floor = error
            self._talker.stop.set()
        if self._reception.holder == self.user:
            self._reception.floor(None, self._loop.time())
        self._decide(error)

    # --- talking --------------------------------------------------------------------------------------

    async def send_file(self, path: Path | str) -> dict[str, float]:
        """Talks an audio file as one burst in real time; returns {start, duration} as in ``burst-sent``.

        Needs the floor. Raises :class:`FloorError`, :class:`FloorRevoked` when it is taken away meanwhile, and
        :class:`CodecError` for a file that cannot be read.
        """
        frames = FileFrames(path)
        await frames.fill()
        return await self._talk(frames)

    async def send(self, track: Any) -> dict[str, float]:
        """Talks what an ``aiortc.MediaStreamTrack`` of audio gives, until its end or the floor's release."""
        return await self._talk(until(self._talker.stop, track_frames(track)))

    def start_microphone(self) -> None:
        """Talks from the machine's microphone, until :meth:`stop_microphone` or the loss of the floor.

        Raises :class:`NoMicrophone`, or sends silence and tells ``no-microphone``, as set.
        """
        if self._microphone is not None and not self._microphone.done():
            return
        try:
            frames = until(self._talker.stop, open_microphone())
        except NoMicrophone:
            if not self.settings.silence_without_microphone:
                raise
            self.on_event("no-microphone", {})
            frames = open_microphone(silent=True)
        self._microphone = self._loop.create_task(self._talk_on(frames))

    async def _talk_on(self, frames: AsyncGenerator[bytes]) -> None:
        try:
            await self._talk(frames)
        except FloorError as error:  # told by floor-revoked already
            log.info("the microphone's burst ended: %s", error)

    async def stop_microphone(self) -> None:
        """Ends the burst that :meth:`start_microphone` began; harmless without one."""
        task, self._microphone = self._microphone, None
        if task is not None:
            self._talker.stop.set()
            await task

    async def _talk(self, frames: AsyncGenerator[bytes] | FileFrames) -> dict[str, float]:
        async with contextlib.aclosing(frames):
            if not self._has_floor:
                raise self._lost_floor or FloorError("talking needs the floor")
            if not self._talker.silent.is_set():
                raise FloorError("another burst is being sent")
            start = self._clock()
            try:
                await self._talker.talk(frames, start)
            finally:
                sent = {"start": start, "duration": round(self._talker.frames * FRAME_SECONDS, 6)}
                if self._talker.frames:
                    self.on_event("burst-sent", dict(sent))
            if self._lost_floor is not None:
                raise self._lost_floor
            return sent

    # --- datagrams ------------------------------------------------------------------------------------

    def _transmit(self, kind: str, octets: bytes) -> None:
        audio = kind == "audio"
        socket, peer = (self._audio, self._audio_peer) if audio else (self._floor, self._floor_peer)
        if peer is None:
            self.counters["unsent-not-connected"] += 1
            return
        socket.send(octets, peer)
        if self.trace is not None:
            self.trace(kind, True, socket.address, peer, octets, self._clock())

    def _speak(self, octets: bytes) -> None:
        self._channel.media_sent(self._loop.time())
        self._transmit("audio", octets)

    def _audio_received(self, octets: bytes, source: Address) -> None:
        if self.tap is not None:
            self.tap(octets, source)
        if self.trace is not None:
            self.trace("audio", False, self._audio.address, source, octets, self._clock())
        self.counters["audio-received"] += 1
        if source != self._audio_peer:
            self.counters["unknown-source"] += 1
            return
        try:
            opened = self._receiver.unprotect(octets)
            packet = RtpPacket.decode(opened.data, self.settings.extension_id)
        except SrtpError as error:
            log.debug("audio packet dropped: %s", error)
            return
        except RtpError as error:
            self.counters["malformed-rtp"] += 1
            log.debug("audio packet dropped: %s", error)
            return
        now = self._loop.time()
        self._channel.reports.packet(packet.ssrc, packet.sequence, packet.timestamp, now)
        self._channel.media_received(opened.mki, now)
        self._reception.receive(packet, opened.mki, now, self._clock())
        self._advance()

    def _floor_received(self, octets: bytes, source: Address) -> None:
        if self.trace is not None:
            self.trace("floor", False, self._floor.address, source, octets, self._clock())
        self.counters["floor-received"] += 1
        if source != self._floor_peer:
            self.counters["floor-unknown-source"] += 1
            return
        try:
            plain, messages = self._channel.open(octets, self._loop.time())
        except SsrcClash:
            # two senders of one (key, SSRC) would share an IV: security rule 18
            self.on_event("ssrc-clash", {})
            return
        except (SrtpError, FloorMessageError, RtpError) as error:
            self.counters["floor-dropped"] += 1
            log.debug("floor message dropped: %s", error)
            return
        if not messages:  # the server's keep-alive
            return
        if self.trace is not None:
            self.trace("floor-opened", False, self._floor.address, source, plain, self._clock())
        for sender, message in messages:
            self._channel.receive(sender, message, self._loop.time())
        self._advance()

    def _send_floor(self, message: FloorMessage) -> None:
        plain = message.encode()
        protected = None if self._floor_peer is None else self._channel.protect(plain)
        if protected is None or self._floor_peer is None:
            self.counters["unsent-not-connected"] += 1
            return
        if self.trace is not None:
            self.trace("floor-opened", True, self._floor.address, self._floor_peer, plain, self._clock())
        self._transmit("floor", protected)
        self.counters["floor-sent"] += 1

    def _owns(self, user: str, mki: bytes) -> bool:
        return mki[-4:] in self.talker_guk_ids(user)

    # --- time -----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Carries out everything that is due, and sets the timer for what comes next."""
        if self._closed:
            return
        now = self._loop.time()
        machine = self._channel.machine
        machine.handle_timer(now)
        self._keep_alive(now)
        while (events := machine.events()) or (messages := machine.to_send()):
            if events:
                for event in events:
                    self._floor_event(event)
                if self._closed:
                    return
                continue
            for message in messages:
                self._send_floor(message)
        self._reception.handle_timer(now)
        self._hear(now)
        self._set_timer(now)

    def _hear(self, now: float) -> None:
        for event in self._reception.events():
            if isinstance(event, Impersonated):
                self.on_event("impersonated", {"mki": event.mki.hex()})
            elif (heard := self._playout.take(event, now)) is not None:
                self.on_event("burst-heard", heard)
        self._playout.handle_timer(now)

    def _keep_alive(self, now: float) -> None:
        if self._keepalive_due is not None and now >= self._keepalive_due:
            self._keepalive_due = now + self._keepalive_step
            self._keepalive_step = min(2 * self._keepalive_step, self.settings.keepalive)
            audio, floor_ = self._channel.keep_alive(now)
            self._transmit("audio", audio)
            if floor_ is not None:
                self._transmit("floor", floor_)
        silence = self.settings.silence
        if silence and self._floor_peer is not None and now - self._channel.heard >= silence:
            self._channel.heard = now
            self.on_event("server-silent", {})

    def _set_timer(self, now: float) -> None:
        due = [
            self._channel.machine.next_timer(),
            self._reception.next_timer(),
            self._playout.next_timer(),
            self._keepalive_due,
        ]
        if self.settings.silence and self._floor_peer is not None:
            due.append(self._channel.heard + self.settings.silence)
        at = min((moment for moment in due if moment is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at is None else self._loop.call_at(max(at, now), self._advance)

    # --- figures and the end --------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counters since the beginning: packets sent and received, drops by reason, bursts, frames, lost, late,
        jitter (seconds, of the last burst)."""
        names = ("audio-received", "unknown-source", "malformed-rtp", "floor-sent", "floor-received", "floor-dropped")
        return member_figures(
            {name: self.counters[name] for name in names}, self._receiver.counters, self._reception.counters,
            self._talker, self._playout, self._audio.errors + self._floor.errors,
        )  # fmt: skip

    async def close(self) -> None:
        """Ends everything: nothing more is sent or played, the recording is a whole file. Harmless twice."""
        if self._closed:
            return
        self._closed = True
        self._talker.stop.set()
        self._has_floor = False
        self._decide(FloorError("the call is over"))
        if self._timer is not None:
            self._timer.cancel()
        if self._microphone is not None:
            with contextlib.suppress(asyncio.CancelledError, MediaError):
                self._microphone.cancel()
                await self._microphone
        self._channel.machine.call_released(self._loop.time())
        self._reception.stop()
        self._hear(self._loop.time())
        self._playout.close()
        log.info("media of %s closed: %s", self.user, self.statistics())
        self._audio.close()
        self._floor.close()
