# SPDX-License-Identifier: Apache-2.0
"""The hostile server: an honest one, whose messages are changed on their way out.

So it can do whatever a server can, with everything that it has seen, and the sequence of its messages stays one that
phones understand. A move is armed, and happens once, at the first message that it fits.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mcptt_sip.body import Part, build_multipart, parse_multipart
from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.contents import SipFragment, read_contents
from mcptt_sip.mcptt.documents import CONFERENCE_INFO, MCPTT_INFO, ConferenceInfo, ConferenceUser, McpttInfo
from mcptt_sip.mcptt.keying import ACKNOWLEDGEMENT, MIKEY, Acknowledgement, AcknowledgementError, acknowledge
from mcptt_sip.message import Request, Response, parse
from mikey import KeyType, TransportKey, guk_id, read, seal
from tests.simulation.loop import CURRENT, Process
from tests.simulation.phones import MALLORY, SERVER_HOST, USERS, key_set_at, keyring, uri

#: I_MESSAGEs remembered for each user
_REMEMBERED = 64

Message = Request | Response
#: changes a message; those that leave instead, ``None`` when the move does not fit
Move = Callable[["HostileServer", Message], "list[bytes] | None"]


@dataclass
class HostileServer:
    """What it has seen, and what it is about to do."""

    chance: random.Random
    now: Callable[[], float]
    later: Callable[[float, Process, bytes], None]
    #: the newest TGMK of a group, which a member has lent
    newest_key: Callable[[str], TransportKey | None]
    armed: deque[str] = field(default_factory=deque)
    done: Counter[str] = field(default_factory=Counter)
    #: user -> (group, I_MESSAGE) that went to him
    seen: dict[str, deque[tuple[str, bytes]]] = field(default_factory=dict)
    proofs: deque[bytes] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    process: Process | None = None
    #: user -> until when no key message reaches him
    starved: dict[str, float] = field(default_factory=dict)

    def outgoing(self, process: Process, octets: bytes) -> list[bytes]:
        """See :data:`tests.simulation.network.Tamper`."""
        if process.host != SERVER_HOST or len(octets) < 16:
            return [octets]
        carries = b"application/mikey" in octets or b"key-ack" in octets
        if not carries and not self.armed:
            return [octets]
        self.process = process
        try:
            message = parse(octets)
        except SipError:
            return [octets]
        try:
            if self.starved and isinstance(message, Request) and message.method == "MESSAGE" and _to_phone(message):
                if self.now() < self.starved.get(user_of(message), 0.0):
                    self.done["starved"] += 1
                    return []
            for name in list(self.armed):
                changed = MOVES[name](self, message)
                if changed is not None:
                    self.armed.remove(name)
                    self.done[name] += 1
                    return changed
        finally:
            if carries:
                self._remember(parse(octets))
        return [octets]

    def _remember(self, message: Message) -> None:
        try:
            contents = read_contents(message)
        except SipError:
            return
        if contents.mikey is not None:
            user = user_of(message)
            mine = self.seen.setdefault(user, deque(maxlen=_REMEMBERED))
            mine.append((contents.info.calling_group_id or "", contents.mikey))
        self.proofs.extend(proof_of(message))


def user_of(message: Message) -> str:
    """Whom a message is for, as mcptt-info says."""
    try:
        return read_contents(message).info.request_uri or ""
    except SipError:
        return ""


def proof_of(message: Message) -> list[bytes]:
    """The acknowledgements in a message."""
    try:
        if (message.headers.get("Content-Type") or "").lower().startswith("message/sipfrag"):
            proof = SipFragment.decode(message.body).acknowledgement
            return [] if proof is None else [proof]
        return list(read_contents(message).acknowledgements)
    except SipError:
        return []


def _parts(message: Message) -> list[Part]:
    content_type = message.headers.get("Content-Type")
    try:
        return parse_multipart(content_type, message.body) if content_type else []
    except SipError:
        return []


def _with_body(server: HostileServer, message: Message, parts: list[Part]) -> list[bytes]:
    content_type, message.body = build_multipart(parts, lambda: server.chance.randbytes(8))
    message.headers.set("Content-Type", content_type)
    return [bytes(message)]


def _replace(server: HostileServer, message: Message, kind: str, body: bytes | None) -> list[bytes] | None:
    """The message with another body in the part of that type, or without the part."""
    parts = _parts(message)
    if not any(part.type == kind for part in parts):
        return None
    made = [p if p.type != kind else Part(p.content_type, body or b"", p.headers) for p in parts]
    return _with_body(server, message, [p for p in made if p.type != kind or body is not None])


def _key(message: Message) -> bytes | None:
    return next((p.body for p in _parts(message) if p.type == MIKEY), None) if isinstance(message, Request) else None


def _to_phone(message: Message) -> bool:
    """A request that brings a key."""
    return isinstance(message, Request) and message.method in ("INVITE", "MESSAGE") and _key(message) is not None


# --- keys --------------------------------------------------------------------------------------------------


def swap(server: HostileServer, message: Message) -> list[bytes] | None:
    """Another user's I_MESSAGE."""
    if not _to_phone(message):
        return None
    user = user_of(message)
    others = [octets for name, seen in server.seen.items() if name != user for _, octets in seen]
    return _replace(server, message, MIKEY, server.chance.choice(others)) if others else None


