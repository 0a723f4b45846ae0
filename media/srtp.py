# SPDX-License-Identifier: Apache-2.0
"""SRTP and SRTCP (RFC 3711, 7714): protecting one stream, opening any number of them under keys found by MKI.

No state changes before a packet is authenticated. How packets look is told in :mod:`media.srtp_ciphers`.

>>> key = SrtpKey(bytes(16), bytes(12), bytes.fromhex("0000000a0000000b"))
>>> sender, receiver = SrtpSender(key, 0xDECAFBAD), SrtpReceiver({key.mki: key}.get)
>>> rtp = bytes.fromhex("8060 0007 00000000 decafbad") + b"speech"
>>> packet = sender.protect(rtp)
>>> len(packet) - len(rtp), receiver.unprotect(packet).data == rtp
(28, True)
>>> receiver.unprotect(packet)
Traceback (most recent call last):
    ...
media.errors.Replayed: accepted before
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from media.errors import KeyExhausted, MalformedPacket, Replayed, SrtpError, SsrcClash, TooOld, UnknownKey
from media.srtp_ciphers import (
    CSK,
    GROUP,
    PRIVATE,
    Open,
    SrtpKey,
    SrtpPolicy,
    SrtpTransform,
    mki_from_end,
    rtcp_overhead,
    transform,
)

__all__ = ["CSK", "GROUP", "PRIVATE", "SrtpKey", "SrtpPolicy", "SrtpReceiver", "SrtpSender", "Unprotected"]

_new = object.__new__
_SEQUENCE_SSRC = struct.Struct(">H4xI").unpack_from
_MAX_INDEX = 0xFFFFFFFFFFFF
_MAX_SRTCP = 0x7FFFFFFF


@dataclass(slots=True)
class Unprotected:
    """An opened packet: plain RTP or RTCP, under which key, and its extended index."""

    data: bytes
    mki: bytes
    ssrc: int
    index: int


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
        self._ssrc = ssrc
        self.policy = policy
        self._rate = policy.roc_rate
        self._last: int | None = None
        self._rtcp_index = 0
        self.set_key(key)

    @property
    def ssrc(self) -> int:
        """Of the stream."""
        return self._ssrc

    def set_key(self, key: SrtpKey) -> None:
        """From the next packet on."""
        self._transform = transform(key, self.policy)
        self._seal = self._transform.sealing(self._ssrc)
        self._mki = key.mki
        #: the ROC that the last packet carried, and the MKI with it: both are the same for 65536 packets
        self._roc, self._mki_roc = -1, b""

    def protect(self, rtp: bytes) -> bytes:
        """Encrypts one RTP packet. A sequence number is never used twice.

        Raises :class:`SsrcClash` for a packet of another SSRC, :class:`Replayed` for a sequence number that is
        not ahead of the last, :class:`KeyExhausted` at the end of the index.
        """
        header = 12 if len(rtp) >= 12 and rtp[0] == 0x80 else _header_length(rtp)
        sequence, ssrc = _SEQUENCE_SSRC(rtp, 2)
        if ssrc != self._ssrc:
            raise SsrcClash("a packet of another SSRC")
        last = self._last
        if last is None:
            index: int = sequence
        else:
            ahead = (sequence - last) & 0xFFFF
            if ahead == 0 or ahead >= 0x8000:
                raise Replayed("the sequence number does not go on from the last")
            index = last + ahead
        if index > _MAX_INDEX:
            raise KeyExhausted("48 bits of packet index are used up")
        self._last = index
        rate = self._rate
        if rate != 1 and not (rate and sequence % rate == 0):
            return self._seal(rtp, header, index, self._mki)
        roc = index >> 16
        if roc != self._roc:
            self._roc, self._mki_roc = roc, self._mki + roc.to_bytes(4, "big")
        return self._seal(rtp, header, index, self._mki_roc)

    def protect_rtcp(self, rtcp: bytes) -> bytes:
        """Encrypts one compound RTCP packet under the next SRTCP index."""
        if len(rtcp) < 8 or rtcp[0] >> 6 != 2:
            raise MalformedPacket("not an RTCP packet of version 2")
        ssrc = int.from_bytes(rtcp[4:8], "big")
        if ssrc != self._ssrc:
            raise SsrcClash("a packet of another SSRC")
        if self._rtcp_index > _MAX_SRTCP:
            raise KeyExhausted("31 bits of SRTCP index are used up")
        index, self._rtcp_index = self._rtcp_index, self._rtcp_index + 1
        return self._transform.seal_rtcp(rtcp, ssrc, index)


class _Window:
    """Replay window of one stream: the highest index accepted, and which of those before it were.

    What comes in order only raises ``highest``: every index between ``noted`` and it was accepted. The bits of
    ``seen`` are of ``noted`` and those before it, and are brought up to ``highest`` when one comes out of order.
    """

    __slots__ = ("highest", "noted", "seen")

    def __init__(self) -> None:
        self.highest = -1
        self.noted = -1
        self.seen = 0

    def check(self, index: int, size: int) -> None:
        """Raises :class:`TooOld` or :class:`Replayed`."""
        if self.highest - index >= size:
            raise TooOld("behind the replay window")
        if index <= self.highest and (index > self.noted or self.seen >> (self.noted - index) & 1):
            raise Replayed("accepted before")

    def accept(self, index: int, size: int) -> None:
        """Notes a packet that was checked and is authentic."""
        ahead = index - self.highest
        if ahead == 1:
            self.highest = index
            return
        everything, run = (1 << size) - 1, self.highest - self.noted
        # never shifted by more than the window: that would make a number of as many bits
        seen = everything if run >= size else (self.seen << run | (1 << run) - 1) & everything
        if ahead > 0:
            self.highest = index
            self.seen = (seen << ahead | 1) & everything if ahead < size else 1
        else:
            self.seen = seen | 1 << -ahead
        self.noted = self.highest


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
        behind_mki, self._rtcp_mki_from_end = mki_from_end(policy)
        self._roc_rate, self._mki_length = policy.roc_rate, policy.mki_length
        self._mki_from_end = behind_mki + policy.mki_length
        self._mki_roc_from_end = self._mki_from_end + 4
        self._tag_before_mki = policy.tag_length - behind_mki
        #: the MKI and the ROC behind it, which only AES-GCM has
        self._mki_roc = struct.Struct(f">{policy.mki_length}sI").unpack_from
        self.own_ssrcs = own_ssrcs
        self._refused: Counter[str] = Counter()
        self._accepted = 0
        self._find_key = find_key
        self._window = window
        self._max_keys = max_keys
        self._max_streams = max_streams
        self._keys: OrderedDict[bytes, SrtpTransform] = OrderedDict()
        self._rtp: dict[tuple[bytes, int], _Window] = {}
        self._rtcp: dict[tuple[bytes, int], _Window] = {}
        #: the stream of the last packet: one talks at a time
        self._recent: tuple[int, bytes, Open, _Window] | None = None

    def unprotect(self, packet: bytes) -> Unprotected:
        """Opens one SRTP packet, or raises the :class:`SrtpError` that says why not, and counts it."""
        try:
            # the way of every packet of a thousand talk bursts: no call that can be done without
            length = len(packet)
            header = 12 if length >= 12 and packet[0] == 0x80 else _header_length(packet)
            sequence, ssrc = _SEQUENCE_SSRC(packet, 2)
            rate = self._roc_rate
            roc_here = rate == 1 or (rate and sequence % rate == 0)
            at = length - (self._mki_roc_from_end if roc_here else self._mki_from_end)
            if at < header + self._tag_before_mki:
                raise MalformedPacket("too short for tag and MKI")
            if roc_here:
                mki, roc = self._mki_roc(packet, at)
            else:
                mki = packet[at : at + self._mki_length]
            recent = self._recent
            if recent is not None and recent[0] == ssrc and recent[1] == mki:
                _, _, open_, window = recent
            else:
                recent = None
                open_ = self._transform_of(mki).opening(ssrc)
                found = self._rtp.get((mki, ssrc))
                window = self._new_stream(self._rtp, ssrc) if found is None or ssrc in self.own_ssrcs else found
            highest = window.highest
            index = roc << 16 | sequence if roc_here else _guess_index(highest, sequence)
            if index <= highest:
                window.check(index, self._window)
            plain = open_(packet, header, at, index)
            if recent is None:  # authentic: from now on this stream has state
                self._rtp[mki, ssrc] = window
                self._recent = ssrc, mki, open_, window
            if index == highest + 1:
                window.highest = index
            else:
                window.accept(index, self._window)
        except SrtpError as error:
            self._refused[error.reason] += 1
            raise
        self._accepted += 1
        # what the dataclass's own ``__init__`` does, without the call of it
        opened = _new(Unprotected)
        opened.data, opened.mki, opened.ssrc, opened.index = plain, mki, ssrc, index
        return opened

    @property
    def counters(self) -> Counter[str]:
        """Packets by what became of them: ``accepted``, or the reason of the refusal."""
        return self._refused + Counter(accepted=self._accepted)

    def unprotect_rtcp(self, packet: bytes) -> Unprotected:
        """The same for SRTCP."""
        try:
            opened = self._unprotect_rtcp(packet)
        except SrtpError as error:
            self._refused[error.reason] += 1
            raise
        self._accepted += 1
        return opened

    def retire(self, mki_prefix: bytes) -> None:
        """Lets go of every key whose MKI begins so; ``find_key`` decides whether one comes back.

        The replay windows stay for the receiver's life: a key that comes back does not let old packets in.
        """
        self._recent = None
        for mki in [mki for mki in self._keys if mki.startswith(mki_prefix)]:
            del self._keys[mki]

    def _transform_of(self, mki: bytes) -> SrtpTransform:
        keys = self._keys.get(mki)
        if keys is None:
            key = self._find_key(mki)
            if key is None:
                raise UnknownKey(f"no key for MKI {mki.hex()}")
            keys = transform(key, self.policy)
            self._keys[mki] = keys
            while len(self._keys) > self._max_keys:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(mki)
        return keys

    def _new_stream(self, windows: dict[tuple[bytes, int], _Window], ssrc: int) -> _Window:
        """The window of a stream not heard before; it is kept only when a packet turns out authentic."""
        if ssrc in self.own_ssrcs:
            raise SsrcClash("a packet from outside under this end's own SSRC")
        if len(windows) >= self._max_streams:
            raise SsrcClash("too many streams")
        return _Window()

    def _unprotect_rtcp(self, packet: bytes) -> Unprotected:
        if len(packet) < 8 + rtcp_overhead(self.policy) or packet[0] >> 6 != 2:
            raise MalformedPacket("too short for tag, index and MKI")
        mki_end = len(packet) - self._rtcp_mki_from_end
        mki = packet[mki_end - self.policy.mki_length : mki_end]
        ssrc = int.from_bytes(packet[4:8], "big")
        keys = self._transform_of(mki)
        window = self._rtcp.get((mki, ssrc))
        if window is None or ssrc in self.own_ssrcs:
            window = self._new_stream(self._rtcp, ssrc)
        index = keys.rtcp_index(packet)
        window.check(index, self._window)
        plain = keys.open_rtcp(packet)
        window.accept(index, self._window)
        self._rtcp[mki, ssrc] = window
        return Unprotected(plain, mki, ssrc, index)


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
