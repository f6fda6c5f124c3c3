from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.records.batches import BASE_TIME_MS, Fields, build, record_lists, wrap
from tidegate_wire.identifiers import BatchSequence, LeaderEpoch, Offset, ProducerEpoch, ProducerId
from tidegate_wire.records import (
    HEADER_BYTES,
    SEQUENCE_MAX,
    BatchError,
    BatchHeader,
    Compression,
    CorruptBatch,
    RecordBatchBuilder,
    TornBatch,
    UnsupportedMagic,
    check_batch,
    iter_batches,
    read_records,
    stamp,
    stamp_log_append_time,
)


def _sequenced(base_sequence: int, count: int) -> BatchHeader:
    builder = RecordBatchBuilder(ProducerId(7), ProducerEpoch(3), BatchSequence(base_sequence))
    for _ in range(count):
        builder.append(BASE_TIME_MS, b"key", b"value")
    return check_batch(builder.build())


def test_the_header_of_a_built_batch_says_what_was_given() -> None:
    builder = RecordBatchBuilder(ProducerId(2**40), ProducerEpoch(3), BatchSequence(70), Compression.ZSTD)
    builder.append(BASE_TIME_MS + 5, b"key", b"value" * 100)
    builder.append(BASE_TIME_MS - 5, b"key", b"value" * 100)
    size_limit = builder.size_bytes
    batch = builder.build()
    header = check_batch(batch)
    assert header.size_bytes == len(batch) <= size_limit
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (2**40, 3, 70)
    assert (header.record_count, header.last_offset_delta, header.last_sequence) == (2, 1, 71)
    assert (header.base_timestamp_ms, header.max_timestamp_ms) == (BASE_TIME_MS + 5, BASE_TIME_MS + 5)
    assert header.compression is Compression.ZSTD
    assert header.has_producer_id
    assert not any((header.is_control, header.is_transactional, header.uses_log_append_time, header.has_gaps))


def test_size_bytes_of_the_builder_is_exact_without_compression() -> None:
    builder = RecordBatchBuilder()
    for index in range(300):
        builder.append(BASE_TIME_MS + index * 1000, b"key", b"v" * index)
    size_bytes = builder.size_bytes
    assert len(builder.build()) == size_bytes


@pytest.mark.parametrize(
    ("base_sequence", "count", "last_sequence"),
    [
        (0, 1, 0),
        (SEQUENCE_MAX, 1, SEQUENCE_MAX),
        (SEQUENCE_MAX, 2, 0),
        (SEQUENCE_MAX - 1, 5, 2),
        (-1, 3, -1),
    ],
)
def test_sequence_numbers_run_to_the_largest_int32_and_then_from_zero(
    base_sequence: int, count: int, last_sequence: int
) -> None:
    assert _sequenced(base_sequence, count).last_sequence == last_sequence


def test_control_and_transactional_batches_are_marked() -> None:
    builder = RecordBatchBuilder(is_control=True, is_transactional=True)
    builder.append(BASE_TIME_MS, b"\0\0\0\2", b"\0\0")
    header = check_batch(builder.build())
    assert header.is_control
    assert header.is_transactional


def test_an_incompressible_batch_is_stored_uncompressed() -> None:
    builder = RecordBatchBuilder(compression=Compression.ZSTD)
    builder.append(BASE_TIME_MS, None, b"x")
    assert check_batch(builder.build()).compression is Compression.NONE


def test_a_stamped_batch_keeps_its_crc_and_its_records() -> None:
    batch = bytearray(build([(BASE_TIME_MS, b"k", b"a", []), (BASE_TIME_MS, b"k", b"b", [])]))
    stamp(batch, Offset(2**40), LeaderEpoch(12))
    header = check_batch(batch)
    assert (header.base_offset, header.leader_epoch, header.last_offset) == (2**40, 12, 2**40 + 1)
    assert [record.offset for record in read_records(batch)] == [2**40, 2**40 + 1]


