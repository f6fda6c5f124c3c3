"""The order of one producer's batches for one partition, through pipelining, lost connections and retries. Sans-IO.

Up to five batches are with the core at once: as many as a Kafka log remembers of a producer, so that each can be
recognised when it is sent again. When one comes back that may be tried again, nothing more is sent until every other
one has come back too; then all of them go out again in the order of their sequences, after a wait. When the time for
tries is over, everything in the lane is handed back to the edge, which starts again from its own disk.

    add ----> waiting (by sequence) --take--> in flight --settle--> stored | refused
                 ^                                           |
                 +----- all of them, once none is left ------+ to be tried again
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tidegate_bridge.backoff import Backoff, Chance
from tidegate_bridge.batch_checks import CheckedBatch
from tidegate_bridge.verdicts import Verdict
from tidegate_wire.records import SEQUENCE_MAX
from tidegate_wire.uplink.messages import AckError

IN_FLIGHT_MAX: Final = 5
"""Batches of a producer that a Kafka log remembers (ProducerStateEntry.NUM_BATCHES_TO_RETAIN)."""

OUT_OF_ORDER_MS: Final = 3_000
"""How long a batch waits for the one before it to come through another bridge, before the edge is asked to rewind."""

RETRY: Final = Backoff(first_ms=50, longest_ms=2_000)
RETRY_IN_ORDER: Final = Backoff(first_ms=4, longest_ms=200)
"""The other bridge has the missing batch right now: try again within milliseconds."""

Settled = Callable[[int | None, AckError | None], None]
"""Told once what became of a batch: its offset (None if the core does not say), or an error."""


@dataclass(slots=True, eq=False)
class LaneBatch:
    """A batch on its way through a lane."""

    batch: CheckedBatch
    added_ms: int
    waiters: list[Settled] = field(default_factory=list)
    """Several if an edge sent the same batch again while it was here."""

    @property
    def key(self) -> tuple[int, int]:
        """The same for the same bytes sent again."""
        return self.batch.header.base_sequence, self.batch.header.crc

    def settle(self, offset: int | None, error: AckError | None) -> None:
        """Tell everyone who waits."""
        for waiter in self.waiters:
            waiter(offset, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the core, or the way to it, said of a batch."""

    verdict: Verdict
    offset: int | None = None
    error: AckError | None = None
    """Set unless the batch is stored; `retriable` says what the edge is told if there are no more tries."""


class Lane:
    """One producer's batches for one partition. The caller sends what `take` gives and reports each to `settle`."""

    def __init__(self, *, retry_ms: int, chance: Chance) -> None:
        self._retry_ms = retry_ms
        self._chance = chance
        self._waiting: list[LaneBatch] = []
        self._in_flight: list[LaneBatch] = []
        self._returned: list[LaneBatch] = []
        self._known: dict[tuple[int, int], LaneBatch] = {}
        self._failures = 0
        self._hold_until_ms = 0
        self._last_answer: Answer | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing left to do."""
        return not self._known

    @property
    def hold_until_ms(self) -> int | None:
        """When `take` is worth another try, if waiting is all that is missing."""
        return self._hold_until_ms if self._waiting and not self._in_flight else None

    def add(self, batch: CheckedBatch, settled: Settled, now_ms: int) -> None:
        """Take a batch in; one that is here already is not sent twice, but answered twice."""
        entry = LaneBatch(batch, now_ms, [settled])
        known = self._known.get(entry.key)
        if known is not None:
            known.waiters.append(settled)
            return
        self._known[entry.key] = entry
        self._waiting.append(entry)
        if len(self._waiting) > 1 and _comes_before(entry, self._waiting[-2]):
            self._sort_waiting()

    def can_take(self, now_ms: int) -> bool:
        """Whether `take` gives a batch now."""
        blocked = self._returned or len(self._in_flight) >= IN_FLIGHT_MAX or now_ms < self._hold_until_ms
        return bool(self._waiting) and not blocked

    def take(self, now_ms: int) -> LaneBatch | None:
        """The next batch to send now, if any."""
        if not self.can_take(now_ms):
            return None
        entry = self._waiting.pop(0)
        self._in_flight.append(entry)
        return entry

    def settle(self, entry: LaneBatch, answer: Answer, now_ms: int) -> None:
        """Report what became of a batch that `take` gave."""
        self._in_flight.remove(entry)
        if answer.verdict is Verdict.STORED:
            self._failures = 0
            self._finish(entry, answer.offset, None)
        elif answer.verdict is Verdict.REFUSED:
            self._finish(entry, None, answer.error)
        else:
            if not self._returned:
                self._last_answer = answer
            self._returned.append(entry)
        if self._returned and not self._in_flight:
            self._waiting = self._returned + self._waiting
            self._returned = []
            self._sort_waiting()
            assert self._last_answer is not None
            self._wait_or_give_up(self._last_answer, now_ms)

    def unreachable(self, answer: Answer, now_ms: int) -> None:
        """There is no way to the leader: wait, or hand everything back."""
        if self._in_flight:
            self._hold_until_ms = now_ms + RETRY.delay_ms(1, self._chance)
        elif self._waiting:
            self._wait_or_give_up(answer, now_ms)

    def _wait_or_give_up(self, answer: Answer, now_ms: int) -> None:
        in_order = answer.verdict is Verdict.RETRY_IN_ORDER
        longest_ms = min(OUT_OF_ORDER_MS, self._retry_ms) if in_order else self._retry_ms
        self._failures += 1
        oldest_ms = min(entry.added_ms for entry in self._waiting)
        if now_ms - oldest_ms >= longest_ms:
            given_up, self._waiting = self._waiting, []
            self._failures = 0
            for index, entry in enumerate(given_up):
                self._finish(entry, None, answer.error if index == 0 else _with_the_first(answer.error))
            return
        backoff = RETRY_IN_ORDER if in_order else RETRY
        self._hold_until_ms = now_ms + backoff.delay_ms(self._failures, self._chance)

    def _finish(self, entry: LaneBatch, offset: int | None, error: AckError | None) -> None:
        del self._known[entry.key]
        entry.settle(offset, error)

    def _sort_waiting(self) -> None:
        first = self._waiting[0]
        for entry in self._waiting:
            if _comes_before(entry, first):
                first = entry
        origin = first.batch.header.base_sequence
        self._waiting.sort(key=lambda entry: (entry.batch.header.base_sequence - origin) & SEQUENCE_MAX)


def _comes_before(one: LaneBatch, other: LaneBatch) -> bool:
    """By sequence, which wraps: whichever way round is shorter."""
    ahead = (other.batch.header.base_sequence - one.batch.header.base_sequence) & SEQUENCE_MAX
    return 0 < ahead <= SEQUENCE_MAX // 2


def _with_the_first(error: AckError | None) -> AckError | None:
    """A refusal concerns the batch that it names; the ones behind it are only handed back."""
    if error is None or error.retriable:
        return error
    return AckError(code=error.code, reason=f"a batch before this one: {error.reason}", retriable=True)
