"""Who wrote what, so that a batch that is sent twice is stored once (KIP-98). Sans-IO.

A partition keeps, for each producer id, its epoch and its last five batches: Kafka clients have at most five requests
in flight, so a re-sent batch is among them, and is answered with the offsets it already has.

A producer id that is not known must begin with sequence 0. Kafka up to 2.3 said so too; since KIP-360 it takes any
first sequence, to be kind to producers that it forgot after a day. Here they are remembered for months, and being kind
has a price: if a producer's first batch is refused (a full disk) and its second, sent at once behind it, is taken, the
first can never be stored any more; and a batch re-sent by a forgotten producer would be stored twice. So the answer is
UNKNOWN_PRODUCER_ID, upon which clients take a new epoch or id and send what they have not seen acknowledged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from tidegate_core.errors import (
    DuplicateSequence,
    InvalidProducerEpoch,
    OutOfOrderSequence,
    UnknownProducer,
)
from tidegate_wire.identifiers import BatchSequence, Offset, ProducerEpoch, ProducerId
from tidegate_wire.records import SEQUENCE_MAX, BatchHeader

BATCHES_KEPT: Final = 5
"""Kafka's `max.in.flight.requests.per.connection` may not be more for an idempotent producer."""

PRODUCERS_MAX: Final = 50_000
"""Remembered in a partition at once; the one that wrote longest ago is forgotten for a new one. Some 50 MB in memory
and 6 MB in a snapshot. An edge takes one each time it starts: this is 250 edges that start daily for 180 days."""

EXPIRATION_MS_DEFAULT: Final = 180 * 24 * 60 * 60 * 1000
"""Kafka's `producer.id.expiration.ms` is one day; an edge may be offline for months, and then re-sends what it had."""

_SEQUENCES: Final = SEQUENCE_MAX + 1
_HEAD: Final = struct.Struct("<qI")  # offset, producers
_PRODUCER: Final = struct.Struct("<qhqB")  # id, epoch, last append, batches
_BATCH: Final = struct.Struct("<iiqqq")  # first and last sequence, first and last offset, timestamp


class WrittenBatch(NamedTuple):
    """A batch that is in the log."""

    base_sequence: BatchSequence
    last_sequence: BatchSequence
    base_offset: Offset
    last_offset: Offset
    max_timestamp_ms: int


class Producer(NamedTuple):
    """What is known of a producer id; replaced, never changed, so that a copy of the whole table is cheap."""

    epoch: ProducerEpoch
    batches: tuple[WrittenBatch, ...]
    """The last ones of this epoch, oldest first, at most `BATCHES_KEPT`."""
    last_append_ms: int


