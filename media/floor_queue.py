# SPDX-License-Identifier: Apache-2.0
"""The queue of floor requests: pre-emptive ones first, then by priority, then by time; sans-IO."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FloorQueue", "Waiting"]


@dataclass(slots=True)
class Waiting:
    """One request; ``number`` counts requests, ``since`` is when it came."""

    name: str
    priority: int
    preemptive: bool
    number: int
    since: float

    @property
    def rank(self) -> tuple[bool, int, int]:
        """The smallest is served first."""
        return (not self.preemptive, -self.priority, self.number)


class FloorQueue:
    """Requests by name, each name once. Methods that change it give the names whose position has become another."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._waiting: list[Waiting] = []
        self._count = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Who waits, in the order in which they will be served."""
        return tuple(waiting.name for waiting in self._waiting)

    def __contains__(self, name: str) -> bool:
        return any(waiting.name == name for waiting in self._waiting)

    @property
    def full(self) -> bool:
        """Whether no other request fits."""
        return len(self._waiting) >= self.depth

    @property
    def oldest(self) -> float | None:
        """When the request that has waited longest came."""
        return min((waiting.since for waiting in self._waiting), default=None)

    def position(self, name: str) -> tuple[int, int] | None:
        """(place from 1, priority), ``None`` for one who does not wait."""
        for place, waiting in enumerate(self._waiting, 1):
            if waiting.name == name:
                return place, waiting.priority
        return None

    def put(self, name: str, priority: int, preemptive: bool, now: float) -> list[str]:
        """A request, or the same again with another priority; once pre-emptive, always so."""
        before = self.names
        for waiting in self._waiting:
            if waiting.name == name:
                waiting.priority = priority
                waiting.preemptive = waiting.preemptive or preemptive
                break
        else:
            self._count += 1
            self._waiting.append(Waiting(name, priority, preemptive, self._count, now))
        self._waiting.sort(key=lambda waiting: waiting.rank)
        places = {was: place for place, was in enumerate(before)}
        return [other for place, other in enumerate(self.names) if other != name and places.get(other) != place]

    def remove(self, name: str) -> list[str]:
        """A request less; those behind it move up."""
        names = self.names
        if name not in names:
            return []
        self._waiting = [waiting for waiting in self._waiting if waiting.name != name]
        return list(names[names.index(name) + 1 :])

    def pop(self) -> Waiting | None:
        """The next to be served."""
        return self._waiting.pop(0) if self._waiting else None

    def older_than(self, since: float) -> list[str]:
        """Whose requests came at that time or before."""
        return [waiting.name for waiting in self._waiting if waiting.since <= since]

    def clear(self) -> None:
        """Nobody waits any more."""
        self._waiting.clear()
