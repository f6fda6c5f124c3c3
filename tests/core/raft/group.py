"""A few replicas in memory, whose messages are delivered when a test says so; their logs are lists of epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from tidegate_core.raft.messages import BeginEpoch, VoteState
from tidegate_core.raft.replica import Replica, Role, Timing
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset

TIMING = Timing(election_timeout_ms=1000, stagger_ms=80, retry_ms=250)


class MemoryLog:
    """One record an offset, of which only the epoch is known."""

    def __init__(self, voters: Iterable[int], epochs: Iterable[int] = ()) -> None:
        self.epochs = [LeaderEpoch(epoch) for epoch in epochs]
        self.synced = len(self.epochs)
        self.voter_sets: list[tuple[Offset, tuple[NodeId, ...]]] = [(Offset(-1), tuple(map(NodeId, voters)))]

    @property
    def log_end_offset(self) -> Offset:
        return Offset(len(self.epochs))

    @property
    def synced_offset(self) -> Offset:
        return Offset(self.synced)

    @property
    def last_epoch(self) -> LeaderEpoch:
        return self.epochs[-1] if self.epochs else LeaderEpoch(-1)

    @property
    def voters(self) -> tuple[NodeId, ...]:
        return self.voter_sets[-1][1]

    @property
    def voters_offset(self) -> Offset:
        return self.voter_sets[-1][0]

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        if not self.epochs or epoch > self.epochs[-1] or epoch < 0:
            return LeaderEpoch(-1), Offset(-1)
        known = [known for known in self.epochs if known <= epoch]
        if not known:
            return epoch, Offset(0)
        return known[-1], Offset(len(known))

    def append(self, *epochs: int, synced: bool = True) -> None:
        self.epochs += map(LeaderEpoch, epochs)
        if synced:
            self.synced = len(self.epochs)

    def truncate(self, offset: int) -> None:
        del self.epochs[offset:]
        self.synced = min(self.synced, offset)
        while self.voter_sets[-1][0] >= offset:
            self.voter_sets.pop()

    def set_voters(self, voters: Iterable[int], epoch: int) -> None:
        self.voter_sets.append((self.log_end_offset, tuple(map(NodeId, voters))))
        self.append(epoch)


class Group:
    """Replicas 1 to n, all of which hear each other unless they are in `cut`."""

    def __init__(self, *logs: MemoryLog, seed: int = 1, votes: dict[int, VoteState] | None = None) -> None:
        self.now_ms = 0
        self.cut: set[int] = set()
        self.saves: list[tuple[int, VoteState]] = []
        self.logs = dict(enumerate(logs, 1))
        self.replicas = {
            node: Replica(
                NodeId(node),
                log,
                (votes or {}).get(node, VoteState(LeaderEpoch(0))),
                random=Random(seed + node),
                timing=TIMING,
                high_watermark=Offset(0),
            )
            for node, log in self.logs.items()
        }

    @classmethod
    def of(cls, count: int, seed: int = 1) -> Group:
        return cls(*[MemoryLog(range(1, count + 1)) for _ in range(count)], seed=seed)

    def start(self, *, is_new: bool = False) -> None:
        for replica in self.replicas.values():
            replica.start(self.now_ms, is_new=is_new)

    def save(self, node: int) -> None:
        replica = self.replicas[node]
        while replica.unsaved is not None:
            self.saves.append((node, replica.unsaved))
            replica.saved(replica.unsaved, self.now_ms)

    def deliver(self) -> None:
        """Everything that is to be sent, and the answers to it, until nobody has anything to say."""
        while True:
            sent = False
            for node, replica in self.replicas.items():
                self.save(node)
                for request in replica.take_requests():
                    sent = True
                    if node in self.cut or request.voter in self.cut:
                        continue
                    voter = self.replicas[request.voter]
                    hears = voter.leader is not None and voter.leader not in self.cut
                    response = voter.on_vote_request(request.message, self.now_ms, hears_leader=hears)
                    self.save(request.voter)
                    replica.on_vote_response(NodeId(request.voter), response, self.now_ms)
            if not sent:
                return

    def pass_time(self, ms: int, until: Callable[[], bool] | None = None) -> None:
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms and not (until and until()):
            self.now_ms += 10
            for node, replica in self.replicas.items():
                if node not in self.cut:
                    replica.tick(self.now_ms)
            self.deliver()
            self.announce()

    def announce(self) -> None:
        for node, replica in self.replicas.items():
            if replica.is_leader and node not in self.cut:
                for other, follower in self.replicas.items():
                    if other != node and other not in self.cut:
                        follower.on_begin_epoch(BeginEpoch(NodeId(node), replica.epoch), self.now_ms)

    def elect(self) -> int:
        """Let time pass until there is a leader that is not cut off; returns it."""
        self.pass_time(20_000, lambda: bool(self.leaders()))
        (leader,) = self.leaders()
        self.announce()
        return leader

    def leaders(self) -> list[int]:
        newest = max(replica.epoch for node, replica in self.replicas.items() if node not in self.cut)
        return [
            node
            for node, replica in self.replicas.items()
            if replica.role is Role.LEADER and node not in self.cut and replica.epoch == newest
        ]

    def lose(self, leader: int) -> None:
        """The leader's node is gone, and everyone notices."""
        self.cut.add(leader)
        for node, replica in self.replicas.items():
            if node not in self.cut and replica.leader == leader:
                replica.leader_lost(self.now_ms)

    def fetch(self, follower: int, leader: int) -> None:
        """One fetch, what it brings, and the next one, which tells the leader of it."""
        for _ in range(10):
            before = self.logs[follower].log_end_offset
            self.fetch_once(follower, leader)
            if self.logs[follower].log_end_offset == before:
                return

    def fetch_once(self, follower: int, leader: int) -> None:
        source, log, replica = self.replicas[leader], self.logs[follower], self.replicas[follower]
        verdict = source.on_fetch(NodeId(follower), replica.epoch, log.synced_offset, log.last_epoch, self.now_ms)
        if verdict.diverging is not None:
            log.truncate(replica.truncation_point(verdict.diverging))
            return
        assert verdict.error.value == 0, verdict
        new = self.logs[leader].epochs[log.log_end_offset :]
        for offset, voters in self.logs[leader].voter_sets:
            if offset >= log.log_end_offset:
                log.voter_sets.append((offset, voters))
        log.append(*new)
        high_watermark = source.high_watermark if source.is_settled else Offset(-1)
        replica.on_fetched(NodeId(leader), source.epoch, high_watermark)
