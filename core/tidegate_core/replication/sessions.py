"""The leader's side of replication: one session a follower node, which carries all partitions it follows here.

A request names only the positions that changed, an answer only the partitions that have news, so that a thousand idle
partitions cost nothing (KIP-227). News wakes the request that waits; without any it is answered after its time, which
is what tells both nodes that the other one is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from tidegate_core.errors import OffsetOutOfRange, PartitionError
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.messages import (
    METADATA_KEY,
    NO_OFFSET,
    FetchedReplica,
    FollowerPosition,
    ReplicaFetch,
    ReplicaFetched,
)
from tidegate_core.replication.throttle import Throttle
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode

WAIT_MS_MAX: Final = 1000
"""The longest a follower may let its request wait."""

ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of one answer, one batch excepted: large enough that the round trip and the sync after it are not the cost, and a
follower holds one at a time."""

PARTITION_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one partition in an answer, so that several that have much share it."""

IN_STEP_BYTES: Final = 16 * 1024 * 1024
"""A follower that lacks more than this recovers: that is throttled, what keeps step is not."""

_log = structlog.get_logger()


class _Followed:
    """One partition in a session."""

    __slots__ = ("epoch", "hosted", "is_first", "last_epoch", "log_start_offset", "offset", "told_hw", "told_start")

    def __init__(self, hosted: HostedReplica) -> None:
        self.hosted = hosted
        self.is_first = True
        self.offset = Offset(0)
        self.epoch = LeaderEpoch(-1)
        self.last_epoch = LeaderEpoch(-1)
        self.log_start_offset = Offset(0)
        self.told_hw = NO_OFFSET
        self.told_start = NO_OFFSET


class FollowerSession:
    """What one follower node was told so far."""

    def __init__(self, follower: NodeId, session: int) -> None:
        self.follower = follower
        self.session = session
        self.number = -1
        self.followed: dict[ReplicaKey, _Followed] = {}
        self.news: dict[ReplicaKey, None] = {}
        """Partitions that have records, or a new state, for the follower."""
        self.watermarks: dict[ReplicaKey, None] = {}
        """Partitions of which the follower may learn with the next answer, which is not hastened for them."""
        self._waiting: asyncio.Future[None] | None = None

    def has_news(self, key: ReplicaKey) -> None:
        """Answer the request that waits."""
        if key in self.followed:
            self.news[key] = None
            self.wake()

    def wake(self) -> None:
        """Answer the request that waits, if there is one."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self, wait_ms: int) -> None:
        """Return when there is news, or after `wait_ms`."""
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        timer = loop.call_later(wait_ms / 1000, self.wake)
        try:
            await waiting
        finally:
            timer.cancel()
            if self._waiting is waiting:
                self._waiting = None

    def end(self) -> None:
        """Another session takes its place."""
        for followed in self.followed.values():
            followed.hosted.sessions.remove(self)
        self.followed.clear()
        self.news.clear()
        self.wake()


