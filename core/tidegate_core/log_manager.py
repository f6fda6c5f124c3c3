"""Every partition under one data directory: opened, made, deleted, and kept in bounds in the background."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

import structlog

from tidegate_core.data_dir import DataDir
from tidegate_core.errors import PartitionError, PartitionExists, StorageError
from tidegate_core.log.config import LogConfig
from tidegate_core.log.files import DELETED_SUFFIX, OpenFiles, storage_error, sync_directory
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.segment import LogPosition
from tidegate_core.partition import Partition
from tidegate_core.producers import EXPIRATION_MS_DEFAULT
from tidegate_core.upkeep import compact_partition, keep_in_bounds
from tidegate_wire.identifiers import NodeId

UPKEEP_INTERVAL_S: Final = 30.0
"""Between two looks at every partition for what is old; retention is late by at most this."""

_logger = structlog.get_logger()


def wall_clock_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


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
        self.cluster_id = data_dir.cluster_id
        self._data_dir = data_dir
        self._config_of = config_of
        self._clock_ms = clock_ms
        self._producer_expiration_ms = producer_expiration_ms
        self._upkeep_interval_s = upkeep_interval_s
        self._files = OpenFiles()
        self._flusher = Flusher()
        self._janitor = ThreadPoolExecutor(1, thread_name_prefix="janitor")
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._unopened: dict[tuple[str, int], StorageError] = {}
        self._upkeep: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        node_id: NodeId,
        config_of: Callable[[str], LogConfig],
        cluster_id: str | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
        producer_expiration_ms: int = EXPIRATION_MS_DEFAULT,
        upkeep_interval_s: float = UPKEEP_INTERVAL_S,
    ) -> LogManager:
        """Lock the directory, check whose it is, open all partitions in it and start the upkeep.

        An empty directory becomes this node's; `cluster_id` None takes the one it has, or a new random one.
        `config_of(topic)` is asked for each topic found.

        Raises:
            DataDirError: in use, another node's or cluster's, or written by a newer version.
            OSError: the directory can't be read or written.
        """
        data_dir = DataDir.claim(path, node_id=node_id, cluster_id=cluster_id)
        manager = cls(
            data_dir,
            config_of=config_of,
            clock_ms=clock_ms,
            producer_expiration_ms=producer_expiration_ms,
            upkeep_interval_s=upkeep_interval_s,
        )
        try:
            await asyncio.to_thread(manager._open_partitions)
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

    def create(self, topic: str, index: int, config: LogConfig) -> Partition:
        """Make an empty partition; it is on disk when this returns.

        Raises:
            PartitionExists: it is there already.
            DiskFull, StorageFailed, StorageError: the directory can't be made.
        """
        directory = self._data_dir.path / f"{topic}-{index}"
        try:
            directory.mkdir()
        except FileExistsError:
            raise PartitionExists(f"{directory} exists") from None
        except OSError as error:
            raise storage_error(error, f"{directory} can't be made") from error
        try:
            partition = Partition.create(
                topic,
                index,
                directory,
                config,
                files=self._files,
                flusher=self._flusher,
                discard=self._discard,
                now_ms=self._clock_ms(),
            )
            sync_directory(self._data_dir.path)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise storage_error(error, f"{directory} can't be made") from error
        self._partitions[topic, index] = partition
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
        gone = directory.with_name(f"{directory.name}.{time.monotonic_ns()}{DELETED_SUFFIX}")
        try:
            directory.rename(gone)
            sync_directory(self._data_dir.path)
        except OSError as error:
            raise storage_error(error, f"{directory} can't be removed") from error
        del self._partitions[topic, index]
        self._discard(gone)

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
        await asyncio.to_thread(self._janitor.shutdown)
        self._data_dir.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open_partitions(self) -> None:
        started = time.monotonic()
        for path in self._data_dir.path.glob(f"*{DELETED_SUFFIX}"):
            self._discard(path)
        for topic, index, directory in self._data_dir.partitions():
            try:
                self._partitions[topic, index] = Partition.open(
                    topic,
                    index,
                    directory,
                    self._config_of(topic),
                    files=self._files,
                    flusher=self._flusher,
                    discard=self._discard,
                    now_ms=self._clock_ms(),
                )
            except OSError as error:
                self._unopened[topic, index] = storage_error(error, f"{directory} can't be opened")
                _logger.error("partition_not_opened", topic=topic, partition=index, error=str(error))  # noqa: TRY400
        _logger.info(
            "logs_opened",
            partitions=len(self._partitions),
            unopened=len(self._unopened),
            elapsed_ms=round((time.monotonic() - started) * 1000),
        )

    def _discard(self, path: Path) -> None:
        self._janitor.submit(_remove, path)

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


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning("not_removed", path=str(path), error=str(error))
