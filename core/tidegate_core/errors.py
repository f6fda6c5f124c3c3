"""What can go wrong with a partition and its disk. `kafka_error` is the name of the Kafka error a client is told.

TidegateError
+-- PartitionError                  one partition refused or could not do what was asked
|   +-- StorageError                KAFKA_STORAGE_ERROR (clients retry)
|   |   +-- DiskFull                nothing was written; works again by itself when there is room
|   |   +-- StorageFailed           a write or sync failed: refused until the next start
|   |   +-- PartitionDamaged        bytes that were synced are gone or changed; nothing was deleted
|   |   +-- PartitionClosed         deleted, or shutting down
|   +-- OffsetOutOfRange            OFFSET_OUT_OF_RANGE
|   +-- NotLeader                   NOT_LEADER_OR_FOLLOWER (clients ask who leads, and go there)
|   +-- AppendRefused               the batch is not one this partition takes; nothing was written
|       +-- CorruptBatchRefused     CORRUPT_MESSAGE
|       +-- InvalidRecord           INVALID_RECORD
|       +-- MessageTooLarge         MESSAGE_TOO_LARGE
|       +-- InvalidTimestamp        INVALID_TIMESTAMP
|       +-- TransactionRefused      INVALID_TXN_STATE
|       +-- InvalidProducerEpoch    INVALID_PRODUCER_EPOCH
|       +-- OutOfOrderSequence      OUT_OF_ORDER_SEQUENCE_NUMBER
|       +-- DuplicateSequence       DUPLICATE_SEQUENCE_NUMBER
|       +-- UnknownProducer         UNKNOWN_PRODUCER_ID
|       +-- TooManyProducers        POLICY_VIOLATION
+-- PartitionExists                 TOPIC_ALREADY_EXISTS
+-- InvalidLogConfig (ConfigError)  INVALID_CONFIG
+-- DataDirError (RefusedError)     the data directory is another node's, too new, or in use
"""

# ruff: noqa: N818  # named for what happened, as peers and operators speak of it
from __future__ import annotations

from typing import ClassVar

from tidegate_wire.errors import ConfigError, RefusedError, TidegateError


class PartitionError(TidegateError):
    """One partition refused, or could not do, what was asked."""

    kafka_error: ClassVar[str] = "UNKNOWN_SERVER_ERROR"


class StorageError(PartitionError):
    """The disk under a partition."""

    kafka_error = "KAFKA_STORAGE_ERROR"


class DiskFull(StorageError):
    """There was no room for a write; what had been written of it is removed, and reads go on."""


class StorageFailed(StorageError):
    """A write or sync failed, so what the disk holds is unknown: the partition refuses appends until the next start."""


class PartitionDamaged(StorageError):
    """Bytes that were synced once are gone or changed. Nothing was deleted; the message says where to look."""

    exit_code = 5


class PartitionClosed(StorageError):
    """The partition was deleted or the node is shutting down."""


class OffsetOutOfRange(PartitionError):
    """The offset is below the log's start or above its end."""

    kafka_error = "OFFSET_OUT_OF_RANGE"


class NotLeader(PartitionError):
    """Another node leads the partition, or nobody does just now."""

    kafka_error = "NOT_LEADER_OR_FOLLOWER"


class AppendRefused(PartitionError):
    """The batch is not one this partition takes; nothing was written."""


class CorruptBatchRefused(AppendRefused):
    """The batch's bytes are not a record batch, or its CRC is wrong."""

    kafka_error = "CORRUPT_MESSAGE"


class InvalidRecord(AppendRefused):
    """A batch that is whole but not allowed here: several at once, a control batch, no key on a compacted topic."""

    kafka_error = "INVALID_RECORD"


class MessageTooLarge(AppendRefused):
    """The batch is larger than `max.message.bytes`."""

    kafka_error = "MESSAGE_TOO_LARGE"


class InvalidTimestamp(AppendRefused):
    """The batch's timestamps are further in the future than `message.timestamp.after.max.ms` allows."""

    kafka_error = "INVALID_TIMESTAMP"


class TransactionRefused(AppendRefused):
    """The batch belongs to a transaction; there are none here."""

    kafka_error = "INVALID_TXN_STATE"


class InvalidProducerEpoch(AppendRefused):
    """A newer holder of the producer id has written."""

    kafka_error = "INVALID_PRODUCER_EPOCH"


class OutOfOrderSequence(AppendRefused):
    """A batch before this one is missing."""

    kafka_error = "OUT_OF_ORDER_SEQUENCE_NUMBER"


class DuplicateSequence(AppendRefused):
    """The batch was written before the last five, so its offset is no longer known."""

    kafka_error = "DUPLICATE_SEQUENCE_NUMBER"


class UnknownProducer(AppendRefused):
    """A producer this partition does not know begins in the middle of its sequence."""

    kafka_error = "UNKNOWN_PRODUCER_ID"


class PartitionExists(TidegateError):
    """The partition is there already."""

    kafka_error: ClassVar[str] = "TOPIC_ALREADY_EXISTS"


class InvalidLogConfig(ConfigError):
    """A topic's configuration has an unknown name or a value that is not allowed."""

    kafka_error: ClassVar[str] = "INVALID_CONFIG"


class DataDirError(RefusedError):
    """The data directory is another node's, written by a newer version, or in use by another process."""
