# SPDX-License-Identifier: Apache-2.0
"""The demo's capture in the eyes of others: tshark dissects it, libsrtp opens its media."""

from __future__ import annotations

import email
import email.policy
import shutil
import struct
import subprocess
from pathlib import Path

import pylibsrtp
import pytest

from mcptt_sip.mcptt.call import Regroup
from mcptt_sip.ops import capture
from mikey import IMessage, KeyType, Secret, TransportKey
from tests.system.demonstration import Demo

TSHARK = shutil.which("tshark")
pytestmark = [pytest.mark.network, pytest.mark.interop, pytest.mark.xdist_group("demo")]
needs_tshark = pytest.mark.skipif(TSHARK is None, reason="tshark is missing (Debian package tshark)")
#: a MIKEY I_MESSAGE of SAKKE (RFC 6509 5), and where IANA has MIKEY's own port
SAKKE_MESSAGE, MIKEY_PORT = "26", 2269
#: datagrams of media are ciphertext, and tshark takes the tail of an SRTCP packet (its index and tag) for another
#: RTCP packet: what it makes of that is chance and no finding
TROUBLE = "(_ws.malformed || _ws.expert.severity >= error) && !(udp && !sip)"


def tshark(file: Path, *arguments: str) -> list[list[str]]:
    assert TSHARK is not None
    command = [TSHARK, "-n", "-r", str(file), *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [line.split("\t") for line in out.splitlines()]


def fields(file: Path, show: str, *names: str) -> list[list[str]]:
    chosen = [word for name in names for word in ("-e", name)]
    return tshark(file, "-Y", show, "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=,", *chosen)


@needs_tshark
def test_sip_sdp_and_floor_messages_are_dissected_without_an_error(demo: Demo) -> None:
    call = demo.out / "call.pcapng"
    # an exception in MIKEY's dissector is the only trouble; everything in front of MIKEY was dissected
    for (protocols,) in fields(call, TROUBLE, "frame.protocols"):
        assert "mikey" in protocols
    methods = {row[0] for row in fields(call, "sip.Request-Line", "sip.Method")}
    assert methods >= {"REGISTER", "INVITE", "PRACK", "ACK", "REFER", "NOTIFY", "BYE", "MESSAGE"}
    assert len(fields(call, "sip && sdp", "sdp.media")) >= 8
    floor = fields(call, 'rtcp.app.name == "MCPT"', "rtcp.app.subtype")
    assert len(floor) >= 60
    assert {int(subtype, 0) & 0x0F for (subtype,) in floor} >= {0, 1, 2, 4, 5, 8, 9}


@needs_tshark
def test_mikey_shows_type_26_and_our_csb_id(demo: Demo) -> None:
    shown = fields(demo.out / "call.pcapng", "mikey", "mikey.type", "mikey.csb_id")
    assert len(shown) >= 8
    assert {kind for kind, _ in shown} == {SAKKE_MESSAGE}
    ours = {f"0x{IMessage.decode(octets).csb_id:08x}" for octets in key_messages(demo)}
    assert ours == {csb_id for _, csb_id in shown}


def bodies(demo: Demo) -> list[tuple[bytes, bytes]]:
    """(head, body) of every SIP message in the capture."""
    found = []
    for packet in capture.read(demo.out / "call.pcapng"):
        kind, _, _, payload = capture.dissect(packet)
        if kind == "sip" or b"SIP/2.0" in payload[:200]:
            head, _, body = payload.partition(b"\r\n\r\n")
            found.append((head, body))
    return found


def parts_of(head: bytes, body: bytes) -> dict[str, bytes]:
    """Content types and octets, read by Python's own MIME parser."""
    lines = [line for line in head.split(b"\r\n")[1:] if line.lower().startswith((b"content-type:", b"mime-"))]
    message = email.message_from_bytes(b"\r\n".join(lines) + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    if not message.is_multipart():
        return {message.get_content_type(): body}
    return {part.get_content_type(): part.get_payload(decode=True) or b"" for part in message.iter_parts()}  # type: ignore[attr-defined]


def key_messages(demo: Demo) -> list[bytes]:
    return [
        octets for head, body in bodies(demo) for kind, octets in parts_of(head, body).items()
        if kind == "application/mikey"
    ]


def test_the_called_phone_receives_the_octets_that_the_caller_sent(demo: Demo) -> None:
    sent, received = {}, {}
    for head, body in bodies(demo):
        line = head.split(b"\r\n", 1)[0].decode()
        if not line.startswith(("INVITE", "REFER")) or "application/mikey" not in parts_of(head, body):
            continue
        octets = parts_of(head, body)["application/mikey"]
        if line.startswith("REFER") or "sip:mcptt@" in line:
            sent[octets] = line
        else:
            received[octets] = line
    assert len(received) == 4 and received.keys() <= sent.keys()


@needs_tshark
def test_the_payloads_behind_the_map_are_dissected_on_a_twin_with_an_empty_map(demo: Demo, tmp_path: Path) -> None:
    """tshark 4.0 does not know the GENERIC-ID map (RFC 6043 6.1.1) and reads past it. The same message with no
    crypto session in its map shows that all behind it is in order."""
    octets = key_messages(demo)[0]
    sessions, kind = octets[8], octets[9]
    assert (sessions, kind) == (1, 2)
    message = IMessage.decode(octets)
    assert message.csb_id == int.from_bytes(octets[4:8], "big")
    twin = octets[:8] + b"\0\0" + octets[10 + map_length(octets) :]
    file = tmp_path / "twin.pcapng"
    writer = capture.Capture(file)
    writer.datagram(0.0, outbound=True, local=("127.0.0.1", 40000), remote=("127.0.0.1", MIKEY_PORT), octets=twin)
    writer.close()
    assert tshark(file, "-Y", TROUBLE) == []
    ((chain, rand, sakke_length, signature),) = fields(
        file, "mikey", "mikey.next_payload", "mikey.rand.len", "mikey.sakke.len", "mikey.sign.type"
    )
    assert chain.split(",") == [str(payload.code) for payload in message.payloads]
    assert (rand, sakke_length, signature) == ("16", "273", "2")  # 2: ECCSI (RFC 6509 4.5)


def map_length(octets: bytes) -> int:
    """Of the GENERIC-ID map of one crypto session: id, protocol, S flag and policies, session data, SPI."""
    at = 10
    (session, _protocol, flags) = octets[at : at + 3]
    policies = flags & 0x7F
    at += 3 + policies
    (data,) = struct.unpack_from("!H", octets, at)
    at += 2 + data
    spi = octets[at]
    assert session
    return at + 1 + spi - 10


def test_libsrtp_opens_the_media_once_mki_and_roc_are_cut_off(demo: Demo) -> None:
    keys = {
        int(record["gmk_id"], 16): TransportKey(
            KeyType.GMK, Secret(bytes.fromhex(record["gmk"])), int(record["gmk_id"], 16),
            bytes.fromhex(record["rand"]),
        )
        for record in demo.keys
    }
    assert len(keys) >= 2, "the first key, that after the removal, and one of the refused call"
    sessions: dict[tuple[bytes, bytes], pylibsrtp.Session] = {}
    opened, seen = 0, set()
    for packet in capture.read(demo.out / "call.pcapng"):
        kind, _, _, payload = capture.dissect(packet)
        if kind != "udp" or len(payload) < 40 or payload[0] & 0xC0 != 0x80 or payload[1] & 0x7F != 96:
            continue
        mki, roc, ssrc = payload[-12:-4], payload[-4:], payload[8:12]
        if payload in seen or roc != bytes(4):
            continue
        seen.add(payload)
        key = keys[int.from_bytes(mki[:4], "big")]
        if (mki, ssrc) not in sessions:
            ours = Regroup.srtp_key(key, int.from_bytes(mki[4:], "big"))
            policy = pylibsrtp.Policy(
                key=ours.master_key + ours.master_salt, ssrc_type=pylibsrtp.Policy.SSRC_ANY_INBOUND,
                srtp_profile=pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
            )
            policy.allow_repeat_tx = True
            sessions[mki, ssrc] = pylibsrtp.Session(policy=policy)
        plain = sessions[mki, ssrc].unprotect(payload[:-12])
        assert plain[:12] == payload[:12] and len(plain) == len(payload) - 12 - 16
        opened += 1
    assert opened > 1000 and len({mki[:4] for mki, _ in sessions}) == 2
