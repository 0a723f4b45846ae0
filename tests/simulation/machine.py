# SPDX-License-Identifier: Apache-2.0
"""The random-event machine: one whole system in virtual time, one random event after another, all rules checked after
each.

Whatever it does follows from its seed: ``python -m tests.simulation --seed N`` repeats a run to the octet.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.simulation.events import WEIGHTS, Events
from tests.simulation.hostile import MOVES
from tests.simulation.loop import CURRENT, NothingLeft, VirtualLoop
from tests.simulation.media import LightMedia
from tests.simulation.network import Quality
from tests.simulation.phones import HOSTS, NAMES, SERVER_HOST, USERS, Mood
from tests.simulation.truth import Group, Violation, probing
from tests.simulation.world import REGROUP

#: seconds between two events, on average
PACE = 0.4
#: steps between two times of calm
CALM_EVERY = 400
#: seconds: everything that was under way has come to an end, every registration was renewed. A server that has lost
#: what it knew of replays takes no message older than its start, so a phone whose clock is behind has to wait
CALM, SILENCE = 520.0, 90.0


@dataclass
class Report:
    """What a run was."""

    seed: int
    steps: int
    #: SHA-256 of everything that happened, octet for octet
    trace: str
    virtual_seconds: float
    events: Counter[str]
    facts: Counter[str]
    #: what one step has shown, most of it of one cause; nothing when every rule held
    violations: list[Violation] = field(default_factory=list)
    #: the last lines of the trace
    tail: list[str] = field(default_factory=list)

    @property
    def violation(self) -> Violation | None:
        return self.violations[0] if self.violations else None


class _Log(logging.Handler):
    """Errors are findings, and no line holds a key."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(logging.INFO)
        self._machine = machine

    def emit(self, record: logging.LogRecord) -> None:
        process = CURRENT.get()
        if process is not None and process.dead:
            return
        text = record.getMessage()
        self._machine.truth.search(text.encode(), "a log line")
        if record.levelno >= logging.ERROR:
            why = record.exc_info[1] if record.exc_info else None
            self._machine.truth.violate("11 errors", f"{process}: {text}: {why!r}")


