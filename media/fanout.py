# SPDX-License-Identifier: Apache-2.0
"""One datagram to many addresses with one system call: ``sendmmsg`` of Linux through ctypes."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

__all__ = ["FanOut"]

Address = tuple[str, int]
#: messages in one call (the kernel's own limit)
_AT_ONCE = 1024


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MessageHeader(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _MessageHeader), ("sent", ctypes.c_uint32))


def _socket_address(address: Address) -> bytes:
    host = ipaddress.ip_address(address[0])
    if host.version == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack(">H", address[1]) + host.packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", address[1], 0) + host.packed + bytes(4)


class FanOut:
    """Sends copies of a datagram. The table of addresses is built anew only when they change.

    What the socket does not take at once is lost and counted in ``lost``: old audio is worth nothing.
    """

    def __init__(self, max_datagram: int = 2048) -> None:
        self.lost = 0
        self._buffer = ctypes.create_string_buffer(max_datagram)
        self._vector = _IoVector(ctypes.addressof(self._buffer), 0)
        self._addresses: tuple[Address, ...] = ()
        self._table: ctypes.Array[_Message] | None = None
        self._names: list[ctypes.Array[ctypes.c_char]] = []
        self._sendmmsg = None
        if sys.platform == "linux":
            self._sendmmsg = getattr(ctypes.CDLL(None, use_errno=True), "sendmmsg", None)

    def send(self, sock: socket.socket, packet: bytes, targets: Sequence[Address]) -> int:
        """Sends ``packet`` to every target; how many were sent."""
        if not targets:
            return 0
        if self._sendmmsg is None or len(packet) > len(self._buffer):
            return self._one_by_one(sock, packet, targets)
        wanted = tuple(targets)
        if wanted != self._addresses:
            self._build(wanted)
        ctypes.memmove(self._buffer, packet, len(packet))
        self._vector.length = len(packet)
        return self._range(sock.fileno(), 0, len(wanted))

    def _build(self, addresses: tuple[Address, ...]) -> None:
        self._addresses = addresses
        self._names = [ctypes.create_string_buffer(name, len(name)) for name in map(_socket_address, addresses)]
        self._table = (_Message * max(1, len(addresses)))()
        vector = ctypes.addressof(self._vector)
        for entry, name in zip(self._table, self._names, strict=False):
            entry.header.name = ctypes.addressof(name)
            entry.header.name_length = len(name)
            entry.header.vectors = vector
            entry.header.vector_count = 1

    def _range(self, descriptor: int, start: int, end: int) -> int:
        assert self._table is not None and self._sendmmsg is not None
        sent = 0
        size = ctypes.sizeof(_Message)
        while start < end:
            entry = ctypes.byref(self._table, start * size)
            done = self._sendmmsg(descriptor, entry, min(_AT_ONCE, end - start), 0)
            if done > 0:
                sent += done
                start += done
                continue
            if ctypes.get_errno() == errno.EINTR:
                continue
            self.lost += 1
            if ctypes.get_errno() in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS):
                self.lost += end - start - 1
                break
            start += 1  # this address cannot be reached; the others can
        return sent

    def _one_by_one(self, sock: socket.socket, packet: bytes, targets: Sequence[Address]) -> int:
        sent = 0
        for target in targets:
            try:
                sock.sendto(packet, target)
                sent += 1
            except OSError:
                self.lost += 1
        return sent
