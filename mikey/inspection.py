# SPDX-License-Identifier: Apache-2.0
"""Look into MIKEY messages: an annotated table, what is unusual, and with keys whether and why (not) they open.

Key material is never printed: a key is shown as the first eight hex digits of its SHA-256. The one exception is a
corpus of test cases, whose keys are thrown away and whose verdicts are compared by a program.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mikey import corpus, key_files, key_parameters
from mikey.annotation import Annotation, annotate, moment
from mikey.carriage import Found, find
from mikey.errors import MikeyError, ParseError
from mikey.imessage import OpenedKey, read, unseal
from mikey.keys import Secret, TransportKey
from mikey.payloads import GE_KEY_PARAMETERS, IMessage
from mikey.policy import OFFLINE, STRICT, Policy

EXIT_OK, EXIT_REFUSED, EXIT_USAGE, EXIT_ENVIRONMENT = 0, 1, 2, 3

EXPLANATIONS = {
    "parse": "The octets are no well-formed MIKEY message, so nothing in it can be trusted.",
    "text": "The text is not 'mikey', one space and base64, so there are no octets to look at.",
    "too-large": "The message is larger than any I_MESSAGE needs to be and is refused before it is read.",
    "unsupported": "The message uses something that TS 33.180 receivers do not speak.",
    "missing-payload": "A payload is absent without which a message is neither fresh, sealed nor signed.",
    "duplicate-payload": "A payload that may stand once stands twice, so two receivers could read two meanings.",
    "stale-timestamp": "The time in the message is too far from the clock: it is old, replayed, or a clock is wrong.",
    "replayed": "The same signed octets were accepted before.",
    "replay-state-lost": "It cannot be known whether this message was accepted before the replay cache was lost.",
    "superseded": "A newer message of the same signer for the same group was accepted: this one was held back.",
    "unknown-kms": "The message names a KMS whose certificate is not among the keys given.",
    "kms-not-for-domain": "The KMS in the message has no say over that user's domain.",
    "certificate-invalid": "The KMS certificate is revoked, out of its dates or broken.",
    "sender-mismatch": "The message names another initiator than the one who is said to have sent it.",
    "recipient-mismatch": "The message is addressed to somebody else than the owner of these keys.",
    "wrong-period": "The identities are those of another key period than the one of the message's time.",
    "no-key-for-period": "No key set for the key period of this message is among the keys given.",
    "bad-signature": "The ECCSI signature does not hold: the message was changed, or somebody else signed it.",
    "sakke-check": "SAKKE gave no key: it was sealed to another identity or period, or changed before signing.",
    "invalid-key": "The keys given do not satisfy their own equations.",
    "key-params": "The key parameters are malformed or not authentic.",
    "key-type": "The purpose tag of the key is unknown or not the one expected.",
    "revoked": "The signer says that this key is revoked.",
    "expired-key": "The key's expiry has passed.",
    "not-yet-active": "The key's activation lies ahead.",
}
_DEVIATION = "The message is sound, but a strict receiver refuses this habit; the switch in brackets would allow it."


def explain(error: MikeyError) -> str:
    """One sentence on what a refusal means, and in brackets what was found."""
    return f"{EXPLANATIONS.get(error.reason, _DEVIATION)[:-1]} ({error})."


def fingerprint(key: Secret) -> str:
    """The name under which a key may be printed: 32 bits of its SHA-256."""
    return "sha256:" + hashlib.sha256(key.reveal()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Opening:
    """What became of a message under the keys given."""

    verdict: str
    """accept; policy (sound, but strict refuses); reject."""
    refusal: MikeyError | None
    """Why strict refused."""
    opened: OpenedKey | None
    sender_uri: str | None
    me: str


def open_with(
    octets: bytes, held: key_files.HeldKeys, now: float, *, sender_uri: str | None, me: str | None
) -> Opening:
    """Verify and open a message, strictly and, when that fails, leniently and without a clock.

    Where the caller does not name sender and recipient, the keys and the message say who they may be.
    """
    try:
        message = read(octets)
    except MikeyError as error:
        return Opening("reject", error, None, sender_uri, me or "")
    me = me or held.me or _recipient(message, held)
    sender_uri = sender_uri or held.sender_uri or _sender(message, held)

    def opened(policy: Policy) -> OpenedKey:
        return unseal(
            octets, sender_uri=sender_uri, me=me, keyring=held.keyring, now=now, replay=None, expect_type=None,
            policy=policy, allow_pending=policy is OFFLINE,
        )  # fmt: skip

    try:
        return Opening("accept", None, opened(STRICT), sender_uri, me)
    except MikeyError as refusal:
        try:
            return Opening("policy", refusal, opened(OFFLINE), sender_uri, me)
        except MikeyError as final:
            return Opening("reject", final, None, sender_uri, me)


def _recipient(message: IMessage, held: key_files.HeldKeys) -> str:
    """The owner of the key set that the message is sealed to, else of the first one held."""
    named, hashed = message.idr(2), message.idr(9)
    for key_set in held.keyring:
        if (hashed is not None and hashed.data == key_set.uid) or (
            named is not None and named.data in (key_set.uri.encode(), key_set.uid)
        ):
            return key_set.uri
    return next((key_set.uri for key_set in held.keyring), "")


def _sender(message: IMessage, held: key_files.HeldKeys) -> str | None:
    """The initiator whom IDRi names or whose UID is among the keys; None: only the UID can be proved."""
    named, hashed = message.idr(1), message.idr(8)
    for key_set in held.keyring:
        if hashed is not None and hashed.data == key_set.uid:
            return key_set.uri
    if named is None:
        return None
    try:
        return named.data.decode()
    except UnicodeDecodeError:
        return None


def carried_group_key(message: IMessage, held: key_files.HeldKeys) -> TransportKey | None:
    """The group key of a phone's key file under which the sealed key parameters open."""
    for extension in message.extensions(GE_KEY_PARAMETERS):
        for key in held.group_keys:
            if not key_parameters.is_protected(extension.data):
                continue
            try:
                said = key_parameters.unprotect(extension.data, key.key.reveal(), message.csb_id)
            except MikeyError:
                continue  # sealed under another key
            return key.replace(
                activation=said.activation, expiry=said.expiry, status=said.status, group_ids=said.group_ids
            )
    return None


