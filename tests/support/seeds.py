"""Random choices of a test, with a seed that a failure shows."""

from __future__ import annotations

import os
import random


def seeded() -> random.Random:
    """A source of chance whose seed is printed; TIDEGATE_SEED repeats a run."""
    seed = int(os.environ.get("TIDEGATE_SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed: {seed} (repeat with TIDEGATE_SEED={seed})")  # noqa: T201 # shown when the test fails
    return random.Random(seed)
