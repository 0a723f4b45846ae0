# SPDX-License-Identifier: Apache-2.0
"""Runnable call scenarios. Each module has an ``async def scenario(lab)`` and is an acceptance test."""
