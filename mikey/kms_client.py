# SPDX-License-Identifier: Apache-2.0
"""The client of the KMS interface (TS 33.180 Annex D): fetch, validate, hold."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from types import TracebackType
from urllib.parse import quote

import aiohttp
from yarl import URL

from mikey.errors import KmsError, KmsUnreachable, MikeyError
from mikey.identity import ntp_encode
from mikey.keyring import Keyring
from mikey.keys import KeySet, KmsCertificate
from mikey.kms_documents import CONTENT_TYPE, MAX_OCTETS, ROOT, KmsResponse, decode_response
from mikey.kms_protection import TransportKeys
from mikey.tls import is_loopback

log = logging.getLogger(__name__)


class KmsClient:
    """Fetches and validates the certificate and key sets of one user.

    `url` is the KMS' root (https://host:port; http:// on loopback only, else `KmsError`); `token` its bearer token, or
    None with a client certificate in `ssl_context`. Nothing fetched is used before its equations hold. With
    `transport_keys` (TrK, InK) nothing but signed answers with wrapped keys is taken.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        uri: str,
        clock: Callable[[], float],
        ssl_context: ssl.SSLContext | None = None,
        timeout: float = 10.0,
        transport_keys: TransportKeys | None = None,
    ) -> None:
        if not url.startswith("https://") and not is_loopback(URL(url).host or ""):
            raise KmsError(f"a token and keys do not go over a network in clear: {url} is not https")
        self._url = url.rstrip("/")
        self._token = token
        self.uri = uri
        self._clock = clock
        self._ssl = ssl_context
        self._transport_keys = transport_keys
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        self.certificate: KmsCertificate | None = None
        self.vouched_for: tuple[KmsCertificate, ...] = ()
        """Certificates that the KMS named last; one that it names no more is dropped from the keyring."""

    async def __aenter__(self) -> KmsClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the HTTP session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(self, resource: str) -> KmsResponse:
        """POST one resource (already percent-encoded). Raises `KmsUnreachable` or `KmsError` with its
        code."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token is not None else {}
        url = URL(f"{self._url}{ROOT}/{resource}", encoded=True)
        try:
            async with self._session.post(url, headers=headers, ssl=self._ssl or True) as answer:
                body = await answer.content.read(MAX_OCTETS + 1)
                while len(body) <= MAX_OCTETS and (more := await answer.content.read(MAX_OCTETS)):
                    body += more
                status, kind = answer.status, answer.content_type
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KmsUnreachable(f"the KMS does not answer: {type(error).__name__}") from error
        if kind != CONTENT_TYPE:
            raise KmsError(f"the KMS answered {status} with {kind}", status)
        response = decode_response(body, None if status == 401 else self._transport_keys)
        if response.error is not None:
            raise KmsError(f"the KMS refused: {response.error[1]}", response.error[0] or status)
        if status != 200:
            raise KmsError(f"the KMS answered {status}", status)
        return response

    async def init(self) -> KmsCertificate:
        """The certificate of one's KMS, with valid points."""
        response = await self.request("init")
        certificate = response.certificate
        if certificate is None:
            raise KmsError("no certificate in the answer to init")
        certificate.validate()
        self.certificate = certificate
        return certificate

    async def certcache(self) -> tuple[KmsCertificate, ...]:
        """All certificates that the KMS vouches for: its own generations and its partners'."""
        response = await self.request("certcache")
        for certificate in response.cache or ():
            certificate.validate()
        return response.cache or ()

    async def keyprov(
        self, at: float | None = None, *, among: tuple[KmsCertificate, ...] = ()
    ) -> list[KeySet]:
        """The key sets for the present period, or that of the Unix time `at`, validated.

        `among`: certificates to validate against; default the one of `init`.
        """
        if self.certificate is None:
            await self.init()
        assert self.certificate is not None
        resource = "keyprov"
        if at is not None:
            resource = f"keyprov/{quote(self.uri, safe='')}/{ntp_encode(at).hex().upper()}"
        response = await self.request(resource)
        out: list[KeySet] = []
        for document in response.key_sets or ():
            if document.uri != self.uri:
                raise KmsError(f"the KMS sent a key set of {document.uri}")
            assert not isinstance(document, KeySet)
            out.append(await asyncio.to_thread(self._validated, document, among or (self.certificate,)))
        return out

    @staticmethod
    def _validated(document: object, certificates: tuple[KmsCertificate, ...]) -> KeySet:
        from mikey.kms_documents import KeySetDocument

        assert isinstance(document, KeySetDocument)
        failure: MikeyError = KmsError("no certificate for the key set")
        for certificate in certificates:
            try:
                key_set = document.bind(certificate)
                key_set.validate()
            except MikeyError as error:
                failure = error
                continue
            return key_set
        raise failure

    async def fetch(self, keyring: Keyring | None = None, *, ahead: bool = True) -> Keyring:
        """init, certcache, keyprov for the present period and (with `ahead`) the next, into a keyring.

        What the keyring holds already under the same master keys is not asked for again. A next period that the KMS
        does not issue yet is no error. Raises `KmsError`, `KmsUnreachable`, `InvalidKey`; the keyring is only changed
        when everything was valid.
        """
        keyring = Keyring() if keyring is None else keyring
        home = await self.init()
        certificates = await self.certcache()
        own = tuple(c for c in certificates if c.kms_uri == home.kms_uri) or (home,)
        now = self._clock()
        key_sets: list[KeySet] = []
        if not self._held(keyring, own, now):
            key_sets += await self.keyprov(among=own)
        after = float(home.periods.end(home.periods.number(now)))
        if ahead and not self._held(keyring, own, after):
            try:
                key_sets += await self.keyprov(after, among=own)
            except KmsUnreachable:
                raise
            except KmsError as error:
                log.warning("kms gives no next period yet: %s user=%s", error, self.uri)
        for certificate in own:
            keyring.add_certificate(certificate, home=True)
        partners = tuple(c for c in certificates if c.kms_uri != home.kms_uri)
        for certificate in partners:
            keyring.add_certificate(certificate, home=False)
        for certificate in self.vouched_for:
            if not any(certificate.same_keys(c) for c in (*own, *partners)):
                keyring.drop_certificate(certificate)
        self.vouched_for = (*own, *partners)
        for key_set in key_sets:
            keyring.add_key_set(key_set)
        return keyring

    def _held(self, keyring: Keyring, own: tuple[KmsCertificate, ...], at: float) -> bool:
        """Whether a key set for the time `at` under master keys that are in force then is there."""
        for certificate in own:
            try:
                certificate.check(at)
            except MikeyError:
                continue
            number = certificate.periods.number(at)
            for key_set in keyring.key_sets(self.uri):
                if key_set.period_no == number and key_set.certificate.same_keys(certificate):
                    return True
        return False
