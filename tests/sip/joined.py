# SPDX-License-Identifier: Apache-2.0
"""Two stacks joined by a list of octets, with the clock in the hand: what users of the package have as well."""

from __future__ import annotations

from mcptt_sip.testing import StackEnd as End
from mcptt_sip.testing import StackPair as Net
from mcptt_sip.testing import tokens

__all__ = ["End", "Net", "tokens"]
