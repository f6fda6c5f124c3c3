"""The hand-written Produce and Fetch codecs against kio's, which know nothing of each other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.protocol import translate
from tidegate_core.protocol.fetch import FetchedPartition, encode_fetch
from tidegate_core.protocol.produce import ProduceResult, decode_produce, encode_produce, is_produce
from tidegate_core.protocol.versions import Api
from tidegate_wire.kafka.messages import (
    MessageError,
    decode_response,
    encode_request,
    request_type,
    response_type,
)

PRODUCE_VERSIONS = st.integers(3, 11)
FETCH_VERSIONS = st.integers(4, 12)
NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
INT64 = st.integers(-(2**63), 2**63 - 1)

partitions_of_produce = st.lists(
    st.fixed_dictionaries(
        {"index": st.integers(-(2**31), 2**31 - 1), "records": st.one_of(st.none(), st.binary(max_size=300))}
    ),
    max_size=4,
)
topics_of_produce = st.lists(
    st.fixed_dictionaries({"name": NAMES, "partition_data": partitions_of_produce}), max_size=4
)


def produce_frame(version: int, topics: list[dict[str, Any]], acks: int, transactional_id: str | None) -> bytes:
    fields = {"acks": acks, "transactional_id": transactional_id, "topic_data": topics}
    return encode_request(translate.compose(request_type(Api.PRODUCE, version), fields), 9, "client")[4:]


@given(PRODUCE_VERSIONS, topics_of_produce, st.integers(-2, 2), st.one_of(st.none(), NAMES))
def test_a_produce_request_is_read_as_kio_wrote_it(
    version: int, topics: list[dict[str, Any]], acks: int, transactional_id: str | None
) -> None:
    frame = produce_frame(version, topics, acks, transactional_id)
    request = decode_produce(memoryview(frame))
    assert is_produce(memoryview(frame))
    assert (request.version, request.correlation_id) == (version, 9)
    assert (request.acks, request.transactional_id) == (acks, transactional_id)
    expected = [
        (topic["name"], part["index"], part["records"] or b"") for topic in topics for part in topic["partition_data"]
    ]
    assert [(topic, index, bytes(records)) for topic, index, records in request.partitions] == expected


def test_the_records_are_a_view_into_the_frame_and_not_a_copy() -> None:
    frame = memoryview(
        bytearray(produce_frame(9, [{"name": "t", "partition_data": [{"index": 0, "records": b"abc"}]}], 1, None))
    )
    ((_, _, records),) = decode_produce(frame).partitions
    records[:] = b"xyz"
    assert b"xyz" in bytes(frame)


@given(PRODUCE_VERSIONS, topics_of_produce, st.data())
def test_a_cut_produce_request_is_refused(version: int, topics: list[dict[str, Any]], data: st.DataObject) -> None:
    frame = produce_frame(version, topics, 1, None)
    end = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(MessageError):
        decode_produce(memoryview(frame)[:end])


@given(st.integers(-1, 12), st.binary(max_size=200))
def test_any_bytes_as_a_produce_request_are_read_or_refused(version: int, body: bytes) -> None:
    frame = b"\0\0" + version.to_bytes(2, "big", signed=True) + b"\0\0\0\1\xff\xff" + body
    try:
        decode_produce(memoryview(frame))
    except MessageError:
        return


@given(PRODUCE_VERSIONS, topics_of_produce, st.binary(min_size=1, max_size=4), st.data())
def test_a_produce_request_with_wrong_bytes_is_read_or_refused(
    version: int, topics: list[dict[str, Any]], wrong: bytes, data: st.DataObject
) -> None:
    frame = bytearray(produce_frame(version, topics, 1, None))
    position = data.draw(st.integers(4, len(frame) - 1))
    frame[position : position + len(wrong)] = wrong
    try:
        decode_produce(memoryview(frame))
    except MessageError:
        return


def test_more_partitions_than_a_request_may_name_are_refused() -> None:
    parts = [{"index": index, "records": None} for index in range(10_001)]
    for version in (8, 9):
        frame = produce_frame(version, [{"name": "t", "partition_data": parts}], 1, None)
        with pytest.raises(MessageError, match="10001 partitions"):
            decode_produce(memoryview(frame))


results_of_produce = st.lists(
    st.builds(
        ProduceResult,
        st.sampled_from(["a", "b", "ü"]),
        st.integers(0, 2**31 - 1),
        st.sampled_from([0, 2, 3, 56, 87]),
        INT64,
        st.one_of(st.just(-1), st.integers(0, 4_000_000_000_000)),
        INT64,
        st.one_of(st.none(), NAMES),
    ),
    max_size=6,
)


@given(PRODUCE_VERSIONS, results_of_produce)
def test_kio_reads_the_produce_response_that_was_written(version: int, results: list[ProduceResult]) -> None:
    frame = encode_produce(77, version, results)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    response: Any
    correlation_id, response = decode_response(response_type(Api.PRODUCE, version), frame[4:])
    assert correlation_id == 77
    read = [
        (topic.name, part.index, int(part.error_code), part.base_offset)
        for topic in response.responses
        for part in topic.partition_responses
    ]
    assert read == [result[:4] for result in results]
    if version >= 8:
        messages = [part.error_message for topic in response.responses for part in topic.partition_responses]
        assert messages == [result.message for result in results]


fetched_partitions = st.lists(
    st.builds(
        lambda index, code, mark, start, buffers: FetchedPartition(
            index, code, mark, start, tuple(buffers), sum(map(len, buffers))
        ),
        st.integers(0, 2**31 - 1),
        st.sampled_from([0, 1, 3, 74]),
        INT64,
        INT64,
        st.lists(st.binary(min_size=1, max_size=200), max_size=3),
    ),
    max_size=4,
)


@given(FETCH_VERSIONS, st.lists(st.tuples(NAMES, fetched_partitions), max_size=4))
def test_kio_reads_the_fetch_response_that_was_written(
    version: int, topics: list[tuple[str, list[FetchedPartition]]]
) -> None:
    frame = b"".join(encode_fetch(12, version, topics))
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    response: Any
    correlation_id, response = decode_response(response_type(Api.FETCH, version), frame[4:])
    assert correlation_id == 12
    read = [
        (
            topic.topic,
            [
                (part.partition_index, int(part.error_code), part.high_watermark, bytes(part.records or b""))
                for part in topic.partitions
            ],
        )
        for topic in response.responses
    ]
    expected = [
        (name, [(part.partition, part.error_code, part.high_watermark, b"".join(part.buffers)) for part in parts])
        for name, parts in topics
    ]
    assert read == expected


def test_the_buffers_of_a_fetch_response_are_those_that_were_read() -> None:
    records = b"records" * 100
    part = FetchedPartition(0, 0, 10, 0, (records,), len(records))
    for version in (4, 12):
        assert any(buffer is records for buffer in encode_fetch(1, version, [("t", [part])]))


def test_old_produce_versions_are_read_so_that_they_can_be_refused() -> None:
    body = b"\0\1\0\0\0\x64" + b"\0\0\0\1" + b"\0\1t" + b"\0\0\0\1" + b"\0\0\0\5" + b"\0\0\0\3abc"
    for version, size in ((0, 29), (1, 33), (2, 41)):
        request = decode_produce(memoryview(b"\0\0" + bytes([0, version]) + b"\0\0\0\1\xff\xff" + body))
        assert [(topic, index, bytes(records)) for topic, index, records in request.partitions] == [("t", 5, b"abc")]
        assert len(encode_produce(1, version, [ProduceResult("t", 5, 43, -1, -1, -1, "no")])) == 4 + size
