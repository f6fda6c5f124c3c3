"""Is a history of concurrent operations linearizable? A search for an order that explains every outcome.

Sans-IO. Source: Wing and Gong, "Testing and verifying concurrent objects" (1993); configurations that were tried are
remembered, as in Lowe, "Testing for linearizability" (2017). Histories of different keys are to be checked one by one
(linearizability is local), which keeps each search short.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

S = TypeVar("S", bound=Hashable)
"""State of the object."""

STEPS_MAX: Final = 2_000_000
"""Of one search; a history of a test takes a few thousand, one that takes more has too much at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a client asked and was told."""

    client: str
    action: tuple[str, int]
    """What was asked for, and with which number."""
    outcome: str | int | None
    """None: nobody knows; it may take effect at any time after the call, or never."""
    called_s: float
    returned_s: float
    session: str | None = None
    """Not None: a read that may be answered from the past, yet never from further back than an earlier one of its
    session, and never from the future."""


Step = Callable[[S, Operation], Iterable[S]]
"""The states that an operation may lead to from a state, given its outcome; none: it can't have happened there."""


@dataclass(frozen=True, slots=True)
class Explanation(Generic[S]):
    """The longest order that was found."""

    order: tuple[Operation, ...]
    state: S
    """After the last of `order`."""
    unexplained: tuple[Operation, ...]
    """Known outcomes that have no place; empty if the history is linearizable."""

    @property
    def holds(self) -> bool:
        return not self.unexplained

    def __str__(self) -> str:
        if self.holds:
            return f"linearizable: {len(self.order)} operations"
        lines = [f"not linearizable: {len(self.order)} operations explained, then state {self.state!r}"]
        lines += [f"  before: {_line(operation)}" for operation in self.order[-8:]]
        lines += [f"  no place for: {_line(operation)}" for operation in self.unexplained[:8]]
        return "\n".join(lines)


def explain(operations: Sequence[Operation], initial: S, step: Step[S]) -> Explanation[S]:
    """Search for a linearization.

    Raises:
        OverflowError: more than STEPS_MAX steps; nothing is known then.
    """
    return _Search(operations, initial, step).run()


class _Search(Generic[S]):
    """Depth first over sets of operations done, kept as bits."""

    def __init__(self, operations: Sequence[Operation], initial: S, step: Step[S]) -> None:
        # The one that returned first is tried first: most histories then need no step back.
        self.operations = sorted(operations, key=lambda operation: (_end_s(operation), operation.called_s))
        self.initial = initial
        self.step = step
        self.known = sum(1 << index for index, op in enumerate(self.operations) if op.outcome is not None)
        self.earlier_in_session = [self._session_before(operation) for operation in self.operations]

    def _session_before(self, read: Operation) -> int:
        if read.session is None:
            return 0
        return sum(
            1 << index
            for index, other in enumerate(self.operations)
            if other.session == read.session and other.returned_s < read.called_s
        )

    def run(self) -> Explanation[S]:
        best: tuple[tuple[int, ...], S] = ((), self.initial)
        tried: set[tuple[int, S]] = {(0, self.initial)}
        stack: list[tuple[int, S, tuple[int, ...]]] = [(0, self.initial, ())]
        while stack:
            done, state, order = stack.pop()
            if len(order) > len(best[0]):
                best = (order, state)
            if done & self.known == self.known:
                return self._explanation(order, state)
            for index in reversed(self._candidates(done)):
                bit = 1 << index
                for after in self.step(state, self.operations[index]):
                    if (done | bit, after) not in tried:
                        tried.add((done | bit, after))
                        stack.append((done | bit, after, (*order, index)))
            if len(tried) > STEPS_MAX:
                raise OverflowError(f"{len(self.operations)} operations are too many at once to be checked")
        return self._explanation(*best)

    def _candidates(self, done: int) -> list[int]:
        """Operations that may come next: none that is not done returned before they were called."""
        open_indices = [index for index in range(len(self.operations)) if not done >> index & 1]
        first_return_s = _end_s(self.operations[open_indices[0]])
        return [
            index
            for index in open_indices
            if (self.operations[index].session is not None or self.operations[index].called_s <= first_return_s)
            and self.earlier_in_session[index] & ~done == 0
        ]

    def _explanation(self, order: tuple[int, ...], state: S) -> Explanation[S]:
        chosen = set(order)
        rest = [op for index, op in enumerate(self.operations) if index not in chosen and op.outcome is not None]
        return Explanation(tuple(self.operations[index] for index in order), state, tuple(rest))


def _end_s(operation: Operation) -> float:
    return float("inf") if operation.outcome is None else operation.returned_s


def _line(operation: Operation) -> str:
    span = f"{operation.called_s:.3f} to {operation.returned_s:.3f} s"
    return f"{operation.client} {operation.action} -> {operation.outcome} ({span})"
