# SPDX-License-Identifier: Apache-2.0
"""The KMS over HTTPS: who gets which keys, what clients accept, what is never said."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from mikey import (
    Keyring,
    KeySet,
    KeyType,
    Kms,
    KmsClient,
    KmsServer,
    TransportKey,
    encode_text,
    key_files,
    seal,
    unseal,
)
from mikey.__main__ import main as mikey_main
from mikey.errors import InvalidKey, KmsError, KmsUnreachable, MikeyError, StoreError
from mikey.identity import ntp_encode
from mikey.kms_command import load_users
from mikey.kms_documents import CONTENT_TYPE, ROOT, KmsRequest, KmsResponse, decode_response, encode_request
from mikey.kms_http import Users
from mikey.tls import client_context, development_certificate, server_context

from .conftest import ALICE, BOB, CAROL, NOW

TOKENS = {"token-of-alice": ALICE, "token-of-bob": BOB}
PERIOD = 2592000

pytestmark = pytest.mark.network


@dataclasses.dataclass
class Running:
    """A served KMS and what is needed to reach it."""

    kms: Kms
    url: str
    authority: Path
    folder: Path
    issued: list[tuple[str, KeySet]]
    fail_record: bool = False

    def client(self, uri: str, token: str | None, **more: Any) -> KmsClient:
        context = more.pop("ssl_context", None) or client_context(self.authority)
        return KmsClient(self.url, token=token, uri=uri, clock=lambda: NOW, ssl_context=context, **more)

    def user_certificate(self, name: str, uri: str) -> tuple[Path, Path]:
        pair = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        development_certificate(*pair, names=(f"{name}.example.org",), now=time.time(), uri=uri)
        return pair


@pytest.fixture
async def served(kms: Kms, tmp_path: Path) -> AsyncIterator[Running]:
    certificate, key = tmp_path / "kms.pem", tmp_path / "kms.key"
    development_certificate(certificate, key, names=("127.0.0.1", "localhost"), now=time.time())
    running = Running(kms, "", certificate, tmp_path, [])
    clients = tmp_path / "clients.pem"
    pairs = [running.user_certificate(name, uri) for name, uri in (("alice", ALICE), ("stranger", CAROL))]
    clients.write_text("".join(pair[0].read_text() for pair in pairs))

    async def record(user: str, key_set: KeySet) -> None:
        if running.fail_record:
            raise StoreError("the disk is full")
        running.issued.append((user, key_set))

    server = KmsServer(
        kms, TOKENS, clock=lambda: NOW, record=record,
        ssl_context=server_context(certificate, key, client_authority=clients),
    )  # fmt: skip
    host, port = await server.start()
    running.url = f"https://{host}:{port}"
    yield running
    await server.stop()


async def refused(client: KmsClient, resource: str) -> int | None:
    async with client:
        with pytest.raises(KmsError) as caught:
            await client.request(resource)
    return caught.value.code


def keyprov(uri: str, at: float | None = None) -> str:
    path = f"keyprov/{quote(uri, safe='')}"
    return path if at is None else f"{path}/{ntp_encode(at).hex().upper()}"


async def test_two_users_fetch_their_keys_and_talk(served: Running) -> None:
    rings = []
    for token, uri in TOKENS.items():
        async with served.client(uri, token) as client:
            rings.append(await client.fetch())
    alice, bob = rings
    csk = TransportKey.generate(KeyType.CSK)
    message = seal(csk, sender=ALICE, recipient=BOB, keyring=alice, now=NOW)
    out = unseal(message.octets, sender_uri=ALICE, me=BOB, keyring=bob, now=NOW, replay=None, expect_type=KeyType.CSK)
    assert out.key.same_key(csk)
    assert [k.uri for k in alice] == [ALICE, ALICE]  # this period and the next
    assert [(user, k.uri) for user, k in served.issued] == [(ALICE, ALICE)] * 2 + [(BOB, BOB)] * 2


async def test_no_token_or_a_wrong_one_gets_nothing(served: Running) -> None:
    for token in (None, "", "token", "token-of-alice2", "Token-of-alice"):
        for resource in ("init", "keyprov", "certcache", keyprov(ALICE), "nonsense"):
            assert await refused(served.client(ALICE, token), resource) == 401
    assert served.issued == []


async def test_a_token_does_not_open_another_users_keys(served: Running) -> None:
    for resource in (keyprov(BOB), keyprov(BOB, NOW), keyprov(ALICE + " "), keyprov(ALICE.upper())):
        assert await refused(served.client(ALICE, "token-of-alice"), resource) == 403
    client = served.client(BOB, "token-of-alice")  # answered with Alice's own: not what this client asked for
    async with client:
        with pytest.raises(KmsError, match="sent a key set of"):
            await client.keyprov()
    assert {user for user, _ in served.issued} == {ALICE}


async def test_the_body_names_the_user_too(served: Running) -> None:
    async with aiohttp.ClientSession() as session:
        for uri, status in ((ALICE, 200), (BOB, 403)):
            body = encode_request(KmsRequest(uri, "kms.example.org", NOW, "u"))
            async with session.post(
                f"{served.url}{ROOT}/keyprov", data=body, headers={"Authorization": "Bearer token-of-alice"},
                ssl=client_context(served.authority),
            ) as answer:  # fmt: skip
                assert answer.status == status
                response = decode_response(await answer.read())
                assert (response.key_sets is None) == (status != 200)


async def test_periods_far_off_methods_and_sizes_are_refused(served: Running) -> None:
    for at, code in ((NOW + 3 * PERIOD, 403), (NOW - 3 * PERIOD, 403)):
        assert await refused(served.client(ALICE, "token-of-alice"), keyprov(ALICE, at)) == code
    for text in ("00", "X" * 16, "D6B43232000000000"):
        assert await refused(served.client(ALICE, "token-of-alice"), keyprov(ALICE) + "/" + text) == 400
    for resource in ("nonsense", "init/1", keyprov(ALICE, NOW) + "/x"):
        assert await refused(served.client(ALICE, "token-of-alice"), resource) == 404
    headers = {"Authorization": "Bearer token-of-alice"}
    async with aiohttp.ClientSession(headers=headers) as session:
        context = client_context(served.authority)
        async with session.get(f"{served.url}{ROOT}/init", ssl=context) as answer:
            assert answer.status == 405
        async with session.post(f"{served.url}{ROOT}/init", data=b"<a/>" + bytes(100_000), ssl=context) as answer:
            assert answer.status == 413
        async with session.post(f"{served.url}{ROOT}/keyprov", data=b"<!DOCTYPE a><a/>", ssl=context) as answer:
            assert answer.status == 400 and b"KmsKeySet" not in await answer.read()
    assert served.issued == []


async def test_keys_that_could_not_be_made_durable_are_not_sent(served: Running) -> None:
    served.fail_record = True
    assert await refused(served.client(ALICE, "token-of-alice"), "keyprov") == 503


async def test_a_server_that_nobody_vouches_for_gets_no_token(served: Running, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    development_certificate(other, tmp_path / "other.key", names=("127.0.0.1",), now=time.time())
    for context in (client_context(other), None):
        client = KmsClient(served.url, token="token-of-alice", uri=ALICE, clock=lambda: NOW, ssl_context=context)
        async with client:
            with pytest.raises(KmsUnreachable):
                await client.fetch()


async def test_certificates_of_users_name_them(served: Running) -> None:
    certificate, key = served.folder / "alice.pem", served.folder / "alice.key"
    context = client_context(served.authority, certificate=certificate, private_key=key)
    async with served.client(ALICE, None, ssl_context=context) as client:
        assert [k.uri for k in await client.keyprov()] == [ALICE]
    assert await refused(served.client(ALICE, None, ssl_context=context), keyprov(BOB)) == 403
    stranger = client_context(
        served.authority, certificate=served.folder / "stranger.pem", private_key=served.folder / "stranger.key"
    )
    assert await refused(served.client(CAROL, None, ssl_context=stranger), "keyprov") == 401


@pytest.mark.parametrize("url", ["http://kms.example.org", "http://192.0.2.1:8443", "ftp://127.0.0.2.example", "kms"])
def test_a_client_sends_no_token_over_a_network_in_clear(url: str) -> None:
    with pytest.raises(KmsError, match="in clear"):
        KmsClient(url, token="token-of-alice", uri=ALICE, clock=lambda: NOW)
    for good in ("https://kms.example.org", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"):
        KmsClient(good, token="token-of-alice", uri=ALICE, clock=lambda: NOW)


def test_users_are_found_by_digest_and_only_when_provisioned() -> None:
    users = Users(TOKENS)
    assert users.of_token("token-of-bob") == BOB and users.of_token("token-of-carol") is None
    assert not any(token in repr(vars(users)) for token in TOKENS)
    assert users.of_certificate({"subjectAltName": (("DNS", "x"), ("URI", BOB))}) == BOB
    assert users.of_certificate({"subjectAltName": (("URI", CAROL),)}) is None
    assert users.of_certificate({}) is None


# -- a KMS that lies ------------------------------------------------------------------------------------------


class Lying(KmsServer):
    """Answers keyprov with what the test says."""

    answer: KeySet

    async def _resource(self, request: web.Request, user: str, url: str, now: float) -> KmsResponse:
        response = await super()._resource(request, user, url, now)
        return dataclasses.replace(response, key_sets=(self.answer,)) if response.key_sets else response


@pytest.mark.parametrize("lie", ["rsk", "ssk", "pvt", "uid", "uri", "period_no", "kms"])
async def test_a_key_set_that_does_not_prove_itself_is_not_taken(kms: Kms, lie: str) -> None:
    own, other = kms.issue(ALICE, NOW), kms.issue(BOB, NOW)
    changes: dict[str, Any] = {lie: getattr(other, lie, None)}
    if lie == "period_no":
        changes = {"period_no": own.period_no + 1}
    elif lie == "kms":
        changes = {"certificate": dataclasses.replace(own.certificate, kms_uri="kms.other.example")}
    server = Lying(kms, TOKENS, clock=lambda: NOW)
    server.answer = dataclasses.replace(own, **changes)
    host, port = await server.start()
    try:
        ring = Keyring()
        async with KmsClient(f"http://{host}:{port}", token="token-of-alice", uri=ALICE, clock=lambda: NOW) as client:
            with pytest.raises((InvalidKey, KmsError)):
                await client.fetch(ring)
        assert list(ring) == [] and ring.certificates == ()
    finally:
        await server.stop()


async def test_answers_that_are_none_and_a_silent_kms() -> None:
    async def nonsense(request: web.Request) -> web.Response:
        kind = CONTENT_TYPE if request.path.endswith("init") else "text/html"
        return web.Response(body=b"<html>" if kind == CONTENT_TYPE else b"hello", content_type=kind)

    app = web.Application()
    app.router.add_route("*", "/{x:.*}", nonsense)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    url = f"http://{host}:{port}"
    async with KmsClient(url, token="t", uri=ALICE, clock=lambda: NOW) as client:
        for resource in ("init", "keyprov"):
            with pytest.raises(KmsError):
                await client.request(resource)
    await runner.cleanup()
    async with KmsClient(url, token="t", uri=ALICE, clock=lambda: NOW) as client:
        with pytest.raises(KmsUnreachable):
            await client.fetch()


# -- the program ----------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m mikey kms` with a development certificate in kms.pem."""
    users = tmp_path / "users"
    users.write_text(f"token-of-alice {ALICE}\n# nobody\ntoken-of-bob {BOB}  # a comment\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "mikey", "kms", "--users", str(users), "--certificate", str(tmp_path / "kms.pem"),
         "--private-key", str(tmp_path / "kms.key"), "--development"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


async def test_the_program_serves_https_and_says_no_secret(program: subprocess.Popen[str], tmp_path: Path) -> None:
    assert program.stdout is not None
    ready = json.loads(program.stdout.readline())
    certificate = tmp_path / "kms.pem"
    assert ready["url"].startswith("https://127.0.0.1:")
    assert os.stat(tmp_path / "kms.key").st_mode & 0o777 == 0o600

    def client(token: str) -> KmsClient:
        context = client_context(certificate)
        return KmsClient(ready["url"], token=token, uri=ALICE, clock=time.time, ssl_context=context)

    async with client("token-of-alice") as good:
        ring = await good.fetch()
    async with client("no-token") as bad:
        with pytest.raises(KmsError):
            await bad.fetch()
    program.send_signal(signal.SIGTERM)
    out, err = program.communicate(timeout=20)
    assert program.returncode == 0
    assert f"kms issued user={ALICE}" in err and "kms refused: no valid token" in err
    said = (out + err).lower()
    for key_set in ring:
        assert key_set.rsk.reveal().hex() not in said and key_set.ssk.reveal().hex() not in said
    assert "token-of-alice" not in said and "no-token" not in said


def test_keys_fetched_by_the_program_open_a_message_in_the_inspector(
    program: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.stdout is not None
    ready = json.loads(program.stdout.readline())

    def fetch(uri: str, token: str | None, folder: Path, code: int = 0) -> str:
        monkeypatch.delenv("MIKEY_KMS_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("MIKEY_KMS_TOKEN", token)
        arguments = ["fetch", ready["url"], "--uri", uri, "--authority", ready["authority"], "--out", str(folder)]
        assert mikey_main(arguments) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    for uri, token, name in ((ALICE, "token-of-alice", "alice"), (BOB, "token-of-bob", "bob")):
        lines = [json.loads(line) for line in fetch(uri, token, tmp_path / name).splitlines()]
        assert [line["uri"] for line in lines] == [uri, uri]
        assert lines[1]["period"] == lines[0]["period"] + 1
        assert os.stat(tmp_path / name / "keys.xml").st_mode & 0o777 == 0o600
    assert "who asks?" in fetch(ALICE, None, tmp_path / "none", code=3)
    assert "unauthorised" in fetch(ALICE, "guessed", tmp_path / "none", code=3)
    held = key_files.load([tmp_path / "alice" / name for name in ("certificates.xml", "keys.xml")])
    now = time.time()
    message = seal(TransportKey.generate(KeyType.CSK), sender=ALICE, recipient=BOB, keyring=held.keyring, now=now)
    keys = [str(tmp_path / "bob" / name) for name in ("certificates.xml", "keys.xml")]
    text = encode_text(message.octets)
    assert mikey_main(["inspect", text, "--keys", keys[0], "--keys", keys[1], "--from", ALICE]) == 0
    assert f"accept: from {ALICE} to {BOB}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--plain", "--listen", "0.0.0.0:0"], "in clear"),
        (["--plain", "--listen", "kms.example.org:0"], "in clear"),
        (["--listen", "0.0.0.0:0"], "development certificate is for loopback"),
        (["--plain", "--development"], "without TLS options"),
        (["--certificate", "x"], "belong together"),
        (["--development"], "needs --certificate"),
        (["--certificate", "/no/such", "--private-key", "/no/such"], "TLS"),
    ],
)
def test_the_program_refuses_to_hand_out_keys_in_clear(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users"
    users.write_text(f"t {ALICE}\n")
    assert mikey_main(["kms", "--users", str(users), *arguments]) == 3
    assert said in capsys.readouterr().err


def test_the_default_certificate_is_kept_and_renewed_when_it_ends_or_is_no_pair(tmp_path: Path) -> None:
    from mikey.kms_command import DEVELOPMENT_DAYS, KmsOptions, tls_of

    options, now = KmsOptions(store=tmp_path / "kms.db"), time.time()
    _, first = tls_of(options, now)
    assert first == tmp_path / "kms.db.tls.pem"
    key = tmp_path / "kms.db.tls.key"
    pem = first.read_bytes()
    assert tls_of(options, now + 3600)[1] == first and first.read_bytes() == pem
    tls_of(options, now + DEVELOPMENT_DAYS * 86400)
    assert first.read_bytes() != pem
    pem = first.read_bytes()
    key.chmod(0o644)
    key.write_bytes((tmp_path / "kms.db.tls.key").read_bytes()[:-40])  # a crash between the two files
    tls_of(options, now)
    assert first.read_bytes() != pem and os.stat(key).st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kms.db.tls.key", "kms.db.tls.pem"]


def test_user_files(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(json.dumps(TOKENS))
    assert load_users(path) == TOKENS
    for bad in ("one-word", "a b c", '{"a": 1}', "{"):
        path.write_text(bad)
        with pytest.raises(KmsError) as caught:
            load_users(path)
        assert "one-word" not in str(caught.value)


def test_tls_files_that_are_no_pair(tmp_path: Path) -> None:
    for name in ("a", "b"):
        development_certificate(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", names=("localhost",), now=NOW)
    with pytest.raises(MikeyError):
        server_context(tmp_path / "a.pem", tmp_path / "b.key")
    with pytest.raises(MikeyError):
        client_context(tmp_path / "a.key")
