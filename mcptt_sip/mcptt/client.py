# SPDX-License-Identifier: Apache-2.0
"""The MCPTT client: registers, initiates temporary group calls, is invited to them.

::

    async with login("sip:alice@mcx.example", ...) as alice:
        regroup = await alice.regroup(["sip:bob@mcx.example"])
        await regroup.add("sip:carol@mcx.example")
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.body import Part, build_multipart
from mcptt_sip.endpoint import SipEndpoint, steady
from mcptt_sip.errors import SipError
from mcptt_sip.incoming import RequestReceived, ServerRequest
from mcptt_sip.mcptt.call import CallSettings, Regroup
from mcptt_sip.mcptt.callerrors import CallerNotAllowed, RegroupFailed
from mcptt_sip.mcptt.clientrequests import ORDINARY, CallOptions, ClientRequests
from mcptt_sip.mcptt.contents import (
    FEATURE_TAGS,
    INFO_PACKAGE,
    Contents,
    read_contents,
    warning_header,
)
from mcptt_sip.mcptt.directing import DirectedRegroup
from mcptt_sip.mcptt.distribution import DistributionSettings, KeyDistribution
from mcptt_sip.mcptt.initiated import DeputyRegroup, InitiatedRegroup
from mcptt_sip.mcptt.invitation import Invitation, read_invitation
from mcptt_sip.mcptt.journal import GroupRecord, Journal, NoJournal
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MIKEY, GroupTerms
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.policy import warning_text
from mcptt_sip.mcptt.privatecalling import (
    PrivateCall,
    PrivateInvitation,
    call_privately,
    is_private,
    read_private_invitation,
)
from mcptt_sip.mcptt.registration import Registration
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import RequestFailed, ResponseReceived
from mcptt_sip.session import (
    Answered,
    Ended,
    InviteReceived,
    InviteSession,
    Progressed,
    Refused,
)
from mcptt_sip.stack import FlowLost, SipStack, StackSettings
from mcptt_sip.subscription import Notified, Subscription, SubscriptionEnded
from mcptt_sip.trace import TraceSink
from mcptt_sip.transport import TransportSettings
from mcptt_sip.uri import SipUri, parse_uri
from media.endpoint import MemberMedia, MemberSettings
from media.srtp import SrtpKey
from mikey import Keyring, KeyType, MikeyError, ReplayCache, TransportKey, seal, srtp_keys

log = logging.getLogger(__name__)

@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client may set. Times in seconds."""

    server: str  # the server's public service identity, e.g. sip:mcptt@mcx.example
    proxy: str  # where requests are sent, e.g. sip:127.0.0.1:5060;transport=tcp
    username: str
    password: str = field(repr=False)
    #: (transport, host, port) to be reached at beside the connection to the proxy; port 0: any
    listen: tuple[tuple[str, str, int], ...] = (("udp", "127.0.0.1", 0),)
    host: str = "127.0.0.1"  # local address of media
    expires: int = 600
    acknowledgement: str = "required"
    #: who may update and revoke keys, add and remove users, when this user is lost in a call that he initiated
    deputies: tuple[str, ...] = ()
    #: who may draw this user into a group: URIs, or ``sip:*@domain``; ``None``: everyone whose key is in order
    callers: tuple[str, ...] | None = None
    #: calls that are over whose newest key message's time is remembered
    remembered_groups: int = 256
    call: CallSettings = CallSettings()
    distribution: DistributionSettings = DistributionSettings()
    agent: TransportSettings = TransportSettings()


RegroupHandler = Callable[[Invitation], Awaitable[None]]
PrivateHandler = Callable[[PrivateInvitation], Coroutine[Any, Any, None]]
EventSink = Callable[[str, dict[str, Any]], None]
KeyObserver = Callable[[str, TransportKey], None]
MediaTrace = Callable[[str, bool, tuple[str, int], tuple[str, int], bytes, float], None]


