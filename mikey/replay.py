# SPDX-License-Identifier: Apache-2.0
"""Replay caches and pairing budgets (RFC 3830 §5.4; security rules 7 and 26).

An accepted message is known by the SHA-256 of its signed octets (signatures are malleable). A hit while its
key is held tells what to acknowledge again; a hit after the key was dropped is refused. So is a message of a
temporary group that was never seen, but is older than one that was accepted from the same signer for the same group
(security rule 14): whoever held it back would bring an old key back into use, after a re-join or a restart as well.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict

from mikey.errors import PairingBudgetExceeded, Replayed, ReplayStateLost, Superseded
from mikey.imessage import OpenedKey
from mikey.keys import KeyType


def line_of(opened: OpenedKey) -> bytes | None:
    """Which messages follow one another by T: those of one signer for one temporary group. None for all others."""
    key = opened.key
    if key.type is not KeyType.GMK or len(key.group_ids) != 1:
        return None
    signer = opened.sender_uri or opened.sender_uid.hex()
    return hashlib.sha256(signer.encode() + b"\0" + key.group_ids[0].encode()).digest()


class MemoryReplayCache:
    """A replay cache that ends with the process.

    An entry is dropped when its T has left the skew window, or when more than `capacity` are held; what is
    dropped raises the floor, and messages at or below the floor are refused: nothing is forgotten silently,
    nor when the clock steps back. `lost_at` (Unix seconds) says that earlier state is gone, as after a
    restart: until T has passed it by one skew interval, messages may have been accepted before and are
    refused. None asserts that there was no earlier state.
    """

    def __init__(self, *, skew: float = 300.0, capacity: int = 65536, lost_at: float | None = None) -> None:
        self._skew = skew
        self._capacity = capacity
        self._entries: dict[bytes, OpenedKey | None] = {}
        self._by_time: list[tuple[float, bytes]] = []
        self._newest: dict[bytes, float] = {}
        self._floor = float("-inf") if lost_at is None else lost_at + skew

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, digest: bytes, timestamp: float, now: float) -> None:
        """Raise `Replayed` or `ReplayStateLost`, or return: the message is new."""
        if digest in self._entries:
            raise Replayed("this message was accepted before", self._entries[digest])
        if timestamp <= self._floor:
            raise ReplayStateLost("this message may have been accepted before")

    def record(self, opened: OpenedKey, now: float) -> None:
        """Remember an accepted message and its key. Raises `Replayed` when another thread was faster, `Superseded`
        when a newer one was accepted: the key must not be used then."""
        if opened.signed_digest in self._entries:
            raise Replayed("this message was accepted before", self._entries[opened.signed_digest])
        if (line := line_of(opened)) is not None:
            if opened.timestamp <= self._newest.get(line, float("-inf")):
                raise Superseded("a newer key of this group was accepted before")
            self._newest[line] = opened.timestamp
        self._entries[opened.signed_digest] = opened
        heapq.heappush(self._by_time, (opened.timestamp, opened.signed_digest))
        while self._by_time and (
            now - self._by_time[0][0] > self._skew or len(self._entries) > self._capacity
        ):
            timestamp, digest = heapq.heappop(self._by_time)
            del self._entries[digest]
            self._floor = max(self._floor, timestamp)
        # what the floor refuses needs no other reason
        if any(at <= self._floor for at in self._newest.values()):
            self._newest = {line: at for line, at in self._newest.items() if at > self._floor}

    def forget_keys(self, group: str | None = None) -> int:
        """Drop held keys, of one group or all, and keep the entries: their messages stay refused."""
        dropped = 0
        for digest, opened in self._entries.items():
            if opened is not None and (group is None or group in opened.key.group_ids):
                self._entries[digest] = None
                dropped += 1
        return dropped


class PairingBudget:
    """Pairings per signer: a token bucket of `burst`, refilled at `rate` a second; `signers` are
    remembered."""

    def __init__(self, *, rate: float = 2.0, burst: float = 20.0, signers: int = 4096) -> None:
        self._rate, self._burst, self._signers = rate, burst, signers
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def spend(self, signer: bytes, now: float) -> None:
        """Take one pairing from the signer's share, or raise `PairingBudgetExceeded`."""
        left, since = self._buckets.pop(signer, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - since) * self._rate)
        if left < 1:
            self._buckets[signer] = (left, now)
            raise PairingBudgetExceeded("this signer has used up his pairings")
        self._buckets[signer] = (left - 1, now)
        while len(self._buckets) > self._signers:
            self._buckets.popitem(last=False)
