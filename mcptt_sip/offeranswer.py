# SPDX-License-Identifier: Apache-2.0
"""Offer and answer of an ordinary audio call (RFC 3264), with SDES keys when wanted (RFC 4568); sans-IO.

Never used in a regroup call: there the media profile comes from the signed I_MESSAGE alone.

>>> alice = OfferAnswer("192.0.2.1", 4000, token=lambda: bytes(16))
>>> bob = OfferAnswer("192.0.2.2", 4002, token=lambda: bytes(16))
>>> alice.accept(bob.answer(alice.offer()))
>>> alice.agreed.codec.name, alice.agreed.remote, bob.agreed.remote
('opus', ('192.0.2.2', 4002), ('192.0.2.1', 4000))

:RFC 3264: partly; one stream of audio; others are refused in their place
:RFC 3605: yes; RTCP on another port than the next
:RFC 4568: partly; SDES for RTP/SAVP without MKI and session parameters
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mcptt_sip.errors import ProtocolError
from mcptt_sip.uri import is_address
from media.errors import MediaError
from media.sdp import MediaDescription, SessionDescription

__all__ = ["CODECS", "OPUS", "PCMA", "PCMU", "Agreed", "Codec", "Crypto", "NotAcceptable", "OfferAnswer"]

_SUITES = ("AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32")
_REVERSED = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
_PROTOCOLS = {False: "RTP/AVP", True: "RTP/SAVP"}
#: `a=crypto` lines that are looked at
_MAX_CRYPTO = 16


class NotAcceptable(ProtocolError):
    """There is nothing in a description that both sides can do: 488 (RFC 3261 13.3.1.3)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, status=488)


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec as SDP names it: encoding name, RTP clock rate, channels, and the payload type that is offered."""

    name: str
    clock: int
    payload_type: int
    channels: int = 1
    fmtp: str = ""

    @property
    def rtpmap(self) -> str:
        """``opus/48000/2``."""
        return f"{self.name}/{self.clock}" + (f"/{self.channels}" if self.channels != 1 else "")

    def matches(self, rtpmap: str) -> bool:
        """Whether an ``a=rtpmap`` means this codec (names compare without case, one channel may go unsaid)."""
        name, _, rest = rtpmap.partition("/")
        clock, _, channels = rest.partition("/")
        return (name.lower(), clock, channels or "1") == (self.name.lower(), str(self.clock), str(self.channels))


OPUS = Codec("opus", 48000, 96, 2, "useinbandfec=0")
PCMU = Codec("PCMU", 8000, 0)
PCMA = Codec("PCMA", 8000, 8)
#: in the order of preference
CODECS = (OPUS, PCMU, PCMA)
#: what the payload types below 96 mean without an rtpmap (RFC 3551 6)
_STATIC = {0: "PCMU/8000", 8: "PCMA/8000"}
_EVENTS = {8000: 101, 48000: 102}


@dataclass(frozen=True, slots=True)
class Crypto:
    """One SDES key: suite, and the 30 octets of master key and salt. Never printed."""

    suite: str
    key: bytes = field(repr=False)
    tag: int = 1

    def __str__(self) -> str:
        return f"{self.tag} {self.suite} inline:{base64.b64encode(self.key).decode()}"

    @classmethod
    def parse(cls, text: str) -> Crypto | None:
        """An ``a=crypto`` value; ``None`` for what is not done here: other suites, an MKI, session parameters that
        change the protection."""
        words = text.split()
        if len(words) < 3 or not words[0].isdecimal() or len(words[0]) > 9 or words[1].upper() not in _SUITES:
            return None
        if any(word.upper().startswith(("UNENCRYPTED", "UNAUTHENTICATED", "KDR", "FEC")) for word in words[3:]):
            return None
        method, _, info = words[2].partition(":")
        key, *more = info.split("|")
        if method.lower() != "inline" or ";" in key or any(":" in part for part in more):
            return None
        try:
            octets = base64.b64decode(key, validate=True)
        except binascii.Error:
            return None
        return cls(words[1].upper(), octets, int(words[0])) if len(octets) == 30 else None


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both sides will do. Payload types: `send` is theirs (what they want to get), `receive` ours.

    `sends` and `receives`: the directions in force. `remote` is ``None`` while the peer has no address (an old form
    of hold), and so is `remote_rtcp`, where its RTCP is received: with `rtcp_mux` where its RTP is. Keys are ``None``
    in a call without SRTP.
    """

    codec: Codec
    remote: tuple[str, int] | None
    send: int
    receive: int
    sends: bool
    receives: bool
    event_send: int | None = None
    event_receive: int | None = None
    local_key: Crypto | None = None
    remote_key: Crypto | None = None
    remote_rtcp: tuple[str, int] | None = None
    rtcp_mux: bool = False


