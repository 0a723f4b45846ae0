# SPDX-License-Identifier: Apache-2.0
"""What an initiator must not forget of a group, written down before the octets it speaks of leave; sans-IO.

After a crash at any instant the journal names everyone who may hold a key (*sealed to*), who was removed, the last T
that was used and the GMK-IDs that are taken (security rule 15). It holds no key: a restarted initiator makes a
fresh TGMK for those sealed to and not removed. An entry is one line of JSON, only ever appended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mcptt_sip.errors import SipError


class JournalError(SipError):
    """A journal that cannot be read or written. What it was to record must not leave."""


class Journal(Protocol):
    """One group's journal."""

    def append(self, line: str) -> None:
        """The line is on disk on return. Raises :class:`JournalError`."""

    def lines(self) -> Iterable[str]:
        """What was appended, in order; a line that a crash cut off is not among it."""

    def close(self) -> None:
        """The group is over: the journal may go."""


class NoJournal:
    """For a client that keeps nothing: a crash ends its part in every call that it initiated."""

    def append(self, line: str) -> None:
        """Forgets it."""

    def lines(self) -> Iterable[str]:
        return ()

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass(slots=True)
class GroupRecord:
    """The state of one group as its journal tells it."""

    group: str = ""
    signer: str = ""
    terms: str = ""
    session_identity: str | None = None
    sealed_to: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    used_ids: set[int] = field(default_factory=set)
    last_time: float = 0.0

    @property
    def members(self) -> frozenset[str]:
        """Who gets the fresh key after a restart."""
        return frozenset(self.sealed_to - self.removed)

    @classmethod
    def read(cls, lines: Iterable[str]) -> GroupRecord | None:
        """``None`` when nothing was written. Raises :class:`JournalError` for what is no journal."""
        record = cls()
        for line in lines:
            try:
                entry = json.loads(line)
                record._take(entry)
            except (ValueError, KeyError, TypeError) as error:
                raise JournalError(f"not a journal entry: {line[:80]!r}") from error
        return record if record.group else None

    def _take(self, entry: dict[str, Any]) -> None:
        match entry["what"]:
            case "group":
                self.group, self.signer, self.terms = str(entry["group"]), str(entry["signer"]), str(entry["terms"])
            case "session":
                self.session_identity = str(entry["identity"])
            case "key":
                self.used_ids.add(int(entry["gmk_id"], 16))
            case "sealed":
                self.sealed_to.add(str(entry["user"]))
                self.removed.discard(str(entry["user"]))
                self.last_time = max(self.last_time, float(entry["t"]))
            case "removed":
                self.removed.add(str(entry["user"]))
            case other:
                raise KeyError(other)


def entry(what: str, **details: object) -> str:
    """One line of a journal."""
    return json.dumps({"what": what, **details}, separators=(",", ":"))
