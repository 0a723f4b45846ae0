# SPDX-License-Identifier: Apache-2.0
"""What a dishonest server or path does to media and floor control. Numbers: the README's table of rules."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import stat
from pathlib import Path

import pytest

from mcptt_sip.errors import RegistrationFailed
from mcptt_sip.mcptt import server as server_module
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.clientrequests import CallOptions
from mcptt_sip.mcptt.groupcall import GroupMedia
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.server import RelayedMedia, RelayPlane
from mcptt_sip.message import Request, Response
from mcptt_sip.ops.eavesdrop import KeyFile
from media.errors import FloorError, FloorMessageError
from media.floor_messages import decode_all
from media.srtp import CSK, SrtpSender
from mikey import KeyType, TransportKey
from tests.security.town import PATIENCE, Townsman, town, uri

pytestmark = pytest.mark.network
VOICE = Path(__file__).parents[2] / "scenarios" / "data" / "bob.wav"


# --- rule 1 -----------------------------------------------------------------------------------------------


class ForcingMedia(RelayedMedia):
    """Gives bob the floor for an SSRC that he did not draw: one that carol has used under the same key."""

    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        if destination.user == uri("bob"):
            theirs = dataclasses.replace(theirs, ssrc=(theirs.ssrc or 0) ^ 1)
        super().add_leg(destination, theirs, guk_id)


async def test_rule_1_under_an_ssrc_from_the_network_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RelayedMedia", ForcingMedia)
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        await alice.client.start_regroup(uri("bob"))
        drawn = bob.call.media.ssrc
        with pytest.raises(FloorError):
            async with bob.call.floor():
                await bob.call.say(VOICE)
        await bob.until("ssrc-refused", ssrc=drawn ^ 1)
        assert bob.call.media.statistics()["sent"] == 0


async def test_rule_1_every_call_has_an_ssrc_of_its_own() -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        drawn = set()
        for _ in range(2):
            call = await alice.client.start_regroup(uri("bob"))
            drawn |= {man.call.media.ssrc for man in (alice, bob)}
            await call.release()
            await bob.until("ended", group=call.group)
        assert len(drawn) == 4


# --- rule 18: the client-server key -----------------------------------------------------------------------


class Resender(McpttClient):
    """Registers with a CSK message that was used before: his own, or another user's."""

    body: bytes | None = None
    kept: bytes | None = None

    async def request(self, request: Request) -> Response | None:
        if request.method == "REGISTER" and request.body:
            if self.body is not None:
                boundary = self.body.split(b"\r\n", 1)[0].removeprefix(b"--").decode()
                request.headers.set("Content-Type", f"multipart/mixed;boundary={boundary}")
                request.body = self.body
                request.headers.set("Content-Length", str(len(self.body)))
            self.kept = request.body
        return await super().request(request)


@pytest.mark.parametrize("victim", ["mallory", "alice"], ids=["his own", "another user's"])
async def test_rule_18_a_replayed_or_foreign_csk_message_registers_nobody(victim: str) -> None:
    async with town() as here:
        first = await here.phone(victim, Resender)
        again = type("Again", (Resender,), {"body": first.client.kept})  # type: ignore[attr-defined]
        with pytest.raises(RegistrationFailed, match="488 136"):
            await here.phone("mallory", again)


async def test_rule_18_a_server_that_sends_under_the_members_own_ssrc_loses_him() -> None:
    async with town() as here:
        alice, bob, _carol = await here.phones("alice", "bob", "carol")
        call = await alice.client.start_regroup(uri("bob"))
        await call.add(uri("carol"))
        relay = here.server.controlling.calls[call.group].media._relay  # type: ignore[attr-defined]
        leg = relay._legs[uri("bob")]
        key = server_module.floor_key(bob.client.csk)
        leg.ssrc = bob.call.media.floor_ssrc
        leg.sender = SrtpSender(key, leg.ssrc, CSK)
        async with alice.call.floor():
            await bob.until("ssrc-clash")
        await bob.until("ended")
        assert not bob.client.calls


# --- rule 19 ----------------------------------------------------------------------------------------------


BY_MEMBERS = CallOptions(floor="members", deputies=(uri("bob"),))


async def floor_of(man: Townsman) -> None:
    async with man.call.floor():
        await man.call.say(VOICE)


async def test_rule_19_members_arbitrate_and_the_server_reads_no_floor_message() -> None:
    async with town() as here:
        seen: list[bytes] = []
        here.server.controlling._media._trace = (  # type: ignore[attr-defined]
            lambda kind, _out, _local, _remote, octets, _at: seen.append(octets) if kind.startswith("floor") else None
        )
        alice, bob, carol = await here.phones("alice", "bob", "carol")
        call = await alice.client.start_regroup(uri("bob"), BY_MEMBERS)
        await call.add(uri("carol"))
        await bob.until("member-list", users=[uri("bob"), uri("carol")])
        await floor_of(carol)
        await bob.until("burst-heard", user=uri("carol"))
        assert seen
        for octets in seen:
            with pytest.raises(FloorMessageError):
                decode_all(octets)


@pytest.mark.soak
async def test_rule_19_when_the_arbiter_is_lost_his_deputy_gives_the_floor() -> None:
    async with town() as here:
        alice, bob, carol = await here.phones("alice", "bob", "carol")
        call = await alice.client.start_regroup(uri("bob"), BY_MEMBERS)
        await call.add(uri("carol"))
        await bob.until("member-list", users=[uri("bob"), uri("carol")])
        await here.crash(alice)
        async with asyncio.timeout(2 * PATIENCE):
            while not carol.seen("floor-granted"):
                with contextlib.suppress(FloorError):  # as long as nobody knows that the arbiter is gone
                    await floor_of(carol)
        await bob.until("burst-heard", user=uri("carol"))


class OwnFloor(RelayPlane):
    """A server that arbitrates itself, though members were to."""

    def open_unread(self, group: str) -> GroupMedia:
        return self.open(group, 0.0)


async def test_rule_19_where_the_signed_terms_say_members_the_servers_grants_are_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "RelayPlane", OwnFloor)
    async with town() as here:
        alice, bob, carol = await here.phones("alice", "bob", "carol")
        call = await alice.client.start_regroup(uri("bob"), BY_MEMBERS)
        await call.add(uri("carol"))
        with pytest.raises(FloorError):
            await floor_of(carol)
        assert not carol.seen("floor-granted") and not bob.seen("floor-taken")
        assert carol.call.media.statistics()["sent"] == 0


# --- rule 29 ----------------------------------------------------------------------------------------------


def test_rule_29_the_file_of_group_keys_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    file = KeyFile(path)
    file.write("sip:tmp-1@mcx.example", TransportKey.generate(KeyType.GMK))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text().count("\n") == 1


def test_rule_29_the_server_has_no_way_to_write_media_keys() -> None:
    from typer.main import get_command

    from mcptt_sip.ops.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {option for parameter in commands["serve"].params for option in parameter.opts}
    assert "--pcap" in options and not any("secret" in option for option in options)
    assert any("--pcap-secrets" in parameter.opts for parameter in commands["phone"].params)
