# SPDX-License-Identifier: Apache-2.0
"""A back-to-back user agent: every call that comes in goes out again to a fixed place, with its bodies untouched, so
that the audio flows between the two parties. Changes of either side, and goodbyes, are passed on.

    python -m mcptt_sip.scenarios.examples.b2bua --listen udp:127.0.0.1:5060 --to 127.0.0.1:5070
"""

from __future__ import annotations

import argparse
import asyncio

from mcptt_sip import Call, CallFailed, Response, SipUri, UserAgent
from mcptt_sip.incoming import ServerRequest

Body = tuple[str, bytes]


def body_of(message: Response) -> Body | None:
    media = message.headers.content_type
    return (str(media), message.body) if message.body and media is not None else None


def pass_on(agent: UserAgent, one: Call, other: Call) -> None:
    """Re-INVITE, UPDATE and INFO of `one` go to `other`, and the answers back."""

    def request(incoming: ServerRequest) -> bool:
        if incoming.method not in ("INVITE", "UPDATE", "INFO"):
            return False
        agent.spawn(relay(incoming))
        return True

    async def relay(incoming: ServerRequest) -> None:
        headers = incoming.request.headers
        kind = None if headers.content_type is None else str(headers.content_type)
        try:
            if incoming.method == "INVITE":
                answer = await other.reinvite((kind, incoming.request.body) if kind else None)
            else:
                answer = await other.send(incoming.method, body=incoming.request.body, content_type=kind)
            status, reason, body = answer.status, answer.reason, body_of(answer)
        except CallFailed as error:
            status, reason, body = error.status or 500, None, None
        incoming.respond(
            status, reason, body=body[1] if body else b"", content_type=body[0] if body else None, now=agent.now()
        )
        agent.transmit()

    one.on_request = request


async def main(listen: list[str], to: str) -> None:
    agent = UserAgent("sip:b2bua@localhost", listen=listen, audio=False)

    @agent.on_call
    async def bridge(inside: Call) -> None:
        uri = inside.request.uri
        target = f"sip:{uri.user or 'service'}@{to}" if isinstance(uri, SipUri) else f"sip:{to}"
        media = inside.request.headers.content_type
        body = (str(media), inside.request.body) if inside.request.body and media is not None else None
        outside = await agent.dial(target, body=body, from_=f"<{inside.peer.uri}>")
        outside.on_progress = lambda response: agent.spawn(inside.ring(response.status, body=body_of(response)))
        gone = asyncio.ensure_future(hang_up_with(inside, outside))
        try:
            await outside.answered()
        except CallFailed as error:
            if not inside.session.ended:
                await inside.reject(error.status or 503)
            return
        assert outside.response is not None
        pass_on(agent, inside, outside)
        pass_on(agent, outside, inside)
        await inside.accept(body=body_of(outside.response))
        await gone

    async def hang_up_with(one: Call, other: Call) -> None:
        ends = [asyncio.ensure_future(call.ended.wait()) for call in (one, other)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for call in (one, other):
            if call.established or not call.ended.is_set():
                await call.hang_up()

    async with agent:
        print("listening on", *(f"{kind}:{host}:{port}" for kind, host, port in agent.addresses), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", action="append")
    parser.add_argument("--to", required=True, help="HOST:PORT")
    given = parser.parse_args()
    asyncio.run(main(given.listen or ["udp:127.0.0.1:5060"], given.to))
