"""A loop whose clock jumps to the next timer instead of waiting for it: hours of timeouts in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _NoWaiting(selectors.SelectSelector):
    """Looks at the sockets, and turns the clock instead of waiting for them."""

    def __init__(self, pass_time: Callable[[float], None]) -> None:
        super().__init__()
        self._pass_time = pass_time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits for somebody else"
            self._pass_time(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Nothing in it may use threads or other processes: those live in real time."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        super().__init__(_NoWaiting(self._pass))

    def _pass(self, seconds: float) -> None:
        self._now_s += max(seconds, 0.0)

    def time(self) -> float:
        return self._now_s


def in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
