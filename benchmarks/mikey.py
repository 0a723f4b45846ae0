# SPDX-License-Identifier: Apache-2.0
"""How fast MIKEY-SAKKE is, next to the textbook computation and two yardsticks of the same run.

    python benchmarks/mikey.py [--rounds N] [--users N] [--json]

The clock of a shared machine drifts, so everything is interleaved and given as a ratio too: PW is one modular power
of 1024 bits (gmpy2), OS and OV are one P-256 signature and verification of OpenSSL; the textbook path follows the
RFCs step by step on affine points with the same big integers, and must give the same octets. Aims are those of the
performance notes; each row says `met` or `not met`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # this file has the name of the package: its folder must not be searched
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
import itertools
import json
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from gmpy2 import invert, mpz, powmod

from mikey import Keyring, KeySet, KeyType, Kms, TransportKey, eccsi, sakke, seal, unseal
from mikey.field import Affine, FixedBase, G, P, Q, add, decode_point, encode_point
from mikey.pairing import LineTable

NOW = 1_790_000_000.0
Operation = Callable[[int], object]


# -- the textbook ---------------------------------------------------------------------------------------------


def multiply(k: mpz, point: Affine) -> Affine:
    """[k]A by double and add on affine points, one inversion a step."""
    out: Affine | None = None
    for bit in bin(int(k))[2:]:
        out = add(out, out)
        if bit == "1":
            out = add(out, point)
    assert out is not None
    return out


def power(k: mpz) -> mpz:
    """g^k: square and multiply with 1 + gi in F_p[i] (RFC 6508 §2.1)."""
    from mikey.field import G_PAIRED

    a, b = mpz(1), mpz(0)
    for bit in bin(int(k))[2:]:
        a, b = (a + b) * (a - b) % P, 2 * a * b % P
        if bit == "1":
            a, b = (a - b * G_PAIRED) % P, (a * G_PAIRED + b) % P
    return b * invert(a, P) % P


def pairing(a: Affine, b: Affine) -> mpz:
    """<A, B> as RFC 6508 §3.2 writes it."""
    (ax, ay), (bx, by) = a, b
    v, (cx, cy) = (mpz(1), mpz(0)), a
    for bit in bin(int(Q - 1))[3:]:
        slope = 3 * (cx * cx - 1) * invert(2 * cy, P) % P
        v = ((v[0] + v[1]) * (v[0] - v[1]) % P, 2 * v[0] * v[1] % P)
        line = ((slope * (bx + cx) - cy) % P, by)
        v = ((v[0] * line[0] - v[1] * line[1]) % P, (v[0] * line[1] + v[1] * line[0]) % P)
        doubled = add((cx, cy), (cx, cy))
        assert doubled is not None
        cx, cy = doubled
        if bit == "1":
            slope = (cy - ay) * invert(cx - ax, P) % P if cx != ax else None
            if slope is None:
                break  # the last addition meets -A, whose line is vertical and counts for nothing
            line = ((slope * (bx + cx) - cy) % P, by)
            v = ((v[0] * line[0] - v[1] * line[1]) % P, (v[0] * line[1] + v[1] * line[0]) % P)
            summed = add((cx, cy), a)
            assert summed is not None
            cx, cy = summed
    for _ in range(2):
        v = ((v[0] + v[1]) * (v[0] - v[1]) % P, 2 * v[0] * v[1] % P)
    return v[1] * invert(v[0], P) % P


def _mask(w: mpz, hint: bytes) -> bytes:
    range_hash = int(sakke.hash_to_range(int(w).to_bytes(128, "big"), mpz(1) << 128)).to_bytes(16, "big")
    return bytes(x ^ y for x, y in zip(hint, range_hash, strict=True))


def encapsulate(ssv: bytes, identity: bytes, z: bytes) -> bytes:
    """RFC 6508 §6.2.1."""
    r = sakke.hash_to_range(ssv + identity, Q)
    own = add(multiply(mpz(int.from_bytes(identity, "big")) % Q, G), decode_point(z))
    assert own is not None
    return encode_point(multiply(r, own)) + _mask(power(r), ssv)


def decapsulate(sed: bytes, rsk: bytes, identity: bytes, z: bytes) -> bytes:
    """RFC 6508 §6.2.2 with its test."""
    ssv = _mask(pairing(decode_point(sed[:257]), decode_point(rsk)), sed[257:])
    if encapsulate(ssv, identity, z) != sed:
        raise ValueError("no key")
    return ssv


def _multiply_p256(k: mpz, point: Affine) -> Affine:
    out: Affine | None = None
    for bit in bin(int(k))[2:]:
        out = eccsi._add(out, out)
        if bit == "1":
            out = eccsi._add(out, point)
    assert out is not None
    return out


_G_256: Affine = (eccsi._GX, eccsi._GY)


def sign(octets: bytes, ssk: bytes, h: bytes, pvt: bytes) -> bytes:
    """RFC 6507 §5.2.1."""
    j = mpz(secrets.randbelow(int(eccsi.ORDER) - 1) + 1)
    r = int(_multiply_p256(j, _G_256)[0]).to_bytes(32, "big")
    he = mpz(int.from_bytes(hashlib.sha256(h + r + octets).digest(), "big"))
    d = he + int.from_bytes(r, "big") * mpz(int.from_bytes(ssk, "big"))
    s = invert(d, eccsi.ORDER) * j % eccsi.ORDER
    return r + int(s).to_bytes(32, "big") + pvt


def verify(octets: bytes, signature: bytes, identity: bytes, kpak: bytes) -> None:
    """RFC 6507 §5.2.2."""
    pvt = signature[64:]
    r, s = mpz(int.from_bytes(signature[:32], "big")), mpz(int.from_bytes(signature[32:64], "big"))
    h = eccsi.hs(kpak, identity, pvt)
    he = mpz(int.from_bytes(hashlib.sha256(h + signature[:32] + octets).digest(), "big"))
    y = eccsi._add(_multiply_p256(mpz(int.from_bytes(h, "big")), eccsi._decode(pvt)), eccsi._decode(kpak))
    assert y is not None
    total = eccsi._add(_multiply_p256(he, _G_256), _multiply_p256(r, y))
    assert total is not None
    if _multiply_p256(s, total)[0] != r:
        raise ValueError("the signature does not hold")


# -- measuring ------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One operation: seconds of each run, its textbook twin, the yardstick and the aim in yardsticks."""

    name: str
    run: Operation
    textbook: Operation | None = None
    yardstick: str = "PW"
    aim: float | None = None
    seconds: list[float] = field(default_factory=list)
    textbook_seconds: list[float] = field(default_factory=list)


