# SPDX-License-Identifier: Apache-2.0
"""The names that applications import, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mcptt_sip


@pytest.mark.parametrize("name", mcptt_sip.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(mcptt_sip, name) is not None


def test_type_checkers_see_the_names_that_are_loaded_late() -> None:
    tree = ast.parse(Path(mcptt_sip.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    shown = {alias.asname for node in imports for alias in node.names if alias.asname}
    assert shown == set(mcptt_sip._HOME)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        mcptt_sip.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import mcptt_sip", {"asyncio", "mcptt_sip.stack", "aiohttp", "numpy"}),
        ("from mcptt_sip import SipStack", {"asyncio", "socket", "ssl", "aiohttp", "media", "mikey", "numpy"}),
    ],
)
def test_importing_loads_no_more_than_it_needs(code: str, absent: set[str]) -> None:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not absent & set(said)
