# SPDX-License-Identifier: Apache-2.0
"""What carries whole SIP messages for `mcptt_sip.transport`: the interface of every connection, and the one over a
byte stream (TCP, TLS; RFC 3261 18.3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from typing import Any, Protocol, cast

from mcptt_sip.errors import ParseError
from mcptt_sip.flow import Flow
from mcptt_sip.message import KeepAlive, Limits, MessageFramer

__all__ = ["PING", "PONG", "Connection", "Owner", "StreamConnection"]

log = logging.getLogger(__name__)

PING = b"\r\n\r\n"
PONG = b"\r\n"


class Owner(Protocol):
    """The transport that a connection belongs to."""

    loop: asyncio.AbstractEventLoop

    @property
    def limits(self) -> Limits:
        """What a message may cost."""
        ...

    @property
    def at_once(self) -> int:
        """Messages of one connection that are taken before the others have their turn."""
        ...

    @property
    def linger(self) -> float:
        """Seconds that octets are still taken in, unread, after the framing was lost."""
        ...

    def admit(self, connection: Connection) -> bool:
        """Whether a new connection may stay."""
        ...

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        ...

    def message(self, data: bytes, connection: Connection) -> None:
        """One whole message has come."""
        ...

    def broken(self, error: ParseError, connection: Connection) -> None:
        """The framing is lost."""
        ...

    def hold(self) -> None:
        """Messages follow that came together: what is sent meanwhile waits for `release`."""
        ...

    def release(self) -> None:
        """That was all of them."""
        ...


class Connection(Protocol):
    """One connection, whoever opened it. `name` is what the peer's certificate was checked for."""

    flow: Flow | None
    name: str | None
    outgoing: bool
    last_heard: float

    @property
    def closing(self) -> bool:
        """Whether nothing can be written any more."""
        ...

    @property
    def unsent(self) -> int:
        """Octets that wait to be taken by the peer."""
        ...

    def write(self, *messages: bytes) -> None:
        """Queue whole messages."""
        ...

    def ping(self) -> None:
        """Keep it alive."""
        ...

    #: whether the peer has answered a ping of ours on this connection
    answers: bool

    def patience(self, usual: float) -> float | None:
        """How long its silence means nothing, in seconds, where `usual` is some times our own interval of pings;
        ``None``: it may be silent as long as it likes."""
        ...

    def pause(self, seconds: float) -> None:
        """Read nothing for so long: the peer is faster than he may be."""
        ...

    def close(self) -> None:
        """End it once what was written is out."""
        ...

    def abort(self) -> None:
        """End it at once."""
        ...

    def info(self, name: str) -> Any:
        """What asyncio's ``get_extra_info`` knows of it."""
        ...


def read_small(transport: asyncio.BaseTransport) -> None:
    """Has asyncio read 64 KiB at a time: for its usual 256 KiB the system maps and unmaps pages with every read."""
    with contextlib.suppress(AttributeError):  # another loop's transport
        transport.max_size = 65_536  # type: ignore[attr-defined]


