"""The event log: what is appended is on disk, once, in order, with sequences that are never used twice."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.edge.support import event, open_log, query, small_disk, stored
from tidegate_edge.errors import (
    CutConflict,
    EventLogClosed,
    EventLogDamaged,
    EventLogInUse,
    EventLogTooNew,
    WrongEdge,
)
from tidegate_edge.event_log import CutBatch, CutRows, EncodedBatch, EventLog, Refusal, Rows, SettleCut
from tidegate_edge.event_log.opening import FILE_NAME
from tidegate_wire.identifiers import BatchSequence, EventSequence, ProducerEpoch, ProducerId
from tidegate_wire.uplink.event import LOSS_STREAM, partition_for


async def cut(
    log: EventLog, first: int, last: int, *, stream: str = "events", base: int = 0, records: int | None = None
) -> tuple[CutBatch, ...]:
    return await log.change(
        CutRows(
            stream=stream,
            read_from=log.stats.streams[stream].first_uncut,
            first_sequence=EventSequence(first),
            last_sequence=EventSequence(last),
            device_partitions=0,
            producer_id=ProducerId(7),
            producer_epoch=ProducerEpoch(0),
            batches=[
                EncodedBatch(
                    partition=0,
                    base_sequence=BatchSequence(base),
                    record_count=last - first + 1 if records is None else records,
                    record_batch=b"x" * 100,
                    crc=1,
                )
            ],
        )
    )


async def test_what_is_appended_is_there_after_a_restart(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(number) for number in range(1, 1001)])
        await log.append([event(1001, payload=b"", headers='[["unit","C"]]', topic="a/\u00e9")])
    async with open_log(tmp_path) as log:
        assert log.stats.events == 1001
        rows = await log.read("events", 1, 2**62, lambda rows: rows, rows_max=5000, bytes_max=2**30)
        assert isinstance(rows, Rows)
        assert rows.sequences == [b"%d" % number for number in range(1, 1002)]
        assert rows.payloads[999:] == [b'{"device": "d1", "sequence": 1000}', b""]
        assert rows.topics[-1] == "a/\u00e9".encode()
        assert rows.headers[999:] == [None, b'[["unit","C"]]']
        assert rows.event_times_ms[0] == 1_700_000_000_001
        assert rows.receive_times_ms[0] == b"1700000000501"


async def test_a_person_finds_the_events_with_the_sqlite_shell(tmp_path: Path) -> None:
    async with open_log(tmp_path, "events", "site.alarms-1") as log:
        await log.append([event(1), event(2, stream="site.alarms-1", device="d2")])
        assert query(tmp_path, 'SELECT sequence, device FROM "stream_site.alarms-1"') == [(1, "d2")]
        assert query(tmp_path, "SELECT stream, sequence, device FROM all_events ORDER BY device") == [
            ("events", 1, "d1"),
            ("site.alarms-1", 1, "d2"),
        ]


async def test_groups_that_wait_together_keep_their_order(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        groups = [[event(10 * group + number) for number in range(10)] for group in range(100)]
        await asyncio.gather(*(log.append(group) for group in groups))
        assert [item["sequence"] for item in await stored(log)] == list(range(1000))


async def test_a_cancelled_append_does_not_disturb_the_others(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        first = asyncio.create_task(log.append([event(1)]))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await log.append([event(2)])
        assert [item["sequence"] for item in await stored(log)] in ([1, 2], [2])


async def test_sequences_are_not_used_again_after_everything_was_freed(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(number) for number in range(1, 11)])
        (batch,) = await cut(log, 1, 10)
        await log.change(SettleCut(cut=batch.cut))
        assert log.stats.events == 0
    async with open_log(tmp_path) as log:
        assert (log.stats.events, log.batches) == (0, ())
        await log.append([event(11)])
        assert query(tmp_path, "SELECT sequence FROM stream_events") == [(11,)]


async def test_cut_batches_are_known_after_a_restart_and_their_rows_are_not_cut_again(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(number) for number in range(1, 11)])
        batches = await cut(log, 1, 4) + await cut(log, 5, 6, base=4)
        assert (log.stats.streams["events"].first_uncut, log.stats.streams["events"].uncut) == (7, 4)
    async with open_log(tmp_path) as log:
        assert log.batches == batches
        assert (log.stats.streams["events"].first_uncut, log.stats.streams["events"].uncut) == (7, 4)
        (third,) = await cut(log, 7, 10, base=6)
        assert third.number > batches[-1].number
        await log.change(SettleCut(cut=batches[1].cut))
        assert log.stats.events == 8
    async with open_log(tmp_path) as log:
        assert [batch.number for batch in log.batches] == [batches[0].number, third.number]
        assert (log.stats.events, log.stats.streams["events"].uncut) == (8, 0)


async def test_a_cut_of_rows_that_are_not_the_oldest_uncut_ones_is_refused(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(number) for number in range(1, 11)])
        before = log.stats.streams["events"].first_uncut
        await cut(log, 1, 4)
        with pytest.raises(CutConflict):
            await log.change(
                CutRows(
                    stream="events",
                    read_from=before,
                    first_sequence=EventSequence(1),
                    last_sequence=EventSequence(5),
                    device_partitions=0,
                    producer_id=ProducerId(7),
                    producer_epoch=ProducerEpoch(0),
                    batches=[],
                )
            )
        assert log.stats.streams["events"].uncut == 6


async def test_returned_rows_are_the_oldest_uncut_ones_again_also_after_a_restart(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(number) for number in range(1, 11)])
        (first,) = await cut(log, 1, 4)
        (second,) = await cut(log, 5, 6, base=4)
        (third,) = await cut(log, 7, 8, base=6)
        await log.change(SettleCut(cut=second.cut))
        await log.change(SettleCut(cut=third.cut, returned=frozenset({third.number})))
        await log.change(SettleCut(cut=first.cut, returned=frozenset({first.number})))
        state = log.stats.streams["events"]
        assert (state.first_uncut, state.uncut, state.events) == (1, 8, 8)
    async with open_log(tmp_path) as log:
        state = log.stats.streams["events"]
        assert (state.first_uncut, state.uncut, state.events) == (1, 8, 8)
        assert [item["sequence"] for item in await stored(log)] == [1, 2, 3, 4, 7, 8, 9, 10]


async def test_of_a_cut_by_device_only_the_returned_partition_stays(tmp_path: Path) -> None:
    devices = [f"d{number}" for number in range(8)]
    partitions = {device: partition_for(device, 2) for device in devices}
    assert set(partitions.values()) == {0, 1}
    async with open_log(tmp_path) as log:
        await log.append([event(number, device=devices[number % 8]) for number in range(80)])
        counts = [10 * list(partitions.values()).count(partition) for partition in (0, 1)]
        batches = await log.change(
            CutRows(
                stream="events",
                read_from=EventSequence(1),
                first_sequence=EventSequence(1),
                last_sequence=EventSequence(80),
                device_partitions=2,
                producer_id=ProducerId(7),
                producer_epoch=ProducerEpoch(0),
                batches=[
                    EncodedBatch(
                        partition=index,
                        base_sequence=BatchSequence(0),
                        record_count=counts[index],
                        record_batch=b"x",
                        crc=1,
                    )
                    for index in (0, 1)
                ],
            )
        )
        await log.change(SettleCut(cut=batches[0].cut, returned=frozenset({batches[1].number})))
        assert {item["device"] for item in await stored(log)} == {d for d in devices if partitions[d] == 1}
        state = log.stats.streams["events"]
        assert (state.events, state.uncut) == (counts[1], counts[1])


async def test_a_refused_batch_is_kept_and_written_down_as_lost(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(number) for number in range(1, 11)])
        (batch,) = await cut(log, 1, 10)
        refusal = Refusal(reason="corrupt_message: no", record_batch=b"the bytes")
        await log.change(SettleCut(cut=batch.cut, refused={batch.number: refusal}))
        assert (log.stats.streams["events"].events, log.stats.lost_events) == (0, 10)
        (loss,) = await stored(log, LOSS_STREAM)
        assert loss.pop("time_ms") > 0
        assert loss == {
            "edge": "edge-1",
            "stream": "events",
            "first_sequence": 1,
            "last_sequence": 10,
            "count": 10,
            "reason": "refused: corrupt_message: no",
        }
    kept = query(tmp_path, "SELECT first_sequence, last_sequence, record_count, record_batch FROM refused_batches")
    assert kept == [(1, 10, 10, b"the bytes")]
    async with open_log(tmp_path) as log:
        assert log.stats.lost_events == 10


async def test_refused_batches_beyond_their_limit_go_oldest_first(tmp_path: Path) -> None:
    async with open_log(tmp_path, limits=small_disk(refused_bytes_max=250)) as log:
        for number in range(1, 6):
            await log.append([event(number)])
            (batch,) = await cut(log, number, number, base=number)
            refusal = Refusal(reason="no", record_batch=bytes([number]) * 100)
            await log.change(SettleCut(cut=batch.cut, refused={batch.number: refusal}))
    assert query(tmp_path, "SELECT first_sequence FROM refused_batches") == [(4,), (5,)]


async def test_a_stream_that_is_no_longer_configured_keeps_its_events(tmp_path: Path) -> None:
    async with open_log(tmp_path, "events", "old") as log:
        await log.append([event(1, stream="old")])
    async with open_log(tmp_path, "events") as log:
        assert log.stats.streams["old"].events == 1


async def test_disk_space_is_given_back_after_a_drain(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    async with open_log(tmp_path) as log:
        for group in range(40):
            await log.append([event(group * 1000 + number, payload=b"x" * 500) for number in range(1000)])
        full = path.stat().st_size
        assert full > 20_000_000
        (batch,) = await cut(log, 1, 40_000)
        await log.change(SettleCut(cut=batch.cut))
        deadline = asyncio.get_running_loop().time() + 20
        while path.stat().st_size > 6_000_000:
            assert asyncio.get_running_loop().time() < deadline, path.stat().st_size
            await asyncio.sleep(0.02)
        assert log.stats.used_bytes < 200_000


async def test_the_write_ahead_log_stays_bounded_while_a_reader_reads(tmp_path: Path) -> None:
    wal = tmp_path / f"{FILE_NAME}-wal"
    sizes: list[int] = []
    async with open_log(tmp_path, limits=small_disk(wal_bytes_max=16 * 1024 * 1024)) as log:
        is_done = False

        async def read() -> None:
            while not is_done:
                await log.read("events", 1, 2**62, len, rows_max=5000, bytes_max=2**20)

        reader = asyncio.create_task(read())
        for group in range(100):
            await log.append([event(group * 1000 + number, payload=b"x" * 800) for number in range(1000)])
            sizes.append(wal.stat().st_size)
        is_done = True
        await reader
    assert max(sizes) < 40 * 1024 * 1024


async def test_a_second_edge_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with open_log(tmp_path):
        with pytest.raises(EventLogInUse, match="another edge runs"):
            await EventLog.open(tmp_path, edge="edge-1", streams=("events",))


async def test_the_log_of_another_edge_is_refused(tmp_path: Path) -> None:
    async with open_log(tmp_path):
        pass
    with pytest.raises(WrongEdge, match="belongs to the edge 'edge-1'"):
        await EventLog.open(tmp_path, edge="edge-2", streams=("events",))


async def test_a_log_of_a_later_version_is_refused(tmp_path: Path) -> None:
    async with open_log(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(EventLogTooNew):
        await EventLog.open(tmp_path, edge="edge-1", streams=("events",))


def _overwrite_header(content: bytearray) -> None:
    content[:100] = b"not an event log" + bytes(84)


def _overwrite_pages(content: bytearray) -> None:
    for start in range(4096, len(content), 8192):
        content[start : start + 4096] = b"\xa5" * 4096


def _truncate(content: bytearray) -> None:
    del content[len(content) // 2 :]


@pytest.mark.parametrize("damage", [_overwrite_header, _overwrite_pages, _truncate])
async def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, damage: Any) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(number) for number in range(5000)])
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    with pytest.raises(EventLogDamaged) as caught:
        await EventLog.open(tmp_path, edge="edge-1", streams=("events",))
    assert "move the directory away" in caught.value.hint
    assert path.read_bytes() == content


async def test_a_closed_log_takes_nothing(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(1)])
    with pytest.raises(EventLogClosed):
        await log.append([event(2)])
