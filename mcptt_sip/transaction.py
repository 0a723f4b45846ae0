# SPDX-License-Identifier: Apache-2.0
"""The four transaction machines of RFC 3261 17 as RFC 6026 corrects them, and how messages find them (17.1.3,
17.2.3). No sockets, no clock.

Each machine is driven by `receive`, `respond`, `transport_failed` and `handle_timer`, and says what to do by `events`:
`Send`, `Pass`, `TimedOut`, `TransportFailed`. Its ``TABLE`` is the figure of the RFC:
(state, event) -> (next state, action). An event that a state does not list is ignored, as the RFC has it.

:RFC 6026: yes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar

from mcptt_sip.message import Request, Response

__all__ = [
    "InviteClientTransaction",
    "InviteServerTransaction",
    "NonInviteClientTransaction",
    "NonInviteServerTransaction",
    "On",
    "Pass",
    "Send",
    "State",
    "TimedOut",
    "Timers",
    "TransportFailed",
    "client_key",
    "server_key",
]

BRANCH_COOKIE = "z9hG4bK"


@dataclass(frozen=True, slots=True)
class Timers:
    """RFC 3261 table 4, in seconds. A test passes its own, nothing is patched."""

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0
    #: how long a TU may take to answer an INVITE before 100 is sent for it (17.2.1)
    trying: float = 0.2
    #: timer D where the transport is not reliable (17.1.1.2: at least 32 s)
    d: float = 32.0

    #: how long a TU may take to answer another request before 100 is sent for it: until timer E of its client has grown
    #: to T2 (RFC 4320 4.1)
    late: float = field(init=False)
    #: 64·T1: timers B, F, H, J, L, M
    give_up: float = field(init=False)

    def __post_init__(self) -> None:
        if not self.t1 > 0:
            raise ValueError(f"timer T1 of {self.t1} s")
        interval, passed = self.t1, 0.0
        while interval < self.t2:
            passed += interval
            interval *= 2
        object.__setattr__(self, "late", passed)
        object.__setattr__(self, "give_up", 64 * self.t1)


class State(Enum):
    """Names of the figures."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    CALLING = auto()
    TRYING = auto()
    PROCEEDING = auto()
    COMPLETED = auto()
    CONFIRMED = auto()
    ACCEPTED = auto()
    TERMINATED = auto()


class On(Enum):
    """What can happen to a transaction."""

    __hash__ = object.__hash__  # members are single objects; the default is many times slower

    PROVISIONAL = auto()  # a 1xx: received by a client, given by the TU of a server
    SUCCESS = auto()  # a 2xx
    FAILURE = auto()  # 300 to 699
    REQUEST = auto()  # the request again
    ACK = auto()
    TIMER_A = auto()
    TIMER_B = auto()
    TIMER_D = auto()
    TIMER_E = auto()
    TIMER_F = auto()
    TIMER_G = auto()
    TIMER_H = auto()
    TIMER_I = auto()
    TIMER_J = auto()
    TIMER_K = auto()
    TIMER_L = auto()
    TIMER_M = auto()
    TIMER_TRYING = auto()  # 17.2.1: no response of the TU within 200 ms; RFC 4320 4.1: none until timer E is T2
    TRANSPORT_ERROR = auto()


@dataclass(frozen=True, slots=True)
class Send:
    """Put this on the wire."""

    message: Any


