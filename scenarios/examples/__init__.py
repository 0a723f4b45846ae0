# SPDX-License-Identifier: Apache-2.0
"""SIP applications in a page each: ``python -m mcptt_sip.scenarios.examples.uas --help``."""
