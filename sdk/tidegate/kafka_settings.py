"""What a consumer may be asked for, and the librdkafka configuration that follows from it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

Start = Literal["earliest", "latest"] | datetime | Mapping[int, int]
"""Where a partition begins: its first event, what comes from now on, a time, or an offset by partition."""

_HEARTBEAT_INTERVAL_MS: Final = 1000
"""A member hears of a rebalance with its next heartbeat; librdkafka's default makes everyone wait three seconds."""

_FETCH_PAUSE_MS: Final = 5
"""How long a full buffer keeps librdkafka from fetching again; its default, a second, is most of the time."""

_METADATA_MAX_AGE_MS: Final = 60_000
"""In a group, how soon its members hear of added partitions (librdkafka's default is five minutes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerLimits:
    """What a consumer holds in memory: librdkafka's buffer, one answer from each core node, and one batch of events.

    Each event takes some 400 bytes beside its own in the buffer. More read ahead was measured, and is not faster.
    """

    batch_events_max: int = 1000
    """Events handed over at once: enough that the hop between threads costs nothing per event."""
    buffered_events_max: int = 10_000
    """Events of a partition from which no more of it is fetched: some 20 ms of one core's work."""
    buffered_bytes_max: int = 16 * 1024 * 1024
    """Bytes of events, over all partitions, from which nothing more is fetched."""
    fetch_bytes_max: int = 4 * 1024 * 1024
    """One answer to a Fetch, as compressed as it was written; a larger single batch is taken all the same."""
    partition_fetch_bytes_max: int = 256 * 1024
    """One partition's share of an answer; over a link of 50 ms that still is 5 MB a second, compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderOptions:
    """What to read, and how; checked by `Consumer`."""

    streams: tuple[str, ...]
    core: str
    group: str | None
    start: Start
    until_end: bool
    timeout_s: float
    limits: ConsumerLimits
    client_options: Mapping[str, str | int | float | bool]


def defaults() -> dict[str, Any]:
    """What `client_options` may change."""
    return {"client.id": "tidegate", "heartbeat.interval.ms": _HEARTBEAT_INTERVAL_MS}


def required(options: ReaderOptions) -> dict[str, Any]:
    """What the consumer's promises rest on, and its limits; `client_options` may not change it."""
    limits = options.limits
    return {
        "bootstrap.servers": options.core,
        "group.id": options.group or f"tidegate-without-group-{uuid.uuid4()}",
        "partition.assignment.strategy": "cooperative-sticky",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": options.until_end,
        "check.crcs": True,
        "queued.min.messages": limits.buffered_events_max,
        "queued.max.messages.kbytes": max(limits.buffered_bytes_max // 1024, 1),
        "fetch.queue.backoff.ms": _FETCH_PAUSE_MS,
        "fetch.max.bytes": limits.fetch_bytes_max,
        "max.partition.fetch.bytes": limits.partition_fetch_bytes_max,
        "message.max.bytes": min(limits.fetch_bytes_max, 1_000_000),  # librdkafka wants it below fetch.max.bytes
        "socket.timeout.ms": max(int(options.timeout_s * 1000), 1000),
        "topic.metadata.refresh.interval.ms": _METADATA_MAX_AGE_MS,
    }
