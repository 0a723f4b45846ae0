# SPDX-License-Identifier: Apache-2.0
"""A phone behind a bad network: a program like ``mcptt phone`` with ``--line loss=0.05,jitter=0.04,seed=1``.

Audio and floor control packets in both directions are lost, doubled, delayed and overtake each other as the entries of
:class:`mcptt_sip.ops.link.Conditions` say; the keys are the same as there.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable

from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.ops.link import Conditions, Path
from media.endpoint import MemberMedia
from media.udp import Address


class BadMedia(MemberMedia):
    """Every datagram takes the bad line."""

    conditions = Conditions()
    chance = random.Random(0)

    def _line(self, kind: str) -> Path:
        lines: dict[str, Path] = self.__dict__.setdefault("_lines", {})
        return lines.setdefault(kind, Path(self.conditions, self.chance))

    def _pass(self, kind: str, octets: bytes, arrive: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for at in self._line(kind).packet(len(octets), now):
            loop.call_at(at, arrive)

    def _transmit(self, kind: str, octets: bytes) -> None:
        send = super()._transmit
        self._pass(f"{kind} out", octets, lambda: None if self._closed else send(kind, octets))

    def _audio_received(self, octets: bytes, source: Address) -> None:
        take = super()._audio_received
        self._pass("audio in", octets, lambda: None if self._closed else take(octets, source))

    def _floor_received(self, octets: bytes, source: Address) -> None:
        take = super()._floor_received
        self._pass("floor in", octets, lambda: None if self._closed else take(octets, source))


class FarClient(McpttClient):
    media_class = BadMedia


def conditions(text: str) -> tuple[Conditions, int]:
    """``loss=0.05,jitter=0.04,seed=1``; raises ValueError or TypeError for what is none."""
    entries = {name: float(value) for name, _, value in (item.partition("=") for item in text.split(","))}
    seed = int(entries.pop("seed", 0))
    return Conditions(**entries), seed  # type: ignore[arg-type]


def main(arguments: list[str]) -> None:
    """``--line WHAT`` is ours; the rest is ``mcptt phone``'s."""
    from mcptt_sip.ops import cli, phone

    at = arguments.index("--line")
    BadMedia.conditions, seed = conditions(arguments[at + 1])
    BadMedia.chance = random.Random(seed)
    phone.CLIENT_CLASS = FarClient
    cli.app(["phone", *arguments[:at], *arguments[at + 2 :]])


if __name__ == "__main__":
    main(sys.argv[1:])