@dataclass(frozen=True, slots=True)
class Pass:
    """Give this to the TU."""

    message: Any


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Timer B, F or H fired."""


@dataclass(frozen=True, slots=True)
class TransportFailed:
    """The transport could not deliver."""


Event = Send | Pass | TimedOut | TransportFailed
Action = Callable[[Any, Any, float], None]
Table = dict[tuple[State, On], tuple[State, Action]]


def _kind(status: int) -> On:
    return On.PROVISIONAL if status < 200 else On.SUCCESS if status < 300 else On.FAILURE


class _Machine:
    """What all four have: a state, running timers, output."""

    __slots__ = ("__weakref__", "_interval", "_reliable", "due", "said", "state", "timers")
    TABLE: ClassVar[Table]
    #: the state in which it is only there for what comes again, for 64·T1
    RESTS_IN: ClassVar[State | None] = None

    def __init__(self, state: State, timers: Timers, reliable: bool | None) -> None:
        self.state = state
        self.timers = timers
        self._reliable = reliable
        self._interval = timers.t1
        #: running timers, and when they fire
        self.due: dict[On, float] = {}
        #: what `events` gives
        self.said: list[Event] = []

    @property
    def terminated(self) -> bool:
        """Whether the machine can be forgotten."""
        return self.state is State.TERMINATED

    def next_timer(self) -> float | None:
        """When `handle_timer` is due."""
        return min(self.due.values()) if self.due else None

    def handle_timer(self, now: float) -> None:
        """Fire what is due, in its order."""
        for on in sorted((o for o, at in self.due.items() if at <= now), key=self.due.__getitem__):
            if on in self.due:  # an earlier timer may have ended us
                del self.due[on]
                self._step(on, None, now)

    def events(self) -> list[Event]:
        """What to do; given once."""
        out = self.said
        if out:
            self.said = []
        return out

    def transport_failed(self, now: float) -> None:
        """What was sent did not leave."""
        self._step(On.TRANSPORT_ERROR, None, now)

    def release(self) -> None:
        """It is forgotten: nothing happens any more."""
        self.due.clear()

    def _step(self, on: On, argument: Any, now: float) -> None:
        row = self.TABLE.get((self.state, on))
        if row is None:
            return
        self.state, action = row
        action(self, argument, now)
        if self.state is State.TERMINATED:
            self.due.clear()

    # actions that several machines share

    def _time_out(self, _: Any, now: float) -> None:
        self.said.append(TimedOut())

    def _fail(self, _: Any, now: float) -> None:
        self.said.append(TransportFailed())

    def _pass(self, message: Any, now: float) -> None:
        self.said.append(Pass(message))

    def _end(self, _: Any, now: float) -> None:
        pass

    def _after(self, on: On, seconds: float, now: float) -> None:
        """Start a timer; one of no length fires at once."""
        if seconds > 0:
            self.due[on] = now + seconds
        else:
            self._step(on, None, now)


class _ClientMachine(_Machine):
    __slots__ = ("request",)

    def __init__(self, request: Any, state: State, *, reliable: bool | None, timers: Timers) -> None:
        super().__init__(state, timers, reliable)
        self.request = request
        self.said.append(Send(request))

    def receive(self, response: Any, now: float) -> None:
        """A response that matches (17.1.3)."""
        self._step(_kind(response.status), response, now)


class InviteClientTransaction(_ClientMachine):
    """RFC 3261 17.1.1 with the Accepted state of RFC 6026 7.2.

    `reliable` is ``None`` until the edge has chosen a flow: `bind` then starts timer A where it is needed.
    `make_ack(request, response)` builds the ACK of a 300-699 (17.1.1.3).
    """

    __slots__ = ("_make_ack",)
    RESTS_IN = State.ACCEPTED

    def __init__(
        self,
        request: Any,
        make_ack: Callable[[Any, Any], Any],
        *,
        reliable: bool | None,
        now: float,
        timers: Timers = Timers(),
    ) -> None:
        super().__init__(request, State.CALLING, reliable=None, timers=timers)
        self._make_ack = make_ack
        self.due[On.TIMER_B] = now + timers.give_up
        if reliable is not None:
            self.bind(reliable, now)

    def bind(self, reliable: bool, now: float) -> None:
        """The request goes over this kind of transport."""
        if self._reliable is None and not reliable and self.state is State.CALLING:
            self.due[On.TIMER_A] = now + self._interval
        elif reliable:
            self.due.pop(On.TIMER_A, None)
        self._reliable = reliable

    def _resend(self, _: Any, now: float) -> None:
        self.said.append(Send(self.request))
        self._interval *= 2
        self.due[On.TIMER_A] = now + self._interval

    def _pass_up(self, response: Any, now: float) -> None:
        self.due.pop(On.TIMER_A, None)
        self.due.pop(On.TIMER_B, None)
        self.said.append(Pass(response))

    def _accept(self, response: Any, now: float) -> None:
        self._pass_up(response, now)
        self.due[On.TIMER_M] = now + self.timers.give_up

    def _ack_and_pass(self, response: Any, now: float) -> None:
        self._ack(response, now)  # first: the TU may send the request anew at once
        self._pass_up(response, now)
        self._after(On.TIMER_D, 0 if self._reliable else self.timers.d, now)

    def _ack(self, response: Any, now: float) -> None:
        self.said.append(Send(self._make_ack(self.request, response)))


class NonInviteClientTransaction(_ClientMachine):
    """RFC 3261 17.1.2. `reliable` as for `InviteClientTransaction`."""

    __slots__ = ()

    def __init__(
        self,
        request: Any,
        *,
        reliable: bool | None,
        now: float,
        timers: Timers = Timers(),
    ) -> None:
        super().__init__(request, State.TRYING, reliable=None, timers=timers)
        self.due[On.TIMER_F] = now + timers.give_up
        if reliable is not None:
            self.bind(reliable, now)

    def bind(self, reliable: bool, now: float) -> None:
        """The request goes over this kind of transport."""
        if self._reliable is None and not reliable and self.state is State.TRYING:
            self.due[On.TIMER_E] = now + self._interval
        elif reliable:
            self.due.pop(On.TIMER_E, None)
        self._reliable = reliable

    def _resend(self, _: Any, now: float) -> None:
        self.said.append(Send(self.request))
        proceeding = self.state is State.PROCEEDING
        self._interval = self.timers.t2 if proceeding else min(2 * self._interval, self.timers.t2)
        self.due[On.TIMER_E] = now + self._interval

    def _complete(self, response: Any, now: float) -> None:
        self.due.clear()
        self.said.append(Pass(response))
        self._after(On.TIMER_K, 0 if self._reliable else self.timers.t4, now)


class _ServerMachine(_Machine):
    """`trying` is the 100 that is sent when the TU is slow, or what makes it."""

    __slots__ = ("_last", "_trying")
    BEGINS_IN: ClassVar[State]

    def __init__(self, trying: Any, *, reliable: bool, now: float, timers: Timers = Timers()) -> None:
        super().__init__(self.BEGINS_IN, timers, reliable)
        self._last: Any = None
        self._trying = trying
        self.due[On.TIMER_TRYING] = now + self._patience(timers)

    @staticmethod
    def _patience(timers: Timers) -> float:
        """How long the TU may take before `trying` is sent."""
        raise NotImplementedError

    def receive_again(self, now: float) -> None:
        """The request came once more."""
        self._step(On.REQUEST, None, now)

    def respond(self, response: Any, status: int, now: float) -> None:
        """The TU's response; `response` is opaque here."""
        self._step(_kind(status), response, now)

    def release(self) -> None:
        super().release()
        self._last = self._trying = None

    def _send(self, response: Any, now: float) -> None:
        self._last = response
        self.said.append(Send(response))

    def _send_last(self, _: Any, now: float) -> None:
        if self._last is not None:
            self.said.append(Send(self._last))

    def _say_trying(self, _: Any, now: float) -> None:
        trying = self._trying() if callable(self._trying) else self._trying
        self._trying = None
        self._send(trying, now)

    def _progress(self, response: Any, now: float) -> None:
        self.due.pop(On.TIMER_TRYING, None)
        self._trying = None
        self._send(response, now)


