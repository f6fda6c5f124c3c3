"""Lets a log begin anew from a leader's snapshot, so that a crash leaves the old log or the new one, and nothing else.

1. The snapshot is written to the file `reset`, and synced: from here on the new log counts.
2. Everything else but the partition's identity is removed, and what the snapshot says is written, and synced.
3. The file `reset` is removed.

A start that finds `reset` goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from tidegate_core.log.app_state import write_app_state
from tidegate_core.log.checkpoint import CHECKPOINT_NAME, Checkpoint
from tidegate_core.log.files import DELETED_SUFFIX, DamagedFile, replace_file, seal, sync_directory, unseal
from tidegate_core.log.identity import IDENTITY_NAME
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.log.segment import SEGMENT_SUFFIX, LogPosition, segment_path
from tidegate_core.log.snapshots import write_snapshot

RESET_NAME: Final = "reset"
_KIND: Final = b"TGRESET1"
_logger = structlog.get_logger()


def decide_reset(directory: Path, snapshot: PartitionSnapshot) -> None:
    """Step 1.

    Raises:
        OSError: the log stays as it is.
    """
    replace_file(directory / RESET_NAME, seal(_KIND, snapshot.encode()), durable=True)


def carry_out_reset(directory: Path, snapshot: PartitionSnapshot) -> tuple[Checkpoint, list[Path]]:
    """Steps 2 and 3, as often as it takes; returns the new checkpoint, and the files that are gone but for their bytes.

    Raises:
        OSError: the next start will finish.
    """
    gone = []
    for path in sorted(directory.iterdir()):
        if path.suffix == SEGMENT_SUFFIX:
            gone.append(path.rename(path.with_name(path.name + DELETED_SUFFIX)))
        elif path.name not in {RESET_NAME, IDENTITY_NAME} and path.suffix != DELETED_SUFFIX:
            path.unlink(missing_ok=True)
    offset = snapshot.offset
    write_snapshot(directory, offset, snapshot.producers, committed=offset)
    if snapshot.app_state is not None:
        write_app_state(directory, offset, snapshot.app_state)
    checkpoint = Checkpoint(
        log_start_offset=offset,
        recovery_point=LogPosition(offset, offset, 0),
        leader_epochs=snapshot.leader_epochs,
        voter_sets=((-1, snapshot.voters),),
        compacted_to=snapshot.compacted_to,
    )
    replace_file(directory / CHECKPOINT_NAME, checkpoint.encode(), durable=True)
    segment_path(directory, offset).touch(0o640)
    sync_directory(directory)
    (directory / RESET_NAME).unlink()
    sync_directory(directory)
    return checkpoint, gone


def finish_reset(directory: Path) -> list[Path]:
    """At a start: finish what was decided; returns the files that are gone but for their bytes.

    Raises:
        OSError: the directory can't be read or changed.
        DamagedFile: something was decided, but can't be read any more.
    """
    try:
        data = (directory / RESET_NAME).read_bytes()
    except FileNotFoundError:
        return []
    try:
        snapshot = PartitionSnapshot.decode(unseal(_KIND, data))
    except ValueError as error:
        raise DamagedFile(f"{directory / RESET_NAME}: {error}") from error
    _, gone = carry_out_reset(directory, snapshot)
    _logger.info("reset_finished", partition=directory.name, offset=snapshot.offset)
    return gone
