from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidegate.errors import CommitRefusedError
from tidegate.event import Event, StreamPartition
from tidegate.progress import Progress

P0, P1 = StreamPartition("telemetry", 0), StreamPartition("telemetry", 1)


def event(offset: int, partition: StreamPartition = P0) -> Event:
    return Event(
        stream=partition.stream,
        partition=partition.partition,
        offset=offset,
        device="d",
        event_time_ms=0,
        payload=b"",
    )


def test_what_was_delivered_may_be_committed_and_no_more() -> None:
    progress = Progress()
    assert progress.uncommitted() == {}
    progress.deliver([event(4), event(5), event(9, P1)])
    assert progress.uncommitted() == {P0: 6, P1: 10}
    with pytest.raises(ValueError, match="was not delivered yet"):
        progress.uncommitted_up_to(event(6))


def test_what_was_committed_is_not_committed_again() -> None:
    progress = Progress()
    progress.deliver([event(4), event(9, P1)])
    progress.commit_done({P0: 5})
    assert progress.uncommitted() == {P1: 10}


def test_a_commit_up_to_an_event_concerns_its_partition_only() -> None:
    progress = Progress()
    progress.deliver([event(4), event(5), event(9, P1)])
    assert progress.uncommitted_up_to(event(4)) == {P0: 5}


def test_a_commit_never_moves_back() -> None:
    progress = Progress()
    progress.deliver([event(4), event(5)])
    progress.commit_done({P0: 6})
    assert progress.uncommitted_up_to(event(4)) == {}
    progress.commit_done({P0: 5})
    assert progress.uncommitted() == {}


def test_a_revoked_partition_is_neither_committed_nor_remembered() -> None:
    progress = Progress()
    progress.deliver([event(4), event(9, P1)])
    progress.release([P0])
    assert progress.uncommitted() == {P1: 10}
    with pytest.raises(CommitRefusedError, match=r"telemetry\[0\] belongs to another member"):
        progress.uncommitted_up_to(event(4))
    progress.commit_done({P0: 5})
    progress.deliver([event(2)])  # ours again, from where the group had committed
    assert progress.uncommitted() == {P0: 3, P1: 10}


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Whatever happens in whatever order, a commit stays between the last commit and what was delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress()
        self.delivered: dict[StreamPartition, int] = {}
        self.committed: dict[StreamPartition, int] = {}

    @rule(partition=st.sampled_from([P0, P1]), count=st.integers(1, 5))
    def deliver(self, partition: StreamPartition, count: int) -> None:
        first = self.delivered.get(partition, 0)
        self.progress.deliver([event(offset, partition) for offset in range(first, first + count)])
        self.delivered[partition] = first + count

    @rule(partition=st.sampled_from([P0, P1]))
    def revoke(self, partition: StreamPartition) -> None:
        self.progress.release([partition])
        self.delivered.pop(partition, None)
        self.committed.pop(partition, None)

    @rule()
    def commit_all(self) -> None:
        positions = self.progress.uncommitted()
        assert all(position == self.delivered[partition] for partition, position in positions.items())
        self.progress.commit_done(positions)
        self.committed.update(positions)

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def commit_one(self, data: st.DataObject) -> None:
        partition = data.draw(st.sampled_from(sorted(self.delivered)))
        offset = data.draw(st.integers(0, self.delivered[partition] - 1))
        positions = self.progress.uncommitted_up_to(event(offset, partition))
        assert set(positions) <= {partition}
        for position in positions.values():
            assert self.committed.get(partition, -1) <= position <= self.delivered[partition]
        self.progress.commit_done(positions)
        self.committed.update(positions)

    @invariant()
    def positions_are_what_was_delivered(self) -> None:
        assert self.progress.positions == self.delivered


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
