# SPDX-License-Identifier: Apache-2.0
"""An asyncio loop in virtual time: with nothing left to do at an instant, the clock jumps to the next timer.

Everything that runs belongs to a :class:`Process` (a context variable that tasks, timers and callbacks inherit). A
process that dies stops between two instructions of its own choosing or of the machine's: nothing of it runs any more,
no ``finally`` has an effect outside, nobody says BYE.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import selectors
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

#: rounds in which the tasks of a dead process unwind; each cancels what the one before began
_UNWINDING = 50


class NothingLeft(Exception):
    """Everybody waits for something that no timer and no message will bring."""


class Clock:
    """Seconds since the simulation began."""

    def __init__(self) -> None:
        self.now = 0.0


class _TimeIsAllThatComes(selectors.BaseSelector):
    """Waits for no file: when it is asked to wait, the time is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys[descriptor] = selectors.SelectorKey(fileobj, descriptor, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingLeft
        if timeout > 0:
            self._clock.now += timeout
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {key.fileobj: key for key in self._keys.values()}


class Process:
    """One program on one machine, from its start to its end. ``random`` is its system's randomness."""

    def __init__(self, name: str, host: str, seed: str) -> None:
        self.name = name
        self.host = host
        self.random = random.Random(seed)
        #: its own idea of the time, Unix seconds
        self.clock: Callable[[], float] = lambda: 0.0
        self.dead = False
        self.unwinding = False
        #: what was to run when it died
        self.frozen: list[tuple[Callable[..., object], tuple[Any, ...], contextvars.Context]] = []
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.timers: dict[int, asyncio.TimerHandle] = {}  # by id: equal handles are not the same
        #: dies at its so-manieth next message; see :class:`tests.simulation.network.Network`
        self.fuse: int | None = None
        self.context = contextvars.copy_context()
        self.context.run(CURRENT.set, self)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs ``work`` in this process."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    async def unwind(self) -> None:
        """Takes the frozen tasks apart after death. They can reach nothing: sockets, store and timers are gone."""
        self.unwinding = True
        loop = asyncio.get_running_loop()
        try:
            for callback, arguments, context in self.frozen:
                loop.call_soon(callback, *arguments, context=context)
            self.frozen.clear()
            for _ in range(_UNWINDING):
                left = [task for task in self.tasks if not task.done()]
                if not left:
                    break
                for task in left:
                    task.cancel()
                await asyncio.sleep(0)
            else:
                raise RuntimeError(f"tasks of {self.name} do not let themselves be cancelled: {left}")
        finally:
            self.unwinding = False
            for task in self.tasks:
                if task.done() and not task.cancelled():
                    task.exception()  # what happened after death is nobody's concern
            self.tasks.clear()
        for timer in list(self.timers.values()):
            timer.cancel()
        self.timers.clear()

    def pending_timers(self, now: float) -> int:
        """Timers that are still to fire."""
        for timer in [t for t in self.timers.values() if t.cancelled() or t.when() < now]:
            del self.timers[id(timer)]
        return len(self.timers)


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current() -> Process:
    """The process whose code is running."""
    process = CURRENT.get()
    if process is None:
        raise RuntimeError("outside any process")
    return process


def _run(process: Process, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    if not process.dead or process.unwinding:
        callback(*arguments)
    else:
        process.frozen.append((callback, arguments, contextvars.copy_context()))


def _fire(process: Process, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    if not process.dead:
        callback(*arguments)


def _task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    process = CURRENT.get() if context is None else context.get(CURRENT)
    task = asyncio.Task(work, loop=loop, context=context)
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(lambda done: None if process.dead else process.tasks.pop(done, None))
    return task


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sockets come from ``network`` (see :mod:`tests.simulation.network`), time from ``virtual_clock``."""

    def __init__(self) -> None:
        self.virtual_clock = Clock()
        super().__init__(_TimeIsAllThatComes(self.virtual_clock))
        self.network: Any = None
        self.set_task_factory(_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self.virtual_clock.now

    # --- everything that runs, runs in a process that lives ---------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        process = CURRENT.get() if context is None else context.get(CURRENT)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(_run, process, callback, args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        process = CURRENT.get() if context is None else context.get(CURRENT)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        timer = super().call_at(when, _fire, process, callback, args, context=context)
        process.timers[id(timer)] = timer
        if len(process.timers) > 256:
            process.pending_timers(self.time())
        return timer

    # --- sockets ----------------------------------------------------------------------------------------

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, int(port or 0)))]

    async def create_datagram_endpoint(self, factory: Any, **options: Any) -> Any:  # type: ignore[override]
        return self.network.datagram_endpoint(factory, options["local_addr"])

    async def create_server(self, factory: Any, host: Any, port: Any, **_: Any) -> Any:  # type: ignore[override]
        return self.network.server(factory, host, port)

    async def create_connection(self, factory: Any, host: Any, port: Any, **_: Any) -> Any:  # type: ignore[override]
        return await self.network.connection(factory, host, port)
