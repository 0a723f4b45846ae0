# SPDX-License-Identifier: Apache-2.0
"""SAKKE (RFC 6508) with parameter set 1: encapsulate a key for an identity, decapsulate, issue and check
keys.

Identities are raw octets. A SED is R (257 octets) followed by H (as many octets as the key). Field elements
are hashed and sent as 128 octets, always (RFC 6508 §4); libraries that strip leading zeros are met by the
named switches of `decapsulate`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections import OrderedDict
from functools import cached_property

from gmpy2 import invert, mpz

from mikey.errors import DecapsulationFailed, InvalidKey, MikeyError
from mikey.field import (
    G_PAIRED,
    Affine,
    G,
    L,
    P,
    Q,
    add,
    decode_point,
    encode_point,
)
from mikey.fixed_base import FixedBase, TangentTable, sum_of
from mikey.pairing import LineTable, multiple_is_infinity

POINT_OCTETS = 1 + 2 * L
_PARAMETER_SET_BITS = 128

base_table = FixedBase(G, kept=True)
"""Multiples of P, one per process."""
power_table = TangentTable(G_PAIRED, kept=True)
"""Powers of g, one per process."""

MAX_PUBLIC_TABLES = 8
"""KMSs whose Z keeps a table; the least recently used is dropped (about 6 MB each)."""
_public: OrderedDict[bytes, FixedBase] = OrderedDict()


def public_table(z: bytes) -> FixedBase:
    """The multiples of a KMS public key Z, kept per process. Raises `InvalidKey` for octets off the curve."""
    table = _public.get(z)
    if table is None:
        table = _public[z] = FixedBase(decode_point(z), kept=True)
        while len(_public) > MAX_PUBLIC_TABLES:
            _public.popitem(last=False)
    else:
        with contextlib.suppress(KeyError):  # another thread has just dropped it
            _public.move_to_end(z)
    return table


def precompute(z: bytes | None = None) -> None:
    """Build the tables of P and g, and of Z, now instead of after some uses (about 0.1 s and 70 ms)."""
    base_table.build()
    power_table.build()
    if z is not None:
        public_table(z).build()


def hash_to_range(s: bytes, n: mpz, blocks: int | None = None) -> mpz:
    """HashToIntegerRange(s, n, SHA-256) of RFC 6508 §5.1; `blocks` is its l, ceil(lg(n) / 256) by default."""
    if blocks is None:
        blocks = -(-int(n - 1).bit_length() // 256)
    a = hashlib.sha256(s).digest()
    h, v = bytes(32), b""
    for _ in range(blocks):
        h = hashlib.sha256(h).digest()
        v += hashlib.sha256(h + a).digest()
    return mpz(int.from_bytes(v, "big")) % n


def _mask(w: bytes, octets: int, blocks: int | None = None) -> bytes:
    """HashToIntegerRange(w, 2**n) as n/8 octets."""
    return int(hash_to_range(w, mpz(1) << 8 * octets, blocks)).to_bytes(octets, "big")


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def _scalar(identity: bytes) -> mpz:
    return mpz(int.from_bytes(identity, "big")) % Q


def encapsulate(ssv: bytes, identity: bytes, z: bytes) -> bytes:
    """SED of a key for an identity under the KMS public key Z (RFC 6508 §6.2.1).

    `ssv` has 16 octets, or 32 (outside parameter set 1's own size; its mask has the l = 2 of deployed
    libraries, since the RFC names no set for it). Deterministic: the randomness is the SSV.
    """
    if len(ssv) not in (16, 32):
        raise MikeyError("SAKKE carries keys of 16 or 32 octets")
    r = hash_to_range(ssv + identity, Q)
    if not r:
        raise MikeyError("this key has no encapsulation; draw another")
    point = sum_of(((r * _scalar(identity) % Q, base_table), (r, public_table(z))))
    if point is None:
        raise MikeyError("this key has no encapsulation; draw another")
    w = int(power_table.power(r)).to_bytes(L, "big")
    return encode_point(point) + _xor(ssv, _mask(w, len(ssv), 1 if len(ssv) == 16 else 2))


def validate_public(z: bytes) -> None:
    """Raise `InvalidKey` unless Z is a point of the curve of order q."""
    if not multiple_is_infinity(decode_point(z), Q):
        raise InvalidKey("Z has not the order q")


def public_point(z: mpz) -> bytes:
    """KMS public key Z = [z]P (RFC 6508 §6.1.1)."""
    point = base_table.multiply(z % Q)
    if point is None or not 2 <= z < Q:
        raise InvalidKey("the KMS master secret must be in 2..q-1")
    return encode_point(point)


def issue(z: mpz, identity: bytes, blind: mpz) -> bytes:
    """RSK of an identity: [(a + z)^-1]P (RFC 6508 §6.1.1). `blind` (random, 1..q-1) hides the inversion."""
    s = (_scalar(identity) + z) % Q
    if not s:
        raise InvalidKey("this identity has no key under this master secret")
    point = base_table.multiply(invert(s * blind % Q, Q) * blind % Q)
    assert point is not None
    return encode_point(point)


class ReceiverKey:
    """An RSK made ready: the point checked, the line table and [a]P + Z with its multiples built when
    needed."""

    def __init__(self, rsk: bytes, identity: bytes, z: bytes) -> None:
        """`rsk` 257 octets. Raises `InvalidKey` for octets off the curve."""
        self._k = decode_point(rsk)
        self.identity = identity
        self._z = z

    @cached_property
    def lines(self) -> LineTable:
        """The pairing with the RSK. Secret."""
        return LineTable(self._k)

    @cached_property
    def own_point(self) -> FixedBase:
        """[a]P + Z and, after some uses, its multiples. Public."""
        z = decode_point(self._z)
        point = add(base_table.multiply(_scalar(self.identity)), z)
        if point is None:
            raise InvalidKey("this identity has no key under this KMS")
        return FixedBase(point)

    def validate(self) -> None:
        """Raise `InvalidKey` unless <[a]P + Z, RSK> = g (RFC 6508 §6.1.2)."""
        try:
            value = self.lines.pair(self.own_point.base)
        except ZeroDivisionError:
            raise InvalidKey("the RSK has a small order") from None
        if value != G_PAIRED:
            raise InvalidKey("the RSK does not belong to this identity and KMS")


def decapsulate(
    sed: bytes,
    receiver: ReceiverKey,
    *,
    unpadded_hash: bool = False,
    short_hint: bool = False,
    long_key: bool = False,
) -> tuple[bytes, frozenset[str]]:
    """The key in a SED (RFC 6508 §6.2.2) and which of the switches it took to get it.

    One uniform `DecapsulationFailed` for every cause. The switches: `unpadded_hash` retries with g^r hashed
    without its leading zeros, `short_hint` takes a hint of 15 octets for one with a leading zero, `long_key`
    takes 32-octet keys, masked with l = 2 or l = 1.
    """
    used: set[str] = set()
    hint = sed[POINT_OCTETS:]
    if len(hint) == 15 and short_hint:
        hint = b"\0" + hint
        used.add("short_hint")
    elif len(hint) == 32 and long_key:
        used.add("long_key")
    elif len(hint) != 16:
        raise DecapsulationFailed("SAKKE: no key")
    try:
        point = decode_point(sed[:POINT_OCTETS])
        w = int(receiver.lines.pair(point)).to_bytes(L, "big")
    except (InvalidKey, ZeroDivisionError):
        raise DecapsulationFailed("SAKKE: no key") from None
    candidates: list[tuple[bytes, int, frozenset[str]]] = []
    for blocks in (2, 1) if len(hint) == 32 else (1,):
        candidates.append((w, blocks, frozenset()))
        if unpadded_hash and not w[0]:
            candidates.append((w.lstrip(b"\0"), blocks, frozenset(("unpadded_hash",))))
    for hashed, blocks, extra in candidates:
        ssv = _xor(hint, _mask(hashed, len(hint), blocks))
        if _test(ssv, receiver, point):
            return ssv, frozenset(used | extra)
    raise DecapsulationFailed("SAKKE: no key")


def _test(ssv: bytes, receiver: ReceiverKey, sent: Affine) -> bool:
    """TEST of RFC 6508 §6.2.2; also the only check that R lies in the subgroup."""
    r = hash_to_range(ssv + receiver.identity, Q)
    point = receiver.own_point.multiply(r) if r else None
    return point is not None and hmac.compare_digest(encode_point(point), encode_point(sent))


__all__ = [
    "MAX_PUBLIC_TABLES",
    "POINT_OCTETS",
    "P",
    "Q",
    "ReceiverKey",
    "base_table",
    "decapsulate",
    "encapsulate",
    "hash_to_range",
    "issue",
    "power_table",
    "precompute",
    "public_point",
    "public_table",
    "validate_public",
]
