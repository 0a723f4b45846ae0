# SPDX-License-Identifier: Apache-2.0
"""When a client registers again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mcptt_sip.errors import RegistrationFailed
from mcptt_sip.mcptt.registration import RENEW_AT, RETRY_AFTER, RETRY_AT_MOST, Registration


class Enough(Exception):
    """The test has seen what it wants."""


class Unlucky(Registration):
    """The server is away for the first ``failures`` renewals."""

    failures = 0

    async def _register(self, expires: int) -> None:
        if self.failures:
            self.failures -= 1
            raise RegistrationFailed("no answer", None)


async def waits(failures: int, expires: int, enough: int) -> list[float]:
    """How long the client waits before each of its renewals."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == enough:
            raise Enough

    client: Any = SimpleNamespace(
        uri="sip:alice@mcx.example", settings=SimpleNamespace(expires=expires), sleep=sleep, emit=lambda *_, **__: None
    )
    registration = Unlucky(client)
    registration.failures = failures
    with pytest.raises(Enough):
        await registration._keep()
    return waited


async def test_a_renewal_that_fails_is_tried_again_soon_and_then_less_often() -> None:
    once = 600 * RENEW_AT
    assert await waits(2, 600, 5) == [once, RETRY_AFTER, 2 * RETRY_AFTER, once, once]
    assert (await waits(12, 600, 12))[-1] == RETRY_AT_MOST


async def test_a_short_registration_is_never_renewed_later_than_when_all_is_well() -> None:
    assert max(await waits(12, 30, 12)) == 30 * RENEW_AT


async def test_a_lost_connection_is_a_reason_to_register_at_once() -> None:
    asked = asyncio.Event()

    class Counting(Registration):
        registered = 0

        async def _register(self, expires: int) -> None:
            self.registered += 1
            asked.set()

    client: Any = SimpleNamespace(
        uri="sip:alice@mcx.example", settings=SimpleNamespace(expires=600), sleep=asyncio.sleep,
        emit=lambda *_, **__: None,
    )
    registration = Counting(client)
    registration.flow_lost()  # before there is a registration, there is none to renew
    await asyncio.sleep(0)
    assert registration.registered == 0
    await registration.begin()
    asked.clear()
    registration.flow_lost()
    await asyncio.wait_for(asked.wait(), 5.0)
    assert registration.registered == 2
    registration.stop()
    registration.flow_lost()
    await asyncio.sleep(0)
    assert registration.registered == 2
