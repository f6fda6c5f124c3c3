"""The rigs for power cuts, failing and slow syncs, small disks and clocks do what their names say, on tiny programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.clock import JumpingClock
from tests.support.injection import failing_syncs, slow_syncs
from tests.support.power_cut import PowerCutDisks
from tests.support.processes import Process, wait_until
from tests.support.tmpfs import small_disk

SYNC_FOREVER = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
while True:
    begun_s = time.monotonic()
    try:
        os.write(file, b"x")
        os.fdatasync(file)
    except OSError as error:
        print("failed", error.errno, flush=True)
        break
    print("took_ms", int((time.monotonic() - begun_s) * 1000), flush=True)
    time.sleep(0.01)
"""

TELL_TIME = """
import threading, time
while True:
    print(int(time.time()), int(time.monotonic()), flush=True)
    threading.Event().wait(0.02)
"""


@pytest.mark.peer("mkfs.xfs")
def test_after_a_power_cut_what_was_synced_is_there_and_what_was_not_is_gone(tmp_path: Path) -> None:
    with PowerCutDisks(tmp_path, 2, size_mb=32) as disks:
        for round_number in range(2):
            for path in disks.paths.values():
                kept, lost = path / f"kept-{round_number}", path / f"lost-{round_number}"
                write(kept, b"a" * 10_000, is_synced=True)
                write(lost, b"b" * 10_000, is_synced=False)
            disks.cut()
            for path in disks.paths.values():
                write(path / f"too-late-{round_number}", b"c", is_synced=True)
            disks.power_on()
            for path in disks.paths.values():
                assert (path / f"kept-{round_number}").read_bytes() == b"a" * 10_000
                lost = path / f"lost-{round_number}"
                assert not lost.exists() or lost.stat().st_size == 0
                assert not (path / f"too-late-{round_number}").exists()
        for path in disks.paths.values():
            assert (path / "kept-0").read_bytes() == b"a" * 10_000, "of the round before"
    assert not any(path.is_mount() for path in disks.paths.values())
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text(encoding="utf-8")


def write(path: Path, data: bytes, *, is_synced: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, data)
    if is_synced:
        os.fsync(descriptor)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    os.close(descriptor)


def last_line(process: Process) -> str:
    return (process.output().splitlines() or [""])[-1]


@pytest.mark.peer("strace")
def test_syncs_of_a_running_process_get_slow_and_quick_again_and_then_fail(tmp_path: Path) -> None:
    with Process([sys.executable, "-c", SYNC_FOREVER, str(tmp_path / "file")], tmp_path / "log") as process:
        wait_until(lambda: "took_ms" in process.output(), 10, "it syncs")
        with slow_syncs(process.pid, tmp_path / "strace", delay_ms=500):
            wait_until(lambda: last_line(process).startswith("took_ms 5"), 10, "syncs take half a second")
        wait_until(lambda: int(last_line(process).split()[1]) < 400, 10, "syncs are quick again")
        with failing_syncs(process.pid, tmp_path / "strace", first=2):
            assert process.wait(10) == 0
        assert last_line(process) == "failed 5", "EIO"


@pytest.mark.peer("faketime")
def test_a_clock_jumps_under_a_running_process_and_its_monotonic_clock_does_not(tmp_path: Path) -> None:
    clock = JumpingClock(tmp_path / "clock")
    with Process([sys.executable, "-c", TELL_TIME], tmp_path / "log", clock.env) as process:
        wait_until(lambda: last_line(process).count(" ") == 1, 10, "it tells the time")
        before_s, monotonic_before_s = map(int, last_line(process).split())
        for offset_s in (3600, -3600):
            clock.jump(offset_s)
            wait_until(
                lambda offset_s=offset_s: abs(int(last_line(process).split()[0]) - before_s - offset_s) < 30,  # type: ignore[misc]  # the default argument binds the loop's value
                10,
                f"the clock is off by {offset_s} s",
            )
        assert int(last_line(process).split()[1]) - monotonic_before_s < 30


def test_a_small_disk_is_full_when_it_is_filled_and_has_room_when_room_is_made(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1024 * 1024) as disk:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.path / "more").write_bytes(b"x" * 4096)
        disk.make_room()
        (disk.path / "more").write_bytes(b"x" * 4096)
    assert not disk.path.is_mount()
