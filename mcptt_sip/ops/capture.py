# SPDX-License-Identifier: Apache-2.0
"""Captures in pcapng: SIP in clear whatever its transport, packets as sent, floor messages opened.

Three interfaces: ``sip`` (synthetic TCP or UDP over IP, so that any tool reads it), ``media`` (the RTP and
RTCP datagrams octet for octet, protected as they are on the wire) and ``floor (opened)`` (the floor control
messages that this process protected or opened, in Wireshark's exported-PDU form). No key is ever written:
neither a TLS secret nor a media key.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

Address = tuple[str, int]

_RAW_IP = 101  # LINKTYPE_RAW: IPv4 or IPv6 by the version nibble
_EXPORTED_PDU = 252  # LINKTYPE_WIRESHARK_UPPER_PDU
SIP, MEDIA, FLOOR = 0, 1, 2
_INTERFACES = (("sip", _RAW_IP), ("media", _RAW_IP), ("floor (opened)", _EXPORTED_PDU))
_INBOUND, _OUTBOUND = 1, 2  # epb_flags, bits 0 and 1
#: IP's total length has 16 bits; a longer message of a stream is written in several segments
_SEGMENT = 60_000


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of a capture. ``at`` is Unix seconds; ``data`` is what the interface's link type says."""

    interface: int
    at: float
    outbound: bool
    data: bytes
    comment: str = ""


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _section() -> bytes:
    header = _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    for name, link in _INTERFACES:
        options = _option(2, name.encode()) + _option(9, b"\x06") + _option(0, b"")
        header += _block(1, struct.pack("<HHI", link, 0, 0) + options)
    return header


def _packet_block(packet: Packet) -> bytes:
    micros = round(packet.at * 1_000_000)
    size = len(packet.data)
    body = struct.pack("<IIIII", packet.interface, micros >> 32, micros & 0xFFFFFFFF, size, size)
    body += packet.data + bytes(-size % 4)
    if packet.comment:
        body += _option(1, packet.comment.encode())
    body += _option(2, struct.pack("<I", _OUTBOUND if packet.outbound else _INBOUND)) + _option(0, b"")
    return _block(6, body)


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data)) if len(data) % 2 == 0 else _checksum_odd(data)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _checksum_odd(data: bytes) -> int:
    padded = data + b"\0"
    return sum(struct.unpack(f">{len(padded) // 2}H", padded))


def ip_packet(source: Address, target: Address, protocol: int, payload: bytes) -> bytes:
    """An IPv4 or IPv6 packet around a UDP or TCP segment whose checksum field (0) is filled in here."""
    a, b = ipaddress.ip_address(source[0]), ipaddress.ip_address(target[0])
    offset = 6 if protocol == 17 else 16
    if a.version == 4:
        pseudo = a.packed + b.packed + struct.pack(">BBH", 0, protocol, len(payload))
    else:
        pseudo = a.packed + b.packed + struct.pack(">II", len(payload), protocol)
    check = _checksum(pseudo + payload) or 0xFFFF
    payload = payload[:offset] + struct.pack(">H", check) + payload[offset + 2 :]
    if a.version == 6:
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + a.packed + b.packed + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0)
    header += a.packed + b.packed
    return header[:10] + struct.pack(">H", _checksum(header)) + header[12:] + payload


def udp_packet(source: Address, target: Address, payload: bytes) -> bytes:
    """``payload`` in UDP in IP."""
    return ip_packet(
        source, target, 17, struct.pack(">HHHH", source[1], target[1], 8 + len(payload), 0) + payload
    )


def _exported(source: Address, target: Address, dissector: str, payload: bytes) -> bytes:
    """Wireshark's exported PDU: tags for dissector and addresses, then the message."""

    def tag(code: int, value: bytes) -> bytes:
        padded = value + bytes(-len(value) % 4)
        return struct.pack(">HH", code, len(padded)) + padded

    a, b = ipaddress.ip_address(source[0]), ipaddress.ip_address(target[0])
    src, dst = (20, 21) if a.version == 4 else (22, 23)
    return (
        tag(12, dissector.encode())
        + tag(src, a.packed)
        + tag(dst, b.packed)
        + tag(24, struct.pack(">I", 3))  # port type UDP
        + tag(25, struct.pack(">I", source[1]))
        + tag(26, struct.pack(">I", target[1]))
        + tag(0, b"")
        + payload
    )


