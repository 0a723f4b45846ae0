# SPDX-License-Identifier: Apache-2.0
"""The conventions of the I_MESSAGE corpus, sentence by sentence, on messages made here.

Each case is a sound message with one thing done to it before it is signed, judged as `inspect --corpus` judges.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from gmpy2 import mpz

from mikey import KeySet, KeyType, Kms, derive, key_parameters, sakke
from mikey.corpus import judge
from mikey.identity import NTP_OFFSET, ntp_encode
from mikey.key_parameters import KeyParameters
from mikey.payloads import (
    GeneralExtension,
    GenericId,
    Header,
    Idr,
    Opaque,
    Payload,
    Rand,
    SakkeData,
    SecurityPolicy,
    Signature,
    SrtpId,
    Timestamp,
    encode_chain,
)

from .conftest import counting_random

ALICE, BOB, EVE = "sip:alice@example.org", "sip:bob@example.org", "sip:eve@example.org"
T = 1_790_000_000
PERIOD, OFFSET = 2592000, 0
START = 1542 * PERIOD - NTP_OFFSET
"""First second of the key period of T."""
HOUR = 3600
KMS = Kms.generate("kms.example.org", ["example.org"], user_key_period=PERIOD, random=counting_random(7))
OTHER = Kms.generate("sip:kms@b.example.net", ["b.example.net"], user_key_period=PERIOD, random=counting_random(8))


def kms_json(kms: Kms) -> dict[str, Any]:
    c = kms.certificate
    return {
        "kms_uri": c.kms_uri, "user_id_format": 2, "user_key_period": c.user_key_period,
        "user_key_offset": c.user_key_offset, "pub_auth_key_kpak": c.pub_auth_key.hex(),
        "pub_enc_key_z": c.pub_enc_key.hex(),
    }  # fmt: skip


def key_json(key_set: KeySet) -> dict[str, Any]:
    return {"uid": key_set.uid.hex(), "rsk": key_set.rsk.reveal().hex(), "key_period_no": key_set.period_no}


@dataclasses.dataclass
class Draft:
    """A message about to be signed, and what the receiver is told."""

    kind: KeyType = KeyType.CSK
    at: float = T
    """T."""
    now: float | None = None
    key: bytes = bytes(range(1, 17))
    sender: str = ALICE
    receiver: str = BOB
    sender_kms: Kms = KMS
    sender_at: float | None = None
    """When the sender's identity is of; T by default."""
    receiver_at: float | None = None
    header: dict[str, Any] = dataclasses.field(default_factory=dict)
    parameters: Callable[[Draft], bytes] | None = None
    change: Callable[[Draft, list[Payload]], Sequence[Payload]] | None = None
    scope: int = 0
    claimed: str = ALICE
    held: Sequence[float] | None = None
    text: Callable[[bytes], str] = lambda octets: "mikey " + base64.b64encode(octets).decode()
    sed: Callable[[Draft, bytes], bytes] = lambda draft, uid: sakke.encapsulate(
        draft.key, uid, KMS.certificate.pub_enc_key
    )

    @property
    def csb_id(self) -> int:
        """GUK-ID of the receiver for a GMK, else a key id."""
        key_id = self.kind << 28 | 0x0BCDEF1
        return derive.guk_id(self.key, key_id, self.receiver) if self.kind is KeyType.GMK else key_id

    @property
    def mki(self) -> bytes:
        own = self.csb_id.to_bytes(4, "big")
        return (self.kind << 28 | 0x0BCDEF1).to_bytes(4, "big") + own if self.kind is KeyType.GMK else own

    def seal_parameters(self, **changes: Any) -> bytes:
        said = KeyParameters(int(self.kind), **changes)
        return key_parameters.protect(said, self.key, self.csb_id, self.at, b"0123456789abcdef")

    def case(self) -> dict[str, Any]:
        """As in the corpus: an `input`."""
        signer = self.sender_kms.issue(self.sender, self.at if self.sender_at is None else self.sender_at)
        to = KMS.issue(self.receiver, self.at if self.receiver_at is None else self.receiver_at)
        data = self.parameters(self) if self.parameters is not None else self.seal_parameters()
        chain: list[Payload] = [
            Timestamp(0, ntp_encode(self.at)), Rand(bytes(range(16))), Idr(8, 1, signer.uid), Idr(9, 1, to.uid),
            Idr(6, 1, signer.kms_uri.encode()), Idr(7, 1, to.kms_uri.encode()),
            SecurityPolicy.of(dict(self.kind.default_profile)), SakkeData(1, 2, self.sed(self, to.uid)),
            GeneralExtension(7, data),
        ]  # fmt: skip
        if self.change is not None:
            chain = list(self.change(self, chain))
        session = GenericId(self.kind.default_cs_ids[0], spi=self.mki)
        head = Header(**{"csb_id": self.csb_id, "sessions": (session,), **self.header})
        unsigned = encode_chain(head, [*chain, Signature(2, bytes(129))])[:-129]
        octets = unsigned + signer.sign(unsigned[: len(unsigned) - self.scope])
        held = [self.at if self.receiver_at is None else self.receiver_at] if self.held is None else self.held
        out = {
            "kms": kms_json(KMS), "sender_uri": self.claimed, "now_unix": self.at + 5 if self.now is None else self.now,
            "receiver": {"uri": BOB, "keys": [key_json(KMS.issue(BOB, at)) for at in held]},
            "message_text": self.text(octets), "message_b64": base64.b64encode(octets).decode(),
        }  # fmt: skip
        if self.sender_kms is not KMS:
            out["sender_kms"] = kms_json(self.sender_kms)
        return out


