# SPDX-License-Identifier: Apache-2.0
"""From what stack and media tell of their messages to the records of a capture."""

from __future__ import annotations

from mcptt_sip.ops.capture import Address, Capture
from mcptt_sip.trace import Direction, MessageRecord


class CaptureTap:
    """Writes what it is told into one capture; without one it does nothing.

    Floor messages arrive twice, as the protected datagram and opened; only the opened one is written, since
    readers of captures take protected RTCP for broken RTCP.
    """

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture

    def sip(self, record: MessageRecord) -> None:
        """A SIP message (a `TraceSink`)."""
        if self._capture is None:
            return
        self._capture.sip(
            record.time,
            outbound=record.direction is Direction.SENT,
            transport=record.flow.transport,
            local=record.flow.local,
            remote=record.flow.remote,
            octets=record.octets,
        )

    def media(
        self, kind: str, outbound: bool, local: Address, remote: Address, octets: bytes, at: float
    ) -> None:
        """A media or floor datagram, or (kind ``floor-opened``) a floor message in clear."""
        if self._capture is None or kind == "floor":
            return
        write = self._capture.floor if kind == "floor-opened" else self._capture.datagram
        write(at, outbound=outbound, local=local, remote=remote, octets=octets)

    def close(self) -> None:
        """Nothing is written any more."""
        if self._capture is not None:
            self._capture.close()
            self._capture = None
