# SPDX-License-Identifier: Apache-2.0
"""Event state that this side publishes and keeps alive (RFC 3903, the client's side).

:RFC 3903: partly; the client's side; a state agent reads PUBLISH as a plain request
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mcptt_sip.errors import CallFailed, SipError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.message import Response

__all__ = ["Publication"]

log = logging.getLogger(__name__)

#: sends a PUBLISH with these headers and body, and gives its final response
Send = Callable[[HeaderItems, bytes, "str | None"], Awaitable[Response]]
_RETRY = 60.0


class Publication:
    """One piece of event state at its state agent, refreshed until `close`. `etag` names it there."""

    def __init__(self, send: Send, event: str, body: bytes, content_type: str, *, expires: int) -> None:
        self.etag: str | None = None
        self.expires = expires
        self._send = send
        self._event = event
        self._body, self._type = body, content_type
        self._wanted = expires
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The first PUBLISH. Raises `CallFailed` when it is refused, `RequestTimeout`, `Unreachable`."""
        await self._publish(self._wanted, anew=True)
        self._task = asyncio.ensure_future(self._stay())

    async def modify(self, body: bytes, content_type: str | None = None) -> None:
        """Other state in place of the old (4.4). Raises as `start`; the old state stays until it expires then."""
        self._body, self._type = body, content_type or self._type
        await self._publish(self._wanted, anew=True)

    async def close(self) -> None:
        """Removes the state (4.5), as far as the agent can be reached."""
        if self._task is not None:
            async with self._busy:  # a refresh under way brings the name by which the state is removed
                self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        if self.etag is not None:
            try:
                await self._publish(0, anew=False)
            except SipError as error:
                log.info("event=%s not removed: %s", self._event, error)

    async def _publish(self, expires: int, *, anew: bool) -> None:
        """One PUBLISH; with `anew` the body goes along. An agent that has lost the state gets it again (412)."""
        async with self._busy:
            for _ in range(3):
                lines: list[tuple[str, object]] = [("Event", self._event), ("Expires", expires)]
                if self.etag is not None:
                    lines.append(("SIP-If-Match", self.etag))
                with_body = expires > 0 and (anew or self.etag is None)
                response = await self._send(
                    lines, self._body if with_body else b"", self._type if with_body else None
                )
                least = response.headers.min_expires
                if response.status == 412 and self.etag is not None:
                    self.etag = None
                    if expires == 0:
                        return
                elif response.status == 423 and least is not None and least > expires > 0:
                    expires = self._wanted = least
                else:
                    break
            if response.status >= 300:
                raise CallFailed(f"PUBLISH: {response.status} {response.reason}", response)
            self.etag = response.headers.get("sip-etag") if expires else None
            stated = response.headers.expires
            self.expires = expires if stated is None else stated

    async def _stay(self) -> None:
        wait = max(self.expires * 0.8, 1.0)
        while True:
            await asyncio.sleep(wait)
            try:
                await self._publish(self._wanted, anew=False)
            except SipError as error:
                log.warning("event=%s not published: %s; again in %.0f s", self._event, error, _RETRY)
                self.etag, wait = None, _RETRY
            else:
                wait = max(self.expires * 0.8, 1.0)
