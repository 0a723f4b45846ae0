# SPDX-License-Identifier: Apache-2.0
"""Who holds a group key, how that is proved, and what ends it: attacks over the real protocol.

The number in a test's name is that of the rule in the README's table.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.mcptt import documents, regroup
from mcptt_sip.mcptt.call import CallSettings, Regroup
from mcptt_sip.mcptt.callerrors import AddFailed, NotRekeyed, RegroupFailed
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.contents import Contents
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.distribution import DistributionSettings
from mcptt_sip.mcptt.groupcall import GroupCall, Leg
from mcptt_sip.mcptt.groupkeys import KeyConflict
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.mcptt.keying import INSTALLED, MIKEY, acknowledge
from mcptt_sip.mcptt.keymessages import KeyMessages
from mcptt_sip.mcptt.server import McpttServer
from mikey import KeyType, OpenedKey, TransportKey, guk_id, seal
from tests.security.town import Townsman, town, uri

pytestmark = pytest.mark.network
VOICE = Path(__file__).parents[2] / "scenarios" / "data" / "bob.wav"


async def regroup_of(alice: Townsman, *others: str) -> InitiatedRegroup:
    call = await alice.client.start_regroup(uri(others[0]))
    for other in others[1:]:
        await call.add(uri(other))
    return call


def key_of(call: InitiatedRegroup) -> Any:
    assert call.distribution.current is not None
    return call.distribution.current


# --- rule 2 -----------------------------------------------------------------------------------------------


class WithholdingMessages(KeyMessages):
    """A server that drops every key update for bob, and says that it was delivered."""

    def _pass_key(self, leg: Leg, contents: Contents, now: float) -> None:
        if contents.info.request_uri != uri("bob"):
            super()._pass_key(leg, contents, now)


class Withholding(ControllingFunction):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.key_messages = WithholdingMessages(self.settings.domain, self._check_key, self._token)


class WithholdingServer(McpttServer):
    controlling_function = Withholding


async def test_rule_2_a_withheld_rekey_names_who_did_not_get_it() -> None:
    async with town(WithholdingServer) as here:
        alice, bob, carol, _dave = await here.phones("alice", "bob", "carol", "dave")
        call = await regroup_of(alice, "bob", "carol", "dave")
        with pytest.raises(NotRekeyed) as error:
            await call.remove(uri("dave"))
        assert error.value.users == {uri("bob")}
        new = key_of(call).key_id
        assert carol.call.keys.holds(new) and not bob.call.keys.holds(new)
        assert uri("bob") not in call.distribution.keyed()


async def test_rule_2_who_goes_on_under_the_old_key_is_not_heard_and_noticed() -> None:
    quick = CallSettings(resend_after=0.3, send_attempts=2, add_timeout=3.0, key_grace=0.2)
    async with town(WithholdingServer) as here:
        alice = await here.phone("alice", call=quick)
        bob = await here.phone("bob")
        carol = await here.phone("carol", call=quick)
        await here.phone("dave")
        call = await regroup_of(alice, "bob", "carol", "dave")
        old = key_of(call)
        with pytest.raises(NotRekeyed):
            await call.remove(uri("dave"))
        await carol.until("key-ended", gmk_id=f"{old.key_id:08x}")
        async with bob.call.floor():
            await bob.call.say(VOICE)
        await carol.until("stale-talker", gmk_id=f"{old.key_id:08x}", guk_id=f"{guk_id(old, uri('bob')):08x}")
        assert not carol.seen("burst-heard") and len(carol.seen("stale-talker")) == 1


async def test_rule_2_nobody_sends_under_a_key_after_its_expiry() -> None:
    short = DistributionSettings(lifetime=3.0, refresh_at=1.0, activation_delay=10.0, transit=0.0)
    async with town() as here:
        alice = await here.phone("alice", distribution=short)
        bob = await here.phone("bob")
        call = await regroup_of(alice, "bob")
        theirs = bob.call
        await bob.until("sending-key", gmk_id=None)
        assert theirs.keys.sending(bob.client.now()) is None
        await alice.until("sending-key", gmk_id=None)
        assert call.keys.sending(alice.client.now()) is None
        for man in (alice, bob):
            assert "expired" in (await man.until("ended"))["cause"], "nothing can be said or heard any more"


class SetClock:
    """The time of day, as somebody has set it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


