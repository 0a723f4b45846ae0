# SPDX-License-Identifier: Apache-2.0
"""Offer and answer (RFC 3264), SDES keys (RFC 4568), and the audio that comes of them, over loopback."""

from __future__ import annotations

import asyncio
import gc
import itertools
import wave
import weakref
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcptt_sip.callmedia import CallMedia, CallMediaSettings
from mcptt_sip.offeranswer import OPUS, PCMA, PCMU, Crypto, NotAcceptable, OfferAnswer
from mcptt_sip.testing import tokens
from media.codec import SILENCE
from media.errors import MediaError
from media.rtp import RtpPacket
from media.sdp import SessionDescription

KEY = "inline:" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0"


def side(port: int = 4000, **more: object) -> OfferAnswer:
    return OfferAnswer("192.0.2.1", port, token=tokens(port), **more)  # type: ignore[arg-type]


def sdp(*media: str, connection: str = "192.0.2.9", session: str = "") -> bytes:
    lines = ["v=0", "o=- 1 1 IN IP4 192.0.2.9", "s=-", f"c=IN IP4 {connection}", "t=0 0"]
    lines += [session] if session else []
    return ("\r\n".join([*lines, *media]) + "\r\n").encode()


AUDIO = "m=audio 5000 RTP/AVP 0"


@pytest.mark.parametrize(
    ("ours", "offered", "answered", "sends", "receives"),
    [
        ("sendrecv", "sendrecv", "sendrecv", True, True),
        ("sendrecv", "sendonly", "recvonly", False, True),
        ("sendrecv", "recvonly", "sendonly", True, False),
        ("sendrecv", "inactive", "inactive", False, False),
        ("sendonly", "sendrecv", "sendonly", True, False),
        ("sendonly", "sendonly", "inactive", False, False),
        ("inactive", "sendrecv", "inactive", False, False),
    ],
)
def test_directions_are_answered_as_the_table_says(
    ours: str, offered: str, answered: str, sends: bool, receives: bool
) -> None:
    one = side()
    one.wanted = ours
    answer = SessionDescription.parse(one.answer(sdp(AUDIO, f"a={offered}")))
    assert answer.media[0].direction == answered
    assert one.agreed is not None and (one.agreed.sends, one.agreed.receives) == (sends, receives)


def test_a_direction_of_the_session_holds_for_its_streams() -> None:
    one = side()
    one.answer(sdp(AUDIO, session="a=sendonly"))
    assert one.held_by_peer


def test_the_offerers_order_of_codecs_counts_and_dynamic_types_are_theirs() -> None:
    one = side()
    one.answer(sdp("m=audio 5000 RTP/AVP 18 8 0"))
    assert one.agreed is not None and one.agreed.codec is PCMA
    one.answer(sdp("m=audio 5000 RTP/AVP 111 101", "a=rtpmap:111 OPUS/48000/2", "a=rtpmap:101 telephone-event/48000"))
    assert one.agreed is not None and one.agreed.codec is OPUS
    assert (one.agreed.send, one.agreed.receive, one.agreed.event_send) == (111, 111, 101)


def test_streams_keep_their_places_and_the_version_counts_changes_only() -> None:
    one = side()
    offer = sdp("m=video 7000 RTP/AVP 31", AUDIO, "m=audio 5002 RTP/AVP 8")
    first = SessionDescription.parse(one.answer(offer))
    assert [(m.kind, bool(m.port)) for m in first.media] == [("video", False), ("audio", True), ("audio", False)]
    assert one.answer(offer) == str(first).encode(), "the same again is the same version"
    one.wanted = "sendonly"
    held = SessionDescription.parse(one.offer())
    assert [m.kind for m in held.media] == ["video", "audio", "audio"] and held.media[1].direction == "sendonly"
    versions = [next(value for kind, value in d.lines if kind == "o").split()[2] for d in (first, held)]
    assert versions == ["1", "2"]


