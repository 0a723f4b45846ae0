# SPDX-License-Identifier: Apache-2.0
"""``mcptt admin``: looking at rights, changing them in a file that a server reads meanwhile, and asking why."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mcptt_sip.mcptt.policy import Policy
from mcptt_sip.ops import serve
from mcptt_sip.ops.admin import AdminError, PolicyDocument
from mcptt_sip.ops.cli import app
from mcptt_sip.ops.serve import PolicyFile, controlling_settings

ALICE, BOB = "sip:alice@mcx.example", "sip:bob@mcx.example"
TEXT = f"""# who may do what at this site
[user."{ALICE}"]
password = "of alice"   # to be changed
allow-regroup = true
allow-private-call = true
private-call-list = ["{BOB}"]

[user."{BOB}"]
password = "of bob"
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


def admin(policy: Path, *words: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, ["admin", *words, "--policy", str(policy)], input=text)


def test_users_are_listed_and_shown_with_what_is_default(policy: Path) -> None:
    assert [line.split()[0] for line in admin(policy, "user", "list").stdout.splitlines()] == [ALICE, BOB]
    assert json.loads(admin(policy, "user", "list", "--json").stdout) == [ALICE, BOB]
    shown = admin(policy, "user", "show", "alice").stdout
    assert "PrivateCallList" in shown and BOB in shown and "of alice" not in shown
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert "(default)" in lines["MaxSimultaneousCallsN6"] and "(default)" not in lines["allow-regroup"]
    assert json.loads(admin(policy, "user", "show", ALICE, "--json").stdout)["password"] == "set"


def test_a_change_keeps_comments_order_mode_and_everybody_elses_entries(policy: Path) -> None:
    result = admin(policy, "user", "set", "bob", "allow-regroup=true", "MaxSimultaneousCallsN6=2",
                   f"PrivateCallList={ALICE}, {BOB}")
    assert result.exit_code == 0, result.stderr
    text = policy.read_text()
    assert text.startswith(TEXT), "what was there stands there, comments included"
    bob = Policy.parse(text).profiles[BOB]
    assert (bob.allow_regroup, bob.max_simultaneous_calls, bob.private_call_list) == (True, 2, (ALICE, BOB))
    assert policy.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in policy.parent.iterdir()] == ["policy.toml"]


def test_another_spelling_of_an_entry_is_replaced_not_doubled(policy: Path) -> None:
    assert admin(policy, "user", "set", "alice", "PrivateCallList=").exit_code == 0
    assert Policy.parse(policy.read_text()).profiles[ALICE].private_call_list == ()


def test_users_come_and_go(policy: Path) -> None:
    carol = "sip:carol@mcx.example"
    assert admin(policy, "user", "add", carol, "allow-regroup=true", "--password-file", "-", text="pw\n").exit_code == 0
    assert Policy.parse(policy.read_text()).profiles[carol].password == "pw"
    assert admin(policy, "user", "remove", "carol").exit_code == 0
    assert policy.read_text().strip() == TEXT.strip()


def test_a_first_user_makes_the_file_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    assert admin(path, "user", "add", ALICE).exit_code == 0
    assert Policy.parse(path.read_text()).profiles[ALICE].username == "alice"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        f'user = {{"{ALICE}" = {{allow-regroup = true}}, "{BOB}" = {{}}}}',
        f'[user]\n"{ALICE}" = {{allow-regroup = true}}\n"{BOB}" = {{}}',
        f'[user."{BOB}"]\npassword = "x"\n\n[user]\n"{ALICE}" = {{allow-regroup = true}}',
        f'[user."{ALICE}"]\nallow-regroup = true\n[user."{BOB}"]',
    ],
)
def test_every_way_to_spell_the_tables_can_be_changed(tmp_path: Path, text: str) -> None:
    path, carol = tmp_path / "policy.toml", "sip:carol@mcx.example"
    path.write_text(text)
    for words in (["set", "bob", "allow-private-call=true"], ["add", carol, "allow-regroup=true"], ["remove", "alice"]):
        result = admin(path, "user", *words)
        assert result.exit_code == 0, (result.stderr, path.read_text())
    profiles = Policy.parse(path.read_text()).profiles
    assert set(profiles) == {BOB, carol}
    assert profiles[BOB].allow_private_call and profiles[carol].allow_regroup


