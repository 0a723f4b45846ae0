# SPDX-License-Identifier: Apache-2.0
"""`python -m mikey`: the KMS and the inspector without any SIP."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mikey.errors import KmsError, MikeyError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_ENVIRONMENT = 0, 1, 2, 3


def load_users(path: Path) -> dict[str, str]:
    """Bearer tokens from a file: JSON object token -> user URI, or lines `token user-URI`; # begins a
    comment.

    Raises `KmsError` for anything else, without repeating the line.
    """
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("{"):
        try:
            loaded = json.loads(text)
        except ValueError as error:
            raise KmsError(f"{path}: not JSON: {error}") from None
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in loaded.items()):
            raise KmsError(f"{path}: must map tokens to user URIs")
        return dict(loaded)
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise KmsError(f"{path}: line {number} is not 'token user-URI'")
        tokens[words[0]] = words[1]
    return tokens


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def kms_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the KMS command."""
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--users", type=Path, required=True, metavar="FILE", help="tokens and user URIs")
    parser.add_argument("--kms-uri", default="kms.mcx.example", help="KmsUri of the certificate")
    parser.add_argument("--domain", action="append", default=[], help="domain it answers for (repeatable)")
    parser.add_argument("--period", type=int, default=2592000, help="UserKeyPeriod in seconds")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="serve HTTPS with this certificate")
    parser.add_argument("--private-key", type=Path, metavar="PEM", help="and this key")
    parser.add_argument("--client-authority", type=Path, metavar="PEM",
                        help="users may prove themselves with certificates of this authority (URI of subjectAltName)")
    parser.add_argument("--development", action="store_true",
                        help="first write a new self-signed pair to --certificate and --private-key")  # fmt: skip
    parser.add_argument("--offset", type=int, default=0, help="UserKeyOffset in seconds")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_of(options: argparse.Namespace) -> ssl.SSLContext | None:
    """The TLS context that the options ask for; None: plain HTTP, on loopback only.

    Raises `KmsError` when keys would go over a network in clear, or the files cannot be used.
    """
    from mikey.tls import development_certificate, server_context

    host = options.listen[0]
    if (options.certificate is None) != (options.private_key is None):
        raise KmsError("--certificate and --private-key belong together")
    if options.certificate is None:
        if options.development or options.client_authority:
            raise KmsError("--development and --client-authority need --certificate and --private-key")
        if not _is_loopback(host):
            raise KmsError(f"keys do not go over a network in clear: listening on {host} needs --certificate")
        return None
    if options.development:
        names = tuple(dict.fromkeys((host, "localhost", "127.0.0.1")))
        development_certificate(options.certificate, options.private_key, names=names, now=time.time())
    return server_context(options.certificate, options.private_key, client_authority=options.client_authority)


async def run_kms(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; prints one JSON line when ready."""
    from mikey.identity import domain_of
    from mikey.kms import Kms
    from mikey.kms_http import KmsServer, serve_until

    tokens = load_users(options.users)
    domains = options.domain or sorted({domain_of(uri) for uri in tokens.values()})
    kms = Kms.generate(
        options.kms_uri, domains, user_key_period=options.period, user_key_offset=options.offset
    )
    context = tls_of(options)
    server = KmsServer(kms, tokens, clock=time.time, ssl_context=context)
    host, port = await server.start(*options.listen)
    scheme = "http" if context is None else "https"
    shown = f"[{host}]" if ":" in host else host
    ready = {"ready": True, "url": f"{scheme}://{shown}:{port}", "kms_uri": options.kms_uri, "pid": os.getpid()}
    print(json.dumps(ready), flush=True)  # noqa: T201
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await serve_until(server, stopped)
    return EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mikey", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    kms_arguments(commands.add_parser("kms", help="run a key management server"))
    commands.add_parser("inspect", help="look into MIKEY messages (inspect --help)", add_help=False)
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["inspect"]:
        from mikey.inspection import main as inspect

        return inspect(given[1:])
    options = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        return asyncio.run(run_kms(options))
    except (MikeyError, OSError) as error:
        print(f"mikey: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_ENVIRONMENT


if __name__ == "__main__":
    sys.exit(main())
