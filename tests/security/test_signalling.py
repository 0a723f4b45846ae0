# SPDX-License-Identifier: Apache-2.0
"""What a dishonest server or member can say, and what the honest ones make of it. Numbers: the README's table."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import RegistrationFailed
from mcptt_sip.mcptt import documents, regroup
from mcptt_sip.mcptt.callerrors import AddFailed, RegroupFailed
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.clientrequests import ClientRequests
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.groupcall import GroupCall
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.mcptt.keying import MIKEY
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.server import McpttServer
from mcptt_sip.message import Request, Response
from mcptt_sip.session import InviteSession
from mikey import KeyType, SealedMessage, TransportKey, seal
from tests.security.town import SERVICE, town, uri

pytestmark = pytest.mark.network


def server_with(function: type[ControllingFunction]) -> type[McpttServer]:
    return type("DishonestServer", (McpttServer,), {"controlling_function": function})


# --- rule 12: step 9 is the server's word -----------------------------------------------------------------


class Hasty(ControllingFunction):
    """Answers the initiator before anybody accepted, with what ``acknowledgements`` it has."""

    acknowledgements: tuple[bytes, ...] = ()

    def _order(self, call: GroupCall, order: regroup.Order, now: float) -> None:
        if isinstance(order, regroup.InviteMember):
            call.machine.state = regroup.CallState.RUNNING
            self._answer_initiator(call, regroup.AnswerInitiator(self.acknowledgements), now)
            return  # and bob is never invited
        super()._order(call, order, now)


@pytest.mark.parametrize("acknowledgements", [(), (b"nonsense",), (os.urandom(150), os.urandom(150))])
async def test_rule_12_a_200_without_a_proof_does_not_establish_the_call(acknowledgements: tuple[bytes, ...]) -> None:
    kind = type("Hasty", (Hasty,), {"acknowledgements": acknowledgements})
    async with town(server_with(kind)) as here:
        alice, bob = await here.phones("alice", "bob")
        with pytest.raises(RegroupFailed, match="proved"):
            await alice.client.start_regroup(uri("bob"))
        assert not alice.seen("established") and not alice.client.calls
        assert not bob.seen("invited")


class Doubling(ControllingFunction):
    """Shows the first acknowledgement for everyone who is added, and invites none of them."""

    first = b""

    def _order(self, call: GroupCall, order: regroup.Order, now: float) -> None:
        if isinstance(order, regroup.AnswerInitiator):
            (self.first,) = order.acknowledgements
        if isinstance(order, regroup.InviteMember) and self.first:
            call.machine.accepted(order.user, self.first, now)
            return
        super()._order(call, order, now)


async def test_rule_12_another_users_proof_does_not_add_a_user() -> None:
    async with town(server_with(Doubling)) as here:
        alice, _, carol = await here.phones("alice", "bob", "carol")
        call = await alice.client.start_regroup(uri("bob"))
        with pytest.raises(AddFailed, match="prove"):
            await call.add(uri("carol"))
        assert call.distribution.keyed() == {uri("bob")}
        assert not carol.seen("invited")


# --- rule 16: downgrade -----------------------------------------------------------------------------------


class Downgrading(ControllingFunction):
    """Offers another media description than that of a regroup call."""

    change: tuple[str, str] = ("", "")

    def _offer(self, call: GroupCall, destination: Destination) -> GroupMediaDescription:
        offer = super()._offer(call, destination)
        change = self.change

        class Changed(GroupMediaDescription):
            def encode(self) -> bytes:
                text = offer.encode().decode()
                assert change[0] in text
                return text.replace(*change).encode()

        return Changed(offer.audio, offer.floor)


DOWNGRADES = {
    "plain RTP": ("RTP/SAVP", "RTP/AVP"),
    "SDES key": (
        "a=rtpmap:96",
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5\r\na=rtpmap:96",
    ),
    "key management in SDP": ("a=rtpmap:96", "a=key-mgmt:mikey AQAFgM0XflABAAAAAAAAAAAAAAsAyONQ\r\na=rtpmap:96"),
    "DTLS": ("a=rtpmap:96", "a=fingerprint:sha-256 AA:BB\r\na=rtpmap:96"),
}


@pytest.mark.parametrize("name", DOWNGRADES)
async def test_rule_16_another_media_profile_ends_the_leg(name: str) -> None:
    kind = type("Downgrading", (Downgrading,), {"change": DOWNGRADES[name]})
    async with town(server_with(kind)) as here:
        alice, bob = await here.phones("alice", "bob")
        with pytest.raises(RegroupFailed) as refusal:
            await alice.client.start_regroup(uri("bob"))
        assert refusal.value.status == 488
        assert bob.seen("invitation-refused") and not bob.client.calls and not bob.seen("key")


@pytest.mark.parametrize("repeated", [True, False])
async def test_rule_16_key_management_in_sdp_may_repeat_the_key_message(
    repeated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an initiator's INVITE: the same I_MESSAGE twice is one, another beside it is refused by the server."""
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        honest = ClientRequests.invite

        def twice(self: ClientRequests, call: Any, parts: list[Part], *rest: Any, **more: Any) -> InviteSession:
            theirs = GroupMediaDescription.decode(parts[0].body)
            key = parts[-1].body if repeated else bytes([*parts[-1].body[:-1], parts[-1].body[-1] ^ 1])
            return honest(self, call, [Part("application/sdp", replace(theirs, key=key).encode()), *parts[1:]],
                          *rest, **more)  # fmt: skip

        monkeypatch.setattr(ClientRequests, "invite", twice)
        if repeated:
            call = await alice.client.start_regroup(uri("bob"))
            assert call.distribution.keyed() == {uri("bob")}
        else:
            with pytest.raises(RegroupFailed) as refusal:
                await alice.client.start_regroup(uri("bob"))
            assert refusal.value.status == 488 and not bob.seen("invited")


