"""What a log's records up to an offset add up to, kept beside it: `<offset>.state`, sealed and synced."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from tidegate_core.log.files import DamagedFile, replace_file, seal, unseal
from tidegate_wire.identifiers import Offset

STATE_SUFFIX: Final = ".state"
STATES_KEPT: Final = 2
_KIND: Final = b"TGSTATE1"
_logger = structlog.get_logger()


def write_app_state(directory: Path, offset: Offset, data: bytes) -> None:
    """Write the state as of `offset`, on disk when this returns, and remove old ones.

    Raises:
        OSError: it was not written.
    """
    replace_file(_path(directory, offset), seal(_KIND, data), durable=True)
    for _, path in _states(directory)[STATES_KEPT:]:
        path.unlink(missing_ok=True)


def app_state_at(directory: Path, offset: Offset) -> bytes | None:
    """The state as of `offset`; None if there is none, as for a log of which nobody writes any.

    Raises:
        OSError: the file can't be read.
        DamagedFile: it is not what was written.
    """
    try:
        data = _path(directory, offset).read_bytes()
    except FileNotFoundError:
        return None
    return unseal(_KIND, data)


def load_app_state(directory: Path) -> tuple[Offset, bytes] | None:
    """The newest whole state, and its offset.

    Raises:
        OSError: a file can't be read.
    """
    for offset, path in _states(directory):
        try:
            return offset, unseal(_KIND, path.read_bytes())
        except DamagedFile as error:
            _logger.error("state_damaged", path=str(path), problem=str(error))  # noqa: TRY400
    return None


def _path(directory: Path, offset: Offset) -> Path:
    return directory / f"{offset:020d}{STATE_SUFFIX}"


def _states(directory: Path) -> list[tuple[Offset, Path]]:
    """Newest first."""
    paths = [path for path in directory.glob(f"*{STATE_SUFFIX}") if path.stem.isdigit()]
    return sorted(((Offset(int(path.stem)), path) for path in paths), reverse=True)
