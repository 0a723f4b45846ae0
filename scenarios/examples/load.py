# SPDX-License-Identifier: Apache-2.0
"""A load generator: so many calls a second, each held for a while; then a line of what became of them. Exits 1 when
one failed.

    python -m mcptt_sip.scenarios.examples.load sip:service@127.0.0.1:5060 --rate 200 --calls 2000 --hold 1
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter

from mcptt_sip import SipError, UserAgent

SDP = (
    b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\na=inactive\r\n"
)


async def main(uri: str, rate: float, calls: int, hold: float, listen: list[str]) -> int:
    outcomes: Counter[str] = Counter()
    setup: list[float] = []
    async with UserAgent("sip:load@localhost", listen=listen, audio=False) as agent:

        async def one() -> None:
            began = time.perf_counter()
            try:
                call = await agent.call(uri, body=("application/sdp", SDP), timeout=60.0)
            except SipError as error:
                outcomes[str(error)] += 1
                return
            setup.append(time.perf_counter() - began)
            await asyncio.sleep(hold)
            await call.hang_up()
            outcomes["answered"] += 1

        begin = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number in range(calls):
                await asyncio.sleep(begin + number / rate - asyncio.get_running_loop().time())
                group.create_task(one())
        took = asyncio.get_running_loop().time() - begin
    setup.sort()
    print(f"{calls} calls in {took:.1f} s ({calls / took:.0f}/s): {dict(outcomes)}", flush=True)
    if setup:
        middle, worst = setup[len(setup) // 2], setup[len(setup) * 99 // 100]
        print(f"set up in {middle * 1e3:.1f} ms (median), {worst * 1e3:.1f} ms (99 of 100)", flush=True)
    return 0 if outcomes["answered"] == calls else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--rate", type=float, default=50.0, help="calls a second")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--hold", type=float, default=1.0, help="seconds")
    parser.add_argument("--listen", action="append")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.uri, given.rate, given.calls, given.hold, given.listen or ["udp:127.0.0.1:0"])))
