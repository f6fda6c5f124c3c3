"""One replica of one partition: who leads, who may vote, and what is committed. It does no I/O and has no clock.

The owner feeds it messages and time, and after each call
- saves `unsaved`, if that is set, and then calls `saved`; nothing that the call returned or left in `requests` may go
  out before;
- sends `take_requests()`;
- looks at `role`, `epoch` and `leader`, and brings the log and the fetches in line with them;
- gives the log `high_watermark`;
- calls `tick` at `deadline_ms`, if that is set.

A follower of a leader that is heard has no timer of its own: whether a node is heard is one question for all partitions
that it leads, and the owner calls `leader_lost` where the answer is no. Likewise a leader resigns when the owner says
that too few voters are heard (`check_quorum`).

Source: KIP-595 (pull-based Raft), KIP-996 (pre-vote), KIP-853 (changing voters), Ongaro's thesis (single-server
changes, leader stickiness).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from tidegate_core.raft.messages import BeginEpoch, EndEpoch, VoteRequest, VoteResponse, VoteState
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode

SLOW_DISK_FACTOR: Final = 3
"""So much longer than its own vote took to be saved does a candidate wait for those of others."""

NO_EPOCH: Final = LeaderEpoch(-1)


class Log(Protocol):
    """What a replica has to know of its log; all of it may change between two calls."""

    @property
    def log_end_offset(self) -> Offset:
        """One after the last record, synced or not."""

    @property
    def synced_offset(self) -> Offset:
        """One after the last record that is on disk."""

    @property
    def last_epoch(self) -> LeaderEpoch:
        """Of the last batch; -1 if there never was one."""

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """The newest set in the log, committed or not; the first is the preferred leader."""

    @property
    def voters_offset(self) -> Offset:
        """Where that set stands in the log; -1 for the one that the partition was made with."""

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch`, and where it ends; (-1, -1) if none is known or `epoch` is newer."""


class Randomness(Protocol):
    """`random.Random`, or something more predictable."""

    def randrange(self, stop: int, /) -> int:
        """A number from 0 on, below `stop`."""


class Role(Enum):
    """What a replica does just now."""

    UNATTACHED = auto()
    """Knows no leader."""
    FOLLOWER = auto()
    PROSPECTIVE = auto()
    """Asks whether it would get votes (KIP-996)."""
    CANDIDATE = auto()
    LEADER = auto()
    HALTED = auto()
    """Its disk failed: it neither leads nor votes until the process starts again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things take, in milliseconds."""

    election_timeout_ms: int = 1000
    """How long a replica that knows no leader waits to hear of one, before it stands."""
    stagger_ms: int = 160
    """Between two voters that miss the same leader: long enough for the first to win hundreds of elections at once,
    with two syncs, before the second stands, so that they do not split the votes."""
    retry_ms: int = 250
    """Before asking for votes again; a random time of up to the same is added."""


@dataclass(slots=True)
class Progress:
    """What a leader knows of one follower in its epoch."""

    end_offset: Offset = Offset(-1)  # noqa: RUF009  # a NewType is an int
    """On the follower's disk; -1 until it has fetched."""
    last_fetch_ms: int = -1
    last_caught_up_ms: int = -1
    """When it last had everything that the leader had at its fetch before."""
    leader_end_at_fetch: Offset = Offset(-1)  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class FetchVerdict:
    """What a leader thinks of a follower's position."""

    error: ErrorCode = ErrorCode.none
    diverging: tuple[LeaderEpoch, Offset] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """To be sent to `voter`."""

    voter: NodeId
    message: VoteRequest


