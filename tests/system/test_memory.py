# SPDX-License-Identifier: Apache-2.0
"""The server never holds a key that opens media: not in its memory, not in anything it leaves (security rule 5)."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.ops.scenario import Lab, laboratory
from mikey import KeyType, Secret, TransportKey, guk_id
from tests.system import scanner

pytestmark = pytest.mark.network
VOICES = Path(__file__).parents[2] / "scenarios" / "data"


def secrets_of(record: dict[str, str]) -> dict[str, bytes]:
    """The group key of a line of NAME.keys.jsonl, and what is derived from it for each member."""
    key = TransportKey(
        KeyType.GMK, Secret(bytes.fromhex(record["gmk"])), int(record["gmk_id"], 16), bytes.fromhex(record["rand"])
    )
    found = {"tgmk": key.key.reveal()}
    for name in ("alice", "bob", "carol"):
        media = Regroup.srtp_key(key, guk_id(key, Lab.uri(name)))
        found |= {f"{name}'s master key": media.master_key, f"{name}'s master salt": media.master_salt}
    return found


def test_the_scanner_finds_every_form() -> None:
    secret = bytes(range(7, 23))
    for name, octets in scanner.forms(secret).items():
        assert len(octets) >= 16, name
    for text in (
        secret, secret[::-1], secret.hex().encode(), base64.b64encode(b"x" + secret + b"yz"),
        base64.b64encode(b"xy" + secret + b"z"), base64.b64encode(secret + b"tail"), repr(secret.hex()).encode(),
    ):
        assert scanner.search([b"before" + text + b"after"], {"it": secret}), text
    assert not scanner.search([os.urandom(4096)], {"it": secret})


async def test_no_form_of_a_key_is_in_the_server_and_each_is_in_a_member(tmp_path: Path) -> None:
    async with laboratory(tmp_path, keep_keys=True) as lab:
        for name in ("alice", "bob", "carol"):
            lab.user(name, allow_regroup=name == "alice")
        await lab.start_kms()
        server = await lab.start_server()
        alice, bob, _carol = await lab.phones("alice", "bob", "carol")
        await alice.do("call bob carol")
        await alice.do(f"say {VOICES / 'alice.wav'}", timeout=30)
        await alice.do("rekey")
        await bob.do(f"say {VOICES / 'bob.wav'}", timeout=30)
        records = [json.loads(line) for line in (tmp_path / "alice.keys.jsonl").read_text().splitlines()]
        assert len(records) == 2, "the first key and the one of the rekeying"
        for record in records:
            secrets = secrets_of(record)
            assert scanner.in_process(server.pid, secrets) == set()
            assert "tgmk" in {name for name, _ in scanner.in_process(bob.pid, secrets)}
    left = [path for path in tmp_path.iterdir() if not path.name.endswith(".keys.jsonl")]
    assert {"server.log", "server.pcapng", "server.events.jsonl", "bob.log", "bob.pcapng"} <= {p.name for p in left}
    for record in records:
        assert scanner.in_files(left, secrets_of(record)) == set()
        assert scanner.in_files(tmp_path.glob("bob.keys.jsonl"), secrets_of(record))
