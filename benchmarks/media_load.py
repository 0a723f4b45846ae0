# SPDX-License-Identifier: Apache-2.0
"""Five talkers before a thousand members each: how late the loop is, and how long the floor takes meanwhile."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import socket
import struct
import time
from multiprocessing.connection import Connection

from benchmarks import media_namespace
from benchmarks.media_rows import Row, percentile
from media import CSK, GroupRelay, GroupRelaySettings, RelaySettings, SrtpKey, SrtpReceiver, SrtpSender
from media.floor_messages import FloorGranted, FloorRelease, FloorRequest, decode_all
from media.floor_server import FloorServerSettings

TALKERS, MEMBERS, ASKING = 5, 1000, 100
#: a forked process would inherit the locks of the sending threads as they are at that moment
SPAWN = multiprocessing.get_context("spawn")
#: a talker keeps the floor, also while the legs of the other groups are made and he cannot be heard yet
FOREVER = FloorServerSettings(t1=60.0, t2=3600.0)


def csk(number: int) -> SrtpKey:
    return SrtpKey(bytes(16), bytes(12), number.to_bytes(4, "big"))


def packet(sequence: int, ssrc: int) -> bytes:
    return struct.pack(">BBHII", 0x80, 96, sequence & 0xFFFF, 0, ssrc) + bytes(61 + 16 + 8 + 4)


def fill(relay: GroupRelay, members: list[tuple[str, int]], first: int) -> None:
    for number, (host, port) in enumerate(members, first):
        relay.add_leg(
            f"sip:{number}@example.org", audio=(host, port), floor=(host, port + 1), media_ssrc=number + 1,
            csk=csk(number), guk_id=number,
        )  # fmt: skip


def memory() -> int:
    """Octets of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def memory_rows() -> list[Row]:
    members = media_namespace.addresses(2000)
    settings = GroupRelaySettings(floor_keepalive=0.0)
    warm = GroupRelay("sip:warm@example.org", "127.0.0.1", settings=settings)
    fill(warm, members[:10], 0)
    relay = GroupRelay("sip:group@example.org", "127.0.0.1", settings=settings)
    gc.collect()
    before = memory()
    fill(relay, members[:1900], 0)
    gc.collect()
    used = (memory() - before) / 1900
    relay.close()
    warm.close()
    return [Row("memory of a leg", used / 1000, "kB", 20.0)]


