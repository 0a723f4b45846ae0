# SPDX-License-Identifier: Apache-2.0
"""What other implementations got wrong, each as a test: leading zeros, small orders, malleability, odd encodings."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gmpy2 import mpz

from mikey import (
    LENIENT,
    STRICT,
    KeyType,
    MemoryReplayCache,
    Secret,
    TransportKey,
    acknowledgement_key,
    derive,
    eccsi,
    guk_id,
    identity,
    sakke,
    sealing,
    unseal,
)
from mikey.errors import (
    BadSignature,
    DecapsulationFailed,
    Deviation,
    InvalidKey,
    MikeyError,
    Replayed,
    SealRefused,
    StaleTimestamp,
    Unsupported,
)
from mikey.field import Q, decode_point, encode_point
from mikey.identity import kdf_input, minimal_octets, tel_identifier, uid
from mikey.keyring import Keyring
from mikey.kms_documents import decode_key_set, encode_response, parse
from mikey.payloads import Header, IMessage, Signature, decode_chain, encode_chain
from mikey.policy import Policy

from .conftest import ALICE, BOB, NOW, World

ORDER = int(eccsi.ORDER)


def drawn(seed: int, wanted: Callable[[bytes], bool]) -> bytes:
    """16 octets with a property; the same in every run."""
    source = random.Random(seed)
    for _ in range(20_000):
        octets = source.randbytes(16)
        if wanted(octets):
            return octets
    raise AssertionError("nothing found")


def through(world: World, key: bytes, policy: Policy = STRICT) -> bytes:
    """Seal a key for Bob, open it as Bob."""
    transport = TransportKey(KeyType.PCK, Secret(key), 0x10000001, bytes(range(16)))
    sealed = world.sealed(transport)
    out = unseal(sealed.octets, sender_uri=ALICE, me=BOB, keyring=world.ring, now=NOW, replay=None,
                 expect_type=KeyType.PCK, policy=policy)  # fmt: skip
    return out.key.key.reveal()


def bob(world: World) -> tuple[bytes, bytes]:
    """Bob's UID and Z."""
    key_set = world.ring.key_set_for(BOB, NOW)
    return key_set.uid, key_set.certificate.pub_enc_key


def w_of(key: bytes, identity: bytes) -> bytes:
    """g^r as 128 octets."""
    return int(sakke.power_table.power(sakke.hash_to_range(key + identity, Q))).to_bytes(128, "big")


# -- leading zeros --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> None:
    sakke.power_table.build()
    sakke.base_table.build()


def test_t1_g_to_the_r_is_hashed_as_128_octets(world: World, tables: None) -> None:
    identity, z = bob(world)
    key = drawn(1, lambda k: w_of(k, identity)[0] == 0)
    w = w_of(key, identity)
    sed = sakke.encapsulate(key, identity, z)
    mask = hashlib.sha256(hashlib.sha256(bytes(32)).digest() + hashlib.sha256(w).digest()).digest()
    assert sed[257:] == bytes(a ^ b for a, b in zip(key, mask[16:], strict=True))
    assert through(world, key) == key
    # a sender that strips the zero: refused strictly, opened by the named switch
    stripped = hashlib.sha256(hashlib.sha256(bytes(32)).digest() + hashlib.sha256(w.lstrip(b"\0")).digest()).digest()
    foreign = sed[:257] + bytes(a ^ b for a, b in zip(key, stripped[16:], strict=True))
    receiver = world.ring.key_set_for(BOB, NOW).receiver_key
    with pytest.raises(DecapsulationFailed):
        sakke.decapsulate(foreign, receiver)
    assert sakke.decapsulate(foreign, receiver, unpadded_hash=True) == (key, frozenset({"unpadded_hash"}))


