# SPDX-License-Identifier: Apache-2.0
"""The media of a temporary group call in SDP: one protected audio stream, one floor control channel.

Only addresses, codec and the sender's SSRC are taken from SDP. How media is protected comes from the signed SP
payload of the I_MESSAGE alone; a description that offers another way (``a=crypto``, a profile other than RTP/SAVP, a
key message in ``a=key-mgmt`` beside another one) is refused as a whole (security rule 16). In a private call
``a=key-mgmt:mikey`` (RFC 4567) is the key message's own place (TS 24.379 11.1.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.keying import i_message
from mcptt_sip.mcptt.policy import Urgency
from media.errors import SdpError
from media.floor_messages import FloorIndicator
from media.rtp import NTP_64
from media.sdp import McpttFmtp, MediaDescription, SessionDescription
from mikey import MikeyError
from mikey.text_form import decode_text, encode_text

Address = tuple[str, int]

#: the only codec of this version: Opus for speech, mono (RFC 7587)
OPUS = 96
NTP_EXTENSION = 1
#: what floor messages say of a call (24.380 8.2.3.13)
INDICATED = {
    Urgency.NORMAL: FloorIndicator(0),
    Urgency.IMMINENT_PERIL: FloorIndicator.IMMINENT_PERIL,
    Urgency.EMERGENCY: FloorIndicator.EMERGENCY,
}


class MediaRefused(SipError):
    """The session description is not that of a temporary group call. Answer: 488."""

    status = 488


@dataclass(frozen=True, slots=True)
class GroupMediaDescription:
    """What one end says of its media. ``ssrc`` is the one it will send audio under (the server sends none).

    ``key`` is the I_MESSAGE, binary, that stands in ``a=key-mgmt``.
    """

    audio: Address
    floor: Address
    ssrc: int | None = None
    priority: int | None = None
    queueing: bool = True
    implicit_request: bool = False
    key: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """The SDP body."""
        session = SessionDescription.make(self.audio[0])
        audio = [
            ("i", "speech"),
            ("a", f"rtpmap:{OPUS} opus/48000/2"),
            ("a", f"fmtp:{OPUS} sprop-maxcapturerate=16000;maxaveragebitrate=24000;useinbandfec=1"),
            ("a", f"extmap:{NTP_EXTENSION} {NTP_64}"),
            ("a", "ptime:20"),
            ("a", "sendrecv"),
        ]
        if self.ssrc is not None:
            audio.append(("a", f"ssrc:{self.ssrc} cname:mcptt"))
        if self.key is not None:
            audio.append(("a", f"key-mgmt:{encode_text(self.key)}"))
        fmtp = McpttFmtp(
            queueing=self.queueing, priority=self.priority, granted=False, implicit_request=self.implicit_request
        )
        session.media = [
            MediaDescription("audio", self.audio[1], "RTP/SAVP", (str(OPUS),), audio),
            MediaDescription("application", self.floor[1], "udp", ("MCPTT",), [("a", f"fmtp:MCPTT {fmtp}")]),
        ]
        return session.encode()

    @classmethod
    def decode(cls, body: bytes, *, beside: bytes | None = None) -> GroupMediaDescription:
        """Reads a peer's SDP. Raises :class:`MediaRefused` with what is wrong.

        :param beside: the I_MESSAGE that came beside the SDP, as it came: ``a=key-mgmt`` may repeat it, nothing else
        """
        found = cls.decode_keyed(body)
        if found.key is not None and (beside is None or found.key != i_message(beside)):
            raise MediaRefused("a=key-mgmt is not the key message that came beside it")
        return found

    @classmethod
    def decode_keyed(cls, body: bytes) -> GroupMediaDescription:
        """The same of a private call, whose key message may stand in ``a=key-mgmt`` alone."""
        try:
            session = SessionDescription.parse(body)
            return cls._read(session)
        except SdpError as error:
            raise MediaRefused(f"session description: {error}") from None

    @classmethod
    def _read(cls, session: SessionDescription) -> GroupMediaDescription:
        for place in (session, *session.media):
            for name in ("crypto", "fingerprint"):
                if place.attribute(name) is not None:
                    raise MediaRefused(f"a={name}: the key of an MCPTT call comes in its I_MESSAGE alone")
        audio = [media for media in session.media if media.kind == "audio" and media.port]
        floor = [media for media in session.media if media.kind == "application" and media.port]
        if len(audio) != 1 or audio[0].protocol != "RTP/SAVP":
            raise MediaRefused("there must be one audio stream, of profile RTP/SAVP")
        if len(floor) != 1 or floor[0].protocol.lower() != "udp" or floor[0].formats != ("MCPTT",):
            raise MediaRefused("there must be one floor control channel, m=application PORT udp MCPTT")
        if str(OPUS) not in audio[0].formats or not (audio[0].rtpmap(OPUS) or "").lower().startswith("opus/48000"):
            raise MediaRefused(f"the codec must be Opus with payload type {OPUS}")
        if audio[0].extension_id(NTP_64) != NTP_EXTENSION:
            raise MediaRefused(f"the burst time (RFC 6051) must be offered with identifier {NTP_EXTENSION}")
        fmtp = McpttFmtp.parse(floor[0].fmtp("MCPTT") or "")
        ssrcs = audio[0].ssrcs
        return cls(
            audio=(session.host_of(audio[0]), audio[0].port),
            floor=(session.host_of(floor[0]), floor[0].port),
            ssrc=ssrcs[0] if ssrcs else None,
            priority=fmtp.priority,
            queueing=fmtp.queueing,
            implicit_request=fmtp.implicit_request,
            key=_key(session, audio[0]),
        )


def _key(session: SessionDescription, audio: MediaDescription) -> bytes | None:
    """The one I_MESSAGE of ``a=key-mgmt``, wherever it stands: which one to believe must never be a choice."""
    found = {value.strip() for place in (session, *session.media) for value in place.attributes("key-mgmt")}
    if not found:
        return None
    if len(found) > 1 or not any(place.attribute("key-mgmt") is not None for place in (session, audio)):
        raise MediaRefused("a=key-mgmt: not one key message for the audio stream")
    try:
        return decode_text(found.pop())
    except MikeyError as error:
        raise MediaRefused(f"a=key-mgmt: {error}") from None
