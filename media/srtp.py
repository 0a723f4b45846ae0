# SPDX-License-Identifier: Apache-2.0
"""SRTP and SRTCP with AEAD_AES_GCM (RFC 7714), a master key identifier, and the ROC in each packet.

On the wire, SRTP: ``header | ciphertext | tag 16 | MKI | ROC 4`` (RFC 4771 mode 3, the integrity being the AEAD's);
SRTCP: ``header 8 | ciphertext | tag 16 | E + index | MKI``. The MKI and the ROC are not authenticated by
themselves: the MKI chooses the key, the ROC enters the nonce, and a wrong one fails the tag. No state changes
before a packet is authenticated.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from media.errors import (
    AuthenticationFailed,
    KeyExhausted,
    MalformedPacket,
    Replayed,
    SrtpError,
    SsrcClash,
    TooOld,
    UnknownKey,
)

__all__ = ["CSK", "GROUP", "SrtpKey", "SrtpPolicy", "SrtpReceiver", "SrtpSender", "Unprotected"]

TAG = 16
_MAX_ROC = 0xFFFFFFFF
_MAX_SRTCP = 0x7FFFFFFF
#: RFC 3711 4.3.1: what is derived
_RTP_KEY, _RTP_SALT, _RTCP_KEY, _RTCP_SALT = 0, 2, 3, 5


@dataclass(frozen=True, slots=True)
class SrtpPolicy:
    """How packets look; lengths in octets. Comes from the SP payload of an I_MESSAGE, never from SDP."""

    key_length: int = 16
    mki_length: int = 8
    roc_in_packet: bool = True
    salt_length: int = 12


#: group media of TS 33.180 7.5: AEAD_AES_128_GCM, MKI = GMK-ID || GUK-ID, the ROC in every packet
GROUP = SrtpPolicy()
#: floor control between a client and its server under the CSK (TS 33.180 9.4): MKI = CSK-ID
CSK = SrtpPolicy(mki_length=4, roc_in_packet=False)


class SrtpKey:
    """An SRTP master key with its salt and MKI. Does not print, pickle or hash its secret."""

    __slots__ = ("master_key", "master_salt", "mki")

    def __init__(self, master_key: bytes, master_salt: bytes, mki: bytes) -> None:
        if len(master_key) not in (16, 32) or len(master_salt) not in (12, 14):
            raise ValueError("an SRTP master key has 16 or 32 octets, its salt 12 (AEAD) or 14")
        self.master_key = master_key
        self.master_salt = master_salt
        self.mki = mki

    def __repr__(self) -> str:
        return f"<SrtpKey mki={self.mki.hex()}>"

    def __reduce__(self) -> str:
        raise TypeError("an SRTP key is not pickled")


@dataclass(frozen=True, slots=True)
class Unprotected:
    """An opened packet: plain RTP or RTCP, under which key, and its extended index."""

    data: bytes
    mki: bytes
    ssrc: int
    index: int


def _derive(key: SrtpKey, label: int, length: int) -> bytes:
    """The AES-CM PRF of RFC 3711 4.3.3 with key derivation rate 0; a 12-octet salt is padded (RFC 7714 11)."""
    block = bytearray(key.master_salt.ljust(14, b"\0"))
    block[7] ^= label
    encryptor = Cipher(algorithms.AES(key.master_key), modes.CTR(bytes(block) + b"\0\0")).encryptor()
    return encryptor.update(bytes(length))


class _SessionKeys:
    """What one master key gives for packets."""

    __slots__ = ("mki", "rtcp", "rtcp_salt", "rtp", "rtp_salt")

    def __init__(self, key: SrtpKey, policy: SrtpPolicy) -> None:
        if len(key.master_key) != policy.key_length or len(key.master_salt) != policy.salt_length:
            raise ValueError("the key's lengths are not the policy's")
        if len(key.mki) != policy.mki_length:
            raise ValueError(f"the MKI must have {policy.mki_length} octets")
        self.mki = key.mki
        self.rtp = AESGCM(_derive(key, _RTP_KEY, policy.key_length))
        self.rtcp = AESGCM(_derive(key, _RTCP_KEY, policy.key_length))
        self.rtp_salt = int.from_bytes(_derive(key, _RTP_SALT, policy.salt_length), "big")
        self.rtcp_salt = int.from_bytes(_derive(key, _RTCP_SALT, policy.salt_length), "big")

    def rtp_nonce(self, ssrc: int, index: int) -> bytes:
        """00 00 | SSRC | ROC | SEQ, exclusive-or the salt (RFC 7714 8.1)."""
        return (ssrc << 48 | index).__xor__(self.rtp_salt).to_bytes(12, "big")

    def rtcp_nonce(self, ssrc: int, index: int) -> bytes:
        """00 00 | SSRC | 00 00 | index, exclusive-or the salt (RFC 7714 9.1)."""
        return (ssrc << 48 | index).__xor__(self.rtcp_salt).to_bytes(12, "big")


def _header_length(packet: bytes) -> int:
    """Octets of the RTP header with CSRCs and extension, which are authenticated and not encrypted."""
    if len(packet) < 12 or packet[0] >> 6 != 2:
        raise MalformedPacket("not an RTP packet of version 2")
    length = 12 + 4 * (packet[0] & 0x0F)
    if packet[0] & 0x10:
        if len(packet) < length + 4:
            raise MalformedPacket("the header extension is cut short")
        length += 4 + 4 * int.from_bytes(packet[length + 2 : length + 4], "big")
    if length > len(packet):
        raise MalformedPacket("the header is longer than the packet")
    return length


class SrtpSender:
    """One stream's sending side: one SSRC for its life; the key may change, sequence and ROC go on.

    Never make two senders of one (key, SSRC): the packet index would begin anew (RFC 3711 9.1). After a restart
    the SSRC is a fresh random one.
    """

    def __init__(self, key: SrtpKey, ssrc: int, policy: SrtpPolicy = GROUP) -> None:
        self.ssrc = ssrc
        self.policy = policy
        self._keys = _SessionKeys(key, policy)
        self._last: int | None = None
        self._rtcp_index = 0

    def set_key(self, key: SrtpKey) -> None:
        """From the next packet on."""
        self._keys = _SessionKeys(key, self.policy)

    def protect(self, rtp: bytes) -> bytes:
        """Encrypts one RTP packet. A sequence number is never used twice.

        Raises :class:`SsrcClash` for a packet of another SSRC, :class:`Replayed` for a sequence number that is
        not ahead of the last, :class:`KeyExhausted` at the end of the index.
        """
        header = _header_length(rtp)
        sequence, ssrc = struct.unpack_from(">H", rtp, 2)[0], struct.unpack_from(">I", rtp, 8)[0]
        if ssrc != self.ssrc:
            raise SsrcClash("a packet of another SSRC")
        if self._last is None:
            index = sequence
        else:
            ahead = (sequence - self._last) & 0xFFFF
            if ahead == 0 or ahead >= 0x8000:
                raise Replayed("the sequence number does not go on from the last")
            index = self._last + ahead
        roc = index >> 16
        if roc > _MAX_ROC:
            raise KeyExhausted("48 bits of packet index are used up")
        self._last = index
        keys = self._keys
        sealed = keys.rtp.encrypt(keys.rtp_nonce(ssrc, index), rtp[header:], rtp[:header])
        packet = rtp[:header] + sealed + keys.mki
        return packet + roc.to_bytes(4, "big") if self.policy.roc_in_packet else packet

    def protect_rtcp(self, rtcp: bytes) -> bytes:
        """Encrypts one compound RTCP packet under the next SRTCP index."""
        if len(rtcp) < 8 or rtcp[0] >> 6 != 2:
            raise MalformedPacket("not an RTCP packet of version 2")
        ssrc = int.from_bytes(rtcp[4:8], "big")
        if ssrc != self.ssrc:
            raise SsrcClash("a packet of another SSRC")
        if self._rtcp_index > _MAX_SRTCP:
            raise KeyExhausted("31 bits of SRTCP index are used up")
        index, self._rtcp_index = self._rtcp_index, self._rtcp_index + 1
        word = (0x80000000 | index).to_bytes(4, "big")
        keys = self._keys
        sealed = keys.rtcp.encrypt(keys.rtcp_nonce(ssrc, index), rtcp[8:], rtcp[:8] + word)
        return rtcp[:8] + sealed + word + keys.mki


class _Window:
    """Replay window of one stream: the highest index accepted, and which of those before it were."""

    __slots__ = ("highest", "seen")

    def __init__(self) -> None:
        self.highest = -1
        self.seen = 0

    def check(self, index: int, size: int) -> None:
        behind = self.highest - index
        if behind >= size:
            raise TooOld("behind the replay window")
        if behind >= 0 and self.seen >> behind & 1:
            raise Replayed("accepted before")

    def accept(self, index: int, size: int) -> None:
        ahead = index - self.highest
        if ahead > 0:
            # a jump beyond the window empties it; shifting by it would make a number of that many bits
            self.seen = (self.seen << ahead | 1) & ((1 << size) - 1) if ahead < size else 1
            self.highest = index
        else:
            self.seen |= 1 << (self.highest - index)


class SrtpReceiver:
    """Opens packets of any number of streams under any number of keys, found by MKI.

    :param find_key: gives the key of an MKI, or ``None``; asked once per MKI until it is retired
    :param own_ssrcs: SSRCs that this end sends under: a packet from outside with one is refused
    :param window: packets behind the highest that may still arrive
    :param max_keys: MKIs held at most; the one unused for longest goes first
    :param max_streams: (MKI, SSRC) pairs under replay protection; a new one beyond is refused, for forgetting
        an old one would let its packets in again
    """

    def __init__(
        self,
        find_key: Callable[[bytes], SrtpKey | None],
        policy: SrtpPolicy = GROUP,
        *,
        own_ssrcs: Collection[int] = (),
        window: int = 128,
        max_keys: int = 4096,
        max_streams: int = 16384,
    ) -> None:
        self.policy = policy
        self.own_ssrcs = own_ssrcs
        self.counters: Counter[str] = Counter()
        self._find_key = find_key
        self._window = window
        self._max_keys = max_keys
        self._max_streams = max_streams
        self._keys: OrderedDict[bytes, _SessionKeys] = OrderedDict()
        self._rtp: dict[tuple[bytes, int], _Window] = {}
        self._rtcp: dict[tuple[bytes, int], _Window] = {}

    def unprotect(self, packet: bytes) -> Unprotected:
        """Opens one SRTP packet, or raises the :class:`SrtpError` that says why not, and counts it."""
        try:
            opened = self._unprotect(packet)
        except SrtpError as error:
            self.counters[error.reason] += 1
            raise
        self.counters["accepted"] += 1
        return opened

    def unprotect_rtcp(self, packet: bytes) -> Unprotected:
        """The same for SRTCP."""
        try:
            opened = self._unprotect_rtcp(packet)
        except SrtpError as error:
            self.counters[error.reason] += 1
            raise
        self.counters["accepted"] += 1
        return opened

    def retire(self, mki_prefix: bytes) -> None:
        """Lets go of every key whose MKI begins so; ``find_key`` decides whether one comes back.

        The replay windows stay for the receiver's life: a key that comes back does not let old packets in.
        """
        for mki in [mki for mki in self._keys if mki.startswith(mki_prefix)]:
            del self._keys[mki]

    def _session_keys(self, mki: bytes) -> _SessionKeys:
        keys = self._keys.get(mki)
        if keys is None:
            key = self._find_key(mki)
            if key is None:
                raise UnknownKey(f"no key for MKI {mki.hex()}")
            keys = _SessionKeys(key, self.policy)
            self._keys[mki] = keys
            while len(self._keys) > self._max_keys:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(mki)
        return keys

    def _stream(self, windows: dict[tuple[bytes, int], _Window], mki: bytes, ssrc: int) -> _Window:
        if ssrc in self.own_ssrcs:
            raise SsrcClash("a packet from outside under this end's own SSRC")
        window = windows.get((mki, ssrc))
        if window is None:
            if len(windows) >= self._max_streams:
                raise SsrcClash("too many streams")
            window = _Window()  # kept only when a packet is authentic
        return window

    def _unprotect(self, packet: bytes) -> Unprotected:
        policy = self.policy
        header = _header_length(packet)
        end = len(packet) - 4 * policy.roc_in_packet
        start = end - policy.mki_length
        if start < header + TAG:
            raise MalformedPacket("too short for tag and MKI")
        mki = bytes(packet[start:end])
        sequence, ssrc = struct.unpack_from(">H", packet, 2)[0], struct.unpack_from(">I", packet, 8)[0]
        keys = self._session_keys(mki)
        window = self._stream(self._rtp, mki, ssrc)
        if policy.roc_in_packet:
            index = int.from_bytes(packet[end:], "big") << 16 | sequence
        else:
            index = _guess_index(window.highest, sequence)
        window.check(index, self._window)
        try:
            plain = keys.rtp.decrypt(keys.rtp_nonce(ssrc, index), packet[header:start], packet[:header])
        except InvalidTag:
            raise AuthenticationFailed("the tag is wrong") from None
        window.accept(index, self._window)
        self._rtp[mki, ssrc] = window
        return Unprotected(bytes(packet[:header]) + plain, mki, ssrc, index)

    def _unprotect_rtcp(self, packet: bytes) -> Unprotected:
        start = len(packet) - self.policy.mki_length
        if start < 8 + TAG + 4 or packet[0] >> 6 != 2:
            raise MalformedPacket("too short for tag, index and MKI")
        mki, word = bytes(packet[start:]), packet[start - 4 : start]
        if not word[0] & 0x80:
            raise MalformedPacket("not encrypted")
        ssrc, index = int.from_bytes(packet[4:8], "big"), int.from_bytes(word, "big") & _MAX_SRTCP
        keys = self._session_keys(mki)
        window = self._stream(self._rtcp, mki, ssrc)
        window.check(index, self._window)
        try:
            plain = keys.rtcp.decrypt(
                keys.rtcp_nonce(ssrc, index), packet[8 : start - 4], packet[:8] + word
            )
        except InvalidTag:
            raise AuthenticationFailed("the tag is wrong") from None
        window.accept(index, self._window)
        self._rtcp[mki, ssrc] = window
        return Unprotected(bytes(packet[:8]) + plain, mki, ssrc, index)


def _guess_index(highest: int, sequence: int) -> int:
    """The index nearest to the highest one seen (RFC 3711 3.3.1)."""
    if highest < 0:
        return sequence
    roc, last = highest >> 16, highest & 0xFFFF
    if last < 0x8000:
        roc -= sequence - last > 0x8000 and roc > 0
    else:
        roc += last - sequence > 0x8000
    return roc << 16 | sequence
