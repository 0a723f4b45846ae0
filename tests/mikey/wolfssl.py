# SPDX-License-Identifier: Apache-2.0
"""ECCSI and SAKKE of wolfSSL, which has nothing in common with ours: a second opinion, and a peer to race.

Through ctypes on the shared library of Debian's libwolfssl-dev. Its structures are opaque here and get more room than
any of its versions needs.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from ctypes import byref, c_int, c_uint8, c_uint16, c_uint32, c_void_p, create_string_buffer

SHA256 = 6  # WC_HASH_TYPE_SHA256
DEFAULT_DEVICE = -2  # INVALID_DEVID
_ROOM = 1 << 18


class NotThere(Exception):
    """The library, or ECCSI and SAKKE in it, are missing."""


class WolfError(Exception):
    """It said no."""


class Wolf:
    """The functions that are compared."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("wolfssl")
        if name is None:
            raise NotThere("wolfSSL is not installed (Debian package libwolfssl-dev)")
        self._lib = ctypes.CDLL(name)
        if not hasattr(self._lib, "wc_MakeSakkeEncapsulatedSSV") or not hasattr(self._lib, "wc_VerifyEccsiHash"):
            raise NotThere("this wolfSSL was built without ECCSI and SAKKE")
        self._lib.wc_ecc_new_point.restype = c_void_p
        self._rng = create_string_buffer(_ROOM)
        self._do("wc_InitRng", self._rng)

    def _do(self, name: str, *arguments: object) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            raise WolfError(f"{name}: {code}")

    def _point(self) -> c_void_p:
        return c_void_p(self._lib.wc_ecc_new_point())

    def _drop(self, point: c_void_p) -> None:
        self._lib.wc_ecc_del_point(point)

    # -- ECCSI ----------------------------------------------------------------------------------------------

    def eccsi_key(self, kpak: bytes) -> object:
        """A key structure with a KMS's public key."""
        key = create_string_buffer(_ROOM)
        self._do("wc_InitEccsiKey", key, None, DEFAULT_DEVICE)
        self._do("wc_ImportEccsiPublicKey", key, kpak[1:], c_uint32(64), c_int(1))
        return key

    def _hash_identity(self, key: object, identity: bytes, pvt: c_void_p) -> None:
        digest, size = create_string_buffer(64), c_uint8(64)
        self._do("wc_HashEccsiId", key, SHA256, identity, c_uint32(len(identity)), pvt, digest, byref(size))
        self._do("wc_SetEccsiHash", key, digest, size)

    def verify(self, octets: bytes, signature: bytes, identity: bytes, kpak: bytes, key: object = None) -> bool:
        """RFC 6507 §5.2.2."""
        key = self.eccsi_key(kpak) if key is None else key
        pvt, verified = self._point(), c_int(0)
        try:
            self._do("wc_DecodeEccsiPvtFromSig", key, signature, c_uint32(len(signature)), pvt)
            self._hash_identity(key, identity, pvt)
            self._do("wc_VerifyEccsiHash", key, SHA256, octets, c_uint32(len(octets)), signature,
                     c_uint32(len(signature)), byref(verified))  # fmt: skip
        finally:
            self._drop(pvt)
        return bool(verified.value)

    def signer(self, identity: bytes, ssk: bytes, pvt: bytes, kpak: bytes) -> object:
        """A key structure that signs."""
        key, scalar, point = self.eccsi_key(kpak), create_string_buffer(_ROOM), self._point()
        self._do("sp_init" if hasattr(self._lib, "sp_init") else "mp_init", scalar)
        self._do("wc_DecodeEccsiPair", key, ssk + pvt[1:], c_uint32(96), scalar, point)
        valid = c_int(0)
        self._do("wc_ValidateEccsiPair", key, SHA256, identity, c_uint32(len(identity)), scalar, point, byref(valid))
        if not valid.value:
            raise WolfError("the SSK does not belong to this identity, PVT and KPAK")
        self._hash_identity(key, identity, point)
        self._do("wc_SetEccsiPair", key, scalar, point)
        self._drop(point)
        return key

    def sign(self, signer: object, octets: bytes) -> bytes:
        """RFC 6507 §5.2.1."""
        out, size = create_string_buffer(160), c_uint32(160)
        self._do("wc_SignEccsiHash", signer, self._rng, SHA256, octets, c_uint32(len(octets)), out, byref(size))
        return out.raw[: size.value]

    # -- SAKKE ----------------------------------------------------------------------------------------------

    def sakke_key(self, z: bytes) -> object:
        """A key structure with a KMS's public key."""
        key = create_string_buffer(_ROOM)
        self._do("wc_InitSakkeKey", key, None, DEFAULT_DEVICE)
        self._do("wc_ImportSakkePublicKey", key, z[1:], c_uint32(256), c_int(1))
        return key

    def encapsulate(self, key: object, ssv: bytes, identity: bytes) -> bytes:
        """RFC 6508 §6.2.1."""
        self._do("wc_SetSakkeIdentity", key, identity, c_uint16(len(identity)))
        hint, out, size = create_string_buffer(ssv, len(ssv)), create_string_buffer(300), c_uint16(300)
        self._do("wc_MakeSakkeEncapsulatedSSV", key, SHA256, hint, c_uint16(len(ssv)), out, byref(size))
        return out.raw[: size.value] + hint.raw

    def receiver(self, identity: bytes, rsk: bytes, z: bytes, *, table: bool = False) -> object:
        """A key structure that decapsulates; with `table` the pairing's lines are computed ahead."""
        key, point, valid = self.sakke_key(z), self._point(), c_int(0)
        self._do("wc_DecodeSakkeRsk", key, rsk[1:], c_uint32(256), point)
        self._do("wc_ValidateSakkeRsk", key, identity, c_uint16(len(identity)), point, byref(valid))
        if not valid.value:
            raise WolfError("the RSK does not belong to this identity and Z")
        lines, size = None, c_uint32(0)
        if table:
            self._lib.wc_GenerateSakkeRskTable(key, point, None, byref(size))  # says how much room it wants
            lines = create_string_buffer(size.value)
            self._do("wc_GenerateSakkeRskTable", key, point, lines, byref(size))
        self._do("wc_SetSakkeRsk", key, point, lines, size)
        self._do("wc_SetSakkeIdentity", key, identity, c_uint16(len(identity)))
        key.lines = lines  # type: ignore[attr-defined]
        return key

    def decapsulate(self, receiver: object, sed: bytes) -> bytes:
        """RFC 6508 §6.2.2. Raises `WolfError` when its test fails."""
        out = create_string_buffer(sed[257:], len(sed) - 257)
        self._do("wc_DeriveSakkeSSV", receiver, SHA256, out, c_uint16(len(sed) - 257), sed[:257], c_uint16(257))
        return out.raw
