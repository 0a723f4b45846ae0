# SPDX-License-Identifier: Apache-2.0
"""Whatever strangers send to any socket of any process: the right answer or silence, a log line, and the call under
way does not notice."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.mcptt.callerrors import RegroupFailed
from mcptt_sip.mcptt.client import ClientSettings, McpttClient
from mcptt_sip.ops import capture
from mcptt_sip.ops.phone import proxy_uri
from mcptt_sip.ops.scenario import SERVICE, Lab, Process, laboratory
from media.quality import score
from mikey import Keyring, MemoryReplayCache, SealedMessage, TransportKey
from mikey.kms_client import KmsClient
from tests.system import sockets
from tests.system.hearing import bursts_heard, samples

pytestmark = pytest.mark.network
ROOT = Path(__file__).parents[2]
VOICES = ROOT / "scenarios" / "data"
CORPUS = json.loads((ROOT / "tests/vectors/mikey/i_message_corpus.json").read_text())["cases"]
#: two more are faults of the text form around a message
CASES = [case for case in CORPUS if case["input"]["message_b64"]]
MEGABYTE = 1 << 20
NAMES = ("alice", "bob", "carol")

INVITE = (
    "INVITE sip:mcptt@mcx.example SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:9;branch=z9hG4bKbig\r\n"
    "From: <sip:m@x>;tag=1\r\nTo: <sip:mcptt@mcx.example>\r\nCall-ID: big\r\nCSeq: 1 INVITE\r\n"
    "Contact: <sip:m@127.0.0.1:9>\r\nMax-Forwards: 70\r\nContent-Type: application/sdp\r\n"
)


class Stranger(asyncio.DatagramProtocol):
    """Counts what comes back to it."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.answers.append(data)


async def throw_datagrams(target: sockets.Bound, datagrams: list[bytes]) -> list[bytes]:
    loop = asyncio.get_running_loop()
    transport, stranger = await loop.create_datagram_endpoint(
        Stranger, local_addr=("127.0.0.1", 0), remote_addr=(target.host, target.port)
    )
    for number, octets in enumerate(datagrams):
        transport.sendto(octets)
        if number % 20 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.1)  # answers, if there are any, are for the eye: nothing waits for them
    transport.close()
    return stranger.answers


