# SPDX-License-Identifier: Apache-2.0
"""Throws octets at every parser that reads what a stranger can send: ``python tests/fuzz.py --seed N --cases N``.

Each case is random octets, or a real message with an octet or two changed, or one cut, spliced, with bits flipped or
fields repeated. A parser may accept it or raise its own error; anything else, or more than two seconds for one case, is
a finding: it is printed with the octets in hex and the seed, and the run exits 1. So it does when fewer than 30 % of
the SIP messages have a start line and a Via that stand: the rest of the parser would be tried too seldom. The same seed
gives the same octets.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mcptt_sip.body import build_multipart, parse_multipart
from mcptt_sip.errors import ParseError, SipError
from mcptt_sip.field_lines import Headers
from mcptt_sip.grammar import is_token
from mcptt_sip.headers import NameAddr
from mcptt_sip.mcptt.contents import SipFragment, read_contents
from mcptt_sip.mcptt.documents import ConferenceInfo, McpttInfo, ResourceLists
from mcptt_sip.mcptt.journal import GroupRecord, entry
from mcptt_sip.mcptt.keying import Acknowledgement, GroupTerms, i_message
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.memberlist import read_members, sign_members
from mcptt_sip.mcptt.policy import Policy
from mcptt_sip.mcptt.userprofile import UserProfile
from mcptt_sip.message import DEFAULT_LIMITS, MessageFramer, Request, parse
from mcptt_sip.uri import parse_uri
from media import floor_messages
from media.codec import OpusEncoder
from media.codec_amrwb import AmrWbFrame, AmrWbPayload
from media.codecs import OPUS, Decoder
from media.errors import MediaError
from media.rtcp import Report, ReportBlock, decode_report
from media.rtp import RtpPacket
from media.sdp import SessionDescription
from media.srtp import SrtpKey, SrtpReceiver
from mikey import IMessage, Kms, MikeyError, Secret, decode_text, read
from mikey.key_parameters import KeyParameters
from mikey.kms_documents import KmsResponse, decode_request, decode_response, encode_response
from mikey.kms_protection import TransportKeys
from tests.sip.grammar_made import Maker

VECTORS = Path(__file__).parent / "vectors"
#: seconds that one case may take
PATIENCE = 2.0
#: of the cases of a parser of whole messages, how many must come past the start line and the Via
LEAST_SHARE = 0.30
#: octets that mean something in most of the grammars
SEPARATORS = b"\r\n\t :;,<>\"=@/?%()[]{}|.-0"
TRANSPORT = TransportKeys(Secret(bytes(32)), Secret(bytes(32)))
KEY = SrtpKey(bytes(16), bytes(12), bytes(8))


def text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def frame(octets: bytes) -> None:
    framer = MessageFramer()
    for start in range(0, len(octets), 7):
        for item in framer.receive(octets[start : start + 7]):
            if isinstance(item, ParseError):
                return


def whole_request(octets: bytes) -> None:
    message = parse(octets)
    headers = message.headers
    assert headers.top_via
    assert headers.cseq and headers.from_ and headers.to
    if isinstance(message, Request):
        read_contents(message)


def every_header(octets: bytes) -> None:
    """The message, and each of its typed headers."""
    headers = parse(octets).headers
    for name, value in vars(Headers).items():
        if isinstance(value, property):
            try:
                getattr(headers, name)
            except ParseError:
                pass  # a header that nobody may need


def past_the_via(octets: bytes) -> bool:
    """Whether start line and top Via are right, and every line is one, so that the parser reads on."""
    first, _, rest = text(octets).partition("\r\n")
    headers, fault = Headers.scan(rest.partition("\r\n\r\n")[0], DEFAULT_LIMITS.header_lines)
    method = first.partition(" ")[0]
    usual = "From: <sip:a@b>\r\nTo: <sip:a@b>\r\nCall-ID: a\r\nCSeq: 1 " + (method if is_token(method) else "ACK")
    try:
        parse(f"{first}\r\nVia: {headers.get('via')}\r\n{usual}\r\n\r\n".encode("utf-8", "surrogateescape"))
    except ParseError:
        return False
    return fault is None


@dataclass(frozen=True, slots=True)
class Target:
    """One parser: what it reads, real inputs to start from, and the errors that are its own."""

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    errors: tuple[type[Exception], ...]
    #: makes cases from a grammar, in place of most of the mutated ones
    make: Callable[[random.Random], bytes] | None = None
    #: whether a case comes far enough, where enough of them must
    far: Callable[[bytes], bool] | None = None


def corpus() -> list[bytes]:
    cases = json.loads((VECTORS / "mikey" / "i_message_corpus.json").read_text())["cases"]
    return [base64.b64decode(case["input"]["message_b64"]) for case in cases if case["input"]["message_b64"]]


def sip_messages() -> list[bytes]:
    found = [file.read_bytes() for file in sorted(VECTORS.glob("torture/**/*.dat"))]
    mcptt = McpttInfo(
        session_type="prearranged", request_uri="sip:bob@mcx.example", calling_user_id="sip:alice@mcx.example",
        calling_group_id="sip:tmp-1@mcx.example", temporary_group=True, acknowledgement="required",
    )
    from mcptt_sip.body import Part

    sdp = GroupMediaDescription(audio=("127.0.0.1", 4000), floor=("127.0.0.1", 4001), ssrc=7).encode()
    kind, body = build_multipart(
        [Part("application/sdp", sdp), Part("application/vnd.3gpp.mcptt-info+xml", mcptt.encode()),
         Part("application/mikey", corpus()[0])],
        lambda: b"12345678",
    )
    head = (
        "INVITE sip:bob@127.0.0.1:5060;transport=tcp SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:9;branch=z9hG4bKa;rport\r\n"
        "From: <sip:tmp-1@mcx.example>;tag=1\r\nTo: <sip:bob@mcx.example>\r\nCall-ID: a\r\nCSeq: 1 INVITE\r\n"
        "Contact: <sip:session-1@mcx.example;gr=2>;isfocus;+g.3gpp.mcptt\r\nMax-Forwards: 70\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return [*found, head.encode() + body]


def decode_opus(octets: bytes, decoders: list[Decoder] = []) -> None:  # noqa: B006 - one decoder for the whole run
    if not decoders:
        decoders.append(OPUS.decoder())
    decoders[0].decode(octets)
    decoders[0].conceal(octets)


def floor_seeds() -> list[bytes]:
    """A message of every type with a value in every field that text, numbers or octets can fill."""
    user, place = "sip:bob@mcx.example", floor_messages.Location(1, bytes(7))
    values = {
        "track_info": floor_messages.TrackInfo(1, "ab", (7,)), "indicator": floor_messages.FloorIndicator.NORMAL,
        "reject": (1, "busy"), "queue": (1, 5), "granted_party": user, "user_id": user, "queued_user": user,
        "revoked_user": user, "functional_alias": user, "granted_users": (user, user), "queued_users": (user,),
        "functional_aliases": (user,), "ssrcs": (1, 2), "location": place, "locations": b"\1\4\0\7",
    }  # fmt: skip
    seeds = [
        cls(ssrc=7, **{name: values.get(name, 5) for _, name in cls.FIELDS}).encode()
        for cls in floor_messages.MESSAGES.values()
    ]
    return [*seeds, seeds[0] + seeds[5]]


def targets() -> dict[str, Target]:
    sip, mikey, media = (SipError, ValueError), (MikeyError,), (MediaError,)
    messages, keys = sip_messages(), corpus()
    info = McpttInfo(request_uri="sip:bob@mcx.example", temporary_group=True).encode()
    roster = ConferenceInfo("sip:tmp-1@mcx.example", 1, "full", ()).encode()
    described = GroupMediaDescription(audio=("127.0.0.1", 4000), floor=("127.0.0.1", 4001), ssrc=7)
    sdp, keyed = described.encode(), replace(described, key=keys[0]).encode()
    packet = RtpPacket(96, 1, 2, 3, True, b"payload", 1_700_000_000.0).encode()
    return {
        "sip-message": Target(whole_request, messages, sip, far=past_the_via),
        "sip-stream": Target(frame, messages, sip),
        "sip-uri": Target(lambda o: parse_uri(text(o)), [b"sip:a:b@[::1]:5060;x=y?z=%41", b"tel:+1;ext=2"], sip),
        "name-addr": Target(lambda o: NameAddr.parse(text(o)), [b'"A \\" b" <sip:a@b;c>;tag=1;x="y"'], sip),
        "multipart": Target(lambda o: parse_multipart("multipart/mixed;boundary=a", o), [
            b"--a\r\nContent-Type: text/plain\r\n\r\nx\r\n--a--\r\n"], sip),
        "sipfrag": Target(SipFragment.decode, [SipFragment(486, "busy").encode("mcx.example")], sip),
        "mcptt-info": Target(McpttInfo.decode, [info], sip),
        "resource-lists": Target(ResourceLists.decode, [ResourceLists(("sip:a@b",)).encode()], sip),
        "conference-info": Target(ConferenceInfo.decode, [roster], sip),
        "acknowledgement": Target(Acknowledgement.decode, [bytes(200)], sip),
        "user-profile": Target(UserProfile.decode, [UserProfile("sip:alice@mcx.example").encode()], sip),
        "sip-grammar": Target(every_header, messages, sip, lambda source: Maker(source).message(), past_the_via),
        "member-list": Target(read_list, [member_list()], sip),
        "journal": Target(lambda o: GroupRecord.read(text(o).splitlines()), [JOURNAL], sip),
        "policy": Target(lambda o: Policy.parse(text(o)), [POLICY], sip),
        "group-terms": Target(lambda o: GroupTerms.parse(text(o)), [str(GroupTerms()).encode()], sip),
        "key-part": Target(i_message, [*keys[:3], base64.b64encode(keys[0])], sip + mikey),
        "regroup-sdp": Target(GroupMediaDescription.decode, [sdp], sip + media),
        "private-sdp": Target(GroupMediaDescription.decode_keyed, [keyed], sip + media),
        "sdp": Target(SessionDescription.parse, [sdp], media),
        "i-message": Target(IMessage.decode, keys, mikey),
        "i-message-identities": Target(read, keys, mikey),
        "mikey-text": Target(lambda o: decode_text(text(o)), [b"mikey " + base64.b64encode(keys[0])], mikey),
        "key-parameters": Target(KeyParameters.decode, [bytes(40)], mikey),
        "kms-response": Target(decode_response, kms_seeds(), mikey),
        "kms-request": Target(decode_request, kms_seeds(), mikey),
        "kms-protected": Target(lambda o: decode_response(o, TRANSPORT), protected_seeds(), mikey),
        "rtp": Target(RtpPacket.decode, [packet], media),
        "srtp": Target(SrtpReceiver(lambda _mki: KEY).unprotect, [packet + bytes(28)], media),
        "srtcp": Target(SrtpReceiver(lambda _mki: KEY).unprotect_rtcp, [bytes(8) + bytes(48)], media),
        "rtcp": Target(decode_report, [Report(7, (ReportBlock(1),), ntp=1.7e9).encode()], media),
        "amr-wb": Target(lambda o: (AmrWbPayload.decode(o, True), AmrWbPayload.decode(o, False)), [
            AmrWbPayload((AmrWbFrame(2, bytes(32)), AmrWbFrame(15))).encode(align) for align in (False, True)], media),
        "opus": Target(decode_opus, [OpusEncoder().encode(bytes(640))], media),
        "floor": Target(floor_messages.decode_all, floor_seeds(), media),
    }


JOURNAL = "\n".join([
    entry("group", group="sip:tmp-1@mcx.example", signer="sip:alice@mcx.example", terms=str(GroupTerms())),
    entry("sealed", user="sip:bob@mcx.example", gmk_id="00000001", t=1.5), entry("removed", user="sip:bob@mcx.example"),
]).encode()  # fmt: skip
POLICY = (
    b'[user."sip:alice@mcx.example"]\npassword = "x"\nallow-regroup = true\n'
    b'PrivateCallList = ["sip:bob@mcx.example"]\n'
)


def member_list() -> bytes:
    return sign_members("sip:tmp-1@mcx.example", "sip:alice@mcx.example", 1, ["sip:bob@mcx.example"],
                        lambda _octets: bytes(129), 1.5)  # fmt: skip


def read_list(octets: bytes) -> None:
    read_members(octets, group="sip:tmp-1@mcx.example", signers=["sip:alice@mcx.example"], verify=lambda *_: None)


def kms_seeds() -> list[bytes]:
    return [file.read_bytes() for file in sorted((VECTORS / "mikey" / "xml").glob("*.xml"))]


def protected_seeds() -> list[bytes]:
    key_set = Kms.generate("kms.example.org", ["example.org"]).issue("sip:alice@example.org", 1.79e9)
    response = KmsResponse("sip:alice@example.org", "kms.example.org", 1.79e9, "u", key_sets=(key_set,))
    return [encode_response(response, TRANSPORT)]


def mutated(seeds: Sequence[bytes], source: random.Random) -> bytes:
    """Random octets, a seed with an octet or two changed, or one with up to four things done to it."""
    if not seeds or source.random() < 0.1:
        return source.randbytes(source.randrange(200))
    octets = bytearray(source.choice(seeds))
    if octets and source.random() < 0.5:
        for _ in range(source.randrange(1, 3)):
            any_octet = source.random() < 0.5
            octets[source.randrange(len(octets))] = source.randrange(256) if any_octet else source.choice(SEPARATORS)
        return bytes(octets)
    for _ in range(source.randrange(1, 5)):
        at = source.randrange(len(octets) + 1)
        match source.randrange(6):
            case 0:
                del octets[at:]
            case 1:
                del octets[at : at + source.randrange(1, 20)]
            case 2:
                octets[at:at] = source.randbytes(source.randrange(1, 20))
            case 3 if octets:
                octets[at % len(octets)] ^= 1 << source.randrange(8)
            case 4:
                other = source.choice(seeds)
                cut = source.randrange(len(other) + 1)
                octets[at:] = other[cut:]
            case _:
                piece = octets[at : at + source.randrange(1, 60)]
                octets[at:at] = piece * source.randrange(1, 6)
    return bytes(octets)


@dataclass(frozen=True, slots=True)
class Finding:
    target: str
    octets: bytes
    what: str


@dataclass(slots=True)
class Count:
    """What became of the cases of one target; `far` where enough of them must come far."""

    accepted: int = 0
    refused: int = 0
    far: int | None = None

    @property
    def cases(self) -> int:
        return self.accepted + self.refused

    @property
    def share(self) -> float | None:
        return None if self.far is None else self.far / max(1, self.cases)


def run(seed: int, cases: int, chosen: Sequence[str] | None = None) -> tuple[dict[str, Count], list[Finding]]:
    """The count of each target, and what no parser should do. ``cases`` are shared out evenly."""
    all_targets = targets()
    names = list(chosen or all_targets)
    counts: dict[str, Count] = {}
    findings: list[Finding] = []
    for name in names:
        target, source = all_targets[name], random.Random(f"{seed} {name}")
        count = counts[name] = Count(far=None if target.far is None else 0)
        for _ in range(cases // len(names)):
            grown = target.make is not None and source.random() < 0.8
            octets = target.make(source) if grown and target.make else mutated(target.seeds, source)
            began = time.monotonic()
            try:
                target.read(octets)
                count.accepted += 1
            except target.errors:
                count.refused += 1
            except Exception as error:
                findings.append(Finding(name, octets, f"{type(error).__name__}: {error}"))
            if time.monotonic() - began > PATIENCE:
                findings.append(Finding(name, octets, "took too long"))
            if target.far is not None and count.far is not None:
                count.far += target.far(octets)
            if len(findings) >= 20:
                return counts, findings
    return counts, findings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=100_000, help="of all parsers together")
    parser.add_argument("--target", action="append", help="only this one; repeatable: " + ", ".join(targets()))
    options = parser.parse_args(arguments)
    began = time.monotonic()
    counts, findings = run(options.seed, options.cases, options.target)
    too_few = False
    for name, count in counts.items():
        print(f"{name:22} {count.accepted:9} accepted {count.refused:9} refused", end="")
        if count.share is not None:
            too_few = too_few or count.share < LEAST_SHARE
            print(f"   {count.share:4.0%} past the start line and the Via", end="")
        print()
    for finding in findings:
        print(f"FINDING {finding.target} seed={options.seed}: {finding.what}\n  {finding.octets.hex()}")
    if too_few:
        print(f"TOO FEW cases come past the start line and the Via: {LEAST_SHARE:.0%} must")
    cases = sum(count.cases for count in counts.values())
    print(f"{cases} cases, seed {options.seed}, {time.monotonic() - began:.1f} s, {len(findings)} findings")
    return 1 if findings or too_few else 0


if __name__ == "__main__":
    sys.exit(main())