def test_t2_keys_of_32_octets_need_a_named_switch(world: World) -> None:
    identity, z = bob(world)
    receiver = world.ring.key_set_for(BOB, NOW).receiver_key
    key = bytes(range(32))
    sed = sakke.encapsulate(key, identity, z)
    assert len(sed) == 289
    with pytest.raises(DecapsulationFailed):
        sakke.decapsulate(sed, receiver)
    assert sakke.decapsulate(sed, receiver, long_key=True)[0] == key
    with pytest.raises(SealRefused):
        world.sealed(TransportKey(KeyType.PCK, Secret(key), 0x10000001, bytes(16)))


def test_t3_a_hint_with_a_leading_zero_keeps_it(world: World, tables: None) -> None:
    identity, z = bob(world)
    source = random.Random(3)
    for _ in range(20_000):  # only the hint is computed, the point is not needed for it
        key = source.randbytes(16)
        mask = hashlib.sha256(hashlib.sha256(bytes(32)).digest() + hashlib.sha256(w_of(key, identity)).digest())
        if key[0] == mask.digest()[16]:
            break
    sed = sakke.encapsulate(key, identity, z)
    assert len(sed) == 273 and sed[257] == 0
    assert through(world, key) == key
    receiver = world.ring.key_set_for(BOB, NOW).receiver_key
    short = sed[:257] + sed[258:]
    with pytest.raises(DecapsulationFailed):
        sakke.decapsulate(short, receiver)
    assert sakke.decapsulate(short, receiver, short_hint=True) == (key, frozenset({"short_hint"}))


@pytest.mark.parametrize("key", [bytes(16), bytes(15) + b"\1", bytes(8) + b"\xff" * 8, b"\xff" * 16])
def test_t3_keys_with_leading_zeros_keep_their_length(world: World, key: bytes) -> None:
    assert through(world, key) == key


def test_signatures_whose_r_or_s_begins_with_zeros(world: World) -> None:
    key_set = world.ring.key_set_for(ALICE, NOW)
    kpak = key_set.certificate.pub_auth_key
    h = eccsi.hs(kpak, key_set.uid, key_set.pvt)
    found = set()
    for j in range(2, 5000):
        signature = eccsi.sign(b"octets", key_set.ssk.reveal(), h, key_set.pvt, j=j)
        if signature[0] and signature[32]:
            continue
        found.add("r" if not signature[0] else "s")
        assert len(signature) == 129
        eccsi.verify(b"octets", signature, key_set.uid, kpak)
        if found == {"r", "s"}:
            break
    assert found == {"r", "s"}


def test_t19_an_ssk_written_with_extra_zeros_or_fewer_digits_is_a_number(world: World) -> None:
    from mikey.kms_documents import KmsResponse

    key_set = world.ring.key_set_for(ALICE, NOW)
    xml = encode_response(KmsResponse(ALICE, "k", NOW, "u", key_sets=(key_set,))).decode()
    ssk = key_set.ssk.reveal().hex().upper()
    assert ssk in xml
    element = parse(xml.replace(ssk, "0000" + ssk).encode()).find(".//{*}KmsKeySet")
    assert decode_key_set(element).ssk == key_set.ssk


def test_t4_a_power_of_g_is_not_a_power_of_its_representative() -> None:
    """g^r is the class of (1 + gi)^r, divided out at the end; pow(g, r, p) is another number."""
    from gmpy2 import invert, powmod

    from mikey.field import G_PAIRED, P

    for k in (mpz(1), mpz(2), mpz(3), mpz(77), Q - 2):
        a, b = mpz(1), mpz(0)
        for bit in bin(int(k))[2:]:
            a, b = (a * a - b * b) % P, 2 * a * b % P
            if bit == "1":
                a, b = (a - b * G_PAIRED) % P, (b + a * G_PAIRED) % P
        literal = b * invert(a, P) % P
        assert sakke.power_table.power(k) == literal
        assert (literal == powmod(G_PAIRED, k, P)) == (k == 1)


