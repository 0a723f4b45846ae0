# SPDX-License-Identifier: Apache-2.0
"""How fast MIKEY-SAKKE is, next to the textbook computation and two yardsticks of the same run.

    python benchmarks/mikey.py [--rounds N] [--users N] [--json]

The clock of a shared machine drifts, so everything is interleaved and given as a ratio too: PW is one modular power
of 1024 bits (gmpy2), OS and OV are one P-256 signature and verification of OpenSSL; the textbook path follows the
RFCs step by step on affine points with the same big integers, and must give the same octets; wolfSSL is the peer
where it is installed. Aims are those of the performance notes; each row says `met` or `not met`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # this file has the name of the package: its folder must not be searched
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
import importlib.util
import itertools
import json
import resource
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from gmpy2 import invert, mpz, powmod

from mikey import Keyring, KeySet, KeyType, Kms, TransportKey, eccsi, sakke, seal, seal_many, unseal
from mikey.field import G_PAIRED, Affine, G, P, Q, add, decode_point, encode_point
from mikey.fixed_base import FixedBase, TangentTable
from mikey.pairing import LineTable

HERE = Path(__file__).resolve().parents[1]
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
    peer: Operation | None = None
    """The same by wolfSSL, where it is installed."""
    peer_seconds: list[float] = field(default_factory=list)


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


# -- cold: each in a process of its own -----------------------------------------------------------------------


def _pair() -> tuple[KeySet, Keyring, str]:
    """A KMS without any table, Alice who signs, and Bob, both with their keys."""
    sakke.base_table = FixedBase(G, patience=1 << 30)
    people = People(2)
    sakke.base_table = FixedBase(G, kept=True)
    return people[0], people.ring, people[1].uri


def _first_seal() -> float:
    alice, ring, bob = _pair()
    key = TransportKey.generate(KeyType.CSK)
    return timed(lambda _: seal(key, sender=alice, recipient=bob, keyring=ring, now=NOW), 0)


def _first_seal_from_disk() -> float:
    """The tables of P, g and Z lie on disk from an earlier run; this one reads and checks them."""
    from mikey.tables import keep_tables

    alice, ring, bob = _pair()
    key = TransportKey.generate(KeyType.CSK)
    with tempfile.TemporaryDirectory() as folder:
        keep_tables(Path(folder))
        sakke.precompute(alice.certificate.pub_enc_key)
        sakke.base_table = FixedBase(G, kept=True)
        sakke.power_table = TangentTable(G_PAIRED, kept=True)
        sakke._public.clear()
        return timed(lambda _: seal(key, sender=alice, recipient=bob, keyring=ring, now=NOW), 0)


def _first_unseal() -> float:
    alice, ring, bob = _pair()
    octets = seal(TransportKey.generate(KeyType.CSK), sender=alice, recipient=bob, keyring=ring, now=NOW).octets
    return timed(lambda _: unseal(octets, sender_uri=alice.uri, me=bob, keyring=ring, now=NOW, replay=None,
                                  expect_type=None), 0)  # fmt: skip


def _table_megabytes() -> float:
    """What the tables of P, g and Z take, in MB (printed as it is)."""
    alice, _, _ = _pair()
    z = alice.certificate.pub_enc_key
    sakke.precompute(z)
    return (sakke.base_table.size + sakke.public_table(z).size + sakke.power_table.size) / 1e6


def _resident_megabytes() -> float:
    """What the process grew by when they were built, scratch memory included, in MB."""
    alice, _, _ = _pair()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    sakke.precompute(alice.certificate.pub_enc_key)
    return (resident() - before) / 1e6


def _import() -> float:
    """`import mikey` by a fresh interpreter, less the start of the interpreter itself."""
    def run(code: str) -> float:
        return timed(lambda _: subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE), 0)

    return min(run("import mikey") for _ in range(5)) - min(run("pass") for _ in range(5))


COLD: dict[str, Callable[[], float]] = {
    "import mikey": _import,
    "first seal, no tables": _first_seal,
    "first seal, tables on disk": _first_seal_from_disk,
    "first unseal (builds the RSK's lines)": _first_unseal,
    "table of P": lambda: timed(lambda _: FixedBase(G).build(), 0),
    "table of Z": lambda: timed(lambda _: FixedBase(decode_point(_pair()[0].certificate.pub_enc_key)).build(), 0),
    "table of g": lambda: timed(lambda _: TangentTable(G_PAIRED).build(), 0),
    "lines of an RSK": lambda: _lines(),
    "memory of the tables of P, Z and g": _table_megabytes,
    "memory that building them took": _resident_megabytes,
}


def _lines() -> float:
    rsk = decode_point(_pair()[0].rsk.reveal())
    return timed(lambda _: LineTable(rsk), 0)


def cold_rows(runs: int) -> dict[str, list[float]]:
    """Each in `runs` fresh processes."""
    out: dict[str, list[float]] = {name: [] for name in COLD}
    for _ in range(runs):
        for name in COLD:
            command = [sys.executable, __file__, "--cold", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            out[name].append(float(done.stdout))
    return out


# -- many recipients ------------------------------------------------------------------------------------------


def many_rows(counts: Sequence[int]) -> list[dict[str, Any]]:
    """seal_many on all cores and on one, tables built: seconds, first result, and what the cores bring."""
    people = People(1)
    sakke.precompute(people.z)
    key = TransportKey.generate(KeyType.CSK)
    out = []
    for count in counts:
        uris = [f"sip:member{n}@example.org" for n in range(count)]
        seconds: dict[int | None, float] = {}
        for workers in (None, 1):
            best = float("inf")
            for _ in range(1 if count >= 1000 else 3):
                began = time.perf_counter()
                stream = seal_many(
                    key, sender=people[0], recipients=uris, keyring=people.ring, now=NOW, workers=workers
                )
                next(stream)
                first = time.perf_counter() - began
                rest = sum(1 for _ in stream)
                best = min(best, time.perf_counter() - began)
                assert rest == count - 1
            seconds[workers] = best
            if workers is None:
                first_result = first
        gain = seconds[1] / seconds[None]
        judged = count >= 1000
        out.append({
            "recipients": count, "seconds": seconds[None], "per_second": count / seconds[None], "gain": gain,
            "first_ms": first_result * 1e3, "met": (gain >= 1.7 and first_result <= 0.05) if judged else None,
        })  # fmt: skip
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


def add_peer(rows: list[Row], people: People) -> str:
    """Give the rows their twins of wolfSSL; what to say of it."""
    spec = importlib.util.spec_from_file_location("wolfssl", HERE / "tests" / "mikey" / "wolfssl.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wolfssl"] = module
    spec.loader.exec_module(module)
    try:
        wolf = module.Wolf()
    except module.NotThere as missing:
        return f"no peer: {missing}"
    z, kpak, octets, count = people.z, people.kpak, people.octets, len(people.sets)
    public = wolf.sakke_key(z)
    keys = [secrets.token_bytes(16) for _ in people.sets]
    seds = [sakke.encapsulate(k, s.uid, z) for k, s in zip(keys, people.sets, strict=True)]
    receivers = [wolf.receiver(s.uid, s.rsk.reveal(), z, table=True) for s in people.sets]
    signers = [wolf.signer(s.uid, s.ssk.reveal(), s.pvt, kpak) for s in people.sets]
    signatures = [s.sign(octets) for s in people.sets]
    verifier = wolf.eccsi_key(kpak)
    assert wolf.encapsulate(public, keys[0], people[0].uid) == seds[0]
    assert wolf.decapsulate(receivers[0], seds[0]) == keys[0]

    def verify_theirs(n: int) -> object:
        return wolf.verify(octets, signatures[n % count], people[n].uid, kpak, verifier)

    twins: dict[str, Operation] = {
        "encapsulate": lambda n: wolf.encapsulate(public, keys[n % count], next(people.fresh)),
        "decapsulate": lambda n: wolf.decapsulate(receivers[n % count], seds[n % count]),
        "sign": lambda n: wolf.sign(signers[n % count], octets),
        "verify, known signer": verify_theirs,
        "verify, new signer": verify_theirs,
    }
    for row in rows:
        row.peer = twins.get(row.name)
    return "peer: wolfSSL as installed, lines of each RSK computed ahead"


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
            for name, run in yardsticks.items():
                seconds[name] += [timed(run, number) for _ in range(3)]
            # three in a row, each with another signer or recipient, as the yardsticks have it
            row.seconds += [timed(row.run, 3 * number + turn) for turn in range(3)]
            if row.peer is not None:
                row.peer_seconds += [timed(row.peer, 3 * number + turn) for turn in range(3)]
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
    parser.add_argument("--cold-runs", type=int, default=5, help="processes for each cold row")
    parser.add_argument("--many", type=int, nargs="*", default=[1, 10, 100, 1000], help="recipients of seal_many")
    parser.add_argument("--cold", choices=COLD, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.cold is not None:
        print(COLD[options.cold]())
        return 0
    cold = cold_rows(max(1, options.cold_runs))
    people = People(max(2, options.users))
    sakke.precompute(people.z)
    rows = rows_of(people)
    peer = add_peer(rows, people)
    seconds = measure(rows, max(10, options.rounds))
    pw = min(seconds["PW"])
    results = []
    for row in rows:
        best, middle = min(row.seconds), statistics.median(row.seconds)
        ratio = best / min(seconds[row.yardstick])
        book = min(row.textbook_seconds) if row.textbook_seconds else None
        theirs = min(row.peer_seconds) if row.peer_seconds else None
        results.append({
            "operation": row.name, "min_ms": best * 1e3, "median_ms": middle * 1e3, "per_second": 1 / middle,
            "yardstick": row.yardstick, "ratio": ratio, "aim": row.aim,
            "met": None if row.aim is None else ratio <= row.aim,
            "textbook_min_ms": None if book is None else book * 1e3,
            "faster_than_textbook": None if book is None else book / best,
            "peer_min_ms": None if theirs is None else theirs * 1e3,
            "faster_than_peer": None if theirs is None else theirs / best,
        })  # fmt: skip
    many = many_rows(options.many)
    cold_results = [judged_cold(name, values, pw, cold) for name, values in cold.items()]
    if options.json:
        print(json.dumps({"PW_ms": pw * 1e3, "peer": peer, "rows": results, "cold": cold_results, "many": many}))
        return 0
    os_ms, ov_ms = min(seconds["OS"]) * 1e3, min(seconds["OV"]) * 1e3
    print(f"minima: PW {pw * 1e3:.3f} ms, OS {os_ms:.4f} ms, OV {ov_ms:.4f} ms\n")
    print(f"{peer}; 'x' is how many times faster ours is\n")
    titles = ("operation", "min ms", "median", "per s", "ratio", "of", "aim", "", "textbook", "x", "peer ms", "x")
    print("{:28} {:>8} {:>8} {:>8} {:>7} {:22} {:>5} {:8} {:>9} {:>6} {:>9} {:>6}".format(*titles))
    for r in results:
        met = "" if r["met"] is None else "met" if r["met"] else "not met"
        print(
            f"{r['operation']:28} {r['min_ms']:8.3f} {r['median_ms']:8.3f} {r['per_second']:8.0f} {r['ratio']:7.2f}"
            f" {r['yardstick']:22} {r['aim']:5} {met:8} {r['textbook_min_ms']:9.2f} {r['faster_than_textbook']:6.1f}"
            + ("" if r["peer_min_ms"] is None else f" {r['peer_min_ms']:9.3f} {r['faster_than_peer']:6.2f}")
        )
    print(f"\n{'cold, each in fresh processes':40} {'min ms':>8} {'median':>8} {'PW':>7}  aim")
    for c in cold_results:
        met = "" if c["met"] is None else f"{c['aim']}: {'met' if c['met'] else 'not met'}"
        print(f"{c['operation']:40} {c['min_ms']:8.2f} {c['median_ms']:8.2f} {c['PW']:7.0f}  {met}")
    print(f"\n{'seal_many':>10} {'seconds':>9} {'per s':>8} {'first ms':>9} {'x one core':>11}  aim")
    for m in many:
        met = "" if m["met"] is None else f"1.7 x one core, first within 50 ms: {'met' if m['met'] else 'not met'}"
        numbers = f"{m['seconds']:9.3f} {m['per_second']:8.0f} {m['first_ms']:9.2f} {m['gain']:11.2f}"
        print(f"{m['recipients']:10} {numbers}  {met}")
    return 0


def judged_cold(name: str, values: list[float], pw: float, cold: dict[str, list[float]]) -> dict[str, Any]:
    """One cold row with its aim, where there is one."""
    best, middle = min(values), statistics.median(values)
    aim, met = None, None
    if name == "import mikey":
        aim, met = "60 ms", best <= 0.060
    elif name == "first seal, tables on disk":
        aim, met = "not slower than without", best <= min(cold["first seal, no tables"])
    elif name == "lines of an RSK":
        aim, met = "250 PW", best <= 250 * pw
    elif name.startswith("memory"):
        judged = "tables" in name
        return {"operation": name + " (MB)", "min_ms": best, "median_ms": middle, "PW": 0,
                "aim": "15 MB" if judged else None, "met": middle <= 15 if judged else None}  # fmt: skip
    return {"operation": name, "min_ms": best * 1e3, "median_ms": middle * 1e3, "PW": best / pw, "aim": aim, "met": met}


if __name__ == "__main__":
    sys.exit(main())
