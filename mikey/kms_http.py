# SPDX-License-Identifier: Apache-2.0
"""The KMS interface of TS 33.180 Annex D over HTTP(S): the server, on aiohttp."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import unquote

from aiohttp import web

from mikey import sakke
from mikey.errors import KmsError, MikeyError
from mikey.identity import ntp_decode
from mikey.keys import KeySet, KmsCertificate
from mikey.kms import Kms
from mikey.kms_documents import CONTENT_TYPE, ROOT, KmsResponse, decode_request, encode_response

log = logging.getLogger(__name__)

Record = Callable[[str, KeySet], Awaitable[None]]
"""Called before an issued key set is sent: (user, key set); returns when it is durable."""


class Users:
    """Who may ask for whose keys: bearer tokens, kept as SHA-256, and the identities of each user.

    Certificates of mutual TLS name their user in a URI of subjectAltName.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens`: bearer token -> user URI."""
        self._by_digest = {hashlib.sha256(t.encode()).digest(): uri for t, uri in tokens.items()}
        self._uris = frozenset(tokens.values())

    def of_token(self, token: str) -> str | None:
        """The user of a bearer token. Looked up by digest, so that timing tells nothing of the token."""
        return self._by_digest.get(hashlib.sha256(token.encode()).digest())

    def of_certificate(self, peer: Mapping[str, object]) -> str | None:
        """The user of a verified TLS client certificate (`ssl.getpeercert()` form)."""
        names = peer.get("subjectAltName", ())
        if isinstance(names, tuple):
            for kind, value in names:
                if kind == "URI" and value in self._uris:
                    return str(value)
        return None


class KmsServer:
    """Serves `init`, `keyprov`, `certcache` and `cert` under /keymanagement/identity/v1/.

    A user gets his own keys only, for periods from `past_periods` before the present one to `ahead_periods`
    after it. `record` makes an issued key set durable before it is sent. Bodies are limited to `max_body`
    octets.
    """

    def __init__(
        self,
        kms: Kms,
        users: Users | Mapping[str, str],
        *,
        clock: Callable[[], float],
        partners: Sequence[KmsCertificate] = (),
        ssl_context: ssl.SSLContext | None = None,
        record: Record | None = None,
        past_periods: int = 2,
        ahead_periods: int = 2,
        max_body: int = 65536,
    ) -> None:
        self.kms = kms
        self.users = users if isinstance(users, Users) else Users(users)
        self.partners = tuple(partners)
        self._clock = clock
        self._ssl = ssl_context
        self._record = record
        self._past, self._ahead = past_periods, ahead_periods
        self._max_body = max_body
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen; returns the bound host and port."""
        sakke.base_table.build()
        app = web.Application(client_max_size=self._max_body)
        app.router.add_route("*", ROOT + "/{resource:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=75)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=self._ssl, backlog=1024)
        await site.start()
        bound = self._runner.addresses[0]
        return str(bound[0]), int(bound[1])

    async def stop(self) -> None:
        """Stop listening and end open connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _user(self, request: web.Request) -> str | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            return self.users.of_token(token.strip())
        peer = request.get_extra_info("peercert")
        return self.users.of_certificate(peer) if peer else None

    async def _serve(self, request: web.Request) -> web.Response:
        now = self._clock()
        user = self._user(request)
        url = str(request.url)
        if user is None:
            log.warning("kms refused: no valid token remote=%s", request.remote)
            return self._answer(KmsResponse("unknown", self._uri, now, url, error=(401, "unauthorised")))
        if request.method != "POST":
            return self._answer(KmsResponse(user, self._uri, now, url, error=(405, "only POST")))
        try:
            body = await request.read()
            if body.strip():
                asked = decode_request(body)
                if asked.user_uri != user:
                    raise KmsError("the request is for another user", 403)
            response = await self._resource(request, user, url, now)
        except KmsError as error:
            log.warning("kms refused: %s user=%s", error, user)
            response = KmsResponse(user, self._uri, now, url, error=(error.code or 400, str(error)))
        except MikeyError as error:
            log.warning("kms failed: %s user=%s", error, user)
            response = KmsResponse(user, self._uri, now, url, error=(400, "the request cannot be served"))
        return self._answer(response)

    @property
    def _uri(self) -> str:
        return self.kms.certificate.kms_uri

    async def _resource(self, request: web.Request, user: str, url: str, now: float) -> KmsResponse:
        # the raw path: a user URI is one percent-encoded segment, which may hold %2F
        raw = request.raw_path.partition("?")[0].removeprefix(ROOT).strip("/").split("/")
        name, arguments = raw[0], [unquote(a) for a in raw[1:]]
        if name == "init" and not arguments:
            return KmsResponse(user, self._uri, now, url, certificate=self.kms.certificate_at(now))
        if name == "keyprov" and len(arguments) <= 2:
            if arguments and arguments[0] != user:
                raise KmsError("these are the keys of another user", 403)
            at = self._requested_time(arguments[1], now) if len(arguments) == 2 else now
            key_set = self.kms.issue(user, at)
            if self._record is not None:
                await self._record(user, key_set)
            log.info("kms issued user=%s period=%d", user, key_set.period_no)
            return KmsResponse(user, self._uri, now, url, key_sets=(key_set,))
        if name in ("certcache", "cert") and len(arguments) <= 1:
            known = (*self.kms.certificates, *self.partners)
            return KmsResponse(user, self._uri, now, url, cache=known, cache_no=len(known))
        raise KmsError("no such resource", 404)

    def _requested_time(self, text: str, now: float) -> float:
        try:
            at = ntp_decode(bytes.fromhex(text))
        except (ValueError, MikeyError):
            raise KmsError("the time is not 16 hex digits of NTP-UTC", 400) from None
        periods = self.kms.certificate.periods
        distance = periods.number(at) - periods.number(now)
        if not -self._past <= distance <= self._ahead:
            raise KmsError("no keys are issued for that period", 403)
        return at

    @staticmethod
    def _answer(response: KmsResponse) -> web.Response:
        status = 200 if response.error is None else response.error[0]
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return web.Response(
            body=encode_response(response), status=status, content_type=CONTENT_TYPE, headers=headers
        )


async def serve_until(server: KmsServer, stopped: asyncio.Event) -> None:
    """Keep a started server up until the event is set."""
    try:
        await stopped.wait()
    finally:
        await server.stop()
