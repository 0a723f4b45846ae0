# SPDX-License-Identifier: Apache-2.0
"""The participating MCPTT function: who a request comes from, and where a user can be reached; sans-IO.

It authenticates (digest), binds an MCPTT ID to its registration, and takes in the client-server key (CSK) that
comes with the REGISTER, sealed by the authenticated user for this server (security rule 18).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from mcptt_sip.auth import DigestAuthenticator, Verdict
from mcptt_sip.errors import SipError
from mcptt_sip.flow import Flow
from mcptt_sip.headers import NameAddr
from mcptt_sip.mcptt.contents import Headers, read_contents, warning_header
from mcptt_sip.mcptt.keying import KeyingError, i_message
from mcptt_sip.mcptt.policy import Policy, warning_text
from mcptt_sip.mcptt.userprofile import UserProfile
from mcptt_sip.message import Request
from mcptt_sip.registrar import Registrar
from mikey import Keyring, KeyType, MikeyError, ReplayCache, TransportKey, unseal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a user can be reached: his registered contact, its flow, and the CSK of that registration."""

    user: str
    contact: str
    flow: Flow
    csk: TransportKey
    client_id: str
    priority: int = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer that a request gets instead of being served."""

    status: int
    headers: Headers
    because: str


class ParticipatingFunction:
    """Registrations of one server, and the identity behind each request.

    :param csk_keys: the server's own key sets and the KMS certificates it trusts
    :param time_of_day: by which keys go; ``None``: by the ``now`` of each call
    """

    def __init__(
        self,
        *,
        identity: str,
        domain: str,
        policy: Callable[[], Policy],
        registrar: Registrar,
        csk_keys: Keyring,
        replay: ReplayCache,
        token: Callable[[], bytes],
        time_of_day: Callable[[], float] | None = None,
    ) -> None:
        self._time_of_day = time_of_day
        self.identity = identity
        self.domain = domain
        self._policy = policy
        self._registrar = registrar
        self._keys = csk_keys
        self._replay = replay
        #: user -> contact -> what came with its registration
        self._destinations: dict[str, dict[str, Destination]] = {}
        self._digest = DigestAuthenticator(domain, self._password, token, algorithms=("SHA-256",))

    def _password(self, username: str) -> str | None:
        profile = self._policy().by_username(username)
        return profile.password if profile is not None and profile.password else None

    # --- who is it ------------------------------------------------------------------------------------

    def authenticate(self, request: Request, now: float) -> UserProfile | Answer:
        """The user whose digest stands in ``request``, who must also be the one in its From."""
        verdict, username = self._digest.check(request, now)
        if verdict is not Verdict.GOOD or username is None:
            stale = verdict is Verdict.STALE
            return Answer(401, list(self._digest.challenge(now, stale=stale)), verdict.value)
        profile = self._policy().by_username(username)
        if profile is None:
            return Answer(404, self._warning(141), f"{username} has no profile")
        claimed = str(NameAddr.parse(request.headers.get("From") or "").uri)
        if claimed != profile.uri:
            return Answer(403, self._warning(100), f"{profile.uri} claims to be {claimed}")
        return profile

    # --- where is he ----------------------------------------------------------------------------------

    def register(self, request: Request, flow: Flow, profile: UserProfile, now: float) -> Answer:
        """A REGISTER of an authenticated user: his binding, and the CSK of this registration."""
        if str(request.headers.to.uri) != profile.uri:
            return Answer(403, self._warning(100), f"{profile.uri} registers {request.headers.to.uri}")
        try:
            contents = read_contents(request)
            csk = self._open_csk(contents.mikey, profile.uri, now)
        except (SipError, MikeyError, KeyingError) as error:
            return Answer(488, self._warning(136), f"CSK of {profile.uri}: {error}")
        outcome = self._registrar.register(request, flow, now)
        if outcome.status >= 300:
            return Answer(outcome.status, list(outcome.headers), "registrar")
        contacts = {str(binding.contact): binding for binding in self._registrar.bindings(profile.uri, now)}
        known = self._destinations.get(profile.uri, {})
        mine = [contact for contact, binding in contacts.items() if binding.flow == flow]
        held = {contact: destination for contact, destination in known.items() if contact in contacts}
        if csk is not None:
            client_id = contents.info.client_id or ""
            for contact in mine:
                held[contact] = Destination(profile.uri, contact, flow, csk, client_id, profile.user_priority)
        unkeyed = [contact for contact in mine if contact not in held or held[contact].flow != flow]
        self._set(profile.uri, held)
        if unkeyed:
            return Answer(403, self._warning(100), f"{profile.uri} registers without a CSK")
        log.info("call-id=%s user=%s registered bindings=%d", request.headers.call_id, profile.uri, len(contacts))
        return Answer(200, list(outcome.headers), "registered")

    def _set(self, user: str, destinations: dict[str, Destination]) -> None:
        if destinations:
            self._destinations[user] = destinations
        else:
            self._destinations.pop(user, None)

    def _open_csk(self, octets: bytes | None, user: str, now: float) -> TransportKey | None:
        if octets is None:
            return None
        opened = unseal(
            i_message(octets),
            sender_uri=user,
            me=self.identity,
            keyring=self._keys,
            now=now if self._time_of_day is None else self._time_of_day(),
            replay=self._replay,
            expect_type=KeyType.CSK,
        )
        return opened.key

    def destinations(self, user: str, now: float) -> list[Destination]:
        """Every device where ``user`` can be invited, preferred ones first."""
        known = self._destinations.get(user, {})
        bindings = self._registrar.bindings(user, now) if known else ()
        places = [known[str(binding.contact)] for binding in bindings if str(binding.contact) in known]
        profile = self._policy().profiles.get(user)
        if profile is None:
            return places
        # his priority is that of the policy in force, not that of the time when he registered
        return [replace(place, priority=profile.user_priority) for place in places]

    def locate(self, user: str, now: float) -> Destination | None:
        """The first of these, ``None`` when the user is not registered."""
        return next(iter(self.destinations(user, now)), None)

    def device(self, user: str, request: Request, flow: Flow | None, now: float) -> Destination | None:
        """The registration that a request of ``user`` comes from: that of its flow, else that of its contact."""
        places = self.destinations(user, now)
        contacts = [str(contact.uri) for contact in request.headers.contact]
        by_flow = [place for place in places if place.flow == flow]
        by_contact = [place for place in by_flow or places if place.contact in contacts]
        return next(iter(by_contact or by_flow or places), None)

    def flow_lost(self, flow: Flow, now: float) -> None:
        """A registration over a flow that is gone reaches nobody."""
        for user, known in list(self._destinations.items()):
            if any(destination.flow == flow for destination in known.values()):
                self._set(user, {contact: at for contact, at in known.items() if at.flow != flow})
                log.info("user=%s flow lost", user)
        self._registrar.flow_lost(flow, now)

    def _warning(self, code: int) -> Headers:
        return warning_header(self.domain, warning_text(code))
