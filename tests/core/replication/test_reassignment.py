"""A reassignment without I/O: where it ends, in how many steps, and what never happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.replication.reassignment import Finished, HandOver, SetVoters, Step, next_step
from tidegate_wire.identifiers import NodeId

NODES = [NodeId(number) for number in range(1, 8)]
REPLICAS = st.lists(st.sampled_from(NODES), min_size=1, max_size=5, unique=True).map(tuple)


@dataclass(slots=True, kw_only=True)
class Reassignment:
    """A partition on the move: each step takes effect at once, and whoever is waited for catches up."""

    voters: tuple[NodeId, ...]
    target: tuple[NodeId, ...]
    leader: NodeId
    caught_up: set[NodeId] = field(default_factory=set)
    catches_up: Iterator[NodeId] = field(default_factory=lambda: iter(NODES))

    def is_caught_up(self, node: NodeId) -> bool:
        return node == self.leader or node in self.caught_up

    def next_step(self) -> Step:
        while (step := next_step(self.leader, self.voters, self.target, self.is_caught_up)) is None:
            missing = set(self.target) - set(self.voters) or set(self.target)
            assert not any(self.is_caught_up(node) for node in missing), "waits though somebody is ready"
            self.caught_up.add(next(self.catches_up))
        return step

    def apply(self, step: SetVoters | HandOver) -> None:
        if isinstance(step, SetVoters):
            self.voters = step.voters
        else:
            self.leader = step.to

    def steps(self) -> list[Step]:
        """All of them to the end."""
        taken: list[Step] = []
        while not isinstance(step := self.next_step(), Finished):
            taken.append(step)
            self.apply(step)
            assert len(taken) < 100
        return [*taken, step]


@st.composite
def reassignments(draw: st.DrawFn) -> Reassignment:
    voters = draw(REPLICAS)
    return Reassignment(
        voters=voters,
        target=draw(REPLICAS),
        leader=draw(st.sampled_from(voters)),
        caught_up=draw(st.sets(st.sampled_from(NODES))),
        catches_up=iter(draw(st.permutations(NODES))),
    )


def check(step: SetVoters | HandOver, state: Reassignment, first_voters: tuple[NodeId, ...]) -> None:
    """What holds of every step, seen before it takes effect."""
    if isinstance(step, HandOver):
        assert state.leader not in state.target
        assert step.to in state.target
        assert step.to in state.voters
        assert state.is_caught_up(step.to)
        return
    before, after = set(state.voters), set(step.voters)
    assert len(step.voters) == len(after), "a voter twice"
    assert len(before ^ after) <= 1
    assert step.voters != state.voters, "a step that changes nothing"
    assert state.leader in after
    assert all(node in state.target and state.is_caught_up(node) for node in after - before)
    assert not (before - after) & set(state.target)
    assert after >= set(first_voters) or after >= set(state.target), "an old voter left before all new ones were there"


@given(state=reassignments())
def test_every_reassignment_ends_at_its_target_in_as_few_steps_as_there_are_changes(state: Reassignment) -> None:
    first_voters = state.voters
    changes = len(set(first_voters) ^ set(state.target)) + (state.leader not in state.target)
    steps = 0
    while not isinstance(step := state.next_step(), Finished):
        check(step, state, first_voters)
        state.apply(step)
        steps += 1
        assert steps <= changes + 1, "only the order may need one more"
    assert state.voters == state.target
    assert state.leader in state.target
    assert steps >= changes


@given(
    state=reassignments(),
    disturbances=st.lists(st.tuples(st.sampled_from(["elected", "fell behind"]), st.sampled_from(NODES)), max_size=12),
)
def test_elections_and_followers_that_fall_behind_delay_a_reassignment_but_do_not_lead_it_astray(
    state: Reassignment, disturbances: list[tuple[str, NodeId]]
) -> None:
    first_voters = state.voters
    changes = len(set(first_voters) ^ set(state.target))
    hand_overs_max = 1 + len(disturbances)
    steps = 0
    state.catches_up = iter(NODES * (1 + len(disturbances)))
    while not isinstance(step := state.next_step(), Finished) or disturbances:
        if not isinstance(step, Finished):
            check(step, state, first_voters)
            state.apply(step)
            steps += 1
        if disturbances:
            what, node = disturbances.pop()
            if what == "fell behind":
                state.caught_up.discard(node)
            elif node in state.voters:
                state.leader = node
        assert steps <= changes + hand_overs_max + 1
    assert state.voters == state.target
    assert state.leader in state.target


def nodes(*numbers: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(number) for number in numbers)


def voters(*numbers: int) -> SetVoters:
    return SetVoters(nodes(*numbers))


def test_nothing_is_to_be_done_if_the_voters_are_those_asked_for() -> None:
    assert Reassignment(voters=nodes(1, 2, 3), target=nodes(1, 2, 3), leader=NodeId(2)).steps() == [Finished()]


def test_another_order_makes_another_replica_the_preferred_one() -> None:
    state = Reassignment(voters=nodes(1, 2, 3), target=nodes(3, 1, 2), leader=NodeId(1))
    assert state.steps() == [voters(3, 1, 2), Finished()]


def test_growing_from_one_replica_to_three_adds_one_after_the_other() -> None:
    state = Reassignment(voters=nodes(1), target=nodes(1, 2, 3), leader=NodeId(1))
    assert state.steps() == [voters(1, 2), voters(1, 2, 3), Finished()]


def test_whoever_catches_up_first_becomes_a_voter_first() -> None:
    state = Reassignment(voters=nodes(1), target=nodes(1, 2, 3), leader=NodeId(1), catches_up=iter(nodes(3, 2)))
    assert state.steps() == [voters(1, 3), voters(1, 3, 2), voters(1, 2, 3), Finished()]


def test_a_replica_that_is_replaced_leaves_after_its_replacement_came() -> None:
    state = Reassignment(voters=nodes(1, 2, 3), target=nodes(1, 2, 4), leader=NodeId(1))
    assert state.steps() == [voters(1, 2, 3, 4), voters(1, 2, 4), Finished()]


def test_a_leader_that_is_to_leave_hands_over_and_its_successor_removes_it() -> None:
    state = Reassignment(voters=nodes(1, 2, 3), target=nodes(2, 3), leader=NodeId(1))
    assert state.steps() == [HandOver(NodeId(2)), voters(2, 3), Finished()]


def test_a_partition_moves_to_entirely_different_nodes() -> None:
    state = Reassignment(voters=nodes(1, 2), target=nodes(3, 4), leader=NodeId(1))
    assert state.steps() == [
        voters(1, 2, 3),
        voters(1, 2, 3, 4),
        voters(1, 3, 4),
        HandOver(NodeId(3)),
        voters(3, 4),
        Finished(),
    ]


def test_the_preferred_replica_is_passed_over_as_successor_while_it_lags() -> None:
    lagging = NodeId(2)
    assert next_step(NodeId(1), nodes(1, 2, 3), nodes(2, 3), lambda node: node != lagging) == HandOver(NodeId(3))


@pytest.mark.parametrize(
    ("present", "target"),
    [
        pytest.param(nodes(1), nodes(1, 2), id="to add one"),
        pytest.param(nodes(1, 2), nodes(1, 3), id="to replace one"),
        pytest.param(nodes(1, 2), nodes(2), id="to hand over"),
    ],
)
def test_while_nobody_has_caught_up_the_leader_waits(present: tuple[NodeId, ...], target: tuple[NodeId, ...]) -> None:
    leader = NodeId(1)
    assert next_step(leader, present, target, lambda node: node == leader) is None


def test_a_target_changed_halfway_is_followed_from_where_the_voters_are() -> None:
    state = Reassignment(voters=nodes(1, 2, 3), target=nodes(1, 4, 5), leader=NodeId(1))
    state.apply(voters(1, 2, 3, 4))
    state.target = nodes(1, 2, 3)
    assert state.steps() == [voters(1, 2, 3), Finished()]
