# SPDX-License-Identifier: Apache-2.0
"""The report's figures of a talk burst are those that the phones measured, each at its burst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcptt_sip.ops.burstquality import burst_quality, in_one_line
from mcptt_sip.ops.ladder import Ladder
from mcptt_sip.ops.report import write_report
from mcptt_sip.ops.scenario import Event

USERS = {name: f"sip:{name}@x" for name in ("alice", "bob", "carol")}
START = 1000.0


def granted(at: float, access: float) -> Event:
    return {"event": "floor-granted", "t": at, "access": access}


def sent(start: float, duration: float) -> Event:
    return {"event": "burst-sent", "t": start + duration, "start": start, "duration": duration}


def heard(talker: str, start: float, frames: int, **figures: Any) -> Event:
    measured = {"mouth_to_ear": 0.08, "rating": 91.0, "opinion": 4.36, "jitter": 0.002}
    counted = dict.fromkeys(("lost", "late", "concealed", "silent"), 0)
    details = {"user": USERS[talker], "start": start, "samples": frames * 320}
    return {"event": "burst-heard", "t": start + frames * 0.02, **details, **measured, **counted, **figures}


def events() -> dict[str, list[Event]]:
    return {
        "alice": [
            granted(1001.0, 0.005), sent(1001.1, 2.0), heard("bob", 1004.1, 51),
            granted(1006.0, 0.25), sent(1006.1, 1.0),
        ],
        "bob": [
            {"event": "floor-queued", "t": 1002.0}, heard("alice", 1001.2, 101, lost=3, late=1, concealed=2, silent=1),
            granted(1004.0, 2.0), sent(1004.0, 1.0), heard("alice", 1006.2, 51, mouth_to_ear=0.31, rating=55.5),
        ],
        "carol": [heard("alice", 1002.5, 40), heard("bob", 1004.1, 49), heard("alice", 1006.2, 51, jitter=0.0075)],
    }  # fmt: skip


def test_each_figure_stands_at_its_burst_and_its_member() -> None:
    first, second, third = burst_quality(events(), list(USERS), USERS, START)
    assert [(b.talker, b.start_ms, b.frames, b.access_ms, b.queued) for b in (first, second, third)] == [
        ("alice", 1100.0, 100, 5.0, False), ("bob", 4000.0, 50, 2000.0, True), ("alice", 6100.0, 50, 250.0, False),
    ]  # fmt: skip
    assert [(h.member, h.whole) for h in first.heard] == [("bob", True), ("carol", False)], "carol came in between"
    bob = first.heard[0]
    assert (bob.frames, bob.lost, bob.late, bob.concealed, bob.silent) == (101, 3, 1, 2, 1)
    assert [(h.member, h.whole) for h in second.heard] == [("alice", True), ("carol", True)], "all but its last frame"
    assert [(h.mouth_to_ear_ms, h.jitter_ms, h.rating) for h in third.heard] == [(310.0, 2.0, 55.5), (80.0, 7.5, 91.0)]
    assert in_one_line([first, second, third]) == (
        "3 talk bursts heard 6 times, access within 250 ms, mouth to ear within 310 ms, "
        "of 343 frames 3 lost, 2 concealed, 1 silent, jitter within 7.5 ms, R at least 56"
    )


def test_a_burst_that_nobody_heard_is_shown_and_what_was_not_measured_is_not_made_up() -> None:
    told = {"alice": [sent(1001.1, 2.0)], "bob": [heard("alice", 1001.2, 101)], "carol": [heard("bob", 1001.0, 9)]}
    for figure in ("mouth_to_ear", "rating", "opinion"):
        del told["bob"][0][figure]
    (burst,) = burst_quality(told, list(USERS), USERS, START)
    assert burst.access_ms is None and [h.member for h in burst.heard] == ["bob"], "bob sent nothing for carol to hear"
    assert burst.heard[0].mouth_to_ear_ms is burst.heard[0].rating is burst.heard[0].opinion is None
    (unheard,) = burst_quality({"alice": [sent(1001.1, 2.0)]}, list(USERS), USERS, START)
    assert unheard.heard == [] and in_one_line([unheard]).startswith("1 talk bursts heard 0 times, of 0 frames")


def test_the_page_has_a_row_for_each_member_under_each_burst(tmp_path: Path) -> None:
    bursts = burst_quality(events(), list(USERS), USERS, START)
    write_report(
        tmp_path / "report.html", title="t", passed=True, verdicts=[], phones={}, recordings={}, ladder=Ladder(),
        start=START, bursts=bursts,
    )  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    table = page[page.index('<table class="quality">') : page.index("</table>", page.index('<table class="quality">'))]
    rows = table.split("<tr")[2:]
    assert len(rows) == 3 + 6
    assert "access 2000.0 ms, waiting in the queue included" in rows[3]
    assert "carol · 40 of 100 frames" in rows[2] and 'class=part' in rows[2]
    assert all(f">{figure}</td>" in rows[7] for figure in ("1.02", "310", "2.0", "55.5", "4.36"))
    assert 'num bad">55.5' in rows[7], "a rating that dissatisfies many stands out"
