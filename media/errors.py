# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with media, as a tree an application can act on. Nothing of it is ever told to the wire."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationFailed",
    "CodecError",
    "FloorDenied",
    "FloorError",
    "FloorMessageError",
    "FloorRevoked",
    "KeyExhausted",
    "MalformedPacket",
    "MediaError",
    "NoLoudspeaker",
    "NoMicrophone",
    "PolicyUnsupported",
    "Replayed",
    "RtpError",
    "SdpError",
    "SrtpError",
    "SsrcClash",
    "TooOld",
    "UnknownKey",
]


class MediaError(Exception):
    """Root of every error this package raises on purpose."""


class SdpError(MediaError):
    """A session description that cannot be read; ``line`` counts from 1."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason + (f" (line {line})" if line else ""))
        self.line = line


class RtpError(MediaError):
    """Octets that are no RTP packet."""


class CodecError(MediaError):
    """A codec or audio file that cannot be used."""


class NoMicrophone(CodecError):
    """The machine has no microphone, or it cannot be opened."""


class NoLoudspeaker(CodecError):
    """The machine has no loudspeaker, or it cannot be opened."""


class PolicyUnsupported(MediaError):
    """An SRTP policy that this package does not carry out, or one that would leave packets unprotected."""


class SrtpError(MediaError):
    """A packet that was not protected or not opened; ``reason`` is the name of its drop counter."""

    reason: ClassVar[str] = "srtp"


class MalformedPacket(SrtpError):
    """Too short, or not RTP/RTCP at all."""

    reason = "malformed"


class UnknownKey(SrtpError):
    """No key is held for the packet's MKI."""

    reason = "unknown-key"


class AuthenticationFailed(SrtpError):
    """The tag is wrong: another key, or changed on the way."""

    reason = "authentication"


class Replayed(SrtpError):
    """A packet with this index was accepted before."""

    reason = "replay"


class TooOld(SrtpError):
    """The packet's index is behind the replay window: nobody can tell whether it was accepted before."""

    reason = "too-old"


class SsrcClash(SrtpError):
    """Someone else uses this end's own SSRC, or this end was asked to send under a foreign one."""

    reason = "ssrc-clash"


class KeyExhausted(SrtpError):
    """The packet index of a key has come to its end (RFC 3711 9.2): a new key is needed."""

    reason = "exhausted"


class FloorMessageError(MediaError):
    """Octets that are no floor control message of TS 24.380 8.2."""


class FloorError(MediaError):
    """The floor was not given, or not kept."""


class FloorDenied(FloorError):
    """Floor Deny; ``cause`` is the reject cause of TS 24.380 8.2.6.2, ``phrase`` its words."""

    def __init__(self, cause: int, phrase: str = "") -> None:
        super().__init__(f"floor denied, cause {cause}" + (f": {phrase}" if phrase else ""))
        self.cause = cause
        self.phrase = phrase


class FloorRevoked(FloorError):
    """Floor Revoke; ``cause`` is the reject cause of TS 24.380 8.2.10.2."""

    def __init__(self, cause: int) -> None:
        super().__init__(f"floor revoked, cause {cause}")
        self.cause = cause
