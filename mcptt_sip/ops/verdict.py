# SPDX-License-Identifier: Apache-2.0
"""What a call of the demo shows, judged step by step from its capture, the phones' events and what they heard.

Nothing here knows what was *meant* to happen in the processes: a step is ``ok`` when the frames and events prove
it, and names the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcptt_sip.mcptt.contents import SipFragment, warning_of
from mcptt_sip.mcptt.keying import KeyingError, i_message
from mcptt_sip.ops.ladder import Ladder, Step
from mcptt_sip.ops.recording import samples_of
from mcptt_sip.ops.scenario import Event
from media.quality import score
from mikey import MikeyError, read

#: words of the proposal, one line a step
STEPS = {
    "1": "The initiating client calls ONE user; the TGMK, encrypted to that user, is attached",
    "2": "The server checks whether the client may initiate the group call",
    "3": "The server implicitly affiliates the client to the group",
    "4": "The server calls the user: temporary group indicator, and the encrypted TGMK untouched",
    "5": "The user's client verifies the invitation, decrypts and extracts the TGMK",
    "6": "The user accepts; the answer carries an acknowledgement",
    "7": "For each additional user an 'add group call user' request with the TGMK encrypted to that user",
    "8": "Steps 4-6 are repeated for each added user",
    "9": "The server answers the initiating client: the call is established",
    "10": "Media and floor control run; the media plane is protected using the TGMK",
}

MEMBER, CONTROL = 0.85, 0.3


@dataclass
class Verdict:
    """One step. ``ok`` is ``None`` when the call never got there."""

    step: str
    ok: bool | None = None
    t_ms: float | None = None
    frames: list[int] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step, "ok": self.ok, "t_ms": self.t_ms, "frames": sorted(set(self.frames)),
            "what": STEPS[self.step], "why": self.why,
        }


@dataclass
class Evidence:
    """All that is known of one call."""

    ladder: Ladder
    events: dict[str, list[Event]]
    facts: dict[str, Any]
    recordings: dict[str, Path]
    voices: dict[str, Path]

    def of(self, process: str, name: str, **details: Any) -> list[Event]:
        return [
            event
            for event in self.events.get(process, [])
            if event["event"] == name and all(event.get(k) == v for k, v in details.items())
        ]


def user_of(uri: str | None) -> str:
    """``bob`` of ``sip:bob@…``."""
    return (uri or "").partition(":")[2].partition("@")[0]


def has_key(step: Step) -> bool:
    """Whether a message carries an I_MESSAGE that reads as one."""
    if step.contents is None or step.contents.mikey is None:
        return False
    try:
        read(i_message(step.contents.mikey))
    except (MikeyError, KeyingError):
        return False
    return True


class Judge:
    """Turns evidence into ten verdicts."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.ladder = evidence.ladder
        self.verdicts = {name: Verdict(name) for name in STEPS}
        self.heard: dict[str, dict[str, Any]] = {}
        invites = self.ladder.requests("INVITE", source="alice", target="server")
        self.attempts = [i for i in invites if "Authorization" in i.message.headers]  # type: ignore[union-attr]
        self.start = self.attempts[0].at if self.attempts else 0.0

    def judge(self) -> list[Verdict]:
        self._step_1_and_2()
        established = self._established()
        if established is not None:
            self._step_3(established)
            self._steps_4_to_6(established)
            self._step_9(established)
        self._steps_7_and_8(established)
        self._step_10()
        return list(self.verdicts.values())

    def _set(self, step: str, problems: list[str], steps: Sequence[Step], at: float | None = None) -> None:
        verdict = self.verdicts[step]
        verdict.ok = not problems
        verdict.why = problems
        verdict.frames = [s.frame for s in steps]
        moment = at if at is not None else (steps[0].at if steps else None)
        verdict.t_ms = None if moment is None else round((moment - self.start) * 1000, 1)

    # --- 1, 2 -----------------------------------------------------------------------------------------

    def _step_1_and_2(self) -> None:
        if not self.attempts:
            self._set("1", ["alice sent no INVITE"], [])
            return
        problems = []
        for attempt in self.attempts:
            targets = attempt.contents.targets if attempt.contents else ()
            if len(targets) != 1:
                problems.append(f"frame {attempt.frame} names {len(targets)} users")
            if not has_key(attempt):
                problems.append(f"frame {attempt.frame} carries no I_MESSAGE")
        self._set("1", problems, self.attempts)
        problems, frames = [], []
        for attempt in self.attempts:
            refusals = [r for r in self.ladder.responses(attempt) if r.status == 403]
            frames += refusals + [r for r in self.ladder.responses(attempt) if r.status == 183][:1]
            for refusal in refusals:
                assert refusal.message is not None
                problems.append(f"the caller was refused: {warning_of(refusal.message)}")
        for other in ("erin",):
            tried = [
                i for i in self.ladder.requests("INVITE", source=other, target="server")
                if "Authorization" in i.message.headers  # type: ignore[union-attr]
            ]
            refused = [r for i in tried for r in self.ladder.responses(i, status=403)]
            if not refused or not all(
                (warning_of(r.message) or "").startswith("119 ") for r in refused if r.message is not None
            ):
                problems.append(f"{other}, who has not the right, was not refused with 403 and Warning 119")
            frames += refused
        self._set("2", problems, frames)

    # --- 3 to 6, 9 ------------------------------------------------------------------------------------

    def _established(self) -> Step | None:
        for attempt in self.attempts:
            if any(r.status == 200 for r in self.ladder.responses(attempt)):
                return attempt
        return self.attempts[-1] if self.attempts else None

    def _group(self, invite: Step) -> str | None:
        return invite.contents.info.request_uri if invite.contents is not None else None

    def _step_3(self, invite: Step) -> None:
        group = self._group(invite)
        done = self.evidence.of("server", "affiliated", group=group, user=self._uri("alice"))
        problem = [] if done else ["the server did not affiliate alice"]
        progress = self.ladder.responses(invite, status=183)[:1]
        if done or progress:
            self._set("3", problem, progress, done[0]["t"] if done else None)

    def _uri(self, name: str) -> str:
        for event in self.evidence.of(name, "registered"):
            return str(event["user"])
        return name

    def _leg(self, user: str) -> list[Step]:
        return self.ladder.requests("INVITE", source="server", target=user)

    def _steps_4_to_6(self, invite: Step) -> None:
        user = user_of((invite.contents.targets if invite.contents else ("",))[0])
        legs = self._leg(user)
        if not legs:
            return
        self._set("4", [p for leg in legs for p in self._leg_problems(leg, user)], legs)
        good = [leg for leg in legs if not self._leg_problems(leg, user)]
        if good:
            self._judge_key(good[-1], user, "5", "6")

    def _leg_problems(self, leg: Step, user: str) -> list[str]:
        """What is wrong with a member's INVITE, compared with what the initiator sent for him."""
        if leg.contents is None or not leg.contents.info.temporary_group:
            return [f"frame {leg.frame} has no temporary group indicator"]
        if leg.contents.mikey is None:
            return [f"frame {leg.frame} carries no key"]
        if leg.contents.mikey not in self._sent_for(user):
            return [f"frame {leg.frame} carries another I_MESSAGE than alice made for {user}"]
        return []

    def _sent_for(self, user: str) -> list[bytes]:
        found = []
        for step in (*self.attempts, *self._refers(user)):
            if step.contents is not None and step.contents.mikey is not None:
                if step.method == "REFER" or user in [user_of(t) for t in step.contents.targets]:
                    found.append(step.contents.mikey)
        return found

    def _refers(self, user: str | None = None, method: str = "INVITE") -> list[Step]:
        found = []
        for step in self.ladder.requests("REFER", source="alice", target="server"):
            assert step.message is not None
            refer_to = step.message.headers.get("Refer-To") or ""
            if "Authorization" not in step.message.headers or f"method={method}" not in refer_to:
                continue
            if user is None or user_of(refer_to.strip("<>")) == user:
                found.append(step)
        return found

    def _judge_key(self, leg: Step, user: str, step_5: str | None, step_6: str | None) -> list[str]:
        """Steps 5 and 6 for one user; returns the problems."""
        opened = self.evidence.of(user, "invited", user=self._uri("alice"), call_id=leg.call_id)
        problems_5 = [] if opened else [f"{user} did not verify and open the key of frame {leg.frame}"]
        accepted = list(self.ladder.responses(leg, status=200))
        with_proof = [r for r in accepted if r.contents is not None and r.contents.acknowledgements]
        keyed = self.evidence.of("alice", "keyed", user=self._uri(user))
        problems_6 = []
        if not accepted:
            problems_6.append(f"{user} did not accept")
        elif not with_proof:
            problems_6.append(f"{user}'s answer carries no acknowledgement")
        if not keyed:
            problems_6.append(f"alice did not verify {user}'s acknowledgement")
        if step_5 is not None:
            self._set(step_5, problems_5, [leg], opened[0]["t"] if opened else None)
        if step_6 is not None and not problems_5:
            self._set(step_6, problems_6, with_proof or accepted)
        return problems_5 + problems_6

    def _step_9(self, invite: Step) -> None:
        answers = self.ladder.responses(invite, status=200)
        if not answers:
            return
        problems = []
        user = user_of((invite.contents.targets if invite.contents else ("",))[0])
        accepts = [r for leg in self._leg(user) for r in self.ladder.responses(leg, status=200)]
        if not accepts or accepts[0].at > answers[0].at:
            problems.append("the initiator was answered before anyone accepted")
        group = answers[0].contents.info.calling_group_id if answers[0].contents else None
        if group != self._group(invite):
            problems.append("the answer names another group")
        if not self.evidence.of("alice", "established"):
            problems.append("alice's client did not count a verified acknowledgement")
        self._set("9", problems, answers)

    # --- 7, 8 -----------------------------------------------------------------------------------------

    def _steps_7_and_8(self, invite: Step | None) -> None:
        refers = self._refers()
        if not refers or invite is None:
            return
        problems = []
        for refer in refers:
            assert refer.message is not None
            if not has_key(refer):
                problems.append(f"frame {refer.frame} carries no I_MESSAGE")
            if len(refer.message.headers.get_all("Refer-To")) != 1:
                problems.append(f"frame {refer.frame} names more than one user")
        self._set("7", problems, refers)
        problems, frames = [], []
        referred = [(r.message.headers.get("Refer-To") or "").strip("<>") for r in refers if r.message is not None]
        users = list(dict.fromkeys(map(user_of, referred)))
        for user in users:
            legs = self._leg(user)
            if not legs:
                problems.append(f"the server did not call {user}")
            for leg in legs:
                wrong = self._leg_problems(leg, user)
                if not wrong:
                    wrong = self._judge_key(leg, user, None, None)
                problems += wrong
                frames.append(leg)
                frames += self.ladder.responses(leg, status=200)
        for notify in self.ladder.requests("NOTIFY", source="server", target="alice"):
            body = notify.message.body if notify.message is not None else b""
            if body.startswith(b"SIP") and SipFragment.decode(body).acknowledgement is not None:
                frames.append(notify)
        self._set("8", problems, frames)

    # --- 10 -------------------------------------------------------------------------------------------

    def _step_10(self) -> None:
        bursts = [
            (name, burst) for name in self.evidence.voices for burst in self.evidence.of(name, "burst-sent")
        ]
        if not bursts:
            return
        problems: list[str] = []
        for talker, burst in bursts:
            problems += self._judge_burst(talker, burst)
        problems += self._judge_removed()
        floor = [s for s in self.ladder.steps if s.protocol == "floor"]
        if not floor:
            problems.append("no floor control message was seen")
        self._set("10", problems, floor, bursts[0][1]["t"])

    def _members_at(self, start: float, end: float) -> list[str]:
        """Phones that were in the call during all of a time."""
        found = []
        for name in self.evidence.voices:
            joined = [e["t"] for e in self.evidence.of(name, "joined") + self.evidence.of(name, "established")]
            left = [e["t"] for e in self.evidence.of(name, "ended")]
            if name == user_of(self.evidence.facts.get("removed", "")):
                left.append(self.evidence.facts.get("removing_at", end))
            if any(j <= start for j in joined) and not any(start <= at <= end for at in left):
                if not left or max(left) > end:
                    found.append(name)
        return found

    def _judge_burst(self, talker: str, burst: Event) -> list[str]:
        reference, rate = samples_of(self.evidence.voices[talker])
        control, _ = samples_of(self.evidence.voices["erin" if talker != "erin" else "bob"])
        problems = []
        start, end = burst["start"], burst["start"] + burst["duration"]
        for listener in self._members_at(start, end):
            if listener == talker:
                continue
            heard = [
                e for e in self.evidence.of(listener, "burst-heard", user=self._uri(talker))
                if start - 1 <= e["start"] <= end + 1
            ]
            entry: dict[str, Any] = {"talker": talker, "start_ms": round((start - self.start) * 1000, 1)}
            self.heard.setdefault(listener, {"heard": []})["heard"].append(entry)
            if len(heard) != 1 or not self.evidence.recordings[listener].exists():
                entry |= {"score": 0.0, "samples": 0, "expected": len(reference)}
                problems.append(f"{listener} heard {len(heard)} bursts of {talker}, not one")
                continue
            track, track_rate = samples_of(self.evidence.recordings[listener])
            first = heard[0]["offset"]  # in samples of the recording
            part = track[first : first + heard[0]["samples"]]
            assert track_rate == rate
            entry |= {
                "score": round(score(reference, part, rate), 3),
                "control": round(score(control, part, rate), 3),
                "silence": round(score(reference, np.zeros(len(part)), rate), 3),
                "samples": len(part), "expected": len(reference),
            }
            if entry["score"] < MEMBER:
                problems.append(f"{listener} did not hear {talker}: score {entry['score']}")
            if max(entry["control"], entry["silence"]) >= CONTROL:
                problems.append(f"the control of {listener} scores {entry['control']}")
            if abs(len(part) - len(reference)) > 0.05 * len(reference):
                problems.append(f"{listener} heard {len(part)} samples of {talker}, not {len(reference)}")
        return problems

    def _judge_removed(self) -> list[str]:
        tap = self.evidence.facts.get("tap")
        if tap is None:
            return ["the tap of the removed phone was not read"]
        self.heard.setdefault("bob", {"heard": []})["tap_after_removal"] = tap
        problems = []
        if tap["after_removal"] <= 200:
            problems.append(f"the removed phone's tap got only {tap['after_removal']} packets")
        if tap["authenticated_after_removal"]:
            problems.append(f"the removed phone could read {tap['authenticated_after_removal']} packets")
        return problems
