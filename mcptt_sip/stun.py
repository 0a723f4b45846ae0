# SPDX-License-Identifier: Apache-2.0
"""STUN Binding as a keep-alive on a SIP flow over UDP (RFC 5389 6, RFC 5626 4.4.2 and 8).

:RFC 5389: partly; Binding, as a keep-alive
"""

from __future__ import annotations

import ipaddress
import os
import struct

__all__ = ["binding_request", "binding_response", "is_stun", "read_response"]

_COOKIE = 0x2112A442
_REQUEST, _RESPONSE = 0x0001, 0x0101
_XOR_MAPPED_ADDRESS = 0x0020


def is_stun(data: bytes) -> bool:
    """Whether a datagram is STUN: two zero bits, the magic cookie (RFC 5389 6)."""
    return len(data) >= 20 and data[0] < 4 and data[4:8] == _COOKIE.to_bytes(4, "big")


def binding_request() -> tuple[bytes, bytes]:
    """A Binding request, and the transaction id that its response must carry."""
    transaction = os.urandom(12)
    return struct.pack(">HHI", _REQUEST, 0, _COOKIE) + transaction, transaction


def read_response(data: bytes) -> bytes | None:
    """The transaction id of a Binding success response, else ``None``."""
    kind, length = struct.unpack_from(">HH", data)
    return bytes(data[8:20]) if kind == _RESPONSE and length == len(data) - 20 else None


def binding_response(data: bytes, source: tuple[str, int]) -> bytes | None:
    """The answer to a Binding request from `source`: its address as seen here; ``None`` for anything else."""
    kind, length = struct.unpack_from(">HH", data)
    if kind != _REQUEST or length != len(data) - 20 or length % 4:
        return None
    address = ipaddress.ip_address(source[0].partition("%")[0])
    mask = _COOKIE.to_bytes(4, "big") + (data[8:20] if address.version == 6 else b"")
    mapped = bytes(a ^ b for a, b in zip(address.packed, mask, strict=True))
    family = 1 if address.version == 4 else 2
    value = struct.pack(">xBH", family, source[1] ^ _COOKIE >> 16) + mapped
    attribute = struct.pack(">HH", _XOR_MAPPED_ADDRESS, len(value)) + value
    return struct.pack(">HHI", _RESPONSE, len(attribute), _COOKIE) + data[8:20] + attribute
