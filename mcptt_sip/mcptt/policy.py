# SPDX-License-Identifier: Apache-2.0
"""Who may do what: the rules of a temporary group call as one table, and the warnings of TS 24.379.

A question gets a :class:`Decision`: allowed, or a SIP status with the Warning text that tells the user why.
Decisions explain themselves: :meth:`Policy.explain` gives every rule with what it says, in the order of the table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.userprofile import ProfileError, UserProfile

#: TS 24.379 warning texts that can occur here: MC code -> (SIP status, text). The code stands inside the
#: quotes; the warn-code is always 399 and the agent a host name (4.4.2).
WARNINGS: Mapping[int, tuple[int, str]] = {
    100: (403, "function not allowed due to {reason}"),
    102: (486, "too many simultaneous affiliations"),
    103: (486, "maximum simultaneous MCPTT group calls reached"),
    107: (403, "user not authorised to make private calls"),
    110: (480, "user declined the call invitation"),
    111: (200, "group call proceeded without all required group members"),
    112: (480, "group call abandoned due to required group members not part of the group session"),
    117: (404, "the group identity indicated in the request is a prearranged group"),
    119: (403, "user is not authorised to initiate the group call"),
    121: (403, "user is not authorised to join the group call"),
    122: (486, "too many participants"),
    123: (200, "MCPTT session already exists"),
    125: (403, "user not authorised to make private call with automatic commencement"),
    126: (403, "user not authorised to make private call with manual commencement"),
    127: (403, "user not authorised to be called in private call"),
    128: (403, "isfocus already assigned"),
    136: (488, "authentication of the MIKEY-SAKKE I_MESSAGE failed"),
    137: (404, "the indicated group call does not exist"),
    138: (403, "subscription of conference events not allowed"),
    140: (403, "unable to decrypt XML content"),
    141: (404, "user unknown to the participating function"),
    142: (404, "unable to determine the controlling function"),
    143: (403, "not authorised to force auto answer"),
    144: (403, "user not authorised to call this particular user"),
    145: (403, "unable to determine called party"),
    146: (480, "T-PF unable to determine the service settings for the called user"),
    149: (200, "SIP INFO request pending"),
    150: (403, "invalid combinations of data received in MIME body"),
    165: (403, "group ID for regroup already in use"),
    190: (403, "user is not authorised to modify the group call participants"),
}


def warning_text(code: int, reason: str | None = None) -> str:
    """The quoted text of a Warning: the MC code, then the words of the table."""
    words = WARNINGS[code][1].format(reason=reason or "local policy")
    return f"{code} {words}"


def known_warning(text: str | None) -> str | None:
    """A member's Warning in the words of the table, ``None`` when it is none of it: what he wrote himself is not handed
    on (security rule 23)."""
    code = (text or "")[:3]
    return warning_text(int(code)) if code.isdecimal() and int(code) in WARNINGS else None


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

    @property
    def warning_text(self) -> str | None:
        """The Warning that goes with a refusal."""
        return None if self.warning is None else warning_text(self.warning, self.reason)


class Commencement(Enum):
    """How the called users are to answer (24.379 11.1.1): the value, and the header that asks for it."""

    AUTOMATIC = ("Answer-Mode", "Auto")
    MANUAL = ("Answer-Mode", "Manual")
    FORCED = ("Priv-Answer-Mode", "Auto")

    @property
    def header(self) -> tuple[str, str]:
        return self.value


class Urgency(Enum):
    """What a call says of itself; each step goes before the one above it, in SIP and on the floor."""

    NORMAL = "normal"
    IMMINENT_PERIL = "imminent-peril"
    EMERGENCY = "emergency"


@dataclass(frozen=True, slots=True)
class Load:
    """What a user takes part in now: group calls (N6) and affiliations (N2)."""

    calls: int = 0
    affiliations: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """May ``caller`` call ``target``? The profiles are ``None`` for who is not known."""

    caller: str
    target: str
    calling: UserProfile | None
    called: UserProfile | None
    commencement: Commencement = Commencement.AUTOMATIC
    urgency: Urgency = Urgency.NORMAL
    load: Load = Load()
    target_load: Load = Load()
    #: what the running call is, when its urgency is to be another one
    replacing: Urgency = Urgency.NORMAL


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. ``holds`` is asked with the caller's and the called user's profile, where ``when`` does not say that
    the question does not arise; ``but`` is the sentence of a refusal, with {caller}, {target}, and both profiles as
    {a} and {b}."""

    what: str
    warning: int
    holds: Callable[[Question, UserProfile, UserProfile], bool]
    but: str
    reason: str | None = None
    when: Callable[[Question], bool] = lambda _question: True


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says: ``holds`` is ``None`` where it is not asked. ``because`` is its sentence for a refusal."""

    what: str
    holds: bool | None
    because: str
    warning: int
    reason: str | None

    @property
    def refuses(self) -> bool:
        return self.holds is False


_NOBODY = UserProfile("")

#: what a call may be declared to be
_DECLARING: tuple[Rule, ...] = (
    Rule(
        "allow-emergency-group-call", 100, lambda q, a, b: a.allow_emergency_group_call,
        "{caller}: allow-emergency-group-call is not true", "user authorisation",
        when=lambda q: q.urgency is Urgency.EMERGENCY,
    ),
    Rule(
        "allow-imminent-peril-call", 100, lambda q, a, b: a.allow_imminent_peril_call,
        "{caller}: allow-imminent-peril-call is not true", "user authorisation",
        when=lambda q: q.urgency is Urgency.IMMINENT_PERIL,
    ),
)

#: the same of a running call; what it was declared to be is taken back by who declared it (the target), or by right
CHANGING: tuple[Rule, ...] = (
    Rule("the caller has a profile", 141, lambda q, a, b: q.calling is not None, "{caller} has no profile"),
    *_DECLARING,
    Rule(
        "allow-cancel-group-emergency", 100,
        lambda q, a, b: q.caller == q.target or a.allow_cancel_group_emergency,
        "{caller}: allow-cancel-group-emergency is not true", "user authorisation",
        when=lambda q: q.replacing is Urgency.EMERGENCY and q.urgency is not Urgency.EMERGENCY,
    ),
    Rule(
        "allow-cancel-imminent-peril", 100, lambda q, a, b: q.caller == q.target or a.allow_cancel_imminent_peril,
        "{caller}: allow-cancel-imminent-peril is not true", "user authorisation",
        when=lambda q: q.replacing is Urgency.IMMINENT_PERIL and q.urgency is Urgency.NORMAL,
    ),
)

#: step 2 for the INVITE: the rights and limits of the initiator himself
STARTING: tuple[Rule, ...] = (
    Rule("the caller has a profile", 141, lambda q, a, b: q.calling is not None, "{caller} has no profile"),
    Rule("allow-regroup", 119, lambda q, a, b: a.allow_regroup, "{caller}: allow-regroup is not true"),
    Rule(
        "MaxSimultaneousCallsN6", 103, lambda q, a, b: q.load.calls < a.max_simultaneous_calls,
        "{caller}: MaxSimultaneousCallsN6 is {a.max_simultaneous_calls}",
    ),
    Rule(
        "MaxAffiliationsN2", 102, lambda q, a, b: q.load.affiliations < a.max_affiliations,
        "{caller}: MaxAffiliationsN2 is {a.max_affiliations}",
    ),
    Rule(
        "allow-automatic-commencement", 125, lambda q, a, b: a.allow_automatic_commencement,
        "{caller}: allow-automatic-commencement is not true", when=lambda q: q.commencement is Commencement.AUTOMATIC,
    ),
    Rule(
        "allow-manual-commencement", 126, lambda q, a, b: a.allow_manual_commencement,
        "{caller}: allow-manual-commencement is not true", when=lambda q: q.commencement is Commencement.MANUAL,
    ),
    Rule(
        "allow-force-auto-answer", 143, lambda q, a, b: a.allow_force_auto_answer,
        "{caller}: allow-force-auto-answer is not true", when=lambda q: q.commencement is Commencement.FORCED,
    ),
    *_DECLARING,
)

#: step 2 for the INVITE's target and again for every REFER: may this user be keyed and called by that one?
CALLING: tuple[Rule, ...] = (
    Rule("the caller has a profile", 141, lambda q, a, b: q.calling is not None, "{caller} has no profile"),
    Rule("somebody else is called", 145, lambda q, a, b: q.caller != q.target, "{caller} calls himself"),
    Rule("allow-private-call", 107, lambda q, a, b: a.allow_private_call, "{caller}: allow-private-call is not true"),
    Rule(
        "allow-private-call-media-protection", 100, lambda q, a, b: a.allow_private_call_media_protection,
        "{caller}: no allow-private-call-media-protection", "user authorisation",
    ),
    Rule(
        "allow-private-call-floor-control-protection", 100,
        lambda q, a, b: a.allow_private_call_floor_control_protection,
        "{caller}: no allow-private-call-floor-control-protection", "user authorisation",
    ),
    Rule(
        "PrivateCallList", 144,
        lambda q, a, b: a.allow_private_call_to_any_user or q.target in a.private_call_list,
        "{caller}: {target} is not in PrivateCallList",
    ),
    Rule("the called user has a profile", 141, lambda q, a, b: q.called is not None, "{target} has no profile"),
    Rule(
        "allow-private-call-participation", 127, lambda q, a, b: b.allow_private_call_participation,
        "{target}: no allow-private-call-participation",
    ),
    Rule(
        "allow-adhoc-group-call-participation", 127, lambda q, a, b: b.allow_adhoc_group_call_participation,
        "{target}: no allow-adhoc-group-call-participation",
    ),
    Rule(
        "IncomingPrivateCallList", 127,
        lambda q, a, b: b.allow_to_receive_private_call_from_any_user or q.caller in b.incoming_private_call_list,
        "{target}: {caller} is not in IncomingPrivateCallList",
    ),
    Rule(
        "MaxSimultaneousCallsN6 of the called user", 103,
        lambda q, a, b: q.target_load.calls < b.max_simultaneous_calls,
        "{target}: MaxSimultaneousCallsN6 is {b.max_simultaneous_calls}",
    ),
    Rule(
        "MaxAffiliationsN2 of the called user", 102,
        lambda q, a, b: q.target_load.affiliations < b.max_affiliations,
        "{target}: MaxAffiliationsN2 is {b.max_affiliations}",
    ),
)


def findings(rules: Sequence[Rule], question: Question) -> list[Finding]:
    """What each rule says of ``question``."""
    calling, called = question.calling or _NOBODY, question.called or _NOBODY
    return [
        Finding(
            rule.what,
            rule.holds(question, calling, called) if rule.when(question) else None,
            rule.but.format(caller=question.caller, target=question.target, a=calling, b=called),
            rule.warning,
            rule.reason,
        )
        for rule in rules
    ]


def decide(rules: Sequence[Rule], question: Question) -> Decision:
    """The first rule that does not hold refuses."""
    for finding in findings(rules, question):
        if finding.refuses:
            return Decision.no(finding.warning, finding.because, finding.reason)
    return Decision.yes(f"{question.caller} may call {question.target} in a user regroup")


class PolicyError(SipError):
    """The policy file is not usable; the message names the place."""


@dataclass(frozen=True)
class Policy:
    """All profiles, and the questions the participating and controlling functions ask."""

    profiles: Mapping[str, UserProfile] = field(default_factory=dict)

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
            try:
                profiles[uri] = UserProfile.of_table(uri, table)
            except ProfileError as error:
                raise PolicyError(str(error)) from None
        policy = cls(profiles)
        for profile in profiles.values():
            if policy._usernames[profile.username] is not profile:
                raise PolicyError(f"username {profile.username!r} stands in two profiles")
        return policy

    @cached_property
    def _usernames(self) -> dict[str, UserProfile]:
        return {profile.username: profile for profile in self.profiles.values()}

    def by_username(self, username: str) -> UserProfile | None:
        return self._usernames.get(username)

    def question(
        self,
        caller: str,
        target: str,
        *,
        commencement: Commencement = Commencement.AUTOMATIC,
        urgency: Urgency = Urgency.NORMAL,
        load: Load | None = None,
        target_load: Load | None = None,
    ) -> Question:
        """With what the profiles say of both."""
        profiles = self.profiles
        return Question(
            caller, target, profiles.get(caller), profiles.get(target), commencement, urgency, load or Load(),
            target_load or Load(),
        )

    def may_start_regroup(self, question: Question) -> Decision:
        """Step 2 for the INVITE: the right to regroup, and to call this user."""
        return decide((*STARTING, *CALLING[1:]), question)

    def may_add(self, question: Question) -> Decision:
        """Step 2 for every REFER: may this user be keyed and called by that one?"""
        return decide(CALLING, question)

    def may_change_urgency(self, user: str, declared_by: str, replacing: Urgency, urgency: Urgency) -> Decision:
        """May ``user`` make a running call, ``replacing`` by the word of ``declared_by``, one of ``urgency``?"""
        profiles = self.profiles
        return decide(
            CHANGING,
            Question(
                user, declared_by, profiles.get(user), profiles.get(declared_by), urgency=urgency, replacing=replacing
            ),
        )

    def explain(self, question: Question) -> list[Finding]:
        """Every rule for an INVITE, whether it refuses or not."""
        return findings((*STARTING, *CALLING[1:]), question)