def test_t6_r_between_the_two_moduli_is_decided_by_the_literal_equation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n <= r < p happens once in 2**128, so the order is said to be r itself: the rare way must decide alike."""
    key_set = world.ring.key_set_for(ALICE, NOW)
    kpak, point = key_set.certificate.pub_auth_key, eccsi._base_multiply(mpz(int(key_set.ssk.reveal().hex(), 16)))
    good = b""
    while not good[32:64] or good[32:64] >= good[:32]:  # s is below the order still
        good = key_set.sign(b"octets")
    literally: list[bool] = []
    whole = eccsi._holds_literally

    def counted(*arguments: Any) -> bool:
        literally.append(whole(*arguments))
        return literally[-1]

    monkeypatch.setattr(eccsi, "_holds_literally", counted)
    monkeypatch.setattr(eccsi, "_point_of", lambda *arguments: point)
    monkeypatch.setattr(eccsi, "ORDER", mpz(int.from_bytes(good[:32], "big")))
    eccsi.verify(b"octets", good, key_set.uid, kpak)
    with pytest.raises(BadSignature):
        eccsi.verify(b"other octets", good, key_set.uid, kpak)
    assert literally == [True, False]


def test_t6_the_octets_depend_on_the_recipient(world: World) -> None:
    z = world.kms.certificate.pub_enc_key
    seds = {sakke.encapsulate(bytes(16), world.ring.key_set_for(uri, NOW).uid, z) for uri in (ALICE, BOB)}
    assert len(seds) == 2


# -- identities -----------------------------------------------------------------------------------------------


def test_t5_the_nuls_of_a_native_identity_count() -> None:
    octets = tel_identifier("tel:+447700900123", 2011, 2)
    assert octets == b"2011-02\0tel:+447700900123\0" and len(octets) == 26
    for bad in ("tel:+44 7700", "tel:447700900123", "sip:a@b", "tel:+44;ext=1", "tel:+"):
        with pytest.raises(MikeyError):
            tel_identifier(bad, 2011, 2)


def test_t7_lengths_follow_their_values_and_zero_is_one_octet() -> None:
    assert kdf_input(0, b"ab", b"") == b"\0ab\0\2\0\0"
    assert minimal_octets(0) == b"\0" and minimal_octets(256) == b"\1\0"


def test_t28_a_kms_uri_spelled_otherwise_is_another_kms() -> None:
    spelled = {uid(ALICE, k, 1, 0, 0) for k in ("kms.example.org", "KMS.example.org", "https://kms.example.org",
                                                "kms.example.org:443", "kms.example.org.")}  # fmt: skip
    assert len(spelled) == 5


def test_t8_unix_time_or_another_octet_order_in_the_stamp_is_refused(world: World) -> None:
    octets = csk(world)
    at = octets.index(identity.ntp_encode(NOW)[:4])
    seconds = int(NOW)
    for stamp in (seconds.to_bytes(8, "little"), seconds.to_bytes(8, "big"), seconds.to_bytes(4, "big") + bytes(4)):
        with pytest.raises(StaleTimestamp):
            opened(world, resigned(world, octets[:at] + stamp + octets[at + 8 :]))


def test_t17_the_identifier_scheme_on_the_wire_is_two(world: World) -> None:
    assert IMessage.decode(csk(world)).sakke.scheme == 2 == identity.SCHEME_3GPP


# -- points and groups ----------------------------------------------------------------------------------------


def sed_with(point: bytes) -> bytes:
    return point + bytes(16)


@pytest.mark.parametrize(
    "point",
    [
        b"\x04" + bytes(256),  # (0, 0): on the curve, of order 2
        b"\x05" + bytes(256),
        b"\x04" + b"\xff" * 256,
        b"\x04" + bytes(127) + b"\1" + bytes(127) + b"\1",
        bytes(257),
    ],
    ids=["order-two", "prefix", "beyond-p", "off-curve", "infinity"],
)
def test_t21_points_that_are_none_give_the_uniform_error(world: World, point: bytes) -> None:
    receiver = world.ring.key_set_for(BOB, NOW).receiver_key
    with pytest.raises(DecapsulationFailed, match=r"^SAKKE: no key$"):
        sakke.decapsulate(sed_with(point), receiver)


def test_t20_compressed_points_are_not_spoken(world: World) -> None:
    """The 02.. values in the tables of TS 33.180 are place holders: SAKKE and ECCSI points begin with 04."""
    receiver = world.ring.key_set_for(BOB, NOW).receiver_key
    x = decode_point(world.kms.certificate.pub_enc_key)[0]
    for prefix in (2, 3, 6, 7):
        compressed = bytes((prefix,)) + int(x).to_bytes(128, "big")
        with pytest.raises(InvalidKey):
            decode_point(compressed)
        with pytest.raises(DecapsulationFailed):
            sakke.decapsulate(compressed + bytes(16), receiver)
        with pytest.raises(InvalidKey):
            eccsi.validate_kpak(bytes((prefix,)) + world.kms.certificate.pub_auth_key[1:33])


def test_t21_a_point_outside_the_subgroup_is_caught_by_the_test(world: World) -> None:
    from mikey.field import add

    identity, z = bob(world)
    receiver = world.ring.key_set_for(BOB, NOW).receiver_key
    sed = sakke.encapsulate(bytes(range(16)), identity, z)
    moved = add(decode_point(sed[:257]), (mpz(0), mpz(0)))
    assert moved is not None and decode_point(encode_point(moved)) == moved  # on the curve
    with pytest.raises(DecapsulationFailed):
        sakke.decapsulate(encode_point(moved) + sed[257:], receiver)


def test_t25_every_failure_of_sakke_says_the_same(world: World) -> None:
    identity, z = bob(world)
    receiver = world.ring.key_set_for(BOB, NOW).receiver_key
    sed = sakke.encapsulate(bytes(range(16)), identity, z)
    other = sakke.encapsulate(bytes(range(16)), world.ring.key_set_for(ALICE, NOW).uid, z)
    said = set()
    for bad in (sed[:-1], sed + b"\0", b"", other, sed[:257] + bytes(16), sed_with(b"\x04" + bytes(256))):
        with pytest.raises(DecapsulationFailed) as caught:
            sakke.decapsulate(bad, receiver)
        said.add(str(caught.value))
    assert said == {"SAKKE: no key"}


def test_t22_zeros_in_signatures_are_refused(world: World) -> None:
    key_set = world.ring.key_set_for(ALICE, NOW)
    kpak = key_set.certificate.pub_auth_key
    good = key_set.sign(b"octets")
    zero, order = bytes(32), ORDER.to_bytes(32, "big")
    p = (2**256 - 2**224 + 2**192 + 2**96 - 1).to_bytes(32, "big")
    for bad in (
        zero + good[32:], good[:32] + zero + good[64:], p + good[32:], good[:32] + order + good[64:],
        good[:64] + b"\x04" + bytes(64), good[:64] + b"\0" + good[65:], good[:64] + b"\x02" + good[65:],
        good[:-1], good + b"\0", b"", order + good[32:],
    ):  # fmt: skip
        with pytest.raises(BadSignature):
            eccsi.verify(b"octets", bad, key_set.uid, kpak)


def test_t22_a_second_form_of_a_signature_verifies_and_is_a_replay(world: World) -> None:
    message = world.sealed()
    at = len(message.octets) - 129
    s = int.from_bytes(message.octets[at + 32 : at + 64], "big")
    twin = message.octets[: at + 32] + (ORDER - s).to_bytes(32, "big") + message.octets[at + 64 :]
    cache = MemoryReplayCache()

    def open_(octets: bytes) -> None:
        unseal(octets, sender_uri=ALICE, me=BOB, keyring=world.ring, now=NOW, replay=cache, expect_type=None)

    open_(message.octets)
    with pytest.raises(Replayed):
        open_(twin)
    cache = MemoryReplayCache()
    open_(twin)


def test_t22_a_pvt_that_cancels_kpak_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """PVT = -KPAK with HS = 1 would make Y infinity: only a broken hash gives that."""
    key_set = world.ring.key_set_for(ALICE, NOW)
    kpak = key_set.certificate.pub_auth_key
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    y = (p - int.from_bytes(kpak[33:], "big")).to_bytes(32, "big")
    monkeypatch.setattr(eccsi, "hs", lambda *_: (1).to_bytes(32, "big"))
    with pytest.raises(BadSignature, match="infinity"):
        eccsi.verify(b"m", b"\1" * 64 + kpak[:33] + y, key_set.uid, kpak, eccsi.SignerCache())


def test_t23_no_two_signatures_share_their_nonce(world: World) -> None:
    key_set = world.ring.key_set_for(ALICE, NOW)
    assert len({key_set.sign(b"the same octets")[:32] for _ in range(50)}) == 50


def test_t24_inversions_are_blinded_and_the_blind_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is inverted is never the secret itself, and differs from run to run."""
    import gmpy2

    inverted: list[int] = []

    def noted(value: Any, modulus: Any) -> Any:
        inverted.append(int(value))
        return gmpy2.invert(value, modulus)

    key_set = world.ring.key_set_for(ALICE, NOW)
    h = eccsi.hs(key_set.certificate.pub_auth_key, key_set.uid, key_set.pvt)
    monkeypatch.setattr(eccsi, "invert", noted)
    signatures = {eccsi.sign(b"octets", key_set.ssk.reveal(), h, key_set.pvt, j=12345) for _ in range(4)}
    # the first product of each is by OpenSSL, so all inversions seen are those of d
    assert len(signatures) == 1 and len(set(inverted)) == 4
    inverted.clear()
    monkeypatch.setattr(sakke, "invert", noted)
    master = mpz(7) ** 100 % Q
    keys = {sakke.issue(master, key_set.uid, mpz(blind)) for blind in (1, 3, 2**1000 + 1)}
    assert len(keys) == 1 and len(set(inverted)) == 3


