"""All replicas of this node at work: joins each one's Raft state with its log, and this node with the others.

Everything happens on the event loop's thread. After whatever may have changed a replica's state comes `settle`, the one
place that carries the state over into the log, the fetchers, the sessions and the directory of leaders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final

import structlog

from tidegate_core.errors import PartitionError, StorageError
from tidegate_core.log.control import leader_change, voters_record
from tidegate_core.log_manager import LogManager
from tidegate_core.partition import Partition
from tidegate_core.raft.messages import BeginEpoch, EndEpoch, ReplicaKey, VoteState
from tidegate_core.raft.replica import Replica, Role, Timing
from tidegate_core.replication.announcer import Announcer
from tidegate_core.replication.deadlines import Deadlines
from tidegate_core.replication.elections import Elections
from tidegate_core.replication.fetcher import LeaderFetcher
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.leaders import LeaderDirectory
from tidegate_core.replication.messages import (
    METADATA_KEY,
    BeginEpochs,
    Done,
    EndEpochs,
    Leadership,
    Leaderships,
    PeerRequest,
    PeerResponse,
    Refused,
    ReplicaFetch,
    SnapshotFetch,
    Votes,
)
from tidegate_core.replication.peers import PeerNetwork
from tidegate_core.replication.sessions import FollowerSessions
from tidegate_core.replication.snapshots import Snapshots
from tidegate_core.replication.throttle import Throttle
from tidegate_core.replication.vote_store import VoteStore
from tidegate_core.replication.watch import Watch
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode

DAMAGE_POLL_S: Final = 0.1
"""Between two looks at whether all that damaged votes put in doubt is saved; once in the life of a disk."""

IN_STEP_MS: Final = 10_000
"""A follower that had everything at least this recently is in step (Kafka's replica.lag.time.max.ms is 30 s)."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationRules:
    """How replication behaves; times in milliseconds."""

    timing: Timing
    fetch_wait_ms: int
    """How long an idle fetch waits at the leader: the heartbeat."""
    request_timeout_ms: int
    recovery_bytes_per_s: int


class ReplicaManager:
    """Owns the replicas. `start` begins with those on the disk; `replication.reconciler` brings them in line."""

    def __init__(
        self,
        node_id: NodeId,
        logs: LogManager,
        votes: VoteStore,
        network: PeerNetwork,
        *,
        rules: ReplicationRules,
        random: Random,
        wall_clock_ms: Callable[[], int],
    ) -> None:
        self.node_id = node_id
        self.leaders = LeaderDirectory()
        self.on_settled: list[Callable[[Partition], None]] = []
        """Called when this node leads a partition and knows what is committed."""
        self.on_unsettled: list[Callable[[Partition], None]] = []
        """Called when that is over."""
        self.on_metadata: Callable[[], None] = lambda: None
        """Called when the high watermark of the metadata moved, or its log began anew."""
        self._logs = logs
        self._votes = votes
        self._network = network
        self._rules = rules
        self._random = random
        self._wall_clock_ms = wall_clock_ms
        self._loop = asyncio.get_running_loop()
        self._hosted: dict[ReplicaKey, HostedReplica] = {}
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._fetchers: dict[NodeId, LeaderFetcher] = {}
        self._told_by: set[NodeId] = set()
        """Nodes that said all they lead, and were not thought gone since."""
        self.sessions = FollowerSessions(
            self._hosted,
            settle=self.settle,
            damaged=self._damaged,
            now_ms=self.now_ms,
            throttle=Throttle(rules.recovery_bytes_per_s),
        )
        self._elections = Elections(
            self._hosted,
            votes,
            network,
            settle=self.settle,
            votes_failed=self._votes_failed,
            begin_heard=self._begin_heard,
            now_ms=self.now_ms,
            timeout_ms=rules.request_timeout_ms,
        )
        self._announcer = Announcer(network, self._leaderships, rules.request_timeout_ms)
        self._deadlines = Deadlines(self._due)
        self._watch = Watch(
            node_id,
            self._hosted,
            self._fetchers,
            self.sessions.last_fetch_ms,
            self._elections,
            settle=self.settle,
            now_ms=self.now_ms,
            timing=rules.timing,
        )
        self._damage: asyncio.Task[None] | None = None
        self._snapshots = Snapshots(self._hosted)

    # --- what others ask

    @property
    def partitions(self) -> Mapping[tuple[str, int], Partition]:
        """Those that the metadata knows, by topic and index."""
        return MappingProxyType(self._partitions)

    def hosted(self, key: ReplicaKey) -> HostedReplica | None:
        """A replica of this node."""
        return self._hosted.get(key)

    def is_settled(self, partition: Partition) -> bool:
        """Whether this node leads the partition and knows what is committed."""
        hosted = self._hosted.get(partition.key)
        return hosted is not None and hosted.replica.is_settled

    @property
    def hosted_replicas(self) -> Iterable[HostedReplica]:
        """All of this node."""
        return self._hosted.values()

    def now_ms(self) -> int:
        """The loop's clock."""
        return int(self._loop.time() * 1000)

    def wall_clock_ms(self) -> int:
        """Unix time."""
        return self._wall_clock_ms()

    # --- life

    def start(self, *, lost: Collection[Partition] = ()) -> None:
        """Host what is on the disk, and begin to look after it; of `lost` the records were there once, and are not."""
        for partition in list(self._logs.partitions.values()):
            is_lost = self._votes.is_damaged or partition in lost
            hosted = self.host(partition, is_new=not is_lost and partition.key == METADATA_KEY, is_lost=is_lost)
            hosted.stands_in = partition.identity.stands_in
        self._watch.start()
        if self._votes.is_damaged:
            self._damage = asyncio.create_task(self._settle_damage(), name="damaged votes")

    async def _settle_damage(self) -> None:
        """Once every replica's doubt is on the disk, the next start need not doubt them all again."""
        while True:
            if all(one.replica.may_vote or one.replica.unsaved is None for one in self._hosted.values()):
                break
            await asyncio.sleep(DAMAGE_POLL_S)
        try:
            await self._votes.settle_damage()
        except StorageError as error:
            _log.warning("damaged_votes_not_settled", error=str(error))

    async def close(self) -> None:
        """Stop at once; `replication.handover` is how to leave politely before."""
        self._deadlines.close()
        await self._watch.close()
        if self._damage is not None:
            self._damage.cancel()
            await asyncio.gather(self._damage, return_exceptions=True)
        await self._announcer.close()
        await self._elections.close()
        for fetcher in self._fetchers.values():
            await fetcher.close()

    def set_nodes(self, nodes: Iterable[NodeId]) -> None:
        """The nodes of the cluster, to be told who leads."""
        self._announcer.set_nodes(node for node in nodes if node != self.node_id)

    def host(self, partition: Partition, *, is_new: bool, is_lost: bool) -> HostedReplica:
        """Let a replica take part. `is_new`: it never did; `is_lost`: it may have, and its records are gone."""
        key = partition.key
        state = self._votes.get(key) or VoteState(LeaderEpoch(0))
        replica = Replica(
            self.node_id,
            partition,
            state,
            random=self._random,
            timing=self._rules.timing,
            high_watermark=partition.high_watermark,
        )
        hosted = self._hosted[key] = HostedReplica(key, partition, replica)
        partition.on_appended = self._on_appended
        partition.on_synced = self._on_synced
        partition.on_failed = self._on_failed
        if self._is_alone(partition):
            replica.lead_alone()
        elif partition.failure is not None:
            self._mark_failed(hosted)
        else:
            if is_lost:
                replica.forget_log()
            replica.start(self.now_ms(), is_new=is_new)
        self.settle(hosted)
        return hosted

    def drop(self, hosted: HostedReplica) -> None:
        """Forget a replica, whose log is or will be closed."""
        hosted.replica.halt()
        self.settle(hosted)
        self.sessions.removed(hosted)
        del self._hosted[hosted.key]
        partition = hosted.partition
        if self._partitions.get((partition.topic, partition.index)) is partition:
            del self._partitions[partition.topic, partition.index]

    def adopt(self, topic: str, index: int, partition: Partition) -> None:
        """The metadata knows a partition by this name."""
        self._partitions[topic, index] = partition

    # --- settling

    def settle(self, hosted: HostedReplica) -> None:
        """Carry a replica's state over to whoever depends on it."""
        replica = hosted.replica
        partition = hosted.partition
        standing = replica.is_leader, replica.epoch, replica.leader
        if standing != hosted.standing:
            self._stand(hosted, standing)
        if replica.high_watermark > partition.high_watermark:
            partition.set_high_watermark(replica.high_watermark)
            if hosted.sessions:
                self.sessions.watermark_moved(hosted)
            if hosted.key == METADATA_KEY:
                self._loop.call_soon(self.on_metadata)
        is_settled = replica.is_settled
        if is_settled != hosted.was_settled:
            hosted.was_settled = is_settled
            for listener in self.on_settled if is_settled else self.on_unsettled:
                listener(partition)
        if replica.unsaved is not None or replica.has_requests:
            self._elections.attend(hosted)
        if replica.deadline_ms is not None:
            self._deadlines.add(replica.deadline_ms, hosted)

    def _stand(self, hosted: HostedReplica, standing: tuple[bool, LeaderEpoch, NodeId | None]) -> None:
        was_leader, old_epoch, old_leader = hosted.standing
        is_leader, epoch, leader = hosted.standing = standing
        hosted.term += 1
        partition, key = hosted.partition, hosted.key
        if old_leader is not None and old_leader != self.node_id:
            self._fetchers[old_leader].leave(hosted)
        if was_leader:
            self.sessions.stopped(hosted)
            if hosted.was_settled:
                hosted.was_settled = False
                for listener in self.on_unsettled:
                    listener(partition)
        if is_leader:
            self._begin_leading(hosted)
            return
        partition.follow(epoch)
        if leader is None:
            self.leaders.lost(key, old_epoch if old_leader is not None else LeaderEpoch(epoch - 1))
            if old_leader is not None:
                self._told_by.discard(old_leader)  # if it leads after all, it has to say so again
            return
        self.leaders.found_again(key, epoch)
        self.leaders.heard(Leadership(key, epoch, leader, partition.voters, (leader,)))
        if hosted.awaits_leader:
            self._loop.call_soon(self._fetch_anew, hosted)
        elif hosted.replica.role is Role.FOLLOWER:
            self._fetcher(leader).follow(hosted)

    def _begin_leading(self, hosted: HostedReplica) -> None:
        partition, replica = hosted.partition, hosted.replica
        hosted.led_since_ms = self.now_ms()
        partition.lead(replica.epoch)
        if not self._is_alone(partition):
            _log.info("leader_elected", topic=partition.topic, partition=partition.index, epoch=replica.epoch)
            if replica.epoch_start > 0:
                record = leader_change(self.node_id, partition.voters)
                try:
                    partition.append_control(record, self._wall_clock_ms())
                except PartitionError as error:  # a full disk, most likely: others may have room
                    _log.warning("epoch_not_begun", topic=partition.topic, partition=partition.index, error=str(error))
                    self._loop.call_soon(self.resign, hosted, None)
                    return
            self._elections.begin_epoch(hosted, partition.voters)
        self.leaders.found_again(hosted.key, replica.epoch)
        self._announce(hosted)

    def _fetcher(self, leader: NodeId) -> LeaderFetcher:
        fetcher = self._fetchers.get(leader)
        if fetcher is None:
            rules = self._rules
            fetcher = self._fetchers[leader] = LeaderFetcher(
                self, self._network, leader, self._random, rules.request_timeout_ms, rules.fetch_wait_ms
            )
        return fetcher

    # --- who leads

    def _announce(self, hosted: HostedReplica) -> None:
        self.leaders.heard(self._leadership(hosted))
        self._announcer.changed(hosted.key)

    def _leadership(self, hosted: HostedReplica) -> Leadership:
        voters = hosted.partition.voters
        in_step = tuple(voter for voter in voters if voter == self.node_id or self.is_in_step(hosted, voter))
        return Leadership(hosted.key, hosted.replica.epoch, self.node_id, voters, in_step)

    def is_in_step(self, hosted: HostedReplica, follower: NodeId) -> bool:
        """Whether a follower of a partition that this node leads has, or just had, everything."""
        progress = hosted.replica.progress.get(follower)
        fetched_ms = self.sessions.last_fetch_ms.get(follower)
        now_ms = self.now_ms()
        if progress is None or fetched_ms is None or now_ms - fetched_ms > IN_STEP_MS:
            return False
        is_whole = progress.end_offset >= hosted.partition.log_end_offset
        return is_whole or (progress.last_caught_up_ms >= 0 and now_ms - progress.last_caught_up_ms < IN_STEP_MS)

    def is_heard(self, node: NodeId) -> bool:
        """Whether a follower's node fetched lately."""
        return self._watch.is_heard(node)

    def announce_changes(self) -> None:
        """Tell the nodes where followers fell out of step or came back."""
        for hosted in self._hosted.values():
            if hosted.replica.is_leader and self.leaders.get(hosted.key) != self._leadership(hosted):
                self._announce(hosted)

    def _leaderships(self, keys: Iterable[ReplicaKey] | None) -> list[Leadership]:
        wanted = self._hosted if keys is None else keys
        return [
            self._leadership(hosted)
            for key in wanted
            if (hosted := self._hosted.get(key)) is not None and hosted.replica.is_leader
        ]

    def _on_leaderships(self, sender: NodeId, message: Leaderships) -> PeerResponse:
        if message.begins:
            self._told_by.add(sender)
        elif sender not in self._told_by:
            return Refused(ErrorCode.fetch_session_id_not_found, f"node {self.node_id} has not heard all of it")
        now_ms = self.now_ms()
        for leadership in message.leaderships:
            self.leaders.heard(leadership)
            if leadership.leader == sender:  # a replica here that is gone, or damaged, would not find it again
                self.leaders.found_again(leadership.key, leadership.epoch)
            hosted = self._hosted.get(leadership.key)
            if hosted is not None:
                hosted.replica.on_begin_epoch(BeginEpoch(leadership.leader, leadership.epoch), now_ms)
                self.settle(hosted)
                if hosted.awaits_leader:
                    self._fetch_anew(hosted)
        return Done()

    def _begin_heard(self, voter: NodeId) -> None:
        """A voter knows by now that this node leads: let it say from where it wants to fetch."""
        self.sessions.wake(voter)

    # --- what partitions tell

    def _on_appended(self, partition: Partition) -> None:
        hosted = self._hosted.get(partition.key)
        if hosted is not None and hosted.sessions:
            self.sessions.appended(hosted)

    def _on_synced(self, partition: Partition) -> None:
        hosted = self._hosted.get(partition.key)
        if hosted is not None:
            hosted.replica.on_synced()
            self.settle(hosted)
            if hosted.stands_in and hosted.replica.may_vote:
                hosted.stands_in = False
                self._logs.discard_damaged(partition.topic, partition.index)

    def _on_failed(self, partition: Partition) -> None:
        hosted = self._hosted.get(partition.key)
        if partition.had_one_voter_only and not partition.is_damaged:
            return  # nobody else could lead: it takes nothing more, and what is committed can be read
        if hosted is not None and hosted.partition is partition and not partition.is_closed:
            self._mark_failed(hosted)
            self.settle(hosted)

    def _mark_failed(self, hosted: HostedReplica) -> None:
        """The disk failed under a replica, or its log is damaged: it has no say until it has a whole log again.

        A replica that is the only one goes on to be read: appends are refused by its partition.
        """
        replica, partition = hosted.replica, hosted.partition
        if self._is_alone(partition):
            return
        ended = replica.resign(self.now_ms())
        if ended is not None:
            self._elections.end_epoch(hosted.key, ended, partition.voters)
        replica.halt()
        hosted.awaits_leader = partition.is_damaged and len(partition.voters) > 1

    def _is_alone(self, partition: Partition) -> bool:
        return partition.had_one_voter_only and partition.voters == (self.node_id,)

    def _damaged(self, hosted: HostedReplica) -> None:
        """Bytes that were on disk are not what was written: found while reading."""
        if hosted.replica.role is not Role.HALTED and len(hosted.partition.voters) > 1:
            self._loop.call_soon(self._repair, hosted)

    def _repair(self, hosted: HostedReplica) -> None:
        if self._hosted.get(hosted.key) is hosted and hosted.replica.role is not Role.HALTED:
            self._mark_failed(hosted)
            hosted.awaits_leader = True
            self.settle(hosted)

    def _fetch_anew(self, hosted: HostedReplica) -> None:
        """A leader is known: set the damaged log aside, and fetch the partition from its first record."""
        partition, key = hosted.partition, hosted.key
        leadership = self.leaders.get(key)
        if self._hosted.get(key) is not hosted or leadership is None or leadership.leader == self.node_id:
            return
        self.drop(hosted)
        try:
            anew = self._logs.set_aside_damaged(partition.topic, partition.index)
        except (StorageError, OSError) as error:
            _log.error("replica_not_repaired", topic=partition.topic, partition=partition.index, error=str(error))
            return
        _log.warning("replica_fetched_anew", topic=partition.topic, partition=partition.index, leader=leadership.leader)
        self._partitions[partition.topic, partition.index] = anew
        hosted = self.host(anew, is_new=False, is_lost=True)
        hosted.stands_in = True
        hosted.replica.on_begin_epoch(BeginEpoch(leadership.leader, leadership.epoch), self.now_ms())
        self.settle(hosted)

    def diverged_below_high_watermark(self, hosted: HostedReplica, offset: Offset) -> None:
        """The leader's log is not what is committed here: one of the two disks lost something."""
        partition = hosted.partition
        _log.error(
            "committed_records_differ",
            topic=partition.topic,
            partition=partition.index,
            leader=hosted.replica.leader,
            diverges_at=offset,
            high_watermark=partition.high_watermark,
        )
        self._mark_failed(hosted)
        self.settle(hosted)

    def _votes_failed(self, error: StorageError) -> None:
        _log.error("votes_not_saved", error=str(error), hint="this node stops taking part; replace its disk")
        for hosted in list(self._hosted.values()):
            if not hosted.partition.had_one_voter_only:
                self._mark_failed(hosted)
                self.settle(hosted)

    # --- time

    def _due(self, hosted: HostedReplica) -> None:
        if self._hosted.get(hosted.key) is hosted:
            hosted.replica.tick(self.now_ms())
            self.settle(hosted)

    # --- from other nodes

    async def handle(self, sender: NodeId, message: PeerRequest) -> PeerResponse:
        """Answer another node."""
        match message:
            case ReplicaFetch():
                return await self.sessions.fetch(sender, message)
            case Votes():
                return await self._elections.on_votes(message, self._watch.hears_leader)
            case BeginEpochs():
                self._elections.on_begin_epochs(message)
            case EndEpochs():
                self._elections.on_end_epochs(message)
            case Leaderships():
                return self._on_leaderships(sender, message)
            case SnapshotFetch():
                return self._snapshots.piece(message)
            case _:
                return Refused(ErrorCode.invalid_request, f"{type(message).__name__} is not for replicas")
        return Done()

    # --- voters and successors

    def set_voters(self, hosted: HostedReplica, voters: tuple[NodeId, ...]) -> None:
        """Append a new voter set, which differs by one voter; only while `replica.can_change_voters`.

        Raises:
            PartitionError: it can't be written.
        """
        assert hosted.replica.can_change_voters
        before = hosted.partition.voters
        hosted.partition.append_control(voters_record(voters), self._wall_clock_ms())
        _log.info("voters_changed", topic=hosted.partition.topic, partition=hosted.partition.index, voters=voters)
        hosted.replica.on_synced()
        self.settle(hosted)
        self._elections.begin_epoch(hosted, set(voters) - set(before))
        self._announce(hosted)

    def resign(self, hosted: HostedReplica, to: NodeId | None) -> None:
        """Lead no more; `to` is to stand first, or, where it is None, the follower that has most."""
        message = hosted.replica.resign(self.now_ms())
        if message is not None:
            if to is not None:
                others = tuple(node for node in message.successors if node != to)
                message = EndEpoch(message.leader, message.epoch, (to, *others))
            self._elections.end_epoch(hosted.key, message, hosted.partition.voters)
        self.settle(hosted)

    def has_everything(self, hosted: HostedReplica, node: NodeId) -> bool:
        """Whether a follower of a partition that this node leads has all of its log on its disk."""
        progress = hosted.replica.progress.get(node)
        return progress is not None and progress.end_offset >= hosted.partition.log_end_offset
