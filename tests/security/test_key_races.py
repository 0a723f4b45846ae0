# SPDX-License-Identifier: Apache-2.0
"""Adds, removals, key changes and acknowledgements that meet: what a random walk through whole systems has found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.call import CallSettings, Regroup
from mcptt_sip.mcptt.callerrors import AddFailed, RegroupFailed
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.contents import SipFragment
from mcptt_sip.mcptt.distribution import Sealing
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.mcptt.invitation import Invitation
from mcptt_sip.trace import Direction, MessageRecord
from mikey import OpenedKey
from tests.security.town import PATIENCE, Town, Townsman, town, uri

pytestmark = pytest.mark.network


class Remembering(InitiatedRegroup):
    """Keeps every acknowledgement; may be told what the next REFER comes to."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.proofs: list[bytes] = []
        self.outcome: Callable[[], Any] | None = None

    def on_acknowledgement(self, octets: bytes) -> Sealing | None:
        self.proofs.append(octets)
        return super().on_acknowledgement(octets)

    async def _refer_to(self, user: str, octets: bytes) -> SipFragment:
        if self.outcome is not None:
            made: SipFragment = await self.outcome()
            return made
        return await super()._refer_to(user, octets)


class Caller(McpttClient):
    initiated_class = Remembering


async def test_rule_3_the_acknowledgement_of_an_older_key_adds_nobody() -> None:
    async with town() as here:
        alice = await here.phone("alice", Caller)
        await here.phones("bob", "carol")
        call = await alice.client.start_regroup(uri("bob"))
        assert isinstance(call, Remembering)
        await call.add(uri("carol"))
        old = call.proofs[-1]
        await call.remove(uri("carol"))
        before = len(alice.seen("keyed", user=uri("carol")))

        async def claimed() -> SipFragment:
            return SipFragment(200, None, old)

        call.on_acknowledgement(old)
        assert len(alice.seen("keyed", user=uri("carol"))) == before and uri("carol") not in call.members
        call.outcome = claimed
        with pytest.raises(AddFailed):
            await call.add(uri("carol"))
        assert uri("carol") not in call.distribution.named and uri("carol") not in call.members


async def test_rule_2_adding_a_member_again_does_not_keep_the_next_key_from_him() -> None:
    async with town() as here:
        alice = await here.phone("alice", Caller)
        await here.phones("bob", "carol")
        call = await alice.client.start_regroup(uri("bob"))
        assert isinstance(call, Remembering)
        await call.add(uri("carol"))
        asked, answer = asyncio.Event(), asyncio.Event()

        async def refused() -> SipFragment:
            asked.set()
            await answer.wait()
            raise AddFailed(uri("carol"), 486)

        call.outcome = refused
        adding = asyncio.ensure_future(call.add(uri("carol")))
        await asked.wait()
        await call.rekey()
        assert call.distribution.keyed() == {uri("bob"), uri("carol")}
        answer.set()
        with pytest.raises(AddFailed):
            await adding


async def test_rule_24_a_removal_that_comes_while_an_add_waits_is_the_later_wish() -> None:
    async with town() as here:
        alice = await here.phone("alice", Caller, call=CallSettings(refer_window=1, resend_after=0.3, add_timeout=3.0))
        await here.phones("bob", "carol", "dave")
        call = await alice.client.start_regroup(uri("bob"))
        assert isinstance(call, Remembering)
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow() -> SipFragment:
            asked.set()
            await answer.wait()
            raise AddFailed(uri("carol"), 480)

        call.outcome = slow
        first = asyncio.ensure_future(call.add(uri("carol")))
        await asked.wait()
        second = asyncio.ensure_future(call.add(uri("dave")))
        await asyncio.sleep(0)
        await call.remove(uri("dave"))
        call.outcome = None
        answer.set()
        for adding in (first, second):
            with pytest.raises(AddFailed):
                await adding
        assert call.distribution.named == {uri("bob")} and uri("dave") not in call.distribution.sealed_to


async def test_rule_24_who_is_added_again_is_not_met_by_his_own_removal() -> None:
    async with town() as here:
        alice = await here.phone("alice", Caller)
        await here.phones("bob", "carol")
        call = await alice.client.start_regroup(uri("bob"))
        assert isinstance(call, Remembering)
        await call.add(uri("carol"))
        order: list[str] = []
        send, go = alice.client.refer, asyncio.Event()

        async def held_up(regroup: Any, refer_to: str, parts: Any) -> SipFragment:
            if "BYE" in refer_to:
                await go.wait()
            order.append(refer_to)
            return await send(regroup, refer_to, parts)

        alice.client.refer = held_up  # type: ignore[method-assign]
        removing = asyncio.ensure_future(call.remove(uri("carol")))
        await asyncio.sleep(0)
        adding = asyncio.ensure_future(call.add(uri("carol")))
        await alice.until("rekeying")
        go.set()
        await asyncio.gather(removing, adding)
        assert [("BYE" in sent) for sent in order] == [True, False]
        assert uri("carol") in call.members and uri("carol") in call.distribution.named


class Unprovable(Regroup):
    """A member whose acknowledgement proves nothing."""

    def acknowledgement(self, opened: OpenedKey, result: int = 0) -> bytes:
        return bytes(200)


class UnprovableClient(McpttClient):
    member_class = Unprovable


async def test_rule_12_a_call_that_ends_before_anybody_proved_the_key_was_not_established() -> None:
    async with town() as here:
        alice = await here.phone("alice")
        await here.phone("bob", UnprovableClient)
        calling = asyncio.ensure_future(alice.client.start_regroup(uri("bob")))
        await alice.until("acknowledgement-refused")
        here.server.controlling.release_all("the server goes down", here.server.now())
        with pytest.raises(RegroupFailed):
            await calling
        assert not alice.seen("established") and not alice.client.calls