def majority_offset(offsets: Sequence[int]) -> int:
    """What a majority of the voters with these end offsets has."""
    return sorted(offsets)[(len(offsets) - 1) // 2]


class Replica:
    """Owned by whoever owns its log."""

    __slots__ = (
        "_granted",
        "_log",
        "_random",
        "_refused",
        "_requests",
        "_stood_ms",
        "_timing",
        "deadline_ms",
        "epoch",
        "epoch_start",
        "high_watermark",
        "leader",
        "leader_high_watermark",
        "may_vote",
        "node_id",
        "progress",
        "role",
        "unsaved",
        "voted_for",
    )

    def __init__(
        self,
        node_id: NodeId,
        log: Log,
        vote: VoteState,
        *,
        random: Randomness,
        timing: Timing,
        high_watermark: Offset,
    ) -> None:
        self.node_id = node_id
        self._log = log
        self._random = random
        self._timing = timing
        self.epoch = LeaderEpoch(max(vote.epoch, log.last_epoch, 0))
        self.voted_for = vote.voted_for if vote.epoch == self.epoch else None
        self.may_vote = vote.may_vote
        self.role = Role.UNATTACHED
        self.leader: NodeId | None = None
        self.deadline_ms: int | None = None
        self.unsaved: VoteState | None = None
        self.high_watermark = high_watermark
        """The highest that is known; never falls."""
        self.leader_high_watermark = Offset(-1)
        """What the leader said last, which may be beyond this log's end; -1 while it has committed nothing."""
        self.epoch_start = Offset(-1)
        """Where the log ended when this replica was elected."""
        self.progress: dict[NodeId, Progress] = {}
        self._granted: dict[NodeId, bool] = {}
        """Who granted a vote, and whether without condition."""
        self._refused: set[NodeId] = set()
        self._requests: list[Request] = []
        self._stood_ms = 0
        """When it began to stand, if it does."""

    # --- what the owner asks

    @property
    def is_leader(self) -> bool:
        """Whether it leads in `epoch`."""
        return self.role is Role.LEADER

    @property
    def is_voter(self) -> bool:
        """Whether it belongs to the newest voters in its log."""
        return self.node_id in self._log.voters

    @property
    def is_settled(self) -> bool:
        """Whether it leads, and knows what is committed: a record of its own epoch is, or there never was a record."""
        return self.role is Role.LEADER and (self.high_watermark > self.epoch_start or self.epoch_start == 0)

    @property
    def can_change_voters(self) -> bool:
        """Whether the next change may be appended: the one before, and a record of this epoch, are committed."""
        return self.is_settled and self._log.voters_offset < self.high_watermark

    @property
    def has_requests(self) -> bool:
        """Whether `take_requests` has any."""
        return bool(self._requests)

    def take_requests(self) -> list[Request]:
        """What is to be sent, once `unsaved` is on disk."""
        requests, self._requests = self._requests, []
        return requests

    def vote_state(self) -> VoteState:
        """What must be known after a restart."""
        return VoteState(self.epoch, self.voted_for, self.may_vote)

    # --- time

    def start(self, now_ms: int, *, is_new: bool) -> None:
        """Begin; a partition that was just made has a preferred leader, which stands at once."""
        voters = self._log.voters
        if voters == (self.node_id,):
            self._stand(now_ms)
        elif is_new and self.is_voter and voters[0] == self.node_id:
            self._ask(now_ms)
        else:
            self._wait_for_leader(now_ms)

    def lead_alone(self) -> None:
        """Go on leading in the same epoch: nobody else ever was a voter, so nobody else can have led in it."""
        assert self._log.voters == (self.node_id,)
        self.role = Role.LEADER
        self.leader = self.node_id
        self.epoch_start = Offset(0)
        self._move_high_watermark()

    def tick(self, now_ms: int) -> None:
        """`deadline_ms` has come."""
        if self.deadline_ms is None or now_ms < self.deadline_ms:
            return
        self.deadline_ms = None
        if self.role in (Role.LEADER, Role.HALTED, Role.FOLLOWER) or not self.is_voter:
            return
        if self._log.voters == (self.node_id,):
            self._stand(now_ms)
        else:
            self._ask(now_ms)

    def leader_lost(self, now_ms: int) -> None:
        """The leader's node is not heard any more, or says that it does not lead."""
        if self.role is not Role.FOLLOWER:
            return
        lost = self.leader
        self._detach()
        if self.is_voter:
            self.deadline_ms = now_ms + self._turn(lost)

    def check_quorum(self, is_heard: Callable[[NodeId], bool], now_ms: int) -> None:
        """Resign if too few voters are heard: nothing could be committed, and others may have elected another."""
        if self.role is not Role.LEADER:
            return
        voters = self._log.voters
        heard = sum(1 for voter in voters if voter == self.node_id or is_heard(voter))
        if heard <= len(voters) // 2:
            self.resign(now_ms)

    def resign(self, now_ms: int) -> EndEpoch | None:
        """Lead no more; returns what to tell the voters, those that have most first. None if it did not lead."""
        if self.role is not Role.LEADER:
            return None
        others = [voter for voter in self._log.voters if voter != self.node_id]
        others.sort(key=lambda voter: -self._progress_of(voter).end_offset)
        self._detach()
        self._wait_for_leader(now_ms)
        return EndEpoch(self.node_id, self.epoch, tuple(others))

    def halt(self) -> None:
        """The disk failed: what it holds is not known, so this replica has no say any more."""
        self._detach()
        self.role = Role.HALTED
        self.deadline_ms = None
        self.unsaved = None
        self._requests.clear()

    def forget_log(self) -> None:
        """The log was set aside as damaged, or found missing: records that were acknowledged may be gone."""
        if self.may_vote:
            self.may_vote = False
            self.unsaved = self.vote_state()

    def _wait_for_leader(self, now_ms: int) -> None:
        if self.is_voter:
            self.deadline_ms = now_ms + self._timing.election_timeout_ms + self._turn(None)

    def _turn(self, lost: NodeId | None) -> int:
        """Voters take turns, in the order of their set, so that they do not split the votes."""
        voters = [voter for voter in self._log.voters if voter != lost]
        rank = voters.index(self.node_id) if self.node_id in voters else len(voters)
        stagger_ms = self._timing.stagger_ms
        return rank * stagger_ms + self._random.randrange(stagger_ms // 4 + 1)

    def _retry_at(self, now_ms: int) -> int:
        return now_ms + self._timing.retry_ms + self._random.randrange(self._timing.retry_ms)

    # --- standing for election

    def _ask(self, now_ms: int) -> None:
        """Ask whether votes would be given."""
        self._detach()
        self.role = Role.PROSPECTIVE
        self.deadline_ms = self._retry_at(now_ms)
        self._granted = {self.node_id: self.may_vote}
        self._send_requests(is_pre_vote=True)

    def _stand(self, now_ms: int) -> None:
        """Begin an epoch, and vote for oneself; others are asked once that is saved."""
        self._detach()
        self.role = Role.CANDIDATE
        self.epoch = LeaderEpoch(self.epoch + 1)
        self.voted_for = self.node_id
        self._stood_ms = now_ms
        self.unsaved = self.vote_state()

    def saved(self, state: VoteState, now_ms: int) -> None:
        """`state`, which was `unsaved`, is on disk."""
        if self.unsaved is state:
            self.unsaved = None
        if self.role is Role.CANDIDATE and state.epoch == self.epoch and not self._granted:
            self._granted = {self.node_id: self.may_vote}
            self._send_requests(is_pre_vote=False)
            # Voters have to save too: if this disk is slow, theirs may be.
            self.deadline_ms = self._retry_at(now_ms) + SLOW_DISK_FACTOR * (now_ms - self._stood_ms)
            self._count(now_ms)

    def _send_requests(self, *, is_pre_vote: bool) -> None:
        request = VoteRequest(
            candidate=self.node_id,
            epoch=LeaderEpoch(self.epoch + is_pre_vote),
            last_epoch=self._log.last_epoch,
            end_offset=self._log.log_end_offset,
            is_pre_vote=is_pre_vote,
        )
        self._requests += [Request(voter, request) for voter in self._log.voters if voter != self.node_id]

    def on_vote_response(self, voter: NodeId, response: VoteResponse, now_ms: int) -> None:
        """A voter answered."""
        if self._observe(response.epoch, response.leader, now_ms):
            return
        asks = Role.PROSPECTIVE if response.is_pre_vote else Role.CANDIDATE
        if self.role is not asks or response.epoch != self.epoch or not self._granted:
            return
        if response.is_granted:
            self._granted[voter] = not response.is_conditional
            self._count(now_ms)
        else:
            self._refused.add(voter)

    def on_unknown_here(self, now_ms: int) -> None:
        """A voter has no such replica yet: the partition was just made, so ask again soon."""
        if self.role is Role.PROSPECTIVE and self.deadline_ms is not None:
            self.deadline_ms = min(self.deadline_ms, now_ms + self._timing.stagger_ms // 2)

    def _count(self, now_ms: int) -> None:
        voters = self._log.voters
        granted = [voter for voter in voters if voter in self._granted]
        unconditional = [voter for voter in granted if self._granted[voter]]
        if len(unconditional) <= len(voters) // 2 and len(granted) < len(voters):
            return
        if self.role is Role.PROSPECTIVE:
            self._stand(now_ms)
        else:
            self._lead(now_ms)

    def _lead(self, now_ms: int) -> None:
        self.role = Role.LEADER
        self.leader = self.node_id
        self.deadline_ms = None
        self.epoch_start = self._log.log_end_offset
        self.leader_high_watermark = Offset(-1)
        self.progress = {}
        for voter in self._log.voters:
            if voter != self.node_id:
                self._progress_of(voter).last_fetch_ms = now_ms
        self._move_high_watermark()

    # --- voting

    def on_vote_request(self, request: VoteRequest, now_ms: int, *, hears_leader: bool) -> VoteResponse:
        """Answer a candidate; `hears_leader` says whether the node of this replica's leader is heard."""
        if self.role is Role.HALTED:
            return VoteResponse(self.epoch, None, is_granted=False, is_pre_vote=request.is_pre_vote)
        if request.is_pre_vote:
            # The candidate is in the epoch before that (KIP-996). Whoever missed it moves on, and be it the leader: it
            # would never be fetched from by the candidate, nor its answer be counted there.
            self._observe(LeaderEpoch(request.epoch - 1), None, now_ms)
            is_led = self.role is Role.LEADER or (self.role is Role.FOLLOWER and hears_leader)
            is_granted = request.epoch > self.epoch and not is_led and self._is_up_to_date(request)
        else:
            if request.epoch > self.epoch:
                self._observe(request.epoch, None, now_ms)
            is_free = self.voted_for in (None, request.candidate) and self.leader is None
            is_granted = request.epoch == self.epoch and is_free and self._is_up_to_date(request)
            if is_granted and self.voted_for is None:
                self._detach()
                self.voted_for = request.candidate
                self.unsaved = self.vote_state()
                self._wait_for_leader(now_ms)
        return VoteResponse(
            self.epoch,
            self.leader,
            is_granted=is_granted,
            is_conditional=is_granted and not self.may_vote,
            is_pre_vote=request.is_pre_vote,
        )

    def _is_up_to_date(self, request: VoteRequest) -> bool:
        return (request.last_epoch, request.end_offset) >= (self._log.last_epoch, self._log.log_end_offset)

    # --- epochs and leaders

    def on_begin_epoch(self, message: BeginEpoch, now_ms: int) -> None:
        """A leader, or somebody who knows it, says who leads."""
        self._observe(message.epoch, message.leader, now_ms)

    def on_end_epoch(self, message: EndEpoch, now_ms: int) -> None:
        """The leader steps down: the first of its successors stands at once, without asking first."""
        if self._observe(message.epoch, None, now_ms) is False and message.epoch < self.epoch:
            return
        if self.role is Role.HALTED or self.leader not in (None, message.leader) or self.role is Role.CANDIDATE:
            return
        self._detach()
        if not self.is_voter:
            return
        if message.successors[:1] == (self.node_id,):
            self._stand(now_ms)
        else:
            self.deadline_ms = now_ms + self._timing.stagger_ms + self._turn(message.leader)

    def _observe(self, epoch: LeaderEpoch, leader: NodeId | None, now_ms: int) -> bool:
        """Somebody is in `epoch`, led by `leader` if that is known; says whether this replica's own state changed."""
        if self.role is Role.HALTED or epoch < self.epoch:
            return False
        if epoch > self.epoch:
            self._detach()
            self.epoch = epoch
            self.voted_for = None
            self._wait_for_leader(now_ms)
            if leader is None or leader == self.node_id:
                return True
        elif leader is None or leader == self.node_id or self.leader is not None:
            return False
        self._detach()
        self.role = Role.FOLLOWER
        self.leader = leader
        self.deadline_ms = None
        self.leader_high_watermark = Offset(-1)
        return True

    def _detach(self) -> None:
        self.role = Role.UNATTACHED
        self.leader = None
        self.deadline_ms = None
        self._granted = {}
        self._refused = set()
        self._requests = [request for request in self._requests if request.message.epoch > self.epoch]

    # --- replicating: the leader's side

    def on_fetch(
        self, follower: NodeId, epoch: LeaderEpoch, offset: Offset, last_epoch: LeaderEpoch, now_ms: int
    ) -> FetchVerdict:
        """A follower has everything before `offset`, the last of it from `last_epoch`, on its disk."""
        if epoch < self.epoch:
            return FetchVerdict(ErrorCode.fenced_leader_epoch)
        if epoch > self.epoch:
            self._observe(epoch, None, now_ms)
            return FetchVerdict(ErrorCode.unknown_leader_epoch)
        if self.role is not Role.LEADER:
            return FetchVerdict(ErrorCode.not_leader_or_follower)
        progress = self._progress_of(follower)
        progress.last_fetch_ms = now_ms
        diverging = self._diverging(offset, last_epoch)
        if diverging is not None:
            progress.end_offset = Offset(-1)
            return FetchVerdict(diverging=diverging)
        if offset >= progress.leader_end_at_fetch:
            progress.last_caught_up_ms = now_ms
        progress.leader_end_at_fetch = self._log.log_end_offset
        if progress.end_offset != offset:
            progress.end_offset = offset
            self._move_high_watermark()
        return FetchVerdict()

    def _diverging(self, offset: Offset, last_epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset] | None:
        if last_epoch == NO_EPOCH:
            return None
        log = self._log
        epoch, end_offset = log.end_offset_for_epoch(last_epoch)
        if epoch == NO_EPOCH:
            return log.last_epoch, log.log_end_offset
        return None if epoch == last_epoch and end_offset >= offset else (epoch, end_offset)

    def on_synced(self) -> None:
        """The log's `synced_offset` moved."""
        if self.role is Role.LEADER:
            self._move_high_watermark()
        else:
            self._follow_high_watermark()

    def _move_high_watermark(self) -> None:
        """Only a record of this epoch commits, and with it everything before (Raft 5.4.2)."""
        log = self._log
        ends = [
            log.synced_offset if voter == self.node_id else self._progress_of(voter).end_offset for voter in log.voters
        ]
        offset = Offset(majority_offset(ends))
        if offset > self.high_watermark and (offset > self.epoch_start or self.epoch_start == 0):
            self.high_watermark = offset
        if self.is_settled and not self.may_vote:
            self.may_vote = True
            self.unsaved = self.vote_state()

    def _progress_of(self, follower: NodeId) -> Progress:
        return self.progress.setdefault(follower, Progress())

    # --- replicating: the follower's side

    def truncation_point(self, diverging: tuple[LeaderEpoch, Offset]) -> Offset:
        """Where to cut this log, so that what is left may be a part of the leader's; then fetch again."""
        epoch, leader_end = diverging
        own_epoch, own_end = self._log.end_offset_for_epoch(epoch)
        if own_epoch == NO_EPOCH:
            own_end = self._log.log_end_offset if epoch >= self._log.last_epoch else Offset(0)
        return Offset(min(leader_end, own_end))

    def on_fetched(self, leader: NodeId, epoch: LeaderEpoch, high_watermark: Offset) -> bool:
        """The leader answered, and its records are appended; says whether it is still the one that is followed."""
        if self.role is not Role.FOLLOWER or leader != self.leader or epoch != self.epoch:
            return False
        self.leader_high_watermark = Offset(max(self.leader_high_watermark, high_watermark))
        self._follow_high_watermark()
        return True

    def on_fetch_error(
        self, leader: NodeId, error: ErrorCode, epoch: LeaderEpoch, true_leader: NodeId | None, now_ms: int
    ) -> None:
        """The leader refused; it may know who leads."""
        if self.role is not Role.FOLLOWER or leader != self.leader:
            return
        if self._observe(epoch, true_leader, now_ms):
            return
        if epoch >= self.epoch and error is ErrorCode.not_leader_or_follower:
            self.leader_lost(now_ms)

    def _follow_high_watermark(self) -> None:
        known = self.leader_high_watermark
        self.high_watermark = Offset(max(self.high_watermark, min(known, self._log.synced_offset)))
        if self.role is Role.FOLLOWER and not self.may_vote and 0 <= known <= self._log.synced_offset:
            self.may_vote = True
            self.unsaved = self.vote_state()
