"""What a benchmark measured, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number, and what it is of."""

    subject: str
    """What was measured: a program and its load."""
    value: float
    unit: str
    note: str = ""
    """What one must know to read it rightly."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def print_table(name: str, measurements: list[Measurement], seconds: float) -> None:
    """The rows, aligned."""
    print(f"\n{name}  ({seconds:.0f} s)")
    width = max(len(row.subject) for row in measurements)
    for row in measurements:
        number = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:,.2f}"
        note = f"   {row.note}" if row.note else ""
        print(f"  {row.subject:<{width}}  {number:>12} {row.unit}{note}", flush=True)
