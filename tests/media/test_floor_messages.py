# SPDX-License-Identifier: Apache-2.0
"""Floor control messages: octets that Wireshark knows, Wireshark itself as an oracle, and nonsense."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    FloorReleaseMultiTalker,
    FloorRequest,
    FloorRevoke,
    FloorRevokeRequest,
    FloorTaken,
    Location,
    LocationType,
    QueuedFloorRequests,
    QueuedRequestsPurpose,
    QueuePositionInfo,
    QueuePositionRequest,
    RevokeCause,
    Source,
    TrackInfo,
    UnicastMediaFlowControl,
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
    assert {cls.TYPE for cls in fm.MESSAGES.values()} == {entry["type"] for entry in CODES["messages"]}
    assert {int(code) for code in CODES["deny_causes"]} == {cause.value for cause in DenyCause}
    assert {int(code) for code in CODES["revoke_causes"]} == {cause.value for cause in RevokeCause}
    assert {int(bit, 16) for bit in CODES["floor_indicator_bits"]} == {bit.value for bit in FloorIndicator}


def test_several_messages_in_a_datagram_are_told_apart() -> None:
    messages = list(MEANINGS.values())
    assert decode_all(b"".join(message.encode() for message in messages)) == messages
    with pytest.raises(FloorMessageError):
        decode(messages[0].encode() * 2)


def test_fields_of_later_releases_are_kept() -> None:
    message = FloorTaken(ssrc=1, granted_party="sip:x", others=((99, b"alias"), (25, b""), (0, b"\5\0")))
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


#: one message of every type with every field that it may have
FULL: dict[str, FloorMessage] = {
    "request": FloorRequest(
        ssrc=CLIENT, priority=255, user_id=BOB, indicator=FloorIndicator.EMERGENCY, functional_alias="sip:chief@x",
        location=Location(LocationType.TRACKING_AREA, bytes.fromhex("62f2101234")),
        track_info=TrackInfo(1, "ab", (99, 7)),
    ),
    "granted": FloorGranted(
        ssrc=SERVER, duration=65535, granted_ssrc=0xFFFFFFFF, priority=0, user_id=BOB, queue_size=3,
        queued_user="sip:carol@x", track_info=TrackInfo(0, "x"), indicator=FloorIndicator.BROADCAST,
    ),
    "taken": FloorTaken(
        ssrc=SERVER, ack_requested=True, granted_party="tel:+491", permission=0, user_id="sip:me@x", sequence=65535,
        granted_ssrc=5, granted_users=("sip:alice@x", BOB), ssrcs=(5, 6), functional_alias="sip:a@x",
        functional_aliases=("sip:b@x", "sip:cc@x"), indicator=FloorIndicator.MULTI_TALKER,
        location=Location(LocationType.COORDINATES, bytes.fromhex("123456654321")),
    ),
    "deny": FloorDeny(
        ssrc=SERVER, ack_requested=True, reject=(DenyCause.RETRY_AFTER, "später"), user_id=BOB, indicator=NORMAL,
        track_info=TrackInfo(0, "abc"),
    ),
    "release": FloorRelease(ssrc=CLIENT, ack_requested=True, user_id=BOB, indicator=FloorIndicator.IMMINENT_PERIL),
    "idle": FloorIdle(ssrc=SERVER, ack_requested=True, sequence=0, indicator=FloorIndicator.SYSTEM),
    "revoke": FloorRevoke(ssrc=SERVER, reject=(RevokeCause.NO_RESOURCES, "full"), user_id=BOB, indicator=TEMPORARY),
    "revoke request": FloorRevokeRequest(ssrc=CLIENT, revoked_user=BOB, indicator=NORMAL),
    "position request": QueuePositionRequest(ssrc=CLIENT, user_id=BOB, indicator=FloorIndicator.QUEUEING),
    "position info": QueuePositionInfo(
        ssrc=SERVER, ack_requested=True, queue=(254, 255), user_id=BOB, queued_user=BOB, queue_size=2,
        indicator=FloorIndicator.DUAL_FLOOR,
    ),
    "ack": FloorAck(ssrc=CLIENT, source=Source.CONTROLLING, acknowledged=9, user_id=BOB, indicator=NORMAL),
    "flow": UnicastMediaFlowControl(ssrc=CLIENT, ack_requested=True, flow=1, indicator=NORMAL),
    "queued requests": QueuedFloorRequests(
        ssrc=SERVER, ack_requested=True, purpose=QueuedRequestsPurpose.CANCEL_RESULT, queued_users=(BOB, "sip:c@x"),
        response=1, user_id="sip:me@x", indicator=NORMAL,
    ),
    "multi-talker release": FloorReleaseMultiTalker(
        ssrc=SERVER, user_id=BOB, granted_ssrc=9, functional_alias="sip:a@x", indicator=FloorIndicator.MULTI_TALKER
    ),
}  # fmt: skip


def test_the_fullest_message_of_every_type_has_every_field_and_survives_the_wire() -> None:
    assert {message.TYPE for message in FULL.values()} == set(fm.MESSAGES)
    used = {attribute for message in FULL.values() for _, attribute in message.FIELDS
            if getattr(message, attribute) is not None}
    assert {attribute for cls in fm.MESSAGES.values() for _, attribute in cls.FIELDS} - used == {"locations"}
    for message in FULL.values():
        octets = message.encode()
        assert len(octets) == 4 * (int.from_bytes(octets[2:4], "big") + 1)
        assert decode(octets) == message


def test_fields_that_wireshark_4_0_does_not_know_have_these_octets() -> None:
    literals = {
        "revoke request": "87cc0008112233444d435054" "19127369703a626f62406d632e6578616d706c65" "0d028000",
        "flow": "9bcc0004112233444d435054" "18020001" "0d028000",
        "queued requests": "9ecc00100a0b0c0d4d435054" "15020001"
        "161c02127369703a626f62406d632e6578616d706c65077369703a634078" "0000" "17020001"
        "06087369703a6d654078" "0000" "0d028000",
    }  # fmt: skip
    for name, octets in literals.items():
        assert FULL[name].encode().hex() == octets, name


@pytest.mark.parametrize("kind, octets", [(0, ""), (1, "62f2100abcdef1"), (3, "62f210"), (4, "004d"), (5, "09")])
def test_each_type_of_location_has_its_length(kind: int, octets: str) -> None:
    message = FloorRequest(ssrc=1, location=Location(kind, bytes.fromhex(octets)))
    assert decode(message.encode()) == message
    wrong = FloorRequest(ssrc=1, location=Location(kind, bytes.fromhex(octets) + b"x"))
    with pytest.raises(FloorMessageError):
        decode(wrong.encode())


@pytest.mark.parametrize(
    "value",
    [
        FloorGranted(ssrc=1, duration=65536), FloorRequest(ssrc=1, priority=256), FloorRequest(ssrc=-1),
        QueuePositionInfo(ssrc=1, queue=(256, 0)), FloorIdle(ssrc=1, sequence=-1),
        FloorTaken(ssrc=1, granted_party="\ud800"), FloorTaken(ssrc=1, granted_users=("x" * 300,)),
    ],
)  # fmt: skip
def test_a_value_beyond_its_field_is_refused(value: FloorMessage) -> None:
    with pytest.raises(FloorMessageError):
        value.encode()


@pytest.mark.parametrize("number", [102, 109, 116])
def test_the_abandoned_numbering_is_refused(number: int) -> None:
    with pytest.raises(FloorMessageError, match=r"13\.0\.2"):
        decode(FloorRequest(ssrc=1, others=((number, b"\0\5"),)).encode())


def capture(path: Path, payloads: list[bytes]) -> None:
    """A pcap of raw IPv4 with one UDP datagram each."""
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
        for payload in payloads:
            udp = struct.pack(">HHHH", 40001, 40003, 8 + len(payload), 0) + payload
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
            file.write(struct.pack("<IIII", 0, 0, len(ip + udp), len(ip + udp)) + ip + udp)


_APP = "rtcp.app_data.mcptt."
#: attribute -> the fields of Wireshark and what stands in them
WIRESHARK: dict[str, tuple[str, Callable[[Any], object]]] = {
    "priority": (_APP + "priority", int),
    "duration": (_APP + "duration", int),
    "granted_party": ("rtcp.mcptt.granted_partys_id", str),
    "permission": (_APP + "perm_to_req_floor", int),
    "queue_size": (_APP + "queue_size", int),
    "sequence": (_APP + "msg_seq_num", int),
    "queued_user": ("rtcp.mcptt.queued_user_id", str),
    "source": (_APP + "source", int),
    "acknowledged": (_APP + "msg_type", int),
    "indicator": (_APP + "floor_ind", int),
}


def stated(message: FloorMessage, one: str, many: str) -> list[Any]:
    """A field and the list of its kind, as far as they are there."""
    value = getattr(message, one, None)
    return [*([] if value is None else [value]), *(getattr(message, many, None) or ())]


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_wireshark_reads_every_message_as_this_does(tmp_path: Path) -> None:
    messages = [*MEANINGS.values(), *FULL.values()]
    packed = messages[0].encode() + messages[3].encode() + messages[5].encode()
    capture(tmp_path / "floor.pcap", [*(message.encode() for message in messages), packed])
    fields = [
        *(field for field, _ in WIRESHARK.values()), "rtcp.app.subtype", "rtcp.ssrc.identifier", _APP + "user_id",
        _APP + "rtcp", "rtcp.mcptt.func_alias", _APP + "rej_cause",
        _APP + "rej_cause.floor_deny", _APP + "rej_cause.floor_revoke",
        "rtcp.mcptt.rej_phrase", _APP + "queue_pos_inf", _APP + "queue_pri_lev", _APP + "queueing_cap",
        "rtcp.mcptt.participant_type", _APP + "floor_participant_ref", _APP + "loc_type", _APP + "tac", _APP + "lat",
        _APP + "long", "rtcp.mcptt.fld_id", "_ws.malformed",
    ]  # fmt: skip
    arguments = [part for field in fields for part in ("-e", field)]
    out = subprocess.run(
        ["tshark", "-r", str(tmp_path / "floor.pcap"), "-d", "udp.port==40003,rtcp", "-T", "fields",
         "-E", "separator=|", "-E", "aggregator=;", *arguments],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    rows = [dict(zip(fields, line.split("|"), strict=True)) for line in out]
    assert len(rows) == len(messages) + 1
    for row, message in zip(rows, messages, strict=False):
        assert not row["_ws.malformed"], message

        def seen(name: str, row: dict[str, str] = row) -> list[str]:
            return [value for value in row[name].split(";") if value]

        subtype = message.TYPE | (0x10 if message.ack_requested else 0)
        assert [int(value, 0) for value in seen("rtcp.app.subtype")] == [subtype]
        assert [int(value, 0) for value in seen("rtcp.ssrc.identifier")] == [message.ssrc]
        present = [number for number, attribute in message.FIELDS if getattr(message, attribute) is not None]
        assert [int(value) for value in seen("rtcp.mcptt.fld_id")] == present
        for attribute, (field, read) in WIRESHARK.items():
            value = getattr(message, attribute, None)
            found = [int(v, 0) if read is int else v for v in seen(field)]
            assert found == ([] if value is None else [read(value)]), (message, attribute)
        assert seen(_APP + "user_id") == stated(message, "user_id", "granted_users")
        assert [int(value, 0) for value in seen(_APP + "rtcp")] == stated(message, "granted_ssrc", "ssrcs")
        assert seen("rtcp.mcptt.func_alias") == stated(message, "functional_alias", "functional_aliases")
        # without the acknowledgement bit, 4.0 also tells the two name spaces apart
        causes = {kind: seen(f"{_APP}rej_cause{kind}") for kind in ("", ".floor_deny", ".floor_revoke")}
        found_causes = [int(value, 0) for values in causes.values() for value in values]
        assert found_causes == ([message.cause] if isinstance(message, FloorDeny | FloorRevoke) else [])
        assert not causes[".floor_deny"] or isinstance(message, FloorDeny)
        assert not causes[".floor_revoke"] or isinstance(message, FloorRevoke)
        if isinstance(message, FloorDeny | FloorRevoke):
            assert "".join(seen("rtcp.mcptt.rej_phrase")) == message.phrase
        if isinstance(message, QueuePositionInfo):
            assert (int(row[_APP + "queue_pos_inf"]), int(row[_APP + "queue_pri_lev"])) == message.queue
        if message.track_info is not None:
            assert int(row[_APP + "queueing_cap"]) == message.track_info.queueing
            assert row["rtcp.mcptt.participant_type"] == message.track_info.participant_type
            references = tuple(int(value, 0) for value in seen(_APP + "floor_participant_ref"))
            assert references == message.track_info.references
        place = getattr(message, "location", None)
        assert seen(_APP + "loc_type") == ([] if place is None else [str(int(place.kind))])
        if place is not None and place.kind == LocationType.TRACKING_AREA:
            assert int(row[_APP + "tac"], 0) == 0x1234
        if place is not None and place.kind == LocationType.COORDINATES:
            assert (int(row[_APP + "lat"]), int(row[_APP + "long"])) == (0x123456, 0x654321)
    assert rows[-1]["rtcp.app.subtype"] == "0;3;5", "three messages in one datagram"
