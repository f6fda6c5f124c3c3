"""Every partition under one data directory: opened, made, deleted, and kept in bounds in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tidegate_core.log.config import LogConfig
from tidegate_core.partition import Partition
from tidegate_wire.identifiers import NodeId


class LogManager:
    """Owned by the event loop's thread. `async with await LogManager.open(...)`, or call `close`."""

    partitions: Mapping[tuple[str, int], Partition]
    """By topic and partition index."""
    cluster_id: str

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        *,
        node_id: NodeId,
        cluster_id: str | None = None,
        config_of: Callable[[str], LogConfig],
        clock_ms: Callable[[], int],
    ) -> LogManager:
        """Lock the directory, check whose it is, open all partitions in it and start the upkeep.

        An empty directory becomes this node's; `cluster_id` None takes the one it has, or a new random one.
        `config_of(topic)` is asked for each topic found.

        Raises:
            DataDirError: in use, another node's or cluster's, or written by a newer version.
            OSError: the directory can't be read or written.
        """
        raise NotImplementedError

    def create(self, topic: str, index: int, config: LogConfig) -> Partition:
        """Make an empty partition; it is on disk when this returns.

        Raises:
            PartitionExists: it is there already.
            DiskFull, StorageFailed: the directory can't be made.
        """
        raise NotImplementedError

    def delete(self, topic: str, index: int) -> None:
        """Close the partition and remove its files in the background; gone for good when this returns.

        Raises:
            KeyError: there is none.
            StorageFailed: the directory can't be renamed.
        """
        raise NotImplementedError

    def configure(self, topic: str, config: LogConfig) -> None:
        """Use `config` for all partitions of `topic` from now on."""
        raise NotImplementedError

    async def close(self) -> None:
        """Sync everything, write the checkpoints that make the next start instant, and release the directory."""
        raise NotImplementedError
