# SPDX-License-Identifier: Apache-2.0
"""The fields of floor control messages (TS 24.380 8.2.3): identifiers, values, and how they stand in octets.

A field is an identifier, the length of its value, the value, and zeros up to a word (8.1.3).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from media.errors import FloorMessageError

__all__ = [
    "CODINGS",
    "NOT_QUEUED",
    "UNDISCLOSED",
    "DenyCause",
    "FieldId",
    "FloorIndicator",
    "Location",
    "LocationType",
    "QueuedRequestsPurpose",
    "RevokeCause",
    "Source",
    "TrackInfo",
    "encode_field",
    "split_fields",
]


class FieldId(IntEnum):
    """Field identifiers (8.2.3.1); those after 14 came with releases 15 to 19."""

    FLOOR_PRIORITY = 0
    DURATION = 1
    REJECT_CAUSE = 2
    QUEUE_INFO = 3
    GRANTED_PARTY = 4
    PERMISSION = 5
    USER_ID = 6
    QUEUE_SIZE = 7
    MESSAGE_SEQUENCE_NUMBER = 8
    QUEUED_USER_ID = 9
    SOURCE = 10
    TRACK_INFO = 11
    MESSAGE_TYPE = 12
    FLOOR_INDICATOR = 13
    SSRC = 14
    GRANTED_USERS = 15
    SSRC_LIST = 16
    FUNCTIONAL_ALIAS = 17
    FUNCTIONAL_ALIASES = 18
    LOCATION = 19
    LOCATIONS = 20
    QUEUED_REQUESTS_PURPOSE = 21
    QUEUED_USERS = 22
    RESPONSE_STATE = 23
    MEDIA_FLOW_CONTROL = 24
    REVOKE_REQUEST_USER = 25


#: the numbering of release 13.0.2, given up by the next version: never accepted
_ABANDONED = range(102, 117)


class FloorIndicator(IntFlag):
    """Floor Indicator (8.2.3.13)."""

    NORMAL = 0x8000
    BROADCAST = 0x4000
    SYSTEM = 0x2000
    EMERGENCY = 0x1000
    IMMINENT_PERIL = 0x0800
    QUEUEING = 0x0400
    DUAL_FLOOR = 0x0200
    TEMPORARY_GROUP = 0x0100
    MULTI_TALKER = 0x0080


#: what a call may be declared to be while it goes on
URGENT = FloorIndicator.EMERGENCY | FloorIndicator.IMMINENT_PERIL


class DenyCause(IntEnum):
    """Reject Cause in Floor Deny (8.2.6.2)."""

    ANOTHER_HAS_PERMISSION = 1
    INTERNAL_ERROR = 2
    ONLY_ONE_PARTICIPANT = 3
    RETRY_AFTER = 4
    RECEIVE_ONLY = 5
    NO_RESOURCES = 6
    QUEUE_FULL = 7
    OTHER = 255


class RevokeCause(IntEnum):
    """Reject Cause in Floor Revoke (8.2.10.2); another name space than Floor Deny's."""

    ONLY_ONE_CLIENT = 1
    BURST_TOO_LONG = 2
    NO_PERMISSION = 3
    PREEMPTED = 4
    NO_RESOURCES = 6
    BY_ANOTHER_CLIENT = 7
    OTHER = 255


class Source(IntEnum):
    """Who sends a Floor Ack (8.2.3.11)."""

    PARTICIPANT = 0
    PARTICIPATING = 1
    CONTROLLING = 2
    NON_CONTROLLING = 3


class QueuedRequestsPurpose(IntEnum):
    """What a Queued Floor Requests message is for (release 17)."""

    CANCEL_REQUEST = 0
    CANCEL_RESULT = 1
    CANCEL_NOTIFY = 2


class LocationType(IntEnum):
    """Where a talker is said to be (8.2.3.20)."""

    NOT_PROVIDED = 0
    ECGI = 1
    TRACKING_AREA = 2
    PLMN_ID = 3
    MBMS_SERVICE_AREA = 4
    MBSFN_AREA_ID = 5
    COORDINATES = 6


_LOCATION_OCTETS = {0: 0, 1: 7, 2: 5, 3: 3, 4: 2, 5: 1, 6: 6}

#: queue positions with a meaning of their own (8.2.3.5)
NOT_QUEUED, UNDISCLOSED = 254, 255


@dataclass(frozen=True, slots=True)
class Location:
    """A location: its type and the octets that follow (an ECGI is PLMN 3, ECI 4; coordinates are latitude 3,
    longitude 3, as in TS 23.003)."""

    kind: int
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class TrackInfo:
    """What a non-controlling function adds on the way (8.2.3.12). ``participant_type`` is text of no fixed coding;
    ``references`` are numbers of 32 bits."""

    queueing: int
    participant_type: str = ""
    references: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Coding:
    """How the value of a field stands in octets."""

    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]


def _fixed(form: str, length: int) -> _Coding:
    def unpack(value: bytes) -> Any:
        if len(value) != length:
            raise FloorMessageError(f"a field of {len(value)} octets, not {length}")
        return struct.unpack(form, value)[0]

    return _Coding(lambda number: struct.pack(form, number), unpack)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise FloorMessageError("a text field is not UTF-8") from None


def _cause(value: bytes) -> tuple[int, str]:
    if len(value) < 2:
        raise FloorMessageError("Reject Cause is cut short")
    return int.from_bytes(value[:2], "big"), _text(value[2:])


def _pair(value: bytes) -> tuple[int, int]:
    if len(value) != 2:
        raise FloorMessageError("Queue Info has not two octets")
    return value[0], value[1]


