"""A small file system of a test's own, to be filled up."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CHUNK = b"\0" * 65_536


class SmallDisk:
    """A tmpfs with a ballast file that takes and gives back all free space."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @property
    def free_bytes(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def fill(self) -> None:
        """Take what is free, to the last page; again if some was given back meanwhile."""
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            size = len(_CHUNK)
            while size >= 1:
                try:
                    os.write(descriptor, _CHUNK[:size])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        """Give the ballast's space back."""
        self._ballast.unlink()


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """A tmpfs mounted below `directory`; skips the test where that is not allowed."""
    path = directory / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs can't be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        with contextlib.suppress(OSError):
            (path / "ballast").unlink()
        subprocess.run(["umount", "--lazy", str(path)], check=False)
