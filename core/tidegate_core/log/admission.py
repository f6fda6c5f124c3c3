"""Which batches a partition takes from a producer: Kafka's rules for Produce from version 3 on."""

from __future__ import annotations

from tidegate_core.errors import (
    CorruptBatchRefused,
    InvalidRecord,
    InvalidTimestamp,
    MessageTooLarge,
    TransactionRefused,
)
from tidegate_core.log.config import LogConfig
from tidegate_wire.records import BatchError, BatchHeader, CorruptBatch, TornBatch, check_batch, read_records


def check_new_batch(batch: memoryview, config: LogConfig, now_ms: int) -> BatchHeader:
    """Check a batch before it is appended; its records are looked into only where the topic needs their keys.

    Raises:
        MessageTooLarge: larger than `max.message.bytes`.
        CorruptBatchRefused: cut, or the CRC does not fit.
        InvalidRecord: no batch of magic 2, more than one, a control batch, gaps between its records, a producer id
            without epoch and sequence, or a record without a key where the topic is compacted.
        TransactionRefused: part of a transaction.
        InvalidTimestamp: further ahead of the clock than allowed, or a kind of timestamp the topic does not have.
    """
    if len(batch) > config.max_message_bytes:
        raise MessageTooLarge(
            f"a batch of {len(batch)} bytes, where max.message.bytes is {config.max_message_bytes}",
            hint="send smaller batches, or raise max.message.bytes of the topic",
        )
    try:
        header = check_batch(batch)
    except (CorruptBatch, TornBatch) as error:
        raise CorruptBatchRefused(str(error)) from error
    except BatchError as error:
        raise InvalidRecord(str(error)) from error
    if header.is_control:
        raise InvalidRecord("control batches are written by the core alone")
    if header.is_transactional:
        raise TransactionRefused("there are no transactions here", hint="produce without transactional.id")
    if header.record_count == 0 or header.has_gaps:
        raise InvalidRecord(f"{header.record_count} records do not fill {header.last_offset_delta + 1} offsets")
    if header.producer_id >= 0 and (header.producer_epoch < 0 or header.base_sequence < 0):
        raise InvalidRecord(f"producer {header.producer_id} sends no epoch or no sequence")
    if config.message_timestamp_type == "CreateTime":
        _check_timestamps(header, config, now_ms)
    if config.compacts:
        _check_keys(batch)
    return header


def _check_timestamps(header: BatchHeader, config: LogConfig, now_ms: int) -> None:
    if header.uses_log_append_time:
        raise InvalidTimestamp("the batch says LogAppendTime, the topic CreateTime")
    if header.max_timestamp_ms - now_ms > config.message_timestamp_after_max_ms:
        raise InvalidTimestamp(
            f"timestamp {header.max_timestamp_ms} is more than {config.message_timestamp_after_max_ms} ms from now"
        )


def _check_keys(batch: memoryview) -> None:
    try:
        has_keys = all(record.key is not None for record in read_records(batch))
    except BatchError as error:
        raise InvalidRecord(str(error)) from error
    if not has_keys:
        raise InvalidRecord("a record without a key, but the topic is compacted")
