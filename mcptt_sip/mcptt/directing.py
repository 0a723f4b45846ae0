# SPDX-License-Identifier: Apache-2.0
"""A temporary group call in the hands of the one who makes its keys: the initiator, or a deputy after him.

Key changes have one order per group: making a key and sealing it happen at one instant, the newest key is the one
that is sealed, and one worker per user brings him the newest I_MESSAGE made for him until he acknowledges it. So a
member who is dead, slow or silent holds up nobody else, and removals, adds and rekeys may overlap as they like.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.call import CallSettings, Regroup
from mcptt_sip.mcptt.callerrors import AddFailed, NotADeputy, NotRekeyed
from mcptt_sip.mcptt.contents import NOT_IN_CALL, SipFragment, warning_of
from mcptt_sip.mcptt.distribution import GukIdCollision, KeyDistribution, Sealing
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.keying import INSTALLED, MIKEY, REVOKED, AcknowledgementError
from mcptt_sip.mcptt.memberlist import MEMBER_LIST, sign_members
from mcptt_sip.message import Request, Response
from mcptt_sip.outgoing import Cause
from media.endpoint import MemberMedia
from mikey import MikeyError, TransportKey, guk_id

if TYPE_CHECKING:
    from mcptt_sip.mcptt.client import McpttClient

log = logging.getLogger(__name__)


class DirectedRegroup(Regroup):
    """Adds and removes users, replaces and revokes keys. ``members`` are those whom this client saw in the call.

    ``directing`` is whether the group takes its keys from here: a deputy does not direct any more once somebody who
    comes before him is back. Then what directs raises :class:`~mcptt_sip.mcptt.callerrors.NotADeputy`.
    """

    directing = True

    def __init__(
        self,
        client: McpttClient,
        group: str,
        initiator: str,
        media: MemberMedia,
        distribution: KeyDistribution,
        settings: CallSettings,
    ) -> None:
        super().__init__(client, group, initiator, media, distribution.terms)
        self.distribution = distribution
        self.settings = settings
        self.members: set[str] = set()
        self._window = asyncio.Semaphore(settings.refer_window)
        #: what somebody waits for, and who waits
        self._waits: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._wake_due = False
        self._early = asyncio.Event()
        self._rekey_waits = False
        self._list_waits = False
        self._list_number = 0
        self._joining: set[str] = set()
        #: user -> the removal that the server has not answered yet
        self._leaving: dict[str, asyncio.Future[SipFragment]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        #: user -> the I_MESSAGE whose acknowledgement is not waited for any more
        self._given_up: dict[str, Sealing] = {}
        self._refresh: asyncio.Task[None] | None = None
        self._lost = False

    # --- step 7: adding -------------------------------------------------------------------------------

    async def add(self, user: str) -> None:
        """Adds one user; returns when he proved that he holds the key in force.

        Raises :class:`AddFailed` when he is not in the call, :class:`NotRekeyed` when he is, but the key was
        replaced meanwhile and he did not acknowledge the new one. May be called before the call is answered, and
        for many users at once: a window bounds what is under way.
        """
        self._must_direct()
        if user == self.me:
            raise ValueError(f"{user} directs the call")
        if user in self._joining:
            raise AddFailed(user, 486, "he is being added already")
        there = user in self.distribution.named
        # named at once: a removal that follows is the later wish, however long this one has to wait
        self.distribution.name(user)
        if not there:  # who is in already gets every new key like all others
            self._joining.add(user)
        await self._carry_through(self._adding(user, there))

    async def _adding(self, user: str, there: bool) -> None:
        try:
            async with self._window:
                await self._early.wait()
                if (bye := self._leaving.get(user)) is not None:
                    await asyncio.wait({bye})  # else the two might reach the server the other way round
                await self._add(user, there)
        finally:
            self._joining.discard(user)

    async def _add(self, user: str, there: bool) -> None:
        if self.session_identity is None or self.ended.is_set():
            if not there:
                self.distribution.absent(user)
            raise AddFailed(user, 487, "the call is not there")
        if user not in self.distribution.named:
            raise AddFailed(user, 487, "he was removed meanwhile")
        if self.distribution.settings.rekey_on_join:
            self._key_for_a_join()
        try:
            try:
                sealed = self.distribution.seal_to(user, self.client.now())
            except GukIdCollision:
                self._replace_key()
                sealed = self.distribution.seal_to(user, self.client.now())
            except MikeyError as error:  # nothing has left for him: he is not in the group, and gets no later key
                if not there:
                    self.distribution.absent(user)
                self.emit("add-failed", user=user, status=488, warning=str(error))
                raise AddFailed(user, 488, f"no key can be made for him: {error}") from error
            generation = self.distribution.generation
            outcome = await self._refer_to(user, sealed.octets)
        except AddFailed as failure:
            if not there:  # who is in already stays in
                self._not_added(user, failure.status, failure.warning)
            raise
        self._joining.discard(user)
        proof = None if outcome.acknowledgement is None else self.on_acknowledgement(outcome.acknowledgement)
        if user not in self.distribution.named:
            # the server may have heard of the removal before it heard of this
            await self.client.refer(self, f"<{user};method=BYE>", [])
            raise AddFailed(user, 487, "he was removed meanwhile")
        if self.terms.acknowledgement == "required" and (
            proof is None or proof.user != user or proof.generation < generation
        ):
            await self.client.refer(self, f"<{user};method=BYE>", [])
            self._not_added(user, 200, "no proof of the key")
            raise AddFailed(user, 200, "accepted, but did not prove to hold the key")
        await self._catch_up(user, generation)
        self._in(user)
        self.emit("added", user=user)
        self._tell_members()

    async def _refer_to(self, user: str, octets: bytes) -> SipFragment:
        self.emit("adding", user=user)
        info = McpttInfo(request_uri=self.group, temporary_group=True)
        parts = [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, octets)]
        outcome = await self.client.refer(self, f"<{user};method=INVITE>", parts)
        if outcome.status < 200 or outcome.status >= 300:
            raise AddFailed(user, outcome.status, outcome.warning)
        return outcome

    def _key_for_a_join(self) -> None:
        """What was said before the join stays unreadable (rule 24): joins share a key that nobody sends under yet."""
        key = self.distribution.current
        if key is not None and self.members and self.client.now() >= (key.activation or 0):
            self._replace_key()

    async def _catch_up(self, user: str, generation: int) -> None:
        """Gives a newcomer the key that replaced his while he was being added."""
        if self.distribution.generation == generation or user not in self.distribution.named:
            return
        self.distribution.seal_to(user, self.client.now())
        newest = self.distribution.generation
        self._keep_current(user)
        missing = await self._until(lambda who: self.distribution.proved(who, newest), {user})
        if missing:
            raise NotRekeyed(missing)

    def _not_added(self, user: str, status: int, warning: str | None) -> None:
        """He gets no further key. That he holds this one cannot be excluded: the I_MESSAGE left (rule 6)."""
        self.distribution.remove(user)
        self._out(user)
        self.emit("add-failed", user=user, status=status, warning=warning)
        if self.distribution.settings.rekey_on_failed_add and not self._rekey_waits:
            self._rekey_waits = True
            self.client.spawn(self._rekey_soon())

    async def _rekey_soon(self) -> None:
        """One new key for all the adds that fail within a short time."""
        await self.client.sleep(self.distribution.settings.coalesce)
        self._rekey_waits = False
        if not self.ended.is_set():
            await self._told(self.rekey())

    async def _told(self, work: Awaitable[None]) -> None:
        """What nobody waits for: who did not acknowledge is an event."""
        try:
            await work
        except NotRekeyed as error:
            self.emit("not-rekeyed", users=sorted(error.users))
        except (NotADeputy, AddFailed) as error:
            log.info("group=%s %s", self.group, error)

    async def _carry_through(self, work: Coroutine[Any, Any, None]) -> None:
        """``work`` to its end, whoever waits for it: half a change of keys would split the group. When he gives up
        waiting, what becomes of it is told by events."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                self.client.spawn(self._told(task))
            raise

    def _must_direct(self) -> None:
        if not self.directing:
            raise NotADeputy(f"the keys of {self.group} come from somebody who goes before {self.me}")

    def _step_down(self) -> None:
        """Somebody who comes before this deputy makes the keys again: he is a member like all others."""
        self.directing = False
        if self._refresh is not None:
            self._refresh.cancel()
        self.emit("stepped-down")
        self._wake()

    def on_key_request(self, user: str) -> bool:
        """Someone who was in the call comes back and has no key. Served only for whom this user named (rule 5)."""
        if not self.distribution.may_ask_for_a_key(user) or self.ended.is_set() or not self.directing:
            self.emit("key-request-refused", user=user)
            return False
        self.emit("key-request", user=user)
        if user not in self._joining:
            self._out(user)
            self.client.spawn(self._add_again(user))
        return True

    async def _add_again(self, user: str) -> None:
        try:
            await self._told(self.add(user))
        except AddFailed as error:
            log.info("group=%s %s", self.group, error)

    # --- removing and rekeying ------------------------------------------------------------------------

    async def remove(self, user: str) -> None:
        """Takes ``user`` out: BYE to him, and a new TGMK to those who stay.

        Returns when everyone who stays acknowledged the new key and it is in force; raises
        :class:`NotRekeyed` with those who did not. BYE and rekey do not wait for each other.
        """
        self._must_direct()
        self.distribution.remove(user)
        self._out(user)
        self._wake(user)
        bye = asyncio.ensure_future(self.client.refer(self, f"<{user};method=BYE>", []))
        self._leaving[user] = bye
        bye.add_done_callback(lambda done: self._leaving.pop(user) if self._leaving.get(user) is done else None)
        try:
            await self.rekey()
        finally:
            await bye
            self.emit("removed", user=user)
            self._tell_members()

    async def rekey(self) -> None:
        """A new TGMK to every member; returns when all proved it or a newer one, it is in force and nothing sent under
        the one before is under way any more, or raises :class:`NotRekeyed`."""
        self._must_direct()
        await self._carry_through(self._distribute(self._make_key()))

    async def _distribute(self, generation: int) -> None:
        key = self.distribution.current
        assert key is not None
        users, unsealed = await self._seal_for_everybody(generation)
        waited = await self._until(lambda user: self.distribution.proved(user, generation), users)
        missing = waited | unsealed
        in_force = float(key.activation or 0) + self.distribution.settings.transit - self.client.now()
        if in_force > 0:
            await self.client.sleep(in_force)
        self.apply_keys()
        if missing:
            raise NotRekeyed(missing)
        self.emit("rekeyed", gmk_id=f"{key.key_id:08x}")

    def _make_key(self) -> int:
        """The group's newest key from this instant on; returns its generation."""
        now = self.client.now()
        key = self.distribution.new_key(now, held_ids=self.keys.known)
        self.install(key, self.distribution.next_time(now))
        return self.distribution.generation

    def _replace_key(self) -> None:
        """A new key from this instant on, brought to everybody while other things go on."""
        self.client.spawn(self._told(self._distribute(self._make_key())))

    async def _seal_for_everybody(self, generation: int) -> tuple[set[str], set[str]]:
        """Makes and sends each member his I_MESSAGE; stops when a newer key has been made meanwhile. Returns to whom,
        and for whom none could be made (his KMS's certificate is over, say): he holds up nobody else (rule 24)."""
        # who is being added gets the new key when he is in the call; until then no MESSAGE reaches him
        users = self.distribution.named - self._joining
        key = self.distribution.current
        assert key is not None
        unsealed: set[str] = set()
        self.emit("rekeying", gmk_id=f"{key.key_id:08x}", users=sorted(users))
        for user in sorted(users):
            if self.distribution.generation != generation or self.ended.is_set():
                break
            if user in self.distribution.named and not await self._sealed(self.distribution.seal_to, user):
                unsealed.add(user)
        return set(users) - unsealed, unsealed

    async def _sealed(self, seal: Callable[[str, float], object], user: str) -> bool:
        """Whether a key message could be made for this user; it is on its way to him then."""
        try:
            seal(user, self.client.now())
        except MikeyError as error:
            log.warning("group=%s user=%s no key message can be made for him: %s", self.group, user, error)
            return False
        self._keep_current(user)
        await asyncio.sleep(0)  # sealing is work: others have their turn
        return True

    async def revoke(self) -> None:
        """Withdraws the current key from everyone: sending stops at once, for good under this key."""
        self._must_direct()
        key, generation = self.distribution.current, self.distribution.generation
        assert key is not None
        self.keys.revoke(key, self.distribution.next_time(self.client.now()))
        self.apply_keys()
        await self._carry_through(self._revoke(key, generation))

    async def _revoke(self, key: TransportKey, generation: int) -> None:
        users, unsealed = set(self.distribution.named - self._joining), set()
        for user in sorted(users):
            if not await self._sealed(self.distribution.seal_revocation, user):
                unsealed.add(user)
        waited = await self._until(
            lambda user: self.distribution.proved(user, generation, REVOKED), users - unsealed
        )
        missing = waited | unsealed
        if missing:
            raise NotRekeyed(missing)
        self.emit("key-revoked", gmk_id=f"{key.key_id:08x}")

    async def _keep_fresh(self) -> None:
        """Replaces the key at its share of its life."""
        while self.directing and not self.ended.is_set():
            due = self.distribution.refresh_due()
            assert due is not None
            if (left := due - self.client.now()) > 0:
                await self.client.sleep(min(left, self.settings.clock_check))
            else:
                await self._told(self.rekey())

    # --- delivery -------------------------------------------------------------------------------------

    def _keep_current(self, user: str) -> None:
        """Lets ``user``'s worker know that there is a newer message for him."""
        self._given_up.pop(user, None)
        self._news.setdefault(user, asyncio.Event()).set()
        worker = self._workers.get(user)
        if worker is None or worker.done():
            self._workers[user] = asyncio.ensure_future(self._deliver(user))

    async def _deliver(self, user: str) -> None:
        """Sends ``user`` his newest I_MESSAGE, the same octets again until acknowledged or given up (rule 13)."""
        while (sealing := self.distribution.pending(user)) is not None and self.directing and not self.ended.is_set():
            for _ in range(self.settings.send_attempts):
                response = await self._send_key(user, sealing)
                if not await self._after(user, response):
                    self._give_up(user, sealing)
                    return
                if await self._settled(user, sealing):
                    break
            else:
                self._give_up(user, sealing)
                return

    def _in(self, user: str) -> None:
        self.members.add(user)
        self._know(self.members)

    def _out(self, user: str) -> None:
        self.members.discard(user)
        self._know(self.members)

    def _give_up(self, user: str, sealing: Sealing) -> None:
        self._given_up[user] = sealing
        self._wake(user)

    async def _settled(self, user: str, sealing: Sealing) -> bool:
        """Whether this message needs no repetition: it was acknowledged, or there is a newer one."""
        news = self._news[user]
        try:
            async with asyncio.timeout(self.settings.resend_after):
                while not self.ended.is_set() and self.distribution.pending(user) is sealing:
                    news.clear()
                    await news.wait()
        except TimeoutError:
            return False
        return True

    async def _send_key(self, user: str, sealing: Sealing) -> Response | None:
        operation = "revoke" if sealing.result == REVOKED else "update"
        info = McpttInfo(
            request_uri=user,
            temporary_group=True,
            key_operation=operation,
            initiator_guk_id=guk_id(sealing.key, self.me),
        )
        content_type, body = build_multipart(
            [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, sealing.message.octets)], self.client.token
        )
        return await self.client.send_in(self, "MESSAGE", content_type, body)

    async def _after(self, user: str, response: Response | None) -> bool:
        """What the server's answer means; whether it is worth while to send again."""
        if response is not None and response.status < 300:
            return True
        status = None if response is None else response.status
        log.warning("group=%s user=%s key message: %s", self.group, user, status)
        if response is not None and NOT_IN_CALL in (warning_of(response) or ""):
            # so says the server: without the new key he hears nothing of what follows, and everybody is told
            self._out(user)
            self.distribution.absent(user)
            self._wake(user)
            self.emit("left", user=user)
            return False
        return status not in (405, 481, 501)

    async def _until(self, proved: Callable[[str], bool], users: Collection[str]) -> frozenset[str]:
        """Waits until each user proved it, is out, or is given up; returns those who did not prove it."""
        waiting = set(users)
        missing: set[str] = set()

        def settled() -> bool:
            for user in list(waiting):
                if proved(user) or user not in self.distribution.named:
                    waiting.discard(user)
                elif user in self._given_up:
                    waiting.discard(user)
                    missing.add(user)
            return not waiting or self.ended.is_set() or not self.directing

        await self._wait_for(settled)
        return frozenset(missing | waiting)

    async def _wait_for(self, settled: Callable[[], bool]) -> None:
        if not settled():
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waits.append((settled, done))
            await done

    def _wake(self, user: str | None = None) -> None:
        """Something changed, about ``user`` when one is named: who waits looks again, once for many changes."""
        for name in (user,) if user is not None else tuple(self._news):
            if name in self._news:
                self._news[name].set()
        if not self._wake_due:
            self._wake_due = True
            asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._wake_due = False
        waits, self._waits = self._waits, []
        for settled, done in waits:
            if done.done():
                continue
            if settled():
                done.set_result(None)
            else:
                self._waits.append((settled, done))

    # --- proofs ---------------------------------------------------------------------------------------

    def on_acknowledgement(self, octets: bytes) -> Sealing | None:
        """An acknowledgement, by whatever carrier: counted only when it is verified here."""
        try:
            sealing = self.distribution.acknowledge(octets, self.client.now())
        except AcknowledgementError as error:
            log.warning("group=%s acknowledgement refused: %s", self.group, error)
            self.emit("acknowledgement-refused", reason=str(error))
            return None
        if sealing.user in self.distribution.named:  # who was removed meanwhile is in no call, whatever he proves
            if sealing.result == INSTALLED:
                self._in(sealing.user)
            self.emit("keyed" if sealing.result == INSTALLED else "revocation-acknowledged", user=sealing.user)
        self._wake(sealing.user)
        return sealing

    # --- who is in, signed ----------------------------------------------------------------------------

    def _tell_members(self) -> None:
        """The signed list of members (rule 20), one for all changes within a short time."""
        if not self._list_waits:
            self._list_waits = True
            self.client.spawn(self._send_list())

    async def _send_list(self) -> None:
        await self.client.sleep(self.distribution.settings.coalesce)
        self._list_waits = False
        if self.directing and not self.ended.is_set() and not await self._send_members():
            log.info("group=%s the list of members was not taken", self.group)

    async def _send_members(self) -> bool:
        """Whether the server took the list: it does from who directs the call, and from nobody else."""
        self._list_number += 1
        octets = sign_members(
            self.group, self.me, self._list_number, sorted(self.distribution.named), self.client.sign, self.client.now()
        )
        info = McpttInfo(request_uri=self.group, temporary_group=True, key_operation="members")
        content_type, body = build_multipart(
            [Part(documents.MCPTT_INFO, info.encode()), Part(MEMBER_LIST, octets)], self.client.token
        )
        response = await self.client.send_in(self, "MESSAGE", content_type, body)
        return response is not None and response.status < 300

    # --- the end --------------------------------------------------------------------------------------

    def on_session_ended(self, cause: Cause, request: Request | None) -> None:
        self._lost = cause not in (Cause.LOCAL_BYE, Cause.REMOTE_BYE)
        super().on_session_ended(cause, request)

    async def _end(self, cause: str) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
        if self.ended.is_set():
            return
        await super()._end(cause)
        if not self._lost:  # a call that was lost may still be running, and can be come back to
            self.distribution.journal.close()
        self._wake()
