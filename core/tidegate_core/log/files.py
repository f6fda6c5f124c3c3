"""What a log asks of the file system: whole writes, whole replacements, directories on disk, few open files."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Final, Protocol

from crc32c import crc32c

from tidegate_core.errors import DiskFull, StorageError, StorageFailed

OPEN_FILES_MAX: Final = 512
"""Segments held open at once: half of the common limit of 1024 file descriptors, the rest is for connections."""

PARTIAL_SUFFIX: Final = ".partial"
"""A file that is being written, to be renamed when it is whole."""

DELETED_SUFFIX: Final = ".deleted"
"""Files and directories on their way out: gone for every reader, their bytes freed in the background."""

NO_ROOM_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that say there is no room, not that the disk is broken: what was there before is still there."""

NO_DESCRIPTOR_ERRORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors that say too many files are open, not that the disk is broken."""

_SEAL: Final = struct.Struct("<8sIQ")  # kind and version, CRC-32C of the body, its length


class DamagedFile(ValueError):  # noqa: N818  # named for what happened
    """A small file whose seal does not fit its body; the message says how."""


class FileOwner(Protocol):
    """What can be held open by `OpenFiles`."""

    path: Path

    is_dirty: bool
    """Whether writes are not handed to a sync yet, so that the descriptor must stay open."""

    def released(self) -> None:
        """The file was closed."""


class OpenFiles:
    """Descriptors of the files used last, at most `files_max` besides dirty ones; used by one thread."""

    def __init__(self, files_max: int = OPEN_FILES_MAX) -> None:
        self._files_max = files_max
        self._descriptors: OrderedDict[FileOwner, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._descriptors)

    def get(self, owner: FileOwner) -> int:
        """A descriptor for reading and writing `owner.path`, valid until the next call.

        Raises:
            OSError: the file can't be opened.
        """
        descriptor = self._descriptors.get(owner)
        if descriptor is not None:
            self._descriptors.move_to_end(owner)
            return descriptor
        return self._add(owner, os.open(owner.path, os.O_RDWR | os.O_CLOEXEC))

    def create(self, owner: FileOwner) -> int:
        """Make `owner.path`, which must not exist.

        Raises:
            OSError: the file exists, or can't be made.
        """
        return self._add(owner, os.open(owner.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))

    def close(self, owner: FileOwner) -> None:
        """Close the file if it is open."""
        descriptor = self._descriptors.pop(owner, None)
        if descriptor is not None:
            os.close(descriptor)
            owner.released()

    def close_all(self) -> None:
        """Close what is open."""
        for owner in list(self._descriptors):
            self.close(owner)

    def _add(self, owner: FileOwner, descriptor: int) -> int:
        if len(self._descriptors) >= self._files_max:
            clean = [other for other in self._descriptors if not other.is_dirty]
            for other in clean[: len(self._descriptors) - self._files_max + 1]:
                self.close(other)
        self._descriptors[owner] = descriptor
        return descriptor


def storage_error(error: OSError, what: str) -> StorageError:
    """The error to raise for `error`: whether it passes by itself decides which."""
    if error.errno in NO_ROOM_ERRORS:
        return DiskFull(f"{what}: {error.strerror}", hint="free some space; writing goes on by itself then")
    if error.errno in NO_DESCRIPTOR_ERRORS:
        return StorageError(f"{what}: {error.strerror}", hint="raise the limit on open files (ulimit -n)")
    return StorageFailed(
        f"{what}: {error.strerror or error}", hint="look at the kernel's log for disk errors, then start the core again"
    )


def write_all(descriptor: int, data: bytes | bytearray | memoryview, position: int) -> None:
    """Write all of `data` at `position`.

    Raises:
        OSError: part of it may have been written.
    """
    written = os.pwrite(descriptor, data, position)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], position + written)


_unsafe_directories: Final[set[Path]] = set()
"""Those of which a sync failed in this process: the kernel tells it once, drops what it could not write, and takes the
next sync for a success."""


def sync_directory(path: Path) -> None:
    """Put names made, renamed or removed in the directory on disk.

    Raises:
        OSError: the sync failed, this time or an earlier one, whoever asked for that.
    """
    if path in _unsafe_directories:
        raise OSError(errno.EIO, "an earlier sync of it failed", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError:
        _unsafe_directories.add(path)
        raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Replace the file with `data`, whole or not at all; on disk when this returns if `durable`.

    Raises:
        OSError: the file has its old content.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        write_all(descriptor, data, 0)
        if durable:
            os.fdatasync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()  # the next try shall not begin with a file of which a sync failed
        raise
    finally:
        os.close(descriptor)
    partial.replace(path)
    if durable:
        sync_directory(path.parent)


def seal(kind: bytes, body: bytes) -> bytes:
    """`body` behind a head that tells later whether it is whole; `kind` is 8 bytes with the format's version."""
    return _SEAL.pack(kind, crc32c(body), len(body)) + body


def unseal(kind: bytes, data: bytes) -> bytes:
    """The body that `seal` was given.

    Raises:
        DamagedFile: it is another kind of file, cut, or changed.
    """
    if len(data) < _SEAL.size:
        raise DamagedFile(f"{len(data)} bytes are too few")
    found, crc, size_bytes = _SEAL.unpack_from(data)
    if found != kind:
        raise DamagedFile(f"begins with {found!r} instead of {kind!r}")
    body = data[_SEAL.size :]
    if len(body) != size_bytes or crc32c(body) != crc:
        raise DamagedFile("the CRC does not fit")
    return body


def seal_twice(kind: bytes, body: bytes) -> bytes:
    """As `seal`, two times: for the little that nothing else on the disk could tell."""
    return seal(kind, body) * 2


def unseal_either(kind: bytes, data: bytes) -> bytes:
    """The body that `seal_twice` was given, from whichever copy is whole.

    Raises:
        DamagedFile: none is.
    """
    half = len(data) // 2
    try:
        return unseal(kind, data[:half])
    except DamagedFile:
        return unseal(kind, data[half:])
