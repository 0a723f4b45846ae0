# SPDX-License-Identifier: Apache-2.0
"""Which I_MESSAGEs a controlling function has passed on already; sans-IO.

A message that is sent once more inside its transaction is the transport's affair and never comes here. In a new
request it is a replay: its recipient would refuse it, so that nothing is invited with it twice (digest E.1). Only
digests are kept (security rule 7).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict


class DeliveredKeys:
    """Remembers for ``memory`` seconds, longer than the time stamp of a message is accepted; at most ``capacity``,
    the oldest go first."""

    def __init__(self, *, memory: float = 900.0, capacity: int = 65536) -> None:
        self._memory = memory
        self._capacity = capacity
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, octets: bytes) -> bool:
        return hashlib.sha256(octets).digest() in self._seen

    def record(self, octets: bytes, now: float) -> None:
        """``octets`` go to their recipient."""
        digest = hashlib.sha256(octets).digest()
        self._seen[digest] = now
        self._seen.move_to_end(digest)
        while self._seen:
            oldest, at = next(iter(self._seen.items()))
            if now - at <= self._memory and len(self._seen) <= self._capacity:
                break
            del self._seen[oldest]
