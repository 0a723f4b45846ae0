# SPDX-License-Identifier: Apache-2.0
"""One request on its way through a proxy: its copies, their answers, and which of these goes back (RFC 3261 16.6 to
16.10; RFC 5393 5)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcptt_sip.errors import LocalProtocolError, ParseError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.flow import Flow
from mcptt_sip.layer import ClientRecord, ServerRecord
from mcptt_sip.message import Request, Response
from mcptt_sip.routing import make_cancel
from mcptt_sip.services import Cause
from mcptt_sip.transaction import State
from mcptt_sip.uri import parse_uri

if TYPE_CHECKING:
    from mcptt_sip.proxy import SipProxy

__all__ = ["Branch", "Forwarding", "RequestToForward", "Target"]

log = logging.getLogger(__name__)

#: 16.7 step 6: of the 4xx, what the caller can do something about
_HELPFUL = (401, 407, 415, 420, 484)
#: early dialogs of one branch that are remembered
_MAX_EARLY = 64


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: its new Request-URI; over ``flow`` if there is one, by ``path`` (RFC 3327) if not empty."""

    uri: str
    flow: Flow | None = None
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestToForward:
    """A request that the application decides about."""

    forwarding: Forwarding


class Branch:
    """One copy of the request, and what became of it: the user of its client transaction."""

    def __init__(self, forwarding: Forwarding, target: Target) -> None:
        self.forwarding = forwarding
        self.target = target
        #: its share of the request's Max-Breadth
        self.breadth = 1
        #: when it has rung for too long (timer C), and when the answer to its CANCEL is not waited for any longer
        #: tags of its early dialogs of which nobody has said that they are over
        self.early: set[str] = set()
        self.timer_c: float | None = None
        self.give_up: float | None = None
        self.record: ClientRecord | None = None
        self.final: Response | None = None
        self.progressed = False
        self.cancelled = False
        #: lines of Record-Route that this proxy put in
        self.recorded = 0

    def on_response(self, _transaction: Any, response: Response, _flow: Flow, now: float) -> None:
        self.forwarding.answered(self, response, now)

    def on_failure(self, _transaction: Any, cause: Cause, now: float) -> None:
        self.forwarding.unanswered(self, 408 if cause is Cause.TIMEOUT else 503, now)


