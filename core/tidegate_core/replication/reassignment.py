"""How a partition moves from the replicas it has to those it is to have, one voter at a time (KIP-853). No I/O.

First the new replicas, which follow already, catch up and become voters one after the other; then the old ones leave.
A leader that is not to stay hands over before it would remove itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidegate_wire.identifiers import NodeId


@dataclass(frozen=True, slots=True)
class SetVoters:
    """Append this voter set, which differs from the present one by one voter or only in its order."""

    voters: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let one of the voters that stay lead."""

    to: NodeId


@dataclass(frozen=True, slots=True)
class Finished:
    """The voters are those that were asked for."""


Step = SetVoters | HandOver | Finished


def next_step(
    leader: NodeId,
    voters: Sequence[NodeId],
    target: Sequence[NodeId],
    is_caught_up: Callable[[NodeId], bool],
) -> Step | None:
    """What the leader is to do next, given that its last step is committed; None: wait until somebody caught up."""
    added = [node for node in target if node not in voters]
    if added:
        ready = next((node for node in added if is_caught_up(node)), None)
        return None if ready is None else SetVoters((*voters, ready))
    removed = [node for node in voters if node not in target and node != leader]
    if removed:
        return SetVoters(tuple(node for node in voters if node != removed[0]))
    if leader not in target:
        successor = next((node for node in target if is_caught_up(node)), None)
        return None if successor is None else HandOver(successor)
    return Finished() if tuple(voters) == tuple(target) else SetVoters(tuple(target))