def test_a_file_of_dotted_keys_can_be_changed_but_not_extended(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f'user."{ALICE}".allow-regroup = true\nuser."{BOB}".password = "x"\n')
    assert admin(path, "user", "set", "bob", "allow-regroup=true").exit_code == 0
    before = path.read_text()
    result = admin(path, "user", "add", "sip:carol@mcx.example")
    assert result.exit_code == 2 and "tables of the form" in result.stderr and path.read_text() == before


@pytest.mark.parametrize(
    "words, said",
    [
        (["user", "show", "alise"], "did you mean 'alice'"),
        (["user", "set", "sip:alice@mcx.exampl", "allow-regroup=true"], f"did you mean '{ALICE}'"),
        (["user", "set", "alice", "alow-regroup=true"], "did you mean 'allow-regroup'"),
        (["user", "set", "alice", "allow-regroup=yes"], "neither true nor false"),
        (["user", "set", "alice", "MaxAffiliationsN2=many"], "no number"),
        (["user", "set", "alice", "MaxAffiliationsN2=99999"], "not from 0 to 65535"),
        (["user", "set", "alice", "PrivateCallList=bob"], "no SIP URI"),
        (["user", "set", "alice", "allow-regroup"], "is not NAME=VALUE"),
        (["user", "set", "alice"], "what is to be set"),
        (["user", "set", "alice", "password=secret"], "--password-file"),
        (["user", "set", "alice", "username=bob"], "two profiles"),
        (["user", "add", ALICE], "is there already"),
        (["user", "add", "carol"], "no SIP URI"),
        (["user", "remove", "carol"], "there is no user 'carol'"),
        (["why", "alice", "bobb"], "did you mean 'bob'"),
        (["export", "nobody-like-that"], "there is no user"),
        (["import", "/nonexistent.xml"], "No such file"),
    ],
)
def test_a_mistake_is_one_clear_sentence_and_changes_nothing(policy: Path, words: list[str], said: str) -> None:
    result = admin(policy, *words)
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert policy.read_text() == TEXT


