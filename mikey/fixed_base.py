# SPDX-License-Identifier: Apache-2.0
"""Tables of multiples of a point, and of powers of g, for bases that are used again and again.

A scalar is cut into signed digits; what stands for each digit is looked up, and the sum or product of them all is
taken in a balanced tree. There are no doublings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from sys import getsizeof
from typing import Generic, Protocol, TypeVar

from gmpy2 import invert, mpz

from mikey.errors import InvalidKey
from mikey.field import (
    Affine,
    L,
    P,
    Point,
    add_pairs,
    batch_invert,
    double_all,
    double_jacobian,
    encode_point,
    multiply,
    total,
    wnaf,
)

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

_E = TypeVar("_E")


class _Table(Generic[_E]):
    """A row for each digit, in it an entry for each of its values.

    Until it was asked `patience` times there is none, so that a program that seals once does not pay for a table it
    never uses. `build` makes it at once. With `kept` it is taken from the shelf, and put there when built: then
    it is read entry by entry as needed, which costs a few milliseconds in all. For public bases only.
    """

    _form: str
    _numbers: int
    """Field elements of an entry."""

    def __init__(self, base: bytes, windows: int, patience: int, kept: bool) -> None:
        self.patience = patience
        self._base_octets = base
        self._windows = windows
        self._kept = kept
        self._sought = False
        self._rows: list[list[_E | None]] | None = None
        self._octets = b""

    def _compute(self) -> list[list[_E]]:
        raise NotImplementedError

    def _numbers_of(self, entry: _E) -> tuple[mpz, ...]:
        raise NotImplementedError

    def _entry_of(self, numbers: tuple[mpz, ...]) -> _E:
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether the table is there."""
        return self._rows is not None

    @property
    def size(self) -> int:
        """Octets of memory that the table takes."""
        entries = [e for row in self._rows or () for e in row if e is not None]
        numbers = sum(getsizeof(n) for e in entries for n in self._numbers_of(e))
        pairs = sum(getsizeof(e) for e in entries) if self._numbers > 1 else 0
        return numbers + pairs + sum(getsizeof(row) for row in self._rows or ()) + len(self._octets)

    @property
    def name(self) -> str:
        """Of the table on the shelf: a hash over its form and its base."""
        form = f"{self._form} {WINDOW} {self._windows} ".encode()
        return hashlib.sha256(form + self._base_octets).hexdigest()[:40]

    @property
    def _length(self) -> int:
        return self._windows * _HALF * self._numbers * L

    def asked(self) -> bool:
        """Count one use; fetch or build when patience is over. Whether the table is there."""
        if self._rows is None and not self._fetch():
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
        octets = shelf.load(self.name, self._length)
        if octets is None:
            return False
        self.load(octets)
        return True

    def build(self) -> None:
        """Have the table now: from the shelf, or built and put there."""
        if self._rows is not None or self._fetch():
            return
        self._rows = [list(row) for row in self._compute()]
        if self._kept and shelf is not None:
            shelf.save(self.name, self.dump())

    def dump(self) -> bytes:
        """The table as flat octets, 128 for each number."""
        assert self._rows is not None
        entries = (row[d] or self._entry(i, d + 1) for i, row in enumerate(self._rows) for d in range(_HALF))
        return b"".join(int(n).to_bytes(L, "big") for entry in entries for n in self._numbers_of(entry))

    def load(self, octets: bytes) -> None:
        """Take a table from `dump`. Raises `InvalidKey` unless it begins with this base and has its length."""
        if len(octets) != self._length or octets[: self._numbers * L] != self._base_octets:
            raise InvalidKey("not the table of this base")
        self._octets = octets
        self._rows = [[None] * _HALF for _ in range(self._windows)]

    def _entry(self, number: int, d: int) -> _E:
        """What stands for the digit d in a row, out of the octets of the table."""
        assert self._rows is not None
        at = (number * _HALF + d - 1) * self._numbers * L
        starts = range(at, at + self._numbers * L, L)
        entry = self._entry_of(tuple(mpz.from_bytes(self._octets[start : start + L]) for start in starts))
        self._rows[number][d - 1] = entry
        return entry