class InviteServerTransaction(_ServerMachine):
    """RFC 3261 17.2.1 with the Accepted state of RFC 6026 7.1."""

    __slots__ = ()
    BEGINS_IN = State.PROCEEDING
    RESTS_IN = State.ACCEPTED

    @staticmethod
    def _patience(timers: Timers) -> float:
        return timers.trying

    def acknowledge(self, now: float) -> None:
        """An ACK that matches this transaction."""
        self._step(On.ACK, None, now)

    def _again(self, _: Any, now: float) -> None:
        if self._last is not None:
            self.said.append(Send(self._last))
        elif self._trying is not None:  # the peer already repeats: tell it that somebody is there
            self.due.pop(On.TIMER_TRYING, None)
            self._say_trying(None, now)

    def _accept(self, response: Any, now: float) -> None:
        self.due.clear()
        self._trying = self._last = None
        self.said.append(Send(response))
        self.due[On.TIMER_L] = now + self.timers.give_up

    def _accept_again(self, response: Any, now: float) -> None:
        self.said.append(Send(response))

    def _refuse(self, response: Any, now: float) -> None:
        self.due.clear()
        self._trying = None
        self._send(response, now)
        if not self._reliable:
            self.due[On.TIMER_G] = now + self._interval
        self.due[On.TIMER_H] = now + self.timers.give_up

    def _resend(self, _: Any, now: float) -> None:
        self.said.append(Send(self._last))
        self._interval = min(2 * self._interval, self.timers.t2)
        self.due[On.TIMER_G] = now + self._interval

    def _confirm(self, _: Any, now: float) -> None:
        self.due.clear()
        self._after(On.TIMER_I, 0 if self._reliable else self.timers.t4, now)

    def _absorb(self, _: Any, now: float) -> None:
        pass


