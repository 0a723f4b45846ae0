# SPDX-License-Identifier: Apache-2.0
"""How fast the media plane is, next to libsrtp, a C loop and asyncio in the same run.

    python benchmarks/media.py [--section srtp,frame,relay,load,group] [--seconds N] [--members N] [--json]

The clock of a shared machine drifts, so what is compared is interleaved and given as a ratio; a row with an aim says
`met` or `not met`. The relay and the load are measured in a network namespace of their own, over a veth pair whose
far end drops (needs root); `group` is a thousand real receivers on loopback, each authenticating every packet. The C
yardstick (media_relay.c) is compiled on the spot where the system has a C compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # this file has the name of the package: its folder must not be searched
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import asyncio
import ctypes
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable

import pylibsrtp

from benchmarks import media_group, media_load, media_namespace
from benchmarks.media_rows import Row
from media import GROUP, OpusDecoder, OpusEncoder, RtpPacket, SrtpKey, SrtpReceiver, SrtpSender
from media.codec import read_frames
from media.fanout import FanOut
from media.relay import Relay, RelaySettings
from media.srtp_ciphers import AES_CM_128_HMAC_SHA1_80, SrtpPolicy

ROOT = Path(__file__).resolve().parents[1]
SSRC = 0x1234
PAYLOAD = bytes(61)


def rtp(sequence: int, payload: bytes = PAYLOAD) -> bytes:
    return struct.pack(">BBHII", 0x80, 96, sequence & 0xFFFF, sequence * 960 & 0xFFFFFFFF, SSRC) + payload


def per_item(run: Callable[[bytes], bytes], items: list[bytes]) -> tuple[list[bytes], float]:
    """What ``run`` makes of each, and the CPU microseconds of one."""
    start = time.process_time_ns()
    made = [run(item) for item in items]
    return made, (time.process_time_ns() - start) / len(items) / 1000


# --- SRTP -------------------------------------------------------------------------------------------------


def srtp_rows(rounds: int = 30, count: int = 1000) -> list[Row]:
    """Protect and unprotect, interleaved with pylibsrtp's (which has neither MKI nor ROC)."""
    profiles: list[tuple[str, SrtpPolicy, int, float | None]] = [
        ("AES-128-GCM, MKI 8, ROC", GROUP, pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 1.3),
        ("AES-CM/HMAC-SHA1-80", AES_CM_128_HMAC_SHA1_80, pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_80, None),
    ]
    rows = []
    for name, policy, profile, aim in profiles:
        key = SrtpKey(bytes(range(policy.key_length)), bytes(policy.salt_length), bytes(policy.mki_length))
        raw = key.master_key + key.master_salt

        def session(kind: int, raw: bytes = raw, profile: int = profile) -> pylibsrtp.Session:
            return pylibsrtp.Session(pylibsrtp.Policy(key=raw, ssrc_type=kind, srtp_profile=profile))

        theirs_out, theirs_in = session(pylibsrtp.Policy.SSRC_ANY_OUTBOUND), session(pylibsrtp.Policy.SSRC_ANY_INBOUND)
        sender, receiver = SrtpSender(key, SSRC, policy), SrtpReceiver({key.mki: key}.get, policy)
        times: dict[str, list[float]] = {"our protect": [], "protect": [], "our unprotect": [], "unprotect": []}
        for round_ in range(rounds):
            first = round_ * count
            packets = [rtp(first + n) for n in range(count)]
            for prefix, protect, unprotect in (
                ("our ", sender.protect, receiver.unprotect), ("", theirs_out.protect, theirs_in.unprotect)
            ):  # fmt: skip
                sealed, seconds = per_item(protect, packets)
                times[f"{prefix}protect"].append(seconds)
                times[f"{prefix}unprotect"].append(per_item(unprotect, sealed)[1])
        best = {what: min(values) for what, values in times.items()}
        for what in ("protect", "unprotect"):
            rows.append(
                Row(
                    f"{what} {name}, of pylibsrtp's", best[f"our {what}"] / best[what], "ratio", aim,
                    beside=f"{best[f'our {what}']:.2f} us, pylibsrtp {best[what]:.2f} us",
                )
            )  # fmt: skip
    return rows


