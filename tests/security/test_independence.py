# SPDX-License-Identifier: Apache-2.0
"""One call, one user, one fault: nobody else pays for it (invariants 10 and 11, rules 2, 4, 24 and 26)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from mcptt_sip.body import Part
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.callerrors import AddFailed, NotRekeyed, RegroupFailed
from mcptt_sip.mcptt.documents import DocumentError, McpttInfo, parse_xml
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.mcptt.invitation import Invitation
from mcptt_sip.mcptt.memberlist import MemberListError, read_members
from mcptt_sip.mcptt.privatecalling import PrivateInvitation
from mcptt_sip.ops.programs import OneLine
from mikey.identity import domain_of
from tests.mcptt.calls import talking
from tests.security.town import Town, Townsman, town, uri

pytestmark = pytest.mark.network


def takes_private_calls(*men: Townsman) -> None:
    for man in men:

        @man.client.on_private_call
        async def take(invitation: PrivateInvitation) -> None:
            await invitation.accept()


def sending(*men: Townsman) -> set[int | None]:
    """The keys that they send under."""
    return {man.call._sending_id for man in men}


async def one_key(*men: Townsman) -> int | None:
    """The key that all of them send under: each changes by his own clock."""
    for _ in range(500):
        if len(sending(*men)) == 1:
            return sending(*men).pop()
        await asyncio.sleep(0.01)
    raise AssertionError(f"they send under {sending(*men)}")


async def talking_together(here: Town, *names: str) -> tuple[InitiatedRegroup, list[Townsman]]:
    """Alice's call with these, who are all in it."""
    men = await here.phones("alice", *names)
    call = await men[0].client.regroup([uri(name) for name in names])
    for man in men[1:]:
        await man.until("joined")
    return call, men


# --- private calls beside each other


async def test_the_second_private_call_of_a_server_ends_without_the_first() -> None:
    async with town() as here:
        alice, bob, carol, dave = await here.phones("alice", "bob", "carol", "dave")
        takes_private_calls(bob, dave)
        first = await alice.client.private_call(uri("bob"))
        second = await carol.client.private_call(uri("dave"))
        await second.leave()
        await dave.until("ended")
        private = here.server.service.private
        assert [call.caller.user for call in private.calls] == [uri("alice")]
        assert here.seen("private-call-ended", caller=uri("carol"))
        await first.leave()
        await bob.until("ended")
        assert not private.calls


async def test_a_private_call_that_nobody_answers_ends_and_the_others_go_on() -> None:
    async with town() as here:
        alice, bob, carol, dave = await here.phones("alice", "bob", "carol", "dave")
        takes_private_calls(bob)
        here.server.service.private._ring_time_limit = 0.3
        await alice.client.private_call(uri("bob"))

        @dave.client.on_private_call
        async def ring(_invitation: PrivateInvitation) -> None:
            await asyncio.Event().wait()

        with pytest.raises(RegroupFailed) as refused:
            await carol.client.private_call(uri("dave"))
        assert refused.value.status == 408
        assert [call.caller.user for call in here.server.service.private.calls] == [uri("alice")]


async def test_a_user_has_so_many_private_calls_and_no_more() -> None:
    async with town() as here:
        alice, bob, carol = await here.phones("alice", "bob", "carol")
        takes_private_calls(bob, carol)
        private = here.server.service.private
        private.settings = replace(private.settings, max_private_calls=1)
        first = await alice.client.private_call(uri("bob"))
        with pytest.raises(RegroupFailed) as refused:
            await alice.client.private_call(uri("carol"))
        assert refused.value.status == 500
        await first.leave()
        await bob.until("ended")
        await alice.client.private_call(uri("carol"))


# --- keys


async def test_a_user_for_whom_no_key_can_be_made_holds_up_nobody() -> None:
    """Rule 24; nothing was sent to him, so nothing is owed to him (rule 5)."""
    async with town() as here:
        call, (alice, bob, dave, _) = await talking_together(here, "bob", "dave", "mallory")
        with pytest.raises(AddFailed, match="no key can be made"):
            await call.add("sip:carol@other.example")
        assert "sip:carol@other.example" not in call.distribution.named
        before = await one_key(alice, bob, dave)
        await call.remove(uri("mallory"))
        assert await one_key(alice, bob, dave) != before
        await call.rekey()


