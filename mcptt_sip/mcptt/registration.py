# SPDX-License-Identifier: Apache-2.0
"""A client's registration, and the client-server key (CSK) that it uploads, sealed to the server."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import RegistrationFailed, SipError
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import CLIENT_HEADERS, warning_of
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.keying import MIKEY
from mikey import seal

if TYPE_CHECKING:
    from mcptt_sip.mcptt.client import McpttClient

log = logging.getLogger(__name__)

#: the share of its life after which a registration is renewed
RENEW_AT = 0.8
#: seconds after which a registration that failed is tried again, and to which that time is doubled (RFC 5626 4.5)
RETRY_AFTER, RETRY_AT_MOST = 4.0, 64.0


class Registration:
    """REGISTERs, renews, and unregisters at the end."""

    def __init__(self, client: McpttClient) -> None:
        self._client = client
        self._renewal: asyncio.Task[None] | None = None
        self._registered = False

    async def begin(self) -> None:
        """Raises :class:`RegistrationFailed`."""
        await self._register(self._client.settings.expires)
        self._renewal = asyncio.ensure_future(self._keep())

    def flow_lost(self) -> None:
        """A connection to the server is gone, and with it, perhaps, the way to this client: it registers anew."""
        if self._renewal is not None and not self._renewal.cancelled():
            self._renewal.cancel()
            self._renewal = asyncio.ensure_future(self._keep(0.0))

    def stop(self) -> None:
        """No more renewals."""
        if self._renewal is not None:
            self._renewal.cancel()

    async def end(self) -> None:
        """Unregisters who is registered; that the server does not answer is no error any more."""
        if not self._registered:
            return
        try:
            await self._register(0)
        except SipError as error:
            log.info("user=%s not unregistered: %s", self._client.uri, error)

    async def _register(self, expires: int) -> None:
        """REGISTER with the CSK sealed to the server (rule 18)."""
        client = self._client
        body, content_type = b"", None
        if expires:
            sealed = seal(
                client.csk, sender=client.uri, recipient=client.settings.server, keyring=client.keyring,
                now=client.now(), random=client.random,
            )
            info = McpttInfo(client_id=client.client_id)
            content_type, body = build_multipart(
                [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, sealed.octets)], client.token
            )
        request = client.stack.compose(
            "REGISTER",
            f"sip:{client.domain}",
            from_=f"<{client.uri}>",
            to=f"<{client.uri}>",
            headers=[*CLIENT_HEADERS, ("Expires", str(expires))],
            body=body,
            content_type=content_type,
        )
        response = await client.request(request)
        if response is None or response.status >= 300:
            outcome = "no answer" if response is None else f"{response.status} {warning_of(response) or ''}".rstrip()
            raise RegistrationFailed(f"REGISTER of {client.uri} failed: {outcome}", response)
        self._registered = expires > 0
        client.emit("registered" if expires else "unregistered", user=client.uri)

    async def _keep(self, wait: float | None = None) -> None:
        expires = self._client.settings.expires
        wait, retry = expires * RENEW_AT if wait is None else wait, RETRY_AFTER
        while True:
            await self._client.sleep(wait)
            try:
                await self._register(expires)
            except SipError as error:
                log.warning("user=%s registration not renewed: %s", self._client.uri, error)
                self._client.emit("registration-lost", reason=str(error))
                wait, retry = min(retry, expires * RENEW_AT), min(2 * retry, RETRY_AT_MOST)
            else:
                wait, retry = expires * RENEW_AT, RETRY_AFTER
