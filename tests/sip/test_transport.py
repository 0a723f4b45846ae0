# SPDX-License-Identifier: Apache-2.0
"""Sockets: every transport over IPv4 and IPv6 (WebSocket: RFC 7118), TLS with its names and certificates, limits."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from mcptt_sip.errors import ParseError, Unreachable
from mcptt_sip.flow import Flow
from mcptt_sip.tls import ServerTls, TlsIdentity, client_context, peer_names
from mcptt_sip.transport import Transport, TransportSettings
from tests.sip.certificates import Authority

pytestmark = pytest.mark.network

OPTIONS = (
    b"OPTIONS sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP c;branch=z9hG4bK1\r\nFrom: <sip:c@c>;tag=1\r\n"
    b"To: <sip:a@b>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
)
SECURE = {"tls", "wss"}


class Ear:
    """A receiver that keeps what it hears, and can be waited on."""

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, Flow]] = []
        self.faults: list[ParseError] = []
        self.closed: list[Flow] = []
        self._changed = asyncio.Event()

    def received(self, data: bytes, flow: Flow) -> None:
        self.heard.append((data, flow))
        self._changed.set()

    def broken(self, error: ParseError, flow: Flow) -> None:
        self.faults.append(error)
        self._changed.set()

    def flow_closed(self, flow: Flow) -> None:
        self.closed.append(flow)
        self._changed.set()

    async def until(self, what: str, count: int = 1) -> None:
        async with asyncio.timeout(10.0):
            while len(getattr(self, what)) < count:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def end(**settings: object) -> AsyncIterator[tuple[Transport, Ear]]:
    ear = Ear()
    transport = Transport(ear, TransportSettings(**settings))  # type: ignore[arg-type]
    try:
        yield transport, ear
    finally:
        await transport.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", ["udp", "tcp", "tls", "ws", "wss"])
async def test_a_message_goes_there_and_its_answer_back_on_the_same_flow(
    authority: Authority, kind: str, host: str
) -> None:
    server_tls = ServerTls([authority.sign(host, file="server")])
    async with (
        end(tls_server=server_tls.context) as (server, there),
        end(tls_client=client_context(authority.file)) as (client, here),
    ):
        port = (await server.listen(kind, host, 0))[1]
        flow = await client.connect(kind, host, port)
        assert client.send(OPTIONS, flow)
        await there.until("heard")
        data, back = there.heard[0]
        assert data == OPTIONS and back.transport == kind
        assert server.send(b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", back)
        await here.until("heard")
        assert here.heard[0][0].startswith(b"SIP/2.0 200")
        if kind != "udp":
            assert await client.connect(kind, host, port) == flow, "an open connection is used again"


@pytest.mark.parametrize(("wildcard", "host"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
async def test_a_socket_of_every_address_knows_the_one_its_peer_sees(wildcard: str, host: str) -> None:
    async with end() as (server, there), end() as (client, here):
        port = (await server.listen("udp", wildcard, 0))[1]
        flow = await client.connect("udp", host, port)
        assert flow.local[0] == host
        assert client.send(OPTIONS, flow)
        await there.until("heard")
        back = there.heard[0][1]
        assert back.local == (host, port)
        assert server.send(OPTIONS, back)
        await here.until("heard")


@pytest.mark.parametrize("kind", ["tcp", "ws"])
async def test_a_closed_connection_is_told_to_both_ends(kind: str) -> None:
    async with end() as (server, there), end() as (client, here):
        port = (await server.listen(kind, "127.0.0.1", 0))[1]
        flow = await client.connect(kind, "127.0.0.1", port)
        client.send(OPTIONS, flow)
        await there.until("heard")
        client._connections[flow].abort()
        await there.until("closed")
        await here.until("closed")
        assert here.closed == [flow] and not client.send(OPTIONS, flow)


async def test_a_websocket_needs_its_subprotocol_and_its_origin() -> None:
    async with end(websocket_origins=("https://phone.example",)) as (server, _):
        port = (await server.listen("ws", "127.0.0.1", 0))[1]
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/"
            async with session.get(url) as plain:
                assert plain.status == 426
            for options, status in (({}, 400), ({"protocols": ("sip",)}, 403)):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(url, **options)
                assert refused.value.status == status
            async with session.ws_connect(url, protocols=("sip",), origin="https://phone.example") as socket:
                assert socket.protocol == "sip"


async def test_a_websocket_carries_text_and_octets_and_answers_a_keep_alive() -> None:
    async with end() as (server, there):
        port = (await server.listen("ws", "127.0.0.1", 0))[1]
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{port}/", protocols=("sip",)) as socket,
        ):
            await socket.send_str(OPTIONS.decode())
            await socket.send_bytes(OPTIONS[:-4] + b"X: \xff\r\n\r\n")
            await there.until("heard", 2)
            await socket.send_str("\r\n\r\n")
            assert (await socket.receive_str()) == "\r\n"
            server.send(b"SIP/2.0 200 \xff\r\n\r\n", there.heard[0][1])
            assert (await socket.receive_bytes()) == b"SIP/2.0 200 \xff\r\n\r\n"


@pytest.mark.parametrize(("method", "version"), [("GET", "8"), ("GET", ""), ("POST", "13")])
async def test_another_handshake_than_that_of_rfc_6455_is_told_which_one_is_meant(method: str, version: str) -> None:
    async with end() as (server, _), aiohttp.ClientSession() as session:
        port = (await server.listen("ws", "127.0.0.1", 0))[1]
        headers = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Protocol": "sip",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": version,
        }  # fmt: skip
        async with session.request(method, f"http://127.0.0.1:{port}/", headers=headers) as answer:
            assert answer.status == 426 and answer.headers["Sec-WebSocket-Version"] == "13"


async def test_a_server_that_is_no_websocket_server_is_unreachable() -> None:
    async with end() as (server, _), end(connect_timeout=2.0) as (client, _):
        port = (await server.listen("tcp", "127.0.0.1", 0))[1]
        with pytest.raises(Unreachable):
            await client.connect("ws", "127.0.0.1", port)


# --- TLS


async def test_the_certificate_must_be_of_the_name_that_was_called(authority: Authority) -> None:
    tls = ServerTls([authority.sign("sip.example.org")])
    async with (
        end(tls_server=tls.context) as (server, _),
        end(tls_client=client_context(authority.file)) as (client, _),
    ):
        port = (await server.listen("tls", "127.0.0.1", 0))[1]
        await client.connect("tls", "127.0.0.1", port, name="sip.example.org")
        with pytest.raises(Unreachable, match="certificate"):
            await client.connect("tls", "127.0.0.1", port, name="other.example.org")


async def test_a_certificate_of_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "Stranger")
    tls = ServerTls([stranger.sign("127.0.0.1", file="stranger")])
    async with (
        end(tls_server=tls.context) as (server, _),
        end(tls_client=client_context(authority.file)) as (client, _),
    ):
        port = (await server.listen("tls", "127.0.0.1", 0))[1]
        with pytest.raises(Unreachable, match="certificate"):
            await client.connect("tls", "127.0.0.1", port)


async def test_each_server_name_gets_its_certificate(authority: Authority) -> None:
    tls = ServerTls(
        [
            authority.sign("one.example.org", shown_for=("one.example.org",)),
            authority.sign("two.example.org", shown_for=("two.example.org",)),
        ]
    )
    async with (
        end(tls_server=tls.context) as (server, _),
        end(tls_client=client_context(authority.file)) as (client, _),
    ):
        port = (await server.listen("tls", "127.0.0.1", 0))[1]
        flows = [
            await client.connect("tls", "127.0.0.1", port, name=name) for name in ("one.example.org", "two.example.org")
        ]
        assert [client.peer_names(flow) for flow in flows] == [("one.example.org",), ("two.example.org",)]
        assert flows[0] != flows[1], "a connection is used again for its own name only"


async def test_a_peer_without_certificate_is_turned_away_and_one_with_it_is_known(authority: Authority) -> None:
    tls = ServerTls([authority.sign("127.0.0.1", file="server")], client_authorities=authority.file)
    phone = authority.sign("phone.example.org", "sip:example.org")
    async with (
        end(tls_server=tls.context) as (server, there),
        end(tls_client=client_context(authority.file)) as (bare, lost),
        end(tls_client=client_context(authority.file, identity=phone)) as (client, _),
    ):
        port = (await server.listen("tls", "127.0.0.1", 0))[1]
        try:
            await bare.connect("tls", "127.0.0.1", port)  # TLS 1.3: the refusal comes after the handshake
        except Unreachable:
            pass
        else:
            await lost.until("closed")
        client.send(OPTIONS, await client.connect("tls", "127.0.0.1", port))
        await there.until("heard")
        assert [server.peer_names(flow) for _, flow in there.heard] == [("example.org",)]


async def test_a_reloaded_certificate_is_shown_to_new_connections_and_old_ones_go_on(authority: Authority) -> None:
    tls = ServerTls([authority.sign("old.example.org", file="server")])
    async with (
        end(tls_server=tls.context) as (server, there),
        end(tls_client=client_context(authority.file)) as (client, _),
    ):
        port = (await server.listen("tls", "127.0.0.1", 0))[1]
        old = await client.connect("tls", "127.0.0.1", port, name="old.example.org")
        authority.sign("new.example.org", file="server")  # the same files
        tls.reload()
        new = await client.connect("tls", "127.0.0.1", port, name="new.example.org")
        assert client.peer_names(new) == ("new.example.org",)
        client.send(OPTIONS, old)
        await there.until("heard")


def test_a_reload_that_fails_changes_nothing(authority: Authority, tmp_path: Path) -> None:
    identity = authority.sign("a.example.org", file="server")
    tls = ServerTls([identity])
    (tmp_path / "server.key").write_text("no key")
    with pytest.raises(ssl.SSLError):
        tls.reload()
    with pytest.raises(ValueError, match="certificate"):
        ServerTls([])


async def test_secrets_are_logged_where_the_environment_says(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    tls = ServerTls([authority.sign("127.0.0.1", file="server")])
    async with (
        end(tls_server=tls.context) as (server, _),
        end(tls_client=client_context(authority.file)) as (client, _),
    ):
        port = (await server.listen("tls", "127.0.0.1", 0))[1]
        await client.connect("tls", "127.0.0.1", port)
    assert "CLIENT_TRAFFIC_SECRET_0" in log.read_text()


def test_sip_uris_of_a_certificate_come_before_its_dns_names() -> None:
    both = {"subjectAltName": (("DNS", "host.example"), ("URI", "sip:Example.org"), ("URI", "sip:a@example.org"))}
    assert peer_names(both) == ("example.org",)
    assert peer_names({"subjectAltName": (("DNS", "host.example"),)}) == ("host.example",)
    assert peer_names(None) == peer_names({}) == ()


def test_tls_without_a_certificate_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ServerTls([TlsIdentity(tmp_path / "none.crt", tmp_path / "none.key")])

    async def listen() -> None:
        async with end() as (server, _):
            await server.listen("tls", "127.0.0.1", 0)

    with pytest.raises(ValueError, match="certificate"):
        asyncio.run(listen())


async def test_datagrams_that_wait_are_all_heard_in_their_order_however_many_are_taken_at_once() -> None:
    async with end(max_messages_at_once=4) as (server, there):
        port = (await server.listen("udp", "127.0.0.1", 0))[1]
        sent = [b"%d" % number + OPTIONS for number in range(11)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for octets in sent:
                peer.sendto(octets, ("127.0.0.1", port))
            await there.until("heard", len(sent))
        assert [octets for octets, _ in there.heard] == sent


async def test_answers_to_what_came_together_leave_in_order_and_before_the_connection_ends() -> None:
    async with end() as (server, there):

        def answer(data: bytes, flow: Flow) -> None:
            assert server.send(b"answer to " + data[:9], flow)

        def refuse(error: ParseError, flow: Flow) -> None:
            assert server.send(b"not SIP", flow)

        there.received, there.broken = answer, refuse  # type: ignore[method-assign]
        port = (await server.listen("tcp", "127.0.0.1", 0))[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(OPTIONS + OPTIONS.replace(b"OPTIONS", b"MESSAGE") + b"\r\n\r\n" + b"BAD " * 30_000)
        async with asyncio.timeout(5.0):
            heard = await reader.read()
        assert heard.replace(b"\r\n", b"") == b"answer to OPTIONS sanswer to MESSAGE snot SIP"
        assert heard.count(b"\r\n") == 1  # the keep-alive's answer
        writer.close()


async def test_a_fault_over_one_of_several_messages_keeps_nobody_from_the_answers_to_the_others() -> None:
    async with end() as (server, there):

        def answer(data: bytes, flow: Flow) -> None:
            server.send(b"answer", flow)
            if data.startswith(b"MESSAGE"):
                raise RuntimeError("of the application")

        there.received = answer  # type: ignore[method-assign]
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
        port = (await server.listen("udp", "127.0.0.1", 0))[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            peer.connect(("127.0.0.1", port))
            async with asyncio.timeout(5.0):
                for octets in (OPTIONS, OPTIONS.replace(b"OPTIONS", b"MESSAGE"), OPTIONS):
                    peer.send(octets)
                for _ in range(3):
                    assert await asyncio.get_running_loop().sock_recv(peer, 10) == b"answer"
        assert len(faults) == 1


# --- limits


async def test_datagrams_above_their_rate_are_dropped_and_counted() -> None:
    async with end(max_rate_per_source=0.001, burst_per_source=3) as (server, there):
        port = (await server.listen("udp", "127.0.0.1", 0))[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            peer.connect(("127.0.0.1", port))
            for _ in range(5):
                peer.send(OPTIONS)
            peer.send(b"\r\n\r\n")  # a keep-alive is no message, and its answer comes after all before it
            async with asyncio.timeout(5.0):
                assert await asyncio.get_running_loop().sock_recv(peer, 10) == b"\r\n"
        assert (len(there.heard), server.counters["rate-limited"]) == (3, 2)


async def test_a_stream_above_its_rate_is_read_later_and_loses_nothing() -> None:
    async with end(max_rate_per_source=200.0, burst_per_source=2) as (server, there), end() as (client, _):
        port = (await server.listen("tcp", "127.0.0.1", 0))[1]
        flow = await client.connect("tcp", "127.0.0.1", port)
        for _ in range(12):
            client.send(OPTIONS, flow)
            await asyncio.sleep(0)
        await there.until("heard", 12)
        assert server.counters["rate-limited"] >= 1


async def test_a_connection_that_brings_much_at_once_lets_others_have_their_turn() -> None:
    async with end(max_messages_at_once=4) as (server, there):
        port = (await server.listen("tcp", "127.0.0.1", 0))[1]
        _, much = await asyncio.open_connection("127.0.0.1", port)
        _, little = await asyncio.open_connection("127.0.0.1", port)
        little.write(OPTIONS)
        await there.until("heard")
        single = there.heard[0][1]
        seen: list[int] = []
        received = there.received

        def watch(data: bytes, flow: Flow) -> None:
            if flow == single:
                seen.append(len(there.heard))
            elif len(there.heard) == 2:
                little.write(OPTIONS)  # while the other one has hundreds waiting
            received(data, flow)

        there.received = watch  # type: ignore[method-assign]
        much.write(OPTIONS * 400)
        await there.until("heard", 402)
        assert seen and seen[0] < 300
        for writer in (much, little):
            writer.close()


async def test_connections_of_one_source_are_limited() -> None:
    async with end(max_connections_per_source=2) as (server, _):
        port = (await server.listen("tcp", "127.0.0.1", 0))[1]
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        async with asyncio.timeout(5.0):
            reset = await asyncio.gather(streams[2][0].read(), return_exceptions=True)
        assert reset[0] == b"" or isinstance(reset[0], ConnectionError)
        assert server.counters["refused"] == 1
        for _, writer in streams:
            writer.close()


async def test_a_peer_that_does_not_read_is_not_read_either_and_then_closed() -> None:
    async with end(max_unsent=300_000) as (server, there):
        port = (await server.listen("tcp", "127.0.0.1", 0))[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.transport.pause_reading()
        writer.get_extra_info("socket").setsockopt(*_SMALL)
        writer.write(OPTIONS)
        await there.until("heard")
        flow = there.heard[0][1]
        async with asyncio.timeout(10.0):
            while not there.closed:
                server.send(b"x" * 65_536, flow)
                await asyncio.sleep(0)
        assert server.counters["unread"] == 1
        writer.close()


_SMALL = (1, 8, struct.pack("i", 4096))  # SOL_SOCKET, SO_RCVBUF
