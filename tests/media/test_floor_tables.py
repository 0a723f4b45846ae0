# SPDX-License-Identifier: Apache-2.0
"""The three machines of floor control, row by row as TS 24.380 has them: state, event, next state, what is done.

The tables below are literals, to be read against the figures of 6.2.4, 6.3.4 and 6.3.5; the code must agree.
"""

from __future__ import annotations

from typing import Any

import pytest

from media import floor_participant, floor_server, floor_towards

#: 6.2.4, the floor participant. Where the next state depends on what the user does or on a counter (a press or a
#: second T101, say), the action decides: see LEADS_ON.
PARTICIPANT = """
START_STOP         ESTABLISHED               HAS_NO_PERMISSION  ignore
START_STOP         ESTABLISHED_WITH_REQUEST  PENDING_REQUEST    asked implicitly
START_STOP         ESTABLISHED_WITH_GRANT    HAS_PERMISSION     granted with call
HAS_NO_PERMISSION  PRESS                     PENDING_REQUEST    request
HAS_NO_PERMISSION  TAKEN                     HAS_NO_PERMISSION  taken
HAS_NO_PERMISSION  IDLE                      HAS_NO_PERMISSION  idle
HAS_NO_PERMISSION  GRANTED                   PENDING_RELEASE    give back
HAS_NO_PERMISSION  REVOKE                    PENDING_RELEASE    revoked
HAS_NO_PERMISSION  MEDIA                     HAS_NO_PERMISSION  media
HAS_NO_PERMISSION  T103                      HAS_NO_PERMISSION  media ended
PENDING_REQUEST    GRANTED                   HAS_PERMISSION     granted
PENDING_REQUEST    DENY                      HAS_NO_PERMISSION  denied
PENDING_REQUEST    QUEUE_INFO                QUEUED             queued
PENDING_REQUEST    TAKEN                     PENDING_REQUEST    taken
PENDING_REQUEST    IDLE                      PENDING_REQUEST    idle
PENDING_REQUEST    RELEASE                   PENDING_RELEASE    give back
PENDING_REQUEST    REVOKE                    PENDING_RELEASE    revoked
PENDING_REQUEST    MEDIA                     PENDING_REQUEST    media
PENDING_REQUEST    T101                      PENDING_REQUEST    request again
PENDING_REQUEST    T103                      PENDING_REQUEST    media ended
HAS_PERMISSION     RELEASE                   PENDING_RELEASE    give back
HAS_PERMISSION     REVOKE                    PENDING_RELEASE    revoked
HAS_PERMISSION     GRANTED                   HAS_PERMISSION     limit
HAS_PERMISSION     LIMIT                     PENDING_RELEASE    over limit
HAS_PERMISSION     IDLE                      HAS_NO_PERMISSION  lost to idle
HAS_PERMISSION     TAKEN                     HAS_NO_PERMISSION  lost to another
PENDING_RELEASE    T100                      PENDING_RELEASE    release again
PENDING_RELEASE    IDLE                      HAS_NO_PERMISSION  released and idle
PENDING_RELEASE    TAKEN                     HAS_NO_PERMISSION  released and taken
PENDING_RELEASE    GRANTED                   PENDING_RELEASE    late grant
PENDING_RELEASE    MEDIA                     HAS_NO_PERMISSION  released and media
PENDING_RELEASE    T103                      PENDING_RELEASE    media ended
QUEUED             GRANTED                   QUEUED_GRANTED     granted in queue
QUEUED             QUEUE_INFO                QUEUED             queued
QUEUED             DENY                      HAS_NO_PERMISSION  denied
QUEUED             TAKEN                     QUEUED             taken
QUEUED             IDLE                      QUEUED             idle in queue
QUEUED             RELEASE                   PENDING_RELEASE    give back
QUEUED             REVOKE                    PENDING_RELEASE    revoked
QUEUED             MEDIA                     QUEUED             media
QUEUED             ASK_POSITION              QUEUED             position now
QUEUED             T103                      QUEUED             media ended
QUEUED             T104                      QUEUED             ask position
QUEUED_GRANTED     PRESS                     HAS_PERMISSION     taken up
QUEUED_GRANTED     RELEASE                   PENDING_RELEASE    give back
QUEUED_GRANTED     T132                      PENDING_RELEASE    give back
QUEUED_GRANTED     REVOKE                    PENDING_RELEASE    revoked
QUEUED_GRANTED     T103                      QUEUED_GRANTED     media ended
QUEUED_GRANTED     IDLE                      HAS_NO_PERMISSION  lost to idle
QUEUED_GRANTED     TAKEN                     HAS_NO_PERMISSION  lost to another
HAS_NO_PERMISSION  RELEASING                 RELEASING          ended
PENDING_REQUEST    RELEASING                 RELEASING          ended
HAS_PERMISSION     RELEASING                 RELEASING          ended
PENDING_RELEASE    RELEASING                 RELEASING          ended
QUEUED             RELEASING                 RELEASING          ended
QUEUED_GRANTED     RELEASING                 RELEASING          ended
HAS_NO_PERMISSION  ENDED                     START_STOP         ended
PENDING_REQUEST    ENDED                     START_STOP         ended
HAS_PERMISSION     ENDED                     START_STOP         ended
PENDING_RELEASE    ENDED                     START_STOP         ended
QUEUED             ENDED                     START_STOP         ended
QUEUED_GRANTED     ENDED                     START_STOP         ended
RELEASING          ENDED                     START_STOP         ended
"""

