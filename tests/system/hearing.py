# SPDX-License-Identifier: Apache-2.0
"""What a phone of a lab heard, from its recording and its events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mcptt_sip.ops.recording import samples_of as samples
from mcptt_sip.ops.scenario import Lab

__all__ = ["bursts_heard", "samples"]


def bursts_heard(out: Path, listener: str, talker: str) -> list[np.ndarray[Any, Any]]:
    """The part of the recording that each burst of ``talker`` fills, in order."""
    events = [json.loads(line) for line in (out / f"{listener}.events.jsonl").read_text().splitlines()]
    heard = [e for e in events if e["event"] == "burst-heard" and e["user"] == Lab.uri(talker)]
    if not heard:
        return []
    track, _ = samples(out / f"{listener}.wav")
    return [track[e["offset"] : e["offset"] + e["samples"]] for e in heard]
