# SPDX-License-Identifier: Apache-2.0
"""``mcptt ua``: an ordinary SIP telephone that scripts can drive. Commands are lines on standard input, events are
lines (JSON ones with ``--json``) on standard output."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.call import Call
from mcptt_sip.callmedia import CallMediaSettings
from mcptt_sip.errors import CallFailed, RegistrationFailed, SipError
from mcptt_sip.grammar import format_host
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.message import Response
from mcptt_sip.ops.capture import Capture
from mcptt_sip.ops.programs import FAILED, PASSED, StopSignals, calm_collector, emit
from mcptt_sip.ops.tracing import CaptureTap
from mcptt_sip.registration import Registration
from mcptt_sip.tls import ServerTls, TlsIdentity, client_context
from mcptt_sip.transport import TransportSettings
from mcptt_sip.uri import SipUri
from mcptt_sip.useragent import TELEPHONE, UserAgent, parse_listener
from media.errors import MediaError
from mikey.tls import development_certificate

__all__ = ["TelephoneOptions", "run_telephone"]

#: media types of MESSAGE that are shown; of the others the sender is told these (RFC 3428 7)
SHOWN = ("text/plain", "message/cpim")
HELP = """call URI | answer | reject [CODE] | hangup | hold | resume | digits 0-9*#A-D | play FILE | record FILE |
transfer URI | message URI TEXT | calls | help | quit"""


@dataclass(frozen=True, slots=True)
class TelephoneOptions:
    """The command line of ``mcptt ua``; times in seconds."""

    listen: tuple[str, ...]
    identity: str | None = None
    register: str | None = None
    register_expires: int = 3600
    proxy: str | None = None
    call: str | None = None
    answer_after: float = 0.0
    ring: bool = False
    reject: int | None = None
    hangup_after: float | None = None
    reliable: bool = False
    session_expires: int = 1800
    auth_user: str | None = None
    password: str | None = None
    echo: bool = False
    play: Path | None = None
    record: Path | None = None
    sdes: bool = False
    late_offer: bool = False
    as_json: bool = False
    once: bool = False
    user_agent: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_authorities: Path | None = None
    pcap: Path | None = None


class Telephone:
    """One telephone with its events and commands."""

    def __init__(self, options: TelephoneOptions, agent: UserAgent) -> None:
        self._options = options
        self.agent = agent
        self.registration: Registration | None = None
        #: whether a call that was asked for has failed
        self.failed = False
        self.over = asyncio.Event()
        self._decisions: dict[Call, asyncio.Future[int]] = {}
        agent.on_call(self._called)
        agent.on_transfer(self._transferred)
        agent.on_message(self._message)

    def tell(self, event: str, **details: Any) -> None:
        """One event."""
        if self._options.as_json:
            emit(event, **details)
        else:
            shown = "  ".join(f"{name}={value}" for name, value in details.items() if value is not None)
            print(f"{time.strftime('%H:%M:%S')}  {event:20} {shown}", flush=True)  # noqa: T201

    # --- calls

    async def _called(self, call: Call) -> None:
        headers = call.request.headers
        self.tell("incoming", call=call.id, **{"from": str(headers.from_.uri)}, to=str(call.request.uri))
        self._follow(call)
        try:
            taken = await self._taken(call)
        except CallFailed:  # the caller was quicker
            taken = False
        if taken:
            await self._talk(call)
        else:
            self._tell_ended(call)

    async def _taken(self, call: Call) -> bool:
        """Whether a call that came in was answered."""
        options = self._options
        if options.reject is not None:
            await call.reject(options.reject)
            return False
        await call.ring(reliable=True if options.reliable and call.request.headers.understands("100rel") else None)
        self.tell("ringing", call=call.id)
        decision = self._decisions[call] = asyncio.get_running_loop().create_future()
        try:
            code = await self._decided(call, decision)
        finally:
            del self._decisions[call]
        if code is None or call.session.ended:
            return False
        if code >= 300:
            await call.reject(code)
            return False
        await call.answer()
        return True

    async def _decided(self, call: Call, decision: asyncio.Future[int]) -> int | None:
        """200 when it is time to answer, another code to refuse, ``None`` when the caller has gone."""
        timeout = None if self._options.ring else self._options.answer_after
        ended = asyncio.ensure_future(call.ended.wait())
        try:
            await asyncio.wait((decision, ended), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if decision.done():
            return decision.result()
        return None if call.ended.is_set() else 200

    async def place(self, uri: str) -> None:
        """Makes a call and stays with it."""
        options = self._options
        headers: list[tuple[str, object]] = [("Require", "100rel")] if options.reliable else []
        try:
            call = await self.agent.dial(uri, headers=headers, late_offer=options.late_offer)
        except (SipError, OSError) as error:
            self._tell_failed(uri=uri, reason=str(error))
            return
        self.tell("calling", call=call.id, uri=uri)
        self._follow(call)
        call.on_progress = lambda response: self.tell("progress", call=call.id, status=response.status)
        try:
            await call.answered()
        except CallFailed as error:
            self._tell_failed(call=call.id, status=error.status, reason=str(error))
            return
        except asyncio.CancelledError:  # the telephone is switched off
            await call.hang_up()
            self._tell_failed(call=call.id, reason="cancelled")
            raise
        await self._talk(call)

    def _tell_failed(self, **details: Any) -> None:
        self.failed = True
        self.tell("call-failed", **details)
        self._maybe_over()

    async def _transferred(self, call: Call) -> None:
        self._follow(call)
        await self._talk(call)

    def _follow(self, call: Call) -> None:
        call.on_digit = lambda digit: self.tell("digit", call=call.id, digit=digit)
        call.on_hold = lambda held: self.tell("held" if held else "resumed", call=call.id)

    async def _talk(self, call: Call) -> None:
        """What is done in an answered call, until it is over."""
        options, media = self._options, call.media
        agreed = None if media is None else media.negotiation.agreed
        self.tell(
            "answered", call=call.id, codec=None if agreed is None else agreed.codec.name,
            srtp=None if agreed is None or agreed.local_key is None else agreed.local_key.suite,
        )  # fmt: skip
        works: list[asyncio.Task[Any]] = []
        if media is not None:
            if options.record is not None:
                media.record(options.record)
            if options.echo:
                works.append(asyncio.ensure_future(media.loop_back(until=call.ended)))
            elif options.play is not None:
                works.append(asyncio.ensure_future(self._play(call, options.play)))
        try:
            async with asyncio.timeout(options.hangup_after):
                await call.ended.wait()
        except TimeoutError:
            await call.hang_up()
            await call.ended.wait()
        except asyncio.CancelledError:  # the telephone is switched off
            await call.hang_up()
            raise
        finally:
            for work in works:
                work.cancel()
            self._tell_ended(call)

    def _tell_ended(self, call: Call) -> None:
        """The last event of a call that was told of: answered, refused, or given up by its caller."""
        media = call.media
        figures: dict[str, Any] = {}
        if media is not None:
            figures = {name: media.counters[name] for name in ("sent", "received")}
            if (report := media.peer_report) is not None:  # what the peer's RTCP says of our audio
                figures |= {"lost": report.lost_in_all, "jitter": round(report.jitter, 4)}
                figures["round_trip"] = None if report.round_trip is None else round(report.round_trip, 4)
        self.tell("ended", call=call.id, cause=None if call.cause is None else call.cause.name.lower(), **figures)
        self._maybe_over()

    async def _play(self, call: Call, path: Path) -> None:
        assert call.media is not None
        try:
            await call.media.play(path)
            self.tell("played", call=call.id, file=str(path))
        except MediaError as error:
            self.tell("error", call=call.id, reason=str(error))

    def _maybe_over(self) -> None:
        if self._options.once:
            self.over.set()

    async def _message(self, incoming: ServerRequest) -> None:
        """MESSAGE: text is taken, anything else is not (RFC 3428 7)."""
        request = incoming.request
        media = request.headers.content_type
        if request.body and (media is None or media.full.partition("/")[0] not in ("text", "message")):
            incoming.respond(415, headers=[("Accept", ", ".join(SHOWN))], now=self.agent.now())
            return
        incoming.respond(200, now=self.agent.now())
        self.tell("message", **{"from": str(request.headers.from_.uri)}, text=request.body.decode(errors="replace"))

    # --- registration

    async def register(self) -> None:
        """Registers at the URI of the options, and stays so; what fails is tried again."""
        options = self._options
        assert options.register is not None
        uri = SipUri.parse(options.register)
        registrar = uri.replace(user=None, password=None, headers=())
        registration = await self.agent.register(
            str(registrar), aor=_aor(options), expires=options.register_expires, keep_trying=True
        )
        self.registration = registration
        was = False

        def changed(registered: bool, response: Response | None) -> None:
            nonlocal was
            if registered:
                details = {"contact": registration.contact, "expires": registration.expires}
                self.tell("registered", aor=registration.aor, **details)
            else:
                failure = registration.failure
                status = None if response is None or failure is None else response.status
                event = "unregistered" if was else "registration-failed"
                self.tell(event, aor=registration.aor, status=status, reason=failure and str(failure))
            was = registered

        registration.on_change = changed
        first = registration.failure
        changed(registration.registered, first.response if isinstance(first, RegistrationFailed) else None)

    # --- commands

    async def run_line(self, line: str) -> None:
        """One command."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        calls = [call for call in self.agent.calls if not call.session.ended]
        try:
            match word:
                case "":
                    pass
                case "call":
                    await self.place(rest)
                case "answer" | "reject":
                    code = 200 if word == "answer" else int(rest or "486")
                    if word == "reject" and not 300 <= code <= 699:
                        raise ValueError(f"{code} rejects nothing: 300 to 699")
                    for decision in self._decisions.values():
                        if not decision.done():
                            decision.set_result(code)
                case "hangup":
                    for call in calls:
                        await call.hang_up()
                case "hold" | "resume" | "digits" | "play" | "record" | "transfer":
                    for call in calls:
                        if call.established:
                            await self._in_call(call, word, rest)
                case "message":
                    target, _, text = rest.partition(" ")
                    response = await self.agent.message(target, text)
                    self.tell("message-answered", to=target, status=response.status)
                case "calls":
                    for call in calls:
                        self.tell("call", call=call.id, state=call.session.state.name.lower())
                case "quit":
                    self.over.set()
                case _:
                    self.tell("help", commands=HELP)
        except (SipError, MediaError, OSError, ValueError) as error:
            self.tell("error", command=word, reason=str(error))

    async def _in_call(self, call: Call, word: str, rest: str) -> None:
        match word:
            case "hold":
                await call.hold()
            case "resume":
                await call.resume()
            case "digits":
                await call.send_digits(rest)
            case "play" if call.media is not None:
                await call.media.play(rest)
            case "record" if call.media is not None:
                call.media.record(rest)
            case "transfer":
                status = await call.transfer(rest)
                self.tell("transferred", call=call.id, status=status)
                if status == 200:
                    await call.hang_up()
                return
        self.tell("done", call=call.id, command=word)


