"""Where the events are: counts taken from the fleet, the core and the consumer group while the demo runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from tidegate_wire.ledger import read_ledger

EventName = tuple[str, int]
"""Device and sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many events got how far."""

    published: int = 0
    acknowledged: int = 0
    committed: int = 0
    consumed: int = 0

    @property
    def buffered(self) -> int:
        """Acknowledged, and on nothing but an edge's disk."""
        return max(0, self.acknowledged - self.committed)


class FleetCounts:
    """Reads the status file of `tidegate sim`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[int, int]:
        """Published and acknowledged; zeros before the fleet wrote them."""
        try:
            status: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0, 0
        return status["published"], status["acknowledged"]


class GroupCounts:
    """Reads what the members of the consumer group noted, line by line as it comes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.seen: set[EventName] = set()
        self._offsets = dict.fromkeys(paths, 0)

    def read(self) -> int:
        """How many different events the group saw."""
        for path, offset in self._offsets.items():
            if not path.exists():
                continue
            with path.open("rb") as lines:
                lines.seek(offset)
                data = lines.read()
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.decode().splitlines():
                device, sequence = line.split()
                self.seen.add((device, int(sequence)))
            self._offsets[path] = offset + len(whole)
        return len(self.seen)


class CoreCounts:
    """Asks the core how long a stream is; blocking, for a thread."""

    def __init__(self, core: str, stream: str) -> None:
        self._stream = stream
        # Never subscribes and never commits: it only asks for offsets.
        self._client = Consumer(
            {"bootstrap.servers": core, "group.id": "tidegate-demo-counts", "log_level": 0, "socket.timeout.ms": 2000}
        )

    def read(self) -> int:
        """Events that the core committed; 0 while it does not answer, or has no such stream yet."""
        try:
            topic = self._client.list_topics(self._stream, timeout=2.0).topics[self._stream]
            if topic.error is not None:
                return 0
            return sum(self._end_offset(index) for index in topic.partitions)
        except KafkaException:
            return 0

    def busiest_node(self) -> int:
        """The id of the node that leads most partitions of the stream."""
        topic = self._client.list_topics(self._stream, timeout=5.0).topics[self._stream]
        leaders = Counter(int(part.leader) for part in topic.partitions.values())
        return leaders.most_common(1)[0][0]

    def _end_offset(self, partition: int) -> int:
        wanted = TopicPartition(self._stream, partition)
        _, end = self._client.get_watermark_offsets(wanted, timeout=2.0, cached=False)
        return end

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def acknowledged_events(ledger: Path) -> set[EventName]:
    """The events that the ledger says were acknowledged."""
    return {(entry.device, entry.sequence) for entry in read_ledger(ledger) if entry.state == "acknowledged"}
