"""Serves partitions' snapshots to followers that are behind their leader's log, in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from tidegate_core.errors import PartitionError
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.messages import SnapshotFetch, SnapshotFetched
from tidegate_wire.identifiers import Offset
from tidegate_wire.kafka.messages import ErrorCode

SNAPSHOTS_MAX: Final = 4
"""Held at once while followers fetch their pieces; a follower whose snapshot had to go begins again."""

_NOTHING: Final = b""

_log = structlog.get_logger()


class Snapshots:
    """The snapshots on their way."""

    def __init__(self, hosted: Mapping[ReplicaKey, HostedReplica]) -> None:
        self._hosted = hosted
        self._taken: dict[ReplicaKey, tuple[Offset, bytes]] = {}

    def piece(self, request: SnapshotFetch) -> SnapshotFetched:
        """Answer a follower."""
        hosted = self._hosted.get(request.key)
        if hosted is None or not hosted.replica.is_leader or hosted.replica.epoch != request.epoch:
            return SnapshotFetched(ErrorCode.not_leader_or_follower, 0, _NOTHING)
        offset, data = self._taken.get(request.key, (Offset(-1), _NOTHING))
        if request.position == 0 or offset != request.offset:
            if hosted.partition.log_start_offset != request.offset or request.position != 0:
                return SnapshotFetched(ErrorCode.snapshot_not_found, 0, _NOTHING)
            try:
                data = hosted.partition.snapshot()
            except (OSError, PartitionError) as error:
                _log.warning("snapshot_not_made", topic=hosted.partition.topic, error=str(error))
                return SnapshotFetched(ErrorCode.kafka_storage_error, 0, _NOTHING)
            self._taken.pop(request.key, None)
            self._taken[request.key] = request.offset, data
            if len(self._taken) > SNAPSHOTS_MAX:
                del self._taken[next(iter(self._taken))]
        piece = data[request.position : request.position + request.bytes_max]
        if request.position + len(piece) >= len(data):
            self._taken.pop(request.key, None)
        return SnapshotFetched(ErrorCode.none, len(data), piece)