class Machine(Events):
    """One run. ``weights`` replaces parts of :data:`.events.WEIGHTS`, ``moves`` those of the hostile server."""

    def __init__(
        self, seed: int, *, steps: int, weights: Mapping[str, float] | None = None,
        moves: tuple[str, ...] = tuple(MOVES), calm_every: int = CALM_EVERY, tail: int = 200,
        progress: Callable[[int, Machine], None] = lambda _step, _machine: None,
    ) -> None:
        super().__init__(seed, moves=moves, tail=tail)
        self.steps = steps
        self.weights = {**WEIGHTS, **(weights or {})}
        self.calm_every = calm_every
        self._progress = progress

    # --- the run ----------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Raises nothing: violations are in the report."""
        loop = VirtualLoop()
        handler = _Log(self)
        loggers = [logging.getLogger(name) for name in ("mcptt_sip", "mikey", "media", "asyncio")]
        levels = [logger.level for logger in loggers]
        with tempfile.TemporaryDirectory(dir=_memory()) as store:
            try:
                self._build(loop, Path(store))
                for logger in loggers:
                    logger.addHandler(handler)
                    logger.setLevel(logging.INFO)
                    logger.propagate = False
                loop.set_exception_handler(self._on_exception)
                with probing(self.truth), mock.patch.multiple(
                    LightMedia, network=self.network, on_heard=staticmethod(self.truth.packet_heard), create=True
                ):
                    try:
                        loop.run_until_complete(self._main())
                    finally:
                        self._abandon(loop)
            except Violation:
                pass  # it is among the violations
            except NothingLeft:
                self.truth.violate("10 state", "everybody waits for something that will never come")
            finally:
                for logger, level in zip(loggers, levels, strict=True):
                    logger.removeHandler(handler)
                    logger.setLevel(level)
                    logger.propagate = True
                for phone in self.phones:
                    phone.close()
                asyncio.set_event_loop(None)
        return Report(
            self.seed, self.step + 1, self._digest.hexdigest(), loop.time(), self.events,
            self.truth.counts + Counter({f"hostile {name}": n for name, n in self.hostile.done.items()}),
            list(self.truth.violations), list(self.tail),
        )  # fmt: skip

    def _abandon(self, loop: VirtualLoop) -> None:
        """The end of the world: what is still under way is taken apart, and shall not be heard of."""
        loop.set_exception_handler(lambda _loop, _context: None)
        processes = [phone.process for phone in self.phones if phone.process is not None]
        if self.host.process is not None:
            processes.append(self.host.process)
        for process in processes:
            process.dead = True

        async def unwind() -> None:
            for process in (*self._dead, *processes):
                await process.unwind()

        loop.run_until_complete(unwind())
        loop.close()

    async def _main(self) -> None:
        self.host.start(REGROUP)
        await asyncio.sleep(0.1)
        for number, phone in enumerate(self.phones):
            phone.start(self._settings(number))
        await asyncio.sleep(3.0)
        names, weights = list(self.weights), list(self.weights.values())
        for step in range(self.steps):
            self.step = step
            while (what := self.happen(name := self.chance.choices(names, weights)[0])) is None:
                pass
            self.events[name] += 1
            self.note(f"{name}: {what}")
            self._pause, pause = 0.0, self._pause
            await self._pass(pause + self.chance.expovariate(1 / PACE))
            if (self.step + 1) % self.calm_every == 0 or self.step + 1 == self.steps:
                await self._calm()
            self._progress(self.step, self)

    async def _check(self) -> None:
        while self._dead:
            process = self._dead.pop()
            await process.unwind()
            self.truth.forget(process)
        self.invariants.check()
        self._judge_ends()
        if self.truth.violations:
            for found in self.truth.violations:
                self.note(f"VIOLATION {found}")
            raise self.truth.violations[0]

    # --- calm -------------------------------------------------------------------------------------------

    async def _calm(self) -> None:
        """Every trouble is over: what can recover recovers; then all calls end, and nothing is left of them."""
        self.note("calm")
        self.events["calm"] += 1
        self.network.quality = Quality(jitter=0.0)
        self.network.heal()
        self.hostile.armed.clear()
        self.hostile.starved.clear()
        for host in (*HOSTS.values(), SERVER_HOST):
            self.disturb(host)
        for phone in self.phones:
            phone.mood = Mood.ACCEPTS
            if phone.process is not None:
                phone.process.fuse = None
        if not self.host.alive:
            self.host.start(REGROUP)
        for number, phone in enumerate(self.phones):
            if not phone.alive:
                phone.start(self._settings(number))
        await self._pass(CALM)
        self.invariants.check_agreement()
        await self._check()
        await self._end_all()
        await self._recovered()
        await self._end_all()
        self.truth.counts["objects searched"] += self.invariants.search_server()
        self.invariants.check_nothing_left()
        if self._operations:
            self.truth.violate("10 end", f"{self._operations} users still wait for what they asked for")
        await self._check()
        self.truth.forget_groups()

    async def _pass(self, seconds: float) -> None:
        until = self.loop.time() + seconds
        while self.loop.time() < until:
            await asyncio.sleep(min(5.0, until - self.loop.time()))
            await self._check()

    async def _end_all(self) -> None:
        for phone in self.phones:
            for call in phone.calls:
                self.truth.close(call.group, "the end of everything")
                self.operate(phone, "end", call.release if hasattr(call, "release") else call.leave)
        await self._pass(SILENCE)
        assert self.host.server is not None
        if self.host.server.controlling.calls:
            # legs of phones that died silently: their calls end at the latest with their longest duration
            await self._pass(REGROUP.max_duration)

    async def _recovered(self) -> None:
        """10: nothing of what happened keeps anybody from a call."""
        phone = self.chance.choice(self.phones)
        others = [u for u in USERS if u != phone.uri]
        self.chance.shuffle(others)
        groups: list[Group] = []

        async def call_all() -> None:
            group = await self.start(phone, others[0])
            groups.append(group)
            call = phone.call(group.group)
            await asyncio.gather(*(self.add(call, group, user) for user in others[1:]))
            await self.told(call, group, call.rekey)  # type: ignore[union-attr]

        self.operate(phone, "recovery", call_all)
        await self._pass(30.0)
        call = phone.call(groups[0].group) if groups else None
        keyed = call.distribution.keyed() if call is not None else frozenset()  # type: ignore[attr-defined]
        if keyed != set(others):
            missing = sorted(set(others) - keyed)
            self.truth.violate("10 recovery", f"{phone.uri} cannot reach {missing} in a calm network")
            return
        heard = self.truth.counts["packets heard"]
        for talker in self.phones:
            for one in talker.calls:
                process = talker.process
                assert process is not None
                self.loop.call_soon(one.media.talk, context=process.context.copy())
        await self._pass(1.0)
        heard = self.truth.counts["packets heard"] - heard
        if heard != len(NAMES) * (len(NAMES) - 1):
            self.truth.violate("10 recovery", f"{heard} packets of {len(NAMES)} talkers are heard in a calm network")


def _memory() -> str | None:
    """A file system without a disk below, if there is one: every accepted message is written through."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
