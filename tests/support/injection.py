"""System calls of a running process that fail or take long, by strace: a disk that breaks, or is slow."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.peers import require_peer
from tests.support.processes import wait_until

SYNCS: Final = ("fdatasync", "fsync")


@contextmanager
def failing_syncs(pid: int, log_path: Path, *, first: int = 1) -> Iterator[None]:
    """From the `first`-th one on, every fdatasync and fsync of the process fails with EIO."""
    with injected(pid, log_path, SYNCS, f"error=EIO:when={first}+"):
        yield


@contextmanager
def slow_syncs(pid: int, log_path: Path, *, delay_ms: int) -> Iterator[None]:
    """Every fdatasync and fsync of the process takes so much longer."""
    with injected(pid, log_path, SYNCS, f"delay_enter={delay_ms * 1000}"):
        yield


@contextmanager
def lying_syncs(pid: int, log_path: Path) -> Iterator[None]:
    """Every fdatasync and fsync of the process says that it worked, and does nothing."""
    with injected(pid, log_path, SYNCS, "retval=0"):
        yield


@contextmanager
def injected(pid: int, log_path: Path, calls: Sequence[str], action: str) -> Iterator[None]:
    """What strace's `inject=` says happens to the calls of a process and its threads, until the end of the block.

    The calls it saw are in the log. Skips the test where strace can't attach.
    """
    strace = require_peer("strace")
    command = [strace, "-f", "-q", "-p", str(pid), "-e", f"trace={','.join(calls)}", "-o", str(log_path)]
    command += [f"--inject={call}:{action}" for call in calls]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            wait_until(lambda: _is_traced(pid) or tracer.poll() is not None, 10, "strace attaches")
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                pytest.skip(f"strace can't attach here: {tracer.stderr.read().strip()}")
            yield
        finally:
            tracer.terminate()


def _is_traced(pid: int) -> bool:
    """Whether every thread is; strace takes them one by one."""
    states = [task.read_text(encoding="utf-8") for task in Path(f"/proc/{pid}/task").glob("*/status")]
    return all("TracerPid:\t0\n" not in state for state in states)
