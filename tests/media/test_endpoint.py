# SPDX-License-Identifier: Apache-2.0
"""One member against a server that does what a test tells it: what he must never do, and what he must tell."""

from __future__ import annotations

import asyncio
import glob
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from media.endpoint import MemberMedia
from media.errors import FloorDenied, FloorError, FloorRevoked, NoMicrophone
from media.floor_messages import (
    DenyCause,
    FloorDeny,
    FloorGranted,
    FloorRelease,
    FloorRequest,
    FloorRevoke,
    FloorTaken,
    QueuePositionInfo,
    RevokeCause,
)
from media.floor_participant import ParticipantSettings
from media.rtcp import Report
from media.rtp import RtpPacket
from media.srtp import CSK, SrtpSender
from media.tracks import ToneTrack
from tests.media.members import HOST, Member, ScriptedServer, csk_of, group_key, guk
from tests.media.test_burst_edges import clicks
from tests.media.test_group_relay import PATIENT

pytestmark = pytest.mark.network
GMK, NEXT = 1, 2
QUICK = ParticipantSettings(t101=0.1)


@asynccontextmanager
async def call(*names: str, **options: Any) -> AsyncIterator[tuple[ScriptedServer, list[Member]]]:
    server = ScriptedServer()
    members = [await Member.open(name, GMK, NEXT, **options) for name in names]
    server.join(*members)
    for member in members:
        member.send_under(GMK)
    try:
        yield server, members
    finally:
        await server.close()


