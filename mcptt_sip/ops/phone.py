# SPDX-License-Identifier: Apache-2.0
"""``mcptt phone``: a client driven by lines on standard input, telling what happens as JSON lines.

Every command runs beside the others and ends with one event, ``done`` or ``failed``, that repeats the line.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.mcptt.callerrors import AddFailed, ChangeRefused, NotRekeyed, RegroupFailed
from mcptt_sip.mcptt.client import ClientSettings, KeyObserver, McpttClient
from mcptt_sip.mcptt.clientrequests import CallOptions
from mcptt_sip.mcptt.directing import DirectedRegroup
from mcptt_sip.mcptt.distribution import DistributionSettings
from mcptt_sip.mcptt.initiated import InitiatedRegroup
from mcptt_sip.mcptt.invitation import Invitation
from mcptt_sip.mcptt.policy import Commencement, Urgency
from mcptt_sip.mcptt.privatecalling import PrivateInvitation
from mcptt_sip.mcptt.userkeys import KeySource, held_keys
from mcptt_sip.ops.capture import Capture
from mcptt_sip.ops.eavesdrop import KeyFile, Mirror, Tap
from mcptt_sip.ops.programs import PASSED, StopSignals, emit, host_and_port, listener
from mcptt_sip.ops.store import JournalFolder
from mcptt_sip.ops.tracing import CaptureTap
from mcptt_sip.tls import TlsIdentity, client_context
from mcptt_sip.transport import TransportSettings
from media.errors import MediaError
from mikey import Keyring, MikeyError, ReplayCache, TransportKey

log = logging.getLogger(__name__)

class CommandError(SipError):
    """The command makes no sense now, or is spelled wrongly."""


@dataclass(frozen=True, slots=True)
class PhoneSettings:
    """How the phone behaves. ``answer`` is ``auto``, ``asked`` (as the caller asks), ``manual`` (but a forced call is
    answered), ``decline`` or ``ring`` (never answers)."""

    answer: str = "auto"
    record: Path | None = None
    domain: str = ""


class Phone:
    """The commands of one phone. Each public method whose name begins with ``do_`` is a command."""

    def __init__(
        self,
        client: McpttClient,
        settings: PhoneSettings,
        *,
        tap: Tap | None = None,
        mirror: Mirror | None = None,
        journals: JournalFolder | None = None,
    ) -> None:
        self.client = client
        self.settings = settings
        self._tap = tap
        self._mirror = mirror
        self._journals = journals
        self.waiting: Invitation | None = None
        self.stopped = asyncio.Event()
        client.on_regroup(self._invited)
        client.on_private_call(self._called)

    # --- calls ----------------------------------------------------------------------------------------

    @property
    def call(self) -> Regroup:
        """The call that commands mean: the newest."""
        if not self.client.calls:
            raise CommandError("there is no call")
        return next(reversed(self.client.calls.values()))

    @property
    def directed(self) -> DirectedRegroup:
        call = self.call
        if not isinstance(call, DirectedRegroup):
            raise CommandError("only the initiator, or a deputy who has taken over, can do that")
        return call

    @property
    def initiated(self) -> InitiatedRegroup:
        call = self.call
        if not isinstance(call, InitiatedRegroup):
            raise CommandError("only the initiator can do that")
        return call

    def uri(self, user: str) -> str:
        return user if ":" in user else f"sip:{user}@{self.settings.domain}"

    async def _invited(self, invitation: Invitation) -> None:
        match self.settings.answer:
            case "auto":
                await self._accept(invitation)
            case "decline":
                invitation.decline()
            case "asked" if invitation.commencement is not Commencement.MANUAL:
                await self._accept(invitation)
            case "manual" if invitation.commencement is Commencement.FORCED:
                await self._accept(invitation)
            case _:
                invitation.ring()
                self.waiting = invitation
                emit("ringing", group=invitation.group, user=invitation.initiator)

    async def _called(self, invitation: PrivateInvitation) -> None:
        """A private call: answered, or declined by a phone that does not answer by itself."""
        if self.settings.answer in ("auto", "asked"):
            self._instrument(await invitation.accept())
        else:
            invitation.decline()

    async def _accept(self, invitation: Invitation) -> None:
        call = await invitation.accept()
        self._instrument(call)

    def _instrument(self, call: Regroup) -> None:
        call.media.tap = self._mirror
        if self.settings.record is not None:
            call.media.record(self.settings.record)

    async def do_call(self, *users: str) -> dict[str, Any]:
        """call USER [USER ...]: a temporary group call with these users; the first is invited, the others added"""
        return await self._call(users, CallOptions())

    async def do_private(self, user: str) -> None:
        """private USER: a call with this user alone, under a key that only the two hold"""
        self._instrument(await self.client.private_call(self.uri(user)))

    async def do_emergency(self, *users: str) -> dict[str, Any]:
        """emergency USER [USER ...]: the same as an emergency call, which goes before others"""
        return await self._call(users, CallOptions(urgency=Urgency.EMERGENCY))

    async def do_peril(self, *users: str) -> dict[str, Any]:
        """peril USER [USER ...]: the same as an imminent peril call"""
        return await self._call(users, CallOptions(urgency=Urgency.IMMINENT_PERIL))

    async def do_declare(self, urgency: str) -> None:
        """declare emergency|imminent-peril|normal: what the running call is from now on, where this user may say so"""
        await self.call.declare(Urgency(urgency))

    async def do_unread(self, *users: str) -> dict[str, Any]:
        """unread USER [USER ...]: the same, with the floor arbitrated here: the server reads no floor message"""
        return await self._call(users, CallOptions(floor="members"))

    async def do_ring(self, *users: str) -> dict[str, Any]:
        """ring USER [USER ...]: the same, and asks that the called users answer by hand"""
        return await self._call(users, CallOptions(commencement=Commencement.MANUAL))

    async def do_force(self, *users: str) -> dict[str, Any]:
        """force USER [USER ...]: the same, and forces the called phones to answer (needs the right)"""
        return await self._call(users, CallOptions(commencement=Commencement.FORCED))

    async def _call(self, users: Sequence[str], options: CallOptions) -> dict[str, Any]:
        if not users:
            raise CommandError("call whom?")
        call = await self.client.prepare_regroup(options)
        self._instrument(call)
        await self.client.establish(call, self.uri(users[0]))
        for user in users[1:]:
            await call.add(self.uri(user))
        return {"group": call.group, "members": sorted(call.members)}

    async def do_accept(self) -> None:
        """accept: answer the call that rings"""
        if self.waiting is None:
            raise CommandError("nothing rings")
        invitation, self.waiting = self.waiting, None
        await self._accept(invitation)

    async def do_decline(self) -> None:
        """decline: refuse the call that rings"""
        if self.waiting is None:
            raise CommandError("nothing rings")
        invitation, self.waiting = self.waiting, None
        invitation.decline()

    async def do_add(self, *users: str) -> None:
        """add USER [USER ...]: add users to the running call (done when each is keyed)"""
        call = self.directed
        results = await asyncio.gather(*(call.add(self.uri(u)) for u in users), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def do_remove(self, user: str) -> None:
        """remove USER: take a user out and give those who stay a new key (done when it is in force)"""
        await self.directed.remove(self.uri(user))

    async def do_rekey(self) -> None:
        """rekey: a new key for everyone (done when it is in force)"""
        await self.directed.rekey()

    async def do_revoke(self) -> None:
        """revoke: withdraw the key; nobody sends or plays under it any more"""
        await self.directed.revoke()

    async def do_takeover(self, *users: str) -> dict[str, Any]:
        """takeover [USER ...]: a deputy goes on for the lost initiator, with a new key for the members (and USERs)"""
        call = await self.call.take_over([self.uri(user) for user in users])
        return {"keyed": sorted(call.distribution.keyed())}

    async def do_join(self, group: str) -> None:
        """join GROUP: ask to be let in again into a call that this user was in; the invitation follows"""
        await self.client.ask_to_join(group)

    async def do_resume(self) -> dict[str, Any]:
        """resume: go on with the calls that this phone initiated before it was restarted (needs --store)"""
        if self._journals is None:
            raise CommandError("this phone has no --store")
        groups = []
        for record in self._journals.unfinished():
            try:
                self._instrument(await self.client.come_back(record))
            except RegroupFailed:
                self._journals(record.group).close()
                raise
            groups.append(record.group)
        return {"groups": groups}

    async def do_members(self) -> dict[str, Any]:
        """members: who is in; keyed = proved to us, sealed = a key was made for him, listed = the server says"""
        call = self.call
        if isinstance(call, DirectedRegroup):
            key = call.distribution.current
            sealed = call.distribution.holders(key) if key is not None else frozenset()
            return {
                "initiator": call.initiator,
                "keyed": sorted(call.distribution.keyed()),
                "sealed": sorted(sealed & call.distribution.named),
                "removed_holders": sorted(sealed - call.distribution.named),
            }
        listed: dict[str, Any] = {"initiator": call.initiator, "listed": sorted(await self.client.roster(call))}
        if call.member_list is not None:
            listed["sealed"] = sorted(call.member_list.users)
        return listed

    async def do_hangup(self) -> None:
        """hangup: leave the call; the others stay"""
        await self.call.leave()

    async def do_release(self) -> None:
        """release: end the call for everyone (initiator)"""
        await self.initiated.release()

    # --- talking --------------------------------------------------------------------------------------

    async def do_say(self, path: str, priority: str = "0") -> dict[str, Any]:
        """say FILE [PRIORITY]: ask for the floor, talk the audio file, release the floor"""
        if not Path(path).is_file():
            raise CommandError(f"no file {path}")
        call = self.call
        async with call.floor(int(priority)):
            burst = await call.say(path)
        return burst

    async def do_ptt(self, state: str = "on", priority: str = "0") -> None:
        """ptt [on|off] [PRIORITY]: press or release push-to-talk; while on, the microphone (or silence) is sent"""
        if state == "on":
            await self.call.media.request_floor(int(priority))
            self.call.media.start_microphone()
        elif state == "off":
            await self.call.media.stop_microphone()
            await self.call.media.release_floor()
        else:
            raise CommandError("ptt on, or ptt off")

    async def do_flush(self) -> None:
        """flush: bring the recording of --record up to date on disk"""
        for call in self.client.calls.values():
            call.media.flush_recording()

    async def do_stats(self) -> dict[str, Any]:
        """stats: counters of this call's media"""
        return {"media": self.call.media.statistics()}

    async def do_taps(self) -> dict[str, Any]:
        """taps: what came to the tap of --tap, and how much of it any key ever held could authenticate"""
        if self._tap is None:
            raise CommandError("this phone has no --tap")
        return self._tap.result()

    async def do_quit(self) -> None:
        """quit: end all calls, unregister, end"""
        self.stopped.set()

    async def do_help(self) -> dict[str, Any]:
        """help: this list"""
        return {"commands": [inspect.getdoc(method) for _, method in sorted(self._commands().items())]}

    # --- lines ----------------------------------------------------------------------------------------

    def _commands(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        names = [name for name in dir(type(self)) if name.startswith("do_")]
        return {name.removeprefix("do_"): getattr(self, name) for name in names}

    async def run_line(self, line: str) -> None:
        """Carries out one line; its outcome is an event, whatever happens."""
        try:
            words = shlex.split(line)
            if not words:
                return
            command = self._commands().get(words[0])
            if command is None:
                raise CommandError(f"unknown command {words[0]!r}; try help")
            try:
                inspect.signature(command).bind(*words[1:])
            except TypeError:
                raise CommandError(f"usage: {inspect.getdoc(command)}") from None
            details = await command(*words[1:])
        except (SipError, MikeyError, MediaError, ValueError, OSError) as error:
            emit("failed", command=line, **describe(error))
        except Exception as error:
            log.exception("command %s", line)
            emit("failed", command=line, **describe(error))
        else:
            emit("done", command=line, **(details or {}))


def describe(error: BaseException) -> dict[str, Any]:
    """An error as fields of an event."""
    fields: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, (AddFailed, ChangeRefused, RegroupFailed)):
        fields |= {"status": error.status, "warning": error.warning}
    if isinstance(error, NotRekeyed):
        fields["users"] = sorted(error.users)
    cause = getattr(error, "cause", None)
    if isinstance(cause, int):
        fields["cause"] = cause
    return fields


