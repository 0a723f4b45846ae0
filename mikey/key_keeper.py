# SPDX-License-Identifier: Apache-2.0
"""Keeps one user's keys: from disk first, then from the KMS, renewed ahead of the period's end without being asked.

A KMS that is down delays nothing: keys that are held go on being used and the KMS is asked again later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mikey.errors import KmsError, MikeyError, StoreError
from mikey.key_cache import KeyCache
from mikey.keyring import Keyring
from mikey.kms_client import KmsClient

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Renewal:
    """When the KMS is asked again. All in seconds."""

    ahead: float = 7 * 86400.0
    """Keys of the next period are wanted this long before it begins; at most half a period."""
    interval: float = 86400.0
    """Certificates (revocations, partners) are looked at again after this."""
    retry: float = 30.0
    """First pause after a failure; doubles with each."""
    retry_limit: float = 3600.0
    keep_past: float = 60 * 86400.0
    """Key sets of periods that ended longer ago are forgotten."""

    def due(self, keyring: Keyring, uri: str, now: float, asked_at: float | None) -> float:
        """Unix time at which to ask, when the last answer came at `asked_at`.

        >>> Renewal().due(Keyring(), "sip:a@example.org", 5.0, None)
        5.0
        """
        try:
            present = keyring.key_set_for(uri, now)
        except MikeyError:
            return now
        ends = float(present.valid_to)
        try:
            keyring.key_set_for(uri, ends)
        except MikeyError:
            at = ends - min(self.ahead, (ends - present.valid_from) / 2)
        else:
            at = ends
        return max(now, min(at, (asked_at + self.interval) if asked_at is not None else now))

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row.

        >>> [Renewal().pause(n) for n in (1, 2, 3, 20)]
        [30.0, 60.0, 120.0, 3600.0]
        """
        return min(self.retry_limit, self.retry * 2.0 ** min(failures - 1, 30))


class KeyKeeper:
    """Fills `keyring` for the user of `client` and keeps it filled.

    `start` returns once keys of the present period are held; `run` renews until it is cancelled.
    """

    def __init__(
        self,
        client: KmsClient,
        keyring: Keyring,
        *,
        clock: Callable[[], float],
        cache: KeyCache | None = None,
        renewal: Renewal = Renewal(),
        wait: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self.keyring = keyring
        self._clock = clock
        self._cache = cache
        self._renewal = renewal
        self._wait = wait
        self._asked_at: float | None = None
        self._failures = 0
        self.failure: KmsError | None = None
        """Why the KMS was of no use last time; None after success."""

    async def start(self) -> None:
        """Keys from disk, else from the KMS; where the disk has those of the present period, `run` asks the KMS.

        Raises `KmsError` or `KmsUnreachable` when there are none.
        """
        if self._cache is not None:
            try:
                self._client.vouched_for = await asyncio.to_thread(self._cache.fill, self._client.uri, self.keyring)
            except StoreError as error:
                log.error("key cache is not used: %s user=%s", error, self._client.uri)
        if self.holds_present():
            return
        await self.renew()
        if not self.holds_present():
            raise self.failure or KmsError("the KMS gave no keys for the present period")

    def holds_present(self) -> bool:
        """Whether keys for this moment are held."""
        try:
            self.keyring.key_set_for(self._client.uri, self._clock())
        except MikeyError:
            return False
        return True

    async def renew(self) -> bool:
        """Ask the KMS once. Whether it answered; what failed is logged and kept in `failure`."""
        now = self._clock()
        try:
            await self._client.fetch(self.keyring)
        except MikeyError as error:
            self._failures += 1
            self.failure = error if isinstance(error, KmsError) else KmsError(str(error))
            log.warning("kms: %s user=%s failures=%d", error, self._client.uri, self._failures)
            return False
        self._failures, self.failure, self._asked_at = 0, None, now
        self.keyring.drop_key_sets(now - self._renewal.keep_past)
        await self._save()
        return True

    async def _save(self) -> None:
        if self._cache is None:
            return
        uri = self._client.uri
        try:
            # of a keyring that others fill too, only what this KMS gave
            await asyncio.to_thread(self._cache.save, uri, self._client.vouched_for, self.keyring.key_sets(uri))
        except StoreError as error:
            log.error("key cache is not written: %s user=%s", error, uri)

    def next_attempt(self) -> float:
        """Seconds from now until the KMS is asked again."""
        if self._failures:
            return self._renewal.pause(self._failures)
        now = self._clock()
        return self._renewal.due(self.keyring, self._client.uri, now, self._asked_at) - now

    async def run(self) -> None:
        """Renew for ever; cancel to stop."""
        while True:
            await self._wait(max(self.next_attempt(), 1.0))
            await self.renew()
