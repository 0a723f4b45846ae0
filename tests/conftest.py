# SPDX-License-Identifier: Apache-2.0
"""Long runs: shortened by default, as long as ``--soak-seconds`` says in ``make soak``."""

from __future__ import annotations

import pytest

#: what a soak test that is told its time takes inside ``make test``
SHORT = 12.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, default=SHORT, help="how long each soak test runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A soak test that has no short form runs only when soak tests are asked for (``-m soak``)."""
    if config.getoption("-m"):
        return
    long = [i for i in items if i.get_closest_marker("soak") and "soak_seconds" not in getattr(i, "fixturenames", ())]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    """How long to go on."""
    return float(request.config.getoption("--soak-seconds"))
