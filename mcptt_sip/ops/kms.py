# SPDX-License-Identifier: Apache-2.0
"""``mcptt kms``: a key management server as a program."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from mcptt_sip.ops.programs import PASSED, StopSignals, emit
from mikey.kms import Kms
from mikey.kms_http import KmsServer


async def serve_kms(
    host: str, port: int, *, uri: str, domains: Sequence[str], users: Mapping[str, str], period: int
) -> int:
    """Serves until it is told to stop."""
    stop = StopSignals().install()
    server = KmsServer(Kms.generate(uri, list(domains), user_key_period=period), users, clock=time.time)
    bound = await server.start(host, port)
    emit("ready", url=f"http://{bound[0]}:{bound[1]}", kms=uri, users=len(users))
    await stop.asked.wait()
    await server.stop()
    return PASSED