async def test_a_member_whose_kms_is_not_trusted_any_more_is_named_and_the_others_are_keyed() -> None:
    """Rule 2: who has not got the new key is told, not hidden behind the first error."""
    async with town() as here:
        call, (alice, bob, carol, dave) = await talking_together(here, "bob", "carol", "dave")
        seal = call.distribution.seal

        def sealing(key: object, recipient: str, now: float) -> object:
            return seal(key, recipient if recipient != uri("carol") else "sip:carol@other.example", now)  # type: ignore[arg-type]

        call.distribution.seal = sealing  # type: ignore[assignment]
        before = await one_key(alice, bob, carol, dave)
        with pytest.raises(NotRekeyed) as missing:
            await call.rekey()
        assert missing.value.users == {uri("carol")}
        assert await one_key(alice, bob, dave) != before
        assert sending(carol) == {before}


async def test_a_change_of_keys_that_nobody_waits_for_is_carried_through() -> None:
    async with town() as here:
        call, (alice, _, carol, dave) = await talking_together(here, "bob", "carol", "dave")
        before = await one_key(alice, carol, dave)
        removal = asyncio.ensure_future(call.remove(uri("bob")))
        await asyncio.sleep(0)
        removal.cancel()
        await asyncio.wait({removal})
        await alice.until("rekeyed")
        assert await one_key(alice, carol, dave) != before


async def test_who_calls_himself_is_told_so() -> None:
    async with town() as here:
        alice, _ = await here.phones("alice", "bob")
        with pytest.raises(ValueError, match="who calls"):
            await alice.client.regroup([uri("alice")])
        with pytest.raises(ValueError, match="sequence"):
            await alice.client.regroup(uri("bob"))
        call = await alice.client.regroup([uri("bob")])
        with pytest.raises(ValueError, match="directs"):
            await call.add(uri("alice"))


# --- what is asked before it is dear, and what an application does wrong