class McpttClient(ClientRequests):
    """One user's client; :func:`~mcptt_sip.mcptt.account.login` makes one with its keys.

    :param keyring: the user's validated key sets and the KMS certificates that he trusts
    :param replay: remembers accepted I_MESSAGEs, in one transaction with their keys
    :param on_event: told everything that happens, as (name, details); must not block
    :param media_trace: told every media and floor datagram, see :class:`media.endpoint.MemberMedia`
    :param journal: ``journal(group)`` gives the journal of a group that this client initiates; without it a crash ends
        this client's part in the calls that it initiated
    :param key_observer: told every group key that is installed, as (group, key); for tests and captures only
    """

    #: what a call is made of; a test may put a faulty one here
    member_class: type[Regroup] = Regroup
    initiated_class: type[InitiatedRegroup] = InitiatedRegroup
    media_class: type[MemberMedia] = MemberMedia

    def __init__(
        self,
        uri: str,
        settings: ClientSettings,
        *,
        keyring: Keyring,
        replay: ReplayCache,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        trace: TraceSink | None = None,
        on_event: EventSink | None = None,
        media_trace: MediaTrace | None = None,
        key_observer: KeyObserver | None = None,
        journal: Callable[[str], Journal] | None = None,
    ) -> None:
        self.uri = uri
        self.settings = settings
        self.keyring = keyring
        self.replay = replay
        self.domain = SipUri.parse(uri).host
        #: the time of day, by which keys go; and the stack's time, which nobody sets
        self.now, self.stack_time = clock, steady(clock)
        self.random = random
        self.client_id = f"urn:uuid:{_uuid(random(16))}"
        self.csk = TransportKey.generate(KeyType.CSK, random=random)
        self.calls: dict[str, Regroup] = {}
        #: group -> T of the newest key message of a call that is over
        self._last_times: dict[str, float] = {}
        #: (transport, host, port) of each listener, once started
        self.addresses: list[tuple[str, str, int]] = []
        self._handler: RegroupHandler | None = None
        self._private_handler: PrivateHandler | None = None
        self._sink = on_event
        self._media_trace = media_trace
        self.key_observer = key_observer
        self._journal: Callable[[str], Journal] = journal if journal is not None else lambda _group: NoJournal()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.credentials = DigestCredentials(settings.username, settings.password)
        params = tuple(item.partition("=")[::2] for item in FEATURE_TAGS.split(";"))
        stack = SipStack(
            StackSettings(
                user=SipUri.parse(uri).user,
                contact_params=tuple((name, value or None) for name, value in params),
                accept=("application/sdp", "multipart/mixed", "multipart/*", MIKEY, ACKNOWLEDGEMENT),
            ),
            token=lambda: random(8),
        )
        self.stack = stack
        self._agent = SipEndpoint(
            stack, on_event=self._on_event, clock=self.stack_time, trace=trace, settings=settings.agent
        )
        self.registration = Registration(self)

    # --- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds, connects to the server, registers. Raises :class:`RegistrationFailed`."""
        try:
            for transport, host, port in self.settings.listen:
                self.addresses.append((transport, *await self._agent.listen(transport, host, port)))
            await self.registration.begin()
        except BaseException:
            await self._agent.close()
            raise

    async def aclose(self) -> None:
        """Leaves every call, unregisters, lets go of sockets."""
        self.registration.stop()
        for call in list(self.calls.values()):
            await call.leave()
        await self.registration.end()
        for task in list(self._tasks):
            task.cancel()
        await self._agent.close()

    async def vanish(self) -> None:
        """As if the process had been killed: nothing is said, the sockets close. For tests and load."""
        self.registration.stop()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        for call in list(self.calls.values()):
            await call.media.close()
        self.calls.clear()
        await self._agent.close()

    # --- calls ----------------------------------------------------------------------------------------

    async def regroup(self, users: Sequence[str], options: CallOptions = ORDINARY) -> InitiatedRegroup:
        """Initiates a temporary group call with ``users``: the first by INVITE, the others by REFER.

        Returns when the server has answered and the first key is proved; the others are being added then,
        and a failed add is an event of the call. Raises :class:`RegroupFailed`.
        """
        if not users:
            raise ValueError("a regroup call names at least one user")
        if isinstance(users, str):
            raise ValueError("the users of a regroup call are a sequence of URIs")
        regroup = await self.start_regroup(users[0], options)
        for user in users[1:]:
            self.spawn(self._add_later(regroup, user))
        return regroup

    async def start_regroup(self, user: str, options: CallOptions = ORDINARY) -> InitiatedRegroup:
        if user == self.uri:
            raise ValueError(f"{user} is who calls")
        regroup = await self.prepare_regroup(options)
        await self.establish(regroup, user)
        return regroup

    async def prepare_regroup(self, options: CallOptions = ORDINARY) -> InitiatedRegroup:
        """A call with its group id and media sockets, before anything is sent."""
        group = f"sip:tmp-{self.random(16).hex()}@{self.domain}"
        deputies = self.settings.deputies if options.deputies is None else options.deputies
        terms = GroupTerms(options.acknowledgement or self.settings.acknowledgement, options.floor, deputies)
        distribution = KeyDistribution(
            group, self.uri, terms, **self._distribution_parts(), journal=self._journal(group)
        )
        regroup = await self._initiated(distribution)
        regroup.options = options
        return regroup

    async def _initiated(self, distribution: KeyDistribution) -> InitiatedRegroup:
        media = await self.open_media()
        regroup = self.initiated_class(self, distribution.group, media, distribution, self.settings.call)
        regroup.arbitrate()
        self.attach(regroup)
        return regroup

    def _distribution_parts(self) -> dict[str, Any]:
        return {
            "seal": self._seal, "verify": self.verify_signature, "random": self.random,
            "settings": self.settings.distribution,
        }

    async def come_back(self, record: GroupRecord) -> InitiatedRegroup:
        """Goes on with a call that this client initiated before it was restarted; ``record`` is what its journal tells.

        See :meth:`InitiatedRegroup.come_back`.
        """
        distribution = KeyDistribution.resume(
            record, **self._distribution_parts(), journal=self._journal(record.group)
        )
        regroup = await self._initiated(distribution)
        regroup.session_identity = record.session_identity
        try:
            await regroup.come_back()
        except RegroupFailed:
            await regroup.abandon()
            raise
        return regroup

    async def succeed(self, member: Regroup, users: Iterable[str]) -> DeputyRegroup:
        """See :meth:`Regroup.take_over`."""
        listed = member.member_list.users if member.member_list is not None else ()
        named = {user for user in (*listed, *users) if user not in (self.uri, member.initiator)}
        # whom the deputy adds takes keys from those who come before him too, when they are back
        others = (user for user in member.terms.deputies if user != self.uri)
        terms = replace(member.terms, deputies=(member.initiator, *others))
        distribution = KeyDistribution(member.group, self.uri, terms, **self._distribution_parts())
        call = DeputyRegroup.succeed(member, distribution, self.settings.call, sorted(named))
        await call.begin()
        return call

    async def establish(self, regroup: InitiatedRegroup, user: str) -> None:
        try:
            await regroup.establish(user)
        except BaseException:
            await regroup.abandon()
            raise

    async def _add_later(self, regroup: InitiatedRegroup, user: str) -> None:
        try:
            await regroup.add(user)
        except (SipError, ValueError) as error:
            log.info("group=%s %s", regroup.group, error)

    def _seal(self, key: TransportKey, recipient: str, now: float) -> Any:
        return seal(
            key, sender=self.uri, recipient=recipient, keyring=self.keyring, now=now, random=self.random
        )

    def verify_signature(self, user: str, octets: bytes, signature: bytes, at: float) -> None:
        """Returns when it is the ECCSI signature of ``user`` at that time, raises :class:`mikey.MikeyError` else."""
        self.keyring.verify_signature(octets, signature, user, at)

    def sign(self, octets: bytes) -> bytes:
        """This user's ECCSI signature."""
        return self.keyring.key_set_for(self.uri, self.now()).sign(octets)

    def on_regroup(self, handler: RegroupHandler) -> RegroupHandler:
        """Registers who is asked about an invitation whose signature, key and terms are in order."""
        self._handler = handler
        return handler

    # --- being invited (step 5) -----------------------------------------------------------------------

    def _invited(self, session: InviteSession) -> None:
        try:
            if is_private(session):
                self._invited_privately(read_private_invitation(self, session))
                return
            invitation = read_invitation(self, session)
        except CallerNotAllowed as error:
            log.info("call-id=%s %s", session.call_id, error)
            self.emit("invitation-refused", call_id=session.call_id, reason=type(error).__name__)
            session.reject(403, headers=warning_header(self.domain, warning_text(127)), now=self.stack_time())
            return
        except (SipError, MikeyError, ValueError) as error:
            # one answer for every reason: what exactly failed stays in the local log
            log.warning("call-id=%s invitation refused: %s: %s", session.call_id, type(error).__name__, error)
            self.emit("invitation-refused", call_id=session.call_id, reason=type(error).__name__)
            session.reject(488, headers=self.key_refusal(), now=self.stack_time())
            return
        self.emit(
            "invited", group=invitation.group, user=invitation.initiator, call_id=session.call_id,
            gmk_id=f"{invitation.opened.key.key_id:08x}", urgency=invitation.urgency.value,
        )
        if self._handler is None or invitation.group in self.calls or self._is_overtaken(invitation):
            session.reject(486, now=self.stack_time())
            return
        self.spawn(self._ask(invitation))

    def _invited_privately(self, invitation: PrivateInvitation) -> None:
        session = invitation.session
        self.emit("invited-privately", user=invitation.caller, call_id=session.call_id)
        if self._private_handler is None:
            session.reject(486, now=self.stack_time())
        else:
            self.spawn(self._ask_privately(self._private_handler, invitation))

    async def _ask_privately(self, handler: PrivateHandler, invitation: PrivateInvitation) -> None:
        try:
            await handler(invitation)
        except Exception:  # the application's fault is not the caller's: he has his answer at once
            log.exception("user=%s private call", invitation.caller)
            if invitation.session.context is None and not invitation.session.ended:
                invitation.decline()

    def on_private_call(self, handler: PrivateHandler) -> PrivateHandler:
        """Registers who is asked about a private call whose signature and key are in order."""
        self._private_handler = handler
        return handler

    async def private_call(self, user: str) -> PrivateCall:
        """Calls ``user`` alone, under a key that only the two hold. Raises :class:`RegroupFailed`."""
        return await call_privately(self, user)

    def check_caller(self, caller: str) -> None:
        """This user's own policy (step 5, rule 22): asked of the claimed identity, before the key is opened for it,
        which is dear (rule 26). Raises :class:`CallerNotAllowed`."""
        callers = self.settings.callers
        if callers is None or caller in callers:
            return
        uri = parse_uri(caller)
        if not isinstance(uri, SipUri) or f"sip:*@{uri.host.lower()}" not in callers:
            raise CallerNotAllowed(f"{caller} is not among those who may call")

    async def _ask(self, invitation: Invitation) -> None:
        assert self._handler is not None
        try:
            await self._handler(invitation)
        except SipError as error:
            log.warning("group=%s invitation: %s", invitation.group, error)
        except Exception:  # the application's fault is not the caller's: he has his answer at once
            log.exception("group=%s invitation", invitation.group)
            if self._unanswered(invitation):
                invitation.decline()
        if self._unanswered(invitation):
            await self.sleep(self.settings.call.ring_limit)
            if self._unanswered(invitation):
                invitation.decline()

    def _is_overtaken(self, invitation: Invitation) -> bool:
        """Whether a key message of this group that was made later has been taken: in the call there is, or in one that
        is over (rule 14). What is held up on its way must not bring a key back that was replaced."""
        call = self.calls.get(invitation.group)
        last = self._last_times.get(invitation.group) if call is None else call.keys.last_timestamp
        return last is not None and invitation.opened.timestamp < last

    @staticmethod
    def _unanswered(invitation: Invitation) -> bool:
        return invitation.session.context is None and not invitation.session.ended

    def key_refusal(self) -> list[tuple[str, object]]:
        return warning_header(self.domain, warning_text(136))

    async def accept(self, invitation: Invitation) -> Regroup:
        previous = self.calls.get(invitation.group)
        if previous is not None and previous.initiator != invitation.initiator:
            invitation.decline()
            raise SipError(f"this user is in a call of {previous.initiator} with that group id")
        if self._is_overtaken(invitation):
            if not invitation.session.ended:
                invitation.decline()
            raise SipError(f"a later invitation to {invitation.group} was accepted")
        if previous is not None:
            # two invitations came at once, the first of which the server has given up meanwhile (rule 21)
            await previous.leave()
        media = await self.open_media()
        regroup = self.member_class(self, invitation.group, invitation.initiator, media, invitation.terms)
        self.attach(regroup)
        regroup.session = invitation.session
        contacts = invitation.session.request.headers.contact
        regroup.session_identity = str(contacts[0].uri) if contacts else None
        invitation.session.context, invitation.session.credentials = regroup, self.credentials
        try:
            regroup.arbitrate()
            regroup.urgency = invitation.urgency
            regroup.install(invitation.opened.key, invitation.opened.timestamp)
            media.connect(invitation.theirs.audio, invitation.theirs.floor)
            parts = [Part("application/sdp", self.describe(media).encode())]
            if invitation.terms.acknowledgement != "none":
                parts.append(Part(ACKNOWLEDGEMENT, regroup.acknowledgement(invitation.opened)))
            content_type, body = build_multipart(parts, self.token)
            invitation.session.accept(
                headers=[("Recv-Info", INFO_PACKAGE)], body=body, content_type=content_type, now=self.stack_time()
            )
        except SipError:
            # the caller has given up while this user thought about it, or the key has come to its end
            await regroup.leave()
            raise
        self.transmit()
        regroup.emit("joined", user=invitation.initiator)
        return regroup

    async def open_media(self, settings: MemberSettings | None = None) -> MemberMedia:
        """Media sockets of a call, with this client's CSK for floor control."""
        master, salt = srtp_keys(self.csk, csb_id=self.csk.key_id, cs_id=6)
        csk = SrtpKey(master.reveal(), salt.reveal(), self.csk.mki(self.csk.key_id))
        media = await self.media_class.open(
            self.settings.host, user=self.uri, clock=self.now, settings=settings
        )
        media.set_csk(csk)
        media.trace = self._media_trace
        return media

    def attach(self, regroup: Regroup) -> None:
        """The call is this client's from now on, and its media asks it for keys."""
        media = regroup.media
        self.calls[regroup.group] = regroup
        media.find_key = regroup.find_key
        media.talker_guk_ids = regroup.talker_guk_ids
        media.on_event = regroup.on_media_event

    def describe(self, media: MemberMedia, key: bytes | None = None) -> GroupMediaDescription:
        return GroupMediaDescription(audio=media.audio_address, floor=media.floor_address, ssrc=media.ssrc, key=key)

    def forget(self, regroup: Regroup) -> None:
        """The call is over. The T of its newest key message stays known: see :meth:`_is_overtaken`."""
        self._last_times.pop(regroup.group, None)
        self._last_times[regroup.group] = regroup.keys.last_timestamp
        while len(self._last_times) > self.settings.remembered_groups:
            del self._last_times[next(iter(self._last_times))]
        if self.calls.get(regroup.group) is regroup:
            del self.calls[regroup.group]

    def transmit(self) -> None:
        """Lets the edge send what the stack has to say."""
        self._agent.transmit()

    def contents_of(self, message: Request | Response) -> Contents:
        return read_contents(message)

    # --- events of the stack --------------------------------------------------------------------------

    def _on_event(self, event: object, _now: float) -> None:
        match event:
            case InviteReceived(session):
                self._invited(session)
            case Progressed(session, response) if isinstance(session.context, InitiatedRegroup | PrivateCall):
                session.context.on_progress(response)
            case Answered(session, response) if isinstance(session.context, InitiatedRegroup | PrivateCall):
                session.context.on_answered(response)
            case Refused(session, response, cause) if isinstance(session.context, InitiatedRegroup | PrivateCall):
                session.context.on_refused(response, cause)
            case Ended(session, cause, request) if isinstance(session.context, Regroup):
                session.context.on_session_ended(cause, request)
            case RequestReceived(incoming):
                self._requested(incoming)
            case ResponseReceived(request, response) if response.status >= 200:
                self.answered(request, response)
            case RequestFailed(request, _):
                self.answered(request, None)
            case Notified():
                self.notified(event)
            case SubscriptionEnded(subscription, ended, _) if isinstance(subscription, Subscription):
                self.unsubscribed(subscription, ended)
            case FlowLost():
                self.registration.flow_lost()
            case _:
                log.debug("user=%s event %s", self.uri, type(event).__name__)

    def _requested(self, incoming: ServerRequest) -> None:
        session = incoming.session
        regroup = session.context if session is not None else None
        method = incoming.request.method
        if method == "OPTIONS":
            incoming.respond(200, now=self.stack_time())
            return
        if method not in ("MESSAGE", "INFO", "INVITE", "UPDATE") or not isinstance(regroup, Regroup):
            incoming.respond(403 if method in ("MESSAGE", "INFO") else 405, now=self.stack_time())
            return
        try:
            contents = read_contents(incoming.request)
        except SipError as error:
            incoming.respond(getattr(error, "status", 400), now=self.stack_time())
            return
        if method in ("INVITE", "UPDATE"):
            regroup.on_change(incoming, contents)
        elif contents.mikey is not None and method == "MESSAGE":
            regroup.on_key_message(incoming, contents)
        elif contents.member_list is not None and method == "MESSAGE":
            regroup.on_member_list(contents.member_list)
            incoming.respond(200, now=self.stack_time())
        elif contents.info.key_operation == "request" and isinstance(regroup, DirectedRegroup):
            regroup.on_key_request(contents.info.request_uri or "")
            incoming.respond(200, now=self.stack_time())
        elif contents.acknowledgements and isinstance(regroup, DirectedRegroup):
            for octets in contents.acknowledgements:
                regroup.on_acknowledgement(octets)
            incoming.respond(200, now=self.stack_time())
        elif method == "INFO" and (contents.info.non_acknowledged or contents.info.alert is False):
            # the server's word: who did not answer when the call proceeded (24.379 6.3.3.3), or that nobody is alerted
            regroup.emit(
                "notice", not_acknowledged=list(contents.info.non_acknowledged), alert=contents.info.alert
            )
            incoming.respond(200, now=self.stack_time())
        else:
            incoming.respond(415, now=self.stack_time())

    # --- small things ---------------------------------------------------------------------------------

    def emit(self, name: str, **details: Any) -> None:
        if self._sink is not None:
            self._sink(name, details)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work`` beside everything else; a failure is logged, never lost."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("user=%s", self.uri, exc_info=task.exception())

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)


def _uuid(octets: bytes) -> str:
    import uuid

    return str(uuid.UUID(bytes=octets, version=4))
