# SPDX-License-Identifier: Apache-2.0
"""Properties of the codec and of `unseal`: what is written reads back, nothing damaged opens, nothing leaks."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mikey import LENIENT, OFFLINE, STRICT, KeyType, TransportKey, read, sakke, unseal, verify
from mikey.annotation import annotate
from mikey.carriage import find
from mikey.errors import BadKeyParameters, MikeyError, ParseError
from mikey.identity import minimal_octets, ntp_decode, ntp_encode, uid
from mikey.key_parameters import KeyParameters
from mikey.payloads import (
    CHASH,
    DH,
    ID,
    RANDR,
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
    decode_chain,
    encode_chain,
)
from mikey.policy import Policy
from mikey.text_form import decode_text, encode_text

from .conftest import ALICE, BOB, NOW, World

SOON = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
octet = st.integers(0, 255)
word = st.integers(0, 2**32 - 1)

generic_id = st.builds(
    GenericId,
    cs_id=octet,
    prot_type=octet,
    s_flag=st.booleans(),
    policies=st.lists(octet, max_size=5).map(tuple),
    session_data=st.sampled_from((b"", bytes(4), b"0123456789")),
    spi=st.binary(max_size=16),
)
header = st.one_of(
    st.builds(Header, csb_id=word, sessions=st.lists(generic_id, max_size=4).map(tuple), v_flag=st.booleans(),
              prf=st.integers(0, 127), data_type=octet),
    st.builds(Header, csb_id=word, map_type=st.just(1)),
    st.builds(Header, csb_id=word, map_type=st.just(0),
              sessions=st.lists(st.builds(SrtpId, octet, word, word), max_size=4).map(tuple)),
)  # fmt: skip
payload: st.SearchStrategy[Payload] = st.one_of(
    st.builds(Timestamp, st.integers(0, 1), st.binary(min_size=8, max_size=8)),
    st.builds(Timestamp, st.just(2), st.binary(min_size=4, max_size=4)),
    st.builds(Rand, st.binary(max_size=255)),
    st.builds(Idr, octet, octet, st.binary(max_size=300)),
    st.builds(SecurityPolicy, octet, octet, st.lists(st.tuples(octet, st.binary(max_size=9)), max_size=9).map(tuple)),
    st.builds(SakkeData, octet, octet, st.binary(max_size=300)),
    st.builds(GeneralExtension, octet, st.binary(max_size=300)),
    st.just(Opaque(ID, b"\x01\x00\x03abc")),
    st.just(Opaque(CHASH, b"\x01" + bytes(16))),
    st.just(Opaque(RANDR, b"\x02\x04abcd")),
    st.just(Opaque(DH, b"\x00" + bytes(192) + b"\x00")),
    st.just(Opaque(DH, b"\x01" + bytes(96) + b"\x01\x03spi")),
    st.just(Opaque(DH, b"\x02" + bytes(128) + b"\x02\x01f\x02to")),
)
signature = st.builds(Signature, st.integers(0, 15), st.binary(max_size=300))


@SOON
@given(header, st.lists(payload, max_size=8), st.none() | signature)
def test_what_is_encoded_decodes_to_the_same(head: Header, chain: list[Payload], sign: Signature | None) -> None:
    payloads = tuple(chain) + ((sign,) if sign is not None else ())
    octets = encode_chain(head, payloads)
    back, again, offsets = decode_chain(octets)
    assert (back, again) == (head, payloads)
    assert encode_chain(back, again) == octets
    assert list(offsets) == sorted(offsets)
    assert b"".join(row.octets for row in annotate(octets).rows) == octets


@SOON
@given(
    st.builds(
        KeyParameters,
        key_type=st.sampled_from(list(KeyType)).map(int),
        status=word,
        activation=st.integers(0, 2**40 - 1),
        expiry=st.integers(0, 2**40 - 1),
        text=st.text(max_size=40),
    ),
    st.lists(st.text(max_size=40), max_size=4),
)
def test_key_parameters_decode_to_the_same(said: KeyParameters, groups: list[str]) -> None:
    import dataclasses

    if KeyType(said.key_type).has_groups:
        said = dataclasses.replace(said, group_ids=tuple(groups))
    assert KeyParameters.decode(said.encode()) == said


@SOON
@given(st.binary(max_size=400))
def test_octets_from_anywhere_raise_nothing_but_mikey_errors(octets: bytes) -> None:
    for attempt in (
        lambda: read(octets),
        lambda: read(b"\x01\x1a" + octets),
        lambda: KeyParameters.decode(octets),
        lambda: decode_text("mikey " + octets.decode("latin-1"), LENIENT),
        lambda: find(octets, "here"),
        lambda: find(b"\x0a\x0d\x0d\x0a" + octets, "capture"),
        lambda: find(b"\xd4\xc3\xb2\xa1" + octets, "capture"),
    ):
        try:
            attempt()
        except MikeyError:
            continue
    rows = annotate(octets, NOW).rows
    assert b"".join(row.octets for row in rows) == octets


@given(st.binary(min_size=1, max_size=100))
@SOON
def test_the_text_form_gives_back_its_octets(octets: bytes) -> None:
    assert decode_text(encode_text(octets)) == octets


@SOON
@given(st.floats(0, 2**33 - 2208988800 - 2**31, exclude_max=True))
def test_time_stamps_keep_a_thousandth_of_a_second_in_both_eras(unix: float) -> None:
    assert abs(ntp_decode(ntp_encode(unix)) - unix) < 1e-3


@SOON
@given(st.integers(0, 2**70))
def test_integers_of_a_uid_are_minimal(value: int) -> None:
    octets = minimal_octets(value)
    assert int.from_bytes(octets, "big") == value and (octets[0] or octets == b"\0")


@SOON
@given(st.text(max_size=20), st.text(max_size=20))
def test_uids_of_different_users_differ(one: str, two: str) -> None:
    assert (uid(one, "kms", 1, 0, 0) == uid(two, "kms", 1, 0, 0)) == (one == two)


# -- damage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_pairing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decapsulation is a failure of the test: nothing may be opened before its signature holds."""

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("decapsulated before the signature held")

    monkeypatch.setattr(sakke, "decapsulate", refuse)


