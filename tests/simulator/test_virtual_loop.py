import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.simulator.trace import Trace
from tests.simulator.virtual_loop import Life, Stuck, VirtualExecutor, VirtualLoop, living, virtual_time


def _run(seed: int, work: Coroutine[Any, Any, Any]) -> Any:
    with virtual_time(seed) as loop:
        return loop.run(work)


async def _busy(trace: Trace) -> None:
    """Timers, jobs and locks that get into each other's way."""
    lock = asyncio.Lock()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)

    async def worker(number: int) -> None:
        for turn in range(20):
            await asyncio.sleep(loop.random.uniform(0, 0.01))
            async with lock:
                got = await asyncio.to_thread(divmod, number, turn + 1)
            trace(f"{number} did {got}")

    await asyncio.gather(*(worker(number) for number in range(5)))


def _digest(seed: int) -> str:
    with virtual_time(seed) as loop:
        trace = Trace(loop.time)
        loop.run(_busy(trace))
        return trace.digest


def test_the_same_seed_gives_the_same_trace_and_another_one_does_not() -> None:
    assert _digest(1) == _digest(1)
    assert _digest(1) != _digest(2)


def test_a_day_passes_at_once_on_all_clocks() -> None:
    async def sleep() -> tuple[float, float]:
        before = time.time(), time.monotonic()
        await asyncio.sleep(86_400)
        return time.time() - before[0], time.monotonic() - before[1]

    assert _run(1, sleep()) == pytest.approx((86_400, 86_400))


def test_jobs_run_once_later_and_in_order_where_there_is_one_thread() -> None:
    async def work() -> list[int]:
        order: list[int] = []
        pool = VirtualExecutor(1)
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(pool, order.append, number) for number in range(30)]
        assert order == []
        await asyncio.gather(*jobs)
        return order

    assert _run(3, work()) == list(range(30))


def test_an_exception_of_a_job_reaches_who_waits_for_it() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def work() -> None:
        with pytest.raises(ValueError, match="no"):
            await asyncio.to_thread(fail)

    _run(1, work())


def test_everybody_waiting_for_somebody_else_is_an_error() -> None:
    with pytest.raises(Stuck):
        _run(1, asyncio.Event().wait())


def test_what_after_step_raises_ends_the_run() -> None:
    with virtual_time(1) as loop:

        def check() -> None:
            assert loop.time() < 1005, "too late"

        loop.after_step = check
        with pytest.raises(AssertionError, match="too late"):
            loop.run(asyncio.sleep(10))


def test_an_exception_that_nobody_takes_ends_the_run() -> None:
    async def work() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(ZeroDivisionError):
        _run(1, work())


def test_a_killed_life_ends_with_all_tasks_that_it_began() -> None:
    async def work() -> tuple[list[str], bool]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        life = Life("node 1")
        ended: list[str] = []

        async def wait(name: str) -> None:
            try:
                await asyncio.sleep(100)
            finally:
                ended.append(name)

        async def parent() -> None:
            child = asyncio.create_task(wait("child"))
            await wait("parent")
            await child

        with living(life):
            task = asyncio.create_task(parent())
        bystander = asyncio.create_task(wait("bystander"))
        await asyncio.sleep(1)
        loop.kill(life)
        await loop.bury(life)
        assert task.cancelled()
        alive = not bystander.done()
        bystander.cancel()
        return sorted(ended), alive

    assert _run(1, work()) == (["child", "parent"], True)


def test_a_job_of_a_dead_life_is_not_done() -> None:
    async def work() -> list[int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        life = Life("node 1")
        done: list[int] = []
        with living(life):
            loop.run_in_executor(None, done.append, 1)
        loop.kill(life)
        await asyncio.sleep(1)
        return done

    assert _run(1, work()) == []
