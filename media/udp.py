# SPDX-License-Identifier: Apache-2.0
"""UDP sockets on an asyncio loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from media.fanout import Address, FanOut, FanOutThread, mapped, plain

__all__ = ["Address", "Datagrams", "Trace", "mark", "open_adjacent", "open_pair"]

log = logging.getLogger(__name__)

#: told of datagrams: (kind, outbound, local, remote, octets, Unix time)
Trace = Callable[[str, bool, Address, Address, bytes, float], None]

#: datagrams taken from a socket before the loop gets its turn
_AT_ONCE = 64


def _nobody(_octets: bytes, _source: Address) -> None:
    """Takes datagrams that are for nobody."""


class Datagrams:
    """A UDP socket; hands every datagram to ``on_datagram``.

    :param port: 0: one that the system chooses

    On ``::`` it speaks IPv6 and IPv4, whose addresses are given and taken in their own form.
    :param send_buffer: octets that the system keeps of what is sent, as far as it allows; a packet to a large group
        is many at once
    Unlike asyncio's transport it sends empty datagrams (RFC 6263 4.1) and never queues: what the system does not
    take at once is lost and counted in ``errors``, as old audio is worth nothing.

    Raises ``OSError`` when the address cannot be had.
    """

    def __init__(
        self, host: str, port: int = 0, *, dscp: int = 0, max_datagram: int = 1500, send_buffer: int = 0
    ) -> None:
        self.on_datagram: Callable[[bytes, Address], None] = _nobody
        self.errors = 0
        self.oversized = 0
        self._max = max_datagram
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
        )
        self._thread: FanOutThread | None = None
        try:
            self._socket.setblocking(False)
            if host == "::":
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if send_buffer:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        mark(self._socket, dscp)
        self.address: Address = self._socket.getsockname()[:2]
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            if self._socket is None:  # closed by what the last datagram brought
                return
            try:
                octets, source = self._socket.recvfrom(self._max + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # an ICMP error: the peer is gone or not there yet, which its silence tells as well
                self.errors += 1
                log.debug("%s: %s", self.address, error)
                continue
            if len(octets) > self._max:
                self.oversized += 1
                continue
            self.on_datagram(octets, (plain(source[0]), source[1]))

    def send(self, octets: bytes, target: Address) -> None:
        """Sends a datagram, at once or never. Does nothing after :meth:`close`."""
        if self._socket is None:
            return
        if self._socket.family == socket.AF_INET6:
            target = mapped(target[0]), target[1]
        try:
            self._socket.sendto(octets, target)
        except OSError as error:
            self.errors += 1
            log.debug("%s to %s: %s", self.address, target, error)

    def send_many(
        self, octets: bytes, targets: tuple[Address, ...], skip: Address | None, fan_out: FanOut, *, thread: bool
    ) -> None:
        """Sends a datagram to all targets but ``skip``, at once or never; in a thread of its own if wished, which
        then serves this socket to its end."""
        if self._socket is None:
            return
        if thread and self._thread is None:
            self._thread = FanOutThread(self._socket, fan_out)
        if self._thread is not None:
            self._thread.put(octets, targets, skip)
        else:
            fan_out.send(self._socket, octets, targets, skip)

    @property
    def dropped(self) -> int:
        """Packets that the sending thread did not come to."""
        return 0 if self._thread is None else self._thread.dropped

    @property
    def failed(self) -> int:
        """Packets that the sending thread could not send, for a reason that the log tells."""
        return 0 if self._thread is None else self._thread.failed

    def check_reach(self, *addresses: Address) -> None:
        """Raises ValueError for an address of a family that this socket does not speak."""
        for host, _ in addresses:
            if self.address[0] != "::" and (":" in self.address[0]) != (":" in host):
                raise ValueError(f"{host} cannot be reached from {self.address[0]}")

    def close(self) -> None:
        """Nothing more is received or sent. Harmless twice."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            if self._thread is not None:
                self._thread.close()
            self._socket.close()
            self._socket = None
        self.on_datagram = _nobody  # whose it was is not held by it: no garbage in a circle


def open_pair(
    host: str, *, dscp: int, max_datagram: int, send_buffer: int = 0
) -> tuple[Datagrams, Datagrams]:
    """A socket for audio and one for floor control. Raises ``OSError``, and then leaves none open."""
    audio = Datagrams(host, dscp=dscp, max_datagram=max_datagram, send_buffer=send_buffer)
    try:
        return audio, Datagrams(host, dscp=dscp, max_datagram=max_datagram, send_buffer=send_buffer)
    except OSError:
        audio.close()
        raise


def open_adjacent(host: str, *, dscp: int, max_datagram: int, tries: int = 16) -> tuple[Datagrams, Datagrams]:
    """A socket for RTP on an even port and one for RTCP on the next (RFC 3550 11); any two where none such is found.
    Raises ``OSError``, and then leaves none open."""
    for _ in range(tries):
        rtp = Datagrams(host, dscp=dscp, max_datagram=max_datagram)
        port = rtp.address[1]
        if port % 2 == 0:
            try:
                return rtp, Datagrams(host, port + 1, dscp=dscp, max_datagram=max_datagram)
            except OSError:
                log.debug("port %d is another's", port + 1)
        rtp.close()
    return open_pair(host, dscp=dscp, max_datagram=max_datagram)


def mark(sock: socket.socket, dscp: int) -> None:
    """Sets the differentiated services code point of what the socket sends, where the system allows it."""
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2)
        if sock.family == socket.AF_INET or not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
    except OSError as error:
        log.warning("packets are not marked with DSCP %d: %s", dscp, error)
