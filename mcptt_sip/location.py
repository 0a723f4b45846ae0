# SPDX-License-Identifier: Apache-2.0
"""A location service in an SQLite file, so that a registrar that restarts still knows where everybody is.

A connection does not outlive the process that held it: bindings over one are kept (their contacts may be reached by
another), but lead to no flow any more. See `SqliteLocationService.flows_are_gone`.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from mcptt_sip.flow import Flow
from mcptt_sip.registrar import Binding
from mcptt_sip.uri import parse_uri

__all__ = ["SqliteLocationService"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS bindings (
    aor TEXT NOT NULL, place INTEGER NOT NULL, flow TEXT NOT NULL, outbound INTEGER NOT NULL,
    expires_at REAL NOT NULL, binding TEXT NOT NULL,
    PRIMARY KEY (aor, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_flow ON bindings (flow);
CREATE INDEX IF NOT EXISTS by_expiry ON bindings (expires_at);
"""


class SqliteLocationService:
    """Keeps bindings in a file; one process at a time. Implements `mcptt_sip.registrar.LocationService`.

    A change is on disk when `put` returns.
    """

    def __init__(self, path: Path | str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)

    def get(self, aor: str) -> list[Binding]:
        """See `LocationService`."""
        rows = self._database.execute("SELECT binding FROM bindings WHERE aor = ? ORDER BY place", (aor,))
        return [_from_json(text) for (text,) in rows]

    def put(self, aor: str, bindings: list[Binding]) -> None:
        """See `LocationService`."""
        rows = [
            (aor, place, _flow_key(binding.flow), binding.reg_id is not None and binding.flow.reliable,
             binding.expires_at, _to_json(binding))
            for place, binding in enumerate(bindings)
        ]  # fmt: skip
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("DELETE FROM bindings WHERE aor = ?", (aor,))
            self._database.executemany("INSERT INTO bindings VALUES (?, ?, ?, ?, ?, ?)", rows)

    def over(self, flow: Flow) -> list[str]:
        """See `LocationService`."""
        rows = self._database.execute(
            "SELECT DISTINCT aor FROM bindings WHERE flow = ? ORDER BY aor", (_flow_key(flow),)
        )
        return [aor for (aor,) in rows]

    def flows_are_gone(self) -> int:
        """After a restart: removes the bindings of outbound flows over connections (RFC 5626 5.3), which nobody can
        reach; how many there were."""
        return self._database.execute("DELETE FROM bindings WHERE outbound").rowcount

    def forget_expired(self, now: float) -> int:
        """Removes what has expired; how many there were. `get` may give such bindings, a registrar ignores them."""
        return self._database.execute("DELETE FROM bindings WHERE expires_at <= ?", (now,)).rowcount

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()


def _flow_key(flow: Flow) -> str:
    return f"{flow}#{flow.id}"


def _to_json(binding: Binding) -> str:
    flow = binding.flow
    return json.dumps(
        {
            "contact": str(binding.contact), "flow": [flow.transport, *flow.local, *flow.remote, flow.id],
            "registered": binding.registered, "expires_at": binding.expires_at, "call_id": binding.call_id,
            "cseq": binding.cseq, "q": binding.q, "path": binding.path, "instance": binding.instance,
            "reg_id": binding.reg_id,
        }
    )  # fmt: skip


def _from_json(text: str) -> Binding:
    held = json.loads(text)
    transport, local_host, local_port, remote_host, remote_port, number = held.pop("flow")
    flow = Flow(transport, (local_host, local_port), (remote_host, remote_port), number)
    contact, path = parse_uri(held.pop("contact")), tuple(held.pop("path"))
    return Binding(contact=contact, flow=flow, path=path, **held)
