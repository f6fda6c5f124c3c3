"""What a number depends on: the machine, its disk, and the programs' versions."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import confluent_kafka
from tests.support.peers import require_peer

SYNC_SAMPLES = 200


def gather(directory: Path) -> dict[str, Any]:
    """The facts, with the disk's as seen under `directory`, where the benchmark's data will be."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "librdkafka": confluent_kafka.libversion()[0],
        "mosquitto": _mosquitto_version(),
        "file_system": _file_system(directory),
        "fdatasync_p50_us": fdatasync_p50_us(directory),
        "load_average_1min": os.getloadavg()[0],
    }


def sentence(facts: dict[str, Any]) -> str:
    """The facts on one line."""
    return (
        f"{facts['cores']} x {facts['cpu']}, Linux {facts['kernel']}, Python {facts['python']}, "
        f"SQLite {facts['sqlite']}, {facts['file_system']}, fdatasync p50 {facts['fdatasync_p50_us']:.0f} us, "
        f"load {facts['load_average_1min']:.1f} before the start"
    )


def fdatasync_p50_us(directory: Path) -> float:
    """The median time of an fdatasync after 4 KiB were appended."""
    times_us: list[float] = []
    path = directory / "fdatasync"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(SYNC_SAMPLES):
            os.write(fd, b"\0" * 4096)
            start_ns = time.perf_counter_ns()
            os.fdatasync(fd)
            times_us.append((time.perf_counter_ns() - start_ns) / 1000)
    finally:
        os.close(fd)
        path.unlink()
    return statistics.median(times_us)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """The type of the file system that holds `directory`: the mount with the longest prefix of its path."""
    path = str(directory.resolve())
    mounts = (line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    fitting = [(len(fields[1]), fields[2]) for fields in mounts if path.startswith(fields[1])]
    return max(fitting)[1]


def _mosquitto_version() -> str:
    result = subprocess.run([require_peer("mosquitto"), "-h"], capture_output=True, text=True, check=False)
    return result.stdout.splitlines()[0].rpartition(" ")[2]
