# SPDX-License-Identifier: Apache-2.0
"""A temporary group call over TLS, between programs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mcptt_sip.ops import capture
from mcptt_sip.ops.scenario import ScenarioFailed, laboratory
from tests.sip.certificates import Authority

pytestmark = pytest.mark.network


async def test_a_call_over_mutual_tls_is_captured_in_clear(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.sign("127.0.0.1"), authority.sign("alice.mcx.example")
    stranger = Authority(tmp_path, "Another authority").sign("mallory.mcx.example")
    async with laboratory(tmp_path / "lab") as lab:
        for name in ("alice", "bob"):
            lab.user(name)
        await lab.start_kms()
        process = await lab.start_server(
            "--listen", "tls:127.0.0.1:0", "--tls-certificate", str(server.certificate), "--tls-key", str(server.key),
            "--tls-client-ca", str(authority.file),
        )
        lab.facts["proxy"] = process.seen("ready")[0]["tls"]

        def options(identity: object) -> tuple[str, ...]:
            return (
                "--tls-ca", str(authority.file), "--tls-certificate", str(identity.certificate),  # type: ignore[attr-defined]
                "--tls-key", str(identity.key),  # type: ignore[attr-defined]
            )

        alice, bob = await lab.phone("alice", *options(client)), await lab.phone("bob", *options(client))
        await alice.do("call bob")
        await bob.expect("joined")
        process._process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        with pytest.raises(ScenarioFailed, match="ended"):
            await lab.phone("alice", *options(stranger), label="stranger")
        with pytest.raises(ScenarioFailed, match="ended"):
            await lab.phone("alice", label="unaware")
        await alice.do("release")
    assert "certificate reloaded" in (tmp_path / "lab" / "server.log").read_text()
    captured = [capture.dissect(packet)[3] for packet in capture.read(tmp_path / "lab" / "alice.pcapng")]
    assert any(octets.startswith(b"INVITE ") and b"SIP/2.0/TLS" in octets for octets in captured), "SIP in clear"
