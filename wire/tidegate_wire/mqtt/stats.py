"""What an endpoint has counted since it was made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EndpointStats:
    """Counters only rise; gauges (`*_now`, `held_bytes`) rise and fall."""

    connections_now: int = 0
    connections_accepted: int = 0
    connections_refused: int = 0
    """Over `connections_max`, or answered with a CONNACK that refuses."""
    protocol_errors: int = 0
    """Connections closed because of what their client sent."""
    keep_alive_timeouts: int = 0
    connect_timeouts: int = 0
    takeovers: int = 0
    write_stalls: int = 0
    """Connections closed because their client did not read."""
    sessions_now: int = 0
    sessions_evicted: int = 0
    """Sessions dropped for `sessions_max`, with their queues."""
    messages_received: int = 0
    bytes_received: int = 0
    groups_appended: int = 0
    messages_appended: int = 0
    append_failures: int = 0
    """Groups for which `append` raised."""
    messages_unappended: int = 0
    """Messages of those groups, and of their connections behind them; none was acknowledged."""
    acks_sent: int = 0
    """PUBACK and PUBREC."""
    duplicates_answered: int = 0
    """QoS 2 PUBLISH packets sent again, answered and not appended again."""
    qos2_now: int = 0
    """QoS 2 messages between PUBLISH and PUBREL."""
    held_bytes: int = 0
    """Received and not yet appended."""
    read_pauses: int = 0
    """Times a connection was not read because `held_bytes_max` was reached."""
    messages_delivered: int = 0
    """PUBLISH packets sent to subscribers."""
    qos0_dropped: int = 0
    """QoS 0 messages not sent to a subscriber that does not read."""
    queue_dropped: int = 0
    """QoS 1 and 2 messages not queued for a session whose queue is full."""
    queue_expired: int = 0
    """QoS 1 and 2 messages whose expiry passed while they waited."""
    retained_now: int = 0
    retained_dropped: int = 0
    """Messages not retained because the store is full; they were delivered all the same."""
