"""Producer snapshots on disk: `<offset>.snapshot`, the producers as of that offset, sealed and synced.

Two are kept that can't be cut away, beside newer ones: the newest is what the next start replays from, the one before
it serves if that is damaged.
They hold what the log itself may no longer hold: producers whose batches were all deleted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from tidegate_core.log.files import DamagedFile, replace_file, seal, unseal
from tidegate_core.log.segment import OFFSET_MAX
from tidegate_core.producers import ProducerStates
from tidegate_wire.identifiers import Offset

SNAPSHOT_SUFFIX: Final = ".snapshot"
SNAPSHOTS_KEPT: Final = 2
_KIND: Final = b"TGPRODS1"
_logger = structlog.get_logger()


def write_snapshot(directory: Path, offset: Offset, states: ProducerStates, *, committed: Offset) -> None:
    """Write the producers as of `offset`, on disk when this returns, and remove old snapshots.

    The log may be cut down to `committed`, so the newest that is not after it stays, whatever is newer.

    Raises:
        OSError: it was not written.
    """
    replace_file(directory / f"{offset:020d}{SNAPSHOT_SUFFIX}", seal(_KIND, states.encode(offset)), durable=True)
    old = [path for found, path in _snapshots(directory) if found <= committed]
    for path in old[SNAPSHOTS_KEPT:]:
        path.unlink(missing_ok=True)


def remove_snapshots(directory: Path, after: int) -> None:
    """Remove the snapshots that are newer than the offset `after`: the log was cut there.

    Raises:
        OSError: one can't be removed.
    """
    for offset, path in _snapshots(directory):
        if offset > after:
            path.unlink(missing_ok=True)


def snapshot_offset(directory: Path, offset_max: int) -> Offset:
    """Of the newest snapshot at or below `offset_max`; 0 if there is none."""
    return Offset(next((offset for offset, _ in _snapshots(directory) if offset <= offset_max), 0))


def load_snapshot(directory: Path, offset_max: int = OFFSET_MAX) -> tuple[Offset, ProducerStates]:
    """The newest whole snapshot at or below `offset_max`; offset 0 and nobody if there is none.

    Raises:
        OSError: a file can't be read.
    """
    for offset, path in _snapshots(directory):
        if offset > offset_max:
            continue
        try:
            return ProducerStates.decode(unseal(_KIND, path.read_bytes()))
        except (DamagedFile, ValueError) as error:
            _logger.warning("producer_snapshot_damaged", path=str(path), problem=str(error))
    return Offset(0), ProducerStates()


def _snapshots(directory: Path) -> list[tuple[int, Path]]:
    """Newest first."""
    paths = [path for path in directory.glob(f"*{SNAPSHOT_SUFFIX}") if path.stem.isdigit()]
    return sorted(((int(path.stem), path) for path in paths), reverse=True)
