"""Which streams edges may write, and how they are created."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from tidegate_bridge.kafka.api import TopicSpec
from tidegate_wire.uplink.event import LOSS_STREAM

_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
"""What Kafka allows as a topic's name."""

_FROM_EDGES: Final = frozenset({LOSS_STREAM})
"""The streams named `tidegate.` that edges write themselves; the others are the bridge's own."""


class StreamPolicy:
    """Decides by name; the patterns are shell patterns (`plant-*`)."""

    def __init__(self, patterns: Iterable[str], *, partitions: int) -> None:
        self._patterns = tuple(patterns)
        self._partitions = partitions

    def refusal(self, stream: str) -> str | None:
        """Why edges may not write `stream`; None if they may."""
        if not _TOPIC_NAME.fullmatch(stream) or stream in {".", ".."}:
            return "a stream's name is 1 to 249 letters, digits, '.', '_' and '-'"
        if stream in _FROM_EDGES:
            return None
        if stream.startswith("__"):
            return "streams whose names begin with __ are the core's own"
        if stream.startswith("tidegate."):
            return "streams whose names begin with tidegate. are the gateway's own"
        if not any(fnmatchcase(stream, pattern) for pattern in self._patterns):
            return f"this bridge takes only {', '.join(self._patterns)}"
        return None

    def spec(self, stream: str) -> TopicSpec:
        """How the stream is created where it is missing; losses are few, and one partition keeps them in order."""
        return TopicSpec(partitions=1 if stream == LOSS_STREAM else self._partitions, configs={})
