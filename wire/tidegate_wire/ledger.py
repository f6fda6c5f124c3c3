"""The ledger: what devices published and what was acknowledged to them, one JSON object a line.

`tidegate sim` writes it while it publishes; `tidegate verify` compares it with what a consumer reads. A line is

    {"device": "d-0001", "sequence": 17, "state": "published"}
    {"device": "d-0001", "sequence": 17, "state": "acknowledged"}

A device numbers its events from 1 without gaps, also across power loss, and puts device and sequence into each
payload, so that (device, sequence) names an event from sensor to consumer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

LedgerState = Literal["published", "acknowledged"]
_STATES: Final = frozenset(get_args(LedgerState))


class LedgerError(ValueError):
    """A ledger line that can't be read; the message names file and line."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line: the event `(device, sequence)` was sent for the first time, or acknowledged to the device."""

    device: str
    sequence: int
    state: LedgerState

    def to_line(self) -> str:
        """The entry as a line, newline included."""
        return f'{{"device": {json.dumps(self.device)}, "sequence": {self.sequence}, "state": "{self.state}"}}\n'


def read_ledger(path: Path) -> Iterator[LedgerEntry]:
    """Yield the entries of a ledger; a last line without its newline is one that a crash cut, and is left out.

    Raises:
        OSError: the file can't be read.
        LedgerError: another line is not an entry.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            entry = _parse(line)
            if entry is None:
                raise LedgerError(f"{path}, line {number}: not a ledger entry: {line.strip()[:80]!r}")
            yield entry


def _parse(line: str) -> LedgerEntry | None:
    try:
        fields = json.loads(line)
        device, sequence, state = fields["device"], fields["sequence"], fields["state"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(device) is not str or type(sequence) is not int or state not in _STATES:
        return None
    return LedgerEntry(device, sequence, state)