def attempt(world: World, octets: bytes, policy: Policy, sender: str | None = ALICE) -> None:
    unseal(octets, sender_uri=sender, me=BOB, keyring=world.ring, now=NOW, replay=None, expect_type=None,
           policy=policy)  # fmt: skip


def test_the_fixture_would_notice(world: World, no_pairing: None) -> None:
    with pytest.raises(AssertionError):
        attempt(world, world.sealed().octets, STRICT)


@pytest.mark.parametrize("hashed", [True, False])
def test_no_truncation_opens(world: World, no_pairing: None, hashed: bool) -> None:
    octets = world.sealed(hashed_ids=hashed).octets
    for length in range(len(octets)):
        with pytest.raises(MikeyError):
            attempt(world, octets[:length], OFFLINE)
    with pytest.raises(ParseError):
        attempt(world, octets + b"\0", OFFLINE)


def test_no_flipped_bit_opens_and_none_reaches_sakke(world: World, no_pairing: None) -> None:
    octets = world.sealed().octets
    for bit in range(len(octets) * 8):
        damaged = bytearray(octets)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        with pytest.raises(MikeyError):
            attempt(world, bytes(damaged), OFFLINE)


def test_no_doubled_dropped_or_swapped_piece_opens(world: World, no_pairing: None) -> None:
    octets = world.sealed().octets
    message = read(octets)
    edges = [*message.offsets, len(octets)]
    pieces = [octets[a:b] for a, b in itertools.pairwise(edges)]
    head = octets[: edges[0]]
    source = random.Random(5)
    for _ in range(300):
        changed = list(pieces)
        kind, at, to = source.randrange(3), source.randrange(len(pieces)), source.randrange(len(pieces))
        if kind == 0:
            changed.insert(to, changed[at])
        elif kind == 1:
            del changed[at]
        else:
            changed[at], changed[to] = changed[to], changed[at]
        if changed != pieces:
            with pytest.raises(MikeyError):
                attempt(world, head + b"".join(changed), OFFLINE)


@SOON
@given(st.data())
def test_random_damage_raises_only_mikey_errors(world: World, data: st.DataObject) -> None:
    octets = bytearray(_message(world))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(octet)
    if bytes(octets) == _message(world):
        return
    for sender in (ALICE, None):
        with pytest.raises(MikeyError):
            attempt(world, bytes(octets), LENIENT, sender)
    with pytest.raises(MikeyError):
        verify(bytes(octets), sender_uri=ALICE, recipient_uri=BOB, keyring=world.ring, now=NOW)


_kept: dict[int, bytes] = {}


def _message(world: World) -> bytes:
    return _kept.setdefault(id(world.ring), world.sealed().octets)


@SOON
@given(st.binary(max_size=120))
def test_damaged_key_parameters_are_one_error(octets: bytes) -> None:
    from mikey.key_parameters import decode_clear, unprotect

    for open_ in (lambda: unprotect(octets, bytes(16), 7), lambda: unprotect(b"\x40" + octets, bytes(16), 7)):
        with pytest.raises(BadKeyParameters):
            open_()
    try:
        decode_clear(octets, 0)
    except BadKeyParameters:
        return
    assert len(octets) >= 17


