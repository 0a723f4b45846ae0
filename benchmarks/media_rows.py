# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/media.py prints: one figure, its yardstick of the same run, its aim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass
class Row:
    """``aim`` is an upper limit of ``value``, or a lower one with ``at_least``; ``None``: none is set."""

    name: str
    value: float
    unit: str
    aim: float | None = None
    at_least: bool = False
    beside: str = ""

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    def __str__(self) -> str:
        aim = "" if self.aim is None else f"{'>=' if self.at_least else '<='} {self.aim:g}"
        verdict = {None: "", True: "met", False: "not met"}[self.met]
        return f"{self.name:58} {self.value:10.3f} {self.unit:12} {aim:>9} {verdict:8} {self.beside}"

    def document(self) -> dict[str, object]:
        return {**asdict(self), "met": self.met}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))] if ordered else math.nan
