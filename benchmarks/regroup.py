# SPDX-License-Identifier: Apache-2.0
"""How long it takes to set up, extend and rekey a temporary group call: real sockets, real keys, separate processes.

    python benchmarks/regroup.py [--sizes 10,30,100,300,1000] [--adds 40] [--json]

A server, and one process of light phones (``mcptt phones``), each on its own; the initiator and an idle KMS are this
process. For each size: from the first INVITE until everyone proved to hold the key, and the octets at the initiator.
Time and octets are fitted to ``a * N**b``. The yardstick PW (one modular power of 1024 bits) is measured beside it, so
that figures of different machines can be compared. Aims are those of the performance notes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # a file beside this one has the name of a package: this folder must not be searched
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gmpy2 import mpz, powmod

from mcptt_sip.mcptt.call import CallSettings
from mcptt_sip.mcptt.callerrors import AddFailed
from mcptt_sip.mcptt.client import ClientSettings, McpttClient
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.ops.phones import resident
from mcptt_sip.ops.scenario import DOMAIN, SERVICE, Process, program
from mcptt_sip.trace import MessageRecord
from mikey import Keyring, Kms, MemoryReplayCache
from mikey.field import P
from mikey.kms_http import KmsServer

ALICE = f"sip:alice@{DOMAIN}"
#: seconds from making a key to sending under it, in this benchmark
ACTIVATION = 2.0
ODD_SIZE = 50


def phone(number: int) -> str:
    return f"sip:phone{number}@{DOMAIN}"


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Bench:
    """Everything that runs, and the initiator."""

    kms: Kms
    folder: Path
    url: str
    proxy: str
    server: Process
    keyring: Keyring
    crowd: Process | None = None
    octets: int = 0
    keyed_at: dict[str, float] = field(default_factory=dict)
    granted_at: float = 0.0

    def record(self, message: MessageRecord) -> None:
        self.octets += len(message.octets)

    def event(self, name: str, details: dict[str, Any]) -> None:
        if name == "keyed":
            self.keyed_at[details["user"]] = time.perf_counter()
        elif name == "floor-granted":
            self.granted_at = time.perf_counter()

    async def initiator(self) -> McpttClient:
        settings = ClientSettings(
            server=SERVICE, proxy=self.proxy, username="alice", password="password",
            listen=(("udp", "127.0.0.1", 0),), call=CallSettings(add_timeout=60.0),
        )
        client = McpttClient(
            ALICE, settings, keyring=self.keyring, replay=MemoryReplayCache(), trace=self.record, on_event=self.event
        )
        await client.start()
        return client

    async def phones(self, name: str, first: int, count: int, *options: str) -> Process:
        host, port = self.proxy.removeprefix("sip:").partition(";")[0].split(":")
        process = Process(
            name,
            program("phones", "--count", str(count), "--first", str(first), "--proxy", f"tcp:{host}:{port}",
                    "--tokens", str(self.folder / "tokens.json"), "--passwords", str(self.folder / "passwords.json"),
                    "--kms", self.url, *options),
            self.folder, os.environ,
        )
        await process.start()
        await process.expect("ready", timeout=900)
        return process


def write(folder: Path, highest: int) -> dict[str, str]:
    """Tokens, passwords and the policy of everybody; returns token -> user."""
    users = [ALICE, *map(phone, range(1, highest + 1))]
    tokens = {f"token-{user}": user for user in (*users, SERVICE)}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    (folder / "passwords.json").write_text(json.dumps(dict.fromkeys(users, "password")))
    lines = []
    for user in users:
        lines += [f'[user."{user}"]', 'password = "password"']
        if user == ALICE:
            lines += ["allow-regroup = true", "allow-private-call = true", "allow-private-call-to-any-user = true",
                      "MaxSimultaneousCallsN6 = 100"]
    (folder / "policy.toml").write_text("\n".join(lines))
    return tokens


async def set_up(bench: Bench, client: McpttClient, numbers: Sequence[int]) -> tuple[InitiatedRegroup, dict[str, Any]]:
    """One call with these phones; everyone keyed. The first two talk while the rest is added."""
    bench.keyed_at.clear()
    bench.octets, bench.granted_at = 0, 0.0
    before = resident(bench.server.pid)
    assert bench.crowd is not None
    pids = {"initiator": os.getpid(), "server": bench.server.pid, "phones": bench.crowd.pid}
    used = {name: cpu(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    call = await client.start_regroup(phone(numbers[0]))
    adds = [asyncio.ensure_future(call.add(phone(number))) for number in numbers[1:]]
    async with call.floor():
        pass
    await asyncio.gather(*adds)
    ended = time.perf_counter()
    assert call.distribution.keyed() == {phone(number) for number in numbers}
    first = bench.keyed_at[phone(numbers[0])]
    return call, {
        "members": len(numbers), "seconds": ended - began, "octets": bench.octets,
        "first accept to floor": bench.granted_at - first,
        "per second": (len(numbers) - 1) / (ended - first) if len(numbers) > 1 else math.nan,
        "cpu": {name: (cpu(pid) - used[name]) / len(numbers) for name, pid in pids.items()},
        "server octets per member": max(0, resident(bench.server.pid) - before) / len(numbers),
    }


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """b of the least-squares fit of ``log y = log a + b log x``."""
    lx, ly = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = statistics.fmean(lx), statistics.fmean(ly)
    return sum((x - mx) * (y - my) for x, y in zip(lx, ly, strict=True)) / sum((x - mx) ** 2 for x in lx)


def yardstick() -> float:
    """PW in seconds: the best of some runs."""
    base, power = mpz(3) ** 600, mpz(2) ** 1022 - 1
    best = math.inf
    for _ in range(200):
        at = time.perf_counter()
        powmod(base, power, P)
        best = min(best, time.perf_counter() - at)
    return best


async def one_at_a_time(call: InitiatedRegroup, numbers: Sequence[int]) -> list[float]:
    """Seconds from each REFER until that user is keyed, in a running call."""
    times = []
    for number in numbers:
        at = time.perf_counter()
        await call.add(phone(number))
        times.append(time.perf_counter() - at)
    return times


async def removal(bench: Bench, call: InitiatedRegroup, number: int) -> dict[str, float]:
    """Seconds until the last one who stays proved the new key, and until the removal was through."""
    bench.keyed_at.clear()
    at = time.perf_counter()
    await call.remove(phone(number))
    through = time.perf_counter() - at
    return {"members": len(bench.keyed_at), "all keyed": max(bench.keyed_at.values()) - at, "in force": through}


async def odd_ones(bench: Bench, client: McpttClient, first: int, answer: str) -> dict[str, float]:
    """Set-up when one phone in ten refuses, dies or never answers: seconds until all others are keyed."""
    process = await bench.phones(answer, first, ODD_SIZE, "--odd", answer, "--odd-one-in", "10")
    try:
        bench.keyed_at.clear()
        began = time.perf_counter()
        call = await client.start_regroup(phone(first))

        async def add(number: int) -> bool:
            try:
                await call.add(phone(number))
            except AddFailed:
                return False
            return True

        adds = [asyncio.ensure_future(add(number)) for number in range(first + 1, first + ODD_SIZE)]
        good = ODD_SIZE - ODD_SIZE // 10
        async with asyncio.timeout(120):
            while len(bench.keyed_at) < good:
                await asyncio.wait(adds, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        took = max(bench.keyed_at.values()) - began
        await call.release()
        await asyncio.gather(*adds, return_exceptions=True)
        return {"others": good, "seconds": took}
    finally:
        await process.stop()


async def measure(sizes: Sequence[int], adds: int, folder: Path) -> dict[str, Any]:
    highest = max(sizes) + adds
    odd = {"decline": highest + 1, "ring": highest + 1 + ODD_SIZE, "die": highest + 1 + 2 * ODD_SIZE}
    tokens = write(folder, highest + 3 * ODD_SIZE)
    kms = Kms.generate(f"kms.{DOMAIN}", [DOMAIN])
    http = KmsServer(kms, tokens, clock=time.time)
    host, port = await http.start("127.0.0.1", 0)
    url = f"http://{host}:{port}"
    (folder / "server-token").write_text(f"token-{SERVICE}")
    server = Process(
        "server",
        program("serve", "--policy", str(folder / "policy.toml"), "--kms", url, "--kms-token-file",
                str(folder / "server-token"), "--listen", "tcp:127.0.0.1:0", "--listen", "udp:127.0.0.1:0",
                "--max-participants", "5000", "--keep-alive", "30", "--max-connections-per-source", "5000"),
        folder, os.environ,
    )
    await server.start()
    proxy = (await server.expect("ready", timeout=60))["tcp"]
    keyring = Keyring()
    keyring.add_certificate(kms.certificate)
    keyring.add_key_set(kms.issue(ALICE, time.time()))
    bench = Bench(kms, folder, url, f"sip:{proxy.removeprefix('tcp:')};transport=tcp", server, keyring)
    print(f"starting {highest} phones", file=sys.stderr, flush=True)
    bench.crowd = phones = await bench.phones("phones", 1, highest)
    client = await bench.initiator()
    results: dict[str, Any] = {"sizes": [], "pw_ms": yardstick() * 1e3}
    try:
        warm, _ = await set_up(bench, client, range(1, 6))
        await warm.release()
        call = None
        for size in sorted(sizes):
            if call is not None:
                await call.release()
            print(f"a call of {size}", file=sys.stderr, flush=True)
            call, row = await set_up(bench, client, range(1, size + 1))
            results["sizes"].append(row)
            if size == sorted(sizes)[min(1, len(sizes) - 1)]:
                times = await one_at_a_time(call, range(max(sizes) + 1, highest + 1))
                results["one at a time"] = {
                    "adds": len(times), "p50": statistics.median(times),
                    "p95": sorted(times)[math.ceil(0.95 * len(times)) - 1],
                }
            row["removal"] = await removal(bench, call, size)
        assert call is not None
        await call.release()
        results["odd"] = {"none": await odd_ones(bench, client, odd["decline"], "auto")}
        for answer, first in odd.items():
            results["odd"][answer] = await odd_ones(bench, client, first, answer)
    finally:
        await client.aclose()
        await phones.stop()
        await server.stop()
        await http.stop()
    rows = results["sizes"]
    if len(rows) > 1:
        members = [row["members"] for row in rows]
        results["exponent of time"] = exponent(members, [row["seconds"] for row in rows])
        results["exponent of octets"] = exponent(members, [row["octets"] for row in rows])
    return results


def judge(results: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, measured, aim, met)."""
    rows = results["sizes"]
    largest = rows[-1]
    out = [
        ("first accept to the first talker's floor", f"{max(r['first accept to floor'] for r in rows) * 1e3:.0f} ms",
         "300 ms", max(r["first accept to floor"] for r in rows) <= 0.300),
        ("adding one at a time, p95", f"{results['one at a time']['p95'] * 1e3:.1f} ms", "60 ms",
         results["one at a time"]["p95"] <= 0.060),
        (f"pipelined, {largest['members']} users", f"{largest['per second']:.0f}/s", "60/s",
         largest["per second"] >= 60),
        ("server memory per member", f"{largest['server octets per member'] / 1e3:.0f} kB", "60 kB",
         largest["server octets per member"] <= 60e3),
    ]
    for what in ("time", "octets"):
        if f"exponent of {what}" in results:
            fitted = results[f"exponent of {what}"]
            out.append((f"exponent of {what} over N", f"{fitted:.3f}", "1.05", fitted <= 1.05))
    base = results["odd"]["none"]["seconds"]
    for answer in ("decline", "ring", "die"):
        ratio = results["odd"][answer]["seconds"] / base
        out.append((f"one in ten: {answer}; others keyed, against none odd", f"{ratio:.2f} x", "1.5 x", ratio <= 1.5))
    return out


