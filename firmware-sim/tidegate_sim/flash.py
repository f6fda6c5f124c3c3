"""The fleet's flash: what its devices remember without power, in one append-only file.

A device's flash holds its boot counter, its next sequence, its un-acknowledged events, and which of them a QoS 2
receiver has taken (PUBREC). A record is written before what it allows is sent; `commit` writes the records of the whole
fleet with one system call. The file survives the death of this process, not that of the machine: it is not synced.

    file    magic (8) | fleet name: length (2), UTF-8 | record ...
    record  CRC-32 of the rest (4) | device (4) | sequence (8) | kind (1) | length (2) | payload

A file that has grown to twice what it holds is written anew (and renamed), so its size stays bounded. A record that
ends behind the end of the file was cut by a crash and is left out; any other damage is an error.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from tidegate_sim.errors import FlashDamagedError, FleetFilesError

PAYLOAD_BYTES_MAX: Final = 0xFFFF
"""What the length field can say."""

REWRITE_BYTES_MIN: Final = 8 * 1024 * 1024
"""Below this size a file is never written anew: the rewriting would cost more than the space is worth."""

_MAGIC: Final = b"TGFLASH\x01"
_NAME_LENGTH = struct.Struct(">H")
_CRC = struct.Struct(">I")
_BODY = struct.Struct(">IQBH")
_COUNT = struct.Struct(">I")
_RECORD_SIZE: Final = _CRC.size + _BODY.size


class FlashKind(IntEnum):
    """What a flash record says."""

    BOOT = 1
    """`sequence` is the boot counter."""
    EVENT = 2
    """The event `sequence` with its payload; the next sequence is one higher."""
    RECEIVED = 3
    """The event `sequence` got its PUBREC (QoS 2): from now on only its PUBREL is sent again."""
    ERASED = 4
    """Events from `sequence` on were acknowledged; the payload holds how many."""
    NEXT = 5
    """`sequence` is the next one to be given out, though no event below it is held."""


class FlashRecord(NamedTuple):
    """One entry that a device writes to its flash."""

    kind: FlashKind
    sequence: int
    payload: bytes = b""


def erased(first: int, count: int) -> FlashRecord:
    """The record that events `first` to `first + count - 1` are no longer needed."""
    return FlashRecord(FlashKind.ERASED, first, _COUNT.pack(count))


@dataclass(slots=True)
class FlashImage:
    """What one device's flash holds now."""

    boot: int = 0
    next_sequence: int = 1
    events: dict[int, bytes] = field(default_factory=dict)
    """Sequence to payload, in order of sequence."""
    received: set[int] = field(default_factory=set)

    def apply(self, record: FlashRecord) -> None:
        """Take in one record."""
        kind, sequence, payload = record
        if kind == FlashKind.EVENT:
            self.events[sequence] = payload
            self.next_sequence = sequence + 1
        elif kind == FlashKind.ERASED:
            (count,) = _COUNT.unpack(payload)
            for number in range(sequence, sequence + count):
                self.events.pop(number, None)
                self.received.discard(number)
        elif kind == FlashKind.RECEIVED:
            self.received.add(sequence)
        elif kind == FlashKind.BOOT:
            self.boot = sequence
        else:
            self.next_sequence = sequence

    def records(self) -> Iterator[FlashRecord]:
        """The fewest records that make this image."""
        yield FlashRecord(FlashKind.BOOT, self.boot)
        for sequence, payload in self.events.items():
            yield FlashRecord(FlashKind.EVENT, sequence, payload)
        for sequence in self.received:
            yield FlashRecord(FlashKind.RECEIVED, sequence)
        yield FlashRecord(FlashKind.NEXT, self.next_sequence)


def encode_record(device: int, record: FlashRecord) -> bytes:
    """The record as it stands in the file."""
    body = _BODY.pack(device, record.sequence, record.kind, len(record.payload)) + record.payload
    return _CRC.pack(zlib.crc32(body)) + body


