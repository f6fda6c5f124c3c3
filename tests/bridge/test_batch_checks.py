"""Every way in which an edge's batch can be wrong, and what the edge is told."""

from __future__ import annotations

import pytest

from tests.bridge.batches import cut
from tidegate_bridge.batch_checks import (
    CheckedBatch,
    check_form,
    check_partition,
    check_stream,
    make_ack,
    try_parse_header,
)
from tidegate_bridge.streams import StreamPolicy
from tidegate_wire.records import Compression, stamp_log_append_time
from tidegate_wire.uplink.messages import AckError, Batch

LIMIT = 10_000
GOOD = cut(7, 0, [b"value"])


def _check(record_batch: bytes) -> CheckedBatch | AckError:
    return check_form("edge-1", Batch(stream="telemetry", partition=3, record_batch=record_batch), LIMIT)


def _checked(stream: str, partition: int = 0) -> CheckedBatch:
    result = check_form("edge-1", Batch(stream=stream, partition=partition, record_batch=GOOD), LIMIT)
    assert isinstance(result, CheckedBatch)
    return result


def _flipped(position: int) -> bytes:
    batch = bytearray(GOOD)
    batch[position] ^= 1
    return bytes(batch)


def test_a_good_batch_passes_and_is_not_copied() -> None:
    result = _check(GOOD)
    assert isinstance(result, CheckedBatch)
    assert result.record_batch is GOOD
    assert (result.edge, result.stream, result.partition) == ("edge-1", "telemetry", 3)


@pytest.mark.parametrize(
    ("record_batch", "code"),
    [
        (cut(7, 0, [bytes(LIMIT)], compression=Compression.NONE), "message_too_large"),
        (_flipped(-1), "corrupt_message"),
        (_flipped(40), "corrupt_message"),
        (GOOD[:-1], "malformed_batch"),
        (GOOD + GOOD, "malformed_batch"),
        (GOOD + b"\0", "malformed_batch"),
        (b"", "malformed_batch"),
        (b"\0" * 61, "malformed_batch"),
        (_flipped(16), "malformed_batch"),
        (cut(7, 0, [b"\0\0\0\0"], is_control=True), "malformed_batch"),
        (cut(7, 0, [b"value"], is_transactional=True), "malformed_batch"),
        (cut(-1, -1, [b"value"], producer_epoch=-1), "malformed_batch"),
        (cut(7, -1, [b"value"]), "malformed_batch"),
        (cut(7, 0, [b"value"], producer_epoch=-1), "malformed_batch"),
    ],
)
def test_a_batch_that_the_core_must_not_see_is_refused_for_good(record_batch: bytes, code: str) -> None:
    result = _check(record_batch)
    assert isinstance(result, AckError)
    assert (result.code, result.retriable) == (code, False)
    assert result.reason


def test_a_batch_with_fewer_records_than_offsets_is_refused() -> None:
    batch = bytearray(cut(7, 0, [b"one", b"two"], compression=Compression.NONE))
    batch[57:61] = (1).to_bytes(4)
    stamp_log_append_time(batch, 5)  # renews the CRC
    result = _check(bytes(batch))
    assert isinstance(result, AckError)
    assert "1 records" in result.reason


def test_a_refusal_names_the_batch_by_its_header_and_by_minus_one_without_one() -> None:
    refused = Batch(stream="telemetry", partition=0, record_batch=_flipped(-1))
    ack = make_ack("telemetry", 0, try_parse_header(refused))
    assert (ack.producer_id, ack.producer_epoch, ack.base_sequence) == (7, 0, 0)
    unreadable = Batch(stream="telemetry", partition=0, record_batch=b"short")
    ack = make_ack("telemetry", 0, try_parse_header(unreadable))
    assert (ack.producer_id, ack.producer_epoch, ack.base_sequence) == (-1, -1, -1)


@pytest.mark.parametrize(
    ("stream", "allowed"),
    [
        ("telemetry", True),
        ("plant-7.state_2", True),
        ("tidegate.losses", True),
        ("tidegate.producers", False),
        ("tidegate.edges", False),
        ("tidegate.anything", False),
        ("__consumer_offsets", False),
        ("", False),
        (".", False),
        ("..", False),
        ("a/b", False),
        ("ä", False),
        ("x" * 249, True),
        ("x" * 250, False),
    ],
)
def test_edges_write_their_own_streams_only(stream: str, allowed: bool) -> None:
    error = check_stream(_checked(stream), StreamPolicy(["*"], partitions=4))
    assert (error is None) is allowed
    assert error is None or (error.code, error.retriable) == ("stream_not_allowed", False)


def test_patterns_narrow_the_streams_but_losses_are_always_taken() -> None:
    policy = StreamPolicy(["plant-*", "line?"], partitions=4)
    assert policy.refusal("plant-7") is None
    assert policy.refusal("line3") is None
    assert policy.refusal("tidegate.losses") is None
    refusal = policy.refusal("telemetry")
    assert refusal is not None
    assert "plant-*, line?" in refusal


def test_losses_are_kept_in_one_partition() -> None:
    policy = StreamPolicy(["*"], partitions=4)
    assert policy.spec("tidegate.losses").partitions == 1
    assert policy.spec("telemetry").partitions == 4


def test_a_partition_that_the_stream_does_not_have_is_refused() -> None:
    assert check_partition(_checked("telemetry", 3), 4) is None
    error = check_partition(_checked("telemetry", 4), 4)
    assert error is not None
    assert (error.code, error.retriable) == ("unknown_topic_or_partition", False)
