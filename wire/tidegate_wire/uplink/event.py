"""How an event is laid out as a Kafka record. The edge writes it, the SDK reads it, everyone else moves bytes.

key        the device (MQTT client id), UTF-8
value      the MQTT payload, untouched
timestamp  event time, ms since the Unix epoch
headers    `edge` the edge's id, `topic` the MQTT topic, `sequence` the edge's number for the event in its stream,
           `received` receive time in ms since the Unix epoch (numbers as decimal ASCII, so that any Kafka tool
           shows them), then the MQTT 5 user properties as they came
"""

from __future__ import annotations

import zlib
from typing import Final

HEADER_EDGE: Final = "edge"
HEADER_TOPIC: Final = "topic"
HEADER_SEQUENCE: Final = "sequence"
HEADER_RECEIVED: Final = "received"

LOSS_STREAM: Final = "tidegate.losses"
"""The stream of loss records: one JSON object for each range of events that an edge dropped, and why."""

PRODUCERS_STREAM: Final = "tidegate.producers"
"""Compacted; producer id (decimal) -> {"edge": ...}. How any bridge knows whose batches are whose."""

EDGES_STREAM: Final = "tidegate.edges"
"""Compacted; edge id -> its last presence."""


def partition_for(key: str, partitions: int) -> int:
    """The partition of an edge (or a device, where the stream says so): CRC-32 of its id, modulo the partitions."""
    assert partitions > 0, partitions
    return zlib.crc32(key.encode()) % partitions