async def run_telephone(options: TelephoneOptions) -> int:
    """Runs until a signal, ``quit``, or with ``once`` the end of the first call: the exit code says then whether a call
    of ours was answered."""
    stop = StopSignals().install()
    calm_collector()
    capture = None if options.pcap is None else Capture(options.pcap)
    tap = CaptureTap(capture)
    with tempfile.TemporaryDirectory(prefix="mcptt-ua-") as folder:
        transport, fingerprint = _transport_settings(options, Path(folder))
    agent = UserAgent(
        options.identity or _aor(options) or _default_identity(options),
        listen=options.listen,
        credentials=_credentials(options),
        proxy=options.proxy,
        media=CallMediaSettings(sdes=options.sdes),
        follow_refers="all",
        settings=replace(
            TELEPHONE, session_expires=options.session_expires, user_agent=options.user_agent or "mcptt ua",
            accept_elsewhere=SHOWN,
        ),
        transport=transport,
        trace=tap.sip,
    )
    telephone = Telephone(options, agent)
    try:
        async with agent:
            addresses = [f"{kind}:{format_host(host)}:{port}" for kind, host, port in agent.addresses]
            telephone.tell("ready", addresses=addresses, certificate=fingerprint)
            await _until_over(telephone, options, stop)
    finally:
        tap.close()
    telephone.tell("stopped")
    return FAILED if options.once and telephone.failed else PASSED


