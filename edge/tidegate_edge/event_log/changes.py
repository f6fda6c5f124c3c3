"""What the uplink asks of the log, other than to read: each is applied within the writer's next transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from tidegate_edge.errors import CutConflict
from tidegate_edge.event_log.cuts import CutBatch, EncodedBatch, Refusal, insert_batches
from tidegate_edge.event_log.state import StreamState
from tidegate_edge.event_log.transaction import Transaction
from tidegate_wire.identifiers import EventSequence, ProducerEpoch, ProducerId
from tidegate_wire.uplink.event import partition_for

T_co = TypeVar("T_co", covariant=True)

REASON_LENGTH_MAX: Final = 500
"""Characters of a refusal's reason that are kept; it was written by someone else."""


class Change(ABC, Generic[T_co]):
    """A change of the log. `apply` may raise `CutConflict`, before it wrote anything; other errors are SQLite's."""

    @abstractmethod
    def apply(self, transaction: Transaction) -> T_co:
        """Do it within `transaction`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeProducer(Change[None]):
    """Remember a producer id before it is used, so that it is never taken a second time."""

    producer_id: ProducerId
    producer_epoch: ProducerEpoch

    def apply(self, transaction: Transaction) -> None:
        """Write it to the meta table."""
        transaction.connection.execute(
            "INSERT INTO meta VALUES ('producer_id', ?), ('producer_epoch', ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (self.producer_id, self.producer_epoch),
        )
        transaction.producer = (self.producer_id, self.producer_epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRows(Change[tuple[CutBatch, ...]]):
    """Write batches down that were encoded from a stream's oldest uncut rows."""

    stream: str
    read_from: EventSequence
    """`first_uncut` as it was when the rows were read."""
    first_sequence: EventSequence
    last_sequence: EventSequence
    device_partitions: int
    producer_id: ProducerId
    producer_epoch: ProducerEpoch
    batches: Sequence[EncodedBatch]

    def apply(self, transaction: Transaction) -> tuple[CutBatch, ...]:
        """Insert the batches; the rows count as cut from here on.

        Raises:
            CutConflict: the stream's oldest uncut rows are others by now.
        """
        state = transaction.stream(self.stream)
        if state.first_uncut != self.read_from:
            raise CutConflict(f"{self.stream}: rows from {self.read_from} were read, {state.first_uncut} is the first")
        cut = transaction.next_batch
        batches = tuple(
            CutBatch(
                number=cut + index,
                cut=cut,
                stream=self.stream,
                partition=encoded.partition,
                device_partitions=self.device_partitions,
                first_sequence=self.first_sequence,
                last_sequence=self.last_sequence,
                producer_id=self.producer_id,
                producer_epoch=self.producer_epoch,
                base_sequence=encoded.base_sequence,
                record_count=encoded.record_count,
                size_bytes=len(encoded.record_batch),
                crc=encoded.crc,
            )
            for index, encoded in enumerate(self.batches)
        )
        insert_batches(transaction.connection, batches)
        transaction.next_batch += len(batches)
        transaction.made_cuts[cut] = batches
        state.first_uncut = EventSequence(self.last_sequence + 1)
        state.uncut -= sum(batch.record_count for batch in batches)
        return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleCut(Change[None]):
    """Every batch of a cut has its final answer: its rows leave the log, but for those of returned batches."""

    cut: int
    returned: frozenset[int] = frozenset()
    """Numbers of batches that the core certainly does not have; their rows are cut again. Only given while no other
    cut of the stream lies above, so that uncut rows stay above all cut ones."""
    refused: Mapping[int, Refusal] = field(default_factory=dict)
    """Batches, by number, that will never be taken: kept for the operator, and lost for the consumers."""

    def apply(self, transaction: Transaction) -> None:
        """Delete rows and batches; write loss records."""
        batches = transaction.cut(self.cut)
        state = transaction.stream(batches[0].stream)
        for batch in batches:
            if (refusal := self.refused.get(batch.number)) is not None:
                _keep_refused(
                    transaction,
                    batch.stream,
                    batch.partition,
                    batch.first_sequence,
                    batch.last_sequence,
                    record_count=batch.record_count,
                    refusal=refusal,
                )
        if self.returned:
            self._return_rows(transaction, state, batches)
        else:
            transaction.delete_range(state, batches[0].first_sequence, batches[0].last_sequence)
        transaction.connection.execute("DELETE FROM batches WHERE cut = ?", (self.cut,))
        transaction.settled_cuts.add(self.cut)

    def _return_rows(self, transaction: Transaction, state: StreamState, batches: Sequence[CutBatch]) -> None:
        first, last = batches[0].first_sequence, batches[0].last_sequence
        partitions = batches[0].device_partitions
        if partitions:
            returned = {batch.partition for batch in batches if batch.number in self.returned}
            rows = transaction.connection.execute(
                f"SELECT sequence, device FROM {state.table} WHERE sequence BETWEEN ? AND ?", (first, last)
            ).fetchall()
            gone = [sequence for sequence, device in rows if partition_for(device, partitions) not in returned]
            transaction.delete_rows(state, gone)
        state.uncut += sum(batch.record_count for batch in batches if batch.number in self.returned)
        state.first_uncut = min(state.first_uncut, first)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseEvent(Change[None]):
    """Take the oldest uncut event out: it is larger than any batch may be."""

    stream: str
    read_from: EventSequence
    sequence: EventSequence
    partition: int
    refusal: Refusal

    def apply(self, transaction: Transaction) -> None:
        """Delete the row, keep its batch, write a loss record.

        Raises:
            CutConflict: the stream's oldest uncut rows are others by now.
        """
        state = transaction.stream(self.stream)
        if state.first_uncut != self.read_from:
            raise CutConflict(f"{self.stream}: rows from {self.read_from} were read, {state.first_uncut} is the first")
        _keep_refused(
            transaction, self.stream, self.partition, self.sequence, self.sequence, record_count=1, refusal=self.refusal
        )
        state.uncut -= transaction.delete_range(state, self.sequence, self.sequence)
        state.first_uncut = EventSequence(self.sequence + 1)


def _keep_refused(
    transaction: Transaction,
    stream: str,
    partition: int,
    first: EventSequence,
    last: EventSequence,
    *,
    record_count: int,
    refusal: Refusal,
) -> None:
    reason = refusal.reason[:REASON_LENGTH_MAX]
    connection = transaction.connection
    connection.execute(
        "INSERT INTO refused_batches (time_ms, stream, partition, first_sequence, last_sequence, record_count, reason,"
        " record_batch) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (transaction.now_ms, stream, partition, first, last, record_count, reason, refusal.record_batch),
    )
    kept_bytes = 0
    sizes = connection.execute("SELECT number, length(record_batch) FROM refused_batches ORDER BY number DESC")
    for number, size in sizes.fetchall():
        kept_bytes += size
        if kept_bytes > transaction.limits.refused_bytes_max:
            connection.execute("DELETE FROM refused_batches WHERE number <= ?", (number,))
            break
    transaction.add_loss(stream, first, last, record_count, f"refused: {reason}")
