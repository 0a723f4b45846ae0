# SPDX-License-Identifier: Apache-2.0
"""SRTP: the published vectors of RFC 7714, libsrtp as an oracle, and what must be refused."""

from __future__ import annotations

import pickle
import struct

import pylibsrtp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media.errors import (
    AuthenticationFailed,
    KeyExhausted,
    MalformedPacket,
    Replayed,
    SrtpError,
    SsrcClash,
    TooOld,
    UnknownKey,
)
from media.srtp import CSK, GROUP, SrtpKey, SrtpPolicy, SrtpReceiver, SrtpSender

SSRC = 0xDECAFBAD
MKI = bytes.fromhex("0badcafe0dec0ded")
KEY = SrtpKey(bytes(range(16)), bytes(range(100, 112)), MKI)
OTHER = SrtpKey(bytes(range(50, 66)), bytes(range(12)), MKI[::-1])


def rtp(sequence: int, payload: bytes = b"opus", ssrc: int = SSRC) -> bytes:
    return struct.pack(">BBHII", 0x80, 96, sequence & 0xFFFF, sequence * 960 & 0xFFFFFFFF, ssrc) + payload


def rtcp(ssrc: int = SSRC, data: bytes = bytes(8)) -> bytes:
    return struct.pack(">BBHI", 0x82, 204, 1 + (4 + len(data)) // 4, ssrc) + b"MCPT" + data


def receiver(*keys: SrtpKey, policy: SrtpPolicy = GROUP, **more: int) -> SrtpReceiver:
    return SrtpReceiver({key.mki: key for key in keys or (KEY,)}.get, policy, **more)


def oracle(inbound: bool, key: SrtpKey = KEY) -> pylibsrtp.Session:
    kind = pylibsrtp.Policy.SSRC_ANY_INBOUND if inbound else pylibsrtp.Policy.SSRC_ANY_OUTBOUND
    return pylibsrtp.Session(
        pylibsrtp.Policy(
            key=key.master_key + key.master_salt,
            ssrc_type=kind,
            srtp_profile=pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
        )
    )


def test_rfc_7714_session_keys_make_the_published_packet() -> None:
    """RFC 7714 16.1.1: the vectors give session keys, so the cipher is fed with them."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    sender = SrtpSender(KEY, 0x5501A0B2)
    keys = sender._transform
    keys._rtp = AESGCM(bytes(range(16)))
    keys._rtp_salt = int.from_bytes(bytes.fromhex("517569642070726f2071756f"), "big")
    packet = bytes.fromhex("8040f17b8041f8d35501a0b2") + (
        b"Gallia est omnis divisa in partes tres"
    )
    sender._seal = keys.sealing(sender.ssrc)
    sealed = sender.protect(packet)
    assert sealed[12 : -16 - 12] .hex() == (
        "f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7d19b36de3adf8833"
    )
    assert sealed[-16 - 12 : -12].hex() == "899d7f27beb16a9152cf765ee4390cce"


@pytest.mark.parametrize("sequences", [range(1, 60), range(65500, 65600)])
def test_packets_are_those_of_libsrtp_with_mki_and_roc_cut_off(sequences: range) -> None:
    sender, theirs = SrtpSender(KEY, SSRC), oracle(inbound=False)
    for sequence in sequences:
        packet = rtp(sequence, bytes(sequence % 80))
        sealed = sender.protect(packet)
        assert sealed[-12:-4] == MKI
        assert int.from_bytes(sealed[-4:], "big") == (sequence - sequences.start + (sequences.start & 0xFFFF)) >> 16
        assert sealed[:-12] == theirs.protect(packet)


def test_libsrtp_and_this_open_each_others_packets() -> None:
    sender, theirs_in, theirs_out, ours = SrtpSender(KEY, SSRC), oracle(True), oracle(False), receiver()
    for sequence in range(100):
        packet = rtp(sequence, b"x" * sequence)
        assert theirs_in.unprotect(sender.protect(packet)[:-12]) == packet
        assert ours.unprotect(theirs_out.protect(packet) + MKI + bytes(4)).data == packet
    for _ in range(20):
        assert theirs_in.unprotect_rtcp(sender.protect_rtcp(rtcp())[:-8]) == rtcp()
        assert ours.unprotect_rtcp(theirs_out.protect_rtcp(rtcp()) + MKI).data == rtcp()


def test_a_header_extension_and_csrcs_stay_in_clear_and_are_authenticated() -> None:
    packet = struct.pack(">BBHIII", 0x91, 96, 7, 8, SSRC, 5) + bytes.fromhex("bede000112340000") + b"payload"
    sealed = SrtpSender(KEY, SSRC).protect(packet)
    assert sealed[:24] == packet[:24] and sealed[:-12] == oracle(False).protect(packet)
    assert receiver().unprotect(sealed).data == packet
    forged = bytearray(sealed)
    forged[21] ^= 1
    with pytest.raises(AuthenticationFailed):
        receiver().unprotect(bytes(forged))


def test_every_octet_is_authenticated_and_a_refused_packet_changes_nothing() -> None:
    sealed = SrtpSender(KEY, SSRC).protect(rtp(1, b"secret words"))
    ours = receiver()
    for at in range(len(sealed)):
        for bit in (1, 0x80):
            forged = bytearray(sealed)
            forged[at] ^= bit
            with pytest.raises(SrtpError):
                ours.unprotect(bytes(forged))
    assert ours.unprotect(sealed).data == rtp(1, b"secret words")


def test_a_forged_roc_does_not_move_the_window() -> None:
    sender, ours = SrtpSender(KEY, SSRC), receiver()
    first, second = sender.protect(rtp(1)), sender.protect(rtp(2))
    ours.unprotect(first)
    with pytest.raises(AuthenticationFailed):
        ours.unprotect(second[:-4] + b"\x7f\xff\xff\xff")
    assert ours.unprotect(second).index == 2


def test_a_late_joiner_reads_at_any_roc() -> None:
    sender = SrtpSender(KEY, SSRC)
    sender._last = (12345 << 16 | 9) - 1
    sealed = sender.protect(rtp(9, b"late"))
    assert receiver().unprotect(sealed).index == 12345 << 16 | 9


def test_an_authentic_jump_of_the_index_costs_nothing() -> None:
    sender, ours = SrtpSender(KEY, SSRC), receiver()
    ours.unprotect(sender.protect(rtp(1)))
    sender._last = (0xFFFFFFFE << 16) - 1
    assert ours.unprotect(sender.protect(rtp(0))).index == 0xFFFFFFFE << 16
    with pytest.raises(TooOld):
        ours.unprotect(SrtpSender(KEY, SSRC).protect(rtp(1)))


def test_a_replay_and_a_packet_behind_the_window_are_refused() -> None:
    sender, ours = SrtpSender(KEY, SSRC), receiver(window=64)
    packets = [sender.protect(rtp(n)) for n in range(200)]
    for n in (0, 2, 1, 100, 199, 150):
        ours.unprotect(packets[n])
    for n, error in ((199, Replayed), (150, Replayed), (100, TooOld), (0, TooOld)):
        with pytest.raises(error):
            ours.unprotect(packets[n])
    assert ours.unprotect(packets[136]).index == 136
    assert ours.counters == {"accepted": 7, "replay": 2, "too-old": 2}


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(-20, 0), st.just(1)), max_size=120))
@settings(deadline=None)
def test_the_replay_window_is_a_set_of_what_was_accepted(steps: list[int]) -> None:
    """Each step is a packet so far ahead of the highest, or behind it: against a set that forgets nothing."""
    size, sealed = 16, {n: SrtpSender(KEY, SSRC).protect(rtp(n)) for n in range(200)}
    ours, accepted, highest = receiver(window=size), set[int](), 0
    for step in steps:
        index = min(199, max(0, highest + step))
        if accepted and highest - index >= size:
            expected: type[SrtpError] | None = TooOld
        else:
            expected = Replayed if index in accepted else None
        if expected is not None:
            with pytest.raises(expected):
                ours.unprotect(sealed[index])
        else:
            assert ours.unprotect(sealed[index]).index == index
            accepted.add(index)
            highest = max(accepted)


def test_replay_protection_lives_as_long_as_the_receiver_even_when_a_key_is_retired() -> None:
    sealed, ours = SrtpSender(KEY, SSRC).protect(rtp(1)), receiver()
    ours.unprotect(sealed)
    ours.retire(MKI[:4])
    with pytest.raises(Replayed):
        ours.unprotect(sealed)


def test_a_retired_key_opens_nothing_and_is_asked_for_again() -> None:
    keys = {MKI: KEY}
    ours, sender = SrtpReceiver(keys.get), SrtpSender(KEY, SSRC)
    ours.unprotect(sender.protect(rtp(1)))
    del keys[MKI]
    ours.unprotect(sender.protect(rtp(2)))
    ours.retire(MKI[:4])
    with pytest.raises(UnknownKey):
        ours.unprotect(sender.protect(rtp(3)))
    keys[MKI] = KEY
    ours.unprotect(sender.protect(rtp(4)))


def test_a_key_changes_in_mid_stream_without_a_gap_or_a_double() -> None:
    sender, ours = SrtpSender(KEY, SSRC), receiver(KEY, OTHER)
    opened = [ours.unprotect(sender.protect(rtp(65530 + n))) for n in range(10)]
    sender.set_key(OTHER)
    opened += [ours.unprotect(sender.protect(rtp(65540 + n))) for n in range(10)]
    assert [o.index for o in opened] == list(range(65530, 65550))
    assert [o.mki for o in opened] == [MKI] * 10 + [MKI[::-1]] * 10


def test_each_sender_of_a_group_has_his_own_key_and_window() -> None:
    ours = receiver(KEY, OTHER)
    a, b = SrtpSender(KEY, 1), SrtpSender(OTHER, 1)
    assert ours.unprotect(a.protect(rtp(5, b"a", 1))).data[-1:] == b"a"
    assert ours.unprotect(b.protect(rtp(5, b"b", 1))).data[-1:] == b"b"


def test_a_sender_never_uses_a_sequence_number_twice_nor_another_ssrc() -> None:
    sender = SrtpSender(KEY, SSRC)
    sender.protect(rtp(10))
    for sequence in (10, 9, 10 + 0x8000):
        with pytest.raises(Replayed):
            sender.protect(rtp(sequence))
    with pytest.raises(SsrcClash):
        sender.protect(rtp(11, ssrc=1))
    with pytest.raises(SsrcClash):
        sender.protect_rtcp(rtcp(1))
    sender._last = 0xFFFFFFFFFFFF
    with pytest.raises(KeyExhausted):
        sender.protect(rtp(0))
    sender._rtcp_index = 0x80000000
    with pytest.raises(KeyExhausted):
        sender.protect_rtcp(rtcp())


def test_the_own_ssrc_from_outside_is_refused() -> None:
    ours = SrtpReceiver({MKI: KEY}.get, GROUP, own_ssrcs=(SSRC,))
    with pytest.raises(SsrcClash):
        ours.unprotect(SrtpSender(KEY, SSRC).protect(rtp(1)))
    with pytest.raises(SsrcClash):
        ours.unprotect_rtcp(SrtpSender(KEY, SSRC).protect_rtcp(rtcp()))


def test_the_csk_form_has_a_short_mki_and_guesses_the_roc() -> None:
    key = SrtpKey(bytes(16), bytes(12), b"\x21\x22\x23\x24")
    sender, ours = SrtpSender(key, SSRC, CSK), receiver(key, policy=CSK)
    for n in range(65000, 66500, 100):
        assert ours.unprotect(sender.protect(rtp(n))).index == n
    sealed = sender.protect_rtcp(rtcp())
    assert len(sealed) == len(rtcp()) + 16 + 4 + 4 and sealed[-4:] == key.mki
    ours.unprotect_rtcp(sealed)
    with pytest.raises(Replayed):
        ours.unprotect_rtcp(sealed)


def test_streams_and_keys_are_bounded() -> None:
    ours = receiver(max_streams=10)
    for ssrc in range(10):
        ours.unprotect(SrtpSender(KEY, ssrc).protect(rtp(1, ssrc=ssrc)))
    with pytest.raises(SsrcClash):
        ours.unprotect(SrtpSender(KEY, 10).protect(rtp(1, ssrc=10)))
    ours.unprotect(SrtpSender(KEY, 3).protect(rtp(2, ssrc=3)))


@pytest.mark.parametrize("length", [0, 11, 12, 39])
def test_short_packets_are_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket):
        receiver().unprotect((rtp(1) + bytes(60))[:length])
    with pytest.raises(MalformedPacket):
        receiver().unprotect_rtcp(bytes(min(length, 30)))


@given(st.binary(max_size=120))
@settings(max_examples=300)
def test_no_octets_raise_anything_but_an_srtp_error(octets: bytes) -> None:
    ours = SrtpReceiver(lambda mki: SrtpKey(bytes(16), bytes(12), mki))
    for open_ in (ours.unprotect, ours.unprotect_rtcp):
        with pytest.raises(SrtpError):
            open_(octets)


def test_keys_of_a_wrong_length_are_refused_and_none_is_shown() -> None:
    with pytest.raises(ValueError, match="16 or 32"):
        SrtpKey(bytes(15), bytes(12), MKI)
    with pytest.raises(ValueError, match="MKI"):
        SrtpSender(KEY, SSRC, CSK)
    assert KEY.master_key.hex() not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
