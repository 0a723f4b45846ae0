# SPDX-License-Identifier: Apache-2.0
"""Every torture message thrown at a running telephone over real sockets, its answer compared with the manifest.

Whether there is no answer shows without waiting: questions that follow on the same flow are answered later.
"""

from __future__ import annotations

import asyncio

import pytest

from mcptt_sip.errors import ParseError
from mcptt_sip.message import MessageFramer, Response
from tests.sip.telephones import HOST, telephone
from tests.sip.torture import Case, answer, cases, fits

pytestmark = pytest.mark.network

CASES = {case.name: case for case in cases()}
PROBE = (
    b"OPTIONS sip:probe@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/%b 127.0.0.1:%d;rport;branch=z9hG4bKprobe%d\r\n"
    b"From: <sip:probe@127.0.0.1>;tag=1\r\nTo: <sip:probe@127.0.0.1>\r\nCall-ID: probe%d\r\nCSeq: 1 OPTIONS\r\n"
    b"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
)

#: questions after which everything that the message set going has happened
ENOUGH = 4


class Datagrams(asyncio.DatagramProtocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.came.put_nowait(data)


def _is_probe(response: Response) -> bool:
    return (response.headers.get("call-id") or "").startswith("probe")


def _answerable(octets: bytes, port: int) -> bytes:
    """The message with a top Via that leads back here: ``rport`` stands in for the addresses of the RFC."""
    head, _, rest = octets.partition(b"\r\n")
    return head + b"\r\nVia: SIP/2.0/UDP 127.0.0.1:%d;rport;branch=z9hG4bKtorture\r\n" % port + rest


async def over_udp(case: Case, port: int) -> int | None:
    """The last status. Responses go where the Via says (18.2.2), which for most messages is not here: those come
    through a Via of ours above the others, as if a proxy had been between."""
    loop = asyncio.get_running_loop()
    transport, ear = await loop.create_datagram_endpoint(Datagrams, remote_addr=(HOST, port))
    try:
        local = transport.get_extra_info("sockname")[1]
        transport.sendto(_answerable(case.octets, local))
        transport.sendto(PROBE % (b"UDP", local, 1, 1))
        last, probes = None, 1
        while probes < ENOUGH or (last is not None and last < 200):
            response = answer(await asyncio.wait_for(ear.came.get(), 5.0))
            if _is_probe(response):
                probes += 1
                transport.sendto(PROBE % (b"UDP", local, probes, probes))
            elif last is None or last < 200:
                last = response.status
        return last
    finally:
        transport.close()


async def over_tcp(case: Case, port: int) -> int | None:
    """The last status; ``None`` also when the connection is closed without a word, or waits for the rest."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        framer = MessageFramer()
        writer.write(case.octets)
        await writer.drain()
        local = writer.get_extra_info("sockname")[1]
        broken = any(isinstance(item, ParseError) for item in MessageFramer().receive(case.octets))
        probe = MessageFramer()
        probe.receive(case.octets)
        if not broken and not probe.pending:
            writer.write(PROBE % (b"TCP", local, 1, 1))
        else:
            writer.write_eof()
        last: int | None = None
        probes = 1
        while data := await asyncio.wait_for(reader.read(65536), 5.0):
            for item in framer.receive(data):
                if not isinstance(item, bytes):
                    continue
                response = answer(item)
                if _is_probe(response):
                    probes += 1
                    if probes >= ENOUGH and (last is None or last >= 200):
                        return last
                    writer.write(PROBE % (b"TCP", local, probes, probes))
                elif last is None or last < 200:
                    last = response.status
        return last
    finally:
        writer.close()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("name", list(CASES))
async def test_a_telephone_answers(name: str, transport: str) -> None:
    case = CASES[name]
    async with telephone(f"{transport}:{HOST}:0") as ours:
        status = await (over_udp if transport == "udp" else over_tcp)(case, ours.port)
        assert fits(status, case.allowed(transport)), f"{status} is none of {case.allowed(transport)}"
        assert not ours.told("error")
