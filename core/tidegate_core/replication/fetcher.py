"""The follower's side of replication: one loop a leader node, which fetches all partitions that it leads.

What an answer brings is appended, then synced, and only then the next request says that it is there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import structlog

from tidegate_core.errors import DiskFull, PartitionClosed, PartitionError, StorageFailed
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.raft.messages import BeginEpoch, ReplicaKey
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.messages import (
    METADATA_KEY,
    FetchedReplica,
    FollowerPosition,
    Lane,
    ReplicaFetch,
    ReplicaFetched,
    SnapshotFetch,
    SnapshotFetched,
)
from tidegate_core.replication.peers import PeerError, PeerNetwork, PeerUnreachable
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode

FETCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""What one answer may bring: it is held in memory until it is written."""

FETCH_BYTES_MIN: Final = 64 * 1024
"""What one answer may always bring, however slow the link is."""

POSITIONS_MAX: Final = 5000
"""In one request; the rest follows with the next."""

SNAPSHOT_PIECE_BYTES: Final = 1024 * 1024
SNAPSHOT_BYTES_MAX: Final = 256 * 1024 * 1024
"""A snapshot is held in memory; a hundred thousand producers take 20 MB."""

DOUBT_POLL_S: Final = 0.01
"""Between two looks at whether a replica's doubt is on the disk; it happens once in a while, and takes one sync."""

RETRY_DISK_FULL_S: Final = 1.0
"""Before asking again for records for which there was no room."""

_log = structlog.get_logger()


class FetchOwner(Protocol):
    """What a fetcher needs of the replica manager."""

    def settle(self, hosted: HostedReplica) -> None:
        """A replica's state may have changed."""

    def now_ms(self) -> int:
        """The loop's clock."""

    def wall_clock_ms(self) -> int:
        """Unix time."""

    def diverged_below_high_watermark(self, hosted: HostedReplica, offset: Offset) -> None:
        """The leader's log leaves this one before what is committed here: one of them is damaged."""


@dataclass(slots=True)
class _Sent:
    term: int
    offset: Offset


