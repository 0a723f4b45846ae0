# SPDX-License-Identifier: Apache-2.0
"""One datagram to many addresses with one system call: ``sendmmsg`` of Linux through ctypes.

The call lets go of the interpreter's lock, so that a thread can send while the loop goes on (:class:`FanOutThread`).
Threads take turns, so that one processor is left to the loop (:class:`Turns`).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import queue
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["Address", "FanOut", "FanOutThread", "Turns", "mapped", "plain"]

log = logging.getLogger(__name__)

Address = tuple[str, int]
#: messages in one call (the kernel's own limit)
_AT_ONCE = 1024
#: struct mmsghdr and struct iovec, laid out as the C compiler does
_MESSAGE = struct.Struct("@PIPNPNi0PI0P")
_VECTOR = struct.Struct("@PN")
#: among so few, it does not matter who is the last, and one call less does
_FEW = 64
_FULL = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)


def mapped(host: str) -> str:
    """The IPv6 form of an address, for a socket that speaks both (RFC 4291 2.5.5.2)."""
    return host if ":" in host else f"::ffff:{host}"


def plain(host: str) -> str:
    """An IPv4 address as itself, however a socket that speaks both shows it."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


#: struct sockaddr_in and struct sockaddr_in6: the family in the machine's own order, the port in the network's
_SOCKADDR_IN, _SOCKADDR_IN6 = struct.Struct("=H2s4s8x"), struct.Struct("=H2s4x16sI")


def _socket_address(address: Address, family: int) -> bytes:
    """Raises ``OSError`` for what is no address of the family."""
    port = address[1].to_bytes(2, "big")
    if family == socket.AF_INET:
        return _SOCKADDR_IN.pack(family, port, socket.inet_pton(family, address[0]))
    host, _, scope = mapped(address[0]).partition("%")
    index = socket.if_nametoindex(scope) if scope else 0
    return _SOCKADDR_IN6.pack(family, port, socket.inet_pton(socket.AF_INET6, host), index)


class _Table:
    """The kernel's view of a list of addresses, twice over, so that from any of them on all stand in one piece; never
    changed after it is made."""

    def __init__(self, targets: tuple[Address, ...], family: int, vector: int) -> None:
        self.targets = targets
        self.family = family
        self.place = {target: place for place, target in enumerate(targets)}
        length = (_SOCKADDR_IN if family == socket.AF_INET else _SOCKADDR_IN6).size
        names = b"".join([_socket_address(target, family) for target in targets])
        self._names = ctypes.create_string_buffer(names, len(names))
        base = ctypes.addressof(self._names)
        pack = _MESSAGE.pack
        messages = [pack(at, length, vector, 1, 0, 0, 0, 0) for at in range(base, base + len(names), length)]
        self._messages = ctypes.create_string_buffer(b"".join(messages) * 2)
        self.address = ctypes.addressof(self._messages)


