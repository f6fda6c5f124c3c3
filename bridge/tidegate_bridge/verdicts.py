"""What each answer of the core to a Produce request means for a batch."""

from __future__ import annotations

from enum import Enum
from typing import Final

from tidegate_wire.kafka.messages import ErrorCode


class Verdict(Enum):
    """What to do with a batch after an answer."""

    STORED = "stored"
    REFUSED = "refused"
    """This batch will never be taken."""
    RETRY = "retry"
    RETRY_IN_ORDER = "retry in order"
    """A batch before it is missing; it may come through another bridge any moment."""


_REFUSED: Final = frozenset(
    {
        ErrorCode.message_too_large,
        ErrorCode.record_list_too_large,
        ErrorCode.invalid_record,
        ErrorCode.invalid_timestamp,
        ErrorCode.invalid_topic_exception,
        ErrorCode.unsupported_compression_type,
        ErrorCode.unsupported_for_message_format,
        ErrorCode.invalid_txn_state,
        ErrorCode.invalid_producer_epoch,
        ErrorCode.producer_fenced,
        ErrorCode.unknown_producer_id,
    }
)
"""What is wrong with the batch itself. Everything else may pass, a missing authorization or an unknown error too:
events are not given up for what an operator can put right."""

_NOT_THE_LEADER: Final = frozenset(
    {
        ErrorCode.not_leader_or_follower,
        ErrorCode.leader_not_available,
        ErrorCode.unknown_topic_or_partition,
        ErrorCode.fenced_leader_epoch,
        ErrorCode.unknown_leader_epoch,
        ErrorCode.kafka_storage_error,
        ErrorCode.replica_not_available,
        ErrorCode.request_timed_out,
    }
)


def verdict_of(code: ErrorCode) -> Verdict:
    """The meaning of an error code in a Produce response."""
    if code in (ErrorCode.none, ErrorCode.duplicate_sequence_number):
        return Verdict.STORED
    if code is ErrorCode.out_of_order_sequence_number:
        return Verdict.RETRY_IN_ORDER
    return Verdict.REFUSED if code in _REFUSED else Verdict.RETRY


def is_refused_after_retries(code: ErrorCode) -> bool:
    """Whether an error that lasted through all tries is the batch's own fault after all."""
    return code is ErrorCode.corrupt_message


def tells_of_another_leader(code: ErrorCode) -> bool:
    """Whether to look up the partition's leader again."""
    return code in _NOT_THE_LEADER
