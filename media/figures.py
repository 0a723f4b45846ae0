# SPDX-License-Identifier: Apache-2.0
"""A member's counters, put together for whoever watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from media.playout import Playout
from media.talking import Talker

__all__ = ["member_figures"]


def member_figures(
    own: Mapping[str, int],
    protection: Mapping[str, int],
    reception: Mapping[str, int],
    talker: Talker,
    playout: Playout,
    send_errors: int,
) -> dict[str, Any]:
    """{sent, received, authenticated, dropped {reason: packets}, bursts, frames, lost, late, duplicates, concealed,
    silent, jitter (seconds, of the last burst), unsent, floor_sent, floor_received, floor_dropped, send_errors}."""
    refused = Counter(protection)
    accepted = refused.pop("accepted", 0)
    heard = Counter(reception)
    figures = {name: heard.pop(name, 0) for name in ("bursts", "frames", "lost", "late", "duplicates")}
    drops = refused + heard + Counter({name: own[name] for name in ("unknown-source", "malformed-rtp")})
    return {
        "sent": talker.sent,
        "received": own["audio-received"],
        "authenticated": accepted,
        "dropped": {reason: count for reason, count in sorted(drops.items()) if count},
        **figures,
        "concealed": playout.concealed,
        "silent": playout.silent,
        "jitter": round(playout.jitter, 6),
        "unsent": talker.unsent,
        "floor_sent": own["floor-sent"],
        "floor_received": own["floor-received"],
        "floor_dropped": own["floor-dropped"],
        "send_errors": send_errors,
    }
