"""Which topic names are allowed, and which topics are the cluster's own."""

from __future__ import annotations

import re
from typing import Final

from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC
from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_wire.kafka.messages import ErrorCode

TOPIC_NAME_BYTES_MAX: Final = 249
"""Kafka's: with "-", a partition number and a suffix a directory's name stays below 255 bytes."""

INTERNAL_TOPICS: Final = frozenset({OFFSETS_TOPIC, METADATA_TOPIC})

_NAME: Final = re.compile(r"[a-zA-Z0-9._-]+")


def check_topic_name(name: str) -> None:
    """Raise KafkaError INVALID_TOPIC_EXCEPTION where a topic may not be called `name`."""
    if _NAME.fullmatch(name) is None or name in {".", ".."} or len(name) > TOPIC_NAME_BYTES_MAX:
        raise KafkaError(
            ErrorCode.invalid_topic_exception,
            f"{name!r} is no name for a topic: 1 to {TOPIC_NAME_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_' and '-'",
        )


def check_not_internal(name: str) -> None:
    """Raise KafkaError INVALID_TOPIC_EXCEPTION where `name` is a topic that only the cluster itself may change."""
    if name in INTERNAL_TOPICS:
        raise KafkaError(ErrorCode.invalid_topic_exception, f"{name} is the cluster's own; clients can't change it")