class Capture:
    """Writes one pcapng file; every record is whole on disk when the call returns."""

    def __init__(self, path: Path | str) -> None:
        self._file: BinaryIO = open(path, "wb", buffering=0)  # noqa: SIM115 - lives as long as the capture
        self._file.write(_section())
        self._sent: dict[tuple[Address, Address], int] = {}

    def sip(
        self, at: float, *, outbound: bool, transport: str, local: Address, remote: Address, octets: bytes
    ) -> None:
        """A SIP message in clear. Stream transports become TCP segments with true sequence numbers."""
        source, target = (local, remote) if outbound else (remote, local)
        if transport.lower() == "udp":
            self._write(SIP, at, outbound, udp_packet(source, target, octets))
            return
        for start in range(0, len(octets), _SEGMENT):
            part = octets[start : start + _SEGMENT]
            sequence = self._sent.get((source, target), 1)
            self._sent[source, target] = sequence + len(part) & 0xFFFFFFFF
            answered = self._sent.get((target, source), 1)
            segment = struct.pack(
                ">HHIIBBHHH", source[1], target[1], sequence, answered, 5 << 4, 0x18, 0xFFFF, 0, 0
            )
            self._write(SIP, at, outbound, ip_packet(source, target, 6, segment + part))

    def datagram(self, at: float, *, outbound: bool, local: Address, remote: Address, octets: bytes) -> None:
        """A media or floor datagram exactly as it is on the wire."""
        source, target = (local, remote) if outbound else (remote, local)
        self._write(MEDIA, at, outbound, udp_packet(source, target, octets))

    def floor(self, at: float, *, outbound: bool, local: Address, remote: Address, octets: bytes) -> None:
        """A floor control message in clear, as this process made or opened it."""
        source, target = (local, remote) if outbound else (remote, local)
        self._write(FLOOR, at, outbound, _exported(source, target, "rtcp", octets))

    def close(self) -> None:
        self._file.close()

    def _write(self, interface: int, at: float, outbound: bool, data: bytes) -> None:
        self._file.write(_packet_block(Packet(interface, at, outbound, data)))


def read(path: Path | str) -> Iterator[Packet]:
    """The packets of a capture written by :class:`Capture`; stops at a record cut short by a crash."""
    data = Path(path).read_bytes()
    position = 0
    while position + 12 <= len(data):
        kind, length = struct.unpack_from("<II", data, position)
        if length < 12 or position + length > len(data):
            return
        if kind == 6:
            interface, high, low, size, _ = struct.unpack_from("<IIIII", data, position + 8)
            payload = data[position + 28 : position + 28 + size]
            option = position + 28 + size + -size % 4
            outbound, comment = False, ""
            while option + 4 <= position + length - 4:
                code, width = struct.unpack_from("<HH", data, option)
                value = data[option + 4 : option + 4 + width]
                if code == 0:
                    break
                if code == 2:
                    outbound = struct.unpack("<I", value)[0] & 3 == _OUTBOUND
                elif code == 1:
                    comment = value.decode(errors="replace")
                option += 4 + width + -width % 4
            yield Packet(interface, (high << 32 | low) / 1e6, outbound, payload, comment)
        position += length


def merge(sources: Iterable[Path], target: Path) -> list[Packet]:
    """One capture of a whole call from those of its processes: each packet once, as its sender sent it.

    Floor messages are in it opened as well. Returns the packets; their place in the list plus
    one is their frame number in ``target``.
    """
    packets = [
        packet
        for source in sources
        for packet in read(source)
        if packet.outbound
    ]
    packets.sort(key=lambda packet: packet.at)
    with open(target, "wb") as file:
        file.write(_section())
        for packet in packets:
            file.write(_packet_block(packet))
    return packets


def dissect(packet: Packet) -> tuple[str, Address, Address, bytes]:
    """(``udp`` | ``tcp`` | ``floor``, source, target, payload) of a packet written here."""
    data = packet.data
    if packet.interface == FLOOR:
        tags: dict[int, bytes] = {}
        position = 0
        while True:
            code, width = struct.unpack_from(">HH", data, position)
            position += 4 + width
            if code == 0:
                break
            tags[code] = data[position - width : position]
        hosts = [tags.get(20) or tags[22], tags.get(21) or tags[23]]
        ports = [struct.unpack(">I", tags[code])[0] for code in (25, 26)]
        ends = [(str(ipaddress.ip_address(host)), port) for host, port in zip(hosts, ports, strict=True)]
        return "floor", ends[0], ends[1], data[position:]
    if data[0] >> 4 == 4:
        protocol, header, hosts = data[9], 20, [data[12:16], data[16:20]]
    else:
        protocol, header, hosts = data[6], 40, [data[8:24], data[24:40]]
    source_port, target_port = struct.unpack_from(">HH", data, header)
    source = (str(ipaddress.ip_address(hosts[0])), source_port)
    target = (str(ipaddress.ip_address(hosts[1])), target_port)
    if protocol == 17:
        return "udp", source, target, data[header + 8 :]
    return "tcp", source, target, data[header + 20 :]
