"""What the window asks its shell to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate_wire.identifiers import BatchSequence, ProducerEpoch, ProducerId


@dataclass(frozen=True, slots=True, kw_only=True)
class SendHello:
    """Publish a hello; answer with `Window.welcome`."""

    session: str
    wants_producer_id: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBatch:
    """Publish a batch that is written down; report the broker's PUBACK with `Window.confirmed`."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeProducer:
    """Write a producer id down, so that it is never taken again; then call `Window.producer_taken`."""

    producer_id: ProducerId
    producer_epoch: ProducerEpoch


@dataclass(frozen=True, slots=True, kw_only=True)
class CutWanted:
    """Encode a stream's oldest uncut rows, write the batches down, and call `Window.cut_made` or `cut_failed`."""

    stream: str
    partitions: int
    by_device: bool
    producer_id: ProducerId
    producer_epoch: ProducerEpoch
    base_sequences: Mapping[int, BatchSequence]
    """For each partition that had a batch of this producer before; the others begin at 0."""
    target_bytes: int
    """Where to stop adding records, before compression."""
    rows_max: int
    """Rows that fill it, and some more: further ones need not be read."""
    batch_bytes_max: int
    """What a batch may take at most; one record alone may only fit compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Every batch of a cut has its final answer: free the rows, but for those of `returned` batches, in one
    transaction; then call `Window.settled`.
    """

    cut: int
    returned: frozenset[int] = frozenset()
    refused: Mapping[int, str] = field(default_factory=dict)
    """Batch number to the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """Drop the connection: it is there, but nothing comes of it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that an operator should find in the log."""

    event: str
    facts: Mapping[str, object]


Output = SendHello | SendBatch | TakeProducer | CutWanted | Settle | Reconnect | Notice
