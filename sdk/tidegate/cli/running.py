"""Running a coroutine until it ends or the process is asked to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def run_until_stopped(job: Coroutine[Any, Any, T]) -> T | None:
    """Run `job` to its end; SIGTERM and Ctrl-C cancel it, so that it shuts down cleanly.

    A second Ctrl-C ends the process at once; a second SIGTERM changes nothing, as init systems and impatient scripts
    may send several.

    Returns:
        What `job` returned; None where a signal ended it.
    """
    return asyncio.run(_run_until_stopped(job))


async def _run_until_stopped(job: Coroutine[Any, Any, T]) -> T | None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(job)
    stopping = False

    # Plain signal handlers, not the loop's: they also run while the loop is blocked in a write to a stalled pipe.
    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            loop.call_soon_threadsafe(task.cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if not stopping:
            raise
        return None