async def throw_stream(target: sockets.Bound, octets: bytes) -> bytes:
    """What the other side says until it closes, or one second after the last octet."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    answer = b""
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(10):
            for start in range(0, len(octets), 65536):
                writer.write(octets[start : start + 65536])
                await writer.drain()
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(1):
            while piece := await reader.read(65536):
                answer += piece
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return answer


def rubbish(samples_of_real: list[bytes], source: random.Random) -> list[bytes]:
    """Random octets, truncated real messages, real ones with flipped bits, and real ones again."""
    made = [b"", b"\0", b"\r\n\r\n", b"\x80" * 12, source.randbytes(65_000)]
    made += [source.randbytes(source.randrange(1, 1500)) for _ in range(300)]
    for real in samples_of_real:
        made.append(real)
        made += [real[: source.randrange(len(real))] for _ in range(3)]
        flipped = bytearray(real)
        flipped[source.randrange(len(real))] ^= 1 << source.randrange(8)
        made.append(bytes(flipped))
    return made


def from_the_call(out: Path) -> list[bytes]:
    """Some of every kind of what the phones have sent so far, as it was on the wire."""
    packets = [capture.dissect(p)[3] for name in ("alice", "bob") for p in capture.read(out / f"{name}.pcapng")]
    return [p for p in packets if p][:60]


async def test_rubbish_on_every_socket(tmp_path: Path) -> None:
    source = random.Random(8)
    async with laboratory(tmp_path) as lab:
        _, (alice, bob, carol) = await start(lab)
        await alice.do("call bob carol")
        talking = asyncio.ensure_future(alice.do(f"say {VOICES / 'alice.wav'}", timeout=30))
        await bob.expect("floor-taken")
        real = from_the_call(tmp_path)
        assert len(real) > 20
        for process in lab.processes.values():
            for target in sockets.bound(process.pid):
                if target.kind == "udp":
                    await throw_datagrams(target, rubbish(real, source))
                else:
                    for octets in (source.randbytes(5000), b"\0" * 100, real[0][:100], b"GET / HTTP/1.1\r\n\r\n"):
                        await throw_stream(target, octets)
        await talking
        await carol.do(f"say {VOICES / 'carol.wav'}", timeout=30)
        assert all(process.running for process in lab.processes.values())
    heard_in_full(tmp_path, [("alice", "bob"), ("alice", "carol"), ("carol", "alice"), ("carol", "bob")])
    for name in ("server", *NAMES):
        text = (tmp_path / f"{name}.log").read_text()
        assert text.count("not SIP: ") > 20, name
        (closing,) = re.findall(r"relay closed: (.*)" if name == "server" else r"media of \S+ closed: (.*)", text)
        drops = ast.literal_eval(closing)
        assert sum(count for reason, count in drops.items() if "unknown" in reason or "malformed" in reason) > 0 or (
            name != "server" and drops["dropped"]
        ), drops
        assert "Traceback" not in text, text


async def test_a_body_of_ten_megabytes_on_every_stream(tmp_path: Path) -> None:
    big = INVITE.encode() + f"Content-Length: {10 * MEGABYTE}\r\n\r\n".encode() + b"v" * 10 * MEGABYTE
    post = b"POST /keymanagement/identity/v1/init HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (10 * MEGABYTE)
    endless_head = INVITE.encode() + b"Subject: " + b"s" * 10 * MEGABYTE
    async with laboratory(tmp_path) as lab:
        server, (alice, bob, _carol) = await start(lab)
        await alice.do("call bob carol")
        talking = asyncio.ensure_future(alice.do(f"say {VOICES / 'alice.wav'}", timeout=30))
        await bob.expect("floor-taken")
        (front,) = [s for s in sockets.bound(server.pid) if s.kind == "tcp"]
        assert b"SIP/2.0 413 " in await throw_stream(front, big)
        answer = await throw_stream(front, endless_head)
        assert answer == b"" or answer.startswith(b"SIP/2.0 4")
        (kms,) = [s for s in sockets.bound(lab.processes["kms"].pid) if s.kind == "tcp"]
        assert (await throw_stream(kms, post + b"x" * 10 * MEGABYTE)).startswith((b"HTTP/1.1 401", b"HTTP/1.1 413"))
        await talking
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        assert peak < 300 * MEGABYTE
    heard_in_full(tmp_path, [("alice", "bob"), ("alice", "carol")])
    assert "Traceback" not in (tmp_path / "server.log").read_text()


class Liar(McpttClient):
    """Sends an I_MESSAGE of the corpus in place of one that it made."""

    octets = b""

    def _seal(self, key: TransportKey, recipient: str, now: float) -> Any:
        made = super()._seal(key, recipient, now)
        return SealedMessage(self.octets, made.csb_id, made.signed_digest, made.timestamp, recipient)


async def test_key_messages_that_must_be_refused_are_refused(tmp_path: Path) -> None:
    """Every message of the corpus, those included that are good for somebody else: none is good for this call."""
    async with laboratory(tmp_path) as lab:
        lab.user("mallory", allow_regroup=True)
        server, (alice, bob, _carol) = await start(lab)
        await alice.do("call bob carol")
        talking = asyncio.ensure_future(alice.do(f"say {VOICES / 'alice.wav'}", timeout=30))
        await bob.expect("floor-taken")
        liar = await log_in(lab, "mallory")
        for case in CASES:
            liar.octets = base64.b64decode(case["input"]["message_b64"])
            with pytest.raises(RegroupFailed) as refusal:
                await liar.start_regroup(Lab.uri("bob"))
            assert refusal.value.status == 488, case["id"]
            assert "136" in (refusal.value.warning or ""), case["id"]
        await liar.aclose()
        await talking
        assert len(bob.seen("joined")) == 1
        assert len(server.seen("authorised")) == 1
    heard_in_full(tmp_path, [("alice", "bob"), ("alice", "carol")])
    text = (tmp_path / "server.log").read_text()
    assert text.count("I_MESSAGE for sip:bob@mcx.example") >= len(CASES)


async def start(lab: Lab) -> tuple[Process, list[Process]]:
    for name in NAMES:
        lab.user(name, allow_regroup=name == "alice")
    await lab.start_kms()
    server = await lab.start_server()
    return server, await lab.phones(*NAMES)


async def log_in(lab: Lab, name: str) -> Liar:
    """A client in this process, with the identity that the lab made for it."""
    import time

    uri = lab.uri(name)
    keyring = Keyring()
    kms = KmsClient(lab.facts["kms"], token=lab.token(name), uri=uri, clock=time.time)
    try:
        await kms.fetch(keyring)
    finally:
        await kms.close()
    client = Liar(
        uri,
        ClientSettings(
            server=SERVICE, proxy=proxy_uri(lab.facts["proxy"]), username=name, password=lab.password(name)
        ),
        keyring=keyring,
        replay=MemoryReplayCache(),
    )
    await client.start()
    return client


def heard_in_full(out: Path, pairs: list[tuple[str, str]]) -> None:
    for talker, listener in pairs:
        reference, rate = samples(VOICES / f"{talker}.wav")
        (burst,) = bursts_heard(out, listener, talker)
        assert score(reference, burst, rate) >= 0.85, (talker, listener)
        assert abs(len(burst) - len(reference)) <= 0.05 * len(reference), (talker, listener)
