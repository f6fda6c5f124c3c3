"""Seeds of the Raft level, and the bugs that it has to find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.simulator import mutants
from tests.simulator.campaign import replay_command
from tests.simulator.invariants import Violation
from tests.simulator.raft_seeds import run_raft_seed

SEEDS = 440
SEEDS_OF_A_TEST = 20
MUTANT_SEEDS_MAX = 400


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_OF_A_TEST))
def test_raft_keeps_its_promises(first: int) -> None:
    for seed in range(first, first + SEEDS_OF_A_TEST):
        try:
            run_raft_seed(seed)
        except AssertionError as error:
            error.add_note(f"to see it again: {replay_command('raft', seed)}")
            raise


def test_the_same_seed_does_the_same_again() -> None:
    assert run_raft_seed(7) == run_raft_seed(7)
    assert run_raft_seed(7).digest != run_raft_seed(8).digest


def test_seeds_are_worth_their_time() -> None:
    """A simulation in which nothing happens would find nothing."""
    runs = [run_raft_seed(seed) for seed in range(30)]
    assert sum(run.acknowledged for run in runs) > 300
    assert sum(run.epochs for run in runs) > 100


@pytest.mark.parametrize("mutant", mutants.RAFT_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_bug_is_found(mutant: Callable[[], AbstractContextManager[None]]) -> None:
    with mutant():
        for seed in range(MUTANT_SEEDS_MAX):
            try:
                run_raft_seed(seed)
            except Violation as violation:
                print(f"{mutant.__name__}: seed {seed}, {violation.invariant}")  # noqa: T201  # what the test is for
                return
    pytest.fail(f"{mutant.__name__} was not found by {MUTANT_SEEDS_MAX} seeds")