def timed(run: Operation, number: int) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    run(number)
    return time.perf_counter() - began


class People:
    """A KMS, users with ready keys, and a message from each to the next."""

    def __init__(self, count: int) -> None:
        self.kms = Kms.generate("kms.example.org", ["example.org"])
        self.z, self.kpak = self.kms.certificate.pub_enc_key, self.kms.certificate.pub_auth_key
        self.ring = Keyring()
        self.ring.add_certificate(self.kms.certificate)
        self.sets: list[KeySet] = []
        for number in range(count):
            self.sets.append(self.kms.issue(f"sip:user{number}@example.org", NOW))
            self.ring.add_key_set(self.sets[-1])
        self.fresh = (self.kms.certificate.uid(f"sip:member{n}@example.org", 1542) for n in itertools.count())
        self.octets = secrets.token_bytes(600)

    def __getitem__(self, number: int) -> KeySet:
        return self.sets[number % len(self.sets)]


def cold_rows(people: People) -> dict[str, float]:
    """First calls of a process, before any table is built, and what each table costs: seconds."""
    key = TransportKey.generate(KeyType.CSK)
    one, two = people[0], people[1]
    out: dict[str, float] = {}

    def first_seal(_: int) -> None:
        nonlocal message
        message = seal(key, sender=one, recipient=two.uri, keyring=people.ring, now=NOW).octets

    message = b""
    out["first seal"] = timed(first_seal, 0)
    out["first unseal (builds the RSK's lines)"] = timed(
        lambda _: unseal(message, sender_uri=one.uri, me=two.uri, keyring=people.ring, now=NOW, replay=None,
                         expect_type=None), 0)  # fmt: skip
    out["table of P"] = timed(lambda _: FixedBase(G).build(), 0)
    out["table of Z"] = timed(lambda _: FixedBase(decode_point(people.z)).build(), 0)
    out["table of g"] = timed(lambda _: sakke.power_table.build(), 0)
    out["lines of an RSK"] = timed(lambda _: LineTable(decode_point(one.rsk.reveal())), 0)
    return out


