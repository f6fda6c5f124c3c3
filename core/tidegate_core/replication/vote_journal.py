"""The file `votes`: what the replicas of a node may never forget about elections, as records that are only added to.

Layout: a head, then slots of the same size, each empty (zeros) or a record. The file has its full size from the start,
so that a vote can be written when the disk is full, and a sync changes no more than bytes. When no slot is free the
live states are written to a new file, which then takes the place of the old one.

A crash may leave records of the last group half written, and no others: a slot lies within one sector of the disk, and
ends with a mark that is not zero, so one without its mark is torn; a whole one with a wrong CRC is damage. Which slots
are of the last group is told by what any of its records says of its place in it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog
from crc32c import crc32c

from tidegate_core.errors import StorageFailed
from tidegate_core.log.files import replace_file, storage_error, write_all
from tidegate_core.raft.messages import ReplicaKey, VoteState
from tidegate_wire.identifiers import LeaderEpoch, NodeId

SLOT_BYTES: Final = 64
"""A divisor of every disk's sector size."""

SLOTS_MIN: Final = 4095
"""With the head 256 KiB: some elections of a thousand partitions between two times the file is written anew."""

SLOTS_PER_STATE_MIN: Final = 4
"""Room for new records in a new file, for each one that it begins with: how much is written twice is bounded."""

_KIND: Final = b"TGVOTES1"
_HEAD: Final = struct.Struct("<8sIB")  # kind, slots, whether it stands for a damaged file
_RECORD: Final = struct.Struct("<B16siiiIx")  # type, topic id, partition, epoch, voted for, place in its group
_CRC: Final = struct.Struct("<I")
_CRC_AT: Final = SLOT_BYTES - 5
_MARK: Final = b"\xa5"
_EMPTY: Final = bytes(SLOT_BYTES)

_FORGOTTEN: Final = 1
_MAY_VOTE: Final = 2
_MAY_NOT_VOTE: Final = 3
_NOBODY: Final = -1

_logger = structlog.get_logger()

Change = tuple[ReplicaKey, VoteState | None]
"""A replica's new state; None if the replica is gone."""


