# SPDX-License-Identifier: Apache-2.0
"""Invariant 12. Secrets have types that print as what they are, do not pickle, compare in constant time; they reach no
log, trace or page. Outward errors are uniform; the exact check that failed is in the local log.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from typing import Any

import pytest

from mcptt_sip.mcptt.callerrors import RegroupFailed
from mcptt_sip.mcptt.client import ClientSettings, McpttClient
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.groupcall import GroupCall
from mcptt_sip.mcptt.server import McpttServer
from mcptt_sip.mcptt.userkeys import KeySource
from media.srtp import SrtpKey
from mikey import Keyring, KeyType, Kms, Secret, TransportKey, seal, unseal
from tests.security.town import town, uri

ALICE, BOB = uri("alice"), uri("bob")


def forms(secret: bytes) -> list[str]:
    return [repr(secret)[2:-1], secret.hex(), secret[::-1].hex(), str(list(secret))]


def secrets() -> list[tuple[object, bytes]]:
    """Everything that holds a secret, with the secret."""
    kms, now = Kms.generate("kms.mcx.example", ["mcx.example"]), time.time()
    ring = Keyring()
    ring.add_certificate(kms.certificate)
    for user in (ALICE, BOB):
        ring.add_key_set(kms.issue(user, now))
    tgmk = TransportKey.generate(KeyType.GMK, expiry=int(now + 60), group_ids=("sip:tmp-1@mcx.example",))
    message = seal(tgmk, sender=ALICE, recipient=BOB, keyring=ring, now=now)
    opened = unseal(
        message.octets, sender_uri=ALICE, me=BOB, keyring=ring, now=now, replay=None, expect_type=KeyType.GMK,
        expect_group="sip:tmp-1@mcx.example",
    )  # fmt: skip
    key, ssk = tgmk.key.reveal(), ring.key_set_for(ALICE, now).ssk
    password = b"correct horse battery"
    return [
        (Secret(key), key), (tgmk, key), (opened, key),
        (SrtpKey(bytes(range(16)), bytes(12), b"1234"), bytes(range(16))),
        (ring.key_set_for(ALICE, now), ssk.reveal()),
        (ClientSettings("sip:s", "sip:p", "alice", password.decode()), password),
        (KeySource("https://k", password.decode(), ALICE), password),
    ]


@pytest.mark.parametrize("number", range(7))
def test_no_secret_prints(number: int) -> None:
    holder, secret = secrets()[number]
    for text in (repr(holder), str(holder), f"{holder}", f"{[holder]}"):
        for form in forms(secret):
            assert form not in text
        assert secret.decode("latin-1") not in text and str(int.from_bytes(secret, "big")) not in text


def test_no_key_pickles_and_equality_is_that_of_octets() -> None:
    one, same, other = Secret(b"0123456789abcdef"), Secret(b"0123456789abcdef"), Secret(b"0123456789abcdeg")
    assert one == same and one != other
    for holder in (one, TransportKey.generate(KeyType.CSK)):
        with pytest.raises(TypeError):
            pickle.dumps(holder)


class Spoiling(ControllingFunction):
    """Gives bob something else than the message that alice made for him."""

    spoil: Any = None

    def key_for(self, call: GroupCall, user: str, key: bytes) -> bytes:
        return bytes(self.spoil(key))


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("signature", lambda key: key[:-1] + bytes([key[-1] ^ 1])),
        ("ciphertext", lambda key: key[: len(key) // 2] + bytes([key[len(key) // 2] ^ 1]) + key[len(key) // 2 + 1 :]),
        ("truncated", lambda key: key[:-7]),
        ("nothing", lambda key: b""),
        ("random", lambda key: b"\x01" + bytes(400)),
    ],
)
async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same_and_the_log_says_more(
    name: str, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    function = type("Spoiler", (Spoiling,), {"spoil": staticmethod(spoil)})
    server = type("SpoilingServer", (McpttServer,), {"controlling_function": function})
    with caplog.at_level(logging.INFO):
        async with town(server) as here:
            alice = await here.phone("alice")
            bob = await here.phone("bob")
            with pytest.raises(RegroupFailed) as refusal:
                await alice.client.start_regroup(BOB)
            warning = "136 authentication of the MIKEY-SAKKE I_MESSAGE failed"
            assert (refusal.value.status, refusal.value.warning) == (488, warning)
            assert bob.seen("invitation-refused")
    assert any("invitation refused" in record.getMessage() for record in caplog.records)


@pytest.mark.network
async def test_a_whole_call_leaves_no_key_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    keys: set[bytes] = set()

    def learn(_group: str, key: TransportKey) -> None:
        keys.add(key.key.reveal())

    with caplog.at_level(logging.DEBUG):
        async with town() as here:
            alice = await here.phone("alice", key_observer=learn)
            await here.phones("bob", "carol")
            call = await alice.client.start_regroup(BOB)
            await call.add(uri("carol"))
            await call.remove(BOB)
            await call.revoke()
            keys |= {client.csk.key.reveal() for client in here.clients}
            await asyncio.sleep(0)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert len(text) > 2000 and len(keys) >= 5
    for key in keys:
        assert not any(form in text for form in forms(key))


def test_a_client_is_no_way_to_print_its_keys() -> None:
    assert "csk" not in repr(McpttClient.__repr__)
