"""The file `checkpoint` of a partition: what can't be read from the segments, and what saves reading them.

- `log_start_offset`: records below were deleted, and must not come back.
- `recovery_point`: everything before this place is on disk and was checked; a start reads on from here.
- `leader_epochs`: where each epoch begins (KIP-101).
- `voter_sets`: who voted from which offset on (KIP-853); the records that say so may be deleted.
- `compacted_to`: batches before lack records that compaction removed, here or where they were copied from.
- `segment_created_ms`: when the segment of the recovery point was begun, for `segment.ms`.

A missing or damaged file costs a full scan of the log, and never a record. It holds its content twice: who voted can't
be read from anywhere else once the records that say so were deleted.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tidegate_core.log.files import DamagedFile, replace_file, seal_twice, unseal, unseal_either
from tidegate_core.log.segment import OFFSET_ZERO, LogPosition
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset

CHECKPOINT_NAME: Final = "checkpoint"
_KIND: Final = b"TGCHECK2"
_KIND_ONCE: Final = b"TGCHECK1"
"""Before there were voters: the content stood there once."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of the file."""

    log_start_offset: Offset = OFFSET_ZERO
    recovery_point: LogPosition | None = None
    leader_epochs: tuple[tuple[LeaderEpoch, Offset], ...] = ()
    segment_created_ms: int = 0
    voter_sets: tuple[tuple[int, tuple[NodeId, ...]], ...] = ()
    compacted_to: Offset = OFFSET_ZERO

    def encode(self) -> bytes:
        """As the file holds it: JSON behind a seal, so that a person can read it."""
        point = self.recovery_point
        fields = {
            "log_start_offset": self.log_start_offset,
            "recovery_point": None if point is None else point._asdict(),
            "leader_epochs": self.leader_epochs,
            "segment_created_ms": self.segment_created_ms,
            "voter_sets": self.voter_sets,
            "compacted_to": self.compacted_to,
        }
        return seal_twice(_KIND, json.dumps(fields).encode() + b"\n")

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint:
        """Read what `encode` wrote.

        Raises:
            DamagedFile: it is something else.
        """
        try:
            fields = json.loads(_unseal(data))
            point = fields["recovery_point"]
            return cls(
                log_start_offset=Offset(fields["log_start_offset"]),
                recovery_point=None if point is None else LogPosition(**point),
                leader_epochs=tuple((LeaderEpoch(epoch), Offset(start)) for epoch, start in fields["leader_epochs"]),
                segment_created_ms=fields["segment_created_ms"],
                voter_sets=tuple(
                    (offset, tuple(NodeId(voter) for voter in voters))
                    for offset, voters in fields.get("voter_sets", ())
                ),
                compacted_to=Offset(fields.get("compacted_to", OFFSET_ZERO)),
            )
        except (KeyError, TypeError) as error:
            raise DamagedFile(f"a field is missing or of another type: {error}") from error


def _unseal(data: bytes) -> bytes:
    try:
        return unseal_either(_KIND, data)
    except DamagedFile:
        return unseal(_KIND_ONCE, data)


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """The checkpoint in `directory`; None if there is none.

    Raises:
        DamagedFile: there is one, but not whole.
        OSError: it can't be read.
    """
    try:
        return Checkpoint.decode((directory / CHECKPOINT_NAME).read_bytes())
    except FileNotFoundError:
        return None


class CheckpointWriter:
    """Writes the file from any thread; a slower thread never undoes what a faster one wrote."""

    def __init__(self, directory: Path, content: Checkpoint) -> None:
        self._path = directory / CHECKPOINT_NAME
        self._content = content
        self._lock = threading.Lock()
        self.generation = 0
        """Grows when the log is truncated or closed: recovery points taken before are void."""

    @property
    def recovery_point(self) -> LogPosition | None:
        """What the file holds."""
        return self._content.recovery_point

    def advance(self, generation: int, content: Checkpoint, prepare: Callable[[], None]) -> None:
        """Move the recovery point, after `prepare` wrote what has to be on disk before it.

        Nothing is done if the log was truncated or closed since `generation`, or the point is further already.

        Raises:
            OSError: the file has its old content.
        """
        with self._lock:
            old, new = self._content.recovery_point, content.recovery_point
            assert new is not None
            if generation == self.generation and (old is None or old.offset <= new.offset):
                prepare()
                self._write(replace(content, log_start_offset=self._content.log_start_offset))

    def void(self) -> None:
        """No recovery point taken before is written any more: the log will be cut, or is closed."""
        with self._lock:
            self.generation += 1

    def raise_log_start(self, offset: Offset) -> None:
        """Records below `offset` are gone for good.

        Raises:
            OSError: the file has its old content.
        """
        with self._lock:
            if offset > self._content.log_start_offset:
                self._write(replace(self._content, log_start_offset=offset))

    def truncate(self, content: Checkpoint) -> None:
        """Before the log is cut at the recovery point of `content`: nothing after it is known to be on disk.

        Raises:
            OSError: the file has its old content.
        """
        with self._lock:
            self.generation += 1
            old, new = self._content.recovery_point, content.recovery_point
            assert new is not None
            if old is None or old.offset > new.offset:
                self._write(replace(content, log_start_offset=self._content.log_start_offset))

    def begin_anew(self, write: Callable[[], Checkpoint]) -> None:
        """The log is another one from now on: `write` replaces this file and all others, and returns its content.

        Raises:
            OSError: it was not done.
        """
        with self._lock:
            self.generation += 1
            self._content = write()

    def _write(self, content: Checkpoint) -> None:
        replace_file(self._path, content.encode(), durable=True)
        self._content = content