def verdict(**changes: Any) -> str:
    draft = Draft(**changes)
    judged = judge(draft.case())
    if judged.verdict == "reject":
        assert judged.opened is None and judged.reason
    else:
        assert judged.opened is not None and judged.opened.key.key.reveal() == draft.key
        assert (judged.reason is None) == (judged.verdict == "accept")
    return judged.verdict


def without(*kinds: Any) -> Callable[[Draft, list[Payload]], list[Payload]]:
    return lambda draft, chain: [
        p for p in chain if not any(p.role == k if isinstance(k, int) and isinstance(p, Idr) else
                                    not isinstance(k, int) and isinstance(p, k) for k in kinds)
    ]  # fmt: skip


def swapped(kind: type, *new: Payload) -> Callable[[Draft, list[Payload]], list[Payload]]:
    return lambda draft, chain: [n for p in chain for n in (new if isinstance(p, kind) else (p,))]


def idr(role: int, *new: Idr) -> Callable[[Draft, list[Payload]], list[Payload]]:
    return lambda draft, chain: [
        n for p in chain for n in (new if isinstance(p, Idr) and p.role == role else (p,))
    ]


def as_uris(uid_form: bool = False) -> Callable[[Draft, list[Payload]], list[Payload]]:
    def change(draft: Draft, chain: list[Payload]) -> list[Payload]:
        out: list[Payload] = []
        for p in chain:
            if isinstance(p, Idr) and p.role in (8, 9):
                uri = (draft.sender if p.role == 8 else draft.receiver).encode()
                p = Idr(p.role - 7, p.id_type, p.data if uid_form else uri)
            out.append(p)
        return out

    return change


def doubled(kind: type) -> Callable[[Draft, list[Payload]], list[Payload]]:
    return lambda draft, chain: [n for p in chain for n in ((p, p) if isinstance(p, kind) else (p,))]


# -- clock and T ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age, said", [(0, "accept"), (55, "accept"), (-55, "accept"), (14 * 86400, "policy"),
                                       (-14 * 86400, "policy"), (400 * 86400, "policy")])  # fmt: skip
def test_clock(age: float, said: str) -> None:
    assert verdict(now=T + age) == said


def test_types_of_time_stamp() -> None:
    assert verdict(change=swapped(Timestamp, Timestamp(1, ntp_encode(T)))) == "policy"
    assert verdict(change=swapped(Timestamp, Timestamp(2, bytes(4)))) == "reject"


@pytest.mark.parametrize("unix", [2085978490.0, 2085978500.0, 4_000_000_000.0])
def test_times_of_era_one(unix: float) -> None:
    assert verdict(at=unix) == "accept"


# -- key periods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead, said", [(1, "accept"), (47 * HOUR, "accept"), (49 * HOUR, "reject"),
                                         (15 * 86400, "reject")])  # fmt: skip
