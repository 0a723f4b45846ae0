# SPDX-License-Identifier: Apache-2.0
"""The MCPTT roles (TS 23.379, TS 24.379): client, participating function, controlling function."""
