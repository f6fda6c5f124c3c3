"""Real processes that are killed, or whose disk fails: whatever was committed is there afterwards, once, in order."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.core.log.crash_child import CONFIG
from tests.core.log.support import opened, read_all
from tests.support.peers import require_peer
from tidegate_wire.identifiers import ProducerId
from tidegate_wire.records import Record

KILLS = 12
CHILD = [sys.executable, "-m", "tests.core.log.crash_child"]
UNENDING = 1_000_000


class Child:
    """The process, and what it said."""

    def __init__(
        self,
        data_dir: Path,
        seed: int,
        batches_max: int = UNENDING,
        *,
        wrapper: Sequence[str] = (),
        file_bytes_max: int | None = None,
    ) -> None:
        self.stderr_path = data_dir.parent / f"child-{seed}.log"
        arguments = [str(data_dir), str(seed), str(batches_max)]
        if file_bytes_max is not None:
            arguments.append(str(file_bytes_max))
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen([*wrapper, *CHILD, *arguments], stdout=subprocess.PIPE, stderr=stderr)
        self.said: list[dict[str, Any]] = []

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends; a line that the kill cut is left out."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"{") and line.endswith(b"}\n"):
                facts: dict[str, Any] = json.loads(line)
                self.said.append(facts)
                yield facts

    def drain(self) -> None:
        for _ in self.lines():
            pass

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.drain()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def committed(self) -> dict[int, int]:
        """The last sequence committed of each producer."""
        last: dict[int, int] = {}
        for facts in self.said:
            if "committed" in facts:
                last[facts["producer"]] = max(facts["sequence"], last.get(facts["producer"], -1))
        return last


@contextmanager
def running(*args: Any, **kwargs: Any) -> Iterator[Child]:
    child = Child(*args, **kwargs)
    try:
        yield child
    finally:
        child.end()


def check(records: list[Record], committed: dict[int, int], end_offset: int) -> dict[int, int]:
    """Offsets are dense, each producer's records are 0, 1, 2, ..., at least up to what was committed."""
    assert [record.offset for record in records] == list(range(end_offset))
    last: dict[int, int] = {}
    for record in records:
        assert record.value is not None
        producer, sequence, _ = record.value.split(b":", 2)
        assert int(sequence) == last.get(int(producer), -1) + 1, f"producer {producer!r} at offset {record.offset}"
        last[int(producer)] = int(sequence)
    for producer_id, sequence_committed in committed.items():
        assert last.get(producer_id, -1) >= sequence_committed
    return last


async def check_directory(data_dir: Path, committed: dict[int, int]) -> None:
    """On a copy, so that the next start finds what the crash left."""
    if not (data_dir / "events-0").exists():
        assert not committed
        return
    copy = data_dir.parent / "copy"
    shutil.copytree(data_dir / "events-0", copy)
    try:
        async with opened(copy, CONFIG) as partition:
            assert partition.failure is None
            assert partition.log.damage is None
            last = check(read_all(partition), committed, partition.log_end_offset)
            for producer_id, sequence in last.items():
                known = partition.producers.get(ProducerId(producer_id))
                assert known is not None
                assert known.batches[-1].last_sequence == sequence
    finally:
        shutil.rmtree(copy)


@pytest.mark.slow
async def test_kill_9_at_any_instant_loses_nothing_committed(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201  # to run the same again
    rng = random.Random(seed)
    data_dir = tmp_path / "data"
    committed: dict[int, int] = {}
    for kill in range(KILLS):
        commits = rng.randrange(0, 150)
        with running(data_dir, seed + kill) as child:
            seen = 0
            for facts in child.lines():
                seen += "committed" in facts
                if seen >= commits and (data_dir / "events-0").exists():
                    time.sleep(rng.random() * 0.01)  # noqa: ASYNC251  # nothing else runs; the instant is to be random
                    break
        for producer, sequence in child.committed().items():
            committed[producer] = max(sequence, committed.get(producer, -1))
        await check_directory(data_dir, committed)
    assert committed
    assert sum(committed.values()) > KILLS


async def test_clean_end_leaves_nothing_to_scan(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir, 1, 50) as child:
        child.drain()
        assert child.process.wait(20) == 0
    with running(data_dir, 2, 1) as child:
        child.drain()
    output = child.stderr_path.read_text() + json.dumps(child.said)
    assert "log_recovered" not in output
    await check_directory(data_dir, child.committed())


@pytest.mark.parametrize("when", ["2", "9", "30", "3+", "25+"])
async def test_eio_from_a_sync_fails_the_partition_and_what_was_committed_stays(tmp_path: Path, when: str) -> None:
    strace = require_peer("strace")
    data_dir = tmp_path / "data"
    inject = [
        strace,
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        f"inject=fdatasync:error=EIO:when={when}",
    ]
    with running(data_dir, 5, 300, wrapper=inject) as child:
        child.drain()
    if not child.said:
        pytest.skip(f"strace can't trace here: {child.stderr_path.read_text()[:200]}")
    said = [facts for facts in child.said if "committed" in facts or "failed" in facts]
    failures = [at for at, facts in enumerate(said) if "failed" in facts]
    if when.endswith("+") or failures:  # a single one may also hit a checkpoint, whose failure only costs scanning
        assert not any("committed" in facts for facts in said[failures[-1] :])
        assert said[failures[0]]["failed"] == "StorageFailed"
    await check_directory(data_dir, child.committed())
    with running(data_dir, 6, 20) as child:
        child.drain()
    assert child.said[-1].keys() == {"done"}
    await check_directory(data_dir, child.committed())


async def test_file_size_limit_refuses_appends_and_loses_nothing(tmp_path: Path) -> None:
    """The limit stands for a full disk: a write is cut in the middle and then refused, again and again."""
    data_dir = tmp_path / "data"
    with running(data_dir, 7, file_bytes_max=30_000) as child:
        refused = 0
        for facts in child.lines():
            refused += "refused" in facts
            if refused > 20:
                break
    assert child.committed()
    assert not any("failed" in facts for facts in child.said)
    await check_directory(data_dir, child.committed())
    with running(data_dir, 8, 30) as child:
        child.drain()
    assert child.said[-1].keys() == {"done"}
    await check_directory(data_dir, child.committed())


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
async def test_full_disk_refuses_and_goes_on_by_itself_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2_500_000) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 2_300_000)
        data_dir = disk / "data"
        with running(data_dir, 9, 60) as child:
            refused = 0
            for facts in child.lines():
                refused += "refused" in facts
                if refused == 5:
                    ballast.unlink(missing_ok=True)
        assert refused >= 5
        assert child.said[-1].keys() == {"done"}
        assert not any("failed" in facts for facts in child.said)
        await check_directory(data_dir, child.committed())