OFTEN = CallSettings(resend_after=0.3, send_attempts=3, add_timeout=3.0, clock_check=0.1)


async def test_rule_2_a_clock_that_is_set_in_the_middle_of_a_call_counts_at_once() -> None:
    """Keys go by the time of day: an hour's key is over for a phone that learns that an hour has passed."""
    async with town() as here:
        clock = SetClock()
        alice = await here.phone("alice")
        bob = await here.phone("bob", clock=clock, call=OFTEN)
        await regroup_of(alice, "bob")
        assert bob.call.keys.sending(clock()) is not None
        clock.ahead, before = 3700.0, bob.client.stack_time()
        assert bob.client.stack_time() - before < 60.0, "no timer of SIP goes by it"
        await bob.until("sending-key", gmk_id=None)
        assert "expired" in (await bob.until("ended"))["cause"]


async def test_rule_2_an_initiator_whose_clock_is_set_makes_the_next_key_when_it_is_due_by_it() -> None:
    async with town() as here:
        clock = SetClock()
        alice = await here.phone("alice", clock=clock, call=OFTEN)
        bob = await here.phone("bob")
        call = await regroup_of(alice, "bob")
        first = call.distribution.current
        assert first is not None
        call.distribution.made_at -= 3600.0 * 0.75 - 250.0  # almost due
        clock.ahead = 250.0  # its messages are still taken: five minutes
        await alice.until("rekeyed")
        assert call.distribution.current is not first and call.distribution.keyed() == {uri("bob")}
        assert not bob.seen("ended")


# --- rule 3 -----------------------------------------------------------------------------------------------


class Swearing(Regroup):
    """Bob's client in Mallory's hands: proves what ``lie`` says instead of the truth."""

    lie = ""

    def acknowledgement(self, opened: OpenedKey, result: int = INSTALLED) -> bytes:
        group, user, digest = self.group, self.me, opened.signed_digest
        match self.lie:
            case "another user":
                user = uri("carol")
            case "another group":
                group = group.replace("tmp-", "tmp-0")
            case "another message":
                digest = bytes(32)
            case "another signer":
                ring = self.client.keyring
                assert ring is not None

        def sign(octets: bytes) -> bytes:
            signature = bytearray(self.client.sign(octets))
            if self.lie == "another signer":
                signature[40] ^= 1
            return bytes(signature)

        return acknowledge(
            opened.key, csb_id=opened.csb_id, digest=digest, group=group, user=user, sign=sign, result=result
        ).encode()


@pytest.mark.parametrize("lie", ["another user", "another group", "another message", "another signer"])
async def test_rule_3_a_proof_of_something_else_does_not_establish_a_call(lie: str) -> None:
    class Liar(McpttClient):
        member_class = type("Swearing", (Swearing,), {"lie": lie})

    async with town() as here:
        alice = await here.phone("alice")
        await here.phone("bob", Liar)
        with pytest.raises(RegroupFailed, match="proved"):
            await alice.client.start_regroup(uri("bob"))
        assert alice.seen("acknowledgement-refused")
        assert not alice.seen("established") and not alice.client.calls


async def test_rule_3_call_ids_differ_on_both_legs_and_the_proof_counts() -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        call = await regroup_of(alice, "bob")
        assert call.session is not None and bob.call.session is not None
        assert call.session.call_id != bob.call.session.call_id
        assert call.distribution.keyed() == {uri("bob")}


# --- rule 5 -----------------------------------------------------------------------------------------------


class Inviting(ControllingFunction):
    """A server that puts mallory into every roster and reports him as added."""

    def _order(self, call: GroupCall, order: regroup.Order, now: float) -> None:
        super()._order(call, order, now)
        if isinstance(order, regroup.RosterChanged):
            call.roster.connected(uri("mallory"), now)


class InvitingServer(McpttServer):
    controlling_function = Inviting


