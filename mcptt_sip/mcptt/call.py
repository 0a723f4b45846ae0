# SPDX-License-Identifier: Apache-2.0
"""A temporary group call as one participant has it: :class:`Regroup`, and :class:`InitiatedRegroup` for client 1."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import SipError
from mcptt_sip.headers import NameAddr
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import NOT_IN_CALL, RELEASE_FOR_ALL, Contents, SipFragment, warning_of
from mcptt_sip.mcptt.distribution import GukIdCollision, KeyDistribution, Sealing
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupkeys import GroupKeys
from mcptt_sip.mcptt.invitation import open_group_key
from mcptt_sip.mcptt.keying import (
    ACKNOWLEDGEMENT,
    INSTALLED,
    MIKEY,
    REVOKED,
    AcknowledgementError,
    GroupTerms,
    acknowledge,
)
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause
from mcptt_sip.session import InviteSession
from media.endpoint import MemberMedia
from media.srtp import SrtpKey
from mikey import MikeyError, OpenedKey, TransportKey, guk_id, srtp_keys
from mikey.errors import Replayed

if TYPE_CHECKING:
    from mcptt_sip.mcptt.client import McpttClient

log = logging.getLogger(__name__)

#: says what the list of users in an INVITE is for (RFC 5366 3.2)
RECIPIENT_LIST = (("Content-Disposition", "recipient-list"),)
#: CS-ID of MCPTT group media (TS 33.180 E.1.3)
MCPTT_GROUP = 4


class AddFailed(SipError):
    """One user could not be added, or did not prove that he holds the key. The call goes on."""

    def __init__(self, user: str, status: int, warning: str | None = None) -> None:
        super().__init__(f"{user} was not added: {status}" + (f" ({warning})" if warning else ""))
        self.user = user
        self.status = status
        self.warning = warning


class RegroupFailed(SipError):
    """The call was not established; ``status`` and ``warning`` are the server's, or say what was missing."""

    def __init__(self, why: str, status: int | None = None, warning: str | None = None) -> None:
        super().__init__(f"{why}" + (f": {status}" if status else "") + (f" ({warning})" if warning else ""))
        self.status = status
        self.warning = warning


class NotRekeyed(SipError):
    """These users did not acknowledge a new key (or a revocation) in time; they count as not keyed."""

    def __init__(self, users: frozenset[str]) -> None:
        super().__init__("no acknowledgement from " + ", ".join(sorted(users)))
        self.users = users


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
        self.keys = GroupKeys(group, initiator)
        self.session: InviteSession | None = None
        self.session_identity: str | None = None
        self.ended = asyncio.Event()
        self.end_cause = ""
        self.events: asyncio.Queue[RegroupEvent] = asyncio.Queue()
        self._key_timer: asyncio.TimerHandle | None = None
        self._sending_id: int | None = None

    # --- life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Regroup:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Only this participant leaves; keys are dropped."""
        if self.session is not None and not self.ended.is_set():
            self.session.bye(self.client.now())
            self.client.transmit()
        await self._end("left")

    async def _end(self, cause: str) -> None:
        if self.ended.is_set():
            return
        self.end_cause = cause
        self.ended.set()
        if self._key_timer is not None:
            self._key_timer.cancel()
        self.client.forget(self)
        self.emit("ended", cause=cause)
        await self.media.close()
        self.keys.drop_all()

    def on_session_ended(self, cause: Cause, request: Request | None) -> None:
        """The server's BYE, or the session is dead."""
        reason = request.headers.get("Reason") if request is not None else None
        self.client.spawn(self._end(reason or cause.value))

    def emit(self, name: str, **details: Any) -> None:
        self.client.emit(name, group=self.group, **details)
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
        due = self.keys.next_timer()
        if due is not None and not self.ended.is_set():
            loop = asyncio.get_running_loop()
            self._key_timer = loop.call_later(max(0.0, due - now) + 0.001, self.apply_keys)

    def find_key(self, mki: bytes) -> SrtpKey | None:
        """The sender's SRTP key behind an MKI = GMK-ID || GUK-ID, while its GMK may be received under."""
        if len(mki) != 8:
            return None
        key = self.keys.receiving(int.from_bytes(mki[:4], "big"), self.client.now())
        return None if key is None else self.srtp_key(key, int.from_bytes(mki[4:], "big"))

    @staticmethod
    def srtp_key(key: TransportKey, csb_id: int) -> SrtpKey:
        """One sender's SRTP master key and salt: TGK = TGMK, CSB-ID = that sender's GUK-ID, CS-ID 4."""
        master, salt = srtp_keys(key, csb_id=csb_id, cs_id=MCPTT_GROUP)
        return SrtpKey(master.reveal(), salt.reveal(), key.mki(csb_id))

    def talker_guk_ids(self, user: str) -> frozenset[bytes]:
        """The GUK-IDs (4 octets each) that ``user`` sends media under, one for each key in force."""
        now = self.client.now()
        return frozenset(guk_id(key, user).to_bytes(4, "big") for key in self.keys.held(now))

    def on_key_message(self, incoming: ServerRequest, contents: Contents) -> None:
        """A MESSAGE with an I_MESSAGE in this call: an update, or a revocation, from the pinned signer."""
        now = self.client.now()
        assert contents.mikey is not None
        try:
            if contents.info.calling_user_id != self.initiator or contents.info.calling_group_id != self.group:
                raise AcknowledgementError("not from this call's signer, or not for this group")
            try:
                opened = open_group_key(self.client, contents.mikey, self.initiator, self.group, update=True)
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

    async def say(self, path: Path | str) -> dict[str, float]:
        """Talks an audio file; its start (Unix seconds) and duration. The floor must be held."""
        return await self.media.send_file(path)


