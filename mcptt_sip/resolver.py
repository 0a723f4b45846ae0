# SPDX-License-Identifier: Apache-2.0
"""Where a request goes: transport, address and port of a SIP URI (RFC 3263; RFC 2782; RFC 7118 5.1 for WebSocket).

The rules are here, the questions to the name service behind `Lookup`: `SystemLookup` asks the host's own resolver
for addresses only, `mcptt_sip.dnslookup.DnsLookup` asks for NAPTR and SRV records too.

:RFC 3263: yes; NAPTR, SRV, failover on 503 and timeout
:RFC 2782: yes
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from mcptt_sip.errors import Unreachable
from mcptt_sip.uri import SipUri, is_address

__all__ = ["Lookup", "Naptr", "Place", "Resolver", "Srv", "SystemLookup"]


@dataclass(frozen=True, slots=True)
class Naptr:
    """A NAPTR record (RFC 3403 4.1), as far as SIP uses it: flag ``s``, no regular expression."""

    order: int
    preference: int
    service: str
    replacement: str


@dataclass(frozen=True, slots=True)
class Srv:
    """An SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Place:
    """One way to a server: a numeric address, and the name that a certificate of it must have (RFC 5922 4)."""

    transport: str
    address: str
    port: int
    name: str


class Lookup(Protocol):
    """The name service. A name without such records gives an empty sequence."""

    async def naptr(self, name: str) -> Sequence[Naptr]:
        """NAPTR records of a domain."""
        ...

    async def srv(self, name: str) -> Sequence[Srv]:
        """SRV records of a service name such as ``_sip._udp.example.com``."""
        ...

    async def addresses(self, name: str) -> Sequence[str]:
        """Addresses of a host, the preferred ones first."""
        ...


class SystemLookup:
    """The host's own resolver, which knows addresses only (files, mDNS and DNS, as the host is set up)."""

    async def naptr(self, name: str) -> Sequence[Naptr]:
        """None: see `Lookup`."""
        return ()

    async def srv(self, name: str) -> Sequence[Srv]:
        """None: see `Lookup`."""
        return ()

    async def addresses(self, name: str) -> Sequence[str]:
        """See `Lookup`."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(name, (str(error),)) from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


#: NAPTR services and the transport each means (RFC 3263 4.1, RFC 7118 5.1)
_SERVICES = {"sip+d2u": "udp", "sip+d2t": "tcp", "sips+d2t": "tls", "sip+d2w": "ws", "sips+d2w": "wss"}
#: service name of each transport for SRV
_SRV = {"udp": "_sip._udp", "tcp": "_sip._tcp", "tls": "_sips._tcp", "ws": "_sip._ws", "wss": "_sips._ws"}
#: default ports (RFC 3261 19.1.2, RFC 7118 5.2)
_PORTS = {"udp": 5060, "tcp": 5060, "tls": 5061, "ws": 80, "wss": 443}
_SECURE = frozenset({"tls", "wss"})
_SECURED = {"tcp": "tls", "ws": "wss"}


class Resolver:
    """Answers where a URI leads.

    :param transports: what this side can use, the preferred one first
    :param below: gives an integer from 0 up to, not including, its argument; for the weights of SRV records
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        transports: tuple[str, ...] = ("udp", "tcp", "tls"),
        below: Callable[[int], int],
    ) -> None:
        self._lookup = lookup
        self._transports = transports
        self._below = below

    async def places(self, uri: SipUri, *, large: bool = False) -> list[Place]:
        """Every place to try, in this order; `large` avoids datagrams (RFC 3261 18.1.1). Raises `Unreachable`."""
        usable = [t for t in self._transports if not (large and t == "udp")] or list(self._transports)
        secure = uri.scheme == "sips"
        if secure:
            usable = [transport for transport in usable if transport in _SECURE]
        target = uri.param("maddr") or uri.host
        name = uri.host
        stated = uri.transport
        if stated is not None and secure:
            stated = _SECURED.get(stated, stated)  # RFC 3261 26.2.2: tcp in a SIPS URI is TLS over it
        if stated is not None and stated not in usable and not (stated == "udp" and large):
            raise Unreachable(str(uri), (f"transport {stated} is not served",))
        plain = stated or ("tls" if secure else "tcp" if large and "tcp" in usable else "udp")
        if plain not in self._transports:
            raise Unreachable(str(uri), (f"transport {plain} is not served",))
        if is_address(target):
            return [Place(plain, target, uri.port or _PORTS[plain], name)]
        if uri.port is not None:
            return await self._at(plain, target, uri.port, name, uri)
        records = await self._services(target, [stated] if stated is not None else usable, stated is None)
        places: list[Place] = []
        for transport, record in records:
            try:
                places += await self._at(transport, record.target, record.port, name, uri)
            except Unreachable:
                if len(places) == 0 and record is records[-1][1]:
                    raise  # no record has led anywhere
        if places:
            return places
        return await self._at(plain, target, _PORTS[plain], name, uri)

    async def _services(self, target: str, usable: list[str], ask_naptr: bool) -> list[tuple[str, Srv]]:
        """SRV records with their transports, in order (4.1, 4.2)."""
        names = [(transport, f"{_SRV[transport]}.{target}") for transport in usable]
        if ask_naptr:
            found = sorted(await self._lookup.naptr(target), key=lambda record: (record.order, record.preference))
            chosen = [
                (transport, record.replacement)
                for record in found
                if (transport := _SERVICES.get(record.service.lower())) in usable and transport is not None
            ]
            names = chosen or names
        out: list[tuple[str, Srv]] = []
        for transport, name in names:
            records = await self._lookup.srv(name)
            if len(records) == 1 and records[0].target in (".", ""):
                continue  # RFC 2782: the service is decidedly not there
            out += [(transport, record) for record in self._ordered(records)]
        return out

    def _ordered(self, records: Sequence[Srv]) -> list[Srv]:
        """By priority; within one, drawn by weight (RFC 2782, page 4)."""
        out: list[Srv] = []
        by_priority = sorted(records, key=lambda record: (record.priority, record.weight))
        for _, group in groupby(by_priority, key=lambda record: record.priority):
            left = list(group)  # those of weight 0 first, so that they have a small chance
            while left:
                drawn = self._below(sum(record.weight for record in left) + 1)
                at = 0
                while drawn > left[at].weight:
                    drawn -= left[at].weight
                    at += 1
                out.append(left.pop(at))
        return out

    async def _at(self, transport: str, host: str, port: int, name: str, uri: SipUri) -> list[Place]:
        addresses = [host] if is_address(host) else await self._lookup.addresses(host)
        if not addresses:
            raise Unreachable(str(uri), (f"{host} has no address",))
        return [Place(transport, address, port, name) for address in addresses]
