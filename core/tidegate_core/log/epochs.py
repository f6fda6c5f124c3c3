"""Where each leader epoch begins in a log (KIP-101): what Kafka keeps in `leader-epoch-checkpoint`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from tidegate_wire.identifiers import LeaderEpoch, Offset

UNDEFINED: tuple[LeaderEpoch, Offset] = (LeaderEpoch(-1), Offset(-1))
"""Kafka's answer where no epoch is known."""


class LeaderEpochs:
    """Epochs and their start offsets, both growing."""

    __slots__ = ("_epochs", "_starts")

    def __init__(self, entries: Iterable[tuple[int, int]] = ()) -> None:
        self._epochs: list[LeaderEpoch] = []
        self._starts: list[Offset] = []
        for epoch, start in entries:
            self.note(LeaderEpoch(epoch), Offset(start))

    @property
    def entries(self) -> list[tuple[LeaderEpoch, Offset]]:
        """Each epoch and its first offset."""
        return list(zip(self._epochs, self._starts, strict=True))

    @property
    def latest(self) -> LeaderEpoch | None:
        """The epoch of the last batch, if there ever was one."""
        return self._epochs[-1] if self._epochs else None

    def note(self, epoch: LeaderEpoch, base_offset: Offset) -> None:
        """A batch of `epoch` stands at `base_offset`. Cheap when it is the epoch of the batch before."""
        if self._epochs and epoch <= self._epochs[-1]:
            return
        if epoch >= 0:
            self._epochs.append(epoch)
            self._starts.append(base_offset)

    def end_offset(self, epoch: LeaderEpoch, log_end_offset: Offset) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch`, and the first offset after it; `UNDEFINED` above the latest.

        An epoch older than all that are known ends where the first known one begins, as in Kafka; that may be before
        the log's start.
        """
        if not self._epochs or epoch > self._epochs[-1] or epoch < 0:
            return UNDEFINED
        at = bisect_right(self._epochs, epoch)
        if at == 0:
            return epoch, self._starts[0]
        return self._epochs[at - 1], self._starts[at] if at < len(self._starts) else log_end_offset

    def at(self, offset: Offset) -> LeaderEpoch | None:
        """That of the batch at `offset`; None before the first that is known."""
        at = bisect_right(self._starts, offset) - 1
        return self._epochs[at] if at >= 0 else None

    def before(self, offset: Offset) -> LeaderEpochs:
        """Those of the batches before `offset`."""
        return LeaderEpochs((epoch, start) for epoch, start in self.entries if start < offset)

    def cut_start(self, offset: Offset) -> None:
        """Forget epochs that end before `offset`, where the log begins now.

        That of the batch before it stays: a log that is cut back to its start ends with it.
        """
        while len(self._starts) > 1 and self._starts[1] < offset:
            del self._starts[0], self._epochs[0]
