# SPDX-License-Identifier: Apache-2.0
"""The first and the last 20 ms of every burst are heard: a click at each end, lost packets between, the talker changes;
and a long call across the wrap of its sequence numbers."""

from __future__ import annotations

import asyncio
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from media.endpoint import MemberMedia
from media.tracks import ToneTrack
from tests.media.test_group_relay import Party, call, heard

RATE, FRAME = 16000, 320
pytestmark = pytest.mark.network


def clicks(path: Path, frames: int) -> Path:
    """Silence with a click in the middle of the first and of the last 20 ms."""
    sound = np.zeros(frames * FRAME, "<i2")
    for at in (FRAME // 2, len(sound) - FRAME // 2):
        sound[at : at + 24] = 20000 * np.sin(np.arange(24) * 0.9)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(sound.tobytes())
    return path


def disturb(member: MemberMedia, drop: set[int], swap: set[int]) -> None:
    """Some of the audio packets are lost or change places with the next; numbers count all that come."""
    original, state = member._audio.on_datagram, {"count": 0, "held": None}

    def disturbed(octets: bytes, source: tuple[str, int]) -> None:
        number = state["count"] = int(state["count"] or 0) + 1
        if number in drop:
            return
        if number in swap:
            state["held"] = (octets, source)  # type: ignore[assignment]
            return
        original(octets, source)
        held: Any = state["held"]
        if held is not None:
            state["held"] = None
            original(*held)

    member._audio.on_datagram = disturbed


def places(sound: Any) -> list[int]:
    """Where the clicks are, in frames from the beginning."""
    loud = np.flatnonzero(np.abs(sound.astype(float)) > 3000)
    return sorted({int(at) // FRAME for at in loud})


async def test_a_click_in_the_first_and_in_the_last_frame_is_heard_with_loss_and_a_talker_change_between(
    tmp_path: Path,
) -> None:
    frames = 20
    file = clicks(tmp_path / "clicks.wav", frames)
    async with call(tmp_path) as (_, _, (alice, bob, carol)):
        # neither a first frame nor a last one: 21 packets a burst, the last brings out the codec's own delay
        disturb(bob.media, drop={5, 6, 12, 21 + 5, 21 + 9}, swap={8, 15, 21 + 3, 21 + 14})
        await alice.media.request_floor()
        waiting = asyncio.ensure_future(carol.media.request_floor())
        await carol.expect("floor-queued")
        await alice.media.send_file(file)
        await alice.media.release_floor()
        await waiting
        await carol.media.send_file(file)
        await carol.media.release_floor()
        bursts = [await bob.expect("burst-heard")]
        after = 1 + [name for name, _ in bob.events].index("burst-heard")
        bursts.append(await bob.expect("burst-heard", after))
        statistics = bob.media.statistics()
    assert [burst["user"] for burst in bursts] == ["sip:alice@x", "sip:carol@x"]
    for burst in bursts:
        sound = heard(tmp_path / "bob.wav", burst)
        found = places(sound)
        assert set(found) <= {0, 1, frames - 1, frames} and found[0] in (0, 1) and found[-1] >= frames - 1, found
        assert len(sound) == (frames + 1) * FRAME
        assert 0.0 < burst["mouth_to_ear"] < 1.0 and 1.0 <= burst["opinion"] <= 4.5
    assert statistics["lost"] == statistics["concealed"] == 5 and statistics["late"] == 0


@pytest.mark.soak
async def test_a_long_call_wraps_its_numbers_and_a_member_who_joins_afterwards_hears_it(
    tmp_path: Path, soak_seconds: float
) -> None:
    """``make soak``: half an hour, the wrap at its beginning and once more."""
    async with call(tmp_path, ("alice", "bob")) as (relay, group, (alice, bob)):
        alice.media._talker._sequence = 65536 - 40
        group.key("carol")
        carol: Party | None = None
        ends, bursts = time.monotonic() + soak_seconds, 0
        while time.monotonic() < ends or carol is None or bursts < 3:
            left = max(0.6, min(25.0, ends - time.monotonic()))
            await alice.media.request_floor()
            await alice.media.send(ToneTrack(500.0, seconds=left if bursts else 1.2))
            await alice.media.release_floor()
            bursts += 1
            if carol is None:
                carol = await join(relay, group, "carol")
        await quiet(bob, bursts)
        assert carol is not None
        await quiet(carol, bursts - 1)
        sent, got, late = alice.media.statistics(), bob.media.statistics(), carol.media.statistics()
        await carol.media.close()
    wrapped = alice.media._talker._sequence < 65536 - 40
    assert wrapped and alice.media._talker._sender is not None and alice.media._talker._sender._last > 65535
    # a stall of a shared machine may make frames late or break a burst in two; a mistake at the wrap costs all that
    # follow it
    assert got["authenticated"] == got["received"] >= 0.995 * sent["sent"]
    assert got["frames"] >= 0.97 * sent["sent"]
    assert late["authenticated"] == late["received"] > 0
    assert late["frames"] >= 0.97 * late["received"] and late["bursts"] >= bursts - 1
    ears = [details["mouth_to_ear"] for name, details in bob.events if name == "burst-heard"]
    assert len(ears) >= bursts and ears[-1] < ears[0] + 0.3, "the delay does not creep"


async def join(relay: Any, group: Any, name: str) -> Party:
    """A member who comes later."""
    from media.srtp import SrtpKey

    media = await MemberMedia.open("127.0.0.1", user=f"sip:{name}@x")
    party = Party(name, media, [group])
    csk = SrtpKey(bytes(16), bytes(12), b"late")
    media.set_csk(csk)
    relay.add_leg(
        media.user, audio=media.audio_address, floor=media.floor_address, media_ssrc=media.ssrc, csk=csk,
        guk_id=group.guk_id(name),
    )  # fmt: skip
    media.connect(relay.audio, relay.floor)
    return party


async def quiet(party: Party, bursts: int) -> None:
    """Until so many bursts were heard."""
    after = 0
    for _ in range(bursts):
        await party.expect("burst-heard", after)
        after += 1 + [name for name, _ in party.events[after:]].index("burst-heard")


async def test_who_comes_in_while_one_talks_hears_the_rest_and_who_is_removed_hears_no_more(tmp_path: Path) -> None:
    async with call(tmp_path, ("alice", "bob")) as (relay, group, (alice, bob)):
        group.key("carol")
        await alice.media.request_floor()
        half, sent = asyncio.Event(), []

        def count(kind: str, outbound: bool, _local: Any, _remote: Any, octets: bytes, _at: float) -> None:
            if kind == "audio" and outbound:
                sent.append(octets)
                if len(sent) == 25:
                    half.set()

        alice.media.trace = count
        talking = asyncio.ensure_future(alice.media.send(ToneTrack(500.0, seconds=1.8)))
        await half.wait()
        carol = await join(relay, group, "carol")
        relay.remove_leg("sip:bob@x")
        removed_at = bob.media.statistics()["received"]
        await talking
        await alice.media.release_floor()
        burst = await carol.expect("burst-heard")
        await carol.media.close()
        # she waits for the next packet that states its time, one in half a second
        assert 0.4 < burst["samples"] / RATE < 1.4 and burst["lost"] == 0
        assert bob.media.statistics()["received"] <= removed_at + 1
        assert relay.statistics()["relayed"] >= len([octets for octets in sent if octets]) - 2
