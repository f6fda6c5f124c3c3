"""A full log, a full disk: nothing is acknowledged that is not on disk, nothing goes without a loss record."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.support import event, open_log, small_disk, stored, until
from tests.edge.test_event_log import cut
from tidegate_edge.errors import EventLogClosed
from tidegate_edge.event_log import EventLog, SettleCut
from tidegate_edge.event_log.opening import FILE_NAME
from tidegate_wire.uplink.event import LOSS_STREAM

MIB = 1024 * 1024


async def test_refuse_makes_appends_wait_until_rows_are_freed(tmp_path: Path) -> None:
    async with open_log(tmp_path, limits=small_disk(backlog_events_max=100)) as log:
        await log.append([event(number) for number in range(1, 101)])
        waiting = asyncio.create_task(log.append([event(101)]))
        (batch,) = await cut(log, 1, 50)  # changes go on while appends wait
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await log.change(SettleCut(cut=batch.cut))
        await asyncio.wait_for(waiting, 10)
        assert [item["sequence"] for item in await stored(log)] == list(range(51, 102))
        assert log.stats.lost_events == 0


async def test_a_log_that_is_closed_while_full_says_so_to_those_who_wait(tmp_path: Path) -> None:
    async with open_log(tmp_path, limits=small_disk(backlog_events_max=10)) as log:
        await log.append([event(number) for number in range(10)])
        waiting = asyncio.create_task(log.append([event(11)]))
        await asyncio.sleep(0.01)
    with pytest.raises(EventLogClosed):
        await waiting


async def test_drop_oldest_drops_uncut_rows_and_writes_it_down(tmp_path: Path) -> None:
    limits = small_disk(backlog_events_max=1000, when_full="drop_oldest")
    async with open_log(tmp_path, limits=limits) as log:
        await log.append([event(number) for number in range(1, 101)])
        await cut(log, 1, 100)
        for group in range(20):
            await log.append([event(101 + group * 100 + number) for number in range(100)])
        kept = [item["sequence"] for item in await stored(log)]
        losses = await stored(log, LOSS_STREAM)
        assert kept[:100] == list(range(1, 101)), "what is on its way is not dropped"
        assert kept[100:] == list(range(kept[100], 2101))
        assert 1000 <= log.stats.events <= 1100
        covered = [n for loss in losses for n in range(loss["first_sequence"], loss["last_sequence"] + 1)]
        assert covered == list(range(101, kept[100]))
        assert sum(loss["count"] for loss in losses) == log.stats.lost_events == len(covered)
        assert {loss["reason"] for loss in losses} == {"backlog full: oldest events dropped"}


async def test_drop_oldest_takes_from_the_stream_that_has_most(tmp_path: Path) -> None:
    limits = small_disk(backlog_events_max=500, when_full="drop_oldest")
    async with open_log(tmp_path, "telemetry", "alarms", limits=limits) as log:
        await log.append([event(number, stream="alarms") for number in range(20)])
        for group in range(10):
            await log.append([event(group * 100 + number, stream="telemetry") for number in range(100)])
        assert log.stats.streams["alarms"].events == 20
        assert {loss["stream"] for loss in await stored(log, LOSS_STREAM)} == {"telemetry"}


async def test_drop_oldest_waits_when_everything_is_on_its_way(tmp_path: Path) -> None:
    limits = small_disk(backlog_events_max=100, when_full="drop_oldest")
    async with open_log(tmp_path, limits=limits) as log:
        await log.append([event(number) for number in range(1, 101)])
        (batch,) = await cut(log, 1, 100)
        waiting = asyncio.create_task(log.append([event(101)]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await log.change(SettleCut(cut=batch.cut))
        await asyncio.wait_for(waiting, 10)


async def test_bytes_on_disk_are_limited_too(tmp_path: Path) -> None:
    limits = small_disk(backlog_bytes_max=2 * MIB, when_full="drop_oldest")
    async with open_log(tmp_path, limits=limits) as log:
        for group in range(100):
            await log.append([event(group * 100 + number, payload=b'"%s"' % (b"x" * 500)) for number in range(100)])
        assert log.stats.used_bytes < 2.2 * MIB
        losses = await stored(log, LOSS_STREAM)
        assert (
            sum(loss["count"] for loss in losses)
            == log.stats.lost_events
            == 10_000 - log.stats.streams["events"].events
        )


async def test_too_little_free_space_makes_appends_wait_and_cuts_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 0

    def free_bytes(_: Path) -> int:
        return free

    monkeypatch.setattr("tidegate_edge.event_log.committer.free_bytes", free_bytes)
    async with open_log(tmp_path, limits=small_disk(disk_free_bytes_min=1)) as log:
        free = 1
        await log.append([event(1)])
        free = 0
        waiting = asyncio.create_task(log.append([event(2)]))
        (batch,) = await cut(log, 1, 1)
        await log.change(SettleCut(cut=batch.cut))
        assert not waiting.done()
        free = 1  # nobody tells the log: it looks by itself
        await asyncio.wait_for(waiting, 10)
        assert [item["sequence"] for item in await stored(log)] == [2]


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(directory)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


async def fill(log: EventLog) -> tuple[int, asyncio.Task[None]]:
    """Append until an append waits; how many groups of 100 were acknowledged, and the one that waits."""
    acknowledged = 0
    while True:
        numbers = range(acknowledged * 100 + 1, acknowledged * 100 + 101)
        task = asyncio.create_task(log.append([event(n, payload=b'"%d%s"' % (n, b"x" * 300)) for n in numbers]))
        done, _ = await asyncio.wait({task}, timeout=1.0)
        if not done:
            return acknowledged, task
        await task
        acknowledged += 1


async def test_a_full_disk_acknowledges_nothing_and_resumes_by_itself(
    small_file_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate_edge.event_log.committer.CHECKPOINT_BYTES", MIB)  # the disk is small, too
    limits = small_disk(reserve_bytes=2 * MIB)
    async with open_log(small_file_system, limits=limits) as log:
        other = small_file_system / "somebody-elses"
        acknowledged, waiting = await fill(log)
        assert acknowledged > 5
        other.write_bytes(b"x" * max(0, os.statvfs(small_file_system).f_bavail * 4096 - 4096))
        count = log.stats.streams["events"].events
        assert count == acknowledged * 100
        for first in range(1, count + 1, 1000):  # there is no space but the reserve's
            (batch,) = await asyncio.wait_for(cut(log, first, min(first + 999, count)), 20)
            await asyncio.wait_for(log.change(SettleCut(cut=batch.cut)), 20)
        other.unlink()
        await asyncio.wait_for(waiting, 20)
        assert log.stats.streams["events"].events == 100
        assert log.stats.streams["events"].next_sequence == count + 101
    async with open_log(small_file_system, limits=limits) as log:
        assert log.stats.streams["events"].events == 100


async def test_a_log_can_be_closed_and_opened_while_the_disk_is_full(
    small_file_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate_edge.event_log.committer.CHECKPOINT_BYTES", MIB)
    limits = small_disk(reserve_bytes=2 * MIB)
    async with open_log(small_file_system, limits=limits) as log:
        acknowledged, waiting = await fill(log)
    with pytest.raises(EventLogClosed):
        await waiting
    async with open_log(small_file_system, limits=limits) as log:
        assert log.stats.streams["events"].events == acknowledged * 100


async def test_a_lock_held_by_somebody_else_makes_appends_wait(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(1)])
        shell = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(log.append([event(2)]))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        shell.execute("ROLLBACK")
        shell.close()
        await asyncio.wait_for(waiting, 10)
        await until(lambda: log.stats.events == 2, "the event is stored")
