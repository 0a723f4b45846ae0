# SPDX-License-Identifier: Apache-2.0
"""RTP packets (RFC 3550 5.1) with the 64-bit NTP time of their burst (RFC 6051 3.3)."""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

from media.errors import RtpError

__all__ = ["NTP_64", "RtpPacket", "random_ssrc"]

#: the name of the header extension in SDP (RFC 6051 3.3)
NTP_64 = "urn:ietf:params:rtp-hdrext:ntp-64"
#: seconds from the NTP epoch (1900) to the Unix epoch
_NTP_UNIX = 2208988800
_ONE_BYTE = 0xBEDE


def random_ssrc(*others: int) -> int:
    """An SSRC from system randomness, anew for every start (RFC 3711 9.1; security rule 1), and none of ``others``."""
    while (ssrc := secrets.randbits(32)) in (0, *others):
        pass
    return ssrc


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """One RTP packet. ``ntp`` is the sender's wall clock at ``timestamp``, in Unix seconds, when it is stated."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    marker: bool = False
    payload: bytes = b""
    ntp: float | None = None

    def encode(self, extension_id: int = 1) -> bytes:
        """The packet on the wire; ``extension_id`` is the one negotiated for :data:`NTP_64` (1..14)."""
        head = struct.pack(
            ">BBHII",
            0x80 if self.ntp is None else 0x90,
            (self.marker << 7) | self.payload_type,
            self.sequence,
            self.timestamp,
            self.ssrc,
        )
        if self.ntp is None:
            return head + self.payload
        stamp = round((self.ntp + _NTP_UNIX) * (1 << 32)) & 0xFFFFFFFFFFFFFFFF
        # one-byte header form (RFC 5285 4.2): id and length-1, 8 octets, padded to three words
        return head + struct.pack(">HHBQxxx", _ONE_BYTE, 3, extension_id << 4 | 7, stamp) + self.payload

    @classmethod
    def decode(cls, data: bytes, extension_id: int = 1) -> RtpPacket:
        """Reads a packet; CSRCs, padding and foreign extensions are skipped. Raises :class:`RtpError`."""
        if len(data) < 12 or data[0] >> 6 != 2:
            raise RtpError("not an RTP packet of version 2")
        first, second, sequence, timestamp, ssrc = struct.unpack_from(">BBHII", data)
        start, end, ntp = 12 + 4 * (first & 0x0F), len(data), None
        if first & 0x10:
            if start + 4 > end:
                raise RtpError("the header extension is cut short")
            profile, words = struct.unpack_from(">HH", data, start)
            start += 4
            if start + 4 * words > end:
                raise RtpError("the header extension is longer than the packet")
            if profile == _ONE_BYTE:
                ntp = _ntp(data[start : start + 4 * words], extension_id)
            start += 4 * words
        if first & 0x20:
            if start >= end or not 0 < data[-1] <= end - start:
                raise RtpError("more padding than packet")
            end -= data[-1]
        if start > end:
            raise RtpError("the packet is shorter than its header")
        return cls(second & 0x7F, sequence, timestamp, ssrc, bool(second & 0x80), data[start:end], ntp)


def _ntp(elements: bytes, extension_id: int) -> float | None:
    """The NTP time among the elements of a one-byte header extension, as Unix seconds."""
    at = 0
    while at < len(elements):
        number, length = elements[at] >> 4, (elements[at] & 0x0F) + 1
        if number == 0:  # padding
            at += 1
            continue
        if number == 15:  # RFC 5285 4.2: stop here
            break
        value = elements[at + 1 : at + 1 + length]
        if number == extension_id and length == 8 and len(value) == 8:
            seconds = int.from_bytes(value, "big") / (1 << 32)
            # era 1 begins on 2036-02-07; stamps below 2**31 seconds are of it
            return seconds - _NTP_UNIX + ((1 << 32) if seconds < 1 << 31 else 0)
        at += 1 + length
    return None
