"""Every partition under one data directory: opened, made, deleted, and kept in bounds in the background."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self
from uuid import UUID

import structlog

from tidegate_core.data_dir import DataDir
from tidegate_core.errors import PartitionDamaged, PartitionError, PartitionExists, StorageError
from tidegate_core.log.config import LogConfig
from tidegate_core.log.files import DELETED_SUFFIX, DamagedFile, OpenFiles, storage_error, sync_directory
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.identity import (
    IDENTITY_NAME,
    PartitionIdentity,
    load_directory_name,
    load_identity,
    write_identity,
)
from tidegate_core.log.log import CHECKPOINT_INTERVAL_BYTES, CHECKPOINT_INTERVAL_BYTES_MIN
from tidegate_core.log.segment import SEGMENT_SUFFIX, LogPosition
from tidegate_core.opening import create_partition, open_partition
from tidegate_core.partition import Partition
from tidegate_core.producers import EXPIRATION_MS_DEFAULT
from tidegate_core.upkeep import compact_partition, keep_in_bounds
from tidegate_wire.identifiers import NodeId

OPEN_THREADS: Final = 4
"""Partitions opened at once: one waits for the disk while another checks what it read."""

UPKEEP_INTERVAL_S: Final = 30.0
"""Between two looks at every partition for what is old; retention is late by at most this."""

NAME_BYTES_MAX: Final = 200
"""Of a partition's name where something is added to it; file systems take names of 255 bytes."""

SCAN_BYTES_MAX: Final = 512 * 1024 * 1024
"""What a start after a crash reads of all partitions together, about: half a second of CRCs, or what the disk takes."""

DAMAGED_SUFFIX: Final = ".damaged"
"""Of a partition's directory that was set aside until there is a whole copy of it again."""

_logger = structlog.get_logger()


def wall_clock_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def lead_alone(partition: Partition) -> None:
    """Let a partition that no other node has lead: what is on this disk is committed."""
    partition.lead(partition.leader_epoch)
    partition.set_high_watermark(partition.synced_offset)
    partition.on_synced = lambda synced: synced.set_high_watermark(synced.synced_offset)


