# SPDX-License-Identifier: Apache-2.0
"""Scenarios: a KMS, a server and phones as separate processes, driven by an ordinary Python coroutine.

A scenario module has ``async def scenario(lab: Lab) -> None``; it fails by raising. A :class:`Lab` starts the
processes, hands out identities, tokens and passwords, and at the end takes everything down again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from mcptt_sip.ops.recording import samples_of
from media.quality import score

log = logging.getLogger(__name__)

DOMAIN = "mcx.example"
SERVICE = f"sip:mcptt@{DOMAIN}"
#: seconds that one wait in a scenario may take unless it says otherwise
PATIENCE = 20.0
#: seconds; the server's keep-alive (5 s, three misses) and a little for the machine
NOTICED_WITHIN = 16.0

Event = dict[str, Any]


class ScenarioFailed(AssertionError):
    """What the scenario expected did not happen."""


class CommandFailed(ScenarioFailed):
    """A phone answered a command with ``failed``; ``event`` is that answer."""

    def __init__(self, phone: str, event: Event) -> None:
        super().__init__(f"{phone}: {event.get('command')}: {event.get('message')}")
        self.event = event


class Process:
    """One program of the lab: lines go in, JSON events come out.

    ``events`` holds everything it said, in order; ``pid`` is for tests that look at it from outside.
    """

    def __init__(self, name: str, arguments: Sequence[str], directory: Path, environment: Mapping[str, str]):
        self.name = name
        self.events: list[Event] = []
        self.arguments = list(arguments)
        self._log = directory / f"{name}.log"
        self._environment = dict(environment)
        self._arrived = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Process:
        with open(self._log, "ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self.arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                limit=1 << 22,
            )
        self._reader = asyncio.ensure_future(self._read())
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "output", "text": line.decode("utf-8", "replace").rstrip()}
            await self._arrive(event)
        code = await self._process.wait()
        await self._arrive({"event": "exit", "code": code, "t": time.time()})

    async def _arrive(self, event: Event) -> None:
        async with self._arrived:
            self.events.append(event)
            self._arrived.notify_all()

    def tell(self, line: str) -> None:
        """Writes one command line and does not wait."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def seen(self, name: str, **details: Any) -> list[Event]:
        """The events with this name and these details so far."""
        return [
            event
            for event in self.events
            if event.get("event") == name and all(event.get(k) == v for k, v in details.items())
        ]

    async def expect(
        self, name: str, *, timeout: float = PATIENCE, after: int = 0, **details: Any
    ) -> Event:
        """The first such event from number ``after`` on, which may already be there."""

        def find() -> Event | None:
            for event in self.events[after:]:
                if event.get("event") == name and all(event.get(k) == v for k, v in details.items()):
                    return event
                if event.get("event") == "exit" and name != "exit":
                    raise ScenarioFailed(f"{self.name} ended (code {event['code']}) before {name}; see {self._log}")
            return None

        try:
            async with asyncio.timeout(timeout), self._arrived:
                while (found := find()) is None:
                    await self._arrived.wait()
                return found
        except TimeoutError:
            raise ScenarioFailed(f"{self.name}: no {name} {details or ''} within {timeout:g} s") from None

    async def do(self, command: str, *, timeout: float = PATIENCE) -> Event:
        """Gives a command and waits for its ``done``. Raises :class:`CommandFailed` on ``failed``."""
        start = len(self.events)
        self.tell(command)

        def find() -> Event | None:
            for event in self.events[start:]:
                if event.get("event") in ("done", "failed") and event.get("command") == command:
                    return event
                if event.get("event") == "exit":
                    raise ScenarioFailed(f"{self.name} ended before {command!r} was done; see {self._log}")
            return None

        try:
            async with asyncio.timeout(timeout), self._arrived:
                while (found := find()) is None:
                    await self._arrived.wait()
        except TimeoutError:
            raise ScenarioFailed(f"{self.name}: {command!r} not done within {timeout:g} s") from None
        if found["event"] == "failed":
            raise CommandFailed(self.name, found)
        return found

    async def stop(self, *, grace: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after ``grace`` seconds; returns when the process is gone."""
        if self._process is None:
            return
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(grace):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
        await self._process.wait()
        if self._reader is not None:
            await self._reader

    def kill(self) -> None:
        """SIGKILL: a crash, not a goodbye."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)


@dataclass(slots=True)
class Right:
    """Rights of one user in the lab, in the words of the policy file."""

    regroup: bool = True


def program(command: str, *arguments: str) -> list[str]:
    """``mcptt COMMAND …`` with the interpreter that runs this."""
    return [sys.executable, "-m", "mcptt_sip.ops.cli", command, *arguments]


@dataclass
class Lab:
    """A KMS, a server and phones of their own for one scenario. Use :func:`laboratory`.

    :param out: where recordings, captures and event logs are kept
    :param secrets_dir: passwords, tokens, policy; mode 0700, removed at the end
    :param breakage: the name of a deliberate fault that the scenario shall show, or ``None``
    """

    out: Path
    secrets_dir: Path
    breakage: str | None = None
    tell: Callable[[str], None] = lambda _text: None
    processes: dict[str, Process] = field(default_factory=dict)
    capture: bool = True
    #: let every phone write its group keys to ``NAME.keys.jsonl`` (they open all media)
    keep_keys: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    _rights: dict[str, dict[str, object]] = field(default_factory=dict)
    _passwords: dict[str, str] = field(default_factory=dict)
    _tokens: dict[str, str] = field(default_factory=dict)

    # --- identities -----------------------------------------------------------------------------------

    @staticmethod
    def uri(name: str) -> str:
        return name if ":" in name else f"sip:{name}@{DOMAIN}"

    def user(self, name: str, **rights: object) -> None:
        """A user with a profile; ``rights`` override those of a dispatcher (names of TS 24.484)."""
        uri = self.uri(name)
        self._passwords.setdefault(uri, secrets.token_urlsafe(18))
        self._tokens.setdefault(uri, secrets.token_urlsafe(24))
        profile: dict[str, object] = {
            "allow_regroup": True,
            "allow_private_call": True,
            "allow_private_call_to_any_user": True,
        }
        profile.update(rights)
        self._rights[uri] = profile
        self.write_policy()

    def password(self, name: str) -> str:
        """For a client that is no process of the lab."""
        return self._passwords[self.uri(name)]

    def token(self, name: str) -> str:
        """His bearer token at the KMS."""
        return self._tokens[self.uri(name)]

    def write_policy(self) -> None:
        """Writes the policy file; a running server takes it into use at its next decision."""
        lines: list[str] = []
        for uri, profile in self._rights.items():
            lines.append(f"[user.{json.dumps(uri)}]")
            lines.append(f"password = {json.dumps(self._passwords[uri])}")
            for name, value in profile.items():
                lines.append(f"{name.replace('_', '-')} = {json.dumps(value)}")
            lines.append("")
        self._write("policy.toml", "\n".join(lines))

    def _write(self, name: str, text: str) -> Path:
        path = self.secrets_dir / name
        temporary = path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(text)
        os.replace(temporary, path)
        return path

    # --- processes ------------------------------------------------------------------------------------

    async def start(self, name: str, arguments: Sequence[str]) -> Process:
        """Starts one program under a name; its standard error goes to ``NAME.log``."""
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        process = await Process(name, arguments, self.out, environment).start()
        self.processes[name] = process
        return process

    async def start_kms(self) -> Process:
        """The KMS, which knows every user of the lab and the server."""
        self._tokens.setdefault(SERVICE, secrets.token_urlsafe(24))
        users = self._write("kms-users.json", json.dumps({t: u for u, t in self._tokens.items()}))
        kms = await self.start(
            "kms",
            program("kms", "-v", "--plain", "--listen", "127.0.0.1:0", "--uri", f"kms.{DOMAIN}", "--domain", DOMAIN,
                    "--users", str(users)),
        )
        self.facts["kms"] = (await kms.expect("ready"))["url"]
        return kms

    async def start_server(self, *options: str, module: str | None = None) -> Process:
        """The MCPTT server; ``module`` runs another program in its place (a hostile one).

        Started again after its end, it has the addresses that it had before.
        """
        udp, tcp = self.facts.get("listen", ("udp:127.0.0.1:0", "tcp:127.0.0.1:0"))
        token = self._write("server-token", self._tokens[SERVICE])
        arguments = [
            "--identity", SERVICE, "--domain", DOMAIN, "--kms", self.facts["kms"], "--kms-token-file", str(token),
            "--policy", str(self.secrets_dir / "policy.toml"), "--listen", udp, "--listen", tcp, "-v", *options,
        ]
        if self.capture:
            arguments += ["--pcap", str(self.out / "server.pcapng")]
        start = [sys.executable, "-m", module] if module else program("serve")
        server = await self.start("server", [*start, *arguments])
        ready = await server.expect("ready")
        self.facts["proxy"] = ready["tcp"]
        self.facts["listen"] = (ready["udp"], ready["tcp"])
        return server

    async def phone(
        self, name: str, *options: str, module: str | None = None, label: str | None = None
    ) -> Process:
        """A registered phone of ``name``; records what it hears in ``LABEL.wav`` (a second device needs a label)."""
        uri = self.uri(name)
        label = label or name.partition("@")[0].removeprefix("sip:")
        password = self._write(f"{label}-password", self._passwords[uri])
        token = self._write(f"{label}-token", self._tokens[uri])
        arguments = [
            "--uri", uri, "--server", SERVICE, "--proxy", self.facts["proxy"], "--kms", self.facts["kms"],
            "--kms-token-file", str(token), "--password-file", str(password),
            "--record", str(self.out / f"{label}.wav"), "-v", *options,
        ]
        if self.keep_keys:
            arguments += ["--pcap-secrets", str(self.out / f"{label}.keys.jsonl")]
        if self.capture:
            arguments += ["--pcap", str(self.out / f"{label}.pcapng")]
        start = [sys.executable, "-m", module] if module else program("phone")
        phone = await self.start(label, [*start, *arguments])
        await phone.expect("registered")
        return phone

    async def phones(self, *names: str) -> list[Process]:
        """Several phones, started at the same time."""
        return list(await asyncio.gather(*(self.phone(name) for name in names)))

    async def heard(self, listener: str, talker: str, voice: Path, *, count: int = 1, least: float = 0.85) -> None:
        """``listener`` heard the ``count``-th burst of ``talker``, which was the speech in ``voice``.

        The recording is scored as in the demo's report. Raises :class:`ScenarioFailed` below ``least``.
        """
        phone = self.processes[listener]
        seen: list[Event] = []
        after = 0
        while len(seen) < count:
            event = await phone.expect("burst-heard", user=self.uri(talker), after=after)
            after = phone.events.index(event, after) + 1
            seen.append(event)
        burst = seen[-1]
        await phone.do("flush")
        track, _ = samples_of(self.out / f"{listener}.wav")
        part = track[burst["offset"] : burst["offset"] + burst["samples"]]
        reference, rate = samples_of(voice)
        got = score(reference, part, rate)
        if got < least or abs(len(part) - len(reference)) > 0.05 * len(reference):
            raise ScenarioFailed(f"{listener} did not hear {talker}: score {got:.2f}, {len(part)} samples")

    async def gone(self, name: str, *, within: float = NOTICED_WITHIN) -> None:
        """The server has noticed that ``name`` is not in the call any more."""
        uri, server = self.uri(name), self.processes["server"]
        after = len(server.events)
        while uri in (await server.expect("members", timeout=within, after=after))["connected"]:
            after = len(server.events)

    async def stop_all(self) -> None:
        """Phones first, so that they can say goodbye; then the server, then the KMS."""
        last = ("server", "kms")
        await asyncio.gather(*(p.stop() for n, p in self.processes.items() if n not in last))
        for name in last:
            if name in self.processes:
                await self.processes[name].stop()

    def save_events(self) -> None:
        """Everything every process said, one JSON file per process."""
        for name, process in self.processes.items():
            with open(self.out / f"{name}.events.jsonl", "w") as file:
                for event in process.events:
                    file.write(json.dumps(event) + "\n")


@asynccontextmanager
async def laboratory(
    out: Path | None = None, *, breakage: str | None = None, tell: Callable[[str], None] | None = None,
    capture: bool = True, keep_keys: bool = False,
) -> AsyncIterator[Lab]:
    """A lab for the length of the block; afterwards no process is left and the secrets are gone.

    Without ``out`` its files go to a temporary folder that is removed as well."""
    temporary = None
    if out is None:
        temporary = out = Path(tempfile.mkdtemp(prefix="mcptt-lab-"))
    out.mkdir(parents=True, exist_ok=True)
    lab = Lab(out, Path(tempfile.mkdtemp(prefix="mcptt-secrets-")), breakage, tell or (lambda _text: None),
              capture=capture, keep_keys=keep_keys)
    try:
        yield lab
    finally:
        try:
            await lab.stop_all()
            lab.save_events()
        finally:
            shutil.rmtree(lab.secrets_dir, ignore_errors=True)
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)