class LeaderFetcher:
    """Follows one leader node."""

    def __init__(  # noqa: PLR0917  # its parts, each of its own type
        self, owner: FetchOwner, network: PeerNetwork, leader: NodeId, random: Random, timeout_ms: int, wait_ms: int
    ) -> None:
        self.leader = leader
        self.last_answer_ms = owner.now_ms()
        """When the leader's node was heard last."""
        self.following: dict[ReplicaKey, HostedReplica] = {}
        self._lost: dict[ReplicaKey, LeaderEpoch] = {}
        """Partitions, and the epochs of their leader, that were given up since the node was heard last. Other nodes may
        still take it for the leader: to follow it on their word is no sign that it is there."""
        self._owner = owner
        self._network = network
        self._random = random
        self._timeout_ms = timeout_ms
        self._wait_ms = wait_ms
        self._changed: dict[ReplicaKey, None] = {}
        self._forgotten: dict[ReplicaKey, None] = {}
        self._sent: dict[ReplicaKey, _Sent] = {}
        self._snapshots: dict[ReplicaKey, asyncio.Task[None]] = {}
        self._bytes_max = FETCH_BYTES_MIN * 4
        """So much that an answer takes no longer than a heartbeat: over a slow link a large one would look like a dead
        leader."""
        self._syncing: list[asyncio.Task[None]] = []
        """What is appended and not on the disk yet; the leader is told when it is."""
        self._session = 0
        self._number = 0
        self._has_work = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"fetch from {leader}")

    def follow(self, hosted: HostedReplica) -> None:
        """Fetch a partition from this leader from now on."""
        if not self.following and self._lost.get(hosted.key) != hosted.replica.epoch:
            self.last_answer_ms = self._owner.now_ms()
        self.following[hosted.key] = hosted
        self._mark(hosted.key)

    def leave(self, hosted: HostedReplica) -> None:
        """No longer."""
        key = hosted.key
        if self.following.pop(key, None) is None:
            return
        self._changed.pop(key, None)
        self._sent.pop(key, None)
        self._forgotten[key] = None
        task = self._snapshots.pop(key, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop."""
        tasks = [self._task, *self._snapshots.values(), *self._syncing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _mark(self, key: ReplicaKey) -> None:
        self._changed[key] = None
        self._has_work.set()

    # --- the loop

    async def _run(self) -> None:
        failures = 0
        while True:
            if not self.following:
                self._has_work.clear()
                await self._has_work.wait()
            began_ms = self._owner.now_ms()
            try:
                answer = await self._fetch()
            except PeerError as error:
                failures += 1
                self._bytes_max = max(self._bytes_max // 2, FETCH_BYTES_MIN)
                await self._failed(error, failures)
                continue
            failures = 0
            self._adapt(answer, self._owner.now_ms() - began_ms)
            self.last_answer_ms = self._owner.now_ms()
            self._lost.clear()
            if answer.error is not ErrorCode.none:
                self._begin_session()
                continue
            try:
                await self._take(answer)
            except Exception:
                _log.exception("fetch_failed", leader=self.leader)
                self._begin_session()
                await asyncio.sleep(0.1)

    def _adapt(self, answer: ReplicaFetched, took_ms: int) -> None:
        """Ask for as much as comes in half a heartbeat."""
        size_bytes = sum(len(buffer) for item in answer.replicas for buffer in item.buffers)
        if size_bytes > FETCH_BYTES_MIN and took_ms > self._wait_ms:
            self._bytes_max = max(self._bytes_max // 2, FETCH_BYTES_MIN)
        elif size_bytes >= self._bytes_max // 2 and took_ms < self._wait_ms // 2:
            self._bytes_max = min(self._bytes_max * 2, FETCH_BYTES_MAX)

    async def _failed(self, error: PeerError, failures: int) -> None:
        self._begin_session()
        if isinstance(error, PeerUnreachable) and error.is_down and failures > 1:
            self.lost()
        await asyncio.sleep(self._random.uniform(0.005, 0.02) * min(failures, 10))

    def lost(self) -> None:
        """The leader's node is gone, or not heard: whoever follows it may look for another leader."""
        now_ms = self._owner.now_ms()
        for hosted in list(self.following.values()):
            self._lost[hosted.key] = hosted.replica.epoch
            hosted.replica.leader_lost(now_ms)
            self._owner.settle(hosted)

    def _begin_session(self) -> None:
        self._number = 0
        self._forgotten.clear()
        self._sent.clear()
        self._changed = dict.fromkeys(self.following)

    async def _fetch(self) -> ReplicaFetched:
        if self._number == 0:
            self._session = self._random.getrandbits(31)
        positions: list[FollowerPosition] = []
        for key in list(self._changed)[:POSITIONS_MAX]:
            del self._changed[key]
            hosted = self.following[key]
            if key in self._snapshots:
                continue
            partition = hosted.partition
            offset = partition.synced_offset
            self._sent[key] = _Sent(hosted.term, offset)
            positions.append(
                FollowerPosition(key, hosted.replica.epoch, offset, partition.last_epoch, partition.log_start_offset)
            )
        forgotten, self._forgotten = self._forgotten, {}
        request = ReplicaFetch(
            self._session,
            self._number,
            0 if self._changed or self._is_syncing else self._wait_ms,
            self._bytes_max,
            positions,
            [key for key in forgotten if key not in self.following],
        )
        self._number += 1
        answer = await self._network.request(
            self.leader, Lane.FETCH, request, (self._wait_ms + self._timeout_ms) / 1000
        )
        if not isinstance(answer, ReplicaFetched):
            return ReplicaFetched(ErrorCode.fetch_session_id_not_found, ())
        return answer

    async def _take(self, answer: ReplicaFetched) -> None:
        appended: list[HostedReplica] = []
        is_full = False
        for item in answer.replicas:
            hosted = self.following.get(item.key)
            sent = self._sent.get(item.key)
            if hosted is None or sent is None or sent.term != hosted.term:
                continue  # it was left, or follows anew, since the request was made
            try:
                if self._take_one(hosted, item):
                    appended.append(hosted)
            except DiskFull:
                is_full = True
                self._changed[item.key] = None
            except PartitionClosed:
                continue
            except PartitionError as error:
                self._refuse(hosted, error)
            self._owner.settle(hosted)
        self._syncing = [task for task in self._syncing if not task.done()]
        self._syncing += [asyncio.create_task(self._synced(hosted), name="sync") for hosted in appended]
        if self._syncing:  # a slow disk is no reason to look dead to the leader, or to think that the leader is
            await asyncio.wait(self._syncing, timeout=self._wait_ms / 1000)
        if is_full:
            await asyncio.sleep(RETRY_DISK_FULL_S)

    @property
    def _is_syncing(self) -> bool:
        return any(not task.done() for task in self._syncing)

    def _refuse(self, hosted: HostedReplica, error: PartitionError) -> None:
        partition = hosted.partition
        _log.error("records_not_taken", topic=partition.topic, partition=partition.index, error=str(error))
        if isinstance(error, StorageFailed) or partition.failure is not None:
            return  # the partition told its owner
        self._changed[hosted.key] = None

    async def _synced(self, hosted: HostedReplica) -> None:
        partition = hosted.partition
        try:
            await partition.synced(partition.log_end_offset)
        except PartitionError:
            return  # the partition told its owner
        if hosted.key in self.following:
            self._mark(hosted.key)

    def _take_one(self, hosted: HostedReplica, item: FetchedReplica) -> bool:
        """Append what came, or do what the leader says; says whether there is something to sync."""
        replica, partition = hosted.replica, hosted.partition
        now_ms = self._owner.now_ms()
        if item.error is not ErrorCode.none:
            replica.on_fetch_error(self.leader, item.error, item.epoch, item.leader, now_ms)
            if item.error is ErrorCode.unknown_topic_or_partition:
                replica.leader_lost(now_ms)
            elif hosted.key in self.following:
                self._changed[hosted.key] = None
            return False
        if item.epoch != replica.epoch:
            if item.leader is not None:
                replica.on_begin_epoch(BeginEpoch(item.leader, item.epoch), now_ms)
            return False
        if item.snapshot_offset >= 0:
            self._begin_snapshot(hosted, item.snapshot_offset)
            return False
        if item.diverging is not None:
            self._truncate(hosted, replica.truncation_point(item.diverging))
            return False
        has_records = bool(item.buffers)
        if has_records:
            sent = self._sent[item.key]
            if partition.log_end_offset != sent.offset:
                self._changed[item.key] = None
                return False
            records = item.buffers[0] if len(item.buffers) == 1 else b"".join(item.buffers)
            partition.append_as_follower(memoryview(records), self._owner.wall_clock_ms())
        replica.on_fetched(self.leader, item.epoch, item.high_watermark)
        self._owner.settle(hosted)
        is_metadata = hosted.key == METADATA_KEY  # whose beginning goes only with a snapshot of this node's own
        if item.log_start_offset > partition.log_start_offset and not is_metadata:
            partition.delete_before(Offset(min(item.log_start_offset, partition.high_watermark)))
            if not has_records:
                self._changed[item.key] = None
        return has_records

    def _truncate(self, hosted: HostedReplica, offset: Offset) -> None:
        partition = hosted.partition
        if offset < partition.high_watermark:
            self._owner.diverged_below_high_watermark(hosted, offset)
            return
        _log.info(
            "log_truncated", topic=partition.topic, partition=partition.index, to=offset, end=partition.log_end_offset
        )
        partition.truncate(offset)
        self._changed[hosted.key] = None

    # --- snapshots

    def _begin_snapshot(self, hosted: HostedReplica, offset: Offset) -> None:
        if hosted.key not in self._snapshots:
            task = asyncio.create_task(self._fetch_snapshot(hosted, offset), name=f"snapshot of {hosted.key}")
            self._snapshots[hosted.key] = task

    async def _fetch_snapshot(self, hosted: HostedReplica, offset: Offset) -> None:
        key, term = hosted.key, hosted.term
        try:
            data = await self._fetch_pieces(hosted, offset)
            snapshot = None if data is None else PartitionSnapshot.decode(data)
            if snapshot is not None and snapshot.offset < hosted.partition.log_end_offset:
                await self._doubt(hosted)
            if snapshot is not None and hosted.term == term:
                _log.info(
                    "snapshot_taken",
                    topic=hosted.partition.topic,
                    partition=hosted.partition.index,
                    offset=snapshot.offset,
                    size_bytes=len(data or b""),
                )
                hosted.partition.reset(snapshot)
                self._owner.settle(hosted)
        except (PeerError, PartitionError, ValueError, OSError) as error:
            _log.warning("snapshot_not_taken", topic=hosted.partition.topic, error=str(error))
            await asyncio.sleep(0.1)
        finally:
            if self._snapshots.get(key) is asyncio.current_task():
                del self._snapshots[key]
                if key in self.following:
                    self._mark(key)

    async def _doubt(self, hosted: HostedReplica) -> None:
        """Records that were acknowledged are about to go: until they are back, this replica must not vote freely."""
        hosted.replica.forget_log()
        self._owner.settle(hosted)
        while True:
            if hosted.replica.unsaved is None:
                return
            await asyncio.sleep(DOUBT_POLL_S)

    async def _fetch_pieces(self, hosted: HostedReplica, offset: Offset) -> bytes | None:
        pieces: list[bytes] = []
        position, size_bytes = 0, 1
        while position < size_bytes:
            request = SnapshotFetch(hosted.key, hosted.replica.epoch, offset, position, SNAPSHOT_PIECE_BYTES)
            answer = await self._network.request(self.leader, Lane.FORWARD, request, self._timeout_ms / 1000 * 5)
            if not isinstance(answer, SnapshotFetched) or answer.error is not ErrorCode.none:
                return None
            if answer.size_bytes > SNAPSHOT_BYTES_MAX or (not answer.piece and position < answer.size_bytes):
                return None
            size_bytes = answer.size_bytes
            pieces.append(bytes(answer.piece))
            position += len(answer.piece)
        return b"".join(pieces)