class LogManager:
    """Owned by the event loop's thread. `async with await LogManager.open(...)`, or call `close`."""

    def __init__(
        self,
        data_dir: DataDir,
        *,
        config_of: Callable[[str], LogConfig],
        clock_ms: Callable[[], int],
        producer_expiration_ms: int,
        upkeep_interval_s: float,
    ) -> None:
        self._data_dir = data_dir
        self._config_of = config_of
        self._clock_ms = clock_ms
        self._producer_expiration_ms = producer_expiration_ms
        self._upkeep_interval_s = upkeep_interval_s
        self._files = OpenFiles()
        self._flusher = Flusher()
        self._janitor = ThreadPoolExecutor(1, thread_name_prefix="janitor")
        self._loop = asyncio.get_running_loop()
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._unopened: dict[tuple[str, int], StorageError] = {}
        self._upkeep: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        data_dir: DataDir,
        *,
        config_of: Callable[[str], LogConfig],
        clock_ms: Callable[[], int] = wall_clock_ms,
        producer_expiration_ms: int = EXPIRATION_MS_DEFAULT,
        upkeep_interval_s: float = UPKEEP_INTERVAL_S,
    ) -> LogManager:
        """Open all partitions in the directory and start the upkeep. Closing this releases the directory too.

        `config_of(topic)` is asked for each topic found.

        Raises:
            OSError: the directory can't be read or written.
        """
        manager = cls(
            data_dir,
            config_of=config_of,
            clock_ms=clock_ms,
            producer_expiration_ms=producer_expiration_ms,
            upkeep_interval_s=upkeep_interval_s,
        )
        try:
            await manager._open_partitions()
        except BaseException:
            await manager.close()
            raise
        for partition in manager._partitions.values():
            partition.request_checkpoint()
        manager._upkeep = asyncio.create_task(manager._run_upkeep(), name="log upkeep")
        return manager

    @property
    def partitions(self) -> Mapping[tuple[str, int], Partition]:
        """By topic and partition index."""
        return MappingProxyType(self._partitions)

    @property
    def unopened(self) -> Mapping[tuple[str, int], StorageError]:
        """Partitions that are on the disk, but could not be opened, and why."""
        return MappingProxyType(self._unopened)

    def create(
        self,
        topic: str,
        index: int,
        config: LogConfig,
        topic_id: UUID,
        voters: tuple[NodeId, ...],
        *,
        stands_in: bool = False,
    ) -> Partition:
        """Make an empty partition; it is on disk when this returns.

        `stands_in`: it takes the place of a damaged one until it has all of the leader's records.

        Raises:
            PartitionExists: it is there already.
            DiskFull, StorageFailed, StorageError: the directory can't be made, or the one there not be opened.
        """
        directory = self._data_dir.path / f"{topic}-{index}"
        unopened = self._unopened.get((topic, index))
        if unopened is not None:
            raise unopened.with_traceback(None)
        try:
            directory.mkdir()
        except FileExistsError:
            raise PartitionExists(f"{directory} exists") from None
        except OSError as error:
            raise storage_error(error, f"{directory} can't be made") from error
        try:
            partition = create_partition(
                topic,
                index,
                directory,
                config,
                files=self._files,
                flusher=self._flusher,
                discard=self._discard,
                now_ms=self._clock_ms(),
                identity=PartitionIdentity(topic_id, voters, stands_in),
            )
            sync_directory(self._data_dir.path)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise storage_error(error, f"{directory} can't be made") from error
        self._partitions[topic, index] = partition
        self._share_out_scan()
        return partition

    def delete(self, topic: str, index: int) -> None:
        """Close the partition and remove its files in the background; gone for good when this returns.

        Raises:
            KeyError: there is none.
            DiskFull, StorageFailed, StorageError: the directory can't be renamed; the partition is closed.
        """
        partition = self._partitions[topic, index]
        partition.close()
        directory = partition.log.directory
        gone = _unused_name(directory, DELETED_SUFFIX)
        try:
            directory.rename(gone)
            self._discard_set_aside(directory.name)
            sync_directory(self._data_dir.path)
        except OSError as error:
            raise storage_error(error, f"{directory} can't be removed") from error
        del self._partitions[topic, index]
        self._discard(gone)

    def set_aside_damaged(self, topic: str, index: int) -> Partition:
        """Keep a damaged partition's files under another name, and make an empty one in its place.

        Raises:
            KeyError: there is none.
            DiskFull, StorageFailed, StorageError: it could not be done.
        """
        damaged = self._partitions[topic, index]
        damaged.close()
        directory = damaged.log.directory
        try:
            directory.rename(_unused_name(directory, DAMAGED_SUFFIX))
        except OSError as error:
            raise storage_error(error, f"{directory} can't be set aside") from error
        del self._partitions[topic, index]
        return self.create(topic, index, damaged.config, damaged.key.topic_id, damaged.voters, stands_in=True)

    def discard_damaged(self, topic: str, index: int) -> None:
        """The copy is complete: remove the files that were set aside.

        Raises:
            KeyError: there is no such partition.
            DiskFull, StorageFailed, StorageError: it could not be done; the next time may do.
        """
        partition = self._partitions[topic, index]
        identity = replace(partition.identity, stands_in=False, was_shared=True)
        try:
            write_identity(partition.log.directory, identity)
            partition.identity = identity
            self._discard_set_aside(partition.log.directory.name)
        except OSError as error:
            raise storage_error(error, f"{partition.log.directory}: what was set aside can't be removed") from error

    def _share_out_scan(self) -> None:
        """The more partitions there are, the less is appended to each between two checkpoints."""
        share = SCAN_BYTES_MAX // max(len(self._partitions), 1)
        interval_bytes = min(max(share, CHECKPOINT_INTERVAL_BYTES_MIN), CHECKPOINT_INTERVAL_BYTES)
        for partition in self._partitions.values():
            partition.log.checkpoint_interval_bytes = interval_bytes

    def configure(self, topic: str, config: LogConfig) -> None:
        """Use `config` for all partitions of `topic` from now on."""
        for (name, _), partition in self._partitions.items():
            if name == topic:
                partition.config = config

    async def close(self) -> None:
        """Sync everything, write the checkpoints that make the next start instant, and release the directory."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        for partition in self._partitions.values():
            partition.request_checkpoint()
        await self._flusher.close()
        for partition in self._partitions.values():
            partition.close()
        await asyncio.sleep(0)  # what is to be discarded is handed over first
        await asyncio.to_thread(self._janitor.shutdown)
        self._data_dir.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open_partitions(self) -> None:
        started = self._loop.time()
        found = await self._loop.run_in_executor(None, self._tidy_up)
        waiting = iter(found)
        opened: dict[tuple[str, int], Partition] = {}

        async def open_some(pool: ThreadPoolExecutor) -> None:
            for topic, index, directory in waiting:
                config = self._config_of(topic)
                result = await self._loop.run_in_executor(pool, self._open_one, topic, index, directory, config)
                if isinstance(result, Partition):
                    result.log.use_files(self._files)
                    opened[topic, index] = result
                else:
                    self._unopened[topic, index] = result

        with ThreadPoolExecutor(OPEN_THREADS, thread_name_prefix="open") as pool:
            await asyncio.gather(*(open_some(pool) for _ in range(OPEN_THREADS)))
        self._partitions.update((key, opened[key]) for key in sorted(opened))
        self._share_out_scan()
        _logger.info(
            "logs_opened",
            partitions=len(self._partitions),
            unopened=len(self._unopened),
            elapsed_ms=round((self._loop.time() - started) * 1000),
        )

    def _open_one(self, topic: str, index: int, directory: Path, config: LogConfig) -> Partition | StorageError:
        files = OpenFiles()
        try:
            return open_partition(
                topic,
                index,
                directory,
                config,
                files=files,
                flusher=self._flusher,
                discard=self._discard,
                now_ms=self._clock_ms(),
            )
        except OSError as error:
            problem = storage_error(error, f"{directory} can't be opened")
        except DamagedFile as error:
            problem = PartitionDamaged(str(error), hint="nothing was deleted; restore the file from a copy")
        finally:
            files.close_all()
        _logger.error("partition_not_opened", topic=topic, partition=index, error=str(problem))
        return problem

    def _tidy_up(self) -> list[tuple[str, int, Path]]:
        """Finish what a crash interrupted; returns the partitions there are."""
        path = self._data_dir.path
        for gone in path.glob(f"*{DELETED_SUFFIX}"):
            self._discard(gone)
        for _, _, directory in self._data_dir.partitions():
            if not (directory / IDENTITY_NAME).exists() and not any(
                segment.stat().st_size for segment in directory.glob(f"*{SEGMENT_SUFFIX}")
            ):
                self._discard(directory.rename(_unused_name(directory, DELETED_SUFFIX)))  # was being made
        for damaged in sorted(path.glob(f"*{DAMAGED_SUFFIX}")):
            try:
                directory = path / load_directory_name(damaged)
            except (OSError, DamagedFile):
                continue
            if not directory.exists():
                damaged.rename(directory)  # was being set aside
        sync_directory(path)
        found = list(self._data_dir.partitions())
        for _, _, directory in found:
            try:
                stands_in = load_identity(directory).stands_in
            except (OSError, DamagedFile):
                continue  # opening it says so
            if not stands_in:
                self._discard_set_aside(directory.name)
        return found

    def _discard_set_aside(self, name: str) -> None:
        """Remove what was set aside of the partition whose directory has this name.

        Raises:
            OSError: a directory can't be renamed.
        """
        set_aside = re.compile(re.escape(_short(name)) + r"\.[0-9]+" + re.escape(DAMAGED_SUFFIX))
        for path in self._data_dir.path.glob(f"*{DAMAGED_SUFFIX}"):
            if set_aside.fullmatch(path.name):
                self._discard(path.rename(_unused_name(path, DELETED_SUFFIX)))

    def _discard(self, path: Path) -> None:
        """Remove it in the background; called from any thread."""
        self._loop.call_soon_threadsafe(self._loop.run_in_executor, self._janitor, _remove, path)

    async def _run_upkeep(self) -> None:
        ends: dict[Partition, LogPosition] = {}
        while True:
            await asyncio.sleep(self._upkeep_interval_s)
            for partition in list(self._partitions.values()):
                if partition.failure is not None:
                    continue
                try:
                    keep_in_bounds(partition, self._clock_ms(), self._producer_expiration_ms)
                    if ends.get(partition) == partition.log.end:
                        partition.request_checkpoint()
                    await compact_partition(partition, self._files, self._clock_ms())
                except (OSError, PartitionError) as error:
                    _logger.warning("upkeep_failed", topic=partition.topic, partition=partition.index, error=str(error))
                await asyncio.sleep(0)
            ends = {partition: partition.log.end for partition in self._partitions.values()}


def _unused_name(directory: Path, suffix: str) -> Path:
    """A name beside `directory` that nothing has."""
    name = _short(directory.name)
    names = (directory.with_name(f"{name}.{number}{suffix}") for number in itertools.count())
    return next(path for path in names if not path.exists())


def _short(name: str) -> str:
    """The name of a directory, if need be shortened, so that something can be added to it."""
    if len(name) <= NAME_BYTES_MAX:
        return name
    return f"{name[: NAME_BYTES_MAX - 17]}~{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning("not_removed", path=str(path), error=str(error))
