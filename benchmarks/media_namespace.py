# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for benchmarks/media.py: a veth pair whose far end drops everything.

What is sent to 10.10.0.0/16 crosses the pair and ends in a namespace that has no such address: the sender pays for
sending and for nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys

GATEWAY = "10.9.0.2"
HERE = "10.9.0.1"


def addresses(count: int) -> list[tuple[str, int]]:
    """So many members behind the pair."""
    return [(f"10.10.{number // 250}.{number % 250 + 1}", 40000) for number in range(count)]


def run(*arguments: str) -> str:
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def enter(argv: list[str]) -> int | None:
    """Runs this program again in a namespace of its own, with the pair set up; ``None`` when that cannot be done."""
    if os.geteuid() != 0:
        return None
    environment = {**os.environ, "MEDIA_BENCHMARK_NAMESPACE": "1"}
    return subprocess.run(["unshare", "--net", sys.executable, *argv], env=environment, check=False).returncode


def inside() -> bool:
    return os.environ.get("MEDIA_BENCHMARK_NAMESPACE") == "1"


class Pair:
    """The pair, for the time of a ``with`` block, in the namespace of this process."""

    def __enter__(self) -> Pair:
        self._far = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "near0", "type", "veth", "peer", "name", "far0")
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._far.pid}/ns/net") == own:
            os.sched_yield()
        run("ip", "link", "set", "far0", "netns", str(self._far.pid))
        run("ip", "addr", "add", f"{HERE}/24", "dev", "near0")
        run("ip", "link", "set", "near0", "up")
        run("nsenter", "-t", str(self._far.pid), "-n", "ip", "link", "set", "far0", "up")
        shown = run("nsenter", "-t", str(self._far.pid), "-n", "ip", "-o", "link", "show", "far0")
        address = shown.split("link/ether ")[1].split()[0]
        run("ip", "neigh", "add", GATEWAY, "lladdr", address, "dev", "near0")
        run("ip", "route", "add", "10.10.0.0/16", "via", GATEWAY)
        return self

    def __exit__(self, *_error: object) -> None:
        self._far.kill()
        self._far.wait()
