"""Who leads each partition, as far as this node heard. Nothing here is on a disk: leaders say it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.messages import Leadership
from tidegate_wire.identifiers import LeaderEpoch


class LeaderDirectory:
    """The newest epoch wins; within one, what came last."""

    def __init__(self) -> None:
        self._leaderships: dict[ReplicaKey, Leadership] = {}
        self._lost: dict[ReplicaKey, LeaderEpoch] = {}
        """Partitions whose leader of this epoch, and all before, is known to be gone."""
        self._given_up: dict[ReplicaKey, LeaderEpoch] = {}
        """Partitions whose next leader was waited for long enough, by the epoch of the lost one."""
        self.version = 0
        """Grows with every change: what is derived from the directory may be kept while it stays."""
        self.on_change: list[Callable[[ReplicaKey], None]] = []

    def get(self, key: ReplicaKey) -> Leadership | None:
        """Who leads; None if nobody is known to."""
        leadership = self._leaderships.get(key)
        return leadership if leadership and self._lost.get(key, -1) < leadership.epoch else None

    def heard(self, leadership: Leadership) -> bool:
        """Somebody says who leads; returns whether that was new."""
        key = leadership.key
        known = self._leaderships.get(key)
        if known is not None and (known.epoch > leadership.epoch or known == leadership):
            return False
        self._leaderships[key] = leadership
        self._changed(key)
        return True

    def lost(self, key: ReplicaKey, epoch: LeaderEpoch) -> None:
        """The leader of `epoch` leads no more."""
        if self._lost.get(key, -1) < epoch:
            was_known = self.get(key) is not None
            self._lost[key] = epoch
            if was_known and self.get(key) is None:
                self._changed(key)

    def is_being_elected(self, key: ReplicaKey) -> bool:
        """Whether a leader is gone, and the next one may be there in a moment."""
        lost = self._lost.get(key)
        return lost is not None and self.get(key) is None and self._given_up.get(key, -1) < lost

    def give_up(self, keys: Iterable[ReplicaKey]) -> None:
        """Whoever waited for these partitions' next leaders has waited long enough; others need not."""
        for key in keys:
            if self.is_being_elected(key):
                self._given_up[key] = self._lost[key]

    def found_again(self, key: ReplicaKey, epoch: LeaderEpoch) -> None:
        """The leader of `epoch` was thought gone, and does lead; nothing is said of newer ones."""
        if self._lost.get(key) == epoch:
            del self._lost[key]
            self._changed(key)

    def forget(self, key: ReplicaKey) -> None:
        """The partition is deleted."""
        self._lost.pop(key, None)
        self._given_up.pop(key, None)
        if self._leaderships.pop(key, None) is not None:
            self._changed(key)

    def _changed(self, key: ReplicaKey) -> None:
        self.version += 1
        for listener in self.on_change:
            listener(key)