async def test_rule_5_nobody_whom_the_server_names_gets_a_key() -> None:
    async with town(InvitingServer) as here:
        alice, _, mallory = await here.phones("alice", "bob", "mallory")
        call = await regroup_of(alice, "bob")
        assert uri("mallory") in await alice.client.roster(call)
        await call.rekey()
        assert call.distribution.holders(key_of(call)) == {uri("bob")}
        assert uri("mallory") not in call.distribution.named
        assert not mallory.seen("key") and not mallory.client.calls


# --- rule 6 -----------------------------------------------------------------------------------------------


async def test_rule_6_one_who_declined_may_hold_the_key_and_the_next_key_is_without_him() -> None:
    async with town() as here:
        alice, *_ = await here.phones("alice", "bob", "carol")
        dave = await here.phone("dave", answer=False)
        call = await regroup_of(alice, "bob", "carol")
        with pytest.raises(AddFailed) as refusal:
            await call.add(uri("dave"))
        assert refusal.value.status == 480
        assert uri("dave") in call.distribution.holders(key_of(call)), "an I_MESSAGE left for him"
        before = key_of(call).key_id
        await call.remove(uri("carol"))  # raises NotRekeyed if dave were waited for
        assert key_of(call).key_id != before
        assert call.distribution.holders(key_of(call)) == {uri("bob")}
        assert not dave.client.calls


async def test_rule_6_a_failed_add_asks_for_one_new_key_when_so_configured() -> None:
    settings = DistributionSettings(activation_delay=0.2, transit=0.0, rekey_on_failed_add=True, coalesce=1.0)
    async with town() as here:
        alice = await here.phone("alice", distribution=settings)
        await here.phone("bob")
        for name in ("carol", "dave"):
            await here.phone(name, answer=False)
        call = await regroup_of(alice, "bob")
        for name in ("carol", "dave"):
            with pytest.raises(AddFailed):
                await call.add(uri(name))
        await alice.until("rekeyed")
        assert len(alice.seen("rekeying")) == 1
        assert call.distribution.holders(key_of(call)) == {uri("bob")}


# --- rule 7 -----------------------------------------------------------------------------------------------


class LosingMessages(KeyMessages):
    """Loses the first acknowledgement of every update: the initiator sends the same octets again."""

    lost = 0

    def _pass_acknowledgement(self, leg: Leg, octets: bytes, now: float) -> None:
        if self.lost == 0:
            self.lost += 1
            return
        super()._pass_acknowledgement(leg, octets, now)


class Losing(ControllingFunction):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.key_messages = LosingMessages(self.settings.domain, self._check_key, self._token)


class LosingServer(McpttServer):
    controlling_function = Losing


async def test_rule_7_a_repeated_update_is_acknowledged_again_and_installed_once() -> None:
    async with town(LosingServer) as here:
        alice, bob = await here.phones("alice", "bob")
        call = await regroup_of(alice, "bob")
        await call.rekey()
        assert here.server.controlling.key_messages.lost == 1  # type: ignore[attr-defined]
        assert call.distribution.keyed() == {uri("bob")}
        assert len(bob.seen("key")) == 2, "that of the invitation and the new one"


class Hoarding(ControllingFunction):
    """Keeps bob's first invitation and gives it to him again whenever he is invited anew."""

    kept = b""

    def key_for(self, call: GroupCall, user: str, key: bytes) -> bytes:
        if user != uri("bob"):
            return key
        self.kept = self.kept or key
        return self.kept


class HoardingServer(McpttServer):
    controlling_function = Hoarding


async def test_rule_7_an_old_invitation_after_leaving_is_refused() -> None:
    async with town(HoardingServer) as here:
        alice, bob, _ = await here.phones("alice", "bob", "carol")
        call = await regroup_of(alice, "bob", "carol")
        await bob.call.leave()
        with pytest.raises(AddFailed) as refusal:
            await call.add(uri("bob"))
        assert refusal.value.status == 488
        await bob.until("invitation-refused", reason="Replayed")
        assert not bob.client.calls


async def test_rule_7_a_fresh_key_message_lets_him_in_again() -> None:
    async with town() as here:
        alice, bob, _ = await here.phones("alice", "bob", "carol")
        call = await regroup_of(alice, "bob", "carol")
        await bob.call.leave()
        await call.add(uri("bob"))
        assert bob.call.group == call.group and len(bob.seen("joined")) == 2


