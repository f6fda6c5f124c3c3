"""The lane alone: what is sent when, and a model of a core behind it that loses, refuses and forgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bridge.batches import checked
from tidegate_bridge.lane import IN_FLIGHT_MAX, OUT_OF_ORDER_MS, Answer, Lane, LaneBatch
from tidegate_bridge.verdicts import Verdict
from tidegate_wire.records import SEQUENCE_MAX
from tidegate_wire.uplink.messages import AckError

PRODUCER = 7
RETRY_MS = 10_000
STORED = Answer(verdict=Verdict.STORED, offset=1)
REFUSED = Answer(verdict=Verdict.REFUSED, error=AckError(code="message_too_large", reason="too large", retriable=False))
AGAIN = Answer(
    verdict=Verdict.RETRY, error=AckError(code="not_leader_or_follower", reason="not the leader", retriable=True)
)
OUT_OF_ORDER = Answer(
    verdict=Verdict.RETRY_IN_ORDER,
    error=AckError(code="out_of_order_sequence_number", reason="one is missing", retriable=True),
)


@dataclass
class Outcomes:
    """What `settled` was told, by base sequence."""

    settled: list[tuple[int, int | None, AckError | None]] = field(default_factory=list)

    def add(self, lane: Lane, base_sequence: int, now_ms: int = 0, *, count: int = 1, text: str = "value") -> None:
        def settled(offset: int | None, error: AckError | None) -> None:
            self.settled.append((base_sequence, offset, error))

        lane.add(checked(PRODUCER, base_sequence, count, text=text), settled, now_ms)

    def codes(self) -> list[tuple[int, str | None]]:
        return [(sequence, None if error is None else error.code) for sequence, _, error in self.settled]


def _lane() -> Lane:
    return Lane(retry_ms=RETRY_MS, chance=Random(1).random)


def _take_all(lane: Lane, now_ms: int = 0) -> list[LaneBatch]:
    taken: list[LaneBatch] = []
    while (entry := lane.take(now_ms)) is not None:
        taken.append(entry)
    return taken


def _sequences(entries: list[LaneBatch]) -> list[int]:
    return [entry.batch.header.base_sequence for entry in entries]


def _take_after_the_wait(lane: Lane) -> tuple[list[LaneBatch], int]:
    until_ms = lane.hold_until_ms
    assert until_ms is not None
    return _take_all(lane, until_ms), until_ms


def test_five_batches_are_in_flight_and_each_answer_lets_one_more_go() -> None:
    lane, outcomes = _lane(), Outcomes()
    for sequence in range(8):
        outcomes.add(lane, sequence)
    taken = _take_all(lane)
    assert _sequences(taken) == [0, 1, 2, 3, 4]
    assert len(taken) == IN_FLIGHT_MAX
    lane.settle(taken[0], STORED, 1)
    assert _sequences(_take_all(lane, 1)) == [5]
    assert outcomes.codes() == [(0, None)]


def test_a_batch_that_comes_back_goes_out_again_before_those_behind_it() -> None:
    lane, outcomes = _lane(), Outcomes()
    for sequence in range(7):
        outcomes.add(lane, sequence)
    taken = _take_all(lane)
    lane.settle(taken[0], STORED, 1)
    lane.settle(taken[1], AGAIN, 1)
    assert _take_all(lane, 1) == [], "nothing may overtake what came back"
    for entry in taken[2:]:
        lane.settle(entry, OUT_OF_ORDER, 2)
    assert lane.hold_until_ms is not None
    assert _take_all(lane, lane.hold_until_ms - 1) == []
    again, _ = _take_after_the_wait(lane)
    assert _sequences(again) == [1, 2, 3, 4, 5]
    assert outcomes.codes() == [(0, None)]


def test_when_the_time_for_tries_is_over_everything_is_handed_back() -> None:
    lane, outcomes = _lane(), Outcomes()
    for sequence in range(3):
        outcomes.add(lane, sequence)
    taken, now_ms = _take_all(lane), 0
    while taken:
        for entry in taken:
            lane.settle(entry, AGAIN, now_ms)
        if lane.is_empty:
            break
        taken, now_ms = _take_after_the_wait(lane)
    assert RETRY_MS <= now_ms < RETRY_MS + 2_000
    assert outcomes.codes() == [(sequence, "not_leader_or_follower") for sequence in range(3)]
    assert all(error is not None and error.retriable for _, _, error in outcomes.settled)


def test_an_error_that_is_the_batchs_own_fault_in_the_end_does_not_refuse_the_ones_behind_it() -> None:
    lane, outcomes = _lane(), Outcomes()
    outcomes.add(lane, 0)
    outcomes.add(lane, 1)
    corrupt = Answer(verdict=Verdict.RETRY, error=AckError(code="corrupt_message", reason="CRC", retriable=False))
    for entry in _take_all(lane):
        lane.settle(entry, corrupt, RETRY_MS)
    assert outcomes.codes() == [(0, "corrupt_message"), (1, "corrupt_message")]
    assert [error is not None and error.retriable for _, _, error in outcomes.settled] == [False, True]


def test_a_missing_batch_is_waited_for_only_briefly() -> None:
    lane, outcomes = _lane(), Outcomes()
    outcomes.add(lane, 5)
    now_ms = 0
    tries = 0
    while not lane.is_empty:
        (entry,) = _take_all(lane, now_ms)
        tries += 1
        lane.settle(entry, OUT_OF_ORDER, now_ms)
        now_ms = lane.hold_until_ms or now_ms
    assert OUT_OF_ORDER_MS <= now_ms < OUT_OF_ORDER_MS + 300
    assert tries > 10
    assert outcomes.codes() == [(5, "out_of_order_sequence_number")]


def test_a_refused_batch_does_not_hold_up_the_others() -> None:
    lane, outcomes = _lane(), Outcomes()
    outcomes.add(lane, 0)
    outcomes.add(lane, 1)
    first, second = _take_all(lane)
    lane.settle(first, REFUSED, 0)
    lane.settle(second, OUT_OF_ORDER, 0)
    assert outcomes.codes() == [(0, "message_too_large")]
    again, _ = _take_after_the_wait(lane)
    assert _sequences(again) == [1]


def test_the_same_batch_sent_twice_goes_to_the_core_once_and_is_answered_twice() -> None:
    lane, outcomes = _lane(), Outcomes()
    outcomes.add(lane, 0)
    (entry,) = _take_all(lane)
    outcomes.add(lane, 0)
    assert _take_all(lane) == []
    lane.settle(entry, STORED, 1)
    assert outcomes.settled == [(0, 1, None), (0, 1, None)]
    assert lane.is_empty


def test_other_bytes_under_the_same_sequence_are_sent_for_the_core_to_decide() -> None:
    lane, outcomes = _lane(), Outcomes()
    outcomes.add(lane, 0)
    outcomes.add(lane, 0, text="other")
    assert _sequences(_take_all(lane)) == [0, 0]


def test_batches_that_an_edge_sends_again_from_its_start_go_before_the_ones_that_wait() -> None:
    lane, outcomes = _lane(), Outcomes()
    outcomes.add(lane, 5)
    (entry,) = _take_all(lane)
    lane.settle(entry, OUT_OF_ORDER, 0)
    for sequence in (3, 4, 5, 6):
        outcomes.add(lane, sequence)
    again, _ = _take_after_the_wait(lane)
    assert _sequences(again) == [3, 4, 5, 6]


def test_the_order_survives_the_wrap_of_the_sequence() -> None:
    lane, outcomes = _lane(), Outcomes()
    for sequence in (1, SEQUENCE_MAX, 0, SEQUENCE_MAX - 1):
        outcomes.add(lane, sequence)
    assert _sequences(_take_all(lane)) == [SEQUENCE_MAX - 1, SEQUENCE_MAX, 0, 1]


def test_no_way_to_the_leader_holds_everything_and_hands_it_back_in_the_end() -> None:
    lane, outcomes = _lane(), Outcomes()
    outcomes.add(lane, 0)
    lane.unreachable(AGAIN, 0)
    assert _take_all(lane, 0) == []
    assert outcomes.settled == []
    lane.unreachable(AGAIN, RETRY_MS)
    assert outcomes.codes() == [(0, "not_leader_or_follower")]


class ModelCore:
    """Appends in sequence, recognises the last five batches, loses answers."""

    def __init__(self) -> None:
        self.log: list[int] = []

    def produce(self, sequence: int) -> Answer:
        if sequence < len(self.log):
            return Answer(verdict=Verdict.STORED, offset=sequence)
        if sequence > len(self.log):
            return OUT_OF_ORDER
        self.log.append(sequence)
        return Answer(verdict=Verdict.STORED, offset=sequence)


@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=1, max_value=30))
def test_whatever_is_lost_on_the_way_each_batch_is_stored_once_and_in_order(seed: int, count: int) -> None:
    chance = Random(seed)
    lane, outcomes, core = _lane(), Outcomes(), ModelCore()
    now_ms, sent = 0, 0
    on_the_way: list[LaneBatch] = []
    for _ in range(10_000):
        if sent < count and chance.random() < 0.5:
            outcomes.add(lane, sent, now_ms)
            sent += 1
        on_the_way += _take_all(lane, now_ms)
        if on_the_way and chance.random() < 0.8:
            entry = on_the_way.pop(0)
            lost_before, lost_after = chance.random() < 0.15, chance.random() < 0.15
            answer = AGAIN if lost_before else core.produce(entry.batch.header.base_sequence)
            lane.settle(entry, AGAIN if lost_after else answer, now_ms)
        elif not on_the_way and lane.hold_until_ms is not None:
            now_ms = max(now_ms, lane.hold_until_ms)
        if sent == count and lane.is_empty:
            break
    assert lane.is_empty
    # Handing back is allowed when the time for tries is over; the edge would send again, from the first on.
    assert core.log == list(range(len(core.log)))
    stored = {sequence for sequence, _, error in outcomes.settled if error is None}
    assert stored <= set(core.log)
    assert len(outcomes.settled) == count
    if all(error is None for _, _, error in outcomes.settled):
        assert core.log == list(range(count))


@pytest.mark.parametrize("size", [1, 5, 6])
def test_an_empty_lane_wants_nothing(size: int) -> None:
    lane, outcomes = _lane(), Outcomes()
    for sequence in range(size):
        outcomes.add(lane, sequence)
    while taken := _take_all(lane):
        for entry in taken:
            lane.settle(entry, STORED, 0)
    assert lane.is_empty
    assert lane.hold_until_ms is None
    assert len(outcomes.settled) == size
