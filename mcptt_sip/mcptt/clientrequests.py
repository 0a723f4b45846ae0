# SPDX-License-Identifier: Apache-2.0
"""The SIP requests that an MCPTT client makes of its server, and what becomes of them."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import LocalProtocolError, SipError
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.mcptt.callerrors import RegroupFailed
from mcptt_sip.mcptt.contents import CLIENT_HEADERS, INFO_PACKAGE, SipFragment, warning_of
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.policy import Commencement, Urgency
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause, ClientRequest
from mcptt_sip.session import InviteSession
from mcptt_sip.stack import SipStack
from mcptt_sip.subscription import Notified, Subscription
from media.endpoint import MemberMedia

if TYPE_CHECKING:
    from mcptt_sip.mcptt.client import ClientSettings

log = logging.getLogger(__name__)

#: Resource-Priority of a call (RFC 8101); what it is worth, the server decides by the user's rights
PRIORITY = {Urgency.NORMAL: "mcpttp.5", Urgency.IMMINENT_PERIL: "mcpttp.10", Urgency.EMERGENCY: "mcpttp.15"}


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What an initiator asks for. Of these, members believe only what stands in his signed terms."""

    urgency: Urgency = Urgency.NORMAL
    #: how the called users are to answer
    commencement: Commencement = Commencement.AUTOMATIC
    #: without these the server does not answer before its time limit
    required: tuple[str, ...] = ()
    #: ``None``: those of the settings
    deputies: tuple[str, ...] | None = None
    acknowledgement: str | None = None
    #: who arbitrates the floor: ``server``, or ``members`` (the initiator, then his deputies), unread by the server
    floor: str = "server"


ORDINARY = CallOptions()


@dataclass(frozen=True, slots=True)
class RosterAnswer:
    """Awaits one conference document."""

    answer: asyncio.Future[bytes | None]

    def set(self, body: bytes | None) -> None:
        if not self.answer.done():
            self.answer.set_result(body)


