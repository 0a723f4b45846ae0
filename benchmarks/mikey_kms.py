# SPDX-License-Identifier: Apache-2.0
"""How many keyprov requests a KMS with many users serves on one core, over HTTPS, each on disk before its answer.

    python benchmarks/mikey_kms.py [--users N] [--seconds S] [--json]

The KMS runs as its own process, bound to the first core; the clients are on another. Two figures: connections kept
alive, and a new connection with a full TLS handshake for each request. The same requests to `init`, which issues
nothing, show what HTTPS alone costs. Aims: 300 and 60 requests a second.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # a file of this folder has the name of the package: it must not be searched
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import asyncio
import itertools
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator

from mikey.kms_documents import ROOT
from mikey.tls import client_context

DOMAIN = "example.org"


class Load:
    """Requests of users in turn."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, tokens: list[str]) -> None:
        self._where = host, port
        self._context = context
        self._tokens: Iterator[str] = itertools.cycle(tokens)
        self.done = 0

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, resource: str) -> None:
        token = next(self._tokens)
        writer.write(f"POST {ROOT}/{resource} HTTP/1.1\r\nHost: kms\r\nAuthorization: Bearer {token}\r\n"
                     "Content-Length: 0\r\n\r\n".encode())  # fmt: skip
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.split(b"\r\n")[0].decode())
        length = next(int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
        body = await reader.readexactly(length)
        if b"KmsMessage" not in body:
            raise RuntimeError("an answer without keys")
        self.done += 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._where, ssl=self._context, server_hostname="localhost")

    async def kept_alive(self, resource: str, until: float) -> None:
        """One connection, request after request."""
        reader, writer = await self._connect()
        while time.perf_counter() < until:
            await self._ask(reader, writer, resource)
        writer.close()

    async def anew(self, resource: str, until: float) -> None:
        """A connection for each request."""
        while time.perf_counter() < until:
            reader, writer = await self._connect()
            await self._ask(reader, writer, resource)
            writer.close()
            await writer.wait_closed()


async def rate(load: Load, kind: str, resource: str, seconds: float, parallel: int) -> float:
    """Requests a second."""
    load.done = 0
    began = time.perf_counter()
    run = load.kept_alive if kind == "kept alive" else load.anew
    await asyncio.gather(*(run(resource, began + seconds) for _ in range(parallel)))
    return load.done / (time.perf_counter() - began)


def main() -> int:
    """Measure and print. Exits 0 whatever is met: a figure is no test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    tokens = [f"token-of-user-{n}" for n in range(options.users)]
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "users").write_text(json.dumps({t: f"sip:user{n}@{DOMAIN}" for n, t in enumerate(tokens)}))
        server = subprocess.Popen(
            [sys.executable, "-m", "mikey", "kms", "--store", str(at / "kms.db"), "--key-file", str(at / "key"),
             "--users", str(at / "users")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).resolve().parents[1],
            preexec_fn=lambda: os.sched_setaffinity(0, cores[:1]),
        )  # fmt: skip
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            if len(cores) > 1:
                os.sched_setaffinity(0, cores[1:])
            context = client_context(Path(ready["authority"]))
            host, _, port = ready["url"].removeprefix("https://").rpartition(":")
            load = Load(host, int(port), context, tokens)
            rows = []
            for kind, aim in (("kept alive", 300), ("a new handshake each", 60)):
                for resource in ("keyprov", "init"):
                    got = asyncio.run(rate(load, kind, resource, options.seconds, options.parallel))
                    wanted = aim if resource == "keyprov" else None
                    rows.append({"resource": resource, "connections": kind, "per_second": got, "aim": wanted,
                                 "met": None if wanted is None else got >= wanted})  # fmt: skip
        finally:
            server.terminate()
            server.wait()
    if options.json:
        print(json.dumps({"users": options.users, "rows": rows}))
        return 0
    print(f"one core, {options.users} users, {options.parallel} clients at a time, every issued key on disk first\n")
    for row in rows:
        verdict = "" if row["met"] is None else f"aim {row['aim']}: {'met' if row['met'] else 'not met'}"
        print(f"{row['resource']:8} {row['connections']:22} {row['per_second']:8.0f} a second  {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
