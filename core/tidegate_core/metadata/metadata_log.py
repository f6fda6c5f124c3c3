"""Follows the log of `__cluster_metadata` on this node: committed records go into the image, in their order.

Every so many records the image is written beside the log, and the log's beginning goes; a node that comes late, or
starts again, begins with that.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Final

import structlog

from tidegate_core.errors import PartitionDamaged, PartitionError
from tidegate_core.log.app_state import load_app_state, write_app_state
from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.log_manager import LogManager
from tidegate_core.metadata.image import Changes, MetadataImage
from tidegate_core.metadata.snapshot import decode_snapshot, encode_snapshot
from tidegate_core.partition import Partition
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import BatchError, BatchHeader, iter_batches, read_records

SNAPSHOT_INTERVAL_RECORDS: Final = 5000
"""Between two snapshots: a start reads at most as many records, in a fraction of a second, and a snapshot, which holds
up the loop for as long as the disk takes to sync it, is written rarely."""

READ_BYTES: Final = 1024 * 1024

_log = structlog.get_logger()


class MetadataLog:
    """The image and how far it is. `load` once, then `on_high_watermark` whenever more is committed."""

    def __init__(self, logs: LogManager, *, snapshot_interval_records: int = SNAPSHOT_INTERVAL_RECORDS) -> None:
        self._logs = logs
        self.image = MetadataImage(self.partition.voters[0])
        self.applied_offset = Offset(0)
        """Records before this one are in the image."""
        self.on_change: list[Callable[[Changes], None]] = []
        """Called after records were applied, with what they changed."""
        self._snapshot_interval = snapshot_interval_records
        self._snapshot_offset = Offset(0)
        """Of the newest snapshot on the disk."""
        self._next_snapshot = Offset(snapshot_interval_records)
        self._waits: list[tuple[Offset, int, asyncio.Future[None]]] = []
        self._wait_numbers = itertools.count()

    @property
    def partition(self) -> Partition:
        """The log itself; another object after it was found damaged and fetched anew."""
        return self._logs.partitions[METADATA_TOPIC, 0]

    def load(self) -> None:
        """Apply the newest snapshot, and what is known to be committed: everything, if no other node has a say.

        Where other nodes have the metadata too, a log that can't be read is marked as damaged, and fetched from them.

        Raises:
            PartitionError: the log can't be read, and without it nothing can be served.
            BatchError: a batch in it is malformed.
        """
        partition = self.partition
        try:
            if partition.failure is not None:
                raise partition.failure
            self._load_snapshot()
            if partition.had_one_voter_only:
                self._apply(lambda offset: partition.read_for_replica(offset, READ_BYTES), partition.log_end_offset)
        except PartitionDamaged as error:
            if len(partition.voters) == 1:
                raise
            _log.error("metadata_damaged", error=str(error))
            partition.log.damage = partition.failure = error
        self.image.take_changes()

    def on_high_watermark(self) -> None:
        """More is committed, or the log began anew from the leader's snapshot: apply it, and tell those who wait.

        What can't be read is reported; the image stays where it is until it can be.
        """
        try:
            if self.partition.log_start_offset > self.applied_offset:
                self._load_snapshot()
            partition = self.partition
            self._apply(lambda offset: partition.read(offset, READ_BYTES).buffers, partition.high_watermark)
        except (PartitionError, BatchError, OSError) as error:
            _log.error("metadata_not_applied", offset=self.applied_offset, error=str(error))
        changes = self.image.take_changes()
        if changes.topics or changes.nodes or changes.deleted:
            for listener in self.on_change:
                listener(changes)
        while self._waits and self._waits[0][0] <= self.applied_offset:
            future = heappop(self._waits)[2]
            if not future.done():
                future.set_result(None)
        self._keep_short()

    async def applied(self, offset: Offset) -> None:
        """Return when all records before `offset` are in the image."""
        if self.applied_offset >= offset:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._waits, (offset, next(self._wait_numbers), future))
        await future

    def _load_snapshot(self) -> None:
        partition = self.partition
        state = load_app_state(partition.log.directory)
        offset = Offset(0) if state is None else state[0]
        if offset < partition.log_start_offset:
            raise PartitionDamaged(
                f"{partition.log.directory} begins at offset {partition.log_start_offset}, and there is no snapshot of "
                "what was before",
                hint="remove the directory while other nodes have the metadata; it is fetched from them",
            )
        if state is not None and offset > self.applied_offset:
            self.image.begin_anew(decode_snapshot(state[1]))
            self.applied_offset = offset
        self._snapshot_offset = offset
        self._next_snapshot = Offset(offset + self._snapshot_interval)

    def _apply(self, read: Callable[[Offset], Sequence[bytes]], end: Offset) -> None:
        while self.applied_offset < end:
            buffers = read(self.applied_offset)
            if not buffers:
                self.applied_offset = end  # compaction left nothing of an old log's end
            for buffer in buffers:
                for batch in iter_batches(buffer):
                    self._apply_batch(batch)

    def _apply_batch(self, batch: memoryview) -> None:
        header = BatchHeader.parse(batch)
        if header.last_offset < self.applied_offset:
            return
        if not header.is_control:
            for record in read_records(batch):
                self.image.apply(record.key, record.value)
        self.applied_offset = Offset(header.last_offset + 1)

    def _keep_short(self) -> None:
        """Write a snapshot if one is due, and let the log begin where the newest one ends.

        Both at once, so that no follower is sent to a log whose beginning is gone without the snapshot of it; what a
        crash in between left over is done here too.
        """
        partition, offset = self.partition, self.applied_offset
        try:
            if offset >= self._next_snapshot:
                self._next_snapshot = Offset(offset + self._snapshot_interval)  # if this fails, try again by then
                write_app_state(partition.log.directory, offset, encode_snapshot(self.image))
                self._snapshot_offset = offset
                _log.info("metadata_snapshot_written", offset=offset, topics=len(self.image.topics))
            if partition.log_start_offset < self._snapshot_offset <= partition.high_watermark:
                partition.delete_before(self._snapshot_offset)
        except (OSError, PartitionError) as error:
            _log.warning("metadata_not_shortened", offset=offset, error=str(error))
