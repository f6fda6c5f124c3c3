"""Reads a whole internal topic back into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tidegate_core.partition import Partition
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import BatchHeader, Record, iter_batches, read_records

READ_BYTES: Final = 1024 * 1024
"""One read at a time: large enough that reading is not the cost, small enough to hold."""


def replay(partition: Partition) -> Iterator[Record]:
    """Yield every record from the log's start to the high watermark; control records are left out.

    Raises:
        PartitionDamaged, StorageFailed: the log can't be read, or where it ends is not known.
        BatchError: a batch's records can't be.
    """
    if partition.failure is not None:
        raise partition.failure
    offset = partition.log_start_offset
    while offset < partition.high_watermark:
        result = partition.read(offset, READ_BYTES)
        if not result.buffers:
            return  # compaction left nothing between here and the high watermark
        for buffer in result.buffers:
            for batch in iter_batches(buffer):
                header = BatchHeader.parse(batch)
                if not header.is_control:
                    yield from read_records(batch)
                offset = Offset(header.base_offset + header.last_offset_delta + 1)
