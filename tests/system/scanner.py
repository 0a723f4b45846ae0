# SPDX-License-Identifier: Apache-2.0
"""Looks for secrets in the memory of a process and in files, in every form that software keeps them in."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

#: octets read at a time; what lies across the border of two reads is found all the same
PIECE = 1 << 22


def forms(secret: bytes) -> dict[str, bytes]:
    """Raw, as a big integer stores it (byte-reversed), hex, and base64 at each of the three alignments."""
    found = {
        "raw": secret,
        "reversed": secret[::-1],
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "escaped": "".join(f"\\x{octet:02x}" for octet in secret).encode(),
    }
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret)
        # the characters at both ends that depend on the neighbours are left out
        found[f"base64+{offset}"] = encoded[(offset * 8 + 5) // 6 : (offset + len(secret)) * 8 // 6]
    return found


def writable(pid: int) -> Iterator[tuple[int, int]]:
    """The parts of a process's memory that it can have written to."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, permissions, *_ = line.split()
        if permissions.startswith("rw"):
            start, _, end = span.partition("-")
            yield int(start, 16), int(end, 16)


def pieces_of_memory(pid: int) -> Iterator[bytes]:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end in writable(pid):
            at = start
            while at < end:
                try:
                    memory.seek(at)
                    piece = memory.read(min(PIECE, end - at))
                except OSError:  # a guard page, or unmapped since
                    break
                if not piece:
                    break
                yield piece
                at += len(piece) if len(piece) <= 256 or at + len(piece) >= end else len(piece) - 256


def search(pieces: Iterable[bytes], secrets: Mapping[str, bytes]) -> set[tuple[str, str]]:
    """(name of the secret, form) of everything found."""
    wanted = [(name, form, octets) for name, secret in secrets.items() for form, octets in forms(secret).items()]
    found: set[tuple[str, str]] = set()
    for piece in pieces:
        found |= {(name, form) for name, form, octets in wanted if octets in piece}
    return found


def in_process(pid: int, secrets: Mapping[str, bytes]) -> set[tuple[str, str]]:
    return search(pieces_of_memory(pid), secrets)


def in_files(files: Iterable[Path], secrets: Mapping[str, bytes]) -> set[tuple[str, str]]:
    return search((file.read_bytes() for file in files), secrets)
