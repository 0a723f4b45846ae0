# SPDX-License-Identifier: Apache-2.0
"""The transforms of SRTP: AES-GCM (RFC 7714) and AES-CM with HMAC-SHA1 (RFC 3711), with an MKI and the ROC on the wire.

========= ===================================================== =================================================
profile   SRTP                                                  SRTCP
========= ===================================================== =================================================
AES-GCM   header | ciphertext | tag 16 | MKI | ROC 4 when due   header 8 | ciphertext | tag 16 | E + index | MKI
AES-CM    header | ciphertext | MKI | tag 10 or 4               header 8 | ciphertext | E + index | MKI | tag 10
========= ===================================================== =================================================

The ROC is that of RFC 4771 mode 3: the integrity is the AEAD's, since the ROC is part of the nonce. The MKI chooses
the key and is not authenticated by itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from media.errors import AuthenticationFailed, MalformedPacket, PolicyUnsupported

__all__ = [
    "AES_CM_128_HMAC_SHA1_32",
    "AES_CM_128_HMAC_SHA1_80",
    "CSK",
    "GROUP",
    "GROUP_256",
    "SrtpCipher",
    "SrtpKey",
    "SrtpPolicy",
    "SrtpTransform",
    "transform",
]

AEAD_TAG = 16
#: SRTCP of both AES-CM profiles (RFC 4568 6.2.2)
_CM_RTCP_TAG = 10
#: RFC 3711 4.3.1: what is derived from a master key; the SRTCP labels are these plus 3
_ENCRYPTION, _AUTHENTICATION, _SALT, _RTCP = 0, 1, 2, 3


class SrtpCipher(Enum):
    """What encrypts and what authenticates."""

    AES_GCM = "AES-GCM"
    AES_CM_HMAC_SHA1 = "AES-CM with HMAC-SHA1"


@dataclass(frozen=True, slots=True)
class SrtpPolicy:
    """How packets look; lengths in octets.

    :param roc_rate: a packet whose sequence number is a multiple of it carries the ROC (RFC 4771, mode 3); 0: none
    :param tag_length: of SRTP: 16 with AES-GCM; 10 or 4 with AES-CM
    """

    key_length: int = 16
    mki_length: int = 8
    roc_rate: int = 1
    salt_length: int = 12
    cipher: SrtpCipher = SrtpCipher.AES_GCM
    tag_length: int = AEAD_TAG

    def __post_init__(self) -> None:
        gcm = self.cipher is SrtpCipher.AES_GCM
        known = (
            (self.key_length in (16, 32) and self.salt_length == 12 and self.tag_length == AEAD_TAG)
            if gcm
            else (self.key_length == 16 and self.salt_length == 14 and self.tag_length in (4, 10))
        )
        if not known:
            raise PolicyUnsupported(f"no SRTP profile has these lengths: {self}")
        if not (0 <= self.mki_length <= 128 and 0 <= self.roc_rate <= 0xFFFF) or (self.roc_rate and not gcm):
            raise PolicyUnsupported(f"the MKI or the ROC cannot be sent so: {self}")

    @classmethod
    def of_parameters(cls, parameters: Mapping[int, int], *, mki_length: int) -> SrtpPolicy:
        """The policy of a MIKEY SP payload for SRTP, its parameters as type -> number (RFC 3830 6.10.1, RFC 7714 14.3,
        RFC 4771 5, TS 33.180 E.4.1). What is missing has the default of RFC 3830.

        Raises :class:`PolicyUnsupported`; above all when a packet would go out unencrypted or unauthenticated.
        """
        value = dict(parameters)
        if value.get(7, 1) != 1 or value.get(8, 1) != 1 or value.get(10, 1) != 1:
            raise PolicyUnsupported("SRTP without encryption or authentication")
        if value.get(5, 0) or value.get(6, 0) or value.get(12, 0):
            raise PolicyUnsupported("only the AES-CM PRF, key derivation rate 0 and no prefix are supported")
        encryption, rate = value.get(0, 1), value.get(13, 0)
        authentication = value.get(2, 0 if encryption == 6 else 1)
        if encryption == 6 and authentication in (0, 4):
            if (authentication == 4) != (rate > 0) or value.get(20, AEAD_TAG) != AEAD_TAG:
                raise PolicyUnsupported("AES-GCM with another tag, or a ROC rate without RCC mode 3")
            if authentication == 4 and value.get(18, 4) != 4:
                raise PolicyUnsupported("RCC mode 3 has a tag of 4 octets, the ROC")
            return cls(value.get(1, 16), mki_length, rate, value.get(4, 12))
        if encryption == 1 and authentication == 1 and not rate:
            tag = value.get(11, value.get(18, 10))
            return cls(value.get(1, 16), mki_length, 0, value.get(4, 14), SrtpCipher.AES_CM_HMAC_SHA1, tag)
        raise PolicyUnsupported(f"SRTP encryption {encryption} with authentication {authentication}, ROC rate {rate}")


#: group media of TS 33.180 7.5: AEAD_AES_128_GCM, MKI = GMK-ID || GUK-ID, the ROC in every packet
GROUP = SrtpPolicy()
#: the same with AEAD_AES_256_GCM
GROUP_256 = SrtpPolicy(key_length=32)
#: floor control between a client and its server under the CSK (TS 33.180 9.4): MKI = CSK-ID
CSK = SrtpPolicy(mki_length=4, roc_rate=0)
#: media of a call of two under a private call key (33.180 7.4): MKI = PCK-ID, the ROC is not in the packet
PRIVATE = CSK
#: the profiles of RFC 4568 without an MKI; ``dataclasses.replace(…, mki_length=4)`` for one with
AES_CM_128_HMAC_SHA1_80 = SrtpPolicy(
    mki_length=0, roc_rate=0, salt_length=14, cipher=SrtpCipher.AES_CM_HMAC_SHA1, tag_length=10
)
AES_CM_128_HMAC_SHA1_32 = replace(AES_CM_128_HMAC_SHA1_80, tag_length=4)


class SrtpKey:
    """An SRTP master key with its salt and MKI. Does not print, pickle or hash its secret."""

    __slots__ = ("master_key", "master_salt", "mki")

    def __init__(self, master_key: bytes, master_salt: bytes, mki: bytes = b"") -> None:
        if len(master_key) not in (16, 32) or len(master_salt) not in (12, 14):
            raise ValueError("an SRTP master key has 16 or 32 octets, its salt 12 (AEAD) or 14")
        self.master_key = master_key
        self.master_salt = master_salt
        self.mki = mki

    def __repr__(self) -> str:
        return f"<SrtpKey mki={self.mki.hex()}>"

    def __reduce__(self) -> str:
        raise TypeError("an SRTP key is not pickled")


def derive(key: SrtpKey, label: int, length: int) -> bytes:
    """The AES-CM PRF of RFC 3711 4.3.3 with key derivation rate 0; a 12-octet salt is padded (RFC 7714 11)."""
    block = bytearray(key.master_salt.ljust(14, b"\0"))
    block[7] ^= label
    encryptor = Cipher(algorithms.AES(key.master_key), modes.CTR(bytes(block) + b"\0\0")).encryptor()
    return encryptor.update(bytes(length))


#: (RTP packet, octets of it that stay in clear, packet index, what stands at the MKI's place) -> SRTP packet
Seal = Callable[[bytes, int, int, bytes], bytes]
#: (SRTP packet, octets of it that stay in clear, where its MKI begins, packet index) -> RTP packet
Open = Callable[[bytes, int, int, int], bytes]


class SrtpTransform(Protocol):
    """The session keys of one master key, at work. Opening raises :class:`AuthenticationFailed`.

    SRTP is sealed and opened by a function of one SSRC, which holds what is the same in every packet of the stream;
    the packet index has 48 bits, that of SRTCP 31.
    """

    def sealing(self, ssrc: int) -> Seal: ...

    def opening(self, ssrc: int) -> Open: ...

    def seal_rtcp(self, rtcp: bytes, ssrc: int, index: int) -> bytes: ...

    def open_rtcp(self, packet: bytes) -> bytes: ...

    def rtcp_index(self, packet: bytes) -> int: ...


class _Gcm:
    """AEAD_AES_128_GCM and AEAD_AES_256_GCM."""

    __slots__ = ("_mki", "_rtcp", "_rtcp_salt", "_rtp", "_rtp_salt")

    def __init__(self, key: SrtpKey, policy: SrtpPolicy) -> None:
        self._mki = key.mki
        self._rtp = AESGCM(derive(key, _ENCRYPTION, policy.key_length))
        self._rtcp = AESGCM(derive(key, _ENCRYPTION + _RTCP, policy.key_length))
        self._rtp_salt = int.from_bytes(derive(key, _SALT, policy.salt_length), "big")
        self._rtcp_salt = int.from_bytes(derive(key, _SALT + _RTCP, policy.salt_length), "big")

    def sealing(self, ssrc: int) -> Seal:
        # 00 00 | SSRC | ROC | SEQ, exclusive-or the salt (RFC 7714 8.1)
        base, encrypt = ssrc << 48 ^ self._rtp_salt, self._rtp.encrypt

        def seal(rtp: bytes, header: int, index: int, mki: bytes) -> bytes:
            clear = rtp[:header]
            return clear + encrypt((base ^ index).to_bytes(12, "big"), rtp[header:], clear) + mki

        return seal

    def opening(self, ssrc: int) -> Open:
        base, decrypt = ssrc << 48 ^ self._rtp_salt, self._rtp.decrypt

        def open_(packet: bytes, header: int, mki: int, index: int) -> bytes:
            clear = packet[:header]
            try:
                return clear + decrypt((base ^ index).to_bytes(12, "big"), packet[header:mki], clear)
            except InvalidTag:
                raise AuthenticationFailed("the tag is wrong") from None

        return open_

    def seal_rtcp(self, rtcp: bytes, ssrc: int, index: int) -> bytes:
        # 00 00 | SSRC | 00 00 | index, exclusive-or the salt (RFC 7714 9.1)
        nonce = ((ssrc << 48 | index) ^ self._rtcp_salt).to_bytes(12, "big")
        word = (0x80000000 | index).to_bytes(4, "big")
        return rtcp[:8] + self._rtcp.encrypt(nonce, rtcp[8:], rtcp[:8] + word) + word + self._mki

    def rtcp_index(self, packet: bytes) -> int:
        end = len(packet) - len(self._mki)
        return _encrypted_index(packet[end - 4 : end])

    def open_rtcp(self, packet: bytes) -> bytes:
        end = len(packet) - len(self._mki) - 4
        word = packet[end : end + 4]
        ssrc, index = int.from_bytes(packet[4:8], "big"), _encrypted_index(word)
        nonce = ((ssrc << 48 | index) ^ self._rtcp_salt).to_bytes(12, "big")
        try:
            return packet[:8] + self._rtcp.decrypt(nonce, packet[8:end], packet[:8] + word)
        except InvalidTag:
            raise AuthenticationFailed("the tag is wrong") from None


class _CounterMode:
    """AES_CM_128_HMAC_SHA1_80 and _32."""

    __slots__ = ("_auth", "_mki", "_rtcp", "_rtcp_auth", "_rtcp_salt", "_rtp", "_rtp_salt", "_tag")

    def __init__(self, key: SrtpKey, policy: SrtpPolicy) -> None:
        def stream(label: int) -> Cipher[modes.CTR]:
            return Cipher(algorithms.AES(derive(key, label, policy.key_length)), modes.CTR(bytes(16)))

        self._mki = key.mki
        self._tag = policy.tag_length
        # one context for a key's life, its counter set anew for each packet
        self._rtp, self._rtcp = stream(_ENCRYPTION).encryptor(), stream(_ENCRYPTION + _RTCP).encryptor()
        self._auth, self._rtcp_auth = derive(key, _AUTHENTICATION, 20), derive(key, _AUTHENTICATION + _RTCP, 20)
        self._rtp_salt = int.from_bytes(derive(key, _SALT, policy.salt_length), "big") << 16
        self._rtcp_salt = int.from_bytes(derive(key, _SALT + _RTCP, policy.salt_length), "big") << 16

    def _mac(self, data: bytes, index: int) -> bytes:
        """RFC 3711 4.2: over the packet and the ROC."""
        return hmac.digest(self._auth, data + (index >> 16).to_bytes(4, "big"), "sha1")[: self._tag]

    def sealing(self, ssrc: int) -> Seal:
        # salt | 00 00, exclusive-or SSRC at 64 and index at 16 (RFC 3711 4.1.1)
        base = self._rtp_salt ^ ssrc << 64

        def seal(rtp: bytes, header: int, index: int, mki: bytes) -> bytes:
            self._rtp.reset_nonce((base ^ index << 16).to_bytes(16, "big"))
            sealed = rtp[:header] + self._rtp.update(rtp[header:])
            return sealed + mki + self._mac(sealed, index)

        return seal

    def opening(self, ssrc: int) -> Open:
        base = self._rtp_salt ^ ssrc << 64

        def open_(packet: bytes, header: int, mki: int, index: int) -> bytes:
            if not hmac.compare_digest(self._mac(packet[:mki], index), packet[len(packet) - self._tag :]):
                raise AuthenticationFailed("the tag is wrong")
            self._rtp.reset_nonce((base ^ index << 16).to_bytes(16, "big"))
            return packet[:header] + self._rtp.update(packet[header:mki])

        return open_

    def seal_rtcp(self, rtcp: bytes, ssrc: int, index: int) -> bytes:
        self._rtcp.reset_nonce((self._rtcp_salt ^ ssrc << 64 ^ index << 16).to_bytes(16, "big"))
        sealed = rtcp[:8] + self._rtcp.update(rtcp[8:]) + (0x80000000 | index).to_bytes(4, "big")
        return sealed + self._mki + hmac.digest(self._rtcp_auth, sealed, "sha1")[:_CM_RTCP_TAG]

    def rtcp_index(self, packet: bytes) -> int:
        end = len(packet) - len(self._mki) - _CM_RTCP_TAG
        return _encrypted_index(packet[end - 4 : end])

    def open_rtcp(self, packet: bytes) -> bytes:
        end = len(packet) - len(self._mki) - _CM_RTCP_TAG
        tag = hmac.digest(self._rtcp_auth, packet[:end], "sha1")[:_CM_RTCP_TAG]
        if not hmac.compare_digest(tag, packet[len(packet) - _CM_RTCP_TAG :]):
            raise AuthenticationFailed("the tag is wrong")
        ssrc, index = int.from_bytes(packet[4:8], "big"), _encrypted_index(packet[end - 4 : end])
        self._rtcp.reset_nonce((self._rtcp_salt ^ ssrc << 64 ^ index << 16).to_bytes(16, "big"))
        return packet[:8] + self._rtcp.update(packet[8 : end - 4])


def _encrypted_index(word: bytes) -> int:
    """The SRTCP index after its E bit, which must be set: RTCP in clear is refused (security rule 16)."""
    if not word[0] & 0x80:
        raise MalformedPacket("not encrypted")
    return int.from_bytes(word, "big") & 0x7FFFFFFF


def transform(key: SrtpKey, policy: SrtpPolicy) -> SrtpTransform:
    """What ``key`` does to packets under ``policy``. Raises ``ValueError`` when its lengths are others."""
    if len(key.master_key) != policy.key_length or len(key.master_salt) != policy.salt_length:
        raise ValueError("the key's lengths are not the policy's")
    if len(key.mki) != policy.mki_length:
        raise ValueError(f"the MKI must have {policy.mki_length} octets")
    return _Gcm(key, policy) if policy.cipher is SrtpCipher.AES_GCM else _CounterMode(key, policy)


def rtcp_overhead(policy: SrtpPolicy) -> int:
    """Octets of an SRTCP packet beyond its RTCP."""
    return (AEAD_TAG if policy.cipher is SrtpCipher.AES_GCM else _CM_RTCP_TAG) + 4 + policy.mki_length


def mki_from_end(policy: SrtpPolicy) -> tuple[int, int]:
    """How many octets of an SRTP and an SRTCP packet stand behind the MKI (the ROC not counted)."""
    return (0, 0) if policy.cipher is SrtpCipher.AES_GCM else (policy.tag_length, _CM_RTCP_TAG)
