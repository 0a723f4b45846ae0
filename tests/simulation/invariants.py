# SPDX-License-Identifier: Apache-2.0
"""What must hold after each step (DESIGN.md 4), and what must hold when everything is calm."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterable
from typing import Any

from mcptt_sip.mcptt.client import McpttClient
from mcptt_sip.mcptt.keying import INSTALLED
from mikey import TransportKey
from tests.simulation.phones import Phone, ServerHost
from tests.simulation.truth import LATE, Group, Made, Truth

#: what a phone or the server may have on its loop when it has nothing to do: keep-alive, registration, stack
IDLE_TASKS, IDLE_TIMERS = 2, 6
#: seconds after which a disturbance of the network excuses nothing any more: 64*T1, and the keep-alive's patience
AFTERMATH = 75.0


class Invariants:
    """Looks at every actor. Remembers what it saw, to see what changes."""

    def __init__(self, truth: Truth, phones: list[Phone], host: ServerHost) -> None:
        self.truth = truth
        self.phones = phones
        self.host = host
        #: (group, user) who was told something else of his call than the server knows
        self.misled: set[tuple[str, str]] = set()
        #: (phone, start, group) -> GMK-ID -> the key held under it after the last step
        self._held: dict[tuple[str, int, str], dict[int, TransportKey]] = {}

    # --- after each step --------------------------------------------------------------------------------

    def check(self) -> None:
        truth = self.truth
        truth.settle_sealed()
        seen = set()
        for phone in self.phones:
            for call in phone.calls:
                group = truth.groups.get(call.group)
                if call.ended.is_set():
                    continue
                if group is None:
                    truth.violate("3 pinning", f"{phone.uri} is in {call.group}, which nobody opened")
                    continue
                seen.add((phone.name, phone.starts, call.group))
                self._keys(phone, call, group)
                self._media(phone, call, group)
                if getattr(call, "directing", False):
                    self._distribution(phone, call, group)
        for key in [key for key in self._held if key not in seen]:
            del self._held[key]
        if self.host.alive:
            self._server()

    def _keys(self, phone: Phone, call: Any, group: Group) -> None:
        """3: only keys of the pinned signer; 4: ids stay what they are, and keys go only for a reason."""
        truth, now = self.truth, phone.clock()
        makers = {group.initiator, *group.deputies}
        if call.initiator not in makers:
            truth.violate("3 pinning", f"{phone.uri} takes {call.initiator} for the initiator of {group.group}")
        held = {key.key_id: key for key in call.keys.held(now)}
        for key_id, key in held.items():
            made = truth.made.get(key.key.reveal())
            if made is None or made.group != group.group or made.maker not in makers:
                truth.violate("3 pinning", f"{phone.uri} holds in {group.group} the foreign key {key_id:08x}")
        before = self._held.get((phone.name, phone.starts, group.group), {})
        installed = truth.installed.get((phone.uri, group.group), {})
        for key_id, key in before.items():
            kept = held.get(key_id)
            if kept is None:
                made = truth.made.get(key.key.reveal())
                newer = made is not None and any(truth.made[o].at > made.at for o in installed)
                if made is not None and not newer and not made.revoked and now < key.expiry - LATE:
                    truth.violate("4 groups", f"{phone.uri} lost the key {key_id:08x} of {group.group} for no reason")
            elif kept.key != key.key or kept.rand != key.rand:
                truth.violate("4 identifiers", f"{phone.uri}: {key_id:08x} of {group.group} was overwritten")
        self._held[phone.name, phone.starts, group.group] = held

    def _media(self, phone: Phone, call: Any, group: Group) -> None:
        """5: what this member would send under, if he talked now."""
        sending = call.media.sending
        if sending is None:
            return
        made = self._made(group, phone.uri, int.from_bytes(sending.mki[:4], "big"))
        if made is None:
            self.truth.violate("9 protection", f"{phone.uri} would send in {group.group} under an unknown key")
        else:
            self.truth.sends_under(phone.uri, group.group, made, phone.clock())

    def _made(self, group: Group, user: str, key_id: int) -> Made | None:
        return self.truth.key_of(user, group.group, key_id)

    def _distribution(self, phone: Phone, call: Any, group: Group) -> None:
        """1: named is whom the user named; 5: whoever was sealed to counts as a holder; 8: keyed is who proved it."""
        truth, distribution = self.truth, call.distribution
        for user in distribution.named - group.wishes_of(phone.uri):
            truth.violate("1 recipients", f"{phone.uri} has {user} in {group.group}, whom he did not name")
        current = distribution.current
        if current is None:
            return
        made = truth.made.get(current.key.reveal())
        if made is not None and distribution.made_at:  # a deputy has taken over what somebody sealed before
            for user in made.sealed_to - distribution.holders(current):
                truth.violate("5 holders", f"{phone.uri} forgets that {user} got {current.key_id:08x} of {group.group}")
        for user in distribution.keyed():
            sealing = sealing_of(distribution, user, current.key_id)
            if sealing is None or not truth.proved(user, sealing.message.signed_digest, group.group):
                truth.violate("8 keyed", f"{phone.uri} counts {user} as keyed in {group.group} without a proof")

    def _server(self) -> None:
        """10: a call on the server has the legs that it relays for."""
        assert self.host.server is not None
        for call in self.host.server.controlling.calls.values():
            relayed = set(call.media.legs)  # type: ignore[attr-defined]
            legs = {leg.user for leg in call.legs.values() if leg.in_media}
            if relayed != legs:
                self.truth.violate("10 state", f"{call.group}: relayed for {sorted(relayed)}, legs of {sorted(legs)}")

    # --- now and then -----------------------------------------------------------------------------------

    def search_server(self) -> int:
        """1: no TGMK in anything that the server's process can reach. Returns how many objects were looked at."""
        assert self.host.server is not None
        secrets = set(self.truth.made)
        newest = list(self.truth.made)[-12:]
        found = 0
        for thing in reachable(self.host.server):
            found += 1
            if isinstance(thing, bytes | bytearray) and len(thing) >= 16:
                octets = bytes(thing)
                if octets in secrets or any(secret in octets for secret in newest):
                    self.truth.violate("1 secrecy", "the server's process holds a TGMK")
        return found

    # --- when everything is calm ------------------------------------------------------------------------

    def check_agreement(self) -> None:
        """10: after all troubles are over, the server and the phones agree on who is where."""
        truth, server = self.truth, self.host.server
        assert server is not None
        calls = server.controlling.calls
        for phone in self.phones:
            if server.participating.locate(phone.uri, self.host.clock()) is None:
                truth.violate("10 registration", f"{phone.uri} is not registered although nothing is in the way")
            for call in phone.calls:
                leg = calls[call.group].legs.get(phone.uri) if call.group in calls else None
                if leg is None and noticed(call.session):
                    truth.violate("10 state", f"{phone.uri} is in {call.group}, says he; the server does not")
        for call in calls.values():
            for leg in call.legs.values():
                phone = next(p for p in self.phones if p.uri == leg.user)
                flow = leg.session.flow
                if flow is not None and flow.remote in phone.network.silenced:
                    truth.counts["legs that died in silence"] += 1  # the session timer's business, too
                elif (member := phone.call(call.group)) is None:
                    if noticed(leg.session):
                        truth.violate("10 state", f"{leg.user} is in {call.group}, says the server; he does not")
                elif not noticed(leg.session) or (call.group, leg.user) in self.misled:
                    continue
                elif member.urgency is not call.urgency:
                    what = f"{member.urgency.value} to {leg.user}, {call.urgency.value} to the server"
                    truth.violate("10 state", f"{call.group} is {what}")

    def check_nothing_left(self) -> None:
        """10, 11: all calls are over, and nothing is left of them."""
        truth, server = self.truth, self.host.server
        assert server is not None
        if server.controlling.calls:
            truth.violate("10 end", f"the server still has {sorted(server.controlling.calls)}")
        self._idle("server", self.host, server.stack)
        for phone in self.phones:
            client = phone.client
            assert client is not None
            if client.calls:
                truth.violate("10 end", f"{phone.uri} is still in {sorted(client.calls)}")
            self._idle(phone.name, phone, client.stack)

    def _idle(self, name: str, actor: Any, stack: Any) -> None:
        process = actor.process
        tasks = [task for task in process.tasks if not task.done()]
        if len(tasks) > IDLE_TASKS:
            self.truth.violate("10 end", f"{name} has tasks left: {sorted(named(task) for task in tasks)}")
        timers = process.pending_timers(self.truth.now)
        if timers > IDLE_TIMERS:
            self.truth.violate("10 end", f"{name} has {timers} timers left")
        for what in ("_dialogs", "_clients", "_servers", "_expected"):
            # registrations are renewed all the time
            left = [key for key in getattr(stack, what) if "REGISTER" not in key]
            if left:
                self.truth.violate("10 end", f"{name} has {what[1:]} left: {left[:5]}")


