"""The file `compaction` of a partition: how far its log was compacted, and when.

A log that has the file may have gaps between its offsets. The file holds its content twice: which deletions the log no
longer has can't be read from anywhere else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from tidegate_core.log.files import DamagedFile, replace_file, seal_twice, unseal, unseal_either
from tidegate_core.log.segment import OFFSET_ZERO
from tidegate_wire.identifiers import Offset

COMPACTION_NAME: Final = "compaction"

_ROUNDS_KEPT: Final = 64
"""Rounds remembered within `delete.retention.ms`, about: so much later than it could does a tombstone go, at most."""

_KIND: Final = b"TGCOMPA2"
_KIND_ONCE: Final = b"TGCOMPA1"
"""Before it said which tombstones are gone: the content stood there once."""

_logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CompactionState:
    """How far a log was compacted, and when; the file `compaction`."""

    cleaned_to: Offset = OFFSET_ZERO
    rounds: tuple[tuple[Offset, int], ...] = ()
    """Up to which offset rounds compacted, and when they ended (Unix time in ms), oldest first."""
    tombstones_removed_to: Offset = Offset(-1)  # noqa: RUF009  # a NewType is an int
    """The highest offset of a tombstone that a round removed, or was about to; -1 for none."""

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
        return CompactionState(cleaned_to, (*rounds, (cleaned_to, now_ms)), self.tombstones_removed_to)


def load_state(directory: Path) -> CompactionState:
    """The state in `directory`; that of a log never compacted if there is none, or it is damaged.

    Raises:
        OSError: it can't be read.
    """
    try:
        fields = json.loads(_unseal((directory / COMPACTION_NAME).read_bytes()))
    except FileNotFoundError:
        return CompactionState()
    except DamagedFile as error:
        _logger.warning("compaction_state_damaged", partition=directory.name, problem=str(error))
        return CompactionState()
    return CompactionState(
        Offset(fields["cleaned_to"]),
        tuple((Offset(offset), time_ms) for offset, time_ms in fields["rounds"]),
        Offset(fields.get("tombstones_removed_to", -1)),
    )


def _unseal(data: bytes) -> bytes:
    try:
        return unseal_either(_KIND, data)
    except DamagedFile:
        return unseal(_KIND_ONCE, data)


def save_state(directory: Path, state: CompactionState) -> None:
    """Write the state, on disk when this returns.

    Raises:
        OSError: the file has its old content.
    """
    fields = {
        "cleaned_to": state.cleaned_to,
        "rounds": state.rounds,
        "tombstones_removed_to": state.tombstones_removed_to,
    }
    replace_file(directory / COMPACTION_NAME, seal_twice(_KIND, json.dumps(fields).encode() + b"\n"), durable=True)
