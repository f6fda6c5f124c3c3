"""Which stream an event goes to, and what the log takes of a received message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from tidegate_edge.event_log import Event
from tidegate_wire.mqtt import ReceivedMessage
from tidegate_wire.mqtt.topics import check_topic_filter

TIME_PROPERTY: Final = "time"
"""The MQTT 5 user property in which a device says when an event happened."""

EVENT_TIME_MS_MIN: Final = 946_684_800_000
EVENT_TIME_MS_MAX: Final = 4_102_444_800_000
"""The years 2000 to 2099: what lies outside is a clock that was never set, or seconds taken for milliseconds."""

TOPICS_REMEMBERED: Final = 8_192
"""Topics whose stream is remembered; then all are looked up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Messages whose topic matches one of the filters go to the stream."""

    stream: str
    filters: tuple[str, ...]


class Router:
    """Finds the stream of a topic; the first route that matches wins, the default stream takes the rest.

    Raises:
        ProtocolViolationError: (when made) a filter is not a topic filter.
    """

    def __init__(self, routes: Sequence[Route], default_stream: str) -> None:
        for route in routes:
            for topic_filter in route.filters:
                check_topic_filter(topic_filter)
        self._routes = [(route.stream, [name.split("/") for name in route.filters]) for route in routes]
        self._default_stream = default_stream
        self._known: dict[str, str | None] = {}

    def stream_of(self, topic: str) -> str | None:
        """The stream of a topic; None for `$`-topics and the gateway's own, which are not events."""
        try:
            return self._known[topic]
        except KeyError:
            pass
        if len(self._known) >= TOPICS_REMEMBERED:
            self._known.clear()
        stream = self._known[topic] = self._find(topic)
        return stream

    def events(self, messages: Sequence[ReceivedMessage], now_ms: int) -> list[Event]:
        """What of a group of messages is to be stored, in order; all were received at `now_ms`."""
        events: list[Event] = []
        known = self._known
        for message in messages:
            topic = message.topic
            stream = known[topic] if topic in known else self.stream_of(topic)
            if stream is None:
                continue
            properties = message.user_properties
            events.append(
                Event(
                    stream,
                    message.client_id,
                    topic,
                    _event_time_ms(properties, now_ms) if properties else now_ms,
                    now_ms,
                    message.payload,
                    message.packet_id,
                    json.dumps(properties, ensure_ascii=False) if properties else None,
                    message.dup,
                )
            )
        return events

    def _find(self, topic: str) -> str | None:
        levels = topic.split("/")
        if levels[0].startswith("$") or levels[0] == "tidegate":
            return None
        for stream, filters in self._routes:
            if any(_matches(pattern, levels) for pattern in filters):
                return stream
        return self._default_stream


def _matches(pattern: list[str], levels: list[str]) -> bool:
    """MQTT 5, section 4.7.1: `#` stands for all further levels, none included, `+` for one."""
    for position, word in enumerate(pattern):
        if word == "#":
            return True
        if position >= len(levels) or word not in {"+", levels[position]}:
            return False
    return len(pattern) == len(levels)


def _event_time_ms(properties: Sequence[tuple[str, str]], now_ms: int) -> int:
    text = next((value for name, value in properties if name == TIME_PROPERTY), None)
    if text is None:
        return now_ms
    time_ms = _parse_time_ms(text)
    return now_ms if time_ms is None else time_ms


def _parse_time_ms(text: str) -> int | None:
    """Milliseconds since the Unix epoch, or ISO 8601 (UTC where no offset stands); None for anything else."""
    try:
        if text.isascii() and text.isdigit() and len(text) <= 13:
            time_ms = int(text)
        else:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            time_ms = round(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    return time_ms if EVENT_TIME_MS_MIN <= time_ms < EVENT_TIME_MS_MAX else None
