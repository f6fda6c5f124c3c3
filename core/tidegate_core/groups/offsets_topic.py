"""`__consumer_offsets`: which partition a group belongs to, who leads it, and the settings of the topic."""

from __future__ import annotations

import struct
from typing import Final, Protocol

from tidegate_core.replication.messages import Leadership

OFFSETS_TOPIC: Final = "__consumer_offsets"

OFFSETS_TOPIC_SETTINGS: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": str(100 * 1024 * 1024),  # Kafka's; small segments are compacted sooner
    "max.message.bytes": str(16 * 1024 * 1024),  # a group with a thousand members is one record
}


class OffsetsTopic(Protocol):
    """What the cluster says of the topic."""

    @property
    def partition_count(self) -> int:
        """0 while there is no such topic. It never changes after: groups would belong to other partitions."""

    def leader_of(self, index: int) -> Leadership | None:
        """Who leads a partition; None while nobody is known to."""

    async def create(self) -> None:
        """Make the topic, unless it is there already; `partition_count` says so when this returns.

        Raises:
            KafkaError, TidegateError: it can't be made now.
        """


def partition_of(group_id: str, partition_count: int) -> int:
    """The partition that keeps a group, by Kafka's rule: the absolute value of Java's String.hashCode."""
    encoded = group_id.encode("utf-16-be", "surrogatepass")
    value = 0
    for unit in struct.unpack(f">{len(encoded) // 2}H", encoded):
        value = (31 * value + unit) & 0xFFFFFFFF
    if value >= 0x80000000:  # negative in Java, whose largest negative number has no absolute value
        value = (0x100000000 - value) & 0x7FFFFFFF
    return value % partition_count
