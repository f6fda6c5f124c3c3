"""What a thread does so that what was appended is on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from tidegate_core.log.files import sync_directory
from tidegate_core.log.segment import LogPosition

_logger = structlog.get_logger()


@dataclass(slots=True)
class SyncJob:
    """What has to be done so that everything before `end` is on disk."""

    end: LogPosition
    descriptors: list[int]
    directory: Path | None
    """Whose names changed."""
    checkpoint: Callable[[], None] | None
    """Moves the recovery point to `end`; to be called after the sync."""
    generation: int
    """Of the log; it grows when the log is cut, and then this job says nothing about what is there now."""

    def run(self) -> None:
        """Sync.

        Raises:
            OSError: not everything before `end` is on disk.
        """
        try:
            for descriptor in self.descriptors:
                os.fdatasync(descriptor)
            if self.directory is not None:
                sync_directory(self.directory)
        finally:
            self.abandon()

    def write_checkpoint(self) -> None:
        """Write the checkpoint; a failure is only logged, since the next start then scans more."""
        assert self.checkpoint is not None
        try:
            self.checkpoint()
        except OSError as error:
            _logger.warning("checkpoint_not_written", offset=self.end.offset, error=str(error))

    def abandon(self) -> None:
        """Close the descriptors."""
        while self.descriptors:
            os.close(self.descriptors.pop())
