# SPDX-License-Identifier: Apache-2.0
"""User profiles: the words of TS 24.484 in a policy file and in XML, and the rules that decide by them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcptt_sip.mcptt.documents import DocumentError
from mcptt_sip.mcptt.policy import CALLING, STARTING, Commencement, Load, Policy, PolicyError, Urgency
from mcptt_sip.mcptt.userprofile import MAX_COUNT, MAX_PRIORITY, STANDARD_NAME, UserProfile

ALICE, BOB = "sip:alice@mcx.example", "sip:bob@mcx.example"
RIGHTS = [f.name for f in dataclasses.fields(UserProfile) if f.name.startswith("allow_")]

uris = st.from_regex(r"sip:[a-z][a-z0-9.-]{0,12}@[a-z]{1,10}\.example", fullmatch=True)
profile = st.builds(
    UserProfile,
    uri=uris,
    username=st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True),
    private_call_list=st.lists(uris, max_size=4).map(tuple),
    incoming_private_call_list=st.lists(uris, max_size=4).map(tuple),
    user_priority=st.integers(0, MAX_PRIORITY),
    max_simultaneous_calls=st.integers(0, MAX_COUNT),
    max_affiliations=st.integers(0, MAX_COUNT),
    **{right: st.booleans() for right in RIGHTS},
)


@given(profile)
def test_a_profile_survives_its_xml(made: UserProfile) -> None:
    assert UserProfile.decode(made.encode()) == (made, ())


@given(profile)
def test_a_profile_survives_its_table_of_the_policy_file(made: UserProfile) -> None:
    assert UserProfile.of_table(made.uri, made.table()) == made


#: as another system writes it: its own extensions, rights that nothing here acts upon, and rights left out
FOREIGN = """<?xml version="1.0" encoding="UTF-8"?>
<mcptt-user-profile xmlns="urn:3gpp:mcptt:user-profile:1.0" xmlns:cp="urn:ietf:params:xml:ns:common-policy"
    xmlns:own="urn:another:system" XUI-URI="sip:ignored@mcx.example" user-profile-index="1">
  <Name xml:lang="en">Alice</Name><Status>true</Status>
  <Common index="1">
    <UserAlias><alias-entry index="1">alice.ops</alias-entry></UserAlias>
    <MCPTTUserID><uri-entry>sip:alice@mcx.example</uri-entry><display-name>Alice</display-name></MCPTTUserID>
    <PrivateCall><PrivateCallList>
      <PrivateCallURI><uri-entry>sip:bob@mcx.example</uri-entry><display-name>Bob</display-name></PrivateCallURI>
    </PrivateCallList></PrivateCall>
    <MCPTT-group-call><MaxSimultaneousCallsN6>3</MaxSimultaneousCallsN6><Priority>7</Priority></MCPTT-group-call>
  </Common>
  <cp:ruleset><cp:rule id="1"><cp:actions>
    <allow-regroup>true</allow-regroup><allow-private-call>1</allow-private-call>
    <allow-ambient-listening>true</allow-ambient-listening><own:allow-teleport>true</own:allow-teleport>
    <anyExt><allow-adhoc-group-call-participation>true</allow-adhoc-group-call-participation></anyExt>
  </cp:actions></cp:rule></cp:ruleset>
  <OnNetwork index="1"><MaxAffiliationsN2>9</MaxAffiliationsN2></OnNetwork>
