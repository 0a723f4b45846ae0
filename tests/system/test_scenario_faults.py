# SPDX-License-Identifier: Apache-2.0
"""A scenario that is itself broken has a verdict as every other, and the others have their turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcptt_sip.ops.cli import app

pytestmark = pytest.mark.network
GOOD = "async def scenario(lab):\n    assert lab.uri('x')\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("async def scenario(lab):\n    lab.nothing_of_the_kind()\n", "AttributeError"),
        ("async def scenario(lab):\n    {}['missing']\n", "KeyError"),
        ("async def scenario(lab):\n    assert False, 'expected'\n", "AssertionError: expected"),
        ("async def scenario(lab)\n", "SyntaxError"),
    ],
)
def test_a_broken_scenario_fails_and_the_next_runs(tmp_path: Path, text: str, problem: str) -> None:
    broken, good = tmp_path / "broken.py", tmp_path / "good.py"
    broken.write_text(text)
    good.write_text(GOOD)
    result = CliRunner().invoke(app, ["run", "--json", str(broken), str(good)])
    verdicts = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"scenario"')]
    assert [verdict["passed"] for verdict in verdicts] == [False, True]
    assert verdicts[0]["problem"].startswith(problem) and result.exit_code == 1


def test_what_is_no_coroutine_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def scenario(lab):\n    pass\n")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "plain.py")])
    assert result.exit_code == 2 and "coroutine" in result.stderr + result.stdout
