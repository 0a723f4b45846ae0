# SPDX-License-Identifier: Apache-2.0
"""SAKKE parameter set 1 (RFC 6509 appendix A): F_p, the curve E: y^2 = x^3 - 3x, fixed-base tables.

p has 1024 bits, p = 4q - 1 and p = 3 mod 4, so that -1 is no square and E is supersingular with p + 1 points.
Points are pairs of `mpz`, None is the point at infinity. Arithmetic is gmpy2's and not constant time.

Additions of many points are affine, pairwise, one inversion per level (Montgomery's trick): inversion costs
no more than 16 products here, so 6 products an addition beat the 11 of mixed Jacobian coordinates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from sys import getsizeof
from typing import Protocol

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


def _double_jacobian(x: mpz, y: mpz, z: mpz) -> tuple[mpz, mpz, mpz]:
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
        return _double_jacobian(x1, y1, z1) if not r else (mpz(1), mpz(1), mpz(0))
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
            x, y, z = _double_jacobian(x, y, z)
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


# -- with tables --------------------------------------------------------------------------------------------

WINDOW = 7
"""Bits of a digit: one more saves one addition in eight and doubles the memory."""
_WINDOWS = 1023 // WINDOW + 1
_HALF = 1 << (WINDOW - 1)
_MASK = (1 << WINDOW) - 1


def signed_digits(k: int) -> list[int]:
    """k = sum of d_i * 2**(WINDOW i) with |d_i| <= 2**(WINDOW - 1), for 0 <= k < 2**1023."""
    out, carry, rest = [], 0, int(k)
    for _ in range(_WINDOWS):
        d = (rest & _MASK) + carry
        rest >>= WINDOW
        carry = d > _HALF
        out.append(d - _MASK - 1 if carry else d)
    return out


class Shelf(Protocol):
    """Where tables of public points are kept between runs; see `mikey.tables`."""

    def load(self, name: str, length: int) -> bytes | None:
        """The octets kept under a name, if they are whole and of this length."""

    def save(self, name: str, octets: bytes) -> None:
        """Keep octets under a name."""


shelf: Shelf | None = None
"""None: tables end with the process."""


class FixedBase:
    """Multiples of one point: [d * 128**i]B for d = 1..64, about 4.5 MB, some 40 ms to build.

    Until it was asked `patience` times it multiplies without a table, so that a program that seals once does
    not pay for a table it never uses. `build` makes the table at once. With `kept` it is taken from the shelf, and put
    there when built: then it is read point by point as needed, which costs a few milliseconds. For public points only.
    """

    def __init__(self, base: Affine, *, patience: int = 6, bits: int = 1022, kept: bool = False) -> None:
        self.base = base
        self.patience = patience
        self._rows: list[list[Affine | None]] | None = None
        self._octets = b""
        self._windows = min(_WINDOWS, bits // WINDOW + 1)
        self._kept = kept
        self._sought = False

    @property
    def ready(self) -> bool:
        """Whether the table is there."""
        return self._rows is not None

    @property
    def size(self) -> int:
        """Octets of memory that the table takes."""
        points = [p for row in self._rows or () for p in row if p is not None]
        numbers = sum(getsizeof(p) + getsizeof(p[0]) + getsizeof(p[1]) for p in points)
        return numbers + sum(getsizeof(row) for row in self._rows or ()) + len(self._octets)

    @property
    def name(self) -> str:
        """Of the table on the shelf: a hash over its form and its base."""
        form = f"multiples {WINDOW} {self._windows} ".encode()
        return hashlib.sha256(form + encode_point(self.base)).hexdigest()[:40]

    def asked(self) -> bool:
        """Count one use; fetch or build when patience is over. Whether the table is there."""
        if self._rows is None:
            if self._fetch():
                return True
            self.patience -= 1
            if self.patience >= 0:
                return False
            self.build()
        return True

    def _fetch(self) -> bool:
        """Take the table from the shelf, where it is looked for once."""
        if not self._kept or self._sought or shelf is None:
            return False
        self._sought = True
        octets = shelf.load(self.name, self._windows * _HALF * 2 * L)
        if octets is None:
            return False
        self.load(octets)
        return True

    def build(self) -> None:
        """Have the table now: from the shelf, or built and put there."""
        if self._rows is not None or self._fetch():
            return
        self._build()
        if self._kept and shelf is not None:
            shelf.save(self.name, self.dump())

    def _build(self) -> None:
        first: list[Affine] = []
        step = (self.base[0], self.base[1], mpz(1))
        chain = []
        for i in range(self._windows):
            if i:
                for _ in range(WINDOW):
                    step = _double_jacobian(*step)
            chain.append(step)
        inverses = batch_invert([c[2] for c in chain])
        for (x, y, _), inverse in zip(chain, inverses, strict=True):
            square = inverse * inverse % P
            first.append((x * square % P, y * square * inverse % P))
        rows: list[list[Affine]] = [[b] for b in first]
        doubled = _double_all(first)
        for row, d in zip(rows, doubled, strict=True):
            row.append(d)
        known = 2
        while known < _HALF:  # from 1..known to known+1..2*known by adding [known]B
            more = min(known, _HALF - known)
            left = [row[j] for row in rows for j in range(more - (more == known))]
            right = [row[known - 1] for row in rows for _ in range(more - (more == known))]
            sums = add_pairs(left, right)
            tops = _double_all([row[known - 1] for row in rows]) if more == known else []
            each = more - (more == known)
            for i, row in enumerate(rows):
                row.extend(sums[i * each : (i + 1) * each])
                if tops:
                    row.append(tops[i])
            known += more
        # a remainder keeps the room of what it was taken from: copies of all are two thirds of it
        self._rows = [[(x + 0, y + 0) for x, y in row] for row in rows]

    def points(self, k: int) -> list[Affine]:
        """Table points that sum to [k]B, 0 <= k < q. The table must be ready."""
        assert self._rows is not None
        out: list[Affine] = []
        for number, (row, d) in enumerate(zip(self._rows, signed_digits(k), strict=False)):
            if d > 0:
                out.append(row[d - 1] or self._point(number, d))
            elif d < 0:
                x, y = row[-d - 1] or self._point(number, -d)
                out.append((x, P - y))
        return out

    def _point(self, number: int, d: int) -> Affine:
        """[d * 128**number]B out of the octets of the table."""
        assert self._rows is not None
        at = (number * _HALF + d - 1) * 2 * L
        point = mpz.from_bytes(self._octets[at : at + L]), mpz.from_bytes(self._octets[at + L : at + 2 * L])
        self._rows[number][d - 1] = point
        return point

    def multiply(self, k: mpz) -> Point:
        """[k]B for 0 <= k < q."""
        return total(self.points(int(k))) if self.asked() else multiply((k, self.base))

    def dump(self) -> bytes:
        """The table as flat octets, x and y of 128 octets each."""
        assert self._rows is not None
        points = (row[d] or self._point(i, d + 1) for i, row in enumerate(self._rows) for d in range(_HALF))
        return b"".join(int(c).to_bytes(L, "big") for point in points for c in point)

    def load(self, octets: bytes) -> None:
        """Take a table from `dump`, point by point when needed.

        Raises `InvalidKey` unless it begins with this base and has its length.
        """
        if len(octets) != self._windows * _HALF * 2 * L or octets[: 2 * L] != encode_point(self.base)[1:]:
            raise InvalidKey("not the table of this point")
        self._octets = octets
        self._rows = [[None] * _HALF for _ in range(self._windows)]


def _double_all(points: Sequence[Affine]) -> list[Affine]:
    inverses = batch_invert([2 * y for _, y in points])
    out = []
    for (x1, y1), inverse in zip(points, inverses, strict=True):
        slope = 3 * (x1 * x1 - 1) * inverse % P
        x = (slope * slope - 2 * x1) % P
        out.append((x, (slope * (x1 - x) - y1) % P))
    return out


def sum_of(terms: Sequence[tuple[mpz, FixedBase]]) -> Point:
    """Sum of [k]B over fixed bases; one tree when all tables are there."""
    ready = [base.asked() for _, base in terms]
    if all(ready):
        return total([p for k, base in terms for p in base.points(int(k))])
    return multiply(*((k, base.base) for k, base in terms))


# -- PF_p: classes of F_p[i]* modulo F_p* -------------------------------------------------------------------


class TangentTable:
    """Powers of g: the tangent t = b/a of g**(d * 128**i) for d = 1..64; negative digits are -t.

    A class a + bi is carried as 1 + ti, so a product of two costs one multiplication.
    """

    def __init__(self, tangent: mpz, *, patience: int = 6, kept: bool = False) -> None:
        self.tangent = tangent
        self.patience = patience
        self._rows: list[list[mpz | None]] | None = None
        self._octets = b""
        self._kept = kept
        self._sought = False

    @property
    def ready(self) -> bool:
        """Whether the table is there."""
        return self._rows is not None

    @property
    def size(self) -> int:
        """Octets of memory that the table takes."""
        numbers = sum(getsizeof(t) for row in self._rows or () for t in row if t is not None)
        return numbers + sum(getsizeof(row) for row in self._rows or ()) + len(self._octets)

    @property
    def name(self) -> str:
        """Of the table on the shelf."""
        form = f"powers {WINDOW} {_WINDOWS} ".encode()
        return hashlib.sha256(form + int(self.tangent).to_bytes(L, "big")).hexdigest()[:40]

    def _fetch(self) -> bool:
        """Take the table from the shelf, where it is looked for once."""
        if not self._kept or self._sought or shelf is None:
            return False
        self._sought = True
        octets = shelf.load(self.name, _WINDOWS * _HALF * L)
        if octets is None:
            return False
        self.load(octets)
        return True

    def build(self) -> None:
        """Have the table now: from the shelf, or built and put there."""
        if self._rows is not None or self._fetch():
            return
        self._build()
        if self._kept and shelf is not None:
            shelf.save(self.name, self.dump())

    def _build(self) -> None:
        a, b = mpz(1), self.tangent
        chain = []
        for i in range(_WINDOWS):
            if i:
                for _ in range(WINDOW):
                    a, b = (a + b) * (a - b) % P, 2 * a * b % P
            chain.append((a, b))
        inverses = batch_invert([c[0] for c in chain])
        first = [b * inverse % P for (_, b), inverse in zip(chain, inverses, strict=True)]
        rows: list[list[mpz]] = [[t] for t in first]
        known = 1
        while known < _HALF:
            numerators = [row[j] + row[known - 1] for row in rows for j in range(known)]
            denominators = [1 - row[j] * row[known - 1] for row in rows for j in range(known)]
            inverses = batch_invert([d % P for d in denominators])
            new = [n * i % P for n, i in zip(numerators, inverses, strict=True)]
            for i, row in enumerate(rows):
                row.extend(new[i * known : (i + 1) * known])
            known *= 2
        self._rows = [[t + 0 for t in row] for row in rows]

    def power(self, k: mpz) -> mpz:
        """The representative of g**k in PF_p, 0 <= k < q (RFC 6508 §2.1)."""
        if self._rows is None and not self._fetch():
            self.patience -= 1
            if self.patience >= 0:
                return self._power_without_table(k)
            self.build()
        assert self._rows is not None
        tangents = []
        for number, (row, d) in enumerate(zip(self._rows, signed_digits(int(k)), strict=True)):
            if d > 0:
                tangents.append(row[d - 1] or self._tangent(number, d))
            elif d < 0:
                tangents.append(P - (row[-d - 1] or self._tangent(number, -d)))
        level = [(1 - s * t % P, s + t) for s, t in zip(tangents[0::2], tangents[1::2], strict=False)]
        if len(tangents) % 2:
            level.append((mpz(1), tangents[-1]))
        while len(level) > 1:
            following = []
            for (a, b), (c, d2) in zip(level[0::2], level[1::2], strict=False):
                ac, bd = a * c, b * d2
                following.append(((ac - bd) % P, ((a + b) * (c + d2) - ac - bd) % P))
            if len(level) % 2:
                following.append(level[-1])
            level = following
        a, b = level[0] if level else (mpz(1), mpz(0))
        return b * invert(a, P) % P

    def _power_without_table(self, k: mpz) -> mpz:
        odd = [(mpz(1), self.tangent)]
        square = ((1 + self.tangent) * (1 - self.tangent) % P, 2 * self.tangent % P)
        for _ in range(7):
            odd.append(_multiply_complex(odd[-1], square))
        a, b = mpz(1), mpz(0)
        for d in reversed(wnaf(k, 5)):
            a, b = (a + b) * (a - b) % P, 2 * a * b % P
            if d > 0:
                a, b = _multiply_complex((a, b), odd[d >> 1])
            elif d < 0:
                c, e = odd[-d >> 1]
                a, b = _multiply_complex((a, b), (c, -e))
        return b * invert(a, P) % P

    def dump(self) -> bytes:
        """The table as flat octets of 128 each."""
        assert self._rows is not None
        all_of_them = (row[d] or self._tangent(i, d + 1) for i, row in enumerate(self._rows) for d in range(_HALF))
        return b"".join(int(t).to_bytes(L, "big") for t in all_of_them)

    def _tangent(self, number: int, d: int) -> mpz:
        """The tangent of g**(d * 128**number) out of the octets of the table."""
        assert self._rows is not None
        at = (number * _HALF + d - 1) * L
        tangent = mpz.from_bytes(self._octets[at : at + L])
        self._rows[number][d - 1] = tangent
        return tangent

    def load(self, octets: bytes) -> None:
        """Take a table from `dump`, piece by piece when needed. Raises `InvalidKey` unless it is of this tangent."""
        if len(octets) != _WINDOWS * _HALF * L or octets[:L] != int(self.tangent).to_bytes(L, "big"):
            raise InvalidKey("not the table of this element")
        self._octets = octets
        self._rows = [[None] * _HALF for _ in range(_WINDOWS)]


def _multiply_complex(u: tuple[mpz, mpz], v: tuple[mpz, mpz]) -> tuple[mpz, mpz]:
    return (u[0] * v[0] - u[1] * v[1]) % P, (u[0] * v[1] + u[1] * v[0]) % P
