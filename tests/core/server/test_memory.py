from __future__ import annotations

import asyncio
from collections.abc import Callable

from tidegate_core.memory import HalfRead, InFlight


class Calls:
    """Callbacks that note that they were called."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def half_read(self, name: str, *, goes_on: bool = True) -> Callable[[], bool]:
        def callback() -> bool:
            self.names.append(name)
            return goes_on

        return callback

    def in_flight(self, name: str, budget: InFlight, takes: int) -> Callable[[], None]:
        def callback() -> None:
            self.names.append(name)
            budget.take(takes)

        return callback


def test_whoever_waits_is_called_in_order_while_there_is_room() -> None:
    budget, calls = InFlight(100), Calls()
    budget.take(150)
    assert budget.is_full
    for name in ("a", "b", "c"):
        budget.when_room(calls.in_flight(name, budget, takes=60))
    budget.give_back(40)
    assert calls.names == []
    budget.give_back(80)
    assert calls.names == ["a", "b"]
    budget.give_back(100)
    assert calls.names == ["a", "b", "c"]


async def test_room_is_awaited_until_it_is_there() -> None:
    budget = InFlight(100)
    budget.take(101)
    waiting = asyncio.create_task(budget.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.give_back(1)
    async with asyncio.timeout(5):
        await waiting


def test_half_requests_go_on_in_the_order_of_what_is_missing() -> None:
    budget, calls = HalfRead(100), Calls()
    budget.take(150)
    budget.when_room(500, calls.half_read("500"))
    assert calls.names == ["500"]  # nobody else waited: it is let through
    budget.when_room(300, calls.half_read("300"))
    budget.when_room(20, calls.half_read("20"))
    assert calls.names == ["500"]
    budget.end_passage()
    assert calls.names == ["500", "20"]
    budget.give_back(60)
    assert calls.names == ["500", "20", "300"]


def test_a_half_request_that_is_gone_does_not_hold_the_passage() -> None:
    budget, calls = HalfRead(100), Calls()
    budget.take(150)
    budget.when_room(1, calls.half_read("gone", goes_on=False))
    budget.when_room(2, calls.half_read("stays"))
    assert calls.names == ["gone", "stays"]


def test_a_half_request_that_makes_way_is_let_through_again_when_it_is_nearest_to_its_end() -> None:
    budget, calls = HalfRead(100), Calls()
    budget.take(150)
    budget.when_room(50, calls.half_read("slow"))
    budget.when_room(10, calls.half_read("short"))
    budget.when_room(40, calls.half_read("slow again"))
    budget.end_passage()
    budget.end_passage()
    assert calls.names == ["slow", "short", "slow again"]
