# SPDX-License-Identifier: Apache-2.0
"""The ten steps between real processes, and each deliberate fault at the step that it concerns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.demonstration import Demo, run_demo

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("demo")]

PHONES = {"alice", "bob", "carol", "dave", "erin"}


def test_all_ten_steps_are_proved_by_the_capture(demo: Demo) -> None:
    assert demo.code == 0, demo.result
    assert [step["step"] for step in demo.result["steps"]] == [str(number) for number in range(1, 11)]
    for step in demo.result["steps"]:
        assert step["ok"] is True, step
        assert step["frames"] and all(frame > 0 for frame in step["frames"]), step


def test_every_member_heard_every_talker_and_nothing_like_unrelated_speech(demo: Demo) -> None:
    assert set(demo.result["phones"]) == PHONES
    heard = [(name, h) for name, phone in demo.result["phones"].items() for h in phone["heard"]]
    assert len(heard) >= 15
    for name, h in heard:
        assert h["score"] >= 0.85, (name, h)
        assert h["control"] < 0.3 and h["silence"] < 0.3, (name, h)
        assert abs(h["samples"] - h["expected"]) <= 0.05 * h["expected"], (name, h)


def test_the_removed_phone_reads_none_of_what_its_tap_still_gets(demo: Demo) -> None:
    tap = demo.result["phones"]["bob"]["tap_after_removal"]
    assert tap["after_removal"] > 200
    assert tap["authenticated"] > 100, "while he was a member the tap could read: it is able to"
    assert tap["authenticated_after_removal"] == 0


def test_how_well_each_burst_was_heard_is_what_the_phones_measured(demo: Demo) -> None:
    bursts = demo.result["bursts"]
    assert [burst["talker"] for burst in bursts] == ["alice", "bob", "carol", "dave", "erin", "alice"]
    assert [burst["queued"] for burst in bursts] == [False, True, False, False, False, False]
    told = {
        name: [json.loads(line) for line in (demo.out / f"{name}.events.jsonl").read_text().splitlines()]
        for name in PHONES
    }
    for burst in bursts:
        granted = [e["access"] for e in told[burst["talker"]] if e["event"] == "floor-granted"]
        assert burst["access_ms"] in [round(access * 1000, 1) for access in granted]
        assert burst["access_ms"] > 0 and (burst["access_ms"] > 1000) == burst["queued"], "bob waited for alice's end"
    shown = [(hearing["member"], burst["talker"], hearing) for burst in bursts for hearing in burst["heard"]]
    for name in PHONES:
        measured = [e for e in told[name] if e["event"] == "burst-heard"]
        mine = [(talker, hearing) for member, talker, hearing in shown if member == name]
        assert [f"sip:{talker}@mcx.example" for talker, _ in mine] == [e["user"] for e in measured]
        for (_, hearing), event in zip(mine, measured, strict=True):
            assert hearing["mouth_to_ear_ms"] == round(event["mouth_to_ear"] * 1000, 1) > 0
            for figure in ("lost", "late", "concealed", "silent", "rating", "opinion"):
                assert hearing[figure] == event[figure]
            assert 0 <= hearing["rating"] <= 93.2 and 1 <= hearing["opinion"] <= 4.5
    assert len({hearing["mouth_to_ear_ms"] for _, _, hearing in shown}) > 3
    page = (demo.out / "report.html").read_text()
    assert page.count('<tr class="burst">') == len(bursts)


def test_the_report_is_one_page_that_needs_nothing_else(demo: Demo) -> None:
    page = (demo.out / "report.html").read_text()
    for number in range(1, 11):
        assert f">{number}<" in page or f"tep {number}" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


@pytest.mark.parametrize(
    ("fault", "step"),
    [("swap", "8"), ("strip", "4"), ("unauthorised", "2"), ("norekey", "10"), ("wrongkey", "10")],
)
def test_a_fault_shows_at_the_step_concerned_and_nowhere_else(fault: str, step: str, tmp_path: Path) -> None:
    broken = run_demo(tmp_path, "--break", fault)
    assert broken.code == 1
    assert [s["step"] for s in broken.result["steps"] if not s["ok"]] == [step], broken.result