@pytest.mark.parametrize("text", [None, "[user", 'x = 1', "\xff"])
def test_a_policy_file_that_cannot_be_used_is_the_environments_fault(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "policy.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    result = admin(path, "user", "list")
    assert result.exit_code == 3 and len(result.stderr.splitlines()) == 1


def test_a_change_that_another_one_overtook_is_not_written(policy: Path) -> None:
    mine = PolicyDocument(policy)
    theirs = PolicyDocument(policy)
    theirs.set("bob", ["allow-regroup=true"])
    theirs.save()
    mine.set("alice", ["allow-regroup=false"])
    with pytest.raises(AdminError, match="by somebody else"):
        mine.save()
    assert Policy.parse(policy.read_text()).profiles[BOB].allow_regroup


def test_why_says_every_rule_and_the_answer_that_the_caller_would_get(policy: Path) -> None:
    allowed = admin(policy, "why", "alice", "bob")
    assert allowed.exit_code == 0 and allowed.stdout.splitlines()[-1].startswith("allowed")
    assert "NO" not in allowed.stdout
    refused = admin(policy, "why", "bob", "alice")
    assert refused.exit_code == 1
    assert "403" in refused.stdout and "119 user is not authorised to initiate the group call" in refused.stdout
    stranger = json.loads(admin(policy, "why", "alice", "sip:zoe@mcx.example", "--json").stdout)
    assert not stranger["allowed"] and any(rule["because"] for rule in stranger["rules"])


@pytest.mark.parametrize("how, code", [("--forced", "143"), ("--emergency", "100"), ("--imminent-peril", "100")])
def test_why_asks_for_what_needs_a_right_of_its_own(policy: Path, how: str, code: str) -> None:
    result = admin(policy, "why", "alice", "bob", how)
    assert result.exit_code == 1 and f"Warning '{code} " in result.stdout
    assert admin(policy, "why", "alice", "bob", "--manual").exit_code == 0
    assert admin(policy, "why", "alice", "bob", "--manual", "--forced").exit_code == 2


def test_profiles_go_out_as_xml_and_come_back_with_the_password_that_is_known(policy: Path, tmp_path: Path) -> None:
    before = Policy.parse(policy.read_text()).profiles
    files = []
    for name in ("alice", "bob"):
        out = tmp_path / f"{name}.xml"
        assert admin(policy, "export", name, "--out", str(out)).exit_code == 0
        files.append(str(out))
    admin(policy, "user", "set", "alice", "allow-regroup=false")
    result = admin(policy, "import", *files)
    assert result.exit_code == 0 and f"replaced {ALICE}" in result.stdout
    assert Policy.parse(policy.read_text()).profiles == before
    assert admin(policy, "export", "bob").stdout.startswith("<?xml")


def test_a_broken_document_among_good_ones_imports_none(policy: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.xml", tmp_path / "bad.xml"
    admin(policy, "export", "bob", "--out", str(good))
    good.write_text(good.read_text().replace("bob", "zoe"))
    bad.write_text("<not-a-profile/>")
    result = admin(policy, "import", str(good), str(bad))
    assert result.exit_code == 2 and "bad.xml" in result.stderr and policy.read_text() == TEXT


def test_a_running_server_takes_a_change_at_its_next_decision_and_keeps_the_last_good_one(
    policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving = PolicyFile(policy)
    assert not serving().may_start_regroup(serving().question(BOB, ALICE)).allowed
    admin(policy, "user", "set", "bob", "allow-regroup=true", "allow-private-call=true",
          "allow-private-call-to-any-user=true")
    assert serving().may_start_regroup(serving().question(BOB, ALICE)).allowed
    policy.write_text("[user")
    caplog.clear()
    assert serving().may_start_regroup(serving().question(BOB, ALICE)).allowed
    os.unlink(policy)
    for _ in range(3):
        assert serving().profiles
    assert len(caplog.records) == 2, "what is wrong is said once, not at every decision"


@pytest.mark.parametrize(
    "wrong",
    [{"answer_mode": "telepathic"}, {"session_expires": 30}, {"resource_priority": ["panic=mcpttp.15"]},
     {"resource_priority": ["emergency=mcpttp.16"]}, {"resource_priority": ["emergency"]}],
)
def test_a_wrong_option_of_the_server_is_refused_with_a_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="--"):
        controlling_settings("sip:mcptt@x", "x", **wrong)  # type: ignore[arg-type]


def test_the_priorities_of_a_site_are_its_own() -> None:
    settings = controlling_settings("sip:mcptt@x", "x", resource_priority=["emergency=mcpttq.9"])
    assert sorted(settings.resource_priority.values()) == ["mcpttp.10", "mcpttp.5", "mcpttq.9"]


def test_a_link_to_the_policy_stays_one(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.toml"
    link.symlink_to(policy)
    assert admin(link, "user", "set", ALICE, "allow-regroup=false").exit_code == 0
    assert link.is_symlink() and not Policy.parse(policy.read_text()).profiles[ALICE].allow_regroup


async def test_a_server_is_told_who_was_taken_out_once_that_stands(
    policy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is just being written is no reason to end calls; nor is one without users."""
    looks: asyncio.Queue[None] = asyncio.Queue()
    looked = asyncio.Event()

    async def look(_seconds: float) -> None:
        looked.set()
        await looks.get()

    async def next_look() -> None:
        looked.clear()
        looks.put_nowait(None)
        await looked.wait()

    class Server:
        told: ClassVar[list[list[str]]] = []

        def policy_changed(self, users: Collection[str]) -> None:
            self.told.append(sorted(users))
            if len(self.told) == 1:
                raise RuntimeError("a fault of the server")

    monkeypatch.setattr(serve.asyncio, "sleep", look)
    following = asyncio.ensure_future(serve.follow_policy(PolicyFile(policy), Server()))  # type: ignore[arg-type]
    await looked.wait()
    for text, told in (
        (TEXT, []),
        (TEXT.partition("[user")[0], []), (TEXT, []),  # half written, and whole again
        (TEXT.partition(f'[user."{BOB}')[0], []), (None, [[ALICE]]), (None, [[ALICE]]),  # Bob is taken out
        ("", [[ALICE]]), (None, [[ALICE]]),  # nobody left: a mishap
        (TEXT, [[ALICE]]), (None, [[ALICE], [ALICE, BOB]]),
    ):  # fmt: skip
        if text is not None:
            policy.write_text(text)
        await next_look()
        assert Server.told == told
    assert "no users" in caplog.text and "a fault of the server" in caplog.text
    following.cancel()


def test_a_policy_that_could_not_be_read_is_read_again(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a right that was taken away stayed, because of one moment without a free file."""
    serving = PolicyFile(policy)
    policy.write_text(TEXT.replace("allow-regroup = true", "allow-regroup = false"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError(24, "too many open files")))
        assert serving().profiles[ALICE].allow_regroup
    assert not serving().profiles[ALICE].allow_regroup
