# SPDX-License-Identifier: Apache-2.0
"""One run of the demo for all tests that look at what it leaves."""

from __future__ import annotations

import pytest

from tests.system.demonstration import Demo, run_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo"), "--keep-keys")