class InitiatedRegroup(Regroup):
    """The initiator's call: he alone makes keys, adds and removes users, and ends it for all."""

    def __init__(
        self,
        client: McpttClient,
        group: str,
        media: MemberMedia,
        distribution: KeyDistribution,
        settings: CallSettings,
    ) -> None:
        super().__init__(client, group, client.uri, media, distribution.terms)
        self.distribution = distribution
        self.settings = settings
        self.members: set[str] = set()
        self._window = asyncio.Semaphore(settings.refer_window)
        self._key_order = asyncio.Lock()
        self._proved = asyncio.Condition()
        self._early = asyncio.Event()
        self._rekey_waits = False
        self._joining: set[str] = set()
        self._answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._refresh: asyncio.Task[None] | None = None

    # --- steps 1 and 9 --------------------------------------------------------------------------------

    async def establish(self, user: str) -> None:
        """Steps 1 to 9 for the first user. Returns when the 200 is there *and* his key is proved."""
        now = self.client.now()
        self.distribution.name(user)
        self._joining.add(user)
        key = self.distribution.new_key(now)
        # The initiator's own copy is not delivered by a message; its T is the making of the key.
        self.install(key, now)
        sealed = self.distribution.seal_to(user, now)
        info = McpttInfo(
            session_type="prearranged",
            request_uri=self.group,
            client_id=self.client.client_id,
            temporary_group=True,
            acknowledgement=self.terms.acknowledgement,
            initiator_guk_id=guk_id(key, self.me),
        )
        parts = [
            Part("application/sdp", self.client.describe(self.media).encode()),
            Part(documents.MCPTT_INFO, info.encode()),
            Part(documents.RESOURCE_LISTS, documents.ResourceLists((user,)).encode(), RECIPIENT_LIST),
            Part(MIKEY, sealed.octets),
        ]
        self.session = self.client.invite(self, parts)
        self.emit("calling", user=user, call_id=self.session.call_id)
        response = await self._answer
        self._joining.discard(user)
        contents = self.client.contents_of(response)
        if contents.info.calling_group_id != self.group:
            await self.release()
            raise RegroupFailed("the server answered for another group")
        theirs = GroupMediaDescription.decode(contents.sdp)
        self.media.connect(theirs.audio, theirs.floor)
        for octets in contents.acknowledgements:
            self.on_acknowledgement(octets)
        if self.terms.acknowledgement == "required":
            await self._until_first_is_keyed()
        self._refresh = asyncio.ensure_future(self._keep_fresh())
        self.emit("established", keyed=sorted(self.distribution.keyed()), warning=warning_of(response))

    async def _until_first_is_keyed(self) -> None:
        try:
            async with asyncio.timeout(self.settings.add_timeout), self._proved:
                await self._proved.wait_for(lambda: bool(self.distribution.keyed()))
        except TimeoutError:
            await self.release()
            raise RegroupFailed("the server answered, but nobody proved to hold the key") from None

    def on_progress(self, response: Response) -> None:
        """The reliable 183: from now on users can be added."""
        contact = response.headers.get("Contact")
        if contact is not None and self.session_identity is None:
            self.session_identity = str(NameAddr.parse(contact).uri)
            self._early.set()

    def on_answered(self, response: Response) -> None:
        self.on_progress(response)
        if not self._answer.done():
            self._answer.set_result(response)

    def on_refused(self, response: Response | None, cause: Cause) -> None:
        if not self._answer.done():
            status = response.status if response is not None else None
            warning = warning_of(response) if response is not None else None
            self._answer.set_exception(RegroupFailed(f"call refused ({cause.value})", status, warning))
        self._early.set()
        self.client.spawn(self._end("refused"))

    # --- step 7: adding -------------------------------------------------------------------------------

    async def add(self, user: str) -> None:
        """Adds one user; returns when he proved that he holds the key in force.

        Raises :class:`AddFailed` when he is not in the call, :class:`NotRekeyed` when he is, but the key was
        replaced meanwhile and he did not acknowledge the new one. May be called before the call is answered, and
        for many users at once: a window bounds what is under way.
        """
        async with self._window:
            await self._early.wait()
            if self.session_identity is None or self.ended.is_set():
                raise AddFailed(user, 487, "the call is not there")
            async with self._key_order:
                self.distribution.name(user)
                try:
                    sealed = self.distribution.seal_to(user, self.client.now())
                except GukIdCollision:
                    await self._rekey_locked()
                    sealed = self.distribution.seal_to(user, self.client.now())
                key = self.distribution.current
                self._joining.add(user)
            try:
                outcome = await self._refer_to(user, sealed.octets)
            except AddFailed as failure:
                self._not_added(user, failure.status, failure.warning)
                raise
            finally:
                self._joining.discard(user)
            proof = None if outcome.acknowledgement is None else self.on_acknowledgement(outcome.acknowledgement)
            if self.terms.acknowledgement == "required" and (proof is None or proof.user != user):
                await self.client.refer(self, f"<{user};method=BYE>", [])
                self._not_added(user, 200, "no proof of the key")
                raise AddFailed(user, 200, "accepted, but did not prove to hold the key")
            await self._catch_up(user, key)
            self.members.add(user)
            self.emit("added", user=user)

    async def _refer_to(self, user: str, octets: bytes) -> SipFragment:
        self.emit("adding", user=user)
        info = McpttInfo(request_uri=self.group, temporary_group=True)
        parts = [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, octets)]
        outcome = await self.client.refer(self, f"<{user};method=INVITE>", parts)
        if outcome.status < 200 or outcome.status >= 300:
            raise AddFailed(user, outcome.status, outcome.warning)
        return outcome

    async def _catch_up(self, user: str, key: TransportKey | None) -> None:
        """Gives a newcomer the key that replaced ``key`` while he was being added."""
        async with self._key_order:
            current = self.distribution.current
            if current is key or user not in self.distribution.named:
                return
            sealed = self.distribution.seal_to(user, self.client.now())
            missing = await self._deliver("update", {user: sealed.octets}, INSTALLED)
        if missing:
            raise NotRekeyed(missing)

    def _not_added(self, user: str, status: int, warning: str | None) -> None:
        """He gets no further key. That he holds this one cannot be excluded: the I_MESSAGE left (rule 6)."""
        self.distribution.remove(user)
        self.emit("add-failed", user=user, status=status, warning=warning)
        if self.distribution.settings.rekey_on_failed_add and not self._rekey_waits:
            self._rekey_waits = True
            self.client.spawn(self._rekey_soon())

    async def _rekey_soon(self) -> None:
        """One new key for all the adds that fail within a short time."""
        await self.client.sleep(self.distribution.settings.coalesce)
        self._rekey_waits = False
        try:
            if not self.ended.is_set():
                await self.rekey()
        except NotRekeyed as error:
            self.emit("not-rekeyed", users=sorted(error.users))

    # --- removing and rekeying ------------------------------------------------------------------------

    async def remove(self, user: str) -> None:
        """Takes ``user`` out: BYE to him, and a new TGMK to those who stay.

        Returns when everyone who stays acknowledged the new key and it is in force; raises
        :class:`NotRekeyed` with those who did not. BYE and rekey do not wait for each other.
        """
        self.distribution.remove(user)
        self.members.discard(user)
        bye = asyncio.ensure_future(self.client.refer(self, f"<{user};method=BYE>", []))
        try:
            await self.rekey()
        finally:
            await bye
            self.emit("removed", user=user)

    async def rekey(self) -> None:
        """A new TGMK to every member; returns when all proved it, it is in force and nothing sent under the one
        before is under way any more, or raises NotRekeyed."""
        async with self._key_order:
            await self._rekey_locked()

    async def _rekey_locked(self) -> None:
        now = self.client.now()
        # who is being added gets the new key when he is in the call; until then no MESSAGE reaches him
        users = sorted(self.distribution.named - self._joining)
        key = self.distribution.new_key(now)
        sealed = {user: self.distribution.seal_to(user, self.client.now()) for user in users}
        self.install(key, now)
        self.emit("rekeying", gmk_id=f"{key.key_id:08x}", users=users)
        missing = await self._deliver("update", {user: sealed[user].octets for user in users}, INSTALLED)
        in_force = max(float(key.activation or 0), now) + self.distribution.settings.transit - self.client.now()
        if in_force > 0:
            await self.client.sleep(in_force)
        self.apply_keys()
        if missing:
            raise NotRekeyed(missing)
        self.emit("rekeyed", gmk_id=f"{key.key_id:08x}")

    async def revoke(self) -> None:
        """Withdraws the current key from everyone: sending stops at once, for good under this key."""
        async with self._key_order:
            key = self.distribution.current
            assert key is not None
            users = sorted(self.distribution.holders(key) & self.distribution.named)
            sealed = {user: self.distribution.seal_revocation(user, self.client.now()) for user in users}
            self.keys.revoke(key, self.client.now())
            self.apply_keys()
            missing = await self._deliver("revoke", {u: sealed[u].octets for u in users}, REVOKED)
            if missing:
                raise NotRekeyed(missing)
            self.emit("key-revoked", gmk_id=f"{key.key_id:08x}")

    async def _deliver(self, operation: str, octets: dict[str, bytes], result: int) -> frozenset[str]:
        """Sends each user his message, the same octets again until acknowledged; who never did."""
        await asyncio.gather(*(self._deliver_one(operation, u, o, result) for u, o in octets.items()))
        return self.distribution.awaiting(result) & frozenset(octets)

    async def _deliver_one(self, operation: str, user: str, octets: bytes, result: int) -> None:
        key = self.distribution.current
        assert key is not None
        info = McpttInfo(
            request_uri=user,
            temporary_group=True,
            key_operation=operation,
            initiator_guk_id=guk_id(key, self.me),
        )
        for _ in range(self.settings.send_attempts):
            if self.ended.is_set() or user not in self.distribution.awaiting(result):
                return
            content_type, body = build_multipart(
                [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, octets)], self.client.token
            )
            response = await self.client.send_in(self, "MESSAGE", content_type, body)
            if response is None or response.status >= 300:
                status = None if response is None else response.status
                log.warning("group=%s user=%s key message: %s", self.group, user, status)
                if response is not None and NOT_IN_CALL in (warning_of(response) or ""):
                    # so says the server: without the new key he hears nothing of what follows, and everybody is told
                    self.distribution.remove(user)
                    self.members.discard(user)
                    self.emit("left", user=user)
                    return
                if status in (405, 481, 501):
                    return
            try:
                async with asyncio.timeout(self.settings.resend_after), self._proved:
                    await self._proved.wait_for(lambda: user not in self.distribution.awaiting(result))
            except TimeoutError:
                continue

    async def _keep_fresh(self) -> None:
        """Replaces the key at its share of its life."""
        while not self.ended.is_set():
            due = self.distribution.refresh_due()
            assert due is not None
            await self.client.sleep(max(0.0, due - self.client.now()))
            try:
                await self.rekey()
            except NotRekeyed as error:
                self.emit("not-rekeyed", users=sorted(error.users))

    # --- proofs ---------------------------------------------------------------------------------------

    def on_acknowledgement(self, octets: bytes) -> Sealing | None:
        """An acknowledgement, by whatever carrier: counted only when it is verified here."""
        try:
            sealing = self.distribution.acknowledge(octets, self.client.now())
        except AcknowledgementError as error:
            log.warning("group=%s acknowledgement refused: %s", self.group, error)
            self.emit("acknowledgement-refused", reason=str(error))
            return None
        if sealing.result == INSTALLED:
            self.members.add(sealing.user)
        self.emit("keyed" if sealing.result == INSTALLED else "revocation-acknowledged", user=sealing.user)
        self.client.spawn(self._wake())
        return sealing

    async def _wake(self) -> None:
        async with self._proved:
            self._proved.notify_all()

    # --- the end --------------------------------------------------------------------------------------

    async def abandon(self) -> None:
        """The call was not established: gives up what there is of it."""
        if self.session is not None and not self.ended.is_set():
            self.session.bye(self.client.now())
            self.client.transmit()
        await self._end("failed")

    async def release(self) -> None:
        """Ends the call for everybody."""
        if self.session is not None and not self.ended.is_set():
            self.session.bye(self.client.now(), headers=[("Reason", RELEASE_FOR_ALL)])
            self.client.transmit()
        await self._end("released")

    async def _end(self, cause: str) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
        await super()._end(cause)
