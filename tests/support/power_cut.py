"""A power cut without a switch: disks whose content at one instant, page cache not included, is what comes back.

Each disk is an ext4 image on an XFS that shares blocks between copies (reflink), so that a copy of all images takes no
time. Whoever writes stands still meanwhile: the images are of the same instant. Limit: what was not flushed is lost
whole, never torn or re-ordered; the simulator does that. Needs root, loop devices and xfsprogs.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.support.peers import require_peer
from tests.support.processes import wait_until

_MIB: Final = 1024 * 1024
_NAME: Final = re.compile(r"tidegate-disks-(?P<pid>\d+)")


class PowerCutDisks:
    """Disks 1 to `count`, mounted while entered."""

    def __init__(self, directory: Path, count: int, *, size_mb: int = 128) -> None:
        self._root = directory / f"tidegate-disks-{os.getpid()}"
        self._size_bytes = size_mb * _MIB
        self._store = self._root / "store"
        self._stack = ExitStack()
        self.paths = {number: self._root / f"disk-{number}" for number in range(1, count + 1)}

    def __enter__(self) -> Self:
        for program in ("mkfs.xfs", "mkfs.ext4"):
            require_peer(program)
        _unmount_leftovers()
        with ExitStack() as stack:
            self._store.mkdir(parents=True)
            holder = self._root / "store.img"
            _allocate(holder, (len(self.paths) * 2 + 2) * self._size_bytes + 512 * _MIB)
            stack.callback(holder.unlink)
            _run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", str(holder))
            refused = _mount(holder, self._store)
            if refused is not None:
                pytest.skip(f"loop devices with XFS can't be mounted here: {refused}")
            stack.callback(_unmount, self._store)
            for number, path in self.paths.items():
                path.mkdir()
                _allocate(self._image(number), self._size_bytes)
                _run("mkfs.ext4", "-q", "-F", str(self._image(number)))
                stack.callback(_unmount_if_mounted, path)
                self._insert(number)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def cut(self) -> None:
        """Note what the disks hold now; those who write have to stand still."""
        for number in self.paths:
            _run("cp", "--reflink=always", str(self._image(number)), str(self._image(number, "after")))

    def power_on(self) -> None:
        """Put the disks back as they were at the cut; those who wrote have to be dead."""
        for number, path in self.paths.items():
            _unmount(path)
            self._image(number, "after").replace(self._image(number))
            self._insert(number)

    def _image(self, number: int, state: str = "now") -> Path:
        return self._store / f"disk-{number}-{state}.img"

    def _insert(self, number: int) -> None:
        refused = _mount(self._image(number), self.paths[number])
        assert refused is None, refused


def _allocate(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)


def _mount(image: Path, target: Path) -> str | None:
    """What mount said, if it refused."""
    command = ["mount", "-o", "loop", str(image), str(target)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if mounted.returncode == 0 else mounted.stderr.strip()


def _unmount(path: Path) -> None:
    """The kernel lets go of a loop device, and so of the file system that its image is on, a moment after its disk."""
    command = ["umount", str(path)]
    wait_until(
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, 10, f"{path} is unmounted"
    )


def _unmount_if_mounted(path: Path) -> None:
    if path.is_mount():
        _unmount(path)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _unmount_leftovers() -> None:
    """Unmount the disks of test runs that were killed; the innermost first."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for path in reversed(mounted):
        match = _NAME.search(path)
        if match is not None and not Path("/proc", match["pid"]).exists():
            subprocess.run(["umount", "--lazy", path], check=False)
