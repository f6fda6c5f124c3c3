"""Reads a partition of `__consumer_offsets` back into an empty coordinator, a little at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tidegate_core.groups.coordinator import Coordinator
from tidegate_core.partition import Partition
from tidegate_core.replay import replay

STEPS_AT_ONCE: Final = 500
"""Records, or groups, between two turns of everything else on the loop: a few milliseconds. Counted, not timed, so that
a run in simulated time repeats."""


async def load(partition: Partition, coordinator: Coordinator, now_ms: Callable[[], int]) -> int:
    """Replay everything that was in the log when this began; returns how many records that were.

    Raises:
        GroupRecordError, BatchError: a record can't be read.
        PartitionError: the log can't, or this node leads it no more.
    """
    await partition.committed(partition.log_end_offset)
    count = 0
    for record in replay(partition):
        assert record.key is not None  # a compacted topic takes no others
        coordinator.replay(record.key, record.value)
        count += 1
        if count % STEPS_AT_ONCE == 0:
            await asyncio.sleep(0)
    for steps, _ in enumerate(coordinator.end_replay(now_ms), start=1):
        if steps % STEPS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return count