class Unindicating(ControllingFunction):
    """Leaves the temporary-group indicator out, or the key."""

    leave_out = ""

    def key_for(self, call: GroupCall, user: str, key: bytes) -> bytes:
        return b"" if self.leave_out == "key" else key

    def _invite(self, call: GroupCall, order: regroup.InviteMember, now: float) -> None:
        if self.leave_out != "indicator":
            super()._invite(call, order, now)
            return
        honest = documents.McpttInfo.encode

        def without(info: documents.McpttInfo) -> bytes:
            return re.sub(rb"<(\w+:)?[^<>]*emporary[^<>]*>[^<]*</[^<>]*>", b"", honest(info))

        documents.McpttInfo.encode = without  # type: ignore[method-assign]
        try:
            super()._invite(call, order, now)
        finally:
            documents.McpttInfo.encode = honest  # type: ignore[method-assign]


@pytest.mark.parametrize("leave_out", ["key", "indicator"])
async def test_rule_16_indicator_and_key_come_together_or_not_at_all(leave_out: str) -> None:
    kind = type("Unindicating", (Unindicating,), {"leave_out": leave_out})
    async with town(server_with(kind)) as here:
        alice, bob = await here.phones("alice", "bob")
        with pytest.raises(RegroupFailed) as refusal:
            await alice.client.start_regroup(uri("bob"))
        assert refusal.value.status == 488
        assert bob.seen("invitation-refused") and not bob.client.calls


class WishChanging(ControllingFunction):
    """Tells the called user that no acknowledgement is asked for."""

    def _open_call(self, group: str, initiator: str, acknowledgement: str, now: float) -> GroupCall:
        return super()._open_call(group, initiator, "none", now)


async def test_rule_16_the_acknowledgement_wish_is_the_signed_one() -> None:
    async with town(server_with(WishChanging)) as here:
        alice, bob = await here.phones("alice", "bob")
        with pytest.raises(RegroupFailed) as refusal:
            await alice.client.start_regroup(uri("bob"))
        assert refusal.value.status == 488
        assert bob.seen("invitation-refused")


# --- rule 22: who speaks ----------------------------------------------------------------------------------


class Renaming(ControllingFunction):
    """Says that the call is carol's."""

    def _invite(self, call: GroupCall, order: regroup.InviteMember, now: float) -> None:
        real, call.machine.initiator = call.machine.initiator, uri("carol")
        try:
            super()._invite(call, order, now)
        finally:
            call.machine.initiator = real


async def test_rule_22_only_the_signer_is_shown_as_the_caller() -> None:
    async with town(server_with(Renaming)) as here:
        alice, bob, _ = await here.phones("alice", "bob", "carol")
        with pytest.raises(RegroupFailed) as refusal:
            await alice.client.start_regroup(uri("bob"))
        assert refusal.value.status == 488
        assert bob.seen("invitation-refused") and not bob.seen("invited")


class Borrowing(McpttClient):
    """Mallory sends an I_MESSAGE made for another user than he names, or makes his own in nobody's name."""

    lie = ""

    def _seal(self, key: TransportKey, recipient: str, now: float) -> Any:
        if self.lie == "for another":
            return seal(key, sender=self.uri, recipient=uri("carol"), keyring=self.keyring, now=now)
        made: SealedMessage = super()._seal(key, recipient, now)
        octets = bytearray(made.octets)
        octets[-40] ^= 1
        return SealedMessage(bytes(octets), made.csb_id, made.signed_digest, made.timestamp, recipient)


