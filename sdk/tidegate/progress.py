"""How far the application is in each partition it owns: what may be committed, and what must not.

Pure bookkeeping without I/O. The rule it keeps: a commit never passes an event that was not delivered to the
application, and nothing is committed for a partition that went to someone else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tidegate.errors import CommitRefusedError
from tidegate.event import Event, StreamPartition


class Progress:
    """Delivered and committed positions by partition; a position is the offset of the next event."""

    def __init__(self) -> None:
        self._delivered: dict[tuple[str, int], int] = {}
        self._committed: dict[tuple[str, int], int] = {}

    @property
    def positions(self) -> dict[StreamPartition, int]:
        """For each owned partition that delivered something, the offset after the last delivered event."""
        return {StreamPartition(*partition): position for partition, position in self._delivered.items()}

    def deliver(self, events: Sequence[Event]) -> None:
        """The application got these events."""
        delivered = self._delivered
        for event in events:
            delivered[event.stream, event.partition] = event.offset + 1

    def release(self, partitions: Iterable[StreamPartition]) -> None:
        """These partitions are no longer ours."""
        for partition in partitions:
            self._delivered.pop(partition, None)
            self._committed.pop(partition, None)

    def uncommitted(self) -> dict[StreamPartition, int]:
        """The positions to commit so that everything delivered is committed."""
        return {
            StreamPartition(*partition): position
            for partition, position in self._delivered.items()
            if position > self._committed.get(partition, -1)
        }

    def uncommitted_up_to(self, event: Event) -> dict[StreamPartition, int]:
        """The position to commit so that the event's partition is committed up to and including it.

        Raises:
            CommitRefusedError: the partition is not ours, or not any more.
            ValueError: the event was never delivered.
        """
        partition = StreamPartition(event.stream, event.partition)
        delivered = self._delivered.get(partition)
        if delivered is None:
            raise lost_partition(partition)
        if event.offset >= delivered:
            raise ValueError(f"offset {event.offset} of {event.stream}[{event.partition}] was not delivered yet")
        return {partition: event.offset + 1} if event.offset >= self._committed.get(partition, -1) else {}

    def commit_done(self, positions: Mapping[StreamPartition, int]) -> None:
        """The core has stored these positions."""
        for partition, position in positions.items():
            if partition in self._delivered:
                self._committed[partition] = max(position, self._committed.get(partition, -1))


def lost_partition(partition: StreamPartition) -> CommitRefusedError:
    """The error for a commit of a partition that the group has taken away."""
    return CommitRefusedError(
        f"{partition.stream}[{partition.partition}] belongs to another member of the group by now",
        hint="handle events idempotently: the new owner gets those again that were not committed",
    )
