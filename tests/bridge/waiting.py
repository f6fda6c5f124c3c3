"""Waiting for something to become so, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TIMEOUT_S = 20.0


async def eventually(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll `condition` until it holds; an AssertionError names `what` never came."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not within {timeout_s} s"
        await asyncio.sleep(0.01)
