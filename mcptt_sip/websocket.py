# SPDX-License-Identifier: Apache-2.0
"""SIP over WebSocket (RFC 7118) on aiohttp: one SIP message in each WebSocket message, subprotocol ``sip``.

aiohttp is loaded when the first WebSocket is opened. Connections that this side opens are kept alive by WebSocket
pings (RFC 7118 6); a peer's CRLF pings are answered too.

:RFC 7118: yes; WS and WSS
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

from mcptt_sip.connection import PING, PONG, Connection, Owner
from mcptt_sip.errors import Unreachable
from mcptt_sip.flow import Flow

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse, web

__all__ = ["WebSocketConnection", "WebSocketServer", "connect"]

log = logging.getLogger(__name__)

SUBPROTOCOL = "sip"


class WebSocketConnection:
    """One WebSocket, whoever opened it. See `mcptt_sip.connection.Connection`."""

    def __init__(
        self, owner: Owner, socket: web.WebSocketResponse | ClientWebSocketResponse, flow: Flow, *,
        outgoing: bool, name: str | None = None,
    ) -> None:  # fmt: skip
        self._owner = owner
        self._socket = socket
        self.flow: Flow | None = flow
        self.outgoing = outgoing
        self.name = name
        self.last_heard = owner.loop.time()
        self.answers = False
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._wake = asyncio.Event()
        self._ending = False
        self._paused_until = 0.0
        self._reader: asyncio.Task[Any] | None = None

    @property
    def closing(self) -> bool:
        return self._ending or self._socket.closed

    @property
    def unsent(self) -> int:
        return self._queued

    def write(self, *messages: bytes) -> None:
        self._queue.extend(messages)
        self._queued += sum(map(len, messages))
        self._wake.set()

    def ping(self) -> None:
        pass  # aiohttp's heartbeat does

    def patience(self, usual: float) -> float | None:
        return None  # and ends the connection when it is not answered

    def pause(self, seconds: float) -> None:
        self._paused_until = self._owner.loop.time() + seconds

    def close(self) -> None:
        self._ending = True
        self._wake.set()

    def abort(self) -> None:
        self._ending = True
        if self._reader is not None:
            self._reader.cancel()

    def info(self, name: str) -> Any:
        return self._socket.get_extra_info(name)

    async def run(self) -> None:
        """Reads and writes until the connection ends. Whoever opened the WebSocket awaits this."""
        self._reader = asyncio.current_task()
        writer = asyncio.ensure_future(self._write())
        try:
            await self._read()
        except asyncio.CancelledError:
            if not self._ending:
                raise
        finally:
            self._ending = True
            writer.cancel()
            await asyncio.wait((writer,))
            self._owner.gone(self)

    async def _read(self) -> None:
        from aiohttp import WSMsgType

        async for message in self._socket:
            if message.type is WSMsgType.TEXT:
                data = message.data.encode("utf-8", "surrogateescape")
            elif message.type is WSMsgType.BINARY:
                data = message.data
            else:
                break
            self.last_heard = self._owner.loop.time()
            if data == PING:
                self.write(PONG)
            elif data.strip(b"\r\n"):
                self._owner.message(data, self)
            if (wait := self._paused_until - self._owner.loop.time()) > 0:
                await asyncio.sleep(wait)

    async def _write(self) -> None:
        try:
            while True:
                while self._queue:
                    data = self._queue.popleft()
                    try:
                        text = data.decode()
                    except UnicodeDecodeError:
                        await self._socket.send_bytes(data)
                    else:
                        await self._socket.send_str(text)
                    self._queued -= len(data)
                if self._ending:
                    await self._socket.close()
                    return
                self._wake.clear()
                await self._wake.wait()
        except (ConnectionError, RuntimeError) as error:
            log.debug("flow=%s: %s", self.flow, error)
            self.abort()


class WebSocketServer:
    """Takes WebSockets on one address."""

    def __init__(self, owner: Owner, kind: str, numbers: Any, *, origins: frozenset[str], heartbeat: float) -> None:
        self._owner = owner
        self._kind = kind
        self._numbers = numbers
        self._origins = origins
        self._heartbeat = heartbeat
        self._server: asyncio.Server | None = None
        self._http: web.Server | None = None

    async def listen(self, host: str, port: int, context: ssl.SSLContext | None) -> tuple[str, int]:
        """Opens the socket. Raises OSError when it cannot."""
        from aiohttp import web

        self._http = web.Server(self._handle, access_log=None)
        self._server = await self._owner.loop.create_server(self._http, host, port, ssl=context, backlog=1024)
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        # of several such lines the first: aiohttp looks at no other when it answers
        offered = {word.strip() for word in request.headers.get("Sec-WebSocket-Protocol", "").split(",")}
        limits = self._owner.limits
        response = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), max_msg_size=limits.head + limits.body, heartbeat=self._heartbeat or None
        )
        version = request.headers.get("Sec-WebSocket-Version", "")
        if not response.can_prepare(request) or request.method != "GET" or version.strip() != "13":
            headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}  # RFC 6455 4.4
            return web.Response(status=426, headers=headers, text="SIP over WebSocket (RFC 7118)\n")
        if SUBPROTOCOL not in offered:
            return web.Response(status=400, text="the subprotocol is sip (RFC 7118 4.1)\n")
        if self._origins and request.headers.get("Origin", "") not in self._origins:
            return web.Response(status=403, text="not from this origin\n")
        await response.prepare(request)
        local, remote = response.get_extra_info("sockname"), response.get_extra_info("peername")
        flow = Flow(self._kind, tuple(local[:2]), tuple(remote[:2]), next(self._numbers))
        connection = WebSocketConnection(self._owner, response, flow, outgoing=False)
        if self._owner.admit(connection):
            await connection.run()
        else:
            await response.close(code=1013)  # try again later
        return response

    async def close(self) -> None:
        """Takes no more, and ends what is open."""
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            await self._http.shutdown(1.0)
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._server.wait_closed()


async def connect(
    owner: Owner, kind: str, address: tuple[str, int], number: int, *, path: str, context: ssl.SSLContext | None,
    name: str | None, timeout: float, heartbeat: float, host: str,
) -> tuple[WebSocketConnection, asyncio.Task[None]]:  # fmt: skip
    """A WebSocket to there, and the task that runs it. Raises `Unreachable`."""
    import aiohttp

    session: ClientSession = aiohttp.ClientSession()
    scheme = "wss" if context is not None else "ws"
    where = f"[{address[0]}]" if ":" in address[0] else address[0]
    limits = owner.limits
    try:
        async with asyncio.timeout(timeout):
            socket = await session.ws_connect(
                f"{scheme}://{where}:{address[1]}{path}", protocols=(SUBPROTOCOL,), ssl=context or True,
                server_hostname=name, max_msg_size=limits.head + limits.body, heartbeat=heartbeat or None,
                headers={"Host": f"{host}:{address[1]}"},
            )  # fmt: skip
    except (TimeoutError, OSError, aiohttp.ClientError) as error:
        await session.close()
        raise Unreachable(f"{kind}:{where}:{address[1]}", (str(error) or "no answer in time",)) from None
    if socket.protocol != SUBPROTOCOL:
        await socket.close()
        await session.close()
        raise Unreachable(f"{kind}:{where}:{address[1]}", ("the server does not speak SIP over WebSocket",))
    local, remote = socket.get_extra_info("sockname"), socket.get_extra_info("peername")
    flow = Flow(kind, tuple(local[:2]), tuple(remote[:2]), number)
    connection = WebSocketConnection(owner, socket, flow, outgoing=True, name=name)

    async def run() -> None:
        try:
            await connection.run()
        finally:
            await socket.close()
            await session.close()

    if not owner.admit(connection):
        await session.close()
        raise Unreachable(f"{kind}:{where}:{address[1]}", ("too many connections",))
    return connection, asyncio.ensure_future(run())


_: type[Connection] = WebSocketConnection
