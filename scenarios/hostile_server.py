# SPDX-License-Identifier: Apache-2.0
"""An MCPTT server that lies: a program like ``mcptt serve`` with ``--break swap`` or ``--break strip``.

``swap``: the first two users who are added get each other's I_MESSAGE. ``strip``: the first user who is called
gets no key. Each once: the clients notice, and what they do then can be watched.
"""

from __future__ import annotations

import sys
from typing import Any

from mcptt_sip.mcptt import regroup
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.groupcall import GroupCall
from mcptt_sip.mcptt.server import McpttServer


class Swapping(ControllingFunction):
    """Keeps the first added user waiting for the second, then gives each the other's key."""

    held: regroup.InviteMember | None = None
    swapped = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.instead: dict[str, bytes] = {}

    def _invite(self, call: GroupCall, order: regroup.InviteMember, now: float) -> None:
        first_of_call = not call.machine.connected
        if first_of_call or self.swapped:
            super()._invite(call, order, now)
        elif self.held is None:
            self.held = order
        else:
            one, two, self.held, self.swapped = self.held, order, None, True
            self.instead = {one.user: two.key, two.user: one.key}
            super()._invite(call, one, now)
            super()._invite(call, two, now)
            self.instead = {}

    def key_for(self, call: GroupCall, user: str, key: bytes) -> bytes:
        return self.instead.get(user, key)


class Stripping(ControllingFunction):
    """Takes the key out of the first invitation."""

    stripped = False

    def key_for(self, call: GroupCall, user: str, key: bytes) -> bytes:
        if self.stripped:
            return key
        self.stripped = True
        return b""


class SwappingServer(McpttServer):
    controlling_function = Swapping


class StrippingServer(McpttServer):
    controlling_function = Stripping


def main(arguments: list[str]) -> None:
    """``--break WHAT`` is ours; the rest is ``mcptt serve``'s."""
    from mcptt_sip.ops import cli, serve

    at = arguments.index("--break")
    servers = {"swap": SwappingServer, "strip": StrippingServer}
    serve.SERVER_CLASS = servers[arguments[at + 1]]
    cli.app(["serve", *arguments[:at], *arguments[at + 2 :]])


if __name__ == "__main__":
    main(sys.argv[1:])
