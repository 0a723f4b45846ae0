# SPDX-License-Identifier: Apache-2.0
"""The KMS interface of TS 33.180 Annex D over HTTP(S): the server, on aiohttp."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from urllib.parse import unquote

from aiohttp import web

from mikey import sakke
from mikey.errors import KmsError, MikeyError, StoreError
from mikey.identity import domain_of, ntp_decode
from mikey.keys import KeySet, KmsCertificate
from mikey.kms import Kms
from mikey.kms_documents import CONTENT_TYPE, ROOT, KmsResponse, decode_request, encode_response
from mikey.kms_protection import TransportKeys
from mikey.kms_store import Issued, KmsStore, Note, generation_name, token_digest

log = logging.getLogger(__name__)

Record = Callable[[str, KeySet], Awaitable[None]]
"""Called before an issued key set is sent: (user, key set); returns when it is durable."""


class Directory(Protocol):
    """Who may ask for whose keys."""

    def of_token(self, token: str) -> str | None:
        """The user of a bearer token."""

    def of_certificate(self, peer: Mapping[str, object]) -> str | None:
        """The user of a verified TLS client certificate (`ssl.getpeercert()` form)."""


def _named_by(peer: Mapping[str, object], known: Callable[[str], bool]) -> str | None:
    names = peer.get("subjectAltName", ())
    if isinstance(names, tuple):
        for kind, value in names:
            if kind == "URI" and known(value):
                return str(value)
    return None


class Users:
    """Who may ask for whose keys: bearer tokens, kept as SHA-256, and the identities of each user.

    Certificates of mutual TLS name their user in a URI of subjectAltName.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens`: bearer token -> user URI."""
        self._by_digest = {token_digest(t): uri for t, uri in tokens.items()}
        self._uris = frozenset(tokens.values())

    def of_token(self, token: str) -> str | None:
        """The user of a bearer token. Looked up by digest, so that timing tells nothing of the token."""
        return self._by_digest.get(token_digest(token))

    def of_certificate(self, peer: Mapping[str, object]) -> str | None:
        """The user of a verified TLS client certificate (`ssl.getpeercert()` form)."""
        return _named_by(peer, self._uris.__contains__)


class StoredUsers:
    """The users of a `KmsStore`, revoked ones included: they are known, and refused by name."""

    def __init__(self, store: KmsStore) -> None:
        self._store = store

    def of_token(self, token: str) -> str | None:
        """The user of a bearer token."""
        return self._store.tokens.get(token_digest(token))

    def of_certificate(self, peer: Mapping[str, object]) -> str | None:
        """The user of a verified TLS client certificate."""
        return _named_by(peer, self._store.users.__contains__)


class Journal:
    """Makes what happened durable before an answer leaves; what waits meanwhile shares the next commit."""

    def __init__(self, store: KmsStore) -> None:
        self._store = store
        self._waiting: list[tuple[Issued | Note, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kms-journal")

    async def record(self, happened: Issued | Note) -> None:
        """Return when it is on disk. Raises `StoreError`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((happened, future))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._write())
        await future

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, self._store.record, [one for one, _ in batch])
            except Exception as error:  # whatever it is, it is for those who wait
                log.error("kms journal: %s", error)
                for _, future in batch:
                    if not future.done():
                        future.set_exception(StoreError(f"not written: {error}"))
            else:
                for _, future in batch:
                    if not future.done():
                        future.set_result(None)

    async def close(self) -> None:
        """Write what waits, then end."""
        if self._writer is not None:
            await self._writer
        self._thread.shutdown()


class KmsServer:
    """Serves `init`, `keyprov`, `certcache`, `cert` and `lookup` under /keymanagement/identity/v1/.

    `kms` is a `KmsStore`, whose users, partners, rotations and revocations are followed while serving and in which
    every key set is recorded before it is sent; or a `Kms` in memory with `users`. A user gets his own keys only,
    for periods from `past_periods` before the present one to `ahead_periods` after it. `record` is called before an
    issued key set is sent. `transport_keys`: users whose answers are wrapped and signed (TrK, InK). Bodies are
    limited to `max_body` octets.
    """

    def __init__(
        self,
        kms: Kms | KmsStore,
        users: Directory | Mapping[str, str] | None = None,
        *,
        clock: Callable[[], float],
        partners: Sequence[KmsCertificate] = (),
        ssl_context: ssl.SSLContext | None = None,
        record: Record | None = None,
        transport_keys: Mapping[str, TransportKeys] | None = None,
        past_periods: int = 2,
        ahead_periods: int = 2,
        max_body: int = 65536,
    ) -> None:
        self.store = kms if isinstance(kms, KmsStore) else None
        self._kms = None if isinstance(kms, KmsStore) else kms
        if users is None:
            users = StoredUsers(self.store) if self.store is not None else {}
        self.users: Directory = Users(users) if isinstance(users, Mapping) else users
        self._partners = tuple(partners)
        self._clock = clock
        self._ssl = ssl_context
        self._record = record
        self._transport_keys = dict(transport_keys or {})
        self._past, self._ahead = past_periods, ahead_periods
        self._max_body = max_body
        self._runner: web.AppRunner | None = None
        self._journal = Journal(self.store) if self.store is not None else None

    @property
    def kms(self) -> Kms:
        """The KMS that issues."""
        if self.store is not None:
            return self.store.kms
        assert self._kms is not None
        return self._kms

    @property
    def partners(self) -> tuple[KmsCertificate, ...]:
        """Certificates of partner KMSs that this one vouches for."""
        return self._partners + (self.store.partners if self.store is not None else ())

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
        """Stop listening, end open connections, write what is to be written."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._journal is not None:
            await self._journal.close()

    def _user(self, request: web.Request) -> str | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            return self.users.of_token(token.strip())
        peer = request.get_extra_info("peercert")
        return self.users.of_certificate(peer) if peer else None

    async def _serve(self, request: web.Request) -> web.Response:
        now = self._clock()
        url = str(request.url)
        user: str | None = None
        try:
            if self.store is not None:
                self.store.refresh()
            user = self._user(request)
            if user is None:
                log.warning("kms refused: no valid token remote=%s", request.remote)
                return self._answer(KmsResponse("unknown", self._uri, now, url, error=(401, "unauthorised")))
            if request.method != "POST":
                return self._answer(KmsResponse(user, self._uri, now, url, error=(405, "only POST")))
            if self.store is not None and user in self.store.revoked:
                raise KmsError("this user is revoked", 403)
            body = await request.read()
            if body.strip():
                asked = decode_request(body)
                if asked.user_uri != user:
                    raise KmsError("the request is for another user", 403)
            response = await self._resource(request, user, url, now)
        except StoreError as error:
            log.error("kms store: %s", error)
            response = KmsResponse(user or "unknown", self._uri, now, url, error=(503, "try again later"))
        except KmsError as error:
            log.warning("kms refused: %s user=%s", error, user)
            response = KmsResponse(user or "unknown", self._uri, now, url, error=(error.code or 400, str(error)))
            if self._journal is not None and response.error is not None and response.error[0] == 403:
                await self._note(Note("refused", user or "", str(error), now))
        except MikeyError as error:
            log.warning("kms failed: %s user=%s", error, user)
            message = "the request cannot be served"
            response = KmsResponse(user or "unknown", self._uri, now, url, error=(400, message))
        return self._answer(response)

    async def _note(self, note: Note) -> None:
        assert self._journal is not None
        try:
            await self._journal.record(note)
        except StoreError as error:
            log.error("kms store: %s", error)

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
            await self._make_durable(user, key_set, now)
            log.info("kms issued user=%s period=%d", user, key_set.period_no)
            return KmsResponse(user, self._uri, now, url, key_sets=(key_set,))
        if name in ("certcache", "cert") and len(arguments) <= 1:
            known = (*self.kms.certificates, *self.partners)
            number = len(known) if self.store is None else self.store.revision
            return KmsResponse(user, self._uri, now, url, cache=known, cache_no=number)
        if name == "lookup" and len(arguments) == 1:
            return self._looked_up(user, arguments[0], url, now)
        raise KmsError("no such resource", 404)

    async def _make_durable(self, user: str, key_set: KeySet, now: float) -> None:
        if self._journal is not None:
            generation = generation_name(key_set.certificate)
            await self._journal.record(Issued(user, key_set.period_no, generation, key_set.pvt, now))
        if self._record is not None:
            await self._record(user, key_set)

    def _looked_up(self, user: str, uri: str, url: str, now: float) -> KmsResponse:
        """The certificates of the KMS that answers for a user's domain; the standard's form is a KmsCertCache."""
        if self.kms.answers_for(uri):
            found = self.kms.certificates
        else:
            found = tuple(c for c in self.partners if domain_of(uri) in (d.lower() for d in c.domains))
        if not found:
            raise KmsError("no KMS is known for that domain", 404)
        return KmsResponse(user, self._uri, now, url, cache=found, cache_no=len(found))

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

    def _answer(self, response: KmsResponse) -> web.Response:
        status = 200 if response.error is None else response.error[0]
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        protection = self._transport_keys.get(response.user_uri)
        return web.Response(
            body=encode_response(response, protection), status=status, content_type=CONTENT_TYPE, headers=headers
        )


async def serve_until(server: KmsServer, stopped: asyncio.Event) -> None:
    """Keep a started server up until the event is set."""
    try:
        await stopped.wait()
    finally:
        await server.stop()
