"""The checkers on histories that are bad on purpose: a checker that finds nothing proves nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulator import invariants
from tests.simulator.invariants import Batch, CommittedLog, PartitionInvariants, Violation

LOG = [Batch(0, 2, 1, "a"), Batch(2, 3, 1, "b"), Batch(3, 7, 2, "c")]


def _see(
    checker: PartitionInvariants, life: str, *, epoch: int = 1, leads: bool = False, watermark: int = 0, end: int = 10
) -> None:
    checker.observe(life, epoch=epoch, is_leader=leads, high_watermark=watermark, end_offset=end)


def _violated(history: Callable[[PartitionInvariants], None]) -> str:
    with pytest.raises(Violation) as caught:
        history(PartitionInvariants("p"))
    return caught.value.invariant


def test_a_good_history_is_accepted() -> None:
    checker = PartitionInvariants("p")
    _see(checker, "1", leads=True)
    _see(checker, "2")
    checker.leader_committed("1", 1, LOG[1])
    checker.held("1", 3, (1, 2, 3), {1: 3, 2: 5, 3: 0})
    checker.committed.observe("1", 1, LOG[:2])
    _see(checker, "1", leads=True, watermark=3)
    checker.committed.observe("2", 1, LOG[:2])
    checker.elected("2", 2, LOG)
    _see(checker, "2", epoch=2, leads=True, watermark=3)
    _see(checker, "1, next life", epoch=1)
    checker.committed.observe("2", 2, LOG[2:])


def test_two_leaders_in_an_epoch() -> None:
    def history(checker: PartitionInvariants) -> None:
        _see(checker, "1", leads=True)
        _see(checker, "2", leads=True)

    assert _violated(history) == invariants.ONE_LEADER


def test_a_node_that_leads_again_in_the_epoch_of_its_last_life() -> None:
    def history(checker: PartitionInvariants) -> None:
        _see(checker, "node 1, life 1", leads=True)
        _see(checker, "node 1, life 2", leads=True)

    assert _violated(history) == invariants.ONE_LEADER


def test_an_epoch_that_falls() -> None:
    def history(checker: PartitionInvariants) -> None:
        _see(checker, "1", epoch=3)
        _see(checker, "1", epoch=2)

    assert _violated(history) == invariants.EPOCHS_RISE


def test_a_high_watermark_that_falls() -> None:
    def history(checker: PartitionInvariants) -> None:
        _see(checker, "1", watermark=3)
        _see(checker, "1", watermark=2)

    assert _violated(history) == invariants.WATERMARK_RISES


def test_a_high_watermark_beyond_the_log() -> None:
    assert _violated(lambda checker: _see(checker, "1", watermark=11)) == invariants.WATERMARK_IN_LOG


@pytest.mark.parametrize(
    "changed",
    [
        Batch(2, 3, 2, "b"),
        Batch(2, 3, 1, "x"),
        Batch(2, 4, 1, "b"),
        Batch(1, 3, 1, "b"),
        Batch(4, 5, 2, "d"),
    ],
)
def test_another_batch_where_one_was_committed(changed: Batch) -> None:
    def history(checker: PartitionInvariants) -> None:
        checker.committed.observe("1", 1, LOG[:2])
        checker.committed.observe("2", 2, [LOG[0], changed])

    assert _violated(history) == invariants.COMMITTED_STAYS


def test_a_gap_in_what_is_committed() -> None:
    assert _violated(lambda checker: checker.committed.observe("1", 1, LOG[1:])) == invariants.COMMITTED_STAYS


@pytest.mark.parametrize("log", [[], LOG[:1], [LOG[0], Batch(2, 3, 1, "x")]])
def test_a_leader_that_lacks_what_was_committed(log: list[Batch]) -> None:
    def history(checker: PartitionInvariants) -> None:
        checker.committed.observe("1", 1, LOG[:2])
        checker.elected("2", 2, log)

    assert _violated(history) == invariants.LEADER_COMPLETE


def test_a_leader_need_not_have_what_was_committed_after_its_epoch_or_before_its_logs_start() -> None:
    checker = PartitionInvariants("p")
    checker.committed.observe("1", 1, LOG[:2])
    checker.committed.observe("1", 3, LOG[2:])
    checker.elected("2", 2, LOG[:2])
    checker.elected("3", 4, LOG[1:], start_offset=2)


def test_a_record_of_an_older_epoch_that_commits_by_itself() -> None:
    assert _violated(lambda checker: checker.leader_committed("1", 2, LOG[1])) == invariants.OWN_EPOCH


@pytest.mark.parametrize("safe", [{}, {1: 3}, {1: 3, 2: 2, 3: 2}, {1: 3, 4: 3, 5: 3}])
def test_a_commit_that_is_not_on_a_majority_of_the_voters_disks(safe: dict[int, int]) -> None:
    assert _violated(lambda checker: checker.held("1", 3, (1, 2, 3), safe)) == invariants.ON_A_MAJORITY


def test_the_committed_log_knows_what_was_committed_before_an_epoch() -> None:
    log = CommittedLog()
    log.observe("1", 2, LOG[:2])
    log.observe("2", 5, LOG)
    assert [log.end_before(epoch) for epoch in (2, 3, 5, 6)] == [0, 3, 3, 7]
    assert log.from_offset(1) == LOG[1:]
    assert log.at(2) == LOG[1]
    assert log.at(1) is None
