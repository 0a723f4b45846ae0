# SPDX-License-Identifier: Apache-2.0
"""Staying registered (RFC 3261 10.2; RFC 5626, RFC 5627, RFC 3608 as a client).

:RFC 3608: yes; Service-Route
:RFC 5626: partly; one flow a registration; keep-alive by CRLF and STUN
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from mcptt_sip.errors import RegistrationFailed, SipError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.flow import Flow
from mcptt_sip.headers import NameAddr
from mcptt_sip.message import Response
from mcptt_sip.uri import SipUri

__all__ = ["Registration", "RegistrationHost"]

log = logging.getLogger(__name__)

#: seconds before another attempt, doubled up to the second one (RFC 5626 4.5)
_RETRY, _RETRY_MAX = 30.0, 1800.0


def retry_delay(error: SipError, failures: int) -> float:
    """Seconds until the next attempt after so many failures: what the registrar asked for (RFC 3261 20.33) but one at
    least and half an hour at most, else twice as long each time (RFC 5626 4.5)."""
    response = error.response if isinstance(error, RegistrationFailed) else None
    asked = None if response is None else response.headers.retry_after
    wait = max(1.0, asked) if asked is not None else _RETRY * 2.0 ** min(failures - 1, 16)
    return min(wait, _RETRY_MAX)


class RegistrationHost(Protocol):
    """The user agent, as its registrations see it."""

    async def flow_to(self, uri: str) -> Flow:
        """A flow to the registrar."""
        ...

    def contact(self, flow: Flow) -> str:
        """The Contact that leads here over `flow`."""
        ...

    def keep(self, flow: Flow, *, stun: bool) -> None:
        """Keeps `flow` alive: by STUN where the peer has agreed to that."""
        ...

    async def register_once(
        self, registrar: str, aor: str, headers: HeaderItems, flow: Flow, call_id: str | None, cseq: int
    ) -> tuple[Response | SipError, str, int]:
        """One REGISTER: its final response, or why there was none; its Call-ID and the last CSeq used."""
        ...


class Registration:
    """One binding that is refreshed until `close`.

    `pub_gruu` is the public GRUU that the registrar gave (RFC 5627), `service_route` its Service-Route (RFC 3608),
    `expires` the interval in force, in seconds. `on_change(registered, response)` is told each time it comes or goes.
    `failure` is why the last attempt failed.
    """

    def __init__(
        self,
        host: RegistrationHost,
        registrar: str,
        aor: str,
        *,
        expires: int,
        q: float | None = None,
        instance: str | None = None,
        reg_id: int | None = None,
        headers: HeaderItems = (),
    ) -> None:
        self.registrar, self.aor = registrar, aor
        self.expires = expires
        self.registered = False
        self.failure: SipError | None = None
        self._bound = False  # as far as we know; whether what the registrar said could be read or not
        self.contact: str | None = None
        self.pub_gruu: str | None = None
        self.service_route: tuple[str, ...] = ()
        self.on_change: Callable[[bool, Response | None], None] = lambda _registered, _response: None
        self._host = host
        self._wanted = expires
        self._q, self._instance, self._reg_id = q, instance, reg_id
        self._headers = tuple(headers)
        self._call_id: str | None = None
        self._cseq = 0
        self._flow: Flow | None = None
        self._again = asyncio.Event()
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, keep_trying: bool = False) -> None:
        """The first REGISTER. Raises `RegistrationFailed`, `RequestTimeout` or `Unreachable`; with `keep_trying`
        `failure` tells, and it is tried again as after a later failure."""
        try:
            await self._register(self._wanted)
        except SipError as error:
            self._failed(error)
            if not keep_trying:
                raise
        self._task = asyncio.ensure_future(self._stay())

    async def close(self) -> None:
        """Removes the binding, as far as the registrar can be reached."""
        if self._task is not None:
            async with self._busy:  # a refresh under way is waited for: the removal is to come after it
                self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        if self._bound:
            try:
                await self._register(0)
            except SipError as error:
                log.info("aor=%s not removed: %s", self.aor, error)
                self._failed(error)

    def flow_lost(self, flow: Flow) -> None:
        """The flow is gone: a new one is opened and registered (RFC 5626 4.4)."""
        if flow == self._flow:
            self._flow = None
            self._again.set()

    async def _register(self, expires: int) -> None:
        async with self._busy:
            await self._register_now(expires)

    async def _register_now(self, expires: int) -> None:
        flow = self._flow if self._flow is not None else await self._host.flow_to(self.registrar)
        contact = NameAddr.parse(self._host.contact(flow))
        if self._q is not None:
            contact = contact.with_param("q", f"{self._q:.3f}".rstrip("0").rstrip("."))
        if self._instance is not None:
            contact = contact.with_param("+sip.instance", f'"<{self._instance}>"')
            if self._reg_id is not None:
                contact = contact.with_param("reg-id", str(self._reg_id))
        for _ in range(2):
            lines = [("Contact", contact), ("Expires", expires), *self._headers]
            outcome, self._call_id, self._cseq = await self._host.register_once(
                self.registrar, self.aor, lines, flow, self._call_id, self._cseq
            )
            if isinstance(outcome, SipError):
                raise outcome
            response = outcome
            least = response.headers.min_expires
            if response.status == 423 and least is not None and least > expires > 0:
                expires = least  # 10.2.8
                continue
            break
        if response.status >= 300:
            raise RegistrationFailed(f"{response.status} {response.reason}", response)
        self.failure = None
        self._bound = expires > 0
        self._flow = flow
        self.contact = str(contact.uri)
        self._read(response, expires)
        if expires > 0 and self.expires <= 0:
            raise RegistrationFailed("the registrar keeps the binding for no time at all", response)
        self._host.keep(flow, stun=response.headers.requires("outbound"))
        self._told(expires > 0, response)

    def _read(self, response: Response, asked: int) -> None:
        headers = response.headers
        self.expires = headers.expires if headers.expires is not None else asked
        for binding in headers.contact:
            uri = binding.uri
            mine = self._instance is not None and binding.params.get("+sip.instance") == f"<{self._instance}>"
            if not mine and not (isinstance(uri, SipUri) and uri.equivalent(SipUri.parse(self.contact or ""))):
                continue
            stated = binding.params.get("expires")
            if stated is not None and stated.isdecimal():
                self.expires = int(stated)
            self.pub_gruu = binding.params.get("pub-gruu") or self.pub_gruu
        self.service_route = tuple(headers.values("service-route"))

    def _failed(self, error: SipError) -> None:
        self.failure = error
        self._told(False, error.response if isinstance(error, RegistrationFailed) else None)

    def _told(self, registered: bool, response: Response | None) -> None:
        if registered != self.registered or response is None or response.status >= 300:
            self.registered = registered
            log.info("aor=%s registered=%s", self.aor, registered)
            self.on_change(registered, response)

    async def _stay(self) -> None:
        failures = 0
        while True:
            if self.failure is None:
                wait, failures = self._refresh_after(), 0
            else:
                self._flow = None
                failures += 1
                wait = retry_delay(self.failure, failures)
                log.warning("aor=%s not registered: %s; again in %.0f s", self.aor, self.failure, wait)
            self._again.clear()
            await _first(self._again.wait, wait)
            try:
                await self._register(self._wanted)
            except SipError as error:
                self._failed(error)

    def _refresh_after(self) -> float:
        """Well before the end, and early enough for a request that is repeated until timer F."""
        return max(self.expires * 0.5, self.expires - 40.0, 1.0) if self.expires < 400 else self.expires * 0.9


async def _first(wait: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Until the event, or so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await wait()
    except TimeoutError:
        pass
