# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.simulation --seed N --steps N``: runs the machine, prints what happened, and a seed that fails."""

from __future__ import annotations

import argparse
import os
import sys
import time


def main() -> int:
    """0 when every rule held, 1 when one did not, 2 when two runs of one seed differ."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # the order of sets is part of what a seed has to repeat
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from --seed on")
    parser.add_argument("--tail", type=int, default=120, help="lines of the trace that a failure prints")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare every octet")
    parser.add_argument("--trace", action="store_true", help="print only the digest of the trace")
    options = parser.parse_args()

    from tests.simulation.machine import Machine

    def progress(step: int, machine: Machine) -> None:
        if not options.trace and (step + 1) % 1000 == 0:
            passed = time.monotonic() - began
            print(f"  {step + 1} steps, {passed:.0f} s, {machine.loop.time():.0f} s of virtual time", flush=True)

    for seed in range(options.seed, options.seed + options.seeds):
        began = time.monotonic()
        report = Machine(seed, steps=options.steps, tail=options.tail, progress=progress).run()
        passed = time.monotonic() - began
        if report.violation is not None:
            print("\n".join(report.tail))
            for violation in report.violations:
                print(f"FAILED seed {seed} step {report.steps}: {violation}")
            print(f"again: python -m tests.simulation --seed {seed} --steps {options.steps}")
            return 1
        if options.trace:
            print(report.trace)
            continue
        print(f"seed {seed}: {report.steps} steps, {passed:.1f} s, {report.virtual_seconds:.0f} s of virtual time")
        for title, counted in (("events", report.events), ("facts", report.facts)):
            print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counted.items())))
        print(f"  trace {report.trace}")
        if options.twice:
            again = Machine(seed, steps=options.steps, tail=options.tail).run()
            if again.trace != report.trace:
                print(f"FAILED seed {seed}: a second run has the trace {again.trace}")
                return 2
            print("  a second run is the same to the octet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