class StreamConnection(asyncio.Protocol):
    """A connection over TCP or TLS.

    While the peer does not take what is written to him, nothing is read from him: whoever sends requests and does
    not read the answers waits for himself.
    """

    def __init__(self, owner: Owner, kind: str, number: int, outgoing: bool, name: str | None = None) -> None:
        self._owner = owner
        self._kind = kind
        self._number = number
        self.outgoing = outgoing
        self.name = name
        self.flow: Flow | None = None
        self.framer = MessageFramer(owner.limits)
        self.socket: asyncio.Transport | None = None
        self.last_heard = 0.0
        self._awaits_pong = self.answers = False
        self._pinged_at = self._ping_interval = 0.0  # of the peer: its last ping, and how long after the one before
        self._lingering = False  # framing is lost: nothing is read any more
        self._choked = False  # the peer does not read
        self._items: deque[bytes | KeepAlive | ParseError] = deque()
        self._taking = False
        self._paused_until = 0.0

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.socket = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read_small(transport)
        local, remote = transport.get_extra_info("sockname")[:2], transport.get_extra_info("peername")[:2]
        self.flow = Flow(self._kind, local, remote, self._number)
        self.last_heard = self._owner.loop.time()
        if not self._owner.admit(self):
            self.socket.abort()

    def data_received(self, data: bytes) -> None:
        assert self.flow is not None and self.socket is not None
        if self._lingering:
            return
        self.last_heard = self._owner.loop.time()
        if self._awaits_pong and not self.framer.pending and data.startswith(PONG) and not data.startswith(PING):
            # the framer would wait for the other half of a ping
            self._awaits_pong, self.answers = False, True
            data = data[len(PONG) :]
        self._items.extend(self.framer.receive(data))
        if not self._taking:
            self._take()

    def _take(self) -> None:
        """Some of what has come; the others have their turn before the rest."""
        assert self.flow is not None and self.socket is not None
        self._taking = lost = False
        self._owner.hold()
        try:
            for _ in range(min(len(self._items), self._owner.at_once)):
                item = self._items.popleft()
                if isinstance(item, ParseError):
                    log.info("flow=%s closed: %s", self.flow, item)
                    self._owner.broken(item, self)
                    lost = True
                    break
                if isinstance(item, KeepAlive):
                    if item is KeepAlive.PING:
                        self._ping_interval = self.last_heard - self._pinged_at if self._pinged_at else 0.0
                        self._pinged_at = self.last_heard
                        self.socket.write(PONG)
                else:
                    self._owner.message(item, self)
        finally:
            self._owner.release()
        if lost:
            self._linger()
        if self._items:
            self._taking = True
            self._owner.loop.call_soon(self._take)
        self._gate()

    def pause_writing(self) -> None:
        self._choked = True
        self._gate()

    def resume_writing(self) -> None:
        self._choked = False
        self._gate()

    def connection_lost(self, exc: Exception | None) -> None:
        while self._items and not self._lingering:
            self._take()  # what was whole before the end is heard
        self._owner.gone(self)

    # --- Connection

    @property
    def closing(self) -> bool:
        return self.socket is None or self.socket.is_closing()

    @property
    def unsent(self) -> int:
        return 0 if self.socket is None else self.socket.get_write_buffer_size()

    def write(self, *messages: bytes) -> None:
        assert self.socket is not None
        self.socket.write(messages[0] if len(messages) == 1 else b"".join(messages))

    def ping(self) -> None:
        self._awaits_pong = True
        self.write(PING)

    def patience(self, usual: float) -> float | None:
        """A peer who has never answered a ping need not (RFC 5626 4.4: keep-alives are agreed upon, or they are just
        noise); one who pings by himself does so in his own time."""
        if self.outgoing and self.answers:
            return usual
        return max(usual, 3.5 * self._ping_interval) if self._ping_interval else None

    def pause(self, seconds: float) -> None:
        self._paused_until = self._owner.loop.time() + seconds
        self._gate()
        self._owner.loop.call_later(seconds, self._gate)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()

    def abort(self) -> None:
        if self.socket is not None:
            self.socket.abort()

    def info(self, name: str) -> Any:
        return None if self.socket is None else self.socket.get_extra_info(name)

    def _gate(self) -> None:
        """Reads or not, as both reasons for not reading have it."""
        if self.socket is None or self.socket.is_closing():
            return
        if self._choked or self._taking or self._owner.loop.time() < self._paused_until - 1e-9:
            self.socket.pause_reading()
        else:
            self.socket.resume_reading()

    def _linger(self) -> None:
        """Ends this side, and reads what is still coming for a while: closing over unread octets would reset the
        connection, and the peer would lose the answer that tells him why."""
        assert self.socket is not None
        self._lingering = True
        self._items.clear()
        self._owner.gone(self)
        if self.socket.can_write_eof() and not self.socket.is_closing():
            self.socket.write_eof()
        self._owner.loop.call_later(self._owner.linger, self.socket.abort)
