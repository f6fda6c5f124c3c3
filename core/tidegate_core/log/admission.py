"""Which batches a partition takes: from a producer by Kafka's rules for Produce from version 3 on; from its leader."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate_core.errors import (
    CorruptBatchRefused,
    InvalidRecord,
    InvalidTimestamp,
    MessageTooLarge,
    TransactionRefused,
)
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import begins_epoch, read_voters
from tidegate_core.log.segment import OFFSET_MAX
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.records import (
    BatchError,
    BatchHeader,
    CorruptBatch,
    TornBatch,
    check_batch,
    iter_batches,
    read_records,
)


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


@dataclass(frozen=True, slots=True)
class ReplicatedBatches:
    """What a follower has to know of the batches its leader sent."""

    headers: list[BatchHeader]
    voter_sets: list[tuple[Offset, tuple[NodeId, ...]]]
    """Those that control records among them set, and where."""
    compacted_to: Offset | None
    """Before this offset the leader's compaction took records; None if all are there."""


def check_replicated_batches(
    batches: memoryview, end: Offset, last_epoch: LeaderEpoch, leader_epoch: LeaderEpoch
) -> ReplicatedBatches:
    """Check what is to be appended at `end`, after a batch of `last_epoch`, by a follower in `leader_epoch`.

    Raises:
        CorruptBatchRefused: a batch is not whole, its CRC does not fit, or it can't stand there.
    """
    headers: list[BatchHeader] = []
    voter_sets: list[tuple[Offset, tuple[NodeId, ...]]] = []
    compacted_to: Offset | None = None
    epoch = max(last_epoch, 0)
    try:
        for batch in iter_batches(batches):
            header = check_batch(batch)
            last_offset = header.last_offset
            if not end <= header.base_offset <= last_offset < OFFSET_MAX or not epoch <= header.leader_epoch:
                raise CorruptBatchRefused(
                    f"offset {header.base_offset} of epoch {header.leader_epoch} can't follow offset {end} of epoch "
                    f"{epoch}"
                )
            if header.leader_epoch > last_epoch >= 0 and not (header.is_control and begins_epoch(batch)):
                raise CorruptBatchRefused(
                    f"offset {header.base_offset}: epoch {header.leader_epoch} was not begun after {last_epoch}"
                )
            if header.is_control:
                voters = read_voters(batch)
                if voters is not None:
                    voter_sets.append((header.base_offset, voters))
            if header.base_offset != end or header.has_gaps:
                compacted_to = Offset(last_offset + 1)
            headers.append(header)
            end, epoch = Offset(last_offset + 1), header.leader_epoch
            last_epoch = epoch
    except BatchError as error:
        raise CorruptBatchRefused(str(error)) from error
    if epoch > leader_epoch and headers:
        raise CorruptBatchRefused(f"a batch of epoch {epoch} from a leader of epoch {leader_epoch}")
    return ReplicatedBatches(headers, voter_sets, compacted_to)
