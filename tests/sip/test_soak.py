# SPDX-License-Identifier: Apache-2.0
"""SIPp load with five datagrams of a hundred lost, in a namespace of its own; ``make soak`` runs it for long."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sip.sipp import SDP, needed, recv, request, scenario
from tests.sip.test_baresip import HOST, Inside, inside, namespace, telephone

__all__ = ["namespace"]

pytestmark = [
    pytest.mark.network,
    pytest.mark.interop,
    pytest.mark.xdist_group("baresip"),
    needed("sipp", "sip-tester"),
    needed("iptables", "iptables"),
    needed("ip", "iproute2"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root"),
]
RATE = 20
#: transactions by name: a repeated 200 to the INVITE must not pass for the BYE's
CALL = scenario(
    request("INVITE", body=SDP, start_txn="invite"),
    recv(100, optional="true", response_txn="invite"),
    recv(180, optional="true", response_txn="invite"),
    recv(200, rrs="true", response_txn="invite"),
    request("ACK", inside=True, ack_txn="invite"),
    request("BYE", 2, inside=True, start_txn="bye"),
    recv(200, response_txn="bye"),
)


def resident(running: Inside) -> int:
    """Resident memory in kB of the telephone (the child of ``ip netns exec`` is the process itself)."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


async def drain(running: Inside, counts: dict[str, int]) -> None:
    """Counts the events."""
    assert running.process.stdout is not None
    while line := (await running.process.stdout.readline()).decode():
        for name in counts:
            counts[name] += f'"event": "{name}"' in line


@pytest.fixture
def lossy(namespace: str) -> Iterator[str]:
    """The namespace, in which SIP is lost; that some was is checked at the end."""
    iptables = ["ip", "netns", "exec", namespace, "iptables"]
    rule = ["INPUT", "-p", "udp", "--dport", "5070:5071", "-m", "statistic", "--mode", "random", "--probability",
            "0.05", "-j", "DROP"]  # fmt: skip
    subprocess.run([*iptables, "-A", *rule], check=True, capture_output=True)
    yield namespace
    listed = subprocess.run([*iptables, "-L", "INPUT", "-v", "-x", "-n"], check=True, capture_output=True, text=True)
    subprocess.run([*iptables, "-D", *rule], check=True, capture_output=True)
    dropped = next(int(line.split()[0]) for line in listed.stdout.splitlines() if "DROP" in line)
    assert dropped > 0, listed.stdout


@pytest.mark.soak
async def test_no_call_is_lost_and_nothing_grows(lossy: str, tmp_path: Path, soak_seconds: float) -> None:
    (tmp_path / "call.xml").write_text(CALL)
    amount = max(60, int(RATE * soak_seconds))
    load = [
        "sipp", "-sf", str(tmp_path / "call.xml"), "-i", HOST, "-p", "5071", f"{HOST}:5070", "-r", str(RATE),
        "-m", str(amount), "-nostdin", "-skip_rlimit", "-trace_err", "-error_file", str(tmp_path / "errors"),
    ]  # fmt: skip
    counts = {"answered": 0, "ended": 0, "stopped": 0}
    async with inside(lossy, *telephone()) as ours:
        await ours.event("ready")
        counting = asyncio.ensure_future(drain(ours, counts))
        async with inside(lossy, *load) as theirs:
            assert theirs.process.stdout is not None
            reading = asyncio.ensure_future(theirs.process.stdout.read())
            ended = asyncio.ensure_future(theirs.process.wait())
            settled = min(300.0, soak_seconds / 2)
            await asyncio.wait((ended,), timeout=settled)
            before = resident(ours)
            await ended
            await reading
            errors = tmp_path / "errors"
            said = errors.read_text(errors="replace")[-2000:] if errors.exists() else ""
            assert theirs.process.returncode == 0, f"a call failed that the timers should have saved\n{said}"
            after = resident(ours)
        ours.process.send_signal(2)
        assert await ours.process.wait() == 0
        await counting
    assert counts["answered"] == amount and counts["ended"] == amount and counts["stopped"] == 1, counts
    if soak_seconds >= 600:
        assert after < before * 1.05 + 2_000, f"{before} kB after the beginning, {after} kB at the end"
