# SPDX-License-Identifier: Apache-2.0
"""Members and a relay on loopback: real codec, real SRTP, real floor control."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import wave
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from media import codec_amrwb
from media.codecs import AMR_WB, G722, PCMA, Codec
from media.endpoint import MemberMedia, MemberSettings
from media.errors import FloorDenied
from media.quality import score
from media.reception import ReceptionSettings
from media.relay_endpoint import GroupRelay, GroupRelaySettings
from media.rtcp import Report
from media.srtp import CSK, SrtpKey, SrtpSender
from media.tracks import ToneTrack
from media.unread_relay import UnreadRelay

DATA = Path(__file__).parents[2] / "scenarios" / "data"
NAMES = ("alice", "bob", "carol")
SECONDS = 2.0
#: a shared machine may stall for a moment, and that is not what is tested
PATIENT = MemberSettings(reception=ReceptionSettings(delay=0.3, least_delay=0.3, most_delay=0.5, patience=2.0))
pytestmark = pytest.mark.network
needs_amr = pytest.mark.skipif(
    not codec_amrwb.available(), reason="libvo-amrwbenc or libopencore-amrwb is not installed"
)


@dataclass
class Group:
    """A group key as everybody derives it: here, each sender's key from its GUK-ID by counting."""

    gmk: bytes
    keys: dict[bytes, SrtpKey] = field(default_factory=dict)

    def guk_id(self, name: str) -> int:
        return 0x0A000000 + sum(name.encode())

    def key(self, name: str) -> SrtpKey:
        mki = self.gmk + self.guk_id(name).to_bytes(4, "big")
        return self.keys.setdefault(mki, SrtpKey(os.urandom(16), os.urandom(12), mki))


class Party:
    """One member with what happened to him."""

    def __init__(self, name: str, media: MemberMedia, groups: list[Group]) -> None:
        self.name = name
        self.media = media
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()
        self.groups = groups
        media.on_event = self._happened
        media.find_key = lambda mki: next((g.keys[mki] for g in groups if mki in g.keys), None)
        media.talker_guk_ids = lambda user: {g.guk_id(user[4:].partition("@")[0]).to_bytes(4, "big") for g in groups}

    def _happened(self, name: str, details: dict[str, Any]) -> None:
        self.events.append((name, details))
        self._news.set()

    async def expect(self, name: str, after: int = 0) -> dict[str, Any]:
        async with asyncio.timeout(15):
            while True:
                for seen, details in self.events[after:]:
                    if seen == name:
                        return details
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def call(
    tmp_path: Path,
    names: tuple[str, ...] = NAMES,
    *,
    settings: MemberSettings | None = None,
    server: str = "127.0.0.1",
    hosts: tuple[str, ...] = ("127.0.0.1",),
) -> AsyncIterator[tuple[GroupRelay, Group, list[Party]]]:
    group = Group(os.urandom(4))
    for name in names:
        group.key(name)
    relay = GroupRelay("sip:g@x", server)
    parties = []
    for number, name in enumerate(names):
        host = hosts[number % len(hosts)]
        media = await MemberMedia.open(host, user=f"sip:{name}@x", settings=settings or PATIENT)
        party = Party(name, media, [group])
        csk = SrtpKey(os.urandom(16), os.urandom(12), os.urandom(4))
        media.set_csk(csk)
        media.set_sending_key(group.key(name))
        media.record(tmp_path / f"{name}.wav")
        at = relay.audio[0] if server != "::" else host
        media.connect((at, relay.audio[1]), (at, relay.floor[1]))
        relay.add_leg(
            media.user, audio=media.audio_address, floor=media.floor_address, media_ssrc=media.ssrc, csk=csk,
            guk_id=group.guk_id(name), priority=5,
        )
        parties.append(party)
    try:
        yield relay, group, parties
    finally:
        for party in parties:
            await party.media.close()
        relay.close()


def heard(path: Path, burst: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.int16]]:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples[burst["offset"] : burst["offset"] + burst["samples"]]