def rows_of(people: People) -> list[Row]:
    """All warm operations; distinct recipients and signers in consecutive calls."""
    z, kpak, octets = people.z, people.kpak, people.octets
    keys = [secrets.token_bytes(16) for _ in people.sets]
    seds = [sakke.encapsulate(k, s.uid, z) for k, s in zip(keys, people.sets, strict=True)]
    signatures = [s.sign(octets) for s in people.sets]
    csk = TransportKey.generate(KeyType.CSK)
    messages = [
        seal(csk, sender=s, recipient=people[n + 1].uri, keyring=people.ring, now=NOW).octets
        for n, s in enumerate(people.sets)
    ]
    known = eccsi.SignerCache()
    # the textbook must do the same computation, or the ratios say nothing
    me = people[0]
    assert encapsulate(keys[0], me.uid, z) == seds[0]
    assert decapsulate(seds[0], me.rsk.reveal(), me.uid, z) == keys[0]
    verify(octets, signatures[0], me.uid, kpak)
    eccsi.verify(octets, sign(octets, me.ssk.reveal(), me._hs, me.pvt), me.uid, kpak)
    for s, signature in zip(people.sets, signatures, strict=True):
        eccsi.verify(octets, signature, s.uid, kpak, known)
        s.receiver_key.own_point.build()
        s.receiver_key.validate()
    count = len(people.sets)
    master = mpz(int.from_bytes(people.kms.generations[0][1].z.reveal(), "big"))

    def one_seal(n: int) -> bytes:
        return seal(csk, sender=people[n], recipient=people[n + 1].uri, keyring=people.ring, now=NOW).octets

    def one_unseal(n: int) -> object:
        return unseal(messages[n % count], sender_uri=people[n].uri, me=people[n + 1].uri, keyring=people.ring, now=NOW,
                      replay=None, expect_type=None)  # fmt: skip

    def textbook_unseal(n: int) -> None:
        s, to = people[n], people[n + 1]
        verify(octets, signatures[n % count], s.uid, kpak)
        decapsulate(seds[(n + 1) % count], to.rsk.reveal(), to.uid, z)

    def textbook_seal(n: int) -> None:
        encapsulate(secrets.token_bytes(16), people[n + 1].uid, z)
        sign(octets, people[n].ssk.reveal(), people[n]._hs, people[n].pvt)

    return [
        Row("encapsulate", lambda n: sakke.encapsulate(keys[n % count], next(people.fresh), z),
            lambda n: encapsulate(keys[n % count], people[n].uid, z), "PW", 5),
        Row("decapsulate", lambda n: sakke.decapsulate(seds[n % count], people[n].receiver_key),
            lambda n: decapsulate(seds[n % count], people[n].rsk.reveal(), people[n].uid, z), "PW", 13),
        Row("sign", lambda n: people[n].sign(octets),
            lambda n: sign(octets, people[n].ssk.reveal(), people[n]._hs, people[n].pvt), "OS", 1.5),
        Row("verify, known signer", lambda n: eccsi.verify(octets, signatures[n % count], people[n].uid, kpak, known),
            lambda n: verify(octets, signatures[n % count], people[n].uid, kpak), "OV", 1.5),
        Row("verify, new signer",
            lambda n: eccsi.verify(octets, signatures[n % count], people[n].uid, kpak, eccsi.SignerCache()),
            lambda n: verify(octets, signatures[n % count], people[n].uid, kpak), "OV", 5),
        Row("KMS issues an RSK", lambda n: sakke.issue(master, next(people.fresh), mpz(secrets.randbits(256) | 1)),
            lambda n: multiply(invert((mpz(int.from_bytes(people[n].uid, "big")) + master) % Q, Q), G), "PW", 2.6),
        Row("RSK validation, lines built", lambda n: people[n].receiver_key.validate(),
            lambda n: pairing(decode_point(people[n].rsk.reveal()), people[n].receiver_key.own_point.base), "PW", 20),
        Row("seal", one_seal, textbook_seal, "encapsulate + sign", 1.10),
        Row("unseal", one_unseal, textbook_unseal, "decapsulate + verify", 1.15),
    ]  # fmt: skip


