# SPDX-License-Identifier: Apache-2.0
"""Fixed-base tables on disk, under a checksum, so that a program's first seal is as fast as its later ones.

Only tables of public points are kept: P, g and the Z of KMSs. The lines of an RSK are as secret as the RSK and end
with the process. A table that is broken, foreign or not ours is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from pathlib import Path

from mikey import fixed_base
from mikey.errors import StoreError

log = logging.getLogger(__name__)

_MAGIC = b"MIKEYTB1"
_HEAD = len(_MAGIC) + 32


class TableFolder:
    """A `Shelf` in a folder that only its owner writes."""

    def __init__(self, path: Path) -> None:
        """Makes the folder (mode 0700). Raises `StoreError` when others could put tables into it."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.stat()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise StoreError(f"{path}: others may write there")

    def load(self, name: str, length: int) -> bytes | None:
        """The table of a name when it is whole and its checksum holds."""
        try:
            with open(self.path / f"{name}.table", "rb") as file:
                head, body = file.read(_HEAD), file.read(length + 1)
        except OSError:
            return None
        if len(body) != length or head != _MAGIC + _sum(name, body):
            log.warning("the table %s is broken and is built anew", name)
            return None
        return body

    def save(self, name: str, octets: bytes) -> None:
        """Keep a table; a full disk is no error, then it is built again next time."""
        target = self.path / f"{name}.table"
        draft = self.path / f".{name}.{os.getpid()}"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(_MAGIC + _sum(name, octets))
                file.write(octets)
            os.replace(draft, target)
        except OSError as error:
            log.warning("the table %s is not kept: %s", name, error.strerror)
            with contextlib.suppress(OSError):
                draft.unlink()


def _sum(name: str, body: bytes) -> bytes:
    digest = hashlib.sha256(name.encode())
    digest.update(body)
    return digest.digest()


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/mikey`, else `~/.cache/mikey`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root.startswith("/") else Path.home() / ".cache") / "mikey"


def keep_tables(folder: Path | None = None) -> Path:
    """Keep tables of public points in a folder from now on; where. About 4 MB for each KMS.

    Raises `StoreError` when the folder cannot be used.
    """
    shelf = TableFolder(default_folder() if folder is None else folder)
    fixed_base.shelf = shelf
    return shelf.path
