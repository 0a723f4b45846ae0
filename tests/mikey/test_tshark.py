# SPDX-License-Identifier: Apache-2.0
"""Wireshark's dissector as a second reader: it must see in our octets what we see.

It does not know the GENERIC-ID map, so messages are shown to it with the maps of RFC 3830; nor does it check anything.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.ops.capture import udp_packet
from mikey import KeyType, TransportKey, read
from mikey.payloads import MAP_EMPTY, MAP_GENERIC_ID, MAP_SRTP_ID, Idr, IMessage, SrtpId, encode_chain

from .conftest import NOW, VECTORS, World

PORT = 2269  # that of MIKEY
FIELDS = ("version", "type", "prf_func", "csb_id", "cs_count", "cs_id_map_type", "next_payload", "t.ts_type", "t.ntp",
          "rand.data", "id.role", "id.type", "id.len", "sp.no", "sp.param.type", "sakke.params", "sakke.idscheme",
          "sakke.data", "ext.type", "ext.len", "sign.type", "sign.len", "sign.data")  # fmt: skip


def with_map(message: IMessage, kind: int) -> bytes:
    sessions = (SrtpId(0, 0x01020304, 0), SrtpId(0, 5, 6)) if kind == MAP_SRTP_ID else ()
    header = dataclasses.replace(message.header, map_type=kind, sessions=sessions)
    return encode_chain(header, message.payloads)


def dissected(messages: list[bytes], folder: Path) -> list[dict[str, list[str]]]:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed (Debian package tshark)")
    path = folder / "messages.pcap"
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    for octets in messages:
        packet = udp_packet(("192.0.2.1", PORT), ("192.0.2.2", PORT), octets)
        out += struct.pack("<IIII", 1, 0, len(packet), len(packet)) + packet
    path.write_bytes(out)
    names = [f"mikey.{name}" for name in FIELDS] + ["_ws.malformed"]
    done = subprocess.run(
        ["tshark", "-r", str(path), "-d", f"udp.port=={PORT},mikey", "-T", "json",
         *(a for name in names for a in ("-e", name))],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


def seen_by_us(message: IMessage) -> dict[str, Any]:
    header, idrs = message.header, [p for p in message.payloads if isinstance(p, Idr)]
    policies = message.security_policies
    extensions = [p for p in message.payloads if p.code == 21]
    return {
        "version": [1], "type": [26], "prf_func": [header.prf], "csb_id": [header.csb_id],
        "cs_count": [len(header.sessions)], "cs_id_map_type": [header.map_type],
        "next_payload": [p.code for p in message.payloads], "t.ts_type": [message.t.ts_type],
        "rand.data": message.rand.hex(), "id.role": [i.role for i in idrs], "id.type": [i.id_type for i in idrs],
        "id.len": [len(i.data) for i in idrs], "sp.no": [p.number for p in policies],
        "sp.param.type": [t for p in policies for t, _ in p.parameters], "sakke.params": [1], "sakke.idscheme": [2],
        "sakke.data": message.sakke.sed.hex(), "ext.type": [p.encode()[0] for p in extensions],
        "ext.len": [len(p.encode()) - 3 for p in extensions], "sign.type": [2], "sign.len": [129],
        "sign.data": message.signature.value.hex(),
    }  # fmt: skip


def seen_by_tshark(layers: dict[str, list[str]], name: str) -> Any:
    values = layers.get(f"mikey.{name}", [])
    if name.endswith(".data"):
        return "".join(values).replace(":", "")
    return [int(v, 0) for v in values]


@pytest.mark.interop
def test_tshark_sees_what_we_see(world: World, tmp_path: Path) -> None:
    messages = []
    for kind in KeyType:
        for hashed in (True, False):
            groups = ("sip:g1@example.org", "sip:g2@example.org") if kind.has_groups else ()
            key = TransportKey.generate(kind, expiry=int(NOW) + 60, group_ids=groups, text="text")
            sealed = read(world.sealed(key, hashed_ids=hashed, management_server=True, to_self=hashed).octets)
            messages += [with_map(sealed, MAP_EMPTY), with_map(sealed, MAP_SRTP_ID)]
    for case in json.loads((VECTORS / "i_message_corpus.json").read_text())["cases"]:
        if case["expected"]["verdict"] == "accept":
            octets = base64.b64decode(case["input"]["message_b64"])
            found = read(octets)
            messages.append(octets if found.header.map_type != MAP_GENERIC_ID else with_map(found, MAP_EMPTY))
    assert len(messages) > 50
    for octets, layers in zip(messages, dissected(messages, tmp_path), strict=True):
        message = read(octets)
        assert "_ws.malformed" not in layers
        for name, value in seen_by_us(message).items():
            assert seen_by_tshark(layers, name) == value, name
        at = datetime.datetime.fromtimestamp(int(message.timestamp), datetime.UTC)
        assert layers["mikey.t.ntp"][0].startswith(f"{at:%b} {at.day}, {at:%Y %H:%M:%S}".replace("  ", " "))