class VoteJournal:
    """Used by one thread at a time."""

    def __init__(self, path: Path, *, must_exist: bool) -> None:
        """Read the file, or make one. What a crash left half written is removed.

        `must_exist`: the node had a file once, so having none is damage.

        Raises:
            OSError: it can't be read or written.
        """
        self._path = path
        self._descriptor = -1
        self.states: dict[ReplicaKey, VoteState] = {}
        """What the records add up to. Of a damaged file: those that can be read."""
        self.is_damaged = False
        """Whether records may be gone, in this file or in one that it took the place of."""
        self._free_slot = self._slots = 0
        """The slots before `_free_slot` are used; with none free the file is written anew first."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            self.is_damaged, is_clean = must_exist, False
        else:
            is_clean = self._read(data)
        if self.is_damaged:
            _logger.error("votes_damaged", path=str(path), hint="this node's votes count again when it has caught up")
        if is_clean:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        else:
            self._rewrite(self.states)

    def append(self, changes: Sequence[Change]) -> None:
        """Write what changed; on disk when this returns.

        Raises:
            DiskFull, StorageError: nothing was written, and a later time may work.
            StorageFailed: what the disk holds is not known.
        """
        after = self.states.copy()
        for key, state in changes:
            if state is None:
                after.pop(key, None)
            else:
                after[key] = state
        if self._free_slot + len(changes) > self._slots:
            try:
                self._rewrite(after)
            except OSError as error:
                raise storage_error(error, f"{self._path} can't be written") from error
        else:
            self._write(_encode(changes))
            self._free_slot += len(changes)
        self.states = after

    def settle_damage(self) -> None:
        """All that the damage asks for is done, and saved: the next start shall not find it any more.

        Raises:
            DiskFull, StorageError, StorageFailed: it will; nothing else is wrong.
        """
        self.is_damaged = False
        try:
            self._rewrite(self.states)
        except OSError as error:
            raise storage_error(error, f"{self._path} can't be written") from error

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self, data: bytes) -> bool:
        """Take the states from the file; returns whether it can be added to."""
        slots = _read_head(data[:SLOT_BYTES])
        if slots is None or len(data) != (1 + slots[0]) * SLOT_BYTES:
            self.is_damaged = True
        else:
            self._slots, self.is_damaged = slots
        last_group = 0
        torn: list[int] = []
        for slot in range(len(data) // SLOT_BYTES - 1):
            record = data[(1 + slot) * SLOT_BYTES : (2 + slot) * SLOT_BYTES]
            if not record.endswith(_MARK):
                if record.endswith(b"\0"):
                    torn.append(slot)
                else:
                    self.is_damaged = True
            elif crc32c(record[:_CRC_AT]) != _CRC.unpack_from(record, _CRC_AT)[0]:
                self.is_damaged = True
            else:
                place = self._take(record)
                last_group = slot - place
                self._free_slot = slot + 1
        if any(slot < last_group for slot in torn):
            self.is_damaged = True  # what was followed by another group had been synced
        is_tail_empty = not any(data[(1 + self._free_slot) * SLOT_BYTES :])
        return is_tail_empty and not self.is_damaged and not any(slot < self._free_slot for slot in torn)

    def _take(self, record: bytes) -> int:
        """Read one record into `states`; returns its place in its group."""
        kind, topic_id, partition, epoch, voted_for, place = _RECORD.unpack_from(record)
        key = ReplicaKey(UUID(bytes=topic_id), partition)
        if kind == _FORGOTTEN:
            self.states.pop(key, None)
        else:
            voter = None if voted_for == _NOBODY else NodeId(voted_for)
            self.states[key] = VoteState(LeaderEpoch(epoch), voter, kind == _MAY_VOTE)
        return int(place)

    def _write(self, records: bytes) -> None:
        try:
            write_all(self._descriptor, records, (1 + self._free_slot) * SLOT_BYTES)
        except OSError as error:
            self._slots = 0  # parts of it may be there: only a new file is without them
            raise storage_error(error, f"{self._path} can't be written") from error
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise StorageFailed(
                f"{self._path} can't be synced: {error.strerror}",
                hint="look at the kernel's log for disk errors, then start the core again",
            ) from error

    def _rewrite(self, states: Mapping[ReplicaKey, VoteState]) -> None:
        """Write a new file; until that worked, nothing is added to the old one."""
        self._slots = 0
        slots = max(SLOTS_MIN, SLOTS_PER_STATE_MIN * len(states))
        head = _HEAD.pack(_KIND, slots, self.is_damaged)
        data = head.ljust(_CRC_AT, b"\0")
        data += _CRC.pack(crc32c(data)) + _MARK + _encode(list(states.items()))
        replace_file(self._path, data.ljust((1 + slots) * SLOT_BYTES, b"\0"), durable=True)
        self.close()
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self._free_slot, self._slots = len(states), slots


def _read_head(head: bytes) -> tuple[int, bool] | None:
    """How many slots there are, and whether the file stands for a damaged one; None if it is no head."""
    if len(head) < SLOT_BYTES or not head.endswith(_MARK):
        return None
    kind, slots, is_damaged = _HEAD.unpack_from(head)
    if kind != _KIND or crc32c(head[:_CRC_AT]) != _CRC.unpack_from(head, _CRC_AT)[0]:
        return None
    return slots, bool(is_damaged)


def _encode(changes: Sequence[Change]) -> bytes:
    """The records of one group."""
    parts: list[bytes] = []
    for place, (key, state) in enumerate(changes):
        kind, epoch, voted_for = _FORGOTTEN, 0, _NOBODY
        if state is not None:
            kind, epoch = _MAY_VOTE if state.may_vote else _MAY_NOT_VOTE, state.epoch
            voted_for = _NOBODY if state.voted_for is None else state.voted_for
        body = _RECORD.pack(kind, key.topic_id.bytes, key.partition, epoch, voted_for, place).ljust(_CRC_AT, b"\0")
        parts += body, _CRC.pack(crc32c(body)), _MARK
    return b"".join(parts)