def test_keys_that_do_not_satisfy_their_equations_are_refused(world: World) -> None:
    """SSK, RSK and UID swapped between users, and master keys at the edges."""
    alice, other = world.ring.key_set_for(ALICE, NOW), world.ring.key_set_for(BOB, NOW)
    alice.validate()
    for changes in (
        {"rsk": other.rsk}, {"ssk": other.ssk}, {"pvt": other.pvt}, {"uid": other.uid}, {"uri": BOB},
        {"period_no": alice.period_no + 1}, {"ssk": Secret(bytes(32))}, {"ssk": Secret(b"\xff" * 32)},
        {"rsk": Secret(b"\x04" + bytes(256))},
    ):  # fmt: skip
        with pytest.raises(InvalidKey):
            dataclasses.replace(alice, **changes).validate()  # type: ignore[arg-type]
    for z in (0, 1, Q):
        with pytest.raises(InvalidKey):
            sakke.public_point(mpz(z))
    with pytest.raises(InvalidKey):
        sakke.validate_public(b"\x04" + bytes(256))
    with pytest.raises(InvalidKey):
        sakke.issue(Q - 5, (5).to_bytes(32, "big"), mpz(7))


# -- the octets of a message ----------------------------------------------------------------------------------


def resigned(world: World, octets: bytes, *, scope: int = 0) -> bytes:
    """The octets with a fresh signature of Alice; `scope` octets at their end are left out of it."""
    unsigned = octets[:-129]
    signer = world.ring.key_set_for(ALICE, NOW)
    return unsigned + signer.sign(unsigned[: len(unsigned) - scope])


