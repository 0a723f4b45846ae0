# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: what importing costs, what the docstrings promise, that it stands alone."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import media

ROOT = Path(media.__file__).parents[1]
MODULES = [module.name for module in pkgutil.iter_modules(media.__path__, "media.")]
HEAVY = ("aiortc", "asyncio", "av", "cryptography", "numpy", "socket")


def loaded(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after ``code``."""
    code += f"\nimport json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_loads_nothing_heavy() -> None:
    assert loaded("import media; media.__all__; media.MediaError; media.SessionDescription") == set()
    assert loaded("from media import FloorControlServer, FloorParticipant, decode, JitterBuffer, Relay") == set()
    assert loaded("from media import SrtpSender, RtpPacket") <= {"cryptography", "socket"}


def test_no_module_of_the_package_needs_sip_or_keys() -> None:
    code = f"import importlib, sys\nfor m in {MODULES!r}: importlib.import_module(m)\n"
    code += "assert not [m for m in sys.modules if m.split('.')[0] in ('mcptt_sip', 'mikey')]"
    loaded(code)


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    for name in media.__all__:
        value = getattr(media, name)
        assert value is not None
        if callable(value):
            assert value.__doc__, name
    with pytest.raises(AttributeError):
        _ = media.no_such_name  # type: ignore[attr-defined]


@pytest.mark.network
def test_the_examples_of_the_docstrings_run() -> None:
    ran = 0
    for name in ["media", *MODULES]:
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, name
        ran += result.attempted
    assert ran >= 40


@pytest.mark.network
def test_the_installed_package_alone_runs_its_examples(tmp_path: Path) -> None:
    """As a wheel holds it, in a directory without the other packages, next to the libraries that it depends on."""
    source = tmp_path / "source"
    source.mkdir()
    for part in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "media", "mikey", "mcptt_sip", "scenarios"):
        ours = ROOT / part
        if ours.is_dir():
            shutil.copytree(ours, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif ours.exists():
            shutil.copy(ours, source / part)
    installed = tmp_path / "installed"
    build = [sys.executable, "-c", "from setuptools import setup; setup()", "build_py", "--build-lib", str(installed)]
    subprocess.run(build, cwd=source, capture_output=True, check=True)
    assert (installed / "media" / "py.typed").exists()
    for other in ("mikey", "mcptt_sip"):
        shutil.rmtree(installed / other)
    code = (
        f"import doctest, media; assert media.__file__.startswith({str(installed)!r}), media.__file__; "
        "assert not doctest.testmod(media).failed"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True)