#: 6.3.4, the general floor control operation. Entering IDLE with somebody in the queue goes on to TAKEN at once.
ARBITRATION = """
START_STOP      ESTABLISHED  IDLE            start
IDLE            REQUEST      TAKEN           grant request
IDLE            T4           IDLE            inactive
IDLE            T7           IDLE            idle again
IDLE            RELEASING    RELEASING       begin end
TAKEN           CUT_IN       TAKEN           cut in
TAKEN           RELEASE      IDLE            free
TAKEN           MEDIA        TAKEN           media
TAKEN           REVOKE       PENDING_REVOKE  begin revoke
TAKEN           T1           IDLE            free
TAKEN           T2           PENDING_REVOKE  talked too long
TAKEN           T20          TAKEN           granted again
TAKEN           TAKEN_AGAIN  TAKEN           taken again
TAKEN           WAITED       TAKEN           waited
TAKEN           RELEASING    RELEASING       begin end
PENDING_REVOKE  CUT_IN       TAKEN           cut in
PENDING_REVOKE  RELEASE      IDLE            free
PENDING_REVOKE  MEDIA        PENDING_REVOKE  media
PENDING_REVOKE  T1           IDLE            free
PENDING_REVOKE  T3           IDLE            free
PENDING_REVOKE  WAITED       PENDING_REVOKE  waited
PENDING_REVOKE  RELEASING    RELEASING       begin end
RELEASING       RELEASED     START_STOP      ended
"""

