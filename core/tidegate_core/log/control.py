"""Control records: what replicas write into a log for themselves. Consumers skip them.

A control record's key is its version and type. Types are Kafka's: 2 begins an epoch (LeaderChangeMessage, KIP-595), 6
says who votes from here on (KIP-853), as JSON here, since Kafka's layout carries endpoints that are metadata's with us.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tidegate_core.errors import CorruptBatchRefused
from tidegate_wire.identifiers import NodeId
from tidegate_wire.records import BatchError, RecordBatchBuilder, read_records

LEADER_CHANGE: Final = 2
VOTERS: Final = 6

_KEY: Final = struct.Struct(">hh")
_LEADER: Final = struct.Struct(">hi")
_VOTER: Final = struct.Struct(">ib")


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """Key and value."""

    key: bytes
    value: bytes

    def to_batch(self, now_ms: int) -> bytearray:
        """A batch of this record alone, to be stamped with its offset and epoch."""
        builder = RecordBatchBuilder(is_control=True)
        builder.append(now_ms, self.key, self.value)
        return bytearray(builder.build())


def leader_change(leader: NodeId, voters: Sequence[NodeId]) -> ControlRecord:
    """`leader` leads from here on."""
    listed = b"".join((bytes([len(voters) + 1]), *(_VOTER.pack(voter, 0) for voter in voters)))
    return ControlRecord(_KEY.pack(0, LEADER_CHANGE), _LEADER.pack(0, leader) + listed + b"\x01\x00")


def voters_record(voters: Sequence[NodeId]) -> ControlRecord:
    """These vote from here on, the preferred leader first."""
    return ControlRecord(_KEY.pack(0, VOTERS), json.dumps({"voters": list(voters)}).encode())


def begins_epoch(batch: bytes | memoryview) -> bool:
    """Whether a control batch is the one that opens its leader's epoch: no other batch has a higher epoch than the one
    before it, but the first of a log.

    Raises:
        CorruptBatchRefused: it can't be read.
    """
    try:
        return any(_KEY.unpack_from(record.key or b"")[1] == LEADER_CHANGE for record in read_records(batch))
    except (BatchError, struct.error) as error:
        raise CorruptBatchRefused(f"a control record can't be read: {error!r}") from error


def read_voters(batch: bytes | memoryview) -> tuple[NodeId, ...] | None:
    """The voters that a control batch sets; None if it is about something else.

    Raises:
        CorruptBatchRefused: it can't be read.
    """
    try:
        for record in read_records(batch):
            if _KEY.unpack_from(record.key or b"")[1] == VOTERS:
                voters = tuple(NodeId(int(voter)) for voter in json.loads(record.value or b"")["voters"])
                break
        else:
            return None
    except (BatchError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise CorruptBatchRefused(f"a control record can't be read: {error!r}") from error
    if not voters or len(set(voters)) < len(voters):
        raise CorruptBatchRefused(f"a control record sets the voters {voters}")
    return voters


class VoterSets:
    """Who voted from which offset on: the sets in a log, and before them the one the partition was made with."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Sequence[tuple[int, Sequence[int]]] = ()) -> None:
        self._entries = [(offset, tuple(NodeId(voter) for voter in voters)) for offset, voters in entries]

    @property
    def entries(self) -> tuple[tuple[int, tuple[NodeId, ...]], ...]:
        """Offsets, growing, and the sets; at offset -1 the first one."""
        return tuple(self._entries)

    @property
    def latest(self) -> tuple[int, tuple[NodeId, ...]]:
        """The newest set and where it stands."""
        return self._entries[-1]

    def at(self, offset: int) -> tuple[NodeId, ...]:
        """Who votes in a log that ends at `offset`."""
        return next(
            voters for start, voters in reversed(self._entries) if start < offset or start == self._entries[0][0]
        )

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, offset: int, voters: tuple[NodeId, ...]) -> None:
        """A control record at `offset` sets the voters. Seen before (in a checkpoint) is no news."""
        if not self._entries or offset > self._entries[-1][0]:
            self._entries.append((offset, voters))

    def before(self, offset: int) -> VoterSets:
        """The sets of a log that ends at `offset`."""
        return VoterSets([*self._entries[:1], *(entry for entry in self._entries[1:] if entry[0] < offset)])

    def cut_start(self, offset: int) -> None:
        """Forget all sets before `offset` but the last: they can't come back."""
        while len(self._entries) > 1 and self._entries[1][0] < offset:
            del self._entries[0]