def said(name: str) -> np.ndarray[Any, np.dtype[np.int16]]:
    """The first seconds of a member's speech: enough to know it by."""
    with wave.open(str(DATA / f"{name}.wav")) as file:
        return np.frombuffer(file.readframes(int(SECONDS * 16000)), "<i2")


def speech(tmp_path: Path, name: str) -> Path:
    """The same as a file."""
    path = tmp_path / f"{name}-says.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(said(name).tobytes())
    return path


async def test_what_one_says_every_other_hears_and_a_second_waits_his_turn(tmp_path: Path) -> None:
    async with call(tmp_path) as (relay, _, (alice, bob, carol)):
        await alice.media.request_floor()
        waiting = asyncio.ensure_future(bob.media.request_floor())
        await bob.expect("floor-queued")
        await alice.media.send_file(speech(tmp_path, "alice"))
        await alice.media.release_floor()
        await waiting
        await bob.media.send_file(speech(tmp_path, "bob"))
        await bob.media.release_floor()
        bursts = [
            (name, party, await party.expect("burst-heard", after))
            for name, party, after in (("alice", bob, 0), ("alice", carol, 0), ("bob", alice, 0))
        ]
        assert {burst["user"] for _, _, burst in bursts} == {"sip:alice@x", "sip:bob@x"}
        statistics = relay.statistics()
    for name, party, burst in bursts:
        sound = heard(tmp_path / f"{party.name}.wav", burst)
        assert score(said(name), sound, 16000) >= 0.85
        assert abs(len(sound) - len(said(name))) < 0.05 * len(said(name))
        assert score(said("dave"), sound, 16000) < 0.6
    assert statistics["relayed"] > 180 and statistics["legs"] == 3
    assert not [reason for reason in statistics if reason.startswith(("foreign", "unknown", "floor-"))]


async def test_a_new_key_in_the_middle_of_a_word_makes_no_gap(tmp_path: Path) -> None:
    async with call(tmp_path) as (relay, _group, (alice, bob, carol)):
        halfway = asyncio.Event()
        sent: list[bytes] = []

        def count(kind: str, outbound: bool, _local: Any, _remote: Any, octets: bytes, _at: float) -> None:
            if kind == "audio" and outbound:
                sent.append(octets)
                if len(sent) == 40:
                    halfway.set()

        alice.media.trace = count
        await alice.media.request_floor()
        talking = asyncio.ensure_future(alice.media.send_file(speech(tmp_path, "alice")))
        new = Group(os.urandom(4))
        for party in (alice, bob):  # carol is out
            new.key(party.name)
            party.groups.append(new)
        await halfway.wait()
        relay.remove_leg("sip:carol@x")
        alice.media.set_sending_key(new.key("alice"))
        await talking
        await alice.media.release_floor()
        burst = await bob.expect("burst-heard")
        assert burst["lost"] == 0
        lost = await carol.expect("burst-heard")
    assert score(said("alice"), heard(tmp_path / "bob.wav", burst), 16000) >= 0.85
    assert lost["samples"] < 0.6 * burst["samples"]


async def test_without_the_key_nothing_is_heard_and_every_packet_is_counted(tmp_path: Path) -> None:
    async with call(tmp_path) as (_, _group, (alice, bob, carol)):
        carol.media.find_key = lambda _mki: None
        await alice.media.request_floor()
        await alice.media.send_file(speech(tmp_path, "alice"))
        await alice.media.release_floor()
        await bob.expect("burst-heard")
        statistics = carol.media.statistics()
        assert not [name for name, _ in carol.events if name == "burst-heard"]
        assert statistics["dropped"]["unknown-key"] > 80