#: 6.3.5, towards each participant. What he sends may make the arbitration tell him something: then his state follows.
TOWARDS = """
START_STOP           IS_IDLE    NOT_PERMITTED_IDLE   tell
START_STOP           IS_TAKEN   NOT_PERMITTED_TAKEN  tell
NOT_PERMITTED_IDLE   REQUEST    NOT_PERMITTED_IDLE   ask
NOT_PERMITTED_IDLE   RELEASE    NOT_PERMITTED_IDLE   tell
NOT_PERMITTED_IDLE   POSITION   NOT_PERMITTED_IDLE   position
NOT_PERMITTED_IDLE   MEDIA      SENDS_MEDIA          without permission
NOT_PERMITTED_IDLE   IS_IDLE    NOT_PERMITTED_IDLE   tell
NOT_PERMITTED_IDLE   IS_TAKEN   NOT_PERMITTED_TAKEN  tell
NOT_PERMITTED_IDLE   GRANT      PERMITTED            tell
NOT_PERMITTED_TAKEN  REQUEST    NOT_PERMITTED_TAKEN  contend
NOT_PERMITTED_TAKEN  RELEASE    NOT_PERMITTED_TAKEN  stop waiting
NOT_PERMITTED_TAKEN  POSITION   NOT_PERMITTED_TAKEN  position
NOT_PERMITTED_TAKEN  MEDIA      SENDS_MEDIA          without permission
NOT_PERMITTED_TAKEN  IS_IDLE    NOT_PERMITTED_IDLE   tell
NOT_PERMITTED_TAKEN  IS_TAKEN   NOT_PERMITTED_TAKEN  tell
NOT_PERMITTED_TAKEN  GRANT      PERMITTED            tell
PERMITTED            REQUEST    PERMITTED            inform
PERMITTED            RELEASE    PERMITTED            finished
PERMITTED            POSITION   PERMITTED            inform
PERMITTED            ACK        PERMITTED            has acknowledged
PERMITTED            MEDIA      PERMITTED            talks
PERMITTED            GRANT      PERMITTED            inform
PERMITTED            REVOKE     PENDING_REVOKE       revoked
PERMITTED            IS_IDLE    NOT_PERMITTED_IDLE   tell
PERMITTED            IS_TAKEN   NOT_PERMITTED_TAKEN  tell
PENDING_REVOKE       REQUEST    PENDING_REVOKE       finished and asks
PENDING_REVOKE       RELEASE    PENDING_REVOKE       finished
PENDING_REVOKE       MEDIA      PENDING_REVOKE       talks
PENDING_REVOKE       T8         PENDING_REVOKE       revoked
PENDING_REVOKE       IS_IDLE    NOT_PERMITTED_IDLE   tell
PENDING_REVOKE       IS_TAKEN   NOT_PERMITTED_TAKEN  tell
SENDS_MEDIA          REQUEST    SENDS_MEDIA          stopped and asks
SENDS_MEDIA          RELEASE    SENDS_MEDIA          stopped waiting
SENDS_MEDIA          POSITION   SENDS_MEDIA          position
SENDS_MEDIA          MEDIA      SENDS_MEDIA          goes on
SENDS_MEDIA          T8         SENDS_MEDIA          stopped or again
SENDS_MEDIA          IS_IDLE    SENDS_MEDIA          inform
SENDS_MEDIA          IS_TAKEN   SENDS_MEDIA          inform
SENDS_MEDIA          GRANT      PERMITTED            tell
NOT_PERMITTED_IDLE   RELEASING  RELEASING            end
NOT_PERMITTED_TAKEN  RELEASING  RELEASING            end
PERMITTED            RELEASING  RELEASING            end
PENDING_REVOKE       RELEASING  RELEASING            end
SENDS_MEDIA          RELEASING  RELEASING            end
NOT_PERMITTED_IDLE   RELEASED   START_STOP           end
NOT_PERMITTED_TAKEN  RELEASED   START_STOP           end
PERMITTED            RELEASED   START_STOP           end
PENDING_REVOKE       RELEASED   START_STOP           end
SENDS_MEDIA          RELEASED   START_STOP           end
RELEASING            RELEASED   START_STOP           end
"""


