# SPDX-License-Identifier: Apache-2.0
"""The table of supported RFCs, made from docstrings, agrees with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mcptt_sip
from mcptt_sip.support import NOT, markdown, table

FOLDER = Path(mcptt_sip.__file__).parent
#: RFCs that the sources speak of without implementing something of them: grammar, names, media formats, advice
SPOKEN_OF = {
    2069, 2392, 2543, 3403, 3605, 3725, 3830, 4575, 5285, 5364, 5366, 5405, 5530, 5576, 5630, 5761, 6051, 6066, 6263,
    5407, 6337, 6908, 8285, 8866, 3246, 3840, 4354, 5368, 4964, 4412, 4566, 6455,
}  # fmt: skip


def spoken_of() -> dict[int, str]:
    found: dict[int, str] = {}
    for file in FOLDER.glob("*.py"):
        if file.stem == "support":
            continue
        text = file.read_text()
        for listed in re.findall(r"RFC (\d{4}(?:(?:,| and) \d{4})*)", text):
            for number in re.findall(r"\d{4}", listed):
                found.setdefault(int(number), file.stem)
    return found


def test_every_rfc_stands_once() -> None:
    numbers = [row.rfc for row in table()]
    assert len(numbers) == len(set(numbers))


def test_what_is_only_partly_done_says_what_is_missing() -> None:
    assert all(row.remark for row in table() if row.status == "partly")


def test_every_rfc_that_the_sources_name_is_in_the_table() -> None:
    known = {row.rfc for row in table()} | SPOKEN_OF
    missing = {number: module for number, module in spoken_of().items() if number not in known}
    assert not missing


@pytest.mark.parametrize("row", [row for row in table() if row.status == "yes"], ids=lambda row: str(row.rfc))
def test_what_is_supported_is_tested(row: object) -> None:
    """Some test names the RFC, or the module that implements it."""
    number, module = row.rfc, row.module  # type: ignore[attr-defined]
    texts = [file.read_text() for file in Path(__file__).parent.glob("*.py") if file.stem != "test_support"]
    assert any(f"RFC {number}" in text or f"mcptt_sip.{module} " in text or f"mcptt_sip.{module}\n" in text
               or f"mcptt_sip import {module}" in text for text in texts)  # fmt: skip


def test_what_is_not_supported_is_nowhere_claimed() -> None:
    assert not set(NOT) & set(spoken_of())


def test_the_table_is_printed() -> None:
    said = subprocess.run([sys.executable, "-m", "mcptt_sip.support"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == markdown()
    assert "| 3262 | yes | 100rel | invite_server |" in said.stdout