async def drive(phone: Phone, stop: StopSignals) -> None:
    """Reads lines until end of file, ``quit`` or a signal."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def read() -> None:
        while line := await reader.readline():
            task = asyncio.ensure_future(phone.run_line(line.decode("utf-8", "replace").strip()))
            running.add(task)
            task.add_done_callback(running.discard)

    tasks = [asyncio.ensure_future(work) for work in (read(), stop.asked.wait(), phone.stopped.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, *running):
        task.cancel()


@dataclass(frozen=True, slots=True)
class PhoneOptions:
    """The command line of the phone."""

    uri: str
    server: str
    proxy: str
    kms: str
    kms_token: str = field(repr=False)
    username: str
    password: str = field(repr=False)
    listen: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    answer: str = "auto"
    record: Path | None = None
    activation_delay: float = 2.0
    key_lifetime: float = 3600.0
    acknowledgement: str = "required"
    mirror: str | None = None
    tap: str | None = None
    pcap: Path | None = None
    pcap_secrets: Path | None = None
    kms_authority: Path | None = None
    tls_authority: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    store: Path | None = None
    key_file: Path | None = None
    deputies: tuple[str, ...] = ()
    callers: tuple[str, ...] = ()
    rekey_on_join: bool = False


#: the client that the program runs; a scenario may put a faulty one here
CLIENT_CLASS: type[McpttClient] = McpttClient


async def run_phone(options: PhoneOptions) -> int:
    """Registers, then carries out commands until the end of standard input, ``quit`` or a signal."""
    stop = StopSignals().install()
    source = KeySource(
        options.kms, options.kms_token, options.uri, options.kms_authority, options.store, options.key_file
    )
    async with held_keys(source) as keyring:
        return await _run_client(options, keyring, source.replay(time.time()), stop)


async def _run_client(options: PhoneOptions, keyring: Keyring, replay: ReplayCache, stop: StopSignals) -> int:
    capture = CaptureTap(Capture(options.pcap) if options.pcap is not None else None)
    observers: list[KeyObserver] = []
    tap = None
    if options.tap is not None:
        tap = await Tap.open(*host_and_port(options.tap))
        observers.append(tap.learn)
        emit("tap", address=f"{tap.address[0]}:{tap.address[1]}")
    if options.pcap_secrets is not None:
        observers.append(KeyFile(options.pcap_secrets).write)

    def learn(group: str, key: TransportKey) -> None:
        for observe in observers:
            observe(group, key)

    identity = None
    if options.tls_certificate is not None:
        identity = TlsIdentity(options.tls_certificate, options.tls_key or options.tls_certificate)
    tls = client_context(options.tls_authority, identity=identity)
    journals = JournalFolder(options.store / "groups") if options.store is not None else None
    settings = ClientSettings(
        server=options.server,
        proxy=proxy_uri(options.proxy),
        username=options.username,
        password=options.password,
        listen=tuple(listener(text) for text in options.listen) or (("udp", options.host, 0),),
        host=options.host,
        agent=TransportSettings(tls_client=tls),
        acknowledgement=options.acknowledgement,
        distribution=DistributionSettings(
            lifetime=options.key_lifetime, activation_delay=options.activation_delay,
            rekey_on_join=options.rekey_on_join,
        ),
        deputies=options.deputies,
        callers=options.callers or None,
    )
    client = CLIENT_CLASS(
        options.uri,
        settings,
        keyring=keyring,
        replay=replay,
        trace=capture.sip,
        media_trace=capture.media,
        on_event=lambda name, details: emit(name, **details),
        key_observer=learn,
        journal=journals,
    )
    mirror = Mirror(host_and_port(options.mirror)) if options.mirror is not None else None
    try:
        await client.start()
        phone = Phone(
            client, PhoneSettings(options.answer, options.record, client.domain), tap=tap, mirror=mirror,
            journals=journals,
        )
        await drive(phone, stop)
    finally:
        await client.aclose()
        if tap is not None:
            tap.close()
        if mirror is not None:
            mirror.close()
        capture.close()
    return PASSED


def proxy_uri(text: str) -> str:
    """``TRANSPORT:HOST:PORT`` as the URI that requests are sent to."""
    transport, host, port = listener(text)
    return f"sip:{f'[{host}]' if ':' in host else host}:{port};transport={transport}"
