# SPDX-License-Identifier: Apache-2.0
"""Who may do what: user profiles in the words of TS 24.484, and the warnings of TS 24.379.

A question gets a :class:`Decision`: allowed, or a SIP status with the Warning text that tells the user
why. Decisions explain themselves (``because``), so that an operator can ask for them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mcptt_sip.errors import SipError

#: TS 24.379 warning texts that can occur here: MC code -> (SIP status, text). The code stands inside the
#: quotes; the warn-code is always 399 and the agent a host name (4.4.2).
WARNINGS: Mapping[int, tuple[int, str]] = {
    100: (403, "function not allowed due to {reason}"),
    103: (486, "maximum simultaneous MCPTT group calls reached"),
    104: (403, "isfocus not assigned"),
    107: (403, "user not authorised to make private calls"),
    110: (480, "user declined the call invitation"),
    111: (200, "group call proceeded without all required group members"),
    112: (480, "group call abandoned due to required group members not part of the group session"),
    119: (403, "user is not authorised to initiate the group call"),
    121: (403, "user is not authorised to join the group call"),
    122: (486, "too many participants"),
    123: (200, "MCPTT session already exists"),
    127: (403, "user not authorised to be called"),
    128: (403, "isfocus already assigned"),
    136: (488, "authentication of the MIKEY-SAKKE I_MESSAGE failed"),
    137: (404, "the indicated group call does not exist"),
    138: (403, "subscription of conference events not allowed"),
    141: (404, "user unknown to the participating function"),
    142: (404, "unable to determine the controlling function"),
    144: (403, "user not authorised to call this particular user"),
    145: (403, "unable to determine called party"),
    165: (403, "group ID for regroup already in use"),
    190: (403, "user is not authorised to modify the group call participants"),
}


def warning_text(code: int, reason: str | None = None) -> str:
    """The quoted text of a Warning: the MC code, then the words of the table."""
    words = WARNINGS[code][1].format(reason=reason or "local policy")
    return f"{code} {words}"


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to "may this user do this?". ``warning`` is an MC code of :data:`WARNINGS`."""

    allowed: bool
    because: str
    status: int = 200
    warning: int | None = None
    reason: str | None = None

    @classmethod
    def yes(cls, because: str) -> Decision:
        return cls(True, because)

    @classmethod
    def no(cls, warning: int, because: str, reason: str | None = None) -> Decision:
        return cls(False, because, WARNINGS[warning][0], warning, reason)


class PolicyError(SipError):
    """The policy file is not usable; the message names the place."""


@dataclass(frozen=True, slots=True)
class UserProfile:
    """A user's rights (TS 24.484, ``urn:3gpp:mcptt:user-profile:1.0``). A missing right is not given.

    Field names are the elements' names with ``_`` for ``-``; ``max_simultaneous_calls`` is
    MaxSimultaneousCallsN6.
    """

    uri: str
    username: str = ""
    #: password of the digest (RFC 7616); from the policy file, never printed
    password: str = field(default="", repr=False)
    allow_regroup: bool = False
    allow_private_call: bool = False
    allow_private_call_to_any_user: bool = False
    private_call_list: tuple[str, ...] = ()
    allow_private_call_participation: bool = True
    allow_private_call_media_protection: bool = True
    allow_automatic_commencement: bool = True
    allow_manual_commencement: bool = True
    user_priority: int = 5
    max_simultaneous_calls: int = 8


#: spelling in the file -> field
_NAMES = {
    **{f.name.replace("_", "-"): f.name for f in fields(UserProfile) if f.name != "uri"},
    "PrivateCallList": "private_call_list",
    "MaxSimultaneousCallsN6": "max_simultaneous_calls",
}


def _profile(uri: str, table: Mapping[str, Any]) -> UserProfile:
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = _NAMES.get(key)
        if name is None:
            near = difflib.get_close_matches(key, _NAMES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PolicyError(f"user {uri}: unknown entry {key!r}{hint}")
        wanted = type(getattr(UserProfile(uri), name))
        if wanted is tuple:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise PolicyError(f"user {uri}: {key} must be a list of URIs")
            value = tuple(value)
        elif type(value) is not wanted:
            raise PolicyError(f"user {uri}: {key} must be {wanted.__name__}, not {type(value).__name__}")
        values[name] = value
    values.setdefault("username", uri.partition(":")[2].partition("@")[0])
    return UserProfile(uri, **values)


@dataclass(frozen=True, slots=True)
class Policy:
    """All profiles, and the questions the participating and controlling functions ask."""

    profiles: Mapping[str, UserProfile]

    @classmethod
    def parse(cls, text: str) -> Policy:
        """From TOML: one table ``[user."sip:…"]`` per MCPTT ID. Raises :class:`PolicyError`."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PolicyError(str(error)) from None
        unknown = set(document) - {"user"}
        if unknown:
            raise PolicyError(f"unknown table {min(unknown)!r}; only [user.\"URI\"] tables are known")
        users = document.get("user", {})
        if not isinstance(users, dict):
            raise PolicyError("'user' must be tables of the form [user.\"sip:alice@example.org\"]")
        profiles: dict[str, UserProfile] = {}
        for uri, table in users.items():
            if not isinstance(table, dict):
                raise PolicyError(f"user {uri} must be a table")
            profiles[uri] = _profile(uri, table)
        names = [p.username for p in profiles.values()]
        for name in names:
            if names.count(name) > 1:
                raise PolicyError(f"username {name!r} stands in two profiles")
        return cls(profiles)

    def by_username(self, username: str) -> UserProfile | None:
        return next((p for p in self.profiles.values() if p.username == username), None)

    def may_start_regroup(self, initiator: str, target: str, *, calls: int = 0) -> Decision:
        """Step 2 for the INVITE: the right to regroup, and to call this user."""
        profile = self.profiles.get(initiator)
        if profile is None:
            return Decision.no(141, f"{initiator} has no profile")
        if not profile.allow_regroup:
            return Decision.no(119, f"{initiator}: allow-regroup is not true")
        if calls >= profile.max_simultaneous_calls:
            return Decision.no(103, f"{initiator}: MaxSimultaneousCallsN6 is {profile.max_simultaneous_calls}")
        return self.may_add(initiator, target)

    def may_add(self, initiator: str, target: str) -> Decision:
        """Step 2 for every REFER: may this user be keyed and called by that one?"""
        profile = self.profiles.get(initiator)
        if profile is None:
            return Decision.no(141, f"{initiator} has no profile")
        if not profile.allow_private_call:
            return Decision.no(107, f"{initiator}: allow-private-call is not true")
        if not profile.allow_private_call_media_protection:
            return Decision.no(100, f"{initiator}: no allow-private-call-media-protection", "user authorisation")
        if not profile.allow_private_call_to_any_user and target not in profile.private_call_list:
            return Decision.no(144, f"{initiator}: {target} is not in PrivateCallList")
        called = self.profiles.get(target)
        if called is None:
            return Decision.no(141, f"{target} has no profile")
        if not called.allow_private_call_participation:
            return Decision.no(127, f"{target}: no allow-private-call-participation")
        return Decision.yes(f"{initiator} may call {target} in a user regroup")
