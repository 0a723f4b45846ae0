# SPDX-License-Identifier: Apache-2.0
"""``mcptt demo``: runs the scenario ``user_regroup``, judges it, and leaves a report, recordings and a capture."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcptt_sip.ops import capture
from mcptt_sip.ops.burstquality import BurstQuality, burst_quality, in_one_line
from mcptt_sip.ops.ladder import read_ladder
from mcptt_sip.ops.recording import samples_of
from mcptt_sip.ops.report import write_report
from mcptt_sip.ops.scenario import Lab, ScenarioFailed, laboratory, load
from mcptt_sip.ops.verdict import Evidence, Judge, Verdict

BREAKAGES = ("swap", "strip", "unauthorised", "norekey", "wrongkey")


@dataclass
class DemoResult:
    """What the demo showed."""

    verdicts: list[Verdict]
    phones: dict[str, Any]
    out: Path
    problem: str | None = None
    breakage: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    bursts: list[BurstQuality] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.problem is None and all(v.ok for v in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        phones = {n: {k: v for k, v in p.items() if k != "levels"} for n, p in self.phones.items()}
        return {
            "passed": self.passed, "break": self.breakage, "problem": self.problem,
            "steps": [v.as_json() for v in self.verdicts], "phones": phones,
            "bursts": [b.as_json() for b in self.bursts], "out": str(self.out),
        }

    def summary(self) -> str:
        lines = [""]
        for v in self.verdicts:
            mark = {True: "ok    ", False: "FAILED", None: "-     "}[v.ok]
            at = "" if v.t_ms is None else f"{v.t_ms:9.1f} ms"
            words = v.as_json()["what"]
            lines.append(f"step {v.step:>2}  {mark} {at:>12}  {words}")
            lines += [f"                             {why}" for why in v.why]
        for name, phone in self.phones.items():
            heard = ", ".join(f"{h['talker']} {h.get('score', 0):.2f}" for h in phone.get("heard", []))
            if heard:
                lines.append(f"{name} heard {heard}")
        if self.bursts:
            lines.append(in_one_line(self.bursts))
        if self.problem:
            lines.append(f"problem: {self.problem}")
        lines.append(f"{'PASSED' if self.passed else 'FAILED'}: open {self.out / 'report.html'}")
        return "\n".join(lines)


def _levels(samples: np.ndarray, bars: int = 240) -> list[float]:
    """Loudness over time, 0 to 1, for the picture in the report."""
    if not len(samples):
        return []
    pieces = np.array_split(np.abs(samples), min(bars, len(samples)))
    peaks = [float(piece.max()) for piece in pieces]
    top = max(max(peaks), 1e-6)
    return [round(peak / top, 3) for peak in peaks]


async def run_demo(
    out: Path, *, breakage: str | None = None, quiet: bool = False, keep_keys: bool = False
) -> DemoResult:
    """Runs the story, then judges what it left behind. ``keep_keys`` leaves every phone's group keys there too."""
    module = load("user_regroup")
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.wav"), *out.glob("*.pcapng"), *out.glob("*.log"), *out.glob("*.jsonl")):
        old.unlink()

    def tell(text: str) -> None:
        print(text, file=sys.stderr if quiet else sys.stdout, flush=True)

    problem = None
    lab: Lab | None = None
    try:
        async with laboratory(out, breakage=breakage, tell=tell, keep_keys=keep_keys) as lab:
            await module.scenario(lab)
    except ScenarioFailed as error:
        problem = str(error)
    assert lab is not None
    return judge(lab, out, module, problem, breakage)


def judge(lab: Lab, out: Path, module: Any, problem: str | None, breakage: str | None) -> DemoResult:
    """Merges the captures, reads them back, and gives ten verdicts."""
    names = list(module.PHONES)
    sources = [path for n in ("server", *names) if (path := out / f"{n}.pcapng").exists()]
    addresses: dict[capture.Address, str] = {}
    for source in sources:
        for packet in capture.read(source):
            if packet.outbound:
                addresses[capture.dissect(packet)[1]] = source.stem
    packets = capture.merge(sources, out / "call.pcapng")
    for source in sources:
        source.unlink()
    events = {name: process.events for name, process in lab.processes.items()}
    ladder = read_ladder(packets, addresses)
    recordings = {name: out / f"{name}.wav" for name in names}
    evidence = Evidence(
        ladder, events, lab.facts, recordings, {name: module.voice(name) for name in names}
    )
    judge = Judge(evidence)
    verdicts = judge.judge()
    phones: dict[str, Any] = {name: judge.heard.get(name, {"heard": []}) for name in names}
    for name, path in recordings.items():
        if path.exists():
            samples, rate = samples_of(path)
            phones[name]["levels"] = _levels(samples)
            phones[name]["seconds"] = round(len(samples) / rate, 2)
            begin = next((e["start"] - e["offset"] / rate for e in evidence.of(name, "burst-heard")), None)
            removed_at = lab.facts.get("removed_at")
            if "tap_after_removal" in phones[name] and begin is not None and removed_at is not None and len(samples):
                phones[name]["removed_share"] = round(min(1.0, (removed_at - begin) * rate / len(samples)), 4)
    bursts = burst_quality(events, names, {name: lab.uri(name) for name in names}, judge.start)
    result = DemoResult(verdicts, phones, out, problem, breakage, lab.facts, bursts)
    write_report(
        out / "report.html",
        title="Temporary group call – user regroup",
        passed=result.passed,
        verdicts=[v.as_json() for v in verdicts],
        phones=phones,
        recordings=recordings,
        ladder=ladder,
        start=judge.start,
        bursts=bursts,
    )
    return result
