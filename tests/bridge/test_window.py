from __future__ import annotations

import asyncio

from tidegate_bridge.window import EDGE_SHARE, WINDOWS_PER_EDGE, InFlightWindow


async def test_an_edge_may_hold_two_windows_and_then_has_to_wait_while_others_go_on() -> None:
    window = InFlightWindow(batches_max=100, bytes_max=10_000, edge_batches_max=3)
    assert all(window.take("edge-1", 10) for _ in range(3 * WINDOWS_PER_EDGE))
    assert not window.take("edge-1", 10)
    assert window.take("edge-2", 10)
    window.release("edge-1", 10)
    assert window.take("edge-1", 10)


async def test_an_edge_may_hold_its_share_of_the_bytes_but_one_batch_always_fits() -> None:
    window = InFlightWindow(batches_max=100, bytes_max=10_000, edge_batches_max=50)
    assert window.take("edge-1", 10_000 // EDGE_SHARE + 1)
    assert not window.take("edge-1", 1)
    assert window.take("edge-2", 10_000 // EDGE_SHARE)
    assert not window.take("edge-2", 1)


async def test_a_full_window_lets_the_next_in_when_a_batch_is_answered() -> None:
    window = InFlightWindow(batches_max=2, bytes_max=10_000, edge_batches_max=50)
    assert window.take("edge-1", 1)
    assert window.take("edge-2", 1)
    waiting = [asyncio.create_task(window.room()) for _ in range(3)]
    emptied = asyncio.create_task(window.empty())
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    window.release("edge-1", 1)
    await asyncio.gather(*waiting)
    assert not emptied.done()
    window.release("edge-2", 1)
    await emptied
    assert window.batches == 0


async def test_the_limit_on_bytes_counts_as_well() -> None:
    window = InFlightWindow(batches_max=100, bytes_max=100, edge_batches_max=50)
    assert window.take("edge-1", 100)
    assert not window.has_room
    window.release("edge-1", 100)
    assert window.has_room