class FixedBase(_Table[Affine]):
    """Multiples of one point: [d * 128**i]B for d = 1..64, about 4 MB, some 50 ms to build."""

    _form, _numbers = "multiples", 2

    def __init__(self, base: Affine, *, patience: int = 6, bits: int = 1022, kept: bool = False) -> None:
        super().__init__(encode_point(base)[1:], min(_WINDOWS, bits // WINDOW + 1), patience, kept)
        self.base = base

    def _numbers_of(self, entry: Affine) -> tuple[mpz, ...]:
        return entry

    def _entry_of(self, numbers: tuple[mpz, ...]) -> Affine:
        return numbers[0], numbers[1]

    def multiply(self, k: mpz) -> Point:
        """[k]B for 0 <= k < q."""
        return total(self.points(int(k))) if self.asked() else multiply((k, self.base))

    def points(self, k: int) -> list[Affine]:
        """Table points that sum to [k]B, 0 <= k < q. The table must be ready."""
        assert self._rows is not None
        out: list[Affine] = []
        for number, (row, d) in enumerate(zip(self._rows, signed_digits(k), strict=False)):
            if d > 0:
                out.append(row[d - 1] or self._entry(number, d))
            elif d < 0:
                x, y = row[-d - 1] or self._entry(number, -d)
                out.append((x, P - y))
        return out

    def _compute(self) -> list[list[Affine]]:
        first: list[Affine] = []
        step = (self.base[0], self.base[1], mpz(1))
        chain = []
        for i in range(self._windows):
            if i:
                for _ in range(WINDOW):
                    step = double_jacobian(*step)
            chain.append(step)
        inverses = batch_invert([c[2] for c in chain])
        for (x, y, _), inverse in zip(chain, inverses, strict=True):
            square = inverse * inverse % P
            first.append((x * square % P, y * square * inverse % P))
        rows: list[list[Affine]] = [[b] for b in first]
        doubled = double_all(first)
        for row, d in zip(rows, doubled, strict=True):
            row.append(d)
        known = 2
        while known < _HALF:  # from 1..known to known+1..2*known by adding [known]B
            more = min(known, _HALF - known)
            left = [row[j] for row in rows for j in range(more - (more == known))]
            right = [row[known - 1] for row in rows for _ in range(more - (more == known))]
            sums = add_pairs(left, right)
            tops = double_all([row[known - 1] for row in rows]) if more == known else []
            each = more - (more == known)
            for i, row in enumerate(rows):
                row.extend(sums[i * each : (i + 1) * each])
                if tops:
                    row.append(tops[i])
            known += more
        # a remainder keeps the room of what it was taken from: copies of all are two thirds of it
        return [[(x + 0, y + 0) for x, y in row] for row in rows]


def sum_of(terms: Sequence[tuple[mpz, FixedBase]]) -> Point:
    """Sum of [k]B over fixed bases; one tree when all tables are there."""
    ready = [base.asked() for _, base in terms]
    if all(ready):
        return total([p for k, base in terms for p in base.points(int(k))])
    return multiply(*((k, base.base) for k, base in terms))


# -- PF_p: classes of F_p[i]* modulo F_p* -------------------------------------------------------------------


class TangentTable(_Table[mpz]):
    """Powers of g: the tangent t = b/a of g**(d * 128**i) for d = 1..64; negative digits are -t.

    A class a + bi is carried as 1 + ti, so a product of two costs one multiplication.
    """

    _form, _numbers = "powers", 1

    def __init__(self, tangent: mpz, *, patience: int = 6, kept: bool = False) -> None:
        super().__init__(int(tangent).to_bytes(L, "big"), _WINDOWS, patience, kept)
        self.tangent = tangent

    def _numbers_of(self, entry: mpz) -> tuple[mpz, ...]:
        return (entry,)

    def _entry_of(self, numbers: tuple[mpz, ...]) -> mpz:
        return numbers[0]

    def _compute(self) -> list[list[mpz]]:
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
        return [[t + 0 for t in row] for row in rows]

    def power(self, k: mpz) -> mpz:
        """The representative of g**k in PF_p, 0 <= k < q (RFC 6508 §2.1)."""
        if not self.asked():
            return self._power_without_table(k)
        assert self._rows is not None
        tangents = []
        for number, (row, d) in enumerate(zip(self._rows, signed_digits(int(k)), strict=True)):
            if d > 0:
                tangents.append(row[d - 1] or self._entry(number, d))
            elif d < 0:
                tangents.append(P - (row[-d - 1] or self._entry(number, -d)))
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


def _multiply_complex(u: tuple[mpz, mpz], v: tuple[mpz, mpz]) -> tuple[mpz, mpz]:
    return (u[0] * v[0] - u[1] * v[1]) % P, (u[0] * v[1] + u[1] * v[0]) % P
