# SPDX-License-Identifier: Apache-2.0
"""Responses under TrK and InK: wrapped, signed, checked by another implementation, and every change refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mikey import KeySet, Kms, KmsClient, KmsServer, Secret
from mikey.errors import KmsError, MikeyError
from mikey.kms_command import load_transport_keys
from mikey.kms_documents import NS, KmsResponse, decode_response, encode_response
from mikey.kms_protection import TransportKeys

from .conftest import ALICE, BOB, NOW

KEYS = TransportKeys(Secret(bytes(range(32))), Secret(b"k" * 32))
OTHER = TransportKeys(Secret(bytes(32)), Secret(b"o" * 32))


@pytest.fixture
def key_set(kms: Kms) -> KeySet:
    return kms.issue(ALICE, NOW)


@pytest.fixture
def document(key_set: KeySet) -> bytes:
    return encode_response(KmsResponse(ALICE, key_set.kms_uri, NOW, "https://kms/keyprov", key_sets=(key_set,)), KEYS)


def test_a_protected_response_hides_its_keys_and_gives_them_back(document: bytes, key_set: KeySet) -> None:
    for secret in (key_set.rsk.reveal(), key_set.ssk.reveal()):
        assert secret.hex().upper().encode() not in document.upper()
    response = decode_response(document, KEYS)
    assert response.key_sets is not None
    (got,) = response.key_sets
    assert (got.rsk, got.ssk, got.pvt, got.uid) == (key_set.rsk, key_set.ssk, key_set.pvt, key_set.uid)
    assert repr(KEYS) == "<TransportKeys TrK InK>"


@pytest.mark.parametrize("name, pattern, replacement", [
    ("user", b"<UserUri>sip:alice", b"<UserUri>sip:malice"),
    ("period", b"<KeyPeriodNo>1542", b"<KeyPeriodNo>1543"),
    ("digest", b"DigestValue>.", b"DigestValue>/"),
    ("signature", b"SignatureValue>.", b"SignatureValue>/"),
    ("algorithm", b"#hmac-sha256", b"#hmac-sha1"),
    ("canonicalisation", b"REC-xml-c14n-20010315", b"REC-xml-c14n-20010316"),
    ("reference", b'URI="#kms-response"', b'URI=""'),
    ("ink", b"KeyName>InK", b"KeyName>InQ"),
    ("unsigned", rb"<ds:Signature.*</ds:Signature>", b""),
    ("unwrapped", rb"</?SignedKmsResponse[^>]*>", b""),
    ("doubled", rb"(<KmsResponse .*</KmsResponse>)", rb"\1\1"),
    ("relative namespace", b'xmlns:xenc="http:', b'xmlns:xenc="htt'),
    ("truncated", rb"(<ds:SignatureMethod[^>]*)/>",
     rb"\1><ds:HMACOutputLength>8</ds:HMACOutputLength></ds:SignatureMethod>"),
])  # fmt: skip
def test_no_change_of_a_protected_response_is_taken(
    document: bytes, name: str, pattern: bytes, replacement: bytes
) -> None:
    changed = re.sub(pattern, replacement, document, flags=re.S)
    assert changed != document, name
    with pytest.raises(KmsError):
        decode_response(changed, KEYS)


def test_a_signed_response_is_not_replaced_by_one_wrapped_around_it(document: bytes) -> None:
    """The signed element moved aside and another put in its place."""
    inner = re.search(rb"<KmsResponse .*</KmsResponse>", document, re.S)
    assert inner is not None
    evil = inner[0].replace(b'Id="kms-response"', b'Id="other"').replace(b"sip:alice", b"sip:malice")
    aside = b"</ds:KeyInfo><ds:Object>" + inner[0] + b"</ds:Object></ds:Signature>"
    moved = document.replace(inner[0], evil).replace(b"</ds:KeyInfo></ds:Signature>", aside)
    with pytest.raises(KmsError, match="not over the response"):
        decode_response(moved, KEYS)


def test_other_keys_do_not_open_it_and_none_is_taken_in_clear(document: bytes, key_set: KeySet) -> None:
    for keys in (OTHER, TransportKeys(KEYS.trk, OTHER.ink), TransportKeys(OTHER.trk, KEYS.ink)):
        with pytest.raises(KmsError):
            decode_response(document, keys)
    with pytest.raises(KmsError):
        decode_response(document)
    clear = encode_response(KmsResponse(ALICE, key_set.kms_uri, NOW, "u", key_sets=(key_set,)))
    with pytest.raises(KmsError, match="not signed"):
        decode_response(clear, KEYS)


def test_a_signed_response_with_keys_in_clear_is_refused(key_set: KeySet) -> None:
    from mikey.kms_documents import parse
    from mikey.kms_protection import sign

    clear = encode_response(KmsResponse(ALICE, key_set.kms_uri, NOW, "u", key_sets=(key_set,)))
    wrapper = parse(f'<SignedKmsResponse xmlns="{NS}"/>'.encode())
    wrapper.append(parse(clear))
    sign(wrapper, KEYS)
    from lxml import etree

    with pytest.raises(KmsError, match="not wrapped"):
        decode_response(etree.tostring(wrapper), KEYS)


def test_t18_points_wrapped_without_their_first_octet_are_read(document: bytes, key_set: KeySet) -> None:
    """TS 33.180 does not say how 257 octets go through a wrap of eights: both ways that are in use are read."""
    from base64 import b64encode

    from cryptography.hazmat.primitives.keywrap import aes_key_wrap
    from lxml import etree

    from mikey.kms_documents import parse
    from mikey.kms_protection import KW_AES256, XENC, sign

    root = parse(document)
    response = root[0]
    for name, octets in (("UserDecryptKey", key_set.rsk.reveal()), ("UserPubTokenPVT", key_set.pvt)):
        element = response.find(f".//{{{NS}}}{name}")
        element.find(f".//{{{XENC}}}EncryptionMethod").set("Algorithm", KW_AES256)
        element.find(f".//{{{XENC}}}CipherValue").text = b64encode(
            aes_key_wrap(KEYS.trk.reveal(), octets[1:])
        ).decode()
    del root[1]
    sign(root, KEYS)
    got = decode_response(etree.tostring(root), KEYS).key_sets
    assert got is not None and (got[0].rsk, got[0].pvt) == (key_set.rsk, key_set.pvt)


def xmlsec(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("xmlsec1") is None:
        pytest.skip("xmlsec1 is not installed (Debian package xmlsec1)")
    (tmp_path / "ink").write_bytes(KEYS.ink.reveal())
    return subprocess.run(
        ["xmlsec1", *arguments[:1], "--hmackey", str(tmp_path / "ink"), "--id-attr:Id", f"{NS}:KmsResponse",
         *arguments[1:]], capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.interop
def test_xmlsec_verifies_our_signature(document: bytes, tmp_path: Path) -> None:
    path = tmp_path / "response.xml"
    path.write_bytes(document)
    assert xmlsec(tmp_path, "--verify", str(path)).returncode == 0
    path.write_bytes(document.replace(b"1542", b"1543"))
    assert xmlsec(tmp_path, "--verify", str(path)).returncode != 0


@pytest.mark.interop
def test_we_verify_the_signature_of_xmlsec(document: bytes, tmp_path: Path) -> None:
    template = re.sub(rb"(<ds:(DigestValue|SignatureValue)>)[^<]*", rb"\1", document)
    template = template.replace(b"><", b">\n  <")  # other white space than ours
    path = tmp_path / "template.xml"
    path.write_bytes(template)
    signed = xmlsec(tmp_path, "--sign", str(path))
    assert signed.returncode == 0
    assert decode_response(signed.stdout, KEYS).key_sets


@pytest.mark.network
async def test_a_served_user_with_transport_keys_gets_nothing_in_clear(kms: Kms) -> None:
    server = KmsServer(kms, {"a": ALICE, "b": BOB}, clock=lambda: NOW, transport_keys={ALICE: KEYS})
    host, port = await server.start()
    url = f"http://{host}:{port}"

    def client(token: str, uri: str, keys: TransportKeys | None) -> KmsClient:
        return KmsClient(url, token=token, uri=uri, clock=lambda: NOW, transport_keys=keys)

    try:
        async with client("a", ALICE, KEYS) as good:
            assert len(list(await good.fetch())) == 2
            with pytest.raises(KmsError, match="another user"):
                await good.request("keyprov/sip%3Abob%40example.org")
        for token, uri, keys in (("a", ALICE, None), ("a", ALICE, OTHER), ("b", BOB, KEYS)):
            async with client(token, uri, keys) as bad:
                with pytest.raises(KmsError):
                    await bad.fetch()
        async with client("nobody", ALICE, KEYS) as unknown:
            with pytest.raises(KmsError) as caught:
                await unknown.fetch()
            assert caught.value.code == 401
    finally:
        await server.stop()


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"trk": "00"}}', '{"a": {"trk": "00", "ink": "00"}}'])
def test_files_of_transport_keys(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"

    def write(text: str, mode: int = 0o600) -> Any:
        path.write_text(text)
        path.chmod(mode)

    good = f'{{"{ALICE}": {{"trk": "{KEYS.trk.reveal().hex()}", "ink": "{KEYS.ink.reveal().hex()}"}}}}'
    write(good)
    assert load_transport_keys(path)[ALICE] == KEYS
    write(good, 0o644)
    with pytest.raises(KmsError, match="may read it"):
        load_transport_keys(path)
    write(content)
    with pytest.raises(MikeyError):
        load_transport_keys(path)