@pytest.mark.parametrize("who", ["sender", "receiver", "both"])
def test_the_last_periods_identities_after_a_boundary(ahead: float, said: str, who: str) -> None:
    last = START - 10.0
    changes: dict[str, Any] = {"at": START + ahead}
    if who in ("sender", "both"):
        changes["sender_at"] = last
    if who in ("receiver", "both"):
        changes["receiver_at"] = last
    assert verdict(**changes) == said
    assert verdict(**changes, change=as_uris()) == said


@pytest.mark.parametrize("before, said", [(1, "accept"), (47 * HOUR, "accept"), (49 * HOUR, "reject")])
def test_the_next_periods_identities_before_a_boundary(before: float, said: str) -> None:
    assert verdict(at=START - before, sender_at=START, receiver_at=START) == said


def test_keys_of_other_periods_only() -> None:
    assert verdict(held=[T - PERIOD, T + PERIOD]) == "reject"
    assert verdict(held=[]) == "reject"
    assert verdict(held=[T - PERIOD, T, T + PERIOD]) == "accept"


# -- identities -------------------------------------------------------------------------------------------------


def test_identities() -> None:
    assert verdict(change=as_uris()) == "accept"
    assert verdict(change=as_uris(uid_form=True)) == "policy"
    for role in (8, 9, 6, 7):
        assert verdict(change=without(role)) == "policy"
        assert verdict(change=lambda d, c, r=role: [*c, next(p for p in c if isinstance(p, Idr) and p.role == r)]
                       ) == "reject"  # fmt: skip
    assert verdict(change=without(6, 7, 8, 9)) == "policy"
    for role, uri in ((8, EVE), (9, EVE)):
        uid = KMS.issue(uri, T).uid
        assert verdict(change=idr(role, Idr(role, 1, uid))) == "reject"
        both = {8: (Idr(8, 1, uid), Idr(1, 1, ALICE.encode())), 9: (Idr(9, 1, uid), Idr(2, 1, BOB.encode()))}[role]
        assert verdict(change=idr(role, *both)) == "reject"
        assert verdict(change=idr(role, Idr(role - 7, 1, uri.encode()))) == "reject"
    assert verdict(claimed=EVE) == "reject"
    assert verdict(sender=EVE, claimed=ALICE, change=without(8)) == "reject"
    assert verdict(change=idr(8, Idr(8, 2, KMS.issue(ALICE, T).uid))) == "accept"
    for role in (6, 7):
        assert verdict(change=idr(role, Idr(role, 1, b"kms.elsewhere.example"))) == "reject"
    uris = [Idr(8, 1, KMS.issue(ALICE, T).uid), Idr(1, 1, ALICE.encode())]
    assert verdict(change=idr(8, *uris)) == "accept"


def test_several_kmss() -> None:
    assert verdict(sender_kms=OTHER, sender="sip:al@b.example.net", claimed="sip:al@b.example.net") == "accept"
    alien = {"sender_kms": OTHER, "sender": "sip:al@b.example.net", "claimed": "sip:al@b.example.net"}
    assert verdict(**alien, change=idr(6, Idr(6, 1, b"kms.example.org"))) == "reject"
    assert verdict(**alien, change=idr(7, Idr(7, 1, b"sip:kms@b.example.net"))) == "reject"
    assert verdict(**alien, change=without(6, 7)) == "policy"


# -- payloads ---------------------------------------------------------------------------------------------------


def test_payloads_left_out_doubled_and_in_another_order() -> None:
    for kind in (Timestamp, Rand, SakkeData):
        assert verdict(change=without(kind)) == "reject"
        assert verdict(change=doubled(kind)) == "reject"
    assert verdict(change=lambda d, c: c[::-1]) == "accept"
    assert verdict(change=lambda d, c: [*c[5:], *c[:5]]) == "accept"
    assert verdict(change=without(SecurityPolicy)) == "accept"
    two = SecurityPolicy.of({0: 6}, 0), SecurityPolicy.of({0: 1}, 1)
    assert verdict(change=swapped(SecurityPolicy, *two)) == "accept"
    assert verdict(change=lambda d, c: [*c, Opaque(6, b"\x01\x00\x03abc")]) == "accept"


