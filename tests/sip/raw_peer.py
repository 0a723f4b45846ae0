# SPDX-License-Identifier: Apache-2.0
"""A peer that says word for word what a test has it say, over UDP, and keeps what it hears. Only the end of a call he
grants by himself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from mcptt_sip.message import Request, Response, parse

HOST = "127.0.0.1"
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\n"
_numbers = itertools.count(1)


class RawPeer(asyncio.DatagramProtocol):
    """`towards` is the port of the telephone under test."""

    def __init__(self) -> None:
        self.towards = 0
        self.heard: list[Request | Response] = []
        self._changed = asyncio.Event()
        self._taken: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.towards = addr[1]
        message = parse(data)
        if any(bytes(message) == bytes(known) for known in self.heard):
            return  # a repetition
        self.heard.append(message)
        self._changed.set()
        if isinstance(message, Request) and message.method in ("BYE", "CANCEL"):
            self.reply(message, 200)
        if isinstance(message, Request) and message.method == "CANCEL":
            for invite in self.heard:
                if isinstance(invite, Request) and invite.headers.top_via == message.headers.top_via:
                    self.reply(invite, 487)
                    break

    @property
    def uri(self) -> str:
        return f"sip:peer@{HOST}:{self.port}"

    def close(self) -> None:
        self._socket.close()

    async def _next(self, wanted: Callable[[Any], bool], what: str, seconds: float) -> Any:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    for number, message in enumerate(self.heard):
                        if number not in self._taken and wanted(message):
                            self._taken.add(number)
                            return message
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {what}; heard {self.heard}") from None

    async def request(self, method: str, *, seconds: float = 5.0) -> Request:
        """The next request of this method that was not asked for yet."""
        found = await self._next(lambda m: isinstance(m, Request) and m.method == method, method, seconds)
        return cast(Request, found)

    async def final(self, method: str, *, seconds: float = 5.0) -> Response:
        """The next final response to this method."""
        found = await self._next(
            lambda m: isinstance(m, Response) and m.status >= 200 and m.headers.cseq.method == method,
            f"final response to {method}", seconds,
        )  # fmt: skip
        return cast(Response, found)

    async def provisional(self, status: int, *, seconds: float = 5.0) -> Response:
        """The next response of this status."""
        found = await self._next(lambda m: isinstance(m, Response) and m.status == status, str(status), seconds)
        return cast(Response, found)

    def send(self, text: str | bytes) -> None:
        """Says this."""
        self._socket.sendto(text if isinstance(text, bytes) else text.encode(), (HOST, self.towards))

    def reply(
        self, request: Request, status: int, *, tag: str = "peer", headers: str = "", body: str = "",
        contact: str | None = None,
    ) -> None:  # fmt: skip
        """Answers a request; ``headers`` are whole lines."""
        lines = [f"SIP/2.0 {status} X", *(f"Via: {via}" for via in request.headers.get_all("via"))]
        to = str(request.headers.to)
        lines += [f"From: {request.headers.get('from')}", f"To: {to}" if "tag=" in to else f"To: {to};tag={tag}"]
        lines += [f"Call-ID: {request.headers.call_id}", f"CSeq: {request.headers.get('cseq')}"]
        lines += [f"Contact: <{contact or self.uri}>", *(["Content-Type: application/sdp"] if body else [])]
        self.send("\r\n".join(lines) + "\r\n" + headers + f"Content-Length: {len(body)}\r\n\r\n{body}")

    def ask(
        self, method: str, cseq: int, *, of: Request | Response | None = None, tag: str = "peer", call_id: str = "c1",
        uri: str | None = None, headers: str = "", body: str = "", kind: str = "application/sdp", via: str = "",
        contact: str | None = None, to: str | None = None, branch: str | None = None,
    ) -> None:  # fmt: skip
        """Sends a request: the first of a call, or one in the dialog that ``of`` belongs to: our INVITE's answer, or
        the telephone's INVITE."""
        from_, target = f"<{self.uri}>;tag={tag}", uri or f"sip:ua@{HOST}:{self.towards}"
        whom = f"<{target}>" if to is None else to
        if of is not None:
            call_id = of.headers.call_id
            target = uri or str(of.headers.contact[0].uri)
            if isinstance(of, Request):
                from_, whom = f"{of.headers.to};tag={tag}", str(of.headers.from_)
            else:
                from_, whom = str(of.headers.from_), str(of.headers.to)
        branch = branch or f"z9hG4bKraw{next(_numbers)}"
        self.send(
            f"{method} {target} SIP/2.0\r\nVia: SIP/2.0/UDP {HOST}:{self.port};branch={branch}{via}\r\n"
            f"From: {from_}\r\nTo: {whom}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nMax-Forwards: 70\r\n"
            f"Contact: <{contact or self.uri}>\r\n{headers}" + (f"Content-Type: {kind}\r\n" if body else "")
            + f"Content-Length: {len(body)}\r\n\r\n{body}"
        )


@asynccontextmanager
async def raw_peer(towards: int = 0) -> AsyncIterator[RawPeer]:
    """A peer on a port of its own."""
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_datagram_endpoint(RawPeer, local_addr=(HOST, 0))
    peer.towards = towards
    try:
        yield peer
    finally:
        peer.close()
