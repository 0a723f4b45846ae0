# SPDX-License-Identifier: Apache-2.0
"""A whole MCPTT server and telephones without sockets: real octets between real stacks, the clock in the hand.

The telephones are scripted: they say what a test tells them to say. Their key messages and registrations are signed
and sealed with real keys; acknowledgements are opaque to the server and stand for themselves here.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mcptt_sip.auth import DigestCredentials
from mcptt_sip.body import Part, build_multipart
from mcptt_sip.errors import ParseError
from mcptt_sip.flow import Flow
from mcptt_sip.incoming import RequestReceived, ServerRequest
from mcptt_sip.mcptt import documents
from mcptt_sip.mcptt.contents import CLIENT_HEADERS, FEATURE_TAGS, INFO_PACKAGE, Contents, SipFragment, read_contents
from mcptt_sip.mcptt.controlling import ControllingFunction
from mcptt_sip.mcptt.documents import ConferenceInfo, McpttInfo, ResourceLists
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupCall
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MIKEY
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Policy, Urgency
from mcptt_sip.mcptt.regroup import RegroupSettings
from mcptt_sip.mcptt.service import McpttService, assemble
from mcptt_sip.mcptt.userprofile import UserProfile
from mcptt_sip.message import Request, Response, parse
from mcptt_sip.outgoing import ClientRequest, ResponseReceived
from mcptt_sip.session import (
    Answered,
    Cancelled,
    Confirmed,
    Ended,
    InviteReceived,
    InviteSession,
    Progressed,
    Refused,
)
from mcptt_sip.stack import SipStack, StackSettings
from mcptt_sip.subscription import Notified, Subscription
from mikey import Keyring, KeyType, Kms, MemoryReplayCache, TransportKey, seal, verify

DOMAIN = "mcx.example"
SERVICE = f"sip:mcptt@{DOMAIN}"
NAMES = ("alice", "bob", "carol", "dave", "erin", "mallory")
START = 1_790_000_000.0
#: one way, seconds
DELAY = 0.01


def uri(name: str) -> str:
    return name if ":" in name else f"sip:{name}@{DOMAIN}"


@functools.cache
def ring() -> Keyring:
    """Everybody's keys."""
    kms = Kms.generate(f"kms.{DOMAIN}", [DOMAIN], random=random.Random(7).randbytes)
    made = Keyring()
    made.add_certificate(kms.certificate)
    for user in (*map(uri, NAMES), SERVICE):
        made.add_key_set(kms.issue(user, START))
    return made


@functools.cache
def key_message(sender: str, recipient: str, number: int = 0, at: float = START) -> bytes:
    """The I_MESSAGE ``number`` of ``sender`` for ``recipient``; what is in it the server cannot see."""
    octets = random.Random(f"{sender} {recipient} {number}").randbytes
    key = TransportKey.generate(KeyType.GMK, random=octets).replace(group_ids=("sip:g@x",), expiry=int(at) + 3600)
    return seal(
        key, sender=uri(sender), recipient=uri(recipient), keyring=ring(), now=at + number / 1000, random=octets
    ).octets


@functools.cache
def registration_key(user: str, device: str, number: int) -> tuple[TransportKey, bytes]:
    """A device's CSK, and the I_MESSAGE of its registration ``number`` that brings it to the server."""
    octets = random.Random(f"{user} {device}").randbytes
    csk = TransportKey.generate(KeyType.CSK, random=octets)
    at = START + number / 1000
    return csk, seal(csk, sender=uri(user), recipient=SERVICE, keyring=ring(), now=at, random=octets).octets


def profiles(**users: Mapping[str, Any]) -> dict[str, UserProfile]:
    """Everybody may call everybody, but for what is said otherwise."""
    able = {"allow_regroup": True, "allow_private_call": True, "allow_private_call_to_any_user": True}
    return {
        uri(name): UserProfile(uri(name), name, f"password of {name}", **{**able, **users.get(name, {})})
        for name in NAMES
    }


# --- media -------------------------------------------------------------------------------------------------