def measure(rows: list[Row], rounds: int) -> dict[str, list[float]]:
    """Run all rows and yardsticks in turns; textbook rows in every tenth round."""
    exponent, base = mpz(secrets.randbits(1021) | 1 << 1021), mpz(secrets.randbits(1020))
    key = ec.generate_private_key(ec.SECP256R1())
    algorithm, octets = ec.ECDSA(hashes.SHA256()), secrets.token_bytes(600)
    signature, public = key.sign(octets, algorithm), key.public_key()
    yardsticks: dict[str, Operation] = {
        "PW": lambda _: powmod(base, exponent, P),
        "OS": lambda _: key.sign(octets, algorithm),
        "OV": lambda _: public.verify(signature, octets, algorithm),
    }
    seconds: dict[str, list[float]] = {name: [] for name in yardsticks}
    for number in range(rounds):
        for row in rows:
            row.seconds.append(timed(row.run, number))
            for name, run in yardsticks.items():
                seconds[name].append(timed(run, number))
            if row.textbook is not None and number % 10 == 0:
                row.textbook_seconds.append(timed(row.textbook, number))
    best = {row.name: min(row.seconds) for row in rows}
    middle = {row.name: statistics.median(row.seconds) for row in rows}
    seconds["encapsulate + sign"] = [f["encapsulate"] + f["sign"] for f in (best, middle, middle)]
    seconds["decapsulate + verify"] = [f["decapsulate"] + f["verify, known signer"] for f in (best, middle, middle)]
    return seconds


def main() -> int:
    """Measure and print. Exits 0 whatever is met: a figure is no test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    people = People(max(2, options.users))
    cold = cold_rows(people)
    sakke.precompute(people.z)
    rows = rows_of(people)
    seconds = measure(rows, max(10, options.rounds))
    pw = min(seconds["PW"])
    results = []
    for row in rows:
        best, middle = min(row.seconds), statistics.median(row.seconds)
        ratio = best / min(seconds[row.yardstick])
        book = min(row.textbook_seconds) if row.textbook_seconds else None
        results.append({
            "operation": row.name, "min_ms": best * 1e3, "median_ms": middle * 1e3, "per_second": 1 / middle,
            "yardstick": row.yardstick, "ratio": ratio, "aim": row.aim,
            "met": None if row.aim is None else ratio <= row.aim,
            "textbook_min_ms": None if book is None else book * 1e3,
            "faster_than_textbook": None if book is None else book / best,
        })  # fmt: skip
    if options.json:
        print(json.dumps({"PW_ms": pw * 1e3, "rows": results, "cold_ms": {k: v * 1e3 for k, v in cold.items()}}))
        return 0
    os_ms, ov_ms = min(seconds["OS"]) * 1e3, min(seconds["OV"]) * 1e3
    print(f"minima: PW {pw * 1e3:.3f} ms, OS {os_ms:.4f} ms, OV {ov_ms:.4f} ms\n")
    titles = ("operation", "min ms", "median", "per s", "ratio", "of", "aim", "", "textbook", "times")
    print("{:28} {:>8} {:>8} {:>8} {:>7} {:22} {:>5} {:8} {:>9} {:>6}".format(*titles))
    for r in results:
        met = "" if r["met"] is None else "met" if r["met"] else "not met"
        print(
            f"{r['operation']:28} {r['min_ms']:8.3f} {r['median_ms']:8.3f} {r['per_second']:8.0f} {r['ratio']:7.2f}"
            f" {r['yardstick']:22} {r['aim']:5} {met:8} {r['textbook_min_ms']:9.2f} {r['faster_than_textbook']:6.1f}"
        )
    print("\ncold, each once (in ms and PW):")
    for name, value in cold.items():
        limit = "" if not name.startswith(("table", "lines")) else "  met" if value <= 250 * pw else "  not met"
        print(f"{name:40} {value * 1e3:9.2f} {value / pw:8.0f}{limit and limit + ' (250 PW)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
