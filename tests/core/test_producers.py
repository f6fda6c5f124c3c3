"""Idempotent producers: Kafka's rules for sequences and epochs (KIP-98), and the snapshots of the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.errors import (
    AppendRefused,
    DuplicateSequence,
    InvalidProducerEpoch,
    OutOfOrderSequence,
    UnknownProducer,
)
from tidegate_core.producers import BATCHES_KEPT, ProducerStates
from tidegate_wire.identifiers import Offset, ProducerId
from tidegate_wire.records import SEQUENCE_MAX, BatchHeader

NOW_MS = 1_000_000


def header(sequence: int, *, count: int = 1, offset: int = 0, producer: int = 7, epoch: int = 0) -> BatchHeader:
    return BatchHeader._make((offset, 49 + 10, 0, 2, 0, 0, count - 1, 5, 6, producer, epoch, sequence, count))


def written(*sequences: int, count: int = 1, epoch: int = 0) -> ProducerStates:
    states = ProducerStates()
    for offset, sequence in enumerate(sequences):
        states.record(header(sequence, count=count, offset=offset * count, epoch=epoch), NOW_MS)
    return states


def test_next_sequence_is_new() -> None:
    assert written(0, 1, 2).check(header(3)) is None


def test_repeated_batch_has_the_offsets_of_the_first_copy() -> None:
    states = written(0, 10, 20, count=10)
    batch = states.check(header(10, count=10))
    assert batch is not None
    assert (batch.base_offset, batch.last_offset) == (10, 19)


@pytest.mark.parametrize("sequence", range(3, 8))
def test_each_of_the_last_five_batches_is_recognised(sequence: int) -> None:
    states = written(*range(8))
    batch = states.check(header(sequence))
    assert batch is not None
    assert batch.base_offset == sequence


def test_batch_older_than_the_last_five_is_a_duplicate_without_an_offset() -> None:
    with pytest.raises(DuplicateSequence):
        written(*range(8)).check(header(8 - BATCHES_KEPT - 1))


def test_gap_is_refused() -> None:
    with pytest.raises(OutOfOrderSequence):
        written(0, 1).check(header(3))


def test_batch_cut_differently_than_before_is_refused() -> None:
    with pytest.raises(OutOfOrderSequence):
        written(0, 10, count=10).check(header(5, count=10))


def test_lower_epoch_is_refused() -> None:
    with pytest.raises(InvalidProducerEpoch):
        written(0, epoch=3).check(header(1, epoch=2))


def test_new_epoch_begins_at_sequence_0() -> None:
    states = written(0, 1, epoch=3)
    with pytest.raises(OutOfOrderSequence):
        states.check(header(2, epoch=4))
    assert states.check(header(0, epoch=4)) is None


def test_after_a_new_epoch_the_old_batches_are_no_duplicates() -> None:
    states = written(0, 1, 2, epoch=3)
    states.record(header(0, epoch=4, offset=9), NOW_MS)
    batch = states.check(header(0, epoch=4))
    assert batch is not None
    assert batch.base_offset == 9
    with pytest.raises(InvalidProducerEpoch):
        states.check(header(1, epoch=3))


def test_unknown_producer_begins_at_0() -> None:
    states = ProducerStates()
    assert states.check(header(0)) is None
    with pytest.raises(UnknownProducer):
        states.check(header(1))


def test_sequence_wraps_to_0_after_the_largest() -> None:
    states = ProducerStates()
    states.record(header(SEQUENCE_MAX - 1, count=2), NOW_MS)
    assert states.check(header(0)) is None
    states.record(header(0, offset=2), NOW_MS)
    batch = states.check(header(SEQUENCE_MAX - 1, count=2))
    assert batch is not None
    assert batch.base_offset == 0


def test_batch_that_spans_the_wrap_is_recognised() -> None:
    states = ProducerStates()
    states.record(header(SEQUENCE_MAX, count=4), NOW_MS)
    batch = states.check(header(SEQUENCE_MAX, count=4))
    assert batch is not None
    assert batch.last_sequence == 2
    assert states.check(header(3)) is None


def test_producer_that_wrote_longest_ago_makes_room_for_a_new_one() -> None:
    states = ProducerStates(producers_max=2)
    for offset, producer in enumerate((1, 2, 1, 3)):
        states.record(header(0, producer=producer, offset=offset), NOW_MS)
    assert [producer_id for producer_id, _ in states.items()] == [1, 3]


def test_expiry_forgets_those_who_wrote_nothing_since() -> None:
    states = ProducerStates()
    for producer, time_ms in ((1, 10), (2, 20), (3, 30)):
        states.record(header(0, producer=producer), time_ms)
    assert states.expire(before_ms=20) == 1
    assert [producer_id for producer_id, _ in states.items()] == [2, 3]


def test_copy_does_not_change_with_the_table() -> None:
    states = written(0, 1)
    before = states.copy()
    states.record(header(2, offset=2), NOW_MS)
    producer = before.get(ProducerId(7))
    assert producer is not None
    assert producer.batches[-1].base_sequence == 1


BATCHES = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 2**15 - 1),
        st.integers(0, SEQUENCE_MAX),
        st.integers(1, 1000),
        st.integers(0, 2**40),
    ),
    max_size=40,
)


@given(BATCHES, st.integers(0, 2**62))
def test_snapshot_round_trip(batches: list[tuple[int, int, int, int, int]], offset: int) -> None:
    states = ProducerStates()
    for producer, epoch, sequence, count, base in batches:
        states.record(header(sequence, count=count, offset=base, producer=producer, epoch=epoch), NOW_MS)
    found_offset, found = ProducerStates.decode(states.encode(Offset(offset)))
    assert found_offset == offset
    assert list(found.items()) == list(states.items())


@given(st.binary(max_size=300))
def test_snapshot_of_any_bytes_is_read_or_refused(data: bytes) -> None:
    try:
        ProducerStates.decode(data)
    except ValueError:
        pass
    else:
        assert len(data) >= 12


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=60))
def test_no_sequence_is_ever_taken_twice_or_left_out(attempts: list[tuple[int, int]]) -> None:
    """Whatever a producer sends, what is taken is exactly 0, 1, 2, ... in order."""
    states = ProducerStates()
    taken: list[int] = []
    for sequence, count in attempts:
        batch = header(sequence, count=count, offset=len(taken))
        try:
            duplicate = states.check(batch)
        except AppendRefused:
            continue
        if duplicate is None:
            states.record(batch, NOW_MS)
            taken.extend(range(sequence, sequence + count))
        else:
            assert taken[duplicate.base_offset : duplicate.last_offset + 1] == list(range(sequence, sequence + count))
    assert taken == list(range(len(taken)))