# -- as JSON and as text --------------------------------------------------------------------------------------


def key_as_json(key: TransportKey) -> dict[str, Any]:
    """A key without its octets."""
    return {
        "type": key.type.name,
        "key_id": f"{key.key_id:08x}",
        "fingerprint": fingerprint(key.key),
        "octets": len(key.key),
        "groups": list(key.group_ids),
        "activation": key.activation,
        "expiry": key.expiry,
        "revoked": key.revoked,
        "text": key.text,
    }


def as_json(found: Found, annotation: Annotation | None, opening: Opening | None, carried: TransportKey | None) -> Any:
    """One message as the value of a JSON line."""
    error = found.error or (annotation.error if annotation is not None else None)
    out: dict[str, Any] = {
        "place": found.place,
        "octets": len(found.octets),
        "error": None if error is None else {"reason": error.reason, "explanation": explain(error)},
        "fields": [
            {"offset": r.offset, "octets": r.octets.hex(), "field": r.field, "meaning": r.meaning, "clause": r.clause}
            for r in (annotation.rows if annotation is not None else ())
        ],
        "remarks": [{"word": r.word, "text": r.text} for r in (annotation.remarks if annotation is not None else ())],
    }
    if opening is not None:
        out["verdict"] = opening.verdict
        out["reason"] = opening.refusal.reason if opening.refusal is not None else None
        out["explanation"] = explain(opening.refusal) if opening.refusal is not None else None
        out["sender"], out["recipient"] = opening.sender_uri, opening.me
        out["key"] = key_as_json(opening.opened.key) if opening.opened is not None else None
    if carried is not None:
        out["carried_group_key"] = key_as_json(carried)
    return out


def as_text(
    found: Found, annotation: Annotation | None, opening: Opening | None, carried: TransportKey | None
) -> Iterator[str]:
    """One message as lines for people."""
    yield f"{found.place}: {len(found.octets)} octets"
    if annotation is None:
        assert found.error is not None
        yield f"  {explain(found.error)}"
        return
    width = max((len(r.field) for r in annotation.rows), default=0)
    broad = min(60, max((len(r.meaning) for r in annotation.rows), default=0))
    for r in annotation.rows:
        shown = r.octets.hex() if len(r.octets) <= 8 else f"{r.octets[:7].hex()}..({len(r.octets)})"
        yield f"  {r.offset:5}  {shown:<20}  {r.field:<{width}}  {r.meaning:<{broad}}  {r.clause}".rstrip()
    if annotation.error is not None:
        yield f"  refused: {explain(annotation.error)}"
    for remark in annotation.remarks:
        yield f"  unusual: {remark.text}"
    if not annotation.remarks:
        yield "  nothing unusual"
    if opening is not None and annotation.error is None:
        yield from _opening_text(opening)
    if carried is not None:
        yield "  the key parameters open under this group key of the key file; the signature was not checked:"
        yield from _key_text(carried)