class Flash:
    """The flash of a whole fleet, device by device, in memory and (where a path is given) in a file.

    Args:
        path: the file; made where it is missing, taken up where it exists. None keeps the flash in memory only.
        fleet: the fleet's name, kept in the file so that another fleet does not take it up.
        devices: how many devices the fleet has; a file may hold fewer, never more.

    Raises:
        FleetFilesError: another process has the file, or it belongs to another fleet.
        FlashDamagedError: the file is not a flash file, or a record in it is damaged.
        OSError: the file can't be read or written.
    """

    def __init__(self, path: Path | None, *, fleet: str, devices: int) -> None:
        self.images = [FlashImage() for _ in range(devices)]
        self._path = path
        self._header = _MAGIC + _NAME_LENGTH.pack(len(fleet.encode())) + fleet.encode()
        self._waiting: list[tuple[int, FlashRecord]] = []
        self._file_bytes = 0
        self._rewrite_at_bytes = REWRITE_BYTES_MIN
        self._fd = -1
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _lock(self._fd, path)
                self._load(path)
            except BaseException:
                os.close(self._fd)
                raise

    def append(self, device: int, records: Iterable[FlashRecord]) -> None:
        """Note records of a device for the next `commit`."""
        self._waiting.extend((device, record) for record in records)

    def commit(self) -> None:
        """Write what was appended since the last commit; after that it survives power loss.

        Raises:
            OSError: the file can't be written.
        """
        if not self._waiting:
            return
        if self._fd >= 0:
            data = b"".join(encode_record(device, record) for device, record in self._waiting)
            _write_all(self._fd, data)
            self._file_bytes += len(data)
        for device, record in self._waiting:
            self.images[device].apply(record)
        self._waiting.clear()
        if self._file_bytes >= self._rewrite_at_bytes:
            self._rewrite()

    def close(self) -> None:
        """Close the file; records not committed are lost, as they are without power."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        if len(data) < len(self._header) and self._header.startswith(data):
            os.ftruncate(self._fd, 0)
            _write_all(self._fd, self._header)
            self._file_bytes = len(self._header)
            return
        if not data.startswith(_MAGIC):
            raise FlashDamagedError(f"{path} is not a flash file", hint="name another directory with --flash-dir")
        if not data.startswith(self._header):
            raise FleetFilesError(f"{path} belongs to a fleet with other device names", hint="use another --flash-dir")
        end = len(self._header)
        for device, record, record_end in _read_records(path, data, len(self._header)):
            if device >= len(self.images):
                raise FleetFilesError(
                    f"{path} holds device {device}, but the fleet has only {len(self.images)}",
                    hint=f"start it with --devices {device + 1} or more, or use another --flash-dir",
                )
            self.images[device].apply(record)
            end = record_end
        os.ftruncate(self._fd, end)
        self._file_bytes = end

    def _rewrite(self) -> None:
        assert self._path is not None
        partial = self._path.with_name(f"{self._path.name}.partial")
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            _lock(fd, partial)
            size = len(self._header)
            _write_all(fd, self._header)
            for device, image in enumerate(self.images):
                data = b"".join(encode_record(device, record) for record in image.records())
                _write_all(fd, data)
                size += len(data)
            partial.replace(self._path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._file_bytes = fd, size
        self._rewrite_at_bytes = max(REWRITE_BYTES_MIN, 2 * size)


def _read_records(path: Path, data: bytes, offset: int) -> Iterator[tuple[int, FlashRecord, int]]:
    """Device, record, and the offset behind the record, up to the end or a record that a crash cut."""
    while offset + _RECORD_SIZE <= len(data):
        (crc,) = _CRC.unpack_from(data, offset)
        device, sequence, kind, length = _BODY.unpack_from(data, offset + _CRC.size)
        end = offset + _RECORD_SIZE + length
        if end > len(data):
            return
        if zlib.crc32(data[offset + _CRC.size : end]) != crc:
            raise FlashDamagedError(
                f"{path}: the record at byte {offset} is damaged",
                hint="something else wrote to the file; begin a new fleet with another --flash-dir and --ledger",
            )
        yield device, FlashRecord(FlashKind(kind), sequence, data[offset + _RECORD_SIZE : end]), end
        offset = end


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FleetFilesError(
            f"another fleet is running on {path}", hint="give each fleet its own --ledger and --flash-dir"
        ) from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
