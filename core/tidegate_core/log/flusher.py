"""Group commit: one sync for all appends made while the sync before it ran.

`request` marks a partition as having something to sync. A few threads take what is marked; while they wait for the disk
the event loop goes on appending, and what it appends is the next group. A partition is with one thread at a time, so a
slow one holds up only those in its own group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from tidegate_core.log.files import NO_DESCRIPTOR_ERRORS
from tidegate_core.log.sync_job import SyncJob

SYNC_THREADS: Final = 4
"""Syncs at once: the disk merges their journal commits; more gained nothing measurable on one disk."""

RETRY_DELAY_S: Final = 0.05
"""Before asking again for a file descriptor, when there was none: connections close meanwhile."""


class Syncable(Protocol):
    """A partition, as the flusher sees it."""

    def begin_sync(self) -> SyncJob | None:
        """What to sync now; None if there is nothing any more. May raise OSError: no descriptor is free."""

    def end_sync(self, job: SyncJob | None, error: Exception | None) -> None:
        """The job was done, or failed: whoever waits for it is to be told."""

    def end_checkpoint(self) -> None:
        """The checkpoint that came with a job was written, or could not be."""


_Done = tuple[Syncable, SyncJob, Exception | None]
"""A job that was run, and what went wrong."""


class Flusher:
    """Owned by the event loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="flush")
        self._idle_threads = SYNC_THREADS
        self._requested: dict[Syncable, None] = {}
        self._syncing: set[Syncable] = set()
        self._is_start_scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()

    def request(self, partition: Syncable) -> None:
        """Sync `partition` soon, together with all others requested in this turn of the event loop."""
        self._requested[partition] = None
        if not self._is_start_scheduled and self._idle_threads and partition not in self._syncing:
            self._is_start_scheduled = True
            self._idle.clear()
            self._loop.call_soon(self._start)

    async def drain(self) -> None:
        """Return when nothing is requested or being synced."""
        await self._idle.wait()

    async def close(self) -> None:
        """Wait for what was requested, and end the threads."""
        await self.drain()
        await asyncio.to_thread(self._pool.shutdown)

    def _start(self) -> None:
        self._is_start_scheduled = False
        ready = [partition for partition in self._requested if partition not in self._syncing]
        if ready and self._idle_threads:
            share = -(-len(ready) // self._idle_threads)
            for first in range(0, len(ready), share):
                self._start_group(ready[first : first + share])
        if not self._requested and self._idle_threads == SYNC_THREADS:
            self._idle.set()

    def _start_group(self, partitions: Sequence[Syncable]) -> None:
        group: list[tuple[Syncable, SyncJob]] = []
        for partition in partitions:
            try:
                job = partition.begin_sync()
            except OSError as error:
                if error.errno in NO_DESCRIPTOR_ERRORS:
                    self._loop.call_later(RETRY_DELAY_S, self._start)
                    continue  # and it stays requested
                job = None
                partition.end_sync(None, error)
            del self._requested[partition]
            if job is not None:
                group.append((partition, job))
                self._syncing.add(partition)
        if group:
            self._idle_threads -= 1
            self._loop.run_in_executor(self._pool, _sync_all, group).add_done_callback(self._end_group)

    def _end_group(self, future: asyncio.Future[Sequence[_Done]]) -> None:
        """Tell whoever waits for the syncs; the checkpoints come after, so that nobody waits for those."""
        done = future.result()
        with_checkpoint = [(partition, job) for partition, job, error in done if job.checkpoint and error is None]
        if with_checkpoint:
            written = self._loop.run_in_executor(self._pool, _checkpoint_all, with_checkpoint)
            written.add_done_callback(self._end_checkpoints)
        else:
            self._idle_threads += 1
        for partition, job, error in done:
            self._syncing.discard(partition)
            partition.end_sync(job, error)
        self._start()

    def _end_checkpoints(self, future: asyncio.Future[Sequence[Syncable]]) -> None:
        self._idle_threads += 1
        for partition in future.result():
            partition.end_checkpoint()
        self._start()


def _sync_all(group: Sequence[tuple[Syncable, SyncJob]]) -> Sequence[_Done]:
    """In a thread."""
    done: list[_Done] = []
    for partition, job in group:
        try:
            job.run()
        except Exception as error:  # whatever it is, the partition must hear of it
            done.append((partition, job, error))
        else:
            done.append((partition, job, None))
    return done


def _checkpoint_all(group: Sequence[tuple[Syncable, SyncJob]]) -> Sequence[Syncable]:
    """In a thread."""
    for _, job in group:
        job.write_checkpoint()
    return [partition for partition, _ in group]
