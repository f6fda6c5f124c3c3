"""Free space, and the reserve that is given up when there is none."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


def free_bytes(directory: Path) -> int:
    """What an unprivileged process may still write to the file system of `directory`."""
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize


class Reserve:
    """A file whose only purpose is to be deleted when the disk is full.

    Freeing rows needs space first: the transaction that deletes them goes to the write-ahead log. Without a reserve, a
    disk that another program filled would hold back what the core has long acknowledged.
    """

    def __init__(self, database: Path, size_bytes: int) -> None:
        """Keep `size_bytes` in a file beside `database`."""
        self._path = database.with_name(f"{database.name}-reserve")
        self._size_bytes = size_bytes
        self._is_held = False

    def hold(self) -> bool:
        """Make the file if there is room for it twice; returns whether it is there, or not wanted."""
        if self._size_bytes == 0 or self._is_held:
            return True
        with suppress(OSError):
            if self._path.stat().st_size >= self._size_bytes:
                self._is_held = True
                return True
        if free_bytes(self._path.parent) < 2 * self._size_bytes:
            return False
        try:
            self._allocate()
        except OSError as error:
            self._path.unlink(missing_ok=True)
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            return False
        self._is_held = True
        return True

    def release(self) -> bool:
        """Delete the file; returns whether that gave any space back."""
        self._is_held = False
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _allocate(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._size_bytes)
        finally:
            os.close(descriptor)
