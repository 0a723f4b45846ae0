# SPDX-License-Identifier: Apache-2.0
"""Which RFCs the stack implements: a table made from the docstrings of its modules.

A module says ``:RFC 3262: yes`` or ``:RFC 5626: partly; one flow a registration`` at the end of its docstring.
``python -m mcptt_sip.support`` prints the table as Markdown.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Support", "markdown", "table"]

_entry = re.compile(r"^:RFC (\d+): (yes|partly)(?:; (.+))?$", re.MULTILINE)
#: what people look for and do not find
NOT = {
    3323: "privacy service",
    3329: "security agreement",
    3911: "Join",
    4235: "dialog event package",
    5763: "DTLS-SRTP",
    6140: "bulk registration",
    8224: "Identity",
    8445: "ICE",
    8599: "push",
}


@dataclass(frozen=True, slots=True)
class Support:
    """One row: `status` is ``yes``, ``partly`` or ``no``; `module` is where to look."""

    rfc: int
    status: str
    remark: str
    module: str


def table() -> list[Support]:
    """Every row, by number."""
    rows = [Support(rfc, "no", remark, "") for rfc, remark in NOT.items()]
    folder = Path(__file__).parent
    for file in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        for match in _entry.finditer(docstring):
            rows.append(Support(int(match[1]), match[2], match[3] or "", file.stem))
    return sorted(rows, key=lambda row: row.rfc)


def markdown() -> str:
    """The table as it stands in documentation."""
    lines = ["| RFC | support | remark | module |", "|---|---|---|---|"]
    lines += [f"| {row.rfc} | {row.status} | {row.remark} | {row.module} |" for row in table()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())  # noqa: T201
