# SPDX-License-Identifier: Apache-2.0
"""``--config FILE``: what stands on the command line goes before the environment, that before the file, that before the
defaults; what a file cannot mean is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mcptt_sip.ops import cli
from mcptt_sip.ops.ua import TelephoneOptions


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[TelephoneOptions]:
    """What a telephone would be started with."""
    found: list[TelephoneOptions] = []

    async def program(options: TelephoneOptions) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr("mcptt_sip.ops.ua.run_telephone", program)
    return found


def ua(*words: str, **environment: str) -> Any:
    return CliRunner().invoke(cli.app, ["ua", *words], env=environment)


FILE = """
[ua]
listen = ["udp:127.0.0.1:5062", "tcp:127.0.0.1:5063"]
answer-after = 2
100rel = true
[serve]
answer-when = "quorum:3"
"""


def test_the_nearer_one_wins(tmp_path: Path, asked: list[TelephoneOptions]) -> None:
    (tmp_path / "c.toml").write_text(FILE)
    config = ("--config", str(tmp_path / "c.toml"))
    for words, environment in (
        ((), {}), (config, {}), (config, {"MCPTT_UA_ANSWER_AFTER": "3"}),
        ((*config, "--answer-after", "4"), {"MCPTT_UA_ANSWER_AFTER": "3"}),
        ((*config, "--listen", "tls:127.0.0.1:0"), {}), ((), {"MCPTT_UA_CONFIG": config[1]}),
    ):  # fmt: skip
        result = ua(*words, **environment)
        assert result.exit_code == 0, result.output
    plain, filed, from_environment, from_words, listening, named = asked
    assert (plain.answer_after, plain.reliable) == (0.0, False)
    assert (filed.answer_after, filed.reliable) == (2.0, True)
    assert filed.listen == ("udp:127.0.0.1:5062", "tcp:127.0.0.1:5063") == from_words.listen
    assert from_environment.answer_after == 3.0 and from_words.answer_after == 4.0
    assert listening.listen == ("tls:127.0.0.1:0",) and listening.answer_after == 2.0
    assert named == filed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ua]\nanswr-after = 2", "did you mean 'answer-after'?"), ("[phon]\n", "did you mean 'phone'?"),
        ("ua = 3", "must be a table"), ("[ua]\n100rel = 'yes'", "true or false"),
        ("[ua]\nlisten = 'udp:127.0.0.1:0'", "a list"), ("[ua]\nanswer-after = [1]", "not a list"),
        ("[ua]\nanswer-after = true", "no value"), ("[ua]\nanswer-after = 'soon'", "valid number"),
        ("[ua]\nlisten = [{}]", "no value"), ("[ua", "Expected"), ("[ua]\nconfig = 'd.toml'", "no option"),
        ("[ua]\npassword = 'secret'", "no option"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_mean_is_said(
    text: str, said: str, tmp_path: Path, asked: list[TelephoneOptions]
) -> None:
    (tmp_path / "c.toml").write_text(text)
    result = ua("--config", str(tmp_path / "c.toml"))
    assert result.exit_code == 2 and said in " ".join(result.output.split()) and not asked


def test_a_file_that_is_not_there_or_is_no_text_is_said(tmp_path: Path, asked: list[TelephoneOptions]) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    for name in ("c.toml", "d.toml"):
        assert ua("--config", str(tmp_path / name)).exit_code == 2 and not asked


def test_required_options_may_stand_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[phone]\nuri = "sip:alice@mcx.example"\n')
    result = CliRunner().invoke(cli.app, ["phone", "--config", str(tmp_path / "c.toml")])
    assert result.exit_code == 2 and "--proxy" in result.output and "--uri" not in result.output.partition("Error")[2]


@pytest.mark.parametrize("name", ["demo", "run", "kms", "serve", "phone", "phones", "ua"])
def test_every_long_running_command_has_it(name: str) -> None:
    assert "--config" in CliRunner().invoke(cli.app, [name, "--help"]).output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--answer-time-limit", "-1"], "answer time limit"), (["--ring-time-limit", "nan"], "ring time limit"),
        (["--max-silence", "nan"], "max silence"), (["--max-duration", "0"], "max duration"),
        (["--keep-alive", "0"], "keep-alive"),
    ],
)  # fmt: skip
def test_a_time_that_is_none_is_said_so_before_anything_is_opened(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MCPTT_KMS_TOKEN", "x")
    words = ["serve", "--policy", str(tmp_path / "p"), "--identity", "sip:m@x", "--domain", "x", *options]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2 and said in result.output


@pytest.mark.parametrize(("life", "delay"), [("inf", "2"), ("nan", "2"), ("3", "2"), ("3600", "nan"), ("3600", "-1")])
def test_a_key_that_could_never_be_used_is_said_so(
    life: str, delay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MCPTT_KMS_TOKEN", "MCPTT_PASSWORD"):
        monkeypatch.setenv(name, "x")
    words = ["phone", "--uri", "sip:a@x", "--proxy", "tcp:127.0.0.1:9", "--key-lifetime", life,
             "--activation-delay", delay]  # fmt: skip
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2 and "key" in result.output
