# SPDX-License-Identifier: Apache-2.0
"""Crashes, returns, deputies and late joins, over real sockets. Numbers: the README's table of rules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.callerrors import AddFailed, NotADeputy, NotRekeyed, RegroupFailed
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.clientrequests import CallOptions
from mcptt_sip.mcptt.contents import read_contents
from mcptt_sip.mcptt.distribution import DistributionSettings
from mcptt_sip.mcptt.groupcall import GroupCall
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.mcptt.journal import GroupRecord
from mcptt_sip.mcptt.keying import MIKEY, i_message
from mcptt_sip.mcptt.memberlist import MemberListError, read_members, sign_members
from mcptt_sip.message import parse
from mcptt_sip.trace import Direction, MessageRecord
from mikey import KeyType, TransportKey, read, seal
from tests.security.test_keys import WithholdingServer
from tests.security.town import PATIENCE, Townsman, town, uri

pytestmark = pytest.mark.network


class MemoryJournals:
    """What the disk holds: it survives the client."""

    def __init__(self) -> None:
        self.groups: dict[str, list[str]] = {}

    def __call__(self, group: str) -> MemoryJournal:
        return MemoryJournal(self.groups, group)

    def record(self) -> GroupRecord:
        (lines,) = self.groups.values()
        record = GroupRecord.read(lines)
        assert record is not None
        return record


class MemoryJournal:
    def __init__(self, groups: dict[str, list[str]], group: str) -> None:
        self._groups, self._group = groups, group

    def append(self, line: str) -> None:
        self._groups.setdefault(self._group, []).append(line)

    def lines(self) -> Iterator[str]:
        return iter(self._groups.get(self._group, ()))

    def close(self) -> None:
        self._groups.pop(self._group, None)


async def call_of(alice: Townsman, *others: str, **options: Any) -> InitiatedRegroup:
    call = await alice.client.prepare_regroup(CallOptions(**options))
    await alice.client.establish(call, uri(others[0]))
    for other in others[1:]:
        await call.add(uri(other))
    return call


def sending_key(man: Townsman) -> int | None:
    key = man.call.keys.sending(man.client.now())
    return None if key is None else key.key_id


# --- rule 15: the initiator is lost -------------------------------------------------------------------------


async def test_rule_15_everyone_a_key_left_for_is_on_record_before_the_octets_leave() -> None:
    journals = MemoryJournals()
    early: list[str] = []

    def watch(record: MessageRecord) -> None:
        """At every send of the initiator: whoever the message carries a key for stands in the journal."""
        if record.direction is not Direction.SENT or b"application/mikey" not in record.octets:
            return
        message = parse(record.octets)
        contents = read_contents(message)
        if contents.mikey is None or (message.headers.get("CSeq") or "").endswith("REGISTER"):
            return
        seen.append(contents.mikey)
        assert read(i_message(contents.mikey))
        (lines,) = journals.groups.values() or ([],)
        known = GroupRecord.read(lines)
        target = contents.targets[0] if contents.targets else (contents.info.request_uri or "")
        refer_to = message.headers.get("Refer-To")
        if refer_to is not None:
            target = refer_to.strip("<>").partition(";")[0]
        if known is None or target not in known.sealed_to or not known.used_ids:
            early.append(target)

    seen: list[bytes] = []
    async with town() as here:
        alice = await here.phone("alice", journal=journals, trace=watch)
        await here.phones("bob", "carol")
        await here.phone("dave", answer=False)
        call = await call_of(alice, "bob", "carol")
        with pytest.raises(AddFailed):
            await call.add(uri("dave"))
        await call.remove(uri("carol"))
        record = journals.record()
        assert record.sealed_to == {uri("bob"), uri("carol"), uri("dave")}
        assert record.members == {uri("bob")}
        assert record.last_time >= call.distribution.made_at and record.used_ids == call.distribution._used_ids
    assert len(set(seen)) >= 4 and not early
    assert not journals.groups, "the call ended in order: there is nothing to come back to"


async def test_rule_15_a_restarted_initiator_gives_those_who_stayed_a_fresh_key() -> None:
    journals = MemoryJournals()
    async with town() as here:
        alice = await here.phone("alice", journal=journals)
        bob, carol, dave = await here.phones("bob", "carol", "dave")
        call = await call_of(alice, "bob", "carol", "dave")
        await call.remove(uri("dave"))
        old = sending_key(bob)
        await here.crash(alice)
        await here.until_gone("alice")
        again = await here.phone("alice", journal=journals)
        back = await again.client.come_back(journals.record())
        assert back.group == bob.call.group
        assert back.distribution.keyed() == {uri("bob"), uri("carol")}
        assert sending_key(bob) == sending_key(carol) == sending_key(again) != old
        assert not dave.client.calls
        await back.add(uri("dave"))
        assert sending_key(dave) == sending_key(bob)


async def test_rule_15_coming_back_before_the_loss_is_noticed_takes_the_old_leg_over() -> None:
    journals = MemoryJournals()
    async with town() as here:
        alice = await here.phone("alice", journal=journals)
        bob, _ = await here.phones("bob", "carol")
        await call_of(alice, "bob", "carol")
        lines = {group: list(held) for group, held in journals.groups.items()}
        again = await here.phone("alice", journal=journals)
        back = await again.client.come_back(journals.record())
        await alice.until("ended")
        journals.groups.update(lines)
        assert back.distribution.keyed() == {uri("bob"), uri("carol")}
        assert sending_key(bob) == sending_key(again)


async def test_rule_15_a_call_that_is_over_cannot_be_come_back_to() -> None:
    journals = MemoryJournals()
    async with town() as here:
        alice = await here.phone("alice", journal=journals)
        await here.phones("bob")
        await call_of(alice, "bob")
        record = journals.record()
        await alice.call.leave()
        await alice.until("ended")
        with pytest.raises(RegroupFailed):
            await alice.client.come_back(record)
        assert not alice.client.calls


async def test_rule_15_a_deputy_whom_the_initiator_signed_for_goes_on() -> None:
    async with town() as here:
        alice = await here.phone("alice")
        bob, carol, dave, _ = await here.phones("bob", "carol", "dave", "mallory")
        call = await call_of(alice, "bob", "carol", "dave", deputies=(uri("bob"),))
        await bob.until("member-list", users=sorted(call.distribution.named))
        with pytest.raises(NotADeputy):
            await carol.call.take_over()
        old = sending_key(carol)
        await here.crash(alice)
        await here.until_gone("alice")
        deputy = await bob.call.take_over()
        assert deputy is bob.call and deputy.distribution.keyed() == {uri("carol"), uri("dave")}
        new = sending_key(carol)
        assert new == sending_key(bob) == sending_key(dave) != old
        assert not deputy.distribution.holders(deputy.distribution.current) & {uri("alice")}  # type: ignore[arg-type]
        await deputy.add(uri("mallory"))
        await deputy.remove(uri("dave"))
        await dave.until("ended")
        assert sending_key(carol) == sending_key(bob) not in (old, new)


async def test_rule_15_a_deputy_is_no_director_while_the_initiator_is_there() -> None:
    async with town() as here:
        alice = await here.phone("alice")
        bob, carol = await here.phones("bob", "carol")
        await call_of(alice, "bob", "carol", deputies=(uri("bob"),))
        await bob.until("member-list")
        before = sending_key(carol)
        with pytest.raises(NotADeputy):
            await bob.call.take_over()
        assert sending_key(carol) == before == sending_key(alice) == sending_key(bob), "he talks on as before"
        with pytest.raises(NotADeputy):
            await bob.call.rekey()  # type: ignore[attr-defined]
        await here.crash(alice)
        await here.until_gone("alice")
        deputy = await bob.call.take_over()
        assert deputy.directing and sending_key(carol) == sending_key(bob) != before


async def test_rule_15_a_deputy_steps_down_when_the_initiator_is_back() -> None:
    """From then on her keys count, his are made no more, and whom he added takes hers as well."""
    journals = MemoryJournals()
    async with town() as here:
        alice = await here.phone("alice", journal=journals)
        bob, carol, mallory = await here.phones("bob", "carol", "mallory")
        call = await call_of(alice, "bob", "carol", deputies=(uri("bob"),))
        await bob.until("member-list", users=sorted(call.distribution.named))
        await here.crash(alice)
        await here.until_gone("alice")
        deputy = await bob.call.take_over()
        await deputy.add(uri("mallory"))
        again = await here.phone("alice", journal=journals)
        back = await again.client.come_back(journals.record())
        await bob.until("stepped-down")
        assert back.distribution.keyed() == {uri("bob"), uri("carol")}
        assert sending_key(again) == sending_key(bob) == sending_key(carol)
        for wish in (deputy.rekey(), deputy.add(uri("carol")), deputy.remove(uri("carol")), deputy.revoke()):
            with pytest.raises(NotADeputy):
                await wish
        assert mallory.call.signers == (uri("bob"), uri("alice"))
        with pytest.raises(AddFailed) as busy:
            await back.add(uri("mallory"))  # he is in the call, by bob's word
        assert busy.value.status == 486
        await back.remove(uri("mallory"))
        await back.add(uri("mallory"))
        await back.rekey()
        assert sending_key(mallory) == sending_key(again) == sending_key(bob)


async def test_rule_15_a_members_key_is_refused_also_when_the_server_passes_it_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GroupCall, "directs", lambda *_: True)  # a server that passes on anybody's keys, in his name
    async with town() as here:
        alice, bob, carol = await here.phones("alice", "bob", "carol")
        call = await call_of(alice, "bob", "carol")
        before = sending_key(bob)
        forged = TransportKey.generate(KeyType.GMK).replace(
            group_ids=(call.group,), expiry=int(carol.client.now() + 3600), text=str(call.terms)
        )
        sealed = seal(
            forged, sender=uri("carol"), recipient=uri("bob"), keyring=carol.client.keyring, now=carol.client.now()
        )
        info = documents.McpttInfo(request_uri=uri("bob"), temporary_group=True, key_operation="update")
        content_type, body = build_multipart(
            [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, sealed.octets)], carol.client.token
        )
        response = await carol.client.send_in(carol.call, "MESSAGE", content_type, body)
        assert response is not None and response.status == 200, "this server passes it on"
        async with asyncio.timeout(PATIENCE):
            while not bob.seen("key-refused") and not bob.call.keys.holds(forged.key_id):
                await bob.until_told()
        assert not bob.call.keys.holds(forged.key_id) and sending_key(bob) == before


# --- rules 7 and 21: coming back ----------------------------------------------------------------------------


async def test_rule_7_one_who_was_lost_gets_a_fresh_key_when_he_registers_again() -> None:
    async with town() as here:
        alice, bob, _ = await here.phones("alice", "bob", "carol")
        call = await call_of(alice, "bob", "carol")
        await here.crash(bob)
        await here.until_gone("bob")
        again = await here.phone("bob")
        await again.until("joined")
        await alice.until("key-request", user=uri("bob"))
        await alice.until("added", user=uri("bob"))
        assert sending_key(again) == sending_key(alice)
        assert uri("bob") in call.distribution.keyed()


async def test_rule_21_a_second_device_takes_the_call_over_with_a_fresh_key_message() -> None:
    async with town() as here:
        alice, bob, _ = await here.phones("alice", "bob", "carol")
        call = await call_of(alice, "bob", "carol")
        second = await here.phone("bob")
        await second.client.ask_to_join(call.group)
        await second.until("joined")
        await bob.until("ended")
        assert not bob.client.calls and sending_key(second) == sending_key(alice)


async def test_rule_5_a_key_request_for_a_stranger_or_one_removed_makes_no_message() -> None:
    async with town() as here:
        alice, bob, _ = await here.phones("alice", "bob", "carol")
        mallory = await here.phone("mallory")
        call = await call_of(alice, "bob", "carol")
        await call.remove(uri("bob"))
        for man in (mallory, bob):
            with pytest.raises(RegroupFailed) as refusal:
                await man.client.ask_to_join(call.group)
            assert (refusal.value.status, (refusal.value.warning or "")[:3]) == (403, "121")
        # and a server that asks all the same gets none
        leg = here.server.controlling.calls[call.group].legs[uri("alice")]
        for name in ("mallory", "bob"):
            here.server.controlling.returning._request_key(leg.call, uri(name), time.time())
            here.server._agent.transmit()
            await alice.until("key-request-refused", user=uri(name))
        assert call.distribution.holders(call.distribution.current) == {uri("carol")}  # type: ignore[arg-type]


async def test_asking_for_a_call_that_is_not_there_says_so() -> None:
    async with town() as here:
        bob = await here.phone("bob")
        with pytest.raises(RegroupFailed) as refusal:
            await bob.client.ask_to_join("sip:tmp-0@mcx.example")
        assert (refusal.value.status, (refusal.value.warning or "")[:3]) == (404, "137")


# --- rule 24: adds, rekeys, removals at once ------------------------------------------------------------------


async def test_rule_24_with_rekey_on_join_a_newcomer_holds_no_earlier_key_and_joins_share_one() -> None:
    settings = DistributionSettings(activation_delay=1.0, transit=0.0, rekey_on_join=True)
    async with town() as here:
        alice = await here.phone("alice", distribution=settings)
        bob, carol, dave = await here.phones("bob", "carol", "dave")
        call = await call_of(alice, "bob")
        first = sending_key(bob)
        assert first is not None
        await asyncio.gather(call.add(uri("carol")), call.add(uri("dave")))
        assert len(alice.seen("rekeying")) == 1, "both joins share a key"
        for man in (carol, dave):
            assert not man.call.keys.holds(first)
        await bob.until("sending-key", gmk_id=f"{call.distribution.current.key_id:08x}")  # type: ignore[union-attr]
        assert sending_key(bob) == sending_key(carol) == sending_key(dave) != first


async def test_rule_24_one_who_never_acknowledges_holds_up_nobody() -> None:
    async with town(WithholdingServer) as here:
        alice, _bob, carol, dave = await here.phones("alice", "bob", "carol", "dave")
        call = await call_of(alice, "bob", "carol")
        rekey = asyncio.ensure_future(call.rekey())
        await alice.until("rekeying")
        assert call.distribution.current is not None
        await carol.until("key", gmk_id=f"{call.distribution.current.key_id:08x}")
        await call.add(uri("dave"))
        assert not rekey.done(), "the rekey still waits for bob, and dave is in"
        second = asyncio.ensure_future(call.rekey())
        for waiting in (rekey, second):
            with pytest.raises(NotRekeyed) as error:
                await waiting
            assert error.value.users == {uri("bob")}
        assert sending_key(carol) == sending_key(dave) == sending_key(alice)


async def test_a_second_add_of_a_member_changes_nothing_for_him() -> None:
    async with town() as here:
        alice, bob, carol = await here.phones("alice", "bob", "carol")
        call = await call_of(alice, "bob", "carol")
        with pytest.raises(AddFailed) as error:
            await call.add(uri("carol"))
        assert error.value.status == 486
        await call.rekey()
        assert call.distribution.keyed() == {uri("bob"), uri("carol")}
        assert sending_key(carol) == sending_key(bob)


# --- rule 14: clocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-200.0, 200.0])
async def test_rule_14_a_members_wrong_clock_makes_no_gap_at_a_rekey(skew: float) -> None:
    async with town() as here:
        alice = await here.phone("alice")
        bob = await here.phone("bob", clock=lambda: time.time() + skew)
        carol = await here.phone("carol")
        call = await call_of(alice, "bob", "carol")
        before = sending_key(bob)
        await call.rekey()
        assert before is not None
        await bob.until("sending-key", gmk_id=f"{call.distribution.current.key_id:08x}")  # type: ignore[union-attr]
        assert sending_key(bob) == sending_key(carol) == sending_key(alice) != before
        assert bob.call.keys.receiving(before, bob.client.now()) is not None, "the one before is heard for the grace"


# --- rule 20: who is in ---------------------------------------------------------------------------------------


async def test_rule_20_the_list_of_members_is_the_signers_and_only_grows_newer() -> None:
    async with town() as here:
        alice = await here.phone("alice")
        bob, carol = await here.phones("bob", "carol")
        call = await call_of(alice, "bob", "carol", deputies=(uri("bob"),))
        await bob.until("member-list", users=[uri("bob"), uri("carol")])
        member = bob.call
        held = member.member_list
        assert held is not None and held.signer == uri("alice")

        def signed(signer: McpttClient, group: str, number: int, at: float) -> bytes:
            return sign_members(group, signer.uri, number, [uri("mallory")], signer.sign, at)

        for octets in (
            signed(carol.client, call.group, 9, held.at + 1),  # a member, not the signer
            signed(alice.client, call.group.replace("tmp-", "tmp-0"), 9, held.at + 1),  # another group
            signed(alice.client, call.group, 0, held.at - 1),  # an old one
            signed(alice.client, call.group, 9, held.at + 1)[:-1] + b"\0",
            b"{}",
        ):
            member.on_member_list(octets)
            assert member.member_list is held
        with pytest.raises(MemberListError):
            read_members(b"x" * 200, group=call.group, signers=[uri("alice")], verify=bob.client.verify_signature)
        member.on_member_list(signed(alice.client, call.group, 9, held.at + 1))
        assert member.member_list is not None and member.member_list.users == (uri("mallory"),)
