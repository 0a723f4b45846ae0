# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that no other tool checks."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mcptt_sip", "mikey", "media", "scenarios")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 600
VAGUE = {"utils", "util", "helpers", "common", "misc", "base", "core", "types"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_has_one_idea(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, f"{len(lines)} lines: split it along a clause of its standard"
    assert path.stem not in VAGUE


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_its_licence_and_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert '"""' in text or not text.splitlines()[1:], "no docstring"
