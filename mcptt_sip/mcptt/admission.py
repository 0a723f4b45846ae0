# SPDX-License-Identifier: Apache-2.0
"""Step 2: may this call be made, may this user be added? Policy, limits and the key message's signature; sans-IO.

Cheap before dear: rights and limits first, then the signature (security rules 22 and 26). Everything that says no is a
:class:`~mcptt_sip.mcptt.groupcall.Refusal` with its status and Warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mcptt_sip.errors import SipError
from mcptt_sip.incoming import ServerRequest
from mcptt_sip.mcptt.affiliation import Affiliations
from mcptt_sip.mcptt.callrequest import CallRequest, key_of
from mcptt_sip.mcptt.contents import read_contents
from mcptt_sip.mcptt.delivered import DeliveredKeys
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.groupcall import ControllingSettings, GroupCall, KeyMessageCheck, Refusal
from mcptt_sip.mcptt.keying import KeyingError, i_message
from mcptt_sip.mcptt.policy import Commencement, Decision, Load, Policy, Urgency, warning_text
from mikey import MikeyError


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the initiator gets of what he asked for. ``alert``: his right to raise one was confirmed."""

    commencement: Commencement
    alert: bool
    because: str


def refusal_of(error: SipError | ValueError) -> Refusal:
    """The answer to a request that could not be read, or was refused."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, KeyingError):
        return Refusal(488, warning_text(136), str(error))
    code = getattr(error, "warning", None)
    warning = warning_text(code) if isinstance(code, int) else None
    return Refusal(getattr(error, "status", None) or 400, warning, str(error))


class Admission:
    """Asks the policy in force, and counts.

    :param calls: the running calls by group
    """

    def __init__(
        self,
        settings: ControllingSettings,
        *,
        policy: Callable[[], Policy],
        affiliations: Affiliations,
        calls: Mapping[str, GroupCall],
        check_key: KeyMessageCheck,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._affiliations = affiliations
        self._calls = calls
        self._check_key = check_key
        self._delivered = DeliveredKeys()

    def call(self, request: CallRequest, caller: str) -> Admitted:
        """The initiator's INVITE. Raises :class:`Refusal`."""
        policy = self._policy()
        commencement, decision = self._decide(policy, request, caller)
        if not decision.allowed:
            urgent = decision.warning == 100 and request.urgency is not Urgency.NORMAL
            info = declared_false(request) if urgent else None
            raise Refusal(decision.status, decision.warning_text, decision.because, info=info)
        if request.group in self._calls:
            raise Refusal(403, warning_text(165), f"{request.group} is in use")
        if len(self._calls) >= self._settings.max_calls:
            raise self.congestion(f"{len(self._calls)} calls, no more are allowed")
        self._check(request.key, caller, request.target)
        alert = request.alert and policy.profiles[caller].allow_activate_emergency_alert
        return Admitted(commencement, alert, decision.because)

    def _decide(self, policy: Policy, request: CallRequest, caller: str) -> tuple[Commencement, Decision]:
        """Who lacks the right to force an answer may have asked for an ordinary one beside it (RFC 5373)."""
        loads = self._load(caller), self._load(request.target)
        for commencement in request.commencements:
            question = policy.question(
                caller, request.target, commencement=commencement, urgency=request.urgency, load=loads[0],
                target_load=loads[1],
            )
            decision = policy.may_start_regroup(question)
            if decision.warning != 143:
                break
        return commencement, decision

    def addition(self, incoming: ServerRequest, call: GroupCall, user: str, sender: str) -> bytes:
        """A REFER that adds ``user``: step 2 once more, for him; his I_MESSAGE. Raises :class:`Refusal`."""
        key = key_of(read_contents(incoming.request))
        refusal = call.machine.refusal_of(user, key)
        if refusal is not None:
            raise Refusal(*refusal, f"{user} cannot be added now")
        if user in call.forks:
            return key  # the same REFER once more: it waits for the same outcome, and makes nothing twice
        policy = self._policy()
        decision = policy.may_add(policy.question(sender, user, target_load=self._load(user)))
        if not decision.allowed:
            raise Refusal(decision.status, decision.warning_text, decision.because)
        self._check(key, sender, user)
        return key

    def passed_on(self, key: bytes, now: float) -> None:
        """``key`` goes to its recipient, and to nobody a second time by a new request."""
        self._delivered.record(i_message(key), now)

    def congestion(self, because: str) -> Refusal:
        """No resources is the server's trouble, not the user's lack of a right (24.379 17.3.2.1.2)."""
        return Refusal(500, None, because, headers=[("Retry-After", self._settings.retry_after)])

    def _check(self, key: bytes, sender: str, recipient: str) -> None:
        octets = i_message(key)
        try:
            self._check_key(octets, sender, recipient)
        except MikeyError as error:
            raise Refusal(488, warning_text(136), f"I_MESSAGE for {recipient}: {error}") from error
        if octets in self._delivered:
            raise Refusal(488, warning_text(136), f"the I_MESSAGE for {recipient} was passed on before")

    def _load(self, user: str) -> Load:
        calls = sum(1 for call in self._calls.values() if user in call.legs or user in call.forks)
        return Load(calls, self._affiliations.count(user))


def declared_false(request: CallRequest) -> McpttInfo:
    """What a refusal of the urgency states (24.379 6.3.3.1)."""
    return McpttInfo(
        emergency=False if request.urgency is Urgency.EMERGENCY else None,
        alert=False if request.alert else None,
        imminent_peril=False if request.urgency is Urgency.IMMINENT_PERIL else None,
    )