async def test_strangers_and_packets_under_another_members_name_do_not_pass(tmp_path: Path) -> None:
    async with call(tmp_path) as (relay, group, (alice, bob, carol)):
        await alice.media.request_floor()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for octets in (b"", b"x" * 100, b"\x80\x60" + os.urandom(1398), b"\x80\x60" + os.urandom(38)):
                for target in (relay.audio, relay.floor, bob.media.audio_address, bob.media.floor_address):
                    stranger.sendto(octets, target)
        bob.media.set_sending_key(group.key("alice"))  # bob would speak under alice's GUK-ID
        bob.media._has_floor = True
        await asyncio.gather(
            alice.media.send_file(speech(tmp_path, "alice")),
            bob.media.send_file(speech(tmp_path, "bob")),
            return_exceptions=True,
        )
        await alice.media.release_floor()
        await carol.expect("burst-heard")
        statistics = relay.statistics()
        assert statistics["foreign-guk-id"] > 0 or statistics["no-floor"] > 0
        assert statistics["unknown-source"] == 4
        assert {d["user"] for n, d in carol.events if n == "burst-heard"} == {"sip:alice@x"}


async def test_one_alone_is_denied_with_its_cause(tmp_path: Path) -> None:
    async with call(tmp_path, ("alice",)) as (_, _, (alice,)):
        with pytest.raises(FloorDenied) as error:
            await alice.media.request_floor()
        assert error.value.cause == 3


async def test_a_closed_relay_and_member_leave_no_socket(tmp_path: Path) -> None:
    async with call(tmp_path) as (relay, _, parties):
        addresses = [relay.audio, relay.floor, *(p.media.audio_address for p in parties)]
    for address in addresses:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(address)


async def until(relay: GroupRelay, happened: Callable[[], bool]) -> None:
    """Looks anew at every datagram of the relay."""
    news = asyncio.Event()
    relay.trace = lambda *_datagram: news.set()
    async with asyncio.timeout(10):
        while not happened():
            news.clear()
            await news.wait()


async def test_the_address_of_a_members_audio_is_learnt_from_his_authentic_keep_alive_and_from_nothing_else() -> None:
    relay = GroupRelay("sip:g@x", "127.0.0.1", settings=GroupRelaySettings(floor_keepalive=0.05))
    csk, elsewhere = SrtpKey(bytes(16), bytes(12), b"mki0"), ("127.0.0.1", 9)
    member = await MemberMedia.open("127.0.0.1", user="sip:a@x", settings=MemberSettings(keepalive=0.05))
    member.set_csk(csk)
    relay.add_leg(
        "sip:a@x", audio=elsewhere, floor=elsewhere, media_ssrc=member.ssrc, csk=csk, guk_id=1
    )
    stranger = SrtpSender(SrtpKey(bytes(range(16)), bytes(12), b"mki0"), 5, CSK)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(stranger.protect_rtcp(Report(5).encode()), relay.audio)
            sock.sendto(os.urandom(60), relay.audio)
            await until(relay, lambda: "floor-authentication" in relay.statistics())
        assert relay._relay.destinations == (elsewhere,)
        member.connect(relay.audio, relay.floor)
        await until(relay, lambda: "round_trip" in relay.reports()["sip:a@x"])
        assert relay._relay.destinations == (member.audio_address,)
        assert relay.statistics()["audio-moved"] == 1
        assert 0 <= relay.reports()["sip:a@x"]["round_trip"] < 1
    finally:
        await member.close()
        relay.close()


async def test_what_a_member_said_before_moves_him_nowhere() -> None:
    """Somebody on the way held it back, and says it from his own place: authentic, heard for the first time, old."""
    relay = GroupRelay("sip:g@x", "127.0.0.1")
    csk, home = SrtpKey(bytes(16), bytes(12), b"mki0"), ("127.0.0.1", 9)
    relay.add_leg("sip:a@x", audio=home, floor=home, media_ssrc=1, csk=csk, guk_id=1)
    member = SrtpSender(csk, 7, CSK)
    old, new = (member.protect_rtcp(Report(7).encode()) for _ in range(2))
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        ):
            here.bind(("127.0.0.1", 0))
            for target in (relay.audio, relay.floor):
                here.sendto(new if target == relay.audio else member.protect_rtcp(Report(7).encode()), target)
            await until(relay, lambda: relay.statistics().get("audio-moved") == 1)
            for target in (relay.audio, relay.floor):
                stranger.sendto(old, target)
            stranger.sendto(b"", relay.audio)
            stranger.sendto(os.urandom(60), relay.floor)
            await until(relay, lambda: "floor-unknown-key" in relay.statistics())
            assert relay._relay.destinations == (here.getsockname(),)
            assert relay._legs["sip:a@x"].address == here.getsockname()
    finally:
        relay.close()


