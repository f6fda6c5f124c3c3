"""Which replicas a node is to have, and where partitions are to move, as the metadata says. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from tidegate_core.log.config import LogConfig
from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.metadata.image import MetadataImage, Replicas
from tidegate_core.metadata.topic_settings import log_settings
from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.identifiers import NodeId

UNTIL_CONFIGURED: Final = LogConfig(retention_ms=-1, retention_bytes=-1)
"""For partitions found on disk until metadata is read: nothing is deleted on a guess."""

METADATA_CONFIG: Final = LogConfig(retention_ms=-1, retention_bytes=-1, segment_bytes=4 * 1024 * 1024)
"""Of the metadata's own log, whose beginning goes when a snapshot is there; small segments, so that it really does."""

_CONFIGS_CACHED: Final = 1024
"""Topics share few sets of settings, and are looked at after every change."""


class WantedReplica(NamedTuple):
    """A replica that a node is to have."""

    key: ReplicaKey
    voters: Replicas
    """Those the partition has, or had when it began to move: what an empty log begins with."""
    config: LogConfig
    is_learner: bool
    """It is not among the voters yet, or no more."""


def wanted_replicas(
    image: MetadataImage, node_id: NodeId, default_settings: Mapping[str, str]
) -> dict[tuple[str, int], WantedReplica]:
    """All replicas of a node, by topic and index; `default_settings` are of topics that have none of their own."""
    wanted: dict[tuple[str, int], WantedReplica] = {}
    for topic in image.topics.values():
        config = None
        for index, voters in enumerate(topic.replicas):
            is_learner = node_id not in voters
            if is_learner and (index not in topic.reassigning or node_id not in topic.hosts(index)):
                continue
            config = config or config_of(topic.settings, default_settings)
            wanted[topic.name, index] = WantedReplica(topic.key(index), voters, config, is_learner)
    return wanted


def move_target(image: MetadataImage, key: ReplicaKey) -> Replicas | None:
    """The replicas that a partition is to move to, if it is to move."""
    topic = image.topic_by_id(key.topic_id)
    return None if topic is None else topic.reassigning.get(key.partition)


def config_of(settings: Mapping[str, str], default_settings: Mapping[str, str]) -> LogConfig:
    """The configuration of logs of a topic with these settings.

    Raises:
        InvalidLogConfig: a setting is unknown, or its value not allowed.
    """
    return _config(tuple(sorted({**default_settings, **settings}.items())))


@lru_cache(_CONFIGS_CACHED)
def _config(settings: tuple[tuple[str, str], ...]) -> LogConfig:
    return LogConfig.from_names(log_settings(dict(settings)))


def config_before_metadata(topic: str) -> LogConfig:
    """What a partition found on disk is opened with."""
    return METADATA_CONFIG if topic == METADATA_TOPIC else UNTIL_CONFIGURED
