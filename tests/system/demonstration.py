# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it, and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Demo:
    """What ``mcptt demo`` printed, its exit code, and where it left its files."""

    result: dict[str, Any]
    code: int
    out: Path

    @property
    def keys(self) -> list[dict[str, Any]]:
        """Every group key that any phone had, once each."""
        lines = [line for file in sorted(self.out.glob("*.keys.jsonl")) for line in file.read_text().splitlines()]
        return [json.loads(line) for line in dict.fromkeys(lines)]


def run_demo(out: Path, *options: str) -> Demo:
    """The command as a user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "mcptt_sip.ops.cli", "demo", "--out", str(out), "--json", *options],
        stdout=subprocess.PIPE, text=True, timeout=200, check=False,
    )
    return Demo(json.loads(done.stdout), done.returncode, out)
