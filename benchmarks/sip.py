# SPDX-License-Identifier: Apache-2.0
"""How fast the SIP stack is, beside others of the same run.

    python benchmarks/sip.py [--seconds N] [--peers FOLDER] [--only parse,calls,memory,flat] [--json]

Messages are read and written beside sippy and sipmessage (`pip install '.[benchmark]'`, or `--peers` names the folder
of a `pip install --target`) and a plain split of the lines. Calls go to and from SIPp over loopback, each side on a
core of its own, beside a loop that splits the lines and answers without any state: closed loops of 100 calls for the
highest rate, then an open loop at the aim. Memory and flatness are of the core alone, without sockets. Aims are those
of the performance notes; each row says `met` or `not met`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import asyncio
import csv
import gc
import importlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from mcptt_sip.body import Part, build_multipart
from mcptt_sip.endpoint import SipEndpoint
from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived
from mcptt_sip.message import parse
from mcptt_sip.ops.programs import calm_collector
from mcptt_sip.registrar import Registrar
from mcptt_sip.session import Answered, Ended, InviteReceived, Refused
from mcptt_sip.stack import SipStack, StackSettings

HOST = "127.0.0.1"
SDP = b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\n"
READ = ("via", "from", "to", "call-id", "cseq", "contact", "max-forwards", "content-type", "route", "supported")


@dataclass(slots=True)
class Row:
    """One line of the result."""

    what: str
    figures: dict[str, str]
    aim: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        shown = "  ".join(f"{name} {value}" for name, value in self.figures.items())
        verdict = "" if self.met is None else f"   [{'met' if self.met else 'not met'}: {self.aim}]"
        return f"{self.what:42} {shown}{verdict}"


# --- messages


#: requests that are read in turn: more than any parser may remember
DISTINCT = 10_000


def mcptt_invite(number: int, users: int) -> bytes:
    """About 4 kB: SDP, mcptt-info, resource lists and an I_MESSAGE of 763 octets. Each `number` has branches, tag,
    Call-ID and CSeq of its own, and comes from one of so many `users`."""
    info = b"<mcpttinfo>" + b"<mcptt-request-uri>sip:bob@mcx.example</mcptt-request-uri>" * 12 + b"</mcpttinfo>"
    lists = b"<resource-lists><list><entry uri='sip:bob@mcx.example'/></list></resource-lists>" * 4
    sdp = SDP + b"a=rtpmap:96 opus/48000/2\r\na=ssrc:7 cname:x\r\nm=application 4001 udp MCPTT\r\n" * 3
    kind, body = build_multipart(
        [
            Part("application/sdp", sdp),
            Part("application/vnd.3gpp.mcptt-info+xml", info),
            Part("application/resource-lists+xml", lists),
            Part("application/mikey", bytes(range(1, 10)) * 85),
        ],
        lambda: b"12345678",
    )
    user = f"user{number % users:04}"
    head = (
        "INVITE sip:mcptt@mcx.example SIP/2.0\r\n"
        f"Via: SIP/2.0/TCP 192.0.2.1:5060;branch=z9hG4bKa{number:011x};rport\r\n"
        f"Via: SIP/2.0/TCP 192.0.2.2:5060;branch=z9hG4bKb{number:011x};received=192.0.2.77\r\n"
        "Record-Route: <sip:192.0.2.2;lr;transport=tcp>\r\nRoute: <sip:192.0.2.9;lr>\r\n"
        f'From: "Alice" <sip:{user}@mcx.example>;tag={number:016x}\r\nTo: <sip:mcptt@mcx.example>\r\n'
        f"Call-ID: 8f1c9b3e4d5a6b7c{number:016x}\r\nCSeq: {314159 + number} INVITE\r\nMax-Forwards: 70\r\n"
        f'Contact: <sip:{user}@192.0.2.1:5060;transport=tcp>;+g.3gpp.mcptt;+g.3gpp.icsi-ref="urn%3Aurn-7%3A'
        '3gpp-service.ims.icsi.mcptt"\r\n'
        'Accept-Contact: *;+g.3gpp.icsi-ref="urn%3Aurn-7%3A3gpp-service.ims.icsi.mcptt";require;explicit\r\n'
        "P-Preferred-Service: urn:urn-7:3gpp-service.ims.icsi.mcptt\r\nResource-Priority: mcpttp.5\r\n"
        "Supported: 100rel, timer, tdialog, norefersub, answermode, recipient-list-invite\r\n"
        "Allow: INVITE, ACK, CANCEL, BYE, PRACK, UPDATE, INFO, MESSAGE, REFER, SUBSCRIBE, NOTIFY, OPTIONS\r\n"
        "Session-Expires: 1800;refresher=uac\r\nUser-Agent: benchmark\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def options(number: int, users: int) -> bytes:
    """About 0.6 kB, from one of so many `users` to another."""
    user, peer = f"user{number % users:04}", f"peer{number % users:04}"
    return (
        f"OPTIONS sip:{peer}@example.org SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK{number:012x};rport\r\n"
        f'From: "Alice" <sip:{user}@example.org>;tag={number:016x}\r\nTo: <sip:{peer}@example.org>\r\n'
        f"Call-ID: 8f1c9b3e4d5a6b7c{number:016x}@192.0.2.1\r\nCSeq: {314159 + number} OPTIONS\r\nMax-Forwards: 70\r\n"
        f"Contact: <sip:{user}@192.0.2.1:5060>\r\nRoute: <sip:192.0.2.9;lr>\r\nAccept: application/sdp\r\n"
        "Supported: 100rel, timer, replaces\r\nAllow: INVITE, ACK, CANCEL, BYE, OPTIONS, MESSAGE, REFER\r\n"
        "User-Agent: benchmark of a stack\r\nContent-Type: application/sdp\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def ours_read(octets: bytes) -> Any:
    message = parse(octets)
    headers = message.headers
    _ = (headers.via, headers.from_, headers.to, headers.call_id, headers.cseq, headers.contact, headers.max_forwards,
         headers.content_type, headers.route, headers.supported)  # fmt: skip
    return message


def ours_write(octets: bytes) -> bytes:
    message = parse(octets)
    message.headers.replace_first("via", "SIP/2.0/UDP 192.0.2.50;branch=z9hG4bKx")
    return bytes(message)


def split_read(octets: bytes) -> dict[str, str]:
    """What no stack can be faster than: the lines, cut at their colons."""
    head, _, _body = octets.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return dict(line.split(":", 1) for line in lines[1:])


def readers() -> dict[str, tuple[Callable[[bytes], Any], Callable[[bytes], Any] | None]]:
    """Name, parse and read ten headers, parse and write; peers that are not installed are left out."""
    found: dict[str, tuple[Callable[[bytes], Any], Callable[[bytes], Any] | None]] = {"ours": (ours_read, ours_write)}
    try:
        sipmessage = importlib.import_module("sipmessage")
    except ImportError:
        print("sipmessage is not installed: pip install '.[benchmark]'", file=sys.stderr)
    else:

        def sipmessage_read(octets: bytes) -> Any:
            message = sipmessage.Message.parse(octets)
            headers = message.headers
            _ = message.via, message.from_address, message.to_address, message.call_id, message.cseq
            _ = message.contact, message.max_forwards, message.content_type, message.route, headers.get("Supported")
            return message

        def sipmessage_write(octets: bytes) -> bytes:
            message = sipmessage.Message.parse(octets)
            message.via = message.via
            return bytes(message)

        found["sipmessage"] = sipmessage_read, sipmessage_write
    try:
        sip_request = importlib.import_module("sippy.SipRequest").SipRequest
    except ImportError:
        print("sippy is not installed: pip install '.[benchmark]'", file=sys.stderr)
    else:

        def sippy_read(octets: bytes) -> Any:
            message = sip_request(octets.decode("latin-1"))
            for name in READ:
                for field_ in message.getHFs(name):
                    _ = field_.getBody()
            return message

        found["sippy"] = sippy_read, lambda octets: str(sip_request(octets.decode("latin-1")))
    return found


def interleaved(works: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The best time of each in seconds, all taken in turns."""
    best = dict.fromkeys(works, float("inf"))
    counts = {}
    for name, work in works.items():
        began = time.perf_counter()
        work()
        counts[name] = max(1, int(0.001 / max(1e-7, time.perf_counter() - began)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, work in works.items():
            began = time.perf_counter()
            for _ in range(counts[name]):
                work()
            best[name] = min(best[name], (time.perf_counter() - began) / counts[name])
    return best


def parsing(seconds: float) -> list[Row]:
    """Every request differs from those before, as on a wire. What may be remembered of them is what comes again there:
    the URIs of 200 users; `new users` is the time of requests in which the users' URIs never come again."""
    rows = []
    for what, make in (("MCPTT INVITE", mcptt_invite), ("OPTIONS", options)):
        usual = [make(number, 200) for number in range(DISTINCT)]
        strange = [make(number, DISTINCT) for number in range(DISTINCT)]

        def over(work: Callable[[bytes], Any], requests: list[bytes]) -> Callable[[], Any]:
            each = itertools.cycle(requests)
            return lambda: work(next(each))

        reads = {"plain split": over(split_read, usual)}
        writes: dict[str, Callable[[], Any]] = {}
        for name, (read, write) in readers().items():
            try:
                read(usual[0])
                if write is not None:
                    write(usual[0])
            except Exception as error:
                print(f"{name} does not read the {what}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            reads[name] = over(read, usual)
            if write is not None:
                writes[name] = over(write, usual)
        reads["new users"] = over(ours_read, strange)
        writes["new users"] = over(ours_write, strange)
        for verb, works in (("read 10 headers of", reads), ("read, change and write", writes)):
            best = interleaved(works, seconds)
            peers = [best[name] for name in ("sippy", "sipmessage") if name in best]
            figures = {name: f"{value * 1e6:.1f} us" for name, value in best.items()}
            row = Row(f"{verb} {what}, {len(usual[0])} octets", figures)
            if peers:
                row.aim = "0.6 x the faster peer"
                row.met = best["ours"] <= 0.6 * min(peers)
                row.figures["ratio"] = f"{best['ours'] / min(peers):.2f}"
            rows.append(row)
    return rows


# --- calls: what runs in processes of its own


class Stall:
    """The longest time that the loop kept a timer of 2 ms waiting, and the most of its own CPU that it spent meanwhile
    (on a machine that is shared, the first tells of the others as well)."""

    def __init__(self) -> None:
        self.longest = self.own = 0.0
        self._spent = time.thread_time()
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + 0.002
        self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        self.longest = max(self.longest, now - self._due)
        spent = time.thread_time()
        self.own = max(self.own, spent - self._spent)
        self._spent = spent
        self._due = now + 0.002
        self._loop.call_at(self._due, self._tick)


async def uas(transport: str, watched: str = "") -> None:
    """Takes every call. Prints its port; on a line of standard input, what it saw. `watched`: its loop is, too."""
    seen = {"calls": 0, "ended": 0}
    stack = SipStack(StackSettings(user="uas", session_expires=0), token=lambda: os.urandom(8))

    def event(event: object, now: float) -> None:
        if isinstance(event, InviteReceived):
            seen["calls"] += 1
            event.session.progress(180, now=now)
            event.session.accept(body=SDP, content_type="application/sdp", now=now)
        elif isinstance(event, Ended):
            seen["ended"] += 1
        elif isinstance(event, RequestReceived):
            event.incoming.respond(200, now=now)

    endpoint = SipEndpoint(stack, on_event=event)
    port = (await endpoint.listen(transport, HOST, 0))[1]
    calm_collector()
    stall = Stall() if watched else None
    spent = time.process_time()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    cpu = time.process_time() - spent
    stalls = {"stall": stall.longest, "own": stall.own} if stall is not None else {}
    print(json.dumps({**seen, **stalls, "cpu": cpu}), flush=True)
    await endpoint.close()


async def stateless(transport: str) -> None:
    """Splits the lines, answers 180 and 200 to INVITE and 200 to the rest, remembers nothing."""

    def answers(octets: bytes) -> list[bytes]:
        head, _, _ = octets.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        method = lines[0].split(b" ", 1)[0]
        if method == b"ACK":
            return []
        kept = [line for line in lines[1:] if line[:4].lower() in (b"via:", b"from", b"call", b"cseq")]
        to = next(line for line in lines if line[:3].lower() == b"to:")
        if b"tag=" not in to:
            to += b";tag=1"
        common = b"\r\n".join([*kept, to])
        if method == b"INVITE":
            contact = b"\r\nContact: <sip:%b:%d>" % (HOST.encode(), port)
            tail = b"\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n" % len(SDP) + SDP
            return [
                b"SIP/2.0 180 Ringing\r\n" + common + contact + b"\r\nContent-Length: 0\r\n\r\n",
                b"SIP/2.0 200 OK\r\n" + common + contact + tail,
            ]
        return [b"SIP/2.0 200 OK\r\n" + common + b"\r\nContent-Length: 0\r\n\r\n"]

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            for answer in answers(data):
                self.transport.sendto(answer, addr)

    class Stream(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.held = b""

        def data_received(self, data: bytes) -> None:
            self.held += data
            while (end := self.held.find(b"\r\n\r\n")) >= 0:
                at = self.held.lower().find(b"content-length:", 0, end)
                length = int(self.held[at + 15 : self.held.find(b"\r\n", at)])
                if len(self.held) < end + 4 + length:
                    return
                whole, self.held = self.held[: end + 4 + length], self.held[end + 4 + length :]
                self.transport.write(b"".join(answers(whole)))

    loop = asyncio.get_running_loop()
    if transport == "udp":
        made, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=(HOST, 0))
        made.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
        port = made.get_extra_info("sockname")[1]
    else:
        server = await loop.create_server(Stream, HOST, 0)
        port = server.sockets[0].getsockname()[1]
    spent = time.process_time()
    print(port, flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    print(json.dumps({"cpu": time.process_time() - spent}), flush=True)


async def uac(transport: str, target: str, calls: int) -> None:
    """Makes calls to SIPp, 100 at a time, each ended as soon as it is answered; prints how long that took."""
    stack = SipStack(StackSettings(user="uac", session_expires=0), token=lambda: os.urandom(8))
    done = asyncio.Event()
    left = calls
    seen = {"answered": 0, "refused": 0}
    uri = f"sip:service@{target};transport={transport}"

    def call() -> None:
        nonlocal left
        if left:
            left -= 1
            stack.invite(uri, from_=f"<sip:uac@{HOST}>", body=SDP, content_type="application/sdp", now=time.time())

    def event(event: object, now: float) -> None:
        if isinstance(event, Answered):
            seen["answered"] += 1
            event.session.bye(now)
        elif isinstance(event, (Ended, Refused)):
            seen["refused"] += isinstance(event, Refused)
            call()
            if seen["answered"] + seen["refused"] >= calls:
                done.set()

    endpoint = SipEndpoint(stack, on_event=event)
    await endpoint.listen(transport, HOST, 0)
    calm_collector()
    stall = Stall()
    began = time.perf_counter()
    for _ in range(100):
        call()
    endpoint.transmit()
    await done.wait()
    took = time.perf_counter() - began
    await endpoint.settle(2.0)
    print(json.dumps({**seen, "seconds": took, "stall": stall.longest}), flush=True)
    await endpoint.close()


# --- calls: who runs them


class Role:
    """This file in another process, on the first core."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, __file__, "--role", *words]
        if shutil.which("taskset"):
            command = ["taskset", "-c", "0", *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def result(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.line())
        self.process.wait(10)
        return found


@dataclass(slots=True)
class SippResult:
    """What SIPp counted."""

    calls: int = 0
    failed: int = 0
    retransmissions: int = 0
    seconds: float = 0.0
    more: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.calls / self.seconds if self.seconds else 0.0


def sipp(folder: Path, scenario: str, transport: str, *words: str, wait: bool = True) -> Any:
    """SIPp on the last core; its statistics."""
    stats = folder / "stats.csv"
    stats.unlink(missing_ok=True)
    command = [
        "sipp", "-sn", scenario, "-i", HOST, "-t", "t1" if transport == "tcp" else "u1", "-nostdin", "-skip_rlimit",
        "-buff_size", "400000", "-trace_stat", "-stf", str(stats), "-fd", "1", *words,
    ]  # fmt: skip
    if shutil.which("taskset"):
        command = ["taskset", "-c", str((os.cpu_count() or 1) - 1), *command]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if not wait:
        return process
    began = time.perf_counter()
    process.wait()
    took = time.perf_counter() - began
    rows = list(csv.DictReader(stats.open(), delimiter=";"))
    last = rows[-1]
    return SippResult(
        int(last["SuccessfulCall(C)"]), int(last["FailedCall(C)"]), int(last["Retransmissions(C)"]), took
    )


def calls(seconds: float, aim: int) -> list[Row]:
    if shutil.which("sipp") is None:
        print("sipp is not installed: apt-get install sip-tester", file=sys.stderr)
        return []
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for transport in ("udp", "tcp"):
            rates: dict[str, float] = {}
            spent: dict[str, float] = {}  # seconds of CPU for one call: what a busy machine does not change
            figures: dict[str, str] = {}
            for kind in ("uas", "stateless") * 4:  # in turns, the best of each: the machine has its moods
                role = Role(kind, transport)
                port = role.line().strip()
                amount = int(max(2000, 1500 * seconds / 4))
                result = sipp(folder, "uac", transport, f"{HOST}:{port}", "-r", "20000", "-l", "100", "-m", str(amount))
                cpu = role.result()["cpu"] / max(1, result.calls)
                spent[kind] = min(spent.get(kind, cpu), cpu)
                rates[kind] = max(rates.get(kind, 0.0), result.rate)
            figures["calls/s"] = f"{rates['uas']:.0f}"
            figures["stateless loop"] = f"{rates['stateless']:.0f}"
            ratio = rates["uas"] / rates["stateless"]
            figures["ratio"] = f"{ratio:.2f}"
            figures["CPU of a call"] = f"{spent['uas'] * 1e6:.0f} us against {spent['stateless'] * 1e6:.0f} us"
            rows.append(Row(f"UAS over {transport}, closed loop", figures, "0.35 x the stateless loop", ratio >= 0.35))
            role = Role("uas", transport, "watched")
            port = role.line().strip()
            amount = int(aim * seconds)
            result = sipp(folder, "uac", transport, f"{HOST}:{port}", "-r", str(aim), "-l", "20000", "-m", str(amount))
            saw = role.result()
            figures = {
                "offered": f"{aim}/s for {seconds:.0f} s", "answered": str(result.calls), "failed": str(result.failed),
                "retransmitted": str(result.retransmissions), "longest stall": f"{saw['stall'] * 1e3:.1f} ms",
            }  # fmt: skip
            good = result.calls == amount and not result.failed and not result.retransmissions
            rows.append(Row(f"UAS over {transport}, open loop", figures, f"{aim}/s, none lost, none repeated", good))
            stalls = {"longest stall": f"{saw['stall'] * 1e3:.1f} ms", "own CPU": f"{saw['own'] * 1e3:.1f} ms"}
            rows.append(Row(f"loop of the UAS over {transport}", stalls, "20 ms of its own CPU", saw["own"] <= 0.020))
            rows.append(_uac(folder, transport, int(max(2000, 1000 * seconds / 4))))
    return rows


def _uac(folder: Path, transport: str, amount: int) -> Row:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    callee = sipp(folder, "uas", transport, "-p", str(port), wait=False)
    try:
        time.sleep(0.5)
        role = Role("uac", transport, f"{HOST}:{port}", str(amount))
        found = json.loads(role.line())
        role.process.wait(10)
    finally:
        callee.terminate()
        callee.wait()
    rate = found["answered"] / found["seconds"]
    figures = {"calls/s": f"{rate:.0f}", "refused": str(found["refused"]),
               "longest stall": f"{found['stall'] * 1e3:.1f} ms"}  # fmt: skip
    return Row(f"UAC over {transport}, closed loop", figures, "none refused", found["refused"] == 0)


# --- memory and flatness, of the core


def _invite(number: int) -> bytes:
    return (
        f"INVITE sip:uas@127.0.0.1:5060 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5062;branch=z9hG4bK{number:x}\r\n"
        f"From: <sip:uac@127.0.0.1:5062>;tag=f{number:x}\r\nTo: <sip:uas@127.0.0.1:5060>\r\n"
        f"Call-ID: c{number:x}@127.0.0.1\r\n"
        "CSeq: 1 INVITE\r\nContact: <sip:uac@127.0.0.1:5062>\r\nMax-Forwards: 70\r\nSupported: timer\r\n"
        f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n\r\n"
    ).encode() + SDP


def _follow(number: int, method: str, cseq: int, tag: str) -> bytes:
    return (
        f"{method} sip:uas@127.0.0.1:5060 SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 127.0.0.1:5062;branch=z9hG4bK{method}{number:x}\r\n"
        f"From: <sip:uac@127.0.0.1:5062>;tag=f{number:x}\r\nTo: <sip:uas@127.0.0.1:5060>;tag={tag}\r\n"
        f"Call-ID: c{number:x}@127.0.0.1\r\nCSeq: {cseq} {method}\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    ).encode()


FLOW = Flow("udp", (HOST, 5060), (HOST, 5062))


class Core:
    """A stack that takes calls without sockets."""

    def __init__(self) -> None:
        self.stack = SipStack(StackSettings(user="uas"), token=lambda: os.urandom(8))
        self.stack.add_listener("udp", HOST, 5060)
        self.numbers = itertools.count()

    def take(self, now: float) -> tuple[int, str]:
        """One call up to its ACK; its number and our tag."""
        number = next(self.numbers)
        self.stack.receive_octets(_invite(number), FLOW, now)
        tag = ""
        for event in self.stack.events():
            if isinstance(event, InviteReceived):
                event.session.accept(body=SDP, content_type="application/sdp", now=now)
                tag = event.session.local_tag
        for outgoing in self.stack.to_send():
            _ = outgoing.octets
        self.stack.receive_octets(_follow(number, "ACK", 1, tag), FLOW, now)
        self.stack.events()
        return number, tag

    def end(self, number: int, tag: str, now: float) -> None:
        self.stack.receive_octets(_follow(number, "BYE", 2, tag), FLOW, now)
        self.stack.events()
        for outgoing in self.stack.to_send():
            _ = outgoing.octets


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(count: int) -> list[Row]:
    core = Core()
    for _ in range(100):
        core.take(0.0)
    core.stack.handle_timer(50.0)
    before = _resident()
    for _ in range(count):
        core.take(100.0)
    busy = _resident()
    core.stack.handle_timer(200.0)
    after = _resident()
    each = (after - before) / count
    rows = [
        Row(f"an idle dialog, of {count}",
            {"octets": f"{each:.0f}", "while its INVITE is remembered": f"{(busy - before) / count:.0f}"},
            "12 kB", each <= 12_000)
    ]  # fmt: skip
    registrar = Registrar()
    text = (
        "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5062;branch=z9hG4bK{0:x}\r\n"
        "From: <sip:user{0}@example.org>;tag=1\r\nTo: <sip:user{0}@example.org>\r\nCall-ID: r{0:x}@127.0.0.1\r\n"
        "CSeq: 1 REGISTER\r\nContact: <sip:user{0}@127.0.0.1:5062>\r\nExpires: 3600\r\nContent-Length: 0\r\n\r\n"
    )
    before = _resident()
    for number in range(count):
        request: Any = parse(text.format(number).encode())
        registrar.register(request, FLOW, 0.0)
    each = (_resident() - before) / count
    rows.append(Row(f"a registration, of {count}", {"octets": f"{each:.0f}"}, "2 kB", each <= 2_000))
    return rows


def flat(count: int) -> list[Row]:
    """Seconds of a call while few others are open, and while many are."""
    few, many = Core(), Core()
    for _ in range(10):
        few.take(0.0)
    for _ in range(count):
        many.take(0.0)
    for core in (few, many):
        core.stack.handle_timer(90.0)
    gc.collect()
    now = {id(few): 100.0, id(many): 100.0}

    def cycle(core: Core) -> None:
        now[id(core)] += 0.01
        number, tag = core.take(now[id(core)])
        core.end(number, tag, now[id(core)])
        core.stack.handle_timer(now[id(core)])

    best = interleaved({"few": lambda: cycle(few), "many": lambda: cycle(many)}, 6.0)
    ratio = best["many"] / best["few"]
    figures = {"10 open": f"{best['few'] * 1e6:.0f} us", f"{count} open": f"{best['many'] * 1e6:.0f} us",
               "ratio": f"{ratio:.2f}"}  # fmt: skip
    return [Row("a call of the core, INVITE to BYE", figures, "flat: within 1.25", ratio <= 1.25)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the open loops")
    parser.add_argument("--rate", type=int, default=1500, help="calls a second of the open loops")
    parser.add_argument("--count", type=int, default=50_000, help="dialogs and registrations")
    parser.add_argument("--peers", type=Path, help="folder with sippy and sipmessage")
    parser.add_argument("--only", default="parse,calls,memory,flat")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        kind, *words = given.role
        work = {"uas": uas, "stateless": stateless, "uac": lambda t, target, n: uac(t, target, int(n))}[kind]
        asyncio.run(work(*words))  # type: ignore[operator]
        return 0
    if given.peers is not None:
        sys.path.append(str(given.peers))
    parts: dict[str, Callable[[], list[Row]]] = {
        "parse": lambda: parsing(2.0),
        "calls": lambda: calls(given.seconds, given.rate),
        "memory": lambda: memory(given.count),
        "flat": lambda: flat(given.count),
    }
    rows: list[Row] = []
    for name in given.only.split(","):
        for row in parts[name]():
            rows.append(row)
            if not given.json:
                print(row, flush=True)
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