class FanOut:
    """Sends copies of a datagram. The table of addresses is built anew only when another tuple of them is given.

    Each packet begins with another address, so that nobody is always the last. What the socket does not take at
    once is lost and counted: in ``lost`` because the socket was full, in ``unreachable`` because of the address.
    """

    def __init__(self, max_datagram: int = 2048) -> None:
        self.sent = 0
        self.lost = 0
        self.unreachable = 0
        self._buffer = ctypes.create_string_buffer(max_datagram)
        self._vector = ctypes.create_string_buffer(_VECTOR.pack(ctypes.addressof(self._buffer), 0))
        self._table: _Table | None = None
        self._turn = 0
        self._sendmmsg: Callable[[int, int, int, int], int] | None = None
        if sys.platform == "linux":
            function = getattr(ctypes.CDLL(None, use_errno=True), "sendmmsg", None)
            if function is not None:
                function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
                self._sendmmsg = function

    def send(
        self, sock: socket.socket, packet: bytes, targets: tuple[Address, ...], skip: Address | None = None
    ) -> int:
        """Sends ``packet`` to every target but ``skip``; how many were sent. Pass the same tuple while it holds."""
        if not targets:
            return 0
        self._turn = (self._turn + 1) % len(targets)
        if self._sendmmsg is None or len(packet) > len(self._buffer):
            return self._one_by_one(sock, packet, targets, skip)
        table = self._table
        if table is None or table.targets is not targets or table.family != sock.family:
            table = self._table = _Table(targets, sock.family, ctypes.addressof(self._vector))
        ctypes.memmove(self._buffer, packet, len(packet))
        _VECTOR.pack_into(self._vector, 0, ctypes.addressof(self._buffer), len(packet))
        descriptor, turn = sock.fileno(), self._turn
        count = len(targets)
        left_out = table.place.get(skip, -1) if skip is not None else -1
        if left_out < 0:
            sent = self._range(table, descriptor, turn, turn + count)
        elif count <= _FEW:
            sent = self._range(table, descriptor, left_out + 1, left_out + count)
        else:
            left_out += count if left_out < turn else 0
            sent = self._range(table, descriptor, turn, left_out)
            sent += self._range(table, descriptor, left_out + 1, turn + count)
        self.sent += sent
        return sent

    def _range(self, table: _Table, descriptor: int, start: int, end: int) -> int:
        assert self._sendmmsg is not None
        sent = 0
        while start < end:
            entry = table.address + start * _MESSAGE.size
            done = self._sendmmsg(descriptor, entry, min(_AT_ONCE, end - start), 0)
            if done > 0:
                sent += done
                start += done
                continue
            error = ctypes.get_errno()
            if error == errno.EINTR:
                continue
            if error in _FULL:
                self.lost += end - start
                break
            # an error is told only for the first of the rest: this one cannot be reached, the others can
            self.unreachable += 1
            start += 1
        return sent

    def _one_by_one(
        self, sock: socket.socket, packet: bytes, targets: tuple[Address, ...], skip: Address | None
    ) -> int:
        sent = 0
        for host, port in (*targets[self._turn :], *targets[: self._turn]):
            if (host, port) == skip:
                continue
            try:
                sock.sendto(packet, (mapped(host) if sock.family == socket.AF_INET6 else host, port))
                sent += 1
            except BlockingIOError:
                self.lost += 1
            except OSError:
                self.unreachable += 1
        self.sent += sent
        return sent


class Turns:
    """Lets so many threads send at the same time, each for one packet; whoever has waited longest is next.

    A turn is handed over: a thread that has more to send cannot take it again before those who wait, as it could
    with a semaphore.
    """

    def __init__(self, at_once: int) -> None:
        self._lock = threading.Lock()
        self._free = at_once
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


#: of all threads of this process. With more senders than processors the system takes one off its processor while it
#: holds the interpreter's lock, and the loop waits for that lock until the sender's next time slice
_TURNS = Turns(max(1, _processors() - 1))


class FanOutThread:
    """A thread that sends, for groups so large that the loop would feel it.

    Packets are sent in the order of :meth:`put`. At most ``depth`` of them wait; when more come, the oldest is dropped
    and counted in ``dropped``, as old audio is worth nothing; one that could not be sent for a reason that is no
    network's is logged and counted in ``failed``.
    On Linux the thread is so much ``nicer`` than the loop: who may speak is decided before another's audio is copied.
    """

    def __init__(
        self, sock: socket.socket, fan_out: FanOut, *, depth: int = 256, nicer: int = 1, turns: Turns = _TURNS
    ) -> None:
        self.dropped = 0
        self.failed = 0
        self._nicer = nicer
        self._turns = turns
        self._socket = sock
        self._fan_out = fan_out
        self._depth = depth
        self._waiting: queue.SimpleQueue[tuple[bytes, tuple[Address, ...], Address | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="media-fan-out", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if sys.platform == "linux" and self._nicer:
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + self._nicer))
        while (job := self._waiting.get()) is not None:
            try:
                with self._turns:
                    self._fan_out.send(self._socket, *job)
            except Exception:
                # one packet must not end the thread, without which the group would hear nothing any more
                self.failed += 1
                log.exception("a packet to %d addresses was not sent", len(job[1]))

    def put(self, packet: bytes, targets: tuple[Address, ...], skip: Address | None) -> None:
        """Sends as :meth:`FanOut.send` does, soon."""
        if self._waiting.qsize() >= self._depth:
            try:
                self._waiting.get_nowait()
                self.dropped += 1
            except queue.Empty:
                pass
        self._waiting.put((packet, targets, skip))

    def close(self) -> None:
        """Ends the thread, after what waits has been sent; the socket may be closed afterwards."""
        self._waiting.put(None)
        self._thread.join()
