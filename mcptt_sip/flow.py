# SPDX-License-Identifier: Apache-2.0
"""A flow: the pair of addresses (and the connection) that octets travel on (RFC 5626 2)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["RELIABLE_TRANSPORTS", "Flow"]

#: transports that retransmit by themselves, so that timers A, E, G need not (RFC 3261 17.1.1.2)
RELIABLE_TRANSPORTS = frozenset({"tcp", "tls", "ws", "wss", "sctp", "tls-sctp"})


@dataclass(frozen=True, slots=True)
class Flow:
    """Where octets came from, and the way back to there. Opaque to the cores; the edge maps it to a socket.

    `transport` is one of ``udp tcp tls ws wss``; addresses are (host, port) with numeric hosts, IPv6 without
    brackets. `id` tells two connections with equal addresses apart, and is 0 for datagrams.
    """

    transport: str
    local: tuple[str, int]
    remote: tuple[str, int]
    id: int = 0
    #: whether the transport itself retransmits
    reliable: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reliable", self.transport in RELIABLE_TRANSPORTS)

    def toward(self, remote: tuple[str, int]) -> Flow:
        """The same local socket, another peer. Only datagrams can do that."""
        return replace(self, remote=remote)

    def __str__(self) -> str:
        return f"{self.transport}:{_at(self.local)}->{_at(self.remote)}"


def _at(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