def ask(relay_floor: tuple[str, int], number: int, times: int, answer: Connection) -> None:
    """In a process of its own: when told to, asks for the floor again and again; sends how long each took, in
    seconds."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((media_namespace.HERE, 0))
    sock.settimeout(2.0)
    key, ssrc = csk(number), 0x700000 + number
    sender, receiver = SrtpSender(key, ssrc, CSK), SrtpReceiver({key.mki: key}.get, CSK)
    taken = []
    answer.send(None)
    answer.recv()
    for _ in range(times):
        start = time.perf_counter()
        sock.sendto(sender.protect_rtcp(FloorRequest(ssrc=ssrc).encode()), relay_floor)
        if wait(sock, receiver, granted=True):
            taken.append(time.perf_counter() - start)
        sock.sendto(sender.protect_rtcp(FloorRelease(ssrc=ssrc).encode()), relay_floor)
        wait(sock, receiver, granted=False)
        time.sleep(0.005)  # a pause between two presses, nothing waits for it
    answer.send(taken)
    answer.close()


def wait(sock: socket.socket, receiver: SrtpReceiver, *, granted: bool) -> bool:
    """Until Floor Granted, or anything else, has come."""
    try:
        while True:
            plain = receiver.unprotect_rtcp(sock.recv(2000)).data
            if plain[1] == 204 and any(isinstance(m, FloorGranted) == granted for m in decode_all(plain)):
                return True
    except TimeoutError:
        return False


class Asker:
    """A member in another process. Its start takes a whole processor for a second, which is not to be measured."""

    def __init__(self, relay: GroupRelay, member: int, times: int) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=ask, args=(relay.floor, member, times, theirs), daemon=True)
        self._process.start()
        theirs.close()

    async def ready(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._pipe.recv)

    async def asked(self) -> list[float]:
        """How long floor requests took, as the member sees it."""
        self._pipe.send(None)
        found: list[float] = await asyncio.get_running_loop().run_in_executor(None, self._pipe.recv)
        self._process.join()
        return found


async def rows(seconds: float) -> list[Row]:
    out = await memory_rows()
    host = media_namespace.HERE
    asking = GroupRelay("sip:asking@example.org", host)
    fill(asking, media_namespace.addresses(ASKING), 0)
    times = max(50, int(seconds * 30))
    alone, beside_load = Asker(asking, 0, times), Asker(asking, 1, times)
    await alone.ready()
    await beside_load.ready()
    idle = await alone.asked()
    settings = GroupRelaySettings(relay=RelaySettings(), floor=FOREVER)
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=talk, args=(theirs,), daemon=True)
    process.start()
    sources: list[tuple[str, int]] = await asyncio.get_running_loop().run_in_executor(None, ours.recv)
    relays = []
    for number, source in enumerate(sources):
        relay = GroupRelay(f"sip:{number}@example.org", host, settings=settings)
        relay.add_leg(
            "sip:talker@example.org", audio=source, floor=(host, 9), media_ssrc=0xABC, csk=csk(0xFFFF), guk_id=0
        )
        fill(relay, media_namespace.addresses(MEMBERS), 1)
        relay._arbiter.receive("sip:talker@example.org", FloorRequest(ssrc=1), asyncio.get_running_loop().time())
        relays.append(relay)
    near, far = SPAWN.Pipe()
    bystander = SPAWN.Process(target=bystand, args=(far,), daemon=True)
    bystander.start()
    await asyncio.get_running_loop().run_in_executor(None, near.recv)
    ours.send([relay.audio for relay in relays])
    while any(relay._outbox or not relay._fan_out.sent for relay in relays):  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # until everyone has been told who talks, and all five do
    before = sum(relay._fan_out.sent for relay in relays)
    lateness: list[float] = []
    watch = asyncio.ensure_future(watched(lateness))
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds / 2)
    loaded = await beside_load.asked()
    await asyncio.sleep(max(0.0, seconds - (time.perf_counter() - start)))
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    watch.cancel()
    near.send(None)
    idle_loop = percentile(near.recv(), 0.99) * 1e3
    bystander.join()
    ours.send(None)
    process.join()
    sent = sum(relay._fan_out.sent for relay in relays) - before
    behind = sum(relay.statistics()["behind"] + relay.statistics()["unsent"] for relay in relays)
    for relay in (*relays, asking):
        relay.close()
    beside = (
        f"an idle process's loop meanwhile {idle_loop:.2f} ms; {sent / elapsed / 1000:.0f} k packets/s of 250 k, "
        f"{behind} packets dropped, CPU {cpu / elapsed:.0%}"
    )
    return [
        *out,
        Row("loop lateness p99, 5 talkers x 1000 members", percentile(lateness, 0.99) * 1e3, "ms", 5.0, beside=beside),
        Row("floor request to granted p99, 100 members, idle", percentile(idle, 0.99) * 1e3, "ms", 10.0,
            beside=f"p50 {percentile(idle, 0.5) * 1e3:.2f} ms, {len(idle)} of {times} granted"),
        Row("floor request to granted p99, under that load", percentile(loaded, 0.99) * 1e3, "ms", 30.0,
            beside=f"p50 {percentile(loaded, 0.5) * 1e3:.2f} ms, {len(loaded)} of {times} granted"),
    ]  # fmt: skip


async def watched(lateness: list[float]) -> None:
    """How much later than asked for the loop comes back, every millisecond."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.001
        await asyncio.sleep(0.001)
        lateness.append(max(0.0, loop.time() - due))


def bystand(pipe: Connection) -> None:
    """In a process of its own, whose loop has nothing to do: how late that one is, on the same busy processors."""
    lateness: list[float] = []

    async def watch() -> None:
        pipe.send(None)
        task = asyncio.ensure_future(watched(lateness))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        task.cancel()

    asyncio.run(watch())
    pipe.send(lateness)


def talk(pipe: Connection) -> None:
    """In a process of its own: five talkers, 50 packets a second each, on an absolute schedule, until told to stop."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(TALKERS)]
    for sock in sockets:
        sock.bind((media_namespace.HERE, 0))
    pipe.send([sock.getsockname() for sock in sockets])
    targets = pipe.recv()
    start, count = time.monotonic(), 0
    while not pipe.poll():
        for sock, target in zip(sockets, targets, strict=True):
            sock.sendto(packet(count, 0xABC), target)
        count += 1
        time.sleep(max(0.0, start + count * 0.02 - time.monotonic()))
