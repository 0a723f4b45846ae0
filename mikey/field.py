# SPDX-License-Identifier: Apache-2.0
"""SAKKE parameter set 1 (RFC 6509 appendix A): F_p and the curve E: y^2 = x^3 - 3x.

p has 1024 bits, p = 4q - 1 and p = 3 mod 4, so that -1 is no square and E is supersingular with p + 1 points.
Points are pairs of `mpz`, None is the point at infinity. Arithmetic is gmpy2's and not constant time.

Additions of many points are affine, pairwise, one inversion per level (Montgomery's trick): inversion costs
no more than 16 products here, so 6 products an addition beat the 11 of mixed Jacobian coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

from gmpy2 import invert, mpz

from mikey.errors import InvalidKey

L = 128
"""Octets of a field element."""

P = mpz(
    "0x997abb1f0a563fda65c61198dad0657a416c0ce19cb48261be9ae358b3e01a2e"
    "f40aab27e2fc0f1b228730d531a59cb0e791b39ff7c88a19356d27f4a666a6d0"
    "e26c6487326b4cd4512ac5cd65681ce1b6aff4a831852a82a7cf3c521c3c09aa"
    "9f94d6af56971f1ffce3e82389857db080c5df10ac7ace87666d807afea85feb"
)
Q = (P + 1) // 4
G = (
    mpz(
        "0x53fc09ee332c29ad0a7990053ed9b52a2b1a2fd60aec69c698b2f204b6ff7cbf"
        "b5edb6c0f6ce2308ab10db9030b09e1043d5f22cdb9dfa55718bd9e7406ce890"
        "9760af765dd5bccb337c86548b72f2e1a702c3397a60de74a7c1514dba66910d"
        "d5cfb4cc80728d87ee9163a5b63f73ec80ec46c4967e0979880dc8abeae63895"
    ),
    mpz(
        "0x0a8249063f6009f1f9f1f0533634a135d3e82016029906963d778d821e141178"
        "f5ea69f4654ec2b9e7f7f5e5f0de55f66b598ccf9a140b2e416cff0ca9e032b9"
        "70dae117ad547c6ccad696b5b7652fe0ac6f1e80164aa989492d979fc5a4d5f2"
        "13515ad7e9cb99a980bdad5ad5bb4636adb9b5706a67dcde75573fd71bef16d7"
    ),
)
"""The base point P of RFC 6509, of order q."""
G_PAIRED = mpz(
    "0x66fc2a432b6ea392148f15867d623068c6a87bd1fb94c41e27fabe658e015a87"
    "371e94744c96feda449ae9563f8bc446cbfda85d5d00ef577072da8f541721be"
    "ee0faed1828eab90b99dfb0138c7843355df0460b4a9fd74b4f1a32bcafa1ffa"
    "d682c033a7942bcce3720f20b9b7b0403c8cae87b7a0042acde0fab36461ea46"
)
"""g = <P,P>, the representative of its class in PF_p."""

Affine = tuple[mpz, mpz]
Point = Affine | None


def on_curve(x: mpz, y: mpz) -> bool:
    """Whether (x, y) with 0 <= x, y < p satisfies y^2 = x^3 - 3x."""
    return bool(0 <= x < P and 0 <= y < P and (y * y - x * (x * x - 3)) % P == 0)


def decode_point(octets: bytes) -> Affine:
    """A point of 04 || x(128) || y(128), on the curve and not of order 2 (y = 0). Raises `InvalidKey`."""
    if len(octets) != 1 + 2 * L or octets[0] != 4:
        raise InvalidKey("a point of parameter set 1 is 04 and 256 octets")
    x = mpz(int.from_bytes(octets[1 : 1 + L], "big"))
    y = mpz(int.from_bytes(octets[1 + L :], "big"))
    if not y or not on_curve(x, y):
        raise InvalidKey("not a point of the curve")
    return x, y


def encode_point(point: Affine) -> bytes:
    """04 || x(128) || y(128)."""
    return b"\x04" + int(point[0]).to_bytes(L, "big") + int(point[1]).to_bytes(L, "big")


def add(a: Point, b: Point) -> Point:
    """Complete affine addition."""
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


def negate(a: Point) -> Point:
    """-A."""
    return None if a is None else (a[0], P - a[1])


def batch_invert(values: Sequence[mpz]) -> list[mpz]:
    """Inverses modulo p with one inversion. ZeroDivisionError if one is 0."""
    prefix, total = [], mpz(1)
    for v in values:
        prefix.append(total)
        total = total * v % P
    inverse = invert(total, P)
    out = [mpz(0)] * len(values)
    for i in range(len(values) - 1, -1, -1):
        out[i] = inverse * prefix[i] % P
        inverse = inverse * values[i] % P
    return out


def add_pairs(left: Sequence[Affine], right: Sequence[Affine]) -> list[Affine]:
    """left[i] + right[i] for all i with one inversion. ZeroDivisionError when two have the same x."""
    prefix, total, differences = [], mpz(1), []
    for (x1, _), (x2, _) in zip(left, right, strict=True):
        d = x2 - x1
        prefix.append(total)
        differences.append(d)
        total = total * d % P
    inverse = invert(total, P)
    out: list[Affine] = []
    for i in range(len(left) - 1, -1, -1):
        x1, y1 = left[i]
        x2, y2 = right[i]
        slope = (y2 - y1) * (inverse * prefix[i] % P) % P
        inverse = inverse * differences[i] % P
        x = (slope * slope - x1 - x2) % P
        out.append((x, (slope * (x1 - x) - y1) % P))
    out.reverse()
    return out


def total(points: Sequence[Affine]) -> Point:
    """Sum of points by a balanced tree, one inversion a level; the complete addition where x are equal."""
    level = list(points)
    if not level:
        return None
    while len(level) > 1:
        half = len(level) // 2
        rest = level[2 * half :]
        try:
            level = add_pairs(level[:half], level[half : 2 * half]) + rest
        except ZeroDivisionError:
            out: Point = None
            for point in level:
                out = add(out, point)
            return out
    return level[0]


# -- without tables -----------------------------------------------------------------------------------------


def double_jacobian(x: mpz, y: mpz, z: mpz) -> tuple[mpz, mpz, mpz]:
    """[2]A in Jacobian coordinates."""
    zz = z * z % P
    yy = y * y % P
    s = 4 * x * yy % P
    m = 3 * (x - zz) * (x + zz) % P  # a = -3
    x3 = (m * m - 2 * s) % P
    return x3, (m * (s - x3) - 8 * yy * yy) % P, 2 * y * z % P


def _add_mixed(x1: mpz, y1: mpz, z1: mpz, x2: mpz, y2: mpz) -> tuple[mpz, mpz, mpz]:
    if not z1:
        return x2, y2, mpz(1)
    zz = z1 * z1 % P
    h = (x2 * zz - x1) % P
    r = (y2 * zz * z1 - y1) % P
    if not h:
        return double_jacobian(x1, y1, z1) if not r else (mpz(1), mpz(1), mpz(0))
    hh = h * h % P
    hhh = h * hh % P
    v = x1 * hh % P
    x3 = (r * r - hhh - 2 * v) % P
    return x3, (r * (v - x3) - y1 * hhh) % P, z1 * h % P


def wnaf(k: mpz, width: int) -> list[int]:
    """Non-adjacent form with odd digits below 2**(width-1), least significant first."""
    out, full, half = [], 1 << width, 1 << (width - 1)
    n = int(k)
    while n:
        if n & 1:
            d = n & (full - 1)
            if d >= half:
                d -= full
            n -= d
            out.append(d)
        else:
            out.append(0)
        n >>= 1
    return out


def multiply(*terms: tuple[mpz, Affine]) -> Point:
    """Sum of [k]A over the terms, 0 <= k, sharing the doublings (interleaved wNAF-5), without tables."""
    work: list[tuple[list[int], list[Affine]]] = []
    for k, point in terms:
        if not k:
            continue
        twice = add(point, point)
        if twice is None:
            raise InvalidKey("a point of order 2")
        odd: list[Affine] = [point]
        for _ in range(7):
            following = add(odd[-1], twice)
            if following is None:
                raise InvalidKey("a point of small order")
            odd.append(following)
        work.append((wnaf(k, 5), odd))
    x, y, z = mpz(1), mpz(1), mpz(0)
    for i in range(max((len(d) for d, _ in work), default=0) - 1, -1, -1):
        if z:
            x, y, z = double_jacobian(x, y, z)
        for digits, odd in work:
            d = digits[i] if i < len(digits) else 0
            if d > 0:
                x, y, z = _add_mixed(x, y, z, *odd[d >> 1])
            elif d < 0:
                ax, ay = odd[-d >> 1]
                x, y, z = _add_mixed(x, y, z, ax, P - ay)
    if not z:
        return None
    inverse = invert(z, P)
    square = inverse * inverse % P
    return x * square % P, y * square * inverse % P


def double_all(points: Sequence[Affine]) -> list[Affine]:
    """[2]A for each of the points, none of order 2, with one inversion."""
    inverses = batch_invert([2 * y for _, y in points])
    out = []
    for (x1, y1), inverse in zip(points, inverses, strict=True):
        slope = 3 * (x1 * x1 - 1) * inverse % P
        x = (slope * slope - 2 * x1) % P
        out.append((x, (slope * (x1 - x) - y1) % P))
    return out
