# SPDX-License-Identifier: Apache-2.0
"""Debian's libsrtp2 through its C interface: unlike pylibsrtp it knows master key identifiers."""

from __future__ import annotations

import ctypes
import ctypes.util
from ctypes import POINTER, byref, c_char_p, c_int, c_ubyte, c_uint, c_uint32, c_ulong, c_void_p

NAME = ctypes.util.find_library("srtp2")


class _CryptoPolicy(ctypes.Structure):
    _fields_ = [
        ("cipher_type", c_uint32), ("cipher_key_len", c_int), ("auth_type", c_uint32), ("auth_key_len", c_int),
        ("auth_tag_len", c_int), ("sec_serv", c_int),
    ]  # fmt: skip


class _MasterKey(ctypes.Structure):
    _fields_ = [("key", c_char_p), ("mki_id", c_char_p), ("mki_size", c_uint)]


class _Policy(ctypes.Structure):
    _fields_ = [
        ("ssrc_type", c_int), ("ssrc_value", c_uint), ("rtp", _CryptoPolicy), ("rtcp", _CryptoPolicy),
        ("key", c_void_p), ("keys", POINTER(POINTER(_MasterKey))), ("num_master_keys", c_ulong),
        ("deprecated_ekt", c_void_p), ("window_size", c_ulong), ("allow_repeat_tx", c_int),
        ("enc_xtn_hdr", c_void_p), ("enc_xtn_hdr_count", c_int), ("next", c_void_p),
    ]  # fmt: skip


SETTERS = {
    "gcm128": "srtp_crypto_policy_set_aes_gcm_128_16_auth",
    "gcm256": "srtp_crypto_policy_set_aes_gcm_256_16_auth",
    "cm80": "srtp_crypto_policy_set_rtp_default",
    "cm32": "srtp_crypto_policy_set_aes_cm_128_hmac_sha1_32",
}
ANY_INBOUND, ANY_OUTBOUND = 2, 3


class Session:
    """One libsrtp session; every call raises RuntimeError with libsrtp's status."""

    _library: ctypes.CDLL | None = None

    def __init__(self, profile: str, key: bytes, mki: bytes, *, inbound: bool) -> None:
        if Session._library is None:
            Session._library = ctypes.CDLL(NAME)
            self._check(Session._library.srtp_init())
        self._key = ctypes.create_string_buffer(key, len(key))
        self._mki = ctypes.create_string_buffer(mki, max(1, len(mki)))
        master = _MasterKey(ctypes.cast(self._key, c_char_p), ctypes.cast(self._mki, c_char_p), len(mki))
        self._keep = (master, (POINTER(_MasterKey) * 1)(ctypes.pointer(master)))
        policy = _Policy(ssrc_type=ANY_INBOUND if inbound else ANY_OUTBOUND, window_size=128)
        getattr(self._library, SETTERS[profile])(byref(policy.rtp))
        # the SRTCP of the 32-bit profile keeps its tag of 80 bits (RFC 4568 6.2.2)
        getattr(self._library, SETTERS["cm80" if profile == "cm32" else profile])(byref(policy.rtcp))
        if mki:
            policy.keys = ctypes.cast(self._keep[1], POINTER(POINTER(_MasterKey)))
            policy.num_master_keys = 1
        else:
            policy.key = ctypes.cast(self._key, c_void_p)
        self._use_mki = int(bool(mki))
        self._session = c_void_p()
        self._check(self._library.srtp_create(byref(self._session), byref(policy)))

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise RuntimeError(f"libsrtp status {status}")

    def _call(self, name: str, octets: bytes, *more: int) -> bytes:
        buffer = (c_ubyte * (len(octets) + 256)).from_buffer_copy(octets + bytes(256))
        length = c_int(len(octets))
        self._check(getattr(self._library, name)(self._session, buffer, byref(length), *map(c_uint, more)))
        return bytes(buffer[: length.value])

    def protect(self, rtp: bytes) -> bytes:
        return self._call("srtp_protect_mki", rtp, self._use_mki, 0)

    def unprotect(self, packet: bytes) -> bytes:
        return self._call("srtp_unprotect_mki", packet, self._use_mki)

    def protect_rtcp(self, rtcp: bytes) -> bytes:
        return self._call("srtp_protect_rtcp_mki", rtcp, self._use_mki, 0)

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        return self._call("srtp_unprotect_rtcp_mki", packet, self._use_mki)