class FollowerSessions:
    """The sessions of all follower nodes. `settle` is called for each replica whose state may have changed."""

    def __init__(
        self,
        hosted: Mapping[ReplicaKey, HostedReplica],
        *,
        settle: Callable[[HostedReplica], None],
        damaged: Callable[[HostedReplica], None],
        now_ms: Callable[[], int],
        throttle: Throttle,
    ) -> None:
        self._hosted = hosted
        self._settle = settle
        self._damaged = damaged
        self._now_ms = now_ms
        self._throttle = throttle
        self._sessions: dict[NodeId, FollowerSession] = {}
        self.last_fetch_ms: dict[NodeId, int] = {}
        """When each node fetched last: whether it is heard."""

    async def fetch(self, sender: NodeId, request: ReplicaFetch) -> ReplicaFetched:
        """Answer a follower, with news or after its time."""
        self.last_fetch_ms[sender] = self._now_ms()
        session = self._session(sender, request)
        if session is None:
            return ReplicaFetched(ErrorCode.fetch_session_id_not_found, ())
        answers = self._take_positions(session, request)
        if not answers:
            answers = self._gather(session, request.bytes_max)
        if not answers:
            await session.wait(min(request.wait_ms, WAIT_MS_MAX))
            answers = self._gather(session, request.bytes_max)
            answers += self._watermarks(session)
        if self._sessions.get(sender) is not session:
            return ReplicaFetched(ErrorCode.fetch_session_id_not_found, ())
        return ReplicaFetched(ErrorCode.none, answers)

    def _session(self, sender: NodeId, request: ReplicaFetch) -> FollowerSession | None:
        session = self._sessions.get(sender)
        if request.number == 0:
            if session is not None and session.session == request.session:
                return None  # it came twice
            if session is not None:
                session.end()
            session = self._sessions[sender] = FollowerSession(sender, request.session)
        elif session is None or session.session != request.session or session.number + 1 != request.number:
            return None
        session.number = request.number
        return session

    # --- what the follower says

    def _take_positions(self, session: FollowerSession, request: ReplicaFetch) -> list[FetchedReplica]:
        """Note where the follower stands; returns what it has to be told before anything else."""
        answers: list[FetchedReplica] = []
        for key in request.forgotten:
            followed = session.followed.pop(key, None)
            if followed is not None:
                followed.hosted.sessions.remove(session)
            session.news.pop(key, None)
        now_ms = self._now_ms()
        for position in request.positions:
            answer = self._take_position(session, position, now_ms)
            if answer is not None:
                answers.append(answer)
        return answers

    def _take_position(
        self, session: FollowerSession, position: FollowerPosition, now_ms: int
    ) -> FetchedReplica | None:
        key = position.key
        hosted = self._hosted.get(key)
        if hosted is None:
            unknown = ErrorCode.unknown_topic_or_partition
            return FetchedReplica(key, unknown, LeaderEpoch(-1), None, NO_OFFSET, NO_OFFSET)
        replica, partition = hosted.replica, hosted.partition
        followed = session.followed.get(key)
        if followed is None or followed.hosted is not hosted:
            if followed is not None:
                followed.hosted.sessions.remove(session)
            followed = session.followed[key] = _Followed(hosted)
            hosted.sessions.append(session)
        is_first = followed.is_first or followed.epoch != position.epoch
        followed.epoch, followed.offset = position.epoch, position.offset
        followed.last_epoch, followed.log_start_offset = position.last_epoch, position.log_start_offset
        if replica.is_leader and position.epoch == replica.epoch and self._is_too_old(hosted, position, is_first):
            return self._answer(followed, snapshot_offset=partition.log_start_offset)
        verdict = replica.on_fetch(session.follower, position.epoch, position.offset, position.last_epoch, now_ms)
        self._settle(hosted)
        if verdict.error is not ErrorCode.none:
            session.news.pop(key, None)
            return self._answer(followed, error=verdict.error)
        if verdict.diverging is not None:
            return self._answer(followed, diverging=verdict.diverging)
        followed.is_first = False
        if is_first or partition.log_end_offset > position.offset:
            session.news[key] = None
        return None

    @staticmethod
    def _is_too_old(hosted: HostedReplica, position: FollowerPosition, is_first: bool) -> bool:
        """Whether the follower lacks what the leader has no more: records, or word that some were deleted."""
        partition = hosted.partition
        start = partition.log_start_offset
        return position.offset < start or (is_first and start < position.offset <= partition.tombstones_removed_to)

    # --- what it is told

    def _gather(self, session: FollowerSession, bytes_max: int) -> list[FetchedReplica]:
        """News of as many partitions as there is room for, those that keep step first."""
        answers: list[FetchedReplica] = []
        room = min(bytes_max, ANSWER_BYTES_MAX)
        if METADATA_KEY in session.news:
            room -= self._gather_one(session, METADATA_KEY, room, answers)
        behind: list[ReplicaKey] = []
        for key in list(session.news):
            followed = session.followed[key]
            progress = followed.hosted.replica.progress.get(session.follower)
            if room <= 0:
                break
            if progress is not None and self._recovers(followed):
                behind.append(key)
            else:
                room -= self._gather_one(session, key, room, answers)
        for key in behind:
            allowed = min(room, self._throttle.allowed(self._now_ms()))
            if allowed <= 0:
                if not answers:
                    asyncio.get_running_loop().call_later(self._throttle.pause_s, session.wake)
                break
            taken = self._gather_one(session, key, allowed, answers)
            self._throttle.take(taken)
            room -= taken
        return answers

    @staticmethod
    def _recovers(followed: _Followed) -> bool:
        """Whether the follower lacks so much that catching up has to be slowed down."""
        lacking_bytes = 0
        for segment in reversed(followed.hosted.partition.log.segments):
            begins_after = segment.base_offset >= followed.offset
            records = max(segment.end_offset - segment.base_offset, 1)
            share = 1.0 if begins_after else (segment.end_offset - followed.offset) / records
            lacking_bytes += int(segment.size_bytes * share)
            if lacking_bytes > IN_STEP_BYTES or not begins_after:
                break
        return lacking_bytes > IN_STEP_BYTES

    def _gather_one(self, session: FollowerSession, key: ReplicaKey, room: int, answers: list[FetchedReplica]) -> int:
        """Append one partition's news; returns its bytes."""
        session.news.pop(key, None)
        followed = session.followed[key]
        hosted = followed.hosted
        partition = hosted.partition
        if not hosted.replica.is_leader or followed.epoch != hosted.replica.epoch:
            answers.append(self._answer(followed, error=ErrorCode.not_leader_or_follower))
            return 0
        buffers: tuple[bytes, ...] = ()
        if followed.offset < partition.log_end_offset:
            try:
                buffers = partition.read_for_replica(followed.offset, min(room, PARTITION_BYTES_MAX))
            except OffsetOutOfRange:  # the log's start was raised meanwhile
                answers.append(self._answer(followed, snapshot_offset=partition.log_start_offset))
                return 0
            except PartitionError as error:
                _log.error("replica_not_read", topic=partition.topic, partition=partition.index, error=str(error))
                self._damaged(hosted)
                answers.append(self._answer(followed, error=ErrorCode.kafka_storage_error))
                return 0
        answers.append(self._answer(followed, buffers=buffers))
        return sum(map(len, buffers))

    def _watermarks(self, session: FollowerSession) -> list[FetchedReplica]:
        """What moved without records to send: only told when the request's time is over."""
        keys, session.watermarks = session.watermarks, {}
        answers: list[FetchedReplica] = []
        for key in keys:
            followed = session.followed.get(key)
            if followed is None or not followed.hosted.replica.is_leader:
                continue
            partition = followed.hosted.partition
            if (followed.told_hw, followed.told_start) != (partition.high_watermark, partition.log_start_offset):
                answers.append(self._answer(followed))
        return answers

    @staticmethod
    def _answer(
        followed: _Followed,
        *,
        error: ErrorCode = ErrorCode.none,
        diverging: tuple[LeaderEpoch, Offset] | None = None,
        snapshot_offset: Offset = NO_OFFSET,
        buffers: tuple[bytes, ...] = (),
    ) -> FetchedReplica:
        hosted = followed.hosted
        replica = hosted.replica
        high_watermark = replica.high_watermark if replica.is_settled else NO_OFFSET
        if error is ErrorCode.none:
            followed.told_hw, followed.told_start = high_watermark, hosted.partition.log_start_offset
        return FetchedReplica(
            hosted.key,
            error,
            replica.epoch,
            replica.leader,
            high_watermark,
            hosted.partition.log_start_offset,
            diverging,
            snapshot_offset,
            buffers,
        )

    # --- what happens to a partition

    @staticmethod
    def appended(hosted: HostedReplica) -> None:
        """The leader wrote records: hand them on."""
        key = hosted.key
        for session in hosted.sessions:
            session.has_news(key)

    @staticmethod
    def watermark_moved(hosted: HostedReplica) -> None:
        """Followers learn of it with the next answer; for metadata at once, since every node waits to apply it."""
        key = hosted.key
        for session in hosted.sessions:
            if key == METADATA_KEY:
                session.has_news(key)
            else:
                session.watermarks[key] = None

    @staticmethod
    def stopped(hosted: HostedReplica) -> None:
        """This node leads the partition no more: tell the followers."""
        key = hosted.key
        for session in hosted.sessions:
            session.has_news(key)

    def wake(self, follower: NodeId) -> None:
        """Answer the follower's request that waits, so that it may make another one."""
        session = self._sessions.get(follower)
        if session is not None:
            session.wake()

    def removed(self, hosted: HostedReplica) -> None:
        """The replica is gone from this node."""
        for session in list(hosted.sessions):
            session.followed.pop(hosted.key, None)
            session.news.pop(hosted.key, None)
        hosted.sessions.clear()