ScenarioFunction = Callable[[Lab], Awaitable[None]]


def load(name: str) -> ModuleType:
    """A scenario by name (of those that are installed) or by the path of a Python file."""
    if name.endswith(".py") or os.sep in name:
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.exists():
            raise FileNotFoundError(f"no scenario file {name}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(f"mcptt_sip.scenarios.{name}")
        except ModuleNotFoundError:
            raise FileNotFoundError(f"no scenario {name!r}; there are {', '.join(installed())}") from None
    if not inspect.iscoroutinefunction(getattr(module, "scenario", None)):
        raise FileNotFoundError(f"{name} has no coroutine function 'scenario'")
    return module


def installed() -> list[str]:
    """Names of the scenarios that are installed."""
    package = importlib.import_module("mcptt_sip.scenarios")
    names = {
        path.stem
        for place in package.__path__
        for path in Path(place).glob("*.py")
        if "\nasync def scenario(" in path.read_text(encoding="utf-8")
    }
    return sorted(names)


async def run_scenario(
    module: ModuleType, out: Path | None, tell: Callable[[str], None] | None
) -> str | None:
    """Runs one scenario in a lab of its own; ``None`` when it passed, else what went wrong."""
    try:
        async with laboratory(out, tell=tell, capture=out is not None) as lab:
            await module.scenario(lab)
            return check_afterwards(lab)
    except (ScenarioFailed, AssertionError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # a fault of the scenario itself: its verdict as well, and the others have their turn
        log.exception("scenario %s", module.__name__)
        return f"{type(error).__name__}: {error}"


def check_afterwards(lab: Lab) -> str | None:
    """A scenario that passed must not have broken a process on the way."""
    for name, process in lab.processes.items():
        codes = [event["code"] for event in process.seen("exit") if event["code"] not in (0, -signal.SIGKILL)]
        if codes:
            return f"{name} ended with code {codes[0]}"
    return None
