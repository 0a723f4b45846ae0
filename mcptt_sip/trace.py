# SPDX-License-Identifier: Apache-2.0
"""What may be observed of a stack: one frozen record per message that crossed a socket.

A record holds the message in clear whatever the transport, so a capture of a TLS leg can be read. Credentials
inside are those of SIP (a digest response, never a password).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mcptt_sip.flow import Flow

__all__ = ["Direction", "MessageRecord", "TraceSink"]


class Direction(Enum):
    """Seen from this process."""

    RECEIVED = "received"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One SIP message as it was sent or received. `time` is seconds since the epoch."""

    time: float
    direction: Direction
    flow: Flow
    octets: bytes


class TraceSink(Protocol):
    """Anything that takes records: a capture file, a test, a screen. Must not block."""

    def __call__(self, record: MessageRecord, /) -> None: ...
