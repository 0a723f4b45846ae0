# SPDX-License-Identifier: Apache-2.0
"""Sources and sinks as tracks, and a real WebRTC peer in a group."""

from __future__ import annotations

import asyncio
import glob
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiortc import RTCPeerConnection
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame

from media.capture import track_frames
from media.errors import CodecError, NoLoudspeaker, NoMicrophone
from media.quality import score
from media.tracks import FileTrack, HeardTrack, SilenceTrack, ToneTrack, loudspeaker, microphone, record
from media.webrtc import PeerMember
from tests.media.test_group_relay import call, heard

RATE = 16000


def frame(pcm: Any, pts: int, rate: int = RATE) -> AudioFrame:
    made = AudioFrame.from_ndarray(np.asarray(pcm, "<i2").reshape(1, -1), format="s16", layout="mono")
    made.sample_rate, made.pts, made.time_base = rate, pts, Fraction(1, rate)
    return made


class Scripted(MediaStreamTrack):
    """Gives the frames that it was made with, at once."""

    kind = "audio"

    def __init__(self, *frames: AudioFrame) -> None:
        super().__init__()
        self._frames = list(frames)

    async def recv(self) -> AudioFrame:
        if not self._frames:
            raise MediaStreamError
        return self._frames.pop(0)


def clip(path: Path, seconds: float) -> Path:
    """The beginning of a speech, as a file of its own."""
    source = Path(__file__).parents[2] / "scenarios" / "data" / "alice.wav"
    with wave.open(str(source)) as file, wave.open(str(path), "wb") as out:
        out.setparams(file.getparams())
        out.writeframes(file.readframes(int(seconds * RATE)))
    return path


def samples(path: Path) -> Any:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


async def test_a_recording_keeps_the_gaps_of_its_track_whatever_its_rate(tmp_path: Path) -> None:
    ones = np.full(320, 1000)
    length = await record(Scripted(frame(ones, 0), frame(ones, 320), frame(ones, 3200)), tmp_path / "a.wav")
    sound = samples(tmp_path / "a.wav")
    assert length == len(sound) == 3520
    assert (sound[:640] == 1000).all() and not sound[640:3200].any() and (sound[3200:] == 1000).all()
    loud = np.full(960, 8000)
    track = Scripted(*(frame(loud, n * 960, 48000) for n in range(10)), frame(loud, 48000, 48000))
    await record(track, tmp_path / "b.wav")
    sound = samples(tmp_path / "b.wav")
    assert 15900 <= np.flatnonzero(sound[4000:])[0] + 4000 <= 16100, "one second after the beginning"
    assert not sound[3300:15900].any()
    with pytest.raises(CodecError):
        await record(object(), tmp_path / "c.wav")


async def test_a_tone_is_a_tone_and_silence_is_silence() -> None:
    tone = [octets async for octets in track_frames(ToneTrack(1000.0, 0.5, seconds=0.1))]
    sound = np.frombuffer(b"".join(tone), "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(sound))
    assert len(sound) == 1600 and np.argmax(spectrum) == 100, "1000 Hz of 1600 samples at 16 kHz"
    assert max(sound) == pytest.approx(0.5 * 32767, rel=0.01)
    quiet = SilenceTrack()
    assert not (await quiet.recv()).to_ndarray().any()
    quiet.stop()
    with pytest.raises(MediaStreamError):
        await quiet.recv()


async def test_a_file_is_a_track_and_ends_with_it(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.wav", 0.2)
    got = b"".join([octets async for octets in track_frames(FileTrack(path))])
    assert got == samples(path).tobytes()
    with pytest.raises(CodecError):
        await FileTrack(tmp_path / "missing.wav").recv()


async def test_what_is_heard_is_a_track_with_silence_between_the_bursts() -> None:
    track, one = HeardTrack(most=5), b"\0\1" * 320

    async def next_ones() -> bool:
        return bool((await track.recv()).to_ndarray().any())

    assert not await next_ones()
    track.put("a", one, 0.0)
    assert not await next_ones(), "one frame alone waits for the second"
    track.put("a", one, 0.0)
    assert [await next_ones() for _ in range(4)] == [True, True, False, False]
    for _ in range(9):
        track.put("a", one, 0.0)
    assert len(track._ready) == 5, "bounded"


async def test_silence_is_left_out_when_too_much_waits_and_sound_is_not() -> None:
    track = HeardTrack(slack=4)
    for _ in range(30):
        track.put("a", bytes(640), 0.0)
    assert len(track._ready) == 5
    for _ in range(10):
        track.put("a", b"\0\1" * 320, 0.0)
    assert len(track._ready) == 15


@pytest.mark.skipif(bool(glob.glob("/dev/snd/pcmC*")), reason="this machine has sound devices")
async def test_without_devices_microphone_and_loudspeaker_say_so() -> None:
    with pytest.raises(NoMicrophone):
        microphone()
    with pytest.raises(NoLoudspeaker):
        await loudspeaker(SilenceTrack())


@pytest.mark.network
async def test_a_webrtc_peer_talks_into_the_group_and_hears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
    speech = clip(tmp_path / "speech.wav", 2.0)
    async with call(tmp_path, ("alice", "bob")) as (_, _, (alice, bob)):
        browser, ours = RTCPeerConnection(), RTCPeerConnection()
        peer = PeerMember(ours, alice.media)
        arrived: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        browser.on("track", lambda track: arrived.set_result(track))
        browser.addTrack(ToneTrack(300.0, 0.4))
        connected = asyncio.Event()
        browser.on("connectionstatechange", lambda: browser.connectionState == "connected" and connected.set())
        try:
            async with asyncio.timeout(20):
                await browser.setLocalDescription(await browser.createOffer())
                await ours.setRemoteDescription(browser.localDescription)
                await ours.setLocalDescription(await ours.createAnswer())
                await browser.setRemoteDescription(ours.localDescription)
                await connected.wait()
                recording = asyncio.ensure_future(record(await arrived, tmp_path / "browser.wav"))
                await peer.press()
                await asyncio.sleep(1.0)  # the burst itself: its length is what is measured below
                sent = await peer.release()
                assert sent is not None and 0.7 < sent["duration"] < 2.0
                burst = await bob.expect("burst-heard")
                await bob.media.request_floor()
                await bob.media.send_file(speech)
                await bob.media.release_floor()
                await alice.expect("burst-heard")
        finally:
            await peer.close()
            await ours.close()
            await browser.close()
        await asyncio.wait_for(recording, 10)
    tone = heard(tmp_path / "bob.wav", burst).astype(float)
    middle = tone[len(tone) // 3 : 2 * len(tone) // 3]
    peak = np.argmax(np.abs(np.fft.rfft(middle))) * RATE / len(middle)
    assert peak == pytest.approx(300.0, abs=10.0)
    said, sound = samples(speech).astype(float), samples(tmp_path / "browser.wav").astype(float)
    start = max(0, int(np.argmax(np.abs(sound) > 300)) - 1600)
    assert score(said, sound[start : start + len(said) + 3200], RATE) >= 0.7
