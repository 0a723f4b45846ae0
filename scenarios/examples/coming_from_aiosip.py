# SPDX-License-Identifier: Apache-2.0
"""Coming from aiosip: its programs in ours. Everything below runs as a test.

================================================  ==============================================================
aiosip                                            here
================================================  ==============================================================
``Application(loop=loop, dialplan=dialplan)``     ``UserAgent("sip:me@host", listen=["udp:0.0.0.0:5060"])``
``await app.run(protocol=UDP, local_addr=...)``   ``async with agent:`` (udp, tcp, tls, ws, wss: one string each)
a dialplan whose ``resolve`` returns a handler    ``@agent.on_call``, ``@agent.on("SUBSCRIBE")``, ``@agent.on_message``
``request.prepare(status_code=200)``              ``incoming.respond(200)``, ``incoming.accept_subscription()``
``peer = await app.connect(addr)``                nothing: a request finds its way (DNS, transports, failover)
``await peer.register(...)``                      ``await agent.register("sip:registrar")``, refreshed by itself
``await peer.subscribe(...)``, ``async for``      ``watch = agent.subscribe(uri, event)``, ``async for``
``dialog.notify(payload=...)``                    ``subscription.notify(body, content_type)``
``call = await peer.invite(...)``, ``call.wait``  ``call = await agent.call(uri)``, ``call.ended``, ``call.hang_up()``
a password in ``register``                        ``credentials=DigestCredentials(user, password)``, for every request
``message.status_code``, ``message.headers``      ``response.status``, ``response.headers`` with typed properties
tests that open sockets and sleep                 ``mcptt_sip.testing``: a network in memory, time that jumps
================================================  ==============================================================

What there was not: server transactions, so that a repeated request runs no handler twice; forked calls, CANCEL in
every state, PRACK, UPDATE, session timers; TLS and IPv6; audio.
"""

from __future__ import annotations

import asyncio

from mcptt_sip import Call, UserAgent
from mcptt_sip.incoming import ServerRequest


def notifier(agent: UserAgent, states: list[str]) -> None:
    """The dialplan of a presence server: every subscriber gets these states, one each second, then it is over."""

    @agent.on("SUBSCRIBE")
    async def subscribe(incoming: ServerRequest) -> None:
        subscription = incoming.accept_subscription(expires=600, now=agent.now())
        for state in states[:-1]:
            subscription.notify(state.encode(), "text/plain", now=agent.now())
            agent.transmit()
            await asyncio.sleep(1.0)
        last = states[-1].encode()
        subscription.notify(last, "text/plain", state="terminated", reason="noresource", now=agent.now())
        agent.transmit()


async def subscriber(agent: UserAgent, uri: str) -> list[str]:
    """Everything that the notifier says."""
    watch = agent.subscribe(uri, "presence", expires=600)
    return [notify.body.decode() async for notify in watch]


def doorman(agent: UserAgent, greeting: bytes) -> None:
    """The dialplan of a callee: rings, answers with a description of its own, stays until the caller goes."""

    @agent.on_call
    async def door(call: Call) -> None:
        await call.ring()
        await call.accept(body=("application/sdp", greeting))
        await call.ended.wait()


async def visitor(agent: UserAgent, uri: str, description: bytes, seconds: float) -> bytes:
    """Calls, stays for a while, leaves; the callee's description."""
    call = await agent.call(uri, body=("application/sdp", description))
    assert call.response is not None
    await asyncio.sleep(seconds)
    await call.hang_up()
    return call.response.body
