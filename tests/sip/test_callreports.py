# SPDX-License-Identifier: Apache-2.0
"""RTCP of ordinary calls (RFC 3550 6, 5761, 3605), read by aiortc's codec, and between two ends over sockets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiortc.rtp import RtcpByePacket, RtcpPacket, RtcpRrPacket, RtcpSdesPacket, RtcpSrPacket
from hypothesis import given, settings
from hypothesis import strategies as st

from mcptt_sip.callmedia import CallMedia, CallMediaSettings
from mcptt_sip.callreports import CallReports, PeerReport
from mcptt_sip.offeranswer import PCMU, OfferAnswer
from mcptt_sip.testing import tokens
from media.errors import RtpError
from media.rtcp import source_description
from media.rtp import RtpPacket
from media.sdp import SessionDescription

SILENCE = bytes(640)
UNIX = 1_790_000_000.0


def reports(ssrc: int, *, draw: float = 0.5) -> CallReports:
    return CallReports(ssrc, f"end-{ssrc}", 5.0, lambda: draw)


def rtp(ssrc: int, number: int) -> RtpPacket:
    return RtpPacket(0, number & 0xFFFF, number * 160, ssrc, False, bytes(160))


def test_a_report_is_a_senders_while_he_sends_and_names_its_source() -> None:
    end = reports(7)
    (empty, name) = RtcpPacket.parse(end.report(0, 1.0, UNIX))
    assert isinstance(empty, RtcpRrPacket) and empty.reports == [] and isinstance(name, RtcpSdesPacket)
    end.sent(160)
    end.sent(160)
    (sender, name) = RtcpPacket.parse(end.report(1 << 32 | 320, 2.0, UNIX))
    assert isinstance(sender, RtcpSrPacket) and isinstance(name, RtcpSdesPacket)
    assert (sender.sender_info.packet_count, sender.sender_info.octet_count) == (2, 320)
    assert sender.sender_info.rtp_timestamp == 320
    assert sender.sender_info.ntp_timestamp >> 32 == int(UNIX) + 2208988800
    assert [(chunk.ssrc, chunk.items) for chunk in name.chunks] == [(7, [(1, b"end-7")])]
    kinds = [type(RtcpPacket.parse(end.report(0, at, UNIX))[0]) for at in (3.0, 4.0, 5.0)]
    assert kinds == [RtcpSrPacket, RtcpRrPacket, RtcpRrPacket], "6.4: sent since the last report but one"
    *_, bye = RtcpPacket.parse(end.farewell(0, 6.0, UNIX))
    assert isinstance(bye, RtcpByePacket) and bye.sources == [7]


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(0, 2**32 - 1))
def test_aiortc_reads_every_name(name: str, ssrc: int) -> None:
    octets = source_description(ssrc, name)
    assert len(octets) % 4 == 0
    (packet,) = RtcpPacket.parse(octets)
    assert isinstance(packet, RtcpSdesPacket) and packet.chunks[0].items == [(1, name.encode())]


def test_a_name_is_at_most_255_octets() -> None:
    source_description(1, "x" * 255)
    with pytest.raises(ValueError, match="255"):
        source_description(1, "x" * 256)


def test_the_peer_says_what_was_lost_and_how_long_the_way_is() -> None:
    here, there = reports(1), reports(2)
    for number in range(65_530, 65_540):  # across the end of the sequence numbers
        here.sent(160)
        if number not in (65_533, 65_534):
            there.received(rtp(1, number), 8000, 10.0 + number * 0.02)
    there.hear(here.report(0, 11.0, UNIX), 8000, 11.25, UNIX + 0.25)
    here.hear(there.report(0, 12.25, UNIX + 1.25), 8000, 12.5, UNIX + 1.5)
    assert here.heard is not None
    assert (here.heard.lost, here.heard.lost_in_all) == (pytest.approx(0.2, abs=1 / 256), 2)
    assert here.heard.round_trip == pytest.approx(0.5, abs=1e-3) and here.heard.jitter < 0.01
    assert there.heard is None, "the first report of this end had nothing of the other"


def test_reports_of_others_and_of_another_stream_change_nothing() -> None:
    here, there = reports(1), reports(2)
    there.received(rtp(3, 0), 8000, 1.0)
    here.hear(there.report(0, 2.0, UNIX), 8000, 2.0, UNIX)
    assert here.heard is None
    there.received(rtp(1, 5), 8000, 3.0)  # the peer begins a new stream: what was counted of the old one does not count
    here.hear(there.report(0, 4.0, UNIX), 8000, 4.0, UNIX)
    assert here.heard == PeerReport(0.0, 0, 0.0, None)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_rtcp_is_an_rtp_error_and_nothing_else(data: bytes) -> None:
    for octets in (data, b"\x81\xc8" + data, b"\x81\xca" + data, b"\x80\xc9\x00\x01\x00\x00\x00\x07" + data):
        try:
            reports(1).hear(octets, 8000, 1.0, UNIX)
        except RtpError:
            pass


@settings(deadline=None)
@given(st.floats(0, 1))
def test_the_time_between_reports_is_drawn_so_that_two_ends_do_not_speak_in_step(draw: float) -> None:
    """6.3.1: 0.5 to 1.5 times the interval, less what the drawing alone would add; half of it to the first."""
    end = reports(1, draw=draw)
    assert 2.5 / (math.e - 1.5) - 1e-9 <= end.wait() <= 7.5 / (math.e - 1.5) + 1e-9
    assert end.wait(first=True) == end.wait() / 2


# --- what the descriptions say


def side(port: int = 4000, rtcp_port: int | None = None, host: str = "192.0.2.1") -> OfferAnswer:
    return OfferAnswer(host, port, rtcp_port=rtcp_port, token=tokens(port))


def control(one: OfferAnswer) -> tuple[tuple[str, int] | None, bool]:
    assert one.agreed is not None
    return one.agreed.remote_rtcp, one.agreed.rtcp_mux


def test_both_want_one_port_and_have_it() -> None:
    one, other = side(4000, 4001), side(5000, 5001, "192.0.2.2")
    one.accept(other.answer(one.offer()))
    assert control(one) == (("192.0.2.2", 5000), True) and control(other) == (("192.0.2.1", 4000), True)


@pytest.mark.parametrize("silent", ["offerer", "answerer"])
def test_who_does_not_know_of_it_has_the_next_port(silent: str) -> None:
    one, other = side(4000, 4001), side(5000, 5001, "192.0.2.2")
    offer = one.offer()
    if silent == "offerer":
        offer = offer.replace(b"a=rtcp-mux\r\n", b"")
    answer = other.answer(offer)
    assert (b"a=rtcp-mux" in answer) == (silent == "answerer"), "5.1.1: only where it was offered"
    one.accept(answer.replace(b"a=rtcp-mux\r\n", b""))
    assert control(one) == (("192.0.2.2", 5001), False)
    if silent == "offerer":
        assert control(other) == (("192.0.2.1", 4001), False)


def test_another_port_is_said_and_heard() -> None:
    one, other = side(4000, 4999), side(5000, 5001, "192.0.2.2")
    offer = one.offer()
    assert SessionDescription.parse(offer).media[0].attribute("rtcp") == "4999"
    other.answer(offer.replace(b"a=rtcp-mux\r\n", b""))
    assert control(other) == (("192.0.2.1", 4999), False)


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ("4711", ("192.0.2.1", 4711)), ("4711 IN IP4 192.0.2.7", ("192.0.2.7", 4711)),
        ("4711 IN IP6 2001:db8::1", ("2001:db8::1", 4711)), ("4711 IN IP4 a.name", ("192.0.2.1", 4711)),
        ("0", None), ("70000", None), ("4711111111111", None), ("", ("192.0.2.1", 4001)), ("x", None),
    ],
)  # fmt: skip
def test_an_address_of_rtcp_is_read_as_it_is_said(said: str, understood: tuple[str, int] | None) -> None:
    offer = side(4000, 4001).offer().replace(b"a=rtcp-mux", f"a=rtcp:{said}".encode())
    other = side(5000, 5001, "192.0.2.2")
    other.answer(offer)
    assert control(other) == (understood, False)


def test_nobody_is_told_anything_while_the_peer_has_no_address() -> None:
    """RFC 2543's hold."""
    one, other = side(4000, 4001), side(5000, 5001, "192.0.2.2")
    other.answer(one.offer().replace(b"c=IN IP4 192.0.2.1", b"c=IN IP4 0.0.0.0"))
    assert control(other)[0] is None