@dataclass
class Media:
    """What the server orders of one call's media."""

    max_silence: float
    refuse: frozenset[str]
    legs: dict[str, GroupMediaDescription] = field(default_factory=dict)
    closed: bool = False
    urgency: Urgency = Urgency.NORMAL
    declared_by: frozenset[str] = frozenset()
    audio: tuple[str, int] = ("192.0.2.1", 4000)
    floor: tuple[str, int] = ("192.0.2.1", 4001)

    def add_leg(self, destination: Destination, theirs: GroupMediaDescription, guk_id: int) -> None:
        if destination.user in self.refuse:
            raise ValueError("the CSK-ID is another participant's")
        self.legs[destination.user] = theirs

    def bind(self, user: str, guk_id: int) -> None: ...

    def declare(self, urgency: Urgency, by: Collection[str]) -> None:
        self.urgency, self.declared_by = urgency, frozenset(by)

    def remove_leg(self, user: str) -> None:
        del self.legs[user]

    def close(self) -> None:
        self.closed = True


@dataclass
class Plane:
    opened: list[Media] = field(default_factory=list)
    broken: bool = False
    refuse: set[str] = field(default_factory=set)

    def open(self, group: str, max_silence: float) -> Media:
        if self.broken:
            raise OSError("no ports")
        self.opened.append(Media(max_silence, frozenset(self.refuse)))
        return self.opened[-1]


# --- telephones --------------------------------------------------------------------------------------------