async def packets(server: ScriptedServer, count: int) -> None:
    """Until so many have come."""
    async with asyncio.timeout(10):
        while len(server.packets) < count:
            await server.heard()
    assert len(server.packets) == count


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A burst of a fifth of a second."""
    return clicks(tmp_path / "short.wav", 10)


async def test_under_another_ssrc_than_his_own_nothing_is_sent_and_the_floor_is_given_back(short: Path) -> None:
    async with call("alice", "bob") as (server, (alice, _)):
        server.answer = lambda user, m: (
            server.send(user, FloorGranted, duration=30, granted_ssrc=7) if isinstance(m, FloorRequest) else None
        )
        with pytest.raises(FloorError, match="another SSRC"):
            await alice.media.request_floor()
        assert (await alice.until("ssrc-refused"))["ssrc"] == 7
        with pytest.raises(FloorError):
            await alice.media.send_file(short)
        assert server.packets == [] and not alice.media.has_floor


async def test_without_the_floor_or_a_key_no_packet_leaves(short: Path) -> None:
    async with call("alice", "bob") as (server, (alice, bob)):
        with pytest.raises(FloorError, match="needs the floor"):
            await alice.media.send_file(short)
        alice.media.set_sending_key(None)
        await alice.media.request_floor()
        await alice.media.send_file(short)
        await alice.media.release_floor()
        assert alice.media.statistics()["unsent"] == 11 and alice.media.statistics()["sent"] == 0
        await bob.media.request_floor()
        await bob.media.send_file(short)
        await packets(server, 11)
        assert bob.media.statistics()["sent"] == 11


async def test_a_denial_a_revoke_and_a_silent_server_each_raise_what_they_are(short: Path) -> None:
    async with call("alice", "bob", floor=QUICK) as (server, (alice, _)):
        server.answer = lambda user, m: (
            server.send(user, FloorDeny, reject=(7, "later")) if isinstance(m, FloorRequest) else None
        )
        with pytest.raises(FloorDenied) as denied:
            await alice.media.request_floor()
        assert (denied.value.cause, denied.value.phrase) == (DenyCause.QUEUE_FULL, "later")
        server.answer = lambda *_: None
        with pytest.raises(FloorError, match="does not answer"):
            await alice.media.request_floor()
        await alice.until("server-silent")
        server.answer = server.grant
        await alice.media.request_floor()
        assert (await alice.until("floor-granted"))["access"] < 5
        talking = asyncio.ensure_future(alice.media.send(ToneTrack()))
        while not server.packets:
            await asyncio.wait((talking,), timeout=0.02)
        server.send("alice", FloorRevoke, reject=(RevokeCause.PREEMPTED, ""))
        with pytest.raises(FloorRevoked) as revoked:
            await asyncio.wait_for(talking, 5)
        assert revoked.value.cause == RevokeCause.PREEMPTED
        assert [type(m) for _, m in server.received][-1] is FloorRelease


async def test_the_floor_may_be_asked_for_with_the_call_and_be_there_with_its_answer() -> None:
    async with call("alice", "bob", floor=QUICK) as (server, (alice, _)):
        alice.media.connect(server.audio.address, server.floor.address)  # a second time: nothing asked, nothing told
        assert not server.received
    server = ScriptedServer()
    members = [await Member.open(name, GMK, floor=QUICK) for name in ("carol", "dave")]
    server.join(*members, connect=False)
    carol, dave = members
    try:
        dave.media.connect(server.audio.address, server.floor.address, implicit_request=True)
        await dave.until("floor-granted")  # the server's first word was lost: it is asked again
        assert [type(message) for _, message in server.received] == [FloorRequest]
        carol.media.connect(server.audio.address, server.floor.address, implicit_request=True, granted=True)
        assert carol.media.has_floor and carol.events[0][0] == "floor-granted"
    finally:
        await server.close()


async def test_a_wish_that_is_cancelled_is_given_back() -> None:
    async with call("alice", "bob") as (server, (alice, _)):
        server.answer = lambda user, m: (
            server.send(user, QueuePositionInfo, queue=(3, 0)) if isinstance(m, FloorRequest) else None
        )
        asking = asyncio.ensure_future(alice.media.request_floor())
        assert (await alice.until("floor-queued"))["position"] == 3
        with pytest.raises(FloorError, match="already"):
            await alice.media.request_floor()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        server.answer = lambda *_: None
        async with asyncio.timeout(10):
            while not any(isinstance(m, FloorRelease) for _, m in server.received):
                await server.heard()


async def test_an_old_recording_is_not_played_to_a_member_who_has_just_joined(short: Path) -> None:
    async with call("alice", "bob") as (server, (alice, bob)):
        await alice.media.request_floor()
        await alice.media.send_file(short)
        await packets(server, 11)
        await bob.until("burst-heard")  # so it was worth hearing at its time
        # a minute later, or so the clock of one who has just joined says
        media = await MemberMedia.open(HOST, user="carol", clock=lambda: time.time() + 60)
        fresh = Member("carol", media, GMK)
        server.join(fresh)
        server.send("carol", FloorTaken, granted_party="alice")
        await fresh.until("floor-taken")
        for octets in server.packets[:]:
            server.send_audio("carol", octets)
        server.send("carol", FloorTaken, granted_party="bob")
        await fresh.until("floor-taken", 2)
        async with asyncio.timeout(10):
            while sum(fresh.media.statistics()["dropped"].values()) < 11:
                await asyncio.wait((asyncio.ensure_future(asyncio.sleep(0)),))
        assert fresh.media.statistics()["dropped"] == {"no-time": 8, "stale": 3}
        assert fresh.media.statistics()["frames"] == 0


async def test_his_own_name_from_elsewhere_is_told_and_not_played() -> None:
    async with call("alice", "bob") as (server, (alice, _)):
        server.send("alice", FloorTaken, granted_party="alice")
        await alice.until("floor-taken")
        mallory = SrtpSender(group_key(GMK, guk(GMK, "alice")), 0x666)
        packet = RtpPacket(96, 1, 0, 0x666, True, b"\x08" * 20, time.time())
        server.send_audio("alice", mallory.protect(packet.encode()))
        assert (await alice.until("impersonated"))["mki"].startswith("00000001")
        own = SrtpSender(group_key(GMK, guk(GMK, "bob")), alice.media.ssrc)
        packet = RtpPacket(96, 1, 0, alice.media.ssrc, True, b"\x08" * 20, time.time())
        server.send_audio("alice", own.protect(packet.encode()))
        # one sender more under his SSRC: whoever it is, nothing of him is played
        async with asyncio.timeout(10):
            while "ssrc-clash" not in alice.media.statistics()["dropped"]:
                await asyncio.wait((asyncio.ensure_future(asyncio.sleep(0)),))
        assert alice.media.statistics()["frames"] == 0


async def test_a_server_that_uses_his_floor_ssrc_is_told_of() -> None:
    async with call("alice", "bob") as (server, (alice, _)):
        twin = SrtpSender(csk_of("alice"), alice.media.floor_ssrc, CSK)
        server.floor.send(twin.protect_rtcp(Report(alice.media.floor_ssrc).encode()), alice.media.floor_address)
        await alice.until("ssrc-clash")


async def test_what_does_not_come_from_the_server_is_not_looked_at() -> None:
    async with call("alice", "bob") as (server, (alice, _)):
        from media.udp import Datagrams

        stranger = Datagrams(HOST)
        try:
            key = SrtpSender(csk_of("alice"), 5, CSK)
            stranger.send(
                key.protect_rtcp(FloorTaken(ssrc=5, granted_party="bob", sequence=9).encode()),
                alice.media.floor_address,
            )
            stranger.send(b"\x80\x60" + bytes(60), alice.media.audio_address)
            server.send("alice", FloorTaken, granted_party="bob")
            await alice.until("floor-taken")
        finally:
            stranger.close()
        assert [name for name, _ in alice.events].count("floor-taken") == 1
        assert alice.media.counters["floor-unknown-source"] == alice.media.counters["unknown-source"] == 1


async def test_two_keys_in_one_burst_make_one_burst_and_no_gap(tmp_path: Path) -> None:
    async with call("alice", "bob", reception=PATIENT.reception) as (server, (alice, bob)):
        await alice.media.request_floor()
        talking = asyncio.ensure_future(alice.media.send_file(clicks(tmp_path / "long.wav", 40)))
        while len(server.packets) < 15:
            await asyncio.wait((talking,), timeout=0.02)
        alice.send_under(NEXT)
        await talking
        await alice.media.release_floor()
        heard = await bob.until("burst-heard")
        assert (heard["lost"], heard["samples"]) == (0, 41 * 320)
        gmk_ids = {octets[-12:-8] for octets in server.packets}
        assert gmk_ids == {(1).to_bytes(4, "big"), (2).to_bytes(4, "big")}


@pytest.mark.skipif(bool(glob.glob("/dev/snd/pcmC*c")), reason="this machine has a microphone")
async def test_without_a_microphone_silence_is_sent_and_said_so_or_an_error_is_raised() -> None:
    async with call("alice", "bob") as (server, (alice, _)):
        await alice.media.request_floor()
        alice.media.start_microphone()
        await alice.until("no-microphone")
        async with asyncio.timeout(10):
            while len(server.packets) < 3:
                await server.heard()
        await alice.media.stop_microphone()
        assert (await alice.until("burst-sent"))["duration"] >= 0.04
    async with call("carol", "dave", silence_without_microphone=False) as (_, (carol, _)):
        await carol.media.request_floor()
        with pytest.raises(NoMicrophone):
            carol.media.start_microphone()


async def test_a_closed_member_says_nothing_more_and_closing_twice_is_harmless(short: Path) -> None:
    async with call("alice", "bob") as (server, (alice, _)):
        await alice.media.request_floor()
        asking = asyncio.ensure_future(alice.media.send_file(short))
        while not server.packets:
            await asyncio.wait((asking,), timeout=0.02)
        await alice.media.close()
        await alice.media.close()
        await asyncio.wait((asking,))
        sent = len(server.packets)
        with pytest.raises(FloorError, match="over"):
            await alice.media.request_floor()
        with pytest.raises(FloorError):
            await alice.media.send_file(short)
        assert len(server.packets) == sent

