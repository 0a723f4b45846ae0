# SPDX-License-Identifier: Apache-2.0
"""Everything that can happen: each event does something and says what, or returns ``None`` when it cannot be now."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcptt_sip.mcptt.callerrors import RegroupFailed
from mcptt_sip.mcptt.clientrequests import CallOptions
from mcptt_sip.mcptt.journal import GroupRecord
from mcptt_sip.mcptt.policy import Urgency
from tests.simulation.hostile import MOVES
from tests.simulation.network import Quality
from tests.simulation.phones import HOSTS, SERVER_HOST, USERS, Mood, Phone, ServerHost
from tests.simulation.truth import Group
from tests.simulation.world import FAILURES, REGROUP, World

#: events and how often each happens, in parts of all
WEIGHTS: Mapping[str, float] = {
    "start": 10, "add": 14, "remove": 6, "rekey": 5, "revoke": 1, "leave": 3, "release": 1.5, "roster": 2, "declare": 2,
    "take_over": 4, "talk": 22, "mood": 4, "crash": 1.2, "fuse": 1.2, "restart": 4, "server_crash": 0.15, "cut_off": 1,
    "heal": 3, "reset": 0.8, "weather": 1.5, "skew": 1.5, "hostile": 9, "wait": 3,
}  # fmt: skip
#: groups that are alive at a time
MAX_GROUPS = 3
#: seconds that a clock may be wrong: for two of them the next key comes before the one in force expires
MAX_SKEW = 70.0
WEATHERS = (
    Quality(), Quality(), Quality(0.05, 0.05), Quality(0.02, 0.02, 0.05, 0.02), Quality(0.15, 0.3, 0.15, 0.1),
)  # fmt: skip


class Events(World):
    """A world with its events. ``moves`` are those of the hostile server."""

    def __init__(self, seed: int, *, moves: tuple[str, ...] = tuple(MOVES), tail: int = 200) -> None:
        super().__init__(seed, tail=tail)
        self.chance = random.Random(f"machine {seed}")
        self.moves = moves
        #: seconds that the event under way takes
        self._pause = 0.0

    def happen(self, name: str) -> str | None:
        """The event of that name."""
        event: Callable[[], str | None] = getattr(self, f"_do_{name}")
        return event()

    def _do_start(self) -> str | None:
        ready = [p for p in self.phones if p.alive and p.registered]
        if len(self._alive_groups()) >= MAX_GROUPS or not ready:
            return None if len(self._alive_groups()) >= MAX_GROUPS else "nobody is there"
        phone = self.chance.choice(ready)
        user = self.chance.choice([u for u in USERS if u != phone.uri])
        self.operate(phone, "start", lambda: self.start(phone, user))
        return f"{phone.name} calls {user}"

    async def start(self, phone: Phone, user: str) -> Group:
        client = phone.client
        assert client is not None
        deputies = tuple(self.chance.sample([u for u in USERS if u != phone.uri], self.chance.choice((0, 0, 1, 2))))
        regroup = await client.prepare_regroup(CallOptions(deputies=deputies))
        group = self.truth.open(regroup.group, phone.uri, frozenset(deputies))
        group.named.add(user)
        try:
            await client.establish(regroup, user)
        except FAILURES:
            self.truth.close(group.group, "not established")
            raise
        if not any(told == group.group for told, _ in self.truth.told_keyed):
            self.truth.violate("8 keyed", f"{group.group} is established, and nobody proved the key")
        return group

    def came_back(self, phone: Phone) -> None:
        for record in phone.unfinished():
            if record.group in self.truth.groups:
                self.operate(phone, "come back", lambda record=record: self._come_back(phone, record))  # type: ignore[misc]
            else:
                phone.journals.pop(record.group, None)

    async def _come_back(self, phone: Phone, record: GroupRecord) -> None:
        """15: an initiator goes on where his journal says that he was."""
        assert phone.client is not None
        try:
            await phone.client.come_back(record)
        except RegroupFailed:
            phone.journals.pop(record.group, None)
            raise

    def _do_add(self) -> str | None:
        found = self._initiated()
        if not found:
            return self._do_start()
        phone, call, group = self.chance.choice(found)
        user = self.chance.choice([u for u in USERS if u != phone.uri])
        if self._adding[group.group, user]:
            return "he is being added already"
        self.operate(phone, "add", lambda: self.add(call, group, user))
        return f"{phone.name} adds {user} to {group.group[:14]}"

    async def add(self, call: Any, group: Group, user: str) -> None:
        self._adding[group.group, user] += 1
        wishes = group.wishes_of(call.me)
        there = user in wishes
        wishes.add(user)
        try:
            await call.add(user)
        except FAILURES as error:
            if type(error).__name__ == "AddFailed" and not there:
                wishes.discard(user)
            group.out[user] = "add failed"
            raise
        finally:
            self._adding[group.group, user] -= 1

    def _do_remove(self) -> str | None:
        found = [(p, c, g) for p, c, g in self._initiated() if g.wishes_of(p.uri)]
        if not found:
            return "nobody to remove"
        phone, call, group = self.chance.choice(found)
        user = self.chance.choice(sorted(group.wishes_of(phone.uri)))
        self.operate(phone, "remove", lambda: self.remove(phone, call, group, user))
        return f"{phone.name} removes {user} from {group.group[:14]}"

    async def remove(self, phone: Phone, call: Any, group: Group, user: str) -> None:
        process, wishes = phone.process, group.wishes_of(phone.uri)
        wishes.discard(user)
        group.out[user] = "removed"
        try:
            await self.told(call, group, lambda: call.remove(user))
        except BaseException:
            record = next((record for record in phone.unfinished() if record.group == group.group), None)
            if process is not None and process.dead and record is not None and user in record.members:
                wishes.add(user)  # the phone died before it wrote down what its user wished
            raise

    def _do_rekey(self) -> str | None:
        found = self._initiated()
        if not found:
            return "no call to rekey"
        phone, call, group = self.chance.choice(found)
        self.operate(phone, "rekey", lambda: self.told(call, group, call.rekey))
        return f"{phone.name} rekeys {group.group[:14]}"

    async def told(self, call: Any, group: Group, work: Callable[[], Awaitable[None]]) -> None:
        """5: whoever changes keys is told who has not acknowledged the new one."""
        begun, members = self.truth.now, set(call.members)
        await work()
        for user in sorted(members & call.distribution.named & group.wishes_of(call.me)):
            keys = self.truth.installed.get((user, group.group), {})
            has = any(self.truth.made[key].at >= begun for key in keys)
            proved = self.truth.told_keyed.get((group.group, user), -1.0) >= begun
            left = self.truth.told_left.get((group.group, user), -1.0) >= begun
            if not ((has and proved) or left) and not self._adding[group.group, user]:
                what = f"{call.me} is not told that {user} has no new key of {group.group}"
                self.truth.violate("5 told", what)

    def _do_revoke(self) -> str | None:
        found = [(p, c, g) for p, c, g in self._initiated() if c.distribution.current is not None]
        if not found:
            return "no key to revoke"
        phone, call, group = self.chance.choice(found)
        made = self.truth.made.get(call.distribution.current.key.reveal())
        if made is not None:
            made.revoked = True

        async def revoke() -> None:
            await call.revoke()

        self.operate(phone, "revoke", revoke)
        return f"{phone.name} revokes the key of {group.group[:14]}"

    def _do_leave(self) -> str | None:
        found = [(p, c) for p in self.phones for c in p.calls if not hasattr(c, "distribution")]
        if not found:
            return "nobody to leave"
        phone, call = self.chance.choice(found)
        self.truth.groups[call.group].out[phone.uri] = "left"
        self.operate(phone, "leave", call.leave)
        return f"{phone.name} leaves {call.group[:14]}"

    def _do_release(self) -> str | None:
        found = self._initiated()
        if not found:
            return "no call to release"
        phone, call, group = self.chance.choice(found)
        for_all = self.chance.random() < 0.6
        if phone.uri == group.initiator:
            self.truth.close(group.group, "released" if for_all else "left by its initiator")
        else:
            group.out[phone.uri], for_all = "left", False
        self.operate(phone, "release", call.release if for_all else call.leave)
        return f"{phone.name} {'releases' if for_all else 'leaves'} {group.group[:14]}"

    def _do_roster(self) -> str | None:
        found = [(p, c) for p in self.phones for c in p.calls if c.session_identity is not None]
        if not found:
            return "nobody to ask for a roster"
        phone, call = self.chance.choice(found)

        async def ask() -> None:
            assert phone.client is not None
            await phone.client.roster(call)

        self.operate(phone, "roster", ask)
        return f"{phone.name} asks who is in {call.group[:14]}"

    def _do_take_over(self) -> str | None:
        found = [
            (phone, call, self.truth.groups[call.group])
            for phone in self.phones
            for call in phone.calls
            if phone.uri in call.terms.deputies and not getattr(call, "directing", False)
        ]
        if not found:
            return "nobody to take over"
        lost = [(p, c, g) for p, c, g in found if not self.phone_of(g.initiator).alive]
        phone, call, group = self.chance.choice(lost or found)
        self.operate(phone, "take over", lambda: self.take_over(call, group))
        return f"{phone.name} takes over {group.group[:14]}"

    async def take_over(self, call: Any, group: Group) -> None:
        """15: the deputy's wish is that everybody of the signed list goes on."""
        if call.member_list is not None:
            wishes = group.wishes_of(call.me)
            wishes.update(user for user in call.member_list.users if user not in (call.me, call.initiator))
        await call.take_over()

    def _do_declare(self) -> str | None:
        found = [(p, c) for p in self.phones for c in p.calls]
        if not found:
            return "nobody to declare anything"
        phone, call = self.chance.choice(found)
        urgency = self.chance.choice(list(Urgency))
        self.operate(phone, "declare", lambda: call.declare(urgency))
        return f"{phone.name} declares {call.group[:14]} {urgency.value}"

    def _do_talk(self) -> str | None:
        found = [(p, c) for p in self.phones for c in p.calls]
        if not found:
            return self._do_start()
        for phone, call in self.chance.sample(found, min(len(found), 3)):
            for packet in range(self.chance.randrange(1, 4)):
                process = phone.process
                assert process is not None
                self.loop.call_later(packet * 0.02, call.media.talk, context=process.context.copy())
        return "some talk"

    def _do_mood(self) -> str | None:
        phone = self.chance.choice(self.phones)
        phone.mood = self.chance.choices(list(Mood), (12, 3, 1, 1))[0]
        return f"{phone.name} {phone.mood.name}"

    def _do_crash(self) -> str | None:
        phone = self.chance.choice(self.phones)
        if phone.process is None or phone.process.dead:
            return None
        self.kill(phone.process, silently=self.chance.random() < 0.4)
        return f"{phone.name} dies"

    def _do_fuse(self) -> str | None:
        phone = self.chance.choice(self.phones)
        if phone.process is None or phone.process.dead:
            return None
        phone.process.fuse = self.chance.randrange(1, 12)
        return f"{phone.name} will die at message {phone.process.fuse}"

    def _do_restart(self) -> str | None:
        dead = [n for n, p in enumerate(self.phones) if not p.alive]
        if not self.host.alive:
            self.disturb(SERVER_HOST)
            self.host.start(REGROUP)
            return "the server starts"
        if not dead:
            return "nobody is dead"
        number = self.chance.choice(dead)
        self.phones[number].start(self._settings(number))
        return f"{self.phones[number].name} starts"

    def _do_server_crash(self) -> str | None:
        if self.host.process is None or self.host.process.dead:
            return None
        self.kill(self.host.process, silently=self.chance.random() < 0.3)
        return "the server dies"

    def _do_cut_off(self) -> str | None:
        host = self.chance.choice([*HOSTS.values(), *([SERVER_HOST] if self.chance.random() < 0.2 else [])])
        self.network.cut_off.add(host)
        self.disturb(host)
        return f"{host} is cut off"

    def _do_heal(self) -> str | None:
        if not self.network.cut_off:
            return "nobody is cut off"
        for host in sorted(self.network.cut_off):
            self.disturb(host)
        self.network.heal()
        return "nobody is cut off any more"

    def _do_reset(self) -> str | None:
        if not self.network.streams:
            return "no connection"
        stream = self.chance.choice(list(self.network.streams))
        self.disturb(stream.local[0] if stream.local[0] != SERVER_HOST else stream.remote[0])
        self.network.cut_stream(stream)
        return f"the connection {stream.local} {stream.remote} is reset"

    def _do_weather(self) -> str | None:
        self.network.quality = self.chance.choice(WEATHERS)
        if self.network.quality.loss:
            for host in (*HOSTS.values(), SERVER_HOST):
                self.disturb(host)
        return f"{self.network.quality}"

    def _do_skew(self) -> str | None:
        actors: list[Phone | ServerHost] = [*self.phones, self.host]
        actor = self.chance.choice(actors)
        if actor.alive and self.chance.random() < 0.8:
            # a running clock is set right in small steps; it is wrong by much when a machine starts
            actor.skew = max(-MAX_SKEW, min(MAX_SKEW, actor.skew + self.chance.uniform(-0.02, 0.02)))
        elif not actor.alive:
            actor.skew = self.chance.uniform(-MAX_SKEW, MAX_SKEW)
        return f"{getattr(actor, 'name', 'server')} {actor.skew:+.3f}"

    def _do_hostile(self) -> str | None:
        if not self.moves:
            return None
        move = self.chance.choice(self.moves)
        if len(self.hostile.armed) > 4:
            self.hostile.armed.popleft()
        self.hostile.armed.append(move)
        return move

    def _do_wait(self) -> str | None:
        seconds = self._pause = self.chance.choice((2.0, 10.0, 60.0))
        return f"{seconds} s"