</mcptt-user-profile>"""


def test_a_missing_right_is_not_given_and_what_is_not_acted_upon_is_named() -> None:
    made, unused = UserProfile.decode(FOREIGN.encode())
    assert (made.uri, made.username, made.private_call_list) == (ALICE, "alice.ops", (BOB,))
    assert (made.max_simultaneous_calls, made.max_affiliations, made.user_priority) == (3, 9, 7)
    given_rights = {right for right in RIGHTS if getattr(made, right)}
    assert given_rights == {"allow_regroup", "allow_private_call", "allow_adhoc_group_call_participation"}
    assert unused == ("allow-ambient-listening", "allow-teleport")


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("<allow-regroup>true", "<allow-regroup>perhaps", "perhaps"),
        ("CallsN6>3<", "CallsN6>-1<", "MaxSimultaneousCallsN6"),
        ("<Priority>7", "<Priority>256", "Priority"),
        ("<Status>true", "<Status>false", "disabled"),
        ("<uri-entry>sip:alice@mcx.example", "<uri-entry>alice", "MCPTTUserID"),
        ("<uri-entry>sip:bob@mcx.example", "<uri-entry>bob", "PrivateCallList"),
        ("mcptt-user-profile", "group", "root element"),
        ('<?xml version="1.0" encoding="UTF-8"?>', '<!DOCTYPE x [<!ENTITY a "b">]>', "document type"),
    ],
)
def test_a_broken_profile_is_refused_with_what_is_wrong(old: str, new: str, said: str) -> None:
    text = FOREIGN.replace(old, new)
    assert text != FOREIGN
    with pytest.raises(DocumentError, match=said):
        UserProfile.decode(text.encode())


def test_a_password_is_in_no_document_and_no_representation() -> None:
    made = UserProfile(ALICE, "alice", "a secret")
    assert b"a secret" not in made.encode() and "a secret" not in repr(made)
    assert made.table()["password"] == "a secret"


@pytest.mark.parametrize(
    "line, said",
    [
        ("alow-regroup = true", "did you mean 'allow-regroup'"),
        ("MaxSimultaneousCalls = 3", "did you mean 'MaxSimultaneousCallsN6'"),
        ("allow-regroup = 1", "must be true or false"),
        ('MaxSimultaneousCallsN6 = "3"', "must be a number"),
        ("MaxAffiliationsN2 = 70000", "not from 0 to 65535"),
        ("user-priority = 300", "not from 0 to 255"),
        ("PrivateCallList = [1]", "must be a list of URIs"),
        ('PrivateCallList = ["bob"]', "no SIP URI"),
        ('PrivateCallList = []\nprivate-call-list = []', "twice"),
        ("username = 3", "must be a text"),
    ],
)
def test_a_wrong_entry_of_a_policy_file_says_what_is_wrong(line: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said.replace("(", "\\(")):
        Policy.parse(f'[user."{ALICE}"]\n{line}')


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1", "unknown table"),
        ("user = 1", "must be tables"),
        ('[user]\n"sip:a@x" = 1', "must be a table"),
        ('[user."alice"]', "no SIP URI"),
        ('[user."sip:a@x"]\nusername="u"\n[user."sip:b@x"]\nusername="u"', "two profiles"),
        ("[user", "end of document"),
    ],
)
def test_a_broken_policy_file_says_where(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        Policy.parse(text)


def test_every_spelling_of_a_policy_file_is_written_as_the_standard_has_it() -> None:
    table = {"private-call-list": [BOB], "max-simultaneous-calls": 2, "max-affiliations": 3}
    assert UserProfile.of_table(ALICE, table).table() == {
        "username": "alice", "PrivateCallList": [BOB], "MaxSimultaneousCallsN6": 2, "MaxAffiliationsN2": 3,
    }
    assert set(STANDARD_NAME) == {f.name for f in dataclasses.fields(UserProfile)} - {"uri"}


# --- the rules ----------------------------------------------------------------------------------------------

ABLE = UserProfile(
    ALICE, "alice", allow_regroup=True, allow_private_call=True, allow_private_call_to_any_user=True,
    allow_force_auto_answer=True, allow_emergency_group_call=True, allow_imminent_peril_call=True,
)
POLICY = Policy({ALICE: ABLE, BOB: UserProfile(BOB, "bob")})


def test_every_rule_can_refuse_and_none_does_without_a_cause() -> None:
    """For each row a question that it alone refuses: no row is dead, and none hides another."""
    bare = Policy({ALICE: UserProfile(ALICE), BOB: UserProfile(BOB, allow_private_call_participation=False,
                   allow_adhoc_group_call_participation=False, allow_to_receive_private_call_from_any_user=False)})
    refused = set()
    for commencement in Commencement:
        for urgency in Urgency:
            for policy in (bare, Policy({}), POLICY, Policy({ALICE: UserProfile(
                ALICE, allow_automatic_commencement=False, allow_manual_commencement=False,
                allow_private_call_media_protection=False, allow_private_call_floor_control_protection=False,
            ), BOB: UserProfile(BOB)})):
                question = policy.question(
                    ALICE, BOB, commencement=commencement, urgency=urgency, load=Load(99999, 99999),
                    target_load=Load(99999, 99999),
                )
                refused |= {finding.what for finding in policy.explain(question) if finding.refuses}
                fine = POLICY.question(ALICE, BOB, commencement=commencement, urgency=urgency)
                assert not any(finding.refuses for finding in POLICY.explain(fine))
    oneself = POLICY.question(ALICE, ALICE)
    refused |= {finding.what for finding in POLICY.explain(oneself) if finding.refuses}
    assert refused == {rule.what for rule in (*STARTING, *CALLING)}


def test_a_decision_is_the_first_rule_that_refuses() -> None:
    policy = Policy({ALICE: UserProfile(ALICE, allow_regroup=True), BOB: UserProfile(BOB)})
    question = policy.question(ALICE, BOB, load=Load(calls=8))
    first = next(finding for finding in policy.explain(question) if finding.refuses)
    decision = policy.may_start_regroup(question)
    assert (decision.warning, decision.because) == (first.warning, first.because) == (
        103, f"{ALICE}: MaxSimultaneousCallsN6 is 8"
    )
    assert policy.may_add(question).warning == 107, "who is added costs the initiator no further call"