class ClientRequests(ABC):
    """Requests in and outside of calls. ``context`` of each is a future, or what takes part in the call."""

    uri: str
    settings: ClientSettings
    stack: SipStack
    #: the time that the stack is told
    stack_time: Callable[[], float]
    random: Callable[[int], bytes]
    credentials: DigestCredentials

    @abstractmethod
    def transmit(self) -> None:
        """Lets the edge send what the stack has to say."""

    @abstractmethod
    def describe(self, media: MemberMedia, key: bytes | None = None) -> GroupMediaDescription:
        """The SDP of this end of a call; ``key`` is a private call's key message."""

    def token(self) -> bytes:
        return self.random(8)

    # --- calls ----------------------------------------------------------------------------------------

    def invite(self, regroup: Regroup, parts: Sequence[Part], options: CallOptions, *, list_: bool) -> InviteSession:
        """Step 1, or (without a list of users) the re-join of a call."""
        content_type, body = build_multipart(list(parts), self.token)
        session = self.stack.invite(
            self.settings.server,
            from_=f"<{self.uri}>",
            headers=[
                *CLIENT_HEADERS,
                options.commencement.header,
                ("Resource-Priority", PRIORITY[options.urgency]),
                ("Recv-Info", INFO_PACKAGE),
                *([("Require", "recipient-list-invite")] if list_ else []),
            ],
            body=body,
            content_type=content_type,
            now=self.stack_time(),
            target=self.settings.proxy,
            credentials=self.credentials,
            context=regroup,
        )
        self.transmit()
        return session

    async def refer(self, regroup: Regroup, refer_to: str, parts: Iterable[Part]) -> SipFragment:
        """One REFER and its outcome: the final sipfrag, or the REFER's own refusal."""
        session = regroup.session
        if session is None or regroup.session_identity is None:
            return SipFragment(487)
        body, content_type = b"", None
        if parts:
            content_type, body = build_multipart(list(parts), self.token)
        outcome: asyncio.Future[SipFragment] = asyncio.get_running_loop().create_future()
        dialog = f"{session.call_id};local-tag={session.remote_tag};remote-tag={session.local_tag}"
        self.stack.refer(
            regroup.session_identity,
            refer_to,
            from_=f"<{self.uri}>",
            headers=[
                *CLIENT_HEADERS,
                ("Require", "tdialog"),
                ("Target-Dialog", dialog),
                ("Referred-By", f"<{self.uri}>"),
            ],
            body=body,
            content_type=content_type,
            now=self.stack_time(),
            target=self.settings.proxy,
            credentials=self.credentials,
            context=outcome,
        )
        self.transmit()
        try:
            async with asyncio.timeout(self.settings.call.add_timeout):
                return await outcome
        except TimeoutError:
            return SipFragment(408)

    async def send_in(self, regroup: Regroup, method: str, content_type: str, body: bytes) -> Response | None:
        """A request in the call's dialog; ``None`` when no answer came."""
        if regroup.session is None:
            return None
        try:
            request = regroup.session.send(method, body=body, content_type=content_type, now=self.stack_time())
        except LocalProtocolError:  # there is no dialog yet, or none any more
            return None
        return await self._final(request)

    async def change(self, regroup: Regroup, info: McpttInfo, urgency: Urgency) -> Response | None:
        """A re-INVITE that changes what the call is; ``None`` when no answer came, or there is no dialog."""
        if regroup.session is None:
            return None
        sdp = self.describe(regroup.media).encode()
        content_type, body = build_multipart(
            [Part("application/sdp", sdp), Part(documents.MCPTT_INFO, info.encode())], self.token
        )
        headers = [*CLIENT_HEADERS, ("Resource-Priority", PRIORITY[urgency])]
        try:
            request = regroup.session.reinvite(
                headers=headers, body=body, content_type=content_type, now=self.stack_time()
            )
        except LocalProtocolError as error:
            log.info("group=%s re-INVITE: %s", regroup.group, error)
            return None
        return await self._final(request)

    async def roster(self, regroup: Regroup) -> tuple[str, ...]:
        """Who is in the call, as the server says (RFC 4575): an assertion of the server, and no proof."""
        if regroup.session_identity is None:
            raise SipError("the call has no session identity")
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.stack.subscribe(
            regroup.session_identity, event="conference", from_=f"<{self.uri}>", expires=0, now=self.stack_time(),
            headers=[*CLIENT_HEADERS, ("Accept", documents.CONFERENCE_INFO)], target=self.settings.proxy,
            credentials=self.credentials, context=RosterAnswer(answer),
        )
        self.transmit()
        body = await answer
        if body is None:
            raise SipError("the server gives no roster")
        users = documents.ConferenceInfo.decode(body).users
        return tuple(user.entity for user in users if user.status == "connected")

    async def ask_to_join(self, group: str) -> None:
        """Asks the group's signer, through the server, for a fresh key: this user was in the call, and lost it.

        Returns when the server has passed it on; the invitation follows if the signer agrees. Raises
        :class:`RegroupFailed`.
        """
        content_type, body = build_multipart(
            [Part(documents.MCPTT_INFO, McpttInfo(request_uri=group, key_operation="join").encode())], self.token
        )
        request = self.stack.compose(
            "MESSAGE", self.settings.server, from_=f"<{self.uri}>", to=f"<{self.settings.server}>",
            headers=list(CLIENT_HEADERS), body=body, content_type=content_type,
        )
        response = await self.request(request)
        if response is None or response.status >= 300:
            status = None if response is None else response.status
            warning = None if response is None else warning_of(response)
            raise RegroupFailed("the server does not let this user join", status, warning)

    async def request(self, request: Request) -> Response | None:
        """A request outside any dialog; its final answer, ``None`` when none came."""
        return await self._final(
            self.stack.request(request, self.stack_time(), target=self.settings.proxy, credentials=self.credentials)
        )

    async def _final(self, request: ClientRequest) -> Response | None:
        answer: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        request.context = answer
        self.transmit()
        return await answer

    # --- outcomes -------------------------------------------------------------------------------------

    @staticmethod
    def answered(request: ClientRequest, response: Response | None) -> None:
        """The final response of a request, or that there was none."""
        context = request.context
        if isinstance(context, asyncio.Future) and not context.done():
            if request.request.method != "REFER":
                context.set_result(response)
            elif response is None or response.status >= 300:
                warning = warning_of(response) if response is not None else None
                context.set_result(SipFragment(response.status if response else 408, warning))

    def notified(self, event: Notified) -> None:
        """A NOTIFY of a REFER's progress, or a conference document."""
        outcome = event.subscription.context
        if isinstance(outcome, RosterAnswer):
            outcome.set(event.request.body)
            return
        if not isinstance(outcome, asyncio.Future) or outcome.done():
            return
        try:
            fragment = SipFragment.decode(event.request.body)
        except SipError as error:
            log.warning("user=%s NOTIFY: %s", self.uri, error)
            return
        if fragment.status >= 200:
            outcome.set_result(fragment)

    @staticmethod
    def unsubscribed(subscription: Subscription, cause: Cause) -> None:
        """A subscription ended without what was waited for."""
        if isinstance(subscription.context, RosterAnswer):
            subscription.context.set(None)
        elif cause is Cause.RESPONSE:
            pass  # the refusal itself says more, and comes as a response
        elif isinstance(subscription.context, asyncio.Future) and not subscription.context.done():
            subscription.context.set_result(SipFragment(408))
