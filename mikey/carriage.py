# SPDX-License-Identifier: Apache-2.0
"""Find MIKEY messages in what carries them: SDP, SIP bodies, base64, captures, or the octets themselves.

A scan by form, without a SIP or SDP parser: key-mgmt attributes (RFC 4567 §3.1), the text form anywhere else,
and whole I_MESSAGEs in binary.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mikey.errors import MikeyError, ParseError, TrailingOctets
from mikey.packets import is_capture, payloads_of
from mikey.payloads import SAKKE, SAKKE_INIT, VERSION, decode_chain
from mikey.policy import OFFLINE
from mikey.text_form import decode_text

_KEY_MGMT = re.compile(rb"a=key-mgmt:[ \t]*(mikey [^\r\n]*)")
_TEXT = re.compile(rb"(?<![A-Za-z0-9+/])(?:mikey )?(ARo[A-Za-z0-9+/]{57,}(?:\r?\n[A-Za-z0-9+/]+)*={0,2})")
_BARE = re.compile(r"[A-Za-z0-9+/\s]+[=\s]*")
_START = bytes((VERSION, SAKKE_INIT))


@dataclass(frozen=True, slots=True)
class Found:
    """A message and where it was found."""

    place: str
    octets: bytes
    error: MikeyError | None = None
    """Why there are no octets: the text form is broken."""


def find(octets: bytes, place: str) -> list[Found]:
    """All messages in a file, an argument or standard input. Raises `ParseError` when there is none."""
    if is_capture(octets):
        found = [
            message
            for carried in payloads_of(octets)
            for message in scan(carried.octets, f"packet {carried.packet}, {carried.route}")
        ]
    elif octets[:1] == bytes((VERSION,)):
        return [Found(place, octets)]
    else:
        text = octets.decode("latin-1").strip()
        if text.startswith("mikey ") and "\n" not in text.rstrip():
            return [_of_text(text, place)]
        if text and _BARE.fullmatch(text) and (bare := _of_text("mikey " + "".join(text.split()), place)).error is None:
            return [bare]
        found = scan(octets, place)
    if not found:
        raise ParseError(f"no MIKEY message in {place}")
    return found


def _of_text(text: str, place: str) -> Found:
    try:
        return Found(place, decode_text(text, OFFLINE))
    except MikeyError as error:
        return Found(place, b"", error)


def scan(octets: bytes, place: str) -> list[Found]:
    """Messages anywhere in octets, in order of their place, each once."""
    found: dict[int, Found] = {}
    for match in _KEY_MGMT.finditer(octets):
        found[match.start(1)] = _of_text(match[1].decode("latin-1").rstrip(), f"{place}, key-mgmt attribute")
    taken = [m.span(1) for m in _KEY_MGMT.finditer(octets)]
    for match in _TEXT.finditer(octets):
        if any(start <= match.start() < end for start, end in taken):
            continue
        text = b"".join(match[1].split())
        try:
            message = base64.b64decode(text + b"=" * (-len(text) % 4))
        except binascii.Error:
            continue
        found[match.start(1)] = Found(f"{place}, base64 at {match.start(1)}", message)
    for start, message in _binary(octets):
        found[start] = Found(f"{place}, octets at {start}", message)
    return [found[start] for start in sorted(found)]


def _binary(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = octets.find(_START)
    while at >= 0:
        message = _whole(octets[at : at + OFFLINE.max_octets])
        if message:
            yield at, message
        at = octets.find(_START, at + max(len(message), 1))


def _whole(octets: bytes) -> bytes:
    """The chain with a SAKKE payload that octets begin with, else nothing."""
    try:
        _, payloads, _ = decode_chain(octets)
    except TrailingOctets as error:
        return _whole(octets[: error.offset])
    except MikeyError:
        return b""
    return octets if any(payload.code == SAKKE for payload in payloads) else b""
