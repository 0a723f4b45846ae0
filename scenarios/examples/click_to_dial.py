# SPDX-License-Identifier: Apache-2.0
"""Click to dial (third party call control, RFC 3725 flow IV): calls one party, then the other, and leaves their audio
to themselves. Stays until one of them hangs up.

    python -m mcptt_sip.scenarios.examples.click_to_dial sip:me@192.0.2.1 sip:you@192.0.2.2
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from mcptt_sip import Call, CallFailed, Response, UserAgent
from mcptt_sip.call import session_description

SDP = "application/sdp"


async def connect(agent: UserAgent, first: str, second: str) -> tuple[Call, Call]:
    """Both calls, once both are answered. `agent` has no audio of its own."""
    loop = asyncio.get_running_loop()
    offered: asyncio.Future[bytes] = loop.create_future()
    me = await agent.dial(first)

    def offer(response: Response) -> tuple[str, bytes] | None:
        """The first party's 200 holds its offer. Its ACK cannot wait for the second party (a ring may be
        longer than 64*T1), so it says that nothing is sent yet; the true answer follows by re-INVITE."""
        description = session_description(response)
        if description is None:
            return None
        if not offered.done():
            offered.set_result(description)
        return SDP, on_hold(description)

    me.session.ack_body = offer
    await me.answered()
    you = await agent.call(second, body=(SDP, await offered), timeout=60.0)
    assert you.response is not None
    answer = session_description(you.response)
    if answer is None:
        raise CallFailed("the second party said nothing of its audio", you.response)
    again = await me.reinvite((SDP, answer))
    changed = session_description(again)
    if changed is not None and changed != await offered:
        await you.reinvite((SDP, changed))
    return me, you


def on_hold(offer: bytes) -> bytes:
    """An answer in which every stream is inactive, at no address yet."""
    lines = []
    for line in offer.decode().splitlines():
        if line.startswith("c="):
            line = "c=IN IP4 0.0.0.0"
        elif line.startswith("o="):
            line = "o=- 1 1 IN IP4 0.0.0.0"
        elif line.startswith("m="):
            kind, _, *rest = line.split(" ")
            line = " ".join((kind, "9", *rest))
        if line not in ("a=sendrecv", "a=sendonly", "a=recvonly", "a=inactive"):
            lines.append(line)
        if line.startswith("m="):
            lines.append("a=inactive")
    return ("\r\n".join(lines) + "\r\n").encode()


async def main(first: str, second: str, proxy: str | None) -> int:
    async with UserAgent("sip:click@localhost", audio=False, proxy=proxy) as agent:
        try:
            me, you = await connect(agent, first, second)
        except CallFailed as error:
            print(f"not connected: {error}", file=sys.stderr)
            return 1
        print("connected", flush=True)
        ends = [asyncio.ensure_future(call.ended.wait()) for call in (me, you)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for call in (me, you):
            await call.hang_up()
        print("over", flush=True)
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--proxy")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.first, given.second, given.proxy)))
