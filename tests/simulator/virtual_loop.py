"""An event loop in virtual time: its clock jumps to the next timer, threads are jobs that take a while, and every
choice comes from one seed.

What `run_in_executor` is given runs in the loop's own thread, once, after a random delay; who waits for it hears after
another one. A crash between the two finds the work done and nobody told.

Callbacks belong to a `Life`, one process of a node that the simulator can kill: `asyncio` passes the context on to
everything that a life begins.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import Context, ContextVar
from random import Random
from typing import Any, Final, ParamSpec, TypeVar
from unittest.mock import patch

T = TypeVar("T")
P = ParamSpec("P")

STARTS_AT_S: Final = 1000.0

WALL_CLOCK_AT_START_MS: Final = 1_700_000_000_000

STEP_S: Final = 1e-6
"""What a turn of the loop takes at least: nothing happens in no time, and a timer that was set by a rounded clock and
comes too early by a hair is not early for ever."""

CANCEL_ROUNDS_MAX: Final = 100
"""Turns of the loop that the tasks of a dead life may take to end."""

_LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


class Stuck(AssertionError):  # noqa: N818  # what it is
    """Nothing is scheduled: everybody waits for somebody else, for ever."""


class Life:
    """One process: from its start until it is killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        """Nothing that it does counts any more; what is left of it is being cleared away."""
        self.tasks: dict[asyncio.Task[Any], None] = {}

    def __str__(self) -> str:
        return self.name


def current_life() -> Life | None:
    """Whose code runs now; None for the simulator's own."""
    return _LIFE.get()


@contextmanager
def living(life: Life) -> Iterator[None]:
    """What is begun within belongs to `life`."""
    token = _LIFE.set(life)
    try:
        yield
    finally:
        _LIFE.reset(token)


class _Clockwork(selectors.BaseSelector):
    """Has no files; to wait is to turn the clock."""

    def __init__(self, pass_time: Callable[[float | None], None]) -> None:
        self._pass_time = pass_time

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, -1, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, -1, 0, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._pass_time(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`after_step` is called after each turn; what it raises ends the run."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.steps = 0
        self.after_step: Callable[[], None] = lambda: None
        self._now_s = STARTS_AT_S
        self._failure: BaseException | None = None
        super().__init__(_Clockwork(self._pass))
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # typeshed: any Future, this makes Tasks
        self.set_exception_handler(self._on_exception)

    def time(self) -> float:
        return self._now_s

    def _pass(self, timeout_s: float | None) -> None:
        self.steps += 1
        try:
            self.after_step()
        except BaseException as error:
            self._failure = error
            self.stop()
            return
        if timeout_s is None:
            raise Stuck("nothing is scheduled")
        self._now_s += max(timeout_s, STEP_S)

    def fail(self, error: BaseException) -> None:
        """End the run with `error`."""
        self._failure = self._failure or error
        self.stop()

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Nobody took this exception: a fault of whoever raised it, unless that was dying."""
        handle: asyncio.Handle | None = context.get("handle")
        task = context.get("task", context.get("future"))
        life: Life | None = None
        if handle is not None:
            life = handle._context.get(_LIFE)  # type: ignore[attr-defined]  # whose callback it was
        elif isinstance(task, asyncio.Task):
            life = task.get_context().get(_LIFE) if hasattr(task, "get_context") else None
        error = context.get("exception")
        if error is not None and (life is None or not life.is_dead):
            self.fail(error)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it to its end.

        Raises:
            BaseException: what `after_step` raised, or the work.
        """
        task = self.create_task(work, name="simulation")
        task.add_done_callback(lambda _done: self.stop())
        self.run_forever()
        if self._failure is not None:
            raise self._failure
        return task.result()

    def end_tasks(self) -> None:
        """Leave none behind."""
        self.after_step = lambda: None
        for _ in range(CANCEL_ROUNDS_MAX):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            self.call_later(0.01, self.stop)
            self.run_forever()
        raise AssertionError(f"these tasks don't end when they are cancelled: {asyncio.all_tasks(self)}")

    def call_soon_threadsafe(  # type: ignore[override]  # typeshed has a TypeVarTuple here
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """What a job tells its loop arrives a little later."""
        return self.call_later(self.random.uniform(0, 0.0005), callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]  # typeshed has a TypeVarTuple here
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        starts_s = self._now_s + self.random.expovariate(1) * 0.001
        if isinstance(executor, VirtualExecutor):
            starts_s = executor.next_start_s(starts_s)

        def run() -> None:
            life = current_life()
            if life is not None and life.is_dead:
                return
            tell: Callable[[Any], None]
            try:
                result: Any = func(*args)
            except Exception as error:
                result, tell = error, done.set_exception
            else:
                tell = done.set_result
            self.call_soon_threadsafe(lambda: None if done.done() else tell(result))

        self.call_at(starts_s, run)
        return done

    def kill(self, life: Life) -> None:
        """End its tasks. What they do about it happens nowhere: its files and connections are not its own any more."""
        life.is_dead = True
        for task in list(life.tasks):
            task.cancel()

    async def bury(self, life: Life) -> None:
        """Wait for the tasks of a dead life to end."""
        for _ in range(CANCEL_ROUNDS_MAX):
            if not life.tasks:
                return
            for task in list(life.tasks):
                task.cancel()
            await asyncio.sleep(0.001)
        raise AssertionError(f"{life}: these tasks don't end when they are cancelled: {list(life.tasks)}")


class VirtualExecutor(Executor):
    """Takes the place of a thread pool; one of a single thread does its jobs in order."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        self._is_serial = max_workers == 1
        self._last_start_s = 0.0
        self._loop = asyncio.get_running_loop()
        self.name = thread_name_prefix

    def next_start_s(self, wanted_s: float) -> float:
        """When a job starts that would like to at `wanted_s`."""
        if self._is_serial:
            wanted_s = self._last_start_s = max(wanted_s, self._last_start_s + 1e-6)
        return wanted_s

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run it soon. Nobody in the core waits for what this returns."""
        assert not kwargs
        self._loop.run_in_executor(self, fn, *args)
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """There is no thread to end."""


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], *, context: Context | None = None
) -> asyncio.Task[Any]:
    task = asyncio.Task(work, loop=loop, context=context)
    life = current_life() if context is None else context.get(_LIFE)
    if life is not None:
        life.tasks[task] = None
        task.add_done_callback(life.tasks.pop)
        if life.is_dead:
            task.cancel()
    return task


@contextmanager
def virtual_time(seed: int) -> Iterator[VirtualLoop]:
    """A loop on which everything, the clocks and random numbers of the standard library too, follows from `seed`."""
    random = Random(seed)
    entropy = Random(random.random())
    loop = VirtualLoop(random)

    def wall_clock_ns() -> int:
        return WALL_CLOCK_AT_START_MS * 1_000_000 + int((loop.time() - STARTS_AT_S) * 1e9)

    with (
        patch.object(os, "urandom", entropy.randbytes),
        patch.object(time, "monotonic", loop.time),
        patch.object(time, "monotonic_ns", lambda: int(loop.time() * 1e9)),
        patch.object(time, "time_ns", wall_clock_ns),
        patch.object(time, "time", lambda: wall_clock_ns() / 1e9),
        patch("tidegate_core.log.flusher.ThreadPoolExecutor", VirtualExecutor),
        patch("tidegate_core.log_manager.ThreadPoolExecutor", VirtualExecutor),
        patch("tidegate_core.replication.vote_store.ThreadPoolExecutor", VirtualExecutor),
    ):
        try:
            yield loop
        finally:
            loop.end_tasks()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
