"""What replicas of one partition say to each other, and what a replica must have on disk before it says so.

Source: KIP-595 (Vote, BeginQuorumEpoch, EndQuorumEpoch, Fetch), KIP-996 (pre-vote), Ongaro's Raft thesis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset


class ReplicaKey(NamedTuple):
    """A partition by the id of its topic: a topic that is deleted and made again is another one."""

    topic_id: UUID
    partition: int


@dataclass(frozen=True, slots=True)
class VoteState:
    """What a replica may never forget: on disk before anybody hears of it."""

    epoch: LeaderEpoch
    """The newest epoch in which this replica voted or stood."""
    voted_for: NodeId | None = None
    """Its vote in `epoch`."""
    may_vote: bool = True
    """False while the replica lacks records that it had once acknowledged: its disk was wiped or damaged. It then
    votes only on the condition that every voter agrees, until it has caught up with a leader."""


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """A candidate asks for a vote; with `is_pre_vote`, whether it would get one."""

    candidate: NodeId
    epoch: LeaderEpoch
    """The epoch the candidate stands in; in a pre-vote the one it would stand in."""
    last_epoch: LeaderEpoch
    """Of the last batch in its log; -1 if that is empty."""
    end_offset: Offset
    is_pre_vote: bool


@dataclass(frozen=True, slots=True)
class VoteResponse:
    """The answer; a higher epoch than the request's ends the candidacy."""

    epoch: LeaderEpoch
    leader: NodeId | None
    """Whom the voter follows in `epoch`, if it knows."""
    is_granted: bool
    is_conditional: bool = False
    """Granted only if every voter grants: see `VoteState.may_vote`."""
    is_pre_vote: bool = False
    """Which of the two questions this answers."""


@dataclass(frozen=True, slots=True)
class BeginEpoch:
    """A leader says that it won."""

    leader: NodeId
    epoch: LeaderEpoch


@dataclass(frozen=True, slots=True)
class EndEpoch:
    """A leader steps down; the first of `successors` that hears it stands at once."""

    leader: NodeId
    epoch: LeaderEpoch
    successors: tuple[NodeId, ...]
