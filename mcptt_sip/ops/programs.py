# SPDX-License-Identifier: Apache-2.0
"""What every long-running program of the command line shares: events as JSON lines, signals, listen addresses."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import signal
import sys
import time
from typing import Any

#: exit codes of every command
PASSED, FAILED, USAGE, ENVIRONMENT = 0, 1, 2, 3
_controls = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
TRANSPORTS = ("udp", "tcp", "tls", "ws", "wss")


def emit(event: str, **details: Any) -> None:
    """One event as one JSON line on standard output, with Unix time ``t``."""
    line = json.dumps({"event": event, "t": round(time.time(), 6), **details}, default=str)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class StopSignals:
    """SIGINT and SIGTERM: the first asks for an orderly end, the second ends at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def install(self) -> StopSignals:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        return self

    def _signalled(self, number: int) -> None:
        if self.asked.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked.set()


class OneLine(logging.Formatter):
    """A message is one line, whatever a peer has put into it: nobody writes lines of his own into the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        record.message = _controls.sub(lambda found: ascii(found[0])[1:-1], record.message)
        return super().formatMessage(record)


def set_up_logging(verbosity: int) -> None:
    """Warnings, the story of each call (``-v``), or every message's arrival (``-vv``) on standard error."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        OneLine("%(asctime)s.%(msecs)03d level=%(levelname)s logger=%(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def calm_collector() -> None:
    """Has Python look for garbage in circles seldom: what a SIP stack lets go of is in none, and with thousands of
    dialogs or members each search stops the loop for long. What was loaded so far is never searched again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(250, 4, 40_000)  # small searches among what is young; hardly ever one of everything


def host_and_port(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[HOST]:PORT``; raises ValueError with a sentence."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def listener(text: str) -> tuple[str, str, int]:
    """``TRANSPORT:HOST:PORT``; raises ValueError with a sentence."""
    transport, _, address = text.partition(":")
    if transport not in TRANSPORTS:
        raise ValueError(f"{text!r}: the transport is one of {', '.join(TRANSPORTS)}")
    return (transport, *host_and_port(address))
