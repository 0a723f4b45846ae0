# SPDX-License-Identifier: Apache-2.0
"""``mcptt kms``: a key management server as a program."""

from __future__ import annotations

from typing import Any

from mcptt_sip.ops.programs import StopSignals, emit
from mikey.kms_command import KmsOptions, run_kms


async def serve_kms(options: KmsOptions) -> int:
    """Serves until it is told to stop."""
    stop = StopSignals().install()

    def announce(facts: dict[str, Any]) -> None:
        emit("ready", kms=facts["kms_uri"], **facts)

    return await run_kms(options, announce, stop.asked)