def opened(world: World, octets: bytes, policy: Policy = STRICT) -> Any:
    return unseal(octets, sender_uri=ALICE, me=BOB, keyring=world.ring, now=NOW, replay=None, expect_type=None,
                  policy=policy)  # fmt: skip


def csk(world: World, **more: Any) -> bytes:
    return world.sealed(TransportKey.generate(KeyType.CSK), **more).octets


def test_t9_another_prf_octet_is_tolerated_by_name(world: World) -> None:
    octets = csk(world)
    octets = resigned(world, octets[:3] + b"\x02" + octets[4:])
    with pytest.raises(Deviation) as caught:
        opened(world, octets)
    assert caught.value.switch == "other_prf"
    assert opened(world, octets, LENIENT).key.type is KeyType.CSK


def test_t10_a_nul_in_a_kms_uri_is_only_for_finding_the_kms(world: World) -> None:
    octets = csk(world)
    uri = b"\x00\x0fkms.example.org"
    octets = resigned(world, octets.replace(uri, b"\x00\x10kms.example.org\0"))
    with pytest.raises(Deviation) as caught:
        opened(world, octets)
    assert caught.value.switch == "kms_uri_nul"
    assert opened(world, octets, LENIENT).sender_uri == ALICE


def test_t11_the_length_of_a_signature_is_129(world: World) -> None:
    octets = csk(world)
    assert octets[-131:-129] == b"\x20\x81"
    for wrong in (32, 128, 130):
        chain = decode_chain(octets)
        signature = Signature(2, octets[-129:][:wrong].ljust(wrong, b"\0"))
        with pytest.raises(BadSignature):
            opened(world, encode_chain(chain[0], [*chain[1][:-1], signature]), LENIENT)


