# SPDX-License-Identifier: Apache-2.0
"""A subscription of an application (RFC 6665): an asynchronous iterator of its notifications."""

from __future__ import annotations

import asyncio

from mcptt_sip.call import Host, Waiter
from mcptt_sip.message import Request, Response
from mcptt_sip.subscription import Subscription

__all__ = ["Watch"]


class Watch:
    """``async for request in watch`` gives each NOTIFY, until the subscription is over. It is refreshed by itself."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.subscription: Subscription
        self._notified: asyncio.Queue[Request | None] = asyncio.Queue()
        self.waiter = Waiter()
        self.waiter.notified = self._notified.put_nowait
        self.waiter.ended = lambda: self._notified.put_nowait(None)

    async def accepted(self) -> Response:
        """The final response to the SUBSCRIBE."""
        return await asyncio.shield(self.waiter.done)

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Request:
        request = await self._notified.get()
        if request is None:
            raise StopAsyncIteration
        return request

    async def close(self) -> None:
        """Ends the subscription; a last NOTIFY may still come."""
        self.subscription.unsubscribe(self._host.now())
        self._host.transmit()
