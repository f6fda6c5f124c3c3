"""What must hold after every step, whatever happened. Sans-IO: the simulations tell what they see.

Source: Ongaro's thesis, figure 3.2 (election safety, leader completeness, state machine safety) and section 3.6.2
(commitment of entries from earlier terms).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, NamedTuple

ONE_LEADER: Final = "one leader an epoch"
EPOCHS_RISE: Final = "epochs never fall"
WATERMARK_RISES: Final = "high watermarks never fall"
WATERMARK_IN_LOG: Final = "a high watermark is not beyond the log's end"
OWN_EPOCH: Final = "only a record of the leader's own epoch commits"
COMMITTED_STAYS: Final = "what is below a high watermark never changes"
LEADER_COMPLETE: Final = "a leader has everything that was committed before its epoch"
ON_A_MAJORITY: Final = "what is committed is on a majority of disks"
STABLE_LEADER: Final = "a leader that a majority hears goes on leading"
ACKNOWLEDGED_STAYS: Final = "what was acknowledged is there, once and in order"
CONVERGES: Final = "when the faults are over, all is well again"
NO_EXCEPTIONS: Final = "no exception that the code did not expect"


class Violation(AssertionError):  # noqa: N818  # named for what happened
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Batch(NamedTuple):
    """What stands at an offset of a log."""

    base_offset: int
    end_offset: int
    epoch: int
    content: Hashable
    """What tells it from another batch at the same place."""


class CommittedLog:
    """All that was ever below a high watermark of a partition."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._bases: list[int] = []
        self._committed_in: list[int] = []
        """The first epoch in which somebody knew that the batch is committed."""
        self.end_offset = 0

    def __len__(self) -> int:
        return len(self._batches)

    def observe(self, who: str, epoch: int, batches: Iterable[Batch]) -> None:
        """`who` takes these for committed, in `epoch`."""
        for batch in batches:
            if batch.base_offset == self.end_offset:
                self._batches.append(batch)
                self._bases.append(batch.base_offset)
                self._committed_in.append(epoch)
                self.end_offset = batch.end_offset
                continue
            known = self.at(batch.base_offset)
            if known is None or known != batch:
                raise Violation(COMMITTED_STAYS, f"{who} has {batch} where {known} was committed")

    def at(self, base_offset: int) -> Batch | None:
        """The batch that begins there."""
        index = bisect_left(self._bases, base_offset)
        return self._batches[index] if index < len(self._bases) and self._bases[index] == base_offset else None

    def end_before(self, epoch: int) -> int:
        """Everything before this offset was committed in epochs below `epoch`."""
        count = bisect_left(self._committed_in, epoch)
        return self._batches[count - 1].end_offset if count else 0

    def from_offset(self, offset: int) -> list[Batch]:
        """The batches that begin at or after `offset`."""
        return self._batches[bisect_left(self._bases, offset) :]


class PartitionInvariants:
    """Of one partition, over all its replicas and their lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.committed = CommittedLog()
        self.leaders: dict[int, str] = {}
        """By epoch, the life that led in it."""
        self._epochs: dict[str, int] = {}
        self._watermarks: dict[str, int] = {}

    def observe(self, life: str, *, epoch: int, is_leader: bool, high_watermark: int, end_offset: int) -> None:
        """What a replica says of itself. A `life` is one from the start of a process, or of a log, to its end."""
        if epoch < self._epochs.get(life, -1):
            raise Violation(EPOCHS_RISE, f"{self.name} on {life}: {self._epochs[life]} to {epoch}")
        self._epochs[life] = epoch
        if high_watermark < self._watermarks.get(life, -1):
            raise Violation(WATERMARK_RISES, f"{self.name} on {life}: {self._watermarks[life]} to {high_watermark}")
        self._watermarks[life] = high_watermark
        if high_watermark > end_offset:
            raise Violation(WATERMARK_IN_LOG, f"{self.name} on {life}: {high_watermark} with an end at {end_offset}")
        if is_leader:
            leader = self.leaders.setdefault(epoch, life)
            if leader != life:
                raise Violation(ONE_LEADER, f"{self.name}: {leader} and {life} in epoch {epoch}")

    def elected(self, life: str, epoch: int, log: Sequence[Batch], start_offset: int = 0) -> None:
        """A replica with this log, which begins at `start_offset`, begins to lead."""
        end = self.committed.end_before(epoch)
        wanted = [batch for batch in self.committed.from_offset(start_offset) if batch.end_offset <= end]
        has = {batch.base_offset: batch for batch in log}
        for batch in wanted:
            if has.get(batch.base_offset) != batch:
                raise Violation(
                    LEADER_COMPLETE,
                    f"{self.name}: {life} leads in epoch {epoch} and has {has.get(batch.base_offset)} for {batch}",
                )

    def leader_committed(self, life: str, epoch: int, last: Batch | None) -> None:
        """A leader moved its high watermark to the end of `last`; None: to where its epoch began with an empty log."""
        if last is not None and last.epoch != epoch:
            raise Violation(OWN_EPOCH, f"{self.name}: {life} commits {last} in epoch {epoch}")

    def held(self, life: str, offset: int, voters: Sequence[int], safe: dict[int, int]) -> None:
        """A leader takes everything before `offset` for committed; `safe` is up to where each voter's disk has it."""
        holders = [voter for voter in voters if safe.get(voter, -1) >= offset]
        if len(holders) <= len(voters) // 2:
            raise Violation(
                ON_A_MAJORITY, f"{self.name}: {life} commits {offset}, of the voters {tuple(voters)} on disk: {safe}"
            )
