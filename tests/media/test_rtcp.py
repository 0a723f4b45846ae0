# SPDX-License-Identifier: Apache-2.0
"""Reports against aiortc's codec and the arithmetic of RFC 3550."""

from __future__ import annotations

import random

import pytest
from aiortc.rtp import RtcpPacket, RtcpRrPacket, RtcpSrPacket
from hypothesis import given
from hypothesis import strategies as st

from media.errors import RtpError
from media.rtcp import Report, ReportBlock, StreamStatistics, decode_report, ntp_middle, round_trip

word = st.integers(0, 2**32 - 1)
blocks = st.builds(ReportBlock, word, st.integers(0, 255), st.integers(-(2**23), 2**23 - 1), word, word, word, word)
reports = st.builds(
    Report, word, st.lists(blocks, max_size=5).map(tuple), st.none() | st.floats(0, 4e9), st.just(0), st.just(0),
    st.just(0),
)  # fmt: skip


@given(reports)
def test_a_report_survives_the_wire_and_aiortc_reads_the_same(report: Report) -> None:
    again = decode_report(report.encode())
    assert (again.ssrc, again.blocks) == (report.ssrc, report.blocks)
    assert (again.ntp is None) == (report.ntp is None)
    if report.ntp is not None:
        assert again.ntp == pytest.approx(report.ntp, abs=1e-6)
    (theirs,) = RtcpPacket.parse(report.encode())
    assert isinstance(theirs, RtcpRrPacket if report.ntp is None else RtcpSrPacket)
    assert theirs.ssrc == report.ssrc
    for block, other in zip(report.blocks, theirs.reports, strict=True):
        assert (block.ssrc, block.fraction_lost, block.highest_sequence, block.jitter) == (
            other.ssrc, other.fraction_lost, other.highest_sequence, other.jitter,
        )  # fmt: skip
        assert (block.last_sr, block.since_last_sr) == (other.lsr, other.dlsr)


@given(st.binary(max_size=120))
def test_nothing_raises_another_error(data: bytes) -> None:
    for octets in (data, b"\x81\xc8" + data, b"\x9f\xc9" + data):
        try:
            decode_report(octets)
        except RtpError:
            pass


def test_loss_is_of_the_time_since_the_last_report_and_since_the_beginning() -> None:
    stream = StreamStatistics(1, 48000)
    for number in range(65500, 65600):
        if number % 4:
            stream.received(number & 0xFFFF, number * 960 & 0xFFFFFFFF, number * 0.02)
    first = stream.block()
    assert (first.fraction_lost, first.lost, first.highest_sequence) == (64 * 24 * 4 // 99, 24, 65599)
    for number in range(65600, 65700):
        stream.received(number & 0xFFFF, number * 960 & 0xFFFFFFFF, number * 0.02)
    second = stream.block()
    assert (second.fraction_lost, second.lost, second.jitter) == (0, 24, 0)


def test_jitter_is_that_of_rfc_3550() -> None:
    source, stream = random.Random(3), StreamStatistics(1, 48000)
    expected, before = 0.0, None
    for number in range(500):
        late = source.random() * 0.04
        stream.received(number, number * 960, number * 0.02 + late)
        if before is not None:
            expected += (abs(late - before) * 48000 - expected) / 16
        before = late
    assert stream.block().jitter == pytest.approx(expected, abs=2)


def test_the_round_trip_is_what_is_left_of_the_time_when_the_peers_wait_is_taken_out() -> None:
    sent = 1_700_000_000.25
    block = ReportBlock(1, last_sr=ntp_middle(sent), since_last_sr=round(3.0 * 65536))
    assert round_trip(block, sent + 3.08) == pytest.approx(0.08, abs=1e-4)
    assert round_trip(ReportBlock(1), sent) is None
    assert round_trip(block, sent) is None, "answered before it was asked"
