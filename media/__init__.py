# SPDX-License-Identifier: Apache-2.0
"""Push-to-talk audio for groups: SRTP with a key per sender, floor control (TS 24.380), a relay that opens nothing.

RTP (RFC 3550), SRTP (RFC 3711, 7714, 4771), floor control, codecs, jitter buffer, group relay. Knows nothing of SIP,
nor where keys come from: who has a key and two sockets can talk.

>>> import socket
>>> from media import SILENCE, OpusDecoder, OpusEncoder, RtpPacket, SrtpKey, SrtpReceiver, SrtpSender
>>> here, there = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
>>> there.bind(("127.0.0.1", 0))
>>> key = SrtpKey(bytes(range(16)), bytes(12), mki=bytes(8))
>>> speech = RtpPacket(96, sequence=7, timestamp=0, ssrc=0x1234, payload=OpusEncoder().encode(SILENCE))
>>> sent = here.sendto(SrtpSender(key, 0x1234).protect(speech.encode()), there.getsockname())
>>> opened = SrtpReceiver({key.mki: key}.get).unprotect(there.recv(1500))
>>> len(OpusDecoder().decode(RtpPacket.decode(opened.data).payload))
640
>>> here.close(), there.close()
(None, None)

A whole group, on two sockets a member and two of the server's:

>>> import asyncio
>>> from media import CSK, GroupRelay, MemberMedia
>>> async def group():
...     relay, members = GroupRelay("sip:team@example.org", "127.0.0.1"), []
...     for number, user in enumerate(("sip:alice@example.org", "sip:bob@example.org")):
...         csk = SrtpKey(bytes(16), bytes(12), mki=bytes([number] * 4))
...         member = await MemberMedia.open("127.0.0.1", user=user)
...         member.set_csk(csk)
...         relay.add_leg(user, audio=member.audio_address, floor=member.floor_address, media_ssrc=member.ssrc,
...                       csk=csk, guk_id=number)
...         member.connect(relay.audio, relay.floor)
...         members.append(member)
...     await members[0].request_floor()
...     holder = relay.holder
...     for end in members:
...         await end.close()
...     relay.close()
...     return holder
>>> asyncio.run(group())
'sip:alice@example.org'

========================= =====================================================================================
part                      support
========================= =====================================================================================
SRTP, SRTCP               AEAD_AES_128_GCM, AEAD_AES_256_GCM, AES_CM_128_HMAC_SHA1_80 and _32; MKI of any length;
                          with AES-GCM the ROC in packets (RFC 4771 mode 3) at any rate. Key derivation rate 0;
                          no header extension encryption, no EKT
floor control, on-network every message and field of TS 24.380 8.2, releases 13 to 19; the participant (6.2.4), the
                          arbitration (6.3.4) and towards each participant (6.3.5): queue, priorities,
                          pre-emption, audio cut-in, broadcast and receive-only members, implicit request,
                          acknowledgements, emergency and imminent peril
floor control by members  the signer's client arbitrates, his deputies after him; the server copies unread, so it
                          can neither filter by the floor nor follow members to other addresses
floor control, other      dual floor, multi-talker, MBMS, off-network: read and written, not acted upon
codecs                    Opus (libopus, else PyAV), G.722, PCMA, PCMU; AMR-WB in both packings of RFC 4867 where
                          its libraries are; EVS: relayed, not spoken. 20 ms of 16 kHz mono in each packet
jitter buffer             one a burst, driven by time: its first and last frame are played; the delay is fitted to
                          what was heard; lost frames are rebuilt (Opus FEC) or concealed
RTCP                      sender and receiver reports between a member and the server, under the CSK
relay                     packets copied unopened; one ``sendmmsg`` a packet on Linux, in a thread for large groups;
                          IPv4 and IPv6 on one socket; addresses follow authentic packets of the member only
sources and sinks         aiortc tracks: any file, tone, silence, microphone, loudspeaker, what is heard, a WAV that
                          keeps its gaps; a WebRTC peer as a member
========================= =====================================================================================

Names are loaded when first used, so that ``import media`` costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from media.codec import FRAME_OCTETS as FRAME_OCTETS
    from media.codec import RATE as RATE
    from media.codec import SILENCE as SILENCE
    from media.codec import OpusDecoder as OpusDecoder
    from media.codec import OpusEncoder as OpusEncoder
    from media.codec import WavTimeline as WavTimeline
    from media.codec import read_frames as read_frames
    from media.codec_amrwb import AmrWbDecoder as AmrWbDecoder
    from media.codec_amrwb import AmrWbEncoder as AmrWbEncoder
    from media.codec_amrwb import AmrWbFrame as AmrWbFrame
    from media.codec_amrwb import AmrWbPayload as AmrWbPayload
    from media.codec_opus import LibOpusDecoder as LibOpusDecoder
    from media.codec_opus import LibOpusEncoder as LibOpusEncoder
    from media.codecs import AMR_WB as AMR_WB
    from media.codecs import CODECS as CODECS
    from media.codecs import G722 as G722
    from media.codecs import OPUS as OPUS
    from media.codecs import PCMA as PCMA
    from media.codecs import PCMU as PCMU
    from media.codecs import Codec as Codec
    from media.codecs import available as available
    from media.codecs import choose as choose
    from media.endpoint import MemberMedia as MemberMedia
    from media.endpoint import MemberSettings as MemberSettings
    from media.errors import AuthenticationFailed as AuthenticationFailed
    from media.errors import CodecError as CodecError
    from media.errors import FloorDenied as FloorDenied
    from media.errors import FloorError as FloorError
    from media.errors import FloorMessageError as FloorMessageError
    from media.errors import FloorRevoked as FloorRevoked
    from media.errors import KeyExhausted as KeyExhausted
    from media.errors import MalformedPacket as MalformedPacket
    from media.errors import MediaError as MediaError
    from media.errors import NoLoudspeaker as NoLoudspeaker
    from media.errors import NoMicrophone as NoMicrophone
    from media.errors import PolicyUnsupported as PolicyUnsupported
    from media.errors import Replayed as Replayed
    from media.errors import RtpError as RtpError
    from media.errors import SdpError as SdpError
    from media.errors import SrtpError as SrtpError
    from media.errors import SsrcClash as SsrcClash
    from media.errors import TooOld as TooOld
    from media.errors import UnknownKey as UnknownKey
    from media.fanout import FanOut as FanOut
    from media.fanout import FanOutThread as FanOutThread
    from media.floor_fields import DenyCause as DenyCause
    from media.floor_fields import FloorIndicator as FloorIndicator
    from media.floor_fields import Location as Location
    from media.floor_fields import LocationType as LocationType
    from media.floor_fields import QueuedRequestsPurpose as QueuedRequestsPurpose
    from media.floor_fields import RevokeCause as RevokeCause
    from media.floor_fields import Source as Source
    from media.floor_fields import TrackInfo as TrackInfo
    from media.floor_members import MemberFloor as MemberFloor
    from media.floor_members import MemberFloorSettings as MemberFloorSettings
    from media.floor_messages import FloorAck as FloorAck
    from media.floor_messages import FloorDeny as FloorDeny
    from media.floor_messages import FloorGranted as FloorGranted
    from media.floor_messages import FloorIdle as FloorIdle
    from media.floor_messages import FloorMessage as FloorMessage
    from media.floor_messages import FloorRelease as FloorRelease
    from media.floor_messages import FloorReleaseMultiTalker as FloorReleaseMultiTalker
    from media.floor_messages import FloorRequest as FloorRequest
    from media.floor_messages import FloorRevoke as FloorRevoke
    from media.floor_messages import FloorRevokeRequest as FloorRevokeRequest
    from media.floor_messages import FloorTaken as FloorTaken
    from media.floor_messages import QueuedFloorRequests as QueuedFloorRequests
    from media.floor_messages import QueuePositionInfo as QueuePositionInfo
    from media.floor_messages import QueuePositionRequest as QueuePositionRequest
    from media.floor_messages import UnicastMediaFlowControl as UnicastMediaFlowControl
    from media.floor_messages import decode as decode
    from media.floor_messages import decode_all as decode_all
    from media.floor_participant import FloorParticipant as FloorParticipant
    from media.floor_participant import ParticipantSettings as ParticipantSettings
    from media.floor_participant import ParticipantState as ParticipantState
    from media.floor_server import FloorControlServer as FloorControlServer
    from media.floor_server import FloorServerSettings as FloorServerSettings
    from media.floor_server import FloorState as FloorState
    from media.jitter import DelayEstimator as DelayEstimator
    from media.jitter import Frame as Frame
    from media.jitter import JitterBuffer as JitterBuffer
    from media.quality import e_model as e_model
    from media.quality import opinion_score as opinion_score
    from media.quality import score as score
    from media.reception import Reception as Reception
    from media.reception import ReceptionSettings as ReceptionSettings
    from media.relay import Relay as Relay
    from media.relay import RelaySettings as RelaySettings
    from media.relay_endpoint import GroupRelay as GroupRelay
    from media.relay_endpoint import GroupRelaySettings as GroupRelaySettings
    from media.rtcp import Report as Report
    from media.rtcp import ReportBlock as ReportBlock
    from media.rtcp import StreamStatistics as StreamStatistics
    from media.rtcp import decode_report as decode_report
    from media.rtp import NTP_64 as NTP_64
    from media.rtp import RtpPacket as RtpPacket
    from media.rtp import random_ssrc as random_ssrc
    from media.sdp import McpttFmtp as McpttFmtp
    from media.sdp import MediaDescription as MediaDescription
    from media.sdp import SessionDescription as SessionDescription
    from media.srtp import SrtpReceiver as SrtpReceiver
    from media.srtp import SrtpSender as SrtpSender
    from media.srtp import Unprotected as Unprotected
    from media.srtp_ciphers import AES_CM_128_HMAC_SHA1_32 as AES_CM_128_HMAC_SHA1_32
    from media.srtp_ciphers import AES_CM_128_HMAC_SHA1_80 as AES_CM_128_HMAC_SHA1_80
    from media.srtp_ciphers import CSK as CSK
    from media.srtp_ciphers import GROUP as GROUP
    from media.srtp_ciphers import GROUP_256 as GROUP_256
    from media.srtp_ciphers import SrtpCipher as SrtpCipher
    from media.srtp_ciphers import SrtpKey as SrtpKey
    from media.srtp_ciphers import SrtpPolicy as SrtpPolicy
    from media.tracks import FileTrack as FileTrack
    from media.tracks import HeardTrack as HeardTrack
    from media.tracks import SilenceTrack as SilenceTrack
    from media.tracks import ToneTrack as ToneTrack
    from media.tracks import loudspeaker as loudspeaker
    from media.tracks import microphone as microphone
    from media.tracks import record as record
    from media.unread_relay import UnreadRelay as UnreadRelay
    from media.unread_relay import UnreadRelaySettings as UnreadRelaySettings
    from media.webrtc import PeerMember as PeerMember

_HOME = {
    "MediaError": "errors",
    "SdpError": "errors",
    "RtpError": "errors",
    "CodecError": "errors",
    "NoLoudspeaker": "errors",
    "NoMicrophone": "errors",
    "PolicyUnsupported": "errors",
    "SrtpError": "errors",
    "MalformedPacket": "errors",
    "UnknownKey": "errors",
    "AuthenticationFailed": "errors",
    "Replayed": "errors",
    "TooOld": "errors",
    "SsrcClash": "errors",
    "KeyExhausted": "errors",
    "FloorMessageError": "errors",
    "FloorError": "errors",
    "FloorDenied": "errors",
    "FloorRevoked": "errors",
    "SrtpKey": "srtp_ciphers",
    "SrtpPolicy": "srtp_ciphers",
    "SrtpCipher": "srtp_ciphers",
    "GROUP": "srtp_ciphers",
    "GROUP_256": "srtp_ciphers",
    "CSK": "srtp_ciphers",
    "AES_CM_128_HMAC_SHA1_80": "srtp_ciphers",
    "AES_CM_128_HMAC_SHA1_32": "srtp_ciphers",
    "SrtpSender": "srtp",
    "SrtpReceiver": "srtp",
    "Unprotected": "srtp",
    "RtpPacket": "rtp",
    "NTP_64": "rtp",
    "random_ssrc": "rtp",
    "SessionDescription": "sdp",
    "MediaDescription": "sdp",
    "McpttFmtp": "sdp",
    "FloorMessage": "floor_messages",
    "FloorRequest": "floor_messages",
    "FloorGranted": "floor_messages",
    "FloorTaken": "floor_messages",
    "FloorDeny": "floor_messages",
    "FloorRelease": "floor_messages",
    "FloorIdle": "floor_messages",
    "FloorRevoke": "floor_messages",
    "FloorRevokeRequest": "floor_messages",
    "QueuePositionRequest": "floor_messages",
    "QueuePositionInfo": "floor_messages",
    "FloorAck": "floor_messages",
    "UnicastMediaFlowControl": "floor_messages",
    "QueuedFloorRequests": "floor_messages",
    "FloorReleaseMultiTalker": "floor_messages",
    "decode": "floor_messages",
    "decode_all": "floor_messages",
    "FloorIndicator": "floor_fields",
    "DenyCause": "floor_fields",
    "RevokeCause": "floor_fields",
    "Source": "floor_fields",
    "Location": "floor_fields",
    "LocationType": "floor_fields",
    "TrackInfo": "floor_fields",
    "QueuedRequestsPurpose": "floor_fields",
    "FloorParticipant": "floor_participant",
    "ParticipantSettings": "floor_participant",
    "ParticipantState": "floor_participant",
    "FloorControlServer": "floor_server",
    "FloorServerSettings": "floor_server",
    "FloorState": "floor_server",
    "JitterBuffer": "jitter",
    "DelayEstimator": "jitter",
    "Frame": "jitter",
    "OpusEncoder": "codec",
    "OpusDecoder": "codec",
    "WavTimeline": "codec",
    "read_frames": "codec",
    "FRAME_OCTETS": "codec",
    "RATE": "codec",
    "SILENCE": "codec",
    "Reception": "reception",
    "ReceptionSettings": "reception",
    "score": "quality",
    "e_model": "quality",
    "opinion_score": "quality",
    "Relay": "relay",
    "RelaySettings": "relay",
    "FanOut": "fanout",
    "FanOutThread": "fanout",
    "MemberMedia": "endpoint",
    "MemberSettings": "endpoint",
    "GroupRelay": "relay_endpoint",
    "GroupRelaySettings": "relay_endpoint",
    "Codec": "codecs",
    "CODECS": "codecs",
    "OPUS": "codecs",
    "AMR_WB": "codecs",
    "G722": "codecs",
    "PCMA": "codecs",
    "PCMU": "codecs",
    "available": "codecs",
    "choose": "codecs",
    "LibOpusEncoder": "codec_opus",
    "LibOpusDecoder": "codec_opus",
    "AmrWbPayload": "codec_amrwb",
    "AmrWbFrame": "codec_amrwb",
    "AmrWbEncoder": "codec_amrwb",
    "AmrWbDecoder": "codec_amrwb",
    "Report": "rtcp",
    "ReportBlock": "rtcp",
    "StreamStatistics": "rtcp",
    "decode_report": "rtcp",
    "FileTrack": "tracks",
    "ToneTrack": "tracks",
    "SilenceTrack": "tracks",
    "HeardTrack": "tracks",
    "microphone": "tracks",
    "loudspeaker": "tracks",
    "record": "tracks",
    "PeerMember": "webrtc",
    "MemberFloor": "floor_members",
    "MemberFloorSettings": "floor_members",
    "UnreadRelay": "unread_relay",
    "UnreadRelaySettings": "unread_relay",
}

__all__ = list(_HOME)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'media' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"media.{home}"), name)
    globals()[name] = value
    return value