def test_hostile_lengths_cost_no_memory(world: World) -> None:
    octets = world.sealed().octets
    head = octets[:2] + b"\x15\x01" + bytes(4) + b"\x00\x01"
    hostile = [
        octets[:8] + b"\xff\x02" + b"\xff" * 4000,
        head + b"\x15\x00\xff\xff" + bytes(3000),
        head + b"\x15\x00\x00\x00" * 1020,
        octets[:2] + b"\x0a\x01" + bytes(4) + b"\x00\x01" + b"\x04\x00\x00\x0f\xa0" + bytes(4000),
        octets + bytes(100_000),
        b"\x01\x1a" * 50_000,
    ]
    for damaged in hostile:
        tracemalloc.start()
        try:
            with pytest.raises(MikeyError):
                attempt(world, damaged, LENIENT)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000


# -- round trips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KeyType))
@pytest.mark.parametrize("hashed", [True, False])
def test_every_type_of_key_is_sealed_and_opened(world: World, kind: KeyType, hashed: bool) -> None:
    groups = ("sip:g1@example.org", "sip:größe@example.org") if kind.has_groups else ()
    key = TransportKey.generate(
        kind, activation=int(NOW) - 5, expiry=int(NOW) + 60, group_ids=groups, text="für die Leitstelle"
    )
    sealed = world.sealed(key, hashed_ids=hashed, management_server=True)
    out = unseal(sealed.octets, sender_uri=ALICE, me=BOB, keyring=world.ring, now=NOW, replay=None, expect_type=kind)
    assert out.key == key and out.csb_id == sealed.csb_id and out.signed_digest == sealed.signed_digest
    assert out.sender_uri == ALICE and abs(out.timestamp - NOW) < 1e-3 and out.parameters_sealed
    assert read(sealed.octets).encode() == sealed.octets
    for other in KeyType:
        if other is not kind:
            with pytest.raises(MikeyError):
                unseal(sealed.octets, sender_uri=ALICE, me=BOB, keyring=world.ring, now=NOW, replay=None,
                       expect_type=other)  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_round_trips_of_drawn_keys(world: World, data: Any) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(list(KeyType)))
    random_octets = random.Random(draw(st.integers(0, 2**32))).randbytes
    key = TransportKey.generate(
        kind, random=random_octets, expiry=draw(st.sampled_from((0, int(NOW) + 1, 2**40 - 1))),
        group_ids=tuple(draw(st.lists(st.text(max_size=12), max_size=3))) if kind.has_groups else (),
        text=draw(st.text(max_size=30)),
    )  # fmt: skip
    sealed = world.sealed(key, management_server=True, random=random_octets, to_self=draw(st.booleans()))
    out = unseal(sealed.octets, sender_uri=ALICE, me=BOB, keyring=world.ring, now=NOW, replay=None, expect_type=kind)
    assert out.key == key


# -- what mutation found ----------------------------------------------------------------------------------------


def test_a_table_of_key_parameters_cut_off_at_their_length(world: World) -> None:
    """A General Extension whose length says 36 and more, at the very end of the octets."""
    octets = world.sealed().octets
    for offset in read(octets).offsets:
        for cut in range(offset, min(offset + 12, len(octets))):
            assert b"".join(row.octets for row in annotate(octets[:cut], NOW).rows) == octets[:cut]


def test_a_short_run_of_the_mutation_loop_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from mikey import pairing

    from . import fuzz

    monkeypatch.setattr(pairing.LineTable, "pair", pairing.LineTable.pair)  # put back what the loop counts with
    result = fuzz.Loop(fuzz.seeds(), "make test").run(6000)
    assert result.findings == [] and result.cases > 5800
    assert result.past > 0.3 * result.cases
    assert {"parse", "bad-signature", "signed: sakke-check"} <= set(result.outcomes)
    assert "opened" not in result.outcomes


def test_the_mutation_loop_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that checks no signature is caught by the loop."""
    from mikey import eccsi, pairing

    from . import fuzz

    monkeypatch.setattr(pairing.LineTable, "pair", pairing.LineTable.pair)
    monkeypatch.setattr(eccsi, "verify_one_of", lambda *arguments: 0)
    result = fuzz.Loop(fuzz.seeds(), "make test").run(300)
    assert any("opened though changed" in what for what, _ in result.findings)
    assert any("pairing before" in what for what, _ in result.findings)
