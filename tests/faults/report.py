"""The table of docs/reliability.md from what trials wrote: python -m tests.faults.report FILE."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.support.trial import Outcome

HEADER = (
    "| fault | times | acknowledged | failed | lost | doubled | otherwise wrong | recovery: median | worst |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def table(outcomes: Iterable[Outcome]) -> str:
    """A line for each fault, all its trials added up."""
    by_fault: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_fault[outcome.fault].append(outcome)
    return "\n".join([HEADER, *(_line(fault, trials) for fault, trials in by_fault.items())])


def _line(fault: str, trials: list[Outcome]) -> str:
    counts = [
        sum(getattr(trial, name) for trial in trials)
        for name in ("times", "acknowledged", "failed", "lost", "doubled", "other")
    ]
    recovery_s = [seconds for trial in trials for seconds in trial.recovery_s]
    times = [f"{statistics.median(recovery_s):.2f} s", f"{max(recovery_s):.2f} s"] if recovery_s else ["-", "-"]
    return "| " + " | ".join([fault, *(f"{count:,}" for count in counts), *times]) + " |"


def main(path: str) -> None:
    """Print the table."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    sys.stdout.write(table(Outcome(**json.loads(line)) for line in lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
