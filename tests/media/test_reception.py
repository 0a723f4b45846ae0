# SPDX-License-Identifier: Apache-2.0
"""Who is heard, and when (security rules 10 and 11); time is fed in."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from media.reception import Burst, BurstEnded, Event, Impersonated, Played, Reception, ReceptionSettings
from media.rtp import RtpPacket

ALICE, BOB, ME = "sip:alice@x", "sip:bob@x", "sip:me@x"
MKI = {ALICE: b"\0\0\0\1alic", BOB: b"\0\0\0\1bob0", ME: b"\0\0\0\1me00"}
NEXT_MKI = {ALICE: b"\0\0\0\2ALIC", BOB: b"\0\0\0\2BOB0", ME: b"\0\0\0\2ME00"}
WALL = 1_700_000_000.0


def owns(user: str, mki: bytes) -> bool:
    return mki in (MKI[user], NEXT_MKI[user])


class Ear:
    """A reception with a clock."""

    def __init__(self, **settings: float) -> None:
        self.reception = Reception(ME, owns, ReceptionSettings(**settings))  # type: ignore[arg-type]
        self.now = 0.0
        self.heard: list[Event] = []

    def until(self, now: float) -> None:
        while (due := self.reception.next_timer()) is not None and due <= now:
            self.now = max(self.now, due)
            self.reception.handle_timer(self.now)
            self.heard += self.reception.events()
        self.now = now
        self.reception.handle_timer(now)
        self.heard += self.reception.events()

    def packet(
        self,
        number: int,
        *,
        user: str = ALICE,
        mki: bytes | None = None,
        ntp: float | None = None,
        marker: bool = False,
        ssrc: int = 0,
        timestamp: int | None = None,
    ) -> None:
        at = number * 960 if timestamp is None else timestamp
        ssrc = ssrc or {ALICE: 1, BOB: 2, ME: 3}[user]
        packet = RtpPacket(96, number & 0xFFFF, at & 0xFFFFFFFF, ssrc, marker, b"%d" % number, ntp)
        self.reception.receive(packet, mki or MKI[user], self.now, WALL + self.now)
        self.heard += self.reception.events()

    def burst(self, numbers: range, *, user: str = ALICE, timestamp: int | None = None) -> None:
        """Packets in real time; the first three state their time."""
        for index, number in enumerate(numbers):
            self.until(self.now + 0.02)
            self.packet(
                number,
                user=user,
                ntp=WALL + self.now if index < 3 else None,
                marker=index == 0,
                timestamp=None if timestamp is None else timestamp + index * 960,
            )

    @property
    def played(self) -> list[bytes | None]:
        return [event.payload for event in self.heard if isinstance(event, Played)]

    @property
    def ended(self) -> list[Burst]:
        return [event.burst for event in self.heard if isinstance(event, BurstEnded)]


def numbers(first: int, last: int) -> list[bytes | None]:
    return [b"%d" % number for number in range(first, last)]


def test_a_burst_of_the_floor_holder_is_played_to_its_last_frame() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(100, 150))
    ear.reception.floor(None, ear.now)
    ear.until(5)
    assert ear.played == numbers(100, 150)
    assert [burst.user for burst in ear.ended] == [ALICE]


def test_frames_are_due_twenty_milliseconds_apart() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(30))
    ear.until(5)
    due = [event.due for event in ear.heard if isinstance(event, Played)]
    assert all(abs(later - earlier - 0.02) < 1e-9 for earlier, later in itertools.pairwise(due))


def test_nobody_is_heard_while_another_holds_the_floor() -> None:
    ear = Ear()
    ear.reception.floor(BOB, 0.0)
    ear.burst(range(20))
    ear.until(5)
    assert ear.played == []
    assert ear.reception.counters["not-the-floor-holder"] == 20


def test_media_that_overtakes_floor_taken_waits_for_it() -> None:
    ear = Ear()
    ear.burst(range(5))  # 100 ms
    ear.reception.floor(ALICE, ear.now)
    ear.burst(range(5, 20))
    ear.until(5)
    assert ear.played == numbers(0, 20)


def test_media_waits_no_longer_than_the_grace_and_in_bounded_number() -> None:
    ear = Ear(held=8)
    ear.burst(range(5))
    ear.until(ear.now + 0.21)
    assert ear.reception.counters["not-the-floor-holder"] == 5
    ear.reception.floor(ALICE, ear.now)
    for number in range(20):
        ear.packet(number, user=BOB, ntp=WALL + ear.now)
    assert ear.reception.counters["not-the-floor-holder"] == 5 + 12
    ear.until(5)
    assert ear.played == []


def test_the_end_of_a_burst_that_floor_idle_overtakes_is_heard() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(18))
    ear.reception.floor(None, ear.now)
    ear.burst(range(18, 20))
    ear.until(5)
    assert ear.played == numbers(0, 20)


def test_after_its_grace_the_last_talker_is_not_heard_any_more() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(10))
    ear.reception.floor(BOB, ear.now)
    ear.until(ear.now + 0.3)
    ear.burst(range(24, 40))
    ear.until(5)
    assert ear.played == numbers(0, 10)
    assert ear.reception.counters["not-the-floor-holder"] == 16


def test_within_the_grace_the_last_talker_cannot_begin_a_new_burst() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.reception.floor(BOB, 0.1)
    ear.now = 0.15
    ear.packet(0, ntp=WALL + 0.15, marker=True)
    ear.until(5)
    assert ear.played == []
    assert ear.reception.counters["late"] == 1


def test_a_talker_change_cuts_neither_the_last_nor_the_first_frame() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(10))
    ear.reception.floor(BOB, ear.now)
    ear.burst(range(500, 510), user=BOB)
    ear.until(5)
    assert ear.played == numbers(0, 10) + numbers(500, 510)
    assert [burst.user for burst in ear.ended] == [ALICE, BOB]


def test_two_bursts_of_one_talker_are_two() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(10))
    ear.reception.floor(None, ear.now)
    ear.reception.floor(ALICE, ear.now)
    ear.burst(range(10, 20), timestamp=960 * 40)
    ear.until(5)
    assert ear.played == numbers(0, 20)
    assert len(ear.ended) == 2


def test_an_old_recording_is_not_played_to_a_fresh_receiver() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    for number in range(30):
        ear.packet(number, ntp=WALL - 60 if number < 3 or not number % 25 else None, marker=number == 0)
    ear.until(5)
    assert ear.played == []
    assert ear.reception.counters["stale"] == 4
    assert ear.reception.counters["no-time"] == 26


def test_a_recording_without_its_first_packets_is_not_played_either() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    for number in range(3, 25):
        ear.packet(number)
    ear.until(5)
    assert ear.played == []
    assert ear.reception.counters["no-time"] == 22


def test_one_of_the_three_timed_packets_is_enough() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.packet(2, ntp=WALL)
    for number in range(3, 20):
        ear.packet(number)
    ear.until(5)
    assert ear.played == numbers(2, 20)


def test_a_late_comer_hears_from_the_next_stated_time_on() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    for number in range(110, 150):
        ear.until(ear.now + 0.02)
        ear.packet(number, ntp=WALL + ear.now if number == 125 else None)
    ear.until(5)
    assert ear.played == numbers(125, 150)


def test_a_known_talker_is_heard_without_a_stated_time_but_not_with_a_stale_one() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(10))
    ear.until(2)
    ear.packet(200)
    ear.packet(201, ntp=WALL - 100)
    ear.until(5)
    assert ear.played == [*numbers(0, 10), b"200"]
    assert ear.reception.counters["stale"] == 1


def test_a_new_key_in_mid_burst_goes_on_with_the_burst() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(10))
    for number in range(10, 20):
        ear.until(ear.now + 0.02)
        ear.packet(number, mki=NEXT_MKI[ALICE])
    ear.until(5)
    assert ear.played == numbers(0, 20)
    assert len(ear.ended) == 1


def test_ones_own_guk_id_from_outside_is_reported_once_and_never_played() -> None:
    ear = Ear()
    for holder in (ME, ALICE, None):
        ear.reception.floor(holder, ear.now)
        for number in range(4):
            ear.packet(number, user=ME, ntp=WALL + ear.now)
    ear.until(5)
    assert ear.heard == [Impersonated(MKI[ME])]
    assert ear.reception.counters["impersonated"] == 12


def test_foreign_payload_types_and_empty_payloads_are_counted() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.reception.receive(RtpPacket(0, 1, 1, 1, payload=b"x"), MKI[ALICE], 0.0, WALL)
    ear.reception.receive(RtpPacket(96, 1, 1, 1), MKI[ALICE], 0.0, WALL)
    assert ear.reception.counters["payload-type"] == 1
    assert ear.reception.counters["empty"] == 1


def test_stopping_ends_the_burst_under_way() -> None:
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    ear.burst(range(10))
    ear.reception.stop()
    assert [type(event) for event in ear.reception.events()] == [BurstEnded]
    assert ear.reception.next_timer() is None


@given(st.integers(0, 2**32), st.integers(1, 120), st.floats(0, 0.3), st.booleans())
def test_with_loss_and_reordering_within_the_delay_every_packet_that_arrived_is_played(
    seed: int, length: int, loss: float, wrap: bool
) -> None:
    chance = random.Random(seed)
    first = 65530 if wrap else 7
    ear = Ear()
    ear.reception.floor(ALICE, 0.0)
    arrivals = []
    for index in range(length):
        if index and chance.random() < loss:
            continue
        # the first arrives undisturbed: it fixes the delay
        arrivals.append((index * 0.02 + (chance.random() * 0.055 if index else 0.0), index))
    for at, index in sorted(arrivals):
        ear.until(at)
        ear.packet(first + index, ntp=WALL + at if index % 25 < 3 else None, marker=index == 0)
    ear.reception.floor(None, ear.now)
    ear.until(length * 0.02 + 5)
    timed = ear.reception.counters["no-time"]
    assert timed == 0
    assert [payload for payload in ear.played if payload is not None] == numbers_of(first, arrivals)
    assert len(ear.ended) == 1


def numbers_of(first: int, arrivals: list[tuple[float, int]]) -> list[bytes | None]:
    return [b"%d" % (first + index) for _, index in sorted(arrivals, key=lambda arrival: arrival[1])]
