# SPDX-License-Identifier: Apache-2.0
"""Random events over two stacks joined by a bad link: calls, subscriptions and transfers that nobody planned."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mcptt_sip.auth import DigestAuthenticator, DigestCredentials, Verdict
from mcptt_sip.dialog import Dialog
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived, ServerRequest
from mcptt_sip.invite_client import ClientSession
from mcptt_sip.invite_server import ServerSession
from mcptt_sip.outgoing import Outgoing
from mcptt_sip.session import Answered, Confirmed, InviteReceived, InviteSession, Progressed, SessionState
from mcptt_sip.subscription import NotifierSubscription, Resubscribed, Subscription
from mcptt_sip.testing import StackEnd, StackPair, tokens
from mcptt_sip.transaction import MACHINES

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\n"
BODY: dict[str, Any] = {"body": SDP, "content_type": "application/sdp"}
TABLES: tuple[type[Any], ...] = (*MACHINES, ClientSession, ServerSession, Subscription, NotifierSubscription)
#: calls that may be open at a time
MAX_CALLS = 40
NOBODY = ("192.0.2.1", 9)


class Rows(dict[Any, Any]):
    """A table that counts which of its rows are used."""

    def __init__(self, name: str, table: dict[Any, Any], used: Counter[tuple[str, str, str]]) -> None:
        super().__init__(table)
        self._name = name
        self._used = used

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self:
            self._used[self._name, key[0].name, key[1].name] += 1
        return super().get(key, default)


class RandomMachine(StackPair):
    """`step_randomly` does one thing: lets time pass until the next event, or has one of the ends do something."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, flow_loss_ends_calls=False)
        self.chaos = True
        self.used: Counter[tuple[str, str, str]] = Counter()
        self.completed = 0
        self._cut_until = 0.0
        self.sessions: list[InviteSession] = []
        self.subscriptions: list[Subscription] = []
        self.notifiers: list[NotifierSubscription] = []
        self.waiting: list[ServerRequest] = []
        self._digests = {
            end.name: DigestAuthenticator("r", lambda _user: "secret", tokens(seed + 9), nonce_lifetime=60.0)
            for end in self.ends.values()
        }
        for end in self.ends.values():
            end.handler = lambda event, now, end=end: self._handle(end, event, now)

    # --- the link

    def fate(self, flow: Flow) -> list[float]:
        draw = self.random.random
        if not self.chaos or flow.transport == "tcp":
            return [0.01]
        if draw() < 0.12:
            return []
        if self.now < self._cut_until:
            return []
        if draw() < 0.0006:
            self._cut_until = self.now + 45.0  # nothing passes, for longer than 64*T1
        delay = 0.01 + (draw() * 1.5 if draw() < 0.2 else 0.0)  # overtaken by others
        return [delay, delay + draw()] if draw() < 0.08 else [delay]

    def dispatch(self, end: StackEnd, outgoing: Outgoing) -> None:
        """As the edge does it, with servers that have others behind them, and sockets that fail."""
        if self.chaos and self.random.random() < 0.004:
            end.stack.send_failed(outgoing, self.now)
            return
        flow = outgoing.flow
        if flow is None:
            flow, first = self.flow(end), not outgoing.avoid
            octets = end.stack.bind(outgoing, flow, self.now, place=len(outgoing.avoid), more=first)
        else:
            octets = outgoing.octets
        self._send(octets, flow)

    def _send(self, octets: bytes, flow: Flow) -> None:
        if flow.remote in self.ends:
            super()._send(octets, flow)

    # --- what the applications do when something happens

    def _handle(self, end: StackEnd, event: Any, now: float) -> None:
        end.seen.clear()  # a long run keeps none of them
        try:
            match event:
                case InviteReceived(session):
                    self.sessions.append(session)
                    self._called(end, session, now)
                case Answered():
                    self.completed += 1
                case Progressed(session):
                    if self.chaos and self.random.random() < 0.12:
                        session.bye(now)
                case Confirmed(session):
                    if self.chaos and self.random.random() < 0.2:
                        session.bye(now)
                case RequestReceived(incoming):
                    self._requested(incoming, now)
                case Resubscribed(subscription):
                    subscription.notify(b"again", "text/plain", now=now)
        except LocalProtocolError:
            pass  # the peer was quicker

    def _called(self, end: StackEnd, session: InviteSession, now: float) -> None:
        draw = self.random.random()
        if not self.chaos:
            session.reject(480, now=now)
        elif draw < 0.06:
            verdict, _ = self._digests[end.name].check(session.request, now)
            if verdict is Verdict.GOOD:
                session.accept(**BODY, now=now)
            else:
                stale = verdict is Verdict.STALE
                session.reject(401, headers=self._digests[end.name].challenge(now, stale=stale), now=now)
        elif draw < 0.10:
            session.reject(302, headers=[("Contact", f"<{end.uri.replace(end.name, 'other')}>")], now=now)
        elif draw < 0.14:
            session.reject(self.random.choice((486, 503, 603)), now=now)
        elif draw < 0.5:
            session.accept(**BODY, now=now)
        elif draw < 0.75:
            self._progress(session, now)
        elif draw < 0.9 and isinstance(session, ServerSession) and session.request.headers.understands("100rel"):
            session.progress(183, reliable=True, **BODY, now=now)
            session.accept(**BODY, now=now)  # waits for the PRACK

    def _progress(self, session: InviteSession, now: float) -> None:
        reliable = self.random.random() < 0.5
        more = BODY if reliable and self.random.random() < 0.5 else {}
        session.progress(self.random.choice((180, 183)), reliable=reliable, **more, now=now)

    def _requested(self, incoming: ServerRequest, now: float) -> None:
        draw = self.random.random()
        if incoming.request.headers.get("refer-sub") == "false" and draw < 0.8:
            incoming.respond(200, headers=[("Refer-Sub", "false")], now=now)
        elif incoming.method in ("SUBSCRIBE", "REFER") and draw < 0.8:
            subscription = incoming.accept_subscription(expires=self.random.choice((5, 60, 300)), now=now)
            self.notifiers.append(subscription)
            subscription.notify(b"first", "text/plain", state=self.random.choice(("pending", "active")), now=now)
        elif incoming.method in ("INVITE", "UPDATE"):
            if self.chaos and draw < 0.2:
                self.waiting.append(incoming)  # answered later
            else:
                incoming.respond(200 if draw < 0.8 else 488, **(BODY if draw < 0.8 else {}), now=now)
        elif self.chaos and draw < 0.25:
            for _ in range(self.random.choice((0, 1, 2))):  # of a peer who has not heard of RFC 4320
                answer = incoming.request.response(self.random.choice((100, 182)))
                incoming._services.answer(incoming._transaction, answer, now)
            self.waiting.append(incoming)
        else:
            incoming.respond(200 if draw < 0.95 else self.random.choice((489, 404)), now=now)

    # --- steps

    def step_randomly(self) -> None:
        """One step of chaos."""
        if self.random.random() < 0.88 and (due := self.next_event()) is not None:
            self.step(due)
            return
        try:
            self._act(self.random.choice((self.alice, self.bob)), self.now)
        except LocalProtocolError:
            pass  # not possible in this state, and refused
        self.settle()

    def _act(self, end: StackEnd, now: float) -> None:
        self.sessions = [s for s in self.sessions if s.state is not SessionState.ENDED]
        self.subscriptions = [s for s in self.subscriptions if not s.terminated]
        self.notifiers = [n for n in self.notifiers if not n.terminated]
        pick = self.random.random()
        if not self.sessions or (pick < 0.29 and len(self.sessions) < 2 * MAX_CALLS):
            self._call(end, now)
            return
        if pick < 0.34:
            self._subscribe(end, now)
            return
        if pick < 0.40 and self.subscriptions:
            subscription = self.random.choice(self.subscriptions)
            self.random.choice((subscription.refresh, subscription.unsubscribe))(now)
            return
        if pick < 0.46 and self.notifiers:
            state = self.random.choice(("active", "active", "pending", "terminated"))
            self.random.choice(self.notifiers).notify(b"state", "text/plain", state=state, now=now)
            return
        if pick < 0.49 and self.waiting:
            waiting = self.waiting.pop(0)
            offer = waiting.method in ("INVITE", "UPDATE")
            waiting.respond(self.random.choice((200, 200, 488)), **(BODY if offer else {}), now=now)
            return
        if pick < 0.492:
            flow = self.flow(end)
            end.stack.flow_closed(flow, now)
            return
        self._in_call(self.random.choice(self.sessions), now)

    def _call(self, end: StackEnd, now: float) -> None:
        other = self.bob if end is self.alice else self.alice
        draw = self.random.random()
        if draw < 0.1:  # to nobody: silence
            flow = Flow("udp", end.address, NOBODY, 0)
        else:
            flow = self.flow(end) if draw < 0.6 else None
        body = BODY if self.random.random() < 0.8 else {}
        headers = [("Require", "100rel")] if self.random.random() < 0.1 else []
        self.sessions.append(
            end.stack.invite(
                other.uri, from_=f"<{end.uri}>", now=now, flow=flow, headers=headers, redirects=2,
                credentials=DigestCredentials(end.name, self.random.choice(("secret", "wrong"))), **body,
            )
        )  # fmt: skip

    def _subscribe(self, end: StackEnd, now: float) -> None:
        other = self.bob if end is self.alice else self.alice
        if self.random.random() < 0.5:
            made = end.stack.subscribe(
                other.uri, event="conference", from_=f"<{end.uri}>", expires=60, now=now, flow=self.flow(end)
            )
        else:
            headers = [("Refer-Sub", "false")] if self.random.random() < 0.3 else []
            made = end.stack.refer(
                other.uri, f"<{end.uri}>", from_=f"<{end.uri}>", headers=headers, now=now, flow=self.flow(end)
            )
        self.subscriptions.append(made)

    def _in_call(self, session: InviteSession, now: float) -> None:
        end = self.bob
        draw = self.random.random()
        if isinstance(session, ServerSession) and session.state is SessionState.PROCEEDING and draw < 0.9:
            if draw < 0.3:
                self._progress(session, now)
            elif draw < 0.7:
                session.accept(**BODY, now=now)
            elif draw < 0.75:
                challenge = self._digests[end.name].challenge(now)
                session.reject(401, headers=challenge, now=now)
            elif draw < 0.8:
                session.reject(302, headers=[("Contact", f"<{end.uri.replace(end.name, 'third')}>")], now=now)
            elif draw < 0.88:
                session.reject(self.random.choice((486, 500, 503, 603)), now=now)
            else:
                session.bye(now)
        elif session.state is SessionState.ACCEPTING and draw < 0.5:
            if draw < 0.3:
                session.reject(500, now=now)
            else:
                session.bye(now)
        elif isinstance(session, ClientSession) and session.state is SessionState.PROCEEDING and draw < 0.05:
            self._bye_early(session, now)
        elif draw < 0.25 and isinstance(session, ClientSession):
            session.cancel(now)
        elif draw < 0.35:
            session.bye(now)
        elif draw < 0.55:
            session.reinvite(**BODY, now=now)
        elif draw < 0.7:
            session.send("UPDATE", **(BODY if draw < 0.65 else {}), now=now)
        elif draw < 0.8:
            session.send("REFER", headers=[("Refer-To", "<sip:carol@example.org>")], now=now)
        else:
            session.send("INFO", now=now)

    def _bye_early(self, session: ClientSession, now: float) -> None:
        """RFC 3261 15 lets a caller end an early dialog so; sessions of this stack cancel."""
        for end in (self.alice, self.bob):
            for dialog in session.dialogs.values():
                if end.stack._dialogs.get(dialog.id) is dialog and not dialog.confirmed:
                    end.stack.request(dialog.request("BYE"), now, flow=self.flow(end))

    # --- the end

    def agreed(self) -> list[str]:
        """What the two sides see differently, once nothing is under way."""
        differences = []
        mine, theirs = (self._confirmed(end) for end in (self.alice, self.bob))
        for key in mine.keys() | {(call, remote, local) for call, local, remote in theirs}:
            call_id, local, remote = key
            one, other = mine.get(key), theirs.get((call_id, remote, local))
            if one is None or other is None:
                differences.append(f"{key}: only one side has it")
                continue
            for a, b in ((one, other), (other, one)):
                if b.remote_cseq is not None and b.remote_cseq > a.local_cseq:
                    differences.append(f"{key}: the peer has heard a CSeq that was never sent")
                if a.remote_target != (self.bob.uri if a is one else self.alice.uri):
                    differences.append(f"{key}: {a.remote_target} is not where the peer is")
        return differences

    @staticmethod
    def _confirmed(end: StackEnd) -> dict[tuple[str, str, str], Dialog]:
        return {
            key: dialog for key, dialog in end.stack._dialogs.items()
            if dialog.session is not None and dialog.session.state is SessionState.CONFIRMED
        }  # fmt: skip

    def left(self) -> dict[str, int]:
        """What the stacks still hold."""
        held: dict[str, int] = {}
        for end in (self.alice, self.bob):
            for name in ("_dialogs", "_clients", "_servers", "_merges", "_expected"):
                if getattr(end.stack, name):
                    held[f"{end.name}{name}"] = len(getattr(end.stack, name))
        return held

    def rows_used(self) -> tuple[float, list[str]]:
        """Share of the rows that were used, and the others."""
        missing = []
        total = 0
        for kind in TABLES:
            for state, event in kind.TABLE:
                total += 1
                if (kind.__name__, state.name, event.name) not in self.used:
                    missing.append(f"{kind.__name__} {state.name} {event.name}")
        return 1 - len(missing) / total, missing