# --- over sockets


@asynccontextmanager
async def pair(*, mux: bool = True, **settings: object) -> AsyncIterator[tuple[CallMedia, CallMedia]]:
    made = [
        await CallMedia.open("127.0.0.1", settings=CallMediaSettings(codecs=(PCMU,), **settings))  # type: ignore[arg-type]
        for _ in range(2)
    ]
    offer = made[0].negotiation.offer()
    made[0].negotiation.accept(made[1].negotiation.answer(offer if mux else offer.replace(b"a=rtcp-mux\r\n", b"")))
    for media in made:
        media.apply()
    try:
        yield made[0], made[1]
    finally:
        for media in made:
            media.close()


async def until(media: CallMedia, what: str, count: int = 1) -> None:
    for _ in range(2000):
        if media.counters[what] >= count:
            return
        await asyncio.sleep(0.005)
    raise TimeoutError(f"{what}: {media.counters}")


async def frames(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield SILENCE


@pytest.mark.network
@pytest.mark.parametrize("mux", [True, False])
@pytest.mark.parametrize("sdes", [False, True])
async def test_each_end_hears_how_it_is_heard(mux: bool, sdes: bool) -> None:
    async with pair(mux=mux, sdes=sdes, report_interval=0.05) as (one, other):
        assert one.address[1] % 2 == 0
        await one.talk(frames(4))
        await until(other, "received", 4)
        before = one.counters["reports heard"]
        await until(one, "reports heard", before + 2)
        assert one.peer_report is not None and one.peer_report.lost_in_all == 0
        assert one.peer_report.round_trip is None or one.peer_report.round_trip < 1.0
        await until(other, "reports heard")
        assert other.peer_report is None, "it has sent nothing"
        heard = one.counters["reports heard"]
        other.close()
        await until(one, "reports heard", heard + 1)  # the goodbye
        assert not {"foreign", "unprotected", "broken"} & one.counters.keys()


@pytest.mark.network
async def test_rtcp_of_others_in_clear_or_in_pieces_is_counted_and_left() -> None:
    async with pair(sdes=True, report_interval=0.0) as (one, _):
        good = reports(9).report(0, 1.0, UNIX)
        one._heard(good, ("127.0.0.2", 9))
        one._heard(good, ("127.0.0.1", 9))
        assert (one.counters["foreign"], one.counters["unprotected"]) == (1, 1)
    async with pair(report_interval=0.0) as (one, _):
        one._received(good[:-5], ("127.0.0.1", 9))
        assert one.counters["broken"] == 1 and one.peer_report is None


@pytest.mark.network
async def test_who_has_reported_nothing_says_no_goodbye_and_nobody_reports_who_was_told_not_to() -> None:
    async with pair(report_interval=0.0) as (one, other):
        await one.talk(frames(2))
        one.close()
        other.close()
        assert one.counters["reports"] == other.counters["reports"] == 0


@pytest.mark.network
async def test_a_held_call_is_reported_on() -> None:
    """RFC 3264 5.1: RTCP goes on in every direction of the media."""
    async with pair(report_interval=0.05) as (one, other):
        one.negotiation.wanted = "inactive"
        one.negotiation.accept(other.negotiation.answer(one.negotiation.offer()))
        one.apply()
        other.apply()
        heard = other.counters["reports heard"]
        await until(other, "reports heard", heard + 2)
