# SPDX-License-Identifier: Apache-2.0
"""How well each talk burst of a call was heard, from what the phones measured: nothing is measured here.

The talker's phone measures the access time, each listener's phone the rest: mouth-to-ear delay, loss, jitter,
concealment, and from them the E-model's rating (ITU-T G.107).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mcptt_sip.ops.scenario import Event
from media.codec import FRAME_SAMPLES, FRAME_SECONDS

__all__ = ["BurstQuality", "Hearing", "burst_quality", "in_one_line"]

#: so many frames may be missing at the end of a burst that was heard whole: 100 ms
_FEW = 5


@dataclass(frozen=True, slots=True)
class Hearing:
    """One burst at one listener. Times in milliseconds; frames of 20 ms.

    :param frames: from the first to the last that was played; ``lost`` ones were not there at their time, ``late`` of
        them came afterwards; ``concealed`` ones were made up in their place, at ``silent`` ones nothing was heard
    :param mouth_to_ear_ms: from a sample's recording to its playing, both on this machine's clock; ``None`` when no
        packet stated its time
    :param rating: R of the E-model, 0 to 93.2; ``opinion``: the mean opinion score that it stands for
    :param whole: whether the listener was there from the burst's beginning to its end
    """

    member: str
    frames: int
    whole: bool
    mouth_to_ear_ms: float | None
    lost: int
    late: int
    concealed: int
    silent: int
    jitter_ms: float
    rating: float | None
    opinion: float | None


@dataclass(frozen=True, slots=True)
class BurstQuality:
    """One burst. Times in milliseconds, ``start_ms`` from the call's first INVITE.

    :param access_ms: from the button to Floor Granted, the waiting in the queue included
    :param queued: whether he had to wait there
    """

    talker: str
    start_ms: float
    frames: int
    access_ms: float | None
    queued: bool
    heard: list[Hearing] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def burst_quality(
    events: Mapping[str, Sequence[Event]], phones: Sequence[str], users: Mapping[str, str], start: float
) -> list[BurstQuality]:
    """Every burst in the order of time, with everyone who heard any of it.

    :param events: what each process told, in its own order
    :param users: the MCPTT ID of each of ``phones``
    :param start: Unix time from which ``start_ms`` counts
    """
    names = {user: name for name, user in users.items()}
    bursts: list[tuple[float, BurstQuality]] = []
    for name in phones:
        granted: Event | None = None
        queued = waited = False
        for event in events.get(name, ()):
            match event["event"]:
                case "floor-queued":
                    queued = True
                case "floor-granted":
                    granted, waited, queued = event, queued, False
                case "burst-sent":
                    frames = round(event["duration"] / FRAME_SECONDS)
                    access = None if granted is None else round(granted["access"] * 1000, 1)
                    at = event["start"]
                    quality = BurstQuality(name, round((at - start) * 1000, 1), frames, access, waited)
                    bursts.append((at, quality))
                    granted, waited = None, False
    bursts.sort(key=lambda found: found[0])
    for name in phones:
        for event in events.get(name, ()):
            if event["event"] == "burst-heard":
                talker = names.get(event["user"])
                # nothing is heard before it is said: it is the talker's last burst until then
                said = [burst for at, burst in bursts if burst.talker == talker and at <= event["start"]]
                if said:
                    said[-1].heard.append(_hearing(name, event, said[-1].frames))
    return [burst for _, burst in bursts]


def _hearing(member: str, event: Event, said: int) -> Hearing:
    delay = event.get("mouth_to_ear")
    frames = event["samples"] // FRAME_SAMPLES
    return Hearing(
        member=member, frames=frames, whole=frames > said - _FEW, lost=event["lost"], late=event["late"],
        concealed=event["concealed"], silent=event["silent"], jitter_ms=round(event["jitter"] * 1000, 2),
        mouth_to_ear_ms=None if delay is None else round(delay * 1000, 1), rating=event.get("rating"),
        opinion=event.get("opinion"),
    )  # fmt: skip


def in_one_line(bursts: Sequence[BurstQuality]) -> str:
    """The worst of every figure."""
    heard = [hearing for burst in bursts for hearing in burst.heard]
    access = [burst.access_ms for burst in bursts if burst.access_ms is not None and not burst.queued]
    ears = [hearing.mouth_to_ear_ms for hearing in heard if hearing.mouth_to_ear_ms is not None]
    ratings = [hearing.rating for hearing in heard if hearing.rating is not None]
    parts = [f"{len(bursts)} talk bursts heard {len(heard)} times"]
    if access:
        parts.append(f"access within {max(access):.0f} ms")
    if ears:
        parts.append(f"mouth to ear within {max(ears):.0f} ms")
    frames, lost = sum(hearing.frames for hearing in heard), sum(hearing.lost for hearing in heard)
    concealed, silent = sum(hearing.concealed for hearing in heard), sum(hearing.silent for hearing in heard)
    parts.append(f"of {frames} frames {lost} lost, {concealed} concealed, {silent} silent")
    if heard:
        parts.append(f"jitter within {max(h.jitter_ms for h in heard):.1f} ms")
    if ratings:
        parts.append(f"R at least {min(ratings):.0f}")
    return ", ".join(parts)
