# SPDX-License-Identifier: Apache-2.0
"""NAPTR, SRV, A and AAAA records from the DNS, for `mcptt_sip.resolver` (RFC 3263)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.resolver

from mcptt_sip.errors import Unreachable
from mcptt_sip.resolver import Naptr, Srv

__all__ = ["DnsLookup"]

log = logging.getLogger(__name__)


class DnsLookup:
    """Asks the name servers of the host, or those of `resolver`.

    A server that does not answer about NAPTR or SRV is taken for one that has none, as many are; when it does not
    answer about addresses either, that is an error.
    """

    def __init__(self, resolver: dns.asyncresolver.Resolver | None = None) -> None:
        self._resolver = resolver or dns.asyncresolver.Resolver()

    async def naptr(self, name: str) -> Sequence[Naptr]:
        """See `mcptt_sip.resolver.Lookup`."""
        return [
            Naptr(record.order, record.preference, record.service.decode("ascii", "replace"), _text(record.replacement))
            for record in await self._optional(name, "NAPTR")
            if record.flags.lower() == b"s"
        ]

    async def srv(self, name: str) -> Sequence[Srv]:
        """See `mcptt_sip.resolver.Lookup`."""
        return [
            Srv(record.priority, record.weight, record.port, _text(record.target))
            for record in await self._optional(name, "SRV")
        ]

    async def addresses(self, name: str) -> Sequence[str]:
        """See `mcptt_sip.resolver.Lookup`; IPv6 first."""
        try:
            return [record.address for kind in ("AAAA", "A") for record in await self._ask(name, kind)]
        except dns.exception.DNSException as error:
            raise Unreachable(name, (str(error),)) from None

    async def _optional(self, name: str, kind: str) -> list[Any]:
        try:
            return await self._ask(name, kind)
        except dns.exception.DNSException as error:
            log.info("%s %s: %s", name, kind, error)
            return []

    async def _ask(self, name: str, kind: str) -> list[Any]:
        try:
            return list(await self._resolver.resolve(name, kind))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []


def _text(name: Any) -> str:
    """A domain name without its last dot; the root stays ``.``."""
    text = str(name)
    return text.rstrip(".") or "."
