# SPDX-License-Identifier: Apache-2.0
"""One clock for thousands of timers: a heap that forgets at once whatever needs no timer any more."""

from __future__ import annotations

import heapq
from typing import Any, Protocol

__all__ = ["Deadlines", "Timed"]


class Timed(Protocol):
    """Anything with a deadline. `scheduled` belongs to `Deadlines`; it is ``None`` at first."""

    scheduled: list[Any] | None

    def next_timer(self) -> float | None:
        """The next deadline."""
        ...

    def handle_timer(self, now: float) -> None:
        """The deadline has come."""
        ...


class Deadlines:
    """The deadlines of everything that was `watch`-ed.

    A deadline that moves back costs nothing: its entry is looked at again when its time has come. One that moves
    forward, or goes, lets go of what it belonged to at once.
    """

    __slots__ = ("_dead", "_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[list[Any]] = []  # [time, number, timed or None]
        self._number = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def watch(self, timed: Timed) -> None:
        """The deadline of `timed` may have changed."""
        due = timed.next_timer()
        entry = timed.scheduled
        if entry is not None:
            if due is not None and due >= entry[0]:
                return
            entry[2] = None
            self._dead += 1
        if due is None:
            timed.scheduled = None
        else:
            self._number += 1
            timed.scheduled = entry = [due, self._number, timed]
            heapq.heappush(self._heap, entry)
        if self._dead > 1024 and self._dead > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2] is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def drop(self, timed: Timed) -> None:
        """`timed` is over, whatever it says of its deadlines."""
        if timed.scheduled is not None:
            timed.scheduled[2] = None
            timed.scheduled = None
            self._dead += 1

    def next(self) -> float | None:
        """When `fire` is due; it may be earlier than needed."""
        heap = self._heap
        while heap and heap[0][2] is None:
            heapq.heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else None

    def fire(self, now: float) -> None:
        """Everything that is due by `now`."""
        while self._heap and self._heap[0][0] <= now:
            timed = heapq.heappop(self._heap)[2]
            if timed is None:
                self._dead -= 1
                continue
            timed.scheduled = None
            real = timed.next_timer()
            if real is not None and real <= now:
                timed.handle_timer(now)
            self.watch(timed)