@pytest.mark.parametrize(
    "body",
    [
        sdp("m=audio 5000 RTP/AVP 18"), sdp("m=video 5000 RTP/AVP 31"), sdp("m=audio 5000 RTP/SAVP 0"), b"nonsense",
        sdp("m=audio 5000 RTP/AVP x 300"), b"v=0\r\no=- 1 1 IN IP4 h\r\ns=-\r\nt=0 0\r\nm=audio 5000 RTP/AVP 0\r\n",
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_what_was_agreed_stays(body: bytes) -> None:
    one = side()
    one.answer(sdp(AUDIO))
    before = one.agreed
    with pytest.raises(NotAcceptable) as refused:
        one.answer(body)
    assert refused.value.status == 488 and one.agreed is before


def test_an_offer_without_streams_or_with_none_wanted_is_answered() -> None:
    one = side()
    assert SessionDescription.parse(one.answer(sdp())).media == [] and one.agreed is None
    answer = SessionDescription.parse(one.answer(sdp("m=audio 0 RTP/AVP 0")))
    assert [media.port for media in answer.media] == [0]


@pytest.mark.parametrize(
    "body",
    [sdp(), sdp(AUDIO, AUDIO), sdp("m=audio 0 RTP/AVP 0"), sdp("m=video 5000 RTP/AVP 31"), sdp("m=audio 1 RTP/AVP 18")],
)
def test_an_answer_that_does_not_fit_the_offer_is_refused(body: bytes) -> None:
    one = side()
    one.offer()
    with pytest.raises(NotAcceptable):
        one.accept(body)


def test_of_several_callees_the_last_answer_holds() -> None:
    one = side()
    with pytest.raises(NotAcceptable):
        one.accept(sdp(AUDIO))
    one.offer()
    one.accept(sdp(AUDIO))
    one.accept(sdp("m=audio 6000 RTP/AVP 8", connection="192.0.2.10"))
    assert one.agreed is not None and one.agreed.remote == ("192.0.2.10", 6000) and one.agreed.codec is PCMA


@given(st.permutations([OPUS, PCMU, PCMA]), st.sets(st.sampled_from([OPUS, PCMU, PCMA]), min_size=1), st.booleans())
def test_two_sides_agree_on_the_same(mine: list[object], theirs: set[object], sdes: bool) -> None:
    one = side(4000, codecs=tuple(mine), sdes=sdes)
    other = side(4002, codecs=tuple(sorted(theirs, key=str)), sdes=sdes)
    one.accept(other.answer(one.offer()))
    a, b = one.agreed, other.agreed
    assert a is not None and b is not None and a.codec.name == b.codec.name
    assert (a.send, a.receive, a.event_send) == (b.receive, b.send, b.event_receive)
    assert (a.remote, b.remote) == (("192.0.2.1", 4002), ("192.0.2.1", 4000))
    if sdes:
        assert a.local_key is not None and b.remote_key is not None and a.local_key.key == b.remote_key.key
        assert b.local_key is not None and a.remote_key is not None and b.local_key.key == a.remote_key.key
        assert a.local_key.key != a.remote_key.key and a.local_key.suite == a.remote_key.suite
    else:
        assert a.local_key is None and b.local_key is None


# --- keys


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (f"1 AES_CM_128_HMAC_SHA1_80 {KEY}", True),
        (f"7 aes_cm_128_hmac_sha1_32 {KEY}|2^31", True),
        (f"1 AES_CM_128_HMAC_SHA1_80 {KEY}|2^20|1:4", False),
        (f"1 AES_CM_128_HMAC_SHA1_80 {KEY} UNENCRYPTED_SRTP", False),
        (f"1 AES_CM_128_HMAC_SHA1_80 {KEY} KDR=1", False),
        (f"1 F8_128_HMAC_SHA1_80 {KEY}", False),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:QUJD", False),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:###", False),
        (f"x AES_CM_128_HMAC_SHA1_80 {KEY}", False),
        ("1 AES_CM_128_HMAC_SHA1_80", False),
    ],
)
def test_a_crypto_line_is_taken_whole_or_not_at_all(text: str, taken: bool) -> None:
    key = Crypto.parse(text)
    assert (key is not None) == taken
    if key is not None:
        assert len(key.key) == 30 and Crypto.parse(str(key)) == key
        assert "ABCDEF" not in repr(key)


def test_with_sdes_nothing_in_clear_is_agreed_and_the_answer_names_the_line_it_took() -> None:
    one = side(sdes=True)
    for clear in (sdp(AUDIO), sdp("m=audio 5000 RTP/SAVP 0")):
        with pytest.raises(NotAcceptable):
            one.answer(clear)
    offer = sdp("m=audio 5000 RTP/SAVP 0", f"a=crypto:3 F8_128_HMAC_SHA1_80 {KEY}",
                f"a=crypto:5 AES_CM_128_HMAC_SHA1_32 {KEY}")  # fmt: skip
    answer = SessionDescription.parse(one.answer(offer))
    (line,) = answer.media[0].attributes("crypto")
    assert line.startswith("5 AES_CM_128_HMAC_SHA1_32 inline:") and KEY not in line