async def test_a_key_message_before_there_is_a_dialog_goes_nowhere_and_fails_nothing() -> None:
    async with town() as here:
        (alice,) = await here.phones("alice")
        regroup = await alice.client.prepare_regroup()
        assert await alice.client.send_in(regroup, "MESSAGE", "text/plain", b"") is None
        calling = asyncio.ensure_future(alice.client.establish(regroup, uri("bob")))
        await alice.until("calling")
        assert await alice.client.send_in(regroup, "MESSAGE", "text/plain", b"") is None
        with pytest.raises(RegroupFailed):  # bob is not there
            await calling


async def test_who_accepts_after_the_caller_gave_up_is_in_no_call() -> None:
    async with town() as here:
        (alice,) = await here.phones("alice")
        cancelled = asyncio.Event()

        def watch(record: MessageRecord) -> None:
            if record.direction is Direction.SENT and record.octets.startswith(b"SIP/2.0 487"):
                cancelled.set()

        bob = await here.phone("bob", trace=watch)
        asked: asyncio.Queue[Invitation] = asyncio.Queue()

        async def thinking(invitation: Invitation) -> None:
            invitation.ring()
            await asked.put(invitation)

        bob.client.on_regroup(thinking)
        regroup = await alice.client.prepare_regroup()
        calling = asyncio.ensure_future(alice.client.establish(regroup, uri("bob")))
        invitation = await asyncio.wait_for(asked.get(), PATIENCE)
        await regroup.abandon()
        with pytest.raises((RegroupFailed, asyncio.CancelledError)):
            await calling
        await asyncio.wait_for(cancelled.wait(), PATIENCE)
        with pytest.raises(SipError):
            await invitation.accept()
        assert not bob.client.calls and not bob.seen("joined")


async def test_an_invitation_that_nobody_answers_does_not_ring_for_ever() -> None:
    async with town() as here:
        alice = await here.phone("alice", call=CallSettings(add_timeout=PATIENCE))
        bob = await here.phone("bob", call=CallSettings(ring_limit=0.2))
        rung: list[Invitation] = []

        async def away(invitation: Invitation) -> None:
            rung.append(invitation)

        bob.client.on_regroup(away)
        with pytest.raises(RegroupFailed) as failed:
            await asyncio.wait_for(alice.client.start_regroup(uri("bob")), PATIENCE)
        assert failed.value.status == 480 and len(rung) == 1


async def removed_while_asked(
    here: Town,
) -> tuple[Townsman, InitiatedRegroup, asyncio.Queue[Invitation], Invitation]:
    """In alice's call with carol, bob was added and removed before he answered: he, the call, his invitations to
    come, and the one that he still holds."""
    alice = await here.phone("alice", Caller, call=CallSettings(add_timeout=1.0, resend_after=0.3))
    bob = await here.phone("bob")
    await here.phone("carol")
    asked: asyncio.Queue[Invitation] = asyncio.Queue()
    bob.client.on_regroup(asked.put)
    call = await alice.client.start_regroup(uri("carol"))
    adding = asyncio.ensure_future(call.add(uri("bob")))
    first = await asyncio.wait_for(asked.get(), PATIENCE)
    await call.remove(uri("bob"))  # its CANCEL is as good as lost on a phone that has not looked at it yet
    with pytest.raises(AddFailed):
        await adding
    return bob, call, asked, first


async def test_rule_21_of_two_invitations_that_come_at_once_the_later_one_is_the_call() -> None:
    async with town() as here:
        bob, call, asked, first = await removed_while_asked(here)
        adding = asyncio.ensure_future(call.add(uri("bob")))
        second = await asyncio.wait_for(asked.get(), PATIENCE)
        with pytest.raises(SipError):
            await first.accept()
        joined = await second.accept()
        await adding
        assert bob.client.calls == {call.group: joined} and uri("bob") in call.members
        stale = bob.client.member_class(bob.client, call.group, uri("alice"), joined.media, joined.terms)
        bob.client.forget(stale)
        assert bob.call is joined


async def test_rule_14_an_older_invitation_that_comes_last_does_not_take_the_newer_ones_place() -> None:
    """Overtaken on its way, or answered late by its user: the signer's T says which of the two he means."""
    async with town() as here:
        bob, call, asked, first = await removed_while_asked(here)
        adding = asyncio.ensure_future(call.add(uri("bob")))
        second = await asyncio.wait_for(asked.get(), PATIENCE)
        joined = await second.accept()
        await adding
        with pytest.raises(SipError):
            await first.accept()
        assert bob.call is joined and not joined.ended.is_set()
        assert joined.keys.sending(bob.client.now()) == call.distribution.current


async def test_rule_14_an_older_invitation_brings_nobody_back_to_a_key_that_was_replaced() -> None:
    """The call of the later invitation may be over: its T is remembered."""
    async with town() as here:
        bob, call, asked, first = await removed_while_asked(here)
        adding = asyncio.ensure_future(call.add(uri("bob")))
        joined = await (await asyncio.wait_for(asked.get(), PATIENCE)).accept()
        await adding
        await joined.leave()
        with pytest.raises(SipError, match="later invitation"):
            await first.accept()
        assert not bob.client.calls
        again = asyncio.ensure_future(call.add(uri("bob")))
        await (await asyncio.wait_for(asked.get(), PATIENCE)).accept()
        await again