def show(results: dict[str, Any]) -> None:
    print(f"PW {results['pw_ms']:.3f} ms\n")
    print(f"{'members':>8} {'seconds':>8} {'users/s':>8} {'kB':>8} {'to floor ms':>12} {'kB/member':>10} "
          f"{'rekeyed s':>10} {'in force s':>11}   ms of CPU each: initiator, server, phones")  # fmt: skip
    for row in results["sizes"]:
        print(f"{row['members']:8} {row['seconds']:8.2f} {row['per second']:8.0f} {row['octets'] / 1e3:8.0f} "
              f"{row['first accept to floor'] * 1e3:12.1f} {row['server octets per member'] / 1e3:10.0f} "
              f"{row['removal']['all keyed']:10.2f} {row['removal']['in force']:11.2f}   "
              + ", ".join(f"{seconds * 1e3:.1f}" for seconds in row["cpu"].values()))  # fmt: skip
    print()
    for what, measured, aim, met in judge(results):
        print(f"{what:52} {measured:>10}   aim {aim:>7}   {'met' if met else 'not met'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="10,30,100,300,1000", help="members of each call")
    parser.add_argument("--adds", type=int, default=40, help="users added one at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory(prefix="mcptt-bench-") as folder:
        results = asyncio.run(measure(sizes, options.adds, Path(folder)))
    if options.json:
        print(json.dumps(results | {"aims": judge(results)}))
    else:
        show(results)


if __name__ == "__main__":
    main()
