# SPDX-License-Identifier: Apache-2.0
"""A phone that does wrong: a program like ``mcptt phone`` with ``--break norekey`` or ``--break wrongkey``.

``norekey``: the initiator takes a user out and gives nobody a new key. ``wrongkey``: a member derives his media
keys from other octets than the TGMK, as a faulty implementation would, though it acknowledged the right one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from media.srtp import SrtpKey
from mikey import TransportKey


class ForgetfulRegroup(InitiatedRegroup):
    """Removes without rekeying."""

    async def remove(self, user: str) -> None:
        self.distribution.remove(user)
        self.members.discard(user)
        await self.client.refer(self, f"<{user};method=BYE>", [])
        self.emit("removed", user=user)


class WrongKeys(Regroup):
    """Media under keys that nobody else has."""

    @staticmethod
    def srtp_key(key: TransportKey, csb_id: int) -> SrtpKey:
        right = Regroup.srtp_key(key, csb_id)
        return SrtpKey(bytes(octet ^ 0xFF for octet in right.master_key), right.master_salt, right.mki)


class ForgetfulClient(McpttClient):
    initiated_class = ForgetfulRegroup


class WrongClient(McpttClient):
    member_class = WrongKeys


def main(arguments: Sequence[str]) -> None:
    """``--break WHAT`` is ours; the rest is ``mcptt phone``'s."""
    from mcptt_sip.ops import cli, phone

    at = list(arguments).index("--break")
    clients = {"norekey": ForgetfulClient, "wrongkey": WrongClient}
    phone.CLIENT_CLASS = clients[arguments[at + 1]]
    cli.app(["phone", *arguments[:at], *arguments[at + 2 :]])


if __name__ == "__main__":
    main(sys.argv[1:])
