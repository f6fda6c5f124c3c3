"""The disks of the nodes: real files, of which the simulator knows what a power cut would leave.

A file's bytes are safe once it was synced, a name once its directory was. What is not safe may be lost at a power cut,
kept, or kept in part: sectors of a write, in order or not, a size without the bytes, a name without the rename before
it. kill -9 leaves everything, and what was not safe before is not safe after.

Every life of a node gets a folder of its own, made from what its last one left: what a dead process still does, while
its tasks are cleared away, it does to files that nobody looks at any more.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

SECTOR_BYTES: Final = 512
"""Written whole or not at all by a disk."""

Inode = int


class Loss(Enum):
    """What becomes of that which is not safe."""

    NOTHING = auto()
    """kill -9: the page cache survives."""
    EVERYTHING = auto()
    TAIL = auto()
    """Each file keeps the beginning of what was written, up to some sector or byte."""
    SECTORS = auto()
    """Each sector and name for itself."""


@dataclass(slots=True)
class File:
    """In a crash image."""

    data: bytes
    safe: bytes
    """What of it was synced."""


@dataclass(slots=True)
class Directory:
    """In a crash image."""

    entries: dict[str, File | Directory]
    safe: dict[str, File | Directory]
    """The entries of which the names were synced; the same objects where a file has the same name in both."""

    def files(self, prefix: str = "") -> Iterator[tuple[str, File]]:
        """Its files and those below, by their paths."""
        for name, entry in sorted(self.entries.items()):
            if isinstance(entry, File):
                yield prefix + name, entry
            else:
                yield from entry.files(f"{prefix}{name}/")


@dataclass(slots=True)
class _Safe:
    """What is on the disk itself, by inode."""

    contents: dict[Inode, bytes] = field(default_factory=dict)
    names: dict[Inode, dict[str, Inode]] = field(default_factory=dict)
    """Of directories."""
    ghosts: dict[Inode, File | Directory] = field(default_factory=dict)
    """Gone when this life began, but their names are still safe."""


class NodeDisk:
    """The disk of one node, in all its lives. `root` is the folder of the current one."""

    def __init__(self, base: Path, random: Random) -> None:
        self._base = base
        self._random = random
        self._number = 0
        self._safe = _Safe()
        self.root = base / "0"
        self.is_full = False
        self.operations = 0
        """Syncs and renames so far."""
        self.fails_at: int | None = None
        """The first sync from this operation on gets EIO."""
        self.cut_at: int | None = None
        """The power goes before the first operation from this one on."""
        self.on_cut: Callable[[], None] = lambda: None
        """Called when it did: the process is to be killed, and `next_life` gets what was left."""
        self.image: Directory | None = None
        """What was left at the crash, once there was one."""
        self._failed: set[Inode] = set()
        """Had EIO: what was written to them is lost, whatever later syncs say."""
        self._begin(Directory({}, {}))

    # --- what the node does

    def sync(self, descriptor: int, path: str) -> None:
        """The node syncs a file or directory.

        Raises:
            OSError: EIO.
        """
        inode = os.fstat(descriptor).st_ino
        if not self._operate():
            return
        if self.fails_at is not None and self.operations >= self.fails_at:
            self.fails_at = None
            self._failed.add(inode)
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if inode in self._failed:
            return
        if os.path.isdir(path):  # noqa: PTH112  # the fast way: this is called for every sync
            self._safe.names[inode] = names = _list(path)
            for child in names.values():
                self._safe.ghosts.pop(child, None)
        else:
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # noqa: PTH123  # a descriptor, not a path
                self._safe.contents[inode] = file.read()

    def rename(self) -> None:
        """The node is about to rename something."""
        self._operate()

    def _operate(self) -> bool:
        """Count an operation; False: the power is gone, and nothing that is done now counts."""
        if self.image is not None:
            return False
        self.operations += 1
        if self.cut_at is not None and self.operations >= self.cut_at:
            self.cut_at = None
            self.crash(self._random.choice((Loss.EVERYTHING, Loss.TAIL, Loss.SECTORS)))
            self.on_cut()
            return False
        return True

    # --- crashes

    def crash(self, loss: Loss) -> None:
        """From here on nothing that the life does is kept."""
        if self.image is None:
            self.image = self._image(str(self.root), os.stat(self.root).st_ino, loss)  # noqa: PTH116

    def next_life(self) -> Path:
        """A new folder, with what the crash, or an orderly end, left."""
        if self.image is None:
            self.crash(Loss.NOTHING)
        image = self.image
        assert image is not None
        old_root = self.root
        self.cut_at = self.fails_at = None
        self._number += 1
        self.root = self._base / str(self._number)
        self._begin(image)
        shutil.rmtree(old_root)
        return self.root

    def wipe(self) -> None:
        """The disk is replaced by an empty one."""
        assert self.image is not None, "only a dead node's"
        self.image = Directory({}, {})

    def _begin(self, image: Directory) -> None:
        self.root.mkdir(parents=True)
        self._safe = _Safe()
        self._failed.clear()
        self.image = None
        self._make(image, self.root, {})

    def _make(self, directory: Directory, path: Path, made: dict[int, Inode]) -> Inode:
        """Write a directory's files, and note which of them are safe; `made` has inodes by the entries' ids."""
        inode = path.stat().st_ino
        for name, entry in sorted(directory.entries.items()):
            here = path / name
            if isinstance(entry, File):
                here.write_bytes(entry.data)
                os.utime(here, ns=(time.time_ns(), time.time_ns()))  # the clock may be a virtual one
                made[id(entry)] = here.stat().st_ino
                self._safe.contents[here.stat().st_ino] = entry.safe
            else:
                here.mkdir()
                made[id(entry)] = self._make(entry, here, made)
        names = self._safe.names[inode] = {}
        for name, entry in sorted(directory.safe.items()):
            known = made.get(id(entry))
            if known is None:
                known = -1 - len(self._safe.ghosts)
                self._safe.ghosts[known] = entry
            names[name] = known
        return inode

    def _image(self, path: str, inode: Inode, loss: Loss) -> Directory:
        """What becomes of a directory, which may be gone already."""
        now = _list(path) if path else {}
        safe = self._safe.names.get(inode, {})
        chosen = now if loss is Loss.NOTHING else self._choose_names(safe, now, loss)
        entries: dict[Inode, File | Directory] = {}
        paths = {child: f"{path}/{name}" for name, child in now.items()}
        for child in (*chosen.values(), *safe.values()):
            if child not in entries:
                entries[child] = self._image_of(paths.get(child, ""), child, loss)
        image = Directory(
            {name: entries[child] for name, child in chosen.items()},
            {name: entries[child] for name, child in safe.items()},
        )
        if loss is not Loss.NOTHING:
            image.safe = dict(image.entries)
        return image

    def _image_of(self, path: str, inode: Inode, loss: Loss) -> File | Directory:
        ghost = self._safe.ghosts.get(inode)
        if ghost is not None:
            return _all_safe(ghost)
        if inode in self._safe.names or (path and os.path.isdir(path)):  # noqa: PTH112
            return self._image(path, inode, loss)
        safe = self._safe.contents.get(inode, b"")
        now = Path(path).read_bytes() if path else safe
        if loss is Loss.NOTHING:
            return File(now, safe)
        left = self._choose_bytes(safe, now, loss)
        return File(left, left)

    def _choose_names(self, safe: dict[str, Inode], now: dict[str, Inode], loss: Loss) -> dict[str, Inode]:
        """Which of the changes since the sync were carried out: each for itself, a rename as a whole."""
        result = dict(safe)
        if loss is Loss.EVERYTHING:
            return result
        was_named = {inode: name for name, inode in safe.items()}
        changes: list[tuple[str | None, str | None, Inode]] = []
        moved: set[str] = set()
        for name, inode in sorted(now.items()):
            if safe.get(name) != inode:
                old = was_named.get(inode)
                if old is not None and now.get(old) != inode:
                    moved.add(old)
                    changes.append((old, name, inode))
                else:
                    changes.append((None, name, inode))
        changes += [(name, None, 0) for name in sorted(safe) if name not in now and name not in moved]
        changes.sort(key=lambda change: change[0] is None)  # what was moved away made room for what has its name now
        for old, new, inode in changes:
            is_room = new not in moved or new not in result
            if is_room and self._random.random() < 0.5:
                if old is not None:
                    del result[old]
                if new is not None:
                    result[new] = inode
        return result

    def _choose_bytes(self, safe: bytes, now: bytes, loss: Loss) -> bytes:
        if safe == now or loss is Loss.EVERYTHING:
            return safe
        if loss is Loss.TAIL:
            first = next((at for at, (old, new) in enumerate(zip(safe, now, strict=False)) if old != new), None)
            begin = min(len(safe), len(now)) if first is None else first
            end = self._random.randint(begin, len(now)) if begin < len(now) else begin
            if self._random.random() < 0.5:
                end = end // SECTOR_BYTES * SECTOR_BYTES
            return now[:end] + safe[end:] if end >= begin else safe
        size = self._random.choice((len(safe), len(now), self._random.randint(*sorted((len(safe), len(now))))))
        left = bytearray(safe[:size].ljust(size, b"\0"))
        for at in range(0, size, SECTOR_BYTES):
            new = now[at : min(at + SECTOR_BYTES, size)]
            if self._random.random() < 0.5:
                left[at : at + len(new)] = new
        return bytes(left)

    # --- what is asked

    def safe_bytes(self, path: Path) -> int:
        """How much of a file, from its beginning, is as it was when it was synced."""
        now = path.read_bytes()
        safe = self._safe.contents.get(path.stat().st_ino, b"")
        if now.startswith(safe):
            return len(safe)
        return next(at for at, (old, new) in enumerate(zip(safe, now, strict=False)) if old != new)

    def has_safe_name(self, path: Path) -> bool:
        """Whether a power cut leaves the file or directory under this name."""
        while path != self.root:
            names = self._safe.names.get(path.parent.stat().st_ino, {})
            if names.get(path.name) != path.stat().st_ino:
                return False
            path = path.parent
        return True

    def flip(self, wanted: Callable[[str, bytes], range]) -> str | None:
        """Flip a bit in what a crash left, in a file and among the bytes that `wanted` names for it."""
        assert self.image is not None, "only a dead node's"
        choices = [(name, file, wanted(name, file.data)) for name, file in self.image.files()]
        choices = [choice for choice in choices if choice[2]]
        if not choices:
            return None
        name, file, places = self._random.choice(choices)
        at = self._random.choice(places)
        changed = bytearray(file.data)
        changed[at] ^= 1 << self._random.randrange(8)
        file.data = file.safe = bytes(changed)
        return f"{name} at byte {at}"


def _all_safe(entry: File | Directory) -> File | Directory:
    """What comes back of something removed, if its removal is lost."""
    if isinstance(entry, File):
        return File(entry.safe, entry.safe)
    entries = {name: _all_safe(child) for name, child in entry.safe.items()}
    return Directory(entries, dict(entries))


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  # this is called for every sync


def _list(path: str) -> dict[str, Inode]:
    with os.scandir(path) as entries:
        return {entry.name: entry.inode() for entry in entries}


class Disks:
    """All nodes' disks under one folder; `with disks.watched():` while they are used."""

    def __init__(self, base: Path, random: Random) -> None:
        self._base = str(base) + "/"
        self._random = random
        self._path = base
        self._disks: dict[str, NodeDisk] = {}

    def disk(self, name: str) -> NodeDisk:
        """The disk of a node; made when it is first asked for."""
        disk = self._disks.get(name)
        if disk is None:
            disk = self._disks[name] = NodeDisk(self._path / name, Random(self._random.random()))
        return disk

    def _disk_of(self, path: str) -> NodeDisk | None:
        """Whose current life has this path."""
        if not path.startswith(self._base):
            return None
        name, number, *_ = [*path[len(self._base) :].split("/", 2), ""]
        disk = self._disks.get(name)
        return disk if disk is not None and disk.root.name == number else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The operating system's calls go through the disks meanwhile."""
        real_fsync, real_pwrite, real_ftruncate = os.fsync, os.pwrite, os.ftruncate
        real_rename, real_replace = os.rename, os.replace
        disks = self._disks.values()

        def sync(descriptor: int) -> None:
            path = _path_of(descriptor)
            disk = self._disk_of(path)
            if disk is not None:
                disk.sync(descriptor, path)
            elif not path.startswith(self._base):
                real_fsync(descriptor)

        def pwrite(descriptor: int, data: Any, position: int) -> int:
            if any(disk.is_full for disk in disks):
                self._check_room(descriptor, position + len(data))
            return real_pwrite(descriptor, data, position)

        def ftruncate(descriptor: int, size_bytes: int) -> None:
            if any(disk.is_full for disk in disks):
                self._check_room(descriptor, size_bytes)
            real_ftruncate(descriptor, size_bytes)

        def rename(source: Any, target: Any) -> None:
            disk = self._disk_of(os.fspath(target))
            if disk is not None:
                disk.rename()
            real_rename(source, target)

        def replace(source: Any, target: Any) -> None:
            disk = self._disk_of(os.fspath(target))
            if disk is not None:
                disk.rename()
            real_replace(source, target)

        with (
            patch.object(os, "fsync", sync),
            patch.object(os, "fdatasync", sync),
            patch.object(os, "pwrite", pwrite),
            patch.object(os, "ftruncate", ftruncate),
            patch.object(os, "rename", rename),
            patch.object(os, "replace", replace),
        ):
            yield

    def _check_room(self, descriptor: int, end: int) -> None:
        """A full disk takes what replaces bytes, and nothing that makes a file longer."""
        path = _path_of(descriptor)
        disk = self._disk_of(path)
        if disk is not None and disk.is_full and end > os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def close_files(self, disk: NodeDisk) -> None:
        """Close what the dead life of a node left open."""
        prefix = f"{disk.root}/"
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # numbers, not paths
            try:
                if _path_of(int(name)).startswith(prefix):
                    os.close(int(name))
            except OSError:
                continue  # the descriptor that listed them