@pytest.mark.parametrize("length, said", [(0, "reject"), (1, "policy"), (15, "policy"), (16, "accept"),
                                          (255, "accept")])  # fmt: skip
def test_lengths_of_rand(length: int, said: str) -> None:
    assert verdict(change=swapped(Rand, Rand(bytes(length)))) == said


def test_maps_and_flags() -> None:
    assert verdict(header={"v_flag": True}) == "accept"
    assert verdict(header={"prf": 0}) == verdict(header={"prf": 2}) == "policy"
    assert verdict(header={"map_type": 1, "sessions": ()}) == "accept"
    assert verdict(header={"map_type": 1, "sessions": ()}, change=without(SecurityPolicy)) == "accept"
    assert verdict(header={"map_type": 0, "sessions": (SrtpId(0, 0, 0), SrtpId(0, 1, 2))}) == "accept"
    assert verdict(header={"map_type": 0, "sessions": ()}) == "accept"
    assert verdict(header={"sessions": ()}) == "policy"
    assert verdict(header={"sessions": (GenericId(6), GenericId(7))}) == "accept"
    assert verdict(header={"sessions": (GenericId(6, spi=b"1234"),)}) == "policy"
    assert verdict(header={"sessions": (GenericId(6, s_flag=True, session_data=bytes(10)),)}) == "accept"
    assert verdict(header={"data_type": 27}) == "reject"


def test_signature_scope() -> None:
    assert verdict(scope=2) == "policy"
    assert verdict(scope=1) == verdict(scope=3) == "reject"


# -- SAKKE ------------------------------------------------------------------------------------------------------


def padded_and_not(uid: bytes) -> tuple[bytes, bytes, bytes]:
    """A key whose g^r has a zero top octet: the key, its SED, and that of a sender who strips the zero."""
    source = counting_random(3)
    while True:
        key = source(16)
        r = sakke.hash_to_range(key + uid, sakke.Q)
        w = int(sakke.power_table.power(r)).to_bytes(128, "big")
        if not w[0]:
            break
    sed = sakke.encapsulate(key, uid, KMS.certificate.pub_enc_key)
    mask = int(sakke.hash_to_range(w.lstrip(b"\0"), mpz(1) << 128)).to_bytes(16, "big")
    return key, sed, sed[:257] + bytes(a ^ b for a, b in zip(key, mask, strict=True))


def test_habits_of_sakke() -> None:
    uid = KMS.issue(BOB, T).uid
    key, sed, stripped = padded_and_not(uid)
    assert verdict(key=key, sed=lambda d, u: sed) == "accept"
    assert verdict(key=key, sed=lambda d, u: stripped) == "policy"
    for kind in (KeyType.PCK, KeyType.GMK):
        assert verdict(kind=kind, key=bytes(range(32)), parameters=None) == "policy"
    first = bytes(range(32))

    def cut(draft: Draft) -> bytes:
        said = KeyParameters(int(draft.kind))
        return key_parameters.protect(said, draft.key[:16], draft.csb_id, T, bytes(16))

    assert verdict(key=first, parameters=cut) == "policy"


@pytest.mark.parametrize("change", [
    lambda sed: sed[:-2], lambda sed: sed + b"\0", lambda sed: b"\x05" + sed[1:], lambda sed: b"",
    lambda sed: sed[:257], lambda sed: sed + bytes(15), lambda sed: b"\x04" + bytes(256) + sed[257:],
    lambda sed: sed[:-1] + b"?",
])  # fmt: skip
def test_other_encapsulations(change: Callable[[bytes], bytes]) -> None:
    assert verdict(sed=lambda d, u: change(sakke.encapsulate(d.key, u, KMS.certificate.pub_enc_key))) == "reject"


def test_other_parameter_sets_and_schemes() -> None:
    for parameters, scheme in ((0, 2), (2, 2), (1, 0), (1, 1), (1, 3), (1, 240)):
        def change(d: Draft, c: list[Payload], p: int = parameters, s: int = scheme) -> list[Payload]:
            return [SakkeData(p, s, q.sed) if isinstance(q, SakkeData) else q for q in c]

        assert verdict(change=change) == "reject"


# -- key parameters ---------------------------------------------------------------------------------------------


