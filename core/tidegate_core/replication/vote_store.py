"""Puts votes on disk before anybody hears of them: one sync for all that was to be saved while the last one ran."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tidegate_core.errors import PartitionClosed, StorageError, StorageFailed
from tidegate_core.raft.messages import ReplicaKey, VoteState
from tidegate_core.replication.vote_journal import Change, VoteJournal


class VoteStore:
    """Owned by the event loop's thread; `open` may be called in another."""

    def __init__(self, journal: VoteJournal) -> None:
        self._journal = journal
        self._states = journal.states
        self._pending: list[tuple[Sequence[Change], asyncio.Future[None] | None]] = []
        self._writer: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="votes")
        self.is_damaged = journal.is_damaged
        """Whether votes may be forgotten: no replica of this node may go on as if it knew them all. Found again by each
        start until `settle_damage`."""
        self.failure: StorageError | None = None
        """Why nothing is saved any more."""

    @classmethod
    def open(cls, path: Path, *, must_exist: bool) -> VoteStore:
        """Read the votes in the file `path`, which is made if it is not there.

        `must_exist`: this node took part in elections before, so having no file is damage.

        Raises:
            OSError: it can't be read or written.
        """
        return cls(VoteJournal(path, must_exist=must_exist))

    def get(self, key: ReplicaKey) -> VoteState | None:
        """What was saved last."""
        return self._states.get(key)

    async def save(self, states: Mapping[ReplicaKey, VoteState]) -> None:
        """Return when the states are on disk. Saves take effect in the order of the calls.

        Raises:
            DiskFull, StorageError: they are not; a later time may work.
            StorageFailed: nothing can be saved any more.
            PartitionClosed: the store is closed.
        """
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._enqueue(tuple(states.items()), saved)
        await saved

    def forget(self, keys: Iterable[ReplicaKey]) -> None:
        """The replicas are gone for good; written with whatever is written next."""
        if self.failure is None:
            self._enqueue(tuple((key, None) for key in keys), None)

    async def settle_damage(self) -> None:
        """Every replica's state that the damage asks for was saved: the next start shall not find it any more.

        Raises:
            DiskFull, StorageFailed, StorageError: it will.
        """
        await self.save({})
        await asyncio.get_running_loop().run_in_executor(self._pool, self._journal.settle_damage)
        self.is_damaged = False

    async def close(self) -> None:
        """Finish what was begun, and close the file."""
        if self.failure is None:
            self.failure = PartitionClosed("the votes' file is closed")
        if self._writer is not None:
            await asyncio.wait([self._writer])
        await asyncio.to_thread(self._pool.shutdown)
        self._journal.close()

    def _enqueue(self, changes: Sequence[Change], saved: asyncio.Future[None] | None) -> None:
        self._pending.append((changes, saved))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="votes")

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            group, self._pending = self._pending, []
            changes = [change for group_changes, _ in group for change in group_changes]
            error: StorageError | None = None
            try:
                await loop.run_in_executor(self._pool, self._journal.append, changes)
            except StorageFailed as failed:
                self.failure = error = failed
                group, self._pending = group + self._pending, []
            except StorageError as refused:
                error = refused
            self._states = self._journal.states
            for _, saved in group:
                if saved is None or saved.done():
                    continue
                if error is None:
                    saved.set_result(None)
                else:
                    saved.set_exception(error)
        self._writer = None