def test_t12_the_header_of_sign_is_signed(world: World) -> None:
    octets = resigned(world, csk(world), scope=2)
    with pytest.raises(Deviation) as caught:
        opened(world, octets)
    assert caught.value.switch == "signature_scope"
    assert opened(world, octets, LENIENT).key.type is KeyType.CSK


def test_t13_the_user_salt_is_the_last_28_bits() -> None:
    import hmac

    gmk = bytes(range(16))
    digest = hmac.digest(gmk, b"\x50" + BOB.encode() + len(BOB).to_bytes(2, "big"), "sha256")
    assert derive.user_salt(gmk, BOB) == int.from_bytes(digest[-4:], "big") & 0x0FFFFFFF
    key = TransportKey(KeyType.GMK, Secret(gmk), 0x0ABCDEF0, bytes(16))
    assert guk_id(key, BOB) >> 28 == 0 and derive.guk_id(gmk, guk_id(key, BOB), BOB) == key.key_id


def test_t14_media_keys_and_acknowledgement_keys_have_their_own_constants() -> None:
    assert derive.TEK.hex().upper() == "2AD01C64" and derive.SALT.hex().upper() == "39A2C14B"
    key = TransportKey(KeyType.GMK, Secret(bytes(16)), 5, bytes(16))
    assert acknowledgement_key(key, 7) != acknowledgement_key(key, 8)
    assert acknowledgement_key(key, 7).reveal()[:16] != derive.srtp_master(bytes(16), 4, 7, bytes(16))[0]


def test_t15_the_mki_of_a_group_key_is_gmk_id_then_guk_id() -> None:
    key = TransportKey(KeyType.GMK, Secret(bytes(16)), 0x01020304, bytes(16))
    assert key.mki(0x05060708).hex() == "0102030405060708"
    assert TransportKey(KeyType.CSK, Secret(bytes(16)), 0x21020304, bytes(16)).mki(5).hex() == "21020304"


def test_t16_an_empty_map_is_ten_octets_of_header() -> None:
    assert len(Header(5, map_type=1).encode(0)) == 10


def test_t26_no_switch_lets_a_bad_signature_pass(world: World) -> None:
    octets = bytearray(csk(world))
    octets[-80] ^= 1
    for policy in (STRICT, LENIENT, dataclasses.replace(LENIENT, any_age=True)):
        with pytest.raises(BadSignature):
            opened(world, bytes(octets), policy)
    assert not any("sign" in s and s != "signature_scope" for s in Policy.switches())


