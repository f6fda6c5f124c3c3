"""A PUBLISH that a device sends again is not stored again, across restarts and after its event has left the edge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.edge.support import event, open_log, query, stored
from tests.edge.test_event_log import cut
from tidegate_edge.event_log import Event, EventLog, SettleCut, repeats
from tidegate_edge.event_log.repeats import RepeatWindows


def publish(packet_id: int, text: str, *, dup: bool = False, device: str = "d1") -> Event:
    return event(0, device=device, payload=json.dumps(text).encode(), packet_id=packet_id, dup=dup)


async def texts(log: EventLog) -> list[object]:
    return list(await stored(log))


async def test_a_repeat_is_not_stored(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([publish(1, "a"), publish(2, "b")])
        await log.append([publish(1, "a", dup=True), publish(2, "b", dup=True), publish(3, "c", dup=True)])
        assert await texts(log) == ["a", "b", "c"]


async def test_a_repeat_in_the_same_group_is_not_stored(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([publish(1, "a"), publish(1, "a", dup=True), publish(1, "b"), publish(1, "a", dup=True)])
        assert await texts(log) == ["a", "b", "a"]


async def test_only_the_last_publish_with_an_identifier_counts(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([publish(1, "a"), publish(1, "b")])
        await log.append([publish(1, "a", dup=True)])  # says so, but what was stored last under 1 is "b"
        assert await texts(log) == ["a", "b", "a"]


async def test_a_publish_without_the_flag_is_new(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([publish(1, "a")])
        await log.append([publish(1, "a")])
        assert await texts(log) == ["a", "a"]


async def test_devices_topics_and_payloads_are_told_apart(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([publish(1, "a")])
        await log.append([publish(1, "a", dup=True, device="d2"), publish(1, "x", dup=True)])
        await log.append([publish(1, "x", dup=True)._replace(topic="elsewhere")])
        assert await texts(log) == ["a", "a", "x", "x"]


async def test_a_repeat_is_recognised_after_a_restart_and_after_the_event_has_left(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([publish(number, f"{number}") for number in range(1, 101)])
        (batch,) = await cut(log, 1, 100)
        await log.change(SettleCut(cut=batch.cut))
    async with open_log(tmp_path) as log:
        await log.append([publish(number, f"{number}", dup=True) for number in range(1, 102)])
        assert await texts(log) == ["101"]


async def test_repeats_are_recognised_across_the_writing_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate_edge.event_log.committer.JOURNAL_ENTRIES_MAX", 50)
    async with open_log(tmp_path) as log:
        for group in range(20):
            await log.append(
                [publish(group * 10 + number + 1, f"{group}", device=f"d{number}") for number in range(10)]
            )
        await log.append([publish(7, "late", device="d3")])
        lines = query(tmp_path, "SELECT count(*) FROM repeat_journal")[0][0]
        assert 1 <= lines <= 6
        events = log.stats.events
    async with open_log(tmp_path) as log:
        for group in range(20):
            await log.append(
                [publish(group * 10 + number + 1, f"{group}", device=f"d{number}", dup=True) for number in range(10)]
            )
        await log.append([publish(7, "late", device="d3", dup=True)])
        assert log.stats.events == events


async def test_events_of_qos_0_are_never_taken_for_repeats(tmp_path: Path) -> None:
    async with open_log(tmp_path) as log:
        await log.append([publish(0, "a"), publish(0, "a")])
        assert await texts(log) == ["a", "a"]
        assert query(tmp_path, "SELECT count(*) FROM repeat_journal") == [(0,)]


def test_memory_is_bounded_by_devices_and_by_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "DEVICES_MAX", 100)
    monkeypatch.setattr(repeats, "ENTRIES_MAX", 1000)
    windows = RepeatWindows()
    for number in range(1, 201):
        windows.add([f"d{number}"] * 50, [packet_id << 32 for packet_id in range(1, 51)])
    assert len(windows) == 100
    assert windows.last_sent("d1") == {}
    assert 50 in windows.last_sent("d200")
    forgotten, changed = windows.unsaved()
    assert "d1" in forgotten
    assert [device for device, _ in changed] == [f"d{number}" for number in range(101, 201)]
    assert all(len(entries) <= 8 * 10 for _, entries in changed)
