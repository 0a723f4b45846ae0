# SPDX-License-Identifier: Apache-2.0
"""What people who run the system use: command line, scenarios, captures, reports."""
