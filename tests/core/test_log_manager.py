"""The data directory: who may open it, what is in it, and what happens to it in the background."""

# ruff: noqa: ASYNC240  # a test looks at its own files, and nothing else runs meanwhile
from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid5

import pytest

from tests.core.log.support import ALONE, NOW_MS, TOPIC_ID, append, commit, make_batch, read_all, values
from tidegate_core.data_dir import DataDir
from tidegate_core.errors import DataDirError, InvalidLogConfig, PartitionClosed, PartitionExists, StorageFailed
from tidegate_core.log.config import LogConfig
from tidegate_core.log_manager import LogManager, lead_alone
from tidegate_core.partition import Partition
from tidegate_wire.identifiers import NodeId, Offset


@asynccontextmanager
async def manager_at(
    path: Path,
    *,
    node_id: int = 1,
    config: LogConfig | None = None,
    upkeep_interval_s: float = 3600.0,
) -> AsyncIterator[LogManager]:
    async with await LogManager.open(
        DataDir.claim(path, node_id=NodeId(node_id)),
        config_of=lambda topic: config or LogConfig(),
        clock_ms=lambda: NOW_MS,
        upkeep_interval_s=upkeep_interval_s,
    ) as manager:
        for partition in manager.partitions.values():
            lead_alone(partition)
        yield manager


def made(manager: LogManager, topic: str, index: int) -> Partition:
    """A new partition that this node alone has, and leads."""
    partition = manager.create(topic, index, LogConfig(), uuid5(TOPIC_ID, topic), ALONE)
    lead_alone(partition)
    return partition


async def test_partitions_are_there_after_a_restart(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        for topic, index in (("events", 0), ("events", 1), ("a.b-c_d-7", 0)):
            partition = made(manager, topic, index)
            await commit(partition, make_batch(values(index + 1)))
    async with manager_at(tmp_path) as manager:
        ends = {key: partition.high_watermark for key, partition in manager.partitions.items()}
        assert ends == {("events", 0): 1, ("events", 1): 2, ("a.b-c_d-7", 0): 1}


async def test_partition_is_made_once(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        made(manager, "events", 0)
        with pytest.raises(PartitionExists):
            made(manager, "events", 0)


async def test_deleted_partition_is_gone_and_its_name_free(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        partition = made(manager, "events", 0)
        await commit(partition, make_batch(values(3)))
        append(partition, make_batch(values(1)))
        waiting = asyncio.create_task(partition.committed(Offset(4)))
        await asyncio.sleep(0)
        manager.delete("events", 0)
        assert ("events", 0) not in manager.partitions
        with pytest.raises(PartitionClosed):
            await waiting
        with pytest.raises(KeyError):
            manager.delete("events", 0)
        again = made(manager, "events", 0)
        assert await commit(again, make_batch(values(1))) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events-0", "lock", "meta.json"]


async def test_start_removes_what_was_being_deleted(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        made(manager, "events", 0)
    (tmp_path / "events-0").rename(tmp_path / "events-0.123.deleted")
    async with manager_at(tmp_path) as manager:
        assert dict(manager.partitions) == {}
    assert not (tmp_path / "events-0.123.deleted").exists()


async def test_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    async with manager_at(tmp_path):
        script = (
            "import sys; from pathlib import Path\n"
            "from tidegate_core.data_dir import DataDir\n"
            "DataDir.claim(Path(sys.argv[1]), node_id=1)\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert f"is in use by another process (pid {os.getpid()})" in result.stderr
    async with manager_at(tmp_path):
        pass


async def test_same_process_can_not_open_it_twice(tmp_path: Path) -> None:
    async with manager_at(tmp_path):
        with pytest.raises(DataDirError, match="in use"):
            async with manager_at(tmp_path):
                pass


def test_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    DataDir.claim(tmp_path, node_id=NodeId(3)).release()
    with pytest.raises(DataDirError, match="belongs to node 3") as caught:
        DataDir.claim(tmp_path, node_id=NodeId(1))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_directory_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"format_version": 3, "node_id": 1}))
    with pytest.raises(DataDirError, match="format version 3") as caught:
        DataDir.claim(tmp_path, node_id=NodeId(1))
    assert caught.value.hint


async def test_damaged_meta_is_refused_and_nothing_is_deleted(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        await commit(made(manager, "events", 0), make_batch(values(1)))
    (tmp_path / "meta.json").write_text("{")
    before = sorted(path.name for path in (tmp_path / "events-0").iterdir())
    with pytest.raises(DataDirError):
        async with manager_at(tmp_path):
            pass
    assert sorted(path.name for path in (tmp_path / "events-0").iterdir()) == before


async def test_partition_that_can_not_be_opened_does_not_keep_the_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with manager_at(tmp_path) as manager:
        for index in range(2):
            await commit(made(manager, "events", index), make_batch(values(1)))
    segment = tmp_path / "events-0" / "00000000000000000000.log"
    segment.unlink()
    segment.mkdir()
    async with manager_at(tmp_path) as manager:
        assert list(manager.partitions) == [("events", 1)]
        assert list(manager.unopened) == [("events", 0)]
        with pytest.raises(StorageFailed):
            made(manager, "events", 0)


async def test_upkeep_applies_retention_and_compaction(tmp_path: Path) -> None:
    async with manager_at(tmp_path, upkeep_interval_s=0.01) as manager:
        kept = made(manager, "kept", 0)
        short = made(manager, "short", 0)
        table = made(manager, "table", 0)
        for number in range(50):
            batch = make_batch([(b"k%d" % (number % 3), b"." * 200)])
            for partition in (kept, short, table):
                append(partition, batch)
        for partition in (kept, short, table):
            await partition.committed(Offset(50))
        manager.configure("short", LogConfig(segment_bytes=1000, retention_bytes=2000))
        manager.configure(
            "table",
            LogConfig(segment_bytes=1000, cleanup_policy=frozenset({"compact"}), min_cleanable_dirty_ratio=0.0),
        )
        for partition in (short, table):
            partition.log.roll(0)
            for _ in range(5):
                await commit(partition, make_batch([(b"k", b"." * 900)]))
        deadline = time.monotonic() + 20
        while short.log_start_offset < 50 or len(read_all(table)) > 5:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert len(read_all(kept)) == 50
        assert [record.offset for record in read_all(short)] == list(range(short.log_start_offset, 55))
        assert [record.key for record in read_all(table)][:3] == [b"k2", b"k0", b"k1"]


def test_log_config_from_kafkas_names() -> None:
    config = LogConfig.from_names(
        {
            "retention.ms": "-1",
            "cleanup.policy": "compact,delete",
            "segment.bytes": None,
            "min.cleanable.dirty.ratio": "0.25",
        }
    )
    assert config == LogConfig(
        retention_ms=-1, cleanup_policy=frozenset({"compact", "delete"}), min_cleanable_dirty_ratio=0.25
    )
    assert LogConfig.from_names(config.to_names()) == config


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("retention.ms", "-2"),
        ("retention.ms", "soon"),
        ("segment.bytes", str(2**31)),
        ("cleanup.policy", "shred"),
        ("cleanup.policy", ""),
        ("message.timestamp.type", "Whenever"),
        ("min.cleanable.dirty.ratio", "1.5"),
        ("min.cleanable.dirty.ratio", "nan"),
        ("no.such.name", "1"),
    ],
)
def test_log_config_refuses_what_is_not_allowed(name: str, text: str) -> None:
    with pytest.raises(InvalidLogConfig, match=name):
        LogConfig.from_names({name: text})