def _pack_texts(texts: tuple[str, ...]) -> bytes:
    """The number of texts, then each with its length."""
    octets = [text.encode() for text in texts]
    return bytes((len(octets),)) + b"".join(bytes((len(text),)) + text for text in octets)


def _texts(value: bytes) -> tuple[str, ...]:
    if not value:
        raise FloorMessageError("a list without its length")
    found, at = [], 1
    for _ in range(value[0]):
        if at >= len(value) or at + 1 + value[at] > len(value):
            raise FloorMessageError("a list is cut short")
        found.append(_text(value[at + 1 : at + 1 + value[at]]))
        at += 1 + value[at]
    if at != len(value):
        raise FloorMessageError("a list is longer than it says")
    return tuple(found)


def _ssrcs(value: bytes) -> tuple[int, ...]:
    if len(value) < 3 or len(value) != 3 + 4 * value[0]:
        raise FloorMessageError("List of SSRCs has another length than it says")
    return struct.unpack(f">{value[0]}I", value[3:])


def _pack_track(track: TrackInfo) -> bytes:
    kind = track.participant_type.encode("utf-8", "surrogateescape")
    padded = kind + bytes(-len(kind) % 4)
    return bytes((track.queueing, len(kind))) + padded + struct.pack(f">{len(track.references)}I", *track.references)


def _track(value: bytes) -> TrackInfo:
    if len(value) < 2:
        raise FloorMessageError("Track Info is cut short")
    start = 2 + value[1] + -value[1] % 4
    # without references, nothing needs to follow the type
    if 2 + value[1] > len(value) or max(0, len(value) - start) % 4:
        raise FloorMessageError("Track Info has another length than it says")
    references = value[start:]
    return TrackInfo(
        value[0], value[2 : 2 + value[1]].decode("utf-8", "surrogateescape"),
        struct.unpack(f">{len(references) // 4}I", references),
    )  # fmt: skip


def _location(value: bytes) -> Location:
    if not value or len(value) - 1 != _LOCATION_OCTETS.get(value[0], len(value) - 1):
        raise FloorMessageError("Location has another length than its type")
    return Location(value[0], value[1:])


_U8 = _fixed(">Bx", 2)
_U16 = _fixed(">H", 2)
_STRING = _Coding(lambda text: text.encode(), _text)
_TEXTS = _Coding(_pack_texts, _texts)

#: id -> how its value is coded
CODINGS: dict[int, _Coding] = {
    FieldId.FLOOR_PRIORITY: _U8,
    FieldId.DURATION: _U16,
    FieldId.REJECT_CAUSE: _Coding(lambda pair: struct.pack(">H", pair[0]) + pair[1].encode(), _cause),
    FieldId.QUEUE_INFO: _Coding(bytes, _pair),
    FieldId.GRANTED_PARTY: _STRING,
    FieldId.PERMISSION: _U16,
    FieldId.USER_ID: _STRING,
    FieldId.QUEUE_SIZE: _U16,
    FieldId.MESSAGE_SEQUENCE_NUMBER: _U16,
    FieldId.QUEUED_USER_ID: _STRING,
    FieldId.SOURCE: _U16,
    FieldId.TRACK_INFO: _Coding(_pack_track, _track),
    FieldId.MESSAGE_TYPE: _U8,
    FieldId.FLOOR_INDICATOR: _Coding(
        lambda bits: struct.pack(">H", bits), lambda value: FloorIndicator(_U16.unpack(value))
    ),
    FieldId.SSRC: _fixed(">Ixx", 6),
    FieldId.GRANTED_USERS: _TEXTS,
    FieldId.SSRC_LIST: _Coding(lambda ssrcs: struct.pack(f">Bxx{len(ssrcs)}I", len(ssrcs), *ssrcs), _ssrcs),
    FieldId.FUNCTIONAL_ALIAS: _STRING,
    FieldId.FUNCTIONAL_ALIASES: _TEXTS,
    FieldId.LOCATION: _Coding(lambda place: bytes((place.kind,)) + place.value, _location),
    # how its elements are aligned, the sources do not agree on (Wireshark 4.0 reads none): kept as octets
    FieldId.LOCATIONS: _Coding(bytes, bytes),
    FieldId.QUEUED_REQUESTS_PURPOSE: _U16,
    FieldId.QUEUED_USERS: _TEXTS,
    FieldId.RESPONSE_STATE: _U16,
    FieldId.MEDIA_FLOW_CONTROL: _U16,
    FieldId.REVOKE_REQUEST_USER: _STRING,
}


def encode_field(number: int, octets: bytes) -> bytes:
    """Identifier, length without padding, value, zeros. Raises :class:`FloorMessageError` beyond 255 octets."""
    if len(octets) > 255:
        raise FloorMessageError(f"a field of {len(octets)} octets does not fit")
    return bytes((number, len(octets))) + octets + bytes(-(2 + len(octets)) % 4)


def split_fields(data: bytes) -> list[tuple[int, bytes]]:
    """The fields of one message as (identifier, value). Raises :class:`FloorMessageError`."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if len(data) - at < 2:
            raise FloorMessageError("a field is cut short")
        number, length = data[at], data[at + 1]
        if number in _ABANDONED:
            raise FloorMessageError(f"field {number} is of the abandoned numbering of release 13.0.2")
        end = at + 2 + length
        if end > len(data):
            raise FloorMessageError(f"field {number} is longer than the message")
        found.append((number, bytes(data[at + 2 : end])))
        at = end + -(2 + length) % 4
        if at > len(data):
            raise FloorMessageError(f"field {number} is not filled up to a word")
    return found