class OfferAnswer:
    """One side's part in the offer/answer exchanges of one call, for one stream of audio.

    :param host: our address, numeric, and `port` where RTP is received
    :param rtcp_port: where RTCP is received if not on the same port (RFC 5761); ``None``: the port after RTP's, and
        nowhere else
    :param sdes: RTP/SAVP with SDES keys is offered, and nothing else accepted
    :param token: gives fresh random octets
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        codecs: tuple[Codec, ...] = CODECS,
        sdes: bool = False,
        token: Callable[[], bytes],
        rtcp_port: int | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.rtcp_port = rtcp_port
        self.codecs = codecs
        self.sdes = sdes
        self.agreed: Agreed | None = None
        #: what this side wants: ``sendrecv``, or ``sendonly`` and ``inactive`` to hold
        self.wanted = "sendrecv"
        #: what the peer last said of its own direction
        self.peer_direction = "sendrecv"
        self._session_id = int.from_bytes(token()[:4], "big")
        self._version = 0
        self._last = ""
        self._offered: SessionDescription | None = None
        self._first: SessionDescription | None = None  # the offer that each branch of a forked INVITE answers
        #: payload type of each format that was ever spoken of, by its rtpmap: it never means another (RFC 3264 8.3.2)
        self._numbers: dict[str, int] = {}
        self._keys = tuple(Crypto(suite, self._random(token, 30), tag) for tag, suite in enumerate(_SUITES, 1))
        self._peer_media: list[MediaDescription] = []

    @staticmethod
    def _random(token: Callable[[], bytes], length: int) -> bytes:
        octets = b""
        while len(octets) < length:
            octets += token()
        return octets[:length]

    @property
    def held_by_peer(self) -> bool:
        """Whether the peer has put us on hold (3264 8.4)."""
        return self.peer_direction in ("sendonly", "inactive")

    # --- verbs

    def offer(self) -> bytes:
        """An offer: the first, or a new one in the call (of which the streams keep their places)."""
        ours = self._section(self.codecs, self.wanted)
        media = [ours]
        if self._peer_media:
            at = self._our_place()
            media = [ours if number == at else _refused(theirs) for number, theirs in enumerate(self._peer_media)]
        self._offered = self._describe(media)
        self._first = self._first or self._offered
        return self._offered.encode()

    def offer_again(self, body: bytes) -> None:
        """A description that was sent before is an offer now: a refresh repeats it (RFC 4028 7.4)."""
        self._offered = self._read(body)

    def answer(self, body: bytes) -> bytes:
        """The answer to an offer. Raises `NotAcceptable`; what was agreed before stays in force then."""
        offer = self._read(body)
        if len(offer.media) < len(self._peer_media):
            raise NotAcceptable("a stream has gone from the description instead of being refused (RFC 3264 8)")
        media: list[MediaDescription] = []
        agreed: Agreed | None = None
        for theirs in offer.media:
            made = None
            if agreed is None and theirs.kind == "audio" and theirs.port:
                made = self._matched(theirs, offer)
            if made is None:
                media.append(_refused(theirs))
                continue
            agreed = made
            direction = _direction(theirs, offer)
            ours = _REVERSED[direction]
            if not agreed.sends:
                ours = {"sendrecv": "recvonly", "sendonly": "inactive"}.get(ours, ours)
            if not agreed.receives:
                ours = {"sendrecv": "sendonly", "recvonly": "inactive"}.get(ours, ours)
            section = self._section((replace(agreed.codec, payload_type=agreed.send),), ours, agreed)
            media.append(section)
            self.peer_direction = direction
        if agreed is None and any(theirs.port for theirs in offer.media):
            raise NotAcceptable("no audio in it that can be done here")
        self._peer_media = offer.media
        self._offered = None
        self.agreed = agreed
        for theirs in offer.media:
            self._learn(theirs)
        return self._describe(media).encode()

    def accept(self, body: bytes, *, first: bool = False) -> None:
        """The answer to our offer. Raises `NotAcceptable`.

        :param first: to our first one, in a dialog of its own: that of a fork may be followed by another's, whatever
            else was offered and answered in the first one's dialog meanwhile
        """
        answer = self._read(body)
        offered = self._first if first else self._offered
        if offered is None:
            raise NotAcceptable("an answer to no offer")
        if len(answer.media) != len(offered.media):
            raise NotAcceptable("the answer has another number of streams than the offer")
        at = next(number for number, media in enumerate(offered.media) if media.port)
        theirs = answer.media[at]
        if theirs.kind != "audio" or not theirs.port:
            raise NotAcceptable("the audio was refused")
        agreed = self._matched(theirs, answer, answering=True)
        if agreed is None:
            raise NotAcceptable("the answer names nothing that was offered")
        self._peer_media = answer.media
        self.peer_direction = _direction(theirs, answer)
        self.agreed = agreed

    def withdraw(self) -> None:
        """What was agreed holds no more; our offer still stands: whoever gave the answer is gone, and another of the
        fork may give his."""
        self.agreed = None

    # --- inside

    def _read(self, body: bytes) -> SessionDescription:
        try:
            return SessionDescription.parse(body)
        except MediaError as error:
            raise NotAcceptable(str(error)) from None

    def _our_place(self) -> int:
        for number, media in enumerate(self._peer_media):
            if media.kind == "audio" and media.port:
                return number
        return 0

    def _matched(
        self, theirs: MediaDescription, whole: SessionDescription, *, answering: bool = False
    ) -> Agreed | None:
        """What of a stream of the peer can be done here; ``None``: nothing."""
        if theirs.protocol != _PROTOCOLS[self.sdes]:
            return None
        keys: tuple[Crypto | None, Crypto | None] = (None, None)
        if self.sdes:
            found = self._chosen_key(theirs, answering)
            if found is None:
                return None
            keys = found
        choice = self._chosen_codec(theirs)
        if choice is None:
            return None
        codec, number = choice
        try:
            host: str | None = whole.host_of(theirs)
        except MediaError:
            return None
        direction = _direction(theirs, whole)
        if host in ("0.0.0.0", "::"):  # noqa: S104 - RFC 2543's hold: nothing may be sent there
            host = None
        mux = self.rtcp_port is not None and theirs.attribute("rtcp-mux") is not None
        event = self._event(theirs, codec.clock)
        ours = self._number(codec.rtpmap, codec.payload_type) if answering else number
        wish = self.wanted
        return Agreed(
            codec,
            None if host is None else (host, theirs.port),
            number,
            ours,
            sends=host is not None and direction in ("sendrecv", "recvonly") and wish in ("sendrecv", "sendonly"),
            receives=direction in ("sendrecv", "sendonly") and wish in ("sendrecv", "recvonly"),
            event_send=event,
            event_receive=self._event_number(codec.clock) if answering and event is not None else event,
            local_key=keys[0],
            remote_key=keys[1],
            remote_rtcp=None if host is None else (host, theirs.port) if mux else _rtcp_address(theirs, host),
            rtcp_mux=mux,
        )

    def _chosen_key(self, theirs: MediaDescription, answering: bool) -> tuple[Crypto, Crypto] | None:
        """(ours, theirs) of the first acceptable ``a=crypto`` (RFC 4568 5.1.2, 5.1.3)."""
        for value in list(theirs.attributes("crypto"))[:_MAX_CRYPTO]:
            key = Crypto.parse(value)
            if key is None:
                continue
            ours = next(own for own in self._keys if own.suite == key.suite)
            if answering and ours.tag != key.tag:
                continue
            return replace(ours, tag=key.tag), key
        return None

    def _chosen_codec(self, theirs: MediaDescription) -> tuple[Codec, int] | None:
        """The first of their formats that is known here (RFC 3264 6.1: the offerer's order), and its number."""
        for text in theirs.formats:
            if not text.isdecimal() or int(text) > 127:
                continue
            rtpmap = theirs.rtpmap(text) or _STATIC.get(int(text))
            for codec in self.codecs:
                if rtpmap is not None and codec.matches(rtpmap):
                    return codec, int(text)
        return None

    @staticmethod
    def _event(theirs: MediaDescription, clock: int) -> int | None:
        """Their payload type for telephone events of the codec's clock (RFC 4733 7.1.1)."""
        for text in theirs.formats:
            rtpmap = theirs.rtpmap(text)
            if rtpmap is not None and rtpmap.lower() == f"telephone-event/{clock}" and text.isdecimal():
                return int(text)
        return None

    def _learn(self, theirs: MediaDescription) -> None:
        for text in theirs.formats:
            rtpmap = theirs.rtpmap(text)
            if theirs.kind == "audio" and rtpmap is not None and text.isdecimal() and int(text) <= 127:
                self._numbers.setdefault(rtpmap.lower(), int(text))

    def _number(self, rtpmap: str, usual: int) -> int:
        """Our payload type for a format: the one it has had in this session, else the usual one if it is free."""
        known = self._numbers.get(rtpmap.lower())
        if known is None:
            taken = set(self._numbers.values())
            known = usual if usual not in taken else next(n for n in range(127, 34, -1) if n not in taken)
            self._numbers[rtpmap.lower()] = known
        return known

    def _event_number(self, clock: int) -> int:
        return self._number(f"telephone-event/{clock}", _EVENTS[clock])

    def _section(self, codecs: tuple[Codec, ...], direction: str, agreed: Agreed | None = None) -> MediaDescription:
        formats, lines = [], []
        for codec in codecs:
            number = codec.payload_type if agreed is not None else self._number(codec.rtpmap, codec.payload_type)
            formats.append(str(number))
            lines.append(("a", f"rtpmap:{number} {codec.rtpmap}"))
            if codec.fmtp:
                lines.append(("a", f"fmtp:{number} {codec.fmtp}"))
        if agreed is None:
            events = {codec.clock: self._event_number(codec.clock) for codec in codecs}
        else:
            events = {} if agreed.event_receive is None else {agreed.codec.clock: agreed.event_receive}
        for clock, number in events.items():
            formats.append(str(number))
            lines += [("a", f"rtpmap:{number} telephone-event/{clock}"), ("a", f"fmtp:{number} 0-15")]
        lines += [("a", "ptime:20"), ("a", direction)]
        if self.rtcp_port not in (None, self.port + 1):
            lines.append(("a", f"rtcp:{self.rtcp_port}"))
        if self.rtcp_port is not None and (agreed is None or agreed.rtcp_mux):
            lines.append(("a", "rtcp-mux"))
        if self.sdes:
            keys = self._keys if agreed is None or agreed.local_key is None else (agreed.local_key,)
            lines += [("a", f"crypto:{key}") for key in keys]
        return MediaDescription("audio", self.port, _PROTOCOLS[self.sdes], tuple(formats), lines)

    def _describe(self, media: list[MediaDescription]) -> SessionDescription:
        """The version counts up when something has changed (RFC 3264 8)."""
        text = "".join(map(str, media))
        if text != self._last:
            self._last = text
            self._version += 1
        made = SessionDescription.make(self.host, session_id=self._session_id, version=self._version)
        made.media = media
        return made


def _direction(media: MediaDescription, whole: SessionDescription) -> str:
    """The direction of a stream: its own, the session's, else both ways."""
    if media.direction is not None:
        return media.direction
    return next(
        (value for kind, value in whole.lines if kind == "a" and value in _REVERSED), "sendrecv"
    )


def _rtcp_address(media: MediaDescription, host: str) -> tuple[str, int] | None:
    """Where a stream's RTCP goes: as ``a=rtcp`` says (RFC 3605), else to the next port."""
    port, _, where = (media.attribute("rtcp") or str(media.port + 1)).partition(" ")
    if not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        return None
    network, _, other = where.rpartition(" ")
    return (other if network in ("IN IP4", "IN IP6") and is_address(other) else host), int(port)


def _refused(theirs: MediaDescription) -> MediaDescription:
    """A stream that is not wanted, in its place (RFC 3264 6)."""
    return MediaDescription(theirs.kind, 0, theirs.protocol, theirs.formats[:1] or ("0",), [])
