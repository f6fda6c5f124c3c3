"""The file `compaction` of a partition: how far its log was compacted, and when.

A log that has the file may have gaps between its offsets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from tidegate_core.log.files import DamagedFile, replace_file, seal, unseal
from tidegate_core.log.segment import OFFSET_ZERO
from tidegate_wire.identifiers import Offset

COMPACTION_NAME: Final = "compaction"

_ROUNDS_KEPT: Final = 64
"""Rounds remembered within `delete.retention.ms`, about: so much later than it could does a tombstone go, at most."""

_KIND: Final = b"TGCOMPA1"
_logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CompactionState:
    """How far a log was compacted, and when; the file `compaction`."""

    cleaned_to: Offset = OFFSET_ZERO
    rounds: tuple[tuple[Offset, int], ...] = ()
    """Up to which offset rounds compacted, and when they ended (Unix time in ms), oldest first."""

    def tombstones_end(self, delete_retention_ms: int, now_ms: int) -> Offset:
        """Tombstones below this offset were kept for long enough."""
        return max(
            (offset for offset, time_ms in self.rounds if time_ms + delete_retention_ms <= now_ms), default=OFFSET_ZERO
        )

    def after_round(self, cleaned_to: Offset, delete_retention_ms: int, now_ms: int) -> CompactionState:
        """The state once a round compacted up to `cleaned_to`; forgets rounds that say nothing new."""
        settled = self.tombstones_end(delete_retention_ms, now_ms)
        rounds = [item for item in self.rounds if item[0] >= settled]
        if rounds and now_ms - rounds[-1][1] < delete_retention_ms // _ROUNDS_KEPT and len(rounds) > 1:
            rounds.pop()  # later for its tombstones, never earlier
        return CompactionState(cleaned_to, (*rounds, (cleaned_to, now_ms)))


def load_state(directory: Path) -> CompactionState:
    """The state in `directory`; that of a log never compacted if there is none, or it is damaged.

    Raises:
        OSError: it can't be read.
    """
    try:
        fields = json.loads(unseal(_KIND, (directory / COMPACTION_NAME).read_bytes()))
    except FileNotFoundError:
        return CompactionState()
    except DamagedFile as error:
        _logger.warning("compaction_state_damaged", partition=directory.name, problem=str(error))
        return CompactionState()
    return CompactionState(
        Offset(fields["cleaned_to"]), tuple((Offset(offset), time_ms) for offset, time_ms in fields["rounds"])
    )


def save_state(directory: Path, state: CompactionState) -> None:
    """Write the state, on disk when this returns.

    Raises:
        OSError: the file has its old content.
    """
    body = json.dumps({"cleaned_to": state.cleaned_to, "rounds": state.rounds}).encode() + b"\n"
    replace_file(directory / COMPACTION_NAME, seal(_KIND, body), durable=True)
