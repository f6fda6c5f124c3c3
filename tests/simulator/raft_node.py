"""A replica with nothing but the Raft core in it, and around it what `tidegate_core.replication` does, in memory."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.simulator.invariants import Batch
from tidegate_core.raft.messages import BeginEpoch, EndEpoch, VoteRequest, VoteResponse, VoteState
from tidegate_core.raft.replica import FetchVerdict, Replica, Role, Timing
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from tests.simulator.raft_group import Group

TIMING: Final = Timing(election_timeout_ms=1000, stagger_ms=80, retry_ms=250)
SWEEP_MS: Final = 100
FETCH_WAIT_MS: Final = 250
FETCH_TIMEOUT_MS: Final = 1250
FETCH_ENTRIES_MAX: Final = 20
UNHEARD_MS: Final = 1500
"""A leader takes a follower for gone after this; by then others may have elected another."""

LEADER_CHANGE: Final = "leader change"


class Entry(NamedTuple):
    epoch: LeaderEpoch
    value: str
    voters: tuple[NodeId, ...] | None = None


class MemoryLog:
    """`entries` up to `synced` are on the disk."""

    def __init__(self, voters: tuple[NodeId, ...]) -> None:
        self.first_voters = voters
        self.entries: list[Entry] = []
        self.synced = 0
        self.generation = 0
        """Grows when it is cut."""

    @property
    def log_end_offset(self) -> Offset:
        return Offset(len(self.entries))

    @property
    def synced_offset(self) -> Offset:
        return Offset(self.synced)

    @property
    def last_epoch(self) -> LeaderEpoch:
        return self.entries[-1].epoch if self.entries else LeaderEpoch(-1)

    def _newest_voters(self) -> tuple[int, tuple[NodeId, ...]]:
        for offset in range(len(self.entries) - 1, -1, -1):
            voters = self.entries[offset].voters
            if voters is not None:
                return offset, voters
        return -1, self.first_voters

    @property
    def voters(self) -> tuple[NodeId, ...]:
        return self._newest_voters()[1]

    @property
    def voters_offset(self) -> Offset:
        return Offset(self._newest_voters()[0])

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        if not self.entries or epoch > self.entries[-1].epoch or epoch < 0:
            return LeaderEpoch(-1), Offset(-1)
        for offset in range(len(self.entries), 0, -1):
            if self.entries[offset - 1].epoch <= epoch:
                return self.entries[offset - 1].epoch, Offset(offset)
        return epoch, Offset(0)

    def truncate(self, offset: int) -> None:
        """Done on the disk when this returns."""
        del self.entries[offset:]
        self.synced = min(self.synced, offset)
        self.generation += 1

    def batches(self, start: int, end: int) -> list[Batch]:
        return [
            Batch(offset, offset + 1, entry.epoch, entry.value)
            for offset, entry in enumerate(self.entries[start:end], start)
        ]


class Fetch(NamedTuple):
    epoch: LeaderEpoch
    offset: Offset
    last_epoch: LeaderEpoch
    number: int


class Fetched(NamedTuple):
    number: int
    epoch: LeaderEpoch
    leader: NodeId | None
    offset: Offset
    """Where `entries` begin."""
    verdict: FetchVerdict
    high_watermark: Offset
    entries: tuple[Entry, ...]


Message = VoteRequest | VoteResponse | BeginEpoch | EndEpoch | Fetch | Fetched


class Node:
    """One replica, and its owner. A new object takes its place in its next life."""

    def __init__(self, group: Group, node_id: NodeId, life: int, log: MemoryLog, vote: VoteState) -> None:
        self.group = group
        self.node_id = node_id
        self.name = f"node {node_id}, life {life}"
        self.log = log
        self.disk_vote = vote
        self.is_alive = True
        self.replica = Replica(
            node_id,
            log,
            vote,
            random=Random(group.random.random()),
            timing=TIMING,
            high_watermark=Offset(0),
        )
        self.standing: tuple[bool, int, int | None] = (False, -1, None)
        self.high_watermark = 0
        self.saving: VoteState | None = None
        self.is_syncing = False
        self.scheduled_ms = -1
        self.led_since_ms = 0
        self.heard_leader_ms = 0
        self.last_fetch_ms: dict[int, int] = {}
        self.fetch_number = 0
        self.fetches_failed = 0
        self.waiting: dict[int, Callable[[], None]] = {}
        """Fetches that are answered when there is news."""

    @property
    def now_ms(self) -> int:
        """Its own clock, which runs at its own speed."""
        return int(self.group.now_ms * self.group.clock_rates[self.node_id])

    def later(self, ms: float, call: Callable[[], None]) -> None:
        """Call in so many milliseconds of true time, if it is alive then."""
        self.group.schedule(ms, lambda: call() if self.is_alive else None)

    def start(self, *, is_new: bool) -> None:
        self.replica.start(self.now_ms, is_new=is_new)
        self.settle()
        self.later(SWEEP_MS, self.sweep)

    # --- as the replica manager

    def settle(self) -> None:
        replica = self.replica
        standing = replica.is_leader, replica.epoch, replica.leader
        if standing != self.standing:
            self.standing = standing
            self.stand()
        self.group.observe(self)
        if replica.unsaved is not None:
            self.save()
        elif replica.has_requests:
            for request in replica.take_requests():
                self.group.send(self, request.voter, request.message)
        if replica.deadline_ms is not None and replica.deadline_ms != self.scheduled_ms:
            self.scheduled_ms = replica.deadline_ms
            self.later(max(replica.deadline_ms - self.now_ms, 0) + 1, self.tick)

    def tick(self) -> None:
        self.scheduled_ms = -1
        self.replica.tick(self.now_ms)
        self.settle()

    def stand(self) -> None:
        """Who leads, and whether it is this node, is another than before."""
        replica = self.replica
        self.group.trace(f"{self.name}: {replica.role.name} in epoch {replica.epoch}, leader {replica.leader}")
        self.fetch_number += 1
        if replica.is_leader:
            self.led_since_ms = self.now_ms
            self.last_fetch_ms.clear()
            self.group.elected(self)
            if replica.epoch_start > 0:
                self.append(Entry(replica.epoch, LEADER_CHANGE))
            self.announce()
        elif replica.role is Role.FOLLOWER:
            self.heard_leader_ms = self.now_ms
            self.fetches_failed = 0
            self.fetch()
        for answer in list(self.waiting.values()):
            answer()

    def is_heard(self, node: NodeId) -> bool:
        at_ms = self.last_fetch_ms.get(node)
        return at_ms is not None and self.now_ms - at_ms <= UNHEARD_MS

    def announce(self) -> None:
        """Tell whoever does not fetch, voter or not, who leads."""
        for other in self.group.nodes:
            if self.replica.is_leader and other != self.node_id and not self.is_heard(other):
                self.group.send(self, other, BeginEpoch(self.node_id, self.replica.epoch))

    def save(self) -> None:
        """The vote is on the disk after a while, and only then anybody hears of it."""
        state = self.replica.unsaved
        if self.saving is not None or state is None:
            return
        self.saving = state

        def saved() -> None:
            self.disk_vote = state
            self.saving = None
            self.replica.saved(state, self.now_ms)
            self.settle()

        self.later(self.group.random.expovariate(1) * self.group.faults.sync_ms, saved)

    def append(self, *entries: Entry) -> None:
        self.log.entries += entries
        self.sync()
        if self.replica.is_leader:
            for answer in list(self.waiting.values()):
                answer()

    def sync(self) -> None:
        if self.is_syncing or self.log.synced == len(self.log.entries):
            return
        self.is_syncing = True
        end, generation = len(self.log.entries), self.log.generation

        def synced() -> None:
            self.is_syncing = False
            if self.log.generation == generation:
                self.log.synced = end
                self.replica.on_synced()
            self.settle()
            self.sync()
            if self.replica.role is Role.FOLLOWER and self.log.synced == len(self.log.entries):
                self.fetch()

        self.later(self.group.random.expovariate(1) * self.group.faults.sync_ms, synced)

    def sweep(self) -> None:
        replica, now_ms = self.replica, self.now_ms
        if replica.role is Role.FOLLOWER and now_ms - self.heard_leader_ms > TIMING.election_timeout_ms:
            replica.leader_lost(now_ms)
        elif replica.is_leader:
            if now_ms - self.led_since_ms > UNHEARD_MS:
                replica.check_quorum(self.is_heard, now_ms)
            self.announce()
        self.settle()
        self.later(SWEEP_MS, self.sweep)

    # --- as the fetcher

    def fetch(self) -> None:
        """Ask the leader for what comes next, and again if no answer comes."""
        leader = self.replica.leader
        if self.replica.role is not Role.FOLLOWER or leader is None:
            return
        self.fetch_number += 1
        number = self.fetch_number
        log = self.log
        last_epoch = log.entries[log.synced - 1].epoch if log.synced else LeaderEpoch(-1)
        self.group.send(self, leader, Fetch(self.replica.epoch, log.synced_offset, last_epoch, number))

        def late() -> None:
            if self.fetch_number == number:
                self.fetch()

        self.later(FETCH_TIMEOUT_MS, late)

    def on_fetched(self, sender: NodeId, answer: Fetched) -> None:
        replica, log = self.replica, self.log
        if answer.number != self.fetch_number or sender != replica.leader:
            return
        self.heard_leader_ms = self.now_ms
        self.fetch_number += 1
        verdict = answer.verdict
        if verdict.error is not ErrorCode.none:
            replica.on_fetch_error(sender, verdict.error, answer.epoch, answer.leader, self.now_ms)
            self.settle()
            self.later(20, self.fetch_again)
            return
        if answer.epoch != replica.epoch:
            if answer.leader is not None:
                replica.on_begin_epoch(BeginEpoch(answer.leader, answer.epoch), self.now_ms)
                self.settle()
            return
        if verdict.diverging is not None:
            self.truncate(replica.truncation_point(verdict.diverging))
            return
        if answer.entries and answer.offset == len(log.entries):
            self.append(*answer.entries)
        replica.on_fetched(sender, answer.epoch, answer.high_watermark)
        self.settle()
        if not self.is_syncing:
            self.fetch()

    def fetch_again(self) -> None:
        if self.replica.role is Role.FOLLOWER:
            self.fetch()

    def truncate(self, offset: int) -> None:
        if offset < self.high_watermark:
            self.group.trace(f"{self.name}: halts rather than cut {offset}, below {self.high_watermark}")
            self.replica.halt()
            self.settle()
            return
        self.group.trace(f"{self.name}: cuts its log at {offset}")
        self.log.truncate(offset)
        self.settle()
        self.fetch()

    # --- messages

    def on_message(self, sender: NodeId, message: Message) -> None:
        replica, now_ms = self.replica, self.now_ms
        match message:
            case VoteRequest():
                self.answer_candidate(sender, message)
            case VoteResponse():
                replica.on_vote_response(sender, message, now_ms)
            case BeginEpoch():
                replica.on_begin_epoch(message, now_ms)
            case EndEpoch():
                replica.on_end_epoch(message, now_ms)
            case Fetch():
                self.on_fetch(sender, message)
            case Fetched():
                self.on_fetched(sender, message)
        self.settle()

    def answer_candidate(self, sender: NodeId, request: VoteRequest) -> None:
        hears_leader = self.replica.leader is not None and (
            self.replica.is_leader or self.now_ms - self.heard_leader_ms <= TIMING.election_timeout_ms
        )
        response = self.replica.on_vote_request(request, self.now_ms, hears_leader=hears_leader)

        def answer() -> None:
            if self.replica.unsaved is not None or self.saving is not None:
                self.later(1, answer)
            else:
                self.group.send(self, sender, response)

        self.settle()
        answer()

    def on_fetch(self, sender: NodeId, fetch: Fetch) -> None:
        replica = self.replica
        self.last_fetch_ms[sender] = self.now_ms
        verdict = replica.on_fetch(sender, fetch.epoch, fetch.offset, fetch.last_epoch, self.now_ms)
        self.settle()
        answered = False

        def answer() -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            if self.waiting.get(sender) is answer:
                del self.waiting[sender]
            told, entries = verdict, self.log.entries[fetch.offset : fetch.offset + FETCH_ENTRIES_MAX]
            if verdict.error is ErrorCode.none and (not replica.is_leader or replica.epoch != fetch.epoch):
                told = FetchVerdict(ErrorCode.not_leader_or_follower)
            if told != FetchVerdict():
                entries = []
            known = replica.high_watermark if replica.is_settled else Offset(-1)
            self.group.send(
                self,
                sender,
                Fetched(fetch.number, replica.epoch, replica.leader, fetch.offset, told, known, tuple(entries)),
            )

        if verdict != FetchVerdict() or fetch.offset < len(self.log.entries):
            answer()
        else:
            self.waiting[sender] = answer
            self.later(FETCH_WAIT_MS, answer)
