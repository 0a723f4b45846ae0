# SPDX-License-Identifier: Apache-2.0
"""An answering machine: takes every call, plays a greeting, records what is said after it.

    python -m mcptt_sip.scenarios.examples.uas --listen udp:127.0.0.1:5060 --greeting hello.wav --folder messages
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from mcptt_sip import Call, UserAgent


async def main(listen: list[str], greeting: Path | None, folder: Path, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    agent = UserAgent("sip:machine@localhost", listen=listen)

    @agent.on_call
    async def machine(call: Call) -> None:
        await call.ring()
        media = await call.answer()
        if greeting is not None:
            await media.play(greeting)
        media.record(folder / f"{call.id}.wav")
        try:
            async with asyncio.timeout(seconds):
                await call.ended.wait()
        except TimeoutError:
            await call.hang_up()
        print(f"{call.peer.uri} left {folder / call.id}.wav", flush=True)

    async with agent:
        print("listening on", *(f"{kind}:{host}:{port}" for kind, host, port in agent.addresses), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", action="append")
    parser.add_argument("--greeting", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("messages"))
    parser.add_argument("--seconds", type=float, default=30.0, help="of one message")
    given = parser.parse_args()
    asyncio.run(main(given.listen or ["udp:127.0.0.1:5060"], given.greeting, given.folder, given.seconds))
