"""Puts a compacted segment in the place of the segments it was made from, so that a crash leaves the old or the new.

1. The new segment is written to `<base>.cleaned` and synced.
2. The file `<base>.swap`, synced too, says which segments it replaces: from here on the new one counts.
3. The index of the first old segment goes, the new file is renamed over it, and the other old ones are removed.
4. The directory is synced and `<base>.swap` removed.

A start that finds `<base>.swap` goes on from there; a `.cleaned` without it is discarded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from tidegate_core.log.files import DELETED_SUFFIX, DamagedFile, replace_file, seal, sync_directory, unseal
from tidegate_core.log.segment import INDEX_SUFFIX, segment_path

CLEANED_SUFFIX: Final = ".cleaned"
SWAP_SUFFIX: Final = ".swap"

_KIND: Final = b"TGSWAP_1"
_logger = structlog.get_logger()


def cleaned_path(directory: Path, base_offset: int) -> Path:
    """Where the new segment is written before it counts."""
    return segment_path(directory, base_offset).with_suffix(CLEANED_SUFFIX)


def decide_swap(directory: Path, bases: Sequence[int]) -> None:
    """Step 2: the cleaned file of `bases[0]`, which is synced, replaces the segments that begin at `bases`.

    Raises:
        OSError: it does not.
    """
    path = segment_path(directory, bases[0]).with_suffix(SWAP_SUFFIX)
    replace_file(path, seal(_KIND, json.dumps(list(bases)).encode()), durable=True)


def carry_out_swap(directory: Path, bases: Sequence[int]) -> list[Path]:
    """Steps 3 and 4, as often as it takes; returns the files that are gone but for their bytes.

    Raises:
        OSError: the next start will finish.
    """
    gone = []
    first, *others = (segment_path(directory, base) for base in bases)
    first.with_suffix(INDEX_SUFFIX).unlink(missing_ok=True)
    cleaned = cleaned_path(directory, bases[0])
    if cleaned.exists():
        cleaned.rename(first)
    for path in others:
        path.with_suffix(INDEX_SUFFIX).unlink(missing_ok=True)
        if path.exists():
            gone.append(path.rename(path.with_name(path.name + DELETED_SUFFIX)))
    sync_directory(directory)
    first.with_suffix(SWAP_SUFFIX).unlink(missing_ok=True)
    return gone


def finish_swaps(directory: Path) -> None:
    """At a start: finish the swaps that were decided, and discard cleaned files that were not.

    Raises:
        OSError: the directory can't be changed.
    """
    for path in sorted(directory.glob(f"*{SWAP_SUFFIX}")):
        try:
            bases = json.loads(unseal(_KIND, path.read_bytes()))
        except DamagedFile as error:
            _logger.warning("swap_discarded", path=str(path), problem=str(error))
            path.unlink()
            continue
        carry_out_swap(directory, bases)
        _logger.info("swap_finished", partition=directory.name, segments=bases)
    for path in directory.glob(f"*{CLEANED_SUFFIX}"):
        path.unlink()
