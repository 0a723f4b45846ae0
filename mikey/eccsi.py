# SPDX-License-Identifier: Apache-2.0
"""ECCSI (RFC 6507) over P-256 with SHA-256, on OpenSSL.

An ECCSI signature (r, s) over M by an identity is an ECDSA signature (r, 1/s) over the digest HE under the
key Y = KPAK + [HS]PVT, which is also [SSK]G. So OpenSSL's P-256 does the work: its key generation gives the
nonce j with J, its ECDSA verifies. Y is kept per signer, but only after a signature of his has held. Where
the two differ (n <= r < p, about 2**-128) the literal equation decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from gmpy2 import invert, mpz

from mikey.errors import BadSignature, InvalidKey, MikeyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

N = 32
"""Octets of a field element and of the hash."""
SIGNATURE_OCTETS = 129
"""r || s || PVT."""

P = mpz(2) ** 256 - mpz(2) ** 224 + mpz(2) ** 192 + mpz(2) ** 96 - 1
ORDER = mpz("0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")
B = mpz("0x5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b")
_GX = mpz("0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")
_GY = mpz("0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")

Affine = tuple[mpz, mpz]
Point = Affine | None

MAX_SIGNERS = 4096
"""Signers whose Y is kept, least recently used first out (about 1 kB each)."""


def _encode(point: Affine) -> bytes:
    return b"\x04" + int(point[0]).to_bytes(N, "big") + int(point[1]).to_bytes(N, "big")


_G_OCTETS = _encode((_GX, _GY))


def _decode(octets: bytes) -> Affine:
    if len(octets) != 1 + 2 * N or octets[0] != 4:
        raise InvalidKey("a point of P-256 is 04 and 64 octets")
    x, y = mpz(int.from_bytes(octets[1 : 1 + N], "big")), mpz(int.from_bytes(octets[1 + N :], "big"))
    if x >= P or y >= P or (y * y - x * (x * x - 3) - B) % P:
        raise InvalidKey("not a point of P-256")
    return x, y


def _add(a: Point, b: Point) -> Point:
    if a is None:
        return b
    if b is None:
        return a
    (x1, y1), (x2, y2) = a, b
    if x1 == x2:
        if (y1 + y2) % P == 0:
            return None
        slope = 3 * (x1 * x1 - 1) * invert(2 * y1, P) % P
    else:
        slope = (y2 - y1) * invert(x2 - x1, P) % P
    x = (slope * slope - x1 - x2) % P
    return x, (slope * (x1 - x) - y1) % P


def _multiply_literally(k: mpz, point: Point) -> Point:
    """[k]A by double and add; only for edge cases and as a second opinion in tests."""
    out: Point = None
    for bit in bin(int(k))[2:]:
        out = _add(out, out)
        if bit == "1":
            out = _add(out, point)
    return out


class _OpenSsl(NamedTuple):
    """What this module needs of `cryptography`, loaded when first used."""

    ec: ModuleType
    curve: ec.EllipticCurve
    ecdh: ec.ECDH
    ecdsa: ec.ECDSA
    encode_dss_signature: Callable[[int, int], bytes]
    InvalidSignature: type[Exception]


@cache
def _openssl() -> _OpenSsl:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    ecdsa = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    return _OpenSsl(ec, ec.SECP256R1(), ec.ECDH(), ecdsa, utils.encode_dss_signature, InvalidSignature)


def _derived(k: int) -> ec.EllipticCurvePrivateKey:
    ssl = _openssl()
    key: ec.EllipticCurvePrivateKey = ssl.ec.derive_private_key(k, ssl.curve)
    return key


def _base_multiply(k: mpz) -> Affine:
    """[k]G for 0 < k < n, by OpenSSL."""
    numbers = _derived(int(k)).public_key().public_numbers()
    return mpz(numbers.x), mpz(numbers.y)


def _multiply(k: mpz, point: Affine) -> Point:
    """[k]A by two x-only products of OpenSSL: the x of [k]A and of [k](A + G) = [k]A + [k]G fix y.

    From the chord through [k]A = (x0, y0) and [k]G = (x, y), whose third point is (x1, ..):
    (y0 - y)^2 = (x1 + x0 + x)(x0 - x)^2, where y0^2 follows from the curve, so
    y0 = (y0^2 + y^2 - (x1 + x0 + x)(x0 - x)^2) / 2y.
    """
    k %= ORDER
    if k < 2 or k > ORDER - 3 or point[0] == _GX:
        return _multiply_literally(k, point)
    beside = _add(point, (_GX, _GY))
    assert beside is not None  # only -G has no such point
    ecdh, private = _openssl().ecdh, _derived(int(k))
    numbers = private.public_key().public_numbers()
    x, y = mpz(numbers.x), mpz(numbers.y)
    x0 = mpz(int.from_bytes(private.exchange(ecdh, _public(point)), "big"))
    x1 = mpz(int.from_bytes(private.exchange(ecdh, _public(beside)), "big"))
    square = x0 * (x0 * x0 - 3) + B
    d = x0 - x
    y0 = (square + y * y - (x1 + x0 + x) * d * d) * invert(2 * y, P) % P
    if (y0 * y0 - square) % P:
        return _multiply_literally(k, point)
    return x0, y0


def _public(point: Affine) -> ec.EllipticCurvePublicKey:
    ssl = _openssl()
    key: ec.EllipticCurvePublicKey = ssl.ec.EllipticCurvePublicKey.from_encoded_point(ssl.curve, _encode(point))
    return key


def validate_kpak(kpak: bytes) -> None:
    """Raise `InvalidKey` unless KPAK is a point of P-256."""
    _decode(kpak)


def public_point(ksak: mpz) -> bytes:
    """KPAK = [KSAK]G (RFC 6507 §4.2)."""
    if not 0 < ksak < ORDER:
        raise InvalidKey("KSAK must be in 1..n-1")
    return _encode(_base_multiply(ksak))


def hs(kpak: bytes, identity: bytes, pvt: bytes) -> bytes:
    """HS = SHA-256(G || KPAK || ID || PVT) (RFC 6507 §5.1.1)."""
    return hashlib.sha256(_G_OCTETS + kpak + identity + pvt).digest()


def issue(ksak: mpz, kpak: bytes, identity: bytes, v: mpz) -> tuple[bytes, bytes]:
    """(SSK, PVT) of an identity from the random v in 1..n-1 (RFC 6507 §5.1.1); the KMS forgets v.

    Raises `InvalidKey` for the v that give no key: take another.
    """
    if not 0 < v < ORDER:
        raise InvalidKey("v must be in 1..n-1")
    pvt = _encode(_base_multiply(v))
    h = mpz(int.from_bytes(hs(kpak, identity, pvt), "big"))
    ssk = (ksak + h * v) % ORDER
    if not ssk or not h % ORDER:
        raise InvalidKey("this v gives no key")
    return int(ssk).to_bytes(N, "big"), pvt


def validate_ssk(kpak: bytes, identity: bytes, ssk: bytes, pvt: bytes) -> None:
    """Raise `InvalidKey` unless [SSK]G = KPAK + [HS]PVT (RFC 6507 §5.1.2)."""
    k = mpz(int.from_bytes(ssk, "big"))
    if len(ssk) != N or not 0 < k < ORDER:
        raise InvalidKey("the SSK must be in 1..n-1")
    if _base_multiply(k) != _signer_point(kpak, pvt, hs(kpak, identity, pvt)):
        raise InvalidKey("the SSK does not belong to this identity, PVT and KPAK")


def _signer_point(kpak: bytes, pvt: bytes, h: bytes) -> Point:
    """Y = KPAK + [HS]PVT. Raises `InvalidKey` for points off the curve."""
    return _add(_multiply(mpz(int.from_bytes(h, "big")), _decode(pvt)), _decode(kpak))


def sign(octets: bytes, ssk: bytes, h: bytes, pvt: bytes, *, j: int | None = None) -> bytes:
    """r || s || PVT over `octets` (RFC 6507 §5.2.1). `h` is HS. `j` only for the vectors of the RFC.

    The nonce comes fresh from OpenSSL; the inversion is blinded.
    """
    ssl = _openssl()
    k = mpz(int.from_bytes(ssk, "big"))
    while True:
        if j is None:
            numbers = ssl.ec.generate_private_key(ssl.curve).private_numbers()
            nonce, r = mpz(numbers.private_value), mpz(numbers.public_numbers.x)
        else:
            nonce, r = mpz(j), _base_multiply(mpz(j))[0]
        r_octets = int(r).to_bytes(N, "big")
        he = mpz(int.from_bytes(hashlib.sha256(h + r_octets + octets).digest(), "big"))
        d = (he + r * k) % ORDER
        if d and r:
            break
        if j is not None:
            raise MikeyError("this nonce gives no signature")
    t = mpz(secrets.randbelow(int(ORDER) - 1) + 1)
    s = invert(d * t % ORDER, ORDER) * t % ORDER * nonce % ORDER
    return r_octets + int(s).to_bytes(N, "big") + pvt


class SignerCache:
    """Y per (KPAK, identity, PVT), bounded, entered only after a signature has held (security rule 26)."""

    def __init__(self, size: int = MAX_SIGNERS) -> None:
        self._size = size
        self._keys: OrderedDict[bytes, ec.EllipticCurvePublicKey] = OrderedDict()

    def get(self, h: bytes) -> ec.EllipticCurvePublicKey | None:
        """The key of a signer whose HS is `h` (a hash over KPAK, identity and PVT)."""
        key = self._keys.get(h)
        if key is not None:
            with contextlib.suppress(KeyError):  # another thread has just dropped it
                self._keys.move_to_end(h)
        return key

    def put(self, h: bytes, key: ec.EllipticCurvePublicKey) -> None:
        """Keep it."""
        self._keys[h] = key
        while len(self._keys) > self._size:
            self._keys.popitem(last=False)

    def __len__(self) -> int:
        return len(self._keys)


signers = SignerCache()


def verify(
    octets: bytes, signature: bytes, identity: bytes, kpak: bytes, cache: SignerCache = signers
) -> None:
    """Raise `BadSignature` unless the 129 octets are a signature of the identity (RFC 6507 §5.2.2)."""
    verify_one_of((octets,), signature, identity, kpak, cache)


def verify_one_of(
    texts: Sequence[bytes], signature: bytes, identity: bytes, kpak: bytes, cache: SignerCache = signers
) -> int:
    """Which of the texts the 129 octets are a signature of; the signer's point is computed once for all.

    Raises `BadSignature` when it is none.
    """
    if len(signature) != SIGNATURE_OCTETS:
        raise BadSignature("an ECCSI signature has 129 octets")
    r_octets, pvt = signature[:N], signature[2 * N :]
    r = mpz(int.from_bytes(r_octets, "big"))
    s = mpz(int.from_bytes(signature[N : 2 * N], "big"))
    if not 0 < r < P or not 0 < s < ORDER:
        raise BadSignature("r or s out of range")
    h = hs(kpak, identity, pvt)
    digests = [hashlib.sha256(h + r_octets + text).digest() for text in texts]
    if r >= ORDER:  # ECDSA would refuse what ECCSI allows
        y = _point_of(kpak, pvt, h)
        for number, he in enumerate(digests):
            if _holds_literally(r, s, he, y):
                return number
        raise BadSignature("the ECCSI signature does not hold")
    key = cache.get(h)
    known = key is not None
    if key is None:
        key = _public(_point_of(kpak, pvt, h))
    ssl = _openssl()
    encoded = ssl.encode_dss_signature(int(r), int(invert(s, ORDER)))
    for number, he in enumerate(digests):
        try:
            key.verify(encoded, he, ssl.ecdsa)
        except ssl.InvalidSignature:
            continue
        if not known:
            cache.put(h, key)
        return number
    raise BadSignature("the ECCSI signature does not hold")


def _point_of(kpak: bytes, pvt: bytes, h: bytes) -> Affine:
    try:
        y = _signer_point(kpak, pvt, h)
    except InvalidKey:
        raise BadSignature("the PVT is no point of P-256") from None
    if y is None:
        raise BadSignature("KPAK + [HS]PVT is infinity")
    return y


def _holds_literally(r: mpz, s: mpz, he: bytes, y: Affine) -> bool:
    """J = [s]([HE]G + [r]Y); accept iff J.x = r mod p (RFC 6507 §5.2.2)."""
    sum_point = _add(
        _multiply_literally(mpz(int.from_bytes(he, "big")), (_GX, _GY)), _multiply_literally(r, y)
    )
    point = _multiply_literally(s, sum_point)
    return point is not None and point[0] == r