class Telephone:
    """One device. ``script`` is what it does with an invitation: ``answer``, ``ring``, ``silent``, or a refusal as
    (status, warning)."""

    def __init__(self, exchange: Exchange, name: str, device: str, number: int, transport: str) -> None:
        self.exchange = exchange
        self.name = name
        self.uri = uri(name)
        self.device = device
        self.csk, _ = registration_key(name, device, 0)
        self._registrations = exchange.registrations.setdefault((name, device), itertools.count())
        self.address = ("192.0.2.100", 5000 + number)
        self.flow = Flow(transport, self.address, exchange.address, number)
        self.stack = SipStack(
            StackSettings(
                user=f"{name}-{device}", accept=("application/sdp", "multipart/*", MIKEY, ACKNOWLEDGEMENT), mtu=65000
            ),
            token=lambda: exchange.random.randbytes(8),
        )
        self.stack.add_listener(transport, *self.address)
        self.credentials = DigestCredentials(name, f"password of {name}")
        self.script: str | tuple[int, str | None] = "answer"
        self.seen: list[Any] = []
        self.invitations: list[InviteSession] = []
        self.requests: list[Request] = []
        self.numbers = exchange.numbers

    # --- what it does

    def register(self, expires: int = 80000) -> ClientRequest:
        parts = [Part(documents.MCPTT_INFO, McpttInfo(client_id=self.device).encode())]
        if expires:
            _, sealed = registration_key(self.name, self.device, next(self._registrations))
            parts.append(Part(MIKEY, sealed))
        content_type, body = build_multipart(parts, self.stack.token)
        request = self.stack.compose(
            "REGISTER", f"sip:{DOMAIN}", from_=f"<{self.uri}>", to=f"<{self.uri}>",
            headers=[*CLIENT_HEADERS, ("Expires", str(expires))], body=body, content_type=content_type,
        )
        return self.request(request)

    def request(self, request: Request) -> ClientRequest:
        return self.stack.request(request, self.exchange.now, flow=self.flow, credentials=self.credentials)

    def describe(self, **changes: Any) -> GroupMediaDescription:
        port = self.address[1] * 2
        mine = GroupMediaDescription(("192.0.2.100", port), ("192.0.2.100", port + 1), ssrc=self.address[1])
        return replace(mine, **changes)

    def call(
        self,
        *targets: str,
        group: str | None = None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, object]] = (),
        leave_out: Sequence[str] = (),
        to: str = SERVICE,
        parts: Sequence[Part] | None = None,
        **info: Any,
    ) -> InviteSession:
        """The INVITE of digest A.5. ``headers`` replace those of their names; ``leave_out`` names what is missing."""
        number = next(self.numbers)
        group = group or f"sip:tmp-{self.name}{number}@{DOMAIN}"
        if key is None and targets:
            key = key_message(self.name, targets[0], number)
        details = {"session_type": "prearranged", "request_uri": group, "temporary_group": True, **info}
        if parts is None:
            parts = [
                Part("application/sdp", self.describe().encode()),
                Part(documents.MCPTT_INFO, McpttInfo(**details).encode()),
                Part(documents.RESOURCE_LISTS, ResourceLists(tuple(map(uri, targets))).encode()),
                *([Part(MIKEY, key)] if key else []),
            ]
        content_type, body = build_multipart(list(parts), self.stack.token)
        given = {name.lower() for name, _ in headers} | {name.lower() for name in leave_out}
        mine: list[tuple[str, object]] = [
            *CLIENT_HEADERS, ("Recv-Info", INFO_PACKAGE), ("Answer-Mode", "Auto"),
            ("Contact", f"<sip:{self.name}-{self.device}@{self.address[0]}:{self.address[1]}>;{FEATURE_TAGS}"),
        ]
        return self.stack.invite(
            to, from_=f"<{self.uri}>", headers=[*(h for h in mine if h[0].lower() not in given), *headers], body=body,
            content_type=content_type, now=self.exchange.now, flow=self.flow, credentials=self.credentials,
        )

    def refer(
        self,
        session: InviteSession,
        user: str,
        method: str = "INVITE",
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, object]] = (),
        refer_to: str | None = None,
        dialog: str | None = None,
        to: str | None = None,
    ) -> Subscription:
        """The REFER of digest A.7 to the session identity that ``session`` is with."""
        parts = [Part(documents.MCPTT_INFO, McpttInfo(temporary_group=True).encode())]
        if method == "INVITE":
            octets = key if key is not None else key_message(self.name, user, next(self.numbers))
            parts.append(Part(MIKEY, octets))
        content_type, body = build_multipart(parts, self.stack.token)
        if dialog is None:
            dialog = f"{session.call_id};local-tag={session.remote_tag};remote-tag={session.local_tag}"
        return self.stack.refer(
            to or self.session_identity(session), refer_to or f"<{uri(user)};method={method}>", from_=f"<{self.uri}>",
            headers=[*CLIENT_HEADERS, ("Require", "tdialog"), ("Target-Dialog", dialog), *headers], body=body,
            content_type=content_type, now=self.exchange.now, flow=self.flow, credentials=self.credentials,
        )

    def send_key(self, session: InviteSession, user: str) -> ClientRequest:
        """A key update for one member, in the dialog."""
        info = McpttInfo(request_uri=uri(user), temporary_group=True, key_operation="update")
        octets = key_message(self.name, user, next(self.numbers))
        content_type, body = build_multipart(
            [Part(documents.MCPTT_INFO, info.encode()), Part(MIKEY, octets)], self.stack.token
        )
        return session.send("MESSAGE", body=body, content_type=content_type, now=self.exchange.now)

    def subscribe(self, to: str, expires: int = 3600, event: str = "conference") -> Subscription:
        return self.stack.subscribe(
            to, event=event, from_=f"<{self.uri}>", expires=expires, headers=CLIENT_HEADERS, now=self.exchange.now,
            flow=self.flow, credentials=self.credentials,
        )

    @staticmethod
    def session_identity(session: InviteSession) -> str:
        assert session.dialog is not None
        return session.dialog.remote_target

    # --- what it hears

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    def answer_to(self, what: InviteSession | Subscription | ClientRequest) -> Response:
        """The final answer to an INVITE, or to the request that began a subscription."""
        if isinstance(what, InviteSession):
            finals = [e for e in self.seen if isinstance(e, Answered | Refused) and e.session is what]
            assert len(finals) == 1 and finals[0].response is not None, finals
            return finals[0].response
        request = what.request if isinstance(what, Subscription) else what
        (final,) = [
            e.response for e in self.told(ResponseReceived) if e.client_request is request and e.response.status >= 200
        ]
        return final

    def contents_of(self, what: InviteSession) -> Contents:
        return read_contents(self.answer_to(what))

    def fragments(self, subscription: Subscription) -> list[SipFragment]:
        """The refer NOTIFYs."""
        return [SipFragment.decode(e.request.body) for e in self.told(Notified) if e.subscription is subscription]

    def rosters(self, subscription: Subscription) -> list[ConferenceInfo]:
        bodies = [e.request.body for e in self.told(Notified) if e.subscription is subscription]
        return [ConferenceInfo.decode(body) for body in bodies if body]

    def handle(self, event: object, now: float) -> None:
        self.seen.append(event)
        match event:
            case InviteReceived(session):
                self.invitations.append(session)
                self.respond(session, self.script)
            case RequestReceived(incoming):
                self.requests.append(incoming.request)
                self._answer(incoming, now)

    def respond(self, session: InviteSession, script: str | tuple[int, str | None]) -> None:
        now = self.exchange.now
        match script:
            case "answer":
                parts = [
                    Part("application/sdp", self.describe().encode()),
                    Part(ACKNOWLEDGEMENT, f"proof of {self.name}".encode()),
                ]
                content_type, body = build_multipart(parts, self.stack.token)
                session.accept(headers=[("Recv-Info", INFO_PACKAGE)], body=body, content_type=content_type, now=now)
            case "ring":
                session.progress(180, now=now)
            case (status, warning):
                headers = [("Warning", f'399 {DOMAIN} "{warning}"')] if warning else []
                session.reject(int(status), headers=headers, now=now)

    def _answer(self, incoming: ServerRequest, now: float) -> None:
        if incoming.request.method in ("INVITE", "UPDATE"):
            incoming.respond(200, body=self.describe().encode(), content_type="application/sdp", now=now)
        else:
            incoming.respond(200, now=now)

    def declare(self, session: InviteSession, **info: Any) -> ClientRequest:
        """The re-INVITE that makes a running call an emergency or imminent peril call, or takes that back."""
        details = {"session_type": "prearranged", **info}
        told = McpttInfo(**details).encode()
        content_type, body = build_multipart(
            [Part("application/sdp", self.describe().encode()), Part(documents.MCPTT_INFO, told)], self.stack.token
        )
        return session.reinvite(body=body, content_type=content_type, now=self.exchange.now)


