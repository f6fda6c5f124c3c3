"""Which APIs and versions the core speaks, and the ApiVersions response that says so (KIP-35, KIP-511)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class Api(IntEnum):
    """The API keys that are served."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    DESCRIBE_GROUPS = 15
    LIST_GROUPS = 16
    API_VERSIONS = 18
    CREATE_TOPICS = 19
    DELETE_TOPICS = 20
    DELETE_RECORDS = 21
    INIT_PRODUCER_ID = 22
    OFFSET_FOR_LEADER_EPOCH = 23
    DESCRIBE_CONFIGS = 32
    ALTER_CONFIGS = 33
    DESCRIBE_LOG_DIRS = 35
    CREATE_PARTITIONS = 37
    DELETE_GROUPS = 42
    ELECT_LEADERS = 43
    INCREMENTAL_ALTER_CONFIGS = 44
    ALTER_PARTITION_REASSIGNMENTS = 45
    LIST_PARTITION_REASSIGNMENTS = 46
    OFFSET_DELETE = 47
    DESCRIBE_QUORUM = 55
    DESCRIBE_CLUSTER = 60
    UNREGISTER_BROKER = 64
    ALLOCATE_PRODUCER_IDS = 67
    DESCRIBE_TOPIC_PARTITIONS = 75


class VersionRange(NamedTuple):
    """The lowest and the highest version, both included."""

    lowest: int
    highest: int


PRODUCE_SERVED_FROM: Final = 3
"""The first Produce version that carries record batches. 0 to 2 are advertised too, because librdkafka takes a missing
0 for a broker without compression; a request of theirs is answered with an error for each partition."""

VERSIONS: Final[dict[int, VersionRange]] = {
    Api.PRODUCE: VersionRange(0, 11),
    Api.FETCH: VersionRange(4, 12),  # 13 names topics by id only
    Api.LIST_OFFSETS: VersionRange(1, 7),
    Api.METADATA: VersionRange(0, 12),
    Api.OFFSET_COMMIT: VersionRange(2, 8),  # 9 is for the new group protocol (KIP-848)
    Api.OFFSET_FETCH: VersionRange(1, 8),
    Api.FIND_COORDINATOR: VersionRange(0, 4),
    Api.JOIN_GROUP: VersionRange(0, 9),
    Api.HEARTBEAT: VersionRange(0, 4),
    Api.LEAVE_GROUP: VersionRange(0, 5),
    Api.SYNC_GROUP: VersionRange(0, 5),
    Api.DESCRIBE_GROUPS: VersionRange(0, 5),
    Api.LIST_GROUPS: VersionRange(0, 5),
    Api.API_VERSIONS: VersionRange(0, 4),
    Api.CREATE_TOPICS: VersionRange(2, 7),
    Api.DELETE_TOPICS: VersionRange(1, 6),
    Api.DELETE_RECORDS: VersionRange(0, 2),
    Api.INIT_PRODUCER_ID: VersionRange(0, 4),
    Api.OFFSET_FOR_LEADER_EPOCH: VersionRange(2, 4),
    Api.DESCRIBE_CONFIGS: VersionRange(1, 4),
    Api.ALTER_CONFIGS: VersionRange(0, 2),
    Api.DESCRIBE_LOG_DIRS: VersionRange(1, 4),
    Api.CREATE_PARTITIONS: VersionRange(0, 3),
    Api.DELETE_GROUPS: VersionRange(0, 2),
    Api.INCREMENTAL_ALTER_CONFIGS: VersionRange(0, 1),
    Api.OFFSET_DELETE: VersionRange(0, 0),
    Api.DESCRIBE_CLUSTER: VersionRange(0, 1),
    Api.ELECT_LEADERS: VersionRange(0, 2),
    Api.ALTER_PARTITION_REASSIGNMENTS: VersionRange(0, 1),
    Api.LIST_PARTITION_REASSIGNMENTS: VersionRange(0, 0),
    Api.DESCRIBE_QUORUM: VersionRange(0, 2),
    Api.UNREGISTER_BROKER: VersionRange(0, 0),
    Api.DESCRIBE_TOPIC_PARTITIONS: VersionRange(0, 0),
}
"""What clients are told."""

_BETWEEN_NODES: Final[dict[int, VersionRange]] = {Api.ALLOCATE_PRODUCER_IDS: VersionRange(0, 0)}

_SERVED: Final = VERSIONS | _BETWEEN_NODES


def is_served(api_key: int, api_version: int) -> bool:
    """Whether a request of this API and version is understood."""
    versions = _SERVED.get(api_key)
    return versions is not None and versions.lowest <= api_version <= versions.highest


def newest(api_key: int) -> int:
    """The highest served version: the one that handlers are written for."""
    return _SERVED[api_key].highest
