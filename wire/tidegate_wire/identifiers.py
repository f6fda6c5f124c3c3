"""A type for each kind of number, so that an offset is never passed where an epoch belongs."""

from __future__ import annotations

from typing import NewType

Offset = NewType("Offset", int)
"""Position of a record in a partition's log, from 0 (int64)."""

LeaderEpoch = NewType("LeaderEpoch", int)
"""The leader's term, stamped into each batch header (int32)."""

NodeId = NewType("NodeId", int)
"""A core node (int32)."""

ProducerId = NewType("ProducerId", int)
"""Who wrote a batch, given out by the core with InitProducerId (int64); -1 is nobody."""

ProducerEpoch = NewType("ProducerEpoch", int)
"""Fences older holders of the same producer id (int16)."""

BatchSequence = NewType("BatchSequence", int)
"""A producer's number for a batch's first record in a partition (int32, wraps to 0 after 2**31 - 1)."""

EventSequence = NewType("EventSequence", int)
"""An edge's number for an event in a stream, from 1, never reused (int64)."""

PacketId = NewType("PacketId", int)
"""An MQTT packet identifier, 1 to 65535."""
