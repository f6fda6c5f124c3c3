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
from dataclasses import replace
from pathlib import Path
from uuid import uuid5

import pytest

from tests.core.log.support import ALONE, NOW_MS, TOPIC_ID, append, commit, make_batch, read_all, values
from tidegate_core.data_dir import DataDir
from tidegate_core.errors import DataDirError, InvalidLogConfig, PartitionClosed, PartitionExists, StorageFailed
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import voters_record
from tidegate_core.log.identity import PartitionIdentity, id_of_old_topic, write_identity
from tidegate_core.log_manager import LogManager, lead_alone
from tidegate_core.partition import Partition
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset

SHARED = (NodeId(1), NodeId(2), NodeId(3))
OTHERS = (NodeId(2), NodeId(1))


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


async def test_partition_whose_making_a_crash_cut_short_is_not_there(tmp_path: Path) -> None:
    async with manager_at(tmp_path):
        pass
    (tmp_path / "events-0").mkdir()
    (tmp_path / "events-1").mkdir()
    (tmp_path / "events-1" / "00000000000000000000.log").touch()
    async with manager_at(tmp_path) as manager:
        assert not manager.partitions
        assert not manager.unopened
        made(manager, "events", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events-0", "lock", "meta.json"]


async def test_partition_that_lost_the_word_whose_it_is_is_not_opened_and_nothing_is_deleted(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        await commit(made(manager, "events", 0), make_batch(values(1)))
    (tmp_path / "events-0" / "partition.metadata").unlink()
    async with manager_at(tmp_path) as manager:
        assert list(manager.unopened) == [("events", 0)]
    assert (tmp_path / "events-0" / "00000000000000000000.log").stat().st_size


@pytest.mark.parametrize("name", ["partition.metadata", "checkpoint"])
async def test_a_flipped_byte_in_what_says_who_votes_changes_nothing(tmp_path: Path, name: str) -> None:
    async with manager_at(tmp_path) as manager:
        partition = manager.create("events", 0, LogConfig(), TOPIC_ID, SHARED)
        partition.lead(LeaderEpoch(1))
        append(partition, make_batch(values(3)))
        partition.append_control(voters_record(OTHERS), NOW_MS)
        await partition.synced(Offset(4))
        partition.set_high_watermark(Offset(4))
        partition.delete_before(Offset(4))
    path = tmp_path / "events-0" / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 0x04
        path.write_bytes(data)
        async with manager_at(tmp_path) as manager:
            partition = manager.partitions["events", 0]
            assert (partition.key.topic_id, partition.voters) == (TOPIC_ID, OTHERS), at
            assert (partition.log_start_offset, partition.log_end_offset, partition.last_epoch) == (4, 4, 1), at
            assert not partition.had_one_voter_only
            assert partition.failure is None
        if name == "checkpoint":
            path.write_bytes(whole)


def test_a_flipped_byte_in_meta_is_refused_wherever_it_is(tmp_path: Path) -> None:
    data_dir = DataDir.claim(tmp_path, node_id=NodeId(1))
    data_dir.found("cluster", ((NodeId(1), data_dir.directory_id), (NodeId(2), TOPIC_ID)), is_replacement=True)
    data_dir.release()
    whole = (tmp_path / "meta.json").read_bytes()
    for at in range(len(whole) - 1):
        data = bytearray(whole)
        data[at] ^= 0x01
        (tmp_path / "meta.json").write_bytes(data)
        with pytest.raises(DataDirError):
            DataDir.claim(tmp_path, node_id=NodeId(1))
    (tmp_path / "meta.json").write_bytes(whole)
    again = DataDir.claim(tmp_path, node_id=NodeId(1))
    again.release()
    assert (again.cluster_id, again.founders, again.is_replacement) == ("cluster", data_dir.founders, True)


async def test_directory_of_a_single_node_is_brought_up_to_date_wherever_that_is_cut_short(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        for index in range(2):
            await commit(made(manager, "events", index), make_batch(values(index + 1)))
    for index in range(2):
        (tmp_path / f"events-{index}" / "partition.metadata").unlink()
    old = {"format_version": 1, "cluster_id": "theirs", "node_id": 1}
    (tmp_path / "meta.json").write_text(json.dumps(old))
    write_identity(tmp_path / "events-0", PartitionIdentity(id_of_old_topic("events"), ALONE))
    for _ in range(2):
        async with manager_at(tmp_path) as manager:
            ends = {index: partition.high_watermark for (_, index), partition in manager.partitions.items()}
            assert ends == {0: 1, 1: 2}
            for partition in manager.partitions.values():
                assert partition.key.topic_id == id_of_old_topic("events")
                assert partition.voters == ALONE
                assert partition.had_one_voter_only
    data_dir = DataDir.claim(tmp_path, node_id=NodeId(1))
    data_dir.release()
    assert (data_dir.cluster_id, data_dir.founders) == ("theirs", ((NodeId(1), data_dir.directory_id),))
    assert not data_dir.is_replacement


def set_aside(path: Path) -> list[str]:
    return sorted(found.name for found in path.glob("*.damaged"))


async def test_damaged_partition_is_kept_aside_until_its_copy_is_complete_also_over_a_restart(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        other = manager.create("events-0.7", 0, LogConfig(), uuid5(TOPIC_ID, "other"), SHARED)
        manager.set_aside_damaged("events-0.7", 0)
        old = manager.create("events", 0, LogConfig(segment_bytes=1234), TOPIC_ID, SHARED)
        old.lead(LeaderEpoch(1))
        append(old, make_batch(values(3)))
        new = manager.set_aside_damaged("events", 0)
        assert old.is_closed
        assert manager.partitions["events", 0] is new
        assert (new.key, new.config, new.voters, new.log_end_offset) == (old.key, old.config, SHARED, 0)
        assert other.is_closed
    for _ in range(2):
        assert len(set_aside(tmp_path)) == 2
        async with manager_at(tmp_path) as manager:
            partition = manager.partitions["events", 0]
            assert partition.identity.stands_in
            assert not partition.had_one_voter_only
    async with manager_at(tmp_path) as manager:
        manager.discard_damaged("events", 0)
        assert set_aside(tmp_path) == ["events-0.7-0.0.damaged"]
    async with manager_at(tmp_path) as manager:
        partition = manager.partitions["events", 0]
        assert not partition.identity.stands_in
        assert not partition.had_one_voter_only
    assert sorted(path.name for path in tmp_path.glob("events-*")) == [
        "events-0",
        "events-0.7-0",
        "events-0.7-0.0.damaged",
    ]


async def test_crash_between_setting_aside_and_the_new_copy_finds_the_damaged_one_again(tmp_path: Path) -> None:
    name = "n" * 245
    async with manager_at(tmp_path) as manager:
        for topic in ("events", name):
            partition = manager.create(topic, 0, LogConfig(), uuid5(TOPIC_ID, topic), SHARED)
            partition.lead(LeaderEpoch(1))
            append(partition, make_batch(values(3)))
            manager.set_aside_damaged(topic, 0)
    for topic in ("events", name):
        (tmp_path / f"{topic}-0" / "partition.metadata").unlink()
    async with manager_at(tmp_path) as manager:
        for topic in ("events", name):
            partition = manager.partitions[topic, 0]
            assert partition.log_end_offset == 3
            assert not partition.identity.stands_in
    assert not set_aside(tmp_path)


async def test_crash_while_the_damaged_one_was_discarded_discards_it(tmp_path: Path) -> None:
    async with manager_at(tmp_path) as manager:
        manager.create("events", 0, LogConfig(), TOPIC_ID, SHARED)
        partition = manager.set_aside_damaged("events", 0)
        write_identity(partition.log.directory, replace(partition.identity, stands_in=False))
    async with manager_at(tmp_path):
        assert not set_aside(tmp_path)


async def test_deleted_partition_takes_what_was_set_aside_with_it_whatever_its_name(tmp_path: Path) -> None:
    name = "n" * 245
    async with manager_at(tmp_path) as manager:
        for _ in range(2):
            manager.create(name, 0, LogConfig(), TOPIC_ID, SHARED)
            manager.set_aside_damaged(name, 0)
            manager.set_aside_damaged(name, 0)
            assert len(set_aside(tmp_path)) == 2
            manager.delete(name, 0)
            assert not set_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "meta.json"]


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