async def test_who_may_not_call_costs_no_decapsulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 26."""
    async with town() as here:
        alice = await here.phone("alice")
        bob = await here.phone("bob", callers=(uri("carol"),))
        takes_private_calls(bob)
        opened: list[object] = []
        monkeypatch.setattr("mikey.sakke.decapsulate", lambda *parts, **more: opened.append(parts))
        for call in (alice.client.regroup([uri("bob")]), alice.client.private_call(uri("bob"))):
            with pytest.raises(RegroupFailed) as refused:
                await call
            assert refused.value.status == 403
        assert not opened and not bob.seen("invited") and not bob.seen("invited-privately")


async def test_a_fault_of_the_called_application_is_an_answer_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")

        @bob.client.on_regroup
        async def broken(_invitation: Invitation) -> None:
            raise KeyError("of the application")

        @bob.client.on_private_call
        async def broken_too(_invitation: PrivateInvitation) -> None:
            raise KeyError("of the application")

        async with asyncio.timeout(10):
            for call in (alice.client.regroup([uri("bob")]), alice.client.private_call(uri("bob"))):
                with pytest.raises(RegroupFailed) as refused:
                    await call
                assert refused.value.status in (480, 603)
        assert "of the application" in caplog.text


async def test_an_invitation_is_accepted_once() -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")

        @bob.client.on_regroup
        async def twice(invitation: Invitation) -> None:
            both = await asyncio.gather(invitation.accept(), invitation.accept(), return_exceptions=True)
            assert [type(one) for one in both if isinstance(one, Exception)] == [LocalProtocolError]

        call = await alice.client.regroup([uri("bob")])
        await call.rekey()
        await one_key(alice, bob)


# --- the server


def test_a_second_device_whose_media_cannot_be_had_leaves_the_first_in_the_call() -> None:
    exchange, (alice, *_), _ = talking("bob", "carol")
    call = exchange.call
    media = exchange.plane.opened[-1]
    legs, held = dict(call.legs), dict(media.legs)
    media.refuse = frozenset({uri("alice")})
    again = alice.call(
        group=call.group,
        parts=[
            Part("application/sdp", alice.describe().encode()),
            Part(
                documents.MCPTT_INFO,
                McpttInfo(session_type="prearranged", request_uri=call.group, temporary_group=True).encode(),
            ),
        ],
    )
    media.add_leg = _refusing_once(media)  # type: ignore[method-assign]
    exchange.run()
    assert alice.answer_to(again).status >= 400
    assert call.legs == legs and media.legs.keys() == held.keys() and call.machine.initiator_present
    exchange.run(15_000.0)
    assert not exchange.calls, "its time has run out all the same"


def _refusing_once(media: object) -> object:
    media.refuse = frozenset()  # type: ignore[attr-defined]
    add, refused = media.add_leg, []  # type: ignore[attr-defined]

    def add_leg(destination: object, theirs: object, guk_id: int) -> None:
        if not refused:
            refused.append(destination)
            raise ValueError("the address is another's")
        add(destination, theirs, guk_id)

    return add_leg


def test_what_is_wrong_with_one_call_stops_the_time_of_no_other(caplog: pytest.LogCaptureFixture) -> None:
    exchange, _, _ = talking("bob", "carol")
    broken = exchange.call
    other = exchange.phone("dave")
    exchange.phone("erin")
    other.call("erin")
    exchange.run()
    assert len(exchange.calls) == 2

    def fail(_now: float) -> None:
        raise RuntimeError("a fault of ours")

    broken.machine.handle_timer = fail  # type: ignore[method-assign]
    exchange.run(15_000.0)
    assert not exchange.calls and "a fault of ours" in caplog.text


def test_a_member_watches_so_often_and_no_more() -> None:
    exchange, (_, bob, _), _ = talking("bob", "carol")
    conference = exchange.server.controlling.conference
    conference._settings = replace(conference._settings, max_subscriptions=3)
    watching = [bob.subscribe(exchange.call.session_identity) for _ in range(5)]
    exchange.run()
    assert [bob.answer_to(one).status for one in watching] == [200, 200, 200, 500, 500]


@pytest.mark.parametrize("text", [b'{"number": Infinity}', b"[" * 30_000, b'{"number": NaN}', b"\xff", b"{}"])
def test_a_list_of_members_that_is_none_is_one_error(text: bytes) -> None:
    full = b'{"group":"g","signer":"s","at":1,"users":[],' + text[1:] if text.startswith(b'{"n') else text
    with pytest.raises(MemberListError):
        read_members(full + bytes(129), group="g", signers=["s"], verify=lambda *_: None)


# --- names and lines


@pytest.mark.parametrize(
    ("uri_", "domain"),
    [
        ("sip:alice@mcx.example", "mcx.example"), ("sip:partner.example;@mcx.example", "mcx.example"),
        ("sip:partner.example?@mcx.example", "mcx.example"), ("sip:q;r=1@MCX.example.:5060;x=y", "mcx.example"),
        ("sip:a%40partner.example@mcx.example", "mcx.example"), ("sip:mcx.example;maddr=evil", "mcx.example"),
        ("sip:a@b@mcx.example", ""), ("sip:[2001:db8::1]:5060", "[2001:db8::1]"), ("tel:+1", "tel:"),
        ("user@mcx.example", "mcx.example"),
    ],
)  # fmt: skip
def test_the_domain_of_a_uri_is_the_one_that_sip_routes_to(uri_: str, domain: str) -> None:
    """Rule 4: a KMS vouches for the users of its own domain, whatever their names look like."""
    assert domain_of(uri_) == domain


def test_nobody_writes_lines_of_his_own_into_the_log() -> None:
    with pytest.raises(DocumentError) as error:
        parse_xml(b"<x xmlns='a&#10;2026 level=INFO authorised'/>", "y")
    assert "\n" not in str(error.value)
    record = logging.LogRecord("n", logging.INFO, "", 0, "user=%s", ("eve\n2026 level=INFO\r\x1b[2J\u2028",), None)
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line == "INFO user=eve\\n2026 level=INFO\\r\\x1b[2J\\u2028"
