# SPDX-License-Identifier: Apache-2.0
"""Reading octets that a stranger has written."""

from __future__ import annotations

from mikey.errors import ParseError


class Reader:
    """Octets with a place in them; every read past the end is a `ParseError`."""

    __slots__ = ("_size", "at", "octets")

    def __init__(self, octets: bytes, at: int = 0) -> None:
        self.octets = octets
        self._size = len(octets)
        self.at = at

    def take(self, count: int, what: str) -> bytes:
        """The next `count` octets."""
        at = self.at
        end = at + count
        if end > self._size:
            raise ParseError(f"{what} runs past the end", at)
        self.at = end
        return self.octets[at:end]

    def octet(self, what: str) -> int:
        """The next octet."""
        at = self.at
        if at >= self._size:
            raise ParseError(f"{what} runs past the end", at)
        self.at = at + 1
        return self.octets[at]

    def number(self, count: int, what: str) -> int:
        """The next `count` octets as an unsigned integer."""
        return int.from_bytes(self.take(count, what), "big")

    def counted(self, count: int, what: str) -> bytes:
        """Octets preceded by their length in one or two octets."""
        at = self.at
        start = at + count
        if start > self._size:
            raise ParseError(f"length of {what} runs past the end", at)
        octets = self.octets
        end = start + (octets[at] if count == 1 else octets[at] << 8 | octets[at + 1])
        if end > self._size:
            raise ParseError(f"{what} runs past the end", start)
        self.at = end
        return octets[start:end]

    @property
    def done(self) -> bool:
        """Whether everything was read."""
        return self.at == self._size
