# SPDX-License-Identifier: Apache-2.0
"""Affiliation of users to groups, explicit and implicit (TS 24.379 9.2.2)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Affiliations:
    """Which user is affiliated to which group, and which of that the server did by itself.

    An implicit affiliation is undone when the call that caused it fails (9.2.2.2.14), when the user leaves it, or
    when it ends; one that the user asked for stays. Both count towards N2.
    """

    _explicit: dict[str, set[str]] = field(default_factory=dict)
    _implicit: dict[str, set[str]] = field(default_factory=dict)
    _groups: dict[str, set[str]] = field(default_factory=dict)

    def affiliate(self, user: str, group: str) -> None:
        self._add(self._explicit, user, group)

    def de_affiliate(self, user: str, group: str) -> None:
        self._drop(self._explicit, user, group)

    def affiliate_implicitly(self, user: str, group: str) -> None:
        self._add(self._implicit, user, group)

    def undo_implicit(self, user: str, group: str) -> None:
        self._drop(self._implicit, user, group)

    def undo_group(self, group: str) -> None:
        """The call has ended: nobody is implicitly affiliated to its temporary group any more."""
        for user in list(self._implicit.get(group, ())):
            self._drop(self._implicit, user, group)

    def is_affiliated(self, user: str, group: str) -> bool:
        return user in self._explicit.get(group, ()) or user in self._implicit.get(group, ())

    def users(self, group: str) -> frozenset[str]:
        return frozenset(self._explicit.get(group, ())) | frozenset(self._implicit.get(group, ()))

    def count(self, user: str) -> int:
        """Groups that the user is affiliated to, to be held against N2."""
        return len(self._groups.get(user, ()))

    def _add(self, table: dict[str, set[str]], user: str, group: str) -> None:
        table.setdefault(group, set()).add(user)
        self._groups.setdefault(user, set()).add(group)

    def _drop(self, table: dict[str, set[str]], user: str, group: str) -> None:
        users = table.get(group)
        if users is not None:
            users.discard(user)
            if not users:
                del table[group]
        groups = self._groups.get(user)
        if groups is not None and not self.is_affiliated(user, group):
            groups.discard(group)
            if not groups:
                del self._groups[user]