#: next states that an action chooses in place of the one in its row
LEADS_ON = {
    "participant": {
        ("PENDING_REQUEST", "T101"): {"HAS_NO_PERMISSION"},
        ("PENDING_REQUEST", "QUEUE_INFO"): {"HAS_NO_PERMISSION"},
        ("PENDING_RELEASE", "T100"): {"HAS_NO_PERMISSION", "PENDING_REQUEST"},
        ("PENDING_RELEASE", "IDLE"): {"PENDING_REQUEST"},
        ("PENDING_RELEASE", "TAKEN"): {"PENDING_REQUEST"},
        ("PENDING_RELEASE", "MEDIA"): {"PENDING_REQUEST"},
        ("QUEUED", "GRANTED"): {"HAS_PERMISSION"},
        ("QUEUED", "QUEUE_INFO"): {"HAS_NO_PERMISSION"},
        ("QUEUED", "T104"): {"HAS_NO_PERMISSION"},
        ("QUEUED", "ASK_POSITION"): {"HAS_NO_PERMISSION"},
        ("QUEUED", "IDLE"): {"HAS_NO_PERMISSION"},
    },
    "arbitration": {
        ("TAKEN", "RELEASE"): {"TAKEN"}, ("TAKEN", "T1"): {"TAKEN"}, ("PENDING_REVOKE", "RELEASE"): {"TAKEN"},
        ("PENDING_REVOKE", "T1"): {"TAKEN"}, ("PENDING_REVOKE", "T3"): {"TAKEN"},
    },
    "towards": {
        ("NOT_PERMITTED_IDLE", "REQUEST"): {"PERMITTED"},
        ("NOT_PERMITTED_TAKEN", "REQUEST"): {"PERMITTED"},
        ("PERMITTED", "RELEASE"): {"NOT_PERMITTED_IDLE", "NOT_PERMITTED_TAKEN"},
        ("PENDING_REVOKE", "RELEASE"): {"NOT_PERMITTED_IDLE", "NOT_PERMITTED_TAKEN"},
        ("PENDING_REVOKE", "REQUEST"): {"NOT_PERMITTED_IDLE", "NOT_PERMITTED_TAKEN", "PERMITTED"},
        ("SENDS_MEDIA", "REQUEST"): {"NOT_PERMITTED_IDLE", "NOT_PERMITTED_TAKEN", "PERMITTED"},
        ("SENDS_MEDIA", "RELEASE"): {"NOT_PERMITTED_IDLE", "NOT_PERMITTED_TAKEN"},
        ("SENDS_MEDIA", "T8"): {"NOT_PERMITTED_IDLE", "NOT_PERMITTED_TAKEN"},
    },
}  # fmt: skip
MACHINES = {
    "participant": (floor_participant, PARTICIPANT),
    "arbitration": (floor_server, ARBITRATION),
    "towards": (floor_towards, TOWARDS),
}
#: in which states a timer may run out
RUNNING = {
    "participant": {
        "T100": {"PENDING_RELEASE"}, "T101": {"PENDING_REQUEST"}, "T104": {"QUEUED"}, "T132": {"QUEUED_GRANTED"},
        "T103": {"HAS_NO_PERMISSION", "PENDING_REQUEST", "PENDING_RELEASE", "QUEUED", "QUEUED_GRANTED"},
        "LIMIT": {"HAS_PERMISSION"},
    },
    "arbitration": {
        "T1": {"TAKEN", "PENDING_REVOKE"}, "T2": {"TAKEN"}, "T3": {"PENDING_REVOKE"}, "T4": {"IDLE"}, "T7": {"IDLE"},
        "T20": {"TAKEN"}, "TAKEN_AGAIN": {"TAKEN"}, "WAITED": {"TAKEN", "PENDING_REVOKE"},
    },
    "towards": {"T8": {"PENDING_REVOKE", "SENDS_MEDIA"}},
}  # fmt: skip


def rows(table: str) -> dict[tuple[str, str], tuple[str, str]]:
    found = {}
    for line in table.strip().splitlines():
        state, event, following, action = line.split(None, 3)
        found[state, event] = following, action
    return found


@pytest.mark.parametrize("name", MACHINES)
def test_the_code_has_these_rows_and_no_others(name: str) -> None:
    module, literal = MACHINES[name]
    table: dict[Any, Any] = module.TABLE
    code = {
        (state.name, on.name): (following.name, action.__name__.lstrip("_").replace("_", " "))
        for (state, on), (following, action) in table.items()
    }
    assert code == rows(literal)


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_can_be_reached_and_left_and_every_event_matters_somewhere(name: str) -> None:
    module, literal = MACHINES[name]
    leads = {key: {following} | LEADS_ON[name].get(key, set()) for key, (following, _) in rows(literal).items()}
    states = {state for state, _ in leads} | set.union(*leads.values())
    assert set(LEADS_ON[name]) <= set(leads)
    reached = {"START_STOP"}
    while new := set().union(*(to for (state, _), to in leads.items() if state in reached)) - reached:
        reached |= new
    assert reached == states
    for state in states:
        assert any(to - {state} for (at, _), to in leads.items() if at == state), f"{state} is for ever"
    on: Any = module.On
    assert {event for _, event in leads} == {event.name for event in on}


@pytest.mark.parametrize("name", MACHINES)
def test_every_timer_is_answered_in_every_state_in_which_it_may_run(name: str) -> None:
    answered: dict[str, set[str]] = {}
    for state, event in rows(MACHINES[name][1]):
        if event in RUNNING[name]:
            answered.setdefault(event, set()).add(state)
    assert answered == RUNNING[name]