# --- the exchange ------------------------------------------------------------------------------------------

Loss = Callable[[Request | Response, Flow], bool]


class Exchange:
    """The server, the telephones, and the way between them.

    :param users: what differs in somebody's profile from being allowed to call everybody
    """

    def __init__(
        self,
        *,
        regroup: RegroupSettings | None = None,
        users: Mapping[str, Mapping[str, Any]] | None = None,
        function: type[ControllingFunction] = ControllingFunction,
        transport: str = "tcp",
        **settings: Any,
    ) -> None:
        self.now = START + 1.0
        self.random = random.Random(1)
        self.address = ("192.0.2.1", 5060)
        self.transport = transport
        self.policy = Policy(profiles(**(users or {})))
        self.regroup = regroup or RegroupSettings()
        self.plane = Plane()
        self.observed: list[tuple[str, dict[str, Any]]] = []
        self.server: McpttService = assemble(
            ControllingSettings(SERVICE, DOMAIN, **settings), regroup_settings=lambda: self.regroup,
            policy=lambda: self.policy, keyring=ring(), replay=MemoryReplayCache(), check_key=self._check_key,
            media=self.plane, token=lambda: self.random.randbytes(8),
            observe=lambda name, details: self.observed.append((name, details)), controlling_function=function,
        )
        self.server.stack.settings = replace(self.server.stack.settings, mtu=65000)
        self.server.stack.add_listener(transport, *self.address)
        self.phones: list[Telephone] = []
        self._phone_numbers = itertools.count(1)
        #: every key message is another one, also after a restart of its device
        self.numbers = itertools.count()
        self.registrations: dict[tuple[str, str], Iterator[int]] = {}
        self.lose: Loss = lambda _message, _flow: False
        #: what arrives in one instant is read before any of it is acted upon
        self.together = False
        self.wire: list[tuple[float, Flow, Request | Response]] = []
        self._flying: list[tuple[float, int, Flow, bytes]] = []
        self._order = itertools.count()

    def _check_key(self, octets: bytes, sender: str, recipient: str) -> int:
        return verify(
            octets, sender_uri=sender, recipient_uri=recipient, keyring=ring(), now=self.now
        ).message.csb_id

    def phone(self, name: str, device: str = "1", script: str | tuple[int, str | None] = "answer") -> Telephone:
        """A registered telephone."""
        made = Telephone(self, name, device, next(self._phone_numbers), self.transport)
        made.script = script
        self.phones.append(made)
        made.register()
        self.run(0.1)
        return made

    def phones_of(self, *names: str) -> list[Telephone]:
        return [self.phone(name) for name in names]

    @property
    def call(self) -> GroupCall:
        (call,) = self.server.controlling.calls.values()
        return call

    @property
    def calls(self) -> dict[str, GroupCall]:
        return self.server.controlling.calls

    def told(self, name: str) -> list[dict[str, Any]]:
        return [details for at, details in self.observed if at == name]

    # --- time and octets

    def run(self, seconds: float = 1.0) -> None:
        """Lets ``seconds`` pass."""
        end = self.now + seconds
        self._settle()
        while True:
            due = [self._flying[0][0]] if self._flying else []
            due += [t for t in (self.server.next_timer(), self.server.stack.next_timer()) if t is not None]
            due += [t for phone in self.phones if (t := phone.stack.next_timer()) is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            while self._flying and self._flying[0][0] <= self.now:
                self._deliver(heapq.heappop(self._flying))
                if not self.together:
                    self._settle()
            self.server.stack.handle_timer(self.now)
            self.server.handle_timer(self.now)
            for phone in self.phones:
                phone.stack.handle_timer(self.now)
            self._settle()
        self.now = end

    def hang_up_flow(self, phone: Telephone) -> None:
        """The phone's connection is gone, and the phone with it."""
        self.phones.remove(phone)
        self.server.stack.flow_closed(_back(phone.flow), self.now)
        self._settle()

    def _deliver(self, item: tuple[float, int, Flow, bytes]) -> None:
        _, _, flow, octets = item
        stack = self.server.stack if flow.local == self.address else None
        for phone in self.phones:
            if phone.address == flow.local:
                stack = phone.stack
        if stack is not None:
            stack.receive_octets(octets, flow, self.now)

    def _settle(self) -> None:
        ends: list[tuple[SipStack, Flow | None, Callable[[object, float], None]]] = [
            (self.server.stack, None, self.server.handle), *((p.stack, p.flow, p.handle) for p in self.phones)
        ]
        again = True
        while again:
            again = False
            for stack, flow, handle in ends:
                for outgoing in stack.to_send():
                    again = True
                    way = outgoing.flow or flow
                    if way is None:  # the connection is gone, and the telephone with it
                        stack.send_failed(outgoing, self.now)
                        continue
                    octets = outgoing.octets if outgoing.flow is not None else stack.bind(outgoing, way, self.now)
                    try:
                        message = parse(octets)
                    except ParseError:  # the answer to a header that could not be read repeats it
                        continue
                    self.wire.append((self.now, way, message))
                    if not self.lose(message, way):
                        item = (self.now + DELAY, next(self._order), _back(way), octets)
                        heapq.heappush(self._flying, item)
                for event in stack.events():
                    again = True
                    handle(event, self.now)

    # --- what was said

    def sent_to(self, phone: Telephone, method: str) -> list[Request]:
        """Requests of the server to ``phone``."""
        return [m for _, f, m in self.wire if isinstance(m, Request) and m.method == method and f == _back(phone.flow)]


def _back(flow: Flow) -> Flow:
    return Flow(flow.transport, flow.remote, flow.local, flow.id)


def warning_codes(response: Response) -> list[int]:
    """The MC codes in the quotes of its Warnings; each warn-code is 399 and its agent the server's host."""
    codes = []
    for value in response.headers.get_all("Warning"):
        start, quoted, _ = value.split('"')
        assert start == f"399 {DOMAIN} ", value
        codes.append(int(quoted[:3]))
    return codes


__all__ = ["Cancelled", "Confirmed", "Ended", "Exchange", "Progressed", "Telephone", "key_message", "uri"]
