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
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from media.errors import FloorMessageError
from media.floor_fields import (
    CODINGS,
    NOT_QUEUED,
    UNDISCLOSED,
    DenyCause,
    FieldId,
    FloorIndicator,
    Location,
    LocationType,
    QueuedRequestsPurpose,
    RevokeCause,
    Source,
    TrackInfo,
    encode_field,
    split_fields,
)

__all__ = [
    "MAX_OCTETS",
    "MESSAGES",
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
    "Location",
    "LocationType",
    "QueuePositionInfo",
    "QueuePositionRequest",
    "QueuedFloorRequests",
    "QueuedRequestsPurpose",
    "RevokeCause",
    "Source",
    "TrackInfo",
    "UnicastMediaFlowControl",
    "decode",
    "decode_all",
]

_NAME = b"MCPT"
_APP = 204
_ACK = 0x10
#: octets of one datagram's floor messages
MAX_OCTETS = 4096

F = FieldId
Fields = tuple[tuple[FieldId, str], ...]
_LAST: Fields = ((F.TRACK_INFO, "track_info"), (F.FLOOR_INDICATOR, "indicator"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorMessage:
    """What all messages have. ``ssrc`` is the sender's; ``others`` are fields that the message's table does not
    name, as (id, octets), kept in their order. A field that is ``None`` is not there.

    ``user_id`` in a message from the arbiter to one participant names him: in TS 24.380 that is the off-network
    form; here it serves where the floor is arbitrated by a member and everyone hears every message.
    """

    TYPE: ClassVar[int]
    FIELDS: ClassVar[Fields]

    ssrc: int
    ack_requested: bool = False
    track_info: TrackInfo | None = None
    indicator: FloorIndicator | None = None
    others: tuple[tuple[int, bytes], ...] = ()

    def encode(self) -> bytes:
        """The RTCP APP packet. Raises :class:`FloorMessageError` for a value that does not fit its field."""
        body = bytearray()
        try:
            for number, attribute in self.FIELDS:
                value = getattr(self, attribute)
                if value is not None:
                    body += encode_field(number, CODINGS[number].pack(value))
            for number_, octets in self.others:
                body += encode_field(number_, octets)
            subtype = self.TYPE | (_ACK if self.ack_requested else 0)
            return struct.pack(">BBHI4s", 0x80 | subtype, _APP, 2 + len(body) // 4, self.ssrc, _NAME) + bytes(body)
        except (struct.error, ValueError) as error:
            raise FloorMessageError(f"a value does not fit its field: {error}") from None

    @classmethod
    def from_fields(cls, subtype: int, ssrc: int, fields: list[tuple[int, bytes]]) -> Self:
        """The message of a subtype and its fields, as they came."""
        named: dict[int, str] = dict(cls.FIELDS)
        values: dict[str, Any] = {}
        others = []
        for number, octets in fields:
            attribute = named.get(number)
            if attribute is None or attribute in values:
                others.append((number, octets))
            else:
                values[attribute] = CODINGS[number].unpack(octets)
        return cls(ssrc=ssrc, ack_requested=bool(subtype & _ACK), others=tuple(others), **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRequest(FloorMessage):
    """Client to server (8.2.4)."""

    TYPE = 0
    FIELDS = (
        (F.FLOOR_PRIORITY, "priority"), (F.USER_ID, "user_id"), *_LAST, (F.FUNCTIONAL_ALIAS, "functional_alias"),
        (F.LOCATION, "location"),
    )  # fmt: skip
    priority: int | None = None
    user_id: str | None = None
    functional_alias: str | None = None
    location: Location | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorGranted(FloorMessage):
    """Server to the talker (8.2.5): for ``duration`` seconds, to send audio under ``granted_ssrc``."""

    TYPE = 1
    FIELDS = (
        (F.DURATION, "duration"), (F.SSRC, "granted_ssrc"), (F.FLOOR_PRIORITY, "priority"), (F.USER_ID, "user_id"),
        (F.QUEUE_SIZE, "queue_size"), (F.QUEUED_USER_ID, "queued_user"), *_LAST,
    )  # fmt: skip
    duration: int | None = None
    granted_ssrc: int | None = None
    priority: int | None = None
    user_id: str | None = None
    queue_size: int | None = None
    queued_user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorTaken(FloorMessage):
    """Server to the listeners (8.2.9). The lists are of multi-talker calls (release 15): one entry a talker."""

    TYPE = 2
    FIELDS = (
        (F.GRANTED_PARTY, "granted_party"), (F.PERMISSION, "permission"), (F.USER_ID, "user_id"),
        (F.MESSAGE_SEQUENCE_NUMBER, "sequence"), *_LAST, (F.SSRC, "granted_ssrc"), (F.GRANTED_USERS, "granted_users"),
        (F.SSRC_LIST, "ssrcs"), (F.FUNCTIONAL_ALIAS, "functional_alias"), (F.FUNCTIONAL_ALIASES, "functional_aliases"),
        (F.LOCATION, "location"), (F.LOCATIONS, "locations"),
    )  # fmt: skip
    granted_party: str | None = None
    permission: int | None = None
    user_id: str | None = None
    sequence: int | None = None
    granted_ssrc: int | None = None
    granted_users: tuple[str, ...] | None = None
    ssrcs: tuple[int, ...] | None = None
    functional_alias: str | None = None
    functional_aliases: tuple[str, ...] | None = None
    location: Location | None = None
    locations: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorDeny(FloorMessage):
    """Server to a requester (8.2.6)."""

    TYPE = 3
    FIELDS = ((F.REJECT_CAUSE, "reject"), (F.USER_ID, "user_id"), *_LAST)
    reject: tuple[int, str] | None = None
    user_id: str | None = None

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
    FIELDS = ((F.USER_ID, "user_id"), *_LAST)
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorIdle(FloorMessage):
    """Server to everyone (8.2.8)."""

    TYPE = 5
    FIELDS = ((F.MESSAGE_SEQUENCE_NUMBER, "sequence"), *_LAST)
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRevoke(FloorMessage):
    """Server to a talker (8.2.10)."""

    TYPE = 6
    FIELDS = ((F.REJECT_CAUSE, "reject"), (F.USER_ID, "user_id"), *_LAST)
    reject: tuple[int, str] | None = None
    user_id: str | None = None

    @property
    def cause(self) -> int:
        """See :class:`RevokeCause`; unknown numbers are possible."""
        return self.reject[0] if self.reject is not None else RevokeCause.OTHER

    @property
    def phrase(self) -> str:
        """The words that came with the cause."""
        return self.reject[1] if self.reject is not None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRevokeRequest(FloorMessage):
    """Client to server, release 19: take the floor from ``revoked_user``."""

    TYPE = 7
    FIELDS = ((F.REVOKE_REQUEST_USER, "revoked_user"), *_LAST)
    revoked_user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePositionRequest(FloorMessage):
    """Client to server (8.2.11)."""

    TYPE = 8
    FIELDS = ((F.USER_ID, "user_id"), *_LAST)
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePositionInfo(FloorMessage):
    """Server to one in the queue (8.2.12): (position, priority); 254 is not queued, 255 not disclosed."""

    TYPE = 9
    FIELDS = (
        (F.QUEUE_INFO, "queue"), (F.USER_ID, "user_id"), (F.QUEUED_USER_ID, "queued_user"),
        (F.QUEUE_SIZE, "queue_size"), *_LAST,
    )  # fmt: skip
    queue: tuple[int, int] | None = None
    user_id: str | None = None
    queued_user: str | None = None
    queue_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorAck(FloorMessage):
    """Either way (8.2.13): ``acknowledged`` is the type of the message that asked for it, without the ack bit;
    ``source`` see :class:`Source`."""

    TYPE = 10
    FIELDS = ((F.SOURCE, "source"), (F.MESSAGE_TYPE, "acknowledged"), (F.USER_ID, "user_id"), *_LAST)
    source: int | None = None
    acknowledged: int | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnicastMediaFlowControl(FloorMessage):
    """Client to server, release 17: whether media is wanted over unicast (``flow``)."""

    TYPE = 11
    FIELDS = ((F.MEDIA_FLOW_CONTROL, "flow"), *_LAST)
    flow: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedFloorRequests(FloorMessage):
    """Floor Queued Cancel of release 17, Queued Floor Requests from 18 on: taking others' requests out of the queue.
    ``purpose`` see :class:`QueuedRequestsPurpose`."""

    TYPE = 14
    FIELDS = (
        (F.QUEUED_REQUESTS_PURPOSE, "purpose"), (F.QUEUED_USERS, "queued_users"), (F.RESPONSE_STATE, "response"),
        (F.USER_ID, "user_id"), *_LAST,
    )  # fmt: skip
    purpose: int | None = None
    queued_users: tuple[str, ...] | None = None
    response: int | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorReleaseMultiTalker(FloorMessage):
    """Server to everyone in a multi-talker call, release 15: one of the talkers has finished."""

    TYPE = 15
    FIELDS = (
        (F.USER_ID, "user_id"), *_LAST, (F.SSRC, "granted_ssrc"), (F.FUNCTIONAL_ALIAS, "functional_alias"),
    )  # fmt: skip
    user_id: str | None = None
    granted_ssrc: int | None = None
    functional_alias: str | None = None


#: message type -> class
MESSAGES: dict[int, type[FloorMessage]] = {
    message.TYPE: message
    for message in (
        FloorRequest, FloorGranted, FloorTaken, FloorDeny, FloorRelease, FloorIdle, FloorRevoke, FloorRevokeRequest,
        QueuePositionRequest, QueuePositionInfo, FloorAck, UnicastMediaFlowControl, QueuedFloorRequests,
        FloorReleaseMultiTalker,
    )
}  # fmt: skip


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
        message = MESSAGES.get(subtype & ~_ACK)
        if message is None:
            raise FloorMessageError(f"message type {subtype} is not known")
        found.append(message.from_fields(subtype, ssrc, split_fields(datagram[at + 12 : end])))
        at = end
    return found
