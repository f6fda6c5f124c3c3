"""Rows of the event log to record batches, the same bytes every time. Runs on the log reader's thread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tidegate_edge.errors import EventLogDamaged
from tidegate_edge.event_log.cuts import CutBatch, EncodedBatch
from tidegate_edge.event_log.reader import Rows
from tidegate_edge.uplink.outputs import CutWanted
from tidegate_wire.identifiers import BatchSequence, EventSequence, ProducerEpoch, ProducerId
from tidegate_wire.records import (
    BatchHeader,
    Compression,
    Header,
    RecordBatchBuilder,
    RecordTemplate,
    encode_headers,
    encode_record_body,
)
from tidegate_wire.uplink.event import (
    HEADER_EDGE,
    HEADER_RECEIVED,
    HEADER_SEQUENCE,
    HEADER_TOPIC,
    partition_for,
)

ZSTD_LEVEL: Final = 3
"""Part of what makes a batch the same when it is encoded again: batches in flight would change with it."""

TEMPLATES_MAX: Final = 8_192
"""Pairs of device and topic whose fixed parts are kept encoded, some 300 bytes each; then all are made again."""

_TOPIC: Final = HEADER_TOPIC.encode()
_SEQUENCE: Final = HEADER_SEQUENCE.encode()
_RECEIVED: Final = HEADER_RECEIVED.encode()

_RECORD_OVERHEAD_BYTES_MAX: Final = 40
"""Attributes, lengths and deltas of a record around its body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedCut:
    """Batches made from a stream's oldest uncut rows, to be written down as one cut."""

    first_sequence: EventSequence
    last_sequence: EventSequence
    batches: tuple[EncodedBatch, ...]
    encoded_bytes: int
    """Before compression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """The oldest uncut event alone makes a batch larger than any may be."""

    sequence: EventSequence
    partition: int
    record_batch: bytes
    batch_bytes_max: int


class BatchEncoder:
    """Encodes one edge's events."""

    def __init__(self, edge: str) -> None:
        self._edge = edge
        self._edge_header: Header = (HEADER_EDGE.encode(), edge.encode())
        self._templates: dict[tuple[bytes, bytes], RecordTemplate] = {}

    def cut(self, wanted: CutWanted, rows: Rows) -> EncodedCut | TooLarge:
        """Encode rows, the oldest first, until a batch has `wanted.target_bytes`, or all."""
        builders: dict[int, RecordBatchBuilder] = {}
        fixed = None if wanted.by_device else partition_for(self._edge, wanted.partitions)
        partition_of: dict[bytes, int] = {}
        size_max = wanted.target_bytes - _RECORD_OVERHEAD_BYTES_MAX
        partition = fixed or 0
        count = 0
        for device, body, time_ms in self._bodies(rows):
            if fixed is None:
                known = partition_of.get(device)
                if known is None:
                    known = partition_of[device] = partition_for(device.decode(), wanted.partitions)
                partition = known
            builder = builders.get(partition)
            if builder is None:
                builder = builders[partition] = self._builder(
                    wanted.producer_id,
                    wanted.producer_epoch,
                    wanted.base_sequences.get(partition, BatchSequence(0)),
                )
            elif builder.size_bytes + len(body) > size_max:
                break
            builder.append_encoded(time_ms, body)
            count += 1
        batches = tuple(_build(partition, builder) for partition, builder in sorted(builders.items()))
        if count == 1 and len(batches[0].record_batch) > wanted.batch_bytes_max:
            return TooLarge(
                sequence=EventSequence(int(rows.sequences[0])),
                partition=batches[0].partition,
                record_batch=batches[0].record_batch,
                batch_bytes_max=wanted.batch_bytes_max,
            )
        return EncodedCut(
            first_sequence=EventSequence(int(rows.sequences[0])),
            last_sequence=EventSequence(int(rows.sequences[count - 1])),
            batches=batches,
            encoded_bytes=sum(builder.size_bytes for builder in builders.values()),
        )

    def again(self, batch: CutBatch, rows: Rows) -> bytes:
        """The bytes of a batch that was cut before, from the rows of its range."""
        builder = self._builder(batch.producer_id, batch.producer_epoch, batch.base_sequence)
        partitions = batch.device_partitions
        for device, body, time_ms in self._bodies(rows):
            if partitions == 0 or partition_for(device.decode(), partitions) == batch.partition:
                builder.append_encoded(time_ms, body)
        if builder.record_count != batch.record_count:
            raise EventLogDamaged(
                f"{batch.stream}: rows {batch.first_sequence} to {batch.last_sequence} were cut into a batch of"
                f" {batch.record_count} records, but {builder.record_count} are left",
                hint="was the event log changed by hand? Put its backup back, or start with an empty data directory",
            )
        return builder.build()

    def _builder(
        self, producer_id: ProducerId, producer_epoch: ProducerEpoch, base_sequence: BatchSequence
    ) -> RecordBatchBuilder:
        return RecordBatchBuilder(producer_id, producer_epoch, base_sequence, Compression.ZSTD, zstd_level=ZSTD_LEVEL)

    def _bodies(self, rows: Rows) -> Iterator[tuple[bytes, bytes, int]]:
        """Device, record body and event time of each row."""
        templates = self._templates
        for device, topic, time_ms, sequence, received, payload, headers in zip(
            rows.devices,
            rows.topics,
            rows.event_times_ms,
            rows.sequences,
            rows.receive_times_ms,
            rows.payloads,
            rows.headers,
            strict=True,
        ):
            if headers is None:
                template = templates.get((device, topic)) or self._template(device, topic)
                yield device, template.encode(payload, sequence, received), time_ms
            else:
                own: list[Header] = [
                    self._edge_header,
                    (_TOPIC, topic),
                    (_SEQUENCE, sequence),
                    (_RECEIVED, received),
                ]
                own += [(name.encode(), value.encode()) for name, value in json.loads(headers)]
                yield device, encode_record_body(device, payload, encode_headers(own)), time_ms

    def _template(self, device: bytes, topic: bytes) -> RecordTemplate:
        """The fixed parts of a device's records on a topic."""
        if len(self._templates) >= TEMPLATES_MAX:
            self._templates.clear()
        template = self._templates[device, topic] = RecordTemplate(
            device,
            (self._edge_header, (_TOPIC, topic)),
            (_SEQUENCE, _RECEIVED),
        )
        return template


def _build(partition: int, builder: RecordBatchBuilder) -> EncodedBatch:
    record_batch = builder.build()
    header = BatchHeader.parse(record_batch)
    return EncodedBatch(
        partition=partition,
        base_sequence=header.base_sequence,
        record_count=header.record_count,
        record_batch=record_batch,
        crc=header.crc,
    )
