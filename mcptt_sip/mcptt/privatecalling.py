# SPDX-License-Identifier: Apache-2.0
"""A private call as one of the two has it: under a PCK that the caller made and sealed to the called user."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.mcptt.callerrors import RegroupFailed
from mcptt_sip.mcptt.clientrequests import ORDINARY
from mcptt_sip.mcptt.contents import Contents, read_contents, warning_header
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.keying import GroupTerms, KeyingError, i_message
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.policy import warning_text
from mcptt_sip.mcptt.privatecall import PRIVATE_SESSION, private_key_of
from mcptt_sip.message import Response
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import InviteSession
from media.endpoint import MemberMedia, MemberSettings
from media.srtp import PRIVATE, SrtpKey
from mikey import KeyType, TransportKey, seal, srtp_keys, unseal
from mikey.keys import PRIVATE_PROFILE

if TYPE_CHECKING:
    from mcptt_sip.mcptt.client import McpttClient

#: CS-IDs of a private call's media (TS 33.180 E.1.3): the caller's and the called user's
CALLER, CALLED = 0, 1
#: audio of two under one key: MKI = PCK-ID
MEDIA = MemberSettings(protection=PRIVATE)
RECIPIENT_LIST = (("Content-Disposition", "recipient-list"),)


class PrivateCall(Regroup):
    """A call of two; floor, talking and hearing are those of a group call. ``other`` is the other user."""

    def __init__(
        self, client: McpttClient, label: str, other: str, media: MemberMedia, key: TransportKey, side: int
    ) -> None:
        super().__init__(client, label, other if side == CALLED else client.uri, media, GroupTerms("none"))
        self.other = other
        self.key = key
        self._side = side
        self._mki = key.mki(key.key_id)
        self._answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._expiry: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The key is in force, until its expiry."""
        self.media.set_sending_key(self._direction(self._side))
        self._watch_expiry()

    def _watch_expiry(self) -> None:
        left = self.key.expiry - self.client.now()
        if left <= 0:
            self.media.set_sending_key(None)
            self.client.spawn(self.leave("the call's key has expired"))
            return
        wait = min(left, self.client.settings.call.clock_check)
        self._expiry = asyncio.get_running_loop().call_later(wait, self._watch_expiry)

    def _direction(self, side: int) -> SrtpKey:
        master, salt = srtp_keys(self.key, csb_id=self.key.key_id, cs_id=side)
        return SrtpKey(master.reveal(), salt.reveal(), self._mki)

    def find_key(self, mki: bytes) -> SrtpKey | None:
        """The other's direction; one's own is not received under."""
        return self._direction(CALLER + CALLED - self._side) if mki == self._mki and not self.ended.is_set() else None

    def talker_guk_ids(self, user: str) -> frozenset[bytes]:
        return frozenset({self._mki[-4:]}) if user == self.other else frozenset()

    def on_key_message(self, incoming: ServerRequest, contents: Contents) -> None:
        """The key of a private call is not replaced: another call has another key."""
        incoming.respond(403, now=self.client.stack_time())

    def on_progress(self, response: Response) -> None:
        self.emit("ringing", status=response.status)

    def on_answered(self, response: Response) -> None:
        if not self._answer.done():
            self._answer.set_result(response)

    def on_refused(self, response: Response | None, cause: Cause) -> None:
        if not self._answer.done():
            self._answer.set_exception(RegroupFailed.refused(response, cause))
        self.client.spawn(self._end("refused"))

    async def _end(self, cause: str) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if not self._answer.done():
            self._answer.cancel()
        await super()._end(cause)


async def call_privately(client: McpttClient, user: str) -> PrivateCall:
    """Calls ``user`` alone. Returns when he has answered; raises :class:`RegroupFailed`."""
    now = client.now()
    key = TransportKey.generate(
        KeyType.PCK, random=client.random, expiry=int(now + client.settings.distribution.lifetime)
    )
    sealed = seal(key, sender=client.uri, recipient=user, keyring=client.keyring, now=now, random=client.random)
    media = await client.open_media(MEDIA)
    call = PrivateCall(client, f"private-{client.random(8).hex()}", user, media, key, CALLER)
    client.attach(call)
    info = McpttInfo(session_type=PRIVATE_SESSION, client_id=client.client_id)
    parts = [
        Part("application/sdp", client.describe(media, sealed.octets).encode()),
        Part(documents.MCPTT_INFO, info.encode()),
        Part(documents.RESOURCE_LISTS, documents.ResourceLists((user,)).encode(), RECIPIENT_LIST),
    ]
    call.session = client.invite(call, parts, ORDINARY, list_=True)
    call.emit("calling", user=user, call_id=call.session.call_id)
    try:
        response = await call._answer
        theirs = GroupMediaDescription.decode(client.contents_of(response).sdp)
    except BaseException:
        await call.leave("failed")
        raise
    call.begin()
    media.connect(theirs.audio, theirs.floor)
    call.emit("established", user=user)
    return call


@dataclass(slots=True)
class PrivateInvitation:
    """A private call that comes in. Its key is verified and opened; the signer is the caller."""

    client: McpttClient
    session: InviteSession
    #: where the server takes and gives media
    theirs: GroupMediaDescription
    key: TransportKey
    caller: str

    async def accept(self) -> PrivateCall:
        """The 200."""
        client = self.client
        media = await client.open_media(MEDIA)
        call = PrivateCall(client, f"private-{client.random(8).hex()}", self.caller, media, self.key, CALLED)
        client.attach(call)
        call.session = self.session
        self.session.context, self.session.credentials = call, client.credentials
        call.begin()
        media.connect(self.theirs.audio, self.theirs.floor)
        content_type, body = build_multipart(
            [Part("application/sdp", client.describe(media).encode())], client.token
        )
        self.session.accept(body=body, content_type=content_type, now=client.stack_time())
        client.transmit()
        call.emit("joined", user=self.caller)
        return call

    def decline(self) -> None:
        """480 with Warning 110."""
        headers = warning_header(self.client.domain, warning_text(110))
        self.session.reject(480, headers=headers, now=self.client.stack_time())
        self.client.transmit()


def is_private(session: InviteSession) -> bool:
    """Whether an INVITE is of session type ``private``; raises what cannot be read."""
    return read_contents(session.request).info.session_type == PRIVATE_SESSION


def read_private_invitation(client: McpttClient, session: InviteSession) -> PrivateInvitation:
    """The called user's checks: one key message, for him, by the caller, of a private call, with its signed profile.

    Raises :class:`~mikey.MikeyError`, :class:`~mcptt_sip.errors.SipError`.
    """
    contents = read_contents(session.request)
    info = contents.info
    if info.temporary_group or info.calling_group_id:
        raise KeyingError("a private call has no group")
    if info.request_uri != client.uri or not info.calling_user_id:
        raise KeyingError(f"the invitation is for {info.request_uri}")
    client.check_caller(info.calling_user_id)
    theirs, key = private_key_of(contents)
    opened = unseal(
        i_message(key), sender_uri=info.calling_user_id, me=client.uri, keyring=client.keyring,
        now=client.now(), replay=client.replay, expect_type=KeyType.PCK,
    )
    if dict(opened.srtp_policy) != PRIVATE_PROFILE:
        raise KeyingError("the signed media profile is not that of a private call")
    if not opened.key.expiry:
        raise KeyingError("the key of a private call must have an expiry")
    return PrivateInvitation(client, session, theirs, opened.key, info.calling_user_id)
