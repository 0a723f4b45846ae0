# SPDX-License-Identifier: Apache-2.0
"""Session descriptions survive reading and writing; nonsense is refused with its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.errors import SdpError
from media.sdp import MAX_OCTETS, McpttFmtp, SessionDescription

OFFER = "\r\n".join(
    [
        "v=0", "o=- 1 1 IN IP4 192.0.2.11", "s=-", "c=IN IP4 192.0.2.11", "t=0 0", "a=tool:x",
        "m=audio 40000 RTP/SAVP 96 97", "i=speech", "c=IN IP6 2001:db8::1", "a=rtpmap:96 opus/48000/2",
        "a=fmtp:96 useinbandfec=1", "a=rtpmap:97 AMR-WB/16000/1", "a=ptime:20", "a=unknown:kept as it is",
        "a=extmap:3/sendrecv urn:ietf:params:rtp-hdrext:ntp-64", "a=ssrc:1234 cname:x", "a=ssrc:1234 msid:y",
        "a=recvonly", "m=application 40002 udp MCPTT",
        "a=fmtp:MCPTT mc_queueing;mc_priority=5;mc_granted;mc_implicit_request;mc_new=1", "",
    ]
)  # fmt: skip


def test_a_description_is_read_and_written_as_it_was() -> None:
    session = SessionDescription.parse(OFFER)
    assert str(session) == OFFER and session.encode() == OFFER.encode()
    assert str(SessionDescription.parse(OFFER.replace("\r\n", "\n"))) == OFFER
    audio, floor = session.media
    assert (audio.port, audio.protocol, audio.formats) == (40000, "RTP/SAVP", ("96", "97"))
    assert session.host_of(audio) == "2001:db8::1" and session.host_of(floor) == "192.0.2.11"
    assert audio.rtpmap(97) == "AMR-WB/16000/1" and audio.fmtp(96) == "useinbandfec=1" and audio.rtpmap(98) is None
    assert audio.ssrcs == (1234,) and audio.direction == "recvonly" and floor.direction is None
    assert audio.extension_id("urn:ietf:params:rtp-hdrext:ntp-64") == 3
    assert session.attribute("tool") == "x" and audio.attribute("tool") is None


def test_the_floor_parameters() -> None:
    text = SessionDescription.parse(OFFER).media[1].fmtp("MCPTT") or ""
    fmtp = McpttFmtp.parse(text)
    assert fmtp == McpttFmtp(True, 5, True, True, None, None, ("mc_new=1",))
    assert str(fmtp) == text
    assert McpttFmtp.parse("mc_ssrc=7; mc_floor_ssrc=8") == McpttFmtp(ssrc=7, floor_ssrc=8)
    for wrong in ("mc_priority=", "mc_priority=256", "mc_priority=x", "mc_ssrc=4294967296"):
        with pytest.raises(SdpError):
            McpttFmtp.parse(wrong)


@pytest.mark.parametrize(
    "text, line",
    [
        ("", 1), ("v=1\r\n", 1), ("hello", 1), ("v=0\r\nno equals", 2), ("v=0\r\ns=-\r\n", 0),
        ("v=0\r\no=x\r\nm=audio 70000 RTP/AVP 0", 3), ("v=0\r\no=x\r\nm=audio RTP/AVP", 3),
        ("v=0\r\no=x\r\n" + "m=audio 1 RTP/AVP 0\r\n" * 40, 35),
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(SdpError) as error:
        SessionDescription.parse(text)
    assert error.value.line == line


def test_size_and_encoding_are_limited() -> None:
    with pytest.raises(SdpError):
        SessionDescription.parse(b"v=0\r\n" + b"a=x\r\n" * MAX_OCTETS)
    with pytest.raises(SdpError):
        SessionDescription.parse(b"v=0\r\ns=\xff")


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_nothing_raises_another_error(data: bytes | str) -> None:
    for octets in (data, (b"v=0\r\no=- 1 1 IN IP4 1\r\n" + data) if isinstance(data, bytes) else "v=0\no=x\n" + data):
        try:
            session = SessionDescription.parse(octets)
            for media in session.media:
                _ = media.ssrcs, media.extension_id("x"), session.host_of(media), media.rtpmap(0)
        except SdpError:
            pass
