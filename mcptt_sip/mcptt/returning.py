# SPDX-License-Identifier: Apache-2.0
"""Coming back into a call: the initiator by a re-join, everyone else by a fresh key from the signer; sans-IO.

The server keeps no I_MESSAGE after a leg's final answer (security rule 7), so who was lost cannot simply be invited
again: the one who makes the keys is asked by INFO, and adds him as anybody else, if he wants to (rule 5).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from mcptt_sip.errors import SipError
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import INFO_PACKAGE, read_contents, warning_header
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import GroupCall
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import warning_text

log = logging.getLogger(__name__)


class Returning:
    """Key requests of all calls.

    :param call_of: gives the call of a group id, ``None`` when there is none
    :param hang_up: ends a leg that its user has left behind, (call, user, now)
    """

    def __init__(
        self,
        domain: str,
        call_of: Callable[[str], GroupCall | None],
        hang_up: Callable[[GroupCall, str, float], None],
    ) -> None:
        self._domain = domain
        self._call_of = call_of
        self._hang_up = hang_up

    def registered(self, calls: Iterable[GroupCall], user: str, now: float) -> None:
        """Someone who was lost is in coverage again: late entry (24.379 10.1.1.4.6)."""
        for call in calls:
            if user in call.lost and user not in call.legs:
                call.lost.discard(user)
                self._request_key(call, user, now)

    def asked(self, incoming: ServerRequest, user: str, device: Destination | None, now: float) -> None:
        """A MESSAGE outside a dialog that asks to join: for someone who was in the call, and was not removed.

        The invitation that follows goes to the ``device`` that asked, and to no other of his.
        """
        try:
            info = read_contents(incoming.request).info
        except SipError as error:
            incoming.respond(getattr(error, "status", 400), now=now)
            return
        if info.key_operation != "join" or not info.request_uri:
            incoming.respond(403, headers=self._warning(100), now=now)
            return
        call = self._call_of(info.request_uri)
        if call is None:
            incoming.respond(404, headers=self._warning(137), now=now)
        elif user not in call.former and user not in call.legs:
            incoming.respond(403, headers=self._warning(121), now=now)
        elif call.director is None or user == call.initiator:
            incoming.respond(480, headers=self._warning(100, "the initiator is gone"), now=now)
        else:
            if user in call.legs:  # a second device, or the same one after a crash that was not noticed yet
                self._hang_up(call, user, now)
            if device is not None:
                call.wanted_at[user] = device.contact
            incoming.respond(200, now=now)
            self._request_key(call, user, now)

    def _request_key(self, call: GroupCall, user: str, now: float) -> None:
        director = call.director
        if director is None or not director.in_media or director.session.ended:
            log.info("group=%s user=%s is back, but nobody is there who makes keys", call.group, user)
            return
        info = McpttInfo(request_uri=user, calling_group_id=call.group, temporary_group=True, key_operation="request")
        director.session.send(
            "INFO", headers=[("Info-Package", INFO_PACKAGE)], body=info.encode(), content_type=documents.MCPTT_INFO,
            now=now,
        )
        log.info("group=%s user=%s key requested", call.group, user)

    def _warning(self, code: int, reason: str | None = None) -> list[tuple[str, object]]:
        return warning_header(self._domain, warning_text(code, reason))
