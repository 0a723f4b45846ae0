# SPDX-License-Identifier: Apache-2.0
"""All cases of the corpus through the `unseal` of a phone: who opens what, with which key, and the typed refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mikey import OFFLINE, STRICT, KeyType, OpenedKey, decode_text, derive, errors, read, srtp_keys, unseal
from mikey.corpus import judge, keyring_of
from mikey.errors import MikeyError
from mikey.policy import Policy

from .conftest import VECTORS

CASES = {c["id"]: c for c in json.loads((VECTORS / "i_message_corpus.json").read_text())["cases"]}

REFUSALS: dict[str, type[MikeyError]] = {
    "parse": errors.ParseError,
    "text": errors.TextError,
    "ts-type": errors.Unsupported,
    "unsupported-parameters": errors.Unsupported,
    "identifier-scheme": errors.Unsupported,
    "missing-payload": errors.MissingPayload,
    "missing-signature": errors.MissingPayload,
    "duplicate-payload": errors.DuplicatePayload,
    "bad-timestamp": errors.RecipientMismatch,  # IDRr is no UID of the period of that T
    "no-key-for-period": errors.NoKeyForPeriod,
    "sender-mismatch": errors.SenderMismatch,
    "unknown-kms": errors.UnknownKms,
    "bad-signature": errors.BadSignature,
    "sakke-check": errors.DecapsulationFailed,
    "bad-point-encoding": errors.DecapsulationFailed,
    "bad-length": errors.DecapsulationFailed,
    "key-params-auth": errors.BadKeyParameters,
    "key-params-parse": errors.BadKeyParameters,
}
"""The corpus' reason -> what is raised."""
EARLIER: dict[str, type[MikeyError]] = {
    "pub-kp-ge-empty": errors.BadKeyParameters,  # well framed, so only the inside can tell
    "pub-flip-idrr-middle": errors.RecipientMismatch,  # a cheap check comes before the signature
    "pub-flip-idrkmsr-middle": errors.UnknownKms,
    "pub-from-uri-mismatch": errors.SenderMismatch,
    "pub-dt-27": errors.Unsupported,
    "pub-ts-type-9": errors.Unsupported,
}
STRICT_REFUSALS: dict[str, tuple[type[MikeyError], str]] = {
    "non-standard-parameter-set": (errors.DecapsulationFailed, "sakke-check"),
    "unpadded-hash": (errors.DecapsulationFailed, "sakke-check"),
    "bad-length": (errors.DecapsulationFailed, "sakke-check"),
    "stale-timestamp": (errors.StaleTimestamp, "stale-timestamp"),
    "expired-key": (errors.KeyExpired, "expired-key"),
    "identity-role": (errors.Deviation, "uid-in-uri-role"),
    "missing-kms-id": (errors.Deviation, "missing-kms-id"),
    "missing-payload": (errors.Deviation, "missing-identity"),
    "signature-scope": (errors.Deviation, "signature-scope"),
    "legacy-key-params": (errors.Deviation, "clear-key-parameters"),
    "bad-rand": (errors.Deviation, "short-rand"),
}
"""For verdict policy: what strict raises, and its reason."""


def of(verdict: str) -> list[Any]:
    return [pytest.param(c, id=c["id"]) for c in CASES.values() if c["expected"]["verdict"] == verdict]


def opened(case: dict[str, Any], policy: Policy) -> OpenedKey:
    given = case["input"]
    return unseal(
        decode_text(given["message_text"], policy),
        sender_uri=given["sender_uri"],
        me=given["receiver"]["uri"],
        keyring=keyring_of(given),
        now=float(given["now_unix"]),
        replay=None,
        expect_type=None,
        policy=policy,
        allow_pending=policy is OFFLINE,
    )


def agree(out: OpenedKey, expected: dict[str, Any]) -> None:
    """Key, key id, parameters, times and SRTP derivations are those of the corpus."""
    assert out.key.key.reveal().hex() == expected["key"]
    assert (f"{out.key.key_id:08x}", f"{out.csb_id:08x}") == (expected["key_id"], expected["csb_id"])
    assert (out.key.rand.hex(), out.key.type.name) == (expected["rand"], expected["key_type"].upper())
    assert int(out.timestamp) == expected["timestamp_unix"]
    said = expected.get("key_params")
    if said:
        got = (out.key.status, out.key.activation, out.key.expiry, out.key.text, list(out.key.group_ids))
        assert got[:3] == (said["status"], said["activation_time"], said["expiry_time"])
        assert got[3:] == (said["text"], said.get("group_ids", []))
    derived = expected.get("derived", {})  # some cases tell the key alone
    for keys in derived.get("srtp", []):
        length = len(keys["srtp_master_key"]) // 2
        master, salt = srtp_keys(out.key, csb_id=out.csb_id, cs_id=keys["cs_id"], key_length=length)
        assert (master.reveal().hex(), salt.reveal().hex()) == (keys["srtp_master_key"], keys["srtp_master_salt"])
    if "dpck_from_csb_id" in derived:
        assert derive.dpck(out.key.key.reveal(), out.csb_id).hex() == derived["dpck_from_csb_id"]
    if "mki" in derived:
        assert out.key.mki(out.csb_id).hex() == derived["mki"]


def test_the_corpus_is_whole() -> None:
    assert {v: len(of(v)) for v in ("accept", "policy", "reject")} == {"accept": 27, "policy": 11, "reject": 55}


@pytest.mark.parametrize("case", of("accept"))
def test_strict_opens_what_must_be_opened(case: dict[str, Any]) -> None:
    agree(opened(case, STRICT), case["expected"])
    message = read(decode_text(case["input"]["message_text"]))
    assert message.encode() == message.octets


@pytest.mark.parametrize("case", of("policy"))
def test_strict_refuses_and_lenient_opens_what_is_sound_but_deviates(case: dict[str, Any]) -> None:
    kind, reason = STRICT_REFUSALS[case["expected"]["reason"]]
    with pytest.raises(kind) as caught:
        opened(case, STRICT)
    assert type(caught.value) is kind and caught.value.reason == reason
    agree(opened(case, OFFLINE), case["expected"])


@pytest.mark.parametrize("case", of("reject"))
def test_no_profile_opens_what_must_be_refused(case: dict[str, Any]) -> None:
    kind = EARLIER.get(case["id"]) or REFUSALS[case["expected"]["reason"]]
    with pytest.raises(MikeyError):
        opened(case, STRICT)
    with pytest.raises(kind):
        opened(case, OFFLINE)


def test_judging_broken_input_is_a_verdict() -> None:
    case = json.loads(json.dumps(CASES["pub-pck-basic"]["input"]))
    case["kms"]["pub_enc_key_z"] = "zz"
    assert judge(case).verdict == "reject"
    assert judge({}).verdict == "reject"


def test_every_type_of_key_is_in_the_corpus() -> None:
    kinds = {c["expected"].get("key_type", "GMK").upper() for c in CASES.values()}
    assert {"GMK", "PCK", "CSK", "SPK", "MUSIK"} <= kinds <= {k.name for k in KeyType}
