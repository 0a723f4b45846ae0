# SPDX-License-Identifier: Apache-2.0
"""Key updates, revocations and acknowledgements on their way through the controlling function; sans-IO.

The server checks who signed and for whom, and passes the octets on; it can open none of them (rule 5).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import SipError
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import NOT_IN_CALL, Contents, read_contents, warning_header
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import KeyMessageCheck, Leg, Refusal
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MIKEY, Acknowledgement, KeyingError, i_message
from mcptt_sip.mcptt.memberlist import MAX_MEMBER_LIST, MEMBER_LIST
from mcptt_sip.mcptt.outbox import Outbox
from mcptt_sip.mcptt.policy import warning_text
from mikey import MikeyError

log = logging.getLogger(__name__)


class KeyMessages:
    """Takes in-dialog MESSAGEs of the legs of all calls.

    :param domain: host in Warnings
    """

    def __init__(self, domain: str, check_key: KeyMessageCheck, token: Callable[[], bytes]) -> None:
        self._domain = domain
        self._check_key = check_key
        self._token = token

    def received(self, incoming: ServerRequest, sender: str, now: float) -> None:
        """An in-dialog MESSAGE: the initiator's key for one member, or a member's acknowledgement."""
        leg = incoming.session.context if incoming.session is not None else None
        if not isinstance(leg, Leg) or leg.user != sender:
            incoming.respond(403, headers=self._warning(warning_text(190)), now=now)
            return
        try:
            contents = read_contents(incoming.request)
            if len(contents.acknowledgements) == 1:
                self._pass_acknowledgement(leg, contents.acknowledgements[0], now)
            elif not leg.call.directs(sender):
                raise Refusal(403, warning_text(190), "only the initiator, or his deputy, sends keys")
            elif contents.mikey is not None:
                self._pass_key(leg, contents, now)
            elif contents.member_list is not None:
                self._pass_member_list(leg, contents.member_list, now)
            else:
                raise Refusal(415, None, "neither a key, nor an acknowledgement, nor a list of members")
        except Refusal as refusal:
            log.info("group=%s user=%s MESSAGE refused: %s", leg.call.group, sender, refusal)
            incoming.respond(refusal.status, headers=self._warning(refusal.warning), now=now)
            return
        except (SipError, MikeyError, ValueError) as error:
            incoming.respond(getattr(error, "status", 400), headers=self._warning(None, str(error)), now=now)
            return
        incoming.respond(200, now=now)

    def _pass_key(self, leg: Leg, contents: Contents, now: float) -> None:
        call, user = leg.call, contents.info.request_uri or ""
        target = call.legs.get(user)
        if target is None or not target.in_media or target.session.ended:
            # 404 would end the initiator's own dialog (RFC 5057 5.2)
            raise Refusal(403, warning_text(100, NOT_IN_CALL), f"{user} is not in the call")
        assert contents.mikey is not None
        try:
            csb_id = self._check_key(i_message(contents.mikey), leg.user, user)
        except (MikeyError, KeyingError) as error:
            raise Refusal(488, warning_text(136), f"I_MESSAGE for {user}: {error}") from error
        info = McpttInfo(
            request_uri=user,
            calling_user_id=leg.user,
            calling_group_id=call.group,
            temporary_group=True,
            key_operation=contents.info.key_operation,
        )
        content_type, body = build_multipart(
            [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, contents.mikey)], self._token
        )
        self._say(target, content_type, body, now)
        target.key_from = call.signer = leg.user
        self._bind(target, csb_id)
        if contents.info.initiator_guk_id is not None:
            self._bind(leg, contents.info.initiator_guk_id)
        log.info(
            "group=%s user=%s key %s passed on", call.group, user, contents.info.key_operation or "message"
        )

    @staticmethod
    def _bind(leg: Leg, guk_id: int) -> None:
        """A new key gives a member a new GUK-ID; the one before stays valid until he switches."""
        if leg.in_media and guk_id != leg.guk_id:
            leg.guk_id = guk_id
            leg.call.media.bind(leg.user, guk_id)

    def _pass_acknowledgement(self, leg: Leg, octets: bytes, now: float) -> None:
        if Acknowledgement.decode(octets).user != leg.user:
            raise Refusal(403, warning_text(190), "an acknowledgement in another user's name")
        signer = leg.call.legs.get(leg.key_from or leg.call.initiator)
        if signer is None or signer.session.ended:
            raise Refusal(403, warning_text(100, "the initiator is gone"), "the initiator is gone")
        self._say(signer, ACKNOWLEDGEMENT, octets, now)

    def _say(self, leg: Leg, content_type: str, body: bytes, now: float) -> None:
        if leg.outbox is None:
            leg.outbox = Outbox(leg.session, self._token)
        leg.outbox.send(content_type, body, now)

    def _pass_member_list(self, leg: Leg, octets: bytes, now: float) -> None:
        """To everyone who subscribed to the roster or is a deputy; it is signed, and opaque here (rule 20)."""
        call = leg.call
        if len(octets) > MAX_MEMBER_LIST:
            raise Refusal(413, None, f"a list of members of {len(octets)} octets")
        call.member_list = octets
        for user in sorted({*call.deputies, *call.roster.watching} - {leg.user}):
            target = call.legs.get(user)
            if target is not None and target.in_media and not target.session.ended:
                self._say(target, MEMBER_LIST, octets, now)

    def _warning(self, text: str | None, plain: str | None = None) -> list[tuple[str, object]]:
        return warning_header(self._domain, text or plain)
