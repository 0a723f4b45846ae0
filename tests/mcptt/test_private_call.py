# SPDX-License-Identifier: Apache-2.0
"""A private call under a PCK, over real sockets: heard, refused, attacked."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mcptt_sip.body import Part
from mcptt_sip.mcptt.call import CallSettings
from mcptt_sip.mcptt.callerrors import ChangeRefused, RegroupFailed
from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.clientrequests import ClientRequests
from mcptt_sip.mcptt.contents import read_contents
from mcptt_sip.mcptt.documents import McpttInfo
from mcptt_sip.mcptt.keying import MIKEY
from mcptt_sip.mcptt.mediadescription import GroupMediaDescription
from mcptt_sip.mcptt.participating import Destination
from mcptt_sip.mcptt.policy import Urgency
from mcptt_sip.mcptt.privatecall import PrivateCallState, private_key_of
from mcptt_sip.mcptt.privatecalling import PrivateCall, PrivateInvitation
from mcptt_sip.ops.recording import samples_of
from media.quality import score
from mikey import KeyType, TransportKey, encode_text, seal
from tests.security.town import PATIENCE, Town, Townsman, town, uri

pytestmark = pytest.mark.network
DATA = Path(__file__).parents[2] / "scenarios" / "data"


def answering(man: Townsman, *, accept: bool = True) -> asyncio.Queue[PrivateCall]:
    calls: asyncio.Queue[PrivateCall] = asyncio.Queue()

    @man.client.on_private_call
    async def ask(invitation: PrivateInvitation) -> None:
        if accept:
            calls.put_nowait(await invitation.accept())
        else:
            invitation.decline()

    return calls


async def two(here: Town) -> tuple[Townsman, Townsman, PrivateCall, PrivateCall]:
    alice, bob = await here.phones("alice", "bob")
    calls = answering(bob)
    mine = await alice.client.private_call(uri("bob"))
    return alice, bob, mine, await asyncio.wait_for(calls.get(), PATIENCE)


async def test_two_talk_to_one_another_and_each_hears_the_other(tmp_path: Path) -> None:
    async with town() as here:
        alice, bob, mine, his = await two(here)
        assert (mine.other, his.other) == (uri("bob"), uri("alice"))
        for call, listener, name in ((mine, bob, "alice"), (his, alice, "bob")):
            heard = tmp_path / f"{name}.wav"
            (his if call is mine else mine).media.record(heard)
            async with call.floor():
                await call.say(DATA / f"{name}.wav")
            burst = await listener.until("burst-heard", user=uri(name))
            (his if call is mine else mine).media.flush_recording()
            reference, rate = samples_of(DATA / f"{name}.wav")
            track, _ = samples_of(heard)
            assert score(reference, track[burst["offset"] : burst["offset"] + burst["samples"]], rate) >= 0.85
        await mine.leave()
        await bob.until("ended")
        assert not here.server.service.private.calls and not bob.client.calls


async def test_each_direction_has_a_key_of_its_own_and_ends_with_the_call() -> None:
    async with town() as here:
        _, _, mine, his = await two(here)
        mki = mine.key.mki(mine.key.key_id)
        assert len(mki) == 4 and mki == his.key.mki(his.key.key_id) and mki[0] >> 4 == KeyType.PCK
        theirs, ours = mine.find_key(mki), his.find_key(mki)
        assert theirs is not None and ours is not None and theirs.master_key != ours.master_key
        assert mine.find_key(b"\x10\0\0\0") is None and mine.talker_guk_ids(uri("alice")) == frozenset()
        await his.leave()
        assert his.find_key(mki) is None


async def test_a_private_call_ends_with_its_key_by_the_time_of_day() -> None:
    ahead = 0.0
    async with town() as here:
        alice = await here.phone("alice", clock=lambda: time.time() + ahead, call=CallSettings(clock_check=0.1))
        bob = await here.phone("bob")
        answering(bob)
        call = await alice.client.private_call(uri("bob"))
        ahead = call.key.expiry - time.time() + 1.0
        assert "expired" in (await alice.until("ended"))["cause"]
        await bob.until("ended")


async def test_a_group_call_and_a_private_call_go_side_by_side() -> None:
    async with town() as here:
        alice, bob, mine, _ = await two(here)
        group = await alice.client.start_regroup(uri("bob"))
        assert group.distribution.keyed() == {uri("bob")} and not mine.ended.is_set()
        await group.release()
        await bob.until("ended", group=group.group)
        assert not mine.ended.is_set()


@pytest.mark.parametrize(
    ("who", "status", "warning"), [("nobody", 404, "141"), ("alice", 403, "145"), ("carol", 480, "146")]
)
async def test_who_cannot_be_called_is_said(who: str, status: int, warning: str) -> None:
    async with town() as here:
        alice = await here.phone("alice")
        with pytest.raises(RegroupFailed) as refusal:
            await alice.client.private_call(uri(who))
        assert (refusal.value.status, (refusal.value.warning or "")[:3]) == (status, warning)
        assert not here.server.service.private.calls and not alice.client.calls


async def test_declined_not_allowed_and_busy() -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        answering(bob, accept=False)
        carol = await here.phone("carol", callers=())
        answering(carol)
        await here.phone("dave")
        for name, status, warning in (("bob", 480, "110"), ("carol", 403, "127"), ("dave", 486, "")):
            with pytest.raises(RegroupFailed) as refusal:
                await alice.client.private_call(uri(name))
            assert (refusal.value.status, (refusal.value.warning or "")[:3]) == (status, warning)


@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_who_is_no_user_any_more_is_in_no_private_call(name: str) -> None:
    async with town() as here:
        _alice, _bob, mine, theirs = await two(here)
        _carol, _dave = await here.phones("carol", "dave")
        ours = answering(_dave)
        others = await _carol.client.private_call(uri("dave"))
        await asyncio.wait_for(ours.get(), PATIENCE)
        private = here.server.service.private
        users = set(private._policy().profiles)
        here.server.policy_changed(users)
        assert len(private.calls) == 2, "nobody was taken out"
        here.server.policy_changed(users - {uri(name)})
        assert [call.caller.user for call in private.calls] == [uri("carol")]
        await asyncio.wait_for(asyncio.gather(mine.ended.wait(), theirs.ended.wait()), PATIENCE)
        assert not others.ended.is_set()


async def test_a_call_given_up_while_it_rings_is_over_for_all() -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")

        @bob.client.on_private_call
        async def ring(invitation: PrivateInvitation) -> None:
            invitation.session.progress(180, now=bob.client.stack_time())
            bob.client.transmit()

        calling = asyncio.ensure_future(alice.client.private_call(uri("bob")))
        await bob.until("invited-privately")
        await alice.call.leave()
        with pytest.raises((RegroupFailed, asyncio.CancelledError)):
            await calling
        async with asyncio.timeout(PATIENCE):
            while here.server.service.private.calls:
                here.news.clear()
                await here.news.wait()


@pytest.mark.parametrize("lie", ["another's", "group key", "replayed"])
async def test_another_key_message_than_the_callers_is_refused(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        mallory = await here.phone("mallory")
        answering(bob)
        now = alice.client.now()

        def forged(client: McpttClient, kind: KeyType) -> bytes:
            groups = ("sip:tmp-1@mcx.example",) if kind is KeyType.GMK else ()
            key = TransportKey.generate(kind, expiry=int(now + 600), group_ids=groups)
            return seal(key, sender=client.uri, recipient=uri("bob"), keyring=client.keyring, now=now).octets

        first = await alice.client.private_call(uri("bob"))
        assert first.session is not None
        sent = bob.call.session.request if bob.call.session is not None else None  # type: ignore[attr-defined]
        assert sent is not None
        instead = {
            "another's": forged(mallory.client, KeyType.PCK), "group key": forged(alice.client, KeyType.GMK),
            "replayed": private_key_of(read_contents(sent))[1],
        }[lie]
        await first.leave()
        await bob.until("ended")
        function = here.server.service.private
        honest = function._invite

        def lying(call: PrivateCallState, place: Destination, part: bytes | None, at: float) -> None:
            assert part is None and call.caller.theirs is not None
            call.caller.theirs = replace(call.caller.theirs, key=instead)
            honest(call, place, part, at)

        monkeypatch.setattr(function, "_invite", lying)
        with pytest.raises(RegroupFailed) as refusal:
            await alice.client.private_call(uri("bob"))
        assert (refusal.value.status, (refusal.value.warning or "")[:3]) == (488, "136")
        assert bob.seen("invitation-refused") and not bob.client.calls


async def test_the_key_message_travels_in_the_sdp_as_it_is() -> None:
    """TS 24.379 11.1.1.2, RFC 4567: no part of its own, one ``a=key-mgmt`` of the audio, the same on both legs."""
    async with town() as here:
        _, _, mine, his = await two(here)
        assert mine.session is not None and his.session is not None
        lines = []
        for session in (mine.session, his.session):
            body = session.request.body
            assert b"application/mikey" not in body
            audio = body.partition(b"m=audio")[2].partition(b"m=application")[0]
            lines.append([line for line in audio.splitlines() if line.startswith(b"a=key-mgmt:mikey ")])
            assert body.count(b"a=key-mgmt") == 1
        assert len(lines[0]) == 1 and lines[0] == lines[1]


@pytest.mark.parametrize(
    ("carriers", "goes"),
    [("part", True), ("both", True), ("both, of which the part is base64", True), ("neither", False),
     ("both, differing", False), ("twice in the SDP, differing", False)],
)  # fmt: skip
async def test_the_key_message_has_one_meaning(
    carriers: str, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of its own is taken as well; two key messages that differ are none (rule 16)."""
    async with town() as here:
        alice, bob = await here.phones("alice", "bob")
        answering(bob)
        honest = ClientRequests.invite

        def otherwise(self: ClientRequests, call: object, parts: list[Part], *rest: object, **more: object) -> object:
            theirs = GroupMediaDescription.decode_keyed(parts[0].body)
            key = theirs.key
            assert key is not None
            changed = bytes([*key[:-1], key[-1] ^ 1])
            plain = replace(theirs, key=None).encode()
            line = b"a=ptime"
            sdp, part = {
                "part": (plain, key), "both": (parts[0].body, key),
                "both, of which the part is base64": (parts[0].body, base64.b64encode(key)), "neither": (plain, None),
                "both, differing": (parts[0].body, changed),
                "twice in the SDP, differing": (
                    parts[0].body.replace(line, f"a=key-mgmt:{encode_text(changed)}\r\n".encode() + line), None,
                ),
            }[carriers]  # fmt: skip
            parts = [Part("application/sdp", sdp), *parts[1:], *([Part(MIKEY, part)] if part is not None else [])]
            return honest(self, call, parts, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(ClientRequests, "invite", otherwise)
        if goes:
            call = await alice.client.private_call(uri("bob"))
            assert call.other == uri("bob") and bob.seen("joined")
        else:
            with pytest.raises(RegroupFailed) as refusal:
                await alice.client.private_call(uri("bob"))
            assert refusal.value.status == 488 and not bob.seen("invited-privately")


async def test_a_re_invite_refreshes_a_private_call_and_makes_no_emergency_of_it() -> None:
    async with town() as here:
        _alice, bob, mine, his = await two(here)
        for call in (mine, his):
            answer = await call.client.change(call, McpttInfo(session_type="private"), Urgency.NORMAL)
            assert answer is not None and answer.status == 200
            assert GroupMediaDescription.decode(answer.body).key is None
            with pytest.raises(ChangeRefused) as refusal:
                await call.declare(Urgency.EMERGENCY)
            assert refusal.value.status == 403 and call.urgency is Urgency.NORMAL
        async with mine.floor():
            await mine.say(DATA / "alice.wav")
        await bob.until("burst-heard", user=uri("alice"))
        assert not mine.ended.is_set() and not his.ended.is_set()


@pytest.mark.parametrize(
    "lie", [(b"RTP/SAVP", b"RTP/AVP"), (b"a=ssrc:", b"a=x-ssrc:"), (b"IN IP4 127.0.0.1", b"IN IP6 ::1")]
)
async def test_a_re_invite_that_cannot_be_done_is_refused_and_ends_nothing(lie: tuple[bytes, bytes]) -> None:
    async with town() as here:
        _, bob, mine, his = await two(here)
        assert mine.session is not None
        description = mine.client.describe(mine.media).encode()
        assert lie[0] in description
        request = mine.session.reinvite(
            body=description.replace(*lie), content_type="application/sdp", now=mine.client.stack_time()
        )
        answer = await mine.client._final(request)
        assert answer is not None and answer.status == 488
        assert not mine.ended.is_set() and not his.ended.is_set()
        async with mine.floor():
            await mine.say(DATA / "alice.wav")
        await bob.until("burst-heard", user=uri("alice"))
