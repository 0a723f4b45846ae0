# SPDX-License-Identifier: Apache-2.0
"""The relay's filter with the clock in the hand, and its fan-out on real sockets."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from media.fanout import Address, FanOut, FanOutThread, Turns
from media.relay import Relay, RelaySettings

ALICE, BOB, CAROL = ("127.0.0.1", 4001), ("127.0.0.1", 4002), ("::1", 4003)


def packet(sequence: int = 1, *, ssrc: int = 1, guk_id: int = 10, size: int = 60) -> bytes:
    head = struct.pack(">BBHII", 0x80, 96, sequence & 0xFFFF, 0, ssrc)
    return head + bytes(size - 12 - 12) + b"\0\0\0\7" + guk_id.to_bytes(4, "big") + bytes(4)


class Floor:
    """Whoever is named holds it."""

    holder = "alice"

    def may_pass(self, participant: str, _ssrc: int, _now: float) -> bool:
        return participant == self.holder


@pytest.fixture
def relay() -> Relay:
    relay = Relay(Floor().may_pass, RelaySettings(rate=10.0, burst=20.0))
    for number, (name, address) in enumerate((("alice", ALICE), ("bob", BOB), ("carol", CAROL)), 1):
        relay.add(name, address, number, 10 * number, 0.0)
    return relay


def test_the_holders_packets_go_to_everyone_and_each_reason_to_drop_one_is_counted(relay: Relay) -> None:
    assert relay.accept(packet(), ALICE, 0.0) and relay.destinations == (ALICE, BOB, CAROL)
    refused = {
        "unknown-source": (packet(), ("127.0.0.9", 4001)),
        "size": (packet(size=39), ALICE),
        "not-rtp": (b"\x80\xc9" + packet()[2:], ALICE),
        "foreign-guk-id": (packet(guk_id=20), ALICE),  # Bob's key on Alice's leg
        "foreign-ssrc": (packet(ssrc=2), ALICE),
        "sequence": (packet(30000), ALICE),
        "no-floor": (packet(ssrc=2, guk_id=20), BOB),
    }
    for octets, source in refused.values():
        assert not relay.accept(octets, source, 0.1)
    assert not relay.accept(packet(size=1401), ALICE, 0.1)
    assert relay.counters == {"relayed": 1, **dict.fromkeys(refused, 1), "size": 2}


def test_a_member_who_floods_is_cut_to_his_rate_and_nobody_else_is(relay: Relay) -> None:
    passed = sum(relay.accept(packet(number), ALICE, number * 0.001) for number in range(1000))
    assert 29 <= passed <= 31, "twenty at once, and ten in that second"
    assert relay.counters["rate"] == 1000 - passed


def test_after_a_silence_a_talkers_sequence_may_be_any(relay: Relay) -> None:
    assert relay.accept(packet(5), ALICE, 0.0)
    assert not relay.accept(packet(20000), ALICE, 0.5)
    assert relay.accept(packet(20000), ALICE, 1.5)
    assert relay.accept(packet(65530), ALICE, 3.0) and relay.accept(packet(65540), ALICE, 3.1)


def test_a_new_guk_id_is_bound_beside_the_old_ones_and_few_are_kept(relay: Relay) -> None:
    for guk_id in range(11, 15):
        relay.bind("alice", guk_id)
        assert relay.accept(packet(guk_id, guk_id=guk_id), ALICE, 0.0)
    assert not relay.accept(packet(16, guk_id=10), ALICE, 0.0)
    assert relay.accept(packet(17, guk_id=11), ALICE, 0.0)


@pytest.mark.parametrize("control", [False, True])
def test_a_key_that_a_member_has_left_is_refused_and_one_that_he_has_not_is_not(control: bool) -> None:
    """Security rule 28, for SRTP and for SRTCP of floor control that the members arbitrate."""

    def sent(number: int, guk_id: int, now: float, source: tuple[str, int] = ALICE) -> bool:
        whose = 1 if source == ALICE else 2
        octets = packet(number, guk_id=guk_id, ssrc=whose)
        return relay.accept(b"\x80\xcc" + octets[2:-4] if control else octets, source, now)

    settings = RelaySettings(grace=4.0, control=control, trailer=0 if control else 4)
    relay = Relay(lambda *_packet: True, settings)
    relay.add("alice", ALICE, 1, 10, 0.0)
    relay.add("bob", BOB, 2, 20, 0.0)
    assert sent(1, 10, 0.0) and sent(1, 20, 0.0, BOB)
    relay.bind("alice", 11)
    relay.bind("bob", 21)
    assert sent(2, 10, 100.0), "he has the new key, and has not switched"
    assert sent(3, 11, 101.0)
    assert sent(4, 10, 104.9) and sent(5, 11, 104.9), "what was under way when he switched"
    assert not sent(6, 10, 105.0) and not sent(7, 10, 200.0)
    assert sent(8, 11, 200.0)
    assert sent(9, 20, 200.0, BOB), "another's switch is not his: his listeners are to be told that he is behind"
    assert relay.counters == {"relayed": 8, "retired-guk-id": 2}
    relay.bind("alice", 13)  # the later one of two key changes overtakes the earlier one
    relay.bind("alice", 12)
    assert sent(10, 12, 300.0) and sent(11, 11, 303.0) and not sent(12, 11, 304.0) and not sent(13, 10, 304.0)
    assert sent(14, 13, 400.0) and sent(15, 12, 403.0) and sent(16, 13, 500.0) and not sent(17, 12, 500.0)
    relay.bind("alice", 12)  # a key message that comes once more brings nothing back
    assert not sent(18, 12, 501.0) and relay.counters["retired-guk-id"] == 6


def test_the_destinations_are_the_same_tuple_until_a_leg_changes(relay: Relay) -> None:
    before = relay.destinations
    assert relay.destinations is before
    assert not relay.move("bob", ALICE), "another's address"
    assert relay.move("bob", ("127.0.0.1", 5000)) and relay.destinations == (ALICE, ("127.0.0.1", 5000), CAROL)
    assert not relay.accept(packet(ssrc=2, guk_id=20), BOB, 0.0)
    relay.remove("bob")
    assert relay.destinations == (ALICE, CAROL)
    with pytest.raises(ValueError, match="another"):
        relay.add("dave", ALICE, 4, 40, 0.0)


# --- fan-out ----------------------------------------------------------------------------------------------


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(12)]


def got(sock: socket.socket) -> list[bytes]:
    found = []
    while select.select([sock], [], [], 0)[0]:
        found.append(sock.recv(2000))
    return found


@pytest.mark.network
@pytest.mark.parametrize("system_call", [True, False])
def test_everyone_gets_every_packet_but_his_own_and_the_order_goes_round(
    sockets: list[socket.socket], system_call: bool
) -> None:
    sender, *receivers = sockets
    for receiver in receivers:
        receiver.bind(("127.0.0.1", 0))
    targets = tuple(receiver.getsockname() for receiver in receivers)
    fan_out = FanOut()
    if not system_call:
        fan_out._sendmmsg = None
    for number in range(30):
        skip = targets[number % 11] if number < 20 else None
        assert fan_out.send(sender, b"%d" % number, targets, skip) == (10 if number < 20 else 11)
    for place, receiver in enumerate(receivers):
        assert got(receiver) == [b"%d" % n for n in range(30) if n >= 20 or n % 11 != place]
    assert fan_out.send(sender, b"x" * 2048, targets) == 11 and fan_out.send(sender, b"", ()) == 0
    assert fan_out.send(sender, b"y" * 3000, targets) == 11, "larger than its buffer: one by one"
    assert fan_out.lost == fan_out.unreachable == 0


@pytest.mark.network
def test_in_a_large_group_the_first_of_one_packet_is_the_last_of_the_next_and_the_talker_gets_none(
    sockets: list[socket.socket],
) -> None:
    sender, receiver, *_ = sockets
    receiver.bind(("127.0.0.1", 0))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    port = receiver.getsockname()[1]
    targets = tuple((f"127.0.{n // 200}.{n % 200 + 1}", port if n == 0 else port + 1 + n % 3) for n in range(300))
    fan_out = FanOut()
    ranges: list[tuple[int, int]] = []
    original = fan_out._range
    fan_out._range = lambda table, descriptor, start, end: (  # type: ignore[method-assign]
        ranges.append((start, end)), original(table, descriptor, start, end)
    )[1]
    for number in range(600):
        ranges.clear()
        skip = number * 7 % 300
        assert fan_out.send(sender, b"x", targets, targets[skip]) == 299
        order = [place % 300 for start, end in ranges for place in range(start, end)]
        assert sorted(order) == [n for n in range(300) if n != skip]
        first = (number + 1) % 300
        assert order[0] == (first if first != skip else (first + 1) % 300)
    assert len(got(receiver)) == 600 - 2


@pytest.mark.network
def test_an_address_that_cannot_be_reached_costs_the_others_nothing(sockets: list[socket.socket]) -> None:
    sender, *receivers = sockets
    for receiver in receivers:
        receiver.bind(("127.0.0.1", 0))
    # broadcast without leave: the system refuses it
    targets = tuple(r.getsockname() if n % 3 else ("255.255.255.255", 9) for n, r in enumerate(receivers))
    fan_out = FanOut()
    for _ in range(5):
        assert fan_out.send(sender, b"x", targets) == 7
    assert fan_out.unreachable == 20
    assert [len(got(receiver)) for receiver in receivers] == [5 if n % 3 else 0 for n in range(11)]


@pytest.mark.network
def test_more_than_the_kernel_takes_at_once_are_sent(sockets: list[socket.socket]) -> None:
    sender, receiver, *_ = sockets
    receiver.bind(("127.0.0.1", 0))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    targets = tuple(("127.0.0.1", receiver.getsockname()[1] + (0 if n % 100 == 0 else 1)) for n in range(2500))
    assert FanOut().send(sender, b"x", targets) == 2500
    assert len(got(receiver)) == 25


@pytest.mark.network
def test_one_socket_speaks_ipv6_and_ipv4() -> None:
    with ExitStack() as stack:
        try:
            six = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            six.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        four = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        four.bind(("127.0.0.1", 0))
        sender = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sender.bind(("::", 0))
        assert FanOut().send(sender, b"x", (six.getsockname()[:2], four.getsockname())) == 2
        assert got(six) == got(four) == [b"x"]


@pytest.mark.network
def test_a_thread_sends_in_order_and_drops_the_oldest_when_it_is_behind(sockets: list[socket.socket]) -> None:
    sender, receiver, *_ = sockets
    receiver.bind(("127.0.0.1", 0))
    targets = (receiver.getsockname(),)
    thread = FanOutThread(sender, FanOut(), depth=1000)
    for number in range(200):
        thread.put(b"%d" % number, targets, None)
    thread.close()
    assert got(receiver) == [b"%d" % n for n in range(200)] and thread.dropped == 0
    idle = FanOutThread(sender, FanOut(), depth=3)
    idle.close()  # nothing is sent any more: what is put waits
    for number in range(10):
        idle.put(b"%d" % number, targets, None)
    assert idle.dropped == 7


class Sends(FanOut):
    """Sends nothing: notes what it is given, and waits in between until it is told to go on."""

    def __init__(self, log: list[bytes], go_on: threading.Semaphore, running: list[int]) -> None:
        super().__init__()
        self.log, self.go_on, self.running = log, go_on, running

    def send(
        self, sock: socket.socket, packet: bytes, targets: tuple[Address, ...], skip: Address | None = None
    ) -> int:
        self.running.append(1)
        self.go_on.acquire()
        assert sum(self.running) == 1, "two at once"
        self.running.append(-1)
        self.log.append(packet)
        return len(targets)


@pytest.mark.network
def test_threads_take_turns_and_none_goes_twice_while_another_waits(sockets: list[socket.socket]) -> None:
    log: list[bytes] = []
    running: list[int] = []
    go_on, turns = threading.Semaphore(0), Turns(1)
    threads = [FanOutThread(sock, Sends(log, go_on, running), turns=turns) for sock in sockets[:3]]
    for number in range(4):
        for name, thread in zip((b"a", b"b", b"c"), threads, strict=True):
            thread.put(name + b"%d" % number, (ALICE,), None)
    for released in range(12):
        # whoever has something left waits for his turn: then nobody can be overtaken by chance
        while sum(running) < 1 or len(turns._waiting) < min(2, 11 - released):
            os.sched_yield()
        go_on.release()
        while len(log) == released:
            os.sched_yield()
    for thread in threads:
        thread.close()
    for start in range(0, 12, 3):
        assert {packet[:1] for packet in log[start : start + 3]} == {b"a", b"b", b"c"}, log
    for name in (b"a", b"b", b"c"):
        mine = [packet for packet in log if packet.startswith(name)]
        assert mine == sorted(mine) and len(mine) == 4
    assert not any(thread.failed or thread.dropped for thread in threads)


@pytest.mark.network
def test_a_packet_that_cannot_be_sent_does_not_end_its_thread(
    sockets: list[socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver, *_ = sockets
    receiver.bind(("127.0.0.1", 0))
    thread = FanOutThread(sender, FanOut())
    targets = (receiver.getsockname(),)
    for to in (targets, (CAROL,), targets):  # an IPv6 address, and the socket speaks IPv4
        thread.put(b"x", to, None)
    thread.close()
    assert got(receiver) == [b"x", b"x"] and thread.failed == 1
    assert "was not sent" in caplog.text
