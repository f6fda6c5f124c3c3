"""A metadata log on a real disk, whose majority the test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from tidegate_core.data_dir import DataDir
from tidegate_core.log.identity import METADATA_TOPIC, METADATA_TOPIC_ID
from tidegate_core.log_manager import LogManager
from tidegate_core.metadata.assignments import METADATA_CONFIG, config_before_metadata
from tidegate_core.metadata.controller import Controller, ControllerRules
from tidegate_core.metadata.metadata_log import MetadataLog
from tidegate_core.partition import Partition
from tidegate_wire.identifiers import LeaderEpoch, NodeId

ONE, TWO, THREE, FOUR = (NodeId(number) for number in range(1, 5))
VOTERS = (ONE, TWO, THREE)


class Majority:
    """This node leads the metadata; the other voters say that they have what the test lets them have."""

    def __init__(self, logs: LogManager, *, snapshot_interval_records: int = 5000) -> None:
        self.logs = logs
        self.metadata = MetadataLog(logs, snapshot_interval_records=snapshot_interval_records)
        self.metadata.load()
        self.is_settled = False
        self.answers = True
        """Whether the other voters say anything."""

    @property
    def partition(self) -> Partition:
        return self.metadata.partition

    def elect(self, epoch: int) -> None:
        """This node leads, and everything in its log is committed once it is synced."""
        self.partition.on_synced = self._synced
        self.partition.lead(LeaderEpoch(epoch))
        self.is_settled = True
        self.commit()

    def depose(self, epoch: int) -> None:
        """Another node leads."""
        self.is_settled = False
        self.partition.follow(LeaderEpoch(epoch))

    def commit(self) -> None:
        """A majority has all that is on this disk."""
        self.partition.set_high_watermark(self.partition.synced_offset)
        self.metadata.on_high_watermark()

    def _synced(self, _partition: Partition) -> None:
        if self.answers and self.is_settled:
            self.commit()

    def controller(
        self,
        *,
        is_alive: Callable[[NodeId], bool] = lambda _: True,
        voters: tuple[NodeId, ...] = VOTERS,
        partitions_max: int = 100,
        seed: int = 1,
    ) -> Controller:
        return Controller(
            self.metadata,
            rules=ControllerRules(
                voters=voters,
                default_settings={"segment.ms": "6000"},
                default_replication_factor=3,
                partitions_max=partitions_max,
            ),
            is_settled=lambda: self.is_settled,
            is_alive=is_alive,
            random=Random(seed),
            clock_ms=lambda: 1_700_000_000_000,
        )


@asynccontextmanager
async def metadata_of(
    path: Path, *, voters: tuple[NodeId, ...] = VOTERS, snapshot_interval_records: int = 5000
) -> AsyncIterator[Majority]:
    """The metadata log of node 1 under `path`, made or opened again; nobody leads yet."""
    data_dir = DataDir.claim(path, node_id=ONE)
    logs = await LogManager.open(data_dir, config_of=config_before_metadata)
    try:
        if (METADATA_TOPIC, 0) not in logs.partitions:
            logs.create(METADATA_TOPIC, 0, METADATA_CONFIG, METADATA_TOPIC_ID, voters)
        yield Majority(logs, snapshot_interval_records=snapshot_interval_records)
    finally:
        await logs.close()
