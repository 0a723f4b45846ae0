# SPDX-License-Identifier: Apache-2.0
"""Options from a file: ``--config FILE`` of every long-running command, a TOML file with one table for each command.

::

    [serve]
    identity = "sip:mcptt@example.org"
    listen = ["udp:192.0.2.1:5060", "tls:192.0.2.1:5061"]
    answer-when = "quorum:3"
    max-participants = 200

What stands on the command line goes before the environment (``MCPTT_SERVE_ANSWER_WHEN``), that before the file, and the
file before the defaults. Keys are the long options without their dashes; no option holds a secret, so no file does.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

__all__ = ["CONTEXT", "Config", "ConfigError", "KnownOption", "options_of"]

#: of the whole command line: every option may come from the environment
CONTEXT = {"auto_envvar_prefix": "MCPTT"}


class ConfigError(ValueError):
    """A file of options is not usable; the message names the place."""


class KnownOption(Protocol):
    """An option of a command."""

    @property
    def name(self) -> str | None: ...
    @property
    def multiple(self) -> bool: ...
    @property
    def is_flag(self) -> bool: ...


def options_of(text: str, command: str, known: Mapping[str, KnownOption], commands: Iterable[str]) -> dict[str, Any]:
    """The values of ``command``'s table, by parameter name. Raises :class:`ConfigError`.

    :param known: the command's options by the names that a file may use
    :param commands: the tables that a file may have
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(error)) from None
    tables = sorted(commands)
    for name, table in document.items():
        if name not in tables:
            raise ConfigError(f"unknown table [{name}]{_meant(name, tables)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{name} must be a table: [{name}]")
    values: dict[str, Any] = {}
    for key, value in document.get(command, {}).items():
        option = known.get(key)
        if option is None:
            raise ConfigError(f"[{command}] has no option {key!r}{_meant(key, known)}")
        values[str(option.name)] = _checked(command, key, option, value)
    return values


def _checked(command: str, key: str, option: KnownOption, value: object) -> object:
    """``value``, when it is of the kind that the option takes; what it means, the option itself says."""
    many = value if isinstance(value, list) else [value]
    if isinstance(value, list) is not option.multiple:
        raise ConfigError(f"[{command}] {key} is {'a list' if option.multiple else 'one value, not a list'}")
    for item in many:
        if option.is_flag and not isinstance(item, bool):
            raise ConfigError(f"[{command}] {key} is true or false")
        if isinstance(item, bool) is not option.is_flag or not isinstance(item, str | int | float):
            raise ConfigError(f"[{command}] {key}: {item!r} is no value of it")
    return value


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Before any other option: what the file says are the defaults of the others."""
    if path is None or context.resilient_parsing:
        return None
    known = {
        name.removeprefix("--"): option
        for option in context.command.params
        for name in option.opts
        if name.startswith("--") and name != "--config"
    }
    commands = getattr(context.parent.command, "commands", {}) if context.parent is not None else {}
    try:
        text = path.read_text(encoding="utf-8")
        context.default_map = options_of(text, str(context.info_name), known, commands)  # type: ignore[arg-type]
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise typer.BadParameter(f"{path}: {error}") from None
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", is_eager=True, callback=_read, help="TOML file of options, in a table [COMMAND]."),
]
