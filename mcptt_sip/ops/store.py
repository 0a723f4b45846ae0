# SPDX-License-Identifier: Apache-2.0
"""Journals of the groups that a phone initiated, as files: one per group, appended and synced line by line."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mcptt_sip.mcptt.journal import GroupRecord, JournalError
from mikey.at_rest import sync_folder

_SUFFIX = ".journal"
#: a thousand members, some dozens of keys
MAX_JOURNAL = 1 << 26


class FileJournal:
    """A :class:`~mcptt_sip.mcptt.journal.Journal` in one file of mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def append(self, line: str) -> None:
        try:
            if self._descriptor is None:
                new = not self._path.exists()
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                if new:
                    sync_folder(self._path.parent)
                elif self._path.stat().st_size and not self._path.read_bytes().endswith(b"\n"):
                    os.write(self._descriptor, b"\n")  # what a crash cut off stays a line of its own
            data = line.encode() + b"\n"
            if os.write(self._descriptor, data) != len(data):
                raise JournalError(f"{self._path.name}: the line was not written whole")
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise JournalError(f"{self._path.name}: {error}") from error

    def lines(self) -> Iterator[str]:
        try:
            if self._path.stat().st_size > MAX_JOURNAL:
                raise JournalError(f"{self._path.name}: more than {MAX_JOURNAL} octets")
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise JournalError(f"{self._path.name}: {error}") from error
        *whole, _cut_off = text.split(b"\n")
        for line in whole:
            if line.startswith(b"{") and line.endswith(b"}"):
                yield line.decode("utf-8", "replace")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class JournalFolder:
    """A phone's journals; each file is named after its group, so that none is taken for another."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def __call__(self, group: str) -> FileJournal:
        """The journal of one group, new or old."""
        return FileJournal(self._folder / (hashlib.sha256(group.encode()).hexdigest()[:32] + _SUFFIX))

    def unfinished(self) -> list[GroupRecord]:
        """What the journals of groups tell that were not ended in order, oldest first.

        Raises :class:`JournalError` for a file that is no journal."""
        paths = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        records = (GroupRecord.read(FileJournal(path).lines()) for path in paths)
        return [record for record in records if record is not None]
