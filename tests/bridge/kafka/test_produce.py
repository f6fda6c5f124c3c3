"""Produce by hand against kio's own reading of the protocol."""

from __future__ import annotations

import struct
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.produce.v8 import response as produce_response
from kio.schema.types import TopicName
from kio.static.primitive import i32, i32Timedelta, i64

from tidegate_bridge.kafka.produce import (
    API_KEY,
    API_VERSION,
    ProduceResult,
    decode_produce_response,
    encode_produce,
)
from tidegate_wire.kafka.messages import (
    ErrorCode,
    MessageError,
    decode_request,
    decode_request_header,
    encode_response,
)

text = st.text(max_size=50)


def _response(code: ErrorCode, base_offset: int, message: str | None, details: list[tuple[int, str | None]]) -> bytes:
    partition = produce_response.PartitionProduceResponse(
        index=i32(3),
        error_code=code,
        base_offset=i64(base_offset),
        log_append_time=None,
        log_start_offset=i64(0),
        record_errors=tuple(
            [
                produce_response.BatchIndexAndErrorMessage(batch_index=i32(index), batch_index_error_message=detail)
                for index, detail in details
            ]
        ),
        error_message=message,
    )
    topic = produce_response.TopicProduceResponse(name=TopicName("telemetry"), partition_responses=(partition,))
    schema: Any = produce_response.ProduceResponse
    response = schema(responses=(topic,), throttle_time=i32Timedelta.parse(timedelta(0)))
    return encode_response(response, 77)[4:]


@given(st.binary(min_size=1, max_size=200), st.text(min_size=1, max_size=30), st.integers(0, 2**31 - 1))
def test_a_request_reads_as_one_batch_for_one_partition(batch: bytes, topic: str, partition: int) -> None:
    head = encode_produce(77, b"client", topic.encode(), partition=partition, batch_bytes=len(batch), timeout_ms=1234)
    frame = head + batch
    assert struct.unpack_from(">i", frame) == (len(frame) - 4,)
    header = decode_request_header(frame[4:])
    assert (header.api_key, header.api_version, header.correlation_id) == (API_KEY, API_VERSION, 77)
    assert header.client_id == "client"
    request: Any = decode_request(header, frame[4:])
    assert request.acks == -1
    assert request.transactional_id is None
    assert request.timeout.total_seconds() == 1.234
    (topic_data,) = request.topic_data
    (partition_data,) = topic_data.partition_data
    assert (topic_data.name, partition_data.index, partition_data.records) == (topic, partition, batch)


@given(st.sampled_from(list(ErrorCode)), st.integers(-1, 2**62), st.none() | text)
def test_a_response_is_read(code: ErrorCode, base_offset: int, message: str | None) -> None:
    got = decode_produce_response(_response(code, base_offset, message, []))
    assert got == ProduceResult(code, base_offset, message or "")


def test_without_a_message_the_record_errors_are_the_message() -> None:
    frame = _response(ErrorCode.invalid_record, -1, None, [(0, "no key"), (1, None), (2, "no value")])
    assert decode_produce_response(frame).message == "no key; no value"


def test_an_error_code_from_the_future_is_an_unknown_error() -> None:
    frame = bytearray(_response(ErrorCode.none, 5, None, []))
    position = 4 + 4 + 2 + len("telemetry") + 4 + 4
    frame[position : position + 2] = (9999).to_bytes(2)
    assert decode_produce_response(bytes(frame)).error_code is ErrorCode.unknown_server_error


@given(st.integers(min_value=0, max_value=80))
def test_a_cut_response_is_a_message_error(size: int) -> None:
    frame = _response(ErrorCode.none, 5, "message", [(0, "detail")])
    whole = len(frame) - 4  # the throttle time at the end is not looked at
    if size < whole:
        with pytest.raises(MessageError):
            decode_produce_response(frame[:size])


@given(st.binary(max_size=120))
def test_hostile_responses_only_ever_raise_a_message_error(frame: bytes) -> None:
    try:
        result = decode_produce_response(frame)
    except MessageError:
        return
    assert isinstance(result.error_code, ErrorCode)
