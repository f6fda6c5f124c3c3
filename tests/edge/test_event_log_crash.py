"""kill -9 and failing disks, in real processes: nothing acknowledged is lost or doubled, sequences have no gaps."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.edge.support import event, open_log, query, stored
from tests.support.peers import require_peer
from tests.support.processes import Process, wait_until
from tests.support.seeds import seeded
from tidegate_edge.event_log.opening import FILE_NAME

LIVES = 12


def read_ledger(path: Path) -> tuple[int, int, int]:
    """The highest number acknowledged as stored, the highest that may be freed, the highest that is."""
    stored_up_to = maybe_freed = freed = 0
    for line in path.read_text().splitlines():
        word, _, number = line.partition(" ")
        if word == "stored":
            stored_up_to = int(number)
        elif word == "freeing":
            maybe_freed = int(number)
        elif word == "freed":
            freed = int(number)
    return stored_up_to, maybe_freed, freed


async def test_nothing_acknowledged_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    chance = seeded()
    ledger = tmp_path / "ledger"
    data = tmp_path / "data"
    first = 1
    ledger.write_text("")
    known_freed = 0
    for life in range(LIVES):
        command = [sys.executable, "-m", "tests.edge.crash_child", str(data), str(ledger), str(first)]
        with Process(command, tmp_path / f"child-{life}.log") as child:
            wait_until(lambda: ledger.read_text().count("ready") > life, 20, "the child is ready")  # noqa: B023
            await asyncio.sleep(chance.uniform(0.05, 0.5))  # the random instant, not a synchronisation
            assert child.running(), child.output()
            child.kill()
        stored_up_to, maybe_freed, freed = read_ledger(ledger)
        # A number is its sequence, as long as nothing was lost, doubled or left out.
        rows = query(data, "SELECT sequence, payload FROM stream_events ORDER BY sequence")
        assert all(json.loads(payload)["sequence"] == sequence for sequence, payload in rows), "gapless, and none twice"
        sequences = [sequence for sequence, _ in rows]
        if sequences:
            assert sequences == list(range(sequences[0], sequences[-1] + 1))
            assert sequences[0] - 1 in {max(freed, known_freed), maybe_freed}, "what was freed, and nothing else, left"
            known_freed = sequences[0] - 1  # a kill between commit and ledger leaves this for the tables to say
            assert sequences[-1] >= stored_up_to
        async with open_log(data) as log:
            following = log.stats.streams["events"].next_sequence
            assert following > max(stored_up_to, maybe_freed)
            # What the device did not hear of, it sends again: it is known, stored or freed.
            again = [event(n, packet_id=n % 65_535 + 1, dup=True) for n in range(max(1, following - 200), following)]
            await log.append([*again, event(following, packet_id=following % 65_535 + 1)])
            assert log.stats.streams["events"].next_sequence == following + 1
            assert len(await stored(log)) == log.stats.streams["events"].events
            first = following + 1
    assert first > 1000, "it did run"


@pytest.mark.peer("strace")
def test_a_failing_fsync_ends_the_log_and_nothing_is_acknowledged_after_it(tmp_path: Path) -> None:
    strace = require_peer("strace")
    ledger = tmp_path / "ledger"
    data = tmp_path / "data"
    child = [sys.executable, "-m", "tests.edge.crash_child", str(data), str(ledger), "1"]
    inject = ["-f", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=30+"]
    with Process([strace, *inject, *child], tmp_path / "child.log") as process:
        assert process.wait(60) != 0
        assert "EventLogFailed" in process.output()
        assert "SQLITE_IOERR" in process.output()
    stored_up_to, maybe_freed, freed = read_ledger(ledger)
    rows = [sequence for (sequence,) in query(data, "SELECT sequence FROM stream_events ORDER BY sequence")]
    assert stored_up_to > 0
    assert rows == list(range(rows[0], rows[-1] + 1))
    assert rows[0] - 1 in {freed, maybe_freed}
    assert rows[-1] >= stored_up_to


async def test_a_copy_of_the_files_at_any_instant_is_a_whole_log(tmp_path: Path) -> None:
    """What a power cut leaves, but for the sectors that were not flushed: the files as they are in the middle."""
    data = tmp_path / "data"
    async with open_log(data) as log:
        for group in range(20):
            await log.append([event(group * 100 + n) for n in range(1, 101)])
            copy = tmp_path / f"copy-{group}"
            copy.mkdir()
            for name in (FILE_NAME, f"{FILE_NAME}-wal"):
                shutil.copy(data / name, copy / name)
    for group in range(20):
        async with open_log(tmp_path / f"copy-{group}") as log:
            assert [item["sequence"] for item in await stored(log)] == list(range(1, group * 100 + 101))
