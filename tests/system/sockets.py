# SPDX-License-Identifier: Apache-2.0
"""Which sockets a process has bound, as the kernel knows them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

LISTEN, UNCONNECTED = "0A", "07"


@dataclass(frozen=True, slots=True)
class Bound:
    """A socket that takes what strangers send: ``kind`` is ``tcp`` (listening) or ``udp``."""

    kind: str
    host: str
    port: int

    def bind_again(self) -> None:
        """Raises OSError while somebody still has it."""
        type_ = socket.SOCK_STREAM if self.kind == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, type_) as again:
            if self.kind == "tcp":  # connections in TIME_WAIT are nobody's
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((self.host, self.port))


def bound(pid: int) -> list[Bound]:
    """The IPv4 sockets of a process that listen (TCP) or are bound (UDP)."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # closed since
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for kind, wanted in (("tcp", LISTEN), ("udp", UNCONNECTED)):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and words[3] == wanted:
                host, _, port = words[1].partition(":")
                address = socket.inet_ntoa(bytes.fromhex(host)[::-1])
                found.append(Bound(kind, address, int(port, 16)))
    return found
