"""Retained messages: the last one of each topic, given to whoever subscribes later (MQTT 5, section 3.3.1.3)."""

from __future__ import annotations

from typing import NamedTuple

from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.stats import EndpointStats
from tidegate_wire.mqtt.topic_tree import TopicTree


class Retained(NamedTuple):
    """A retained message, and when it ends."""

    message: ReceivedMessage
    expires_at_s: float | None


class RetainedMessages:
    """Bounded by count and bytes; what does not fit is not retained, and counted."""

    def __init__(self, limits: EndpointLimits, stats: EndpointStats) -> None:
        self._limits = limits
        self._stats = stats
        self._tree: TopicTree[Retained] = TopicTree()
        self._bytes = 0

    def update(self, message: ReceivedMessage, now_s: float) -> None:
        """Retain `message` in place of its topic's last one; an empty payload only removes that."""
        self._remove(message.topic)
        size = message.content_bytes
        if message.payload:
            if (
                len(self._tree) >= self._limits.retained_messages_max
                or self._bytes + size > self._limits.retained_bytes_max
            ):
                self._stats.retained_dropped += 1
            else:
                interval_s = message.message_expiry_interval_s
                self._tree.set(message.topic, Retained(message, None if interval_s is None else now_s + interval_s))
                self._bytes += size
        self._stats.retained_now = len(self._tree)

    def matched_by(self, topic_filter: str, now_s: float) -> list[Retained]:
        """The messages for a new subscription (not a shared one)."""
        found = self._tree.matched_by(topic_filter)
        expired = [entry for entry in found if entry.expires_at_s is not None and entry.expires_at_s <= now_s]
        for entry in expired:
            self._remove(entry.message.topic)
        if expired:
            self._stats.retained_now = len(self._tree)
            return self._tree.matched_by(topic_filter)
        return found

    def _remove(self, topic: str) -> None:
        removed = self._tree.remove(topic)
        if removed is not None:
            self._bytes -= removed.message.content_bytes
