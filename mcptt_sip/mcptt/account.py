# SPDX-License-Identifier: Apache-2.0
"""A registered MCPTT client in one line: :func:`login`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcptt_sip.mcptt.client import ClientSettings, McpttClient
from mcptt_sip.mcptt.userkeys import KeySource, held_keys
from mcptt_sip.uri import SipUri


@asynccontextmanager
async def login(
    uri: str,
    *,
    password: str,
    proxy: str,
    kms: str,
    kms_token: str,
    server: str | None = None,
    username: str | None = None,
    kms_authority: Path | None = None,
    store: Path | None = None,
    key_file: Path | None = None,
    settings: dict[str, Any] | None = None,
    **parts: Any,
) -> AsyncIterator[McpttClient]:
    """A registered client with its keys, for the length of the block; it ends its calls and unregisters at the end.

    ::

        async with login("sip:alice@mcx.example", password=…, proxy="sip:127.0.0.1:5060;transport=tcp",
                         kms="https://127.0.0.1:8443", kms_token=…, kms_authority=Path("kms.sqlite.tls.pem")) as alice:
            regroup = await alice.regroup(["sip:bob@mcx.example"])
            await regroup.add("sip:carol@mcx.example")       # returns when she is keyed, or raises AddFailed
            async with regroup.floor(priority=5):            # FloorDenied, FloorQueued carry cause and position
                await regroup.say("status.wav")
            await regroup.remove("sip:bob@mcx.example")      # BYE, then a new TGMK for those who stay

    :param proxy: where requests are sent, ``sip:HOST:PORT;transport=…``
    :param server: the server's public service identity; ``sip:mcptt@`` the user's domain by default
    :param kms_authority: PEM that the KMS's certificate is checked with; without it the system's authorities
    :param store: folder of what must survive a crash; with ``key_file`` the user's keys are kept there, sealed
    :param settings: further fields of :class:`~mcptt_sip.mcptt.client.ClientSettings`
    :param parts: further parts of :class:`~mcptt_sip.mcptt.client.McpttClient` (``on_event``, ``trace``, …)

    Raises :class:`~mikey.errors.KmsError` without keys, :class:`~mcptt_sip.errors.RegistrationFailed` when refused.
    """
    address = SipUri.parse(uri)
    source = KeySource(kms, kms_token, uri, kms_authority, store, key_file)
    async with held_keys(source) as keyring:
        client = McpttClient(
            uri,
            ClientSettings(
                server=server or f"sip:mcptt@{address.host}", proxy=proxy, username=username or address.user or "",
                password=password, **(settings or {}),
            ),
            keyring=keyring,
            replay=source.replay(time.time()),
            **parts,
        )
        await client.start()
        try:
            yield client
        finally:
            await client.aclose()
