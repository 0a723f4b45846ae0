# SPDX-License-Identifier: Apache-2.0
"""The floor control messages of TS 24.380 8.2: RTCP APP packets named ``MCPT``, as values.

>>> message = FloorDeny(ssrc=0x0A0B0C0D, reject=(DenyCause.ANOTHER_HAS_PERMISSION, "busy"))
>>> message.encode().hex()
'83cc00040a0b0c0d4d4350540206000162757379'
>>> decode(message.encode()) == message
True
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

from media.errors import FloorMessageError

__all__ = [
    "NOT_QUEUED",
    "UNDISCLOSED",
    "DenyCause",
    "FloorAck",
    "FloorDeny",
    "FloorGranted",
    "FloorIdle",
    "FloorIndicator",
    "FloorMessage",
    "FloorRelease",
    "FloorReleaseMultiTalker",
    "FloorRequest",
    "FloorRevoke",
    "FloorRevokeRequest",
    "FloorTaken",
    "QueuePositionInfo",
    "QueuePositionRequest",
    "QueuedFloorRequests",
    "RevokeCause",
    "UnicastMediaFlowControl",
    "decode",
    "decode_all",
]

_NAME = b"MCPT"
_APP = 204
_ACK = 0x10
#: octets of one datagram's floor messages
MAX_OCTETS = 4096


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


#: queue positions with a meaning of their own (8.2.3.5)
NOT_QUEUED, UNDISCLOSED = 254, 255


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


_U8 = _fixed(">Bx", 2)
_U16 = _fixed(">H", 2)
_SSRC = _fixed(">Ixx", 6)
_STRING = _Coding(lambda text: text.encode(), _text)
_RAW = _Coding(bytes, bytes)
_CAUSE = _Coding(lambda pair: struct.pack(">H", pair[0]) + pair[1].encode(), _cause)
_QUEUE = _Coding(bytes, _pair)

#: id -> how it is coded (8.2.3); those of later releases are kept raw
_PRIORITY, _DURATION, _REJECT, _QUEUE_INFO, _PARTY, _PERMISSION, _USER = range(7)
_SEQUENCE, _SOURCE, _TRACK, _TYPE, _INDICATOR, _GRANTED_SSRC = 8, 10, 11, 12, 13, 14
_CODINGS: dict[int, _Coding] = {
    _PRIORITY: _U8, _DURATION: _U16, _REJECT: _CAUSE, _QUEUE_INFO: _QUEUE, _PARTY: _STRING, _PERMISSION: _U16,
    _USER: _STRING, _SEQUENCE: _U16, _SOURCE: _U16, _TRACK: _RAW, _TYPE: _U8, _INDICATOR: _U16, _GRANTED_SSRC: _SSRC,
}  # fmt: skip

Fields = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorMessage:
    """What all messages have. ``ssrc`` is the sender's; ``others`` are fields that the message's table does not
    name, as (id, octets), kept in their order."""

    TYPE: ClassVar[int]
    FIELDS: ClassVar[Fields]

    ssrc: int
    ack_requested: bool = False
    track_info: bytes | None = None
    indicator: FloorIndicator | None = None
    others: tuple[tuple[int, bytes], ...] = ()

    def encode(self) -> bytes:
        """The RTCP APP packet."""
        body = bytearray()
        for number, attribute in self.FIELDS:
            value = getattr(self, attribute)
            if value is not None:
                body += _field(number, _CODINGS[number].pack(value))
        for number, octets in self.others:
            body += _field(number, octets)
        subtype = self.TYPE | (_ACK if self.ack_requested else 0)
        return struct.pack(">BBHI4s", 0x80 | subtype, _APP, 2 + len(body) // 4, self.ssrc, _NAME) + bytes(body)

    @classmethod
    def _from(cls, subtype: int, ssrc: int, fields: list[tuple[int, bytes]]) -> FloorMessage:
        named = dict(cls.FIELDS)
        values: dict[str, Any] = {}
        others = []
        for number, octets in fields:
            attribute = named.get(number)
            if attribute is None or attribute in values:
                others.append((number, octets))
            else:
                values[attribute] = _CODINGS[number].unpack(octets)
        if values.get("indicator") is not None:
            values["indicator"] = FloorIndicator(values["indicator"])
        return cls(ssrc=ssrc, ack_requested=bool(subtype & _ACK), others=tuple(others), **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRequest(FloorMessage):
    """Client to server (8.2.4)."""

    TYPE = 0
    FIELDS = ((_PRIORITY, "priority"), (_USER, "user_id"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    priority: int | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorGranted(FloorMessage):
    """Server to the talker (8.2.5): for ``duration`` seconds, to send audio under ``granted_ssrc``."""

    TYPE = 1
    FIELDS = (
        (_DURATION, "duration"), (_GRANTED_SSRC, "granted_ssrc"), (_PRIORITY, "priority"), (_TRACK, "track_info"),
        (_INDICATOR, "indicator"),
    )  # fmt: skip
    duration: int | None = None
    granted_ssrc: int | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorTaken(FloorMessage):
    """Server to the listeners (8.2.9)."""

    TYPE = 2
    FIELDS = (
        (_PARTY, "granted_party"), (_PERMISSION, "permission"), (_SEQUENCE, "sequence"), (_TRACK, "track_info"),
        (_INDICATOR, "indicator"), (_GRANTED_SSRC, "granted_ssrc"),
    )  # fmt: skip
    granted_party: str | None = None
    permission: int | None = None
    sequence: int | None = None
    granted_ssrc: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorDeny(FloorMessage):
    """Server to a requester (8.2.6)."""

    TYPE = 3
    FIELDS = ((_REJECT, "reject"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    reject: tuple[int, str] | None = None

    @property
    def cause(self) -> int:
        """See :class:`DenyCause`; unknown numbers are possible."""
        return self.reject[0] if self.reject is not None else DenyCause.OTHER

    @property
    def phrase(self) -> str:
        """The words that came with the cause."""
        return self.reject[1] if self.reject is not None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRelease(FloorMessage):
    """Client to server (8.2.7)."""

    TYPE = 4
    FIELDS = ((_USER, "user_id"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorIdle(FloorMessage):
    """Server to everyone (8.2.8)."""

    TYPE = 5
    FIELDS = ((_SEQUENCE, "sequence"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRevoke(FloorMessage):
    """Server to a talker (8.2.10)."""

    TYPE = 6
    FIELDS = ((_REJECT, "reject"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    reject: tuple[int, str] | None = None

    @property
    def cause(self) -> int:
        """See :class:`RevokeCause`; unknown numbers are possible."""
        return self.reject[0] if self.reject is not None else RevokeCause.OTHER


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRevokeRequest(FloorMessage):
    """Client to server, release 19; its own field is kept raw."""

    TYPE = 7
    FIELDS = ((_TRACK, "track_info"), (_INDICATOR, "indicator"))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePositionRequest(FloorMessage):
    """Client to server (8.2.11)."""

    TYPE = 8
    FIELDS = ((_USER, "user_id"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePositionInfo(FloorMessage):
    """Server to one in the queue (8.2.12): (position, priority); 254 is not queued, 255 not disclosed."""

    TYPE = 9
    FIELDS = ((_QUEUE_INFO, "queue"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    queue: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorAck(FloorMessage):
    """Either way (8.2.13): ``acknowledged`` is the type of the message that asked for it, without the ack bit;
    ``source`` 0 is a participant, 2 the controlling function."""

    TYPE = 10
    FIELDS = ((_SOURCE, "source"), (_TYPE, "acknowledged"), (_TRACK, "track_info"), (_INDICATOR, "indicator"))
    source: int | None = None
    acknowledged: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnicastMediaFlowControl(FloorMessage):
    """Client to server, release 17; its own field is kept raw."""

    TYPE = 11
    FIELDS = ((_TRACK, "track_info"), (_INDICATOR, "indicator"))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedFloorRequests(FloorMessage):
    """Floor Queued Cancel of release 17, Queued Floor Requests from 18 on; its own fields are kept raw."""

    TYPE = 14
    FIELDS = ((_TRACK, "track_info"), (_INDICATOR, "indicator"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorReleaseMultiTalker(FloorMessage):
    """Server to everyone in a multi-talker call, release 15; its own fields are kept raw."""

    TYPE = 15
    FIELDS = ((_USER, "user_id"), (_TRACK, "track_info"), (_INDICATOR, "indicator"), (_GRANTED_SSRC, "granted_ssrc"))
    user_id: str | None = None
    granted_ssrc: int | None = None


_MESSAGES: dict[int, type[FloorMessage]] = {
    message.TYPE: message
    for message in (
        FloorRequest, FloorGranted, FloorTaken, FloorDeny, FloorRelease, FloorIdle, FloorRevoke, FloorRevokeRequest,
        QueuePositionRequest, QueuePositionInfo, FloorAck, UnicastMediaFlowControl, QueuedFloorRequests,
        FloorReleaseMultiTalker,
    )
}  # fmt: skip


def _field(number: int, value: bytes) -> bytes:
    """id, length without padding, value, padding to a word (8.1.3)."""
    if len(value) > 255:
        raise FloorMessageError(f"a field of {len(value)} octets does not fit")
    return bytes((number, len(value))) + value + bytes(-(2 + len(value)) % 4)


def decode(data: bytes) -> FloorMessage:
    """One message, nothing after it. Raises :class:`FloorMessageError`."""
    messages = decode_all(data)
    if len(messages) != 1:
        raise FloorMessageError(f"{len(messages)} messages, not one")
    return messages[0]


def decode_all(datagram: bytes) -> list[FloorMessage]:
    """Every message packed into a datagram (8.1.1), told apart by their length words.

    Raises :class:`FloorMessageError` when one cannot be read: then none of them counts.
    """
    if not 12 <= len(datagram) <= MAX_OCTETS:
        raise FloorMessageError(f"{len(datagram)} octets are no floor control message")
    found: list[FloorMessage] = []
    at = 0
    while at < len(datagram):
        if len(datagram) - at < 12:
            raise FloorMessageError("the last message is cut short")
        first, kind, words, ssrc, name = struct.unpack_from(">BBHI4s", datagram, at)
        end = at + 4 * (words + 1)
        if first & 0xE0 != 0x80 or kind != _APP or name != _NAME:
            raise FloorMessageError("not an RTCP APP packet named MCPT")
        if words < 2 or end > len(datagram):
            raise FloorMessageError("the length word is wrong")
        subtype = first & 0x1F
        message = _MESSAGES.get(subtype & ~_ACK)
        if message is None:
            raise FloorMessageError(f"message type {subtype} is not known")
        found.append(message._from(subtype, ssrc, _fields(datagram[at + 12 : end])))
        at = end
    return found


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if len(data) - at < 2:
            raise FloorMessageError("a field is cut short")
        number, length = data[at], data[at + 1]
        end = at + 2 + length
        if end > len(data):
            raise FloorMessageError(f"field {number} is longer than the message")
        found.append((number, bytes(data[at + 2 : end])))
        at = end + -(2 + length) % 4
        if at > len(data):
            raise FloorMessageError(f"field {number} is not filled up to a word")
    return found
