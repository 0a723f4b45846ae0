# SPDX-License-Identifier: Apache-2.0
"""``mcptt admin``: who may do what, looked at and changed. A running server takes a change at its next decision.

The policy file keeps its comments and its order. A change is checked as a whole before the file is replaced, in one
step, so that a server never reads half of one.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import tempfile
import tomllib
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import tomlkit
import tomlkit.exceptions
from tomlkit.items import InlineTable

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.policy import Finding, Policy, PolicyError, Question
from mcptt_sip.mcptt.userprofile import STANDARD_NAME, ProfileError, UserProfile, check_value, field_named
from mcptt_sip.uri import SipUri


class AdminError(SipError):
    """What was asked for cannot be done; the message says why, and what may have been meant."""


class PolicyDocument:
    """A policy file under change. Nothing is written before :meth:`save`."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self._mark = self._stat()
        if self._mark is None and not create:
            raise AdminError(f"there is no policy file {path}")
        try:
            text = path.read_text(encoding="utf-8") if self._mark is not None else ""
            self._document = tomlkit.parse(text)
            self.policy = Policy.parse(text)
        except (OSError, UnicodeDecodeError) as error:
            raise AdminError(f"{path}: {error}") from None
        except (tomlkit.exceptions.TOMLKitError, PolicyError) as error:
            raise AdminError(f"{path} is not usable: {error}") from None

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    # --- who ------------------------------------------------------------------------------------------

    def find(self, name: str) -> UserProfile:
        """The profile of an MCPTT ID, or of the one user with that name in it. Raises :class:`AdminError`."""
        profile = self.policy.profiles.get(name)
        if profile is not None:
            return profile
        named = [p for p in self.policy.profiles.values() if name in (p.username, SipUri.parse(p.uri).user)]
        if len(named) == 1:
            return named[0]
        if named:
            raise AdminError(f"{name!r} is {' or '.join(p.uri for p in named)}: say which")
        known = [*self.policy.profiles, *(SipUri.parse(uri).user or "" for uri in self.policy.profiles)]
        near = difflib.get_close_matches(name, known, 1)
        raise AdminError(f"there is no user {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    # --- changes --------------------------------------------------------------------------------------

    def add(self, uri: str, assignments: Sequence[str] = (), *, password: str | None = None) -> None:
        """A new user. Raises :class:`AdminError`."""
        if uri in self.policy.profiles:
            raise AdminError(f"user {uri} is there already; 'user set' changes him")
        self._insert(uri)
        self._assign(uri, assignments, password)

    def set(self, name: str, assignments: Sequence[str], *, password: str | None = None) -> str:
        """Changes some entries; the MCPTT ID of whom."""
        uri = self.find(name).uri
        if not assignments and password is None:
            raise AdminError("what is to be set? NAME=VALUE, for example allow-regroup=true")
        self._assign(uri, assignments, password)
        return uri

    def remove(self, name: str) -> str:
        """Takes a user out; the MCPTT ID of whom."""
        uri = self.find(name).uri
        del self._users()[uri]
        return uri

    def put(self, profile: UserProfile) -> bool:
        """A profile from elsewhere: all rights are its own, name and password those that are known here.

        Whether the user is new.
        """
        held = self.policy.profiles.get(profile.uri)
        if held is not None:
            profile = replace(profile, username=held.username, password=held.password)
        table = self._insert(profile.uri)
        for key, value in profile.table().items():
            table[key] = value
        return held is None

    def _users(self) -> MutableMapping[str, Any]:
        """The tables by MCPTT ID, however the file spells them."""
        if "user" not in self._document:
            self._document["user"] = tomlkit.table(is_super_table=True)
        users: Any = self._document["user"]
        return cast(MutableMapping[str, Any], users)

    def _insert(self, uri: str) -> MutableMapping[str, Any]:
        """An empty table for ``uri``, of the kind that can stand where this file has its users."""
        users = self._users()
        users[uri] = tomlkit.inline_table() if isinstance(users, InlineTable) else tomlkit.table()
        if tomllib.loads(tomlkit.dumps(self._document)).get("user", {}).get(uri) != {}:
            # dotted keys (user."URI".name = …) cannot be followed by a table
            raise AdminError(f'{self.path}: write its users as tables of the form [user."{uri}"] to add one here')
        return cast(MutableMapping[str, Any], users[uri])

    def _assign(self, uri: str, assignments: Iterable[str], password: str | None) -> None:
        table = self._users()[uri]
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise AdminError(f"{assignment!r} is not NAME=VALUE")
            try:
                at = field_named(key, uri)
                if at == "password":
                    raise AdminError("a password is not given on the command line; use --password-file")
                value = check_value(uri, key, _value(uri, at, text))
            except ProfileError as error:
                raise AdminError(str(error)) from None
            for spelling in [name for name in table if field_named(name, uri) == at]:
                if spelling != key:
                    del table[spelling]
            table[key] = list(value) if isinstance(value, tuple) else value
        if password is not None:
            table["password"] = password

    def save(self) -> None:
        """Checks the whole and replaces the file; its mode stays (a new one is its owner's alone: it has passwords).

        Raises :class:`AdminError`, and then the file is as it was.
        """
        text = tomlkit.dumps(self._document)
        try:
            self.policy = Policy.parse(text)
        except PolicyError as error:
            raise AdminError(f"nothing was changed: {error}") from None
        if self._stat() != self._mark:
            raise AdminError(f"{self.path} was changed by somebody else meanwhile; nothing was changed, try again")
        mode = 0o600 if self._mark is None else self.path.stat().st_mode & 0o777
        target = self.path.resolve()  # a link stays one
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, mode)
            os.replace(name, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise AdminError(f"{self.path}: {error}") from None
        self._mark = self._stat()


def _value(uri: str, at: str, text: str) -> object:
    """What ``text`` on a command line means for that field."""
    kind = type(getattr(UserProfile(uri), at))
    if kind is bool:
        if text not in ("true", "false"):
            raise AdminError(f"{text!r} is neither true nor false")
        return text == "true"
    if kind is int:
        if not text.isdecimal():
            raise AdminError(f"{text!r} is no number")
        return int(text)
    if kind is tuple:
        return [item for item in (part.strip() for part in text.split(",")) if item]
    return text


def described(profile: UserProfile) -> dict[str, Any]:
    """Every entry of a profile under its standard name, the password only as there or not."""
    entries = {name: getattr(profile, at) for at, name in STANDARD_NAME.items() if at != "password"}
    return {"uri": profile.uri, **entries, "password": "set" if profile.password else "not set"}


def explained(policy: Policy, question: Question) -> tuple[list[Finding], str]:
    """Every rule with what it says, and the verdict in a sentence."""
    decision = policy.may_start_regroup(question)
    if decision.allowed:
        verdict = f"allowed: {decision.because}"
    else:
        verdict = f"refused with {decision.status}, Warning {decision.warning_text!r}: {decision.because}"
    return policy.explain(question), verdict
