"""`__consumer_offsets`: which partition a group belongs to, and the settings of the topic."""

from __future__ import annotations

from typing import Final

OFFSETS_TOPIC: Final = "__consumer_offsets"

OFFSETS_TOPIC_SETTINGS: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": str(100 * 1024 * 1024),  # Kafka's; small segments are compacted sooner
    "max.message.bytes": str(16 * 1024 * 1024),  # a group with a thousand members is one record
}


def partition_of(group_id: str, partition_count: int) -> int:
    """The partition that keeps a group, by Kafka's rule: the absolute value of Java's String.hashCode."""
    value = 0
    encoded = group_id.encode("utf-16-be", "surrogatepass")
    for position in range(0, len(encoded), 2):
        value = (31 * value + (encoded[position] << 8 | encoded[position + 1])) & 0xFFFFFFFF
    if value >= 0x80000000:  # negative in Java, whose largest negative number has no absolute value
        value = (0x100000000 - value) & 0x7FFFFFFF
    return value % partition_count
