"""Is what an edge sent one record batch that may go to the core as it is? No I/O; the order of the checks is part of
the uplink's contract (size, form, whose producer id, which stream, which partition)."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate_bridge.streams import StreamPolicy
from tidegate_wire.records import BatchError, BatchHeader, CorruptBatch, check_batch
from tidegate_wire.uplink.messages import Ack, AckError, Batch

MALFORMED = "malformed_batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBatch:
    """A batch whose form is right, with its header read."""

    edge: str
    stream: str
    partition: int
    header: BatchHeader
    record_batch: bytes | memoryview

    def ack(self, *, offset: int | None = None, error: AckError | None = None) -> Ack:
        """The answer to this batch."""
        return make_ack(self.stream, self.partition, self.header, offset=offset, error=error)


def make_ack(
    stream: str,
    partition: int,
    header: BatchHeader | None,
    *,
    offset: int | None = None,
    error: AckError | None = None,
) -> Ack:
    """An answer, named by what stands in the batch's header; by -1 where there is none to be read."""
    return Ack(
        stream=stream,
        partition=partition,
        producer_id=-1 if header is None else header.producer_id,
        producer_epoch=-1 if header is None else header.producer_epoch,
        base_sequence=-1 if header is None else header.base_sequence,
        offset=offset,
        error=error,
    )


def refuse(code: str, reason: str) -> AckError:
    """This batch will never be taken."""
    return AckError(code=code, reason=reason, retriable=False)


def try_parse_header(batch: Batch) -> BatchHeader | None:
    """The batch's header, if its first bytes are one; nothing else is checked."""
    try:
        return BatchHeader.parse(batch.record_batch)
    except BatchError:
        return None


def check_form(edge: str, batch: Batch, batch_bytes_max: int) -> CheckedBatch | AckError:
    """Size, and whether it is exactly one batch of events that an idempotent producer wrote."""
    size_bytes = len(batch.record_batch)
    if size_bytes > batch_bytes_max:
        return refuse("message_too_large", f"the batch has {size_bytes} bytes; the limit is {batch_bytes_max}")
    try:
        header = check_batch(batch.record_batch)
    except CorruptBatch as error:
        return refuse("corrupt_message", str(error))
    except BatchError as error:
        return refuse(MALFORMED, str(error))
    if header.is_control or header.is_transactional:
        return refuse(MALFORMED, "control and transactional batches are not for edges")
    if not header.has_producer_id or header.producer_epoch < 0 or header.base_sequence < 0:
        return refuse(MALFORMED, "a batch needs producer id, epoch and base sequence, or it can't be recognised again")
    if header.record_count == 0 or header.has_gaps:
        return refuse(
            MALFORMED, f"{header.record_count} records with a last offset delta of {header.last_offset_delta}"
        )
    return CheckedBatch(
        edge=edge, stream=batch.stream, partition=batch.partition, header=header, record_batch=batch.record_batch
    )


def check_stream(batch: CheckedBatch, policy: StreamPolicy) -> AckError | None:
    """Whether edges may write the stream."""
    reason = policy.refusal(batch.stream)
    return None if reason is None else refuse("stream_not_allowed", reason)


def check_partition(batch: CheckedBatch, partitions: int) -> AckError | None:
    """Whether the stream has the partition."""
    if batch.partition < partitions:
        return None
    return refuse(
        "unknown_topic_or_partition", f"{batch.stream} has {partitions} partitions, not {batch.partition + 1}"
    )
