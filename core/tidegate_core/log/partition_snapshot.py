"""What a follower takes over from a leader whose log begins after the follower's ends, instead of the records.

Layout: the length of a JSON head (uint32), the head, the producers (`ProducerStates.encode`), and what the records
before the offset add up to for whoever reads them, if anybody said so.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Final

from tidegate_core.producers import ProducerStates
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset

_HEAD_BYTES: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSnapshot:
    """A partition as of `offset`."""

    offset: Offset
    leader_epochs: tuple[tuple[LeaderEpoch, Offset], ...]
    """Of the records before `offset`."""
    voters: tuple[NodeId, ...]
    producers: ProducerStates
    """The committed ones, as of later than `offset`: reading on from there brings each of them to the same state."""
    app_state: bytes | None
    compacted_to: Offset
    """Records before this offset were removed by compaction, tombstones among them."""

    def encode(self) -> bytes:
        """As it goes over the wire."""
        producers = self.producers.encode(self.offset)
        head = json.dumps(
            {
                "offset": self.offset,
                "leader_epochs": self.leader_epochs,
                "voters": self.voters,
                "producers_bytes": len(producers),
                "has_app_state": self.app_state is not None,
                "compacted_to": self.compacted_to,
            }
        ).encode()
        return b"".join((_HEAD_BYTES.pack(len(head)), head, producers, self.app_state or b""))

    @classmethod
    def decode(cls, data: bytes) -> PartitionSnapshot:
        """Read what `encode` made.

        Raises:
            ValueError: it is something else.
        """
        try:
            (size,) = _HEAD_BYTES.unpack_from(data)
            at = _HEAD_BYTES.size + size
            head = json.loads(data[_HEAD_BYTES.size : at])
            end = at + head["producers_bytes"]
            _, producers = ProducerStates.decode(data[at:end])
            return cls(
                offset=Offset(int(head["offset"])),
                leader_epochs=tuple((LeaderEpoch(epoch), Offset(start)) for epoch, start in head["leader_epochs"]),
                voters=tuple(NodeId(int(voter)) for voter in head["voters"]),
                producers=producers,
                app_state=data[end:] if head["has_app_state"] else None,
                compacted_to=Offset(int(head["compacted_to"])),
            )
        except (struct.error, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a partition's snapshot: {error!r}") from error
