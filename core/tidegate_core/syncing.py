"""How a partition's log gets on the disk: what is to be synced, who waits for it, and when checkpoints are written."""

from __future__ import annotations

from collections.abc import Callable

from tidegate_core.errors import StorageFailed
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.log import Log
from tidegate_core.log.sync_job import SyncJob
from tidegate_core.waits import OffsetWaits
from tidegate_wire.identifiers import Offset


class Syncing:
    """Owned by a partition."""

    __slots__ = (
        "_is_checkpointing",
        "_log",
        "_on_failed",
        "_on_synced",
        "_take_snapshot",
        "_wants_checkpoint",
        "flusher",
        "is_stopped",
        "synced_offset",
        "waits",
    )

    def __init__(
        self,
        log: Log,
        flusher: Flusher,
        *,
        take_snapshot: Callable[[], Callable[[], None]],
        on_synced: Callable[[], None],
        on_failed: Callable[[StorageFailed], None],
    ) -> None:
        """`take_snapshot` returns what writes, in a thread, the producers as they are now."""
        self.synced_offset = log.log_end_offset
        """One after the last record that is on this disk."""
        self.waits = OffsetWaits()
        """For `synced_offset`."""
        self.is_stopped = log.failure is not None
        """Nothing is synced any more."""
        self.flusher = flusher
        self._log = log
        self._take_snapshot = take_snapshot
        self._on_synced = on_synced
        self._on_failed = on_failed
        self._is_checkpointing = False
        self._wants_checkpoint = False

    def request_checkpoint(self) -> None:
        """Write a checkpoint soon, so that the next start has nothing to scan."""
        if not self.is_stopped and not self._log.is_checkpointed:
            self._wants_checkpoint = True
            self.flusher.request(self)

    def cut(self, synced_offset: Offset) -> None:
        """The log was cut, and is on disk up to `synced_offset`; a sync that runs says nothing any more."""
        end = self._log.log_end_offset
        self.synced_offset = synced_offset
        self.waits.cut(synced_offset, end)
        if synced_offset < end:
            self.flusher.request(self)

    # --- called by the flusher

    def begin_sync(self) -> SyncJob | None:
        """What to sync now; None if there is nothing.

        Raises:
            OSError: no descriptor is free.
        """
        log = self._log
        is_done = log.is_synced and self.synced_offset >= log.log_end_offset
        if self.is_stopped or (is_done and not self._wants_checkpoint):
            return None
        write = None
        if not self._is_checkpointing and (self._wants_checkpoint or log.is_checkpoint_due):
            write = self._take_snapshot()
        job = log.begin_sync(write)
        if write is not None:
            self._is_checkpointing = True
            self._wants_checkpoint = False
        return job

    def end_sync(self, job: SyncJob | None, error: Exception | None) -> None:
        """Everything up to where the job ended is on disk, or the disk failed for good."""
        if error is not None or job is None:
            self._on_failed(
                StorageFailed(
                    f"{self._log.directory} can't be synced: {error}",
                    hint="look at the kernel's log for disk errors, then start the core again",
                )
            )
        elif self.is_stopped:
            pass
        elif job.generation != self._log.generation:  # the log was cut meanwhile: sync what is there now
            self.flusher.request(self)
        elif job.end.offset > self.synced_offset:
            self.synced_offset = job.end.offset
            self.waits.reached(job.end.offset)
            self._on_synced()

    def end_checkpoint(self) -> None:
        """The next checkpoint may be written."""
        self._is_checkpointing = False
        if self._wants_checkpoint:
            self.flusher.request(self)
