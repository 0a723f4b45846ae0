# SPDX-License-Identifier: Apache-2.0
"""What UDP and TCP carried in a capture file: pcapng or classic pcap, read without any tool.

Link types Ethernet (with VLAN tags), Linux cooked (both), BSD loopback and raw IP; IP fragments are put together, TCP
octets are put in order of their sequence numbers.
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
_UDP, _TCP = 17, 6
#: IPv6 headers that stand before what is carried: hop-by-hop, routing, destination options; and that of a fragment
_V6_OPTIONS, _V6_FRAGMENT = (0, 43, 60), 44
MAX_INCOMPLETE = 1024
"""Datagrams of which fragments are held at a time; the oldest is given up for a new one."""


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
    fragments = _Fragments()
    for number, (link, frame) in enumerate(frames, 1):
        datagram = _datagram(_ip(link, frame))
        if datagram is not None and datagram.fragment is not None:
            datagram = fragments.put(datagram)
        found = None if datagram is None else _transport(datagram)
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


@dataclass(frozen=True, slots=True)
class _Datagram:
    """What an IP packet carries, or a part of it."""

    source: str
    target: str
    protocol: int
    octets: bytes
    fragment: tuple[int, int, bool] | None = None
    """Identification, offset in octets, whether more follow; None: whole."""


def _datagram(ip: bytes) -> _Datagram | None:
    version = ip[0] >> 4 if ip else 0
    if version == 4 and len(ip) >= 20:
        length, identification, flags = struct.unpack_from(">HHH", ip, 2)
        start = (ip[0] & 15) * 4
        source, target = ipaddress.ip_address(ip[12:16]), ipaddress.ip_address(ip[16:20])
        octets = ip[start:length] if length > start else ip[start:]  # 0 where the network card was to fill it in
        part = (identification, (flags & 0x1FFF) * 8, bool(flags & 0x2000)) if flags & 0x3FFF else None
        return _Datagram(f"{source}", f"{target}", ip[9], octets, part)
    if version == 6 and len(ip) >= 40:
        names = [f"[{ipaddress.ip_address(ip[at : at + 16])}]" for at in (8, 24)]
        protocol, octets, part = ip[6], ip[40 : 40 + int.from_bytes(ip[4:6], "big")] or ip[40:], None
        while protocol in _V6_OPTIONS and len(octets) >= 8:
            protocol, octets = octets[0], octets[(octets[1] + 1) * 8 :]
        if protocol == _V6_FRAGMENT and len(octets) >= 8:
            place, identification = struct.unpack_from(">HI", octets, 2)
            part = (identification, place & 0xFFF8, bool(place & 1))
            protocol, octets = octets[0], octets[8:]
        return _Datagram(names[0], names[1], protocol, octets, part)
    return None


class _Fragments:
    """Puts datagrams together; what overlaps is taken from the first that came."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str, int, int], dict[int, tuple[bytes, bool]]] = {}

    def put(self, datagram: _Datagram) -> _Datagram | None:
        """The whole datagram once its last part has come."""
        assert datagram.fragment is not None
        identification, offset, more = datagram.fragment
        key = (datagram.source, datagram.target, datagram.protocol, identification)
        if key not in self._parts and len(self._parts) >= MAX_INCOMPLETE:
            del self._parts[next(iter(self._parts))]
        parts = self._parts.setdefault(key, {})
        parts.setdefault(offset, (datagram.octets, more))
        whole, last = bytearray(), False
        for at in sorted(parts):
            octets, more = parts[at]
            if at > len(whole):
                return None  # a gap
            whole += octets[len(whole) - at :]
            last = not more
        if not last:
            return None
        del self._parts[key]
        return _Datagram(datagram.source, datagram.target, datagram.protocol, bytes(whole))


def _transport(datagram: _Datagram) -> tuple[str, int | None, bytes] | None:
    """Route, TCP sequence number and payload; None for anything but UDP and TCP."""
    segment = datagram.octets
    source, target = int.from_bytes(segment[:2], "big"), int.from_bytes(segment[2:4], "big")
    ports = f"{datagram.source}:{source} -> {datagram.target}:{target}"
    if datagram.protocol == _UDP and len(segment) >= 8:
        return f"udp {ports}", None, segment[8:]
    if datagram.protocol == _TCP and len(segment) >= 20:
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
