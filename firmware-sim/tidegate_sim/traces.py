"""Recorded sensor data, replayed as signals: CSV files with a timestamp and a value in each row.

The bundled traces are from the Numenta Anomaly Benchmark (NAB, `realKnownCause`), MIT licence beside them: real
temperatures of a machine and of an office building, each up to a failure of the system. They are replayed a row a
sample, so the time between rows shrinks to whatever the fleet's rate is; at the end a trace begins again.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidegate_sim.errors import TraceError

TRACE_BYTES_MAX: Final = 256 * 1024 * 1024
"""A trace is held in memory, once for the whole fleet; this is some ten million rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The values of one CSV file, in its order."""

    quantity: str
    """What was measured: the file's name without its suffix."""
    values: tuple[float, ...]

    def replay(self, start: int) -> Iterator[float]:
        """The values from row `start` (modulo the length) on, without end."""
        index = start % len(self.values)
        while True:
            yield from self.values[index:] if index else self.values
            index = 0


def bundled_traces() -> tuple[Path, ...]:
    """The traces that come with Tidegate, sorted by name: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "traces", package.parent / "traces"):
        if folder.is_dir():
            return tuple(sorted(folder.glob("*.csv")))
    raise TraceError("the bundled traces are missing", hint="install tidegate again, or name a CSV file with --trace")


def read_trace(path: Path) -> Trace:
    """Read a CSV file: the last column of each row is the value; a first row that holds no number is the heading.

    Raises:
        TraceError: the file can't be read, is too large, or a row has no finite number in its last column.
    """
    hint = f"name a CSV file of rows `timestamp,value`, for example one of {bundled_traces()[0].parent}"
    try:
        if path.stat().st_size > TRACE_BYTES_MAX:
            raise TraceError(f"{path} has more than {TRACE_BYTES_MAX} bytes; a trace is held in memory", hint=hint)
        with path.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"the trace {path} can't be read: {error}", hint=hint) from error
    if rows and not _is_number(rows[0][-1]):
        del rows[0]
    if not rows:
        raise TraceError(f"the trace {path} has no rows", hint=hint)
    for number, row in enumerate(rows, start=1):
        if not _is_number(row[-1]):
            raise TraceError(f"{path}, data row {number}: {row[-1]!r} is not a number", hint=hint)
    return Trace(quantity=path.stem, values=tuple(float(row[-1]) for row in rows))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