def test_log_append_time_becomes_the_time_of_every_record() -> None:
    batch = bytearray(build([(BASE_TIME_MS, b"k", b"a", []), (BASE_TIME_MS + 9, b"k", b"b", [])]))
    stamp_log_append_time(memoryview(batch), BASE_TIME_MS + 77_777)
    header = check_batch(batch)
    assert header.uses_log_append_time
    assert header.max_timestamp_ms == BASE_TIME_MS + 77_777
    assert [record.timestamp_ms for record in read_records(batch)] == [BASE_TIME_MS + 77_777] * 2


@given(st.lists(record_lists, min_size=1, max_size=4), st.data())
def test_batches_back_to_back_are_split_and_a_torn_tail_is_found(
    parts: list[list[Fields]], data: st.DataObject
) -> None:
    batches = [build(part) for part in parts]
    whole = b"".join(batches)
    assert [bytes(view) for view in iter_batches(whole)] == batches
    cut = data.draw(st.integers(min_value=1, max_value=len(batches[-1]) - 1))
    seen: list[bytes] = []
    with pytest.raises(TornBatch) as caught:
        seen.extend(bytes(view) for view in iter_batches(whole[: len(whole) - len(batches[-1]) + cut]))
    assert caught.value.position == len(whole) - len(batches[-1])
    assert list(iter_batches(whole[: caught.value.position])) == batches[:-1]


@given(record_lists, st.data())
def test_any_flipped_bit_behind_the_crc_is_found(records: list[Fields], data: st.DataObject) -> None:
    batch = bytearray(build(records))
    bit = data.draw(st.integers(min_value=17 * 8, max_value=len(batch) * 8 - 1))
    batch[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(CorruptBatch):
        check_batch(batch)


@given(record_lists, st.data())
def test_a_batch_cut_anywhere_is_torn(records: list[Fields], data: st.DataObject) -> None:
    batch = build(records)
    with pytest.raises(TornBatch):
        check_batch(batch[: data.draw(st.integers(min_value=0, max_value=len(batch) - 1))])


def test_bytes_after_the_batch_are_refused() -> None:
    with pytest.raises(BatchError, match="1 bytes follow"):
        check_batch(build([(0, None, None, [])]) + b"\0")


@pytest.mark.parametrize("size", [17, 40, 61, 70])
def test_a_message_set_of_old_kafka_is_named_as_such(size: int) -> None:
    old = bytearray(size)
    old[8:12] = (size - 12).to_bytes(4)
    old[16] = 1
    for read in (check_batch, BatchHeader.parse, lambda buffer: list(iter_batches(buffer))):
        with pytest.raises(UnsupportedMagic, match="magic 1"):
            read(old)


@pytest.mark.parametrize(
    ("record_count", "last_offset_delta"), [(-1, 0), (2, 0), (1, -1), (0, -1), (2**31 - 1, 2**31 - 1)]
)
def test_counts_that_contradict_each_other_are_refused(record_count: int, last_offset_delta: int) -> None:
    with pytest.raises(BatchError, match="records do not fit"):
        check_batch(wrap(b"\x0c\0\0\0\1\1\0", record_count, last_offset_delta=last_offset_delta))


def test_a_compacted_batch_has_gaps_and_is_taken() -> None:
    header = check_batch(wrap(b"\x0c\0\0\0\1\1\0", 1, last_offset_delta=9))
    assert header.has_gaps
    assert header.last_offset == 9


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_an_unknown_codec_is_refused(codec: int) -> None:
    with pytest.raises(BatchError, match=f"codec {codec} does not exist"):
        check_batch(wrap(b"\0" * 7, 1, codec=codec))


@given(st.binary(max_size=200))
def test_hostile_bytes_only_ever_raise_a_batch_error(hostile: bytes) -> None:
    for read in (check_batch, BatchHeader.parse, lambda buffer: list(iter_batches(buffer))):
        try:
            read(hostile)
        except BatchError:
            continue
        assert len(hostile) >= HEADER_BYTES or not hostile
