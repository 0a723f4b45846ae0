# SPDX-License-Identifier: Apache-2.0
"""A thousand real receivers on this machine, each authenticating every packet; some decode what they heard.

Talker, relay and receivers are processes of their own. A packet's delay is from just before it was sent to the
kernel's time stamp at its receiver, so that receivers that are slow to read do not count.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import multiprocessing
import random
import socket
import struct
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.media_rows import Row, percentile
from mcptt_sip.ops import link
from media import OPUS, RATE, GroupRelay, RtpPacket, SrtpKey, SrtpReceiver, SrtpSender, score
from media.codec import read_frames
from media.errors import SrtpError
from media.floor_messages import FloorRequest
from media.floor_server import FloorServerSettings
from media.playout import Playout
from media.reception import BurstEnded, Reception
from media.relay_endpoint import GroupRelaySettings

HOST = "127.0.0.1"
USER, SSRC, GUK = "sip:talker@example.org", 0xABC, 7
KEY = SrtpKey(bytes(range(16)), bytes(12), bytes(4) + GUK.to_bytes(4, "big"))
SPEECH = Path(__file__).resolve().parents[1] / "scenarios" / "data" / "alice.wav"
PROCESSES, SEATS, ROUNDS = 2, 20, 3
SPAWN = multiprocessing.get_context("spawn")
SO_TIMESTAMPNS = 35


@dataclass
class Heard:
    """What a process of receivers found."""

    delays: Any
    counters: Counter[str]
    seats: list[list[tuple[float, bytes]]]


def receivers(pipe: Connection, count: int, seats: list[int]) -> None:
    """In a process of its own: ``count`` sockets, each with its own SRTP receiver; ``seats`` keep their packets."""
    sockets, states = [], []
    for number in range(count):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((HOST, 0))
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setblocking(False)
        sockets.append(sock)
        kept: list[tuple[float, bytes]] | None = [] if number in seats else None
        states.append((sock, SrtpReceiver({KEY.mki: KEY}.get), kept))
    pipe.send([sock.getsockname() for sock in sockets])
    delays, counters, over = array.array("d"), Counter[str](), False
    while not over:
        # the kernel keeps and stamps what comes; waking up for each packet would be charged to its sender
        over = pipe.poll(0.2)
        for sock, receiver, kept in states:
            while True:
                try:
                    octets, ancillary, _, _ = sock.recvmsg(2000, 64)
                except BlockingIOError:
                    break
                seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
                arrived = seconds + nanoseconds * 1e-9
                try:
                    opened = receiver.unprotect(octets)
                except SrtpError as error:
                    counters[error.reason] += 1
                    continue
                stated = RtpPacket.decode(opened.data).ntp
                if stated is not None:
                    delays.append(arrived - stated)
                counters["authentic"] += 1
                if kept is not None:
                    kept.append((arrived, octets))
    pipe.send((delays.tobytes(), dict(counters), [kept for _, _, kept in states if kept is not None]))


def talker(pipe: Connection, seconds: float) -> None:
    """In a process of its own: speech, 50 packets a second on an absolute schedule, each stating when it was sent."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    pipe.send(sock.getsockname())
    encoder, frames = OPUS.encoder(24000), list(read_frames(SPEECH))
    payloads = [encoder.encode(frames[n % len(frames)]) for n in range(int(seconds * 50))]
    while (target := pipe.recv()) is not None:
        sender = SrtpSender(KEY, SSRC)
        start = time.monotonic()
        for number, payload in enumerate(payloads):
            time.sleep(max(0.0, start + number * 0.02 - time.monotonic()))
            packet = RtpPacket(96, number & 0xFFFF, number * 960, SSRC, number == 0, payload, time.time())
            sock.sendto(sender.protect(packet.encode()), target)
        pipe.send(len(payloads))


