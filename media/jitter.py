# SPDX-License-Identifier: Apache-2.0
"""A jitter buffer for one talk burst, driven by time; sans-IO.

Frames come out when they are due, whether or not a later one arrived, so that the last syllable of a burst is
played. The delay is fixed with the first frame and does not creep. A frame that is missing when it is due comes
out as a loss, to be concealed; one that comes later than that is dropped and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Frame", "JitterBuffer"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What is due: ``payload`` is ``None`` for a lost one. ``offset`` counts frames from the burst's first;
    ``due`` is when it is to be played."""

    offset: int
    payload: bytes | None
    due: float


class JitterBuffer:
    """The buffer of one burst.

    :param delay: seconds from the arrival of the first frame to its playing
    :param frame: seconds of audio in one frame
    :param clock_rate: RTP timestamp units in a second
    :param max_frames: frames held at most; one further ahead is refused
    :param patience: seconds without any frame after which a burst is over
    """

    def __init__(
        self,
        *,
        delay: float = 0.06,
        frame: float = 0.02,
        clock_rate: int = 48000,
        max_frames: int = 250,
        patience: float = 0.5,
    ) -> None:
        self._delay = delay
        self._frame = frame
        self._step = round(frame * clock_rate)
        self._max_frames = max_frames
        self._patience = patience
        self._frames: dict[int, bytes] = {}
        self._first_timestamp: int | None = None
        self._start = 0.0
        self._next = 0
        self._highest = -1
        self._last_arrival = 0.0
        self._ending = False
        self.received = self.lost = self.late = self.duplicates = self.refused = 0

    def put(self, timestamp: int, payload: bytes, now: float) -> bool:
        """Takes a frame; ``False`` when it was of no use. The first one fixes the playing of all."""
        if self._first_timestamp is None:
            self._first_timestamp = timestamp
            self._start = now + self._delay
        ahead = (timestamp - self._first_timestamp + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        offset = round(ahead / self._step)
        self._last_arrival = now
        if offset < self._next:
            if self._next == 0 and -offset <= self._delay / self._frame and self._shift(offset, timestamp):
                offset = 0
            else:
                self.late += 1
                return False
        if offset - self._next >= self._max_frames:
            self.refused += 1
            return False
        if offset in self._frames:
            self.duplicates += 1
            return False
        # what was skipped while nothing was held is a loss now that the burst goes on
        self.lost += max(0, min(offset, self._next) - self._highest - 1)
        self._frames[offset] = payload
        self._highest = max(self._highest, offset)
        self.received += 1
        return True

    def _shift(self, offset: int, timestamp: int) -> bool:
        """A frame from before the first one, while nothing has been played: the burst begins with it."""
        self._frames = {at - offset: payload for at, payload in self._frames.items()}
        self._highest -= offset
        self._first_timestamp = timestamp
        self._start += offset * self._frame
        return True

    def end(self) -> None:
        """No more frames will come: what is held is played, and then it is over."""
        self._ending = True

    def pull(self, now: float) -> list[Frame]:
        """Every frame that is due by ``now``, in order."""
        out: list[Frame] = []
        while self._first_timestamp is not None:
            due = self._start + self._next * self._frame
            if due > now + 1e-9:
                break
            if self._next > self._highest:
                # nothing held: the burst is over, or its next frame is late, and then silence is no loss yet
                break
            payload = self._frames.pop(self._next, None)
            if payload is None:
                self.lost += 1
            out.append(Frame(self._next, payload, due))
            self._next += 1
        self._skip_late(now)
        return out

    def _skip_late(self, now: float) -> None:
        """Frames that should have been played while nothing was held are late when they come at last."""
        if self._first_timestamp is None or self._next <= self._highest:
            return
        passed = int((now - self._start) / self._frame + 1e-9) + 1
        self._next = max(self._next, min(passed, self._highest + 1 + self._max_frames))

    @property
    def ending(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._ending

    def ended(self, now: float) -> bool:
        """Everything was played, and nothing more is to be expected."""
        if self._first_timestamp is None:
            return self._ending
        if self._next <= self._highest:
            return False
        # the very sum that next_timer() gives: a difference could round to the other side of it
        return self._ending or now >= self._last_arrival + self._patience

    def next_timer(self) -> float | None:
        """When to call :meth:`pull` (or :meth:`ended`) again."""
        if self._first_timestamp is None:
            return None
        if self._next <= self._highest:
            return self._start + self._next * self._frame
        return None if self._ending else self._last_arrival + self._patience
