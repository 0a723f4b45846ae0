# SPDX-License-Identifier: Apache-2.0
"""Decoding what a :class:`~media.reception.Reception` lets through, onto a recording's time line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from media.codec import FRAME_SAMPLES, RATE, WavTimeline
from media.codecs import OPUS, Codec
from media.errors import CodecError
from media.quality import e_model, opinion_score
from media.reception import Burst, BurstEnded, Event, Played, Reception

__all__ = ["Playout"]


class _Track:
    """How far one burst has been played. ``first`` is the place of its first sample on the time line, ``start``
    when that sample was due."""

    def __init__(self, first: int, start: float, codec: Codec) -> None:
        self.decoder = codec.decoder()
        self.first = first
        self.start = start
        self.samples = 0
        self.played = 0
        self.concealed = 0


class Playout:
    """Plays bursts one after the other: none cuts off the end or the beginning of another.

    A burst ends with what the codec's look-ahead held back, in a frame that is silence for the rest; the next may begin
    in it, and is added. Else bursts that follow one another at once would each be heard later than the one before.
    """

    def __init__(self, reception: Reception, clock: Callable[[], float], codec: Codec = OPUS) -> None:
        self.concealed = 0
        #: frames at whose time nothing was there, neither they nor a later one that showed a gap to conceal
        self.silent = 0
        self.jitter = 0.0
        #: told every frame that is played: (user, 640 octets of 16 kHz mono, when it is due)
        self.listeners: list[Callable[[str, bytes, float], None]] = []
        self._reception = reception
        self._codec = codec
        self._clock = clock
        self._tracks: dict[int, _Track] = {}
        self._timeline: WavTimeline | None = None
        self._origin: float | None = None
        self._end = 0
        self._flush = 0.0
        self._flush_due: float | None = None

    def record(self, path: Path | str, now: float, flush: float) -> None:
        """Begins a recording whose first sample is now."""
        self._close_recording()
        self._timeline = WavTimeline(path)
        self._origin, self._end = now, 0
        self._flush = flush
        self._timeline.flush()

    def take(self, event: Event, now: float) -> dict[str, Any] | None:
        """Plays a frame, or gives the details of ``burst-heard`` at a burst's end."""
        if isinstance(event, Played):
            self._play(event, now)
        elif isinstance(event, BurstEnded):
            return self._ended(event.burst, now)
        return None

    def _play(self, event: Played, now: float) -> None:
        if self._origin is None:
            self._origin = now
        track = self._tracks.get(id(event.burst))
        if track is None:
            due = round((event.due - self._origin) * RATE) - event.offset * FRAME_SAMPLES
            first = max(due, self._end - FRAME_SAMPLES, 0)
            track = self._tracks[id(event.burst)] = _Track(first, self._origin + first / RATE, self._codec)
        if event.payload is None:
            pcm = track.decoder.conceal(event.following)
            track.concealed += 1
            self.concealed += 1
        else:
            try:
                pcm = track.decoder.decode(event.payload)
            except CodecError:
                pcm = track.decoder.conceal()
                track.concealed += 1
                self.concealed += 1
                self._reception.counters["codec"] += 1
        at = event.offset * FRAME_SAMPLES
        track.samples = at + FRAME_SAMPLES
        track.played += 1
        self._end = max(self._end, track.first + track.samples)
        if self._timeline is not None:
            self._timeline.write_at(track.first + at, pcm, shared=FRAME_SAMPLES)
            if self._flush_due is None:
                self._flush_due = now + self._flush
        for listener in self.listeners:
            listener(event.burst.user, pcm, track.start + at / RATE)

    def _ended(self, burst: Burst, now: float) -> dict[str, Any] | None:
        track = self._tracks.pop(id(burst), None)
        if track is None:
            return None
        self.jitter = burst.jitter
        start = self._clock() - (now - track.start)
        frames = track.samples // FRAME_SAMPLES
        silent = frames - track.played
        self.silent += silent
        loss = (track.concealed + silent) / max(1, frames)
        figures = {}
        if burst.captured is not None:
            # on one clock: what the talker stated against when it was played, and the codec's own delay
            delay = start - burst.captured + self._codec.delay
            rating = e_model(delay, loss, impairment=self._codec.impairment, robustness=self._codec.robustness)
            figures = {
                "mouth_to_ear": round(delay, 4), "rating": round(rating, 1),
                "opinion": round(opinion_score(rating), 2),
            }  # fmt: skip
        return {
            "user": burst.user,
            "start": start,
            "offset": track.first,
            "samples": track.samples,
            "lost": burst.buffer.lost,
            "late": burst.buffer.late,
            "jitter": round(burst.jitter, 6),
            "concealed": track.concealed,
            "silent": silent,
            "delay": round(burst.buffer.delay, 4),
            **figures,
        }

    def next_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        return self._flush_due

    def handle_timer(self, now: float) -> None:
        """Brings the recording up to date on disk when it is time."""
        if self._flush_due is not None and now >= self._flush_due:
            self.flush()

    def flush(self) -> None:
        """Brings the recording up to date on disk now."""
        self._flush_due = None
        if self._timeline is not None:
            self._timeline.flush()

    def _close_recording(self) -> None:
        timeline, self._timeline = self._timeline, None
        self._flush_due = None
        if timeline is not None:
            timeline.close()

    def close(self) -> None:
        """The recording ends."""
        self._close_recording()
