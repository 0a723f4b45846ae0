# SPDX-License-Identifier: Apache-2.0
"""The Tate-Lichtenbaum pairing of RFC 6508 §3.2, literally and with one argument fixed.

`pairing` is the RFC's loop. `LineTable` runs it for a long-lived first argument K (the RSK; the pairing is
symmetric on <P>): three doublings and one signed digit are merged into a single function u(x) + y v(x) with
zeros 8(C), d(K), -(8C+dK), made by multiplying tangents and dividing out the vertical lines at every step,
since any factor from F_p vanishes in PF_p. A pairing is then 340 steps of f^8 * value.
"""

from __future__ import annotations

from gmpy2 import invert, mpz

from mikey.errors import InvalidKey
from mikey.field import Affine, P, Point, Q, add, negate

_Polynomial = list[mpz]


def pairing(a: Affine, b: Affine) -> mpz:
    """<A,B> as the representative in PF_p, by the loop of RFC 6508 §3.2. ZeroDivisionError on small
    orders."""
    ax, ay = a
    bx, by = b
    re, im = mpz(1), mpz(0)
    cx, cy = a
    for bit in bin(int(Q - 1))[3:]:
        slope = 3 * (cx * cx - 1) * invert(2 * cy, P) % P
        u, v = (re + im) * (re - im) % P, 2 * re * im % P
        w = (slope * (bx + cx) - cy) % P
        re, im = (u * w - v * by) % P, (u * by + v * w) % P
        x = (slope * slope - 2 * cx) % P
        cx, cy = x, (slope * (cx - x) - cy) % P
        if bit == "1":
            slope = (cy - ay) * invert(cx - ax, P) % P if cx != ax else None
            if slope is None:
                continue  # the last addition meets -A: its line is vertical and lies in F_p
            w = (slope * (bx + cx) - cy) % P
            re, im = (re * w - im * by) % P, (re * by + im * w) % P
            x = (slope * slope - cx - ax) % P
            cx, cy = x, (slope * (cx - x) - cy) % P
    for _ in range(2):
        re, im = (re + im) * (re - im) % P, 2 * re * im % P
    return im * invert(re, P) % P


# -- functions u(x) + y v(x) on the curve -------------------------------------------------------------------


def _poly_multiply(f: _Polynomial, g: _Polynomial) -> _Polynomial:
    if not f or not g:
        return []
    out = [mpz(0)] * (len(f) + len(g) - 1)
    for i, a in enumerate(f):
        for j, b in enumerate(g):
            out[i + j] += a * b
    return out


def _poly_add(f: _Polynomial, g: _Polynomial) -> _Polynomial:
    if len(f) < len(g):
        f, g = g, f
    return [a + b for a, b in zip(f, g, strict=False)] + f[len(g) :]


def _divide_root(f: _Polynomial, root: mpz) -> _Polynomial:
    """f / (x - root), known to be exact."""
    if not f:
        return []
    out, carry = [mpz(0)] * (len(f) - 1), mpz(0)
    for i in range(len(f) - 1, 0, -1):
        carry = (f[i] + carry * root) % P
        out[i - 1] = carry
    return out


_Function = tuple[_Polynomial, _Polynomial]


def _multiply(f: _Function, g: _Function) -> _Function:
    (u1, v1), (u2, v2) = f, g
    vv = _poly_multiply(v1, v2)
    cubic = [mpz(0), *(-3 * c for c in vv)]
    cubic = _poly_add(cubic, [mpz(0), mpz(0), mpz(0), *vv])
    u = _poly_add(_poly_multiply(u1, u2), cubic)
    v = _poly_add(_poly_multiply(u1, v2), _poly_multiply(u2, v1))
    return [c % P for c in u], [c % P for c in v]


def _divide(f: _Function, root: mpz) -> _Function:
    return _divide_root(f[0], root), _divide_root(f[1], root)


def _line(slope: mpz, point: Affine) -> _Function:
    """y - slope x - (y0 - slope x0)."""
    return [(slope * point[0] - point[1]) % P, -slope % P], [mpz(1)]


def _tangent(point: Affine) -> tuple[_Function, Affine]:
    """Tangent at C and 2C."""
    x0, y0 = point
    slope = 3 * (x0 * x0 - 1) * invert(2 * y0, P) % P
    x = (slope * slope - 2 * x0) % P
    return _line(slope, point), (x, (slope * (x0 - x) - y0) % P)


