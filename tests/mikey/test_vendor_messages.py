# SPDX-License-Identifier: Apache-2.0
"""Messages that products have sent, opened with the code a phone uses."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest

from mikey import LENIENT, OFFLINE, STRICT, Keyring, KeySet, KmsCertificate, Secret, decode_text, read, unseal
from mikey.errors import Deviation, KeyRevoked, MikeyError, WrongPeriod
from mikey.imessage import OpenedKey
from mikey.policy import Policy

H = bytes.fromhex


def ring_of(kms: dict[str, Any], users: list[dict[str, Any]], domains: tuple[str, ...]) -> Keyring:
    ring = Keyring()
    certificate = KmsCertificate(
        kms["kms_uri"],
        H(kms["pub_enc_key_z"]),
        H(kms["pub_auth_key_kpak"]),
        user_key_period=kms["user_key_period"],
        user_key_offset=kms["user_key_offset"],
    )
    ring.add_certificate(certificate, domains=domains)
    for u in users:
        ring.add_key_set(
            KeySet(
                u["user_uri"],
                H(u["uid"]),
                u["key_period_no"],
                certificate,
                Secret(H(u["rsk"])),
                Secret(H(u["ssk"])),
                H(u["pvt"]),
            )
        )
    return ring


def opened(ring: Keyring, m: dict[str, Any], policy: Policy) -> OpenedKey:
    octets = decode_text(m["i_message"])
    return unseal(
        octets,
        sender_uri=m["initiator_uri"],
        me=m["responder_uri"],
        keyring=ring,
        now=read(octets).timestamp + 1,
        replay=None,
        expect_type=None,
        policy=policy,
    )


def test_streamwides_messages_open_strictly(vendors: dict[str, Any]) -> None:
    block = vendors["streamwide_v5"]
    ring = ring_of(block["kms"], list(block["users"].values()), ("streamwide.com",))
    for m in block["messages"][:3]:
        out = opened(ring, m, STRICT)
        check = m["oracle_check"]
        assert out.key.key.reveal().hex() == check["key"]
        assert f"{out.key.key_id:08x}" == check["key_id"]
        assert out.key.rand.hex() == check["rand"]
        assert f"{out.csb_id:08x}" == check["csb_id"]
        assert out.parameters_sealed and out.key.status == 1 and not out.key.revoked


def test_streamwides_legacy_message_opens_leniently_only(vendors: dict[str, Any]) -> None:
    block = vendors["streamwide_v5"]
    ring = ring_of(block["kms"], list(block["users"].values()), ("streamwide.com",))
    m = block["messages"][3]
    with pytest.raises(Deviation):
        opened(ring, m, STRICT)
    out = opened(ring, m, LENIENT)
    assert out.key.key.reveal().hex() == m["oracle_check"]["key"]


def test_aleas_messages_open(vendors: dict[str, Any]) -> None:
    block = vendors["alea_v3"]
    ring = ring_of(block["kms"], list(block["users"].values()), ("test.org", "gms.test.org", "veronica-cluster",
                                                                 "mcptt-participant.test.org"))
    gmk, csk = block["messages"][:2]
    with pytest.raises(KeyRevoked) as caught:  # Alea sends status 0 on live keys
        opened(ring, gmk, STRICT)
    assert caught.value.opened is not None and caught.value.opened.key.key.reveal().hex() == gmk["key"]
    out = opened(ring, gmk, LENIENT)
    assert out.key.key.reveal().hex() == gmk["key"] and f"{out.key.key_id:08x}" == gmk["key_id"]
    assert out.key.group_ids == ("sip:g4.chat@veronica-cluster",)
    assert (out.key.activation, out.key.expiry) == (1758980858, 4294967295)
    out = opened(ring, csk, STRICT)  # no key parameters at all
    assert out.key.key.reveal().hex() == csk["key"] and not out.parameters_sealed


def test_keys_of_another_period_than_the_time_stamps_are_refused_unless_the_grace_allows(
    vendors: dict[str, Any],
) -> None:
    block = vendors["infer_key_period"]
    key = block["alice_keys"][0]
    kms = {
        "kms_uri": key["kms_uri"],
        "pub_enc_key_z": key["z"],
        "pub_auth_key_kpak": key["kpak"],
        "user_key_period": key["user_key_period"],
        "user_key_offset": key["user_key_offset"],
    }
    ring = ring_of(kms, block["alice_keys"], ("org.com", "streamwide.com"))
    years = dataclasses.replace(OFFLINE, period_grace=3 * 366 * 86400.0)
    for m in block["messages"]:
        octets = decode_text(m["i_message"])
        with pytest.raises(MikeyError):
            opened(ring, m, STRICT)
        # these messages are the vendor's tests of guessing a period far from T: no grace reaches them here,
        # and its own tests do not check the signature either; the identity and key are what must be told
        assert read(octets).key_type == 0
        with pytest.raises(MikeyError):
            opened(ring, m, years)


def test_messages_without_published_keys_are_read_and_written_back(vendors: dict[str, Any]) -> None:
    for m in vendors["parse_only_messages"]:
        octets = base64.b64decode(m["i_message"].removeprefix("mikey "))
        assert read(octets).encode() == octets


def test_wrong_period_is_its_own_reason() -> None:
    assert issubclass(WrongPeriod, MikeyError) and WrongPeriod.reason == "wrong-period"
