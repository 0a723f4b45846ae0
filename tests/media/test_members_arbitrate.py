# SPDX-License-Identifier: Apache-2.0
"""Members who arbitrate among themselves, over a server that can read nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from media.endpoint import MemberMedia, MemberSettings
from media.errors import FloorMessageError, SrtpError
from media.floor_messages import decode_all
from media.floor_participant import ParticipantSettings
from media.quality import score
from media.srtp import SrtpKey
from media.unread_relay import UnreadRelay
from tests.media.test_group_relay import PATIENT, Group, Party, heard, said, speech

pytestmark = pytest.mark.network
NAMES = ("alice", "bob", "carol")
SETTINGS = MemberSettings(keepalive=0.2, floor=ParticipantSettings(t101=0.2), reception=PATIENT.reception)
ORDER = ("sip:alice@x", "sip:bob@x")


@asynccontextmanager
async def call(tmp_path: Path) -> AsyncIterator[tuple[UnreadRelay, Group, list[Party]]]:
    group, relay, parties = Group(os.urandom(4)), UnreadRelay("sip:g@x", "127.0.0.1"), []
    for name in NAMES:
        group.key(name)
    for name in NAMES:
        media = await MemberMedia.open("127.0.0.1", user=f"sip:{name}@x", settings=SETTINGS)
        party = Party(name, media, [group])
        media.arbitrate(ORDER, [f"sip:{other}@x" for other in NAMES if other != name])
        media.set_sending_key(group.key(name))
        media.record(tmp_path / f"{name}.wav")
        relay.add_leg(
            media.user, audio=media.audio_address, floor=media.floor_address, media_ssrc=media.ssrc,
            guk_id=group.guk_id(name),
        )  # fmt: skip
        parties.append(party)
    for party in parties:
        party.media.connect(relay.audio, relay.floor)
    try:
        yield relay, group, parties
    finally:
        for party in parties:
            await party.media.close()
        relay.close()


async def test_the_floor_is_given_and_speech_is_heard_while_the_server_reads_neither(tmp_path: Path) -> None:
    async with call(tmp_path) as (relay, _, (alice, bob, carol)):
        seen: list[tuple[str, bytes]] = []
        relay.trace = lambda kind, _out, _local, _remote, octets, _at: seen.append((kind, octets))
        await bob.media.request_floor()
        waiting = asyncio.ensure_future(alice.media.request_floor())
        await alice.expect("floor-queued")
        await bob.media.send_file(speech(tmp_path, "bob"))
        await bob.media.release_floor()
        await waiting
        await alice.media.send_file(speech(tmp_path, "alice"))
        await alice.media.release_floor()
        bursts = [
            ("bob", carol, await carol.expect("burst-heard")),
            ("alice", bob, await bob.expect("burst-heard")),
        ]
        statistics = relay.statistics()
    for name, party, burst in bursts:
        assert burst["user"] == f"sip:{name}@x"
        assert score(said(name), heard(tmp_path / f"{party.name}.wav", burst), 16000) >= 0.85
    assert statistics["relayed"] > 180 and statistics["floor-relayed"] > 5
    for _, octets in seen:
        with pytest.raises(FloorMessageError):
            decode_all(octets)
    assert {name for name in statistics if "foreign" in name or "not-rtp" in name} == set()


async def test_what_a_stranger_or_another_members_key_says_of_the_floor_reaches_nobody(tmp_path: Path) -> None:
    async with call(tmp_path) as (relay, group, (alice, bob, carol)):
        outsider = SrtpKey(os.urandom(16), os.urandom(12), group.key("carol").mki)
        carol.media.set_sending_key(outsider)  # carol's name on a key that nobody has
        carol.media.press()
        await carol.expect("floor-timeout")
        assert alice.media.statistics()["floor_dropped"] >= 3
        carol.media.set_sending_key(group.key("bob"))  # and bob's key on carol's leg
        before = relay.statistics().get("floor-relayed", 0)
        carol.media.press()
        await carol.expect("floor-timeout", 1 + [name for name, _ in carol.events].index("floor-timeout"))
        statistics: dict[str, Any] = relay.statistics()
        assert statistics["floor-foreign-guk-id"] >= 3 and statistics["floor-relayed"] >= before
        await bob.media.request_floor()
        assert bob.media.has_floor and not carol.media.has_floor


async def test_without_a_key_of_the_group_nothing_of_the_floor_leaves(tmp_path: Path) -> None:
    async with call(tmp_path) as (_, _, (_, bob, _)):
        bob.media.set_sending_key(None)
        sent = bob.media.statistics()["floor_sent"]
        bob.media.press()
        assert bob.media.statistics()["floor_sent"] == sent
        with pytest.raises(SrtpError):
            bob.media._channel.open(b"\x80\xcc\0\3" + bytes(40), 0.0)