async def test_a_leg_that_the_relays_address_cannot_reach_is_refused_and_the_others_go_on() -> None:
    """An IPv6 address in the table of a socket that speaks IPv4 would keep everyone from hearing anything."""
    csk, four, six = SrtpKey(bytes(16), bytes(12), b"mki0"), ("127.0.0.1", 9), ("::1", 9)
    relay, unread = GroupRelay("sip:g@x", "127.0.0.1"), UnreadRelay("sip:g@x", "127.0.0.1")
    try:
        with pytest.raises(ValueError, match="cannot be reached"):
            relay.add_leg("sip:a@x", audio=six, floor=four, media_ssrc=1, csk=csk, guk_id=1)
        relay.add_leg("sip:a@x", audio=four, floor=four, media_ssrc=1, csk=csk, guk_id=1)
        for audio, floor in ((six, four), (four, six)):
            with pytest.raises(ValueError, match="cannot be reached"):
                unread.add_leg("sip:a@x", audio=audio, floor=floor, media_ssrc=1, guk_id=1)
        assert relay.statistics()["legs"] == 1 and unread.statistics()["legs"] == 0
    finally:
        relay.close()
        unread.close()


@pytest.mark.parametrize("codec", [G722, PCMA, pytest.param(AMR_WB, marks=needs_amr)], ids=lambda codec: codec.name)
async def test_a_group_may_talk_in_any_codec(tmp_path: Path, codec: Codec) -> None:
    settings = MemberSettings(reception=PATIENT.reception, codec=codec, payload_type=codec.payload_type or 97)
    async with call(tmp_path, ("alice", "bob"), settings=settings) as (_, _, (alice, bob)):
        await alice.media.request_floor()
        await alice.media.send_file(speech(tmp_path, "alice"))
        await alice.media.release_floor()
        burst = await bob.expect("burst-heard")
    sound = heard(tmp_path / "bob.wav", burst)
    assert abs(len(sound) - len(said("alice"))) <= 2 * 320 and burst["lost"] == 0
    assert score(said("alice"), sound, 16000) >= (0.7 if codec is PCMA else 0.85)


@pytest.mark.parametrize("server, hosts", [("::1", ("::1",)), ("::", ("127.0.0.1", "::1"))], ids=["IPv6", "both"])
async def test_a_group_meets_on_ipv6_and_on_both(tmp_path: Path, server: str, hosts: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    async with call(tmp_path, server=server, hosts=hosts) as (relay, _, parties):
        for talker in parties[:2]:
            await talker.media.request_floor()
            await talker.media.send(ToneTrack(seconds=0.2))
            await talker.media.release_floor()
        for name, party in (("alice", parties[1]), ("alice", parties[2]), ("bob", parties[0])):
            burst = await party.expect("burst-heard")
            assert (burst["user"], burst["samples"]) == (f"sip:{name}@x", 11 * 320)
        assert relay.statistics()["unreachable"] == relay.statistics()["unsent"] == 0


async def test_a_closed_relay_is_freed_without_a_search_for_garbage() -> None:
    relay = GroupRelay("sip:g@x", "127.0.0.1")
    key = SrtpKey(os.urandom(16), os.urandom(12), b"\x20\0\0\1")
    relay.add_leg("alice", audio=("127.0.0.1", 4000), floor=("127.0.0.1", 4001), media_ssrc=1, csk=key, guk_id=1)
    await asyncio.sleep(0)
    gone = weakref.ref(relay)
    gc.collect()
    gc.disable()
    try:
        relay.close()
        del relay
        assert gone() is None
    finally:
        gc.enable()
