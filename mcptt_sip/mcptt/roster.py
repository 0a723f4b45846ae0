# SPDX-License-Identifier: Apache-2.0
"""The conference event package of one call, notifier's side (RFC 4575); sans-IO.

Every SUBSCRIBE is answered with the full state; afterwards only what changed goes out, to everybody at once and
not more often than once in an interval, with a version that counts on by one. It is the server's word on who is in
the call. Acknowledgements of keys pass through to the initiator, unread.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mcptt_sip.mcptt.documents import CONFERENCE_INFO, ConferenceInfo, ConferenceUser
from mcptt_sip.subscription import NotifierSubscription

log = logging.getLogger(__name__)

#: seconds after which an invitation is shown that nobody has answered; until then its outcome is waited for
SHOWN_AFTER = 1.0
#: seconds that the outcome of a failed invitation stays in the full state (as RFC 7614 keeps a final state)
OUTCOME_KEPT = 64.0


@dataclass(slots=True)
class _Watcher:
    subscription: NotifierSubscription
    user: str
    version: int = 0


class Roster:
    """Who is in one call, and who is told.

    :param entity: the temporary group id
    :param initiator: who alone is shown acknowledgements
    :param interval: seconds between two notifications (RFC 4575 3.10)
    """

    def __init__(self, entity: str, initiator: str, *, interval: float) -> None:
        self._entity = entity
        self._initiator = initiator
        self._interval = interval
        self._users: dict[str, ConferenceUser] = {}
        self._changed: dict[str, None] = {}
        self._outcomes: dict[str, float] = {}  # user -> when his outcome is forgotten
        self._watchers: dict[int, _Watcher] = {}
        self._told = float("-inf")
        self.due: float | None = None

    # --- what changes ---------------------------------------------------------------------------------

    def connected(self, user: str, now: float) -> None:
        known = self._users.get(user)
        kept = known.acknowledgement if known is not None and known.status == "connected" else None
        self._put(ConferenceUser(user, acknowledgement=kept), now)

    def inviting(self, user: str, now: float) -> None:
        self._put(ConferenceUser(user, "dialing-out"), now, wait=SHOWN_AFTER)

    def gone(self, user: str, now: float) -> None:
        """He left, or was refused and that was reported otherwise."""
        known = self._users.get(user)
        if known is not None and known.status != "disconnected":
            del self._users[user]
            self._mark(user, now)

    def outcome(self, user: str, status: int, warning: str | None, acknowledgement: bytes | None, now: float) -> None:
        """How the adding of ``user`` ended, where no other notification says so."""
        if status < 300:
            proof = base64.b64encode(acknowledgement).decode() if acknowledgement else None
            self._put(ConferenceUser(user, acknowledgement=proof), now)
            return
        reason = f"SIP;cause={status}" + (f';text="{warning}"' if warning else "")
        self._forget(now)
        self._put(ConferenceUser(user, "disconnected", reason), now)
        self._outcomes[user] = now + OUTCOME_KEPT

    def _put(self, user: ConferenceUser, now: float, *, wait: float = 0.0) -> None:
        self._users[user.entity] = user
        self._outcomes.pop(user.entity, None)
        self._mark(user.entity, now, wait)

    def _mark(self, user: str, now: float, wait: float = 0.0) -> None:
        self._changed[user] = None
        due = max(now + wait, self._told + self._interval)
        self.due = due if self.due is None else min(due, self.due)

    @property
    def watching(self) -> frozenset[str]:
        """Users with a subscription."""
        return frozenset(watcher.user for watcher in self._watchers.values())

    def subscriptions_of(self, user: str) -> int:
        """How many subscriptions ``user`` has."""
        return sum(watcher.user == user for watcher in self._watchers.values())

    # --- who is told ----------------------------------------------------------------------------------

    def watch(self, subscription: NotifierSubscription, user: str, now: float) -> None:
        """A SUBSCRIBE of ``user``, which has been accepted: the full state at once."""
        watcher = _Watcher(subscription, user)
        self._send(watcher, "full", self._all(now), now)
        if not subscription.terminated:
            self._watchers[id(subscription)] = watcher

    def refresh(self, subscription: NotifierSubscription, now: float) -> None:
        """A SUBSCRIBE inside the subscription, perhaps because a version was missed: the full state."""
        watcher = self._watchers.get(id(subscription))
        if watcher is not None and not subscription.terminated:
            watcher.version += 1
            self._send(watcher, "full", self._all(now), now)

    def unwatch(self, subscription: NotifierSubscription) -> None:
        self._watchers.pop(id(subscription), None)

    def dismiss(self, user: str, now: float) -> None:
        """Who is not in the call any more is not told of it any more."""
        for key, watcher in list(self._watchers.items()):
            if watcher.user == user:
                del self._watchers[key]
                self._end(watcher.subscription, now)

    def close(self, now: float) -> None:
        for watcher in self._watchers.values():
            self._end(watcher.subscription, now)
        self._watchers.clear()
        self.due = None

    @staticmethod
    def _end(subscription: NotifierSubscription, now: float) -> None:
        if not subscription.terminated:
            subscription.notify(b"", None, state="terminated", reason="noresource", now=now)

    # --- time -----------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> bool:
        """Tells what changed when that is due; whether it did."""
        if self.due is None or self.due > now:
            return False
        self.due, self._told = None, now
        changed = [self._users.get(user) or ConferenceUser(user, "deleted") for user in self._changed]
        self._changed.clear()
        shown = {True: self._encode("partial", changed), False: self._encode("partial", map(_without_proof, changed))}
        for watcher in list(self._watchers.values()):
            watcher.version += 1
            self._notify(watcher, shown[watcher.user == self._initiator], now)
        return True

    # --- documents ------------------------------------------------------------------------------------

    def _all(self, now: float) -> list[ConferenceUser]:
        self._forget(now)
        return list(self._users.values())

    def _forget(self, now: float) -> None:
        for user in [user for user, until in self._outcomes.items() if until <= now]:
            del self._outcomes[user], self._users[user]

    def _send(self, watcher: _Watcher, state: str, users: list[ConferenceUser], now: float) -> None:
        initiator = watcher.user == self._initiator
        self._notify(watcher, self._encode(state, users if initiator else map(_without_proof, users)), now)

    def _encode(self, state: str, users: Iterable[ConferenceUser]) -> bytes:
        return ConferenceInfo(self._entity, 0, state, tuple(users)).encode()

    def _notify(self, watcher: _Watcher, document: bytes, now: float) -> None:
        if watcher.subscription.terminated:
            self._watchers.pop(id(watcher.subscription), None)
            return
        # the documents of all watchers differ only in their version, which is an attribute of the root
        body = document.replace(b' version="0"', b' version="%d"' % watcher.version, 1)
        watcher.subscription.notify(body, CONFERENCE_INFO, now=now)


def _without_proof(user: ConferenceUser) -> ConferenceUser:
    return user if user.acknowledgement is None else replace(user, acknowledgement=None)
