# SPDX-License-Identifier: Apache-2.0
"""SIPp beside a user agent of ours on loopback: scenarios as lists of steps, one process for each test."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.endpoint import SipEndpoint
from mcptt_sip.session import InviteSession
from mcptt_sip.stack import SipStack, StackSettings
from tests.sip.joined import tokens

HOST = "127.0.0.1"
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\n"


def needed(program: str, package: str) -> pytest.MarkDecorator:
    """Skips where a foreign program is missing."""
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is missing: apt-get install {package}"
    )


def free_port() -> int:
    """A port that neither UDP nor TCP uses now."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind((HOST, 0))
            port: int = udp.getsockname()[1]
            try:
                tcp.bind((HOST, port))
            except OSError:
                continue
            return port


class Agent:
    """A user agent under test: `on` handles its events, `seen` keeps them, `until` waits for one."""

    def __init__(self, transport: str, settings: StackSettings) -> None:
        self.transport = transport
        self.seen: list[Any] = []
        self.on: Callable[[Any, float], None] = lambda event, now: None
        self.stack = SipStack(settings, token=tokens(free_port()))
        self.agent = SipEndpoint(self.stack, on_event=self._event)
        self.port = 0
        self._changed = asyncio.Event()

    def _event(self, event: object, now: float) -> None:
        self.seen.append(event)
        self.on(event, now)
        self._changed.set()

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    def call(self, theirs: Sipp, credentials: DigestCredentials | None = None) -> InviteSession:
        """Calls SIPp."""
        session = self.stack.invite(
            f"{theirs.uri};transport={self.transport}", from_=f"<sip:ua@{HOST}>", now=time.time(),
            body=SDP.encode(), content_type="application/sdp", credentials=credentials,
        )  # fmt: skip
        self.agent.transmit()
        return session

    async def until(self, kind: type, count: int = 1, *, seconds: float = 20.0) -> list[Any]:
        """The events of a kind once there are so many."""
        async with asyncio.timeout(seconds):
            while len(self.told(kind)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.told(kind)


@asynccontextmanager
async def agent(transport: str = "udp", **settings: Any) -> AsyncIterator[Agent]:
    """A listening user agent."""
    made = Agent(transport, StackSettings(user="ua", **settings))
    made.port = (await made.agent.listen(transport, HOST, 0))[1]
    try:
        yield made
    finally:
        await made.agent.close()


class Sipp:
    """One SIPp process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, folder: Path) -> None:
        self._process = process
        self.port = port
        self._folder = folder

    @property
    def uri(self) -> str:
        return f"sip:service@{HOST}:{self.port}"

    async def succeeded(self, seconds: float = 30.0) -> None:
        """Waits for its end; fails with its errors unless every call went as its scenario says."""
        async with asyncio.timeout(seconds):
            code = await self._process.wait()
        errors = self._folder / "errors"
        said = errors.read_text(errors="replace")[:4000] if errors.exists() else ""
        assert code == 0, f"SIPp ended with {code}\n{said}"

    async def bound(self) -> None:
        """Waits until its port is open, as the kernel's table tells."""
        wanted = f":{self.port:04X} "
        async with asyncio.timeout(10.0):
            while not any(wanted in Path(f"/proc/net/{table}").read_text() for table in ("udp", "tcp")):
                assert self._process.returncode is None, "SIPp ended before it listened"
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def sipp(
    folder: Path, scenario: str, *arguments: str, to: int | None = None, transport: str = "udp", calls: int = 1
) -> AsyncIterator[Sipp]:
    """SIPp with a scenario of its own (XML) or a built-in one (``uac``, ``uas``); `to` makes it the caller."""
    port = free_port()
    if scenario.startswith("<"):
        (folder / "scenario.xml").write_text(scenario)
        chosen = ["-sf", str(folder / "scenario.xml")]
    else:
        chosen = ["-sn", scenario]
    line = [
        *chosen, "-i", HOST, "-p", str(port), "-m", str(calls), "-t", "t1" if transport == "tcp" else "u1",
        "-nostdin", "-skip_rlimit", "-trace_err", "-error_file", str(folder / "errors"), "-timeout", "25",
        "-timeout_error", *arguments, *([f"{HOST}:{to}"] if to is not None else []),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        "sipp", *line, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    running = Sipp(process, port, folder)
    try:
        if to is None:
            await running.bound()
        yield running
    finally:
        await running.end()


# --- steps of a scenario


def scenario(*steps: str) -> str:
    """The XML of a scenario."""
    return '<?xml version="1.0" encoding="ISO-8859-1" ?>\n<scenario name="s">\n' + "\n".join(steps) + "\n</scenario>\n"


def send(text: str, body: str = "", **attributes: object) -> str:
    """Send a message: its lines without Content-Length."""
    length = "Content-Length: [len]" if body else "Content-Length: 0"
    message = "\n".join(line.strip() for line in text.strip().splitlines()) + f"\n{length}\n\n{body}"
    message = message.replace("\r\n", "\n")
    shown = "".join(f" {name}={quoteattr(str(value))}" for name, value in attributes.items())
    return f"<send{shown}><![CDATA[\n{message}\n]]></send>"


def request(
    method: str, number: int = 1, *, more: str = "", body: str = "", inside: bool = False, branch: str = "[branch]",
    **attributes: object,
) -> str:
    """A request of the caller; `inside` its dialog."""
    peer = "[peer_tag_param]" if inside else ""
    target = "[next_url]" if inside else "sip:[service]@[remote_ip]:[remote_port]"
    kind = "Content-Type: application/sdp\n" if body and "Content-Type" not in more else ""
    if method not in ("ACK", "CANCEL"):
        attributes.setdefault("retrans", 500)
    return send(
        f"""{method} {target} SIP/2.0
        Via: SIP/2.0/[transport] [local_ip]:[local_port];branch={branch}
        From: <sip:sipp@[local_ip]:[local_port]>;tag=sipp[call_number]
        To: <sip:[service]@[remote_ip]:[remote_port]>{peer}
        Call-ID: [call_id]
        CSeq: {number} {method}
        Contact: <sip:sipp@[local_ip]:[local_port];transport=[transport]>
        {"" if "Max-Forwards" in more else "Max-Forwards: 70"}
        {kind}{more}""".replace("\n        \n", "\n").rstrip(),
        body,
        **attributes,
    )


def response(
    status: int, reason: str, *, tag: str | None = "sipp[call_number]", more: str = "", body: str = "",
    kept: bool = False, **attributes: object,
) -> str:
    """A response of the callee to the last request, or to the one that `keep` kept; without `tag` inside a dialog."""
    names = ("Via", "From", "To", "Call-ID", "CSeq")
    echoed = [f"{name}:[${name.lower().replace('-', '')}]" if kept else f"[last_{name}:]" for name in names]
    if tag is not None:
        echoed[2] += f";tag={tag}"
    kind = ["Content-Type: application/sdp"] if body else []
    contact = "Contact: <sip:[local_ip]:[local_port];transport=[transport]>"
    lines = [f"SIP/2.0 {status} {reason}", *echoed, contact, *kind, *([more] if more else [])]
    return send("\n".join(lines), body, **attributes)


def keep() -> str:
    """Actions that keep what a later response to this request needs."""
    return "".join(
        f'<ereg regexp=".*" search_in="hdr" header="{name}:" assign_to="{name.lower().replace("-", "")}"/>'
        for name in ("Via", "From", "To", "Call-ID", "CSeq")
    )


def recv(what: int | str, action: str = "", **attributes: object) -> str:
    """Expect a status or a method; ``rrs`` takes its Contact and Record-Route for the requests that follow."""
    name = "response" if isinstance(what, int) else "request"
    shown = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f'<recv {name}="{what}"{shown}>{f"<action>{action}</action>" if action else ""}</recv>'


def has(header: str, pattern: str = ".") -> str:
    """An action: fail unless a header of the message matches."""
    return (
        f'<ereg regexp={quoteattr(pattern)} search_in="hdr" header={quoteattr(header + ":")} check_it="true" '
        'assign_to="found"/>'
    )


FOUND = '<Reference variables="found"/>'
KEPT = '<Reference variables="via,from,to,callid,cseq"/>'