class NonInviteServerTransaction(_ServerMachine):
    """RFC 3261 17.2.2 with the 100 of RFC 4320 4.1."""

    __slots__ = ()
    BEGINS_IN = State.TRYING
    RESTS_IN = State.COMPLETED

    @staticmethod
    def _patience(timers: Timers) -> float:
        return timers.late

    def _finish(self, response: Any, now: float) -> None:
        self._progress(response, now)
        self._after(On.TIMER_J, 0 if self._reliable else self.timers.give_up, now)


S = State
C = InviteClientTransaction
#: RFC 6026 figure 5 (RFC 3261 figure 5 corrected)
InviteClientTransaction.TABLE = {
    (S.CALLING, On.PROVISIONAL): (S.PROCEEDING, C._pass_up),
    (S.CALLING, On.SUCCESS): (S.ACCEPTED, C._accept),
    (S.CALLING, On.FAILURE): (S.COMPLETED, C._ack_and_pass),
    (S.CALLING, On.TIMER_A): (S.CALLING, C._resend),
    (S.CALLING, On.TIMER_B): (S.TERMINATED, C._time_out),
    (S.CALLING, On.TRANSPORT_ERROR): (S.TERMINATED, C._fail),
    (S.PROCEEDING, On.PROVISIONAL): (S.PROCEEDING, C._pass_up),
    (S.PROCEEDING, On.SUCCESS): (S.ACCEPTED, C._accept),
    (S.PROCEEDING, On.FAILURE): (S.COMPLETED, C._ack_and_pass),
    (S.COMPLETED, On.FAILURE): (S.COMPLETED, C._ack),
    (S.COMPLETED, On.TIMER_D): (S.TERMINATED, C._end),
    (S.COMPLETED, On.TRANSPORT_ERROR): (S.TERMINATED, C._fail),
    (S.ACCEPTED, On.SUCCESS): (S.ACCEPTED, C._pass),
    (S.ACCEPTED, On.TIMER_M): (S.TERMINATED, C._end),
}
N = NonInviteClientTransaction
#: RFC 3261 figure 6
NonInviteClientTransaction.TABLE = {
    (S.TRYING, On.PROVISIONAL): (S.PROCEEDING, N._pass),
    (S.TRYING, On.SUCCESS): (S.COMPLETED, N._complete),
    (S.TRYING, On.FAILURE): (S.COMPLETED, N._complete),
    (S.TRYING, On.TIMER_E): (S.TRYING, N._resend),
    (S.TRYING, On.TIMER_F): (S.TERMINATED, N._time_out),
    (S.TRYING, On.TRANSPORT_ERROR): (S.TERMINATED, N._fail),
    (S.PROCEEDING, On.PROVISIONAL): (S.PROCEEDING, N._pass),
    (S.PROCEEDING, On.SUCCESS): (S.COMPLETED, N._complete),
    (S.PROCEEDING, On.FAILURE): (S.COMPLETED, N._complete),
    (S.PROCEEDING, On.TIMER_E): (S.PROCEEDING, N._resend),
    (S.PROCEEDING, On.TIMER_F): (S.TERMINATED, N._time_out),
    (S.PROCEEDING, On.TRANSPORT_ERROR): (S.TERMINATED, N._fail),
    (S.COMPLETED, On.TIMER_K): (S.TERMINATED, N._end),
}
I = InviteServerTransaction
#: RFC 6026 figure 7 (RFC 3261 figure 7 corrected), with the 200 ms of 17.2.1
InviteServerTransaction.TABLE = {
    (S.PROCEEDING, On.REQUEST): (S.PROCEEDING, I._again),
    (S.PROCEEDING, On.TIMER_TRYING): (S.PROCEEDING, I._say_trying),
    (S.PROCEEDING, On.PROVISIONAL): (S.PROCEEDING, I._progress),
    (S.PROCEEDING, On.SUCCESS): (S.ACCEPTED, I._accept),
    (S.PROCEEDING, On.FAILURE): (S.COMPLETED, I._refuse),
    (S.PROCEEDING, On.TRANSPORT_ERROR): (S.PROCEEDING, I._fail),
    (S.COMPLETED, On.REQUEST): (S.COMPLETED, I._send_last),
    (S.COMPLETED, On.TIMER_G): (S.COMPLETED, I._resend),
    (S.COMPLETED, On.ACK): (S.CONFIRMED, I._confirm),
    (S.COMPLETED, On.TIMER_H): (S.TERMINATED, I._time_out),
    (S.COMPLETED, On.TRANSPORT_ERROR): (S.TERMINATED, I._fail),
    (S.CONFIRMED, On.TIMER_I): (S.TERMINATED, I._end),
    (S.CONFIRMED, On.ACK): (S.CONFIRMED, I._absorb),
    (S.ACCEPTED, On.SUCCESS): (S.ACCEPTED, I._accept_again),
    (S.ACCEPTED, On.REQUEST): (S.ACCEPTED, I._absorb),
    (S.ACCEPTED, On.TIMER_L): (S.TERMINATED, I._end),
    (S.ACCEPTED, On.TRANSPORT_ERROR): (S.ACCEPTED, I._fail),
}
V = NonInviteServerTransaction
#: RFC 3261 figure 8, with the 100 of RFC 4320 4.1
NonInviteServerTransaction.TABLE = {
    (S.TRYING, On.PROVISIONAL): (S.PROCEEDING, V._progress),
    (S.TRYING, On.TIMER_TRYING): (S.PROCEEDING, V._say_trying),
    (S.TRYING, On.SUCCESS): (S.COMPLETED, V._finish),
    (S.TRYING, On.FAILURE): (S.COMPLETED, V._finish),
    (S.TRYING, On.TRANSPORT_ERROR): (S.TERMINATED, V._fail),
    (S.PROCEEDING, On.REQUEST): (S.PROCEEDING, V._send_last),
    (S.PROCEEDING, On.PROVISIONAL): (S.PROCEEDING, V._send),
    (S.PROCEEDING, On.SUCCESS): (S.COMPLETED, V._finish),
    (S.PROCEEDING, On.FAILURE): (S.COMPLETED, V._finish),
    (S.PROCEEDING, On.TRANSPORT_ERROR): (S.TERMINATED, V._fail),
    (S.COMPLETED, On.REQUEST): (S.COMPLETED, V._send_last),
    (S.COMPLETED, On.TIMER_J): (S.TERMINATED, V._end),
    (S.COMPLETED, On.TRANSPORT_ERROR): (S.TERMINATED, V._fail),
}
#: every machine with its table, for tests and drawings
MACHINES: tuple[type[_Machine], ...] = (C, N, I, V)

ServerKey = tuple[str, ...]


def server_key(request: Request) -> ServerKey:
    """What a request and its retransmissions (and an INVITE's ACK) have in common (RFC 3261 17.2.3).

    RFC 2543 peers have no magic cookie: Request-URI, From tag, Call-ID, CSeq number and top Via stand in. Their ACK
    to a non-2xx has a To tag that the INVITE had not, so To tags stay out of it.
    """
    headers = request.headers
    via = headers.top_via
    method = request.method
    branch = via.branch
    if branch is not None and len(branch) > 7 and branch[:7] == BRANCH_COOKIE:
        return (branch, via.host.lower(), str(via.port or ""), "INVITE" if method == "ACK" else method)
    return (
        str(request.uri),
        headers.from_.tag or "",
        headers.call_id,
        str(headers.cseq.number),
        str(via),
        "INVITE" if method == "ACK" else method,
    )


def client_key(message: Request | Response) -> tuple[str, str]:
    """What a response and its request have in common: top Via branch and CSeq method (RFC 3261 17.1.3)."""
    headers = message.headers
    return headers.top_via.branch or "", headers.cseq.method
