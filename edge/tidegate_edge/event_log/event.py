"""An event as the log takes it."""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """One event on its way into the log. A tuple because an edge makes one for every message it receives.

    The fields from `device` to `headers` are the columns of a stream's table, in their order (`schema`).
    """

    stream: str
    device: str
    """MQTT client id."""
    topic: str
    event_time_ms: int
    """When it happened, by the device's word (Unix time)."""
    receive_time_ms: int
    """When this edge received it (Unix time)."""
    payload: bytes
    packet_id: int
    """The PUBLISH packet's identifier; 0 for QoS 0."""
    headers: str | None
    """MQTT 5 user properties as JSON: `[["name", "value"], ...]`; None for none."""
    dup: bool = False
    """The device says that it sent this before."""
