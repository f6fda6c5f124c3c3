"""Batches as an edge cuts them."""

from __future__ import annotations

from tidegate_bridge.batch_checks import CheckedBatch
from tidegate_wire.identifiers import BatchSequence, ProducerEpoch, ProducerId
from tidegate_wire.records import Compression, RecordBatchBuilder, check_batch

TIME_MS = 1_700_000_000_000


def cut(
    producer_id: int,
    base_sequence: int,
    values: list[bytes],
    *,
    producer_epoch: int = 0,
    compression: Compression = Compression.ZSTD,
    is_control: bool = False,
    is_transactional: bool = False,
) -> bytes:
    builder = RecordBatchBuilder(
        ProducerId(producer_id),
        ProducerEpoch(producer_epoch),
        BatchSequence(base_sequence),
        compression,
        is_control=is_control,
        is_transactional=is_transactional,
    )
    for index, value in enumerate(values):
        builder.append(TIME_MS + index, b"device", value)
    return builder.build()


def checked(producer_id: int, base_sequence: int, count: int = 1, *, text: str = "value") -> CheckedBatch:
    values = [f"{text} {base_sequence + index}".encode() for index in range(count)]
    record_batch = cut(producer_id, base_sequence, values)
    return CheckedBatch(
        edge="edge-1", stream="telemetry", partition=0, header=check_batch(record_batch), record_batch=record_batch
    )
