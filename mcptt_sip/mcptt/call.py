# SPDX-License-Identifier: Apache-2.0
"""A temporary group call as one participant has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcptt_sip.errors import SipError
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt.callerrors import ChangeRefused, NotADeputy
from mcptt_sip.mcptt.contents import Contents, warning_of
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupkeys import GroupKeys
from mcptt_sip.mcptt.invitation import open_group_key
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, INSTALLED, REVOKED, AcknowledgementError, GroupTerms, acknowledge
from mcptt_sip.mcptt.mediadescription import INDICATED, GroupMediaDescription, MediaRefused
from mcptt_sip.mcptt.memberlist import MemberList, MemberListError, read_members
from mcptt_sip.mcptt.policy import Urgency
from mcptt_sip.mcptt.talkbursts import Listening, TalkBurst
from mcptt_sip.mcptt.urgency import change, statement
from mcptt_sip.message import Request
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import InviteSession
from media.endpoint import MemberMedia
from media.srtp import SrtpKey
from mikey import MikeyError, OpenedKey, TransportKey, guk_id, srtp_keys
from mikey.errors import Replayed

if TYPE_CHECKING:
    from mcptt_sip.mcptt.client import McpttClient
    from mcptt_sip.mcptt.directing import DirectedRegroup

log = logging.getLogger(__name__)

#: CS-ID of MCPTT group media (TS 33.180 E.1.3)
MCPTT_GROUP = 4
#: talkers under ended keys that are told of
MAX_STALE = 100
#: events that wait for a reader
MAX_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class RegroupEvent:
    """Something that happened in the call: ``name`` and what belongs to it."""

    name: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallSettings:
    """Times in seconds."""

    #: REFERs under way at once
    refer_window: int = 32
    #: after this long without acknowledgement a key MESSAGE is sent again, the same octets
    resend_after: float = 2.0
    #: how often it is sent at the most
    send_attempts: int = 4
    #: how long an added user may take to answer
    add_timeout: float = 60.0
    #: for so long after the own change to a newer key the one before is still received under
    key_grace: float = 4.0
    #: an invitation that the user has not answered for so long is declined: the caller's CANCEL may have been lost
    ring_limit: float = 180.0
    #: how long a key's timer runs at the most: keys go by the time of day, which may be set while a call goes on
    clock_check: float = 10.0


class Regroup:
    """One call of a member. Leave it with ``async with`` or :meth:`leave`.

    ``events`` is a queue of :class:`RegroupEvent`; ``ended`` is set when the call is over, whoever ended it.
    """

    def __init__(
        self, client: McpttClient, group: str, initiator: str, media: MemberMedia, terms: GroupTerms
    ) -> None:
        self.client = client
        self.group = group
        self.initiator = initiator
        self.me = client.uri
        self.media = media
        self.terms = terms
        self.keys = GroupKeys(group, initiator, grace=client.settings.call.key_grace)
        #: MKIs of ended keys under which somebody still talks; each is told once
        self._stale: set[bytes] = set()
        self.session: InviteSession | None = None
        self.session_identity: str | None = None
        self.ended = asyncio.Event()
        #: the newest :data:`MAX_EVENTS`
        self.events: asyncio.Queue[RegroupEvent] = asyncio.Queue(MAX_EVENTS)
        #: what the server says of the call
        self.urgency = Urgency.NORMAL
        #: the newest list of members that the key's signer signed
        self.member_list: MemberList | None = None
        self._listening: set[Listening] = set()
        self._known: set[str] = set()
        self._key_timer: asyncio.TimerHandle | None = None
        self._sending_id: int | None = None

    # --- life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Regroup:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self, why: str = "left") -> None:
        """Only this participant leaves; keys are dropped."""
        if self.session is not None and not self.ended.is_set():
            self.session.bye(self.client.stack_time())
            self.client.transmit()
        await self._end(why)

    async def _end(self, cause: str) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        if self._key_timer is not None:
            self._key_timer.cancel()
        self.client.forget(self)
        self.emit("ended", cause=cause)
        await self.media.close()
        for listening in self._listening:
            listening.close()
        self.keys.drop_all()

    def hand_over(self, successor: Regroup) -> None:
        """``successor`` has this call's session, keys and media from now on."""
        if self._key_timer is not None:
            self._key_timer.cancel()
        successor._sending_id = self._sending_id
        successor._listening = self._listening
        successor._known = self._known
        if self.session is not None:
            self.session.context = successor
        self.client.attach(successor)
        successor.apply_keys()

    def on_session_ended(self, cause: Cause, request: Request | None) -> None:
        """The server's BYE, or the session is dead."""
        reason = request.headers.get("Reason") if request is not None else None
        self.client.spawn(self._end(reason or cause.value))

    def emit(self, name: str, **details: Any) -> None:
        self.client.emit(name, group=self.group, **details)
        if self.events.full():  # nobody reads them
            self.events.get_nowait()
        self.events.put_nowait(RegroupEvent(name, details))

    # --- keys -----------------------------------------------------------------------------------------

    def install(self, key: TransportKey, timestamp: float) -> None:
        """Holds a key that passed every check, and sends under it when it is time."""
        held = self.keys.install(key, timestamp, self.client.now())
        if self.client.key_observer is not None:
            self.client.key_observer(self.group, key)
        self.emit("key", gmk_id=f"{key.key_id:08x}", send_from=held.send_from, expires=held.expires)
        self.apply_keys()

    def apply_keys(self) -> None:
        """Lets the media side send under the key in force, and nothing when there is none."""
        now = self.client.now()
        if self._key_timer is not None:
            self._key_timer.cancel()
            self._key_timer = None
        key = self.keys.sending(now)
        if (key.key_id if key else None) != self._sending_id:
            self._sending_id = key.key_id if key else None
            self.media.set_sending_key(self.srtp_key(key, guk_id(key, self.me)) if key else None)
            self.emit("sending-key", gmk_id=f"{key.key_id:08x}" if key else None)
        for key_id in self.keys.drop_ended(now):
            self.media.retire_key(key_id.to_bytes(4, "big"))
            self.emit("key-ended", gmk_id=f"{key_id:08x}")
        if self.keys.exhausted and not self.ended.is_set():
            # without the initiator or a deputy nobody can replace the key: the call is over with it (rule 15)
            self.client.spawn(self.leave("the group's key has expired"))
            return
        due = self.keys.next_timer()
        if due is not None and not self.ended.is_set():
            loop = asyncio.get_running_loop()
            wait = min(max(0.0, due - now) + 0.001, self.client.settings.call.clock_check)
            self._key_timer = loop.call_later(wait, self.apply_keys)

    def find_key(self, mki: bytes) -> SrtpKey | None:
        """The sender's SRTP key behind an MKI = GMK-ID || GUK-ID, while its GMK may be received under."""
        if len(mki) != 8:
            return None
        gmk_id, now = int.from_bytes(mki[:4], "big"), self.client.now()
        key = self.keys.receiving(gmk_id, now)
        if key is not None:
            return self.srtp_key(key, int.from_bytes(mki[4:], "big"))
        if self.keys.has_ended(gmk_id, now) and mki not in self._stale and len(self._stale) < MAX_STALE:
            # he missed an update, was removed, or somebody plays old packets (rule 2)
            self._stale.add(mki)
            self.emit("stale-talker", gmk_id=f"{gmk_id:08x}", guk_id=mki[4:].hex())
        return None

    @staticmethod
    def srtp_key(key: TransportKey, csb_id: int) -> SrtpKey:
        """One sender's SRTP master key and salt: TGK = TGMK, CSB-ID = that sender's GUK-ID, CS-ID 4."""
        master, salt = srtp_keys(key, csb_id=csb_id, cs_id=MCPTT_GROUP)
        return SrtpKey(master.reveal(), salt.reveal(), key.mki(csb_id))

    def talker_guk_ids(self, user: str) -> frozenset[bytes]:
        """The GUK-IDs (4 octets each) that ``user`` sends media under, one for each key in force."""
        now = self.client.now()
        return frozenset(guk_id(key, user).to_bytes(4, "big") for key in self.keys.held(now))

    @property
    def signers(self) -> tuple[str, ...]:
        """Whose keys are taken: the pinned signer's, and those of the deputies that he named in signed text (15)."""
        return (self.initiator, *self.terms.deputies)

    def arbitrate(self) -> None:
        """Takes the floor's placement from the signed terms, and from nowhere else (rule 19); before any media."""
        if self.terms.floor == "members":
            self.media.arbitrate(self.signers)

    def on_key_message(self, incoming: ServerRequest, contents: Contents) -> None:
        """A MESSAGE with an I_MESSAGE in this call: an update, or a revocation, from the pinned signer or a deputy."""
        now = self.client.stack_time()
        assert contents.mikey is not None
        try:
            signer = contents.info.calling_user_id
            if signer not in self.signers or contents.info.calling_group_id != self.group:
                raise AcknowledgementError("not from this call's signer, or not for this group")
            try:
                opened = open_group_key(self.client, contents.mikey, signer, self.group, update=True)
                result = self._take(opened)
            except Replayed as replayed:
                # our acknowledgement was lost: the same one again, and nothing is installed (rule 7)
                if replayed.opened is None or not self.keys.holds(replayed.opened.key.key_id):
                    raise
                opened = replayed.opened
                result = REVOKED if opened.key.revoked else INSTALLED
        except (SipError, MikeyError) as error:
            log.warning("group=%s key message refused: %s", self.group, error)
            self.emit("key-refused", reason=type(error).__name__)
            incoming.respond(488, headers=self.client.key_refusal(), now=now)
            return
        incoming.respond(200, now=now)
        answer = self.acknowledgement(opened, result)
        assert self.session is not None
        self.session.send("MESSAGE", body=answer, content_type=ACKNOWLEDGEMENT, now=now)

    def _take(self, opened: OpenedKey) -> int:
        if opened.key.revoked:
            self.keys.revoke(opened.key, opened.timestamp)
            self.emit("revoked", gmk_id=f"{opened.key.key_id:08x}")
            self.apply_keys()
            self.media.retire_key(opened.key.key_id.to_bytes(4, "big"))
            return REVOKED
        if not self.keys.holds(opened.key.key_id):
            self.install(opened.key, opened.timestamp)
        return INSTALLED

    def acknowledgement(self, opened: OpenedKey, result: int = INSTALLED) -> bytes:
        """This user's proof that he holds ``opened``'s key."""
        return acknowledge(
            opened.key,
            csb_id=opened.csb_id,
            digest=opened.signed_digest,
            group=self.group,
            user=self.me,
            sign=self.client.sign,
            result=result,
        ).encode()

    def on_member_list(self, octets: bytes) -> None:
        """Whom the signer says that he sealed the key to; older and unsigned lists change nothing."""
        try:
            found = read_members(octets, group=self.group, signers=self.signers, verify=self.client.verify_signature)
        except MemberListError as error:
            log.warning("group=%s list of members: %s", self.group, error)
            return
        held = self.member_list
        if held is None or (found.at, found.number) > (held.at, held.number):
            self.member_list = found
            self._know(found.users)
            self.emit("member-list", users=list(found.users), signer=found.signer, number=found.number)

    def _know(self, users: Iterable[str]) -> None:
        """Whose floor messages a member who arbitrates, or will, listens to."""
        if self.terms.floor != "members":
            return
        known = {user for user in users if user != self.me}
        for user in sorted(known - self._known):
            self.media.member_joined(user)
        for user in sorted(self._known - known):
            self.media.member_left(user)
        self._known = known

    async def take_over(self, users: Iterable[str] = ()) -> DirectedRegroup:
        """A deputy goes on in the lost initiator's stead: a new TGMK for ``users`` and for those of the signed list.

        Returns the call that can add, remove and rekey; it stands in this one's place. Raises :class:`NotADeputy`,
        and :class:`~mcptt_sip.mcptt.callerrors.NotRekeyed` when somebody did not acknowledge (the call goes on).
        """
        if self.me not in self.terms.deputies:
            raise NotADeputy(f"{self.me} is not among the deputies that {self.initiator} signed for")
        return await self.client.succeed(self, users)

    # --- urgency --------------------------------------------------------------------------------------

    async def declare(self, urgency: Urgency) -> None:
        """Makes the running call an emergency or imminent peril call, or takes that back (24.379 10.1.1.2.1.3, .4).

        From then on this user's floor requests go before others. Raises
        :class:`~mcptt_sip.mcptt.callerrors.ChangeRefused` when he may not.
        """
        emergency, peril = statement(urgency, self.urgency)
        info = McpttInfo(
            session_type="prearranged", request_uri=self.group, client_id=self.client.client_id, emergency=emergency,
            imminent_peril=peril,
        )
        response = await self.client.change(self, info, urgency)
        if response is None or response.status >= 300:
            status, warning = (None, None) if response is None else (response.status, warning_of(response))
            raise ChangeRefused(f"the call was not made {urgency.value}", status, warning)
        standing = self.client.calls.get(self.group, self)  # this user may have taken over meanwhile
        standing.media.declare(INDICATED[urgency])
        standing._is_now(urgency, self.me)

    def on_change(self, incoming: ServerRequest, contents: Contents) -> None:
        """The server's re-INVITE: what the call is from now on. Its media stays where it is."""
        now = self.client.stack_time()
        try:
            theirs, urgency = GroupMediaDescription.decode(contents.sdp), change(contents.info, self.urgency)
            if not self.media.is_connected(theirs.audio, theirs.floor):
                raise MediaRefused("the call's media does not move")
        except SipError as error:
            log.warning("group=%s change refused: %s", self.group, error)
            incoming.respond(488, now=now)
            return
        body = self.client.describe(self.media).encode()
        incoming.respond(200, body=body, content_type="application/sdp", now=now)
        if urgency is not None:
            if urgency is not self.urgency:
                self.media.declare(INDICATED[Urgency.NORMAL])
            self._is_now(urgency, contents.info.calling_user_id)

    def _is_now(self, urgency: Urgency, user: str | None) -> None:
        self.urgency = urgency
        self.emit("urgency", urgency=urgency.value, user=user)

    # --- floor and media ------------------------------------------------------------------------------

    @asynccontextmanager
    async def floor(self, priority: int = 0) -> AsyncIterator[None]:
        """The right to talk, from grant to release. Raises the floor errors of :mod:`media`."""
        await self.media.request_floor(priority)
        try:
            yield
        finally:
            await self.media.release_floor()

    def on_media_event(self, name: str, details: dict[str, Any]) -> None:
        """What floor control and media tell; the same names, with this call's group."""
        self.emit(name, **details)
        if name == "burst-heard":
            for listening in self._listening:
                listening.ended(details["user"])
        if name == "ssrc-clash":
            # two senders of one SRTCP key and SSRC would share an IV: the leg ends (rule 18)
            self.client.spawn(self.leave())

    async def talk_bursts(self) -> AsyncIterator[TalkBurst]:
        """Everyone who talks from now on, each as soon as he is heard, until the call ends.

        ::

            async for talker in regroup.talk_bursts():
                await talker.record(f"{talker.user}.wav")
        """
        listening = Listening()
        if self.ended.is_set():
            return
        self._listening.add(listening)
        self.media.listeners.append(listening.heard)
        try:
            async for burst in listening.bursts():
                yield burst
        finally:
            self._listening.discard(listening)
            self.media.listeners.remove(listening.heard)

    async def say(self, path: Path | str) -> dict[str, float]:
        """Talks an audio file; its start (Unix seconds) and duration. The floor must be held."""
        return await self.media.send_file(path)
