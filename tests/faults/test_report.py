"""The table of what was tried."""

from __future__ import annotations

from tests.faults.report import table
from tests.support.history import Verdict
from tests.support.trial import Outcome


def test_trials_of_a_fault_are_added_up_and_breaks_of_the_promise_are_told_apart() -> None:
    outcomes = [
        Outcome.of("a cut", 3, Verdict(acknowledged=1500, failed=1), [0.5, 1.25, 0.75]),
        Outcome.of("a flood", 1, Verdict(acknowledged=10), []),
        Outcome.of("a cut", 1, Verdict(acknowledged=2000, lost=2, doubled=1, reordered=4, offsets_fell=1), [2.0]),
    ]
    assert table(outcomes).splitlines()[2:] == [
        "| a cut | 4 | 3,500 | 1 | 2 | 1 | 5 | 1.00 s | 2.00 s |",
        "| a flood | 1 | 10 | 0 | 0 | 0 | 0 | - | - |",
    ]