def test_key_parameters() -> None:
    gone = without(GeneralExtension)
    assert verdict(change=gone) == "accept"
    assert verdict(kind=KeyType.GMK, change=gone) == "accept"
    assert verdict(change=lambda d, c: [*c, GeneralExtension(0, b"vendor"), GeneralExtension(99, b"")]) == "accept"
    for data in (b"", b"\x40", bytes(40), b"\x40" + bytes(60)):
        assert verdict(parameters=lambda d, o=data: o) == "reject"
    assert verdict(parameters=lambda d: d.seal_parameters()[:-1] + b"?") == "reject"

    def of_type(kind: int) -> Callable[[Draft], bytes]:
        return lambda d: key_parameters.protect(KeyParameters(kind), d.key, d.csb_id, T, bytes(16))

    assert verdict(parameters=of_type(int(KeyType.PCK))) == "reject"
    assert verdict(parameters=of_type(int(KeyType.CSK))) == "accept"
    assert verdict(parameters=lambda d: d.seal_parameters(status=0)) == "policy"
    assert verdict(parameters=lambda d: d.seal_parameters(status=3)) == "accept"
    assert verdict(parameters=lambda d: d.seal_parameters(status=2)) == "policy"
    assert verdict(parameters=lambda d: d.seal_parameters(activation=T + 3600)) == "policy"
    assert verdict(parameters=lambda d: d.seal_parameters(activation=T - 3600)) == "accept"
    assert verdict(parameters=lambda d: d.seal_parameters(expiry=T - 1)) == "policy"
    assert verdict(parameters=lambda d: d.seal_parameters(expiry=T + 3600)) == "accept"
    assert verdict(parameters=lambda d: d.seal_parameters(text="Größe")) == "accept"
    groups = ("sip:g1@example.org", "sip:g2@example.org")
    for kind in (KeyType.GMK, KeyType.MUSIK, KeyType.MKFC):
        for few in ((), groups[:1], groups):
            assert verdict(kind=kind, parameters=lambda d, g=few: d.seal_parameters(group_ids=g)) == "accept"


def test_clear_key_parameters() -> None:
    def clear(kind: int, tail: bytes = b"") -> Callable[[Draft], bytes]:
        return lambda d: bytes((kind,)) + (1).to_bytes(4, "big") + bytes(10) + bytes(2) + tail

    assert verdict(parameters=clear(int(KeyType.CSK))) == "policy"
    assert verdict(parameters=clear(int(KeyType.CSK) + 1)) == "policy"
    assert verdict(parameters=clear(int(KeyType.PCK))) == "reject"
    assert verdict(kind=KeyType.GMK, parameters=clear(0, bytes(4))) == "policy"
    assert verdict(parameters=lambda d: clear(2)(d)[:12]) == "reject"


@pytest.mark.parametrize("kind", list(KeyType))
def test_every_known_purpose_tag(kind: KeyType) -> None:
    assert verdict(kind=kind) == "accept"


@pytest.mark.parametrize("tag", range(7, 16))
def test_unknown_purpose_tags(tag: int) -> None:
    assert verdict(header={"csb_id": tag << 28 | 5, "sessions": ()}) == "reject"


# -- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, said", [
    (lambda b: f"mikey {b}", "accept"), (lambda b: f"mikey {b[:76]}\r\n{b[76:]}", "policy"),
    (lambda b: f"mikey {b[:76]}\n{b[76:]}", "policy"), (lambda b: f"mikey {b}\n", "policy"),
    (lambda b: b, "reject"), (lambda b: f"mikey{b}", "reject"), (lambda b: f"mikey  {b}", "reject"),
    (lambda b: f"MIKEY {b}", "reject"), (lambda b: f"mikey {b[:40]} {b[40:]}", "reject"),
    (lambda b: "mikey ", "reject"), (lambda b: "", "reject"), (lambda b: f"mikey {b[:-1]}", "reject"),
    (lambda b: f"mikey {b}=", "reject"),
    (lambda b: f"mikey {b[:40]}*{b[41:]}", "reject"), (lambda b: f"mikey {b[:40]}-{b[41:]}", "reject"),
])  # fmt: skip
def test_text_forms(text: Callable[[str], str], said: str) -> None:
    assert verdict(text=lambda octets: text(base64.b64encode(octets).decode())) == said
