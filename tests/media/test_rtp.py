# SPDX-License-Identifier: Apache-2.0
"""RTP packets against literals, aiortc's codec and nonsense."""

from __future__ import annotations

import pytest
from aiortc.rtp import RtpPacket as Theirs
from hypothesis import given
from hypothesis import strategies as st

from media.errors import RtpError
from media.rtp import RtpPacket

packets = st.builds(
    RtpPacket,
    st.integers(0, 127), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.booleans(), st.binary(max_size=60), st.none() | st.floats(0.0, 4e9),
)  # fmt: skip


@given(packets, st.integers(1, 14))
def test_a_packet_survives_the_wire(packet: RtpPacket, extension: int) -> None:
    again = RtpPacket.decode(packet.encode(extension), extension)
    if packet.ntp is not None:
        assert again.ntp == pytest.approx(packet.ntp, abs=1e-6)
    assert again.payload == packet.payload
    assert again.encode(extension) == packet.encode(extension) or packet.ntp is not None


@given(packets)
def test_aiortc_reads_the_same(packet: RtpPacket) -> None:
    theirs = Theirs.parse(packet.encode())
    assert (theirs.payload_type, theirs.sequence_number, theirs.timestamp, theirs.ssrc, theirs.marker) == (
        packet.payload_type, packet.sequence, packet.timestamp, packet.ssrc, int(packet.marker),
    )  # fmt: skip
    assert theirs.payload == packet.payload


def test_the_time_of_a_burst_on_the_wire() -> None:
    # 2026-01-01 00:00:00.5 UTC is 3976214400.5 seconds after 1900
    packet = RtpPacket(96, 1, 2, 3, True, b"p", ntp=1767225600.5)
    assert f"{3976214400:08x}" == "ed003780"
    assert packet.encode().hex() == "90e000010000000200000003" "bede0003" "17ed00378080000000000000" "70"


def test_csrcs_padding_and_foreign_extensions_are_skipped() -> None:
    data = bytes.fromhex("b260000100000002" "00000003" "0000000a0000000b" "bede0002" "21aabb00" "00000000")
    packet = RtpPacket.decode(data + b"payload" + b"\0\0\x03")
    assert packet.payload == b"payload" and packet.ntp is None


def test_era_one_begins_in_2036() -> None:
    assert RtpPacket.decode(RtpPacket(0, 0, 0, 0, ntp=2_200_000_000.25).encode()).ntp == 2_200_000_000.25


@given(st.binary(max_size=80))
def test_nothing_raises_another_error(data: bytes) -> None:
    for octets in (data, b"\xb1" + data):
        try:
            RtpPacket.decode(octets)
        except RtpError:
            pass
