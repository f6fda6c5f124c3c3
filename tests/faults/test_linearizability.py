"""The checker of metadata histories, on histories that are known to be linearizable or not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.linearizability import Explanation, Operation, explain
from tests.support.topics_history import ABSENT, TopicState, create, delete, see, topic_step


def verdict(*operations: Operation) -> Explanation[TopicState]:
    return explain(operations, ABSENT, topic_step)


def op(
    action: tuple[str, int], outcome: str | int | None, called_s: float, returned_s: float, **more: str
) -> Operation:
    return Operation(
        client="c",
        action=action,
        outcome=outcome,
        called_s=called_s,
        returned_s=returned_s,
        session=more.get("session"),
    )


def test_operations_one_after_the_other_are_linearizable() -> None:
    assert verdict(
        op(see(), "absent", 0, 1),
        op(create(3), "done", 2, 3),
        op(create(5), "exists", 4, 5),
        op(see(), 3, 6, 7),
        op(delete(), "done", 8, 9),
        op(delete(), "missing", 10, 11),
    ).holds


def test_concurrent_operations_take_effect_in_any_order_within_their_time() -> None:
    assert verdict(
        op(create(3), "done", 0, 10),
        op(see(), 3, 1, 2),
        op(delete(), "done", 3, 9),
        op(create(4), "done", 4, 8),
        op(see(), 4, 11, 12),
    ).holds


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([op(create(3), "done", 0, 1), op(see(), "absent", 2, 3)], id="a read from the past"),
        pytest.param([op(see(), 3, 0, 1), op(create(3), "done", 2, 3)], id="a read from the future"),
        pytest.param([op(create(3), "done", 0, 1), op(create(4), "done", 2, 3)], id="made twice"),
        pytest.param([op(create(3), "done", 0, 5), op(create(4), "done", 1, 4)], id="made twice at once"),
        pytest.param(
            [op(create(3), "done", 0, 1), op(delete(), "done", 2, 3), op(see(), 3, 4, 5)], id="back from the dead"
        ),
        pytest.param(
            [op(create(3), "done", 0, 1), op(see(), 3, 2, 3), op(see(), "absent", 4, 5), op(see(), 3, 6, 7)],
            id="gone in between",
        ),
        pytest.param([op(create(3), "done", 0, 1), op(delete(), "missing", 2, 3)], id="an acknowledged write lost"),
        pytest.param(
            [op(create(3), None, 0, 1), op(see(), "absent", 4, 5), op(see(), 3, 2, 3)], id="an unknown write undone"
        ),
        pytest.param([op(delete(), "missing", 0, 1), op(create(2), "exists", 2, 3)], id="told what nobody did"),
    ],
)
def test_histories_that_no_order_explains_are_found(operations: list[Operation]) -> None:
    found = verdict(*operations)
    assert not found.holds
    assert "no place for" in str(found)


def test_a_write_of_unknown_outcome_may_take_effect_late_or_never() -> None:
    unknown = op(create(3), None, 0, 1)
    assert verdict(unknown, op(see(), "absent", 2, 3)).holds
    assert verdict(unknown, op(see(), "absent", 2, 3), op(see(), 3, 4, 5)).holds
    assert verdict(unknown, op(see(), "absent", 2, 3), op(create(4), "done", 4, 5), op(see(), 4, 6, 7)).holds
    assert not verdict(unknown, op(see(), 5, 2, 3)).holds


def test_a_read_of_a_lagging_node_may_show_the_past_but_never_goes_back_and_never_shows_the_future() -> None:
    made = op(create(3), "done", 0, 1)
    assert verdict(made, op(see(), "absent", 2, 3, session="n1")).holds
    assert verdict(
        made, op(see(), 3, 4, 5, session="n1"), op(see(), "absent", 4, 5, session="n2"), op(see(), 3, 8, 9)
    ).holds
    assert not verdict(made, op(see(), 3, 2, 3, session="n1"), op(see(), "absent", 4, 5, session="n1")).holds
    assert not verdict(op(see(), 3, 0, 1, session="n1"), op(create(3), "done", 2, 3)).holds


@st.composite
def real_histories(draw: st.DrawFn) -> list[Operation]:
    """Operations on a real, atomic topic, each with a time span around the moment it took effect."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    state: TopicState = ABSENT
    operations: list[Operation] = []
    for moment in range(draw(st.integers(1, 40))):
        action = chance.choice((create(chance.randint(1, 8)), delete(), see()))
        if action[0] == "create":
            outcome: str | int = "done" if state == ABSENT else "exists"
            state = action[1] if state == ABSENT else state
        elif action[0] == "delete":
            outcome, state = ("missing" if state == ABSENT else "done"), ABSENT
        else:
            outcome = "absent" if state == ABSENT else state
        called_s, returned_s = moment - chance.expovariate(0.5), moment + chance.expovariate(0.5)
        is_unknown = action[0] != "see" and chance.random() < 0.1
        operations.append(op(action, None if is_unknown else outcome, called_s, returned_s))
    return operations


@given(real_histories())
def test_histories_of_an_atomic_topic_are_always_linearizable(operations: list[Operation]) -> None:
    assert verdict(*operations).holds
    assert verdict(*reversed(operations)).holds


@given(real_histories(), st.integers(1, 8))
def test_a_read_of_what_was_never_written_is_always_found(operations: list[Operation], position: int) -> None:
    never = op(see(), 99, float(position), position + 3.0)
    assert not verdict(*operations, never).holds
