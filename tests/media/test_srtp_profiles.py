# SPDX-License-Identifier: Apache-2.0
"""Every SRTP profile with every MKI length, octet for octet against libsrtp; the published vectors; policies."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from media import srtp_ciphers
from media.errors import AuthenticationFailed, MalformedPacket, PolicyUnsupported, Replayed, SrtpError
from media.srtp import SrtpReceiver, SrtpSender
from media.srtp_ciphers import AES_CM_128_HMAC_SHA1_32, AES_CM_128_HMAC_SHA1_80, GROUP, SrtpCipher, SrtpKey, SrtpPolicy
from tests.media import libsrtp

SSRC = 0xDECAFBAD
PROFILES = {
    "gcm128": SrtpPolicy(mki_length=0, roc_rate=0),
    "gcm256": SrtpPolicy(key_length=32, mki_length=0, roc_rate=0),
    "cm80": AES_CM_128_HMAC_SHA1_80,
    "cm32": AES_CM_128_HMAC_SHA1_32,
}
needs_libsrtp = pytest.mark.skipif(libsrtp.NAME is None, reason="libsrtp2 is not installed")


def rtp(sequence: int, payload: bytes) -> bytes:
    if sequence % 3 == 0:  # with a header extension and two CSRCs
        head = struct.pack(">BBHIIII", 0x92, 96, sequence & 0xFFFF, sequence * 960 & 0xFFFFFFFF, SSRC, 5, 6)
        return head + bytes.fromhex("bede000110aa0000") + payload
    return struct.pack(">BBHII", 0x80, 96, sequence & 0xFFFF, sequence * 960 & 0xFFFFFFFF, SSRC) + payload


def rtcp(number: int) -> bytes:
    return struct.pack(">BBHI", 0x82, 204, 2 + number % 9, SSRC) + b"MCPT" + bytes(4 * (number % 9))


def key(policy: SrtpPolicy, mki: bytes) -> SrtpKey:
    return SrtpKey(bytes(range(policy.key_length)), bytes(range(100, 100 + policy.salt_length)), mki)


@pytest.mark.interop
@needs_libsrtp
@pytest.mark.parametrize("mki", [b"", b"\x21\x02\x03\x04", b"\x01\x02\x03\x04\x05\x06\x07\x08"], ids=len)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_packet_is_that_of_libsrtp_and_each_opens_the_others(profile: str, mki: bytes) -> None:
    policy = replace(PROFILES[profile], mki_length=len(mki))
    own = key(policy, mki)
    raw = own.master_key + own.master_salt
    sender, receiver = SrtpSender(own, SSRC, policy), SrtpReceiver({mki: own}.get, policy)
    theirs_out, theirs_in = (libsrtp.Session(profile, raw, mki, inbound=inbound) for inbound in (False, True))
    for sequence in range(65500, 65600):  # across the wrap
        packet = rtp(sequence, bytes([sequence & 0xFF]) * (sequence % 90))
        sealed = sender.protect(packet)
        assert sealed == theirs_out.protect(packet)
        assert receiver.unprotect(sealed).data == packet == theirs_in.unprotect(sealed)
    for number in range(50):
        sealed = sender.protect_rtcp(rtcp(number))
        if number == 0 and theirs_out.protect_rtcp(rtcp(0)) != sealed:
            # libsrtp counts SRTCP from 1, this from 0: both are free to (RFC 3711 3.4)
            sealed = sender.protect_rtcp(rtcp(0))
            assert sealed == libsrtp.Session(profile, raw, mki, inbound=False).protect_rtcp(rtcp(0))
        elif number:
            assert sealed == theirs_out.protect_rtcp(rtcp(number))
        assert receiver.unprotect_rtcp(sealed).data == rtcp(number)
        if profile != "cm32":  # libsrtp before 2.7 does not open its own SRTCP of this profile with an MKI
            assert theirs_in.unprotect_rtcp(sealed) == rtcp(number)


@pytest.mark.interop
@needs_libsrtp
@pytest.mark.parametrize("rate", [1, 2, 7, 64])
def test_a_packet_with_the_roc_is_that_of_libsrtp_and_four_octets(rate: int) -> None:
    policy = replace(GROUP, roc_rate=rate)
    own = key(policy, bytes(8))
    theirs = libsrtp.Session("gcm128", own.master_key + own.master_salt, bytes(8), inbound=False)
    sender, receiver = SrtpSender(own, SSRC, policy), SrtpReceiver({bytes(8): own}.get, policy)
    for index in range(65400, 65700):
        sealed, plain = sender.protect(rtp(index, b"x" * 40)), theirs.protect(rtp(index, b"x" * 40))
        roc = (index >> 16).to_bytes(4, "big") if (index & 0xFFFF) % rate == 0 else b""
        assert sealed == plain + roc
        assert receiver.unprotect(sealed).index == index


def test_a_late_joiner_comes_in_at_any_roc_with_the_first_packet_that_states_it() -> None:
    policy = replace(GROUP, roc_rate=10)
    own = key(policy, bytes(8))
    sender, receiver = SrtpSender(own, SSRC, policy), SrtpReceiver({bytes(8): own}.get, policy)
    sender._last = (0x12345678 << 16 | 4) - 1
    outcome = []
    for sequence in range(4, 40):
        try:
            outcome.append(receiver.unprotect(sender.protect(rtp(sequence, b"x"))).index >> 16)
        except AuthenticationFailed:
            outcome.append(-1)
    assert outcome == [-1] * 6 + [0x12345678] * 30


@pytest.mark.parametrize("profile", PROFILES)
def test_no_changed_octet_passes_and_a_refused_packet_changes_nothing(profile: str) -> None:
    policy = replace(PROFILES[profile], mki_length=4)
    own = key(policy, b"mki0")
    sender, receiver = SrtpSender(own, SSRC, policy), SrtpReceiver({b"mki0": own}.get, policy)
    sealed, control = sender.protect(rtp(1, b"words")), sender.protect_rtcp(rtcp(3))
    for open_, packet in ((receiver.unprotect, sealed), (receiver.unprotect_rtcp, control)):
        for at in range(len(packet)):
            forged = bytearray(packet)
            forged[at] ^= 0x04
            with pytest.raises(SrtpError):
                open_(bytes(forged))
        for length in range(len(packet)):
            with pytest.raises(SrtpError):
                open_(packet[:length])
        open_(packet)
        with pytest.raises(Replayed):
            open_(packet)
    clear = bytearray(SrtpSender(own, SSRC, policy).protect_rtcp(rtcp(3)))
    at = len(clear) - 4 - 4 - (10 if policy.cipher is SrtpCipher.AES_CM_HMAC_SHA1 else 0)
    clear[at] &= 0x7F
    with pytest.raises(MalformedPacket, match="not encrypted"):
        receiver.unprotect_rtcp(bytes(clear))


def test_rfc_3711_b_2_and_b_3_the_key_stream_and_the_derived_keys() -> None:
    master = SrtpKey(
        bytes.fromhex("e1f97a0d3e018be0d64fa32c06de4139"), bytes.fromhex("0ec675ad498afeebb6960b3aabe6")
    )
    assert srtp_ciphers.derive(master, 0, 16).hex() == "c61e7a93744f39ee10734afe3ff7a087"
    assert srtp_ciphers.derive(master, 2, 14).hex() == "30cbbc08863d8c85d49db34a9ae1"
    assert srtp_ciphers.derive(master, 1, 20).hex() == "cebe321f6ff7716b6fd4ab49af256a156d38baa4"
    own = srtp_ciphers.transform(key(AES_CM_128_HMAC_SHA1_80, b""), AES_CM_128_HMAC_SHA1_80)
    assert isinstance(own, srtp_ciphers._CounterMode)
    cipher = srtp_ciphers.Cipher(
        srtp_ciphers.algorithms.AES(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")),
        srtp_ciphers.modes.CTR(bytes(16)),
    )
    own._rtp = cipher.encryptor()
    own._rtp_salt = int.from_bytes(bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfd"), "big") << 16
    packet = bytes.fromhex("806000000000000000000000") + bytes(48)
    assert own.sealing(0)(packet, 12, 0, b"")[12:60].hex() == (
        "e03ead0935c95e80e166b16dd92b4eb4" "d23513162b02d0f72a43a2fe4a5f97ab" "41e95b3bb0a2e8dd477901e4fca894c0"
    )


def test_rfc_7714_16_2_1_aead_aes_256_gcm() -> None:
    policy = PROFILES["gcm256"]
    own = srtp_ciphers.transform(key(policy, b""), policy)
    assert isinstance(own, srtp_ciphers._Gcm)
    own._rtp = AESGCM(bytes(range(32)))
    own._rtp_salt = int.from_bytes(bytes.fromhex("517569642070726f2071756f"), "big")
    packet = bytes.fromhex("8040f17b8041f8d35501a0b2") + b"Gallia est omnis divisa in partes tres"
    assert own.sealing(0x5501A0B2)(packet, 12, 0xF17B, b"")[12:].hex() == (
        "32b1de78a822fe12ef9f78fa332e33aab18012389a58e2f3b50b2a0276ffae0f1ba63799b87b"
        "7aa3db36dfffd6b0f9bb7878d7a76c13"
    )


def test_a_policy_is_that_of_the_sp_payload_and_nothing_weaker() -> None:
    group = {0: 6, 1: 16, 2: 4, 4: 12, 5: 0, 6: 0, 13: 1, 18: 4, 19: 0, 20: 16}
    assert SrtpPolicy.of_parameters(group, mki_length=8) == GROUP
    assert SrtpPolicy.of_parameters({**group, 13: 25}, mki_length=8) == replace(GROUP, roc_rate=25)
    private = {0: 6, 1: 32, 4: 12, 20: 16}
    assert SrtpPolicy.of_parameters(private, mki_length=4) == SrtpPolicy(32, 4, 0)
    assert SrtpPolicy.of_parameters({}, mki_length=0) == AES_CM_128_HMAC_SHA1_80
    assert SrtpPolicy.of_parameters({0: 1, 2: 1, 11: 4}, mki_length=0) == AES_CM_128_HMAC_SHA1_32
    for wrong in (
        {**group, 7: 0}, {**group, 8: 0}, {**group, 10: 0}, {**group, 0: 0}, {0: 1, 2: 0}, {**group, 2: 1},
        {**group, 2: 2}, {**group, 2: 3}, {**group, 13: 0}, {**group, 20: 8}, {**group, 1: 15}, {**group, 4: 11},
        {**group, 5: 1}, {**group, 6: 4}, {**group, 18: 10}, {0: 1, 2: 1, 11: 3}, {0: 2}, {0: 1, 2: 1, 13: 5},
        {**private, 13: 1},
    ):  # fmt: skip
        with pytest.raises(PolicyUnsupported):
            SrtpPolicy.of_parameters(wrong, mki_length=8)
    with pytest.raises(PolicyUnsupported):
        SrtpPolicy(tag_length=0)


def test_two_senders_of_one_key_and_a_foreign_guk_id_are_told_apart_and_counted() -> None:
    alice, mallory = key(GROUP, b"\0\0\0\x01\0\0\0\x0a"), SrtpKey(bytes(16), bytes(12), b"\0\0\0\x01\0\0\0\x0a")
    receiver = SrtpReceiver({alice.mki: alice}.get, GROUP, own_ssrcs=(7,))
    receiver.unprotect(SrtpSender(alice, SSRC).protect(rtp(1, b"x")))
    attacks = [
        (SrtpSender(mallory, SSRC).protect(rtp(2, b"x")), "authentication"),  # Alice's MKI on another key
        (SrtpSender(SrtpKey(bytes(16), bytes(12), b"\0\0\0\x01\0\0\0\x0b"), SSRC).protect(rtp(2, b"x")), "unknown-key"),
        (SrtpSender(alice, SSRC).protect(rtp(1, b"y")), "replay"),  # a second sender under key and SSRC
        (SrtpSender(alice, 7).protect(rtp(1, b"y")[:8] + bytes((0, 0, 0, 7)) + b"y"), "ssrc-clash"),
    ]
    for packet, reason in attacks:
        with pytest.raises(SrtpError) as refused:
            receiver.unprotect(packet)
        assert refused.value.reason == reason
    assert receiver.counters == {"accepted": 1, **{reason: 1 for _, reason in attacks}}
