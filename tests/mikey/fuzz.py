# SPDX-License-Identifier: Apache-2.0
"""Mutated I_MESSAGEs against the whole receiver: ``python tests/mikey/fuzz.py --cases N --seed S``.

A plain mutation loop over all processors. Each case is a message of the corpus, of a product or of our own with one to
three things done to it (a bit, an octet, a length, a cut, a splice, payloads doubled, dropped, swapped or taken from
another message), and goes through `unseal` with the keys that open the original. A finding is: anything raised but a
`MikeyError`; a message opened, or a pairing computed, for octets that nobody signed; a table, a second encoding or a
search that does not give the octets back; more than a megabyte of memory; more than two seconds of a processor.

One in 256 is signed again after the change, so that what lies behind the signature is tried too: SAKKE, its test, and
key parameters sealed under the right key.

Prints cases a second, what became of the cases, how many got past the first length check, and the branch coverage of
a sample. Findings are printed as hex, and the exit code is 1. The same seed gives the same cases.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import multiprocessing
import os
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mikey import (
    Keyring,
    KeyType,
    Kms,
    MemoryReplayCache,
    PairingBudget,
    TransportKey,
    pairing,
    seal,
    unseal,
    unseal_own,
)
from mikey.annotation import annotate
from mikey.carriage import find
from mikey.corpus import keyring_of
from mikey.errors import MikeyError, ParseError
from mikey.key_parameters import KeyParameters, decode_clear, protect, unprotect
from mikey.payloads import GeneralExtension, IMessage, decode_chain, encode_chain
from mikey.policy import LENIENT, OFFLINE, STRICT
from mikey.text_form import decode_text

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "mikey"
PATIENCE = 2.0
MEMORY = 1 << 20
MODULES = ("annotation", "carriage", "imessage", "key_parameters", "keyring", "payloads", "text_form", "verifying")
_EDGE = (0, 1, 2, 4, 5, 8, 9, 10, 11, 14, 16, 21, 26, 27, 0x40, 0x7F, 0x80, 0x81, 0xFE, 0xFF)


@dataclass(frozen=True)
class Seed:
    """A real message, cut at its payloads, and what a receiver needs to open it."""

    octets: bytes
    pieces: tuple[bytes, ...]
    ring: Keyring
    sender: str
    me: str
    now: float
    secret: bytes = b""
    """The key inside, of a message of ours."""


def _pieces(octets: bytes) -> tuple[bytes, ...]:
    try:
        _, _, offsets = decode_chain(octets)
    except MikeyError:
        return (octets,)
    edges = [0, *offsets, len(octets)]
    return tuple(octets[a:b] for a, b in itertools.pairwise(edges))


def seeds() -> list[Seed]:
    """The corpus but for what must be refused, and one message of ours for each type of key and form of identity."""
    out = []
    for case in json.loads((VECTORS / "i_message_corpus.json").read_text())["cases"]:
        given = case["input"]
        # what must be refused is damaged already, and a mutation could happen to repair it
        if given["message_b64"] and case["expected"]["verdict"] != "reject":
            octets = base64.b64decode(given["message_b64"])
            out.append(Seed(octets, _pieces(octets), keyring_of(given), given["sender_uri"], given["receiver"]["uri"],
                            float(given["now_unix"])))  # fmt: skip
    kms = Kms.generate("kms.example.org", ["example.org"], random=random.Random(1).randbytes)
    ring, now = Keyring(), 1.79e9
    ring.add_certificate(kms.certificate)
    alice, bob = "sip:alice@example.org", "sip:bob@example.org"
    for uri in (alice, bob):
        ring.add_key_set(kms.issue(uri, now))
    for kind in KeyType:
        for hashed in (True, False):
            key = TransportKey.generate(kind, expiry=int(now) + 60, text="text",
                                        group_ids=("sip:g@example.org",) if kind.has_groups else ())  # fmt: skip
            made = seal(key, sender=alice, recipient=bob, keyring=ring, now=now, management_server=True,
                        hashed_ids=hashed, to_self=hashed).octets  # fmt: skip
            out.append(Seed(made, _pieces(made), ring, alice, bob, now, key.key.reveal()))
    return out


def mutated(seed: Seed, others: Sequence[Seed], source: random.Random) -> bytes:
    """One to three things done to a message; four in ten of them leave the chain whole."""
    octets = bytearray(seed.octets)
    below = source._randbelow  # type: ignore[attr-defined]
    for _ in range(1 + below(3)):
        size = len(octets)
        if not size:
            break
        at = below(size)
        kind = below(12)
        if kind <= 2:
            octets[at] ^= 1 << below(8)
        elif kind == 3:
            octets[at] = below(256)
        elif kind == 4:
            octets[at] = _EDGE[below(len(_EDGE))]
        elif kind == 5:
            octets[at : at + 2] = (below(1 << 16) if below(2) else 0xFFFF).to_bytes(2, "big")
        elif kind == 6:
            del octets[at:]
        elif kind == 7:
            del octets[at : at + 1 + below(8)]
        elif kind == 8:
            octets[at:at] = source.randbytes(1 + below(16))
        elif kind == 9:
            other = others[below(len(others))].octets
            octets[at:] = other[min(at, len(other)) :]
        else:
            octets = _rearranged(seed, others, source)
    return bytes(octets)


def _rearranged(seed: Seed, others: Sequence[Seed], source: random.Random) -> bytearray:
    """Payloads doubled, dropped, swapped, or one of another message, chained anew more often than not."""
    below = source._randbelow  # type: ignore[attr-defined]
    pieces = list(seed.pieces)
    if len(pieces) < 3:
        return bytearray(seed.octets)
    codes = [pieces[0][2], *(p[0] for p in pieces[1:-1])]  # the type of each payload after the header
    kind, at, to = below(4), 1 + below(len(pieces) - 1), 1 + below(len(pieces) - 1)
    body = pieces[1:]
    if kind == 0:
        body.insert(to - 1, body[at - 1])
        codes.insert(to - 1, codes[at - 1])
    elif kind == 1:
        del body[at - 1], codes[at - 1]
    elif kind == 2:
        body[at - 1], body[to - 1] = body[to - 1], body[at - 1]
        codes[at - 1], codes[to - 1] = codes[to - 1], codes[at - 1]
    else:
        other = others[below(len(others))].pieces
        if len(other) > 2:
            which = 1 + below(len(other) - 2)
            body[at - 1] = other[which]
            codes[at - 1] = other[which - 1][2 if which == 1 else 0]
    head = bytearray(pieces[0])
    if below(4):
        codes.append(0)
        head[2] = codes[0]
        body = [p if codes[n] == 4 else bytes((codes[n + 1],)) + p[1:] for n, p in enumerate(body)]
    return head + b"".join(body)


@dataclass
class Result:
    """What a worker saw."""

    cases: int = 0
    past: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, str]] = field(default_factory=list)
    longest: float = 0.0
    memory: int = 0

    def add(self, other: Result) -> None:
        """Sum up."""
        self.cases += other.cases
        self.past += other.past
        self.outcomes += other.outcomes
        self.findings += other.findings
        self.longest, self.memory = max(self.longest, other.longest), max(self.memory, other.memory)


class Loop:
    """The mutation loop of one process."""

    def __init__(self, all_seeds: Sequence[Seed], seed: str) -> None:
        self.seeds = all_seeds
        self.source = random.Random(seed)
        self.result = Result()
        self.ours = [s for s in all_seeds if s.secret]
        self.known = {s.octets for s in all_seeds}
        self.replay = MemoryReplayCache(capacity=64)
        self.budget = PairingBudget(rate=1e9, burst=1e9)
        self.pairings = 0
        pair = pairing.LineTable.pair

        def counted(lines: Any, point: Any) -> Any:
            self.pairings += 1
            return pair(lines, point)

        pairing.LineTable.pair = counted  # type: ignore[method-assign]

    def run(self, cases: int) -> Result:
        """Go through so many cases; what happens to be a seed again is none."""
        for number in itertools.count():
            if self.result.cases >= cases:
                break
            if number % 256 == 9:
                self._resigned(self.ours[number // 256 % len(self.ours)], number // 256)
                continue
            seed = self.seeds[self.source._randbelow(len(self.seeds))]  # type: ignore[attr-defined]
            octets = mutated(seed, self.seeds, self.source)
            if octets in self.known:
                continue
            measured = number % 2048 == 7
            if measured:
                tracemalloc.start()
            began = time.process_time()  # others may use this machine too
            self._one(seed, octets, number)
            took = time.process_time() - began
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                self.result.memory = max(self.result.memory, peak)
                if peak > MEMORY:
                    self._found(f"{peak} octets of memory", octets)
            self.result.longest = max(self.result.longest, took)
            if took > PATIENCE:
                self._found(f"took {took:.1f} s", octets)
            if len(self.result.findings) >= 20:
                break
        return self.result

    def _found(self, what: str, octets: bytes) -> None:
        self.result.findings.append((what, octets.hex()))

    def _resigned(self, seed: Seed, number: int) -> None:
        """A change made before signing, by a sender who means harm or cannot do better."""
        below = self.source._randbelow  # type: ignore[attr-defined]
        signer = seed.ring.key_set_for(seed.sender, seed.now)
        if number % 2:
            octets = mutated(seed, self.seeds, self.source)
            body = octets[:-129]
        else:
            header, payloads, _ = decode_chain(seed.octets)
            plain = bytearray(KeyParameters(seed.octets[4] >> 4, group_ids=("sip:g@example.org",)).encode())
            for _ in range(1 + below(3)):
                plain[below(len(plain))] = below(256)
            wrong = bytes(plain[: len(plain) - below(2) * below(len(plain))]) + bytes(below(3))
            data = protect(cast(KeyParameters, _Plain(wrong)), seed.secret, header.csb_id, seed.now, bytes(16))
            chain = [GeneralExtension(7, data) if p.code == 21 and p.encode()[0] == 7 else p for p in payloads]
            octets = encode_chain(header, chain)
            body = octets[:-129]
        octets = body + signer.sign(body)
        self.result.cases += 1
        policy = (LENIENT, STRICT)[number // 2 % 2]
        expected = "sip:g@example.org" if number // 4 % 3 == 0 else None
        try:
            if number // 4 % 5 == 0:
                unseal_own(octets, me=seed.sender, keyring=seed.ring, now=seed.now, policy=policy)
            else:
                opened = unseal(
                    octets, sender_uri=seed.sender if expected or number % 7 else None, me=seed.me, keyring=seed.ring,
                    now=seed.now, replay=self.replay, expect_type=None, expect_group=expected, policy=policy,
                    allow_pending=number % 11 == 0, allow_revoked=number % 13 == 0, budget=self.budget,
                )  # fmt: skip
                opened.authenticate(seed.sender, seed.ring)
            outcome = "signed: opened"
        except MikeyError as error:
            outcome = "signed: " + error.reason
            self.result.past += 1
        except Exception as error:
            outcome = type(error).__name__
            self._found(f"unseal, signed: {error!r}", octets)
        self.result.outcomes[outcome] += 1

    def _one(self, seed: Seed, octets: bytes, number: int) -> None:
        self.result.cases += 1
        before = self.pairings
        policy = (OFFLINE, LENIENT, STRICT)[number % 3]
        try:
            unseal(octets, sender_uri=seed.sender if number % 5 else None, me=seed.me, keyring=seed.ring, now=seed.now,
                   replay=None, expect_type=None, policy=policy)  # fmt: skip
            outcome = "opened"
            self._found("opened though changed", octets)
        except ParseError as error:
            outcome = error.reason
            self.result.past += error.offset is None or error.offset > 12
        except MikeyError as error:
            outcome = error.reason
            self.result.past += 1
        except Exception as error:
            outcome = type(error).__name__
            self._found(f"unseal: {error!r}", octets)
        self.result.outcomes[outcome] += 1
        if self.pairings != before:
            self._found("a pairing before the signature held", octets)
        if number % 16 == 3:
            self._others(octets, number)

    def _others(self, octets: bytes, number: int) -> None:
        """What reads octets without opening them."""
        attempts: tuple[tuple[str, Callable[[], Any]], ...] = (
            ("encode", lambda: _same(octets)),
            ("annotate", lambda: _covered(octets)),
            ("key parameters", lambda: KeyParameters.decode(octets[number % 300 :])),
            ("protected", lambda: unprotect(b"\x40" + octets[number % 300 :], bytes(16), 7)),
            ("clear", lambda: decode_clear(octets[number % 300 :], number % 7)),
            ("find", lambda: find(octets if number % 64 else b"x" + octets, "here")),
            ("text", lambda: decode_text(_text(octets, number), LENIENT)),
        )
        for name, attempt in attempts:
            try:
                attempt()
            except MikeyError:
                continue
            except Exception as error:
                self._found(f"{name}: {error!r}", octets)


@dataclass(frozen=True)
class _Plain:
    """Octets where key parameters are wanted."""

    octets: bytes

    def encode(self) -> bytes:
        return self.octets


def _same(octets: bytes) -> None:
    header, payloads, _ = decode_chain(octets)
    if encode_chain(header, payloads) != octets:
        raise AssertionError("another encoding")
    IMessage.decode(octets)


def _covered(octets: bytes) -> None:
    if b"".join(row.octets for row in annotate(octets, 1.79e9).rows) != octets:
        raise AssertionError("the table lacks octets")


def _text(octets: bytes, number: int) -> str:
    text = "mikey " + base64.b64encode(octets).decode()
    at = number % len(text)
    return text[:at] + (chr(octets[0]) if octets else "") + text[at + 1 :]


def _work(task: tuple[str, int]) -> Result:
    seed, cases = task
    return Loop(seeds(), seed).run(cases)


def covered(seed: str, cases: int) -> dict[str, float]:
    """Branch coverage in percent of the modules that read messages, from a sample of the same kind of cases."""
    import coverage

    folder = Path(sys.modules["mikey"].__file__ or "").parent
    names = [str(folder / f"{m}.py") for m in MODULES]
    measure = coverage.Coverage(branch=True, include=names, data_file=None, config_file=False)
    loop = Loop(seeds(), seed)
    measure.start()
    try:
        loop.run(cases)
    finally:
        measure.stop()
    out = {}
    for module, name in zip(MODULES, names, strict=True):
        numbers = measure._analyze(name).numbers
        out[module] = 100.0 * numbers.n_executed_branches / max(numbers.n_branches, 1)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--sample", type=int, default=20_000, help="cases run under branch coverage; 0: none")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    share = max(1, min(50_000, options.cases // options.workers))
    tasks = [(f"{options.seed} {n}", share) for n in range(max(1, options.cases // share))]
    began = time.monotonic()
    total = Result()
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for result in pool.imap_unordered(_work, tasks):
            total.add(result)
            if sys.stderr.isatty():
                print(f"\r{total.cases} cases", end="", file=sys.stderr)
    seconds = time.monotonic() - began
    print(f"{total.cases} mutated cases, seed {options.seed}, {seconds:.1f} s, {total.cases / seconds:.0f} a second")
    print(f"past the first length check: {100 * total.past / max(total.cases, 1):.1f} %")
    print(f"longest case {total.longest * 1e3:.1f} ms, most memory {total.memory} octets (every 2048th is measured)")
    for outcome, count in total.outcomes.most_common():
        print(f"  {outcome:22} {count:10}  {100 * count / total.cases:5.1f} %")
    if options.sample:
        print(f"branches taken in a sample of {options.sample} cases:")
        for module, percent in covered(f"{options.seed} sample", options.sample).items():
            print(f"  mikey/{module + '.py':22} {percent:5.1f} %")
    for what, octets in total.findings[:20]:
        print(f"FINDING {what}\n  {octets}")
    print(f"{len(total.findings)} findings")
    return 1 if total.findings else 0


if __name__ == "__main__":
    sys.exit(main())
