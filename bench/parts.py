"""The parts of a gateway, as the benchmarks start and look at them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from tests.support.processes import TidegatePart, free_port

STREAM = "events"

POLL_INTERVAL_S = 0.1
"""Often enough for measurements of seconds, and next to no work for the core."""


@dataclass(slots=True)
class BenchGateway:
    """Core, bridge and edge on fixed ports; each started when it is wanted, all ended with the context."""

    directory: Path
    stack: ExitStack
    core: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    bridge: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    edge: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    parts: dict[str, TidegatePart] = field(default_factory=dict)

    def start(self, name: str) -> None:
        arguments = {
            "core": ["core", "--node-id", "1", "--listen", self.core, "--data-dir", str(self.directory / "core")],
            "bridge": ["bridge", "--listen", self.bridge, "--core", self.core],
            "edge": [
                *("edge", "--id", "bench", "--listen", self.edge),
                *("--uplink", f"mqtt://{self.bridge}", "--data-dir", str(self.directory / "edge")),
                *("--reconnect-delay-max-s", "0.2"),
            ],
        }
        part = self.stack.enter_context(TidegatePart(arguments[name], self.directory, name=name))
        self.parts[name] = part
        part.wait_ready()

    def resident_mib(self) -> dict[str, float]:
        return {name: resident_mib(part.pid) for name, part in self.parts.items()}

    def cpu_seconds(self) -> dict[str, float]:
        return {name: cpu_seconds(part.pid) for name, part in self.parts.items()}


@contextmanager
def bench_gateway(directory: Path) -> Iterator[BenchGateway]:
    with ExitStack() as stack:
        yield BenchGateway(directory, stack)


def resident_mib(pid: int) -> float:
    """The resident set of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1024 * 1024)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class StreamEnd:
    """Asks the core how many events a stream has."""

    def __init__(self, core: str, stream: str = STREAM) -> None:
        self._stream = stream
        self._client = Consumer({"bootstrap.servers": core, "group.id": "bench-end", "log_level": 0})

    def count(self) -> int:
        try:
            topic = self._client.list_topics(self._stream, timeout=5).topics[self._stream]
            if topic.error is not None:
                return 0
            return sum(self._end(index) for index in topic.partitions)
        except KafkaException:
            return 0

    def wait_for(self, count: int, timeout_s: float) -> float:
        """When the stream has `count` events, in seconds of `time.perf_counter`."""
        deadline_s = time.perf_counter() + timeout_s
        while True:
            found = self.count()
            now_s = time.perf_counter()
            if found >= count:
                return now_s
            if now_s > deadline_s:
                raise TimeoutError(f"{self._stream} has {found} events after {timeout_s} s, not {count}")
            time.sleep(POLL_INTERVAL_S)

    def close(self) -> None:
        self._client.close()

    def _end(self, partition: int) -> int:
        _, end = self._client.get_watermark_offsets(TopicPartition(self._stream, partition), timeout=5, cached=False)
        return end