class Forwarding:
    """One request on its way: the response context of 16.7. ``request`` is as it came, without this proxy's Routes."""

    def __init__(self, proxy: SipProxy, record: ServerRecord, request: Request, mark: str) -> None:
        self._proxy = proxy
        self._record = record
        self.request = request
        self.flow = record.flow
        self.scheduled: list[Any] | None = None
        self._mark = mark
        self._branches: list[Branch] = []
        self._waiting: list[Branch] = []  # those of them for which there is no breadth yet
        self._decided = False
        self._done = False
        self._cancelled = False

    # --- the application's decision --------------------------------------------------------------------

    @property
    def decided(self) -> bool:
        """Whether the application has said what becomes of it."""
        return self._decided

    def respond(
        self, status: int, reason: str | None = None, *, headers: HeaderItems = (), body: bytes = b"",
        content_type: str | None = None, now: float,
    ) -> None:  # fmt: skip
        """The proxy's own answer. Raises :class:`LocalProtocolError` when the request has been decided about."""
        self._decide_once()
        if self._done:  # its caller has given up meanwhile, and has his 487
            return
        response = self.request.response(
            status, reason, headers=headers, body=body, content_type=content_type, to_tag=self._proxy.tag()
        )
        self._answer(response, now)

    def to(self, targets: Sequence[Target], now: float) -> None:
        """Sends the request to all of these (16.6), at once as far as its Max-Breadth reaches, the others as the first
        fail (RFC 5393 5.5); without any the answer is 480. A target that cannot be read counts as one that cannot be
        reached.

        Raises :class:`LocalProtocolError` when the request has been decided about.
        """
        if not targets:
            self.respond(480, now=now)
            return
        self._decide_once()
        if self._done:  # its caller has given up meanwhile
            return
        self._branches = [Branch(self, target) for target in targets[: self._proxy.proxying.max_branches]]
        breadth = self._proxy.breadth(self.request)
        first, self._waiting = self._branches[:breadth], self._branches[breadth:]
        for number, branch in enumerate(first):
            branch.breadth = (breadth + number) // len(first)
        for branch in first:
            self._start(branch, now)

    def _start(self, branch: Branch, now: float) -> None:
        target = branch.target
        try:
            copy = copy_for(self.request, target, branch.breadth)
            branch.record = self._proxy.send_on(branch, copy, target.flow, self._mark, now)
            self._watch_ringing(branch, now)
        except ParseError as error:
            log.info("call-id=%s target=%s %s", self.request.headers.call_id, target.uri, error)
            self.unanswered(branch, 503, now)

    def follow(self, now: float) -> None:
        """Sends it where its Route, else its Request-URI leads: a request in a dialog, or for another domain."""
        self.to([Target(str(self.request.uri))], now)

    def _decide_once(self) -> None:
        if self._decided:
            raise LocalProtocolError("the request has been decided about")
        self._decided = True

    # --- responses (16.7) -------------------------------------------------------------------------------

    def answered(self, branch: Branch, response: Response, now: float) -> None:
        """A response to one copy."""
        passed = without_top_via(response)
        if response.status < 200:
            branch.progressed = True
            if self._cancelled and not branch.cancelled:
                self._cancel(branch, now)
            # RFC 4320 4.1: no provisional answer but 100 to anything but an INVITE, and 100 goes one hop
            if response.status > 100 and not self._done and self.request.method == "INVITE":
                self._watch_ringing(branch, now)
                tag = response.headers.to.tag
                if response.status == 199:
                    branch.early.discard(tag or "")
                elif tag and len(branch.early) < _MAX_EARLY:
                    branch.early.add(tag)
                self._proxy.answer(self._record, passed, now)
            return
        branch.final = passed
        if response.status < 300:
            self._drop_waiting()
            # 16.7 step 5: every 2xx to an INVITE goes on at once; of those to others the first
            if self.request.method == "INVITE" or not self._done:
                self._answer(passed, now)
            self._cancel_rest(now)
            return
        if response.status >= 600:
            self._drop_waiting()
            self._cancel_rest(now)
        self._failed(branch, now)

    def unanswered(self, branch: Branch, status: int, now: float) -> None:
        """No final response to one copy: it counts as this one (16.8, 16.9)."""
        branch.final = self.request.response(status, to_tag=self._proxy.tag())
        self._failed(branch, now)

    def _failed(self, branch: Branch, now: float) -> None:
        """One that waited has the breadth of this one, else the best answer is chosen (16.7 step 6): when all are
        there. Until then the caller is told of the early dialogs that are over."""
        if self._waiting:
            following = self._waiting.pop(0)
            following.breadth = branch.breadth
            self._start(following, now)
        if any(other.final is None for other in self._branches):
            self._tell_of_the_end(branch, now)
            return
        if self._done:
            return
        answers = [one.final for one in self._branches if one.final is not None]
        best = min(answers, key=_rank)
        if best.status == 408 and self.request.method != "INVITE":
            self._finish(now)  # RFC 4320 4.2: it would come too late for who asked
            self._proxy.destroy(self._record)
            return
        if best.status == 503:
            best = self.request.response(500, to_tag=self._proxy.tag())
        elif best.status in (401, 407):
            _collect_challenges(best, [answer for answer in answers if answer is not best])
        self._answer(best, now)

    def _tell_of_the_end(self, branch: Branch, now: float) -> None:
        """199 for each early dialog of a branch that has failed (RFC 6228 6)."""
        headers, final = self.request.headers, branch.final
        if self._done or final is None or not headers.supports("199"):
            return
        if "100rel" in (*headers.require, *headers.values("proxy-require")):
            return  # a proxy can send nothing reliably
        for tag in sorted(branch.early):
            reason = [("Reason", f"SIP;cause={final.status}")]
            self._proxy.answer(self._record, self.request.response(199, headers=reason, to_tag=tag), now)
        branch.early.clear()

    def _drop_waiting(self) -> None:
        """What was not tried yet is not tried any more."""
        self._branches = [branch for branch in self._branches if branch not in self._waiting]
        self._waiting = []

    def _answer(self, response: Response, now: float) -> None:
        state = self._record.machine.state
        if state in (State.COMPLETED, State.CONFIRMED, State.TERMINATED):
            self._proxy.send_back(response, self._record)  # a 2xx that comes after all (16.7 step 5)
        else:
            self._proxy.answer(self._record, response, now)
        if response.status >= 200:
            self._finish(now)

    def _finish(self, now: float) -> None:
        self._done = True
        for branch in self._branches:
            branch.timer_c = None
        self._proxy.watch(self)

    def transport_failed(self, _transaction: Any, _now: float) -> None:
        """The answer does not reach its caller any more: the stack's word."""
        log.info("call-id=%s the answer cannot be sent", self.request.headers.call_id)

    # --- giving up --------------------------------------------------------------------------------------

    def cancel(self, now: float) -> None:
        """The caller's CANCEL (16.10)."""
        if not self._branches and not self._done:
            self._answer(self.request.response(487, to_tag=self._proxy.tag()), now)
        self._drop_waiting()
        self._cancel_rest(now)

    def _cancel_rest(self, now: float) -> None:
        """Every copy that has no answer yet; one that has said nothing, as soon as it does (9.1)."""
        if self.request.method == "INVITE":
            self._cancelled = True
            for branch in self._branches:
                if branch.final is None and branch.progressed and not branch.cancelled:
                    self._cancel(branch, now)

    def _cancel(self, branch: Branch, now: float) -> None:
        assert branch.record is not None
        branch.cancelled = True
        self._proxy.start_cancel(branch.record, make_cancel(branch.record.request), now)
        branch.timer_c, branch.give_up = None, now + self._proxy.settings.timers.give_up
        self._proxy.watch(self)

    def _watch_ringing(self, branch: Branch, now: float) -> None:
        if self.request.method == "INVITE" and not branch.cancelled:
            branch.timer_c = now + self._proxy.proxying.timer_c
            self._proxy.watch(self)

    def next_timer(self) -> float | None:
        open_ = [branch for branch in self._branches if branch.final is None]
        return min((at for one in open_ for at in (one.timer_c, one.give_up) if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Timer C (16.8), and the end of waiting for the answer to a CANCEL (9.1)."""
        for branch in list(self._branches):
            if branch.final is not None:
                continue
            if branch.timer_c is not None and branch.timer_c <= now:
                self._cancel(branch, now)
            elif branch.give_up is not None and branch.give_up <= now:
                self._proxy.destroy(branch.record)
                self.unanswered(branch, 487, now)


def without_top_via(response: Response) -> Response:
    """16.7 step 3."""
    passed = response.copy()
    below = passed.headers.values("via")[1:]
    passed.headers.remove("via")
    for via in reversed(below):
        passed.headers.add_first("Via", via)
    return passed


def copy_for(request: Request, target: Target, breadth: int) -> Request:
    """16.6, steps 1 to 3, the Path of a registration (RFC 3327 5.3), and this copy's share of Max-Breadth."""
    copy = request.copy()
    copy.uri = parse_uri(target.uri) if target.uri != str(request.uri) else request.uri
    left = copy.headers.max_forwards
    copy.headers.set("Max-Forwards", str(70 if left is None else left - 1))
    copy.headers.set("Max-Breadth", breadth)
    for path in reversed(target.path):
        copy.headers.add_first("Route", path)
    return copy


def _rank(response: Response) -> tuple[bool, int, bool, bool]:
    """16.7 step 6: a 6xx before all, then the lowest class; in it, what the caller can do something about, and what
    somebody has said rather than nobody."""
    status = response.status
    return status < 600, status // 100, status not in _HELPFUL, status in (408, 503)


def _collect_challenges(best: Response, others: Iterable[Response]) -> None:
    """16.7 step 7: every challenge, so that the caller can answer them all."""
    for other in others:
        if other.status in (401, 407):
            for name in ("www-authenticate", "proxy-authenticate"):
                best.headers.copy_from(other.headers, name)