def _chord(a: Affine, b: Affine) -> tuple[_Function, Affine]:
    """Line through A and B (different x) and A + B."""
    slope = (b[1] - a[1]) * invert(b[0] - a[0], P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return _line(slope, a), (x, (slope * (a[0] - x) - a[1]) % P)


def _radix8_digits(n: int) -> list[int]:
    """Signed digits -4..4 of n, most significant first; the first is positive."""
    out = []
    while n:
        d = n & 7
        if d > 4 or (d == 4 and n >> 3 & 4):
            d -= 8
        out.append(d)
        n = (n - d) >> 3
    return out[::-1]


class LineTable:
    """<., K> for a fixed K of order q: 340 merged functions, about 440 kB; K's secret is in it."""

    __slots__ = ("_first", "_steps")

    def __init__(self, k: Affine) -> None:
        """Raises `InvalidKey` when K has a small order."""
        try:
            self._build(k)
        except ZeroDivisionError:
            raise InvalidKey("a point of small order") from None

    def _build(self, k: Affine) -> None:
        digits = _radix8_digits(int(Q) - 1)
        # f_d with divisor d(K) + (-dK), up to verticals, for d = 1..4, and the points dK
        points: dict[int, Affine] = {1: k}
        functions: dict[int, _Function] = {}
        f2, points[2] = _tangent(k)
        functions[2] = f2
        line, points[3] = _chord(points[2], k)
        functions[3] = _divide(_multiply(f2, line), points[2][0])
        line, points[4] = _chord(points[3], k)
        functions[4] = _divide(_multiply(functions[3], line), points[3][0])
        for d in (1, 2, 3, 4):
            opposite: Point = negate(points[d])
            assert opposite is not None
            points[-d] = opposite
            if d > 1:
                u, v = functions[d]  # of -K: the mirror image y -> -y
                functions[-d] = [-c % P for c in u], v  # scaled by -1 so that it stays monic in y or x
        self._first = functions.get(digits[0])
        c = points[digits[0]]
        steps: list[tuple[tuple[mpz, ...], tuple[mpz, ...]]] = []
        for d in digits[1:]:
            f, c2 = _tangent(c)
            line, c4 = _tangent(c2)
            f = _divide(_divide(_multiply(_multiply(f, f), line), c2[0]), c2[0])
            line, c8 = _tangent(c4)
            f = _divide(_divide(_multiply(_multiply(f, f), line), c4[0]), c4[0])
            if d:
                line, after = _chord(c8, points[d])
                f = _multiply(f, line)
                if d not in (1, -1):
                    f = _divide(_multiply(f, functions[d]), points[d][0])
                f = _divide(f, c8[0])
                c = after
            else:
                c = c8
            steps.append((_trim(f[0]), _trim(f[1])))
        self._steps = steps

    def pair(self, r: Affine) -> mpz:
        """<R,K>. ZeroDivisionError when the value has no representative (R of small order)."""
        x = -r[0] % P
        x2 = x * x % P
        x3 = x2 * x % P
        x4 = x2 * x2 % P
        x5 = x4 * x % P
        x6 = x3 * x3 % P
        y = r[1]
        y1, y2, y3, y4, y5 = y * x % P, y * x2 % P, y * x3 % P, y * x4 % P, y * x5 % P
        a, b = mpz(1), mpz(0)
        if self._first is not None:
            f, g = self._first
            a = sum((c * e for c, e in zip(f, (1, x, x2, x3, x4, x5, x6), strict=False)), mpz(0)) % P
            b = sum((c * e for c, e in zip(g, (y, y1, y2, y3, y4, y5), strict=False)), mpz(0)) % P
        for u, v in self._steps:
            a, b = (a + b) * (a - b) % P, 2 * a * b % P
            a, b = (a + b) * (a - b) % P, 2 * a * b % P
            a, b = (a + b) * (a - b) % P, 2 * a * b % P
            n = len(u)
            if n == 5:
                s = (u[0] + u[1] * x + u[2] * x2 + u[3] * x3 + u[4] * x4) % P
            elif n == 6:
                s = (u[0] + u[1] * x + u[2] * x2 + u[3] * x3 + u[4] * x4 + u[5] * x5) % P
            else:
                s = (u[0] + u[1] * x + u[2] * x2 + u[3] * x3 + u[4] * x4 + u[5] * x5 + u[6] * x6) % P
            n = len(v)
            if n == 4:
                t = (v[0] * y + v[1] * y1 + v[2] * y2 + v[3] * y3) % P
            elif n == 5:
                t = (v[0] * y + v[1] * y1 + v[2] * y2 + v[3] * y3 + v[4] * y4) % P
            else:
                t = (v[0] * y + v[1] * y1 + v[2] * y2 + v[3] * y3 + v[4] * y4 + v[5] * y5) % P
            a, b = (a * s - b * t) % P, (a * t + b * s) % P
        for _ in range(2):
            a, b = (a + b) * (a - b) % P, 2 * a * b % P
        return b * invert(a, P) % P


def _trim(f: _Polynomial) -> tuple[mpz, ...]:
    end = len(f)
    while end and not f[end - 1]:
        end -= 1
    return tuple(c + 0 for c in f[:end])  # copies, without the room that remainders keep


def multiple_is_infinity(point: Affine, k: mpz) -> bool:
    """Whether [k]A is the point at infinity."""
    from mikey.field import multiply

    half = multiply((k - 1, point))
    return half is not None and add(half, point) is None
