# SPDX-License-Identifier: Apache-2.0
"""A package of its own, so that no other of this name is taken for it: one of the benchmark's peers installs one."""
