# SPDX-License-Identifier: Apache-2.0
"""``report.html``: one self-contained page of a call — steps and verdicts, the ladder, the recordings.

No script from elsewhere, no key: I_MESSAGEs are shown field by field as anyone on the path can read them.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcptt_sip.mcptt.keying import KeyingError, i_message
from mcptt_sip.message import Request, Response
from mcptt_sip.ops.burstquality import BurstQuality, Hearing, in_one_line
from mcptt_sip.ops.ladder import Ladder, Step
from media.codec import FRAME_SECONDS
from media.errors import MediaError
from media.floor_messages import decode_all
from mikey import MikeyError, read

_STYLE = """
:root { --ink:#1c2330; --dim:#667; --line:#d5dae3; --ok:#14804a; --bad:#c0262d; --wait:#8a6d00; --card:#fff;
        --ground:#f4f6fa; --req:#1d4ed8; --res:#0f766e; --floor:#9a3412; }
@media (prefers-color-scheme: dark) { :root { --ink:#e7ebf3; --dim:#9aa4b5; --line:#333c4d; --card:#1a2130;
        --ground:#10151f; --ok:#4ade80; --bad:#f87171; --wait:#facc15; --req:#7aa2ff; --res:#5eead4; --floor:#fdba74; } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
       max-width: 1180px; padding: 24px }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 32px 0 10px }
.sub { color: var(--dim); margin: 0 0 18px }
table { border-collapse: collapse; width: 100%; background: var(--card) }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--dim); font-size: 13px }
.ok { color: var(--ok); font-weight: 600 } .bad { color: var(--bad); font-weight: 600 } .wait { color: var(--wait) }
.num { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap }
.phone { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 0 0 12px }
.phone h3 { margin: 0 0 6px; font-size: 16px } audio { width: 100%; margin: 6px 0 2px }
svg.wave { width: 100%; height: 64px; display: block; background: var(--ground); border-radius: 4px }
.marks { font-size: 13px; color: var(--dim) }
button { font: inherit; font-size: 13px; border: 1px solid var(--line); border-radius: 5px; padding: 2px 9px;
         background: var(--ground); color: var(--ink); cursor: pointer; margin: 2px 4px 2px 0 }