def our_relay(pipe: Connection, source: tuple[str, int], members: list[tuple[str, int]], packets: int) -> None:
    """In a process of its own: a GroupRelay with all members, the talker holding the floor."""

    async def serve() -> None:
        settings = GroupRelaySettings(floor=FloorServerSettings(t1=60.0, t2=3600.0))
        relay = GroupRelay("sip:group@example.org", HOST, settings=settings)
        sink = (HOST, 9)
        relay.add_leg(
            USER, audio=source, floor=sink, media_ssrc=SSRC, csk=SrtpKey(bytes(16), bytes(12), b"talk"), guk_id=GUK
        )
        for number, member in enumerate(members):
            csk = SrtpKey(bytes(16), bytes(12), number.to_bytes(4, "big"))
            relay.add_leg(
                f"sip:{number}@example.org", audio=member, floor=sink, media_ssrc=number + 0x1000, csk=csk,
                guk_id=number + 0x1000,
            )  # fmt: skip
        relay._arbiter.receive(USER, FloorRequest(ssrc=1), asyncio.get_running_loop().time())
        pipe.send(relay.audio)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        ends = time.monotonic() + 5.0
        while relay.statistics().get("relayed", 0) < packets and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # what stands in the socket still
        relay.close()  # sends what waits
        pipe.send(relay.statistics())

    asyncio.run(serve())


def c_relay(pipe: Connection, library: str, members: list[tuple[str, int]], packets: int) -> None:
    """In a process of its own: the C loop."""
    loaded = ctypes.CDLL(library)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    octets = b"".join(
        struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(host) + bytes(8)
        for host, port in members
    )
    pipe.send(sock.getsockname())
    loaded.relay(sock.fileno(), ctypes.create_string_buffer(octets, len(octets)), len(members), packets)
    pipe.recv()
    pipe.send({})


