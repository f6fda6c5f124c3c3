"""The cluster's metadata as the log of `__cluster_metadata` describes it, without I/O.

Each record sets one key, or takes it back with a null value; keys are texts, values JSON objects, so that a person can
read the log with any Kafka tool.

    topic:NAME      {"partitions": 4, "settings": {"retention.ms": "1000"}}
    producer-ids    {"next": 3000}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tidegate_core.errors import PartitionDamaged
from tidegate_wire.identifiers import ProducerId

METADATA_TOPIC: Final = "__cluster_metadata"

METADATA_TOPIC_SETTINGS: Final = {"cleanup.policy": "compact"}

_TOPIC_PREFIX: Final = "topic:"
_PRODUCER_IDS: Final = "producer-ids"

MetadataRecord = tuple[bytes, bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic; `settings` are those it was given, by Kafka's names."""

    name: str
    partition_count: int
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_record(self) -> MetadataRecord:
        """The record that makes or changes the topic."""
        return f"{_TOPIC_PREFIX}{self.name}".encode(), _encode(
            {"partitions": self.partition_count, "settings": dict(self.settings)}
        )


def topic_deleted(name: str) -> MetadataRecord:
    """The record that deletes a topic."""
    return f"{_TOPIC_PREFIX}{name}".encode(), None


def producer_ids_taken(up_to: ProducerId) -> MetadataRecord:
    """The record that says: every producer id below `up_to` may be in use."""
    return _PRODUCER_IDS.encode(), _encode({"next": up_to})


class MetadataImage:
    """What all records so far add up to."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.deleted_topics: set[str] = set()
        """Deleted by a record that is still in the log, and not made again."""
        self.next_producer_id = ProducerId(0)
        self.version = 0
        """Rises with every change: what is derived from the image may be kept while it stays."""

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take one record, in the log's order. Unknown keys are passed over: they come from a newer version.

        Raises:
            PartitionDamaged: the record is none of ours.
        """
        self.version += 1
        try:
            name = (key or b"").decode()
            if name.startswith(_TOPIC_PREFIX):
                self._apply_topic(name.removeprefix(_TOPIC_PREFIX), value)
            elif name == _PRODUCER_IDS and value is not None:
                self.next_producer_id = ProducerId(int(json.loads(value)["next"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PartitionDamaged(f"a record of {METADATA_TOPIC} can't be read: {key!r}: {error!r}") from error

    def _apply_topic(self, name: str, value: bytes | None) -> None:
        if value is None:
            self.topics.pop(name, None)
            self.deleted_topics.add(name)
            return
        fields = json.loads(value)
        settings = {str(setting): str(text) for setting, text in fields["settings"].items()}
        self.topics[name] = Topic(name=name, partition_count=int(fields["partitions"]), settings=settings)
        self.deleted_topics.discard(name)


def _encode(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