class ProducerStates:
    """The producers of one partition, the one that wrote last at the end."""

    __slots__ = ("_producers", "producers_max")

    def __init__(self, producers_max: int = PRODUCERS_MAX) -> None:
        self._producers: dict[ProducerId, Producer] = {}
        self.producers_max = producers_max

    def __len__(self) -> int:
        return len(self._producers)

    def get(self, producer_id: ProducerId) -> Producer | None:
        """What is known of the producer."""
        return self._producers.get(producer_id)

    def items(self) -> Iterator[tuple[ProducerId, Producer]]:
        """All producers, the one that wrote longest ago first (DescribeProducers)."""
        return iter(self._producers.items())

    def check(self, header: BatchHeader) -> WrittenBatch | None:
        """Whether a new batch may be appended: None if so, or the batch it repeats.

        Raises:
            InvalidProducerEpoch: a newer holder of the id has written.
            UnknownProducer: the id is not known, and the batch is not its first.
            OutOfOrderSequence: a batch before this one is missing, or it overlaps others.
            DuplicateSequence: it is older than the batches kept.
        """
        producer = self._producers.get(header.producer_id)
        if producer is None:
            if header.base_sequence != 0:
                raise UnknownProducer(
                    f"producer {header.producer_id} is not known here and begins at sequence {header.base_sequence}",
                    hint="take a new producer id or epoch (InitProducerId) and send again from sequence 0",
                )
            return None
        if header.producer_epoch != producer.epoch:
            _check_new_epoch(header, producer)
            return None
        last_sequence = producer.batches[-1].last_sequence
        ahead = (header.base_sequence - last_sequence - 1) % _SEQUENCES
        if ahead == 0:
            return None
        for batch in producer.batches:
            if batch.base_sequence == header.base_sequence and batch.last_sequence == header.last_sequence:
                return batch
        behind_oldest = (producer.batches[0].base_sequence - header.last_sequence - 1) % _SEQUENCES
        if ahead > _SEQUENCES // 2 and behind_oldest < _SEQUENCES // 2:
            raise DuplicateSequence(
                f"producer {header.producer_id} repeats sequence {header.base_sequence}, and is at {last_sequence}"
            )
        raise OutOfOrderSequence(
            f"producer {header.producer_id} sends sequence {header.base_sequence} after {last_sequence}",
            hint="send the batches between first, or take a new epoch (InitProducerId)",
        )

    def record(self, header: BatchHeader, now_ms: int) -> None:
        """The batch with this header is in the log, after the others; also for batches read back from it."""
        producer_id = header.producer_id
        producer = self._producers.get(producer_id)
        if producer is not None and header.base_offset <= producer.batches[-1].last_offset:
            return  # a leader's snapshot knows later batches than the log it comes with
        batch = WrittenBatch(
            header.base_sequence,
            header.last_sequence,
            header.base_offset,
            header.last_offset,
            header.max_timestamp_ms,
        )
        if producer is None or producer.epoch != header.producer_epoch:
            batches: tuple[WrittenBatch, ...] = (batch,)
        else:
            batches = (*producer.batches[-BATCHES_KEPT + 1 :], batch)
        self._producers.pop(producer_id, None)
        self._producers[producer_id] = Producer(header.producer_epoch, batches, now_ms)
        if len(self._producers) > self.producers_max:
            del self._producers[next(iter(self._producers))]

    def expire(self, before_ms: int) -> int:
        """Forget the producers that wrote nothing since `before_ms`; returns how many."""
        expired = []
        for producer_id, producer in self._producers.items():
            if producer.last_append_ms >= before_ms:
                break
            expired.append(producer_id)
        for producer_id in expired:
            del self._producers[producer_id]
        return len(expired)

    def committed(self, offset: Offset) -> ProducerStates:
        """The table without batches that end after `offset`, which may be cut from the log yet."""
        committed = ProducerStates(self.producers_max)
        for producer_id, producer in self._producers.items():
            batches = tuple(batch for batch in producer.batches if batch.last_offset < offset)
            if batches:
                committed._producers[producer_id] = Producer(producer.epoch, batches, producer.last_append_ms)
        return committed

    def copy(self) -> ProducerStates:
        """The table as it is now; cheap, since its entries never change."""
        copy = ProducerStates(self.producers_max)
        copy._producers = self._producers.copy()
        return copy

    def encode(self, offset: Offset) -> bytes:
        """A snapshot of the table as of `offset`."""
        parts = [_HEAD.pack(offset, len(self._producers))]
        for producer_id, producer in self._producers.items():
            parts.append(_PRODUCER.pack(producer_id, producer.epoch, producer.last_append_ms, len(producer.batches)))
            parts.extend(_BATCH.pack(*batch) for batch in producer.batches)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes, producers_max: int = PRODUCERS_MAX) -> tuple[Offset, ProducerStates]:
        """Read what `encode` made: the offset, and the table as of it.

        Raises:
            ValueError: it is something else.
        """
        states = cls(producers_max)
        try:
            offset, count = _HEAD.unpack_from(data)
            at = _HEAD.size
            for _ in range(count):
                producer_id, epoch, last_append_ms, batch_count = _PRODUCER.unpack_from(data, at)
                at += _PRODUCER.size
                end = at + batch_count * _BATCH.size
                batches = tuple(map(WrittenBatch._make, _BATCH.iter_unpack(data[at:end])))
                if not 0 < len(batches) == batch_count <= BATCHES_KEPT:
                    raise ValueError(f"producer {producer_id} has {batch_count} batches")
                states._producers[ProducerId(producer_id)] = Producer(epoch, batches, last_append_ms)
                at = end
        except struct.error as error:
            raise ValueError(f"the producer snapshot is cut: {error}") from error
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes follow the producer snapshot")
        return offset, states


def _check_new_epoch(header: BatchHeader, producer: Producer) -> None:
    if header.producer_epoch < producer.epoch:
        raise InvalidProducerEpoch(
            f"producer {header.producer_id} writes with epoch {header.producer_epoch}, but {producer.epoch} was seen",
            hint="another holder of this producer id took over; take a new epoch (InitProducerId)",
        )
    if header.base_sequence != 0:
        raise OutOfOrderSequence(
            f"producer {header.producer_id} begins epoch {header.producer_epoch} at sequence {header.base_sequence}"
        )