@pytest.mark.parametrize("lie", ["for another", "forged"])
async def test_rule_22_the_server_passes_on_only_what_the_caller_signed_for_the_target(lie: str) -> None:
    kind = type("Borrowing", (Borrowing,), {"lie": lie})
    async with town() as here:
        mallory = await here.phone("mallory", kind)
        bob = await here.phone("bob")
        with pytest.raises(RegroupFailed) as refusal:
            await mallory.client.start_regroup(uri("bob"))
        assert refusal.value.status == 488 and "136" in (refusal.value.warning or "")
        assert not bob.events[1:], "nothing but his registration"


# --- rule 23: Refer-To ------------------------------------------------------------------------------------


REFERS: dict[str, Sequence[str]] = {
    "two users": ["<sip:carol@mcx.example;method=INVITE>", "<sip:dave@mcx.example;method=INVITE>"],
    "another method": ["<sip:carol@mcx.example;method=MESSAGE>"],
    "headers": ["<sip:carol@mcx.example;method=INVITE?Replaces=abc>"],
    "a body": ["<sip:carol@mcx.example;method=INVITE?body=hello>"],
    "another domain": ["<sip:carol@elsewhere.example;method=INVITE>"],
    "another user than the key is for": ["<sip:dave@mcx.example;method=INVITE>"],
}


@pytest.mark.parametrize("name", REFERS)
async def test_rule_23_refer_to_names_exactly_the_one_user_of_the_key(name: str) -> None:
    async with town() as here:
        alice, _, carol, dave = await here.phones("alice", "bob", "carol", "dave")
        call = await alice.client.start_regroup(uri("bob"))
        call.distribution.name(uri("carol"))
        sealed = call.distribution.seal_to(uri("carol"), alice.client.now())
        info = documents.McpttInfo(request_uri=call.group, temporary_group=True)
        parts = [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, sealed.octets)]
        outcome = await refer(call, REFERS[name], parts)
        assert outcome in (400, 403, 488), outcome
        assert not carol.seen("invited") and not dave.seen("invited")
        await call.add(uri("carol"))


async def refer(call: InitiatedRegroup, refer_to: Sequence[str], parts: Sequence[Part]) -> int:
    """REFER in the call's dialog with as many Refer-To as given; the status of its answer."""
    assert call.session is not None
    content_type, body = build_multipart(list(parts), call.client.token)
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    request = call.session.send(
        "REFER", headers=[("Refer-To", value) for value in refer_to], body=body, content_type=content_type,
        now=call.client.stack_time(),
    )
    request.context = answer
    call.client.transmit()
    async with asyncio.timeout(10):
        outcome = await answer
    return int(outcome.status)


async def test_rule_23_a_member_who_is_not_the_initiator_adds_and_removes_nobody() -> None:
    async with town() as here:
        alice, bob, carol, dave = await here.phones("alice", "bob", "carol", "dave")
        call = await alice.client.start_regroup(uri("bob"))
        await call.add(uri("carol"))
        # bob claims the initiator's part with all he can have: his dialog, his own well-made key message
        forged = TransportKey.generate(KeyType.GMK).replace(
            group_ids=(call.group,), expiry=int(bob.client.now() + 3600)
        )
        sealed = seal(
            forged, sender=uri("bob"), recipient=uri("dave"), keyring=bob.client.keyring, now=bob.client.now()
        )
        info = documents.McpttInfo(request_uri=call.group, temporary_group=True)
        parts = [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, sealed.octets)]
        assert await refer(bob.call, ["<sip:dave@mcx.example;method=INVITE>"], parts) == 403  # type: ignore[arg-type]
        assert await refer(bob.call, ["<sip:carol@mcx.example;method=BYE>"], parts) == 403  # type: ignore[arg-type]
        assert carol.client.calls and not dave.seen("invited")


# --- rule 25: fresh ids -----------------------------------------------------------------------------------


class OtherGroup(ControllingFunction):
    """Answers with another group id than the initiator proposed."""

    def _answer_initiator(self, call: GroupCall, order: regroup.AnswerInitiator, now: float) -> None:
        honest = documents.McpttInfo.encode

        def lying(info: documents.McpttInfo) -> bytes:
            return honest(info).replace(call.group.encode(), call.group.encode().replace(b"tmp-", b"TMP-"))

        documents.McpttInfo.encode = lying  # type: ignore[method-assign]
        try:
            super()._answer_initiator(call, order, now)
        finally:
            documents.McpttInfo.encode = honest  # type: ignore[method-assign]


