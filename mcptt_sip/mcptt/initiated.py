# SPDX-License-Identifier: Apache-2.0
"""Client 1's call: :class:`InitiatedRegroup` makes it; :class:`DeputyRegroup` goes on when client 1 is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mcptt_sip.body import Part
from mcptt_sip.headers import NameAddr
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.call import CallSettings, Regroup
from mcptt_sip.mcptt.callerrors import NotADeputy, RegroupFailed
from mcptt_sip.mcptt.clientrequests import CallOptions
from mcptt_sip.mcptt.contents import RELEASE_FOR_ALL, Contents, warning_of
from mcptt_sip.mcptt.directing import DirectedRegroup
from mcptt_sip.mcptt.distribution import KeyDistribution
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.keying import MIKEY
from mcptt_sip.mcptt.mediadescription import INDICATED, GroupMediaDescription
from mcptt_sip.mcptt.policy import Urgency
from mcptt_sip.message import Response
from mcptt_sip.outgoing import Cause
from media.endpoint import MemberMedia
from mikey import guk_id

if TYPE_CHECKING:
    from mcptt_sip.mcptt.client import McpttClient

#: says what the list of users in an INVITE is for (RFC 5366 3.2)
RECIPIENT_LIST = (("Content-Disposition", "recipient-list"),)


class InitiatedRegroup(DirectedRegroup):
    """The call of the one who started it."""

    options = CallOptions()

    def __init__(
        self,
        client: McpttClient,
        group: str,
        media: MemberMedia,
        distribution: KeyDistribution,
        settings: CallSettings,
    ) -> None:
        super().__init__(client, group, client.uri, media, distribution, settings)
        self._answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    # --- steps 1 and 9 --------------------------------------------------------------------------------

    async def establish(self, user: str) -> None:
        """Steps 1 to 9 for the first user. Returns when the 200 is there *and* his key is proved."""
        now = self.client.now()
        self.distribution.name(user)
        self._joining.add(user)
        # The initiator's own copy is not delivered by a message; its T is the making of the key.
        self._make_key()
        sealed = self.distribution.seal_to(user, now)
        parts = [
            Part("application/sdp", self.client.describe(self.media).encode()),
            Part(documents.MCPTT_INFO, self._info().encode()),
            Part(documents.RESOURCE_LISTS, documents.ResourceLists((user,)).encode(), RECIPIENT_LIST),
            Part(MIKEY, sealed.octets),
        ]
        self.session = self.client.invite(self, parts, self.options, list_=True)
        self.emit("calling", user=user, call_id=self.session.call_id)
        response = await self._answer
        self._joining.discard(user)
        contents = self.client.contents_of(response)
        if contents.info.calling_group_id != self.group:
            await self.release()
            raise RegroupFailed("the server answered for another group")
        theirs = GroupMediaDescription.decode(contents.sdp)
        self.media.connect(theirs.audio, theirs.floor)
        self._is_declared()
        for octets in contents.acknowledgements:
            self.on_acknowledgement(octets)
        if self.terms.acknowledgement == "required":
            await self._until_first_is_keyed()
        self._refresh = asyncio.ensure_future(self._keep_fresh())
        self._tell_members()
        self.emit("established", keyed=sorted(self.distribution.keyed()), warning=warning_of(response))

    def _is_declared(self) -> None:
        self.urgency = self.options.urgency
        self.media.declare(INDICATED[self.urgency])

    def _info(self) -> McpttInfo:
        """What the server is told of the call; members believe only the signed text of their I_MESSAGE."""
        key = self.distribution.current
        assert key is not None
        return McpttInfo(
            session_type="prearranged",
            request_uri=self.group,
            client_id=self.client.client_id,
            temporary_group=True,
            acknowledgement=self.terms.acknowledgement,
            initiator_guk_id=guk_id(key, self.me),
            deputies=self.terms.deputies,
            floor_by_members=self.terms.floor == "members",
            required=self.options.required,
            emergency=self.options.urgency is Urgency.EMERGENCY or None,
            imminent_peril=self.options.urgency is Urgency.IMMINENT_PERIL or None,
        )

    async def _until_first_is_keyed(self) -> None:
        try:
            async with asyncio.timeout(self.settings.add_timeout):
                await self._wait_for(lambda: bool(self.distribution.keyed()) or self.ended.is_set())
        except TimeoutError:
            await self.release()
            raise RegroupFailed("the server answered, but nobody proved to hold the key") from None
        if self.ended.is_set():
            raise RegroupFailed("the call ended before anybody proved to hold the key")

    def on_progress(self, response: Response) -> None:
        """The reliable 183: from now on users can be added."""
        contact = response.headers.get("Contact")
        if contact is not None and not self._early.is_set():
            self.session_identity = str(NameAddr.parse(contact).uri)
            self.distribution.at_session(self.session_identity)
            self._early.set()

    def on_answered(self, response: Response) -> None:
        self.on_progress(response)
        if not self._answer.done():
            self._answer.set_result(response)

    def on_refused(self, response: Response | None, cause: Cause) -> None:
        if not self._answer.done():
            self._answer.set_exception(RegroupFailed.refused(response, cause))
        self._early.set()
        self.client.spawn(self._end("refused"))


    # --- after a restart ------------------------------------------------------------------------------

    async def come_back(self) -> None:
        """Joins the call again that this client initiated before it was restarted, with a fresh key (rule 15).

        Returns when all who were sealed to and not removed acknowledged it. Raises :class:`RegroupFailed` when the call
        is over, and :class:`~mcptt_sip.mcptt.callerrors.NotRekeyed` when somebody did not acknowledge.
        """
        generation = self._make_key()
        parts = [
            Part("application/sdp", self.client.describe(self.media).encode()),
            Part(documents.MCPTT_INFO, self._info().encode()),
        ]
        self.session = self.client.invite(self, parts, self.options, list_=False)
        self.emit("coming-back", call_id=self.session.call_id)
        response = await self._answer
        theirs = GroupMediaDescription.decode(self.client.contents_of(response).sdp)
        self.media.connect(theirs.audio, theirs.floor)
        self._is_declared()
        self._refresh = asyncio.ensure_future(self._keep_fresh())
        self.emit("established", keyed=[], warning=warning_of(response))
        await self._distribute(generation)
        self.members.update(self.distribution.keyed())
        self._know(self.members)
        self._tell_members()

    # --- the end --------------------------------------------------------------------------------------

    async def abandon(self) -> None:
        """The call was not established: gives up what there is of it."""
        if self.session is not None and not self.ended.is_set():
            self.session.bye(self.client.stack_time())
            self.client.transmit()
        await self._end("failed")

    async def release(self) -> None:
        """Ends the call for everybody."""
        if self.session is not None and not self.ended.is_set():
            self.session.bye(self.client.stack_time(), headers=[("Reason", RELEASE_FOR_ALL)])
            self.client.transmit()
        await self._end("released")


class DeputyRegroup(DirectedRegroup):
    """The call of a deputy who has taken over: the member's session and keys, and the right to make new ones."""

    @classmethod
    def succeed(
        cls, member: Regroup, distribution: KeyDistribution, settings: CallSettings, users: Iterable[str]
    ) -> DeputyRegroup:
        """Takes the place of ``member``; who waits for its events and its end goes on waiting."""
        call = cls(member.client, member.group, member.initiator, member.media, distribution, settings)
        call.keys, call.events, call.ended = member.keys, member.events, member.ended
        call.session, call.session_identity = member.session, member.session_identity
        call.member_list, call.terms = member.member_list, member.terms
        member.hand_over(call)
        key = call.keys.sending(call.client.now())
        if key is not None:
            distribution.succeed(key, users, call.keys.last_timestamp)
        else:
            for user in users:
                distribution.name(user)
        call._early.set()
        return call

    async def begin(self) -> None:
        """The deputy's first key: from now on the lost initiator reads nothing.

        Raises :class:`NotADeputy` when somebody who comes before him is in the call: then nothing has changed.
        """
        if not await self._send_members():
            self._step_down()
            raise NotADeputy(f"the server does not let {self.me} direct {self.group}")
        self.emit("taken-over", users=sorted(self.distribution.named))
        try:
            await self.rekey()
        finally:
            self._refresh = asyncio.ensure_future(self._keep_fresh())
            self.members.update(self.distribution.keyed())
            self._know(self.members)
            self._tell_members()

    def on_key_message(self, incoming: ServerRequest, contents: Contents) -> None:
        """A key of somebody who comes before this deputy ends what he does in that one's stead."""
        super().on_key_message(incoming, contents)
        current = self.distribution.current
        if self.directing and current is not None and self.keys.newest not in (None, current.key_id):
            self._step_down()
