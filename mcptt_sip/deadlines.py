# SPDX-License-Identifier: Apache-2.0
"""One clock for thousands of timers: it forgets at once whatever needs no timer any more."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any, Protocol

__all__ = ["Deadlines", "Timed"]

#: so many entries of what needs no timer any more are left lying about, at least
_LITTER = 1024


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
    forward, or goes, lets go of what it belonged to at once; the empty entry is swept away with others.
    """

    __slots__ = ("_dead", "_heap", "_number", "_queue")

    def __init__(self) -> None:
        self._heap: list[list[Any]] = []  # [time, number, timed or None, whether it is in the queue]
        self._queue: deque[list[Any]] = deque()  # the same, of `watch_last`, in the order of their times
        self._number = 0
        self._dead = [0, 0]  # empty entries in the heap, and in the queue

    def __len__(self) -> int:
        return len(self._heap) + len(self._queue) - sum(self._dead)

    def watch(self, timed: Timed) -> None:
        """The deadline of `timed` may have changed."""
        due = timed.next_timer()
        entry = timed.scheduled
        if entry is not None:
            if due is not None and due >= entry[0]:
                return
            self._empty(entry)
        if due is None:
            timed.scheduled = None
        else:
            heapq.heappush(self._heap, self._entry(due, timed, False))

    def watch_last(self, timed: Timed) -> None:
        """What `watch` does, cheaper where no deadline that came this way is later: of thousands of transactions, each
        ends so long after its answer."""
        due = timed.next_timer()
        entry = timed.scheduled
        if due is None or (self._queue and due < self._queue[-1][0]):
            self.watch(timed)
        elif entry is None or entry[0] != due:
            if entry is not None:
                self._empty(entry)
            self._queue.append(self._entry(due, timed, True))

    def drop(self, timed: Timed) -> None:
        """`timed` is over, whatever it says of its deadlines."""
        if timed.scheduled is not None:
            self._empty(timed.scheduled)
            timed.scheduled = None

    def next(self) -> float | None:
        """When `fire` is due; it may be earlier than needed."""
        heap, queue = self._heap, self._queue
        while heap and heap[0][2] is None:
            heapq.heappop(heap)
            self._dead[False] -= 1
        while queue and queue[0][2] is None:
            queue.popleft()
            self._dead[True] -= 1
        if not queue:
            return heap[0][0] if heap else None
        due: float = queue[0][0]
        return min(due, heap[0][0]) if heap else due

    def fire(self, now: float) -> None:
        """Everything that is due by `now`."""
        while (due := self.next()) is not None and due <= now:
            heap, queue = self._heap, self._queue
            timed = (heapq.heappop(heap) if not queue or (heap and heap[0] < queue[0]) else queue.popleft())[2]
            timed.scheduled = None
            real = timed.next_timer()
            if real is not None and real <= due:  # else it has moved back, perhaps behind others that are due
                timed.handle_timer(now)
            self.watch(timed)

    def _entry(self, due: float, timed: Timed, queued: bool) -> list[Any]:
        self._number += 1
        timed.scheduled = entry = [due, self._number, timed, queued]
        return entry

    def _empty(self, entry: list[Any]) -> None:
        """Takes out what an entry belonged to. When half of the entries are empty they are swept away: early, while
        they are few, so that no sweep takes long."""
        queued = entry[3]
        entry[2] = None
        self._dead[queued] += 1
        if self._dead[queued] <= _LITTER:
            return
        if queued and self._dead[True] > len(self._queue) // 2:
            self._queue = deque(entry for entry in self._queue if entry[2] is not None)
            self._dead[True] = 0
        elif not queued and self._dead[False] > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2] is not None]
            heapq.heapify(self._heap)
            self._dead[False] = 0
