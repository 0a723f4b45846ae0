# SPDX-License-Identifier: Apache-2.0
"""`mikey inspect`: tables of every message at hand, what is unusual, why something is refused, and no key."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcptt_sip.ops.capture import Capture, ip_packet, udp_packet
from mikey import KeyType, TransportKey, annotation, decode_text, encode_text, inspection, seal
from mikey.__main__ import main as mikey_main
from mikey.errors import MikeyError
from mikey.kms_documents import KmsResponse, encode_certificate, encode_response
from mikey.policy import OFFLINE

from .conftest import ALICE, BOB, GROUP, NOW, VECTORS, World

CASES = json.loads((VECTORS / "i_message_corpus.json").read_text())["cases"]
A, B = ("192.0.2.1", 5060), ("192.0.2.2", 5062)
Inspect = Callable[..., tuple[int, str]]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """Run the command in this process: its exit code and standard output."""

    def run(*arguments: object) -> tuple[int, str]:
        code = mikey_main(["inspect", *(str(a) for a in arguments)])
        return code, capsys.readouterr().out

    return run


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def ring_files(tmp_path: Path, world: World) -> list[Path]:
    """What a KMS sent Bob: KmsInit and KmsKeyProv."""
    certificate, key_set = world.kms.certificate, world.ring.key_set_for(BOB, NOW)
    start = KmsResponse(BOB, certificate.kms_uri, NOW, "https://kms/init", certificate=certificate)
    keys = KmsResponse(BOB, certificate.kms_uri, NOW, "https://kms/keyprov", key_sets=(key_set,))
    paths = [tmp_path / "init.xml", tmp_path / "keyprov.xml"]
    for path, response in zip(paths, (start, keys), strict=True):
        path.write_bytes(encode_response(response))
    return paths


def words(octets: bytes, now: float | None = NOW) -> list[str]:
    return [remark.word for remark in annotation.annotate(octets, now).remarks]


# -- the table ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_the_table_holds_every_octet_in_order(case: dict[str, Any]) -> None:
    try:
        octets = decode_text(case["input"]["message_text"], OFFLINE)
    except MikeyError:
        assert case["expected"]["reason"] == "text"
        return
    table = annotation.annotate(octets)
    assert b"".join(row.octets for row in table.rows) == octets
    at = 0
    for row in table.rows:
        assert row.offset == at and row.field and row.clause
        at += len(row.octets)
    unread = table.rows[-1].field == "unread"
    assert not unread or table.error is not None
    if case["expected"]["verdict"] == "accept":
        assert table.error is None


def test_a_message_of_ours_is_unremarkable(world: World) -> None:
    assert words(world.sealed().octets) == []
    csk = TransportKey.generate(KeyType.CSK)
    assert words(world.sealed(csk).octets) == []


@pytest.mark.parametrize(
    "case_id, word",
    [
        ("pub-pck-basic", "map-type"),
        ("pub-pck-256", "sed-length"),
        ("pub-csk-400-days-old", "time-skew"),
        ("pub-pck-ts-counter", "ts-type"),
        ("pub-role-1-2", "uid-in-uri-role"),
        ("pub-no-kms-ids", "missing-kms-id"),
        ("pub-v-flag-set", "v-flag"),
        ("pub-kp-dppk-mismatch", "dppk-id"),
        ("pub-kp-legacy-clear", "clear-key-parameters"),
        ("pub-dt-27", "data-type"),
        ("pub-no-sign", "missing-signature"),
        ("pub-dup-sakke", "duplicate-payload"),
        ("pub-trailing", "parse"),
        ("pub-rand-8", "short-rand"),
        ("pub-sig-130", "signature-type"),
        ("pub-sakke-params-2", "sakke-parameters"),
        ("pub-sakke-prefix-05", "sakke-point"),
        ("pub-missing-idri", "missing-identity"),
        ("pub-gmk-basic", "key-parameters-date"),
    ],
)
def test_what_is_unusual_is_said(case_id: str, word: str) -> None:
    case = next(c for c in CASES if c["id"] == case_id)
    octets = decode_text(case["input"]["message_text"], OFFLINE)
    assert word in words(octets, case["input"]["now_unix"])


def test_a_type_of_key_nobody_knows_and_a_foreign_spi_are_said(world: World) -> None:
    octets = bytearray(world.sealed().octets)
    octets[4] |= 0xF0
    assert "key-type" in words(bytes(octets))
    octets = bytearray(world.sealed().octets)
    octets[7] ^= 1
    assert "foreign-spi" in words(bytes(octets))


def test_control_characters_of_an_identity_do_not_reach_the_terminal(world: World, inspect: Inspect) -> None:
    octets = world.sealed(hashed_ids=False).octets.replace(b"sip:alice", b"sip:\x1b[1mx")
    _, output = inspect(encode_text(octets))
    assert "\x1b" not in output and "sip:\\x1b[1mx" in output


# -- verifying and opening --------------------------------------------------------------------------------------


def test_kms_documents_open_a_message_and_no_key_is_printed(
    world: World, inspect: Inspect, ring_files: list[Path]
) -> None:
    key = world.tgmk()
    message = encode_text(world.sealed(key).octets)
    arguments = [message, "--keys", ring_files[0], "--keys", ring_files[1], "--from", ALICE, "--now", NOW + 1]
    code, output = inspect(*arguments)
    digest = hashlib.sha256(key.key.reveal()).hexdigest()
    assert code == 0 and f"accept: from {ALICE} to {BOB}" in output
    assert f"sha256:{digest[:8]}" in output and digest[:9] not in output and GROUP in output
    code, as_json = inspect(*arguments, "--json")
    (record,) = records(as_json)
    assert record["verdict"] == "accept" and record["key"]["key_id"] == f"{key.key_id:08x}"
    assert record["key"]["groups"] == [GROUP] and record["remarks"] == []
    bob = world.ring.key_set_for(BOB, NOW)
    for secret in (key.key.reveal(), bob.rsk.reveal(), bob.ssk.reveal()):
        assert secret.hex() not in (output + as_json).lower()


def test_without_a_named_sender_the_uid_alone_is_proved(
    world: World, inspect: Inspect, ring_files: list[Path]
) -> None:
    code, output = inspect(
        encode_text(world.sealed().octets), "--keys", ring_files[0], "--keys", ring_files[1], "--now", NOW
    )
    assert code == 0 and "accept: from an initiator of whom only the UID is proved" in output


def test_a_refusal_is_one_sentence(world: World, inspect: Inspect, ring_files: list[Path]) -> None:
    keys = ["--keys", ring_files[0], "--keys", ring_files[1], "--from", ALICE, "--now", NOW]
    octets = bytearray(world.sealed().octets)
    octets[-100] ^= 1
    code, output = inspect(encode_text(bytes(octets)), *keys, "--json")
    (record,) = records(output)
    assert code == 1 and (record["verdict"], record["reason"]) == ("reject", "bad-signature")
    assert record["explanation"].count(". ") == 0 and record["key"] is None
    code, output = inspect(encode_text(world.sealed(recipient=ALICE).octets), *keys)
    assert code == 1 and "The message is addressed to somebody else" in output


def test_an_old_message_is_sound_but_stale(world: World, inspect: Inspect, ring_files: list[Path]) -> None:
    code, output = inspect(
        encode_text(world.sealed().octets), "--keys", ring_files[0], "--keys", ring_files[1], "--from", ALICE,
        "--now", NOW + 4000,
    )  # fmt: skip
    assert code == 0 and "policy: from" in output and "T is +4000 s from now" in output
    assert "unusual: T is 4000 s old" in output


def test_every_reason_has_its_explanation() -> None:
    reasons, left = set(), [MikeyError]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        reasons.add(kind.reason)
    beyond_a_message = {"error", "deviation", "pairing-budget", "seal-refused", "kms", "kms-unreachable", "store"}
    of_temporary_groups = {"group-mismatch", "no-expiry", "profile"}  # inspection expects no group
    assert set(inspection.EXPLANATIONS) == reasons - beyond_a_message - of_temporary_groups
    assert all(text.endswith(".") and text.count(". ") == 0 for text in inspection.EXPLANATIONS.values())


def test_messages_of_products_open_with_their_keys(
    vendors: dict[str, Any], inspect: Inspect, tmp_path: Path
) -> None:
    for name in ("streamwide_v5", "alea_v3"):
        block = vendors[name]
        keys = tmp_path / f"{name}.json"
        keys.write_text(json.dumps({"kms": block["kms"], "users": block["users"]}))
        for m in block["messages"][: 3 if name == "streamwide_v5" else 2]:
            code, output = inspect(
                m["i_message"], "--keys", keys, "--json", "--from", m["initiator_uri"], "--to", m["responder_uri"]
            )
            (record,) = records(output)
            key = m["oracle_check"]["key"] if "oracle_check" in m else m["key"]
            assert code == 0 and record["verdict"] == "policy"
            assert record["key"]["fingerprint"] == "sha256:" + hashlib.sha256(bytes.fromhex(key)).hexdigest()[:8]
            assert key not in output


def test_the_group_keys_of_a_phone_open_key_parameters(world: World, inspect: Inspect, tmp_path: Path) -> None:
    key = world.tgmk()
    other = world.tgmk()
    keys = tmp_path / "phone.keys.jsonl"
    keys.write_text(
        "".join(
            json.dumps(
                {"group": GROUP, "gmk_id": f"{k.key_id:08x}", "gmk": k.key.reveal().hex(), "rand": k.rand.hex()}
            )
            + "\n"
            for k in (other, key)
        )
    )
    code, output = inspect(encode_text(world.sealed(key).octets), "--keys", keys, "--now", NOW)
    assert code == 0 and f"key: GMK {key.key_id:08x}" in output and "the signature was not checked" in output
    assert key.key.reveal().hex() not in output
    _, output = inspect(encode_text(world.sealed().octets), "--keys", keys, "--now", NOW)
    assert "key: GMK" not in output


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "<a/>", '{"gmk_id": 5}', '{"kms": {}, "users": []}', "\xff\xfe", '{"input": 1}']
)
def test_a_broken_key_file_is_one_line(
    content: str, inspect: Inspect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(content.encode("latin-1"))
    assert mikey_main(["inspect", "mikey AQID", "--keys", str(keys)]) == 3
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("inspect: ") and said.err.count("\n") == 1


def test_a_certificate_alone_proves_the_sender_but_opens_nothing(
    world: World, inspect: Inspect, tmp_path: Path
) -> None:
    path = tmp_path / "certificate.xml"
    path.write_bytes(encode_certificate(world.kms.certificate))
    message = encode_text(world.sealed().octets)
    code, output = inspect(message, "--keys", path, "--from", ALICE, "--to", BOB, "--now", NOW, "--json")
    assert (code, records(output)[0]["reason"]) == (1, "no-key-for-period")


# -- the corpus ---------------------------------------------------------------------------------------------------


def test_the_corpus_command_gives_the_expected_verdicts_and_keys(inspect: Inspect) -> None:
    code, output = inspect("--json", "--corpus", VECTORS / "i_message_corpus.json")
    judged = {r["id"]: r for r in records(output)}
    assert code == 0 and list(judged) == [c["id"] for c in CASES]
    for case in CASES:
        expected, got = case["expected"], judged[case["id"]]
        assert got["verdict"] == expected["verdict"], case["id"]
        if expected["verdict"] == "reject":
            assert got["key"] is None and got["reason"]
        else:
            assert got["key"] == expected["key"], case["id"]


# -- where messages are found -----------------------------------------------------------------------------------


def test_forms_of_input(world: World, inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    octets = world.sealed().octets
    text = encode_text(octets)
    sdp = f"v=0\r\nc=IN IP4 192.0.2.1\r\na=key-mgmt:{text}\r\nm=audio 5000 RTP/SAVP 0\r\na=key-mgmt: {text}\r\n"
    binary, session = tmp_path / "message.bin", tmp_path / "offer.sdp"
    binary.write_bytes(octets)
    session.write_text(sdp, newline="")
    wrapped = "\n".join(text[6:][i : i + 64] for i in range(0, len(text) - 6, 64))
    for source, count in ((binary, 1), (session, 2), (text, 1), (text[6:], 1), (wrapped, 1), (sdp, 2)):
        code, output = inspect(source, "--json", "--now", NOW)
        found = records(output)
        assert code == 0 and len(found) == count, source
        for record in found:
            assert "".join(f["octets"] for f in record["fields"]) == octets.hex()

    class Standard:
        class buffer:
            @staticmethod
            def read() -> bytes:
                return octets

    monkeypatch.setattr("sys.stdin", Standard)
    assert inspect("-", "--now", NOW)[1].startswith(f"standard input: {len(octets)} octets")


@pytest.mark.parametrize("source", ["nosuch.bin", "", "v=0\r\n", "mikey?"])
def test_no_message_is_said_in_one_line(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mikey_main(["inspect", source]) == 3
    said = capsys.readouterr()
    assert said.out == "" and said.err == "inspect: no MIKEY message in argument\n"


def test_a_broken_text_form_is_explained(inspect: Inspect) -> None:
    code, output = inspect("mikey A*QID")
    assert code == 1 and "The text is not 'mikey', one space and base64" in output
    code, output = inspect("a=key-mgmt:mikey A*QID", "--json")
    assert code == 1 and records(output)[0]["error"]["reason"] == "text"


def test_the_command_line_program_hands_its_arguments_on() -> None:
    import io
    from contextlib import redirect_stdout

    import typer

    from mcptt_sip.ops.cli import app

    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        typer.main.get_command(app)(["inspect", "mikey AQID", "--json"])
    assert stopped.value.code == 1 and json.loads(out.getvalue())["octets"] == 3


def test_wrong_usage_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert mikey_main(["inspect"]) == 2
    assert mikey_main(["inspect", "--help"]) == 0
    assert "TCP and IP fragments are put in order" in " ".join(capsys.readouterr().out.split())


def invite(body: bytes, kind: str, extra: str = "") -> bytes:
    head = f"INVITE {BOB} SIP/2.0\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_captures_of_our_own_programs_are_searched(world: World, inspect: Inspect, tmp_path: Path) -> None:
    first, second, third = (world.sealed() for _ in range(3))
    path = tmp_path / "calls.pcapng"
    capture = Capture(path)
    binary = invite(first.octets, "application/mikey")
    capture.sip(NOW, outbound=True, transport="udp", local=A, remote=B, octets=binary)
    multipart = b"--b\r\nContent-Type: application/mikey\r\n\r\n" + second.octets + b"\r\n--b--\r\n"
    multipart = invite(multipart, "multipart/mixed")
    capture.sip(NOW, outbound=False, transport="tcp", local=A, remote=B, octets=multipart)
    sdp = f"v=0\r\na=key-mgmt:{encode_text(third.octets)}\r\n".encode()
    capture.sip(NOW, outbound=True, transport="tcp", local=A, remote=B, octets=invite(sdp, "application/sdp"))
    code, output = inspect(path, "--json", "--now", NOW)
    found = records(output)
    assert code == 0
    expected = [m.octets.hex() for m in (first, second, third)]
    assert ["".join(f["octets"] for f in r["fields"]) for r in found] == expected
    assert found[0]["place"].startswith("packet 1, udp 192.0.2.1:5060 -> 192.0.2.2:5062")


def classic(frames: list[bytes], link: int, order: str) -> bytes:
    out = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    for frame in frames:
        out += struct.pack(order + "IIII", 1, 0, len(frame), len(frame)) + frame
    return out


@pytest.mark.parametrize("order", ["<", ">"])
def test_classic_captures_and_tcp_out_of_order(world: World, inspect: Inspect, tmp_path: Path, order: str) -> None:
    octets = world.sealed().octets
    message = invite(octets, "application/mikey")
    start = 0xFFFFFF00  # the sequence number wraps within the message
    segments = []
    for at in (0, 400, 200, 200, 600):  # one late, one sent twice
        part = message[at : at + 200] if at < 600 else message[at:]
        head = struct.pack(">HHIIBBHHH", A[1], B[1], (start + at) & 0xFFFFFFFF, 0, 5 << 4, 0x18, 65535, 0, 0)
        segments.append(bytes(12) + b"\x08\x00" + ip_packet(A, B, 6, head + part))
    path = tmp_path / "calls.pcap"
    path.write_bytes(classic(segments, 1, order))
    code, output = inspect(path, "--json", "--now", NOW)
    (record,) = records(output)
    assert code == 0 and "".join(f["octets"] for f in record["fields"]) == octets.hex()
    assert "tcp 192.0.2.1:5060 -> 192.0.2.2:5062" in record["place"]
    path.write_bytes(classic([segments[0], *segments[2:]], 1, order))  # a segment is missing
    code, output = inspect(path)
    assert code == 3 and output == ""


def test_link_types_ipv6_and_vlan(world: World, inspect: Inspect, tmp_path: Path) -> None:
    octets = world.sealed().octets
    four = udp_packet(A, B, octets)
    six = udp_packet(("2001:db8::1", 5060), ("2001:db8::2", 5060), octets)
    path = tmp_path / "links.pcap"
    for link, frame in (
        (1, bytes(12) + b"\x81\x00\x00\x05\x08\x00" + four),
        (1, bytes(12) + b"\x86\xdd" + six),
        (113, bytes(16) + four),
        (276, bytes(20) + six),
        (0, bytes(4) + four),
        (101, six),
    ):
        path.write_bytes(classic([b"", frame], link, "<"))
        code, output = inspect(path, "--now", NOW)
        assert code == 0 and output.startswith(f"packet 2, udp {'[2001' if six in frame else '192'}")


def pieces_of(packet: bytes, size: int, identification: int) -> list[bytes]:
    """An IPv4 or IPv6 packet in fragments of `size` octets."""
    six = packet[0] >> 4 == 6
    head, body = (packet[:40], packet[40:]) if six else (packet[:20], packet[20:])
    out = []
    for at in range(0, len(body), size):
        part, more = body[at : at + size], at + size < len(body)
        if six:
            part = struct.pack(">BBHI", head[6], 0, at | more, identification) + part
            out.append(head[:4] + len(part).to_bytes(2, "big") + bytes((44,)) + head[7:] + part)
        else:
            fields = struct.pack(">HHH", 20 + len(part), identification, more << 13 | at // 8)
            out.append(head[:2] + fields + head[8:] + part)
    return out


@pytest.mark.parametrize("six", [False, True])
def test_ip_fragments_are_put_together_in_any_order(
    world: World, inspect: Inspect, tmp_path: Path, six: bool
) -> None:
    ends = (("2001:db8::1", 5060), ("2001:db8::2", 5060)) if six else (A, B)
    first, second = (world.sealed().octets for _ in range(2))
    frames = [
        frame for pair in zip(*(pieces_of(udp_packet(*ends, invite(o, "application/mikey")), 512, n)
                                for n, o in enumerate((first, second))), strict=True) for frame in pair
    ]  # fmt: skip
    path = tmp_path / "fragments.pcap"
    for order in (frames, frames[::-1], [*frames[1::2], *frames[0::2], frames[0]]):
        path.write_bytes(classic(order, 101, "<"))
        code, output = inspect(path, "--json", "--now", NOW)
        found = {"".join(f["octets"] for f in r["fields"]) for r in records(output)}
        assert code == 0 and found == {first.hex(), second.hex()}
    path.write_bytes(classic(frames[:-1], 101, "<"))
    assert len(records(inspect(path, "--json", "--now", NOW)[1])) == 1
    path.write_bytes(classic(frames[2:3], 101, "<"))
    assert inspect(path)[0] == 3


def test_fragments_that_never_meet_are_given_up(world: World, inspect: Inspect, tmp_path: Path) -> None:
    from mikey import packets

    whole = udp_packet(A, B, invite(world.sealed().octets, "application/mikey"))
    stray = [pieces_of(whole, 512, n)[0] for n in range(2, packets.MAX_INCOMPLETE + 2)]
    first, *rest = pieces_of(whole, 512, 1)
    path = tmp_path / "fragments.pcap"
    path.write_bytes(classic([first, *stray, *rest], 101, "<"))
    assert inspect(path)[0] == 3
    path.write_bytes(classic([first, *stray[1:], *rest], 101, "<"))
    assert inspect(path, "--now", NOW)[0] == 0


def test_damaged_captures_are_refused_or_read_as_far_as_they_go(world: World, inspect: Inspect, tmp_path: Path) -> None:
    path = tmp_path / "cut.pcapng"
    capture = Capture(path)
    capture.sip(NOW, outbound=True, transport="udp", local=A, remote=B, octets=invite(world.sealed().octets, "a/b"))
    whole = path.read_bytes()
    outcomes = set()
    for length in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:length])
        outcomes.add(inspect(path, "--now", NOW)[0])
    path.write_bytes(whole)
    assert outcomes <= {0, 1, 3} and inspect(path, "--now", NOW)[0] == 0


def test_a_sealed_message_of_each_type_is_named(world: World, inspect: Inspect) -> None:
    for kind in KeyType:
        key = TransportKey.generate(kind, expiry=int(NOW) + 60, group_ids=(GROUP,) if kind.has_groups else ())
        sealed = seal(key, sender=ALICE, recipient=BOB, keyring=world.ring, now=NOW)
        _, output = inspect(encode_text(sealed.octets), "--now", NOW)
        assert ("GUK-ID of the recipient" if kind is KeyType.GMK else f"{kind.name}-ID") in output
