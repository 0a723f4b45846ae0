# SPDX-License-Identifier: Apache-2.0
"""`python -m mikey`: the KMS, its client and the inspector, without any SIP."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from mikey.errors import MikeyError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_ENVIRONMENT = 0, 1, 2, 3


def _ready(facts: dict[str, Any]) -> None:
    print(json.dumps({"ready": True, **facts}), flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["inspect"]:
        from mikey.inspection import main as inspect

        return inspect(given[1:])
    from mikey import fetch_command, kms_command

    parser = argparse.ArgumentParser(prog="python -m mikey", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    kms_command.kms_arguments(commands.add_parser("kms", help="run a key management server"))
    kms_command.admin_arguments(commands.add_parser("kms-admin", help="look after the store of one"))
    fetch_command.fetch_arguments(commands.add_parser("fetch", help="ask a KMS for a user's keys"))
    commands.add_parser("inspect", help="look into MIKEY messages (inspect --help)", add_help=False)
    options = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        if options.command == "kms-admin":
            return kms_command.admin(options)
        if options.command == "fetch":
            return asyncio.run(fetch_command.run_fetch(options))
        return asyncio.run(kms_command.run_kms(kms_command.options_of(options), _ready))
    except (MikeyError, OSError) as error:
        return kms_command.complain(error)


if __name__ == "__main__":
    sys.exit(main())
