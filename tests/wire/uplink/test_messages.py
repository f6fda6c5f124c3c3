from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_wire.uplink.messages import (
    Ack,
    AckError,
    Batch,
    Hello,
    Presence,
    StreamInfo,
    UplinkMessageError,
    Welcome,
)

int64 = st.integers(-(2**63), 2**63 - 1)
int31 = st.integers(0, 2**31 - 1)
text = st.text(max_size=40)

hellos = st.builds(
    Hello,
    edge=text,
    session=text,
    streams=st.lists(text, max_size=5).map(tuple),
    wants_producer_id=st.booleans(),
    software=text,
)
welcomes = st.builds(
    Welcome,
    session=text,
    producer_id=st.none() | int64,
    producer_epoch=st.integers(-1, 2**15 - 1),
    streams=st.lists(st.builds(StreamInfo, name=text, partitions=st.integers(1, 10_000)), max_size=5).map(tuple),
    refused_streams=st.dictionaries(text, text, max_size=3),
    batch_bytes_max=int31,
    window_batches_max=int31,
    bridge=text,
)
acks = st.builds(
    Ack,
    stream=text,
    partition=int31,
    producer_id=int64,
    producer_epoch=st.integers(-1, 2**15 - 1),
    base_sequence=int31,
    offset=st.none() | int64,
    error=st.none() | st.builds(AckError, code=text, reason=text, retriable=st.booleans()),
)
presences = st.builds(
    Presence,
    edge=text,
    online=st.booleans(),
    session=text,
    time_ms=int64,
    backlog_events=int64,
    backlog_bytes=int64,
    oldest_event_time_ms=st.none() | int64,
    lost_events=int64,
)


@given(hellos)
def test_a_hello_is_read_back_as_written(message: Hello) -> None:
    assert Hello.decode(message.encode()) == message


@given(welcomes)
def test_a_welcome_is_read_back_as_written(message: Welcome) -> None:
    assert Welcome.decode(message.encode()) == message


@given(acks)
def test_an_ack_is_read_back_as_written(message: Ack) -> None:
    assert Ack.decode(message.encode()) == message


@given(presences)
def test_a_presence_is_read_back_as_written(message: Presence) -> None:
    assert Presence.decode(message.encode()) == message


@given(text, int31, st.binary(max_size=200))
def test_a_batch_carries_the_same_bytes(stream: str, partition: int, record_batch: bytes) -> None:
    decoded = Batch.decode(Batch(stream=stream, partition=partition, record_batch=record_batch).encode())
    assert (decoded.stream, decoded.partition, bytes(decoded.record_batch)) == (stream, partition, record_batch)


@pytest.mark.parametrize("kind", [Hello, Welcome, Ack, Presence, Batch])
@given(payload=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_never_a_crash(kind: Any, payload: bytes) -> None:
    try:
        kind.decode(payload)
    except UplinkMessageError:
        return


@pytest.mark.parametrize("kind", [Hello, Welcome, Ack, Presence])
@given(
    fields=st.recursive(
        st.none() | st.booleans() | int64 | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    ).map(lambda value: value if isinstance(value, dict) else {"edge": value, "streams": value, "error": value})
)
def test_any_json_object_is_read_or_refused_never_a_crash(kind: Any, fields: dict[str, Any]) -> None:
    try:
        kind.decode(json.dumps(fields).encode())
    except UplinkMessageError:
        return


def test_a_newer_sides_unknown_keys_are_passed_over() -> None:
    message = Presence(edge="oslo-3", online=True)
    fields = json.loads(message.encode()) | {"colour": "green"}
    assert Presence.decode(json.dumps(fields).encode()) == message


@pytest.mark.parametrize(
    ("fields", "named"),
    [({}, "edge"), ({"edge": 1, "online": True}, "edge"), ({"edge": "e", "online": "yes"}, "online")],
)
def test_a_refusal_names_the_key(fields: dict[str, object], named: str) -> None:
    with pytest.raises(UplinkMessageError, match=named):
        Presence.decode(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        struct.pack(">BiH", 2, 0, 0),  # a layout of the future
        struct.pack(">BiH", 1, -1, 0),  # a partition below zero
        struct.pack(">BiH", 1, 0, 5) + b"abc",  # a name longer than the payload
        struct.pack(">BiH", 1, 0, 1) + b"\xff",  # a name that is not UTF-8
    ],
)
def test_a_batch_with_a_lying_prefix_is_refused(payload: bytes) -> None:
    with pytest.raises(UplinkMessageError, match="batch"):
        Batch.decode(payload)