# --- a client's frame -------------------------------------------------------------------------------------


def frame_rows(rounds: int = 5) -> list[Row]:
    """What one 20 ms frame costs a talker and a listener."""
    frames = list(read_frames(ROOT / "scenarios" / "data" / "alice.wav"))
    key = SrtpKey(bytes(16), bytes(12), bytes(8))
    talk, listen, packets = [], [], 0
    for _ in range(rounds):
        encoder, sender, sent = OpusEncoder(), SrtpSender(key, SSRC), []
        start = time.process_time()
        for number, frame in enumerate(frames):
            packet = RtpPacket(96, number, number * 960, SSRC, payload=encoder.encode(frame))
            sent.append(sender.protect(packet.encode()))
        talk.append((time.process_time() - start) / len(frames))
        receiver, decoder = SrtpReceiver({key.mki: key}.get), OpusDecoder()
        start = time.process_time()
        for octets in sent:
            decoder.decode(RtpPacket.decode(receiver.unprotect(octets).data).payload)
        listen.append((time.process_time() - start) / len(frames))
        packets = len(sent)
    return [
        Row("CPU of a talker's frame: encode, RTP, protect", min(talk) * 1e6, "us", beside=f"{packets} frames"),
        Row("CPU of a listener's frame: unprotect, RTP, decode", min(listen) * 1e6, "us", beside="Opus is most of it"),
    ]


# --- the relay --------------------------------------------------------------------------------------------