# --- rule 13 ----------------------------------------------------------------------------------------------


class SwallowingMessages(KeyMessages):
    """Answers 200 to everything, and passes nothing on."""

    def _pass_key(self, leg: Leg, contents: Contents, now: float) -> None:
        return


class Swallowing(ControllingFunction):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.key_messages = SwallowingMessages(self.settings.domain, self._check_key, self._token)


class SwallowingServer(McpttServer):
    controlling_function = Swallowing


async def test_rule_13_the_servers_own_200_is_no_acknowledgement() -> None:
    async with town(SwallowingServer) as here:
        alice, *_ = await here.phones("alice", "bob", "carol")
        call = await regroup_of(alice, "bob", "carol")
        with pytest.raises(NotRekeyed) as error:
            await call.rekey()
        assert error.value.users == {uri("bob"), uri("carol")}


# --- rule 15 ----------------------------------------------------------------------------------------------


async def test_rule_15_only_the_pinned_signer_replaces_a_key() -> None:
    async with town() as here:
        alice, bob, carol = await here.phones("alice", "bob", "carol")
        call = await regroup_of(alice, "bob", "carol")
        before = key_of(call).key_id
        # carol, a member, sends a well-made update of her own to everyone, in alice's stead
        forged = TransportKey.generate(KeyType.GMK).replace(
            group_ids=(call.group,), expiry=int(carol.client.now() + 3600)
        )
        sealed = seal(
            forged, sender=uri("carol"), recipient=uri("bob"), keyring=carol.client.keyring, now=carol.client.now()
        )
        info = documents.McpttInfo(request_uri=uri("bob"), temporary_group=True, key_operation="update")
        content_type, body = build_multipart(
            [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, sealed.octets)], carol.client.token
        )
        response = await carol.client.send_in(carol.call, "MESSAGE", content_type, body)
        assert response is not None and response.status == 403
        assert not bob.call.keys.holds(forged.key_id)
        assert bob.call.keys.sending(bob.client.now()).key_id == before  # type: ignore[union-attr]


async def test_rule_15_a_revocation_is_for_good() -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        call = await regroup_of(alice, "bob")
        revoked = key_of(call)
        await call.revoke()
        await bob.until("revoked")
        held = bob.call.keys
        with pytest.raises(KeyConflict):
            held.install(revoked, held.last_timestamp + 1, bob.client.now())
        assert bob.call.keys.sending(bob.client.now()) is None
        assert call.keys.sending(alice.client.now()) is None
        # a new key, under a new id, and only that, opens the call again
        await call.rekey()
        assert bob.call.keys.sending(bob.client.now()) is not None


# --- rule 24 ----------------------------------------------------------------------------------------------


async def test_rule_24_add_remove_and_rekey_at_once_leave_one_key_with_those_who_stay() -> None:
    async with town() as here:
        alice, bob, carol, dave = await here.phones("alice", "bob", "carol", "dave")
        call = await regroup_of(alice, "bob", "carol")
        await asyncio.gather(call.add(uri("dave")), call.remove(uri("carol")), call.rekey())
        await asyncio.gather(call.rekey())
        holders = call.distribution.holders(key_of(call))
        assert holders == {uri("bob"), uri("dave")}
        for member in (bob, dave):
            sending = member.call.keys.sending(member.client.now())
            assert sending is not None and sending.key_id == key_of(call).key_id
        assert not carol.client.calls
        assert guk_id(key_of(call), uri("bob")) != guk_id(key_of(call), uri("dave"))


async def test_one_who_left_is_not_waited_for_by_the_next_rekey() -> None:
    async with town() as here:
        alice, bob, *_ = await here.phones("alice", "bob", "carol", "dave")
        call = await regroup_of(alice, "bob", "carol", "dave")
        await bob.call.leave()
        await call.remove(uri("carol"))
        assert alice.seen("left", user=uri("bob"))
        assert call.distribution.holders(key_of(call)) >= {uri("dave")}
        assert call.distribution.keyed() == {uri("dave")}
