# SPDX-License-Identifier: Apache-2.0
"""`python -m mikey fetch`: ask a KMS for one user's keys, prove them, and write them down for tests.

What it writes are KMS documents in clear (mode 0600), which `inspect --keys` reads. Phones use `KeyKeeper`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mikey.errors import KmsError
from mikey.keyring import Keyring
from mikey.kms_client import KmsClient
from mikey.kms_command import load_transport_keys
from mikey.kms_documents import KmsResponse, encode_response
from mikey.tls import client_context

TOKEN_VARIABLE = "MIKEY_KMS_TOKEN"  # the variable's name, not a token  # noqa: S105


def fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("url", metavar="URL", help="https://HOST:PORT of the KMS (http on loopback only)")
    parser.add_argument("--uri", required=True, help="whose keys")
    parser.add_argument("--token-file", type=Path, metavar="FILE",
                        help=f"bearer token, also in the environment as {TOKEN_VARIABLE}")
    parser.add_argument("--authority", type=Path, metavar="PEM", help="who vouches for the KMS (default: the system's)")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="prove the user by this certificate")
    parser.add_argument("--private-key", type=Path, metavar="PEM", help="and this key")
    parser.add_argument("--transport-keys", type=Path, metavar="FILE", help="TrK and InK, as the KMS has them")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="write certificates.xml and keys.xml, in clear")  # fmt: skip


def _token(options: argparse.Namespace) -> str | None:
    if options.token_file is not None:
        return str(options.token_file.read_text(encoding="utf-8").strip())
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None and options.certificate is None:
        raise KmsError(f"--token-file, {TOKEN_VARIABLE} or --certificate: who asks?")
    return token


def _write(path: Path, octets: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(octets)


async def run_fetch(options: argparse.Namespace, write: Callable[[str], object] = print) -> int:
    """Fetch and prove this period's keys and the next one's; one JSON line for each. Raises `MikeyError`, `OSError`."""
    context = None
    if options.authority is not None:
        context = client_context(
            options.authority, certificate=options.certificate, private_key=options.private_key
        )
    protected = load_transport_keys(options.transport_keys) if options.transport_keys is not None else {}
    ring = Keyring()
    client = KmsClient(
        options.url, token=_token(options), uri=options.uri, clock=time.time, ssl_context=context,
        transport_keys=protected.get(options.uri),
    )  # fmt: skip
    async with client:
        await client.fetch(ring)
    key_sets = ring.key_sets(options.uri)
    for key_set in key_sets:
        facts: dict[str, Any] = {
            "uri": key_set.uri, "kms_uri": key_set.kms_uri, "uid": key_set.uid.hex(), "period": key_set.period_no,
            "valid_from": key_set.valid_from, "valid_to": key_set.valid_to,
        }  # fmt: skip
        write(json.dumps(facts))
    if options.out is not None:
        options.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        now, home, known = time.time(), key_sets[0].kms_uri if key_sets else "-", ring.certificates
        first = KmsResponse(options.uri, home, now, options.url, cache=known, cache_no=len(known))
        _write(options.out / "certificates.xml", encode_response(first))
        second = KmsResponse(options.uri, home, now, options.url, key_sets=key_sets)
        _write(options.out / "keys.xml", encode_response(second))
    return 0
