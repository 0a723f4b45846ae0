# SPDX-License-Identifier: Apache-2.0
"""Key derivation: RFC 3830 §4.1 with PRF-HMAC-SHA-256, and the functions of TS 33.180 §F.1.

Keys are plain octets here; `keys` and `imessage` wrap them.
"""

from __future__ import annotations

import hmac

from mikey.errors import MikeyError
from mikey.identity import kdf_input

TEK = bytes.fromhex("2AD01C64")
"""RFC 3830 §4.1.3: constant of a TEK: the SRTP master key."""
SALT = bytes.fromhex("39A2C14B")
AUTH = bytes.fromhex("1B5C7973")
ENCR = bytes.fromhex("15798CEF")
ENVELOPE_AUTH = bytes.fromhex("2D22AC75")
"""RFC 3830 §4.1.4: authentication key from an envelope key; here the key of acknowledgements and nothing
else."""

LOW28 = 0x0FFFFFFF

FC_USER_SALT = 0x50
FC_SIGNALLING_CONFIDENTIALITY = 0x51
FC_SIGNALLING_INTEGRITY = 0x52
FC_DPCK = 0x53


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def prf(inkey: bytes, label: bytes, length: int) -> bytes:
    """RFC 3830 §4.1.2 with the hash of RFC 6043 §6.1: `length` octets from `inkey` under `label`.

    The key is cut into blocks of 32 octets, each run through P, the results XORed.
    """
    if not inkey or length < 1:
        raise MikeyError("the PRF needs a key and a positive length")
    out = 0
    for at in range(0, len(inkey), 32):
        block = inkey[at : at + 32]
        a, stream = label, b""
        while len(stream) < length:
            a = _hmac(block, a)
            stream += _hmac(block, a + label)
        out ^= int.from_bytes(stream[:length], "big")
    return out.to_bytes(length, "big")


def label(constant: bytes, cs_id: int, csb_id: int, rand: bytes) -> bytes:
    """RFC 3830 §4.1.3: constant || CS-ID (1) || CSB-ID (4) || RAND."""
    return constant + cs_id.to_bytes(1, "big") + csb_id.to_bytes(4, "big") + rand


def srtp_master(
    tgk: bytes, cs_id: int, csb_id: int, rand: bytes, key_length: int = 16
) -> tuple[bytes, bytes]:
    """SRTP master key (`key_length` octets) and 12-octet master salt from a TGK (RFC 3830 §4.1.3)."""
    return (
        prf(tgk, label(TEK, cs_id, csb_id, rand), key_length),
        prf(tgk, label(SALT, cs_id, csb_id, rand), 12),
    )


def acknowledgement_key(key: bytes, csb_id: int, rand: bytes) -> bytes:
    """32 octets: PRF(key, 2D22AC75 || FF || CSB-ID || RAND), the MAC key of a member's acknowledgement."""
    return prf(key, label(ENVELOPE_AUTH, 0xFF, csb_id, rand), 32)


def kdf(key: bytes, fc: int, *parameters: bytes) -> bytes:
    """TS 33.220 §B.2 / TS 33.180 §F.1: HMAC-SHA-256(key, FC || P0 || len16(P0) ...), 32 octets."""
    return _hmac(key, kdf_input(fc, *parameters))


def user_salt(gmk: bytes, uri: str) -> int:
    """TS 33.180 §F.1.3: the 28 least significant bits of KDF(GMK, 50, URI)."""
    return int.from_bytes(kdf(gmk, FC_USER_SALT, uri.encode())[-4:], "big") & LOW28


def guk_id(gmk: bytes, gmk_id: int, uri: str) -> int:
    """GUK-ID of a user: purpose tag kept, low 28 bits of the GMK-ID XOR user salt. Its own inverse."""
    return gmk_id ^ user_salt(gmk, uri)


def dpck(key: bytes, dppk_id: int) -> bytes:
    """TS 33.180 §F.1.5: the key that protects a payload; the last 16 octets for a 16-octet key, else all
    32."""
    out = kdf(key, FC_DPCK, dppk_id.to_bytes(4, "big"))
    return out[-16:] if len(key) == 16 else out


def signalling_keys(xpk: bytes, uri: str, xpk_id: int) -> tuple[bytes, bytes]:
    """TS 33.180 §F.1.4: confidentiality and integrity key for XML bodies, from a CSK or SPK."""
    parameters = (uri.encode(), xpk_id.to_bytes(4, "big"))
    confidentiality = kdf(xpk, FC_SIGNALLING_CONFIDENTIALITY, *parameters)
    integrity = kdf(xpk, FC_SIGNALLING_INTEGRITY, *parameters)
    if len(xpk) == 16:
        return confidentiality[-16:], integrity[-16:]
    return confidentiality, integrity


def srtp_session(master_key: bytes, master_salt: bytes, label_octet: int, length: int) -> bytes:
    """RFC 3711 §4.3: `length` octets of a session key or salt; labels 0/1/2 SRTP, 3/4/5 SRTCP
    enc/auth/salt."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    x = int.from_bytes(master_salt.ljust(14, b"\0"), "big") ^ label_octet << 48
    encryptor = Cipher(algorithms.AES(master_key), modes.CTR((x << 16).to_bytes(16, "big"))).encryptor()
    return encryptor.update(bytes(length)) + encryptor.finalize()


__all__ = [
    "acknowledgement_key",
    "dpck",
    "guk_id",
    "kdf",
    "label",
    "prf",
    "signalling_keys",
    "srtp_master",
    "srtp_session",
    "user_salt",
]
