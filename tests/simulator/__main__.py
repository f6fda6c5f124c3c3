"""`python -m tests.simulator --seed N -v` replays one seed; `--seeds N` runs many on all cores."""

# ruff: noqa: T201  # a command talks to its user
from __future__ import annotations

import argparse
import sys

from tests.simulator.campaign import LEVELS, run_many


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run this one")
    which.add_argument("--seeds", type=int, help="run so many of each level")
    parser.add_argument("--first", type=int, default=0, help="the first of --seeds")
    parser.add_argument("--level", choices=sorted(LEVELS), action="append", help="which simulation; all by default")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what happens, with --seed")
    options = parser.parse_args()
    levels = options.level or sorted(LEVELS)
    if options.seeds is not None:
        return 1 if run_many(levels, options.first, options.seeds, _say) else 0
    failed = False
    for level in levels:
        try:
            print(f"{level} seed {options.seed}: {LEVELS[level](options.seed, print if options.verbose else None)}")
        except AssertionError as error:
            failed = True
            notes = [] if options.verbose else getattr(error, "__notes__", [])
            print(*notes, f"{level} seed {options.seed}: {error}", sep="\n")
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
