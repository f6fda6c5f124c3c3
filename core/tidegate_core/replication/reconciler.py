"""Brings the replicas on this node's disk in line with the metadata: makes, configures and deletes them.

Nothing is made or deleted on the word of metadata that may be old: before this node has applied all there was at its
start, it only serves what it has. And nothing is deleted because the metadata does not know it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from tidegate_core.errors import PartitionExists, StorageError
from tidegate_core.log_manager import LogManager
from tidegate_core.metadata.assignments import WantedReplica
from tidegate_core.raft.messages import BeginEpoch, ReplicaKey, VoteState
from tidegate_core.raft.replica import Role
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.messages import METADATA_KEY
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_core.replication.vote_store import VoteStore
from tidegate_wire.identifiers import LeaderEpoch

BUSY_S: Final = 0.01
"""How long the loop may be kept from other things at once while replicas are made."""

_log = structlog.get_logger()


class Reconciler:
    """Called by one task, one time after the other."""

    def __init__(self, replicas: ReplicaManager, logs: LogManager, votes: VoteStore) -> None:
        self._replicas = replicas
        self._logs = logs
        self._votes = votes
        self._loop = asyncio.get_running_loop()
        self._was_in_line = False
        """Whether all replicas were there once, as of this start: one that is missing after that is a new one."""
        self._reported: set[ReplicaKey] = set()

    async def reconcile(
        self,
        wanted: Mapping[tuple[str, int], WantedReplica],
        is_gone: Callable[[ReplicaKey], bool],
        *,
        is_complete: bool,
    ) -> bool:
        """Make the replicas on the disk those that the metadata gives this node; says whether they are.

        `is_gone` says of which partitions the metadata knows that they have no replica here, or none anywhere;
        `is_complete` whether the metadata is all there was when this node started.
        """
        replicas = self._replicas
        began_s = self._loop.time()
        is_in_line = is_complete
        for (topic, index), want in wanted.items():
            hosted = replicas.hosted(want.key)
            if hosted is None and is_complete:
                hosted = self._make(topic, index, want, is_gone)
            if hosted is None:
                is_in_line = False
                continue
            self._reported.discard(want.key)
            replicas.adopt(topic, index, hosted.partition)
            if hosted.partition.config != want.config:
                hosted.partition.config = want.config
            if self._loop.time() - began_s > BUSY_S:  # each one that is made waits for the disk: let others in between
                await asyncio.sleep(0)
                began_s = self._loop.time()
        if is_complete:
            self._remove(wanted, is_gone)
            self._was_in_line = True
        await self._note_alone(wanted)
        return is_in_line

    # --- making

    def _make(
        self, topic: str, index: int, want: WantedReplica, is_gone: Callable[[ReplicaKey], bool]
    ) -> HostedReplica | None:
        is_alone = want.voters == (self._replicas.node_id,)
        try:
            self._clear_the_way(topic, index, is_gone)
            if is_alone and not want.is_learner and self._votes.get(want.key) is not None:
                raise StorageError("its directory is gone, and no other node has the records", hint="restore it")  # noqa: TRY301
            partition = self._logs.create(topic, index, want.config, want.key.topic_id, want.voters)
        except (StorageError, PartitionExists, OSError) as error:
            if want.key not in self._reported:
                self._reported.add(want.key)
                _log.error("replica_not_made", topic=topic, partition=index, error=str(error))
            return None
        is_new = self._was_in_line or is_alone
        hosted = self._replicas.host(partition, is_new=not want.is_learner, is_lost=not is_new)
        self._follow_known_leader(hosted)
        return hosted

    def _follow_known_leader(self, hosted: HostedReplica) -> None:
        """A leader may have said that it leads before there was a replica here to hear it."""
        leadership = self._replicas.leaders.get(hosted.key)
        if leadership is not None and leadership.leader != self._replicas.node_id:
            begin = BeginEpoch(leadership.leader, leadership.epoch)
            hosted.replica.on_begin_epoch(begin, self._replicas.now_ms())
            self._replicas.settle(hosted)

    def _clear_the_way(self, topic: str, index: int, is_gone: Callable[[ReplicaKey], bool]) -> None:
        """A topic of this name was deleted, and its directory may still be there."""
        old = self._logs.partitions.get((topic, index))
        if old is None:
            return
        if not is_gone(old.key):
            raise PartitionExists(
                f"{old.log.directory} holds records of a topic that the metadata does not know",
                hint="move it out of the data directory, and start the node again",
            )
        self._delete(topic, index, old.key)

    async def _note_alone(self, wanted: Mapping[tuple[str, int], WantedReplica]) -> None:
        """Remember of replicas without any other that they were there: should one vanish, it must not begin anew."""
        node_id = self._replicas.node_id
        made = {
            want.key: VoteState(LeaderEpoch(0))
            for want in wanted.values()
            if want.voters == (node_id,) and self._votes.get(want.key) is None and self._replicas.hosted(want.key)
        }
        if not made:
            return
        try:
            await self._votes.save(made)
        except StorageError as error:
            _log.warning("replicas_not_noted", partitions=len(made), error=str(error))

    # --- removing

    def _remove(self, wanted: Mapping[tuple[str, int], WantedReplica], is_gone: Callable[[ReplicaKey], bool]) -> None:
        keys = {want.key for want in wanted.values()}
        for hosted in list(self._replicas.hosted_replicas):
            key, partition = hosted.key, hosted.partition
            if key in keys or key == METADATA_KEY:
                continue
            if is_gone(key):
                self._delete(partition.topic, partition.index, key)
            elif hosted.replica.role is not Role.HALTED:
                hosted.replica.halt()
                self._replicas.settle(hosted)
                _log.warning("partition_unknown", topic=partition.topic, partition=partition.index, hint="left alone")

    def _delete(self, topic: str, index: int, key: ReplicaKey) -> None:
        hosted = self._replicas.hosted(key)
        if hosted is not None:
            self._replicas.drop(hosted)
        try:
            self._logs.delete(topic, index)
        except (StorageError, OSError) as error:
            _log.error("replica_not_deleted", topic=topic, partition=index, error=str(error))