def test_t29_keys_ids_and_rands_are_fresh() -> None:
    keys = [TransportKey.generate(KeyType.GMK) for _ in range(50)]
    assert len({k.key.reveal() for k in keys}) == len({k.rand for k in keys}) == len({k.key_id for k in keys}) == 50
    with pytest.raises(MikeyError):
        TransportKey.generate(KeyType.GMK, random=lambda n: bytes(n), exclude_ids=frozenset({0}))


def test_t30_a_long_key_is_sealed_and_opened_only_where_both_ends_say_so(world: World) -> None:
    """Parameter set 1 has 112 bits of strength whatever the key's length: no profile asks for 256 by default."""
    for kind in (KeyType.PCK, KeyType.GMK):
        key = TransportKey.generate(kind, size=32, expiry=int(NOW) + 60)
        with pytest.raises(SealRefused, match="16 octets"):
            world.sealed(key, management_server=True)
        octets = world.sealed(key, management_server=True, long_key=True).octets
        with pytest.raises(DecapsulationFailed):
            opened(world, octets)
        out = opened(world, octets, LENIENT)
        assert out.key.same_key(key) and out.parameters_sealed and len(out.key.key) == 32
    with pytest.raises(SealRefused):
        world.sealed(TransportKey(KeyType.CSK, Secret(bytes(24)), 0x20000001, bytes(16)), long_key=True)


def test_every_trap_has_a_test_that_names_it() -> None:
    folder = Path(__file__).parent
    names = re.findall(r"def test_t(\d+)_", "".join(f.read_text() for f in folder.glob("test_*.py")))
    assert {int(n) for n in names} == set(range(1, 31))


def test_every_rule_of_this_package_has_a_test_that_plays_the_attack() -> None:
    folder = Path(__file__).parent
    names = re.findall(r"def test_rule_(\d+)_", "".join(f.read_text() for f in folder.glob("test_*.py")))
    assert {int(n) for n in names} >= {4, 7, 8, 9, 17, 26, 27}


def test_mcvideo_has_crypto_sessions_of_its_own(world: World) -> None:
    for kind in KeyType:
        assert not set(kind.video_cs_ids) & set(kind.default_cs_ids)
    key = world.tgmk()
    octets = world.sealed(key, cs_ids=key.type.video_cs_ids).octets
    assert [s.cs_id for s in opened(world, octets).message.header.sessions] == [5]


def test_two_messages_of_one_instant_have_distinct_stamps(world: World) -> None:
    key = world.tgmk()
    assert len({world.sealed(key).signed_digest for _ in range(20)}) == 20
    assert len({IMessage.decode(world.sealed(key).octets).timestamp for _ in range(20)}) > 1


def test_what_must_not_be_sealed_is_refused(world: World) -> None:
    group = world.tgmk()
    for key in (
        group.replace(group_ids=()),
        group.replace(group_ids=("sip:a@x", "sip:b@x")),
        group.replace(expiry=0),
        group.replace(expiry=int(NOW) - 1),
        group.replace(rand=bytes(15)),
        group.replace(activation=int(NOW) + 100, expiry=int(NOW) + 50),
        TransportKey.generate(KeyType.CSK, group_ids=("sip:a@x",)),
    ):
        with pytest.raises(SealRefused):
            world.sealed(key)
    assert sealing.seal(group.replace(expiry=int(NOW) - 1).revoke(), sender=ALICE, recipient=BOB, keyring=world.ring,
                        now=NOW)  # a revocation may be of an expired key  # fmt: skip
    with pytest.raises(Unsupported):
        TransportKey.generate(KeyType.CSK, size=24)
    with pytest.raises(MikeyError):
        TransportKey(KeyType.CSK, Secret(bytes(16)), 0x10000000, bytes(16))


def test_an_unknown_recipients_domain_is_not_sealed_to(world: World) -> None:
    from mikey.errors import UnknownKms

    with pytest.raises(UnknownKms):
        world.sealed(recipient="sip:eve@elsewhere.example")
    with pytest.raises(MikeyError):
        Keyring().certificate_for(ALICE, NOW)