def _opening_text(opening: Opening) -> Iterator[str]:
    sender = opening.sender_uri or "an initiator of whom only the UID is proved"
    yield f"  {opening.verdict}: from {sender} to {opening.me or 'nobody whose keys are here'}"
    if opening.refusal is not None:
        yield f"  {'strict receivers refuse' if opening.opened is not None else 'refused'}: {explain(opening.refusal)}"
    if opening.opened is not None:
        yield from _key_text(opening.opened.key)


def _key_text(key: TransportKey) -> Iterator[str]:
    state = "revoked" if key.revoked else "not revoked"
    active = moment(key.activation) if key.activation else "from the time of the message"
    yield f"  key: {key.type.name} {key.key_id:08x}, {len(key.key)} octets, {fingerprint(key.key)}, {state}"
    yield f"  active: {active}, expires: {moment(key.expiry) if key.expiry else 'never'}"
    for group in key.group_ids:
        yield f"  group: {group}"


# -- the command ----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inspect",
        description="Print MIKEY messages as annotated tables and say what is unusual about them.",
        epilog="Captures (pcapng, pcap) are searched packet by packet for key-mgmt attributes, base64 and whole "
        "messages in UDP and TCP payloads; TCP and IP fragments are put in order, TLS is passed over. Keys are never "
        "printed, but for those of a corpus. Exits 0, or 1 when a message is malformed or refused, 2 for wrong usage, "
        "3 for unreadable files.",
    )
    parser.add_argument("source", nargs="?", metavar="FILE|BASE64|SDP|-", help="what to look into; -: standard input")
    parser.add_argument("--json", action="store_true", help="one JSON line for each message")
    parser.add_argument("--keys", type=Path, action="append", default=[], metavar="FILE",
                        help="verify and open with these keys (repeatable): KMS documents (KmsInit and KmsKeyProv), "
                        "JSON with kms and receiver or users, or the group keys of a phone")  # fmt: skip
    parser.add_argument("--from", dest="sender", metavar="URI", help="who is said to have sent it")
    parser.add_argument("--to", dest="me", metavar="URI", help="for whom it is said to be")
    parser.add_argument("--now", type=float, metavar="SECONDS", help="the clock, Unix seconds (default: the machine's)")
    what = "judge the cases of an I_MESSAGE corpus instead: one JSON line each with id, verdict, reason, key in hex"
    parser.add_argument("--corpus", type=Path, metavar="FILE", help=what)
    return parser


def _source(text: str) -> tuple[bytes, str]:
    if text == "-":
        return sys.stdin.buffer.read(), "standard input"
    if os.path.exists(text) or text.startswith(("/", "./", "../", "~")):
        return Path(text).read_bytes(), text
    return text.encode(), "argument"


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


def _judge_corpus(path: Path) -> int:
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    except (ValueError, KeyError, TypeError):
        raise ParseError(f"{path} is no corpus of I_MESSAGEs") from None
    for case in cases:
        result = corpus.judge(case["input"])
        key = None if result.opened is None else result.opened.key.key.reveal().hex()
        _write(json.dumps({"id": case["id"], "verdict": result.verdict, "reason": result.reason, "key": key}))
    return EXIT_OK


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code. Prints to standard output, complaints to standard error."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        if (options.source is None) == (options.corpus is None):
            parser.error("give one of FILE|BASE64|SDP|- and --corpus FILE")
    except SystemExit as stop:  # argparse has printed help or what is wrong
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        if options.corpus is not None:
            return _judge_corpus(options.corpus)
        held = key_files.load(options.keys) if options.keys else None
        messages = find(*_source(options.source))
    except (MikeyError, OSError) as error:
        sys.stderr.write(f"inspect: {error}\n")
        return EXIT_ENVIRONMENT
    now = time.time() if options.now is None else options.now
    refused = False
    for number, found in enumerate(messages):
        annotation = annotate(found.octets, now) if found.error is None else None
        opening = carried = None
        if held is not None and annotation is not None:
            if any(held.keyring.certificates):
                opening = open_with(found.octets, held, now, sender_uri=options.sender, me=options.me)
            if annotation.error is None:
                carried = carried_group_key(read(found.octets), held)
        refused |= annotation is None or annotation.error is not None
        refused |= opening is not None and opening.verdict == "reject"
        if options.json:
            _write(json.dumps(as_json(found, annotation, opening, carried)))
        else:
            _write(("\n" if number else "") + "\n".join(as_text(found, annotation, opening, carried)))
    return EXIT_REFUSED if refused else EXIT_OK
