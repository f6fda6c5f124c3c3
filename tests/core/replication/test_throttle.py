"""The throttle of recovery without I/O: what it lets through at most, and at least."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.replication.throttle import BURST_S, Throttle

RATE = 1_000_000
BURST = int(RATE * BURST_S)
BURST_MS = int(1000 * BURST_S)
START_MS = 5_000


def started(bytes_per_s: int = RATE) -> Throttle:
    throttle = Throttle(bytes_per_s)
    throttle.allowed(START_MS)
    return throttle


@given(
    bytes_per_s=st.integers(1, 10**9),
    asked=st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 5_000_000)), min_size=1, max_size=30),
)
def test_in_no_span_of_time_is_more_sent_than_burst_and_rate_and_one_batch_too_many(
    bytes_per_s: int, asked: list[tuple[int, int]]
) -> None:
    throttle = Throttle(bytes_per_s)
    sent: list[tuple[int, int]] = []
    now_ms = START_MS
    for elapsed_ms, batch_bytes in asked:
        now_ms += elapsed_ms
        if throttle.allowed(now_ms) > 0:
            throttle.take(batch_bytes)
            sent.append((now_ms, batch_bytes))
    assert sent, "nothing was sent at all"
    burst_bytes = max(bytes_per_s * BURST_S, 1)
    for first, (since_ms, _) in enumerate(sent):
        span = sent[first:]
        for (until_ms, batch_bytes), total_bytes in zip(span, accumulate(size for _, size in span), strict=True):
            assert total_bytes <= burst_bytes + bytes_per_s * (until_ms - since_ms) / 1000 + batch_bytes


@given(bytes_per_s=st.integers(1_000, 10**9), elapsed_ms=st.lists(st.integers(0, BURST_MS), min_size=1, max_size=50))
def test_who_keeps_to_what_is_allowed_never_exceeds_burst_and_rate(bytes_per_s: int, elapsed_ms: list[int]) -> None:
    throttle = Throttle(bytes_per_s)
    sent_bytes = 0
    for now_ms in accumulate(elapsed_ms, initial=START_MS):
        allowed = throttle.allowed(now_ms)
        throttle.take(allowed)
        sent_bytes += allowed
        assert 0 <= allowed <= bytes_per_s * BURST_S
        assert sent_bytes <= bytes_per_s * BURST_S + bytes_per_s * (now_ms - START_MS) / 1000 + 1


@given(bytes_per_s=st.integers(1_000, 10**9), asked=st.integers(1, 100))
def test_who_asks_again_after_each_pause_gets_the_whole_rate(bytes_per_s: int, asked: int) -> None:
    throttle = started(bytes_per_s)
    pause_ms = int(throttle.pause_s * 1000)
    sent_bytes = 0
    for number in range(1, asked + 1):
        allowed = throttle.allowed(START_MS + number * pause_ms)
        throttle.take(allowed)
        sent_bytes += allowed
    assert sent_bytes >= bytes_per_s * asked * pause_ms / 1000 - 1


def test_a_burst_is_allowed_at_first() -> None:
    assert Throttle(RATE).allowed(0) == BURST


@pytest.mark.parametrize("pause_ms", [BURST_MS, 10 * BURST_MS, 86_400_000])
def test_however_long_the_pause_only_one_burst_is_saved_up(pause_ms: int) -> None:
    throttle = started()
    throttle.take(BURST)
    assert throttle.allowed(START_MS) == 0
    assert throttle.allowed(START_MS + pause_ms) == BURST


def test_asking_without_sending_uses_nothing_up() -> None:
    throttle = started()
    assert [throttle.allowed(START_MS) for _ in range(3)] == [BURST] * 3


def test_all_followers_share_what_is_allowed() -> None:
    throttle = started()
    throttle.take(BURST // 2)
    throttle.take(BURST // 4)
    assert throttle.allowed(START_MS) == BURST - BURST // 2 - BURST // 4


def test_a_batch_too_large_is_paid_back_before_anything_else_is_sent() -> None:
    throttle = started()
    throttle.take(10 * BURST)
    paid_back_ms = START_MS + 9 * BURST_MS
    assert throttle.allowed(paid_back_ms - 1) <= 0
    assert throttle.allowed(paid_back_ms) <= 0
    assert throttle.allowed(paid_back_ms + 1) == RATE // 1000


def test_a_rate_of_less_than_a_byte_a_burst_still_lets_something_through() -> None:
    throttle = started(1)
    throttle.take(1)
    assert throttle.allowed(START_MS + 999) == 0
    assert throttle.allowed(START_MS + 1_100) == 1
