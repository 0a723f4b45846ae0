# SPDX-License-Identifier: Apache-2.0
"""Step 5 in the invited user's client: the checks of an invitation and of its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.mcptt.contents import Contents, read_contents, warning_header
from mcptt_sip.mcptt.keying import GroupTerms, KeyingError, i_message
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.policy import Commencement, Urgency, warning_text
from mcptt_sip.session import InviteSession
from mikey import KeyType, OpenedKey, unseal

if TYPE_CHECKING:
    from mcptt_sip.mcptt.call import Regroup
    from mcptt_sip.mcptt.client import McpttClient

#: The only media profile of a temporary group call, as the signed SP payload must state it (33.180 7.5):
#: AEAD_AES_128_GCM, 12-octet salt, AES-CM PRF, no key derivation rate, ROC in every packet, 16-octet tag.
GROUP_PROFILE = {0: 6, 1: 16, 2: 4, 4: 12, 5: 0, 6: 0, 13: 1, 18: 4, 19: 0, 20: 16}


@dataclass(slots=True)
class Invitation:
    """A call that this user is invited to. Its key is verified and opened; the signer is who he says."""

    client: McpttClient
    session: InviteSession
    contents: Contents
    #: where the server takes and gives media
    theirs: GroupMediaDescription
    opened: OpenedKey
    terms: GroupTerms
    initiator: str
    group: str
    _accepted: bool = False

    @property
    def commencement(self) -> Commencement:
        """How the caller asks this user to answer; the server has checked his right to force it."""
        headers = self.session.request.headers
        if (headers.get("Priv-Answer-Mode") or "").lower().startswith("auto"):
            return Commencement.FORCED
        manual = (headers.get("Answer-Mode") or "").lower().startswith("manual")
        return Commencement.MANUAL if manual else Commencement.AUTOMATIC

    @property
    def urgency(self) -> Urgency:
        """What the server says of the call."""
        if self.contents.info.emergency:
            return Urgency.EMERGENCY
        return Urgency.IMMINENT_PERIL if self.contents.info.imminent_peril else Urgency.NORMAL

    async def accept(self) -> Regroup:
        """Step 6: the 200, with the acknowledgement of the key where it is asked for. A second time is a
        :class:`~mcptt_sip.errors.LocalProtocolError`, and changes nothing."""
        if self._accepted:
            raise LocalProtocolError("the invitation has been accepted")
        self._accepted = True
        return await self.client.accept(self)

    def ring(self) -> None:
        self.session.progress(180, now=self.client.stack_time())
        self.client.transmit()

    def decline(self) -> None:
        """480 with Warning 110; the key is dropped, its replay entry stays."""
        headers = warning_header(self.client.domain, warning_text(110))
        self.session.reject(480, headers=headers, now=self.client.stack_time())
        self.client.transmit()


def read_invitation(client: McpttClient, session: InviteSession) -> Invitation:
    """The recipient's checks in their fixed order, cheap before dear; see DESIGN and rule 8, 16, 22."""
    contents = read_contents(session.request)
    info = contents.info
    if contents.mikey is None or not info.temporary_group:
        raise KeyingError("a temporary group call has the indicator and a key, both")
    if info.request_uri != client.uri:
        raise KeyingError(f"the invitation is for {info.request_uri}")
    if not info.calling_user_id or not info.calling_group_id:
        raise KeyingError("calling user or group is missing")
    client.check_caller(info.calling_user_id)
    theirs = GroupMediaDescription.decode(contents.sdp, beside=contents.mikey)
    opened = open_group_key(client, contents.mikey, info.calling_user_id, info.calling_group_id)
    terms = GroupTerms.parse(opened.key.text)
    if (info.acknowledgement or "none") != terms.acknowledgement:
        raise KeyingError("the acknowledgement wish is not the signed one")
    return Invitation(
        client, session, contents, theirs, opened, terms, info.calling_user_id, info.calling_group_id
    )


def open_group_key(
    client: McpttClient, octets: bytes, signer: str, group: str, *, update: bool = False
) -> OpenedKey:
    """Opens an I_MESSAGE from ``signer`` for ``group``; for a call one is in, a revocation too.

    The key may become active only later: who is added after a change of keys gets the newest, and by a clock that is
    slow every key is of tomorrow. When it may be sent under is :meth:`.GroupKeys.install`'s business.
    """
    opened = unseal(
        i_message(octets),
        sender_uri=signer,
        me=client.uri,
        keyring=client.keyring,
        now=client.now(),
        replay=client.replay,
        expect_type=KeyType.GMK,
        expect_group=group,
        allow_pending=True,
        allow_revoked=update,
    )
    if not opened.srtp_policy_stated or dict(opened.srtp_policy) != GROUP_PROFILE:
        raise KeyingError("the signed media profile is not the group profile")
    return opened