def start(target: Any, *arguments: Any) -> tuple[Connection, Any]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def round_(members: int, seconds: float, library: str | None) -> tuple[int, Heard, dict[str, int]]:
    """One talk through our relay, or through the C loop: packets sent, what was heard, the relay's own counters."""
    share = members // PROCESSES
    seats = sorted({round(n * (members - 1) / (SEATS - 1)) for n in range(SEATS)})
    groups = [start(receivers, share, [s - p * share for s in seats if s // share == p]) for p in range(PROCESSES)]
    addresses = [address for pipe, _ in groups for address in pipe.recv()]
    talk_pipe, talk_process = start(talker, seconds)
    source, packets = talk_pipe.recv(), int(seconds * 50)
    if library is None:
        relay_pipe, relay_process = start(our_relay, source, addresses, packets)
    else:
        relay_pipe, relay_process = start(c_relay, library, addresses, packets)
    talk_pipe.send(relay_pipe.recv())
    sent = talk_pipe.recv()
    talk_pipe.send(None)
    relay_pipe.send(None)
    statistics = relay_pipe.recv()
    heard = Heard(array.array("d"), Counter(), [])
    for pipe, _ in groups:
        pipe.send(None)
    for pipe, process in groups:
        delays, counters, kept = pipe.recv()
        heard.delays.frombytes(delays)
        heard.counters.update(counters)
        heard.seats += kept
        process.join()
    talk_process.join()
    relay_process.join()
    return sent, heard, statistics


def play(
    packets: list[tuple[float, bytes]], directory: str, chance: random.Random | None
) -> tuple[float, dict[str, Any]]:
    """What one seat's listener hears: score and figures of the burst; with ``chance``, over a bad network."""
    if chance is not None:
        path = link.Path(link.Conditions(loss=0.05, jitter=0.04), chance)
        packets = sorted((at, octets) for arrived, octets in packets for at in path.packet(len(octets), arrived))
    receiver = SrtpReceiver({KEY.mki: KEY}.get)
    reception = Reception("sip:me@example.org", lambda user, mki: user == USER and mki == KEY.mki)
    now = packets[0][0]
    playout = Playout(reception, lambda: now)
    file = Path(directory) / "heard.wav"
    playout.record(file, now, 1e9)
    reception.floor(USER, now)
    found: dict[str, Any] = {}

    def hear() -> None:
        for event in reception.events():
            details = playout.take(event, now)
            if isinstance(event, BurstEnded) and details is not None:
                if not found:
                    found.update({**details, "bursts": 0, "end": 0, "concealed": 0})
                # a machine that stalls for half a second breaks the burst in two
                found["bursts"] += 1
                found["end"] = details["offset"] + details["samples"]
                found["concealed"] += details["concealed"]

    for at, octets in [*packets, (packets[-1][0] + 5.0, b"")]:
        while (due := reception.next_timer()) is not None and due < at:
            now = max(now, due)
            reception.handle_timer(now)
            hear()
        now = at
        if octets:
            opened = receiver.unprotect(octets)
            reception.receive(RtpPacket.decode(opened.data), opened.mki, now, now)
        hear()
    playout.close()
    sound = np.concatenate([np.frombuffer(frame, "<i2") for frame in read_frames(file)])
    frames = list(read_frames(SPEECH))
    burst = sound[found["offset"] : found["end"]]
    said = np.frombuffer(b"".join(frames[n % len(frames)] for n in range(len(burst) // 320)), "<i2")
    # a packet states when it was sent, which is 20 ms after its first sample was spoken
    found["mouth_to_ear"] += 0.02
    return score(said, burst, RATE), found


def rows(members: int, seconds: float, library: ctypes.CDLL | None) -> list[Row]:
    members -= members % PROCESSES
    ours, theirs = [], []
    for _ in range(ROUNDS):  # interleaved: what else the machine does changes from one to the next
        ours.append(round_(members, seconds, None))
        if library is not None:
            theirs.append(percentile(round_(members, seconds, library._name)[1].delays, 0.99) * 1e3)
    every = [heard.counters["authentic"] / (sent * members) for sent, heard, _ in ours]
    delivered, delays = min(every), [percentile(heard.delays, 0.99) * 1e3 for _, heard, _ in ours]
    p99 = min(delays)
    sent, heard, statistics = ours[delays.index(p99)]
    refused = {name: count for name, count in heard.counters.items() if name != "authentic"}
    out = [
        Row(f"{members} receivers, share of {sent * members} packets authenticated", delivered, "", 0.9999,
            at_least=True, beside=f"refused {refused or 'none'}, unsent {statistics['unsent']}"),
        Row("relay delay p99 by kernel time stamp", p99, "ms", 15.0,
            beside=f"p50 {percentile(heard.delays, 0.5) * 1e3:.2f} ms; best of {ROUNDS}, worst {max(delays):.0f}"),
    ]  # fmt: skip
    if theirs:
        c99 = min(theirs)
        beside = f"C {c99:.2f} ms at best, {max(theirs):.0f} at worst"
        out.append(Row("relay delay p99, of the C loop's", p99 / c99, "ratio", 1.25, beside=beside))
    with tempfile.TemporaryDirectory() as directory:
        clean = [play(packets, directory, None) for packets in heard.seats]
        bad = [play(packets, directory, random.Random(n)) for n, packets in enumerate(heard.seats)]
    ears = [figures["mouth_to_ear"] for _, figures in clean]
    grown = max(figures["delay"] for _, figures in bad)
    out += [
        Row(f"score of {len(clean)} seats from the first to the last, the worst", min(s for s, _ in clean), "", 0.9,
            at_least=True, beside=f"in {max(f['bursts'] for _, f in clean)} burst(s)"),
        Row("mouth to ear p95 of these seats", percentile(ears, 0.95) * 1e3, "ms", 120.0),
        Row("score with 5 % loss and 40 ms jitter, the worst seat", min(s for s, _ in bad), "", 0.85, at_least=True,
            beside=f"{sum(f['concealed'] for _, f in bad) / len(bad):.0f} frames concealed on average"),
        Row("jitter buffer's delay at that burst's end, the longest", grown * 1e3, "ms", 200.0,
            beside="its limit: it grows when frames are late, and not with time"),
    ]  # fmt: skip
    return out
