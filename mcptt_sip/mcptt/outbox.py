# SPDX-License-Identifier: Apache-2.0
"""MESSAGEs towards one leg, one at a time where they could overtake one another (RFC 3428 8); sans-IO.

Over datagrams two requests of one dialog may arrive the other way round, and the earlier one is then refused because
of its lower CSeq (RFC 3261 12.2.2): an acknowledgement would be lost that nobody sends again. Over a connection the
order is kept, and nothing waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT
from mcptt_sip.session import InviteSession

#: acknowledgements that travel in one MESSAGE when they have to wait: so many fit a datagram
TOGETHER = 3
#: MESSAGEs that wait for one leg; beyond, the oldest is dropped, as the network might have done
MAX_WAITING = 4096


class Outbox:
    """What waits for one session. Give it as context of its requests, and tell it of their results."""

    def __init__(self, session: InviteSession, token: Callable[[], bytes]) -> None:
        self._session = session
        self._token = token
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=MAX_WAITING)
        self._under_way = False

    def send(self, content_type: str, body: bytes, now: float) -> None:
        """Sends at once, or when the one before is answered."""
        flow = self._session.flow
        if flow is not None and flow.reliable:
            self._session.send("MESSAGE", body=body, content_type=content_type, now=now)
            return
        self._waiting.append((content_type, body))
        if not self._under_way:
            self._next(now)

    def answered(self, now: float) -> None:
        """The one under way has its final answer, or will never have one."""
        self._under_way = False
        self._next(now)

    def _next(self, now: float) -> None:
        if self._session.ended:
            self._waiting.clear()
        if not self._waiting:
            return
        content_type, body = self._waiting.popleft()
        together = [body]
        while content_type == ACKNOWLEDGEMENT and len(together) < TOGETHER and self._waiting:
            if self._waiting[0][0] != ACKNOWLEDGEMENT:
                break
            together.append(self._waiting.popleft()[1])
        if len(together) > 1:
            content_type, body = build_multipart([Part(ACKNOWLEDGEMENT, octets) for octets in together], self._token)
        self._under_way = True
        self._session.send("MESSAGE", body=body, content_type=content_type, now=now, context=self)
