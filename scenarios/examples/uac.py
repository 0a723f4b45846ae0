# SPDX-License-Identifier: Apache-2.0
"""Calls a number, plays a file, presses some digits, hangs up. Exits 1 when nobody answers.

    python -m mcptt_sip.scenarios.examples.uac sip:machine@127.0.0.1:5060 --play hello.wav --digits 42#
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from mcptt_sip import CallFailed, DigestCredentials, UserAgent


async def main(uri: str, play: Path | None, digits: str, credentials: DigestCredentials | None) -> int:
    async with UserAgent("sip:caller@localhost", credentials=credentials) as agent:
        try:
            call = await agent.call(uri, timeout=30.0)
        except CallFailed as error:
            print(f"no call: {error}", file=sys.stderr)
            return 1
        assert call.media is not None
        if play is not None:
            await call.media.play(play)
        if digits:
            await call.send_digits(digits)
        await call.hang_up()
        print(f"sent {call.media.counters['sent']} packets", flush=True)
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--play", type=Path)
    parser.add_argument("--digits", default="")
    parser.add_argument("--user")
    parser.add_argument("--password-file", type=Path)
    given = parser.parse_args()
    known = None
    if given.user and given.password_file:
        known = DigestCredentials(given.user, given.password_file.read_text().strip())
    sys.exit(asyncio.run(main(given.uri, given.play, given.digits, known)))