async def test_rule_25_the_answered_group_is_the_proposed_one_or_the_call_ends() -> None:
    async with town(server_with(OtherGroup)) as here:
        alice, bob = await here.phones("alice", "bob")
        with pytest.raises(RegroupFailed, match="another group"):
            await alice.client.start_regroup(uri("bob"))
        assert not alice.client.calls
        await bob.until("ended")


async def test_rule_25_every_attempt_has_a_group_and_a_key_of_its_own() -> None:
    async with town() as here:
        alice = await here.phone("alice")
        await here.phone("bob", answer=False)
        for _ in range(3):
            with pytest.raises(RegroupFailed):
                await alice.client.start_regroup(uri("bob"))
        keys = alice.seen("key")
        assert len(keys) == 3 == len({key["gmk_id"] for key in keys}) == len({key["group"] for key in keys})


# --- the service itself -----------------------------------------------------------------------------------


async def test_rule_5_the_service_identity_is_not_called() -> None:
    async with town() as here:
        alice = await here.phone("alice")
        with pytest.raises((RegroupFailed, AddFailed)):
            await alice.client.start_regroup(SERVICE)


class Registrant(McpttClient):
    """Registers his contact for bob's address, with his own password."""

    async def request(self, request: Request) -> Response | None:
        request.headers.set("To", f"<{uri('bob')}>")
        request.headers.set("From", f"<{uri('bob')}>;tag=1")
        return await super().request(request)


@pytest.mark.parametrize("callers", [(), (uri("carol"),), ("sip:*@elsewhere.example",)], ids=str)
async def test_step_5_the_called_user_decides_by_whom_he_may_be_drawn_in(callers: tuple[str, ...]) -> None:
    async with town() as here:
        alice = await here.phone("alice")
        bob = await here.phone("bob", callers=callers)
        with pytest.raises(RegroupFailed) as refusal:
            await alice.client.start_regroup(uri("bob"))
        assert (refusal.value.status, (refusal.value.warning or "")[:3]) == (403, "127")
        assert bob.seen("invitation-refused", reason="CallerNotAllowed") and not bob.seen("key")


@pytest.mark.parametrize("callers", [None, (uri("alice"),), ("sip:*@mcx.example",)], ids=str)
async def test_step_5_whom_he_lets_in_draws_him_in(callers: tuple[str, ...] | None) -> None:
    async with town() as here:
        alice = await here.phone("alice")
        await here.phone("bob", callers=callers)
        call = await alice.client.start_regroup(uri("bob"))
        assert call.distribution.keyed() == {uri("bob")}


async def test_nobody_registers_in_anothers_name() -> None:
    async with town() as here:
        with pytest.raises(RegistrationFailed, match="403"):
            await here.phone("mallory", Registrant)
        assert here.server.participating.locate(uri("bob"), time.time()) is None


async def test_an_invitation_past_the_server_needs_the_signers_key_all_the_same() -> None:
    """Mallory knows where bob listens and calls there as alice, with a key that he made and signed himself."""
    async with town() as here:
        bob = await here.phone("bob", transport="tcp")
        mallory = await here.phone("mallory")
        ((_, host, port),) = bob.client.addresses
        key = TransportKey.generate(KeyType.GMK).replace(
            group_ids=("sip:tmp-1@mcx.example",), expiry=int(mallory.client.now() + 3600)
        )
        sealed = seal(
            key, sender=uri("mallory"), recipient=uri("bob"), keyring=mallory.client.keyring,
            now=mallory.client.now(),
        )
        info = documents.McpttInfo(
            session_type="prearranged", request_uri=uri("bob"), calling_user_id=uri("alice"),
            calling_group_id="sip:tmp-1@mcx.example", temporary_group=True, acknowledgement="none",
        )
        sdp = GroupMediaDescription(audio=("127.0.0.1", 4000), floor=("127.0.0.1", 4001)).encode()
        content_type, body = build_multipart(
            [Part("application/sdp", sdp), Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, sealed.octets)],
            mallory.client.token,
        )
        session: InviteSession = mallory.client.stack.invite(
            f"sip:bob@{host}:{port};transport=tcp", from_=f"<{uri('alice')}>", to=f"<{uri('bob')}>", body=body,
            content_type=content_type, now=mallory.client.stack_time(),
        )
        mallory.client.transmit()
        assert session
        await bob.until("invitation-refused")
        assert not bob.client.calls and not bob.seen("key")
