"""Records through build and read, and everything that can be wrong with what someone else built."""

from __future__ import annotations

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.records.batches import BASE_TIME_MS, Fields, build, headers, nullable_bytes, record_lists, wrap
from tidegate_wire.records import (
    NO_HEADERS,
    BatchError,
    Compression,
    Header,
    MalformedRecords,
    RecordBatchBuilder,
    RecordTemplate,
    TornBatch,
    check_batch,
    encode_headers,
    encode_record_body,
    read_records,
)
from tidegate_wire.records.varint import VARLONG_BYTES_MAX, decode_varint, encode_varint

CODECS = [Compression.NONE, Compression.ZSTD]


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_a_varint_is_read_back_and_takes_no_byte_more_than_it_needs(value: int) -> None:
    encoded = encode_varint(value)
    assert decode_varint(b"x" + encoded + b"x", 1, VARLONG_BYTES_MAX) == (value, 1 + len(encoded))
    zigzag = value * 2 if value >= 0 else -value * 2 - 1
    assert len(encoded) == max(1, -(-zigzag.bit_length() // 7))
    with pytest.raises(MalformedRecords):
        decode_varint(encoded[:-1], 0, VARLONG_BYTES_MAX)


def test_a_varint_that_never_ends_is_refused() -> None:
    with pytest.raises(MalformedRecords, match="more than 5 bytes"):
        decode_varint(b"\xff" * 100, 0)


@pytest.mark.parametrize("compression", CODECS)
@given(records=record_lists)
def test_records_are_read_back_as_they_were_appended(compression: Compression, records: list[Fields]) -> None:
    batch = build(records, compression)
    assert check_batch(batch).record_count == len(records)
    got = [(r.timestamp_ms, r.key, r.value, list(r.headers)) for r in read_records(batch)]
    assert got == records
    assert [record.offset for record in read_records(batch)] == list(range(len(records)))


def test_a_batch_of_many_records_and_long_fields_leaves_the_fast_path_and_is_read_back() -> None:
    records: list[Fields] = [(BASE_TIME_MS + i * 7, b"k", b"%d" % i, []) for i in range(9_000)]
    records.append((BASE_TIME_MS - 10**12, b"k" * 10_000, b"v" * 3_000_000, [(b"h" * 9_000, b"x" * 9_000)]))
    got = [(r.timestamp_ms, r.key, r.value, list(r.headers)) for r in read_records(build(records))]
    assert got == records


@given(nullable_bytes, headers, st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=60)), max_size=4))
def test_a_template_writes_what_encode_record_body_writes(
    key: bytes | None, fixed: list[Header], varying: list[tuple[bytes, bytes]]
) -> None:
    template = RecordTemplate(key, fixed, [name for name, _ in varying])
    for value in (b"", b"value", b"v" * 10_000):
        expected = encode_record_body(key, value, encode_headers([*fixed, *varying]))
        assert template.encode(value, *(text for _, text in varying)) == expected


@pytest.mark.parametrize(("names", "count"), [(0, 2), (1, 2), (2, 0), (2, 1), (2, 3), (3, 2)])
def test_a_template_asks_for_each_of_its_varying_headers(names: int, count: int) -> None:
    template = RecordTemplate(b"key", [], [b"name"] * names)
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        template.encode(b"value", *[b"1"] * count)


def test_encoded_bodies_make_the_same_batch_as_appended_fields() -> None:
    direct, encoded = RecordBatchBuilder(), RecordBatchBuilder()
    direct.append(BASE_TIME_MS, b"key", None, [(b"name", None)])
    direct.append(BASE_TIME_MS, None, b"value")
    encoded.append_encoded(BASE_TIME_MS, encode_record_body(b"key", None, encode_headers([(b"name", None)])))
    encoded.append_encoded(BASE_TIME_MS, encode_record_body(None, b"value", NO_HEADERS))
    assert direct.build() == encoded.build()


def test_threads_compress_at_the_same_time_each_with_a_compressor_of_its_own() -> None:
    records: list[Fields] = [(BASE_TIME_MS + i, b"key", b"value %d" % i, []) for i in range(500)]
    expected = build(records, Compression.ZSTD)
    results: list[bool] = []

    def work() -> None:
        results.extend(build(records, Compression.ZSTD) == expected for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


ONE_RECORD = b"\x0c\0\0\0\1\1\0"


@pytest.mark.parametrize(
    ("payload", "count", "complaint"),
    [
        (b"", 1, "do not fit in 0 bytes"),
        (ONE_RECORD, 1_000_000, "do not fit in 7 bytes"),
        (ONE_RECORD, -1, "do not fit"),
        (ONE_RECORD + b"\0", 1, "1 bytes follow the last record"),
        (b"\x0e" + ONE_RECORD[1:], 1, "a record of 7 bytes where 6 are left"),
        (b"\x0b" + ONE_RECORD[1:], 1, "a record of -6 bytes"),
        (b"\xff\xff\xff\xff\x0f" + ONE_RECORD[1:], 1, "a record of -2147483648 bytes"),
        (b"\xff" * 7, 1, "more than 5 bytes"),
        (b"\x0c\0\0\0\x10\1\0", 1, "a field of 8 bytes where 2 are left"),
        (b"\x0c\0\0\0\3\1\0", 1, "a field of -2 bytes"),
        (b"\x0c\0\0\0\1\1\x40", 1, "32 headers where 0 bytes are left"),
        (b"\x0c\0\0\0\1\1\1", 1, "-1 headers"),
        (b"\x10\0\0\0\1\1\2\1\1", 1, "a header without a name"),
        (b"\x0e\0\0\0\1\1\0\0", 1, "fields end 1 bytes before"),
        (b"\x0c\0\0\2\1\1\0", 1, "an offset delta of 1 in a batch of 1"),
        (b"\x0c\0\0\1\1\1\0", 1, "an offset delta of -1"),
        (b"\x0c\0" + b"\x80" * 5, 1, "end inside a varint"),
    ],
)
def test_records_that_lie_are_refused(payload: bytes, count: int, complaint: str) -> None:
    with pytest.raises(MalformedRecords, match=complaint):
        list(read_records(wrap(payload, count)))


def test_a_batch_cut_short_is_torn_when_its_records_are_read() -> None:
    with pytest.raises(TornBatch):
        read_records(build([(0, b"k", b"v", [])])[:-1])


@given(st.binary(max_size=300), st.integers(min_value=-1, max_value=40), st.integers(min_value=0, max_value=7))
def test_hostile_records_only_ever_raise_a_batch_error(payload: bytes, count: int, codec: int) -> None:
    try:
        records = list(read_records(wrap(payload, count, codec=codec)))
    except BatchError:
        return
    assert len(records) == count


@given(record_lists, st.data())
def test_a_batch_with_any_byte_changed_is_read_or_refused_but_never_breaks_the_reader(
    records: list[Fields], data: st.DataObject
) -> None:
    batch = bytearray(build(records, data.draw(st.sampled_from(CODECS))))
    for _ in range(data.draw(st.integers(min_value=1, max_value=3))):
        batch[data.draw(st.integers(min_value=0, max_value=len(batch) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = list(read_records(batch))
    except BatchError:
        return
    assert sys.getsizeof(got) < 1_000_000