def test_no_stream_goes_from_a_description() -> None:
    """RFC 3264 8: what is not wanted any more has port 0."""
    one, other = side(4000), side(5000)
    offer = one.offer()
    video = b"m=video 4002 RTP/AVP 31\r\n"
    other.answer(offer + video)
    agreed = other.agreed
    with pytest.raises(NotAcceptable, match="gone"):
        other.answer(offer)
    assert other.agreed == agreed
    other.answer(offer + video.replace(b"4002", b"0"))


# --- audio


async def pair(**settings: object) -> tuple[CallMedia, CallMedia]:
    made = [await CallMedia.open("127.0.0.1", settings=CallMediaSettings(**settings)) for _ in range(2)]  # type: ignore[arg-type]
    made[0].negotiation.accept(made[1].negotiation.answer(made[0].negotiation.offer()))
    for media in made:
        media.apply()
    return made[0], made[1]


async def frames(count: int):  # type: ignore[no-untyped-def]
    for _ in range(count):
        yield SILENCE


@pytest.mark.network
@pytest.mark.parametrize("sdes", [False, True])
async def test_audio_is_sent_held_and_sent_back(sdes: bool) -> None:
    one, other = await pair(sdes=sdes, codecs=(PCMU,))
    echo = asyncio.ensure_future(other.loop_back())
    await one.talk(frames(8))
    for _ in range(1000):
        if one.counters["received"] >= 8:
            break
        await asyncio.sleep(0.005)
    assert other.counters["received"] == other.counters["sent"] == 8
    one.negotiation.wanted = "sendonly"
    one.negotiation.accept(other.negotiation.answer(one.negotiation.offer()))
    other.apply()
    await other.talk(frames(2))
    assert other.counters["held"] == 2 and one.counters["received"] == 8
    one.close()
    other.close()
    await echo


@pytest.mark.network
async def test_with_sdes_a_packet_in_clear_and_a_repeated_one_are_refused() -> None:
    one, other = await pair(sdes=True, codecs=(PCMU,))
    agreed = other.negotiation.agreed
    assert agreed is not None
    other._received(RtpPacket(agreed.receive, 1, 2, 3, False, bytes(160)).encode(), ("127.0.0.1", 9))
    assert other.counters["unprotected"] == 1 and other.counters["received"] == 0
    protected = one._protect.apply(RtpPacket(agreed.receive, 1, 2, 3, False, bytes(160)).encode())
    for expected in (1, 1):
        other._received(protected, ("127.0.0.1", 9))
        assert other.counters["received"] == expected
    assert other.counters["unprotected"] == 2
    one.close()
    other.close()


@pytest.mark.network
async def test_digits_are_told_once_each_and_take_the_place_of_audio() -> None:
    one, other = await pair()
    heard: list[str] = []
    other.on_digit = heard.append
    talk = asyncio.ensure_future(one.talk(frames(60)))
    await one.send_digits("1*D")
    with pytest.raises(ValueError, match="0-9"):
        await one.send_digits("x")
    await talk
    assert heard == ["1", "*", "D"]
    one.close()
    other.close()


@pytest.mark.network
async def test_a_recording_keeps_gaps_puts_packets_in_order_and_believes_no_clock(tmp_path: Path) -> None:
    one, other = await pair(codecs=(PCMU,))
    agreed = other.negotiation.agreed
    assert agreed is not None
    other.record(tmp_path / "heard.wav")
    numbers = itertools.count()
    for timestamp in (0, 320, 160, 480, 800, 640, 4_000_000_000, 1_600):
        packet = RtpPacket(0, next(numbers), timestamp, 7, False, b"\x80" * 160)  # the loudest sample of PCMU
        other._received(packet.encode(), ("127.0.0.1", 9))
    other.close()
    with wave.open(str(tmp_path / "heard.wav"), "rb") as file:
        samples = file.readframes(file.getnframes())
        length = file.getnframes()
    assert length <= 16_000, "a timestamp of days ahead stretches nothing"
    values = (int.from_bytes(samples[at : at + 2], "little", signed=True) for at in range(0, len(samples), 2))
    loud = sum(abs(value) > 20_000 for value in values)
    assert loud > 7 * 300
    one.close()


@pytest.mark.network
async def test_a_file_that_is_no_audio_is_an_error(tmp_path: Path) -> None:
    one, other = await pair()
    (tmp_path / "no.wav").write_bytes(b"no audio at all")
    with pytest.raises(MediaError):
        await one.play(tmp_path / "no.wav")
    one.close()
    other.close()


@pytest.mark.network
async def test_audio_that_was_closed_is_freed_without_the_collector() -> None:
    gc.disable()
    try:
        one, other = await pair()
        gone = [weakref.ref(one), weakref.ref(other)]
        one.close()
        other.close()
        del one, other
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
