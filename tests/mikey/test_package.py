# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: what importing costs, what the docstrings promise, what secrets print."""

from __future__ import annotations

import copy
import doctest
import importlib
import json
import pickle
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import mikey

from .conftest import ALICE, NOW, World

MODULES = [m.name for m in pkgutil.iter_modules(mikey.__path__, "mikey.") if m.name != "mikey.__main__"]
HEAVY = ("aiohttp", "asyncio", "cryptography", "gmpy2", "lxml", "sqlite3", "ssl", "yarl")


def loaded(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after `code`."""
    code += f"\nimport json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_loads_nothing_heavy() -> None:
    assert loaded("import mikey; mikey.__all__; mikey.MikeyError") == set()


def test_reading_a_message_needs_no_network_or_xml(world: World) -> None:
    octets = world.sealed().octets.hex()
    assert not loaded(f"import mikey; mikey.read(bytes.fromhex('{octets}'))") & {"aiohttp", "asyncio", "lxml", "ssl"}
    wanted = loaded("from mikey import Kms, Keyring, TransportKey, KeyType, seal, unseal; Kms.generate('k', ['d'])")
    assert not wanted & {"aiohttp", "asyncio", "lxml", "ssl", "sqlite3"}


def test_no_module_of_the_package_needs_the_sip_stack() -> None:
    code = f"import importlib, sys\nfor m in {MODULES!r}: importlib.import_module(m)\n"
    code += "assert not [m for m in sys.modules if m.split('.')[0] in ('mcptt_sip', 'media')]"
    assert "gmpy2" in loaded(code)


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    for name in mikey.__all__:
        value = getattr(mikey, name)
        assert value is not None
        if callable(value):
            assert value.__doc__, name
    with pytest.raises(AttributeError):
        _ = mikey.no_such_name  # type: ignore[attr-defined]


def test_the_examples_of_the_docstrings_run() -> None:
    ran = 0
    for name in ["mikey", *MODULES]:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        ran += result.attempted
    assert ran >= 15


def test_secrets_do_not_print_pickle_or_copy(world: World) -> None:
    key = world.tgmk()
    key_set = world.ring.key_set_for(ALICE, NOW)
    secrets: list[Any] = [key, key.key, key_set, key_set.rsk, world.kms.generations[0][1]]
    hexes = [key.key.reveal().hex(), key_set.rsk.reveal().hex(), key_set.ssk.reveal().hex()]
    for value in secrets:
        shown = f"{value} {value!r}"
        assert not any(h in shown for h in hexes)
        with pytest.raises(TypeError):
            pickle.dumps(value)
        with pytest.raises(TypeError):
            copy.deepcopy(value)


def test_no_error_text_holds_key_material(world: World) -> None:
    from mikey import STRICT, unseal
    from mikey.errors import MikeyError

    key = world.tgmk(expiry=0, group_ids=())
    octets = world.sealed(key, management_server=True).octets
    with pytest.raises(MikeyError) as caught:
        unseal(octets, sender_uri=ALICE, me="sip:bob@example.org", keyring=world.ring, now=NOW, replay=None,
               expect_type=None, expect_group="sip:g@example.org", policy=STRICT)  # fmt: skip
    assert key.key.reveal().hex() not in str(caught.value) + repr(caught.value)