def other_group(server: HostileServer, message: Message) -> list[bytes] | None:
    """An I_MESSAGE for this user, made for another group: one that he has not seen yet, when there is one."""
    if not _to_phone(message):
        return None
    user, group = user_of(message), read_contents(message).info.calling_group_id
    found = [octets for name, octets in server.seen.get(user, ()) if name != group]
    return _replace(server, message, MIKEY, found[-1]) if found else None


def hoard(server: HostileServer, message: Message) -> list[bytes] | None:
    """Keeps an I_MESSAGE from its user, to show it to him elsewhere: see :func:`other_group`."""
    return [] if _to_phone(message) and isinstance(message, Request) and message.method == "MESSAGE" else None


def replay(server: HostileServer, message: Message) -> list[bytes] | None:
    """An older I_MESSAGE for this user."""
    if not _to_phone(message):
        return None
    found = server.seen.get(user_of(message))
    return _replace(server, message, MIKEY, server.chance.choice(found)[1]) if found else None


def strip(server: HostileServer, message: Message) -> list[bytes] | None:
    """No key at all."""
    return _replace(server, message, MIKEY, None) if _to_phone(message) else None


def corrupt(server: HostileServer, message: Message) -> list[bytes] | None:
    """One bit of it changed."""
    octets = _key(message)
    if octets is None or not _to_phone(message):
        return None
    at = server.chance.randrange(len(octets) * 8)
    changed = bytearray(octets)
    changed[at // 8] ^= 1 << at % 8
    return _replace(server, message, MIKEY, bytes(changed))


def usurp(server: HostileServer, message: Message) -> list[bytes] | None:
    """A key of Mallory's own making, correctly signed by her, in the initiator's name or in her own."""
    if not _to_phone(message):
        return None
    info, now = read_contents(message).info, server.now()
    key = TransportKey.generate(
        KeyType.GMK, random=server.chance.randbytes, expiry=int(now + 300), group_ids=(info.calling_group_id or "",),
        text="ack=required;floor=server",
    )  # fmt: skip
    sender = key_set_at(MALLORY, now)
    sealed = _outside(server, lambda: seal(
        key, sender=sender, recipient=info.request_uri or "", keyring=keyring(MALLORY), now=now,
        random=server.chance.randbytes,
    ))  # fmt: skip
    changed = _replace(server, message, MIKEY, sealed)
    if changed is not None and server.chance.random() < 0.5:
        return _info(server, parse(changed[0]), calling_user_id=MALLORY)
    return changed


def _outside(server: HostileServer, work: Callable[[], object]) -> bytes:
    """Mallory's work is nobody's whose doings are watched."""
    mallory = Process("mallory", "mallory", "mallory")
    mallory.dead = True
    token = CURRENT.set(mallory)
    try:
        return work().octets  # type: ignore[attr-defined, no-any-return]
    finally:
        CURRENT.reset(token)


def withhold(server: HostileServer, message: Message) -> list[bytes] | None:
    """The message is lost."""
    return [] if _to_phone(message) else None


def starve(server: HostileServer, message: Message) -> list[bytes] | None:
    """For a while its user gets no key message at all."""
    if not _to_phone(message) or not isinstance(message, Request) or message.method != "MESSAGE":
        return None
    server.starved[user_of(message)] = server.now() + server.chance.uniform(5.0, 60.0)
    return []


def late(server: HostileServer, message: Message) -> list[bytes] | None:
    """The message comes much later."""
    if not _to_phone(message) or server.process is None:
        return None
    server.later(server.chance.uniform(5.0, 120.0), server.process, bytes(message))
    return []


def twice(server: HostileServer, message: Message) -> list[bytes] | None:
    """The message comes again, later."""
    if not _to_phone(message) or server.process is None:
        return None
    server.later(server.chance.uniform(0.1, 60.0), server.process, bytes(message))
    return [bytes(message)]


# --- acknowledgements --------------------------------------------------------------------------------------


def _with_proof(server: HostileServer, message: Message, proof: bytes | None) -> list[bytes] | None:
    if (message.headers.get("Content-Type") or "").lower().startswith("message/sipfrag"):
        fragment = SipFragment.decode(message.body)
        message.body = SipFragment(fragment.status, fragment.warning, proof).encode("mcx.example")
        return [bytes(message)]
    if message.headers.get("Content-Type") == ACKNOWLEDGEMENT:
        message.body = proof or b""
        return [bytes(message)]
    return _replace(server, message, ACKNOWLEDGEMENT, proof)


def forge_proof(server: HostileServer, message: Message) -> list[bytes] | None:
    """An acknowledgement in a user's name, made by Mallory, who has no key; or an older or another's one."""
    real = proof_of(message)
    if not real:
        return None
    try:
        claim = Acknowledgement.decode(real[0])
    except AcknowledgementError:
        return None
    way = server.chance.randrange(4)
    if way == 0 and server.proofs:
        return _with_proof(server, message, server.chance.choice(server.proofs))
    if way == 1:
        at = server.chance.randrange(len(real[0]) * 8)
        changed = bytearray(real[0])
        changed[at // 8] ^= 1 << at % 8
        return _with_proof(server, message, bytes(changed))
    if way == 2:
        victim = server.chance.choice(USERS)
        return _with_proof(server, message, Acknowledgement(
            victim, claim.key_id, claim.csb_id, claim.result, claim.mac, claim.signature
        ).encode())  # fmt: skip
    forged = _forged_with_a_member(server)
    return None if forged is None else _with_proof(server, message, forged)


def _forged_with_a_member(server: HostileServer) -> bytes | None:
    """A member lends his TGMK, so the MAC is right; only the victim's signature is missing."""
    now = server.now()
    starved = [user for user, until in server.starved.items() if until > now and server.seen.get(user)]
    victims = starved or [user for user, seen in server.seen.items() if seen]
    if not victims:
        return None
    victim = server.chance.choice(victims)
    group, octets = server.seen[victim][-1]
    key = server.newest_key(group)
    if key is None:
        return None
    return acknowledge(
        key, csb_id=guk_id(key, victim), digest=read(octets).signed_digest, group=group, user=victim,
        sign=lambda _octets: server.chance.randbytes(129),
    ).encode()  # fmt: skip


def claim_proof(server: HostileServer, message: Message) -> list[bytes] | None:
    """An add that failed is told as a success, with an acknowledgement seen before."""
    if not (message.headers.get("Content-Type") or "").lower().startswith("message/sipfrag") or not server.proofs:
        return None
    fragment = SipFragment.decode(message.body)
    if fragment.status < 300:
        return None
    message.body = SipFragment(200, None, server.chance.choice(server.proofs)).encode("mcx.example")
    return [bytes(message)]


def withhold_proof(server: HostileServer, message: Message) -> list[bytes] | None:
    """The acknowledgement is lost, the rest is not."""
    if not proof_of(message):
        return None
    if isinstance(message, Request) and message.method in ("MESSAGE", "INFO"):
        return []
    return _with_proof(server, message, None)


# --- everything else ---------------------------------------------------------------------------------------


def _info(server: HostileServer, message: Message, **changes: object) -> list[bytes] | None:
    parts = _parts(message)
    document = next((p.body for p in parts if p.type == MCPTT_INFO), None)
    if document is None:
        return None
    info = dataclasses.replace(McpttInfo.decode(document), **changes)  # type: ignore[arg-type]
    return _replace(server, message, MCPTT_INFO, info.encode())


def rename_group(server: HostileServer, message: Message) -> list[bytes] | None:
    """Another group id in an invitation, or in the answer to the initiator."""
    group = f"sip:tmp-{server.chance.randbytes(16).hex()}@mcx.example"
    wanted = _to_phone(message) or (isinstance(message, Response) and message.status == 200)
    return _info(server, message, calling_group_id=group) if wanted else None


def rename_caller(server: HostileServer, message: Message) -> list[bytes] | None:
    """Somebody else is said to have called."""
    return _info(server, message, calling_user_id=server.chance.choice(USERS)) if _to_phone(message) else None


def unmark(server: HostileServer, message: Message) -> list[bytes] | None:
    """The indicator of a temporary group is taken away."""
    return _info(server, message, temporary_group=False) if _to_phone(message) else None


def downgrade(server: HostileServer, message: Message) -> list[bytes] | None:
    """SDP that offers other protection, or none."""
    if not (isinstance(message, Request) and message.method == "INVITE"):
        return None
    sdp = next((p.body for p in _parts(message) if p.type == "application/sdp"), None)
    if sdp is None:
        return None
    if server.chance.random() < 0.5:
        changed = sdp.replace(b"RTP/SAVP ", b"RTP/AVP ")
    else:
        line = b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj\r\na=ptime"
        changed = sdp.replace(b"a=ptime", line)
    return _replace(server, message, "application/sdp", changed)


def lie_in_roster(server: HostileServer, message: Message) -> list[bytes] | None:
    """The conference document lists who is not there, and not who is."""
    if (message.headers.get("Content-Type") or "").partition(";")[0].strip().lower() != CONFERENCE_INFO:
        return None
    info = ConferenceInfo.decode(message.body)
    listed = [uri("mallory"), *server.chance.sample(USERS, 3)]
    users = tuple(ConferenceUser(user) for user in dict.fromkeys(listed))
    message.body = ConferenceInfo(info.entity, info.version, "full", users).encode()
    return [bytes(message)]


def refuse(server: HostileServer, message: Message) -> list[bytes] | None:
    """A key message's 200 becomes a refusal that says the user is not in the call."""
    if not (isinstance(message, Response) and message.headers.cseq.method == "MESSAGE" and message.status == 200):
        return None
    message.status, message.reason = 403, "Forbidden"
    message.headers.set("Warning", '399 mcx.example "100 function not allowed due to the user is not in the call"')
    return [bytes(message)]


MOVES: dict[str, Move] = {
    move.__name__: move
    for move in (
        swap, other_group, hoard, replay, strip, corrupt, usurp, withhold, starve, late, twice, forge_proof,
        claim_proof, withhold_proof, rename_group, rename_caller, unmark, downgrade, lie_in_roster, refuse,
    )
}  # fmt: skip