async def _until_over(telephone: Telephone, options: TelephoneOptions, stop: StopSignals) -> None:
    running: set[asyncio.Task[Any]] = set()

    def spawn(work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        running.add(task)
        task.add_done_callback(running.discard)
        return task

    async def begin() -> None:
        if options.register is not None:
            await telephone.register()
        if options.call is not None:
            await telephone.place(options.call)

    reader, close = await _standard_input()

    async def read() -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than a reader holds; what is left of it is read as another one
                telephone.tell("error", reason="a line of more than 64 KiB")
                continue
            if not line:
                return
            spawn(telephone.run_line(line.decode("utf-8", "replace")))

    try:
        spawn(begin())
        spawn(read())
        ends = [spawn(stop.asked.wait()), spawn(telephone.over.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in list(running):
            task.cancel()
        close()


async def _standard_input() -> tuple[asyncio.StreamReader, Callable[[], None]]:
    """Lines of standard input; those of a file at once, none where there is nobody (/dev/null)."""
    reader = asyncio.StreamReader()
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or sys.stdin.isatty():
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        return reader, transport.close
    if stat.S_ISREG(mode):
        reader.feed_data(sys.stdin.buffer.read())
    reader.feed_eof()
    return reader, lambda: None


def _aor(options: TelephoneOptions) -> str | None:
    """The address-of-record of ``--register``, with the user of ``--auth-user`` where it names none."""
    if options.register is None:
        return None
    uri = SipUri.parse(options.register)
    if uri.user is None:
        uri = uri.replace(user=options.auth_user or "ua")
    return str(uri.aor)


def _default_identity(options: TelephoneOptions) -> str:
    host = options.listen[0].partition(":")[2].rpartition(":")[0] if options.listen else "127.0.0.1"
    return f"sip:{options.auth_user or 'ua'}@{host}"


def _credentials(options: TelephoneOptions) -> DigestCredentials | None:
    if options.password is None:
        return None
    aor = SipUri.parse(options.identity or _aor(options) or "sip:ua@localhost")
    return DigestCredentials(options.auth_user or aor.user or "ua", options.password)


def _transport_settings(options: TelephoneOptions, folder: Path) -> tuple[TransportSettings, str | None]:
    """TLS as the options say; a listener without a certificate gets one that signs itself and lasts for this run."""
    client = client_context(options.tls_authorities) if options.tls_authorities is not None else None
    if not any(text.startswith(("tls:", "wss:")) for text in options.listen):
        return TransportSettings(tls_client=client), None
    fingerprint = None
    if options.tls_certificate is not None:
        identity = TlsIdentity(options.tls_certificate, options.tls_key or options.tls_certificate)
    else:
        hosts = dict.fromkeys(parse_listener(text)[1] for text in options.listen)
        identity = TlsIdentity(folder / "ua.crt", folder / "ua.key")
        development_certificate(folder / "ua.crt", folder / "ua.key", names=("localhost", *hosts), now=time.time())
        certificate = ssl.PEM_cert_to_DER_cert((folder / "ua.crt").read_text())
        fingerprint = hashlib.sha256(certificate).hexdigest()
    return TransportSettings(tls_server=ServerTls([identity]).context, tls_client=client), fingerprint
