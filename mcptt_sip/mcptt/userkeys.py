# SPDX-License-Identifier: Apache-2.0
"""A program's keys: from its store or the KMS when it starts, renewed ahead of each period's end while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mikey import Keyring, MemoryReplayCache, ReplayCache, SqliteReplayCache
from mikey.at_rest import Unlock
from mikey.errors import StoreError
from mikey.key_cache import KeyCache
from mikey.key_keeper import KeyKeeper
from mikey.kms_client import KmsClient
from mikey.kms_store import holds_master_secrets
from mikey.tables import keep_tables

log = logging.getLogger(__name__)

#: seconds; how far a sender's clock may be off (RFC 3830 5.4)
REPLAY_SKEW = 300.0


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a program gets its user's keys, and what it keeps on disk."""

    url: str
    token: str = field(repr=False)
    uri: str
    #: PEM of what signed the KMS's certificate; without it the system's (or ``SSL_CERT_FILE``)
    authority: Path | None = None
    #: folder of what must survive a restart
    store: Path | None = None
    #: seals the keys in the store; without it they are fetched anew at each start
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext | None:
        """``None`` for plain HTTP, which the client takes on loopback only."""
        if not self.url.startswith("https:"):
            return None
        return ssl.create_default_context(cafile=None if self.authority is None else str(self.authority))

    def folder(self) -> Path | None:
        """The store, made and looked at. Raises :class:`StoreError` when a KMS's secrets lie in it (rule 27)."""
        if self.store is None:
            return None
        self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self.store.iterdir()):
            if path.is_file() and holds_master_secrets(path):
                raise StoreError(f"{path} holds the master secrets of a KMS: this program must not come near them")
        return self.store

    def replay(self, started: float) -> ReplayCache:
        """Accepted I_MESSAGEs, on disk with a store."""
        folder = self.folder()
        if folder is not None:
            path = folder / "replay.sqlite"
            return SqliteReplayCache(path, now=started, skew=REPLAY_SKEW, first_use=not path.exists())
        # Its state ends with the process: what was made before the start may have been accepted before.
        return MemoryReplayCache(skew=REPLAY_SKEW, lost_at=started - REPLAY_SKEW)


@asynccontextmanager
async def held_keys(source: KeySource) -> AsyncIterator[Keyring]:
    """The user's keyring for the length of the block. A KMS that is down delays nothing once keys are held.

    Raises :class:`~mikey.errors.KmsError` when there are none for the present period, :class:`StoreError`.
    """
    folder = source.folder()
    cache = None
    if folder is not None:
        keep_tables(folder / "tables")  # of public points: the next start is quicker
    if folder is not None and source.key_file is not None:
        cache = KeyCache(folder / "keys.sealed", Unlock.key_file(source.key_file, create=True))
    client = KmsClient(source.url, token=source.token, uri=source.uri, clock=time.time, ssl_context=source.context())
    keeper = KeyKeeper(client, Keyring(), clock=time.time, cache=cache)
    try:
        await keeper.start()
        renewing = asyncio.ensure_future(keeper.run())
        try:
            yield keeper.keyring
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing
    finally:
        await client.close()