details > summary { cursor: pointer; list-style: none }
pre { white-space: pre-wrap; word-break: break-all; font-size: 12.5px; margin: 6px 0; color: var(--ink) }
.ladder { background: var(--card); overflow-x: auto; border: 1px solid var(--line); border-radius: 8px }
.row { display: grid; grid-template-columns: 84px 1fr; border-bottom: 1px solid var(--line) }
.row .t { padding: 4px 8px; font-size: 12px; color: var(--dim); text-align: right; font-variant-numeric: tabular-nums }
.lanes { position: relative; min-width: 860px; height: 30px }
.lane { position: absolute; top: 0; bottom: 0; border-left: 1px dashed var(--line) }
.arrow { position: absolute; top: 20px; height: 0; border-top: 2px solid currentColor }
.arrow::after { content: ""; position: absolute; top: -5px; border: 4px solid transparent }
.arrow.right::after { right: -1px; border-left-color: currentColor; border-right-width: 0 }
.arrow.left::after { left: -1px; border-right-color: currentColor; border-left-width: 0 }
.label { position: absolute; top: 1px; font-size: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.request { color: var(--req) } .response { color: var(--res) } .floor { color: var(--floor) }
.head .lanes { height: 26px; font-weight: 600 } .head .label { top: 3px; transform: translateX(-50%) }
.filter { margin: 0 0 8px }
.quality th { text-align: right; white-space: nowrap } .quality th:first-child { text-align: left }
.quality td.num:last-child, .quality th:last-child { padding-right: 16px }
.quality .burst td { font-weight: 600; background: var(--ground); border-top: 2px solid var(--line) }
.quality .burst span { font-weight: 400; color: var(--dim); margin-left: 12px }
.quality tr:not(.burst) td:first-child { padding-left: 26px }
.quality .part td { color: var(--dim) } .scroll { overflow-x: auto }
"""

_SCRIPT = """
document.querySelectorAll('button[data-play]').forEach(b => b.onclick = () => {
  const a = document.getElementById(b.dataset.play);
  document.querySelectorAll('audio').forEach(o => o.pause());
  a.currentTime = +b.dataset.at; a.play();
});
document.querySelectorAll('input[data-kind]').forEach(c => c.onchange = () =>
  document.querySelectorAll('.entry.' + c.dataset.kind).forEach(e => e.hidden = !c.checked));
"""


def _text(value: object) -> str:
    return html.escape(str(value))


def _mark(ok: bool | None) -> str:
    if ok is None:
        return '<span class="wait">not reached</span>'
    return '<span class="ok">ok</span>' if ok else '<span class="bad">failed</span>'


def _steps_table(verdicts: Sequence[dict[str, Any]]) -> str:
    rows = []
    for v in verdicts:
        why = "".join(f'<div class="bad">{_text(w)}</div>' for w in v["why"])
        frames = ", ".join(f'<a href="#f{f}">{f}</a>' for f in v["frames"][:12])
        frames += " …" if len(v["frames"]) > 12 else ""
        at = "" if v["t_ms"] is None else f"{v['t_ms']:.1f}"
        rows.append(
            f'<tr><td class="num">{v["step"]}</td><td>{_text(v["what"])}{why}</td><td>{_mark(v["ok"])}</td>'
            f'<td class="num">{at}</td><td>{frames}</td></tr>'
        )
    head = "<tr><th>step</th><th>in the words of the proposal</th><th>verdict</th><th>ms</th><th>frames</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _waveform(levels: Sequence[float], marks: Sequence[tuple[float, str]]) -> str:
    """The loudness of a recording as a picture; ``marks`` are (share of its length, colour)."""
    if not levels:
        return ""
    step = 1000 / len(levels)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{32 - 30 * h:.1f}" width="{max(step - 0.3, 0.5):.1f}" height="{60 * h + 1:.1f}"/>'
        for i, h in enumerate(levels)
    )
    lines = "".join(
        f'<line x1="{1000 * at:.1f}" x2="{1000 * at:.1f}" y1="0" y2="64" stroke="{colour}" stroke-width="2"/>'
        for at, colour in marks
    )
    return (
        '<svg class="wave" viewBox="0 0 1000 64" preserveAspectRatio="none" role="img">'
        f'<g fill="currentColor" opacity="0.55">{bars}</g>{lines}</svg>'
    )


def _phone(name: str, phone: dict[str, Any], recording: Path | None) -> str:
    parts = [f'<div class="phone"><h3>{_text(name)}</h3>']
    buttons = []
    for heard in phone.get("heard", []):
        score = heard.get("score")
        mark = "" if score is None else f" · score {score:.2f}"
        buttons.append(
            f'<button data-play="a-{_text(name)}" data-at="{max(0.0, heard.get("offset") or 0.0):.2f}">'
            f"▶ {_text(heard['talker'])}{mark}</button>"
        )
    if recording is not None and recording.exists():
        data = base64.b64encode(recording.read_bytes()).decode()
        marks = []
        if phone.get("removed_share") is not None:
            marks.append((phone["removed_share"], "#c0262d"))
        parts.append(_waveform(phone.get("levels", []), marks))
        parts.append(f'<audio id="a-{_text(name)}" controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>')
    parts.append("".join(buttons))
    tap = phone.get("tap_after_removal")
    if tap is not None:
        parts.append(
            f'<p class="marks">Removed (red line). The tap mirrored <b>{tap["after_removal"]}</b> packets to this '
            f"phone afterwards; tried with each of the {tap['keys']} keys it ever held, "
            f"<b>{tap['authenticated_after_removal']}</b> could be read.</p>"
        )
    parts.append("</div>")
    return "".join(parts)


def _figure(value: float | None, digits: int = 0, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _hearing(hearing: Hearing, said: int) -> str:
    """One row; a rating under 70 is what G.107 calls dissatisfying to many."""
    worse = hearing.lost, hearing.late, hearing.concealed, hearing.silent
    counts = "".join(f'<td class="num{" wait" if count else ""}">{count}</td>' for count in worse)
    low = hearing.rating is not None and hearing.rating < 70
    part = "" if hearing.whole else f" · {hearing.frames} of {said} frames"
    return (
        f'<tr{"" if hearing.whole else " class=part"}><td>{_text(hearing.member)}{part}</td>'
        f'<td class="num">{_figure(hearing.frames * FRAME_SECONDS, 2)}</td>'
        f'<td class="num">{_figure(hearing.mouth_to_ear_ms)}</td>{counts}'
        f'<td class="num">{_figure(hearing.jitter_ms, 1)}</td>'
        f'<td class="num{" bad" if low else ""}">{_figure(hearing.rating, 1)}</td>'
        f'<td class="num">{_figure(hearing.opinion, 2)}</td></tr>'
    )


def _quality(bursts: Sequence[BurstQuality]) -> str:
    """The talk bursts in the order of time, under each the members who heard it."""
    columns = (
        "heard by", "seconds", "mouth to ear, ms", "lost", "of them late", "concealed", "silent", "jitter, ms", "R", "MOS",
    )  # fmt: skip
    rows = [f"<tr>{''.join(f'<th>{column}</th>' for column in columns)}</tr>"]
    for burst in bursts:
        waited = ", waiting in the queue included" if burst.queued else ""
        rows.append(
            f'<tr class="burst"><td colspan="{len(columns)}">{_text(burst.talker)}'
            f"<span>from {burst.start_ms / 1000:.1f} s on, {burst.frames * FRAME_SECONDS:.2f} s · "
            f"access {_figure(burst.access_ms, 1, ' ms')}{waited}</span></td></tr>"
        )
        rows += [_hearing(hearing, burst.frames) for hearing in burst.heard]
    return (
        f'<p class="sub">{_text(in_one_line(bursts))}</p>'
        f'<div class="scroll"><table class="quality">{"".join(rows)}</table></div>'
        '<p class="marks">Measured by the phones. Access: from the button to Floor Granted. Mouth to ear: from a '
        "sample’s recording to its playing on this machine’s one clock, the jitter buffer and the codec included; "
        "microphone, loudspeaker and radio are not in it. Of the frames (20 ms each) that were not there at their time, some "
        "were concealed, and at some nothing was heard. R (0 to 93.2) and MOS (1 to 4.5): what the E-model, ITU-T G.107, "
        "expects of such a delay and such losses. Pale: not there for the whole burst.</p>"
    )


def _summary(step: Step) -> tuple[str, str]:
    """(kind, one line) of a ladder entry."""
    if isinstance(step.message, Request):
        line = step.message.method
        if step.contents is not None and step.contents.mikey is not None:
            line += " + I_MESSAGE"
        if step.contents is not None and step.contents.acknowledgements:
            line += " + key acknowledgement"
        return "request", line
    if isinstance(step.message, Response):
        line = f"{step.message.status} {step.message.reason} ({step.method})"
        if step.contents is not None and step.contents.acknowledgements:
            line += " + key acknowledgement"
        return "response", line
    try:
        return "floor", " + ".join(type(m).__name__ for m in decode_all(step.octets))
    except MediaError as error:
        return "floor", f"not decoded: {error}"


def _detail(step: Step) -> str:
    if step.message is None:
        try:
            return "\n".join(repr(message) for message in decode_all(step.octets))
        except MediaError as error:
            return str(error)
    text = step.octets.decode("utf-8", "replace")
    head, blank, body = text.partition("\r\n\r\n")
    lines = [_masked(line) for line in head.split("\r\n")]
    shown = "\n".join(lines)
    if step.contents is not None:
        if step.contents.sdp:
            shown += "\n\n" + step.contents.sdp.decode("utf-8", "replace")
        fields = {
            k: v for k, v in _fields(step.contents.info).items() if v not in (None, False)
        }
        if fields:
            shown += "\nmcptt-info " + json.dumps(fields, ensure_ascii=False)
        if step.contents.targets:
            shown += "\nresource-lists " + ", ".join(step.contents.targets)
        if step.contents.mikey is not None:
            shown += "\n\n" + _i_message(step.contents.mikey)
        for octets in step.contents.acknowledgements:
            shown += f"\nkey acknowledgement, {len(octets)} octets"
    elif blank and body.startswith("SIP/2.0"):
        shown += "\n\n" + body.split("\r\n\r\n")[0]
    return shown


def _fields(info: Any) -> dict[str, Any]:
    return {name: getattr(info, name) for name in info.__slots__}


def _masked(line: str) -> str:
    name, _, _ = line.partition(":")
    if name.strip().lower() in ("authorization", "proxy-authorization"):
        return f"{name}: (digest credentials)"
    return line


def _i_message(octets: bytes) -> str:
    """An I_MESSAGE as anyone without keys reads it: payload by payload."""
    try:
        message = read(i_message(octets))
    except (MikeyError, KeyingError) as error:
        return f"I_MESSAGE not readable: {error}"
    lines = [f"I_MESSAGE, {len(octets)} octets, CSB-ID {message.csb_id:08x}"]
    lines += [f"  {payload!r}" for payload in message.payloads]
    return "\n".join(lines)


def _ladder(ladder: Ladder, lanes: Sequence[str], start: float) -> str:
    place = {name: (i + 0.5) / len(lanes) * 100 for i, name in enumerate(lanes)}
    lines = "".join(f'<div class="lane" style="left:{x:.2f}%"></div>' for x in place.values())
    head = "".join(f'<span class="label" style="left:{x:.2f}%">{_text(n)}</span>' for n, x in place.items())
    rows = [f'<div class="row head"><div class="t">ms</div><div class="lanes">{head}</div></div>']
    for step in ladder.steps:
        source, target = ladder.name(step.source), ladder.name(step.target)
        if source not in place or target not in place:
            continue
        kind, line = _summary(step)
        a, b = place[source], place[target]
        left, width = min(a, b), abs(a - b)
        way = "right" if b > a else "left"
        rows.append(
            f'<details class="entry {kind}" id="f{step.frame}"><summary class="row">'
            f'<div class="t">{(step.at - start) * 1000:.1f}</div><div class="lanes">{lines}'
            f'<span class="label {kind}" style="left:{left:.2f}%;width:{width:.2f}%;padding-left:8px">{_text(line)}</span>'
            f'<div class="arrow {way} {kind}" style="left:{left:.2f}%;width:{width:.2f}%"></div></div></summary>'
            f'<pre style="padding:6px 12px">frame {step.frame}, {_text(source)} → {_text(target)}\n'
            f"{_text(_detail(step))}</pre></details>"
        )
    return f'<div class="ladder">{"".join(rows)}</div>'


def write_report(
    path: Path,
    *,
    title: str,
    passed: bool,
    verdicts: Sequence[dict[str, Any]],
    phones: dict[str, dict[str, Any]],
    recordings: dict[str, Path],
    ladder: Ladder,
    start: float,
    facts: Sequence[tuple[str, str]] = (),
    bursts: Sequence[BurstQuality] = (),
) -> None:
    """Writes the page."""
    lanes = ["alice", "server", *(name for name in phones if name != "alice")]
    known = "".join(f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in facts)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title><style>{_STYLE}</style></head><body>
<h1>{_text(title)}</h1>
<p class="sub">{'<span class="ok">all ten steps proved</span>' if passed else '<span class="bad">not all steps proved</span>'}
 · every verdict is computed from call.pcapng, the phones' events and what the phones recorded</p>
<h2>The ten steps</h2>{_steps_table(verdicts)}
<h2>What each phone heard</h2>
<p class="sub">One click plays a talk burst. The score compares it with what was said (1 is identical).</p>
{''.join(_phone(name, phone, recordings.get(name)) for name, phone in phones.items())}
{f'<h2>How well each burst was heard</h2>{_quality(bursts)}' if bursts else ''}
<h2>All SIP and floor control messages</h2>
<p class="filter">Show <label><input type="checkbox" data-kind="request" checked> requests</label>
<label><input type="checkbox" data-kind="response" checked> responses</label>
<label><input type="checkbox" data-kind="floor" checked> floor control</label> · click a message to read it</p>
{_ladder(ladder, lanes, start)}
{f'<h2>Numbers</h2><table>{known}</table>' if known else ''}
<script>{_SCRIPT}</script></body></html>
"""
    path.write_text(page, encoding="utf-8")
