# SPDX-License-Identifier: Apache-2.0
"""One run of the demo for all tests that look at what it leaves; what talks in real time takes turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.demonstration import Demo, run_demo

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo"), "--keep-keys")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole systems talk in real time: of those that are in no group yet, one runs after the other."""
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("system"))