def yardstick(directory: str) -> ctypes.CDLL | None:
    """The C loop, compiled here and now; ``None`` without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("tcc")
    if compiler is None:
        return None
    library = os.path.join(directory, "media_relay.so")
    source = str(Path(__file__).with_name("media_relay.c"))
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(library)
    for name in ("blast", "relay"):
        getattr(loaded, name).restype = ctypes.c_long
    return loaded


def _names(members: list[tuple[str, int]]) -> ctypes.Array[ctypes.c_char]:
    octets = b"".join(
        struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(host) + bytes(8)
        for host, port in members
    )
    return ctypes.create_string_buffer(octets, len(octets))


async def relay_rows(library: ctypes.CDLL | None, sizes: tuple[int, ...] = (10, 100, 500, 1000)) -> list[Row]:
    """Packets a second that leave for N members: filter and fan-out, beside C and asyncio."""
    loop, rows = asyncio.get_running_loop(), []
    for size in sizes:
        members, packet = media_namespace.addresses(size), rtp(1) + bytes(16) + bytes(8) + bytes(4)
        packets = max(20, 60000 // size)
        relay = Relay(lambda *_: True, RelaySettings(rate=1e9, burst=1e9))
        source = ("127.0.0.1", 1)
        relay.add("talker", source, SSRC, 0, 0.0)
        for number, member in enumerate(members):
            relay.add(f"member {number}", member, number + 1, number + 1, 0.0)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        fan_out = FanOut()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("0.0.0.0", 0))
        names = _names(members)

        def ours(
            relay: Relay = relay, sock: socket.socket = sock, fan_out: FanOut = fan_out, packets: int = packets,
            packet: bytes = packet, source: tuple[str, int] = source,
        ) -> int:  # fmt: skip
            sent, first = 0, relay.counters["relayed"]  # numbers and time go on from round to round
            for number in range(first, first + packets):
                octets = packet[:2] + struct.pack(">H", number & 0xFFFF) + packet[4:]
                if relay.accept(octets, source, number * 0.02):
                    sent += fan_out.send(sock, octets, relay.destinations, source)
            if relay.counters["relayed"] != first + packets:
                raise RuntimeError(f"the relay refused packets: {relay.counters}")
            return sent

        def asyncio_s(
            transport: asyncio.DatagramTransport = transport, members: list[tuple[str, int]] = members,
            packets: int = packets, packet: bytes = packet,
        ) -> int:  # fmt: skip
            for _ in range(packets):
                for member in members:
                    transport.sendto(packet, member)
            return packets * len(members)

        def c_s(
            sock: socket.socket = sock, names: ctypes.Array[ctypes.c_char] = names, size: int = size,
            packet: bytes = packet, packets: int = packets,
        ) -> int:  # fmt: skip
            assert library is not None
            return int(library.blast(sock.fileno(), names, size, packet, len(packet), packets))

        ways: dict[str, Callable[[], int]] = {"ours": ours, "asyncio": asyncio_s}
        if library is not None:
            ways["C"] = c_s
        rate: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(9):
            for way, run in ways.items():
                start = time.perf_counter()
                sent = run()
                rate[way].append(sent / (time.perf_counter() - start))
        best = {way: max(values) for way, values in rate.items()}
        # in one round the ways stand next to each other: the clock of a shared machine drifts between rounds
        beside = ", ".join(f"{way} {value / 1000:.0f} k/s" for way, value in best.items())
        if "C" in rate:
            ratio = statistics.median(a / b for a, b in zip(rate["ours"], rate["C"], strict=True))
            rows.append(
                Row(f"relay to {size} members, of C's packets a second", ratio, "ratio",
                    0.9 if size == 1000 else None, at_least=True, beside=beside)
            )  # fmt: skip
        else:
            rows.append(Row(f"relay to {size} members (no C compiler)", best["ours"] / 1000, "k/s", beside=beside))
        transport.close()
        sock.close()
    return rows


# --- all of it --------------------------------------------------------------------------------------------

SECTIONS = ("srtp", "frame", "relay", "load", "group")


def main() -> int:
    """Measures and prints. Exits 0 whatever is met: a figure is no test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", default=",".join(SECTIONS), help="which, with commas between")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, and of the thousand receivers")
    parser.add_argument("--members", type=int, default=1000, help="real receivers of the section `group`")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sections = options.section.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}")
    if media_namespace.inside():
        return inside(options)
    rows: list[Row] = []
    if "srtp" in sections:
        rows += srtp_rows()
    if "frame" in sections:
        rows += frame_rows()
    with tempfile.TemporaryDirectory() as directory:
        library = yardstick(directory)
        if "group" in sections:
            rows += media_group.rows(options.members, options.seconds, library)
        apart = [name for name in ("relay", "load") if name in sections]
        if apart:
            rows += in_namespace(directory, apart, options)
    if options.json:
        print(json.dumps([row.document() for row in rows]))
    else:
        print(f"{'':58} {'value':>10} {'':12} {'aim':>9}")
        for row in rows:
            print(row)
    return 0


def in_namespace(directory: str, sections: list[str], options: argparse.Namespace) -> list[Row]:
    """The sections over the veth pair, by this program run again in a namespace."""
    result = os.path.join(directory, "rows.json")
    argv = [str(Path(__file__).resolve()), "--section", ",".join(sections), "--seconds", str(options.seconds)]
    os.environ["MEDIA_BENCHMARK_RESULT"] = result
    code = media_namespace.enter(argv)
    if code is None:
        print("relay and load are not measured: a network namespace needs root", file=sys.stderr)
        return []
    if code:
        print(f"relay and load are not measured: exit {code}", file=sys.stderr)
        return []
    return [Row(**row) for row in json.loads(Path(result).read_text())]


def inside(options: argparse.Namespace) -> int:
    """In the namespace: measures, and leaves the rows in a file."""
    rows: list[Row] = []
    with media_namespace.Pair(), tempfile.TemporaryDirectory() as directory:
        if "relay" in options.section.split(","):
            rows += asyncio.run(relay_rows(yardstick(directory)))
        if "load" in options.section.split(","):
            rows += asyncio.run(media_load.rows(options.seconds))
    document = [{key: value for key, value in row.document().items() if key != "met"} for row in rows]
    Path(os.environ["MEDIA_BENCHMARK_RESULT"]).write_text(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