def noticed(session: Any) -> bool:
    """Over datagrams nobody notices that the other is gone before the session timer does (RFC 4028)."""
    return session is not None and session.flow is not None and bool(session.flow.reliable)


def named(task: Any) -> str:
    return str(getattr(task.get_coro(), "__qualname__", task))


def sealing_of(distribution: Any, user: str, key_id: int) -> Any:
    """The message by which ``user`` got this key."""
    for key, sealing in distribution._sealings.items():
        if key[0] == user and sealing.key.key_id == key_id and sealing.result == INSTALLED:
            return sealing
    return None


_SHARED = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, McpttClient)


def reachable(root: object) -> Iterable[object]:
    """Everything that the attributes of ``root`` lead to inside its own process: not the loop, not the network."""
    from tests.simulation.loop import Process, VirtualLoop
    from tests.simulation.network import Datagrams, Network, Server, Stream

    stop = (*_SHARED, VirtualLoop, Network, Process, Stream, Datagrams, Server, Truth)
    seen = {id(root)}
    waiting: list[object] = [root]
    while waiting:
        thing = waiting.pop()
        yield thing
        if isinstance(thing, types.FunctionType):
            others = [cell.cell_contents for cell in thing.__closure__ or ()]
        else:
            others = gc.get_referents(thing)
        for other in others:
            if id(other) not in seen and not isinstance(other, stop):
                seen.add(id(other))
                waiting.append(other)
