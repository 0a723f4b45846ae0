# SPDX-License-Identifier: Apache-2.0
"""What sessions, subscriptions and requests need of the stack they live in, and the settings of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.deadlines import Timed
from mcptt_sip.dialog import Dialog
from mcptt_sip.field_lines import Headers
from mcptt_sip.flow import Flow
from mcptt_sip.message import Limits, Request, Response
from mcptt_sip.transaction import Timers

__all__ = ["Cause", "Services", "StackSettings", "TransactionUser"]


class Cause(Enum):
    """Why a request, session or subscription ended without (or beyond) a response."""

    RESPONSE = "a final response said so"
    TIMEOUT = "no final response in 64*T1"
    TRANSPORT = "no flow could carry it"
    FLOW_LOST = "the flow of the dialog was lost"
    CANCELLED = "the caller cancelled"
    LOCAL_BYE = "this side said BYE"
    REMOTE_BYE = "the peer said BYE"
    SESSION_OVER = "its session ended first"
    NO_ACK = "no ACK in 64*T1"
    NO_PRACK = "no PRACK in 64*T1"
    SESSION_EXPIRED = "the session timer ran out"
    REPLACED = "another dialog took its place"
    EXPIRED = "the subscription was not refreshed"
    NOTIFIED = "the notifier ended the subscription"
    UNSUBSCRIBED = "the subscriber ended the subscription"


@dataclass(frozen=True, slots=True)
class StackSettings:
    """Everything that can be set; times in seconds, sizes in octets."""

    #: user part of the Contact that is made when the application gives none
    user: str | None = None
    #: parameters of that Contact, raw values as on the wire: the feature tags
    contact_params: tuple[tuple[str, str | None], ...] = ()
    #: option tags understood; the value of Supported, and what Require may name
    supported: tuple[str, ...] = (
        "100rel", "199", "timer", "replaces", "tdialog", "norefersub", "nosub", "path", "outbound", "gruu",
    )  # fmt: skip
    #: methods answered; another known one gets 405, an unknown one 501
    allow: tuple[str, ...] = (
        "INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE", "INFO", "MESSAGE", "REFER", "SUBSCRIBE", "NOTIFY",
        "OPTIONS", "PUBLISH", "REGISTER",
    )  # fmt: skip
    #: body types taken in an INVITE or UPDATE; others get 415, unless their disposition says optional
    accept: tuple[str, ...] = ("application/sdp", "multipart/*")
    #: media types of the bodies of other requests, which the answer to OPTIONS names as well (RFC 3428 7)
    accept_elsewhere: tuple[str, ...] = ()
    #: event packages: value of Allow-Events
    allow_events: tuple[str, ...] = ("refer", "conference")
    #: User-Agent of requests and Server of responses
    user_agent: str | None = None
    timers: Timers = field(default_factory=Timers)
    limits: Limits = field(default_factory=Limits)
    #: a request of more octets goes over TCP (RFC 3261 18.1.1)
    mtu: int = 1300
    #: a provisional response is repeated while it rings (13.3.1.1: every minute; RFC 3262 3: 2.5 minutes)
    progress_interval: float = 60.0
    reliable_progress_interval: float = 150.0
    #: session timer asked for and accepted (RFC 4028); 0 leaves the session without one
    session_expires: int = 1800
    min_se: int = 90
    #: transactions open at a time; beyond, new requests get 503 with Retry-After
    max_server_transactions: int = 200_000
    #: whether a call ends when the connection it was on is lost; else its next request opens another
    flow_loss_ends_calls: bool = True
    #: answer OPTIONS outside a dialog without asking the application (RFC 3261 11)
    answer_options: bool = True
    #: challenges in a row that one request answers: of several proxies, with a stale nonce here and there
    max_challenges: int = 6
    #: users whose nonces are remembered
    max_credentials: int = 4096
    #: NOTIFYs waiting for one that is outstanding; beyond, the oldest waiting one that is not final is dropped
    max_queued_notifies: int = 64

    def __post_init__(self) -> None:
        if self.user_agent is not None and not self.user_agent.isprintable():
            raise ValueError(f"{self.user_agent!r} is no User-Agent: it is one line of text")


class TransactionUser(Protocol):
    """Who started a client transaction."""

    def on_response(self, transaction: Any, response: Response, flow: Flow, now: float) -> None:
        """A response, retransmitted 2xx to INVITE included."""
        ...

    def on_failure(self, transaction: Any, cause: Cause, now: float) -> None:
        """TIMEOUT or TRANSPORT; the transaction is over."""
        ...


class Services(Protocol):
    """The stack, as its sessions and subscriptions see it."""

    settings: StackSettings
    token: Callable[[], bytes]

    def tag(self) -> str:
        """A fresh tag."""
        ...

    def emit(self, event: object) -> None:
        """Give an event to the application."""
        ...

    def start(
        self,
        request: Request,
        user: TransactionUser,
        now: float,
        *,
        flow: Flow | None,
        target: str | None,
        avoid: frozenset[object] = frozenset(),
    ) -> Any:
        """A client transaction for `request`, which gets its Via here; not to the places in `avoid`. Its ``more``
        tells whether there are other places to try than its ``place``."""
        ...

    def destroy_later(self, transaction: Any, now: float) -> None:
        """Forget a client transaction 64*T1 from now, answered or not: nobody waits for it any more."""
        ...

    def send_alone(self, request: Request, now: float, *, flow: Flow | None, target: str | None) -> Any:
        """Send a request without a transaction: the ACK of a 2xx. What it gives can be sent again."""
        ...

    def send_again(self, outgoing: Any) -> None:
        """Send the same octets once more."""
        ...

    def start_cancel(self, transaction: Any, request: Request, now: float) -> None:
        """Send the CANCEL of an INVITE transaction where that went, in a transaction of its own."""
        ...

    def destroy(self, transaction: Any) -> None:
        """Forget a client transaction that nobody waits for any more (9.1)."""
        ...

    def answer(self, transaction: Any, response: Response, now: float) -> Any:
        """Respond through a server transaction. What it gives can be sent again."""
        ...

    def contact(self, flow: Flow, *, user: str | None = None) -> str:
        """The Contact value that leads back here over `flow`."""
        ...

    def contact_for(self, request: Request, flow: Flow, *, user: str | None = None) -> str:
        """The Contact value of the response to `request` over `flow`: a SIPS URI where it has to be (12.1.1)."""
        ...

    def introduction(self, request: Request, flow: Flow) -> Headers:
        """Contact, Allow, Supported and Server, as the response to `request` over `flow` has them that makes or changes
        a dialog."""
        ...

    def watch(self, timed: Timed) -> None:
        """The deadline of `timed` may have changed."""
        ...

    def add_dialog(self, dialog: Dialog) -> None:
        """Requests in `dialog` are for its usages from now on."""
        ...

    def expect(self, call_id: str, local_tag: str, subscription: Any) -> None:
        """A NOTIFY that finds no dialog yet is for this subscription (RFC 6665 4.1.2.4)."""
        ...

    def expect_no_more(self, call_id: str, local_tag: str) -> None:
        """Undo `expect`."""
        ...

    def drop_dialog(self, dialog: Dialog) -> None:
        """Forget a dialog if no usage holds it."""
        ...

    def flow_of(self, dialog: Dialog) -> Flow | None:
        """The flow to use for a request in `dialog`; ``None``: resolve the next hop."""
        ...

    def deliver(self, transaction: Any, session: Any, now: float) -> None:
        """Give the request of a server transaction in the dialog of `session` to the application."""
        ...

    def attach_subscription(self, client_request: Any, now: float) -> None:
        """A REFER or SUBSCRIBE inside a dialog makes a subscription there (RFC 3515 2.4.4)."""
        ...

    def authorize(self, credentials: DigestCredentials | None, request: Request) -> None:
        """Sign with the nonces already known."""
        ...

    def answer_challenge(
        self, credentials: DigestCredentials | None, request: Request, response: Response
    ) -> bool:
        """Whether the same request with a new signature can succeed."""
        ...

    def authenticated(self, credentials: DigestCredentials | None, response: Response) -> None:
        """A 2xx: it may bring the nonce of the next request."""
        ...
