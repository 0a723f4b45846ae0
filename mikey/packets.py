# SPDX-License-Identifier: Apache-2.0
"""What UDP and TCP carried in a capture file: pcapng or classic pcap, read without any tool.

Link types Ethernet (with VLAN tags), Linux cooked (both), BSD loopback and raw IP; IP fragments are passed over,
TCP octets are put in order of their sequence numbers.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mikey.errors import ParseError

_PCAPNG = b"\x0a\x0d\x0d\x0a"
_PCAP = {
    b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">",
}  # fmt: skip
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6
#: link type -> octets before the IP header, for those where it does not vary
_FIXED = {0: 4, 12: 0, 14: 0, 101: 0, 108: 4, 113: 16, 228: 0, 229: 0, 276: 20}
_ETHERNET = 1


@dataclass(frozen=True, slots=True)
class Carried:
    """A UDP payload, or a run of TCP octets without a gap."""

    packet: int
    """Number of the (first) packet in the file, from 1."""
    route: str
    """As in `udp 192.0.2.1:5060 -> 192.0.2.2:5060`."""
    octets: bytes


def is_capture(octets: bytes) -> bool:
    """Whether a file begins like a capture."""
    return octets[:4] == _PCAPNG or octets[:4] in _PCAP


def payloads_of(octets: bytes) -> Iterator[Carried]:
    """All payloads in a capture file, UDP first. Raises `ParseError` when it is no capture or breaks off
    before the first packet; what follows a break is left out."""
    frames = _pcapng(octets) if octets[:4] == _PCAPNG else _pcap(octets)
    streams: dict[str, list[tuple[int, int, bytes]]] = {}
    for number, (link, frame) in enumerate(frames, 1):
        found = _transport(_ip(link, frame))
        if found is None:
            continue
        route, sequence, payload = found
        if sequence is None:
            yield Carried(number, route, payload)
        elif payload:
            streams.setdefault(route, []).append((sequence, number, payload))
    for route, segments in streams.items():
        yield from _joined(route, segments)


def _pcap(octets: bytes) -> Iterator[tuple[int, bytes]]:
    order = _PCAP.get(octets[:4])
    if order is None or len(octets) < 24:
        raise ParseError("no capture file")
    link = struct.unpack_from(order + "I", octets, 20)[0] & 0xFFFF
    at = 24
    while at + 16 <= len(octets):
        size = struct.unpack_from(order + "I", octets, at + 8)[0]
        yield link, octets[at + 16 : at + 16 + size]
        at += 16 + size


def _pcapng(octets: bytes) -> Iterator[tuple[int, bytes]]:
    order, at = "<", 0
    links: list[int] = []
    while at + 12 <= len(octets):
        if octets[at : at + 4] == _PCAPNG:
            order = ">" if octets[at + 8 : at + 12] == b"\x1a\x2b\x3c\x4d" else "<"
            links = []
        kind, size = struct.unpack_from(order + "II", octets, at)
        if size < 12 or size % 4 or at + size > len(octets):
            if at == 0:
                raise ParseError("the capture file breaks off in its first block")
            return
        body = octets[at + 8 : at + size - 4]
        if kind == _INTERFACE and len(body) >= 2:
            links.append(struct.unpack_from(order + "H", body)[0])
        elif kind == _ENHANCED and len(body) >= 20:
            interface, _, _, captured = struct.unpack_from(order + "4I", body)
            if interface < len(links):
                yield links[interface], body[20 : 20 + captured]
        elif kind == _SIMPLE and links and len(body) >= 4:
            yield links[0], body[4 : 4 + struct.unpack_from(order + "I", body)[0]]
        at += size


def _ip(link: int, frame: bytes) -> bytes:
    if link == _ETHERNET:
        at = 12
        while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
        return frame[at + 2 :]
    start = _FIXED.get(link)
    return b"" if start is None else frame[start:]


def _transport(ip: bytes) -> tuple[str, int | None, bytes] | None:
    """Route, TCP sequence number and payload of an IP packet; None for anything else."""
    version = ip[0] >> 4 if ip else 0
    if version == 4 and len(ip) >= 20:
        length, flags = struct.unpack_from(">H2xH", ip, 2)
        protocol, start, end = ip[9], (ip[0] & 15) * 4, length
        if flags & 0x3FFF:  # a fragment
            return None
        source, target = ipaddress.ip_address(ip[12:16]), ipaddress.ip_address(ip[16:20])
        names = f"{source}", f"{target}"
    elif version == 6 and len(ip) >= 40:
        protocol, start, end = ip[6], 40, 40 + int.from_bytes(ip[4:6], "big")
        names = f"[{ipaddress.ip_address(ip[8:24])}]", f"[{ipaddress.ip_address(ip[24:40])}]"
    else:
        return None
    segment = ip[start:end] if end > start else ip[start:]
    ports = f"{names[0]}:{int.from_bytes(segment[:2], 'big')} -> {names[1]}:{int.from_bytes(segment[2:4], 'big')}"
    if protocol == 17 and len(segment) >= 8:
        return f"udp {ports}", None, segment[8:]
    if protocol == 6 and len(segment) >= 20:
        return f"tcp {ports}", int.from_bytes(segment[4:8], "big"), segment[(segment[12] >> 4) * 4 :]
    return None


def _joined(route: str, segments: list[tuple[int, int, bytes]]) -> Iterator[Carried]:
    """Segments of one direction in order of sequence, repetitions cut off; a gap begins a new run."""
    first = segments[0][0]
    # relative to the first one seen, so that a wrap of the 32 bits does not disturb the order
    ordered = sorted(((s - first + (1 << 31)) % (1 << 32), n, p) for s, n, p in segments)
    run, packet, following = bytearray(), ordered[0][1], ordered[0][0]
    for sequence, number, payload in ordered:
        if sequence > following:
            yield Carried(packet, route, bytes(run))
            run, packet = bytearray(), number
        elif sequence < following:
            payload = payload[following - sequence :]
            sequence = following
        run += payload
        following = sequence + len(payload)
    yield Carried(packet, route, bytes(run))
