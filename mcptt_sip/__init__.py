# SPDX-License-Identifier: Apache-2.0
"""SIP for mission-critical voice: a SIP stack, and the MCPTT server and client on it.

Start with :class:`mcptt_sip.useragent.UserAgent` for ordinary SIP, with
:class:`mcptt_sip.mcptt.client.McpttClient` and :class:`mcptt_sip.mcptt.server.McpttServer` for temporary
group calls. Importing this package imports nothing else of it.
"""

from __future__ import annotations

import logging

__all__ = ["__version__"]
__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
