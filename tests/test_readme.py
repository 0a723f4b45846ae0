# SPDX-License-Identifier: Apache-2.0
"""The README is true: its references exist, its Python runs, its commands are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
#: `tests/…py::test_name` as the tables name them
REFERENCES = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README)))
#: `package/module.py` and folders named in the text
PATHS = sorted(set(re.findall(r"`((?:mcptt_sip|mikey|media|tests|scenarios|benchmarks)/[\w/.]*)`", README)))


def test_there_is_something_to_check() -> None:
    assert len(REFERENCES) >= 10 and len(SNIPPETS) >= 2


@pytest.mark.parametrize(("path", "name"), REFERENCES)
def test_every_test_that_the_readme_names_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("requirement", [f"MCSEC-2.2-{number}" for number in range(1, 6)])
def test_every_requirement_of_the_proposal_has_a_row_with_tests(requirement: str) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {requirement} ")]
    assert len(re.findall(r"`tests/[\w/]+\.py::test_\w+`", row)) >= 2


def test_every_rule_has_a_row_with_the_tests_that_prove_it() -> None:
    from tests.security.weakenings import PROOFS

    for proof in PROOFS:
        (row,) = [line for line in README.splitlines() if line.startswith(f"| {proof.rule} | ") and "::test_" in line]
        assert f"`{proof.test}`" in row


@pytest.mark.parametrize("path", PATHS)
def test_every_path_that_the_readme_names_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_every_python_snippet_runs(number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SNIPPETS[number]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_command_that_the_readme_names_exists() -> None:
    from typer.main import get_command

    from mcptt_sip.ops.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"^\| `mcptt (\w+)", README, re.MULTILINE))
    assert named and named <= known
    assert known <= named, f"the README does not tell of {sorted(known - named)}"


def test_every_scenario_is_told_of() -> None:
    from mcptt_sip.ops.scenario import installed

    told = set(re.findall(r"^\| `(\w+)` \| ", README, re.MULTILINE))
    assert set(installed()) <= told
