# SPDX-License-Identifier: Apache-2.0
"""Floor control messages: octets that Wireshark knows, Wireshark itself as an oracle, and nonsense."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media import floor_messages as fm
from media.errors import FloorMessageError
from media.floor_messages import (
    DenyCause,
    FloorAck,
    FloorDeny,
    FloorGranted,
    FloorIdle,
    FloorIndicator,
    FloorMessage,
    FloorRelease,
    FloorRequest,
    FloorRevoke,
    FloorTaken,
    QueuePositionInfo,
    QueuePositionRequest,
    RevokeCause,
    decode,
    decode_all,
)

CODES = json.loads((Path(__file__).parents[1] / "vectors" / "media" / "floor_codes.json").read_text())
NORMAL, TEMPORARY = FloorIndicator.NORMAL, FloorIndicator.NORMAL | FloorIndicator.TEMPORARY_GROUP
SERVER, CLIENT = 0x0A0B0C0D, 0x11223344
BOB = "sip:bob@mc.example"

MEANINGS: dict[str, FloorMessage] = {
    "floor_request": FloorRequest(ssrc=CLIENT, priority=5, user_id=BOB, indicator=NORMAL),
    "floor_granted_ack": FloorGranted(
        ssrc=SERVER, ack_requested=True, duration=30, granted_ssrc=CLIENT, priority=5, indicator=TEMPORARY
    ),
    "floor_taken": FloorTaken(
        ssrc=SERVER, granted_party=BOB, permission=1, sequence=7, granted_ssrc=CLIENT, indicator=TEMPORARY
    ),
    "floor_deny": FloorDeny(ssrc=SERVER, reject=(1, "busy"), indicator=TEMPORARY),
    "floor_release": FloorRelease(ssrc=CLIENT, user_id=BOB, indicator=NORMAL),
    "floor_idle": FloorIdle(ssrc=SERVER, sequence=8, indicator=TEMPORARY),
    "floor_revoke": FloorRevoke(ssrc=SERVER, reject=(4, ""), indicator=TEMPORARY),
    "queue_pos_request": QueuePositionRequest(ssrc=CLIENT, user_id=BOB),
    "queue_pos_info": QueuePositionInfo(ssrc=SERVER, queue=(1, 5), indicator=TEMPORARY),
    "floor_ack": FloorAck(ssrc=CLIENT, source=0, acknowledged=1),
}


@pytest.mark.parametrize("name", CODES["example_messages_hex"])
def test_the_known_octets_have_their_meaning(name: str) -> None:
    octets = bytes.fromhex(CODES["example_messages_hex"][name])
    meaning = MEANINGS[name]
    decoded = decode(octets)
    assert decoded == meaning
    assert decode(decoded.encode()) == decoded
    assert len(decoded.encode()) == len(octets)


def test_types_causes_and_bits_are_those_of_the_table() -> None:
    assert {cls.TYPE for cls in fm._MESSAGES.values()} == {entry["type"] for entry in CODES["messages"]}
    assert {int(code) for code in CODES["deny_causes"]} == {cause.value for cause in DenyCause}
    assert {int(code) for code in CODES["revoke_causes"]} == {cause.value for cause in RevokeCause}
    assert {int(bit, 16) for bit in CODES["floor_indicator_bits"]} == {bit.value for bit in FloorIndicator}


def test_several_messages_in_a_datagram_are_told_apart() -> None:
    messages = list(MEANINGS.values())
    assert decode_all(b"".join(message.encode() for message in messages)) == messages
    with pytest.raises(FloorMessageError):
        decode(messages[0].encode() * 2)


def test_fields_of_later_releases_are_kept() -> None:
    message = FloorTaken(ssrc=1, granted_party="sip:x", others=((17, b"alias"), (25, b""), (0, b"\5\0")))
    assert decode(message.encode()) == message


def test_a_field_that_does_not_fit_is_refused() -> None:
    with pytest.raises(FloorMessageError):
        FloorRequest(ssrc=1, user_id="x" * 256).encode()


GOOD = MEANINGS["floor_taken"].encode()


@pytest.mark.parametrize(
    "octets",
    [
        b"", GOOD[:-1], GOOD[:11], GOOD + b"\0" * 4, b"\x02" + GOOD[1:], b"\xa2" + GOOD[1:],
        GOOD[:1] + b"\xcd" + GOOD[2:],
        GOOD[:8] + b"MCPC" + GOOD[12:], GOOD[:2] + b"\0\1" + GOOD[4:], GOOD[:2] + b"\xff\xff" + GOOD[4:],
        b"\x8c" + GOOD[1:], GOOD * 100, GOOD[:13] + b"\xff" + GOOD[14:],
        bytes.fromhex("85cc00030a0b0c0d4d435054") + bytes.fromhex("08010000"),  # sequence number of one octet
        bytes.fromhex("80cc00030a0b0c0d4d435054") + bytes.fromhex("0602ffff"),  # not UTF-8
    ],
)  # fmt: skip
def test_nonsense_is_refused(octets: bytes) -> None:
    with pytest.raises(FloorMessageError):
        decode_all(octets)


@given(st.binary(max_size=100), st.integers(0, 31), st.booleans())
@settings(max_examples=2000)
def test_no_octets_raise_anything_else(data: bytes, subtype: int, framed: bool) -> None:
    if framed:
        data += bytes(-len(data) % 4)
        data = struct.pack(">BBHI4s", 0x80 | subtype, 204, 2 + len(data) // 4, 1, b"MCPT") + data
    try:
        messages = decode_all(data)
    except FloorMessageError:
        return
    assert decode_all(b"".join(message.encode() for message in messages)) == messages


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_wireshark_reads_the_same(tmp_path: Path) -> None:
    capture = tmp_path / "floor.pcap"
    with open(capture, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
        for message in MEANINGS.values():
            payload = message.encode()
            udp = struct.pack(">HHHH", 40001, 40003, 8 + len(payload), 0) + payload
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
            file.write(struct.pack("<IIII", 0, 0, len(ip + udp), len(ip + udp)) + ip + udp)
    fields = [
        "rtcp.app_data.mcptt.priority", "rtcp.app_data.mcptt.duration", "rtcp.mcptt.rej_phrase",
        "rtcp.app_data.mcptt.user_id", "rtcp.mcptt.granted_partys_id", "rtcp.app_data.mcptt.floor_ind",
        "rtcp.app_data.mcptt.msg_seq_num", "rtcp.app_data.mcptt.queue_pos_inf", "_ws.expert.message", "_ws.malformed",
    ]  # fmt: skip
    arguments = [part for field in fields for part in ("-e", field)]
    out = subprocess.run(
        ["tshark", "-r", str(capture), "-d", "udp.port==40003,rtcp", "-T", "fields", "-E", "separator=|", *arguments],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    rows = [dict(zip(fields, line.split("|"), strict=True)) for line in out]
    assert len(rows) == len(MEANINGS)
    for row, message in zip(rows, MEANINGS.values(), strict=True):
        assert not row["_ws.malformed"], row
        if (priority := getattr(message, "priority", None)) is not None:
            assert int(row["rtcp.app_data.mcptt.priority"]) == priority
        if (duration := getattr(message, "duration", None)) is not None:
            assert int(row["rtcp.app_data.mcptt.duration"]) == duration
        if (user := getattr(message, "user_id", None)) is not None:
            assert row["rtcp.app_data.mcptt.user_id"] == user
        if (party := getattr(message, "granted_party", None)) is not None:
            assert row["rtcp.mcptt.granted_partys_id"] == party
        if (sequence := getattr(message, "sequence", None)) is not None:
            assert int(row["rtcp.app_data.mcptt.msg_seq_num"]) == sequence
        if message.indicator is not None:
            assert int(row["rtcp.app_data.mcptt.floor_ind"], 0) == message.indicator
