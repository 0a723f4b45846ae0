# SPDX-License-Identifier: Apache-2.0
"""``mcptt doctor``: what this machine has and lacks."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import socket
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for."""

    what: str
    present: bool
    detail: str
    needed: bool = False

    @property
    def mark(self) -> str:
        return "ok" if self.present else "MISSING" if self.needed else "absent"


def examine() -> list[Finding]:
    """Everything worth knowing before a bug report."""
    version = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding("Python", sys.version_info >= (3, 11), f"{version}, 3.11 or newer is needed", True)]
    for module, why in (
        ("gmpy2", "SAKKE arithmetic"),
        ("cryptography", "AES, P-256"),
        ("lxml", "XML bodies"),
        ("av", "Opus"),
        ("aiohttp", "KMS"),
        ("numpy", "scores of what was heard"),
    ):
        findings.append(Finding(module, importlib.util.find_spec(module) is not None, why, True))
    for program, why in (
        ("tshark", "reading captures; interop tests"),
        ("sipp", "interop tests"),
        ("sipsak", "interop tests"),
        ("baresip", "interop tests"),
        ("kamailio", "interop tests"),
    ):
        findings.append(Finding(program, shutil.which(program) is not None, why))
    for library, why in (("opus", "packet loss concealment"), ("srtp2", "oracle in tests")):
        findings.append(Finding(f"lib{library}", ctypes.util.find_library(library) is not None, why))
    findings.append(Finding("sendmmsg", sys.platform == "linux", "one system call per relayed packet"))
    findings.append(Finding("root", os.geteuid() == 0, "network namespaces in interop tests"))
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
        findings.append(Finding("IPv6 loopback", True, "::1"))
    except OSError as error:
        findings.append(Finding("IPv6 loopback", False, str(error)))
    return findings
