# SPDX-License-Identifier: Apache-2.0
"""A jitter buffer for one talk burst, driven by time; sans-IO.

Frames come out when they are due, whether or not a later one arrived, so that the last syllable of a burst is
played. A frame that is missing when it is due comes out as a loss, to be concealed; one that comes later than that is
dropped and counted. The delay is that of the frame that came with the least delay before the playing began, and grows,
up to a limit, when frames come too late; it does not creep, and each burst begins with what :class:`DelayEstimator`
has learnt of the ones before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DelayEstimator", "Frame", "JitterBuffer"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What is due: ``payload`` is ``None`` for a lost one. ``offset`` counts frames from the burst's first;
    ``due`` is when it is to be played; ``following`` the frame after a lost one, when it is there."""

    offset: int
    payload: bytes | None
    due: float
    following: bytes | None = None


class DelayEstimator:
    """How long to wait for the frames of the next burst: long enough for nearly all of those heard lately.

    :param initial: seconds while nothing is known
    :param least, most: bounds of what is learnt
    :param share: of the frames are to come in time
    :param memory: frames remembered
    """

    def __init__(
        self,
        initial: float = 0.06,
        *,
        least: float = 0.04,
        most: float = 0.2,
        share: float = 0.99,
        margin: float = 0.01,
        memory: int = 1000,
    ) -> None:
        self.delay = initial
        self._least, self._most, self._share, self._margin = least, most, share, margin
        self._lateness: deque[float] = deque(maxlen=memory)

    def learn(self, lateness: Sequence[float]) -> None:
        """The frames of a burst, each so much later than the one that came with the least delay (seconds)."""
        self._lateness.extend(lateness)
        if len(self._lateness) < 10:
            return
        ordered = sorted(self._lateness)
        late = ordered[min(len(ordered) - 1, int(self._share * len(ordered)))]
        self.delay = max(self._least, min(self._most, late + self._margin))


class JitterBuffer:
    """The buffer of one burst.

    :param delay: seconds from the arrival of the frame that came quickest to its playing
    :param most: the delay may grow up to this, when frames come too late
    :param frame: seconds of audio in one frame
    :param clock_rate: RTP timestamp units in a second
    :param max_frames: frames held at most; one further ahead is refused
    :param patience: seconds without any frame after which a burst is over
    """

    def __init__(
        self,
        *,
        delay: float = 0.06,
        most: float = 0.2,
        frame: float = 0.02,
        clock_rate: int = 48000,
        max_frames: int = 250,
        patience: float = 0.5,
    ) -> None:
        self._delay = delay
        self._most = max(most, delay)
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
        #: how much the delay has grown since the burst's beginning, seconds
        self.grown = 0.0
        self.received = self.lost = self.late = self.duplicates = self.refused = 0

    def put(self, timestamp: int, payload: bytes, now: float) -> bool:
        """Takes a frame; ``False`` when it was of no use. The first one fixes the playing of all."""
        if self._first_timestamp is None:
            self._first_timestamp = timestamp
            self._start = now + self._delay
        ahead = (timestamp - self._first_timestamp + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        offset = round(ahead / self._step)
        self._last_arrival = now
        if self._next == 0:
            # what came first may have been held up more than this one
            self._start = min(self._start, now - offset * self._frame + self._delay)
        if offset < self._next:
            if self._next == 0 and -offset <= self._delay / self._frame and self._shift(offset, timestamp):
                offset = 0
            else:
                self.late += 1
                self._grow(now - self._start - offset * self._frame)
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

    def _grow(self, late: float) -> None:
        """The frames from here on are played later, by as much as this one was late; unless it was so late that no
        delay within the limit would have been enough."""
        if 0 < late <= self._most - self._delay - self.grown and self._next <= self._highest:
            self.grown += late
            self._start += late

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
            payload, following = self._frames.pop(self._next, None), None
            if payload is None:
                self.lost += 1
                following = self._frames.get(self._next + 1)
            out.append(Frame(self._next, payload, due, following))
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
    def delay(self) -> float:
        """Seconds from the arrival of the quickest frame to its playing, with what was added since."""
        return self._delay + self.grown

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
