# SPDX-License-Identifier: Apache-2.0
"""``mcptt ua`` as scripts use it: a process with options, commands and JSON lines."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.errors import CallFailed, RegistrationFailed, RequestTimeout
from mcptt_sip.message import Response
from mcptt_sip.registration import retry_delay
from mcptt_sip.transport import TransportSettings
from tests.sip.sipp import FOUND, has, needed, recv, response, scenario, sipp
from tests.sip.telephones import HOST, telephone
from tests.sip.test_examples import pitch, tone

pytestmark = pytest.mark.network
MCPTT = str(Path(sys.executable).with_name("mcptt"))


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20.0):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == name:
                    return self.events[-1]
        raise AssertionError(f"no {name} in {self.events}")

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def ready(self) -> list[str]:
        addresses: list[str] = (await self.event("ready"))["addresses"]
        return addresses


@asynccontextmanager
async def ua(*options: str, **more: Any) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        MCPTT, "ua", "--json", *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_two_telephones_talk_and_the_first_signal_ends_calls_politely(tmp_path: Path) -> None:
    speech, heard = tone(tmp_path / "speech.wav", 600, 10.0), tmp_path / "heard.wav"
    async with ua("--listen", f"udp:{HOST}:0", "--record", str(heard)) as bob:
        (address,) = await bob.ready()
        target = f"sip:bob@{HOST}:{port_of(address)}"
        async with ua("--listen", f"udp:{HOST}:0", "--call", target, "--play", str(speech)) as alice:
            await alice.event("answered")
            await bob.event("answered")
            alice.type("digits 42#")
            assert [(await bob.event("digit"))["digit"] for _ in range(3)] == ["4", "2", "#"]
            alice.type("hold")
            await bob.event("held")
            alice.type("resume")
            await bob.event("resumed")
            await asyncio.sleep(1.0)  # of speech
            alice.process.send_signal(signal.SIGINT)
            assert (await bob.event("ended"))["cause"] == "remote_bye"
            await alice.event("stopped")
            assert await alice.process.wait() == 0
        bob.type("quit")
        await bob.event("stopped")
        assert await bob.process.wait() == 0
    assert abs(pitch(heard) - 600) < 10


async def test_it_listens_on_every_transport_and_both_families() -> None:
    wanted = [f"udp:{HOST}:0", "udp:[::1]:0", f"tcp:{HOST}:0", f"tls:{HOST}:0", f"ws:{HOST}:0", f"wss:{HOST}:0"]
    async with ua(*(word for text in wanted for word in ("--listen", text))) as phone:
        addresses = await phone.ready()
        assert [address.rpartition(":")[0] for address in addresses] == [text.rpartition(":")[0] for text in wanted]
        import ssl

        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # its certificate signs itself
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        async with telephone(
            f"udp:{HOST}:0", "udp:[::1]:0", transport=TransportSettings(tls_client=trusting)
        ) as asker:
            for address in addresses:
                kind, _, place = address.partition(":")
                scheme, kind = ("sips", "ws") if kind == "wss" else ("sip", kind)
                response = await asker.agent.request("OPTIONS", f"{scheme}:ua@{place};transport={kind}")
                assert response.status == 200 and "INVITE" in response.headers.allow
                accepted = {media.full for media in response.headers.accept or ()}
                assert {"application/sdp", "text/plain"} <= accepted  # RFC 3428 7


@pytest.mark.parametrize(("option", "status"), [(["--reject", "603"], 603), (["--ring"], None)])
async def test_it_refuses_or_rings_as_it_was_told(option: list[str], status: int | None) -> None:
    async with ua("--listen", f"udp:{HOST}:0", *option) as phone:
        (address,) = await phone.ready()
        async with telephone() as caller:
            if status is not None:
                await caller.place(f"sip:x@{HOST}:{port_of(address)}")
                assert [failed["status"] for failed in caller.told("call-failed")] == [status]
                return
            call = await caller.agent.dial(f"sip:x@{HOST}:{port_of(address)}")
            await asyncio.wait_for(call.ringing.wait(), 5.0)
            phone.type("answer")
            await asyncio.wait_for(call.answered(), 5.0)
            await call.hang_up()


async def test_a_code_that_is_none_of_a_refusal_is_an_error_and_answers_nothing() -> None:
    async with ua("--listen", f"udp:{HOST}:0", "--ring") as phone:
        (address,) = await phone.ready()
        async with telephone() as caller:
            call = await caller.agent.dial(f"sip:x@{HOST}:{port_of(address)}")
            await asyncio.wait_for(call.ringing.wait(), 5.0)
            phone.type("reject 200")
            assert "300" in (await phone.event("error"))["reason"]
            phone.type("reject 603")
            with pytest.raises(CallFailed, match="603"):
                await asyncio.wait_for(call.answered(), 5.0)


async def test_a_message_is_printed_and_one_is_sent(tmp_path: Path) -> None:
    async with ua("--listen", f"udp:{HOST}:0") as phone, telephone() as friend:
        (address,) = await phone.ready()
        response = await friend.agent.message(f"sip:x@{HOST}:{port_of(address)}", "Grüß dich")
        assert response.status == 200
        assert (await phone.event("message"))["text"] == "Grüß dich"
        phone.type(f"message {friend.uri} hello there")
        assert (await phone.event("message-answered"))["status"] == 200
        (told,) = await friend.until("message")
        assert told["text"] == "hello there"


async def test_a_capture_holds_the_messages_in_clear(tmp_path: Path) -> None:
    file = tmp_path / "call.pcapng"
    async with ua("--listen", f"ws:{HOST}:0", "--pcap", str(file)) as phone, telephone() as caller:
        (address,) = await phone.ready()
        await caller.agent.request("OPTIONS", f"sip:x@{HOST}:{port_of(address)};transport=ws")
        phone.type("quit")
        assert await phone.process.wait() == 0
    octets = file.read_bytes()
    assert octets.count(b"OPTIONS sip:x@") == 1 and octets.count(b"SIP/2.0 200 OK") == 1


async def test_once_ends_with_the_first_call_and_a_failure_is_told() -> None:
    async with telephone(reject=486) as busy, ua("--listen", f"udp:{HOST}:0", "--once", "--call", busy.uri) as phone:
        failed = await phone.event("call-failed")
        assert failed["status"] == 486 and await phone.process.wait() == 1


@pytest.mark.parametrize("how", ["refused", "cancelled"])
async def test_once_ends_also_with_a_call_that_was_not_answered(how: str) -> None:
    option = ["--reject", "486"] if how == "refused" else ["--ring"]
    async with ua("--listen", f"udp:{HOST}:0", "--once", *option) as phone, telephone() as caller:
        (address,) = await phone.ready()
        call = await caller.agent.dial(f"sip:x@{HOST}:{port_of(address)}")
        if how == "cancelled":
            await asyncio.wait_for(call.ringing.wait(), 5.0)
            await call.hang_up()
        ended = await phone.event("ended")
        assert ended["cause"] == ("response" if how == "refused" else "cancelled")
        assert await asyncio.wait_for(phone.process.wait(), 10.0) == 0


@pytest.mark.parametrize("answered", [True, False])
async def test_every_call_has_a_last_event_also_when_the_telephone_is_switched_off(answered: bool) -> None:
    async with (
        telephone(ring=not answered) as callee, ua("--listen", f"udp:{HOST}:0", "--call", callee.uri) as phone
    ):  # fmt: skip
        await phone.event("answered" if answered else "progress")
        phone.process.send_signal(signal.SIGINT)
        last = await phone.event("ended" if answered else "call-failed")
        assert last["cause" if answered else "reason"] == ("local_bye" if answered else "cancelled")
        assert await phone.process.wait() == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--session-expires", "20"], 2, "90"),
        (["--listen", "carrier-pigeon:127.0.0.1:1"], 2, "udp, tcp, tls, ws, wss"),
        (["--listen", "udp:127.0.0.1"], 2, "TRANSPORT:HOST:PORT"),
        (["--call", "bob"], 2, "not a URI"),
        (["--proxy", "tel:+4930"], 2, "not a SIP URI"),
        (["--listen", f"udp:{HOST}:0", "--auth-user", "alice"], 2, "MCPTT_PASSWORD"),
        (["--listen", f"udp:{HOST}:0", "--password-file", "/nowhere"], 3, "/nowhere"),
        (["--reject", "200"], 2, "reject"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: list[str], code: int, said: str) -> None:
    done = subprocess.run([MCPTT, "ua", *options], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


async def test_a_number_is_called_at_the_proxy() -> None:
    async with telephone() as gateway:
        gateway.agent.on_call(lambda call: call.reject(404))
        options = ["--listen", f"udp:{HOST}:0", "--proxy", gateway.uri, "--call", "tel:+4930123456", "--once"]
        async with ua(*options) as phone:
            assert (await phone.event("call-failed"))["status"] == 404
            assert await phone.process.wait() == 1


@needed("sipp", "sip-tester")
async def test_a_registration_that_failed_at_first_is_tried_when_the_registrar_says(tmp_path: Path) -> None:
    registrar = scenario(
        recv("REGISTER"), response(503, "Busy", more="Retry-After: 0"),
        recv("REGISTER", has("Expires", "3600")), response(200, "OK", more="Expires: 3600"),
        recv("REGISTER", has("Expires", "^ 0")), response(200, "OK"), FOUND,
    )  # fmt: skip
    async with sipp(tmp_path, registrar) as theirs:
        async with ua("--listen", f"udp:{HOST}:0", "--register", theirs.uri) as phone:
            assert (await phone.event("registration-failed"))["status"] == 503
            assert (await phone.event("registered"))["expires"] == 3600
            phone.type("quit")
            await phone.event("stopped")
        await theirs.succeeded()


def test_the_time_to_the_next_attempt_grows_but_not_for_ever() -> None:
    asked = RegistrationFailed("503", Response(503, headers=[("Retry-After", "7 (soon)")]))
    assert retry_delay(asked, 5) == 7.0
    silence = RequestTimeout("REGISTER")
    assert [retry_delay(silence, n) for n in (1, 2, 3, 10_000)] == [30.0, 60.0, 120.0, 1800.0]


async def test_a_port_that_is_taken_is_one_sentence() -> None:
    async with telephone() as first:
        taken = f"udp:{HOST}:{first.port}"
        done = await asyncio.to_thread(
            subprocess.run, [MCPTT, "ua", "--listen", taken], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 3 and "Traceback" not in done.stderr and "in use" in done.stderr


def test_the_help_names_every_option_that_scripts_rely_on() -> None:
    done = subprocess.run([MCPTT, "ua", "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "200"})
    for option in ("--listen", "--answer-after", "--ring", "--reject", "--register", "--call", "--hangup-after",
                   "--100rel", "--session-expires", "--auth-user", "--password-file", "--echo", "--sdes",
                   "--json"):  # fmt: skip
        assert option in done.stdout


