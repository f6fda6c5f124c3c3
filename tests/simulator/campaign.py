"""Many seeds on all cores: progress, and the seeds that break something with the command that replays one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from typing import Final

from tests.simulator.invariants import Violation
from tests.simulator.raft_seeds import run_raft_seed

PROGRESS_S: Final = 10.0
FAILURES_MAX: Final = 20
"""After so many failing seeds there is enough to look at."""

LEVELS: Final[dict[str, Callable[[int, Callable[[str], None] | None], object]]] = {"raft": run_raft_seed}
"""What can be run, by name: a function of the seed and of what shows the trace."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that broke something."""

    level: str
    seed: int
    what: str


def replay_command(level: str, seed: int) -> str:
    """What to type to see a run again."""
    return f"python -m tests.simulator --level {level} --seed {seed} -v"


def run_one(level: str, seed: int) -> Failure | None:
    """Run a seed in this process."""
    try:
        LEVELS[level](seed, None)
    except Violation as violation:
        return Failure(level, seed, str(violation))
    except Exception as error:  # whatever it is, the seed is to be looked at
        return Failure(level, seed, repr(error))
    return None


def run_many(levels: list[str], first: int, count: int, say: Callable[[str], None]) -> list[Failure]:
    """Run `count` seeds of each level on all cores; returns those that fail, at most FAILURES_MAX or a few more."""
    failures: list[Failure] = []
    work = _seeds(levels, first, count)
    total, done, said_at = count * len(levels), 0, time.monotonic()
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        running = {pool.submit(run_one, *seed): seed for seed in islice(work, cores * 2)}
        while running:
            finished = next(as_completed(running))
            del running[finished]
            done += 1
            failure = finished.result()
            if failure is not None:
                failures.append(failure)
                say(f"{failure.level} seed {failure.seed}: {failure.what}")
                say(f"  {replay_command(failure.level, failure.seed)}")
            upcoming = next(work, None) if len(failures) < FAILURES_MAX else None
            if upcoming is not None:
                running[pool.submit(run_one, *upcoming)] = upcoming
            if time.monotonic() - said_at > PROGRESS_S:
                said_at = time.monotonic()
                say(f"{done} of {total} seeds, {len(failures)} failed")
    say(f"{done} of {total} seeds, {len(failures)} failed")
    return failures


def _seeds(levels: list[str], first: int, count: int) -> Iterator[tuple[str, int]]:
    for seed in range(first, first + count):
        for level in levels:
            yield level, seed
